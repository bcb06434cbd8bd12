//! Alibaba's Qwen2 and Qwen2.5: Llama with biases on queries, keys and values (reference: transformers
//! `modeling_qwen2.py`).

use crate::{
    config::{Biases, Family, Names},
    decoder::{self, QWEN},
};

/// The family.
pub static FAMILY: Family = Family {
    name: "qwen2",
    calls_itself: &[("Qwen2ForCausalLM", "qwen2")],
    parse: |path, value| decoder::parse(path, value, &FAMILY, &QWEN, Biases { qkv: true, ..Biases::default() }, false),
    write: decoder::write,
    names: Names { prefix: "model.", head: "lm_head", parts: decoder::PARTS },
};
