//! Tensors of memory-mapped safetensors files, used in place.

mod map;

use std::{
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use ttft_kernels::{DType, Mat, Weight};

pub use map::MappedFile;

use crate::{Error, Result, json};

#[cfg(target_endian = "big")]
compile_error!("safetensors files are little-endian and used in place");

/// Longest header accepted, as in the safetensors library.
const MAX_HEADER: u64 = 100_000_000;

#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes of the file.
    at: Range<usize>,
}

/// The tensors of one file, or of a folder's shards, by name. While it lives, looking something up reads no more than that: around
/// each of a network's norms a system would read up to some megabytes of matrices.
#[derive(Debug)]
pub struct Tensors {
    origin: PathBuf,
    files: Vec<Arc<MappedFile>>,
    entries: HashMap<String, Entry>,
}

impl Drop for Tensors {
    fn drop(&mut self) {
        self.files.iter().for_each(|file| file.read_singly(false));
    }
}

impl Tensors {
    /// A folder with `model.safetensors`, or with shards listed in `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::Json`], [`Error::Header`], [`Error::MissingTensor`].
    pub fn folder(dir: &Path) -> Result<Tensors> {
        let single = dir.join("model.safetensors");
        if single.exists() {
            return Tensors::file(&single);
        }
        let index = dir.join("model.safetensors.index.json");
        if !index.exists() {
            return Err(Error::MissingFile {
                path: single,
                wanted_by: "a model folder holds it, or model.safetensors.index.json and shards".into(),
            });
        }
        Tensors::shards(dir, &index)
    }

