//! What must not stay behind: temporary files and folders, and processes that write there, are listed here while they exist, and
//! removed or ended when a signal ends the program.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// What would stay behind.
enum Left {
    File(PathBuf),
    Folder(PathBuf),
    Process(u32),
}

/// All of it by the number of its listing.
static LISTED: Mutex<BTreeMap<u64, Left>> = Mutex::new(BTreeMap::new());

/// Whether the program ends by itself soon after it has been asked to, and whether it has been asked.
static WAITS: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on the first signal only asks this program to end: it looks at [`asked`], keeps what it has, and calls
/// [`end_as_asked`]. A second signal ends it at once.
pub fn wait_when_asked() {
    WAITS.store(true, Relaxed);
}

/// Whether a signal has asked this program to end.
pub fn asked() -> bool {
    ASKED.load(Relaxed)
}

/// Something listed. Whoever drops this has renamed or removed the file or folder, or waited for the process.
#[derive(Debug)]
pub struct Listed(u64);

/// Lists a temporary file.
pub fn list(path: PathBuf) -> Listed {
    add(Left::File(path))
}

/// Lists a temporary folder.
pub fn list_folder(path: PathBuf) -> Listed {
    add(Left::Folder(path))
}

/// Lists a process that this one started, by its id.
pub fn list_process(id: u32) -> Listed {
    add(Left::Process(id))
}

fn add(left: Left) -> Listed {
    let mut listed = LISTED.lock().unwrap_or_else(PoisonError::into_inner);
    let number = listed.last_key_value().map_or(0, |(n, _)| n + 1);
    listed.insert(number, left);
    Listed(number)
}

impl Drop for Listed {
    fn drop(&mut self) {
        LISTED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// Removes everything listed, and what the models' writers have begun: for a program that is about to end.
pub fn all() {
    // What came later may still write into what was there before.
    for left in LISTED.lock().unwrap_or_else(PoisonError::into_inner).values().rev() {
        // It may have been renamed a moment ago.
        let _ = match left {
            Left::File(path) => fs::remove_file(path),
            Left::Folder(path) => fs::remove_dir_all(path),
            Left::Process(id) => {
                signals::end(*id);
                Ok(())
            }
        };
    }
    ttft_models::synth::abandon();
}

#[cfg(unix)]
mod signals {
    use std::{
        sync::{Mutex, PoisonError, atomic::Ordering::Relaxed},
        time::Duration,
    };

    use nix::{
        sys::signal::{SigSet, Signal, kill, raise},
        unistd::Pid,
    };

    use super::{ASKED, WAITS};

    /// The signal that asked this program to end, and those that are held back.
    static CAUSE: Mutex<Option<(Signal, SigSet)>> = Mutex::new(None);

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
            let Ok(mut signal) = set.wait() else { return };
            if WAITS.load(Relaxed) {
                *CAUSE.lock().unwrap_or_else(PoisonError::into_inner) = Some((signal, set));
                ASKED.store(true, Relaxed);
                let Ok(second) = set.wait() else { return };
                signal = second;
            }
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

    /// Asks a process to end, and gives it two seconds to clean up; another thread waits for it.
    pub fn end(process: u32) {
        let Ok(id) = i32::try_from(process).map(Pid::from_raw) else { return };
        let _ = kill(id, Signal::SIGTERM);
        for _ in 0..200 {
            if kill(id, None).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends this program by the signal that asked it to, so that whoever started it knows why.
    pub fn end_as_asked() -> ! {
        super::all();
        let cause = *CAUSE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((signal, set)) = cause {
            let _ = set.thread_unblock();
            let _ = raise(signal);
        }
        std::process::exit(1)
    }
}

#[cfg(not(unix))]
mod signals {
    /// There is no such signal here.
    pub fn hold_file_size_signal() {}

    /// Temporary files of an interrupted program stay on this system.
    pub fn watch() {}

    /// Nothing asks a process to end here.
    pub fn end(_process: u32) {}

    /// Ends this program.
    pub fn end_as_asked() -> ! {
        super::all();
        std::process::exit(1)
    }
}

pub use signals::{end_as_asked, hold_file_size_signal, watch};
