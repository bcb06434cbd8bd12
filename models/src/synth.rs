//! Synthetic weights: folders of the exact shapes of a network, a predictor or a pair, with random but ordinary values.
//!
//! Every value is a function of (seed, network, tensor, index) alone: 16 bits of a ChaCha8 stream per tensor, scaled
//! by one f32 product, rounded to the storage type. Nothing depends on the machine, the threads or the order of writing.
//! A folder appears under its name complete or not at all.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use half::{f16, slice::HalfFloatSliceExt};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use serde::{Deserialize, Serialize};
use ttft_kernels::DType;

use crate::{
    config::{NetworkConfig, Role, TensorSpec},
    error::{Error, Result},
    json,
    kv_prediction::layout,
    publish::{self, Replaces, flushed, json_text, write_json},
    weights, zoo,
};

pub use crate::publish::{Made, abandon};

/// Version of the generator: raised whenever any byte it writes changes.
const GENERATOR: u32 = 1;

/// Values per unit of work: 4 MiB of random bits.
const CHUNK: u64 = 2 << 20;

/// Values of a sampled block.
const SAMPLE: u64 = 2048;

/// Receives (bytes written, bytes in all); called from several threads.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// A folder of synthetic weights, to be written or verified.
#[derive(Clone, Debug)]
pub struct Spec {
    name: String,
    dtype: DType,
    seed: u64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Network(NetworkConfig),
    Predictor { base: NetworkConfig, source: NetworkConfig, layout: layout::Layout },
}

/// `synth.json`: what a folder claims to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    generator: String,
    version: u32,
    name: String,
    dtype: String,
    seed: u64,
    file: String,
    header_bytes: u64,
    bytes: u64,
    /// FNV-1a of the sampled blocks, hexadecimal.
    sampled: String,
}

impl Spec {
    /// A network of the zoo.
    ///
    /// # Errors
    /// [`Error::UnknownName`].
    pub fn network(name: &str, dtype: DType, seed: u64) -> Result<Spec> {
        Ok(Spec::custom(name, zoo::network(name)?, dtype, seed))
    }

    /// Any network. The name is part of what its values are drawn from.
    pub fn custom(name: &str, config: NetworkConfig, dtype: DType, seed: u64) -> Spec {
        Spec { name: name.to_owned(), dtype, seed, kind: Kind::Network(config) }
    }

    /// The predictor of a KV prediction of the zoo.
    ///
    /// # Errors
    /// [`Error::UnknownName`].
    pub fn predictor(name: &str, dtype: DType, seed: u64) -> Result<Spec> {
        let p = zoo::prediction(name)?;
        let aux = p.aux.map(zoo::network).transpose()?;
        Ok(Spec::custom_predictor(&p.predictor, zoo::network(p.base)?, aux, p.layout, dtype, seed))
    }

    /// The predictor of any base, and of its auxiliary if there is one. The name is part of what its values are drawn from.
    pub fn custom_predictor(
        name: &str,
        base: NetworkConfig,
        aux: Option<NetworkConfig>,
        layout: layout::Layout,
        dtype: DType,
        seed: u64,
    ) -> Spec {
        let source = aux.unwrap_or_else(|| base.clone());
        Spec { name: name.to_owned(), dtype, seed, kind: Kind::Predictor { base, source, layout } }
    }

    /// The parts of a KV prediction of the zoo, by the name of their folder: three, or two where layers are shared.
    ///
    /// # Errors
    /// [`Error::UnknownName`].
    pub fn pair(name: &str, dtype: DType, seed: u64) -> Result<Vec<(&'static str, Spec)>> {
        let p = zoo::prediction(name)?;
        let mut parts = vec![("base", Spec::network(p.base, dtype, seed)?)];
        if let Some(aux) = p.aux {
            parts.push(("aux", Spec::network(aux, dtype, seed)?));
        }
        parts.push(("predictor", Spec::predictor(name, dtype, seed)?));
        Ok(parts)
    }

