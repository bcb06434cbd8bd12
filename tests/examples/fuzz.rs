//! Fuzzes a target, or all of them, with as many inputs as asked for:
//!
//!     cargo run -p ttft-tests --example fuzz -- safetensors 10000000 1
//!
//! target (or `all`), inputs of each, seed. A faulty input is written to `fuzz-TARGET.bin`. The development profile checks
//! for overflows too.

use std::{
    alloc::System,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use ttft_tests::fuzz::{CURRENT, TARGETS, run};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// An input that takes so long hangs.
const HANGS: Duration = Duration::from_secs(30);

/// Ends the program with the input that hangs.
fn watch() {
    loop {
        thread::sleep(HANGS / 3);
        let current = CURRENT.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        if let Some((since, input)) = current
            && since.elapsed() > HANGS
        {
            eprintln!("an input hangs; it is in fuzz-hangs.bin");
            let _ = std::fs::write("fuzz-hangs.bin", input);
            std::process::exit(1);
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    let [name, count, seed] = &args[..] else {
        let names: Vec<_> = TARGETS.iter().map(|t| t.name).collect();
        eprintln!("usage: fuzz TARGET INPUTS SEED; targets: all, {}", names.join(", "));
        return ExitCode::from(2);
    };
    let (Ok(count), Ok(seed)) = (count.parse(), seed.parse()) else {
        eprintln!("INPUTS and SEED are numbers");
        return ExitCode::from(2);
    };
    thread::spawn(watch);
    let mut known = false;
    for target in TARGETS.iter().filter(|t| name == "all" || name == t.name) {
        known = true;
        let began = Instant::now();
        match run(target, count, seed) {
            Ok(summary) => println!("{}: {summary:?} in {:.0} s", target.name, began.elapsed().as_secs_f64()),
            Err((why, input)) => {
                let file = format!("fuzz-{}.bin", target.name);
                let written = std::fs::write(&file, input);
                eprintln!("{}: an input {why}; it is in {file} ({written:?})", target.name);
                return ExitCode::FAILURE;
            }
        }
    }
    if !known {
        eprintln!("no target is called {name}");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}
