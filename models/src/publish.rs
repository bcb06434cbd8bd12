//! Folders of weights, synthetic or converted, that are never taken for complete when they are not.
//!
//! A folder that is not there yet is written as `.NAME.ttft-synth` beside its final place and renamed: it appears complete
//! or not at all. One that is there (empty, a mounted volume, or weights of another kind) is filled from a folder
//! `.ttft-synth` inside it, because its name may be all that belongs to the user; `config.json` and `synth.json` come last, and
//! synthetic weights are verified before they are used. The lock file inside the temporary folder tells the writer's neighbours to wait, and a
//! lock that can be had tells that its writer is dead: what it left is removed. Where the file system knows no locks, every
//! writer has a temporary folder of its own.

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use crate::{Error, Result};

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// The folder was there, and is what was asked for.
    Reused,
    /// It was written.
    Written,
    /// It was written, on a file system without locks: whoever else wanted it at the same time wrote it too.
    WrittenUnlocked,
}

/// What a new folder may take the place of, beside an empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replaces {
    /// Nothing.
    Nothing,
    /// Synthetic weights.
    Synthetic,
}

const LOCK: &str = "lock";

/// The temporary folder of one that is filled in place.
const INSIDE: &str = ".ttft-synth";

/// What verification reads first, moved into place last.
const MANIFEST: &str = "synth.json";

/// What a folder of synthetic weights may hold; anything else is not ours to remove.
const OURS: [&str; 8] =
    ["base", "aux", "predictor", "config.json", MANIFEST, "model.safetensors", "predictor.safetensors", LOCK];

/// What a fresh file system holds, and nobody misses in a folder that is empty otherwise.
const LOST: &str = "lost+found";

/// Kept free beside what is written.
const MARGIN: u64 = 64 << 20;

/// Temporary folders that this process is writing.
static WRITING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes what this process has begun to write and not finished: for a program that is about to end. Whoever waits for one
/// of these folders begins anew.
pub fn abandon() {
    for temp in WRITING.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        // A writer that is still running may put a file into the folder while it is being removed.
        for _ in 0..10 {
            match fs::remove_dir_all(temp) {
                Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => {}
                _ => break,
            }
        }
    }
}

/// A temporary folder that is ours until this is dropped, with its lock if there are locks.
struct Claim {
    temp: PathBuf,
    lock: Option<File>,
}

impl Claim {
    fn new(temp: PathBuf, lock: Option<File>) -> Claim {
        WRITING.lock().unwrap_or_else(PoisonError::into_inner).push(temp.clone());
        Claim { temp, lock }
    }

