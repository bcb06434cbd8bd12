//! What a run is, what it needs, and the trait behind which its element type disappears.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use half::bf16;
use ttft_kernels::{DType, Element, Engine, Mat};

use crate::{
    Error, KvPrediction, NamedTensor, Network, Predictor, Result,
    arch::openelm::{Activations, head_buffer},
    config::{OpenElmConfig, TensorSpec},
    cost::CostSystem,
    decoder::{Decoder, NetworkRun, rope_bytes},
    kv_prediction::{auxiliary_cache_layers, auxiliary_layers, pipeline::KvRun},
    pruning::{Pruned, Pruning, lazy::LazyRun, subset::SubsetRun},
};

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

    fn check(&self) -> Result<()> {
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
    /// The auxiliary network on all but the last token.
    Auxiliary,
    /// Its cache to the base's.
    Prediction,
    /// The base on the last token.
    BaseStep,
}

impl Phase {
    /// Name, as in records.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Selection => "selection",
            Phase::Prefill => "prefill",
            Phase::Auxiliary => "auxiliary",
            Phase::Prediction => "prediction",
            Phase::BaseStep => "base_step",
        }
    }
}

/// What one phase took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// Its time.
    pub time: Duration,
    /// Parallel regions that it entered: starts of the engine's threads, none of an engine with one thread.
    pub regions: usize,
}

impl PhaseTime {
    /// Runs `f` as a phase.
    pub(crate) fn of(e: &Engine, phase: Phase, f: impl FnOnce() -> Result<()>) -> Result<PhaseTime> {
        let (start, regions) = (Instant::now(), e.pool().regions());
        f()?;
        Ok(PhaseTime { phase, time: start.elapsed(), regions: e.pool().regions().wrapping_sub(regions) })
    }
}

/// Where the time to first token went. The rest, `total` less the sum of the phases, is the checking of the ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PhaseTimes {
    /// Ids in memory to first token chosen for every sequence.
    pub total: Duration,
    /// In order of execution. KV prediction on one-token prompts has a base step alone.
    pub phases: Vec<PhaseTime>,
}

/// What runs.
#[derive(Clone, Debug)]
pub enum System {
    /// One network: full prefill.
    Network(Arc<Network>),
    /// KV prediction.
    KvPrediction(KvPrediction),
    /// One network on part of its tokens.
    Pruned(Pruned),
}

impl System {
    /// The network that decodes.
    pub fn base(&self) -> &Arc<Network> {
        match self {
            System::Network(n) => n,
            System::KvPrediction(s) => &s.base,
            System::Pruned(s) => &s.base,
        }
    }
}

/// A planned run: every buffer is allocated, weights are mapped.
pub trait Inference: Send {
    /// Restarts from an empty cache, runs the prompts `ids` (`[batch * prompt]` row-major) and chooses the first token of
    /// every sequence.
    ///
    /// # Errors
    /// [`Error::TokenCount`], [`Error::TokenId`], [`Error::Kernel`].
    fn first_token(&mut self, engine: &Engine, ids: &[u32]) -> Result<PhaseTimes>;

    /// Appends the tokens last chosen and chooses the next, greedily, by the base network alone.
    ///
    /// # Errors
    /// [`Error::CacheFull`] beyond the planned tokens, [`Error::NotStarted`] before the first.
    fn next_token(&mut self, engine: &Engine) -> Result<Duration>;

    /// Tokens chosen by the last call, `[batch]`.
    fn token_ids(&self) -> &[u32];

    /// Logits of the last call, `[batch, V]`.
    fn logits(&self) -> Mat<'_, f32>;

    /// Keeps what [`Inference::cache_dump`] cannot recover: predicted keys before k_norm. Costs memory and time; off
    /// unless asked for.
    fn record(&mut self, on: bool);

    /// The caches as they stand, in f32, keys without RoPE, `[batch, kv_heads, len, head_dim]`: `base_cache.{i}.k|v` of a
    /// network; `kvp_cache.{i}.k|v`, `aux_cache.{j}.k|v`, `predicted.{i}.v|k_normed` (and `predicted.{i}.k` if
    /// recorded) of KV prediction. Where tokens are dropped, `base_cache` holds those that the last call attended to, and
    /// `kept` (or `kept.{i}`, where layers differ) their positions, `[batch, len]`.
    fn cache_dump(&self) -> Vec<NamedTensor>;
}

/// Bytes that a run needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Mapped weights. They belong to the page cache, and should fit in memory for a warm measurement.
    pub weights: u64,
    /// Key/value caches, the auxiliary's included, and outputs of layers that are kept like them.
    pub caches: u64,
    /// Activations, logits, RoPE tables.
    pub activations: u64,
}

impl MemoryPlan {
    /// Anonymous memory: what [`plan`] allocates.
    pub fn allocated(&self) -> u64 {
        self.caches.saturating_add(self.activations)
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.allocated())
    }
}

