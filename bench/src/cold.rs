//! Cold starts: weights out of memory, and known to be out of it, before the clock starts.
//!
//! A page that any process has mapped is not evicted, so mappings go first: those of the process that measures are dropped
//! after every sample, those of the process that checks results before anything is measured. What was evicted is not taken
//! for granted: the system is asked which pages are still in memory.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use ttft_models::{
    Inference, Network, RunSpec,
    kv_prediction::layout::{Order, OwnTokens},
    plan,
};

use crate::{machine, scenario::Arm};

/// Least size of a file by which the rate of reading is measured: below it, the latency of the first requests is most of it.
const LEAST_TO_READ: u64 = 32 << 20;
/// Most that is read of it, and for how long.
const MOST_TO_READ: u64 = 1 << 30;
pub(crate) const READING_TIME: Duration = Duration::from_secs(2);
/// What is asked for at once, and by how many threads: enough for a disk to do what it can.
const BLOCK: u64 = 4 << 20;
const READERS: usize = 4;

/// A system that is opened anew for every sample.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// Which system.
    pub arm: Arm,
    /// How it is run.
    pub spec: RunSpec,
    /// The folders of its networks, the base first.
    pub networks: Vec<PathBuf>,
    /// The folder of its predictor, and what the base reads itself.
    pub predictor: Option<(PathBuf, OwnTokens, Order)>,
}

impl Start {
    /// Every file in its folders.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for dir in self.networks.iter().chain(self.predictor.iter().map(|(dir, ..)| dir)) {
            let cannot = || format!("{}: cannot list the folder", dir.display());
            for entry in fs::read_dir(dir).with_context(cannot)? {
                let path = entry.with_context(cannot)?.path();
                if fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() > 0) {
                    files.push(path);
                }
            }
        }
        files.sort();
        Ok(files)
    }

    /// Brings everything out of memory.
    ///
    /// # Errors
    /// Why that cannot be done here, and what to do.
    pub fn evict(&self) -> Result<()> {
        self.files()?.iter().try_for_each(|file| evict(file))
    }

    /// Opens the folders and plans the run.
    ///
    /// # Errors
    /// What loading or planning says.
    pub fn open(&self) -> Result<Box<dyn Inference>> {
        let networks = self.networks.iter().map(|dir| Ok(Arc::new(Network::load(dir)?)));
        let networks = networks.collect::<Result<Vec<_>>>()?;
        Ok(plan(&self.arm.assemble(networks, self.predictor.clone())?, &self.spec)?)
    }
}

/// Which caches a cold start finds empty, in words.
pub(crate) fn cache() -> String {
    match machine::virtual_machine() {
        Some(true) => "the guest's cache is cold, the host's unknown",
        Some(false) => "the system's cache is cold, the disk's own unknown",
        None => "the system's cache is cold; if it is a virtual machine, the host's is unknown",
    }
    .into()
}

/// Refuses cold starts before weights are made at `dir`, if they cannot be had there.
///
/// # Errors
/// Why, and what to do.
#[cfg(target_os = "linux")]
pub(crate) fn possible(dir: &Path) -> Result<()> {
    let dir = std::path::absolute(dir)?;
    match dir.ancestors().find(|d| d.exists()) {
        Some(there) => linux::check_file_system(there, &dir),
        None => Ok(()),
    }
}

/// As on Linux.
#[cfg(not(target_os = "linux"))]
pub(crate) fn possible(_: &Path) -> Result<()> {
    anyhow::bail!("{NOT_HERE}")
}

#[cfg(not(target_os = "linux"))]
const NOT_HERE: &str = "a cold start needs a system that gives files up when asked and tells which of their pages are in \
    memory, which ttft knows of Linux only: measure warm starts here (--start warm)";

/// Brings a file out of memory.
///
/// # Errors
/// Why that cannot be done here, and what to do.
#[cfg(target_os = "linux")]
pub(crate) fn evict(path: &Path) -> Result<()> {
    linux::evict(path)
}

/// As on Linux.
#[cfg(not(target_os = "linux"))]
pub(crate) fn evict(_: &Path) -> Result<()> {
    anyhow::bail!("{NOT_HERE}")
}

