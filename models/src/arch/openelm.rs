//! Apple's OpenELM (arXiv 2404.14619; reference: apple/corenet `general_gpt.py`).

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    config::{Biases, Family, LayerShape, Names, NetworkConfig, Part, Rope, bad, bounds, make_divisible, within},
    error::Result,
    json,
};

/// The family.
pub static FAMILY: Family = Family {
    name: "openelm",
    calls_itself: &[("OpenELMForCausalLM", "openelm")],
    parse,
    write,
    names: Names { prefix: "transformer.", head: "lm_head", parts: PARTS },
};

/// The base inside a checkpoint of the reference.
pub const CORENET_BASE: Names = Names { prefix: "base.", head: "base.classifier", parts: PARTS };
/// The auxiliary inside a checkpoint of the reference.
pub const CORENET_AUXILIARY: Names = Names { prefix: "auxiliary.", head: "auxiliary.classifier", parts: PARTS };

const PARTS: &[(Part, &str)] = &[
    (Part::Embedding, "token_embeddings"),
    (Part::AttnNorm, "layers.{i}.attn_norm"),
    (Part::Qkv, "layers.{i}.attn.qkv_proj"),
    (Part::QueryNorm, "layers.{i}.attn.q_norm"),
    (Part::KeyNorm, "layers.{i}.attn.k_norm"),
    (Part::Out, "layers.{i}.attn.out_proj"),
    (Part::FfnNorm, "layers.{i}.ffn_norm"),
    (Part::GateUp, "layers.{i}.ffn.proj_1"),
    (Part::Down, "layers.{i}.ffn.proj_2"),
    (Part::Norm, "norm"),
];

/// Fixed in the reference, absent from `config.json`.
pub const EPS: f32 = 1e-6;

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

fn parse(path: &Path, value: serde_json::Value) -> Result<NetworkConfig> {
    let raw: Raw = json::fields(path, value)?;
    let bad = |key: &str, expected: String, found: String| bad(path, key, expected, found);
    let within = |key: &str, v: u64, max: u64| within(path, key, v, max);
    let count = within("num_transformer_layers", raw.num_transformer_layers, bounds::LAYERS)?;
    let dim = within("model_dim", raw.model_dim, bounds::DIM)?;
    let head_dim = within("head_dim", raw.head_dim, bounds::HEAD_DIM)?;
    if head_dim % 2 != 0 {
        return Err(bad("head_dim", "an even number (RoPE pairs features)".into(), head_dim.to_string()));
    }
    let vocab = within("vocab_size", raw.vocab_size, bounds::VOCAB)?;
    let divisor = within("ffn_dim_divisor", raw.ffn_dim_divisor, bounds::FFN)?;
    within("num_gqa_groups", raw.num_gqa_groups, bounds::HEADS)?;
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
            let expected = format!("a divisor of the {query_heads} query heads");
            return Err(bad(&at("num_kv_heads"), expected, kv_heads.to_string()));
        }
        let m = raw.ffn_multipliers[i];
        let v = m * dim as f64;
        // Written so that NaN fails.
        if !(v >= 1.0 && v <= bounds::FFN as f64) {
            return Err(bad(&at("ffn_multipliers"), format!("1/{dim} to {}/{dim}", bounds::FFN), m.to_string()));
        }
        layers.push(LayerShape { query_heads, kv_heads, ffn: make_divisible(v, divisor), ffn_multiplier: m });
    }
    Ok(NetworkConfig {
        family: &FAMILY,
        vocab,
        dim,
        head_dim,
        layers,
        ffn_dim_divisor: divisor,
        eps: EPS,
        qk_norm: raw.normalize_qk_projections,
        biases: Biases::default(),
        tied: raw.share_input_output_layers,
        rope: Rope::new(theta),
        max_context: raw.max_context_length.min(bounds::VOCAB) as usize,
    })
}

fn write(c: &NetworkConfig) -> serde_json::Value {
    let each = |f: fn(&LayerShape) -> usize| c.layers.iter().map(|l| f(l) as u64).collect();
    let raw = Raw {
        vocab_size: c.vocab as u64,
        model_dim: c.dim as u64,
        head_dim: c.head_dim as u64,
        num_transformer_layers: c.layers.len() as u64,
        num_query_heads: each(|l| l.query_heads),
        num_kv_heads: each(|l| l.kv_heads),
        ffn_multipliers: c.layers.iter().map(|l| l.ffn_multiplier).collect(),
        ffn_dim_divisor: c.ffn_dim_divisor as u64,
        num_gqa_groups: c.layers.first().map_or(1, |l| l.query_heads / l.kv_heads) as u64,
        normalize_qk_projections: c.qk_norm,
        share_input_output_layers: c.tied,
        rope_freq_constant: c.rope.theta,
        max_context_length: c.max_context as u64,
        activation_fn_name: default_activation(),
        normalization_layer_name: default_norm(),
        ffn_with_glu: true,
    };
    let mut v = serde_json::to_value(raw).expect("plain numbers and strings");
    v["rope_max_length"] = (2 * c.max_context as u64).into();
    v
}
