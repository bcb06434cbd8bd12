//! Text files as windows of token ids.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use sha2::{Digest, Sha256};
use ttft_reports::text::printable;

use crate::text::{self, Text};

/// Bytes of text that are tokenized at once, about: what a tokenizer needs for all of a long file would be a multiple of it.
const PIECE: usize = 64 << 10;

/// A file of a text, as records name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TextFile {
    /// Its name, without folders.
    pub file: String,
    /// Its length.
    pub bytes: u64,
    /// Of all its bytes.
    pub sha256: String,
    /// Ids that it was made into.
    pub tokens: usize,
}

/// A text of one or several files, one after the other.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// What every text begins with, by the tokenizer: nothing, or a token for the beginning.
    start: Vec<u32>,
    ids: Vec<u32>,
    /// The files.
    pub files: Vec<TextFile>,
}

impl Corpus {
    /// Reads and tokenizes files; `vocab` is the number of ids that the network of `of` knows.
    ///
    /// # Errors
    /// A file that cannot be read, is no UTF-8 or empty; a tokenizer with other ids than the network.
    pub fn load(tokenizer: &Text, files: &[PathBuf], vocab: usize, of: &Path) -> Result<Corpus> {
        let mut corpus = Corpus { start: tokenizer.ids("", false)?, ids: Vec::new(), files: Vec::new() };
        for path in files {
            let content = text::read_text(path)?;
            ensure!(!content.trim().is_empty(), "{}: it holds no text: leave it out", path.display());
            let before = corpus.ids.len();
            for piece in pieces(&content) {
                corpus.ids.extend(tokenizer.ids(piece, true).with_context(|| path.display().to_string())?);
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            corpus.files.push(TextFile {
                file: printable(&name),
                bytes: std::fs::metadata(path).with_context(|| path.display().to_string())?.len(),
                sha256: file_sha256(path)?,
                tokens: corpus.ids.len() - before,
            });
        }
        if let Some(id) = corpus.start.iter().chain(&corpus.ids).find(|id| **id as usize >= vocab) {
            bail!(
                "{}: the text has token {id}, and the vocabulary of {} has {vocab}: the two do not belong together",
                tokenizer.path().display(),
                of.display()
            );
        }
        Ok(corpus)
    }

    /// Ids of all files.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Windows of `window` ids, each beginning as every text does; if `tokens` says fewer than there are, so many spread evenly
    /// over the text.
    pub fn windows(&self, window: usize, tokens: Option<usize>) -> Vec<Vec<u32>> {
        let Some(step) = window.checked_sub(self.start.len()).filter(|step| *step > 0) else { return Vec::new() };
        let all = self.ids.len() / step;
        let taken = tokens.map_or(all, |tokens| all.min(tokens / window));
        let at = |i: usize| (i as u128 * all as u128 / taken.max(1) as u128) as usize * step;
        (0..taken).map(|i| [&self.start, &self.ids[at(i)..][..step]].concat()).collect()
    }
}

/// A text cut after line ends that something else than space follows, where no tokenizer joins what is on both sides.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = rest.as_bytes();
        let ends = |at: usize| bytes[at - 1] == b'\n' && !bytes[at].is_ascii_whitespace() && rest.is_char_boundary(at);
        let cut = (PIECE..bytes.len()).find(|at| ends(*at)).unwrap_or(bytes.len());
        let (piece, after) = rest.split_at(cut);
        rest = after;
        Some(piece)
    })
}

/// The SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// It cannot be read.
pub fn file_sha256(path: &Path) -> Result<String> {
    let cannot = || format!("{}: cannot read it", path.display());
    let mut hash = Hashing(Sha256::new());
    io::copy(&mut File::open(path).with_context(cannot)?, &mut hash).with_context(cannot)?;
    Ok(hex(hash.0))
}

/// The SHA-256 over the `.safetensors` files of a folder in the order of their names: of each its name, a zero byte, its size in 8
/// bytes (little endian), and its bytes.
///
/// # Errors
/// A file that cannot be read.
pub fn weights_sha256(dir: &Path) -> Result<String> {
    let cannot = |path: &Path| format!("{}: cannot read it", path.display());
    let mut files = Vec::new();
    for entry in dir.read_dir().with_context(|| cannot(dir))? {
        let path = entry.with_context(|| cannot(dir))?.path();
        files.extend(Some(path).filter(|path| path.extension().is_some_and(|e| e == "safetensors")));
    }
    files.sort();
    let mut hash = Hashing(Sha256::new());
    for path in &files {
        let mut file = File::open(path).with_context(|| cannot(path))?;
        let size = file.metadata().with_context(|| cannot(path))?.len();
        hash.0.update(path.file_name().unwrap_or_default().to_string_lossy().as_bytes());
        hash.0.update([0]);
        hash.0.update(size.to_le_bytes());
        io::copy(&mut file, &mut hash).with_context(|| cannot(path))?;
    }
    Ok(hex(hash.0))
}

/// The SHA-256 of bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

struct Hashing(Sha256);

impl io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(start: &[u32], tokens: u32) -> Corpus {
        Corpus { start: start.to_vec(), ids: (100..100 + tokens).collect(), files: Vec::new() }
    }

    #[test]
    fn windows_are_spread_over_the_text() {
        let text = corpus(&[], 43);
        let firsts = |tokens| text.windows(4, tokens).iter().map(|w| w[0] - 100).collect::<Vec<_>>();
        assert_eq!(firsts(None), [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]);
        assert_eq!(firsts(Some(1000)), firsts(None));
        assert_eq!(firsts(Some(19)), [0, 8, 20, 28]);
        assert_eq!(firsts(Some(3)), [0; 0]);
        assert!(text.windows(4, None).iter().all(|w| w.len() == 4 && w[3] == w[0] + 3));
        // Each with the token that texts begin with, which takes a place.
        let windows = corpus(&[7], 7).windows(4, None);
        assert_eq!(windows, [[7, 100, 101, 102], [7, 103, 104, 105]]);
        assert!(corpus(&[7], 7).windows(1, None).is_empty());
    }

    #[test]
    fn pieces_are_the_text_and_end_between_words() {
        for line in ["a line of text\n", "zeile für zeile\n\n  x\n", "no end of line ", "\n"] {
            let text = line.repeat(3 * PIECE / line.len());
            let all: Vec<&str> = pieces(&text).collect();
            assert_eq!(all.concat(), text);
            for pair in all.windows(2) {
                assert!(pair[0].ends_with('\n') && !pair[1].starts_with(char::is_whitespace), "{line:?}");
                assert!(pair[0].len() < PIECE + 100);
            }
        }
        assert_eq!(pieces("").count(), 0);
    }
}
