//! A network as data: what the forward pass, the counts and the synthetic weights read. Families fill it in ([`crate::arch`]).

use std::path::Path;

use crate::error::{Error, Result};

/// Bounds on what a configuration may ask for: far above any real model, and low enough that no product of two of them
/// times a batch overflows.
pub mod bounds {
    /// Layers.
    pub const LAYERS: u64 = 1024;
    /// Width of the residual stream.
    pub const DIM: u64 = 1 << 16;
    /// Features of a head.
    pub const HEAD_DIM: u64 = 1024;
    /// Heads of a layer.
    pub const HEADS: u64 = 1024;
    /// Width of a feed-forward network.
    pub const FFN: u64 = 1 << 20;
    /// Rows of the embedding table.
    pub const VOCAB: u64 = 1 << 22;
}

/// A family of networks: how its `config.json` is read and written, and how its tensors are called.
#[derive(Debug)]
pub struct Family {
    /// Its name, that of its file.
    pub name: &'static str,
    /// What its configurations call themselves: an entry of `architectures`, and the `model_type` that goes with it. The
    /// first is what is written.
    pub calls_itself: &'static [(&'static str, &'static str)],
    /// Reads the keys of a `config.json`, whose path is for messages.
    pub parse: fn(&Path, serde_json::Value) -> Result<NetworkConfig>,
    /// Writes the keys that `parse` reads, and those that the family's own code wants.
    pub write: fn(&NetworkConfig) -> serde_json::Value,
    /// Its tensors, as Hugging Face calls them.
    pub names: Names,
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.name == other.name
    }
}

/// A tensor's place in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Part {
    Embedding,
    AttnNorm,
    /// Queries, keys and values in one tensor, in this order.
    Qkv,
    Query,
    Key,
    Value,
    QueryNorm,
    KeyNorm,
    /// Attention's output projection.
    Out,
    FfnNorm,
    /// What is gated by its SiLU, and what it is multiplied with, in one tensor.
    GateUp,
    Gate,
    Up,
    Down,
    /// The last norm.
    Norm,
    /// A separate output head.
    Head,
}

/// How a checkpoint calls the tensors of a network, and so which of them are stacked in one.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Before every name but the head's.
    pub prefix: &'static str,
    /// The separate output head, where there is one.
    pub head: &'static str,
    /// The other parts that the family has, `{i}` standing for the layer, without `.weight` or `.bias`.
    pub parts: &'static [(Part, &'static str)],
}

impl Names {
    /// The name of a part of layer `i`, without `.weight` or `.bias`.
    fn of(&self, part: Part, i: usize) -> Option<String> {
        if part == Part::Head {
            return Some(self.head.to_owned());
        }
        let (_, name) = self.parts.iter().find(|(p, _)| *p == part)?;
        Some(format!("{}{}", self.prefix, name.replace("{i}", &i.to_string())))
    }
}

/// Shapes of one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerShape {
    /// Query heads H.
    pub query_heads: usize,
    /// Key/value heads K; divides H.
    pub kv_heads: usize,
    /// Width F of the feed-forward network.
    pub ffn: usize,
    /// F over the model's width, before it was rounded.
    pub ffn_multiplier: f64,
}

/// Which projections add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// Attention's output.
    pub out: bool,
    /// All of the feed-forward network.
    pub ffn: bool,
}

/// Rotary embedding over all features of a head, half-split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies: pair j of d features turns by `theta^(-2j/d)` from one position to the next.
    pub theta: f64,
    /// How the frequencies are changed for contexts longer than those of the first training.
    pub scaling: Option<RopeScaling>,
}

/// Llama 3's scaling of frequencies: those of wavelengths above `original / low` are divided by the factor, those below
/// `original / high` stay, and those between go over from one to the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeScaling {
    /// `factor`.
    pub factor: f64,
    /// `low_freq_factor`.
    pub low: f64,
    /// `high_freq_factor`.
    pub high: f64,
    /// `original_max_position_embeddings`: the context of the first training.
    pub original: f64,
}

impl Rope {
    /// Frequencies as they come, not scaled.
    pub fn new(theta: f64) -> Rope {
        Rope { theta, scaling: None }
    }

    /// The frequency of each pair of `head_dim` features: by how much it turns from one position to the next.
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let plain = (0..head_dim / 2).map(|j| self.theta.powf(-2.0 * j as f64 / head_dim as f64));
        let scaled = |inverse: f64| {
            let Some(s) = self.scaling else { return inverse };
            let wavelength = 2.0 * std::f64::consts::PI / inverse;
            if wavelength > s.original / s.low {
                inverse / s.factor
            } else if wavelength < s.original / s.high {
                inverse
            } else {
                let share = (s.original / wavelength - s.low) / (s.high - s.low);
                (1.0 - share) * inverse / s.factor + share * inverse
            }
        };
        plain.map(scaled).collect()
    }
}

/// A network: everything that this crate needs to know of it.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Its family: names of tensors, and which of them are stacked.
    pub family: &'static Family,
    /// Rows V of the embedding table.
    pub vocab: usize,
    /// Width D of the residual stream.
    pub dim: usize,
    /// Features d of a head; even.
    pub head_dim: usize,
    /// One entry per layer.
    pub layers: Vec<LayerShape>,
    /// F is a multiple of this.
    pub ffn_dim_divisor: usize,
    /// Added to the mean square by every RMSNorm.
    pub eps: f32,
    /// RMSNorm on queries and keys, before RoPE.
    pub qk_norm: bool,
    /// Biases of projections.
    pub biases: Biases,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Positions.
    pub rope: Rope,
    /// Longest context trained on; stated, not enforced.
    pub max_context: usize,
}

