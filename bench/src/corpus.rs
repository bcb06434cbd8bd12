//! Text files as windows of token ids.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use ttft_reports::text::printable;

use crate::{
    identity,
    text::{self, Text},
};

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
            let (bytes, content) = text::read_bytes(path)?;
            ensure!(!content.trim().is_empty(), "{}: it holds no text: leave it out", path.display());
            let before = corpus.ids.len();
            for piece in pieces(&content) {
                corpus.ids.extend(tokenizer.ids(piece, true).with_context(|| path.display().to_string())?);
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            corpus.files.push(TextFile {
                file: printable(&name),
                bytes: bytes.len() as u64,
                sha256: identity::sha256(&bytes),
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

    /// Of ids that are known, with no token that texts begin with.
    #[cfg(test)]
    pub(crate) fn of_ids(ids: Vec<u32>, files: Vec<TextFile>) -> Corpus {
        Corpus { start: Vec::new(), ids, files }
    }

    /// Ids of all files.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Its name: the first file's, and how many more there are.
    pub fn name(&self) -> String {
        let more = if self.files.len() > 1 { format!(" and {} more", self.files.len() - 1) } else { String::new() };
        format!("{}{more}", self.files.first().map_or("", |file| &file.file))
    }

    /// The SHA-256 of its file; of several, that of their sums in hexadecimal, one after another.
    pub fn sha256(&self) -> String {
        match &self.files[..] {
            [only] => only.sha256.clone(),
            files => identity::sha256(files.iter().map(|file| &*file.sha256).collect::<String>()),
        }
    }

    /// `n` tokens from `at` on, or the last ones; all of it, if it is shorter.
    pub fn piece(&self, at: usize, n: usize) -> &[u32] {
        let n = n.min(self.ids.len());
        &self.ids[at.min(self.ids.len() - n)..][..n]
    }

    /// `count` pieces of `n` tokens each, all over the text, none overlapping another.
    ///
    /// # Errors
    /// There are not so many.
    pub fn pieces(&self, count: usize, n: usize) -> Result<Vec<&[u32]>> {
        let room = self.ids.len() / n.max(1);
        ensure!(
            count <= room,
            "{}: its {} tokens are {room} windows of {n}, and {count} are asked for: give more text, or fewer --windows",
            self.name(),
            self.ids.len()
        );
        Ok((0..count).map(|i| &self.ids[i * self.ids.len() / count..][..n]).collect())
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

/// A text cut after line ends that something else than space follows, where no tokenizer joins what is on both sides; or where there
/// is none for long, before a space between words.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = rest.as_bytes();
        let ends = |at: usize| bytes[at - 1] == b'\n' && !bytes[at].is_ascii_whitespace() && rest.is_char_boundary(at);
        let word =
            |at: usize| bytes[at] == b' ' && [at - 1, at + 1].iter().all(|at| bytes[*at].is_ascii_alphanumeric());
        let far = bytes.len().min(4 * PIECE);
        let line = (PIECE..far).find(|at| ends(*at));
        let after = || (far..bytes.len() - 1).find(|at| ends(*at) || word(*at));
        let cut = line.or_else(after).unwrap_or(bytes.len());
        let (piece, after) = rest.split_at(cut);
        rest = after;
        Some(piece)
    })
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
    fn pieces_lie_all_over_the_text() {
        let files = vec![TextFile { file: "a.txt".into(), bytes: 9, sha256: "ab".repeat(32), tokens: 103 }];
        let text = Corpus::of_ids((0..103).collect(), files);
        let cut = text.pieces(4, 25).unwrap();
        assert_eq!(cut.iter().map(|w| (w[0], w.len())).collect::<Vec<_>>(), [(0, 25), (25, 25), (51, 25), (77, 25)]);
        assert_eq!(text.pieces(1, 103).unwrap()[0].len(), 103);
        let error = text.pieces(5, 25).err().unwrap().to_string();
        for word in ["a.txt", "103 tokens", "4 windows of 25", "5 are asked"] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!((text.piece(100, 10)[0], text.piece(0, 999).len()), (93, 103));
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
        // Without line ends, before the space between two words.
        let text = "no end of line ".repeat(PIECE);
        let all: Vec<&str> = pieces(&text).collect();
        assert_eq!(all.concat(), text);
        assert!(all.len() > 3 && all[1..].iter().all(|piece| piece.starts_with(' ')));
        assert!(all.iter().all(|piece| piece.len() < 4 * PIECE + 100));
        assert_eq!(pieces("").count(), 0);
    }
}
