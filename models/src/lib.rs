//! Language models, KV prediction (arXiv 2410.08391) and token pruning on memory-mapped weights.
//!
//! [`plan`] allocates everything that a run needs; [`Inference::first_token`] then is the time to first token, and
//! nothing else. What a run does is a list of steps, a [`schedule`], that is made from shapes alone: it is run, [`cost`]
//! counts it, [`memory_of`] sizes it. A [`Network`] is a description ([`config`]) and its weights. [`synth`] writes weights
//! of the same shapes, [`zoo`] holds the networks and pairs of the paper; [`gguf`] converts files of llama.cpp.

pub mod activations;
pub mod arch;
pub mod cache;
pub mod config;
pub mod cost;
mod decoder;
mod engine;
mod error;
pub mod fit;
pub mod gguf;
mod inference;
pub mod json;
pub mod kv_prediction;
mod loan;
mod memory;
pub mod network;
pub mod pipeline;
pub mod prompts;
pub mod pruning;
mod publish;
mod run;
pub mod schedule;
mod sizes;
mod spec;
pub mod synth;
mod system;
pub mod weights;
pub mod zoo;

pub use cache::NamedTensor;
pub use config::NetworkConfig;
pub use error::{Error, Result};
pub use inference::{Chosen, Inference, PhaseTime, PhaseTimes, Ran};
pub use kv_prediction::{KvPrediction, predictor::Predictor};
pub use memory::{MemoryPlan, memory, memory_of, memory_of_lending, memory_of_scoring};
pub use network::Network;
pub use prompts::Prompts;
pub use pruning::{Pruned, Pruning};
pub use run::{plan, plan_lending, plan_scoring};
pub use spec::{Extent, Phase, Precision, RunSpec};
pub use system::System;
pub use ttft_kernels::DType;
