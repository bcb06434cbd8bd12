//! The correctness gate: before a system is timed, its logits on a short prompt are compared with those of the portable
//! kernels in f32. Where bf16 kernels run, its logits on the longest prompt are also compared with those of the f32 kernels of
//! the same instruction set, since the portable ones would take minutes there. Where tokens are ranked by attention, both rank
//! them by a seed instead: rounding may exchange two tokens that rank almost alike, which is no error, but moves the logits as
//! one would. A base that reads many tokens of a prompt itself reads fewer of the short one, so that some are predicted; and what
//! keeps many of a prompt, or long chunks, keeps fewer and shorter ones, so that some are dropped.

use anyhow::{Context, Result, ensure};
use ttft_kernels::{Engine, Isa, Mat, Options};
use ttft_models::{
    Extent, Precision, Pruned, Pruning, RunSpec, System,
    kv_prediction::layout::OwnTokens,
    plan,
    pruning::{GemFilter, Ranking, SpecPrefill},
};
use ttft_reports::schema::{Gate, LongestGate};

use crate::placement;

/// Tokens of the gate's prompt. The portable kernels pay for each of them.
const PROMPT: usize = 7;
/// Tokens of either end of it that a base reads itself, at most: less than half of it. So long are chunks of tokens that are kept
/// or dropped, and twice as many tokens a filter keeps, at most.
const OWN: usize = 2;
/// Sequences of the second comparison, all alike: their rows together fill the tiles of the large kernels.
const BATCH: usize = 19;

/// What decides how far two correct computations may lie apart.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Layers that the prompt passes.
    pub layers: usize,
    /// Longest sum (K) of a matrix product.
    pub k: usize,
}

/// Largest difference of a logit between two correct computations, as a multiple of the logits' root mean square.
///
/// Every layer rounds its activations in about 8 places (normed inputs, q, k, v, attention output, hidden units, and
/// the residual sums) with relative error u, and accumulates products in f32 with a relative error of 2^-24 sqrt(K).
/// Independent errors of r = 8 L such places add up to sqrt(r) times one. The largest of V normal deviates is
/// sqrt(2 ln V) deviations out; a factor of 2 is left for what this leaves out. A wrong layer moves the logits by
/// about as much as they are large, many times this.
pub fn relative_tolerance(precision: Precision, depth: Depth, vocab: usize) -> f64 {
    let u = match precision {
        Precision::F32 => 2f64.powi(-24),
        Precision::Bf16 => 2f64.powi(-9),
    };
    let one = u + 2f64.powi(-24) * (depth.k as f64).sqrt();
    2.0 * (2.0 * (vocab.max(2) as f64).ln()).sqrt() * (8.0 * depth.layers as f64).sqrt() * one
}

/// Compares `engine` on `system` with the portable reference. `ids` are 7 token ids or more.
///
/// # Errors
/// What running the system says. A difference is no error: it stands in the result.
pub fn check(
    engine: &Engine,
    system: &System,
    depth: Depth,
    precision: Precision,
    extent: Extent,
    ids: &[u32],
) -> Result<Gate> {
    ensure!(ids.len() >= PROMPT, "the gate needs {PROMPT} token ids, found {}", ids.len());
    let ids = &ids[..PROMPT];
    compare(engine, &short(system), depth, precision, extent, ids, ids)
}

/// Compares the kernels that a bf16 run takes with the f32 kernels of the same instruction set on a whole prompt, `ids`.
///
/// # Errors
/// What running the system says. A difference is no error: it stands in the result.
pub fn check_longest(engine: &Engine, system: &System, depth: Depth, ids: &[u32]) -> Result<LongestGate> {
    compare_longest(engine, system, depth, ids, ids)
}

/// Runs the f32 kernels on `reference_ids` and the bf16 kernels on `ids`.
fn compare_longest(
    engine: &Engine,
    system: &System,
    depth: Depth,
    reference_ids: &[u32],
    ids: &[u32],
) -> Result<LongestGate> {
    let system = seeded(system);
    let spec = |precision| RunSpec { batch: 1, prompt: ids.len(), generate: 1, precision, extent: Extent::FirstToken };
    let logits = |precision, ids: &[u32]| -> Result<Vec<f32>> {
        let mut run = plan(&system, &spec(precision))?;
        run.first_token(engine, ids).context("the correctness gate at the longest prompt")?;
        Ok(run.logits().row(0).to_vec())
    };
    let expected = logits(Precision::F32, reference_ids)?;
    let found = logits(Precision::Bf16, ids)?;
    // The products of attention add up one term for every token.
    let depth = Depth { k: depth.k.max(ids.len()), ..depth };
    Ok(LongestGate {
        prompt: ids.len() as u32,
        max_abs_err: max_abs_err(&expected, Mat::new(&found, 1, found.len())),
        tolerance: rms(&expected) * relative_tolerance(Precision::Bf16, depth, expected.len()),
    })
}

