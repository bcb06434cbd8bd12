#!/usr/bin/env bash
# AArch64 on an x86-64 Debian 12 machine: cross-builds the workspace, lints it, and runs in an emulator the tests of what an
# instruction set can break. Reports, texts, commands and troubles with files are the same on every CPU: the host tests them.
#
#   tests/aarch64.sh              everything below but `macos`
#   tests/aarch64.sh setup        the toolchain and the emulator, into the cache folder
#   tests/aarch64.sh clippy       lints for aarch64-unknown-linux-gnu, warnings denied
#   tests/aarch64.sh build        the test programs and `ttft`, as static programs
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

# CPU model -> its test programs. The last has every level, so whatever computes runs there. The first shows that no kernel of
# plain NEON needs more, the second what uses fp16 and dotprod: the crate gemm and the peak loops. Plans of memory count bytes by
# shapes, and threads share an engine as on any CPU, both of which the host tests.
declare -A PROGRAMS=(
    [cortex-a72]="ttft_kernels conformance_gemm conformance_attention conformance_rowwise goldens"
    [neoverse-n1]="ttft_kernels conformance_gemm"
    [max,sve=off]="ttft_kernels ttft_models ttft_bench conformance_gemm conformance_attention conformance_rowwise goldens
        families networks variants pruning rivals sinks maps cli"
)
# Of a program, or of a program on one CPU, the tests whose names hold one of the words: what runs networks, and what looks at the
# machine. Orders of layers are the same wherever products beside each other are, which conformance_gemm checks. The gate of
# benchmarks, whose own test takes minutes here, is passed by every cell of a run of `cli`.
declare -A ONLY=(
    ["neoverse-n1 ttft_kernels"]="peak::"
    ["neoverse-n1 conformance_gemm"]="the_gemm_crate_agrees"
    [variants]="every_recorded_variant full_prefill is_exact"
    [maps]="linear_keys_and_values features_that_tell_nothing"
    [ttft_bench]="rig:: session:: micro:: machine:: process:: cpus:: this_machine"
    [cli]="logits_reproduces logits_of_token_prunings machine_prints bench_runs_tiny the_doctor_answers"
)

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

# Of the crate that has code for this CPU alone: all others are linted on the host.
clippy() {
    say "clippy"
    PATH=$PREFIX/bin:$PATH "$PREFIX/bin/cargo-clippy" clippy -p ttft-kernels --all-targets --target $LINUX --locked -- -D warnings
}

# The test programs, as lines `NAME EXECUTABLE`, in EXECUTABLES; and `ttft`, which they start. They are static, so that `ttft` is
# the program that tests/static.sh makes.
build() {
    local names name select=(--lib) log=$OUT/build.log
    mkdir -p "$OUT"
    read -ra names <<<"$(printf '%s ' "${PROGRAMS[@]}" | tr -s ' \n' '\n' | sort -u | tr '\n' ' ')"
    for name in "${names[@]}"; do
        case $name in ttft_*) ;; *) select+=(--test "$name") ;; esac
    done
    say "build the tests"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
        cargo test -p ttft-kernels -p ttft-models -p ttft-bench -p ttft-tests "${select[@]}" \
        --target $LINUX --locked --no-run 2>&1 | tee "$log"
    EXECUTABLES=$(sed -n 's|^ *Executable .*(\(.*/\([a-z0-9_]*\)-[0-9a-f]*\))$|\2 \1|p' "$log")
    for name in "${names[@]}"; do
        grep -q "^$name " <<<"$EXECUTABLES" || fail "cargo names no test program '$name'"
    done
}

# Runs a test program on a CPU, in the folder of its package and with the variables that the tests look at, as cargo does.
program() {
    local cpu=$1 name=$2 only program dir word log=$OUT/test.log
    only=${ONLY[$cpu $name]:-${ONLY[$name]:-}}
    program=$(realpath "$(sed -n "s/^$name //p" <<<"$EXECUTABLES")")
    case $name in ttft_*) dir=${name#ttft_} ;; *) dir=$(dirname "$(dirname ./*/tests/"$name".rs)") ;; esac
    # shellcheck disable=SC2086
    (cd "$dir" && CARGO=cargo CARGO_MANIFEST_DIR=$PWD $CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER "$program" $only) >"$log" 2>&1 || {
        cat "$log"
        fail "$name failed"
    }
    grep -E '^(ISA levels|test result)' "$log"
    for word in $only; do
        grep -q "^test .*$word" "$log" || fail "no test of $name is called '$word'"
    done
}

tests() {
    local cpu name start began
    build
    [ $# -gt 0 ] || set -- "${CPUS[@]}"
    for cpu in "$@"; do
        [ -n "${ISA[$cpu]:-}" ] || fail "no CPU model '$cpu' here; there are: ${CPUS[*]}"
        say "tests on $cpu, which must run the kernels of ${ISA[$cpu]}"
        export QEMU_CPU=$cpu TTFT_REQUIRE_ISA=${ISA[$cpu]} TTFT_TEST_SMALL=1
        start=$SECONDS
        for name in ${PROGRAMS[$cpu]}; do
            began=$SECONDS
            program "$cpu" "$name"
            echo "$cpu: $name in $((SECONDS - began)) s"
        done
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
    build) setup && build ;;
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
