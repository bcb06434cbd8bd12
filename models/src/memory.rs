//! What a run needs of memory, counted from shapes alone.

use half::bf16;
use ttft_kernels::{DType, Element};

use crate::{
    activations::Activations,
    cache::kv_bytes,
    config::{NetworkConfig, TensorSpec},
    kv_prediction::layout::Input,
    loan,
    network::head_buffer,
    pruning::{Pruning, lazy::Lazy, select::Scores},
    schedule::{KvShape, Op, Slot, SourceShape, Step, shapes},
    sizes::{mul, sum},
    spec::{Precision, RunSpec},
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
    /// Anonymous memory: what [`crate::plan`] allocates.
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
    let predictor = match system {
        System::KvPrediction(s) => s.predictor.mapped_bytes(),
        System::Network(_) | System::Pruned(_) => 0,
    };
    let weights = system.networks().map(|n| n.mapped_bytes()).fold(predictor, u64::saturating_add);
    MemoryPlan { weights, ..memory_of(&CostSystem::of(system), spec) }
}

/// As [`memory`], from shapes alone: before any weights exist.
pub fn memory_of(system: &CostSystem, spec: &RunSpec) -> MemoryPlan {
    memory_of_scoring(system, spec, 0)
}

/// As [`memory_of`], of [`crate::plan_scoring`].
pub fn memory_of_scoring(system: &CostSystem, spec: &RunSpec, scored: usize) -> MemoryPlan {
    memory_of_lending(system, spec, scored, &[])
}

/// As [`memory_of`], of [`crate::plan_lending`].
pub fn memory_of_lending(system: &CostSystem, spec: &RunSpec, scored: usize, to: &[&CostSystem]) -> MemoryPlan {
    match spec.precision {
        Precision::F32 => memory_as::<f32>(system, spec, scored, to),
        Precision::Bf16 => memory_as::<bf16>(system, spec, scored, to),
    }
}

fn memory_as<A: Element>(system: &CostSystem, spec: &RunSpec, scored: usize, to: &[&CostSystem]) -> MemoryPlan {
    let matrices = |t: Vec<TensorSpec>, dtype: DType| {
        let elements = sum(t.iter().filter(|t| t.shape.len() == 2).map(TensorSpec::elements));
        elements.saturating_mul(dtype.size() as u64)
    };
    let aux = system.aux().map_or_else(Vec::new, NetworkConfig::tensors);
    let networks = [system.base.tensors(), aux].map(|tensors| matrices(tensors, system.weights));
    let maps = matrices(system.predictor_tensors(), system.maps);
    let (b, c, schedule) = (spec.batch, &system.base, loan::lending(system, spec, scored, to));
    let kv = |s: &KvShape| kv_bytes::<A>(shapes(system, s.net), s.layer, b, s.entries);
    let source = |Slot { shape, .. }: &Slot<SourceShape>| source_bytes::<A>(system, b, shape);
    let sinks = schedule.sinks.iter().map(kv);
    let caches =
        sum(schedule.caches.iter().map(|slot| kv(&slot.shape)).chain(sinks).chain(schedule.sources.iter().map(source)));
    let streams = schedule.streams.iter().map(|Slot { shape, .. }| {
        let (c, rows) = (shapes(system, shape.net), b.saturating_mul(shape.rows));
        let all = if shape.all_logits { mul(&[head_buffer(c, rows), 4]) } else { 0 };
        sum([rope_bytes(c, shape.positions), Activations::<A>::bytes(c, rows), all])
    });
    // Logits and ids, of a network that decodes ahead too.
    let ahead = system.chooser.as_ref().map(|aux| mul(&[b, aux.vocab.saturating_add(1), 4]));
    let chosen = sum([mul(&[b, 1 + scored, c.vocab, 4]), mul(&[b, 4]), ahead.unwrap_or(0)]);
    // Positions and ids of what is kept of the prompt.
    let kept = |step: &Step| match step.op {
        Op::Choose { keep, .. } => mul(&[2, b, keep, 4]),
        _ => 0,
    };
    let kept = sum(schedule.prompt.iter().map(kept));
    let scores = match system.pruning {
        Some(p) if schedule.ranked > 0 => Scores::bytes(system.chooser.as_ref().unwrap_or(c), p, b, schedule.ranked),
        _ => 0,
    };
    let [hidden, tables] = match system.pruning {
        Some(p @ Pruning::Lazy { .. }) => Lazy::bytes(c, p, spec),
        _ => [0, 0],
    };
    MemoryPlan {
        weights: sum(networks.into_iter().chain([maps])),
        caches: sum([caches, hidden]),
        activations: sum([sum(streams), chosen, kept, scores, tables]),
    }
}

/// Bytes of cosines and sines.
fn rope_bytes(c: &NetworkConfig, positions: usize) -> u64 {
    mul(&[c.head_dim, positions, 4])
}

/// Bytes of what maps read of a layer.
fn source_bytes<A: Element>(system: &CostSystem, batch: usize, s: &SourceShape) -> u64 {
    let c = shapes(system, s.net);
    match s.input {
        Input::KeysAndValues => kv_bytes::<A>(c, s.layer, batch, s.entries),
        Input::Hidden | Input::Own => mul(&[batch, s.entries, c.dim, 4]),
    }
}