    fn shards(dir: &Path, index: &Path) -> Result<Tensors> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        let Index { weight_map } = json::load(index)?;
        let mut names: Vec<&String> = weight_map.values().collect();
        names.sort();
        names.dedup();
        let mut all = Tensors { origin: dir.to_owned(), files: Vec::new(), entries: HashMap::new() };
        for name in names {
            // A shard is a file of this folder: an index cannot point elsewhere.
            if Path::new(name).file_name() != Some(name.as_ref()) {
                return Err(Error::Config {
                    path: index.to_owned(),
                    key: "weight_map".into(),
                    expected: "names of files in this folder".into(),
                    found: format!("'{name}'"),
                });
            }
            let path = dir.join(name);
            if !path.exists() {
                return Err(Error::MissingFile { path, wanted_by: format!("{} lists it", index.display()) });
            }
            let mut shard = Tensors::file(&path)?;
            let file = all.files.len();
            all.files.append(&mut shard.files);
            for (tensor, entry) in shard.entries.drain() {
                if weight_map.get(&tensor) == Some(name) {
                    all.entries.insert(tensor, Entry { file, ..entry });
                }
            }
        }
        for (tensor, shard) in &weight_map {
            if !all.entries.contains_key(tensor) {
                return Err(Error::MissingTensor { path: dir.join(shard), tensor: tensor.clone() });
            }
        }
        Ok(all)
    }

    /// One safetensors file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Header`], [`Error::Dtype`].
    pub fn file(path: &Path) -> Result<Tensors> {
        let file = MappedFile::open(path)?;
        file.read_singly(true);
        let entries = parse(path, file.bytes())?;
        Ok(Tensors { origin: path.to_owned(), files: vec![Arc::new(file)], entries })
    }

    /// The file, or the folder of shards.
    pub fn origin(&self) -> &Path {
        &self.origin
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, tensor: &str) -> bool {
        self.entries.contains_key(tensor)
    }

    /// A matrix `[n, k]`. It stays in its file, unless it lies there at an odd place: then it is copied.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Dtype`], [`Error::Shape`], [`Error::Misaligned`].
    pub fn matrix(&self, tensor: &str, n: usize, k: usize) -> Result<Matrix> {
        let (file, entry, dtype) = self.get(tensor, &[n, k])?;
        let mapped = Bytes::Mapped { file: Arc::clone(file), at: entry.at.clone() };
        let mut m = Matrix { bytes: mapped, dtype, n, k };
        if m.try_view().is_none() {
            let copy = Copied::of(m.bytes()).ok_or_else(|| Error::Misaligned {
                path: file.path().to_owned(),
                tensor: tensor.to_owned(),
                offset: entry.at.start,
                align: dtype.size(),
                bytes: entry.at.len(),
            })?;
            m.bytes = Bytes::Copied(Arc::new(copy));
        }
        Ok(m)
    }

    /// A vector `[n]`, copied to f32: norm weights and biases, which are small.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Dtype`], [`Error::Shape`].
    pub fn vector(&self, tensor: &str, n: usize) -> Result<Vec<f32>> {
        let (file, entry, dtype) = self.get(tensor, &[n])?;
        let bytes = &file.bytes()[entry.at.clone()];
        Ok(match dtype {
            DType::F32 => widened(bytes, |x: f32| x),
            DType::F16 => widened(bytes, f16::to_f32),
            DType::BF16 => widened(bytes, bf16::to_f32),
        })
    }

    fn get(&self, tensor: &str, shape: &[usize]) -> Result<(&Arc<MappedFile>, &Entry, DType)> {
        let entry = self
            .entries
            .get(tensor)
            .ok_or_else(|| Error::MissingTensor { path: self.origin.clone(), tensor: tensor.to_owned() })?;
        let file = &self.files[entry.file];
        let dtype = match entry.dtype {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => {
                return Err(Error::Dtype {
                    path: file.path().to_owned(),
                    tensor: tensor.to_owned(),
                    found: other.to_string(),
                });
            }
        };
        if entry.shape != shape {
            return Err(Error::Shape {
                path: file.path().to_owned(),
                tensor: tensor.to_owned(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        Ok((file, entry, dtype))
    }
}

/// Bytes at an address that suits elements of any type.
#[derive(Debug)]
struct Copied {
    words: Vec<u64>,
    len: usize,
}

impl Copied {
    /// None if there is no memory for it.
    fn of(bytes: &[u8]) -> Option<Copied> {
        let mut words = Vec::new();
        words.try_reserve_exact(bytes.len().div_ceil(8)).ok()?;
        let (whole, rest) = bytes.as_chunks::<8>();
        words.extend(whole.iter().map(|b| u64::from_ne_bytes(*b)));
        if !rest.is_empty() {
            let mut last = [0; 8];
            last[..rest.len()].copy_from_slice(rest);
            words.push(u64::from_ne_bytes(last));
        }
        Some(Copied { words, len: bytes.len() })
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }
}

#[derive(Clone, Debug)]
enum Bytes {
    Mapped { file: Arc<MappedFile>, at: Range<usize> },
    Copied(Arc<Copied>),
}

/// A weight matrix `[n, k]` inside a mapped file, or a copy of it.
#[derive(Clone, Debug)]
pub struct Matrix {
    bytes: Bytes,
    dtype: DType,
    n: usize,
    k: usize,
}

impl Matrix {
    fn try_view(&self) -> Option<Weight<'_>> {
        let b = self.bytes();
        Some(match self.dtype {
            DType::F32 => Weight::F32(Mat::new(bytemuck::try_cast_slice(b).ok()?, self.n, self.k)),
            DType::F16 => Weight::F16(Mat::new(bytemuck::try_cast_slice(b).ok()?, self.n, self.k)),
            DType::BF16 => Weight::BF16(Mat::new(bytemuck::try_cast_slice(b).ok()?, self.n, self.k)),
        })
    }

    /// The kernel's view of it.
    pub fn view(&self) -> Weight<'_> {
        self.try_view().expect("alignment was checked when the tensor was looked up, and its bytes do not move")
    }

    /// Storage type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Reads a byte of every page, so that it is in memory and mapped.
    pub(crate) fn warm(&self) {
        let sum = self.bytes().iter().step_by(4096).fold(0u8, |a, b| a ^ b);
        std::hint::black_box(sum);
    }

    /// Its bytes, as in the file.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped { file, at } => &file.bytes()[at.clone()],
            Bytes::Copied(copy) => copy.bytes(),
        }
    }

    /// Bytes of the copy, if the file holds it at a place that the kernels cannot read; else 0.
    pub fn copied_bytes(&self) -> u64 {
        match &self.bytes {
            Bytes::Mapped { .. } => 0,
            Bytes::Copied(copy) => copy.len as u64,
        }
    }
}

