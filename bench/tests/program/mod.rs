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

/// Runs it; it must succeed. What it prints, and what it remarks.
#[track_caller]
pub fn succeed(c: &mut Command) -> (String, String) {
    let out = c.output().expect("the command starts");
    assert!(out.status.success(), "{c:?}: {}", stderr(&out));
    (String::from_utf8(out.stdout.clone()).expect("UTF-8"), stderr(&out))
}

/// Runs it; it must fail, with an error that contains every word and no panic.
#[track_caller]
pub fn fail(c: &mut Command, words: &[&str]) {
    let out = c.output().expect("the command starts");
    let err = stderr(&out);
    assert!(!out.status.success(), "{c:?} succeeded");
    assert!(out.status.code().is_some_and(|code| code != 101), "{c:?}: {err}");
    words.iter().for_each(|word| assert!(err.contains(word), "{c:?}: no '{word}' in: {err}"));
}
