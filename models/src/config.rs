//! `config.json` of an OpenELM, and the shapes that follow from it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, arch, json};

/// Bounds on what a configuration may ask for: far above any real model, and low enough that no product of two of them
/// times a batch overflows.
mod bounds {
    pub const LAYERS: u64 = 1024;
    pub const DIM: u64 = 1 << 16;
    pub const HEAD_DIM: u64 = 1024;
    pub const HEADS: u64 = 1024;
    pub const FFN: u64 = 1 << 20;
    pub const VOCAB: u64 = 1 << 22;
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
    /// The multiplier of the model's width that F was made from.
    pub ffn_multiplier: f64,
}

/// An OpenELM: everything that its `config.json` says and that this crate uses.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenElmConfig {
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
    /// Query heads per key/value head, as the file states it.
    pub gqa_groups: usize,
    /// RMSNorm on queries and keys, before RoPE.
    pub qk_norm: bool,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Base of the RoPE frequencies.
    pub rope_theta: f64,
    /// Longest context trained on; stated, not enforced.
    pub max_context: usize,
}

/// The keys of `config.json` that matter, as Hugging Face spells them.
#[derive(Deserialize, Serialize)]
struct Raw {
    vocab_size: u64,
    model_dim: u64,
    head_dim: u64,
    num_transformer_layers: u64,
    num_query_heads: Vec<u64>,
    num_kv_heads: Vec<u64>,
    ffn_multipliers: Vec<f64>,
    ffn_dim_divisor: u64,
    num_gqa_groups: u64,
    normalize_qk_projections: bool,
    share_input_output_layers: bool,
    #[serde(default = "default_theta")]
    rope_freq_constant: f64,
    #[serde(default = "default_context")]
    max_context_length: u64,
    #[serde(default = "default_activation")]
    activation_fn_name: String,
    #[serde(default = "default_norm")]
    normalization_layer_name: String,
    #[serde(default = "default_true")]
    ffn_with_glu: bool,
}

fn default_theta() -> f64 {
    10000.0
}
fn default_context() -> u64 {
    2048
}
fn default_activation() -> String {
    "swish".into()
}
fn default_norm() -> String {
    "rms_norm".into()
}
fn default_true() -> bool {
    true
}

/// `v` rounded to a multiple of `m`, never below 90% of `v`: as the reference computes it, in f64.
pub(crate) fn make_divisible(v: f64, m: usize) -> usize {
    let n = m.max(((v + m as f64 / 2.0) as usize) / m * m);
    if (n as f64) < 0.9 * v { n + m } else { n }
}

