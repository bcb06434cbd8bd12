//! Controls of KV prediction, and tokens that are scored behind a prompt: against runs that must give the same.

use std::{path::Path, sync::Arc};

use ttft_kernels::{Engine, Mat};
use ttft_models::{
    Extent, KvPrediction, Network, Precision, Pruned, RunSpec, System,
    kv_prediction::{
        control::{Control, Entries, Mean},
        layout::OwnTokens,
    },
    plan, plan_scoring,
};
use ttft_tests::models::{assert_close, describe, engines, fixture};

const PROMPT: usize = 11;
const GENERATE: usize = 6;

fn network(dir: &Path) -> Arc<Network> {
    Arc::new(Network::load(dir).expect("the fixture loads"))
}

/// An auxiliary, shared layers with maps of keys and values, and with maps of the hidden state, k_norm among them.
fn pairs() -> Vec<(&'static str, KvPrediction)> {
    let of = |name: &'static str, base: &str| {
        let dir = fixture(name);
        let aux = Some(dir.join("aux")).filter(|aux| aux.exists()).map(|aux| network(&aux));
        let base = network(&fixture(base).join("base"));
        (name, KvPrediction::new(base, aux, &dir.join("predictor")).expect("the fixture loads"))
    };
    vec![of("A", "A"), of("A2", "A"), of("G", "G"), of("H", "H")]
}

fn spec(batch: usize, prompt: usize) -> RunSpec {
    RunSpec { batch, prompt, generate: GENERATE, precision: Precision::F32, extent: Extent::FirstToken }
}

fn ids(system: &System, n: usize) -> Vec<u32> {
    let vocab = system.base().config().vocab as u32;
    (0..n as u32).map(|i| (i * i * 7 + i * 3 + 1) % vocab.min(97)).collect()
}

/// The first token's logits, then those of its own greedy continuation, token by token; and the chosen ids.
fn greedy(system: &System, e: &Engine, batch: usize, ids: &[u32]) -> (Vec<Vec<f32>>, Vec<Vec<u32>>) {
    let mut run = plan(system, &spec(batch, ids.len() / batch)).unwrap();
    let (mut logits, mut chosen) = (Vec::new(), Vec::new());
    for t in 0..GENERATE {
        if t == 0 {
            run.first_token(e, ids).unwrap();
        } else {
            run.next_token(e).unwrap();
        }
        logits.push((0..batch).flat_map(|b| run.logits().row(b).to_vec()).collect());
        chosen.push(run.token_ids().to_vec());
    }
    (logits, chosen)
}

fn rows(m: Mat<'_, f32>) -> Vec<f32> {
    (0..m.rows()).flat_map(|r| m.row(r)).copied().collect()
}

fn with(pair: &KvPrediction, (last, first): (usize, usize)) -> KvPrediction {
    pair.clone().reading(OwnTokens { last, first, kept: false })
}

fn first_logits(system: &System, e: &Engine, ids: &[u32]) -> Vec<f32> {
    let mut run = plan(system, &spec(1, ids.len())).unwrap();
    run.first_token(e, ids).unwrap();
    run.logits().row(0).to_vec()
}

/// Given tokens in one pass are the same as tokens chosen one by one; of every kind of system, again and again.
#[test]
fn given_tokens_are_scored_as_if_they_had_been_chosen() {
    let mut systems = Vec::new();
    for (name, pair) in pairs() {
        let pruned = |p: &str| System::Pruned(Pruned::new(Arc::clone(&pair.base), p.parse().unwrap()));
        systems.push((name, System::Network(Arc::clone(&pair.base))));
        systems.extend(["RP-0.50", "SP-0.50", "GemFilter-1-5"].map(|p| (name, pruned(p))));
        if pair.aux.is_some() {
            let pruning = "SpecPrefill-0.50-a2-c2-p3".parse().unwrap();
            let pruned = Pruned { aux: pair.aux.clone(), ..Pruned::new(Arc::clone(&pair.base), pruning) };
            systems.push((name, System::Pruned(pruned)));
        }
        for own in [(1, 0), (3, 1), (6, 5)] {
            let pair = with(&pair, own);
            systems.push((name, System::KvPrediction(pair.clone())));
            systems.push((name, System::KvPrediction(pair.control(Control::Nothing))));
        }
    }
    for e in &engines() {
        for (name, system) in &systems {
            for batch in [1, 2] {
                let ids = ids(system, batch * PROMPT);
                let (logits, chosen) = greedy(system, e, batch, &ids);
                let mut run = plan_scoring(system, &spec(batch, PROMPT), GENERATE - 1).unwrap();
                run.first_token(e, &ids).unwrap();
                let vocab = run.logits().cols();
                for n in [GENERATE - 1, 1, 3] {
                    let given: Vec<u32> =
                        (0..batch).flat_map(|b| (0..n).map(move |t| (b, t))).map(|(b, t)| chosen[t][b]).collect();
                    let scored = run.score(e, &given).unwrap();
                    assert_eq!((scored.rows(), scored.cols()), (batch * n, vocab));
                    for b in 0..batch {
                        for t in 0..n {
                            let expected = &logits[t + 1][b * vocab..][..vocab];
                            let what = format!("{name} {}: token {t} of {n}, sequence {b}", describe(e));
                            assert_close(&what, expected, scored.row(b * n + t));
                        }
                    }
                }
                // The run is where it was.
                run.next_token(e).unwrap();
                let next: Vec<f32> = (0..batch).flat_map(|b| run.logits().row(b).to_vec()).collect();
                assert_close(&format!("{name} {}: goes on", describe(e)), &logits[1], &next);
                let late = run.score(e, &ids[..batch]).unwrap_err().to_string();
                assert!(late.contains("right behind the prompt"), "{late}");
            }
        }
    }
}