    /// Removes the folder, the lock last and while it is held: who waits for it will find that it has lost its name. What
    /// fails here is left for the next writer to remove; the outcome so far is what the caller wants to know.
    fn release(self) {
        if clear(&self.temp).is_ok() && remove_if_there(&self.temp.join(LOCK)).is_ok() {
            // Fails if a neighbour has already begun anew.
            let _ = fs::remove_dir(&self.temp);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        WRITING.lock().unwrap_or_else(PoisonError::into_inner).retain(|temp| *temp != self.temp);
    }
}

/// Makes `dir` what `fill` writes into the folder that it is given, unless `verified` accepts what is there. Links are
/// followed.
pub(crate) fn folder(
    dir: &Path,
    needed: u64,
    replaces: Replaces,
    verified: impl Fn(&Path) -> Result<()>,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<Made> {
    let dir = &behind_links(&std::path::absolute(dir).map_err(Error::io(dir, "resolve"))?)?;
    // Twice at most: whoever held the lock before may have made the folder, so that it is to be filled in place.
    loop {
        let there = dir.exists();
        if there {
            if verified(dir).is_ok() {
                return Ok(Made::Reused);
            }
            if let Err(e) = replaceable(dir, replaces) {
                // Another writer may have ended in between, whose folder for the unfinished is gone since it was listed.
                return if verified(dir).is_ok() { Ok(Made::Reused) } else { Err(e) };
            }
        }
        let no_name = || Error::Occupied { path: dir.to_owned() };
        let (parent, name) = (dir.parent().ok_or_else(no_name)?, dir.file_name().ok_or_else(no_name)?);
        let temp = if there {
            dir.join(INSIDE)
        } else {
            fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
            let mut beside = OsString::from(".");
            beside.push(name);
            beside.push(INSIDE);
            parent.join(beside)
        };
        let claim = acquire(&temp)?;
        if dir.exists() != there {
            claim.release();
            continue;
        }
        if there {
            if verified(dir).is_ok() {
                claim.release();
                return Ok(Made::Reused);
            }
            if let Err(e) = replaceable(dir, replaces) {
                claim.release();
                return Err(e);
            }
        }
        return publish(dir, there, claim, needed, verified, fill);
    }
}

/// Fills the claimed folder and makes it `dir`, or moves what it holds into `dir` if that is `there`.
fn publish(
    dir: &Path,
    there: bool,
    claim: Claim,
    needed: u64,
    verified: impl Fn(&Path) -> Result<()>,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<Made> {
    let made = if claim.lock.is_some() { Made::Written } else { Made::WrittenUnlocked };
    let write = || {
        clear(&claim.temp)?;
        let (needed, free) = (needed.saturating_add(MARGIN), free_space(&claim.temp));
        if let Some(free) = free.filter(|&free| free < needed) {
            return Err(Error::DiskSpace { path: dir.to_owned(), needed, free });
        }
        fill(&claim.temp)?;
        if there {
            return move_into(&claim.temp, dir);
        }
        fs::rename(&claim.temp, dir).map_err(Error::io(dir, "move into place"))
    };
    match write() {
        Ok(()) if there => {
            claim.release();
            sync(dir);
            Ok(made)
        }
        Ok(()) => {
            // A folder with its lock is complete as well: verification does not mind it.
            let _ = remove_if_there(&dir.join(LOCK));
            dir.parent().iter().for_each(|parent| sync(parent));
            Ok(made)
        }
        // Without locks another writer may have been faster.
        Err(_) if claim.lock.is_none() && verified(dir).is_ok() => {
            claim.release();
            Ok(Made::Reused)
        }
        Err(e) => {
            claim.release();
            Err(e)
        }
    }
}

/// Replaces what `dir` holds by what `temp` holds, last what says that it is complete.
fn move_into(temp: &Path, dir: &Path) -> Result<()> {
    let list = |d: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(d).map_err(Error::io(d, "list"))?;
        entries.map(|e| Ok(e.map_err(Error::io(d, "list"))?.path())).collect()
    };
    let kept = |p: &Path| [INSIDE, LOST].iter().any(|name| p.file_name() == Some(name.as_ref()));
    let mut old: Vec<_> = list(dir)?.into_iter().filter(|p| !kept(p)).collect();
    old.sort_by_key(|p| p.file_name() != Some(MANIFEST.as_ref()));
    old.iter().try_for_each(|p| remove(p))?;
    let mut new: Vec<_> = list(temp)?.into_iter().filter(|p| p.file_name() != Some(LOCK.as_ref())).collect();
    new.sort_by_key(|p| ["config.json", MANIFEST].iter().position(|n| p.file_name() == Some(n.as_ref())));
    new.iter().try_for_each(|from| {
        let to = dir.join(from.file_name().unwrap_or_default());
        fs::rename(from, &to).map_err(Error::io(&to, "move into place"))
    })
}

/// Free bytes, if the file system tells.
fn free_space(dir: &Path) -> Option<u64> {
    let (free, all) = (fs4::available_space(dir).ok()?, fs4::total_space(dir).ok()?);
    (all > 0).then_some(free)
}

/// The end of a chain of links; a path without links as it is.
fn behind_links(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..40 {
        if !path.is_symlink() {
            return Ok(path);
        }
        let to = fs::read_link(&path).map_err(Error::io(&path, "follow"))?;
        path = path.parent().unwrap_or(Path::new("")).join(to);
    }
    Err(Error::io(&path, "follow")(std::io::Error::other("the links go in a circle")))
}

/// Whether the file system knows no locks (Lustre without its mount option, CIFS and FUSE with theirs).
fn knows_no_locks(e: &std::io::Error) -> bool {
    // ENOLCK has no kind of its own.
    const ENOLCK: i32 = if cfg!(target_os = "linux") { 37 } else { 77 };
    matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput) || e.raw_os_error() == Some(ENOLCK)
}

/// Claims `temp`, which exists afterwards, or another name where there are no locks. Waits for a living holder.
fn acquire(temp: &Path) -> Result<Claim> {
    let path = temp.join(LOCK);
    for attempt in 0u32.. {
        // A link could lead anywhere.
        if temp.is_symlink() {
            return Err(Error::Occupied { path: temp.to_owned() });
        }
        fs::create_dir_all(temp).map_err(Error::io(temp, "create"))?;
        let opened = File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = match opened {
            Ok(f) => f,
            // The folder was renamed or removed between the two calls.
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io(&path, "open")(e)),
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let id = std::process::id();
        match locked(&file) {
            Ok(()) => {}
            Err(e) if knows_no_locks(&e) => {
                let _ = fs::remove_file(&path);
                let _ = fs::remove_dir(temp);
                let mut own = temp.as_os_str().to_owned();
                own.push(format!("-{id}-{attempt}-{now}"));
                let own = PathBuf::from(own);
                match fs::create_dir(&own) {
                    Ok(()) => return Ok(Claim::new(own, None)),
                    Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                    Err(e) => return Err(Error::io(&own, "create")(e)),
                }
            }
            Err(e) => return Err(Error::io(&path, "lock")(e)),
        }
        // The holder before may have renamed the folder: then this is the lock of another name. A mark tells.
        let mark = format!("{id} {attempt} {now}\n");
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(mark.as_bytes()))
            .map_err(Error::io(&path, "write"))?;
        let mut seen = String::new();
        match File::open(&path).and_then(|mut f| f.read_to_string(&mut seen)) {
            Ok(_) if seen == mark => return Ok(Claim::new(temp.to_owned(), Some(file))),
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(Error::io(&path, "read")(e)),
            // Another lock, or none.
            _ => {}
        }
    }
    unreachable!("the loop ends by returning")
}