/// The rate at which a file can be read from storage, in 1e9 bytes per second; none if it is too small to tell.
///
/// # Errors
/// As [`evict`]; what reading says.
#[cfg(unix)]
pub(crate) fn read_rate(path: &Path) -> Result<Option<f64>> {
    use std::{
        fs::File,
        os::unix::fs::FileExt,
        sync::atomic::{AtomicU64, Ordering},
        time::Instant,
    };
    let size = fs::metadata(path)?.len();
    if size < LEAST_TO_READ {
        return Ok(None);
    }
    evict(path)?;
    let (next, read) = (AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    let reader = || -> std::io::Result<()> {
        let (file, mut block) = (File::open(path)?, vec![0; BLOCK as usize]);
        while start.elapsed() < READING_TIME {
            let at = next.fetch_add(1, Ordering::Relaxed) * BLOCK;
            if at + BLOCK > size.min(MOST_TO_READ) {
                break;
            }
            file.read_exact_at(&mut block, at)?;
            read.fetch_add(BLOCK, Ordering::Relaxed);
        }
        Ok(())
    };
    let done: std::io::Result<Vec<()>> = std::thread::scope(|threads| {
        let readers: Vec<_> = (0..READERS).map(|_| threads.spawn(reader)).collect();
        readers.into_iter().map(|r| r.join().unwrap_or(Ok(()))).collect()
    });
    let seconds = start.elapsed().as_secs_f64();
    done.with_context(|| format!("{}: cannot read it", path.display()))?;
    let bytes = read.into_inner();
    Ok((bytes > 0).then(|| bytes as f64 * 1e-9 / seconds))
}

/// As on Unix.
#[cfg(not(unix))]
pub(crate) fn read_rate(_: &Path) -> Result<Option<f64>> {
    Ok(None)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        fs::{File, Metadata},
        os::unix::fs::MetadataExt,
        path::Path,
        thread,
        time::Duration,
    };

    use anyhow::{Context, Result, bail, ensure};
    use nix::{
        fcntl::{PosixFadviseAdvice, posix_fadvise},
        sys::statfs,
        unistd::{AccessFlags, access, geteuid},
    };
    use ttft_models::weights::MappedFile;

    /// How often pages are given up before it is said that they stay; between, what was just written goes to the disk.
    const ATTEMPTS: u32 = 5;
    const PAUSE: Duration = Duration::from_millis(20);

    /// Magic numbers of file systems whose files no advice brings out of memory.
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    const ZFS: u64 = 0x2fc1_2fc1;

    /// What to do where a cold start cannot be had.
    const ELSEWHERE: &str =
        "name a folder on a disk (TTFT_WEIGHTS or --weights), or measure warm starts (--start warm)";

    /// Refuses a file system that cannot give its files up; `shown` stands in the error.
    pub fn check_file_system(at: &Path, shown: &Path) -> Result<()> {
        let Ok(found) = statfs::statfs(at) else { return Ok(()) };
        let why = match found.filesystem_type().0 as u64 & 0xffff_ffff {
            TMPFS | RAMFS => "its file system is memory itself, so nothing there is ever cold",
            ZFS => "ZFS keeps files in a cache of its own, which no program can look into or empty",
            _ => return Ok(()),
        };
        bail!("{}: no cold start can be had here: {why}; {ELSEWHERE}", shown.display())
    }

    /// Whether the system tells this process which pages of a file are in memory.
    fn tells(path: &Path, meta: &Metadata) -> bool {
        let user = geteuid();
        user.is_root() || meta.uid() == user.as_raw() || access(path, AccessFlags::W_OK).is_ok()
    }

    pub fn evict(path: &Path) -> Result<()> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("{shown}: cannot open it"))?;
        let meta = file.metadata().with_context(|| format!("{shown}: cannot read its size"))?;
        ensure!(
            tells(path, &meta),
            "{shown}: no cold start can be had here: the system tells only the owner of a file, and who may write it, which of \
             its pages are in memory; run as its owner, or name a folder of your own (TTFT_WEIGHTS or --weights)"
        );
        check_file_system(path, path)?;
        let mut left = (0, 0);
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                // What was just written is not given up before it is on the disk.
                file.sync_all().with_context(|| format!("{shown}: cannot write it to the disk"))?;
                thread::sleep(PAUSE * attempt);
            }
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).with_context(|| {
                format!("{shown}: no cold start can be had here: it cannot be given up; {ELSEWHERE}")
            })?;
            left = MappedFile::open(path)?.resident_pages()?;
            if left.0 == 0 {
                return Ok(());
            }
        }
        let (resident, pages) = left;
        bail!(
            "{shown}: no cold start can be had here: {resident} of its {pages} pages stay in memory though they were given up: \
             end other programs that have it mapped; if there is none, its file system does not give them up: {ELSEWHERE}"
        )
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// A file of its own on the disk that holds the build.
        fn file(bytes: usize) -> tempfile::NamedTempFile {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp");
            std::fs::create_dir_all(&dir).unwrap();
            let file = tempfile::NamedTempFile::new_in(dir).unwrap();
            std::fs::write(file.path(), vec![7; bytes]).unwrap();
            file
        }

        #[test]
        fn a_file_just_written_is_brought_out_of_memory_unless_it_is_mapped() {
            let file = file(3 << 20);
            let resident = || MappedFile::open(file.path()).unwrap().resident_pages().unwrap();
            let (there, pages) = resident();
            assert_eq!(there, pages, "what was just written is in memory");
            if let Err(e) = evict(file.path()) {
                println!("SKIPPED: this file system evicts nothing: {e:#}");
                return;
            }
            assert_eq!(resident(), (0, pages));
            let mapped = MappedFile::open(file.path()).unwrap();
            assert!(mapped.bytes().iter().all(|b| *b == 7));
            let error = evict(file.path()).unwrap_err().to_string();
            assert!(error.contains("pages stay in memory") && error.contains("TTFT_WEIGHTS"), "{error}");
            drop(mapped);
            evict(file.path()).unwrap();
        }

        #[test]
        fn memory_is_no_disk() {
            let shm = Path::new("/dev/shm");
            if statfs::statfs(shm).is_ok_and(|s| s.filesystem_type().0 as u64 == TMPFS) {
                let error = check_file_system(shm, &shm.join("weights")).unwrap_err().to_string();
                assert!(error.starts_with("/dev/shm/weights: ") && error.contains("memory itself"), "{error}");
            } else {
                println!("SKIPPED: no tmpfs at /dev/shm");
            }
        }
    }
}
