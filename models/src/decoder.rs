//! The fields of `config.json` that the families of Hugging Face's decoders share, in the form before and since version 5 of
//! transformers, with a family's own values for those that are absent.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    config::{Biases, Family, LayerShape, NetworkConfig, Part, Rope, RopeScaling, bad, bounds, within},
    error::Result,
    json,
};

/// The tensors that all of these families have; a network without query and key norms lacks them.
pub(crate) const PARTS: &[(Part, &str)] = &[
    (Part::Embedding, "embed_tokens"),
    (Part::AttnNorm, "layers.{i}.input_layernorm"),
    (Part::Query, "layers.{i}.self_attn.q_proj"),
    (Part::Key, "layers.{i}.self_attn.k_proj"),
    (Part::Value, "layers.{i}.self_attn.v_proj"),
    (Part::QueryNorm, "layers.{i}.self_attn.q_norm"),
    (Part::KeyNorm, "layers.{i}.self_attn.k_norm"),
    (Part::Out, "layers.{i}.self_attn.o_proj"),
    (Part::FfnNorm, "layers.{i}.post_attention_layernorm"),
    (Part::Gate, "layers.{i}.mlp.gate_proj"),
    (Part::Up, "layers.{i}.mlp.up_proj"),
    (Part::Down, "layers.{i}.mlp.down_proj"),
    (Part::Norm, "norm"),
];

/// What a family's configuration class fills in, and what it reads at all.
pub(crate) struct Defaults {
    pub vocab: u64,
    pub hidden: u64,
    pub ffn: u64,
    pub layers: u64,
    pub heads: u64,
    /// None: as many as query heads.
    pub kv_heads: Option<u64>,
    /// None: the width over the heads.
    pub head_dim: Option<u64>,
    pub context: u64,
    pub window: Window,
    /// Whether `attention_bias` and `mlp_bias` are read.
    pub attention_bias: bool,
    pub mlp_bias: bool,
}

/// How a family says that attention sees the last so many positions alone.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Window {
    /// There is none, whatever the file says; as a number in `sliding_window` means one to whoever wrote it, it is refused
    /// unless `use_sliding_window` is false.
    Never,
    /// It is in use where `sliding_window` is a number, and where that is absent.
    Number,
    /// It is in use where `use_sliding_window` says so, from layer `max_window_layers` on.
    Switch,
}

/// Of Llama; other families say where they differ.
pub(crate) const LLAMA: Defaults = Defaults {
    vocab: 32000,
    hidden: 4096,
    ffn: 11008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    context: 2048,
    window: Window::Never,
    attention_bias: true,
    mlp_bias: true,
};

/// Of Qwen2 and Qwen3.
pub(crate) const QWEN: Defaults = Defaults {
    vocab: 151_936,
    ffn: 22016,
    kv_heads: Some(32),
    context: 32768,
    window: Window::Switch,
    attention_bias: false,
    mlp_bias: false,
    ..LLAMA
};

/// `sliding_window`, and `max_window_layers` of Qwen, where they are absent.
const WINDOW: u64 = 4096;
const WINDOW_LAYERS: u64 = 28;
/// `rope_theta` and `rms_norm_eps`, where they are absent.
const THETA: f64 = 10000.0;
const EPS: f64 = 1e-6;

/// A key that is absent, and one that is null. Both are None for most keys.
type Given<T> = Option<Option<T>>;

fn given<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Given<T>, D::Error> {
    Option::deserialize(d).map(Some)
}

#[derive(Deserialize)]
struct Raw {
    vocab_size: Option<u64>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    #[serde(default, deserialize_with = "given")]
    num_key_value_heads: Given<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: Option<u64>,
    rms_norm_eps: Option<f64>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
    rope_parameters: Option<Scaling>,
    partial_rotary_factor: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    sliding_window: Given<u64>,
    use_sliding_window: Option<bool>,
    max_window_layers: Option<u64>,
    layer_types: Option<Vec<String>>,
    quantization_config: Option<Value>,
}

#[derive(Deserialize)]
struct Scaling {
    rope_type: Option<String>,
    /// As it was called before.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
    /// Of networks whose layers differ in their positions.
    full_attention: Option<Value>,
    sliding_attention: Option<Value>,
}

