//! First tokens whose keys and values are kept from an earlier call, against what was recorded of the same systems that make them
//! anew. The base then runs fewer rows at once, and kernels may sum in another order: results agree as those of two kernels do.

use std::{path::PathBuf, sync::Arc};

use ttft_kernels::{Backend, Engine, Isa};
use ttft_models::{
    Extent, Inference, KvPrediction, Network, Precision, RunSpec, System, kv_prediction::layout::OwnTokens, plan,
};
use ttft_tests::{
    engine,
    models::{assert_close, bf16_tolerance, describe, engines, fixture, max_abs_diff, read},
};

/// Tokens that the fixtures generate.
const STEPS: usize = 6;

struct Case {
    name: &'static str,
    models: KvPrediction,
    own: OwnTokens,
    ids: Vec<u32>,
    batch: usize,
    prompt: usize,
}

/// An auxiliary; shared layers with maps from hidden states, and from keys and values; more first tokens than last.
fn cases() -> Vec<Case> {
    let case = |(name, base, last, first)| {
        let network = |dir: PathBuf| Arc::new(Network::load(&dir).expect("the fixture loads"));
        let aux = fixture(name).join("aux");
        let aux = aux.exists().then(|| network(aux));
        let base = network(fixture(base).join("base"));
        let models = KvPrediction::new(base, aux, &fixture(name).join("predictor")).expect("the fixture loads");
        let expected = read(&fixture(name).join("expected.safetensors"));
        let [batch, prompt] = expected["input_ids"].shape[..] else { panic!("{name}: ids of two dimensions") };
        let ids = expected["input_ids"].i64s.iter().map(|i| *i as u32).collect();
        Case { name, models, own: OwnTokens { last, first, kept: true }, ids, batch, prompt }
    };
    [("G", "G", 4, 1), ("H", "H", 5, 1), ("H", "H", 2, 3), ("A2", "A", 3, 1), ("L", "L", 3, 1)].map(case).into()
}

impl Case {
    fn plan(&self, kept: bool, precision: Precision, extent: Extent) -> Box<dyn Inference> {
        let spec = RunSpec { batch: self.batch, prompt: self.prompt, generate: STEPS, precision, extent };
        let own = OwnTokens { kept, ..self.own };
        plan(&System::KvPrediction(self.models.clone().reading(own)), &spec).unwrap()
    }

    fn fresh(&self, e: &Engine, ids: &[u32]) -> (Vec<i64>, Vec<f32>) {
        generate(&mut *self.plan(true, Precision::F32, Extent::FirstToken), e, ids)
    }
}

/// Greedy ids `[B, T]` and logits `[B, T, V]`.
fn generate(run: &mut dyn Inference, e: &Engine, ids: &[u32]) -> (Vec<i64>, Vec<f32>) {
    run.first_token(e, ids).expect("the first token");
    let (mut out_ids, mut out) = (Vec::new(), Vec::new());
    for t in 0..STEPS {
        if t > 0 {
            run.next_token(e).expect("a planned token");
        }
        out_ids.extend(run.token_ids().iter().map(|&id| i64::from(id)));
        (0..run.logits().rows()).for_each(|b| out.extend(run.logits().row(b)));
    }
    // Sequences first.
    let batch = run.logits().rows();
    let order = |i: usize| i % STEPS * batch + i / STEPS;
    let vocab = run.logits().cols();
    let ids = (0..batch * STEPS).map(|i| out_ids[order(i)]).collect();
    (ids, (0..batch * STEPS).flat_map(|i| out[order(i) * vocab..][..vocab].to_vec()).collect())
}

#[test]
fn kept_sinks_give_what_was_recorded() {
    for case in cases() {
        let expected = read(&fixture(case.name).join("expected.safetensors"));
        let recorded = |part: &str| &expected[&format!("kvp_m{}_s{}_{part}", case.own.last, case.own.first)];
        for e in &engines() {
            for extent in [Extent::FirstToken, Extent::FullNetwork] {
                let what = format!("{} {} {extent:?}", case.name, describe(e));
                let mut run = case.plan(true, Precision::F32, extent);
                let first = generate(&mut *run, e, &case.ids);
                assert_eq!(first.0, recorded("greedy_ids").i64s, "{what}");
                assert_close(&what, &recorded("greedy_logits").f32s, &first.1);
                // The call that made them and those that find them are the same from there on.
                assert!(generate(&mut *run, e, &case.ids) == first, "{what}: another call");
                // Fewer rows pass the base.
                let (steps, ran) = {
                    run.first_token(e, &case.ids).unwrap();
                    run.trace()
                };
                let puts = steps.iter().position(|s| s.to_string().ends_with("back")).expect("sinks are put back");
                assert_eq!(ran[puts].rows, case.batch * case.own.first, "{what}");
                assert!(steps.last().unwrap().to_string().contains("Base head"), "{what}");
                assert_eq!(ran[steps.len() - 2].rows, case.batch * case.own.last, "{what}");
            }
        }
    }
}

/// Prompts that begin with other tokens find none that are kept; of a batch, one sequence is enough.
#[test]
fn other_beginnings_are_made_anew() {
    let e = &engine(Isa::best(), 1, Backend::Ours);
    for case in cases() {
        let mut other = case.ids.clone();
        other[case.prompt] = (other[case.prompt] + 1) % 90;
        let mut later = case.ids.clone();
        later[case.own.first] = (later[case.own.first] + 1) % 90;
        let mut run = case.plan(true, Precision::F32, Extent::FirstToken);
        for ids in [&case.ids, &other, &other, &case.ids, &later, &other] {
            assert!(generate(&mut *run, e, ids) == case.fresh(e, ids), "{}", case.name);
        }
        assert!(case.fresh(e, &other).1 != case.fresh(e, &case.ids).1, "{}: the first token has no effect", case.name);
    }
}

#[test]
fn bf16_stays_within_its_rounding() {
    let e = &engine(Isa::best(), 1, Backend::Ours);
    for case in cases() {
        let logits = |kept, precision| {
            let mut run = case.plan(kept, precision, Extent::FirstToken);
            run.first_token(e, &case.ids).unwrap();
            (0..case.batch).flat_map(|b| run.logits().row(b).to_vec()).collect::<Vec<f32>>()
        };
        let exact = logits(false, Precision::F32);
        let layers = case.models.networks().map(|n| n.config().layers.len()).sum();
        let d = max_abs_diff(&exact, &logits(true, Precision::Bf16));
        assert!(d <= bf16_tolerance(&exact, layers), "{}: {d}", case.name);
    }
}