    fn tensors(&self) -> Vec<TensorSpec> {
        match &self.kind {
            Kind::Network(c) => c.tensors(),
            Kind::Predictor { base, source, layout } => layout.tensors(base, source),
        }
    }

    fn file_name(&self) -> &'static str {
        match self.kind {
            Kind::Network(_) => "model.safetensors",
            Kind::Predictor { .. } => "predictor.safetensors",
        }
    }

    fn config_json(&self) -> serde_json::Value {
        match &self.kind {
            Kind::Network(c) => c.to_json(match self.dtype {
                DType::F32 => "float32",
                DType::F16 => "float16",
                DType::BF16 => "bfloat16",
            }),
            Kind::Predictor { base, source, layout } => layout.to_json(base, source),
        }
    }

    /// The network's configuration; `None` of a predictor.
    pub fn network_config(&self) -> Option<&NetworkConfig> {
        match &self.kind {
            Kind::Network(config) => Some(config),
            Kind::Predictor { .. } => None,
        }
    }

    /// What `config.json` and `synth.json` of its folder hold, whether it is made or not: which weights these are, in a few
    /// lines.
    ///
    /// # Errors
    /// [`Error::Json`].
    pub fn papers(&self) -> Result<[String; 2]> {
        let config = json_text(Path::new("config.json"), &self.config_json())?;
        Ok([config, json_text(Path::new("synth.json"), &Layout::new(self).manifest(self))?])
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors().iter().map(TensorSpec::elements).sum::<u64>() * self.dtype.size() as u64
    }

    /// Makes `dir` this folder: verifies what is there, or writes it.
    ///
    /// # Errors
    /// As [`pair`].
    pub fn make(&self, dir: &Path, progress: Progress<'_>) -> Result<Made> {
        make(dir, &[("", self.clone())], progress)
    }

    /// Checks that `dir` holds exactly this: manifest, configuration, header, size, and blocks of every tensor against the
    /// generator. Reads a few MB at most.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Io`], [`Error::Json`].
    pub fn verify(&self, dir: &Path) -> Result<()> {
        let layout = Layout::new(self);
        let manifest = dir.join("synth.json");
        let found: Manifest = json::load(&manifest)?;
        let expected = layout.manifest(self);
        let stale = |path: &Path, reason: String| Err(Error::Stale { path: path.to_owned(), reason });
        if found != expected {
            return stale(&manifest, format!("expected {expected:?}, found {found:?}"));
        }
        let config = dir.join("config.json");
        let found: serde_json::Value = json::load(&config)?;
        if found != self.config_json() {
            return stale(&config, "the configuration differs".into());
        }
        let path = dir.join(self.file_name());
        let mut file = File::open(&path).map_err(Error::io(&path, "open"))?;
        let size = file.metadata().map_err(Error::io(&path, "read the size"))?.len();
        if size != expected.bytes {
            return stale(&path, format!("expected {} bytes, found {size}", expected.bytes));
        }
        let mut read = |at: u64, len: usize| -> Result<Vec<u8>> {
            let mut b = vec![0; len];
            file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut b)).map_err(Error::io(&path, "read"))?;
            Ok(b)
        };
        if read(0, layout.header.len())? != layout.header {
            return stale(&path, "the header differs".into());
        }
        let mut buffers = Buffers::default();
        for (t, start, n) in layout.samples() {
            let expected = t.generate(self.dtype, start, n, &mut buffers);
            let at = layout.header.len() as u64 + t.at + start * self.dtype.size() as u64;
            if read(at, expected.len())? != expected {
                return stale(&path, format!("tensor '{}' differs in values {start}..{}", t.name, start + n));
            }
        }
        Ok(())
    }

    /// Writes the files of this folder into `dir`, which exists.
    fn write(&self, dir: &Path, progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let layout = Layout::new(self);
        let path = dir.join(self.file_name());
        let io = |doing| Error::io(&path, doing);
        let mut file = File::create(&path).map_err(io("create"))?;
        file.write_all(&layout.header).map_err(io("write"))?;
        file.set_len(layout.bytes(self.dtype)).map_err(io("extend"))?;

        let work: Vec<(&Generator, u64, u64)> = layout
            .tensors
            .iter()
            .flat_map(|t| (0..t.elements).step_by(CHUNK as usize).map(move |s| (t, s, CHUNK.min(t.elements - s))))
            .collect();
        let next = AtomicUsize::new(0);
        let stop = AtomicBool::new(false);
        let failed: Mutex<Option<std::io::Error>> = Mutex::new(None);
        let worker = || {
            let run = || -> std::io::Result<()> {
                let mut file = File::options().write(true).open(&path)?;
                let mut buffers = Buffers::default();
                while let Some((t, start, n)) = work.get(next.fetch_add(1, Relaxed))
                    && !stop.load(Relaxed)
                {
                    let bytes = t.generate(self.dtype, *start, *n, &mut buffers);
                    let at = layout.header.len() as u64 + t.at + start * self.dtype.size() as u64;
                    file.seek(SeekFrom::Start(at))?;
                    file.write_all(bytes)?;
                    progress(bytes.len() as u64);
                }
                Ok(())
            };
            if let Err(e) = run() {
                stop.store(true, Relaxed);
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8)).min(work.len());
        // This thread is one of them: a limit on threads makes it slower, not impossible.
        std::thread::scope(|s| {
            let more = |_| std::thread::Builder::new().spawn_scoped(s, worker).is_ok();
            let _ = (1..threads).all(more);
            worker();
        });
        if let Some(e) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(io("write")(e));
        }
        flushed(&file).map_err(io("flush"))?;

        write_json(&dir.join("config.json"), &self.config_json())?;
        write_json(&dir.join("synth.json"), &layout.manifest(self))
    }
}