/// What a run of `system` would need. Saturates instead of overflowing.
pub fn memory(system: &System, spec: &RunSpec) -> MemoryPlan {
    let weights = match system {
        System::Network(_) | System::Pruned(_) => system.base().mapped_bytes(),
        System::KvPrediction(s) => sum([s.base.mapped_bytes(), s.aux.mapped_bytes(), s.predictor.mapped_bytes()]),
    };
    MemoryPlan { weights, ..memory_of(&CostSystem::of(system), spec) }
}

/// As [`memory`], from shapes alone: before any weights exist.
pub fn memory_of(system: &CostSystem, spec: &RunSpec) -> MemoryPlan {
    match spec.precision {
        Precision::F32 => memory_as::<f32>(system, spec),
        Precision::Bf16 => memory_as::<bf16>(system, spec),
    }
}

pub(crate) fn mul(factors: &[usize]) -> u64 {
    factors.iter().fold(1, |a, b| a.saturating_mul(*b as u64))
}

pub(crate) fn sum(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// Keys and values of layer `i`, for `positions` of each sequence.
pub(crate) fn kv_bytes<A>(c: &OpenElmConfig, i: usize, batch: usize, positions: usize) -> u64 {
    mul(&[2, batch, positions, c.kv_dim(i), size_of::<A>()])
}

fn memory_as<A: Element>(system: &CostSystem, spec: &RunSpec) -> MemoryPlan {
    let (b, n) = (spec.batch, spec.prompt);
    let c = &system.base;
    let matrices = |t: Vec<TensorSpec>| {
        let elements = sum(t.iter().filter(|t| t.shape.len() == 2).map(TensorSpec::elements));
        elements.saturating_mul(system.weights.size() as u64)
    };
    let weights = matrices(c.tensors());
    let [caches, activations] = match (system.pruning, &system.pair) {
        (Some(p @ Pruning::Lazy { .. }), _) => LazyRun::<A>::bytes(c, p, spec),
        (Some(p), _) => SubsetRun::<A>::bytes(c, p, spec),
        (None, None) => Decoder::<A>::bytes(c, spec, n, spec.positions()),
        (None, Some(_)) => Decoder::<A>::bytes(c, spec, 1, spec.positions()),
    };
    let mut plan = MemoryPlan { weights, caches, activations };
    if let Some((a, map)) = &system.pair {
        let m = n.saturating_sub(1);
        let rows = b.saturating_mul(m);
        plan.weights = sum([plan.weights, matrices(a.tensors()), matrices(Predictor::tensors(c, a, map))]);
        let layers = auxiliary_layers(map, a.layers.len(), spec.extent);
        let kept = sum((0..layers).map(|j| kv_bytes::<A>(a, j, b, m)));
        let attending = auxiliary_cache_layers(a, layers, spec.extent);
        let scratch = sum(attending.into_iter().map(|j| kv_bytes::<A>(a, j, b, m)));
        plan.caches = sum([plan.caches, kept, scratch]);
        let all = if spec.extent == Extent::FullNetwork { mul(&[head_buffer(a, rows), 4]) } else { 0 };
        let own = [Activations::<A>::bytes(a, rows), rope_bytes(a, m), all];
        plan.activations = sum([plan.activations, sum(own)]);
    }
    plan
}

fn pruned<A: Element>(s: &Pruned, spec: RunSpec) -> Result<Box<dyn Inference>> {
    Ok(match s.pruning {
        Pruning::Random(_) | Pruning::Static(_) => Box::new(SubsetRun::<A>::new(s, spec)?),
        Pruning::Lazy { .. } => Box::new(LazyRun::<A>::new(s, spec)?),
    })
}

/// Allocates everything that a run needs.
///
/// # Errors
/// [`Error::Spec`]: a batch, prompt or count of tokens of 0 or beyond any machine. [`Error::Memory`]: the allocation
/// fails.
pub fn plan(system: &System, spec: &RunSpec) -> Result<Box<dyn Inference>> {
    spec.check()?;
    let bytes = memory(system, spec).allocated();
    // Caches are allocated by a type that cannot report failure; whether their memory can be had is asked here first.
    let asked = usize::try_from(bytes).map_err(|_| Error::Memory { bytes })?;
    Vec::<u8>::new().try_reserve_exact(asked).map_err(|_| Error::Memory { bytes })?;
    Ok(match (system, spec.precision) {
        (System::Network(n), Precision::F32) => Box::new(NetworkRun::<f32>::new(n, *spec)?),
        (System::Network(n), Precision::Bf16) => Box::new(NetworkRun::<bf16>::new(n, *spec)?),
        (System::Pruned(s), Precision::F32) => pruned::<f32>(s, *spec)?,
        (System::Pruned(s), Precision::Bf16) => pruned::<bf16>(s, *spec)?,
        (System::KvPrediction(s), Precision::F32) => Box::new(KvRun::<f32>::new(s, *spec)?),
        (System::KvPrediction(s), Precision::Bf16) => Box::new(KvRun::<bf16>::new(s, *spec)?),
    })
}
