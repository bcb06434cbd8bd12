//! `config.json` from metadata. What would change the arithmetic and is not known here is refused by its key and value.

use serde_json::{Value as Json, json};

use super::{
    container::{Container, Value},
    tokenizer,
};
use crate::{DType, Result};

/// An architecture of llama.cpp that this crate runs.
pub(super) struct Architecture {
    /// Its name in `general.architecture`, and before its keys.
    pub name: &'static str,
    /// Entry of `architectures` on the Hub.
    class: &'static str,
    /// Whether rows of queries and keys lie as for rotation of neighbours: llama.cpp's own order for its first architecture.
    pub permuted: bool,
}

const ARCHITECTURES: [Architecture; 3] = [
    Architecture { name: "llama", class: "LlamaForCausalLM", permuted: true },
    Architecture { name: "qwen2", class: "Qwen2ForCausalLM", permuted: false },
    Architecture { name: "qwen3", class: "Qwen3ForCausalLM", permuted: false },
];

/// Keys of an architecture that are read.
const READ: [&str; 12] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.original_context_length",
];

/// Keys that say nothing about the arithmetic.
const SILENT: [&str; 2] = ["vocab_size", "tensor_data_layout"];

/// The architecture of a file.
///
/// # Errors
/// [`crate::Error::Gguf`].
pub(super) fn architecture(c: &Container<'_>) -> Result<&'static Architecture> {
    let found = c.text("general.architecture")?;
    match ARCHITECTURES.iter().find(|a| Some(a.name) == found) {
        Some(architecture) => Ok(architecture),
        None => {
            let known = ARCHITECTURES.map(|a| a.name).join(", ");
            let found = found.map_or("missing".to_owned(), |f| format!("'{f}'"));
            c.refuse(format!("general.architecture is {found}; known: {known}"))
        }
    }
}

/// The `config.json` of a file.
///
/// # Errors
/// [`crate::Error::Gguf`].
pub(super) fn config(c: &Container<'_>, dtype: DType) -> Result<Json> {
    let a = architecture(c)?;
    let key = |name: &str| format!("{}.{name}", a.name);
    others(c, a)?;
    let given = |name: &str| c.number(&key(name));
    let number = |name: &str| match given(name)? {
        Some(n) => Ok(n),
        None => c.refuse(format!("{} is missing", key(name))),
    };
    let (dim, heads) = (number("embedding_length")?, number("attention.head_count")?);
    if heads == 0 {
        return c.refuse(format!("{}: expected 1 or more, found 0", key("attention.head_count")));
    }
    let head_dim = given("attention.key_length")?.unwrap_or(dim / heads);
    for name in ["attention.value_length", "rope.dimension_count"] {
        match given(name)? {
            Some(n) if n != head_dim => {
                return c.refuse(format!("{}: expected {head_dim}, as keys have features, found {n}", key(name)));
            }
            _ => {}
        }
    }
    let Some(embedding) = c.tensor("token_embd.weight") else {
        return c.refuse("the tensor 'token_embd.weight' is missing");
    };
    let Some(eps) = c.real(&key("attention.layer_norm_rms_epsilon"))? else {
        return c.refuse(format!("{} is missing", key("attention.layer_norm_rms_epsilon")));
    };
    // llama.cpp's own default.
    let theta = c.real(&key("rope.freq_base"))?.unwrap_or(10000.0);
    let mut config = json!({
        "architectures": [a.class],
        "model_type": a.name,
        "hidden_act": "silu",
        "hidden_size": dim,
        "intermediate_size": number("feed_forward_length")?,
        "num_hidden_layers": number("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": given("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "max_position_embeddings": number("context_length")?,
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": c.tensor("output.weight").is_none(),
        "torch_dtype": if dtype == DType::BF16 { "bfloat16" } else { "float32" },
    });
    match a.name {
        "llama" => {
            config["attention_bias"] = c.tensor("blk.0.attn_q.bias").is_some().into();
            config["mlp_bias"] = c.tensor("blk.0.ffn_gate.bias").is_some().into();
        }
        "qwen2" => config["use_sliding_window"] = false.into(),
        _ => {
            config["attention_bias"] = c.tensor("blk.0.attn_q.bias").is_some().into();
            config["use_sliding_window"] = false.into();
        }
    }
    if let Some(scaling) = scaling(c, a, head_dim, theta)? {
        config["rope_scaling"] = scaling;
    }
    if let Some(bos) = c.number("tokenizer.ggml.bos_token_id")? {
        config["bos_token_id"] = bos.into();
    }
    match &tokenizer::ends(c)?[..] {
        [] => {}
        [id] => config["eos_token_id"] = (*id).into(),
        ids => config["eos_token_id"] = ids.into(),
    }
    Ok(config)
}

/// Refuses keys of the architecture that nobody here reads, unless their value switches off what they are about.
fn others(c: &Container<'_>, a: &Architecture) -> Result<()> {
    let context = c.number(&format!("{}.context_length", a.name))?.unwrap_or(0);
    for (key, value) in c.values() {
        let Some(name) = key.strip_prefix(a.name).and_then(|k| k.strip_prefix('.')) else { continue };
        let off = match (name, value) {
            _ if READ.contains(&name) || SILENT.contains(&name) => true,
            ("rope.scaling.type", Value::Text(b"none")) => true,
            ("rope.scaling.type", Value::Text(b"linear")) => factor(c, a)? == 1.0,
            ("rope.scaling.factor" | "rope.scale_linear", _) => factor(c, a)? == 1.0,
            ("expert_count" | "expert_used_count" | "pooling_type", Value::Unsigned(0)) => true,
            ("attention.causal", Value::Bool(true)) => true,
            // A window as long as the context hides nothing.
            ("attention.sliding_window", Value::Unsigned(w)) => w == 0 || w >= context,
            _ => false,
        };
        if !off {
            return c.refuse(format!("{key} is {value}, which is not supported"));
        }
    }
    Ok(())
}

fn factor(c: &Container<'_>, a: &Architecture) -> Result<f64> {
    let key = |name: &str| format!("{}.{name}", a.name);
    Ok(c.real(&key("rope.scaling.factor"))?.or(c.real(&key("rope.scale_linear"))?).unwrap_or(1.0))
}

/// The context that Llama 3 was first trained on, and the wavelengths within it that are left as they are and slowed down.
const ORIGINAL_CONTEXT: u64 = 8192;
const HIGH_FREQ_FACTOR: f64 = 4.0;
const LOW_FREQ_FACTOR: f64 = 1.0;

/// `rope_scaling` from the divisors of frequencies that llama.cpp stores: Llama 3's formula, if that is what they are.
fn scaling(c: &Container<'_>, a: &Architecture, head_dim: u64, theta: f64) -> Result<Option<Json>> {
    let Some(tensor) = c.tensor("rope_freqs.weight") else { return Ok(None) };
    let pairs = head_dim / 2;
    if tensor.shape != [pairs as usize] || tensor.format.name != "F32" {
        return c.refuse(format!(
            "the tensor 'rope_freqs.weight': expected {pairs} values in F32, found {:?} in {}",
            tensor.shape, tensor.format.name
        ));
    }
    let divisors: Vec<f64> =
        tensor.bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect();
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    if divisors.iter().all(|d| *d == 1.0) {
        return Ok(None);
    }
    let key = format!("{}.rope.scaling.original_context_length", a.name);
    let original = c.number(&key)?.unwrap_or(ORIGINAL_CONTEXT);
    for (j, found) in divisors.iter().enumerate() {
        let wavelength = std::f64::consts::TAU * theta.powf(2.0 * j as f64 / head_dim as f64);
        let turns = original as f64 / wavelength;
        let expected = if turns > HIGH_FREQ_FACTOR {
            1.0
        } else if turns < LOW_FREQ_FACTOR {
            factor
        } else {
            let smooth = (turns - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        // Computed in F32 by whoever wrote them, from frequencies in F32: some units in the last place, which a smooth part
        // between 1/factor and 1 multiplies by the factor at most.
        let tolerance = 16.0 * f64::from(f32::EPSILON) * factor * expected;
        // Not a number is far away, too.
        if (found - expected).abs().total_cmp(&tolerance).is_gt() {
            return c.refuse(format!(
                "the tensor 'rope_freqs.weight': value {j} is {found}; Llama 3's formula with factor {factor} and an original \
                 context of {original} gives {expected}, and other formulas are not supported"
            ));
        }
    }
    Ok(Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW_FREQ_FACTOR,
        "high_freq_factor": HIGH_FREQ_FACTOR,
        "original_max_position_embeddings": original,
    })))
}
