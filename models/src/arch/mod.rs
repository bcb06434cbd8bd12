//! Architectures: one row and one file each.

pub mod openelm;

use std::path::Path;

use crate::{Error, Result};

/// How a `config.json` names an architecture.
#[derive(Debug)]
pub struct Architecture {
    /// Entry of `architectures`.
    pub architecture: &'static str,
    /// Value of `model_type`.
    pub model_type: &'static str,
}

/// Apple's OpenELM (arXiv 2404.14619).
pub const OPENELM: Architecture = Architecture { architecture: "OpenELMForCausalLM", model_type: "openelm" };

/// Every architecture that this crate runs.
pub const KNOWN: &[&Architecture] = &[&OPENELM];

/// Refuses a configuration whose `architectures` and `model_type` are not those of a known architecture. One of the two
/// may be absent.
pub(crate) fn check(path: &Path, config: &serde_json::Value) -> Result<&'static Architecture> {
    let architecture = config.get("architectures").and_then(|a| a.get(0)).and_then(|a| a.as_str());
    let model_type = config.get("model_type").and_then(|m| m.as_str());
    KNOWN
        .iter()
        .copied()
        .find(|k| match (architecture, model_type) {
            (None, None) => false,
            (a, m) => a.is_none_or(|a| a == k.architecture) && m.is_none_or(|m| m == k.model_type),
        })
        .ok_or_else(|| Error::UnknownArchitecture {
            path: path.to_owned(),
            found: match (architecture, model_type) {
                (Some(a), Some(m)) => format!("{a} ({m})"),
                (a, m) => a.or(m).unwrap_or("none").to_owned(),
            },
            known: KNOWN.iter().map(|k| k.architecture).collect(),
        })
}