/// Makes `dir` the folders base/, aux/ (if there is an auxiliary) and predictor/ of a KV prediction of the zoo: verifies what is
/// there, or writes it.
///
/// # Errors
/// [`Error::UnknownName`], [`Error::DiskSpace`], [`Error::Occupied`]: something else is at `dir`; [`Error::Io`].
pub fn pair(name: &str, dtype: DType, seed: u64, dir: &Path, progress: Progress<'_>) -> Result<Made> {
    make(dir, &Spec::pair(name, dtype, seed)?, progress)
}

/// A network or a pair of the zoo by name; see [`Spec::make`] and [`pair`].
///
/// # Errors
/// As [`pair`]; [`Error::UnknownName`] lists the names of both.
pub fn named(name: &str, dtype: DType, seed: u64, dir: &Path, progress: Progress<'_>) -> Result<Made> {
    if zoo::prediction(name).is_ok() {
        return pair(name, dtype, seed, dir, progress);
    }
    if !zoo::NETWORKS.contains(&name) {
        let known = zoo::names().collect();
        return Err(Error::UnknownName { what: "network or pair", name: name.to_owned(), known });
    }
    Spec::network(name, dtype, seed)?.make(dir, progress)
}

fn make(dir: &Path, parts: &[(&'static str, Spec)], progress: Progress<'_>) -> Result<Made> {
    let total: u64 = parts.iter().map(|(_, s)| s.bytes()).sum();
    let verified = |dir: &Path| parts.iter().try_for_each(|(sub, s)| s.verify(&dir.join(sub)));
    publish::folder(dir, total, Replaces::Synthetic, verified, |temp| {
        let done = AtomicU64::new(0);
        let report = |n: u64| progress(done.fetch_add(n, Relaxed) + n, total);
        for (sub, spec) in parts {
            let to = temp.join(sub);
            std::fs::create_dir_all(&to).map_err(Error::io(&to, "create"))?;
            spec.write(&to, &report)?;
        }
        Ok(())
    })
}

/// A safetensors file: header, and where each tensor comes from.
struct Layout {
    /// Length, JSON, padding.
    header: Vec<u8>,
    tensors: Vec<Generator>,
}

impl Layout {
    fn new(spec: &Spec) -> Layout {
        let depth = match &spec.kind {
            Kind::Network(c) => c.layers.len(),
            Kind::Predictor { .. } => 1,
        };
        let specs = spec.tensors();
        let (header, places) = weights::header(spec.dtype, specs.iter().map(|t| (&*t.name, &*t.shape)));
        let generator = |(t, at): (TensorSpec, u64)| {
            let stream = fnv(&[spec.name.as_bytes(), b"/", t.name.as_bytes()]);
            let (centre, spread) = scale(&t, depth);
            Generator { elements: t.elements(), name: t.name, at, seed: spec.seed, stream, centre, spread }
        };
        let tensors = specs.into_iter().zip(places).map(generator).collect();
        Layout { header, tensors }
    }

    fn bytes(&self, dtype: DType) -> u64 {
        let elements: u64 = self.tensors.iter().map(|t| t.elements).sum();
        self.header.len() as u64 + elements * dtype.size() as u64
    }

    /// Blocks (tensor, first value, values) that stand for the whole: both ends and the middle of every tensor.
    fn samples(&self) -> impl Iterator<Item = (&Generator, u64, u64)> {
        self.tensors.iter().flat_map(|t| {
            let n = SAMPLE.min(t.elements);
            // Even, as two values share a word of the stream.
            let mut starts = [0, (t.elements - n) / 2, t.elements - n].map(|s| s & !1).to_vec();
            starts.dedup();
            starts.into_iter().map(move |s| (t, s, n.min(t.elements - s)))
        })
    }

    fn manifest(&self, spec: &Spec) -> Manifest {
        let mut buffers = Buffers::default();
        let mut sampled = FNV_START;
        for (t, start, n) in self.samples() {
            sampled = fnv_on(sampled, t.generate(spec.dtype, start, n, &mut buffers));
        }
        Manifest {
            generator: "ttft synth".into(),
            version: GENERATOR,
            name: spec.name.clone(),
            dtype: spec.dtype.name().into(),
            seed: spec.seed,
            file: spec.file_name().into(),
            header_bytes: self.header.len() as u64,
            bytes: self.bytes(spec.dtype),
            sampled: format!("{sampled:016x}"),
        }
    }
}

/// Centre and half-width of a tensor's uniform distribution. Only sums, products and square roots, which IEEE 754 rounds
/// the same everywhere.
fn scale(t: &TensorSpec, depth: usize) -> (f32, f32) {
    // A uniform distribution of half-width sqrt(3) s has standard deviation s.
    let inputs = *t.shape.last().expect("a tensor has a dimension") as f64;
    match t.role {
        Role::Embedding | Role::Classifier => (0.0, (3f64.sqrt() * 0.05) as f32),
        Role::Norm => (1.0, 0.1),
        Role::Bias => (0.0, 0.1),
        // Keeps the variance of what a projection reads.
        Role::Projection => (0.0, (3.0 / inputs).sqrt() as f32),
        // Two such additions per layer keep the residual stream's variance of order one.
        Role::Residual => (0.0, (3.0 / (inputs * 2.0 * depth as f64)).sqrt() as f32),
        // The initialisation of the reference.
        Role::Predictor(inputs) => (0.0, (1.0 / inputs as f64).sqrt() as f32),
    }
}

/// The source of one tensor's values.
struct Generator {
    name: String,
    elements: u64,
    /// Offset of the tensor in the data of its file, bytes.
    at: u64,
    seed: u64,
    stream: u64,
    centre: f32,
    spread: f32,
}

/// Reused from block to block.
#[derive(Default)]
struct Buffers {
    bits: Vec<u8>,
    values: Vec<f32>,
    halves: Vec<f16>,
    bytes: Vec<u8>,
}

impl Generator {
    /// Values `start..start + n` in `dtype`, little-endian; `start` is even.
    fn generate<'b>(&self, dtype: DType, start: u64, n: u64, b: &'b mut Buffers) -> &'b [u8] {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        key[8..18].copy_from_slice(b"ttft synth");
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(self.stream);
        rng.set_word_pos(u128::from(start / 2));
        let n = n as usize;
        b.bits.resize(2 * n, 0);
        rng.fill_bytes(&mut b.bits);

        b.values.clear();
        b.values.extend(b.bits.as_chunks::<2>().0.iter().map(|x| {
            // Odd multiples of 2^-16 in (-1, 1): symmetric, never 0, exact in f32.
            let u = (f32::from(u16::from_le_bytes(*x)) - 32767.5) * (1.0 / 32768.0);
            self.centre + self.spread * u
        }));
        b.bytes.clear();
        match dtype {
            DType::F32 => b.bytes.extend_from_slice(bytemuck::cast_slice(&b.values)),
            DType::F16 => {
                b.halves.resize(n, f16::ZERO);
                b.halves.convert_from_f32_slice(&b.values);
                b.bytes.extend_from_slice(bytemuck::cast_slice(&b.halves));
            }
            DType::BF16 => b.bytes.extend(b.values.iter().flat_map(|x| bf16_bits(*x).to_le_bytes())),
        }
        &b.bytes
    }
}

