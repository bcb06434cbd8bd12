//! Folders that appear complete or not at all.
//!
//! A folder is written as `.NAME.ttft-synth` beside its final place and renamed. The lock file inside it tells the
//! writer's neighbours to wait, and a lock that can be had tells that its writer is dead: what it left is removed.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::Made;
use crate::{Error, Result};

const LOCK: &str = "lock";

/// What a folder of synthetic weights may hold; anything else is not ours to remove.
const OURS: [&str; 8] =
    ["base", "aux", "predictor", "config.json", "synth.json", "model.safetensors", "predictor.safetensors", LOCK];

/// Kept free beside what is written.
const MARGIN: u64 = 64 << 20;

/// Makes `dir` what `fill` writes into the folder that it is given, unless `verified` accepts what is there.
pub fn folder(
    dir: &Path,
    needed: u64,
    verified: impl Fn(&Path) -> Result<()>,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<Made> {
    let dir = &std::path::absolute(dir).map_err(Error::io(dir, "resolve"))?;
    if dir.exists() {
        if verified(dir).is_ok() {
            return Ok(Made::Reused);
        }
        replaceable(dir)?;
    }
    let no_name = || Error::Occupied { path: dir.to_owned() };
    let (parent, name) = (dir.parent().ok_or_else(no_name)?, dir.file_name().ok_or_else(no_name)?);
    fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    let beside = |suffix: &str| {
        let mut n = std::ffi::OsString::from(".");
        n.push(name);
        n.push(suffix);
        parent.join(n)
    };
    let (temp, old) = (beside(".ttft-synth"), beside(".ttft-synth-old"));

    let lock = acquire(&temp)?;
    // Whoever held the lock before may have made what is wanted.
    if dir.exists() {
        if verified(dir).is_ok() {
            release(&temp, lock);
            return Ok(Made::Reused);
        }
        replaceable(dir)?;
    }
    clear(&temp)?;
    remove_if_there(&old)?;
    let free = fs4::available_space(parent).map_err(Error::io(parent, "read the free space"))?;
    let result = if free < needed.saturating_add(MARGIN) {
        Err(Error::DiskSpace { path: dir.to_owned(), needed: needed.saturating_add(MARGIN), free })
    } else {
        fill(&temp).and_then(|()| {
            if dir.exists() {
                fs::rename(dir, &old).map_err(Error::io(dir, "move aside"))?;
            }
            fs::rename(&temp, dir).map_err(Error::io(dir, "move into place"))
        })
    };
    match result {
        Ok(()) => {
            sync(parent)?;
            fs::remove_file(dir.join(LOCK)).map_err(Error::io(dir, "remove the lock of"))?;
            remove_if_there(&old)?;
            drop(lock);
            Ok(Made::Written)
        }
        Err(e) => {
            release(&temp, lock);
            Err(e)
        }
    }
}

/// The lock of `temp`, which exists afterwards. Waits for a living holder.
fn acquire(temp: &Path) -> Result<File> {
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
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(Error::io(&path, "open")(e)),
        };
        file.lock().map_err(Error::io(&path, "lock"))?;
        // The holder before may have renamed the folder: then this is the lock of another name. A mark tells.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let mark = format!("{} {attempt} {now}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(mark.as_bytes()))
            .map_err(Error::io(&path, "write"))?;
        let mut seen = String::new();
        let read = File::open(&path).and_then(|mut f| f.read_to_string(&mut seen));
        if read.is_ok() && seen == mark {
            return Ok(file);
        }
    }
    unreachable!("the loop ends by returning")
}

/// Removes the folder, the lock last and while it is held: who waits for it will find that it has lost its name. What
/// fails here is left for the next writer to remove; the outcome so far is what the caller wants to know.
fn release(temp: &Path, lock: File) {
    if clear(temp).is_ok() && fs::remove_file(temp.join(LOCK)).is_ok() {
        // Fails if a neighbour has already begun anew.
        let _ = fs::remove_dir(temp);
    }
    drop(lock);
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

/// Fails unless `dir` is empty or holds synthetic weights and nothing else.
fn replaceable(dir: &Path) -> Result<()> {
    let occupied = || Error::Occupied { path: dir.to_owned() };
    let list = |d: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(d).map_err(|_| occupied())?;
        entries.map(|e| Ok(e.map_err(Error::io(d, "list"))?.path())).collect()
    };
    let ours = |p: &PathBuf| p.file_name().is_some_and(|n| OURS.iter().any(|o| n == *o)) && !p.is_symlink();
    if dir.is_symlink() {
        return Err(occupied());
    }
    let top = list(dir)?;
    let mut all = top.clone();
    for sub in top.iter().filter(|p| p.is_dir()) {
        all.extend(list(sub)?);
    }
    // One level of folders, every one of which says what it is.
    let files =
        |d: &Path| all.iter().any(|p| p.parent() == Some(d) && !p.is_dir() && p.file_name() != Some(LOCK.as_ref()));
    let says = |d: &Path| !files(d) || all.contains(&d.join("synth.json"));
    let deep = all.iter().any(|p| p.is_dir() && p.parent() != Some(dir));
    let folders_say = top.iter().filter(|p| p.is_dir()).all(|d| says(d));
    if !deep && all.iter().all(ours) && says(dir) && folders_say { Ok(()) } else { Err(occupied()) }
}

/// Makes a rename last.
#[cfg(unix)]
fn sync(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io(dir, "flush"))
}

/// Folders cannot be flushed on this system.
#[cfg(not(unix))]
fn sync(_: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &str = "{}";

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
        assert_eq!(folder(&dir, 0, check, fill).unwrap(), Made::Written);
        assert_eq!(folder(&dir, 0, check, |_| panic!("written again")).unwrap(), Made::Reused);
        assert_eq!(names(parent.path()), ["x"]);
        assert_eq!(names(&dir), ["synth.json"]);
        // Another content is replaced.
        fs::write(dir.join("synth.json"), "{ }").unwrap();
        assert_eq!(folder(&dir, 0, check, fill).unwrap(), Made::Written);
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
        folder(&dir, 0, check, fill).unwrap();
        assert_eq!(names(parent.path()), [".y.ttft-synth", "x"]);
        assert_eq!(names(&dir), ["synth.json"]);
    }

    #[test]
    fn a_failure_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        let fails = |t: &Path| Err(Error::Stale { path: t.to_owned(), reason: "on purpose".into() });
        assert!(folder(&dir, 0, check, fails).is_err());
        assert_eq!(names(parent.path()), [""; 0]);
        let e = folder(&dir, u64::MAX, check, fill).unwrap_err();
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
            let e = folder(&dir, 0, check, fill).unwrap_err();
            assert!(matches!(e, Error::Occupied { .. }), "{file}: {e}");
            assert_eq!(fs::read_to_string(&at).unwrap(), content);
            fs::remove_dir_all(&dir).unwrap();
        }
        fs::write(&dir, "a file").unwrap();
        assert!(matches!(folder(&dir, 0, check, fill), Err(Error::Occupied { .. })));
        // Synthetic weights with a foreign file among them.
        fs::remove_file(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("synth.json"), "{ }").unwrap();
        fs::write(dir.join("notes.txt"), "mine").unwrap();
        assert!(matches!(folder(&dir, 0, check, fill), Err(Error::Occupied { .. })));
    }

    #[test]
    fn concurrent_writers_take_turns() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("x");
        let made: Vec<Made> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..8).map(|_| s.spawn(|| folder(&dir, 0, check, fill).unwrap())).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|m| **m == Made::Written).count(), 1);
        assert_eq!(names(parent.path()), ["x"]);
    }
}
