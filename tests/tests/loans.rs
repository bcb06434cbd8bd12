//! Runs that begin where another is: bit for bit what they are without, or refused.

use std::{path::Path, sync::Arc};

use ttft_kernels::Engine;
use ttft_models::{
    DType, Extent, Inference, KvPrediction, NamedTensor, Network, Phase, Precision, Pruned, RunSpec, System,
    cost::CostSystem,
    kv_prediction::{
        control::{Control, Entries, Mean},
        layout::{Input, Layout, Order, Origin, OwnTokens},
    },
    memory_of_lending, plan_lending, plan_scoring, synth,
};
use ttft_tests::models::{describe, engines, fixture, load};

const PROMPT: usize = 13;
const SCORED: usize = 3;

fn spec(batch: usize, precision: Precision) -> RunSpec {
    RunSpec { batch, prompt: PROMPT, generate: SCORED + 1, precision, extent: Extent::FirstToken }
}

fn ids(batch: usize, seed: usize) -> Vec<u32> {
    (0..batch * PROMPT).map(|i| ((i * i * 7 + i * 3 + seed) % 97) as u32).collect()
}

/// Predictors of shared layers, k of all, of unlike inputs; of an auxiliary, of unlike inputs.
struct Predictors {
    _dir: tempfile::TempDir,
    shared: Vec<(usize, KvPrediction)>,
    pairs: Vec<KvPrediction>,
}

fn predictors() -> Predictors {
    let dir = tempfile::tempdir().unwrap();
    let a = load("A");
    let (base, aux) = (a.base.config().clone(), a.aux.as_ref().unwrap().config().clone());
    let layers = base.layers.len();
    let make = |name: &str, aux: Option<&Arc<Network>>, layout: Layout| {
        let to = dir.path().join(name);
        let of = aux.map(|aux| aux.config().clone());
        synth::Spec::custom_predictor("p", base.clone(), of, layout, DType::F32, 1).make(&to, &|_, _| ()).unwrap();
        KvPrediction::new(Arc::clone(&a.base), aux.cloned(), &to).unwrap()
    };
    let mut shared = Vec::new();
    for k in [2, 3] {
        shared.push((k, make(&format!("hidden{k}"), None, Layout::shared(layers, k, Input::Hidden))));
        shared.push((k, make(&format!("own{k}"), None, Layout::shared(layers, k, Input::Own))));
        // Keys and values of the last shared layer, and of several.
        for (name, from) in [("last", 1), ("each", k)] {
            let origin = |i: usize| Origin { layer: k - 1 - i % from, input: Input::KeysAndValues };
            let layout = Layout { shared: Some(k), layers: (0..layers).map(|i| (i >= k).then(|| origin(i))).collect() };
            shared.push((k, make(&format!("kv-{name}{k}"), None, layout)));
        }
        // A hidden state that is mapped for the first layer too, which is then no exact one.
        let origin = |i: usize| (i >= k).then_some(Origin { layer: i % k, input: Input::Hidden });
        let layout = Layout { shared: Some(k), layers: (0..layers).map(origin).collect() };
        shared.push((k, make(&format!("mapped{k}"), None, layout)));
    }
    let of_aux = a.aux.as_ref();
    let hidden = |layer| Layout { shared: None, layers: vec![Some(Origin { layer, input: Input::Hidden }); layers] };
    let (deep, first) = (hidden(aux.layers.len() - 1), hidden(0));
    let pairs = vec![a.clone(), make("deep", of_aux, deep), make("first", of_aux, first)];
    Predictors { _dir: dir, shared, pairs }
}

/// All that a run gives.
fn all(e: &Engine, run: &mut dyn Inference, ids: &[u32], lender: Option<&dyn Inference>) -> Vec<NamedTensor> {
    run.record(true);
    match lender {
        Some(lender) => run.first_token_after(e, ids, lender).unwrap(),
        None => run.first_token(e, ids).unwrap(),
    };
    let batch = run.logits().rows();
    let tensor = |name: &str, m: ttft_kernels::Mat<'_, f32>| NamedTensor {
        name: name.into(),
        shape: vec![m.rows(), m.cols()],
        data: (0..m.rows()).flat_map(|r| m.row(r).to_vec()).collect(),
    };
    let mut out = run.cache_dump();
    out.push(tensor("first", run.logits()));
    let given: Vec<u32> = (0..batch * SCORED).map(|i| (i * 5 + 2) as u32).collect();
    out.push(tensor("scored", run.score(e, &given).unwrap()));
    run.next_token(e).unwrap();
    out.push(tensor("next", run.logits()));
    out
}

fn same_bits(what: &str, expected: &[NamedTensor], found: &[NamedTensor]) {
    assert_eq!(expected.len(), found.len(), "{what}");
    for (a, b) in expected.iter().zip(found) {
        assert_eq!((&a.name, &a.shape), (&b.name, &b.shape), "{what}");
        let differs = a.data.iter().zip(&b.data).position(|(a, b)| a.to_bits() != b.to_bits());
        assert_eq!((differs, a.data.len()), (None, b.data.len()), "{what}: {}", a.name);
    }
}