/// Nearest bfloat16, ties to even, of a finite value; without the branches of the general conversion.
fn bf16_bits(x: f32) -> u16 {
    let b = x.to_bits();
    ((b + 0x7fff + ((b >> 16) & 1)) >> 16) as u16
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv_on(h: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(h, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn fnv(parts: &[&[u8]]) -> u64 {
    parts.iter().fold(FNV_START, |h, p| fnv_on(h, p))
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn generator(stream: u64, elements: u64, centre: f32, spread: f32) -> Generator {
        Generator { name: "t".into(), elements, at: 0, seed: 7, stream, centre, spread }
    }

    #[test]
    fn blocks_join_up_however_they_are_cut() {
        let g = generator(3, 10_001, 0.0, 1.0);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let whole = g.generate(dtype, 0, g.elements, &mut Buffers::default()).to_vec();
            let mut b = Buffers::default();
            for step in [2, 64, 1000, 9998] {
                let mut joined = Vec::new();
                for start in (0..g.elements).step_by(step) {
                    joined.extend_from_slice(g.generate(dtype, start, (step as u64).min(g.elements - start), &mut b));
                }
                assert_eq!(joined, whole, "{dtype} in steps of {step}");
            }
        }
    }

    /// The stream is part of the format: these values must never change without a new [`GENERATOR`].
    #[test]
    fn values_are_pinned() {
        let spec = Spec::network("OE270M", DType::BF16, 0).unwrap();
        let layout = Layout::new(&spec);
        assert_eq!(layout.header.len() % 64, 0);
        assert_eq!(layout.manifest(&spec).sampled, "ebe828507cfbe24c");
        let other = Spec::network("OE270M", DType::BF16, 1).unwrap();
        assert_ne!(Layout::new(&other).manifest(&other).sampled, layout.manifest(&spec).sampled);
    }

    #[test]
    fn values_are_ordinary() {
        let g = generator(9, 1 << 20, 0.0, 3f32.sqrt());
        let bytes = g.generate(DType::F32, 0, g.elements, &mut Buffers::default()).to_vec();
        let v: Vec<f64> = bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
        let mean = v.iter().sum::<f64>() / v.len() as f64;
        let variance = v.iter().map(|x| x * x).sum::<f64>() / v.len() as f64;
        // Standard errors: 1/1024 of the mean, 0.9/1024 of the variance.
        assert!(mean.abs() < 5e-3, "{mean}");
        assert!((variance - 1.0).abs() < 5e-3, "{variance}");
        let next: f64 = v.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / v.len() as f64;
        assert!(next.abs() < 5e-3, "neighbours correlate: {next}");
    }

    #[test]
    fn the_short_bf16_rounding_is_the_general_one() {
        for bits in (0..u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            if x.is_finite() {
                assert_eq!(bf16_bits(x), bf16::from_f32(x).to_bits(), "{x}");
            }
        }
    }
}
