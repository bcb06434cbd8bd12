//! Which networks and predictors these are, by hash, so that a time and an answer of the same can be told from those of others.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use ttft_models::Network;
use ttft_reports::schema::Identity;

/// What says how synthetic weights were made.
const MANIFEST: &str = "synth.json";

/// A network, in a folder.
///
/// # Errors
/// A file cannot be read.
pub fn of_network(name: &str, network: &Network, dir: &Path, synthetic: bool) -> Result<Identity> {
    let config = network.config().to_json("").to_string();
    Ok(Identity {
        name: name.into(),
        config_sha256: Some(sha256(config)),
        weights_sha256: weights(dir, synthetic)?,
        synthetic,
    })
}

/// A predictor, in a folder.
///
/// # Errors
/// A file cannot be read.
pub fn of_predictor(dir: &Path, synthetic: bool) -> Result<Identity> {
    let config = dir.join("config.json");
    let bytes = fs::read(&config).with_context(|| format!("{}: cannot read it", config.display()))?;
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let name = absolute.file_name().map_or_else(|| "predictor".into(), |n| n.to_string_lossy().into_owned());
    Ok(Identity { name, config_sha256: Some(sha256(bytes)), weights_sha256: weights(dir, synthetic)?, synthetic })
}

/// That of a folder; of synthetic weights, of what says how they were made.
fn weights(dir: &Path, synthetic: bool) -> Result<Option<String>> {
    let manifest = dir.join(MANIFEST);
    if synthetic && manifest.exists() { file_sha256(&manifest).map(Some) } else { weights_sha256(dir) }
}

/// The SHA-256 over the `.safetensors` files of a folder in the order of their names, if there are any: of each its name, a zero
/// byte, its size in 8 bytes (little endian), and its bytes.
///
/// # Errors
/// A file that cannot be read.
pub fn weights_sha256(dir: &Path) -> Result<Option<String>> {
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
    Ok((!files.is_empty()).then(|| hex(hash.0)))
}

/// The SHA-256 of a file.
///
/// # Errors
/// It cannot be read.
pub fn file_sha256(path: &Path) -> Result<String> {
    let cannot = || format!("{}: cannot read it", path.display());
    let mut hash = Hashing(Sha256::new());
    io::copy(&mut File::open(path).with_context(cannot)?, &mut hash).with_context(cannot)?;
    Ok(hex(hash.0))
}

/// The SHA-256 of bytes.
pub fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// In lower-case hexadecimal.
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

    #[test]
    fn names_sizes_and_bytes_count() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &str| fs::write(dir.path().join(name), bytes).unwrap();
        assert_eq!(weights(dir.path(), false).unwrap(), None);
        write("a.safetensors", "xy");
        write("config.json", "{}");
        let expected = sha256(b"a.safetensors\0\x02\0\0\0\0\0\0\0xy");
        assert_eq!(weights(dir.path(), false).unwrap(), Some(expected.clone()));
        write("b.safetensors", "");
        let more = weights(dir.path(), false).unwrap();
        assert_ne!(more, Some(expected));
        // Of synthetic weights the manifest alone.
        write(MANIFEST, "{\"seed\": 0}");
        assert_eq!(weights(dir.path(), true).unwrap(), Some(sha256(b"{\"seed\": 0}")));
        assert_eq!(weights(dir.path(), false).unwrap(), more);
    }
}
