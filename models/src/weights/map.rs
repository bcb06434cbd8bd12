//! Read-only file mappings: the one file of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// A file mapped read-only; its pages belong to the page cache, not to this process.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl MappedFile {
    /// Maps a regular file.
    ///
    /// # Errors
    /// [`Error::Io`]: missing, unreadable, not a regular file, or empty.
    pub fn open(path: &Path) -> Result<MappedFile> {
        let regular = |meta: &std::fs::Metadata| {
            let e = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not a regular file with content");
            if meta.is_file() && meta.len() > 0 { Ok(()) } else { Err(Error::io(path, "map")(e())) }
        };
        // Before it is opened as well: opening a pipe waits for somebody to write into it.
        regular(&std::fs::metadata(path).map_err(Error::io(path, "open"))?)?;
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        regular(&file.metadata().map_err(Error::io(path, "read the size"))?)?;
        // SAFETY: the promise is that nobody truncates or rewrites the file while it is mapped. The mapping is private and
        // read-only, this crate never writes to a file under its final name (synth.rs renames finished folders), and
        // memory safety of other processes' behaviour is the documented condition of loading weights in place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(Error::io(path, "map"))?;
        Ok(MappedFile { path: path.to_owned(), map })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on reads from the disk the pages that are touched alone, or again what lies around them as well, as the system sees
    /// fit. This changes how long reading takes and nothing else, so a system that takes no advice is left alone.
    pub(crate) fn read_singly(&self, on: bool) {
        #[cfg(unix)]
        let _ = self.map.advise(if on { memmap2::Advice::Random } else { memmap2::Advice::Normal });
        #[cfg(not(unix))]
        let _ = on;
    }

    /// How many of its pages are in memory, and how many it has. The system tells that only to the owner of a file and to
    /// whoever may write it; to others all pages are in memory.
    ///
    /// # Errors
    /// [`Error::Io`]: the system does not tell at all.
    #[cfg(target_os = "linux")]
    pub fn resident_pages(&self) -> Result<(usize, usize)> {
        // SAFETY: sysconf reads a constant of the system and touches no memory of this process.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096).max(1);
        let mut pages = vec![0u8; self.map.len().div_ceil(page)];
        // SAFETY: the range is that of a mapping that lives as long as `self`; it begins at a page, because the file was
        // mapped from its start. mincore only reads it, and writes a byte for each of its pages, as many as `pages` has.
        let done = unsafe { libc::mincore(self.map.as_ptr().cast_mut().cast(), self.map.len(), pages.as_mut_ptr()) };
        if done != 0 {
            return Err(Error::io(&self.path, "ask which pages are in memory")(std::io::Error::last_os_error()));
        }
        Ok((pages.iter().filter(|page| **page & 1 == 1).count(), pages.len()))
    }

    /// Its content.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}
