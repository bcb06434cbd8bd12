#!/usr/bin/env bash
# Builds `ttft` as static Linux binaries, which need no toolchain and no libraries where they run, and starts them.
#
#   tests/static.sh                     both architectures, optimised, packed for a release
#   tests/static.sh x86_64 | aarch64    one of them
#   tests/static.sh check [ARCH..]      in the profile dev and not packed, as quickly as it builds: whether it links and starts
#
# The result is target/static/ttft-ARCH/ with the binary, its man pages, its shell completions and a Containerfile, and the same
# as ttft-ARCH.tar.gz. AArch64 takes the toolchain and the emulator of tests/aarch64.sh (`tests/aarch64.sh setup`).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TARGET=${CARGO_TARGET_DIR:-$PWD/target}
OUT=$TARGET/static
profile=release
if [ "${1:-}" = check ]; then
    profile=dev
    shift
fi
[ $# -gt 0 ] || set -- x86_64 aarch64

# The C library becomes a part of the program. A target is named, so build scripts and macros stay as they are.
build() {
    local target=$1-unknown-linux-gnu flags="-C target-feature=+crt-static"
    case $1 in
        x86_64)
            CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS=$flags \
                cargo build --profile $profile --locked --target "$target" -p ttft-bench --bin ttft
            binary=$TARGET/$target/${profile/dev/debug}/ttft
            ;;
        aarch64)
            # The program that the tests start is static already.
            if [ $profile = dev ]; then
                tests/aarch64.sh build
            else
                CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS=$flags \
                    tests/aarch64.sh cargo build --profile $profile --locked -p ttft-bench --bin ttft
            fi
            binary=$TARGET/aarch64/$target/${profile/dev/debug}/ttft
            ;;
        *) echo "static: no architecture '$1' here; there are x86_64 and aarch64" >&2 && exit 2 ;;
    esac
}

# Runs the binary, in the emulator where it is not this machine's.
start() {
    local arch=$1
    shift
    if [ "$arch" = "$(uname -m)" ]; then "$binary" "$@"; else tests/aarch64.sh exec max,sve=off "$binary" "$@"; fi
}

for arch in "$@"; do
    build "$arch"
    # A dynamic program names the loader that is to load it.
    if LC_ALL=C grep -aq '/ld-linux' < <(head -c 4096 "$binary"); then
        echo "static: $binary is not static" >&2
        exit 1
    fi
    start "$arch" --version
    start "$arch" zoo | head -n 3
    # A container from scratch holds nothing but the binary. As root, an empty folder shows the same.
    if [ "$arch" = "$(uname -m)" ] && [ "$(id -u)" = 0 ]; then
        empty=$(mktemp -d)
        cp "$binary" "$empty/ttft"
        chroot "$empty" /ttft zoo >/dev/null
        rm -rf "$empty"
    fi
    [ $profile = release ] || continue
    folder=$OUT/ttft-$arch
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$binary" "$folder/ttft"
    cp tests/Containerfile LICENSE "$folder/"
    start "$arch" shell-files "$folder"
    tar -C "$OUT" -czf "$folder.tar.gz" "ttft-$arch"
    echo "$folder.tar.gz: $(du -h "$folder.tar.gz" | cut -f1)"
done
