//! JSON as other programs write it: with a byte order mark, and with Python's `NaN` and `Infinity` in fields that nobody
//! reads.

use std::{fs::File, io::Read, path::Path};

use serde::de::{DeserializeOwned, Error as _};

use crate::error::{Error, Result};

/// Longest JSON file that is read: far above any configuration or index of shards.
const MAX_BYTES: u64 = 64 << 20;

/// Reads and parses a file.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`].
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let file = File::open(path).map_err(Error::io(path, "read"))?;
    let mut text = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(Error::io(path, "read"))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(refuse(path, format!("longer than {MAX_BYTES} bytes")));
    }
    parse(path, &text)
}

/// Parses the content of a file; `path` is for messages, which name the field.
///
/// # Errors
/// [`Error::Json`].
pub fn parse<T: DeserializeOwned>(path: &Path, text: &[u8]) -> Result<T> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    if let Some(what) = stand_in(text) {
        return Err(refuse(path, what.into()));
    }
    let value: serde_json::Value = match serde_json::from_slice(text) {
        Ok(value) => value,
        Err(e) => serde_json::from_slice(&quoted(text)).map_err(|_| Error::json(path)(e))?,
    };
    fields(path, value)
}

/// The fields that are read out of a parsed file; `path` is for messages, which name the field.
///
/// # Errors
/// [`Error::Json`].
pub fn fields<T: DeserializeOwned>(path: &Path, value: serde_json::Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| match e.path().to_string().as_str() {
        "." => Error::json(path)(e.into_inner()),
        field => refuse(path, format!("{field}: {}", e.inner())),
    })
}

fn refuse(path: &Path, reason: String) -> Error {
    Error::json(path)(serde_json::Error::custom(reason))
}

/// What a file is that only stands for another, or is written in another encoding, with what to do about it.
pub fn stand_in(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Some("a Git LFS pointer stands here instead of the file: fetch it with `git lfs pull`");
    }
    let wide = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    wide.then_some("the text is UTF-16, as its byte order mark says: save it as UTF-8")
}

/// The text with the three words that are numbers in Python and none in JSON as strings: a field that is not read may hold
/// them, and the complaint about one that is read shows them.
fn quoted(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let (mut at, mut inside) = (0, false);
    while let Some(&byte) = text.get(at) {
        let word = [&b"NaN"[..], b"Infinity", b"-Infinity"].into_iter().find(|w| !inside && text[at..].starts_with(w));
        if let Some(word) = word {
            out.push(b'"');
            out.extend_from_slice(word);
            out.push(b'"');
            at += word.len();
            continue;
        }
        let escaped = inside && byte == b'\\';
        inside ^= byte == b'"';
        let end = (at + 1 + usize::from(escaped)).min(text.len());
        out.extend_from_slice(&text[at..end]);
        at = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize, PartialEq)]
    struct Read {
        a: f64,
        list: Option<Vec<f64>>,
    }

    fn read(text: &[u8]) -> Result<Read> {
        parse(Path::new("c.json"), text)
    }

    #[test]
    fn what_python_and_windows_write_is_read() {
        let plain = Read { a: 1.0, list: None };
        for text in [
            &b"\xef\xbb\xbf{\"a\": 1}"[..],
            b"{\"a\": 1, \"x\": NaN, \"y\": [0.0, Infinity, -Infinity]}",
            b"{\"a\": 1, \"NaN\": \"say \\\"NaN\\\" \\\\\", \"z\": NaN}",
        ] {
            assert_eq!(read(text).unwrap(), plain, "{}", String::from_utf8_lossy(text));
        }
    }

    #[test]
    fn complaints_name_the_field_and_the_value() {
        for (text, words) in [
            (&b"{\"a\": NaN}"[..], &["c.json", "a:", "NaN"][..]),
            (b"{\"a\": 1, \"list\": [2, -Infinity]}", &["list[1]:", "-Infinity"]),
            (b"{\"a\": \"x\"}", &["a:", "\"x\""]),
            (b"{\"a\": NaN", &["c.json", "line 1 column 7"]),
            (b"\xff\xfe{\0", &["UTF-16"]),
            (b"version https://git-lfs.github.com/spec/v1\n", &["Git LFS"]),
            (b"", &["c.json", "EOF"]),
        ] {
            let error = read(text).unwrap_err().to_string();
            words.iter().for_each(|w| assert!(error.contains(w), "no '{w}' in: {error}"));
        }
        #[cfg(unix)]
        assert!(load::<Read>(Path::new("/dev/zero")).unwrap_err().to_string().contains("longer than"));
    }
}
