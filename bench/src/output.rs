//! Files that appear whole or not at all, and the folders that results go to.

use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use tempfile::NamedTempFile;

/// A file to be: claimed before the work, written after it.
#[derive(Debug)]
pub struct Pending {
    temp: NamedTempFile,
    path: PathBuf,
}

impl Pending {
    /// Claims a place beside `path`, so that an unwritable place is found out before the work rather than after it.
    ///
    /// # Errors
    /// The folder is missing or not writable, or `path` is a folder.
    pub fn claim(path: &Path) -> Result<Pending> {
        if path.is_dir() {
            bail!("{} is a folder: give the name of a file to write", path.display());
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            bail!("{}: there is no folder {}: make it, or write elsewhere", path.display(), folder.display());
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".ttft-");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let temp = builder.tempfile_in(folder).with_context(|| format!("{}: cannot write there", path.display()))?;
        Ok(Pending { temp, path: path.to_owned() })
    }

    /// Writes the contents and gives the file its name.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(self, contents: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let failed = || format!("{}: cannot write it", self.path.display());
        let mut out = BufWriter::new(self.temp.as_file());
        contents(&mut out).with_context(failed)?;
        out.flush().with_context(failed)?;
        drop(out);
        self.temp.as_file().sync_all().with_context(failed)?;
        self.temp.persist(&self.path).map_err(|e| e.error).with_context(|| format!("{}", self.path.display()))?;
        Ok(())
    }
}

/// The folder for what can be made again: the target folder this program was built in or, for an installed program,
/// the user's cache folder.
///
/// # Errors
/// Neither can be found.
pub fn target_dir() -> Result<PathBuf> {
    // Cargo marks its target folder; a test or bench runs from within it.
    let exe = std::env::current_exe().context("cannot find this program's own path")?;
    let marked = |dir: &&Path| dir.join("CACHEDIR.TAG").is_file() && dir.join(".rustc_info.json").is_file();
    if let Some(dir) = exe.ancestors().skip(1).find(marked) {
        return Ok(dir.to_owned());
    }
    let home = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    home("XDG_CACHE_HOME")
        .or_else(|| home("HOME").map(|h| h.join(".cache")))
        .or_else(|| home("LOCALAPPDATA"))
        .map(|c| c.join("ttft"))
        .context("no target folder and no home: say where weights and records go with TTFT_WEIGHTS and TTFT_OUT")
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

    #[test]
    fn a_pending_file_leaves_nothing_unless_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let count = || std::fs::read_dir(dir.path()).unwrap().count();
        drop(Pending::claim(&path).unwrap());
        assert_eq!(count(), 0);
        assert!(Pending::claim(&path).unwrap().write(|_| anyhow::bail!("no")).is_err());
        assert_eq!(count(), 0);
        Pending::claim(&path).unwrap().write(|w| Ok(w.write_all(b"yes")?)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"yes");
        assert_eq!(count(), 1);
        assert!(Pending::claim(dir.path()).unwrap_err().to_string().contains("folder"));
        assert!(Pending::claim(&dir.path().join("no/x")).unwrap_err().to_string().contains("no folder"));
    }
}
