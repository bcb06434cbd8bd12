//! Which networks and predictors these are, by hash, so that a time and an answer of the same can be told from those of others.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use ttft_models::Network;
use ttft_reports::schema::Identity;

/// Bytes that are read at once.
const BLOCK: usize = 1 << 20;

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
        config_sha256: Some(hex(Sha256::digest(config))),
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
    Ok(Identity {
        name,
        config_sha256: Some(hex(Sha256::digest(bytes))),
        weights_sha256: weights(dir, synthetic)?,
        synthetic,
    })
}

/// Over the `.safetensors` files of a folder in the order of their names: of each its name, a zero byte, its size in 8 bytes
/// (little endian), and its bytes. Of synthetic weights, of what says how they were made.
fn weights(dir: &Path, synthetic: bool) -> Result<Option<String>> {
    let cannot = |path: &Path| format!("{}: cannot read it", path.display());
    let manifest = dir.join(MANIFEST);
    if synthetic && manifest.exists() {
        return Ok(Some(hex(Sha256::digest(fs::read(&manifest).with_context(|| cannot(&manifest))?))));
    }
    let entries = fs::read_dir(dir).with_context(|| cannot(dir))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    let mut hash = Sha256::new();
    let mut block = vec![0; BLOCK];
    for path in &files {
        let mut file = File::open(path).with_context(|| cannot(path))?;
        let size = file.metadata().with_context(|| cannot(path))?.len();
        hash.update(path.file_name().unwrap_or_default().to_string_lossy().as_bytes());
        hash.update([0]);
        hash.update(size.to_le_bytes());
        loop {
            let n = file.read(&mut block).with_context(|| cannot(path))?;
            if n == 0 {
                break;
            }
            hash.update(&block[..n]);
        }
    }
    Ok((!files.is_empty()).then(|| hex(hash.finalize())))
}

/// In lower-case hexadecimal.
pub fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
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
        let expected = hex(Sha256::digest(b"a.safetensors\0\x02\0\0\0\0\0\0\0xy"));
        assert_eq!(weights(dir.path(), false).unwrap(), Some(expected.clone()));
        write("b.safetensors", "");
        let more = weights(dir.path(), false).unwrap();
        assert_ne!(more, Some(expected));
        // Of synthetic weights the manifest alone.
        write(MANIFEST, "{\"seed\": 0}");
        assert_eq!(weights(dir.path(), true).unwrap(), Some(hex(Sha256::digest(b"{\"seed\": 0}"))));
        assert_eq!(weights(dir.path(), false).unwrap(), more);
    }
}
