//! Alibaba's Qwen3: queries and keys are normalised, and a head's width is given on its own (reference: transformers
//! `modeling_qwen3.py`).

use crate::{
    config::{Biases, Family, Names},
    decoder::{self, Defaults, QWEN},
};

/// The family.
pub static FAMILY: Family = Family {
    name: "qwen3",
    calls_itself: &[("Qwen3ForCausalLM", "qwen3")],
    parse: |path, value| decoder::parse(path, value, &FAMILY, &DEFAULTS, Biases::default(), true),
    write: |c| {
        let mut v = decoder::write(c);
        v["attention_bias"] = c.biases.out.into();
        v
    },
    names: Names { prefix: "model.", head: "lm_head", parts: decoder::PARTS },
};

const DEFAULTS: Defaults = Defaults { head_dim: Some(128), attention_bias: true, ..QWEN };
