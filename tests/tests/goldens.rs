//! Every tensor recorded from the reference, on every ISA, backend and thread count.

use std::{collections::HashMap, sync::Arc};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use ttft_kernels::{DType, Engine};
use ttft_models::{
    Extent, Inference, KvPrediction, Network, Phase, Precision, RunSpec, System, kv_prediction::likelihood::likelihood,
    plan, synth,
};
use ttft_tests::models::{
    ATOL, FIXTURES, Tensor, assert_close, aux, bf16_tolerance, describe, engines, fixture, generate, load,
    max_abs_diff, read, systems,
};

/// Tokens that the fixtures generate.
const STEPS: usize = 8;

struct Case {
    name: &'static str,
    models: KvPrediction,
    expected: HashMap<String, Tensor>,
    ids: Vec<u32>,
    batch: usize,
    prompt: usize,
}

fn cases() -> Vec<Case> {
    let case = |name| {
        let expected = read(&fixture(name).join("expected.safetensors"));
        let ids = &expected["input_ids"];
        let (batch, prompt) = (ids.shape[0], ids.shape[1]);
        let ids = ids.i64s.iter().map(|i| *i as u32).collect();
        Case { name, models: load(name), expected, ids, batch, prompt }
    };
    FIXTURES.into_iter().map(case).collect()
}

impl Case {
    fn spec(&self, precision: Precision, extent: Extent) -> RunSpec {
        RunSpec { batch: self.batch, prompt: self.prompt, generate: STEPS, precision, extent }
    }

    /// Compares one tensor and notes that it was.
    fn check(&self, seen: &mut Vec<String>, engine: &str, name: &str, found: &[f32]) {
        let e = self.expected.get(name).unwrap_or_else(|| panic!("{}: nothing recorded as {name}", self.name));
        assert_close(&format!("{} {engine}: {name}", self.name), &e.f32s, found);
        seen.push(name.to_owned());
    }
}

fn logits(run: &dyn Inference) -> Vec<f32> {
    (0..run.logits().rows()).flat_map(|r| run.logits().row(r).to_vec()).collect()
}

#[test]
fn every_recorded_tensor_on_every_engine() {
    for case in cases() {
        for e in &engines() {
            let engine = describe(e);
            let mut seen = vec!["input_ids".to_owned()];
            let s = &case.models;
            let all = s.base.logits::<f32>(e, &case.ids, case.batch).unwrap();
            case.check(&mut seen, &engine, "base_logits", &all);
            let shorter: Vec<u32> =
                case.ids.chunks_exact(case.prompt).flat_map(|r| r[..case.prompt - 1].to_vec()).collect();
            let all = aux(s).logits::<f32>(e, &shorter, case.batch).unwrap();
            case.check(&mut seen, &engine, "aux_logits", &all);
            let scored = likelihood::<f32>(s, e, &case.ids, case.batch).unwrap();
            case.check(&mut seen, &engine, "kvp_nocache_logits", &scored.logits);

            let [base, _, kvp] = systems(s);
            for (prefix, system) in [("base", base), ("kvp", kvp)] {
                // FullNetwork, so that every layer of the auxiliary leaves a cache.
                let mut run = plan(&system, &case.spec(Precision::F32, Extent::FullNetwork)).unwrap();
                run.record(true);
                run.first_token(e, &case.ids).unwrap();
                case.check(&mut seen, &engine, &format!("{prefix}_logits_last"), &logits(&*run));
                for t in run.cache_dump() {
                    assert_eq!(case.expected[&t.name].shape, t.shape, "{}: {}", case.name, t.name);
                    case.check(&mut seen, &engine, &t.name, &t.data);
                }
                for extent in [Extent::FirstToken, Extent::FullNetwork] {
                    let mut run = plan(&system, &case.spec(Precision::F32, extent)).unwrap();
                    // A run restarts from an empty cache.
                    let times = if extent == Extent::FirstToken { 2 } else { 1 };
                    for _ in 0..times {
                        let (ids, steps) = generate(&mut *run, e, &case.ids, STEPS);
                        assert_eq!(case.expected[&format!("{prefix}_greedy_ids")].i64s, ids, "{engine} {extent:?}");
                        case.check(&mut seen, &engine, &format!("{prefix}_greedy_logits"), &steps);
                    }
                }
                seen.push(format!("{prefix}_greedy_ids"));
            }
            let missed: Vec<_> = case.expected.keys().filter(|k| !seen.contains(k)).collect();
            assert!(missed.is_empty(), "{}: never compared: {missed:?}", case.name);
        }
    }
}

#[test]
fn both_extents_give_the_same_first_token() {
    for case in cases() {
        for e in &engines() {
            for system in systems(&case.models) {
                let [a, b] = [Extent::FirstToken, Extent::FullNetwork].map(|extent| {
                    let mut run = plan(&system, &case.spec(Precision::F32, extent)).unwrap();
                    run.first_token(e, &case.ids).unwrap();
                    (run.token_ids().to_vec(), logits(&*run))
                });
                assert_eq!(a.0, b.0, "{} {}", case.name, describe(e));
                assert_close(&format!("{} {}", case.name, describe(e)), &a.1, &b.1);
            }
        }
    }
}

