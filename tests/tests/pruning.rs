//! Random, static and lazy token pruning against their definitions in f64, and against the plain base; layer pruning against
//! the layers that are kept.

use std::{path::Path, sync::Arc};

use proptest::prelude::*;
use safetensors::{Dtype, tensor::TensorView};
use ttft_kernels::{Backend, DType, Engine, Isa};
use ttft_models::{
    Extent, Inference, Network, Phase, Precision, Pruned, Pruning, RunSpec, System, plan,
    pruning::{Fraction, Ranking},
    synth, zoo,
};
use ttft_tests::{
    engine,
    models::{ATOL, FIXTURES, assert_close, bf16_tolerance, describe, fixture, max_abs_diff, read},
    pruning::{Oracle, Sequence, only_layers},
};

const GENERATE: usize = 7;

struct Case {
    name: &'static str,
    net: Arc<Network>,
    oracle: Oracle,
    ids: Vec<u32>,
    batch: usize,
    prompt: usize,
}

impl Case {
    fn new(name: &'static str, dir: &Path, batch: usize, prompt: usize) -> Case {
        let net = Arc::new(Network::load(dir).unwrap());
        let vocab = net.config().vocab as u32;
        let ids = (0..(batch * prompt) as u32).map(|i| (i * i * 7 + 13 * i + 5) % vocab).collect();
        Case { name, net, oracle: Oracle::load(dir), ids, batch, prompt }
    }

    fn spec(&self, precision: Precision, extent: Extent) -> RunSpec {
        RunSpec { batch: self.batch, prompt: self.prompt, generate: GENERATE, precision, extent }
    }

    fn run(&self, system: &System, extent: Extent) -> Box<dyn Inference> {
        plan(system, &self.spec(Precision::F32, extent)).unwrap()
    }

    fn pruned(&self, name: &str) -> System {
        System::Pruned(Pruned::new(Arc::clone(&self.net), name.parse().unwrap()))
    }
}

/// The best kernels and the portable ones. That all others, on any number of threads, compute the same is for
/// `conformance_*` and `goldens` to show.
fn engines() -> [Engine; 2] {
    [Isa::best(), Isa::Portable].map(|isa| engine(isa, 1, Backend::Ours))
}

