//! Rivals of KV prediction: SpecPrefill and GemFilter, against what an independent implementation recorded, and against full
//! prefill where they must be it.

use std::{collections::HashMap, sync::Arc};

use ttft_kernels::{Backend, Engine, Isa};
use ttft_models::{
    Extent, Inference, Network, Phase, Precision, Pruned, Pruning, RunSpec, System, plan, pruning::Ranking, zoo,
};
use ttft_tests::{
    engine,
    models::{ATOL, Tensor, assert_close, bf16_tolerance, describe, engines, fixture, load, max_abs_diff, read},
};

/// Tokens that the fixtures generate.
const STEPS: usize = 6;

struct Case {
    name: &'static str,
    base: Arc<Network>,
    aux: Option<Arc<Network>>,
    expected: HashMap<String, Tensor>,
    /// As the fixture calls them, and as they are called here.
    prunings: &'static [(&'static str, &'static str)],
    ids: Vec<u32>,
    batch: usize,
    prompt: usize,
}

/// What was recorded as `name`, of the networks of `of`.
fn case(name: &'static str, of: &str, prunings: &'static [(&'static str, &'static str)]) -> Case {
    let expected = read(&fixture(name).join("expected.safetensors"));
    let [batch, prompt] = expected["input_ids"].shape[..] else { panic!("{name}: ids of two dimensions") };
    let ids = expected["input_ids"].i64s.iter().map(|i| *i as u32).collect();
    let network = |part: &str| Arc::new(Network::load(&fixture(of).join(part)).expect("the fixture loads"));
    let aux = fixture(of).join("aux").exists().then(|| network("aux"));
    Case { name, base: network("base"), aux, expected, prunings, ids, batch, prompt }
}

fn cases() -> [Case; 2] {
    let of_g = &[("specprefill", "SpecPrefill-0.40-a3-c4-p5"), ("gemfilter", "GemFilter-1-11")];
    [case("G2", "G", of_g), case("H2", "H", &[("gemfilter", "GemFilter-2-12")])]
}

fn pruned(base: &Arc<Network>, aux: Option<&Arc<Network>>, name: &str) -> System {
    let pruning: Pruning = name.parse().unwrap();
    let aux = aux.filter(|_| pruning.needs_auxiliary()).cloned();
    System::Pruned(Pruned { aux, ..Pruned::new(Arc::clone(base), pruning) })
}

impl Case {
    fn spec(&self, extent: Extent) -> RunSpec {
        RunSpec { batch: self.batch, prompt: self.prompt, generate: STEPS, precision: Precision::F32, extent }
    }

    fn system(&self, name: &str) -> System {
        pruned(&self.base, self.aux.as_ref(), name)
    }

    fn run(&self, e: &Engine, name: &str) -> Result {
        generate(&mut *plan(&self.system(name), &self.spec(Extent::FirstToken)).unwrap(), e, &self.ids)
    }
}

/// What a run came to.
#[derive(Debug, PartialEq)]
struct Result {
    kept: Vec<i64>,
    scores: Vec<f32>,
    /// `[B, T]` and `[B, T, V]`.
    ids: Vec<i64>,
    logits: Vec<f32>,
}

fn generate(run: &mut dyn Inference, e: &Engine, ids: &[u32]) -> Result {
    run.first_token(e, ids).expect("the first token");
    let (batch, vocab) = (run.logits().rows(), run.logits().cols());
    let chosen = run.chosen().expect("tokens are chosen");
    let kept = chosen.kept.iter().map(|&p| p.into()).collect();
    let scores = chosen.scores.to_vec();
    let (mut out_ids, mut logits) = (vec![0; batch * STEPS], vec![0.0; batch * STEPS * vocab]);
    for t in 0..STEPS {
        if t > 0 {
            run.next_token(e).expect("a planned token");
        }
        for b in 0..batch {
            out_ids[b * STEPS + t] = i64::from(run.token_ids()[b]);
            logits[(b * STEPS + t) * vocab..][..vocab].copy_from_slice(run.logits().row(b));
        }
    }
    Result { kept, scores, ids: out_ids, logits }
}

