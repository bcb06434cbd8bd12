//! Files that appear whole or not at all where that can be had, and the places that results go to.

use std::{
    env,
    fs::{self, File, Metadata},
    io::{self, BufWriter, ErrorKind, Read, Seek, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::NamedTempFile;
use ttft_reports::schema::{RecordError, RunHeader, Writer};

use crate::{cleanup, console};

/// A file to be: claimed before the work, written after it.
#[derive(Debug)]
pub struct Pending {
    place: Place,
    path: PathBuf,
}

#[derive(Debug)]
enum Place {
    /// A temporary file beside `target`, which takes its name; `there` is what it takes the place of.
    Beside { temp: NamedTempFile, listed: cleanup::Listed, target: PathBuf, there: Option<File> },
    /// What is there and is not to be replaced: a device, a pipe, a file with other names or of another owner, or one in a
    /// folder that takes no new files.
    Into(File),
    /// Standard output of this program.
    Stdout,
}

impl Pending {
    /// Claims a place for `path`, so that an unwritable one is found out before the work rather than after it. Links are
    /// followed.
    ///
    /// # Errors
    /// The folder is missing or not writable, or `path` is a folder.
    pub fn claim(path: &Path) -> Result<Pending> {
        let cannot = || format!("{}: cannot write there", path.display());
        let place = match fs::metadata(path) {
            Ok(there) if there.is_dir() => bail!("{} is a folder: give the name of a file to write", path.display()),
            Ok(there) if is_stdout(&there) => {
                console::reserve_stdout();
                Place::Stdout
            }
            Ok(there) => {
                let file = File::options().write(true).open(path).with_context(cannot)?;
                match replacement(path, &there) {
                    Ok((temp, target)) => Place::beside(temp, target, Some(file)),
                    Err(_) => Place::Into(file),
                }
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let target = behind_links(path).with_context(cannot)?;
                let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                if !folder.is_dir() {
                    bail!("{}: there is no folder {}: make it, or write elsewhere", path.display(), folder.display());
                }
                Place::beside(temporary(folder).with_context(cannot)?, target, None)
            }
            Err(e) => return Err(e).with_context(cannot),
        };
        Ok(Pending { place, path: path.to_owned() })
    }

    /// Writes the contents and gives the file its name.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(self, contents: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let Pending { place, path } = self;
        let failed = || format!("{}: cannot write it", path.display());
        match place {
            Place::Stdout => read_or_not(fill(io::stdout().lock(), contents)).with_context(failed),
            Place::Into(mut file) => {
                empty(&file).with_context(failed)?;
                read_or_not(fill(&mut file, contents)).with_context(failed)?;
                flushed(&file).with_context(failed)
            }
            Place::Beside { temp, listed, target, there } => {
                fill(temp.as_file(), contents).with_context(failed)?;
                flushed(temp.as_file()).with_context(failed)?;
                let renamed = match (temp.persist(&target), there) {
                    // A file that is mounted by itself, a folder where only the owner of a file may replace it.
                    (Err(e), Some(there)) => copy(e.file, there)
                        .with_context(|| format!("{}: cannot fill it, and what it held is lost", path.display())),
                    (renamed, _) => renamed.map(drop).map_err(|e| e.error).with_context(failed),
                };
                drop(listed);
                renamed
            }
        }
    }
}

impl Place {
    fn beside(temp: NamedTempFile, target: PathBuf, there: Option<File>) -> Place {
        Place::Beside { listed: cleanup::list(temp.path().to_owned()), temp, target, there }
    }
}

/// A temporary file that can take the place of `there`, at the end of all links, without anybody noticing: the same rights
/// and owner, and no other name that would keep the old contents.
fn replacement(path: &Path, there: &Metadata) -> io::Result<(NamedTempFile, PathBuf)> {
    let other = || io::Error::from(ErrorKind::Unsupported);
    let target = fs::canonicalize(path)?;
    if !there.is_file() {
        return Err(other());
    }
    let temp = temporary(target.parent().ok_or_else(other)?)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let new = temp.as_file().metadata()?;
        // The path may lead elsewhere than the open file: /dev/fd of a file that was removed.
        let found = fs::metadata(&target)?;
        if there.nlink() > 1
            || (there.dev(), there.ino()) != (found.dev(), found.ino())
            || (there.uid(), there.gid()) != (new.uid(), new.gid())
        {
            return Err(other());
        }
    }
    temp.as_file().set_permissions(there.permissions())?;
    Ok((temp, target))
}

