//! Fixtures recorded from the reference, engines to run them on, comparisons.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use safetensors::{Dtype, SafeTensors};
use ttft_kernels::{Backend, Engine};
use ttft_models::{Inference, KvPrediction, Network, System};

/// The recorded fixtures.
pub const FIXTURES: [&str; 3] = ["A", "B", "C"];

/// How far an f32 implementation may be from a recorded tensor.
pub const ATOL: f32 = 1e-4;

/// BF16 activations against f32. A rounding errs by at most u = 2^-8 of the value, 0.4 u in the root mean square. A layer
/// rounds seven times what its products read (two norms, queries, keys, values, attention's output, the gate), the head
/// once; independent, so they add as a square root. What reads an erroneous input errs more than its input (the gate is
/// a product of two, the softmax an exponential): a factor of 2. The largest of some thousand logits is within 5 standard
/// deviations. In all 5 * 2 * 0.4 u sqrt(7 L + 1) of the logits' root mean square.
pub fn bf16_tolerance(exact: &[f32], layers: usize) -> f32 {
    let rms = (exact.iter().map(|x| x * x).sum::<f32>() / exact.len() as f32).sqrt();
    5.0 * 2.0 * 0.4 * 2f32.powi(-8) * (7.0 * layers as f32 + 1.0).sqrt() * rms
}

/// Folder of a fixture.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// The three parts of a fixture.
pub fn load(name: &str) -> KvPrediction {
    let dir = fixture(name);
    KvPrediction::load(&dir.join("base"), &dir.join("aux"), &dir.join("predictor")).expect("the fixture loads")
}

/// The auxiliary of a pair.
///
/// # Panics
/// If it shares layers instead.
pub fn aux(s: &KvPrediction) -> Arc<Network> {
    Arc::clone(s.aux.as_ref().expect("a pair"))
}

/// Base alone, auxiliary alone, KV prediction.
pub fn systems(s: &KvPrediction) -> [System; 3] {
    [System::Network(Arc::clone(&s.base)), System::Network(aux(s)), System::KvPrediction(s.clone())]
}

/// A tensor of a recorded file.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Dimensions.
    pub shape: Vec<usize>,
    /// F32 tensors.
    pub f32s: Vec<f32>,
    /// I64 tensors.
    pub i64s: Vec<i64>,
}

/// Every tensor of a safetensors file.
pub fn read(path: &Path) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(path).expect("the file is there");
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let tensor = |name: String, t: safetensors::tensor::TensorView<'_>| {
        let mut out = Tensor { shape: t.shape().to_vec(), f32s: vec![], i64s: vec![] };
        match t.dtype() {
            Dtype::F32 => out.f32s = bytemuck::allocation::pod_collect_to_vec(t.data()),
            Dtype::I64 => out.i64s = bytemuck::allocation::pod_collect_to_vec(t.data()),
            other => panic!("{name}: {other}"),
        }
        (name, out)
    };
    file.tensors().into_iter().map(|(name, t)| tensor(name, t)).collect()
}

/// Every ISA to test with our kernels and the gemm crate, on 1 and 2 threads.
pub fn engines() -> Vec<Engine> {
    let backends = [Backend::Ours, Backend::Gemm];
    let each = |isa| backends.into_iter().flat_map(move |b| crate::threads(&[1, 2]).iter().map(move |t| (isa, *t, b)));
    crate::isas().into_iter().flat_map(each).map(|(isa, threads, b)| crate::engine(isa, threads, b)).collect()
}

/// Names an engine in messages.
pub fn describe(e: &Engine) -> String {
    format!("{} {} x{}", e.isa(), e.backend().name(), e.threads())
}

/// So many greedy tokens: ids `[B, T]` and logits `[B, T, V]`.
///
/// # Panics
/// If the run fails, or was not planned for them.
pub fn generate(run: &mut dyn Inference, e: &Engine, ids: &[u32], steps: usize) -> (Vec<i64>, Vec<f32>) {
    run.first_token(e, ids).expect("the first token");
    let (batch, vocab) = (run.logits().rows(), run.logits().cols());
    let (mut out_ids, mut out) = (vec![0; batch * steps], vec![0.0; batch * steps * vocab]);
    for t in 0..steps {
        if t > 0 {
            run.next_token(e).expect("a planned token");
        }
        for b in 0..batch {
            out_ids[b * steps + t] = i64::from(run.token_ids()[b]);
            out[(b * steps + t) * vocab..][..vocab].copy_from_slice(run.logits().row(b));
        }
    }
    (out_ids, out)
}

/// Largest absolute difference; infinite if the lengths differ or anything is not finite.
pub fn max_abs_diff(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::INFINITY;
    }
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_finite() { m.max(d) } else { f32::INFINITY })
}

/// Fails unless `found` is within [`ATOL`] of the recorded tensor.
pub fn assert_close(what: &str, expected: &[f32], found: &[f32]) {
    let d = max_abs_diff(expected, found);
    assert!(d <= ATOL, "{what}: differs by {d:e} ({} values expected, {} found)", expected.len(), found.len());
}