#[test]
fn every_recorded_rival_on_every_engine() {
    for case in cases() {
        for e in &engines() {
            let mut seen = vec!["input_ids".to_owned()];
            for (prefix, name) in case.prunings {
                for extent in [Extent::FirstToken, Extent::FullNetwork] {
                    let what = format!("{} {} {name} {extent:?}", case.name, describe(e));
                    let mut run = plan(&case.system(name), &case.spec(extent)).unwrap();
                    // A run restarts from nothing.
                    for _ in 0..2 {
                        let found = generate(&mut *run, e, &case.ids);
                        let expected = |part: &str| &case.expected[&format!("{prefix}_{part}")];
                        assert_eq!(expected("kept").i64s, found.kept, "{what}");
                        assert_eq!(expected("greedy_ids").i64s, found.ids, "{what}");
                        assert_close(&format!("{what}: scores"), &expected("scores").f32s, &found.scores);
                        assert_close(&format!("{what}: logits"), &expected("greedy_logits").f32s, &found.logits);
                        let vocab = found.logits.len() / (case.batch * STEPS);
                        let last = found.logits.chunks_exact(STEPS * vocab).flat_map(|b| b[..vocab].to_vec());
                        let last: Vec<f32> = last.collect();
                        assert_close(&format!("{what}: last logits"), &expected("logits_last").f32s, &last);
                    }
                }
                let parts = ["kept", "scores", "logits_last", "greedy_ids", "greedy_logits"];
                seen.extend(parts.map(|part| format!("{prefix}_{part}")));
            }
            let missed: Vec<_> = case.expected.keys().filter(|k| !seen.contains(k)).collect();
            assert!(missed.is_empty(), "{}: never compared: {missed:?}", case.name);
        }
    }
}

/// Every sequence of a batch has what it has alone.
#[test]
fn sequences_choose_for_themselves() {
    let e = &engine(Isa::best(), 1, Backend::Ours);
    let case = &cases()[0];
    for (_, name) in case.prunings {
        let together = case.run(e, name);
        assert_ne!(together.kept[..together.kept.len() / 2], together.kept[together.kept.len() / 2..], "{name}");
        for (b, ids) in case.ids.chunks_exact(case.prompt).enumerate() {
            let spec = RunSpec { batch: 1, ..case.spec(Extent::FirstToken) };
            let alone = generate(&mut *plan(&case.system(name), &spec).unwrap(), e, ids);
            let part = |x: usize| b * x / case.batch..(b + 1) * x / case.batch;
            assert_eq!(alone.kept, together.kept[part(together.kept.len())], "{name}");
            assert_eq!(alone.ids, together.ids[part(together.ids.len())], "{name}");
            assert_close(name, &together.scores[part(together.scores.len())], &alone.scores);
            assert_close(name, &together.logits[part(together.logits.len())], &alone.logits);
        }
    }
}

/// What keeps every token is full prefill, bit for bit: all chunks, one chunk of them all, a filter as wide as the prompt or
/// wider.
#[test]
fn keeping_every_token_is_full_prefill() {
    let case = &cases()[0];
    let (n, all) = (case.prompt, (0..case.batch).flat_map(|_| 0..case.prompt as i64).collect::<Vec<_>>());
    for e in [Isa::best(), Isa::Portable].map(|isa| engine(isa, 2, Backend::Ours)) {
        for extent in [Extent::FirstToken, Extent::FullNetwork] {
            let spec = case.spec(extent);
            let mut base = plan(&System::Network(Arc::clone(&case.base)), &spec).unwrap();
            base.first_token(&e, &case.ids).unwrap();
            let chunk = format!("SpecPrefill-0.01-a2-c{n}");
            let longer = format!("SpecPrefill-0.01-c{}", 3 * n);
            let (exact, wider) = (format!("GemFilter-0-{n}"), format!("GemFilter-3-{}-p3", n + 1));
            for name in ["SpecPrefill-1.00-a1-c4", "SpecPrefill-1.00", &chunk, &longer, &exact, &wider] {
                let found = generate(&mut *plan(&case.system(name), &spec).unwrap(), &e, &case.ids);
                assert_eq!(found.kept, all, "{name}");
                let vocab = base.logits().cols();
                for b in 0..case.batch {
                    assert!(found.logits[b * STEPS * vocab..][..vocab] == *base.logits().row(b), "{name} {extent:?}");
                }
                assert!(found.scores.iter().all(|s| s.is_finite()), "{name}");
            }
        }
    }
}

/// A window that reaches beyond both ends sees all tokens from each: scores are equal, and of equals the earlier are kept.
#[test]
fn a_window_wider_than_the_prompt_scores_all_alike() {
    let e = &engine(Isa::best(), 1, Backend::Ours);
    let case = &cases()[0];
    let width = 2 * case.prompt + 1;
    let last = case.prompt as i64 - 1;
    let found = case.run(e, &format!("GemFilter-1-3-p{width}"));
    assert_eq!(found.kept, [0, 1, last, 0, 1, last]);
    // A query's attention sums to one, whatever it attends to.
    let found = case.run(e, &format!("SpecPrefill-0.30-a2-c4-p{width}"));
    let mean = 1.0 / width as f32;
    assert!(found.scores.iter().all(|s| (s - mean).abs() <= 1e-6 * mean), "{:?}", found.scores);
}