fn temporary(folder: &Path) -> io::Result<NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".ttft-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Where a chain of links ends that leads to nothing.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..40 {
        if !path.is_symlink() {
            return Ok(path);
        }
        let to = fs::read_link(&path)?;
        path = path.parent().unwrap_or(Path::new("")).join(to);
    }
    Err(io::Error::other("the links go in a circle"))
}

/// Whether a file is the one that standard output is.
fn is_stdout(there: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::{fd::AsFd, unix::fs::MetadataExt};
        let out = io::stdout().as_fd().try_clone_to_owned().and_then(|fd| File::from(fd).metadata());
        out.is_ok_and(|out| (out.dev(), out.ino(), out.rdev()) == (there.dev(), there.ino(), there.rdev()))
    }
    #[cfg(not(unix))]
    {
        let _ = there;
        false
    }
}

fn fill(out: impl Write, contents: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::new(out);
    let filled = contents(&mut out).and_then(|()| Ok(out.flush()?));
    // What is left in the buffer after an error is not tried again.
    drop(out.into_parts());
    filled
}

/// A reader that has gone is no error.
fn read_or_not(written: Result<()>) -> Result<()> {
    match written {
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => Ok(()),
        written => written,
    }
}

/// Makes the contents last, where there is something to last and the file system can.
fn flushed(file: &File) -> io::Result<()> {
    let unsupported = |e: &io::Error| matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported);
    match file.sync_all() {
        Err(e) if unsupported(&e) => Ok(()),
        done => done,
    }
}

/// Takes the contents out of a file; a device or a pipe has none.
fn empty(file: &File) -> io::Result<()> {
    if file.metadata()?.is_file() { file.set_len(0) } else { Ok(()) }
}

/// Fills `there` with the contents of a temporary file.
fn copy(temp: NamedTempFile, mut there: File) -> io::Result<()> {
    let mut from = temp.reopen()?;
    from.rewind()?;
    there.set_len(0)?;
    io::copy(&mut from, &mut there)?;
    flushed(&there)
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file())
}

/// Whether two paths lead to one file, by whatever names; a device or a pipe takes anything.
pub fn same(a: &Path, b: &Path) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(x), Ok(y)) if x.is_file() && y.is_file() => {
            #[cfg(unix)]
            {
                use std::os::unix::fs::MetadataExt;
                (x.dev(), x.ino()) == (y.dev(), y.ino())
            }
            #[cfg(not(unix))]
            matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
        }
        (Err(_), Err(_)) => std::path::absolute(a).ok() == std::path::absolute(b).ok(),
        _ => false,
    }
}

/// Keeps what is read from being written.
///
/// # Errors
/// `out` is one of the files of `read`, or a file in one of its folders.
pub fn spare<'a>(out: &Path, read: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    for path in read {
        let inside = fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        if inside.chain([path.to_owned()]).any(|read| same(&read, out)) {
            bail!("{} is read, so it is not written: give another file for the output", out.display());
        }
    }
    Ok(())
}

/// Keeps a file of somebody's own from being written over.
///
/// # Errors
/// There is a file that neither is empty nor begins as `what` does.
pub fn replaces(out: &Path, what: &str, begins: &str) -> Result<()> {
    // A folder or a device says what it is when it is written to; and opening a pipe would wait for its other end.
    if !is_file(out) {
        return Ok(());
    }
    let Ok(file) = File::open(out) else { return Ok(()) };
    let mut start = Vec::new();
    let read = file.take(begins.len() as u64).read_to_end(&mut start);
    if read.is_ok() && (start.is_empty() || start == begins.as_bytes()) {
        return Ok(());
    }
    bail!(
        "{} exists and is no {what} of ttft, so it is not overwritten: write elsewhere, or move it away",
        out.display()
    )
}

/// A path as it can be pasted into a shell: absolute, and quoted where a shell would take it apart.
pub fn shown(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    quoted(&path.to_string_lossy())
}

/// A word as a shell takes it.
pub fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+:,@%=\\~".contains(c);
    if text.chars().all(plain) && (cfg!(windows) || !text.contains(['\\', '~'])) {
        text.to_owned()
    } else if cfg!(windows) {
        format!("\"{text}\"")
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Whether `name` is one component of a path, here and on other systems, and nothing else.
pub fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && !name.contains(|c| ttft_reports::text::steers(c) || "/\\:*?\"<>|".contains(c))
}