/// The base's true entries in the place of predictions are full prefill, whoever reads the prompt.
#[test]
fn true_entries_are_full_prefill() {
    for e in &engines() {
        for (name, pair) in pairs() {
            let base = System::Network(Arc::clone(&pair.base));
            let ids = ids(&base, PROMPT);
            let mut full = plan_scoring(&base, &spec(1, PROMPT), 4).unwrap();
            full.first_token(e, &ids).unwrap();
            let (dump, first) = (full.cache_dump(), full.logits().row(0).to_vec());
            let given = [3, 1, 4, 1];
            let later = rows(full.score(e, &given).unwrap());
            for own in [(1, 0), (3, 1), (2, 5)] {
                let entries = Entries::of_base(&dump, pair.base.config().layers.len(), PROMPT - own.0).unwrap();
                let system = System::KvPrediction(with(&pair, own).control(Control::Entries(Arc::new(entries))));
                let mut run = plan_scoring(&system, &spec(1, PROMPT), 4).unwrap();
                let what = format!("{name} {} {own:?}", describe(e));
                for _ in 0..2 {
                    run.first_token(e, &ids).unwrap();
                    assert_close(&what, &first, run.logits().row(0));
                    let scored = rows(run.score(e, &given).unwrap());
                    assert_close(&what, &later, &scored);
                }
            }
        }
    }
}

/// First tokens whose entries a system keeps are read by its controls themselves, whichever was asked for first.
#[test]
fn controls_of_kept_first_tokens_read_them() {
    let e = &engines()[0];
    for (name, pair) in pairs() {
        let base = System::Network(Arc::clone(&pair.base));
        let ids = ids(&base, PROMPT);
        let layers = pair.base.config().layers.len();
        let mut full = plan(&base, &spec(1, PROMPT)).unwrap();
        full.first_token(e, &ids).unwrap();
        let mut predicts = plan(&System::KvPrediction(with(&pair, (3, 2))), &spec(1, PROMPT)).unwrap();
        predicts.record(true);
        predicts.first_token(e, &ids).unwrap();
        let mut mean = Mean::default();
        mean.add(&predicts.cache_dump(), layers, 2).unwrap();
        let exact = Entries::of_base(&full.cache_dump(), layers, PROMPT - 3).unwrap();
        let entries = [mean.entries(), exact].map(|entries| Control::Entries(Arc::new(entries)));
        for control in entries.into_iter().chain([Control::Nothing]) {
            let own = OwnTokens { last: 3, first: 2, kept: true };
            let expected = greedy(&System::KvPrediction(with(&pair, (3, 2)).control(control.clone())), e, 1, &ids);
            for kept in
                [pair.clone().reading(own).control(control.clone()), pair.clone().control(control.clone()).reading(own)]
            {
                assert!(greedy(&System::KvPrediction(kept), e, 1, &ids) == expected, "{name}: {:?}", control.filling());
            }
        }
    }
}

/// Without sinks and with nothing predicted from an auxiliary, the base sees its own last tokens alone: as positions are
/// relative, that is a prompt of these.
#[test]
fn dropped_positions_are_a_shorter_prompt() {
    for e in &engines() {
        for (name, pair) in pairs().into_iter().filter(|(_, pair)| pair.aux.is_some()) {
            let base = System::Network(Arc::clone(&pair.base));
            let ids = ids(&base, PROMPT);
            for m in [1, 4] {
                let dropped = System::KvPrediction(with(&pair, (m, 0)).control(Control::Nothing));
                let (expected, found) = (greedy(&base, e, 1, &ids[PROMPT - m..]), greedy(&dropped, e, 1, &ids));
                for (expected, found) in expected.0.iter().zip(&found.0) {
                    assert_close(&format!("{name} {} m={m}", describe(e)), expected, found);
                }
                assert_eq!(expected.1, found.1);
            }
            // With a sink it is something else, and with all tokens it is full prefill.
            let of = |own| first_logits(&System::KvPrediction(with(&pair, own).control(Control::Nothing)), e, &ids);
            assert_ne!(of((4, 1)), of((4, 0)));
            assert_eq!(of((4, 7)), first_logits(&base, e, &ids));
        }
    }
}

