//! What must not stay behind: temporary files are listed here while they exist, and removed when a signal ends the program.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// Temporary files by the number of their listing.
static LISTED: Mutex<BTreeMap<u64, PathBuf>> = Mutex::new(BTreeMap::new());

/// A listed file. Whoever drops this has renamed or removed the file.
#[derive(Debug)]
pub struct Listed(u64);

/// Lists a temporary file.
pub fn list(path: PathBuf) -> Listed {
    let mut listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
    let number = listed.last_key_value().map_or(0, |(n, _)| n + 1);
    listed.insert(number, path);
    Listed(number)
}

impl Drop for Listed {
    fn drop(&mut self) {
        LISTED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Removes everything listed, and what the models' writers have begun: for a program that is about to end.
pub fn all() {
    for path in LISTED.lock().unwrap_or_else(PoisonError::into_inner).values() {
        // It may have been renamed a moment ago.
        let _ = fs::remove_file(path);
    }
    ttft_models::synth::abandon();
}

#[cfg(unix)]
mod signals {
    use nix::sys::signal::{SigSet, Signal, raise};

    /// Signals that end a program and that it can clean up after.
    const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGXCPU];

    /// Whether whoever started this program had it ignore a signal, as `nohup` does.
    fn ignored(signal: Signal) -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
        let mask = mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok());
        match mask {
            Some(mask) => mask >> (signal as i32 - 1) & 1 == 1,
            // Unknown: take the one that is commonly ignored for ignored.
            None => signal == Signal::SIGHUP,
        }
    }

    /// A write beyond a limit on file size raises this signal, which by default kills; held back, the write fails instead.
    pub fn hold_file_size_signal() {
        let mut set = SigSet::empty();
        set.add(Signal::SIGXFSZ);
        let _ = set.thread_block();
    }

    /// From now on a signal that ends this program first removes what is listed. To be called before other threads start:
    /// they inherit that the signals are held back for the one that waits for them.
    pub fn watch() {
        let mut set = SigSet::empty();
        ENDING.into_iter().filter(|s| !ignored(*s)).for_each(|s| set.add(s));
        if set.thread_block().is_err() {
            return;
        }
        let watcher = move || {
            let Ok(signal) = set.wait() else { return };
            super::all();
            // The default action ends the program and tells its parent why.
            let _ = set.thread_unblock();
            let _ = raise(signal);
        };
        let spawned = std::thread::Builder::new().name("ttft-signals".into()).stack_size(128 << 10).spawn(watcher);
        if spawned.is_err() {
            let _ = set.thread_unblock();
        }
    }
}

#[cfg(not(unix))]
mod signals {
    /// There is no such signal here.
    pub fn hold_file_size_signal() {}

    /// Temporary files of an interrupted program stay on this system.
    pub fn watch() {}
}

pub use signals::{hold_file_size_signal, watch};