/// The system with a ranking of tokens that rounding does not change, if it ranks any.
fn seeded(system: &System) -> System {
    match system {
        System::Pruned(p) => System::Pruned(Pruned { ranking: Ranking::Seeded, ..p.clone() }),
        System::Network(_) | System::KvPrediction(_) => system.clone(),
    }
}

/// Whether a call of the system leaves something for the next one.
fn keeps(system: &System) -> bool {
    matches!(system, System::KvPrediction(p) if p.own.kept)
}

/// The system as it runs on the gate's prompt.
fn short(system: &System) -> System {
    match seeded(system) {
        System::KvPrediction(p) => {
            let OwnTokens { last, first, kept } = p.own;
            System::KvPrediction(p.reading(OwnTokens { last: last.min(OWN), first: first.min(OWN), kept }))
        }
        System::Pruned(p) => {
            let pruning = match p.pruning {
                Pruning::Spec(s) => Pruning::Spec(SpecPrefill { chunk: s.chunk.min(OWN), ..s }),
                Pruning::Gem(g) => Pruning::Gem(GemFilter { count: g.count.min(2 * OWN), ..g }),
                other => other,
            };
            System::Pruned(Pruned { pruning, ..p })
        }
        other => other,
    }
}

/// Root mean square.
fn rms(x: &[f32]) -> f64 {
    (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64).sqrt()
}

/// Runs the reference on `reference_ids` and the engine on `ids`.
fn compare(
    engine: &Engine,
    system: &System,
    depth: Depth,
    precision: Precision,
    extent: Extent,
    reference_ids: &[u32],
    ids: &[u32],
) -> Result<Gate> {
    let options = |threads| Options { isa: Some(Isa::Portable), threads: Some(threads), ..Default::default() };
    let portable = |threads| placement::unbound(|| Engine::new(&options(threads)));
    let reference = match portable(engine.threads()) {
        // Of two engines the second finds a limit first; the reference may be slow.
        Err(ttft_kernels::Error::ThreadsUnavailable { .. }) => portable(1)?,
        engine => engine?,
    };
    let spec = |batch, precision, extent| RunSpec { batch, prompt: PROMPT, generate: 1, precision, extent };

    let mut slow = plan(system, &spec(1, Precision::F32, Extent::FirstToken))?;
    slow.first_token(&reference, reference_ids).context("the reference run of the correctness gate")?;
    let expected = slow.logits();
    let expected = expected.row(0);
    let tolerance = rms(expected) * relative_tolerance(precision, depth, expected.len());

    let mut worst = 0f64;
    for batch in [1, BATCH] {
        let mut fast = plan(system, &spec(batch, precision, extent))?;
        // What the first call may leave for the second is checked too.
        for _ in 0..1 + usize::from(keeps(system)) {
            fast.first_token(engine, &ids.repeat(batch)).context("the correctness gate")?;
        }
        worst = worst.max(max_abs_err(expected, fast.logits()));
    }
    Ok(Gate { max_abs_err: worst, tolerance, passed: worst <= tolerance, longest: None, longest_skipped: None })
}

