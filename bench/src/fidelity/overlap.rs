//! Text that a predictor was fitted on says nothing of what it does on other text.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::corpus::Corpus;

/// Refuses texts that a predictor was fitted on, by the hashes in its `config.json`; whether it states any.
///
/// # Errors
/// The text, and the predictor.
pub fn unread(predictor: &Path, texts: &[&Corpus]) -> Result<bool> {
    let path = predictor.join("config.json");
    let config: Value = ttft_models::json::load(&path)?;
    let mut hashes = Vec::new();
    stated(&config, &mut hashes);
    for file in texts.iter().flat_map(|t| &t.files) {
        let sha256 = &file.sha256;
        ensure!(
            !hashes.contains(&&**sha256),
            "{}: the predictor {} was fitted on this very text (sha256 {sha256}): what it does there says nothing about other \
             text; give one that was held out",
            file.file,
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
    use crate::corpus::TextFile;

    #[test]
    fn a_text_of_the_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let write = |json: &str| std::fs::write(dir.path().join("config.json"), json).unwrap();
        let file = TextFile { file: "a.txt".into(), bytes: 1, sha256: "ab".repeat(32), tokens: 1 };
        let text = Corpus::of_ids(vec![0], vec![file]);
        write("{\"base_num_layers\": 2}");
        assert!(!unread(dir.path(), &[&text]).unwrap());
        write("{\"fit\": {\"texts\": [{\"name\": \"b\", \"sha256\": \"00\"}]}}");
        assert!(unread(dir.path(), &[&text]).unwrap());
        write(&format!("{{\"fit\": {{\"texts\": [{{\"sha256\": \"{}\"}}]}}}}", "ab".repeat(32)));
        let error = unread(dir.path(), &[&text]).unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains("held out"), "{error}");
    }
}
