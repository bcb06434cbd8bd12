#!/usr/bin/env bash
# AArch64 on an x86-64 Debian 12 machine: cross-builds the workspace, lints it, and runs its tests in an emulator.
#
#   tests/aarch64.sh              everything below but `macos`
#   tests/aarch64.sh setup        the toolchain and the emulator, into the cache folder
#   tests/aarch64.sh clippy       lints for aarch64-unknown-linux-gnu, warnings denied
#   tests/aarch64.sh test [CPU..] builds once, then runs the tests on each CPU model (default: all of them)
#   tests/aarch64.sh macos        type-checks for aarch64-apple-darwin (its standard library is built once)
#   tests/aarch64.sh exec CPU PROGRAM [ARG..]   runs a cross-built program
#   tests/aarch64.sh cargo ARG..  cargo with the cross toolchain, e.g. `cargo build --release --bin ttft`
#
# TTFT_AARCH64 is the cache folder (default ~/.cache/ttft-aarch64, about 1 GB). Installing packages needs root or sudo.
# Nothing here is timed for speed: the emulator is some 200 times slower than the hardware.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
PREFIX=${TTFT_AARCH64:-${XDG_CACHE_HOME:-$HOME/.cache}/ttft-aarch64}
mkdir -p "$PREFIX"
PREFIX=$(realpath "$PREFIX")
LINUX=aarch64-unknown-linux-gnu
MACOS=aarch64-apple-darwin
SYSROOT=/usr/aarch64-linux-gnu
OUT=${CARGO_TARGET_DIR:-$ROOT/target}/aarch64

# CPU model -> the ISA level it must select. The first has plain NEON, the second adds fp16 and dotprod, the third adds
# fhm, bf16 and i8mm: every fallback is the best choice of one of them.
CPUS=(cortex-a72 neoverse-n1 max,sve=off)
declare -A ISA=([cortex-a72]=neon [neoverse-n1]=neon [max,sve=off]=neonbf16)