/// `v` rounded to a multiple of `m`, never below 90% of `v`: as the reference of OpenELM computes it, in f64.
pub(crate) fn make_divisible(v: f64, m: usize) -> usize {
    let n = m.max(((v + m as f64 / 2.0) as usize) / m * m);
    if (n as f64) < 0.9 * v { n + m } else { n }
}

impl NetworkConfig {
    /// Width of layer `i`'s queries, `H_i * d`.
    pub fn q_dim(&self, i: usize) -> usize {
        self.layers[i].query_heads * self.head_dim
    }

    /// Width of layer `i`'s keys (and of its values), `K_i * d`.
    pub fn kv_dim(&self, i: usize) -> usize {
        self.layers[i].kv_heads * self.head_dim
    }

    /// Shape and role of a part of layer `i`: `[out, in]`, or `[n]`.
    fn shape(&self, part: Part, i: usize) -> (Vec<usize>, Role) {
        let (dim, d, v) = (self.dim, self.head_dim, self.vocab);
        let l = self.layers.get(i);
        let (q, kv, f) = l.map_or((0, 0, 0), |l| (l.query_heads * d, l.kv_heads * d, l.ffn));
        match part {
            Part::Embedding => (vec![v, dim], Role::Embedding),
            Part::Head => (vec![v, dim], Role::Classifier),
            Part::AttnNorm | Part::FfnNorm | Part::Norm => (vec![dim], Role::Norm),
            Part::QueryNorm | Part::KeyNorm => (vec![d], Role::Norm),
            Part::Qkv => (vec![q + 2 * kv, dim], Role::Projection),
            Part::Query => (vec![q, dim], Role::Projection),
            Part::Key | Part::Value => (vec![kv, dim], Role::Projection),
            Part::GateUp => (vec![2 * f, dim], Role::Projection),
            Part::Gate | Part::Up => (vec![f, dim], Role::Projection),
            Part::Out => (vec![dim, q], Role::Residual),
            Part::Down => (vec![dim, f], Role::Residual),
        }
    }

    fn has_bias(&self, part: Part) -> bool {
        match part {
            Part::Qkv | Part::Query | Part::Key | Part::Value => self.biases.qkv,
            Part::Out => self.biases.out,
            Part::GateUp | Part::Gate | Part::Up | Part::Down => self.biases.ffn,
            _ => false,
        }
    }

    /// The tensors of a part of layer `i` under `names`: its weight, and its bias if it has one. None if the family
    /// stacks it otherwise, or the network lacks it.
    pub(crate) fn part(&self, names: &Names, part: Part, i: usize) -> Vec<TensorSpec> {
        let absent = match part {
            Part::QueryNorm | Part::KeyNorm => !self.qk_norm,
            Part::Head => self.tied,
            _ => false,
        };
        let Some(name) = names.of(part, i).filter(|_| !absent) else { return Vec::new() };
        let (shape, role) = self.shape(part, i);
        let bias = self.has_bias(part).then(|| TensorSpec::new(format!("{name}.bias"), vec![shape[0]], Role::Bias));
        [TensorSpec::new(format!("{name}.weight"), shape, role)].into_iter().chain(bias).collect()
    }

    /// Every tensor by its name, in the order of the forward pass. What is counted, synthesised and loaded.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let of = |part, i| self.part(&self.family.names, part, i);
        let mut t = of(Part::Embedding, 0);
        for i in 0..self.layers.len() {
            t.extend(LAYER.into_iter().flat_map(|part| of(part, i)));
        }
        t.extend([Part::Norm, Part::Head].into_iter().flat_map(|part| of(part, 0)));
        t
    }

    /// Parameters of the embedding and of the first `layers` layers: of all, if there are no more.
    pub fn layer_params(&self, layers: usize) -> u64 {
        let layers = self.layers[..layers.min(self.layers.len())].to_vec();
        NetworkConfig { layers, tied: true, ..self.clone() }.params() - self.dim as u64
    }

    /// Parameters; a tied embedding counts once.
    pub fn params(&self) -> u64 {
        self.tensors().iter().map(TensorSpec::elements).sum()
    }
}

/// The parts of a layer, stacked or not.
const LAYER: [Part; 13] = [
    Part::AttnNorm,
    Part::Qkv,
    Part::Query,
    Part::Key,
    Part::Value,
    Part::QueryNorm,
    Part::KeyNorm,
    Part::Out,
    Part::FfnNorm,
    Part::GateUp,
    Part::Gate,
    Part::Up,
    Part::Down,
];

/// What a tensor does, for its initial scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The token embedding table.
    Embedding,
    /// An RMSNorm weight.
    Norm,
    /// A projection that reads the normalised residual stream.
    Projection,
    /// A projection that is added to the residual stream.
    Residual,
    /// What a projection adds.
    Bias,
    /// A separate output head.
    Classifier,
    /// Weight or bias of a predictor that reads this many features.
    Predictor(usize),
}

/// Name, shape and role of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Such as `transformer.layers.0.attn.qkv_proj.weight`.
    pub name: String,
    /// `[out, in]`, or `[n]`.
    pub shape: Vec<usize>,
    /// What it does.
    pub role: Role,
}

impl TensorSpec {
    pub(crate) fn new(name: String, shape: Vec<usize>, role: Role) -> TensorSpec {
        TensorSpec { name, shape, role }
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product()
    }
}

/// `v`, if it is 1 to `max`.
pub(crate) fn within(path: &Path, key: &str, v: u64, max: u64) -> Result<usize> {
    if (1..=max).contains(&v) { Ok(v as usize) } else { Err(bad(path, key, format!("1 to {max}"), v.to_string())) }
}

/// Refuses the value of a key.
pub(crate) fn bad(path: &Path, key: &str, expected: String, found: String) -> Error {
    Error::Config { path: path.to_owned(), key: key.to_owned(), expected, found }
}
