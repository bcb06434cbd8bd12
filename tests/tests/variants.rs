//! Variants of KV prediction: more tokens that the base reads itself, its own first layers as the source, maps from the hidden
//! state. Against what an independent implementation recorded, and against full prefill where they must be it.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use ttft_kernels::Engine;
use ttft_models::{
    Extent, KvPrediction, Network, Precision, RunSpec, System,
    kv_prediction::layout::{Input, Layout, OwnTokens},
    plan, synth,
};
use ttft_tests::models::{Tensor, assert_close, describe, engines, fixture, generate, load, read};

/// Tokens that the fixtures generate.
const STEPS: usize = 6;

struct Case {
    name: &'static str,
    models: KvPrediction,
    expected: HashMap<String, Tensor>,
    own: &'static [(usize, usize)],
    ids: Vec<u32>,
    batch: usize,
    prompt: usize,
}

fn case(name: &'static str, base: PathBuf, own: &'static [(usize, usize)]) -> Case {
    let expected = read(&fixture(name).join("expected.safetensors"));
    let [batch, prompt] = expected["input_ids"].shape[..] else { panic!("{name}: ids of two dimensions") };
    let ids = expected["input_ids"].i64s.iter().map(|i| *i as u32).collect();
    let aux = fixture(name).join("aux");
    let network = |dir: PathBuf| Arc::new(Network::load(&dir).expect("the fixture loads"));
    let aux = aux.exists().then(|| network(aux));
    let models = KvPrediction::new(network(base), aux, &fixture(name).join("predictor")).expect("the fixture loads");
    Case { name, models, expected, own, ids, batch, prompt }
}

fn cases() -> Vec<Case> {
    vec![
        case("A2", fixture("A").join("base"), &[(1, 0), (3, 0), (3, 1)]),
        case("G", fixture("G").join("base"), &[(1, 0), (4, 0), (4, 1)]),
        case("H", fixture("H").join("base"), &[(1, 0), (5, 0), (5, 1), (2, 3)]),
        case("L", fixture("L").join("base"), &[(1, 0), (3, 1)]),
    ]
}

impl Case {
    fn spec(&self, extent: Extent) -> RunSpec {
        RunSpec { batch: self.batch, prompt: self.prompt, generate: STEPS, precision: Precision::F32, extent }
    }

    fn reading(&self, (last, first): (usize, usize)) -> System {
        System::KvPrediction(self.models.clone().reading(OwnTokens { last, first, kept: false }))
    }

    fn close(&self, engine: &Engine, name: &str, found: &[f32]) {
        let what = format!("{} {}: {name}", self.name, describe(engine));
        assert_close(&what, &self.expected[name].f32s, found);
    }
}

#[test]
fn every_recorded_variant_on_every_engine() {
    for case in cases() {
        let systems = case.own.iter().map(|&(m, s)| (format!("kvp_m{m}_s{s}"), case.reading((m, s))));
        let base = ("base".to_owned(), System::Network(Arc::clone(&case.models.base)));
        let systems: Vec<_> = [base].into_iter().chain(systems).collect();
        for e in &engines() {
            let mut seen = vec!["input_ids".to_owned()];
            for (name, system) in &systems {
                for extent in [Extent::FirstToken, Extent::FullNetwork] {
                    let mut run = plan(system, &case.spec(extent)).unwrap();
                    // A run restarts from an empty cache.
                    for _ in 0..2 {
                        let (ids, steps) = generate(&mut *run, e, &case.ids, STEPS);
                        let expected = &case.expected[&format!("{name}_greedy_ids")].i64s;
                        assert_eq!(expected, &ids, "{} {} {name} {extent:?}", case.name, describe(e));
                        case.close(e, &format!("{name}_greedy_logits"), &steps);
                    }
                    run.first_token(e, &case.ids).unwrap();
                    let rows: Vec<f32> = (0..case.batch).flat_map(|b| run.logits().row(b).to_vec()).collect();
                    case.close(e, &format!("{name}_logits_last"), &rows);
                }
                seen.extend(["greedy_ids", "greedy_logits", "logits_last"].map(|what| format!("{name}_{what}")));
            }
            seen.extend(predictions(&case, e));
            let missed: Vec<_> = case.expected.keys().filter(|k| !seen.contains(k)).collect();
            assert!(missed.is_empty(), "{}: never compared: {missed:?}", case.name);
        }
    }
}

/// Compares what is predicted where the base reads the fewest tokens; the names of what was compared.
fn predictions(case: &Case, e: &Engine) -> Vec<String> {
    let mut run = plan(&case.reading(case.own[0]), &case.spec(Extent::FirstToken)).unwrap();
    run.record(true);
    run.first_token(e, &case.ids).unwrap();
    let dump = run.cache_dump();
    let mut seen = Vec::new();
    for name in case.expected.keys().filter(|name| name.starts_with("predicted.")) {
        let expected = &case.expected[name];
        match dump.iter().find(|t| t.name == *name) {
            Some(found) => {
                assert_eq!(found.shape, expected.shape, "{}: {name}", case.name);
                case.close(e, name, &found.data);
            }
            // The layer that follows the source makes its own, of all tokens: they are in the cache alone, its keys normed.
            None => {
                assert!(case.models.base.k_norm(0).is_none(), "{}: {name} is nowhere", case.name);
                let cache = name.replace("predicted", "kvp_cache");
                let found = dump.iter().find(|t| t.name == cache).expect("every layer has a cache");
                let ([.., n, d], [.., of, _]) = (&expected.shape[..], &found.shape[..]) else { panic!("{name}") };
                let heads = found.data.chunks_exact(of * d).flat_map(|head| head[..n * d].to_vec());
                case.close(e, name, &heads.collect::<Vec<f32>>());
            }
        }
        seen.push(name.clone());
    }
    seen
}

