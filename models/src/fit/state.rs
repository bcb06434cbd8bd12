//! What an interrupted fit leaves: a safetensors file of its sums, with what they belong to.

use std::{borrow::Cow, collections::HashMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, View, serialize_to_file};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::sums::Sums;
use crate::{
    error::{Error, Result},
    publish::flushed,
};

/// In the file's metadata: which fit, how much of it, and in which form.
const OF: &str = "ttft_fit";
const WINDOWS: &str = "windows";
const FORM: &str = "form";
/// Raised whenever what the numbers mean changes.
const VERSION: &str = "2";
const SHA256: &str = "sha256";

/// Numbers as they lie in memory, which is how the format has them.
struct Numbers<'a> {
    dtype: Dtype,
    shape: [usize; 1],
    bytes: &'a [u8],
}

impl View for Numbers<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes.into()
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes the sums beside `path` and gives them its name.
pub(super) fn save(path: &Path, of: &Value, windows: usize, sums: &mut Sums) -> Result<()> {
    let (shifts, numbers) = sums.parts();
    let mut hash = Sha256::new_with_prefix(windows.to_le_bytes());
    shifts.iter().for_each(|(_, x)| hash.update(bytemuck::cast_slice::<f32, u8>(x)));
    numbers.iter().for_each(|(_, x)| hash.update(bytemuck::cast_slice::<f64, u8>(x)));
    let hash = hex(hash);
    let about = [(OF, of.to_string()), (WINDOWS, windows.to_string()), (FORM, VERSION.into()), (SHA256, hash)];
    let about: HashMap<String, String> = about.map(|(name, value)| (name.to_owned(), value)).into();
    let shifts = shifts.iter().map(|(name, x)| (name, Dtype::F32, x.len(), bytemuck::cast_slice(x)));
    let numbers = numbers.iter().map(|(name, x)| (name, Dtype::F64, x.len(), bytemuck::cast_slice(x)));
    let tensors = shifts.chain(numbers).map(|(name, dtype, n, bytes)| (name, Numbers { dtype, shape: [n], bytes }));
    let temp = path.with_extension("new");
    let io = |e: std::io::Error| Error::io(&temp, "write")(e);
    serialize_to_file(tensors, Some(about), &temp).map_err(|e| io(std::io::Error::other(e)))?;
    fs::File::options().write(true).open(&temp).and_then(|f| flushed(&f)).map_err(io)?;
    fs::rename(&temp, path).map_err(Error::io(path, "move into place"))
}

/// Fills the sums from a file's content; how many windows they hold. `path` stands in errors.
pub(super) fn restore(path: &Path, file: &[u8], of: &Value, sums: &mut Sums) -> Result<u32> {
    let refuse = |reason: String| Error::State { path: path.to_owned(), reason };
    let broken = |what: &str| refuse(format!("{what}: the file is broken"));
    let (_, header) = SafeTensors::read_metadata(file).map_err(|e| broken(&e.to_string()))?;
    let about = header.metadata().clone().unwrap_or_default();
    let text = |name: &str| about.get(name).ok_or_else(|| broken(&format!("it does not say {name}")));
    if text(FORM)? != VERSION {
        return Err(refuse("another version of ttft wrote it".into()));
    }
    let saved: Value = serde_json::from_str(text(OF)?).map_err(|e| broken(&e.to_string()))?;
    if let Some(what) = unlike(&saved, of, "") {
        return Err(refuse(format!("it belongs to a fit with another {what}")));
    }
    let windows: u32 = text(WINDOWS)?.parse().map_err(|_| broken("its number of windows is none"))?;
    let tensors = SafeTensors::deserialize(file).map_err(|e| broken(&e.to_string()))?;
    let get = |name: &str, dtype: Dtype, n: usize| {
        let t = tensors.tensor(name).map_err(|_| broken(&format!("no tensor '{name}'")))?;
        if (t.dtype(), t.shape()) != (dtype, &[n][..]) {
            return Err(broken(&format!("tensor '{name}' of {} {:?}", t.dtype(), t.shape())));
        }
        Ok(t.data())
    };
    let (shifts, numbers) = sums.parts();
    let mut hash = Sha256::new_with_prefix((windows as usize).to_le_bytes());
    for (name, to) in shifts {
        let saved = get(&name, Dtype::F32, to.len())?;
        hash.update(saved);
        bytemuck::cast_slice_mut(to).copy_from_slice(saved);
    }
    for (name, to) in numbers {
        let saved = get(&name, Dtype::F64, to.len())?;
        hash.update(saved);
        bytemuck::cast_slice_mut(to).copy_from_slice(saved);
    }
    if *text(SHA256)? != hex(hash) {
        return Err(broken("its sums are not those that were written"));
    }
    Ok(windows)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where two descriptions differ first.
fn unlike(a: &Value, b: &Value, at: &str) -> Option<String> {
    match (a, b) {
        _ if a == b => None,
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            let null = Value::Null;
            keys.into_iter().find_map(|key| {
                let at = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                unlike(a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), &at)
            })
        }
        _ => Some(format!("{at}: {a}, where {b} is asked for")),
    }
}