impl OpenElmConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], [`Error::UnknownArchitecture`], [`Error::Config`].
    pub fn load(path: &Path) -> Result<OpenElmConfig> {
        OpenElmConfig::of(path, json::load(path)?)
    }

    /// Parses the content of a `config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`OpenElmConfig::load`].
    pub fn parse(path: &Path, text: &[u8]) -> Result<OpenElmConfig> {
        OpenElmConfig::of(path, json::parse(path, text)?)
    }

    fn of(path: &Path, value: serde_json::Value) -> Result<OpenElmConfig> {
        arch::check(path, &value)?;
        let raw: Raw = json::fields(path, value)?;
        let bad = |key: &str, expected: String, found: String| Error::Config {
            path: path.to_owned(),
            key: key.to_owned(),
            expected,
            found,
        };
        let within = |key: &str, v: u64, max: u64| {
            if (1..=max).contains(&v) { Ok(v as usize) } else { Err(bad(key, format!("1 to {max}"), v.to_string())) }
        };
        let count = within("num_transformer_layers", raw.num_transformer_layers, bounds::LAYERS)?;
        let dim = within("model_dim", raw.model_dim, bounds::DIM)?;
        let head_dim = within("head_dim", raw.head_dim, bounds::HEAD_DIM)?;
        if head_dim % 2 != 0 {
            return Err(bad("head_dim", "an even number (RoPE pairs features)".into(), head_dim.to_string()));
        }
        let vocab = within("vocab_size", raw.vocab_size, bounds::VOCAB)?;
        let divisor = within("ffn_dim_divisor", raw.ffn_dim_divisor, bounds::FFN)?;
        let gqa_groups = within("num_gqa_groups", raw.num_gqa_groups, bounds::HEADS)?;
        for (key, len) in [
            ("num_query_heads", raw.num_query_heads.len()),
            ("num_kv_heads", raw.num_kv_heads.len()),
            ("ffn_multipliers", raw.ffn_multipliers.len()),
        ] {
            if len != count {
                return Err(bad(key, format!("one entry for each of {count} layers"), format!("{len} entries")));
            }
        }
        for (key, found, expected) in [
            ("activation_fn_name", &raw.activation_fn_name, "swish"),
            ("normalization_layer_name", &raw.normalization_layer_name, "rms_norm"),
        ] {
            if found != expected {
                return Err(bad(key, format!("'{expected}'"), format!("'{found}'")));
            }
        }
        if !raw.ffn_with_glu {
            return Err(bad("ffn_with_glu", "true".into(), "false".into()));
        }
        let theta = raw.rope_freq_constant;
        if !(theta.is_finite() && theta > 0.0) {
            return Err(bad("rope_freq_constant", "a positive number".into(), theta.to_string()));
        }
        let mut layers = Vec::with_capacity(count);
        for i in 0..count {
            let at = |key: &str| format!("{key}[{i}]");
            let query_heads = within(&at("num_query_heads"), raw.num_query_heads[i], bounds::HEADS)?;
            let kv_heads = within(&at("num_kv_heads"), raw.num_kv_heads[i], bounds::HEADS)?;
            if query_heads % kv_heads != 0 {
                return Err(bad(
                    &at("num_kv_heads"),
                    format!("a divisor of the {query_heads} query heads"),
                    kv_heads.to_string(),
                ));
            }
            let m = raw.ffn_multipliers[i];
            let v = m * dim as f64;
            // Written so that NaN fails.
            if !(v >= 1.0 && v <= bounds::FFN as f64) {
                return Err(bad(&at("ffn_multipliers"), format!("1/{dim} to {}/{dim}", bounds::FFN), m.to_string()));
            }
            layers.push(LayerShape { query_heads, kv_heads, ffn: make_divisible(v, divisor), ffn_multiplier: m });
        }
        Ok(OpenElmConfig {
            vocab,
            dim,
            head_dim,
            layers,
            ffn_dim_divisor: divisor,
            gqa_groups,
            qk_norm: raw.normalize_qk_projections,
            tied: raw.share_input_output_layers,
            rope_theta: theta,
            max_context: raw.max_context_length.min(bounds::VOCAB) as usize,
        })
    }

    /// A `config.json` that [`OpenElmConfig::parse`] reads back to the same value.
    pub fn to_json(&self, torch_dtype: &str) -> serde_json::Value {
        let each = |f: fn(&LayerShape) -> usize| self.layers.iter().map(|l| f(l) as u64).collect();
        let raw = Raw {
            vocab_size: self.vocab as u64,
            model_dim: self.dim as u64,
            head_dim: self.head_dim as u64,
            num_transformer_layers: self.layers.len() as u64,
            num_query_heads: each(|l| l.query_heads),
            num_kv_heads: each(|l| l.kv_heads),
            ffn_multipliers: self.layers.iter().map(|l| l.ffn_multiplier).collect(),
            ffn_dim_divisor: self.ffn_dim_divisor as u64,
            num_gqa_groups: self.gqa_groups as u64,
            normalize_qk_projections: self.qk_norm,
            share_input_output_layers: self.tied,
            rope_freq_constant: self.rope_theta,
            max_context_length: self.max_context as u64,
            activation_fn_name: default_activation(),
            normalization_layer_name: default_norm(),
            ffn_with_glu: true,
        };
        let mut v = serde_json::to_value(raw).expect("plain numbers and strings");
        v["architectures"] = serde_json::json!([arch::OPENELM.architecture]);
        v["model_type"] = arch::OPENELM.model_type.into();
        v["rope_max_length"] = (2 * self.max_context as u64).into();
        v["torch_dtype"] = torch_dtype.into();
        v["use_cache"] = true.into();
        v
    }

    /// Width of layer `i`'s queries, `H_i * d`.
    pub fn q_dim(&self, i: usize) -> usize {
        self.layers[i].query_heads * self.head_dim
    }

    /// Width of layer `i`'s keys (and of its values), `K_i * d`.
    pub fn kv_dim(&self, i: usize) -> usize {
        self.layers[i].kv_heads * self.head_dim
    }

    /// Every tensor, in the order of the forward pass. The one list that loading, counting and synthesis agree on.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut t =
            vec![TensorSpec::new("token_embeddings.weight".into(), vec![self.vocab, self.dim], Role::Embedding)];
        for (i, l) in self.layers.iter().enumerate() {
            let mut add = |name: &str, shape: Vec<usize>, role| {
                t.push(TensorSpec::new(format!("layers.{i}.{name}.weight"), shape, role));
            };
            let (q, kv) = (self.q_dim(i), self.kv_dim(i));
            add("attn_norm", vec![self.dim], Role::Norm);
            add("attn.qkv_proj", vec![q + 2 * kv, self.dim], Role::Projection);
            if self.qk_norm {
                add("attn.q_norm", vec![self.head_dim], Role::Norm);
                add("attn.k_norm", vec![self.head_dim], Role::Norm);
            }
            add("attn.out_proj", vec![self.dim, q], Role::Residual);
            add("ffn_norm", vec![self.dim], Role::Norm);
            add("ffn.proj_1", vec![2 * l.ffn, self.dim], Role::Projection);
            add("ffn.proj_2", vec![self.dim, l.ffn], Role::Residual);
        }
        t.push(TensorSpec::new("norm.weight".into(), vec![self.dim], Role::Norm));
        if !self.tied {
            t.push(TensorSpec::new("classifier.weight".into(), vec![self.vocab, self.dim], Role::Classifier));
        }
        t
    }

    /// Parameters; a tied embedding counts once.
    pub fn params(&self) -> u64 {
        self.tensors().iter().map(TensorSpec::elements).sum()
    }
}

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
    /// A separate output head.
    Classifier,
    /// Weight or bias of a predictor that reads this many features.
    Predictor(usize),
}

/// Name (without the model's prefix), shape and role of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Such as `layers.0.attn.qkv_proj.weight`.
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
