//! Where a record is written: a file that is made for it, an empty one that waits for it, or a device or pipe.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::Path,
};

use super::error::{RecordError, Result, io_error};

/// An open place for a record.
pub(super) struct Place {
    pub(super) file: File,
    pub(super) kind: Kind,
}

/// What the place was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing: the file is this record's own.
    Made,
    /// An empty file that somebody made for it.
    Empty,
    /// A device or a pipe: it cannot be read back.
    Stream,
}

impl Place {
    /// Makes the file, and the folders that lead to it. That nothing of this name was there is decided by the file system in
    /// one step, so of several runs that want the same name one gets it.
    pub(super) fn make(path: &Path) -> Result<Place> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|source| io_error(folder, "make the folder", source))?;
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => RecordError::Exists(path.into()),
                _ => io_error(path, "create it", e),
            })?;
        lock(&file, path)?;
        Ok(Place { file, kind: Kind::Made })
    }

    /// As [`Place::make`], or what is there already and holds nothing: an empty file, also behind a link; a device; a pipe.
    pub(super) fn open(path: &Path) -> Result<Place> {
        match Place::make(path) {
            Err(RecordError::Exists(_)) => {}
            made => return made,
        }
        let failed = |source| io_error(path, "open it for writing", source);
        let kind = match fs::metadata(path) {
            Ok(there) if there.is_file() => Kind::Empty,
            Ok(there) if there.is_dir() => {
                let source = io::Error::new(io::ErrorKind::IsADirectory, "a folder: give the name of a file");
                return Err(failed(source));
            }
            Ok(_) => Kind::Stream,
            // A link to a file that is not there yet: opening it makes the file.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Kind::Made,
            Err(e) => return Err(failed(e)),
        };
        let mut options = OpenOptions::new();
        let file = options.read(kind != Kind::Stream).write(true).create(kind == Kind::Made).truncate(false);
        let file = file.open(path).map_err(failed)?;
        if kind != Kind::Stream {
            lock(&file, path)?;
            // Only now: whoever held the lock may have filled the file.
            if file.metadata().map_err(failed)?.len() > 0 {
                return Err(RecordError::Exists(path.into()));
            }
        }
        Ok(Place { file, kind })
    }
}

/// Keeps others from writing the same record. Where the file system knows no locks there is nothing to keep.
pub(super) fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(RecordError::Busy(path.into())),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_runs_one_gets_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let made = std::thread::scope(|s| {
            let runs: Vec<_> = (0..8).map(|_| s.spawn(|| Place::make(&path).map(|p| p.kind))).collect();
            runs.into_iter().filter_map(|r| r.join().unwrap().ok()).collect::<Vec<_>>()
        });
        assert_eq!(made, [Kind::Made]);
    }

    #[test]
    fn empty_files_wait_for_a_record_and_full_ones_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("empty"), "").unwrap();
        assert_eq!(Place::open(&path("empty")).unwrap().kind, Kind::Empty);
        assert!(matches!(Place::make(&path("empty")), Err(RecordError::Exists(_))));
        let held = Place::open(&path("empty")).unwrap();
        assert!(matches!(Place::open(&path("empty")), Err(RecordError::Busy(_))));
        drop(held);
        fs::write(path("full"), "mine").unwrap();
        assert!(matches!(Place::open(&path("full")), Err(RecordError::Exists(_))));
        let error = Place::open(folder.path()).map(|p| p.kind).unwrap_err();
        assert!(matches!(error, RecordError::Io { .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_are_streams() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        symlink("target", path("link")).unwrap();
        assert_eq!(Place::open(&path("link")).unwrap().kind, Kind::Made);
        assert!(path("link").is_symlink() && path("target").is_file());
        assert_eq!(Place::open(&path("link")).unwrap().kind, Kind::Empty);
        symlink("circle", path("circle")).unwrap();
        assert!(Place::open(&path("circle")).is_err());
        assert_eq!(Place::open(Path::new("/dev/null")).unwrap().kind, Kind::Stream);
    }
}
