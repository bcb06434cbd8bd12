#!/usr/bin/env bash
# One engine shared by several threads, under AddressSanitizer, at every level of this x86-64 machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The crates of this workspace are instrumented, and the crates they depend on are those that `cargo test` has built. The compiler
# brings the sanitizer's runtime; on the stable channel it has to be told that it may use it.
built=$(realpath -m "${CARGO_TARGET_DIR:-target}")/sanitize
mkdir -p "$built"
printf '#!/bin/sh\nRUSTC_BOOTSTRAP=1 exec "$@" -Zsanitizer=address\n' >"$built/rustc"
chmod +x "$built/rustc"
export RUSTC_WORKSPACE_WRAPPER=$built/rustc
# All levels but the tiles in plain Rust, which would take as long as the others together.
export TTFT_TEST_ISA=portable,avx2,avx512,avx512bf16,amx
cargo test --workspace --locked --no-default-features --test shared_engine -- --nocapture