fn widened<T: bytemuck::AnyBitPattern>(bytes: &[u8], f: impl Fn(T) -> f32) -> Vec<f32> {
    bytes.chunks_exact(size_of::<T>()).map(|b| f(bytemuck::pod_read_unaligned(b))).collect()
}

/// A file's data starts at a multiple of this, so that rows of weights align with cache lines.
const ALIGN: usize = 64;

/// What stands before the data of a safetensors file that holds these tensors (name, shape), one after the other, of one
/// type; and where in the data each begins.
pub(crate) fn header<'a>(
    dtype: DType,
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> (Vec<u8>, Vec<u64>) {
    let size = dtype.size() as u64;
    let dtype = match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
    };
    let (mut at, mut places, mut infos) = (0, Vec::new(), Vec::new());
    for (name, shape) in tensors {
        let end = at + shape.iter().map(|n| *n as u64).product::<u64>() * size;
        let data_offsets = (at as usize, end as usize);
        infos.push((name.to_owned(), TensorInfo { dtype, shape: shape.to_vec(), data_offsets }));
        places.push(at);
        at = end;
    }
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let meta = Metadata::new(Some(format), infos).expect("the offsets are contiguous by construction");
    let mut json = serde_json::to_vec(&meta).expect("plain names and numbers");
    json.resize((json.len() + 8).next_multiple_of(ALIGN) - 8, b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    (header, places)
}

/// The number of tensors that a safetensors file holds, by a header that is checked as when weights are loaded; `path` is
/// for messages.
///
/// # Errors
/// [`Error::Header`], [`Error::Dtype`].
pub fn count(path: &Path, file: &[u8]) -> Result<usize> {
    Ok(parse(path, file)?.len())
}

/// Checks everything that a header says against the file's length; nothing is trusted.
fn parse(path: &Path, bytes: &[u8]) -> Result<HashMap<String, Entry>> {
    let bad = |reason: String| Error::Header { path: path.to_owned(), reason };
    if let Some(what) = json::stand_in(bytes).filter(|_| bytes.starts_with(b"version ")) {
        return Err(bad(what.into()));
    }
    let Some((len, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(bad(format!("expected at least 8 bytes, found {}", bytes.len())));
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER {
        return Err(bad(format!("expected a header of at most {MAX_HEADER} bytes, found {len}")));
    }
    // `len` is at most 1e8, so it fits usize.
    let Some((header, data)) = rest.split_at_checked(len as usize) else {
        return Err(bad(format!("the header should be {len} bytes long, the file ends after {}", rest.len())));
    };
    let meta: Metadata = serde_json::from_slice(header).map_err(|e| diagnose(path, header, &e))?;
    if meta.data_len() != data.len() {
        return Err(bad(format!("expected {} bytes of tensors, found {}", meta.data_len(), data.len())));
    }
    let start = bytes.len() - data.len();
    Ok(meta
        .tensors()
        .into_iter()
        .map(|(name, t)| {
            let (a, b) = t.data_offsets;
            (name, Entry { file: 0, dtype: t.dtype, shape: t.shape.clone(), at: start + a..start + b })
        })
        .collect())
}

/// Why a header did not parse: an unknown dtype is named with its tensor.
fn diagnose(path: &Path, header: &[u8], e: &serde_json::Error) -> Error {
    let value: Option<serde_json::Map<String, serde_json::Value>> = serde_json::from_slice(header).ok();
    for (name, t) in value.iter().flatten() {
        if let Some(dtype) = t.get("dtype")
            && serde_json::from_value::<Dtype>(dtype.clone()).is_err()
        {
            return Error::Dtype { path: path.to_owned(), tensor: name.clone(), found: dtype.to_string() };
        }
    }
    Error::Header { path: path.to_owned(), reason: e.to_string() }
}