/// All logits of the first tokens, bit for bit.
fn bits(system: &System, spec: RunSpec, e: &Engine, ids: &[u32]) -> Vec<u32> {
    let spec = RunSpec { generate: STEPS, ..spec };
    generate(&mut *plan(system, &spec).unwrap(), e, ids, STEPS).1.iter().map(|x| x.to_bits()).collect()
}

/// Predictors of every kind for the base of fixture A: maps from an auxiliary, and shared layers.
fn kinds(dir: &tempfile::TempDir) -> Vec<KvPrediction> {
    let a = load("A");
    let config = a.base.config();
    let shared = [1, 3, 4].into_iter().flat_map(|k| [Input::Hidden, Input::Own].map(|input| (k, input)));
    let make = |(k, input)| {
        let to = dir.path().join(format!("{k}-{input:?}"));
        let layout = Layout::shared(config.layers.len(), k, input);
        let dtype = ttft_models::DType::F32;
        synth::Spec::custom_predictor("p", config.clone(), None, layout, dtype, 0).make(&to, &|_, _| ()).unwrap();
        KvPrediction::new(Arc::clone(&a.base), None, &to).unwrap()
    };
    let made: Vec<_> = shared.map(make).collect();
    let a2 = case("A2", fixture("A").join("base"), &[]).models;
    [a, a2].into_iter().chain(made).collect()
}

#[test]
fn a_base_that_reads_every_token_is_full_prefill_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let n = 11;
    let ids: Vec<u32> = (0..2 * n as u32).map(|i| i * 37 % 384).collect();
    let kinds = kinds(&dir);
    let base = System::Network(Arc::clone(&kinds[0].base));
    for e in &engines() {
        for (precision, extent) in [(Precision::F32, Extent::FirstToken), (Precision::Bf16, Extent::FullNetwork)] {
            let spec = RunSpec { batch: 2, prompt: n, generate: 1, precision, extent };
            let full = bits(&base, spec, e, &ids);
            for kvp in &kinds {
                for (last, first) in [(n, 0), (n - 3, 3), (1, 40)] {
                    let system = System::KvPrediction(kvp.clone().reading(OwnTokens { last, first, kept: false }));
                    assert!(bits(&system, spec, e, &ids) == full, "{last} {first} {}", describe(e));
                }
            }
        }
    }
}

/// The maps of fixture C are identities between two equal networks: what is predicted is what full prefill computes, whoever
/// reads which tokens.
#[test]
fn exact_predictions_give_full_prefill_with_any_tokens_of_the_base() {
    let c = load("C");
    let expected = read(&fixture("C").join("expected.safetensors"));
    let [batch, n] = expected["input_ids"].shape[..] else { panic!("ids of two dimensions") };
    let ids: Vec<u32> = expected["input_ids"].i64s.iter().map(|i| *i as u32).collect();
    for e in &engines() {
        for (last, first) in [(1, 0), (1, 1), (2, 0), (4, 3), (n - 2, 1), (n, 0), (1, n - 2)] {
            for extent in [Extent::FirstToken, Extent::FullNetwork] {
                let spec = RunSpec { batch, prompt: n, generate: 1, precision: Precision::F32, extent };
                let system = System::KvPrediction(c.clone().reading(OwnTokens { last, first, kept: false }));
                let mut run = plan(&system, &spec).unwrap();
                run.first_token(e, &ids).unwrap();
                let rows: Vec<f32> = (0..batch).flat_map(|b| run.logits().row(b).to_vec()).collect();
                let what = format!("{last} last and {first} first, {extent:?}, {}", describe(e));
                assert_close(&what, &expected["base_logits_last"].f32s, &rows);
            }
        }
    }
}

/// The layer that follows the source projects what it left itself: with that layer the last of the base, nothing is
/// predicted, and the result is full prefill's. Its rows are others than there, so sums may differ in their order.
#[test]
fn a_layer_that_projects_what_the_one_below_it_left_is_exact() {
    let a = load("A");
    let dir = tempfile::tempdir().unwrap();
    let layers = a.base.config().layers.len();
    let layout = Layout::shared(layers, layers - 1, Input::Own);
    let spec = synth::Spec::custom_predictor("p", a.base.config().clone(), None, layout, ttft_models::DType::F32, 0);
    spec.make(dir.path(), &|_, _| ()).unwrap();
    let kvp = KvPrediction::new(Arc::clone(&a.base), None, dir.path()).unwrap();
    let expected = read(&fixture("A").join("expected.safetensors"));
    let [batch, n] = expected["input_ids"].shape[..] else { panic!("ids of two dimensions") };
    let ids: Vec<u32> = expected["input_ids"].i64s.iter().map(|i| *i as u32).collect();
    for e in &engines() {
        for (last, first) in [(1, 0), (3, 2)] {
            let spec = RunSpec { batch, prompt: n, generate: 1, precision: Precision::F32, extent: Extent::FirstToken };
            let system = System::KvPrediction(kvp.clone().reading(OwnTokens { last, first, kept: false }));
            let mut run = plan(&system, &spec).unwrap();
            run.first_token(e, &ids).unwrap();
            let rows: Vec<f32> = (0..batch).flat_map(|b| run.logits().row(b).to_vec()).collect();
            assert_close(&describe(e), &expected["base_logits_last"].f32s, &rows);
        }
    }
}