#[test]
fn a_one_token_prompt_runs_the_base_alone() {
    for case in cases() {
        for e in &engines() {
            let firsts: Vec<u32> = case.ids.iter().step_by(case.prompt).copied().collect();
            let spec = RunSpec { prompt: 1, ..case.spec(Precision::F32, Extent::FirstToken) };
            let [base, _, kvp] = systems(&case.models);
            let [(base_ids, base_steps), (kvp_ids, kvp_steps)] =
                [base, kvp].map(|s| generate(&mut *plan(&s, &spec).unwrap(), e, &firsts, STEPS));
            assert_eq!(base_ids, kvp_ids);
            assert_eq!(base_steps, kvp_steps);
            // The first position of the recorded prompt is the same computation.
            let recorded = &case.expected["base_logits"];
            let (n, v) = (recorded.shape[1], recorded.shape[2]);
            for b in 0..case.batch {
                assert_close(case.name, &recorded.f32s[b * n * v..][..v], &base_steps[b * 8 * v..][..v]);
            }
        }
    }
}

#[test]
fn phases_are_those_of_the_system() {
    let case = &cases()[0];
    let e = &engines()[0];
    let phases = |system: &System, prompt: usize| {
        let spec = RunSpec { prompt, ..case.spec(Precision::F32, Extent::FirstToken) };
        let times = plan(system, &spec).unwrap().first_token(e, &case.ids[..case.batch * prompt]).unwrap();
        assert!(times.phases.iter().map(|p| p.time).sum::<std::time::Duration>() <= times.total);
        times.phases.into_iter().map(|p| p.phase).collect::<Vec<_>>()
    };
    let [base, _, kvp] = systems(&case.models);
    assert_eq!(phases(&base, case.prompt), [Phase::Prefill]);
    assert_eq!(phases(&kvp, case.prompt), [Phase::Auxiliary, Phase::Prediction, Phase::BaseStep]);
    assert_eq!(phases(&kvp, 1), [Phase::BaseStep]);
}

#[test]
fn bf16_stays_within_its_rounding() {
    for case in cases() {
        let engines = engines();
        for system in systems(&case.models) {
            let first = |e: &Engine, precision| {
                let mut run = plan(&system, &case.spec(precision, Extent::FirstToken)).unwrap();
                run.first_token(e, &case.ids).unwrap();
                logits(&*run)
            };
            let exact = first(&engines[0], Precision::F32);
            let layers = match &system {
                System::Network(_) | System::Pruned(_) => system.base().config().layers.len(),
                System::KvPrediction(s) => s.networks().map(|n| n.config().layers.len()).sum(),
            };
            let tolerance = bf16_tolerance(&exact, layers);
            for e in &engines {
                let d = max_abs_diff(&exact, &first(e, Precision::Bf16));
                assert!(d <= tolerance, "{} {}: {d} > {tolerance}", case.name, describe(e));
                assert!(d > ATOL, "{} {}: BF16 did not round", case.name, describe(e));
            }
        }
    }
}

/// 16-bit weights, used in place, against the same values widened to F32 in another file. Both sum the same products in
/// f32, so they agree as closely as two f32 implementations do.
#[test]
fn weights_of_every_dtype_agree_with_their_widened_copy() {
    let config = load("A").base.config().clone();
    let ids: Vec<u32> = (0..20).map(|i| i * 19 % 384).collect();
    for dtype in [DType::BF16, DType::F16] {
        let (dir, wide) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        synth::Spec::custom("small", config.clone(), dtype, 0).make(dir.path(), &|_, _| ()).unwrap();
        let bytes = std::fs::read(dir.path().join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let widened: Vec<(String, Vec<usize>, Vec<u8>)> = file
            .iter()
            .map(|(name, t)| {
                let widen = |b: &[u8; 2]| match dtype {
                    DType::F16 => f16::from_le_bytes(*b).to_f32(),
                    _ => bf16::from_le_bytes(*b).to_f32(),
                };
                let data = t.data().as_chunks::<2>().0.iter().flat_map(|b| widen(b).to_le_bytes()).collect();
                (name.to_owned(), t.shape().to_vec(), data)
            })
            .collect();
        let views = widened.iter().map(|(name, shape, data)| {
            (name, TensorView::new(Dtype::F32, shape.clone(), data).expect("a whole tensor"))
        });
        safetensors::serialize_to_file(views, None, &wide.path().join("model.safetensors")).unwrap();
        std::fs::copy(dir.path().join("config.json"), wide.path().join("config.json")).unwrap();
        let [narrow, wide] = [&dir, &wide].map(|d| Arc::new(Network::load(d.path()).unwrap()));
        assert_eq!((narrow.weight_dtype(), wide.weight_dtype()), (dtype, DType::F32));
        for e in &engines() {
            let [a, b] = [&narrow, &wide].map(|n| n.logits::<f32>(e, &ids, 2).unwrap());
            assert_close(&format!("{dtype} {}", describe(e)), &b, &a);
        }
    }
}

#[test]
fn the_likelihood_path_stays_within_the_rounding_of_bf16() {
    let case = &cases()[0];
    let e = &engines()[0];
    let [exact, rounded] = [
        likelihood::<f32>(&case.models, e, &case.ids, case.batch).unwrap(),
        likelihood::<bf16>(&case.models, e, &case.ids, case.batch).unwrap(),
    ];
    let (base, aux) = (case.models.base.config().layers.len(), aux(&case.models).config().layers.len());
    for (exact, rounded, layers) in
        [(exact.logits, rounded.logits, base + aux), (exact.aux_logits, rounded.aux_logits, aux)]
    {
        let (d, tolerance) = (max_abs_diff(&exact, &rounded), bf16_tolerance(&exact, layers));
        assert!(d > ATOL && d <= tolerance, "{d}, at most {tolerance}");
    }
    assert_eq!(Arc::strong_count(&case.models.base), 1);
}