/// Locks a file; waits for whoever holds it.
fn locked(file: &File) -> std::io::Result<()> {
    #[cfg(test)]
    if tests::NO_LOCKS.get() {
        return Err(ErrorKind::Unsupported.into());
    }
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => file.lock(),
        Err(TryLockError::Error(e)) => Err(e),
        Ok(()) => Ok(()),
    }
}

/// Removes all but the lock.
fn clear(temp: &Path) -> Result<()> {
    for entry in fs::read_dir(temp).map_err(Error::io(temp, "list"))? {
        let path = entry.map_err(Error::io(temp, "list"))?.path();
        if path.file_name() != Some(LOCK.as_ref()) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let is_dir = path.symlink_metadata().map_err(Error::io(path, "inspect"))?.is_dir();
    if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(Error::io(path, "remove"))
}

fn remove_if_there(path: &Path) -> Result<()> {
    if path.symlink_metadata().is_ok() { remove(path) } else { Ok(()) }
}

/// Fails unless `dir` is empty, or holds what may be replaced and nothing else.
fn replaceable(dir: &Path, replaces: Replaces) -> Result<()> {
    let occupied = || Error::Occupied { path: dir.to_owned() };
    let list = |d: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(d).map_err(|e| match e.kind() {
            ErrorKind::NotADirectory => occupied(),
            _ => Error::io(d, "list")(e),
        })?;
        entries.map(|e| Ok(e.map_err(Error::io(d, "list"))?.path())).collect()
    };
    let ours = |p: &PathBuf| p.file_name().is_some_and(|n| OURS.iter().any(|o| n == *o)) && !p.is_symlink();
    let unfinished = |p: &PathBuf| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        (name.starts_with(INSIDE) || name == LOST) && !p.is_symlink() && p.is_dir()
    };
    let mut top = list(dir)?;
    top.retain(|p| !unfinished(p));
    if replaces == Replaces::Nothing {
        return if top.is_empty() { Ok(()) } else { Err(Error::NotEmpty { path: dir.to_owned() }) };
    }
    let mut all = top.clone();
    for sub in top.iter().filter(|p| p.is_dir()) {
        all.extend(list(sub)?);
    }
    // One level of folders, every one of which says what it is.
    let files =
        |d: &Path| all.iter().any(|p| p.parent() == Some(d) && !p.is_dir() && p.file_name() != Some(LOCK.as_ref()));
    let says = |d: &Path| !files(d) || all.contains(&d.join(MANIFEST));
    let deep = all.iter().any(|p| p.is_dir() && p.parent() != Some(dir));
    let folders_say = top.iter().filter(|p| p.is_dir()).all(|d| says(d));
    if !deep && all.iter().all(ours) && says(dir) && folders_say { Ok(()) } else { Err(occupied()) }
}

