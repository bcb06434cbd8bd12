//! The one way to speak and the one way to fail: answers on standard output, remarks on standard error, exit codes.
//!
//! A reader of standard output that has seen enough (`head`, a pager that was quit) is no error: what is left to say is
//! dropped, what is left to do is done. Standard output that cannot be written otherwise is one.

use std::{
    cell::Cell,
    fmt::{self, Display},
    io::{self, ErrorKind, IsTerminal, Write},
    ops::ControlFlow,
    panic, process,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use anyhow::{Context, Result};
use ttft_reports::text;

use crate::cleanup;

/// Whether standard output holds a file of results: then answers are remarks.
static RESERVED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether a panic of this thread is an error that somebody catches.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// What `work` gives; none if it panics, about which nothing is printed: for libraries that panic on bad input.
pub fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = CAUGHT.replace(true);
    let done = panic::catch_unwind(panic::AssertUnwindSafe(work));
    CAUGHT.set(before);
    done.ok()
}

/// Text as a terminal may have it: nothing in it but line ends and tabs steers.
fn clean(text: &str) -> String {
    let shown = |c| if text::steers(c) && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).collect()
}

/// Keeps standard output for a file of results; what [`print()`] says goes to standard error from now on.
pub fn reserve_stdout() {
    RESERVED.store(true, Relaxed);
}

/// Prints an answer, with a line end.
///
/// # Errors
/// Standard output is full or broken. That nobody reads it is none.
pub fn print(text: impl Display) -> Result<()> {
    let text = clean(&format!("{text}\n"));
    if RESERVED.load(Relaxed) {
        let _ = io::stderr().lock().write_all(text.as_bytes());
        return Ok(());
    }
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print the answer"),
    }
}

/// Prints a part of an answer at once; whether anybody reads on.
///
/// # Errors
/// As [`print()`].
pub fn stream(text: &str) -> Result<ControlFlow<()>> {
    let mut out = io::stdout().lock();
    match out.write_all(clean(text).as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        printed => printed.map(ControlFlow::Continue).context("cannot print the answer"),
    }
}

/// A remark, with a line end. That nobody can read it stops nothing.
pub fn note(text: impl Display) {
    let _ = io::stderr().lock().write_all(clean(&format!("{text}\n")).as_bytes());
}

/// What is wrong with a command line that could be read.
#[derive(Debug)]
pub struct Misuse(pub String);

impl Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misuse {}

/// Ends a program: with the code of its answer, or with the error in words and 1, or 2 if its command line was wrong.
pub fn end(done: Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(e) => {
            note(format_args!("error: {}", words(&e)));
            if e.is::<Misuse>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// An error and its causes, of which some say already what their own cause is.
fn words(e: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in e.chain().map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&cause);
        }
    }
    text
}

/// Ends a program whose arguments were refused, with 2, or that was asked for help.
pub fn refused(error: &clap::Error) -> ExitCode {
    let plain = error.render().to_string();
    if error.use_stderr() {
        // An argument may hold anything; colours only if it does not.
        if plain == clean(&plain) && io::stderr().is_terminal() {
            let _ = error.print();
        } else {
            note(plain.trim_end());
        }
        return ExitCode::from(2);
    }
    let printed = error.print().and_then(|()| io::stdout().flush());
    end(match printed {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(e) => Err(e).context("cannot print the answer"),
    })
}

/// To be called first in every program. Libraries that print for themselves (criterion) panic where that fails: this ends
/// the program as [`print()`] would. A limit on file size becomes an error of the write that meets it, not a signal.
pub fn init() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if CAUGHT.get() {
            return;
        }
        let Some(code) = info.payload_as_str().and_then(unprintable) else { return before(info) };
        cleanup::all();
        process::exit(code);
    }));
    cleanup::hold_file_size_signal();
}

/// The exit code of a program that panics because it could not print, which it says unless nobody reads.
fn unprintable(message: &str) -> Option<i32> {
    let why = message.strip_prefix("failed printing to std")?;
    if ["Broken pipe", "(os error 232)", "(os error 109)"].iter().any(|gone| why.contains(gone)) {
        return Some(0);
    }
    note(format_args!("error: cannot print the answer: std{why}"));
    Some(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_steers_no_terminal() {
        assert_eq!(clean("a\tb\n\x1b]0;title\x07"), "a\tb\n\u{fffd}]0;title\u{fffd}");
    }

    #[test]
    fn causes_are_said_once() {
        let e = anyhow::anyhow!("disk full").context("x: cannot write: disk full").context("cannot make it");
        assert_eq!(words(&e), "cannot make it: x: cannot write: disk full");
        assert_eq!(words(&anyhow::anyhow!("a").context("b")), "b: a");
    }

    #[test]
    fn panics_of_printing_are_told_from_others() {
        assert_eq!(unprintable("failed printing to stdout: Broken pipe (os error 32)"), Some(0));
        assert_eq!(unprintable("failed printing to stdout: No space left on device (os error 28)"), Some(1));
        assert_eq!(unprintable("index out of bounds"), None);
    }
}