/// Two recorded networks, and a deeper one; in a small run the first alone.
fn cases() -> Vec<Case> {
    let recorded = Case::new("A", &fixture("A").join("base"), 2, 13);
    if std::env::var_os("TTFT_TEST_SMALL").is_some() {
        return vec![recorded];
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = Network::load(&fixture("B").join("base")).unwrap().config().clone();
    config.layers = (0..12).map(|i| config.layers[i / 2]).collect();
    synth::Spec::custom("deep", config, DType::F32, 3).make(dir.path(), &|_, _| ()).unwrap();
    vec![recorded, Case::new("C", &fixture("C").join("base"), 3, 9), Case::new("deep", dir.path(), 2, 21)]
}

/// What the oracle says of one sequence, step by step.
struct Step {
    logits: Vec<f32>,
    /// Keys and values of the tokens taken, by layer: `[kv_heads, tokens, d]`.
    caches: Vec<[Vec<f32>; 2]>,
    taken: Vec<Vec<usize>>,
    next: u32,
}

/// Runs the oracle as [`Inference`] would run; also how many tokens were revived.
fn steps(case: &Case, pruning: Pruning, kept: Option<&[Vec<usize>]>) -> (Vec<Vec<Step>>, usize) {
    let (o, mut revived) = (&case.oracle, 0);
    let of = |(b, prompt): (usize, &[u32])| {
        let mut s = Sequence::default();
        let kept = match pruning {
            Pruning::Static(keep) => Some(o.kept(prompt, keep.value())),
            _ => kept.map(|k| k[b].clone()),
        };
        let mut ids = prompt.to_vec();
        let mut out = Vec::new();
        for _ in 0..GENERATE {
            let logits = match &kept {
                Some(kept) => o.subset(&mut s, &ids, kept),
                None => o.lazy(&mut s, &ids, pruning),
            };
            let logits: Vec<f32> = logits.into_iter().map(|x| x as f32).collect();
            let best = (0..logits.len()).max_by(|&i, &j| logits[i].total_cmp(&logits[j])).unwrap();
            let d = o.config.head_dim;
            let cache = |i: usize, part: usize| {
                let heads = 0..o.config.layers[i].kv_heads;
                let row = |h: usize, p: &usize| s.caches[&(i, *p)][part][h * d..][..d].to_vec();
                heads.flat_map(|h| s.taken[i].iter().flat_map(move |p| row(h, p))).map(|x| x as f32).collect()
            };
            let caches = (0..s.taken.len()).map(|i| [cache(i, 0), cache(i, 1)]).collect();
            out.push(Step { logits, caches, taken: s.taken.clone(), next: best as u32 });
            ids = vec![best as u32];
        }
        revived += s.revived;
        out
    };
    (case.ids.chunks_exact(case.prompt).enumerate().map(of).collect(), revived)
}

/// The positions that layer `i` took, by sequence.
fn taken(run: &dyn Inference, i: usize, batch: usize) -> Option<Vec<Vec<usize>>> {
    let dump = run.cache_dump();
    let kept = dump.iter().find(|t| t.name == "kept" || t.name == format!("kept.{i}"))?;
    Some(kept.data.chunks_exact(kept.data.len() / batch).map(|k| k.iter().map(|p| *p as usize).collect()).collect())
}

/// Runs `system` on `e` and compares every step with the oracle.
fn compare(case: &Case, system: &System, extent: Extent, e: &Engine, expected: &[Vec<Step>], what: &str) {
    let mut run = case.run(system, extent);
    // Twice: the first run must leave nothing behind.
    run.first_token(e, &case.ids).unwrap();
    run.next_token(e).unwrap();
    for step in 0..GENERATE {
        if step == 0 { run.first_token(e, &case.ids).map(drop) } else { run.next_token(e).map(drop) }.unwrap();
        let what = format!("{what} {} {extent:?} step {step}", describe(e));
        let dump = run.cache_dump();
        for (b, steps) in expected.iter().enumerate() {
            let want = &steps[step];
            for (i, positions) in want.taken.iter().enumerate() {
                if let Some(taken) = taken(&*run, i, case.batch) {
                    assert_eq!(&taken[b], positions, "{what}: tokens of layer {i}, sequence {b}");
                }
                for (part, want) in ["k", "v"].into_iter().zip(&want.caches[i]) {
                    let name = format!("base_cache.{i}.{part}");
                    let found = dump.iter().find(|t| t.name == name).expect("a cache of every layer");
                    let found = &found.data[b * found.data.len() / case.batch..][..found.data.len() / case.batch];
                    assert_close(&format!("{what}: {name}, sequence {b}"), want, found);
                }
            }
            assert_close(&format!("{what}: logits, sequence {b}"), &want.logits, run.logits().row(b));
            assert_eq!(run.token_ids()[b], want.next, "{what}");
        }
    }
    assert!(run.next_token(e).unwrap_err().to_string().contains("planned"), "{what}");
}

/// How many tokens were revived in each case.
fn against_the_oracle(names: &[&str]) -> Vec<usize> {
    let case_revived = |case: Case| {
        let mut revived = 0;
        for name in names {
            let system = case.pruned(name);
            let pruning: Pruning = name.parse().unwrap();
            // Which tokens a random pruning keeps is up to it; that they are apt is tested below.
            let kept = matches!(pruning, Pruning::Random(_)).then(|| {
                let mut run = case.run(&system, Extent::FirstToken);
                run.first_token(&engines()[0], &case.ids).unwrap();
                taken(&*run, 0, case.batch).unwrap()
            });
            let (expected, n) = steps(&case, pruning, kept.as_deref());
            revived += n;
            for e in engines() {
                for extent in [Extent::FirstToken, Extent::FullNetwork] {
                    compare(&case, &system, extent, &e, &expected, &format!("{} {name}", case.name));
                }
            }
        }
        revived
    };
    cases().into_iter().map(case_revived).collect()
}

#[test]
fn random_pruning_is_the_base_on_what_is_kept() {
    against_the_oracle(&["RP-0.75", "RP-0.25", "RP-0.01"]);
}

#[test]
fn static_pruning_keeps_what_the_first_layers_attend_to() {
    against_the_oracle(&["SP-0.50", "SP-0.25"]);
}

#[test]
fn lazy_pruning_drops_and_revives_as_defined() {
    let revived = against_the_oracle(&["L0.75-0.50", "L0.50-0.01", "L1.00-0.25"]);
    assert!(revived.iter().all(|n| *n > 0), "{revived:?}: a case in which no token comes back tests no revival");
}

#[test]
fn random_pruning_keeps_the_last_and_differs_between_sequences() {
    let case = &cases()[0];
    let e = &engines()[0];
    let mut run = case.run(&case.pruned("RP-0.50"), Extent::FirstToken);
    run.first_token(e, &case.ids).unwrap();
    let kept = taken(&*run, 0, case.batch).unwrap();
    for k in &kept {
        assert_eq!(k.len(), case.prompt.div_ceil(2));
        assert!(k.is_sorted_by(|a, b| a < b) && k.last() == Some(&(case.prompt - 1)), "{k:?}");
    }
    assert_ne!(kept[0], kept[1]);
    let other: Vec<u32> = case.ids.iter().map(|i| i / 2).collect();
    run.first_token(e, &other).unwrap();
    assert_ne!(taken(&*run, 0, case.batch).unwrap(), kept, "other prompts, other tokens");
    run.first_token(e, &case.ids[..case.prompt].repeat(2)).unwrap();
    assert_eq!(taken(&*run, 0, case.batch).unwrap(), [kept[0].clone(), kept[0].clone()], "equal prompts, equal tokens");
}

#[test]
fn nothing_dropped_is_the_base_to_the_bit() {
    for case in cases() {
        for e in &engines() {
            for extent in [Extent::FirstToken, Extent::FullNetwork] {
                for name in ["RP-1.00", "SP-1.00", "L1.00-1.00"] {
                    let mut base = case.run(&System::Network(Arc::clone(&case.net)), extent);
                    let mut pruned = case.run(&case.pruned(name), extent);
                    for step in 0..GENERATE {
                        for run in [&mut base, &mut pruned] {
                            if step == 0 {
                                run.first_token(e, &case.ids).map(drop)
                            } else {
                                run.next_token(e).map(drop)
                            }
                            .unwrap();
                        }
                        for b in 0..case.batch {
                            let what = format!("{} {name} {} step {step}", case.name, describe(e));
                            assert!(base.logits().row(b) == pruned.logits().row(b), "{what}");
                        }
                    }
                }
            }
        }
    }
}

/// As BF16 of the other systems (`goldens`): 4 u sqrt(7 L + 1) of the logits' root mean square, u = 2^-8. Seeded, so that
/// both drop the same tokens.
#[test]
fn bf16_stays_within_its_rounding() {
    let e = &engines();
    for case in cases() {
        for name in ["RP-0.50", "SP-0.50", "L0.75-0.25"] {
            let pruning = name.parse().unwrap();
            let system =
                System::Pruned(Pruned { ranking: Ranking::Seeded, ..Pruned::new(Arc::clone(&case.net), pruning) });
            let run = |e: &Engine, precision| {
                let mut run = plan(&system, &case.spec(precision, Extent::FirstToken)).unwrap();
                run.first_token(e, &case.ids).unwrap();
                (0..case.batch).flat_map(|b| run.logits().row(b).to_vec()).collect::<Vec<f32>>()
            };
            let exact = run(&e[0], Precision::F32);
            let tolerance = bf16_tolerance(&exact, case.net.config().layers.len());
            for e in e {
                let d = max_abs_diff(&exact, &run(e, Precision::Bf16));
                assert!(d <= tolerance && d > ATOL, "{} {name} {}: {d}, at most {tolerance}", case.name, describe(e));
            }
        }
    }
}

/// Half of the layers of a recorded network in a folder of their own, as a layer-pruned checkpoint is published, are the
/// layers that were kept, at the first token and after it.
#[test]
fn a_layer_pruned_checkpoint_is_the_kept_layers_of_its_base() {
    for name in FIXTURES {
        let base = fixture(name).join("base");
        let mut oracle = Oracle::load(&base);
        let kept: Vec<usize> = (0..oracle.config.layers.len()).step_by(2).collect();
        oracle.keep_layers(&kept);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), oracle.config.to_json("float32").to_string()).unwrap();
        let tensors = only_layers(read(&base.join("model.safetensors")), &kept);
        let views = tensors.iter().map(|(name, t)| {
            (name, TensorView::new(Dtype::F32, t.shape.clone(), bytemuck::cast_slice(&t.f32s)).unwrap())
        });
        std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();

        let case = Case { oracle, ..Case::new(name, dir.path(), 2, 9) };
        let all: Vec<usize> = (0..case.prompt).collect();
        let (expected, _) = steps(&case, "RP-1.00".parse().unwrap(), Some(&[all.clone(), all]));
        for e in engines() {
            compare(&case, &System::Network(Arc::clone(&case.net)), Extent::FirstToken, &e, &expected, name);
        }
    }
}

