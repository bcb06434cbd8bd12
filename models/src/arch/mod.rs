//! The families of networks, each a file and a row.

pub mod llama;
pub mod openelm;
pub mod qwen2;
pub mod qwen3;

use std::path::Path;

use crate::{
    config::{Family, NetworkConfig},
    error::{Error, Result},
    json,
};

/// Every family that this crate runs.
pub const KNOWN: &[&Family] = &[&openelm::FAMILY, &llama::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY];

impl NetworkConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], [`Error::UnknownArchitecture`], [`Error::Config`].
    pub fn load(path: &Path) -> Result<NetworkConfig> {
        NetworkConfig::of(path, json::load(path)?)
    }

    /// Parses the content of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`NetworkConfig::load`].
    pub fn parse(path: &Path, text: &[u8]) -> Result<NetworkConfig> {
        NetworkConfig::of(path, json::parse(path, text)?)
    }

    fn of(path: &Path, value: serde_json::Value) -> Result<NetworkConfig> {
        (family(path, &value)?.parse)(path, value)
    }

    /// A `config.json` that [`NetworkConfig::parse`] reads back to the same value.
    pub fn to_json(&self, torch_dtype: &str) -> serde_json::Value {
        let mut v = (self.family.write)(self);
        let (architecture, model_type) = self.family.calls_itself[0];
        v["architectures"] = serde_json::json!([architecture]);
        v["model_type"] = model_type.into();
        v["torch_dtype"] = torch_dtype.into();
        v["use_cache"] = true.into();
        v
    }
}

/// The family that `architectures` and `model_type` name. One of the two may be absent.
fn family(path: &Path, config: &serde_json::Value) -> Result<&'static Family> {
    let architecture = config.get("architectures").and_then(|a| a.get(0)).and_then(|a| a.as_str());
    let model_type = config.get("model_type").and_then(|m| m.as_str());
    let named = |k: &&Family| {
        let is = |&(a, m): &(&str, &str)| architecture.is_none_or(|x| x == a) && model_type.is_none_or(|x| x == m);
        architecture.or(model_type).is_some() && k.calls_itself.iter().any(is)
    };
    KNOWN.iter().copied().find(named).ok_or_else(|| Error::UnknownArchitecture {
        path: path.to_owned(),
        found: match (architecture, model_type) {
            (Some(a), Some(m)) => format!("{a} ({m})"),
            (a, m) => a.or(m).unwrap_or("none").to_owned(),
        },
        known: KNOWN.iter().flat_map(|k| k.calls_itself).map(|(architecture, _)| *architecture).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_a_file_and_a_row() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/arch");
        let mut files: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|f| f.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .filter(|f| f != "mod")
            .collect();
        let mut rows: Vec<&str> = KNOWN.iter().map(|k| k.name).collect();
        files.sort();
        rows.sort();
        assert_eq!(files, rows);
    }
}