/// What [`write_json`] writes; `path` is for messages.
pub(crate) fn json_text(path: &Path, value: &impl serde::Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).map_err(Error::json(path))? + "\n")
}

/// Writes a JSON file, with a line end.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = json_text(path, value)?;
    let mut file = File::create(path).map_err(Error::io(path, "create"))?;
    file.write_all(text.as_bytes()).and_then(|()| flushed(&file)).map_err(Error::io(path, "write"))
}

/// Makes a file last, where the file system can.
pub(crate) fn flushed(file: &File) -> std::io::Result<()> {
    use std::io::ErrorKind::{InvalidInput, Unsupported};
    match file.sync_all() {
        Err(e) if matches!(e.kind(), InvalidInput | Unsupported) => Ok(()),
        done => done,
    }
}

/// Makes a rename last, where folders can be flushed (not on CIFS, not on Windows). What is lost nevertheless is found to be
/// missing by the verification before its use.
fn sync(dir: &Path) {
    if let Ok(dir) = File::open(dir) {
        let _ = dir.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::{Replaces::Synthetic, *};

    const CONTENT: &str = "{}";

    thread_local! {
        /// Whether this thread is on a file system without locks.
        pub static NO_LOCKS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }

    fn check(dir: &Path) -> Result<()> {
        let path = dir.join("synth.json");
        match fs::read_to_string(&path) {
            Ok(t) if t == CONTENT => Ok(()),
            _ => Err(Error::Stale { path, reason: "not as written".into() }),
        }
    }

    fn fill(temp: &Path) -> Result<()> {
        fs::write(temp.join("synth.json"), CONTENT).map_err(Error::io(temp, "write"))
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut n: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        n.sort();
        n
    }

    #[test]
    fn written_once_then_reused_and_nothing_is_left_beside() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        assert_eq!(folder(&dir, 0, Synthetic, check, fill).unwrap(), Made::Written);
        assert_eq!(folder(&dir, 0, Synthetic, check, |_| panic!("written again")).unwrap(), Made::Reused);
        assert_eq!(names(parent.path()), ["x"]);
        assert_eq!(names(&dir), ["synth.json"]);
        // Another content is replaced.
        fs::write(dir.join("synth.json"), "{ }").unwrap();
        assert_eq!(folder(&dir, 0, Synthetic, check, fill).unwrap(), Made::Written);
        assert_eq!(names(parent.path()), ["x"]);
    }

    #[test]
    fn leftovers_of_a_dead_writer_are_removed_and_of_others_not() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        let dead = parent.path().join(".x.ttft-synth");
        fs::create_dir_all(dead.join("base")).unwrap();
        fs::write(dead.join(LOCK), "1 0 0").unwrap();
        fs::write(dead.join("base/model.safetensors"), "half").unwrap();
        fs::create_dir_all(parent.path().join(".y.ttft-synth")).unwrap();
        folder(&dir, 0, Synthetic, check, fill).unwrap();
        assert_eq!(names(parent.path()), [".y.ttft-synth", "x"]);
        assert_eq!(names(&dir), ["synth.json"]);
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        let fails = |t: &Path| Err(Error::Stale { path: t.to_owned(), reason: "on purpose".into() });
        assert!(folder(&dir, 0, Synthetic, check, fails).is_err());
        assert_eq!(names(parent.path()), [""; 0]);
        let e = folder(&dir, u64::MAX, Synthetic, check, fill).unwrap_err();
        assert!(matches!(e, Error::DiskSpace { .. }), "{e}");
        assert_eq!(names(parent.path()), [""; 0]);
    }

    #[test]
    fn nothing_foreign_is_overwritten() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        for (file, content) in [("notes.txt", "mine"), ("config.json", "{}"), ("base/model.safetensors", "real")] {
            let at = dir.join(file);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::write(&at, content).unwrap();
            let e = folder(&dir, 0, Synthetic, check, fill).unwrap_err();
            assert!(matches!(e, Error::Occupied { .. }), "{file}: {e}");
            assert_eq!(fs::read_to_string(&at).unwrap(), content);
            fs::remove_dir_all(&dir).unwrap();
        }
        fs::write(&dir, "a file").unwrap();
        assert!(matches!(folder(&dir, 0, Synthetic, check, fill), Err(Error::Occupied { .. })));
        // Synthetic weights with a foreign file among them.
        fs::remove_file(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("synth.json"), "{ }").unwrap();
        fs::write(dir.join("notes.txt"), "mine").unwrap();
        assert!(matches!(folder(&dir, 0, Synthetic, check, fill), Err(Error::Occupied { .. })));
    }

    #[test]
    fn a_folder_that_cannot_be_listed_says_why() {
        let dir = tempfile::tempdir().unwrap().path().join("gone");
        for replaces in [Replaces::Nothing, Synthetic] {
            let e = replaceable(&dir, replaces).unwrap_err();
            let named =
                matches!(&e, Error::Io { path, source, .. } if *path == dir && source.kind() == ErrorKind::NotFound);
            assert!(named, "{e}");
        }
    }

    #[test]
    fn concurrent_writers_take_turns() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        let made: Vec<Made> = std::thread::scope(|s| {
            let threads: Vec<_> =
                (0..8).map(|_| s.spawn(|| folder(&dir, 0, Synthetic, check, fill).unwrap())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|m| **m == Made::Written).count(), 1);
        assert_eq!(names(parent.path()), ["x"]);
    }

    #[test]
    fn without_locks_every_writer_has_a_folder_of_its_own() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        NO_LOCKS.set(true);
        assert_eq!(folder(&dir, 0, Synthetic, check, fill).unwrap(), Made::WrittenUnlocked);
        assert_eq!((names(parent.path()), names(&dir)), (vec!["x".to_owned()], vec!["synth.json".to_owned()]));
        assert_eq!(folder(&dir, 0, Synthetic, check, fill).unwrap(), Made::Reused);
        fs::remove_dir_all(&dir).unwrap();
        // Another writer is faster.
        let late = |temp: &Path| {
            fs::create_dir(&dir).and_then(|()| fs::write(dir.join("synth.json"), CONTENT)).unwrap();
            fill(temp)
        };
        assert_eq!(folder(&dir, 0, Synthetic, check, late).unwrap(), Made::Reused);
        assert_eq!(names(parent.path()), ["x"]);
        NO_LOCKS.set(false);
    }

    #[test]
    fn what_is_there_is_filled_in_place() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        // A mounted volume, with what an interrupted writer left in it.
        fs::create_dir_all(dir.join("lost+found")).unwrap();
        fs::create_dir_all(dir.join(".ttft-synth/base")).unwrap();
        fs::write(dir.join(".ttft-synth/base/model.safetensors"), "half").unwrap();
        let outside = || names(parent.path());
        let seen = std::cell::Cell::new(0);
        let look = |temp: &Path| {
            assert_eq!(outside(), ["x"], "nothing is made beside it");
            assert!(temp.starts_with(&dir) && check(&dir).is_err());
            fs::create_dir(temp.join("base")).unwrap();
            seen.set(seen.get() + 1);
            fill(temp)
        };
        assert_eq!(folder(&dir, 0, Synthetic, check, look).unwrap(), Made::Written);
        assert_eq!((names(&dir), seen.get()), (["base", "lost+found", "synth.json"].map(str::to_owned).to_vec(), 1));
        assert_eq!(folder(&dir, 0, Synthetic, check, look).unwrap(), Made::Reused);
        // A failure leaves what was there.
        fs::write(dir.join("synth.json"), "{ }").unwrap();
        let fails = |t: &Path| Err(Error::Stale { path: t.to_owned(), reason: "on purpose".into() });
        assert!(folder(&dir, 0, Synthetic, check, fails).is_err());
        assert_eq!(names(&dir), ["base", "lost+found", "synth.json"]);
    }

    #[test]
    fn concurrent_writers_of_a_folder_that_is_there_take_turns() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        fs::create_dir(&dir).unwrap();
        let made: Vec<Made> = std::thread::scope(|s| {
            let threads: Vec<_> =
                (0..8).map(|_| s.spawn(|| folder(&dir, 0, Synthetic, check, fill).unwrap())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|m| **m == Made::Written).count(), 1);
        assert_eq!(names(&dir), ["synth.json"]);
    }

    #[test]
    fn what_replaces_nothing_fills_empty_folders_alone() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        let never = |d: &Path| Err(Error::NotEmpty { path: d.to_owned() });
        let make = || folder(&dir, 0, Replaces::Nothing, never, fill);
        fs::create_dir(&dir).unwrap();
        assert_eq!(make().unwrap(), Made::Written);
        // Not even synthetic weights.
        assert!(matches!(make(), Err(Error::NotEmpty { .. })));
        assert_eq!((names(parent.path()), names(&dir)), (vec!["x".to_owned()], vec!["synth.json".to_owned()]));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        fs::create_dir(path("volume")).unwrap();
        std::os::unix::fs::symlink("volume", path("there")).unwrap();
        std::os::unix::fs::symlink("volume/w", path("not-yet")).unwrap();
        std::os::unix::fs::symlink("circle", path("circle")).unwrap();
        assert_eq!(folder(&path("not-yet"), 0, Synthetic, check, fill).unwrap(), Made::Written);
        assert_eq!(names(&path("volume/w")), ["synth.json"]);
        assert!(
            matches!(folder(&path("there"), 0, Synthetic, check, fill), Err(Error::Occupied { .. })),
            "it holds a foreign folder"
        );
        fs::remove_dir_all(path("volume/w")).unwrap();
        assert_eq!(folder(&path("there"), 0, Synthetic, check, fill).unwrap(), Made::Written);
        assert_eq!(names(&path("volume")), ["synth.json"]);
        assert!(path("there").is_symlink());
        assert!(folder(&path("circle"), 0, Synthetic, check, fill).unwrap_err().to_string().contains("circle"));
    }

    #[test]
    fn an_ending_program_leaves_nothing_half_written() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        let ends = |temp: &Path| {
            fs::write(temp.join("model.safetensors"), "half").unwrap();
            assert!(temp.exists());
            // Of this folder alone: other tests write at the same time.
            WRITING.lock().unwrap().retain(|t| t == temp);
            abandon();
            assert!(!temp.exists());
            fill(temp)
        };
        assert!(folder(&dir, 0, Synthetic, check, ends).is_err());
        assert_eq!(names(parent.path()), [""; 0]);
    }
}