say() { printf '\n-- aarch64: %s\n' "$*"; }
fail() { printf 'aarch64: %s\n' "$*" >&2; exit 1; }
root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# Downloads Debian packages and unpacks them into the prefix, away from the system's own.
unpack() {
    local dir f
    dir=$(mktemp -d)
    chmod 755 "$dir"
    (cd "$dir" && root apt-get download -qq -o APT::Sandbox::User=root "$@")
    for f in "$dir"/*.deb; do dpkg-deb -x "$f" "$PREFIX"; done
    rm -rf "$dir"
}

candidate() { apt-cache policy "$1" | awk '/Candidate:/ { print $2 }'; }

setup() {
    local must_exist=${1:-} v mm llvm tool
    if [ ! -e "$PREFIX/ready" ] || ! command -v aarch64-linux-gnu-gcc >/dev/null ||
        ! command -v qemu-aarch64-static >/dev/null; then
        [ -z "$must_exist" ] || fail "not set up: run $0 setup"
        command -v apt-get >/dev/null && [ "$(dpkg --print-architecture)" = amd64 ] || fail "needs Debian 12 on x86-64"
        say "cross toolchain and emulator into $PREFIX"
        dpkg --print-foreign-architectures | grep -qx arm64 || root dpkg --add-architecture arm64
        root apt-get update -qq
        root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
            gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static >/dev/null
        # The suite drops superseded versions, so they are asked for, not written down.
        v=$(candidate rustc-web)
        [ -n "$v" ] || fail "the package rustc-web is not offered here; it comes with Debian 12's security suite"
        mm=$(cut -d. -f1,2 <<<"$v")
        llvm=$(apt-cache depends "libstd-rust-web-$mm=$v" | awk '/Depends: libllvm/ { print $2; exit }')
        unpack "rustc-web=$v" "libstd-rust-web-$mm=$v" "libstd-rust-web-dev:amd64=$v" "libstd-rust-web-dev:arm64=$v" \
            "rust-web-clippy=$v" "$llvm"
        mkdir -p "$PREFIX/bin"
        for tool in rustc rustdoc clippy-driver cargo-clippy; do
            printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' \
                "$PREFIX/usr/lib/x86_64-linux-gnu" "$PREFIX/usr/bin/$tool" >"$PREFIX/bin/$tool"
            chmod +x "$PREFIX/bin/$tool"
        done
        "$PREFIX/bin/rustc" --version
        touch "$PREFIX/ready"
    fi
    export RUSTC=$PREFIX/bin/rustc RUSTDOC=$PREFIX/bin/rustdoc CARGO_TARGET_DIR=$OUT
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    # The emulator takes its CPU model from QEMU_CPU, so that a change of model rebuilds nothing.
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64-static -L $SYSROOT"
    # Tests that start the `ttft` program start it through this.
    export TTFT_TEST_RUNNER=$CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER
    export CARGO_PROFILE_DEV_DEBUG=false CARGO_PROFILE_TEST_DEBUG=false
}

clippy() {
    say "clippy"
    PATH=$PREFIX/bin:$PATH "$PREFIX/bin/cargo-clippy" clippy --workspace --all-targets --target $LINUX --locked -- -D warnings
}

# Libraries, programs and integration tests; documentation examples are the same on every CPU and run on the host. What is
# around the kernels is the same on every CPU as well, so it runs on the last one alone: models' own tests compute on no kernel.
tests() {
    local cpu start same
    say "build the tests"
    cargo test --workspace --lib --bins --tests --target $LINUX --locked --no-run
    [ $# -gt 0 ] || set -- "${CPUS[@]}"
    for cpu in "$@"; do
        [ -n "${ISA[$cpu]:-}" ] || fail "no CPU model '$cpu' here; there are: ${CPUS[*]}"
        say "tests on $cpu, which must run the kernels of ${ISA[$cpu]}"
        start=$SECONDS
        same=(--exclude ttft-bench --exclude ttft-models --exclude ttft-reports)
        [ "$cpu" != "${!#}" ] || same=()
        QEMU_CPU=$cpu TTFT_REQUIRE_ISA=${ISA[$cpu]} TTFT_TEST_SMALL=1 \
            cargo test --workspace "${same[@]}" --lib --bins --tests --target $LINUX --locked --quiet
        echo "$cpu: passed in $((SECONDS - start)) s"
    done
}

# The libraries of the Apple target exist for no Linux toolchain: they are built from source, once. Nothing can be run.
macos() {
    local v lib=$PREFIX/usr/lib/rustlib/$MACOS/lib dir f
    if [ ! -e "$lib/ready" ]; then
        say "standard library for $MACOS"
        v=$(candidate rust-web-src)
        [[ $("$RUSTC" --version) == *"${v%%+*}"* ]] || fail "rust-web-src is $v, the toolchain in $PREFIX another: remove that folder"
        unpack "rust-web-src=$v"
        dir=$(mktemp -d)
        mkdir -p "$dir/src" "$lib"
        printf '[package]\nname = "empty"\nversion = "0.0.0"\nedition = "2024"\n' >"$dir/Cargo.toml"
        touch "$dir/src/lib.rs"
        (cd "$dir" && RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$dir/target cargo build --quiet --release --target $MACOS \
            -Zbuild-std=std,panic_unwind,panic_abort,test,proc_macro)
        for f in "$dir"/target/$MACOS/release/deps/*.r*; do
            case ${f##*/} in libempty-*) ;; *) cp "$f" "$lib/" ;; esac
        done
        rm -rf "$dir"
        touch "$lib/ready"
    fi
    say "check for $MACOS"
    # Without the benchmarks: criterion compiles a little C, for which there is no compiler here.
    cargo check --workspace --lib --bins --features ttft-bench/accelerate --target $MACOS --locked
}

case ${1:-all} in
    all) setup && clippy && tests ;;
    setup) setup ;;
    clippy) setup && clippy ;;
    test) shift && setup && tests "$@" ;;
    macos) setup && macos ;;
    exec)
        [ $# -ge 3 ] || fail "usage: $0 exec CPU PROGRAM [ARG..]"
        setup must_exist
        QEMU_CPU=$2 exec qemu-aarch64-static -L $SYSROOT "${@:3}"
        ;;
    cargo) setup must_exist && exec cargo "$2" --target $LINUX "${@:3}" ;;
    *) sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' && exit 2 ;;
esac