/// The folder that relative paths of the environment are meant from: cargo runs a benchmark in its package's folder, and
/// the user was elsewhere. None if that is not known, or if nobody moved us.
pub fn called_from() -> Option<PathBuf> {
    let package = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").filter(|_| env::var_os("CARGO").is_some())?);
    let here = env::current_dir().ok()?;
    if here.canonicalize().ok()? != package.canonicalize().ok()? {
        return None;
    }
    // Cargo itself is still where it was called; the shell's variable may be stale.
    #[cfg(target_os = "linux")]
    {
        let parent = format!("/proc/{}", std::os::unix::process::parent_id());
        let cargo =
            fs::read_to_string(format!("{parent}/comm")).is_ok_and(|name| name.trim_start().starts_with("cargo"));
        if let Some(dir) = fs::read_link(format!("{parent}/cwd")).ok().filter(|_| cargo) {
            return Some(dir);
        }
    }
    env::var_os("PWD").map(PathBuf::from).filter(|dir| dir.is_absolute() && dir.is_dir())
}

/// The target folder of cargo that this program lies in, if it does.
fn built_in() -> Option<PathBuf> {
    // Cargo marks its target folder; a test or bench runs from within it. A program may not know where it lies.
    let exe = env::current_exe().unwrap_or_default();
    let marked = |dir: &&Path| dir.join("CACHEDIR.TAG").is_file() && dir.join(".rustc_info.json").is_file();
    exe.ancestors().skip(1).find(marked).map(Path::to_owned)
}

/// How the user calls the command `ttft`: by name if it is installed, else through cargo.
pub fn own_command() -> &'static str {
    if built_in().is_some() { "cargo run --release --bin ttft --" } else { "ttft" }
}

/// The folder for what can be made again: the target folder this program was built in or, for an installed program,
/// the user's cache folder.
///
/// # Errors
/// Neither can be found.
pub fn target_dir() -> Result<PathBuf> {
    if let Some(dir) = built_in() {
        return Ok(dir);
    }
    let home = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    home("XDG_CACHE_HOME")
        .filter(|dir| dir.is_absolute())
        .or_else(|| home("HOME").map(|h| h.join(".cache")))
        .or_else(|| home("LOCALAPPDATA"))
        .map(|c| c.join("ttft"))
        .context(
            "no target folder and no home: say where weights and records go with TTFT_WEIGHTS and TTFT_OUT (--weights \
             and --out)",
        )
}

/// Where a run's record goes.
#[derive(Clone, Copy, Debug)]
pub enum To<'a> {
    /// Nowhere: the run is only a trial.
    Nowhere,
    /// The file that was asked for.
    File(&'a Path),
    /// A new file in the target folder, named by scenario and time.
    New,
}

/// Opens the record of a run. The run is called as the file.
///
/// # Errors
/// A file that holds something; a place that cannot be written.
pub fn record(to: To<'_>, scenario: &str, header: RunHeader) -> Result<Writer> {
    let called = |path: &Path| {
        let name = path.file_stem().map(|s| ttft_reports::text::printable(&s.to_string_lossy()));
        let run_id = name.map_or_else(|| scenario.to_owned(), |n| n.replace(char::is_whitespace, "_"));
        RunHeader { run_id, ..header.clone() }
    };
    const ELSEWHERE: &str = "TTFT_OUT or --out names another place for the record";
    match to {
        To::Nowhere => return Ok(Writer::nowhere(called(Path::new(scenario)))?),
        To::File(path) => {
            if fs::metadata(path).is_ok_and(|there| is_stdout(&there)) {
                console::reserve_stdout();
            }
            return Writer::create(path, called(path)).map_err(|e| match e {
                RecordError::Io { .. } => anyhow!(e).context(ELSEWHERE),
                e => e.into(),
            });
        }
        To::New => {}
    }
    let stamp: String = header.started_at.iter().flat_map(|t| t.chars()).filter(char::is_ascii_alphanumeric).collect();
    let dir = target_dir()?.join("ttft-records");
    for i in 0..1000 {
        let number = if i == 0 { String::new() } else { format!("-{i}") };
        let path = dir.join(format!("{scenario}-{stamp}{number}.jsonl"));
        match Writer::create_new(&path, called(&path)) {
            Err(RecordError::Exists(_) | RecordError::Busy(_)) => {}
            made => return made.context(ELSEWHERE),
        }
    }
    bail!("{}: no free name for the record: {ELSEWHERE}", dir.display())
}

