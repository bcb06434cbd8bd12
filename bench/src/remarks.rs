//! What criterion remarks on standard error.

use std::io::{BufRead, Write};

/// How criterion's remark begins that a sample took longer than its share of the target time. Whoever has every sample be
/// one run, however long, has no target time, so the remark says nothing.
const NO_ALARM: &str = "Warning: Unable to complete ";

/// Runs `measure` without that remark. Everything else on standard error goes where it goes otherwise.
#[cfg(unix)]
pub fn without_target_time<T>(measure: impl FnOnce() -> T) -> T {
    let Some(sieve) = Sieve::new() else { return measure() };
    let done = measure();
    drop(sieve);
    done
}

/// Runs `measure`.
#[cfg(not(unix))]
pub fn without_target_time<T>(measure: impl FnOnce() -> T) -> T {
    measure()
}

/// Standard error behind a pipe. Dropping it puts standard error back, when all that was written is through.
#[cfg(unix)]
struct Sieve {
    stderr: std::os::fd::OwnedFd,
    reader: Option<std::thread::JoinHandle<()>>,
}

#[cfg(unix)]
impl Sieve {
    /// None if the system has no pipe or thread left: then the remark stays.
    fn new() -> Option<Sieve> {
        use std::os::fd::AsFd;
        let stderr = std::io::stderr().as_fd().try_clone_to_owned().ok()?;
        let out = std::fs::File::from(stderr.try_clone().ok()?);
        let (reader, writer) = std::io::pipe().ok()?;
        let sift = move || pass(std::io::BufReader::new(reader), out);
        let reader = Some(std::thread::Builder::new().spawn(sift).ok()?);
        nix::unistd::dup2_stderr(writer).ok()?;
        Some(Sieve { stderr, reader })
    }
}

#[cfg(unix)]
impl Drop for Sieve {
    fn drop(&mut self) {
        // The pipe's last writer is standard error, so this ends what the reader reads.
        if nix::unistd::dup2_stderr(&self.stderr).is_ok()
            && let Some(reader) = self.reader.take()
        {
            let _ = reader.join();
        }
    }
}

/// Copies lines, but for the remark and the empty line before it.
#[cfg_attr(not(unix), allow(dead_code))]
fn pass(mut from: impl BufRead, mut to: impl Write) {
    let mut empty = 0;
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        if line == b"\n" {
            empty += 1;
        } else {
            let remark = line.starts_with(NO_ALARM.as_bytes());
            let before = if remark { empty.min(1) } else { 0 };
            let _ = to.write_all("\n".repeat(empty - before).as_bytes());
            if !remark {
                let _ = to.write_all(&line);
            }
            empty = 0;
        }
        line.clear();
    }
    let _ = to.write_all("\n".repeat(empty).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_remark_and_its_empty_line_are_left_out() {
        let passed = |text: &str| {
            let mut out = Vec::new();
            pass(text.as_bytes(), &mut out);
            String::from_utf8(out).unwrap()
        };
        let remark =
            "\nWarning: Unable to complete 10 samples in 1.0ns. You may wish to increase target time to 5.0s.\n";
        assert_eq!(passed(remark), "");
        assert_eq!(
            passed(&format!("a\n{remark}Warning: something else\n\n{remark}b")),
            "a\nWarning: something else\n\nb"
        );
        for kept in ["", "\n", "\n\n", "\nWarning: Unable", "thread panicked\n\nnote: run\n", "\nerror: x\n\n"] {
            assert_eq!(passed(kept), kept);
        }
    }
}