#[test]
fn prompts_of_one_token_have_nothing_to_drop() {
    let e = &engine(Isa::best(), 1, Backend::Ours);
    let case = &cases()[0];
    let spec = RunSpec { prompt: 1, ..case.spec(Extent::FirstToken) };
    let mut base = plan(&System::Network(Arc::clone(&case.base)), &spec).unwrap();
    for name in ["SpecPrefill-0.40", "SpecPrefill-0.01-a1-c1-p1", "GemFilter-1-1", "GemFilter-0-4"] {
        let found = generate(&mut *plan(&case.system(name), &spec).unwrap(), e, &case.ids[..case.batch]);
        base.first_token(e, &case.ids[..case.batch]).unwrap();
        assert_eq!(found.kept, [0, 0], "{name}");
        let vocab = base.logits().cols();
        assert!((0..2).all(|b| found.logits[b * STEPS * vocab..][..vocab] == *base.logits().row(b)), "{name}");
    }
}

/// A share of the chunks, rounded up; the last is kept and may be short, so that the others give what is left.
#[test]
fn counts_are_those_of_whole_chunks() {
    for (name, n, count) in [
        ("SpecPrefill-0.40", 1, 1),
        ("SpecPrefill-0.40", 32, 32),
        ("SpecPrefill-0.40", 33, 1),
        ("SpecPrefill-0.40", 96, 64),
        ("SpecPrefill-0.40", 256, 128),
        // 33 chunks, 14 of them kept, the last of 10 tokens.
        ("SpecPrefill-0.40", 1034, 13 * 32 + 10),
        ("SpecPrefill-1.00", 1034, 1034),
        ("SpecPrefill-0.40-a3-c4-p5", 37, 13),
        ("GemFilter-1-11", 37, 11),
        ("GemFilter-1-11", 7, 7),
    ] {
        assert_eq!(name.parse::<Pruning>().unwrap().tokens(0, 28, n), count, "{name} of {n}");
    }
}

/// Where a seed ranks, every kernel keeps the same tokens: BF16 differs from F32 by its rounding.
#[test]
fn bf16_stays_within_its_rounding() {
    let e = &engine(Isa::best(), 1, Backend::Ours);
    let case = &cases()[0];
    for (_, name) in case.prunings {
        let System::Pruned(p) = case.system(name) else { unreachable!() };
        let system = System::Pruned(Pruned { ranking: Ranking::Seeded, ..p });
        let run = |precision| {
            let mut run = plan(&system, &RunSpec { precision, ..case.spec(Extent::FirstToken) }).unwrap();
            run.first_token(e, &case.ids).unwrap();
            let kept = run.chosen().unwrap().kept.to_vec();
            (kept, (0..case.batch).flat_map(|b| run.logits().row(b).to_vec()).collect::<Vec<f32>>())
        };
        let ((kept, exact), (rounded_kept, rounded)) = (run(Precision::F32), run(Precision::Bf16));
        assert_eq!(kept, rounded_kept, "{name}");
        let (d, tolerance) = (max_abs_diff(&exact, &rounded), bf16_tolerance(&exact, case.base.config().layers.len()));
        assert!(d <= tolerance && d > ATOL, "{name}: {d}, at most {tolerance}");
    }
}

#[test]
fn what_is_decoded_ahead_is_a_phase_of_its_own() {
    let e = &engine(Isa::best(), 1, Backend::Ours);
    let case = &cases()[0];
    let phases = |name: &str| {
        let mut run = plan(&case.system(name), &case.spec(Extent::FirstToken)).unwrap();
        let times = run.first_token(e, &case.ids).unwrap();
        assert!(times.phases.iter().map(|p| p.time).sum::<std::time::Duration>() <= times.total);
        times.phases.into_iter().map(|p| p.phase).collect::<Vec<_>>()
    };
    let all = [Phase::Auxiliary, Phase::Selection, Phase::LookAhead, Phase::Prefill];
    assert_eq!(phases("SpecPrefill-0.40"), all);
    assert_eq!(phases("SpecPrefill-0.40-a1"), [Phase::Auxiliary, Phase::Selection, Phase::Prefill]);
    assert_eq!(phases("GemFilter-1-11"), [Phase::Selection, Phase::Prefill]);
}