/// The folder of this machine's calibration.
///
/// # Errors
/// As [`target_dir`].
pub fn calibration_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("ttft-calibration"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) -> Result<()> {
        Pending::claim(path)?.write(|w| Ok(w.write_all(text.as_bytes())?))
    }

    #[test]
    fn a_pending_file_leaves_nothing_unless_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let count = || fs::read_dir(dir.path()).unwrap().count();
        drop(Pending::claim(&path).unwrap());
        assert_eq!(count(), 0);
        assert!(Pending::claim(&path).unwrap().write(|_| anyhow::bail!("no")).is_err());
        assert_eq!(count(), 0);
        write(&path, "yes").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"yes");
        assert_eq!(count(), 1);
        // What is there stays until there is something better.
        assert!(Pending::claim(&path).unwrap().write(|_| anyhow::bail!("no")).is_err());
        assert_eq!((fs::read(&path).unwrap(), count()), (b"yes".to_vec(), 1));
        assert!(Pending::claim(dir.path()).unwrap_err().to_string().contains("folder"));
        assert!(Pending::claim(&dir.path().join("no/x")).unwrap_err().to_string().contains("no folder"));
    }

    #[cfg(unix)]
    #[test]
    fn links_names_rights_and_owners_stay() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("real")).unwrap();
        symlink("real/file", path("link")).unwrap();
        symlink("link", path("chain")).unwrap();
        // First to nothing, then to a file.
        for text in ["one", "two"] {
            write(&path("chain"), text).unwrap();
            assert!(path("chain").is_symlink() && path("link").is_symlink());
            assert_eq!(fs::read_to_string(path("real/file")).unwrap(), text);
        }
        symlink("circle", path("circle")).unwrap();
        assert!(write(&path("circle"), "x").is_err());
        // Rights.
        fs::set_permissions(path("real/file"), fs::Permissions::from_mode(0o600)).unwrap();
        write(&path("link"), "three").unwrap();
        assert_eq!(fs::metadata(path("link")).unwrap().mode() & 0o777, 0o600);
        // Another name of the same file.
        fs::hard_link(path("real/file"), path("other")).unwrap();
        write(&path("real/file"), "longer than that").unwrap();
        write(&path("real/file"), "four").unwrap();
        assert_eq!(fs::read_to_string(path("other")).unwrap(), "four");
        assert_eq!(fs::read_dir(path("real")).unwrap().count(), 1, "nothing is left beside");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_and_pipes_are_written_to() {
        use std::os::unix::fs::FileTypeExt;
        let is_device = |path: &str| fs::symlink_metadata(path).unwrap().file_type().is_char_device();
        write(Path::new("/dev/null"), "x").unwrap();
        let error = write(Path::new("/dev/full"), "x").unwrap_err();
        assert!(format!("{error:#}").contains("/dev/full: cannot write it"), "{error:#}");
        assert!(is_device("/dev/null") && is_device("/dev/full"));
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::read_to_string(pipe).unwrap()
        });
        write(&pipe, "through").unwrap();
        assert_eq!(reader.join().unwrap(), "through");
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(Pending::claim(&socket).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn file_names_are_one_component() {
        for good in ["quick", "table5-3b", "x.y", "größe", "-x", "a=b"] {
            assert!(is_file_name(good), "{good}");
        }
        let long = "x".repeat(129);
        for bad in ["", ".", "..", ".x", "a/b", "/x", "a\\b", "c:x", "a\nb", "a\x1bb", "a|b", &long] {
            assert!(!is_file_name(bad), "{bad}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn paths_can_be_pasted() {
        assert_eq!(shown(Path::new("/a/b-1.jsonl")), "/a/b-1.jsonl");
        assert_eq!(shown(Path::new("/mein Ordner/ü'日本")), r"'/mein Ordner/ü'\''日本'");
        assert_eq!(shown(Path::new("/a;b$c")), "'/a;b$c'");
        assert!(Path::new(&shown(Path::new("x"))).is_absolute());
    }
}