/// The lowest layer for which nothing was predicted has the entries of full prefill, of the tokens that the base reads itself alone:
/// what it reads of them is still exact. Those below have all entries.
#[test]
fn a_cache_with_dropped_positions_is_dumped_as_it_is() {
    let e = &engines()[0];
    let batch = 2;
    for (name, pair) in pairs() {
        let base = System::Network(Arc::clone(&pair.base));
        let ids = ids(&base, batch * PROMPT);
        let mut full = plan(&base, &spec(batch, PROMPT)).unwrap();
        full.first_token(e, &ids).unwrap();
        let full = full.cache_dump();
        for (last, first) in [(1, 0), (3, 2)] {
            let system = System::KvPrediction(with(&pair, (last, first)).control(Control::Nothing));
            let mut run = plan(&system, &spec(batch, PROMPT)).unwrap();
            run.first_token(e, &ids).unwrap();
            let dump = run.cache_dump();
            let dump: Vec<_> = dump.iter().filter(|t| t.name.starts_with("kvp_cache")).collect();
            let own: Vec<usize> = (0..first).chain(PROMPT - last..PROMPT).collect();
            let narrow = dump.iter().position(|t| t.shape[2] < PROMPT).expect("some layer lacks entries");
            for (i, found) in dump.iter().enumerate() {
                let what = format!("{name} m={last} s={first}: {}", found.name);
                let part = found.name.strip_prefix("kvp_cache").unwrap();
                let exact = full.iter().find(|t| t.name == format!("base_cache{part}")).unwrap();
                let positions = if i < narrow { (0..PROMPT).collect() } else { own.clone() };
                assert_eq!(found.shape[2], positions.len(), "{what}");
                // Keys and values.
                if i < narrow + 2 {
                    let d = exact.shape[3];
                    let heads = exact.data.chunks_exact(PROMPT * d);
                    let expected: Vec<f32> =
                        heads.flat_map(|head| positions.iter().flat_map(|p| &head[p * d..][..d])).copied().collect();
                    assert_close(&what, &expected, &found.data);
                }
            }
        }
    }
}

/// What is dropped of a layer is not seen, and nothing else: a change of the entries that a control leaves out changes
/// nothing, though it changes the prediction.
#[test]
fn shared_layers_with_nothing_predicted_still_read_the_prompt() {
    let e = &engines()[0];
    for (name, pair) in pairs().into_iter().filter(|(_, pair)| pair.aux.is_none()) {
        let base = System::Network(Arc::clone(&pair.base));
        let ids = ids(&base, PROMPT);
        let mut other = ids.clone();
        other[4] += 1;
        let of = |control: Control, ids: &[u32]| {
            first_logits(&System::KvPrediction(with(&pair, (2, 1)).control(control)), e, ids)
        };
        // Layers below read token 4 in either case, so the control knows of it; but less than full prefill does.
        assert_ne!(of(Control::Nothing, &ids), of(Control::Nothing, &other), "{name}");
        assert_ne!(of(Control::Nothing, &ids), first_logits(&base, e, &ids), "{name}");
    }
}

/// Predictions of one prompt, put back as they are, give what they gave; and their mean is one row for all.
#[test]
fn means_are_of_what_is_predicted() {
    let e = &engines()[0];
    for (name, pair) in pairs() {
        let pair = with(&pair, (1, 1));
        let (system, layers) = (System::KvPrediction(pair.clone()), pair.base.config().layers.len());
        // A single position is predicted: the mean is the prediction.
        let ids = ids(&system, 3);
        let mut run = plan(&system, &spec(1, 3)).unwrap();
        run.record(true);
        run.first_token(e, &ids).unwrap();
        let mut mean = Mean::default();
        mean.add(&run.cache_dump(), layers, 1).unwrap();
        assert_eq!(mean.rows(), 1, "{name}");
        let control = pair.control(Control::Entries(Arc::new(mean.entries())));
        assert_close(name, run.logits().row(0), &first_logits(&System::KvPrediction(control), e, &ids));
    }
}

#[test]
fn what_cannot_be_scored_is_refused() {
    let (_, pair) = pairs().remove(0);
    let e = &engines()[0];
    let base = System::Network(Arc::clone(&pair.base));
    let lazy = System::Pruned(Pruned::new(Arc::clone(&pair.base), "L0.75-0.10".parse().unwrap()));
    let refused = |system: &System, n: usize| plan_scoring(system, &spec(1, 5), n).err().unwrap().to_string();
    assert!(refused(&base, GENERATE).contains("at most 5"));
    assert!(refused(&lazy, 1).contains("LazyLLM"));
    let mut run = plan_scoring(&base, &spec(1, 5), 2).unwrap();
    assert!(run.score(e, &[1]).unwrap_err().to_string().contains("first_token before score"));
    run.first_token(e, &[1, 2, 3, 4, 5]).unwrap();
    for (ids, word) in [(&[1, 2, 3][..], "at most the 2"), (&[9999], "9999"), (&[], "empty")] {
        let error = run.score(e, ids).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let short = Entries::of_base(&[], 5, 1).unwrap();
    let system = System::KvPrediction(pair.control(Control::Entries(Arc::new(short))));
    let mut run = plan(&system, &spec(1, 5)).unwrap();
    assert!(run.first_token(e, &[1, 2, 3, 4, 5]).unwrap_err().to_string().contains("layer 0"));
}