#[test]
fn phases_are_those_of_the_pruning() {
    let case = &cases()[0];
    let e = &engines()[0];
    let phases = |name: &str| {
        let times = case.run(&case.pruned(name), Extent::FirstToken).first_token(e, &case.ids).unwrap();
        assert!(times.phases.iter().map(|p| p.time).sum::<std::time::Duration>() <= times.total);
        times.phases.into_iter().map(|p| p.phase).collect::<Vec<_>>()
    };
    assert_eq!(phases("RP-0.50"), [Phase::Prefill]);
    assert_eq!(phases("SP-0.50"), [Phase::Selection, Phase::Prefill]);
    assert_eq!(phases("L0.75-0.50"), [Phase::Prefill]);
}

#[test]
fn one_token_cannot_be_dropped() {
    let dir = fixture("A").join("base");
    let e = &engines()[0];
    let case = Case::new("A", &dir, 2, 1);
    let mut base = case.run(&System::Network(Arc::clone(&case.net)), Extent::FirstToken);
    base.first_token(e, &case.ids).unwrap();
    for name in ["RP-0.01", "SP-0.01", "L0.01-0.01"] {
        let mut run = case.run(&case.pruned(name), Extent::FirstToken);
        run.first_token(e, &case.ids).unwrap();
        assert!((0..2).all(|b| run.logits().row(b) == base.logits().row(b)), "{name}");
    }
}

