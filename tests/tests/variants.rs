//! Variants of KV prediction: more tokens that the base reads itself, its own first layers as the source, maps from the hidden
//! state. Against what an independent implementation recorded, and against full prefill where they must be it.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use ttft_kernels::{Backend, Engine, Options};
use ttft_models::{
    DType, Extent, KvPrediction, Network, Precision, RunSpec, System,
    kv_prediction::layout::{Input, Layout, Order, OwnTokens},
    plan, synth, zoo,
};
use ttft_tests::{
    engine, isas,
    models::{Tensor, assert_close, describe, engines, fixture, generate, load, read},
    threads,
};

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

/// Everything that a run leaves, as bits: logits of the first token and of those that follow, caches.
fn trail(system: System, spec: RunSpec, e: &Engine, ids: &[u32]) -> Vec<u32> {
    let mut run = plan(&system, &spec).unwrap();
    run.record(true);
    // What is put off by one run must not be found by the next.
    run.first_token(e, ids).unwrap();
    run.first_token(e, ids).unwrap();
    let mut out: Vec<u32> = (0..spec.batch).flat_map(|b| run.logits().row(b).to_vec()).map(f32::to_bits).collect();
    let mut dump = run.cache_dump();
    dump.sort_by(|a, b| a.name.cmp(&b.name));
    out.extend(dump.iter().flat_map(|t| t.data.iter().map(|x| x.to_bits())));
    for _ in 1..spec.generate {
        run.next_token(e).unwrap();
        out.extend((0..spec.batch).flat_map(|b| run.logits().row(b).to_vec()).map(f32::to_bits));
    }
    out
}

fn assert_order_is_all_the_same(kvp: &KvPrediction, spec: RunSpec, e: &Engine, ids: &[u32], what: &str) {
    let ordered = |order| trail(System::KvPrediction(kvp.clone().ordered(order)), spec, e, ids);
    assert!(ordered(Order::InTurn) == ordered(Order::Pipelined), "{what}: {spec:?}, {}", describe(e));
}

#[test]
fn the_order_of_a_fixture_is_all_the_same() {
    let pairs = [("A", load("A")), ("B", load("B")), ("C", load("C"))];
    let variants = cases().into_iter().map(|c| (c.name, c.models));
    for (name, kvp) in pairs.into_iter().chain(variants) {
        let vocab = kvp.base.config().vocab as u32;
        for isa in isas() {
            for threads in [1, 2, 3] {
                let e = &engine(isa, threads, Backend::Ours);
                // Rows of the auxiliary beyond a tile; of the base one, and some.
                for (batch, prompt, own) in [(1, 60, (1, 0)), (1, 40, (3, 1)), (2, 9, (2, 0)), (1, 40, (1, 2))] {
                    // Entries that are kept, put back behind the maps that they replace.
                    let kept = own == (1, 2);
                    let kvp = kvp.clone().reading(OwnTokens { last: own.0, first: own.1, kept });
                    for (precision, extent) in
                        [(Precision::F32, Extent::FirstToken), (Precision::Bf16, Extent::FullNetwork)]
                    {
                        let spec = RunSpec { batch, prompt, generate: 3, precision, extent };
                        let ids: Vec<u32> = (0..(batch * prompt) as u32).map(|i| i * 37 % vocab).collect();
                        assert_order_is_all_the_same(&kvp, spec, e, &ids, name);
                    }
                }
            }
        }
    }
}

/// Layers as wide as OpenELM's: products are cut, and rows of the base's are computed in the shadow of the auxiliary's.
#[test]
fn the_order_of_layers_of_full_width_is_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let part = |name: &str, of: std::ops::Range<usize>| {
        let mut c = zoo::network(name).unwrap();
        (c.layers, c.vocab) = (c.layers[of].to_vec(), 512);
        c
    };
    let (base, aux) = (part("OE1.1B", 13..16), part("OE270M", 8..10));
    let make = |name: &str, spec: synth::Spec| {
        let to = dir.path().join(name);
        spec.make(&to, &|_, _| ()).unwrap();
        to
    };
    let base_dir = make("base", synth::Spec::custom("base", base.clone(), DType::BF16, 1));
    let aux_dir = make("aux", synth::Spec::custom("aux", aux.clone(), DType::BF16, 1));
    let layout = Layout::auxiliary(&[0, 0, 1]);
    let predictor = make("predictor", synth::Spec::custom_predictor("p", base, Some(aux), layout, DType::BF16, 1));
    let kvp = KvPrediction::load(&base_dir, &aux_dir, &predictor).unwrap();
    for threads in threads(&[1, 2, 5]) {
        let e = &Engine::new(&Options { threads: Some(*threads), ..Options::default() }).unwrap();
        for (batch, prompt, own) in [(1, 64, (1, 0)), (1, 64, (4, 1)), (2, 33, (1, 0)), (1, 129, (4, 1))] {
            let kvp = kvp.clone().reading(OwnTokens { last: own.0, first: own.1, kept: false });
            let (precision, extent) = (Precision::Bf16, Extent::FirstToken);
            let spec = RunSpec { batch, prompt, generate: 1, precision, extent };
            let ids: Vec<u32> = (0..(batch * prompt) as u32).map(|i| i * 37 % 512).collect();
            assert_order_is_all_the_same(&kvp, spec, e, &ids, "full width");
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
