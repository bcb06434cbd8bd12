//! A short run of every fuzz target: the same inputs every time. `tests/examples/fuzz.rs` runs as many as one likes.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use ttft_tests::{
    fuzz::{TARGETS, run},
    small,
};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// One test, as the counters belong to the process.
#[test]
fn nothing_from_outside_panics_hangs_or_takes_memory() {
    let count = if small() { 300 } else { 30_000 };
    for target in &TARGETS {
        match run(target, count, 0) {
            Ok(summary) => {
                println!("{}: {summary:?}", target.name);
                // Inputs that are all refused at their first byte would test nothing.
                assert!(summary.accepted > 0, "{}: {summary:?}", target.name);
                assert!(summary.accepted < count, "{}: {summary:?}", target.name);
            }
            Err((why, input)) => panic!("{}: an input {why}: {}", target.name, String::from_utf8_lossy(&input)),
        }
    }
}
