//! Texts that windows are cut from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use ttft_reports::text::printable;

use crate::{
    identity::hex,
    text::{self, Text},
};

/// The tokens of some files, one after another.
pub struct Corpus {
    /// What it is called.
    pub name: String,
    /// SHA-256 of the bytes of all files, one after another.
    pub sha256: String,
    /// SHA-256 of each file.
    pub files: Vec<(PathBuf, String)>,
    ids: Vec<u32>,
}

impl Corpus {
    /// Reads and tokenizes files.
    ///
    /// # Errors
    /// One cannot be read, or is no text; ids that the base does not know.
    pub fn read(files: &[PathBuf], tokenizer: &Text, vocab: usize) -> Result<Corpus> {
        let (mut all, mut hashes, mut ids) = (Sha256::new(), Vec::new(), Vec::new());
        for file in files {
            let content = text::read_text(file)?;
            let bytes = fs::read(file).with_context(|| format!("{}: cannot read it", file.display()))?;
            all.update(&bytes);
            hashes.push((file.clone(), hex(Sha256::digest(&bytes))));
            ids.extend(tokenizer.ids(&content, true).with_context(|| file.display().to_string())?);
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            anyhow::bail!(
                "{}: it makes token {id}, and the vocabulary of the base has {vocab}: the two do not belong together",
                tokenizer.path().display()
            );
        }
        let name = |file: &PathBuf| file.file_name().map_or_else(String::new, |n| printable(&n.to_string_lossy()));
        let more = if files.len() > 1 { format!(" and {} more", files.len() - 1) } else { String::new() };
        let name = format!("{}{more}", files.first().map_or_else(String::new, name));
        Ok(Corpus { name, sha256: hex(all.finalize()), files: hashes, ids })
    }

    /// Tokens of all of it.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// `n` tokens from `at` on, or the last ones; all of it, if it is shorter.
    pub fn piece(&self, at: usize, n: usize) -> &[u32] {
        let n = n.min(self.ids.len());
        &self.ids[at.min(self.ids.len() - n)..][..n]
    }

    /// `count` windows of `n` tokens each, all over the text, none overlapping another.
    ///
    /// # Errors
    /// There are not so many.
    pub fn windows(&self, count: usize, n: usize) -> Result<Vec<&[u32]>> {
        let room = self.ids.len() / n.max(1);
        ensure!(
            count <= room,
            "{}: its {} tokens are {room} windows of {n}, and {count} are asked for: give more text, or fewer --windows",
            self.files.first().map_or(&*self.name, |(file, _)| file.to_str().unwrap_or(&self.name)),
            self.ids.len()
        );
        Ok((0..count).map(|i| &self.ids[i * self.ids.len() / count..][..n]).collect())
    }
}

/// Refuses texts that a predictor was fitted on, by the hashes in its `config.json`; whether it states any.
///
/// # Errors
/// The text, and the predictor.
pub fn unread(predictor: &Path, texts: &[&Corpus]) -> Result<bool> {
    let path = predictor.join("config.json");
    let config: Value = ttft_models::json::load(&path)?;
    let mut hashes = Vec::new();
    stated(&config, &mut hashes);
    for (file, sha256) in texts.iter().flat_map(|t| &t.files) {
        ensure!(
            !hashes.contains(&sha256.as_str()),
            "{}: the predictor {} was fitted on this very text (sha256 {sha256}): what it does there says nothing about other \
             text; give one that was held out",
            file.display(),
            predictor.display()
        );
    }
    Ok(!hashes.is_empty())
}

/// Every value of a key `sha256`, wherever it stands.
fn stated<'a>(json: &'a Value, out: &mut Vec<&'a str>) {
    match json {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(hash) if key == "sha256" => out.push(hash),
                    value => stated(value, out),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| stated(value, out)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus(n: u32) -> Corpus {
        let files = vec![("a.txt".into(), "ab".repeat(32))];
        Corpus { name: "a.txt".into(), sha256: String::new(), files, ids: (0..n).collect() }
    }

    #[test]
    fn windows_lie_all_over_the_text() {
        let text = corpus(103);
        let windows = text.windows(4, 25).unwrap();
        assert_eq!(
            windows.iter().map(|w| (w[0], w.len())).collect::<Vec<_>>(),
            [(0, 25), (25, 25), (51, 25), (77, 25)]
        );
        assert_eq!(text.windows(1, 103).unwrap()[0].len(), 103);
        let error = text.windows(5, 25).err().unwrap().to_string();
        for word in ["a.txt", "103 tokens", "4 windows of 25", "5 are asked"] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!((text.piece(100, 10)[0], text.piece(0, 999).len()), (93, 103));
    }

    #[test]
    fn a_text_of_the_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let write = |json: &str| fs::write(dir.path().join("config.json"), json).unwrap();
        let text = corpus(1);
        write("{\"base_num_layers\": 2}");
        assert!(!unread(dir.path(), &[&text]).unwrap());
        write("{\"fit\": {\"texts\": [{\"name\": \"b\", \"sha256\": \"00\"}]}}");
        assert!(unread(dir.path(), &[&text]).unwrap());
        write(&format!("{{\"fit\": {{\"texts\": [{{\"sha256\": \"{}\"}}]}}}}", "ab".repeat(32)));
        let error = unread(dir.path(), &[&text]).unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains("held out"), "{error}");
    }
}
