//! Planning a run.

use half::bf16;
use ttft_kernels::Element;

use crate::{
    decoder::NetworkRun,
    error::{Error, Result},
    inference::Inference,
    kv_prediction::pipeline::KvRun,
    memory::memory,
    pruning::{Pruned, Pruning, lazy::LazyRun, subset::SubsetRun},
    spec::{Precision, RunSpec},
    system::System,
};

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
