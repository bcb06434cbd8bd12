//! The `ttft` program, as tests start it.
#![allow(dead_code, reason = "each test file uses its part of this")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

/// A recorded fixture.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The emulator that `TTFT_TEST_RUNNER` is, if this build is for another machine, and the program.
pub fn words() -> Vec<String> {
    let runner = std::env::var("TTFT_TEST_RUNNER").unwrap_or_default();
    runner.split_whitespace().map(str::to_owned).chain([env!("CARGO_BIN_EXE_ttft").to_owned()]).collect()
}

/// A command with none of the knobs that this test's environment may set.
pub fn program(words: &[String]) -> Command {
    let mut c = Command::new(&words[0]);
    c.args(&words[1..]).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    for (name, _) in ttft_bench::knobs::RunKnobs::variables() {
        c.env_remove(name);
    }
    // Seconds for each system, on machines that have counters.
    c.env("TTFT_ENERGY", "off");
    c
}

/// The command.
pub fn ttft() -> Command {
    program(&words())
}

/// What a program said on standard error.
pub fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}