fn reading(pair: &KvPrediction, (last, first): (usize, usize)) -> KvPrediction {
    pair.clone().reading(OwnTokens { last, first, kept: false })
}

/// A system, with nothing predicted, with one row for all positions, and with true entries.
fn variants(e: &Engine, pair: &KvPrediction, spec: &RunSpec, ids: &[u32]) -> Vec<System> {
    let layers = pair.base.config().layers.len();
    let mut full = plan_scoring(&System::Network(Arc::clone(&pair.base)), spec, 0).unwrap();
    full.first_token(e, ids).unwrap();
    let truth = Entries::of_base(&full.cache_dump(), layers, PROMPT - pair.own.last).unwrap();
    let mut run = plan_scoring(&System::KvPrediction(pair.clone()), spec, 0).unwrap();
    run.record(true);
    run.first_token(e, ids).unwrap();
    let mut mean = Mean::default();
    mean.add(&run.cache_dump(), layers, 1).unwrap();
    let fill = |entries| Control::Entries(Arc::new(entries));
    let controls = [Control::Nothing, fill(mean.entries()), fill(truth)];
    let controls = controls.map(|control| System::KvPrediction(pair.clone().control(control)));
    [System::KvPrediction(pair.clone())].into_iter().chain(controls).collect()
}

/// The engines of the best two levels of this machine are enough: what is copied is copied on any.
fn some_engines() -> Vec<Engine> {
    let mut all = engines();
    let from = all.len().saturating_sub(4);
    all.split_off(from)
}

#[test]
fn runs_after_the_base_are_what_they_are_alone() {
    let predictors = predictors();
    let base = System::Network(Arc::clone(&predictors.shared[0].1.base));
    for e in &some_engines() {
        for (batch, precision) in [(1, Precision::F32), (1, Precision::Bf16), (2, Precision::F32)] {
            let spec = spec(batch, precision);
            let prompts = [ids(batch, 1), ids(batch, 2)];
            let systems: Vec<(usize, System)> = predictors
                .shared
                .iter()
                .flat_map(|(k, pair)| {
                    let all = [(1, 0), (1, 1), (5, 2), (12, 1)].into_iter();
                    all.flat_map(|own| variants(e, &reading(pair, own), &spec, &prompts[0])).map(|s| (*k, s))
                })
                .collect();
            let shapes: Vec<CostSystem> = systems.iter().map(|(_, s)| CostSystem::of(s)).collect();
            let borrowers: Vec<&CostSystem> = shapes.iter().collect();
            let whole = CostSystem::of(&base);
            let mut plain = plan_scoring(&base, &spec, SCORED).unwrap();
            let mut lender = plan_lending(&base, &spec, SCORED, &borrowers).unwrap();
            // A run and its twin, which has no lender.
            let plan = |s: &System| plan_scoring(s, &spec, SCORED).unwrap();
            let mut runs: Vec<_> = systems.iter().map(|(_, s)| (plan(s), plan(s))).collect();
            for ids in &prompts {
                // What it keeps for others changes nothing of its own, and what it does later nothing of that.
                let expected = all(e, &mut *plain, ids, None);
                let mut found = all(e, &mut *lender, ids, None);
                found.retain(|t| !t.name.starts_with("source."));
                same_bits(&format!("{}: the base", describe(e)), &expected, &found);
                for (((k, _), shapes), (run, alone)) in systems.iter().zip(&shapes).zip(&mut runs) {
                    let what = format!("{} {batch} {precision:?} {:?}", describe(e), shapes.prediction);
                    let expected = all(e, &mut **alone, ids, None);
                    let found = all(e, &mut **run, ids, Some(&*lender));
                    same_bits(&what, &expected, &found);
                    // No more is spared than the shared layers, unless the base reads all tokens itself.
                    let spared = shapes.borrowed(&spec, &whole);
                    let prefill: u64 = whole.first_token(&spec).iter().map(|p| p.flops.total()).sum();
                    let layers = whole.base.layers.len() as u64;
                    let own = shapes.prediction.as_ref().unwrap().own;
                    let most = if own.last + own.first < PROMPT { *k as u64 + 1 } else { layers };
                    assert!(spared > 0 && spared < prefill * most / layers, "{what}: {spared} of {prefill}");
                }
            }
        }
    }
}

