//! What a run needs of memory, counted from shapes alone.

use half::bf16;
use ttft_kernels::Element;

use crate::{
    activations::Activations,
    cache::kv_bytes,
    config::TensorSpec,
    decoder::{Decoder, rope_bytes},
    kv_prediction::{auxiliary_cache_layers, auxiliary_layers, predictor::Predictor},
    network::head_buffer,
    pruning::{Pruning, lazy::LazyRun, subset::SubsetRun},
    sizes::{mul, sum},
    spec::{Extent, Precision, RunSpec},
    system::{CostSystem, System},
};

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
