//! OpenELM networks, KV prediction (arXiv 2410.08391) and token pruning on memory-mapped weights.
//!
//! [`plan`] allocates everything that a run needs; [`Inference::first_token`] then is the time to first token, and
//! nothing else. [`Network`] offers the steps of a pass (embed, layer, head) and [`Predictor`] its own (one base layer
//! each), which [`kv_prediction`] puts in order. [`cost`] counts what they compute, [`synth`] writes weights of the same
//! shapes, [`zoo`] holds the networks and pairs of the paper.

pub mod arch;
pub mod cache;
pub mod config;
pub mod cost;
mod decoder;
mod error;
mod json;
pub mod kv_prediction;
pub mod prompts;
pub mod pruning;
mod run;
pub mod synth;
pub mod weights;

pub use arch::openelm::Network;
pub use cache::NamedTensor;
pub use config::OpenElmConfig;
pub use error::{Error, Result};
pub use kv_prediction::{KvPrediction, predictor::Predictor, zoo};
pub use prompts::Prompts;
pub use pruning::{Pruned, Pruning};
pub use run::{
    Extent, Inference, MemoryPlan, Phase, PhaseTime, PhaseTimes, Precision, RunSpec, System, memory, memory_of, plan,
};
pub use ttft_kernels::DType;
