//! Meta's Llama, and what is built alike: SmolLM2, and Mistral where its window is switched off (reference: transformers
//! `modeling_llama.py`, `modeling_mistral.py`).

use std::path::Path;

use serde_json::Value;

use crate::{
    config::{Biases, Family, Names, NetworkConfig},
    decoder::{self, Defaults, LLAMA, Window},
    error::Result,
};

/// The family.
pub static FAMILY: Family = Family {
    name: "llama",
    calls_itself: &[("LlamaForCausalLM", "llama"), MISTRAL_NAMES],
    parse,
    write,
    names: Names { prefix: "model.", head: "lm_head", parts: decoder::PARTS },
};

const MISTRAL_NAMES: (&str, &str) = ("MistralForCausalLM", "mistral");

/// Mistral's own values for what a file leaves out: its window is on unless the file says null.
const MISTRAL: Defaults = Defaults {
    ffn: 14336,
    kv_heads: Some(8),
    context: 131_072,
    window: Window::Number,
    attention_bias: false,
    mlp_bias: false,
    ..LLAMA
};

fn parse(path: &Path, value: Value) -> Result<NetworkConfig> {
    let (architecture, model_type) = (value.pointer("/architectures/0"), value.get("model_type"));
    let mistral =
        architecture.is_some_and(|a| a == MISTRAL_NAMES.0) || model_type.is_some_and(|m| m == MISTRAL_NAMES.1);
    let defaults = if mistral { &MISTRAL } else { &LLAMA };
    decoder::parse(path, value, &FAMILY, defaults, Biases::default(), false)
}

fn write(c: &NetworkConfig) -> Value {
    let mut v = decoder::write(c);
    v["attention_bias"] = c.biases.out.into();
    v["mlp_bias"] = c.biases.ffn.into();
    v
}