/// Reads a configuration of `family`, whose projections have the biases of `biases` beside those that the file asks for.
pub(crate) fn parse(
    path: &Path,
    value: Value,
    family: &'static Family,
    defaults: &Defaults,
    biases: Biases,
    qk_norm: bool,
) -> Result<NetworkConfig> {
    let raw: Raw = json::fields(path, value)?;
    let refuse = |key: &str, expected: &str, found: String| Err(bad(path, key, expected.into(), found));
    let within = |key: &str, v: Option<u64>, default: u64, max: u64| within(path, key, v.unwrap_or(default), max);
    let count = within("num_hidden_layers", raw.num_hidden_layers, defaults.layers, bounds::LAYERS)?;
    let dim = within("hidden_size", raw.hidden_size, defaults.hidden, bounds::DIM)?;
    let ffn = within("intermediate_size", raw.intermediate_size, defaults.ffn, bounds::FFN)?;
    let vocab = within("vocab_size", raw.vocab_size, defaults.vocab, bounds::VOCAB)?;
    let query_heads = within("num_attention_heads", raw.num_attention_heads, defaults.heads, bounds::HEADS)?;
    let heads = query_heads as u64;
    let absent = defaults.kv_heads.unwrap_or(heads);
    let kv_heads = raw.num_key_value_heads.map_or(absent, |k| k.unwrap_or(heads));
    let kv_heads = within("num_key_value_heads", Some(kv_heads), heads, bounds::HEADS)?;
    if query_heads % kv_heads != 0 {
        let expected = format!("a divisor of the {query_heads} query heads");
        return refuse("num_key_value_heads", &expected, kv_heads.to_string());
    }
    let head_dim = raw.head_dim.or(defaults.head_dim);
    if head_dim.is_none() && dim % query_heads != 0 {
        let expected = format!("a multiple of the {query_heads} heads, as there is no head_dim");
        return refuse("hidden_size", &expected, dim.to_string());
    }
    let head_dim = within("head_dim", head_dim, (dim / query_heads) as u64, bounds::HEAD_DIM)?;
    if head_dim % 2 != 0 {
        return refuse("head_dim", "an even number (RoPE pairs features)", head_dim.to_string());
    }
    let eps = raw.rms_norm_eps.unwrap_or(EPS);
    if !(eps.is_finite() && eps >= 0.0) {
        return refuse("rms_norm_eps", "a number of at least 0", eps.to_string());
    }
    if let Some(act) = raw.hidden_act.as_ref().filter(|a| !["silu", "swish"].contains(&a.as_str())) {
        return refuse("hidden_act", "'silu'", format!("'{act}'"));
    }
    if let Some(q) = &raw.quantization_config {
        let method = q.get("quant_method").unwrap_or(q);
        return refuse("quantization_config", "none: weights of F32, F16 or BF16", method.to_string());
    }
    refuse_window(path, &raw, defaults.window, count)?;
    let asked = |reads: bool, bias: Option<bool>| reads && bias == Some(true);
    let attention = asked(defaults.attention_bias, raw.attention_bias);
    Ok(NetworkConfig {
        family,
        vocab,
        dim,
        head_dim,
        layers: vec![LayerShape { query_heads, kv_heads, ffn, ffn_multiplier: ffn as f64 / dim as f64 }; count],
        ffn_dim_divisor: 1,
        eps: eps as f32,
        qk_norm,
        biases: Biases {
            qkv: biases.qkv || attention,
            out: biases.out || attention,
            ffn: biases.ffn || asked(defaults.mlp_bias, raw.mlp_bias),
        },
        tied: raw.tie_word_embeddings.unwrap_or(false),
        rope: rope(path, &raw, defaults)?,
        max_context: raw.max_position_embeddings.unwrap_or(defaults.context).min(bounds::VOCAB) as usize,
    })
}

/// Refuses a window that limits what any layer's attention sees.
fn refuse_window(path: &Path, raw: &Raw, window: Window, layers: usize) -> Result<()> {
    let refuse = |key: &str, expected: &str, found: String| Err(bad(path, key, expected.into(), found));
    let types = raw.layer_types.as_deref().unwrap_or_default();
    if let Some(i) = types.iter().position(|t| t != "full_attention") {
        return refuse(&format!("layer_types[{i}]"), "'full_attention'", format!("'{}'", types[i]));
    }
    let (on, absent) = match window {
        Window::Never => (raw.use_sliding_window != Some(false), None),
        Window::Number => (true, Some(WINDOW)),
        Window::Switch => {
            let first = raw.max_window_layers.unwrap_or(WINDOW_LAYERS);
            let some = raw.layer_types.is_none() && first < layers as u64;
            (raw.use_sliding_window == Some(true) && some, Some(WINDOW))
        }
    };
    match raw.sliding_window.unwrap_or(absent).filter(|_| on) {
        Some(found) => {
            let whence = if raw.sliding_window.is_none() { ", as the file does not say" } else { "" };
            refuse("sliding_window", "null (attention to every position)", format!("{found}{whence}"))
        }
        None => Ok(()),
    }
}

