#!/usr/bin/env bash
# The kernels of Intel's tile unit on a CPU without one: their own instructions, each of which traps and is emulated
# (tests/amx/emulate.c). It needs a C compiler and a CPU with AVX-512 and BF16, whose vectors do the rest of the work.
#
#   tests/amx.sh [ARGUMENT..]     arguments go to `cargo test`, in place of those for the tests that run tiles
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! grep -qw avx512_bf16 /proc/cpuinfo; then
    echo "tests/amx.sh: nothing is tested, as this CPU has no AVX-512 with BF16"
    exit
fi
if grep -qw amx_bf16 /proc/cpuinfo; then
    echo "tests/amx.sh: nothing is emulated, as this CPU has the unit: cargo test uses it"
    exit
fi

built=$(realpath -m "${CARGO_TARGET_DIR:-target}")/amx
mkdir -p "$built"
"${CC:-cc}" -O3 -Wall -Wextra -Werror -shared -fPIC -o "$built/emulate.so" tests/amx/emulate.c
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="env LD_PRELOAD=$built/emulate.so"
export TTFT_TEST_ISA=amx TTFT_REQUIRE_ISA=amx TTFT_TEST_SMALL=1
run() { cargo test --locked --workspace "$@"; }
if [ $# != 0 ]; then
    run "$@"
else
    run --lib amx
    run --test conformance_gemm --test conformance_attention --test goldens --test maps --test networks --test families \
        --test shared_engine
fi