#[test]
fn runs_after_another_from_the_same_auxiliary_are_what_they_are_alone() {
    let predictors = predictors();
    for e in &some_engines() {
        for (batch, precision) in [(1, Precision::F32), (2, Precision::Bf16)] {
            let spec = spec(batch, precision);
            let prompts = [ids(batch, 3), ids(batch, 4)];
            for last in [1, 4] {
                let of =
                    |pair: &KvPrediction| [(last, 0), (last, 1)].map(|own| System::KvPrediction(reading(pair, own)));
                let systems: Vec<System> = predictors.pairs.iter().flat_map(of).collect();
                let shapes: Vec<CostSystem> = systems.iter().map(CostSystem::of).collect();
                // Each of them lends to all.
                for lends in 0..systems.len() {
                    let to: Vec<&CostSystem> = shapes.iter().collect();
                    let mut lender = plan_lending(&systems[lends], &spec, SCORED, &to).unwrap();
                    for ids in &prompts {
                        all(e, &mut *lender, ids, None);
                        for (system, shapes_of) in systems.iter().zip(&shapes) {
                            let what = format!("{} {batch} {:?}", describe(e), shapes_of.prediction);
                            let expected = all(e, &mut *plan_scoring(system, &spec, SCORED).unwrap(), ids, None);
                            let mut run = plan_scoring(system, &spec, SCORED).unwrap();
                            assert!(shapes_of.borrowed(&spec, &shapes[lends]) > 0, "{what}");
                            same_bits(&what, &expected, &all(e, &mut *run, ids, Some(&*lender)));
                        }
                    }
                }
                // Those of the same maps are spared all of the auxiliary, whatever else the base reads.
                let spared = shapes[1].borrowed(&spec, &shapes[0]);
                let phases = shapes[1].first_token(&spec);
                assert_eq!(spared, phases[0].flops.total());
            }
        }
    }
}

#[test]
fn what_cannot_be_taken_over_is_refused() {
    let predictors = predictors();
    let e = &engines()[0];
    let (_, pair) = &predictors.shared[0];
    let base = System::Network(Arc::clone(&pair.base));
    let system = System::KvPrediction(pair.clone());
    let shapes = CostSystem::of(&system);
    let (spec, prompt) = (spec(1, Precision::F32), ids(1, 1));
    let mut lender = plan_lending(&base, &spec, 0, &[&shapes]).unwrap();
    let refused = |system: &System, precision, ids: &[u32], lender: &dyn Inference| {
        let mut run = plan_scoring(system, &RunSpec { precision, ..spec }, 0).unwrap();
        let error = run.first_token_after(e, ids, lender).unwrap_err().to_string();
        // It reads by itself after that.
        run.first_token(e, ids).unwrap();
        error
    };
    let check = |error: String, word: &str| assert!(error.contains(word), "{error}");
    check(refused(&system, Precision::F32, &prompt, &*lender), "has not read these prompts");
    lender.first_token(e, &prompt).unwrap();
    check(refused(&system, Precision::F32, &ids(1, 2), &*lender), "has not read these prompts");
    check(refused(&system, Precision::Bf16, &prompt, &*lender), "different types");
    // Other steps: of an auxiliary, of a pruned network.
    check(
        refused(&System::KvPrediction(predictors.pairs[0].clone()), Precision::F32, &prompt, &*lender),
        "plan it to lend",
    );
    let pruned = System::Pruned(Pruned::new(Arc::clone(&pair.base), "GemFilter-1-5".parse().unwrap()));
    check(refused(&pruned, Precision::F32, &prompt, &*lender), "plan it to lend");
    // The pipelined order, whichever of the two has it.
    let in_turn = System::KvPrediction(predictors.pairs[0].clone());
    let pipelined = System::KvPrediction(predictors.pairs[0].clone().ordered(Order::Pipelined));
    let phases = CostSystem::of(&pipelined).first_token(&spec);
    assert!(phases.iter().any(|p| p.phase == Phase::Pipelined));
    for (from, to) in [(&in_turn, &pipelined), (&pipelined, &in_turn), (&pipelined, &pipelined)] {
        let shapes = CostSystem::of(to);
        assert_eq!(shapes.borrowed(&spec, &CostSystem::of(from)), 0);
        let mut lender = plan_lending(from, &spec, 0, &[&shapes]).unwrap();
        lender.first_token(e, &prompt).unwrap();
        check(refused(to, Precision::F32, &prompt, &*lender), "plan it to lend");
    }
    // The same shapes with other weights, or the same loaded once more.
    let again = Arc::new(Network::load(Path::new(&fixture("A").join("base"))).unwrap());
    let other = System::KvPrediction(KvPrediction { base: again, ..pair.clone() });
    check(refused(&other, Precision::F32, &prompt, &*lender), "not the same loaded ones");
    // One that keeps nothing, and one that has not read the prompt itself.
    let mut plain = plan_scoring(&base, &spec, 0).unwrap();
    plain.first_token(e, &prompt).unwrap();
    check(refused(&system, Precision::F32, &prompt, &*plain), "planned to lend");
    let mut second = plan_lending(&system, &spec, 0, &[&shapes]).unwrap();
    second.first_token_after(e, &prompt, &*lender).unwrap();
    check(refused(&system, Precision::F32, &prompt, &*second), "has not read these prompts");
    // What is kept is counted.
    let bytes = |to: &[&CostSystem]| memory_of_lending(&CostSystem::of(&base), &spec, 0, to).allocated();
    assert!(bytes(&[&shapes]) >= bytes(&[]) + (4 * PROMPT * pair.base.config().dim) as u64);
    assert_eq!(bytes(&[&shapes, &shapes]), bytes(&[&shapes]));
}