/// The positions: of `rope_parameters`, or of `rope_theta` and `rope_scaling`.
fn rope(path: &Path, raw: &Raw, defaults: &Defaults) -> Result<Rope> {
    let (key, dict) = match (&raw.rope_scaling, &raw.rope_parameters) {
        (Some(s), _) => ("rope_scaling", Some(s)),
        (None, p) => ("rope_parameters", p.as_ref()),
    };
    let at = |field: &str| format!("{key}.{field}");
    let refuse = |key: &str, expected: &str, found: String| Err(bad(path, key, expected.into(), found));
    let theta = dict.and_then(|d| d.rope_theta).or(raw.rope_theta).unwrap_or(THETA);
    if !(theta.is_finite() && theta > 0.0) {
        return refuse("rope_theta", "a positive number", theta.to_string());
    }
    for (key, share) in [
        ("partial_rotary_factor".to_owned(), raw.partial_rotary_factor),
        (at("partial_rotary_factor"), dict.and_then(|d| d.partial_rotary_factor)),
    ] {
        if let Some(share) = share.filter(|s| *s != 1.0) {
            return refuse(&key, "1 (all features of a head turn)", share.to_string());
        }
    }
    let Some(d) = dict else { return Ok(Rope::new(theta)) };
    for (field, nested) in [("full_attention", &d.full_attention), ("sliding_attention", &d.sliding_attention)] {
        if let Some(nested) = nested {
            return refuse(&at(field), "the same positions in every layer", nested.to_string());
        }
    }
    let named = if d.rope_type.is_some() { "rope_type" } else { "type" };
    match d.rope_type.as_ref().or(d.r#type.as_ref()).map_or("default", |t| t) {
        "default" => Ok(Rope::new(theta)),
        // A factor of 1 changes nothing.
        "linear" if d.factor == Some(1.0) => Ok(Rope::new(theta)),
        "llama3" => {
            let positive = |field: &str, v: Option<f64>| match v {
                Some(v) if v.is_finite() && v > 0.0 => Ok(v),
                Some(v) => Err(bad(path, &at(field), "a positive number".into(), v.to_string())),
                None => Err(bad(path, &at(field), "a positive number".into(), "nothing".into())),
            };
            let context = raw.max_position_embeddings.unwrap_or(defaults.context) as f64;
            let original = d.original_max_position_embeddings.unwrap_or(context);
            let scaling = RopeScaling {
                factor: positive("factor", d.factor)?,
                low: positive("low_freq_factor", d.low_freq_factor)?,
                high: positive("high_freq_factor", d.high_freq_factor)?,
                original: positive("original_max_position_embeddings", Some(original))?,
            };
            if scaling.low >= scaling.high {
                let expected = format!("more than the low_freq_factor, {}", scaling.low);
                return refuse(&at("high_freq_factor"), &expected, scaling.high.to_string());
            }
            Ok(Rope { theta, scaling: Some(scaling) })
        }
        other => {
            let factor = d.factor.map(|f| format!(" of factor {f}")).unwrap_or_default();
            refuse(&at(named), "'default' or 'llama3'", format!("'{other}'{factor}"))
        }
    }
}

/// The fields that [`parse`] reads, in the form that every version of transformers reads.
pub(crate) fn write(c: &NetworkConfig) -> Value {
    let l = &c.layers[0];
    // The shortest decimals that are this number in f32, not those of the f64 nearest to it.
    let eps: f64 = c.eps.to_string().parse().expect("a number just printed");
    let scaling = c.rope.scaling.map(|s| {
        let whole = s.original.fract() == 0.0;
        json!({
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low,
            "high_freq_factor": s.high,
            "original_max_position_embeddings": if whole { json!(s.original as u64) } else { json!(s.original) },
        })
    });
    json!({
        "vocab_size": c.vocab,
        "hidden_size": c.dim,
        "intermediate_size": l.ffn,
        "num_hidden_layers": c.layers.len(),
        "num_attention_heads": l.query_heads,
        "num_key_value_heads": l.kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.max_context,
        "hidden_act": "silu",
        "rms_norm_eps": eps,
        "tie_word_embeddings": c.tied,
        "rope_theta": c.rope.theta,
        "rope_scaling": scaling,
    })
}
