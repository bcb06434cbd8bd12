//! What a run is asked for, and the names of its parts.

use ttft_kernels::DType;

use crate::error::{Error, Result};

/// Type of activations between operations, and of caches. Weights stay as they are in their file; the residual stream
/// and all sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 32-bit.
    F32,
    /// bfloat16.
    Bf16,
}

impl Precision {
    /// Name, as on the command line.
    pub const fn name(self) -> &'static str {
        self.dtype().name()
    }

    /// The storage type.
    pub const fn dtype(self) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }

    /// BF16 for BF16 weights, else F32.
    pub fn natural(weights: DType) -> Precision {
        if weights == DType::BF16 { Precision::Bf16 } else { Precision::F32 }
    }
}

/// What is computed for the first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Only what the first token needs: the head and, beyond keys and values, the last layer for the last position
    /// alone; nothing of the auxiliary after its last keys and values that the predictor reads.
    FirstToken,
    /// Every layer and the head at every position, as the paper's FLOPs formula counts.
    FullNetwork,
}

impl Extent {
    /// Name, as in records.
    pub const fn name(self) -> &'static str {
        match self {
            Extent::FirstToken => "first_token",
            Extent::FullNetwork => "full_network",
        }
    }
}

/// A run: `batch` prompts of `prompt` tokens, `generate` tokens each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RunSpec {
    /// Sequences B.
    pub batch: usize,
    /// Tokens N of each prompt.
    pub prompt: usize,
    /// Tokens to generate, the first included.
    pub generate: usize,
    /// Type of activations and caches.
    pub precision: Precision,
    /// What is computed.
    pub extent: Extent,
}

/// Bounds on a run: above anything that fits a machine, and low enough that no size overflows u64.
const MAX_BATCH: usize = 1 << 20;
const MAX_POSITIONS: usize = 1 << 24;

impl RunSpec {
    /// Cache positions: the last generated token is never fed back.
    pub fn positions(&self) -> usize {
        self.prompt.saturating_add(self.generate).saturating_sub(1)
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (what, found, max) in [
            ("batch", self.batch, MAX_BATCH),
            ("prompt", self.prompt, MAX_POSITIONS),
            ("generate", self.generate, MAX_POSITIONS),
        ] {
            if !(1..=max).contains(&found) {
                return Err(Error::Spec { what, expected: format!("1 to {max}"), found: found as u64 });
            }
        }
        Ok(())
    }
}

/// A part of the time to first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Choosing which tokens of the prompt to keep.
    Selection,
    /// A network alone, on the whole prompt or what is kept of it.
    Prefill,
    /// The auxiliary network on all but the base's last tokens, or where it chooses tokens on all of them.
    Auxiliary,
    /// The auxiliary network, and behind it the layers of the base that may run before it ends.
    Pipelined,
    /// The auxiliary network on tokens that it decodes, to choose those of the prompt by.
    LookAhead,
    /// The base's first layers on the whole prompt, in place of an auxiliary.
    SharedLayers,
    /// The maps from what the auxiliary or the shared layers leave to the base's cache.
    Prediction,
    /// The base on the last token, or on a few.
    BaseStep,
}

impl Phase {
    /// All of them, each where it runs if others do too.
    pub const ALL: [Phase; 8] = [
        Phase::Auxiliary,
        Phase::Pipelined,
        Phase::Selection,
        Phase::LookAhead,
        Phase::Prefill,
        Phase::SharedLayers,
        Phase::Prediction,
        Phase::BaseStep,
    ];

    /// Name, as in records.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Selection => "selection",
            Phase::Prefill => "prefill",
            Phase::Auxiliary => "auxiliary",
            Phase::Pipelined => "pipelined",
            Phase::SharedLayers => "shared_layers",
            Phase::Prediction => "prediction",
            Phase::BaseStep => "base_step",
            Phase::LookAhead => "look_ahead",
        }
    }
}