#[test]
fn names_are_read_and_written() {
    for name in [
        "SpecPrefill-0.40",
        "SpecPrefill-0.40-a4",
        "SpecPrefill-0.40-a1-c16-p5",
        "SpecPrefill-1.00-p1",
        "GemFilter-0-1",
        "GemFilter-11-128-p7",
    ] {
        assert_eq!(name.parse::<Pruning>().unwrap().to_string(), name);
    }
    for (long, short) in [("SpecPrefill-0.40-a8-c32-p13", "SpecPrefill-0.40"), ("GemFilter-3-4-p5", "GemFilter-3-4")] {
        assert_eq!(long.parse::<Pruning>().unwrap().to_string(), short);
    }
    for bad in [
        "SpecPrefill",
        "SpecPrefill-0.4",
        "SpecPrefill-0.00",
        "SpecPrefill-0.40-p4",
        "SpecPrefill-0.40-a0",
        "SpecPrefill-0.40-a1025",
        "SpecPrefill-0.40-c0",
        "SpecPrefill-0.40-c16-a4",
        "SpecPrefill-0.40-a04",
        "GemFilter-11",
        "GemFilter-11-0",
        "GemFilter-x-4",
        "GemFilter-01-4",
        "GemFilter-1-4-p2",
        "GemFilter-1-4-a2",
        "GemFilter-1-99999999999999999999",
    ] {
        let e = bad.parse::<Pruning>().unwrap_err().to_string();
        assert!(e.contains(&format!("'{bad}'")) && e.contains("SpecPrefill-r") && e.contains("GemFilter-LAYER"), "{e}");
    }
    for name in zoo::RIVALS {
        let p = zoo::token_pruned(name).unwrap();
        assert_eq!((p.base, p.aux.is_some()), ("OE1.1B", p.pruning.needs_auxiliary()), "{name}");
    }
    for (name, words) in [
        ("OE1.1B-SpecPrefill-0.40", ["SpecPrefill-0.40", "auxiliary network chooses"]),
        ("OE1.1B-KVP-C-450M-RP-0.50", ["RP-0.50", "no auxiliary"]),
        ("OE1.1B-GemFilter-28-4", ["GemFilter-28-4", "0 to 27"]),
        ("OE1.1B-GemFilter-3", ["GemFilter-3", "GemFilter-LAYER-COUNT"]),
        ("OE7B-GemFilter-3-4", ["OE7B", "OE1.1B"]),
    ] {
        let e = zoo::token_pruned(name).unwrap_err().to_string();
        assert!(words.iter().all(|w| e.contains(w)), "{name}: {e}");
    }
}

#[test]
fn what_cannot_be_planned_is_refused() {
    let g = &cases()[0];
    let a = load("A");
    let system = |aux: Option<&Arc<Network>>, name: &str| {
        System::Pruned(Pruned { aux: aux.cloned(), ..Pruned::new(Arc::clone(&a.base), name.parse().unwrap()) })
    };
    for (system, words) in [
        (system(None, "SpecPrefill-0.40"), ["SpecPrefill-0.40", "give one"]),
        (system(g.aux.as_ref(), "GemFilter-1-4"), ["GemFilter-1-4", "no auxiliary"]),
        (system(g.aux.as_ref(), "SP-0.50"), ["SP-0.50", "no auxiliary"]),
        (system(None, "GemFilter-5-4"), ["GemFilter-5-4", "5 layers: take one of 0 to 4"]),
    ] {
        let e = plan(&system, &g.spec(Extent::FirstToken)).err().expect("a refusal").to_string();
        assert!(words.iter().all(|w| e.contains(w)), "{e}");
    }
    let pruning = |name: &str| name.parse::<Pruning>().unwrap();
    let with = pruning("SpecPrefill-0.40").with(Some(4), None, Some(5)).unwrap();
    assert_eq!(with.to_string(), "SpecPrefill-0.40-a4-p5");
    for (name, numbers, word) in [
        ("RP-0.50", (None, None, Some(5)), "pool 5"),
        ("GemFilter-1-4", (Some(2), None, None), "look-ahead 2"),
        ("GemFilter-1-4", (None, None, Some(4)), "pool 4"),
        ("SpecPrefill-0.40", (None, Some(0), None), "chunk 0"),
    ] {
        let e = pruning(name).with(numbers.0, numbers.1, numbers.2).unwrap_err().to_string();
        assert!(e.contains(name) && e.contains(word), "{e}");
    }
}