#[test]
fn names_are_read_and_written() {
    for name in zoo::PRUNINGS {
        assert_eq!(name.parse::<Pruning>().unwrap().to_string(), name);
        let p = zoo::token_pruned(&format!("OE1.1B-LP-0.75-{name}")).unwrap();
        assert_eq!((p.base, p.aux, p.pruning.to_string().as_str()), ("OE1.1B-LP-0.75", None, name));
    }
    for bad in
        ["RP-0.00", "RP-1.01", "RP-.50", "RP-0.5", "SP-0.500", "SP-+.50", "L0.50-0.75", "L0.50", "LP-0.50", "", "L"]
    {
        let e = bad.parse::<Pruning>().unwrap_err().to_string();
        assert!(e.contains(&format!("'{bad}'")) && e.contains("RP-0.75"), "{e}");
    }
    assert!(zoo::token_pruned("OE7B-RP-0.75").unwrap_err().to_string().contains("OE1.1B"));
    assert!(zoo::token_pruned("OE1.1B-RP-7").unwrap_err().to_string().contains("RP-7"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn counts_fall_from_all_to_the_last_fraction(a in 1..=100u8, b in 1..=100u8, layers in 2..40usize, n in 1..3000usize) {
        let (first, last) = (Fraction::percent(a.max(b)).unwrap(), Fraction::percent(a.min(b)).unwrap());
        let p = Pruning::Lazy { first, last };
        let counts: Vec<usize> = (0..layers).map(|i| p.tokens(i, layers, n)).collect();
        prop_assert!(counts.is_sorted_by(|a, b| a >= b), "{counts:?}");
        prop_assert_eq!(counts[0], n);
        prop_assert!(counts[layers - 1] >= last.of(n) && counts[layers - 1] >= 1);
        if layers >= 5 {
            prop_assert_eq!(counts[layers - 1], last.of(n));
        }
        // The shares of the layers add up to the paper's formula, but for the layer that the step at 30% falls into and
        // rounding up.
        let sum = counts.iter().sum::<usize>() as f64 / (layers * n) as f64;
        let share = p.paper_share().unwrap();
        prop_assert!((sum - share).abs() <= 1.0 / layers as f64 + 1.0 / n as f64, "{} {}", sum, share);
    }
}