/// Largest difference of any row from `expected`; what is not a number is as wrong as can be.
fn max_abs_err(expected: &[f32], found: Mat<'_, f32>) -> f64 {
    let rows = (0..found.rows()).flat_map(|r| expected.iter().zip(found.row(r)));
    rows.map(|(&e, &f)| f64::from((e - f).abs())).fold(0.0, |m, d| if d.is_finite() { m.max(d) } else { f64::MAX })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ttft_kernels::DType;
    use ttft_models::{KvPrediction, Network, cost::CostSystem};
    use ttft_reports::schema::Kind;

    use super::*;
    use crate::{
        scenario::Arm,
        weights::{Size, Weights},
    };

    #[test]
    fn tolerance_grows_with_depth_and_rounding() {
        let depth = |layers| Depth { layers, k: 8192 };
        let f32 = relative_tolerance(Precision::F32, depth(28), 32000);
        let bf16 = relative_tolerance(Precision::Bf16, depth(28), 32000);
        assert!(f32 < 1e-3 && bf16 > 0.1 && bf16 < 0.5, "{f32} {bf16}");
        assert!(relative_tolerance(Precision::Bf16, depth(56), 32000) > bf16);
    }

    /// The right result passes with room to spare, and one wrong token out of seven does not.
    #[test]
    fn the_gate_tells_right_from_wrong() {
        let dir = tempfile::tempdir().unwrap();
        for (dtype, precision) in [(DType::BF16, Precision::Bf16), (DType::F32, Precision::F32)] {
            let weights = Weights::new(Some(dir.path().to_owned()), dtype, 1, Size::Tiny).unwrap();
            let (base, aux, pair) = ("OE1.1B", "OE450M", "OE1.1B-KVP-C-450M");
            let arm = Arm {
                kind: Kind::Kvp,
                system: pair.into(),
                base: base.into(),
                aux: Some(aux.into()),
                copy: 1,
                start: Default::default(),
            };
            let (base, aux) = (weights.network_dir(base).unwrap(), weights.network_dir(aux).unwrap());
            let predictor = weights.predictor_dir(pair).unwrap();
            let system = System::KvPrediction(KvPrediction::load(&base, &aux, &predictor).unwrap());
            let engine = Engine::new(&Options { threads: Some(1), ..Default::default() }).unwrap();
            let ids = [5, 300, 41, 7, 499, 123, 77];
            let mut other = ids;
            other[3] = 8;
            for extent in [Extent::FirstToken, Extent::FullNetwork] {
                let run = |ran: &[u32]| {
                    let depth = weights.depth(&arm).unwrap();
                    compare(&engine, &system, depth, precision, extent, &ids, ran).unwrap()
                };
                let (right, wrong) = (run(&ids), run(&other));
                assert!(
                    right.passed && right.max_abs_err < 0.5 * right.tolerance,
                    "{precision:?} {extent:?} {right:?}"
                );
                assert!(!wrong.passed, "{precision:?} {extent:?} {wrong:?}");
            }
            // A prompt that fills several blocks of keys; the wrong run reads one of these blocks from elsewhere.
            let depth = weights.depth(&arm).unwrap();
            let ids: Vec<u32> = (0..700).map(|i| i * 7 % 500).collect();
            let mut other = ids.clone();
            other[288..576].iter_mut().for_each(|id| *id = (*id + 250) % 500);
            let run = |ran: &[u32]| compare_longest(&engine, &system, depth, &ids, ran).unwrap();
            let (right, wrong) = (run(&ids), run(&other));
            assert!(right.prompt == 700 && right.max_abs_err < 0.5 * right.tolerance, "{dtype:?} {right:?}");
            assert!(wrong.max_abs_err > wrong.tolerance, "{dtype:?} {wrong:?}");
        }
    }

    /// What is timed is what the gate checks: with shared layers, maps, and tokens of the base at both ends.
    #[test]
    fn the_gate_predicts_where_the_base_reads_many_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let weights = Weights::new(Some(dir.path().to_owned()), DType::F32, 1, Size::Tiny).unwrap();
        let base = Arc::new(Network::load(&weights.network_dir("OE1.1B").unwrap()).unwrap());
        let predictor = weights.predictor_dir("OE1.1B-KVP-S14").unwrap();
        let own = OwnTokens { last: 15, first: 1, kept: false };
        let system = System::KvPrediction(KvPrediction::new(base, None, &predictor).unwrap().reading(own));
        let spec =
            RunSpec { batch: 1, prompt: PROMPT, generate: 1, precision: Precision::F32, extent: Extent::FirstToken };
        let phases = |system: &System| CostSystem::of(system).first_token(&spec).len();
        assert_eq!([phases(&system), phases(&short(&system))], [1, 3]);
    }

    #[test]
    fn the_gate_drops_tokens_where_much_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let weights = Weights::new(Some(dir.path().to_owned()), DType::BF16, 1, Size::Tiny).unwrap();
        let load = |name| Arc::new(Network::load(&weights.network_dir(name).unwrap()).unwrap());
        let (base, aux) = (load("OE1.1B"), load("OE270M"));
        let engine = Engine::new(&Options { threads: Some(1), ..Default::default() }).unwrap();
        let ids = [5, 300, 41, 7, 499, 123, 77];
        let mut other = ids;
        other[6] = 8;
        let depth = Depth { layers: 44, k: 256 };
        for (name, count) in [("SpecPrefill-0.40", 3), ("GemFilter-11-128", 4)] {
            let pruning: Pruning = name.parse().unwrap();
            let aux = pruning.needs_auxiliary().then(|| Arc::clone(&aux));
            let system = short(&System::Pruned(Pruned { aux, ..Pruned::new(Arc::clone(&base), pruning) }));
            let System::Pruned(p) = &system else { unreachable!() };
            assert_eq!(p.pruning.tokens(0, 28, PROMPT), count, "{name}");
            let run =
                |ran: &[u32]| compare(&engine, &system, depth, Precision::Bf16, Extent::FirstToken, &ids, ran).unwrap();
            let (right, wrong) = (run(&ids), run(&other));
            assert!(right.passed && !wrong.passed, "{name}: {right:?} {wrong:?}");
        }
    }

    #[test]
    fn nan_is_never_close() {
        let e = [1.0, 2.0];
        assert_eq!(max_abs_err(&e, Mat::new(&[1.0, 2.0, 1.5, 2.0], 2, 2)), 0.5);
        assert_eq!(max_abs_err(&e, Mat::new(&[1.0, f32::NAN], 1, 2)), f64::MAX);
        assert_eq!(max_abs_err(&e, Mat::new(&[1.0, f32::INFINITY], 1, 2)), f64::MAX);
    }
}
