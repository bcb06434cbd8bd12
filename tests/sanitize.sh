#!/usr/bin/env bash
# One engine shared by several threads, under AddressSanitizer, at every level of this x86-64 machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The sanitizer's runtime comes with the toolchain; stable needs to be told that it may be used. The host's build scripts stay
# as they are, since a target is named.
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/sanitize"
# Every access is looked at, however much of the rest is optimised: what compiles sooner is ready sooner.
export CARGO_PROFILE_DEV_OPT_LEVEL=1 CARGO_PROFILE_DEV_DEBUG=line-tables-only
# All levels but the tiles in plain Rust, which would take as long as the others together.
export TTFT_TEST_ISA=portable,avx2,avx512,avx512bf16,amx
cargo test --target x86_64-unknown-linux-gnu --locked -p ttft-tests --no-default-features --test shared_engine -- --nocapture
