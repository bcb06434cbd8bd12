//! The `ttft` command from outside: right answers on the fixtures, clear refusals of everything else.

mod program;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use program::{fail, fixture, stderr, ttft};
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;
use ttft_bench::scenario::{PRESETS, Scenario};
use ttft_kernels::{Engine, Isa, Options};
use ttft_models::{Extent, Network, Precision, Pruned, RunSpec, System, plan};

const FIXTURES: [&str; 3] = ["A", "B", "C"];
const TOLERANCE: f32 = 1e-4;

/// Runs it; it must succeed. What it prints.
#[track_caller]
fn succeed(c: &mut Command) -> String {
    program::succeed(c).0
}

fn f32s(t: &safetensors::tensor::TensorView<'_>) -> Vec<f32> {
    assert_eq!(t.dtype(), Dtype::F32);
    t.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The input ids of a fixture as a tokens file.
fn tokens(dir: &Path, fixture: &Path) -> PathBuf {
    let bytes = fs::read(fixture.join("expected.safetensors")).expect("the fixture is there");
    let tensors = SafeTensors::deserialize(&bytes).expect("the fixture parses");
    let ids = tensors.tensor("input_ids").expect("input_ids");
    let n = ids.shape()[1];
    let ids: Vec<i64> = ids.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
    let rows: Vec<_> = ids.chunks(n).map(<[i64]>::to_vec).collect();
    let path = dir.join("tokens.json");
    fs::write(&path, serde_json::to_string(&rows).expect("JSON")).expect("the folder is writable");
    path
}

/// `ttft logits` on a fixture, base alone or KV prediction.
fn logits(fixture: &Path, tokens: &Path, kvp: bool, out: &Path) -> Command {
    let mut c = ttft();
    c.arg("logits").arg("--base").arg(fixture.join("base")).arg("--tokens").arg(tokens).arg("--out").arg(out);
    if kvp {
        c.arg("--aux").arg(fixture.join("aux")).arg("--predictor").arg(fixture.join("predictor"));
    }
    c
}

/// Compares what was written with the fixture: logits and every cache to the tolerance, ids exactly.
fn compare(out: &Path, fixture: &Path, kvp: bool, what: &str) {
    let (found, expected) = (fs::read(out).unwrap(), fs::read(fixture.join("expected.safetensors")).unwrap());
    let (found, expected) = (SafeTensors::deserialize(&found).unwrap(), SafeTensors::deserialize(&expected).unwrap());
    let prefix = if kvp { "kvp_" } else { "base_" };
    let mut caches = 0;
    for name in found.names() {
        let theirs = match name {
            "logits_last" | "greedy_ids" | "greedy_logits" => format!("{prefix}{name}"),
            // Where tokens can be dropped, which were kept: compared only where that is all of them.
            _ if name.starts_with("kept") => {
                let kept = found.tensor(name).unwrap();
                let n = kept.shape()[1];
                let positions: Vec<f32> = match kept.dtype() {
                    Dtype::I64 => kept.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f32).collect(),
                    _ => f32s(&kept),
                };
                assert!(positions.iter().enumerate().all(|(i, p)| *p == (i % n) as f32), "{what}: {name}");
                continue;
            }
            "scores" => continue,
            _ => {
                caches += 1;
                name.to_owned()
            }
        };
        let (f, e) = (found.tensor(name).unwrap(), expected.tensor(&theirs).unwrap());
        assert_eq!(f.shape(), e.shape(), "{what}: {name}");
        if name == "greedy_ids" {
            assert_eq!((f.dtype(), f.data()), (Dtype::I64, e.data()), "{what}: {name}");
            continue;
        }
        let worst = f32s(&f).iter().zip(f32s(&e)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= TOLERANCE, "{what}: {name} is {worst} away");
    }
    let of_arm: &[&str] = if kvp { &["kvp_cache.", "aux_cache.", "predicted."] } else { &["base_cache."] };
    let all = expected.names().iter().filter(|n| of_arm.iter().any(|p| n.starts_with(p))).count();
    assert_eq!(caches, all, "{what}: caches written and expected");
}

#[test]
fn logits_reproduces_the_fixtures() {
    let dir = TempDir::new().unwrap();
    let isas: Vec<_> = Isa::detected().into_iter().map(Isa::name).collect();
    let mut settings: Vec<Vec<&str>> = isas.iter().map(|isa| vec!["--isa", isa, "--threads", "2"]).collect();
    settings.push(vec!["--threads", "1"]);
    settings.push(vec!["--backend", "gemm"]);
    settings.push(vec!["--full-network"]);
    for name in FIXTURES {
        let fixture = fixture(name);
        let tokens = tokens(dir.path(), &fixture);
        for kvp in [false, true] {
            for set in &settings {
                let out = dir.path().join("out.safetensors");
                succeed(logits(&fixture, &tokens, kvp, &out).args(["--generate", "8", "--dump-cache"]).args(set));
                compare(&out, &fixture, kvp, &format!("{name} kvp={kvp} {set:?}"));
            }
        }
    }
}

/// Shared layers by the command: what was recorded, and a trace of it.
#[test]
fn logits_of_shared_layers_and_their_trace() {
    let dir = TempDir::new().unwrap();
    let [a, a2] = ["A", "A2"].map(fixture);
    let (tokens, out, trace) = (tokens(dir.path(), &a2), dir.path().join("out.safetensors"), dir.path().join("t.json"));
    let with = |own: &[&str]| {
        let mut c = logits(&a, &tokens, false, &out);
        c.arg("--predictor").arg(a2.join("predictor")).args(own);
        c
    };
    let expected = fs::read(a2.join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&expected).unwrap();
    for (m, s) in [("1", "0"), ("3", "0"), ("3", "1")] {
        let own = ["--base-tokens", m, "--sink-tokens", s, "--generate", "6"];
        succeed(with(&own).arg("--trace").arg(&trace));
        let found = fs::read(&out).unwrap();
        let found = SafeTensors::deserialize(&found).unwrap();
        let theirs = |name: &str| expected.tensor(&format!("kvp_m{m}_s{s}_{name}")).unwrap();
        assert_eq!(found.tensor("greedy_ids").unwrap().data(), theirs("greedy_ids").data());
        let pairs = f32s(&found.tensor("greedy_logits").unwrap()).into_iter().zip(f32s(&theirs("greedy_logits")));
        assert!(pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) <= TOLERANCE);
    }
    let trace: serde_json::Value = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let row = |tid: u64| events.iter().filter(move |e| e["ph"] == "X" && e["tid"] == tid).collect::<Vec<_>>();
    let names = |tid| row(tid).iter().map(|e| e["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(1), ["first token", "token 2", "token 3", "token 4", "token 5", "token 6"]);
    assert_eq!(names(2)[..4], ["shared_layers", "prediction", "base_step", "base_step"]);
    assert_eq!(names(3)[..3], ["Base embeds 11 of Prompt", "Base layer 0 on 11 of 11", "Base layer 1 on 11 of 11"]);
    // Steps follow one another within their call, and are as much as their phases.
    let span = |e: &serde_json::Value| (e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap());
    let ends = row(3).windows(2).all(|w| span(w[0]).0 + span(w[0]).1 <= span(w[1]).0 + 1e-3);
    let sum = |tid| row(tid).iter().map(|e| span(e).1).sum::<f64>();
    assert!(ends && (sum(2) - sum(3)).abs() < 1e-2 && sum(1) >= sum(2), "{} {} {}", sum(1), sum(2), sum(3));
    assert!(row(3)[1]["args"]["flops"].as_u64().unwrap() > 0);
    nested(&trace);
    // Below them are the threads, which worked while a call ran.
    let calls = span(row(1)[0]).0..span(row(1)[5]).0 + span(row(1)[5]).1 + 1e3;
    assert!(!row(4).is_empty() && row(4).iter().all(|e| calls.contains(&span(e).0)));
    // On some levels few-row kernels compute products of so few rows, on others tiles.
    for one_of in [&["product", "few rows"][..], &["attention"]] {
        assert!(names(4).iter().any(|n| one_of.contains(&n.as_str())), "{one_of:?}: {:?}", names(4));
    }

    // Tokens of the base without a prediction; an auxiliary that a predictor of shared layers has no use for.
    fail(logits(&a, &tokens, false, &out).args(["--base-tokens", "2"]), &["--base-tokens", "--predictor"]);
    fail(with(&[]).arg("--aux").arg(a.join("aux")), &["config.json", "source", "shared_layers"]);
    fail(&mut with(&["--base-tokens", "0"]), &["--base-tokens", "0"]);
}

/// Whether a trace is what its viewers ask for: every row named, and of two events of a row that overlap one inside the other;
/// phases inside calls, steps inside phases.
fn nested(trace: &serde_json::Value) {
    let events = trace["traceEvents"].as_array().unwrap();
    let number = |e: &serde_json::Value, key: &str| e[key].as_f64().unwrap();
    let mut rows: std::collections::BTreeMap<u64, Vec<(f64, f64)>> = Default::default();
    for e in events.iter().filter(|e| e["ph"] == "X") {
        let (ts, dur) = (number(e, "ts"), number(e, "dur"));
        assert!(ts >= 0.0 && dur >= 0.0 && !e["name"].as_str().unwrap().is_empty(), "{e}");
        rows.entry(e["tid"].as_u64().unwrap()).or_default().push((ts, ts + dur));
    }
    let named = |e: &&serde_json::Value| e["ph"] == "M" && e["name"] == "thread_name";
    let named: std::collections::BTreeSet<u64> =
        events.iter().filter(named).map(|e| e["tid"].as_u64().unwrap()).collect();
    assert!(rows.keys().all(|tid| named.contains(tid)) && rows.len() >= 4, "{named:?}");
    // Microseconds are rounded where they are added.
    let inside = |a: &(f64, f64), b: &(f64, f64)| b.0 - 1e-3 <= a.0 && a.1 <= b.1 + 1e-3;
    for (tid, row) in &mut rows {
        row.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let mut open: Vec<(f64, f64)> = Vec::new();
        for span in row.iter() {
            while open.last().is_some_and(|o| o.1 <= span.0 + 1e-3) {
                open.pop();
            }
            assert!(open.last().is_none_or(|o| inside(span, o)), "row {tid}: {span:?} in {open:?}");
            open.push(*span);
        }
    }
    for (tid, outer) in [(2, 1), (3, 2)] {
        assert!(rows[&tid].iter().all(|span| rows[&outer].iter().any(|o| inside(span, o))), "row {tid} in row {outer}");
    }
}

/// The pipelined order by the command: the same results, and in its trace the auxiliary and the base's layers in one phase.
#[test]
fn the_trace_of_the_pipelined_order() {
    let dir = TempDir::new().unwrap();
    let a = fixture("A");
    let tokens = tokens(dir.path(), &a);
    let run = |name: &str, pipelined: bool| {
        let [out, trace] = ["safetensors", "json"].map(|end| dir.path().join(format!("{name}.{end}")));
        let mut c = logits(&a, &tokens, true, &out);
        c.args(["--generate", "2", "--threads", "2"]).args(pipelined.then_some("--pipelined"));
        succeed(c.arg("--trace").arg(&trace));
        (fs::read(&out).unwrap(), serde_json::from_slice::<serde_json::Value>(&fs::read(&trace).unwrap()).unwrap())
    };
    let ((turn, turn_trace), (pipelined, trace)) = (run("turn", false), run("pipelined", true));
    assert!(turn == pipelined, "the order changes a result");
    [&turn_trace, &trace].into_iter().for_each(nested);
    let phases = |trace: &serde_json::Value| {
        let events = trace["traceEvents"].as_array().unwrap();
        let row = events.iter().filter(|e| e["ph"] == "X" && e["tid"] == 2);
        row.map(|e| e["name"].as_str().unwrap().to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(phases(&turn_trace).into_iter().collect::<Vec<_>>(), ["auxiliary", "base_step", "prediction"]);
    assert_eq!(phases(&trace).into_iter().collect::<Vec<_>>(), ["base_step", "pipelined", "prediction"]);
    // A picture of it.
    let (svg, file) = (dir.path().join("p.svg"), dir.path().join("pipelined.json"));
    succeed(ttft().args(["report", "--trace"]).arg(&file).arg("--svg").arg(&svg));
    let drawn = fs::read_to_string(&svg).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("thread by thread"), "{drawn}");
    fail(ttft().args(["report", "--trace"]).arg(&file), &["--svg"]);
    fail(ttft().args(["report", "--trace"]).arg(&tokens).arg("--svg").arg(&svg), &["expected a trace", "--trace"]);
    assert_eq!(
        (&turn_trace["otherData"]["order"], &trace["otherData"]["order"]),
        (&"in turn".into(), &"pipelined".into())
    );
}

/// A pruning that drops nothing is what was recorded of the base; one that drops some is what the library computes, which
/// is compared with its definition elsewhere.
#[test]
fn logits_of_token_prunings() {
    const GENERATE: usize = 4;
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.safetensors");
    for name in FIXTURES {
        let fixture = fixture(name);
        let tokens = tokens(dir.path(), &fixture);
        let run = |pruning: &str, generate: usize| {
            let generate = generate.to_string();
            let args = ["--prune", pruning, "--generate", &generate, "--dump-cache", "--threads", "1"];
            succeed(logits(&fixture, &tokens, false, &out).args(args));
        };
        for pruning in ["RP-1.00", "SP-1.00", "L1.00-1.00"] {
            run(pruning, 8);
            compare(&out, &fixture, false, &format!("{name} {pruning}"));
        }
        let rows: Vec<Vec<u32>> = serde_json::from_slice(&fs::read(&tokens).unwrap()).unwrap();
        let base = Arc::new(Network::load(&fixture.join("base")).unwrap());
        let engine = Engine::new(&Options { threads: Some(1), ..Options::default() }).unwrap();
        for pruning in ["RP-0.50", "SP-0.25", "L0.75-0.10"] {
            run(pruning, GENERATE);
            let (batch, prompt, precision) = (rows.len(), rows[0].len(), Precision::F32);
            let spec = RunSpec { batch, prompt, generate: GENERATE, precision, extent: Extent::FirstToken };
            let system = System::Pruned(Pruned::new(Arc::clone(&base), pruning.parse().unwrap()));
            let mut inference = plan(&system, &spec).unwrap();
            inference.first_token(&engine, &rows.concat()).unwrap();
            let bytes = fs::read(&out).unwrap();
            let found = SafeTensors::deserialize(&bytes).unwrap();
            // What was chosen before the base ran is written as positions, with the scores.
            if let Some(chosen) = inference.chosen() {
                let kept = found.tensor("kept").unwrap();
                let positions: Vec<u8> = chosen.kept.iter().flat_map(|&p| i64::from(p).to_le_bytes()).collect();
                assert!(kept.dtype() == Dtype::I64 && kept.data() == positions, "{name} {pruning}");
                assert_eq!(f32s(&found.tensor("scores").unwrap()), chosen.scores, "{name} {pruning}");
            }
            for t in inference.cache_dump().into_iter().filter(|t| t.name != "kept") {
                let there = found.tensor(&t.name).unwrap();
                assert_eq!((there.shape(), f32s(&there)), (&t.shape[..], t.data), "{name} {pruning}: {}", t.name);
            }
            let there = f32s(&found.tensor("greedy_logits").unwrap());
            let vocab = base.config().vocab;
            for step in 0..GENERATE {
                if step > 0 {
                    inference.next_token(&engine).unwrap();
                }
                for b in 0..batch {
                    let row = &there[(b * GENERATE + step) * vocab..][..vocab];
                    assert!(row == inference.logits().row(b), "{name} {pruning}: step {step}, sequence {b}");
                }
            }
        }
    }
    let (fixture, tokens) = (fixture("A"), dir.path().join("tokens.json"));
    fail(logits(&fixture, &tokens, false, &out).args(["--prune", "RP-2.00"]), &["RP-2.00", "RP-0.75"]);
    fail(logits(&fixture, &tokens, true, &out).args(["--prune", "RP-0.50"]), &["--prune", "cannot be used"]);
    let (base, aux) = (fixture.join("base"), fixture.join("aux"));
    let with = |args: &[&str], aux: Option<&Path>| {
        let mut command = ttft();
        command.args(["logits", "--tokens"]).arg(&tokens).arg("--base").arg(&base).arg("--out").arg(&out).args(args);
        if let Some(aux) = aux {
            command.arg("--aux").arg(aux);
        }
        command
    };
    for (args, aux, words) in [
        (&["--prune", "RP-0.50"][..], Some(aux.as_path()), ["RP-0.50", "no auxiliary"]),
        (&["--prune", "SpecPrefill-0.40"], None, ["SpecPrefill-0.40", "give one"]),
        (&["--prune", "SpecPrefill-0.40", "--pool", "4"], Some(&aux), ["pool 4", "odd"]),
        (&["--prune", "GemFilter-5-3"], None, ["GemFilter-5-3", "0 to 4"]),
        (&["--prune", "GemFilter-1-3", "--chunk", "2"], None, ["chunk 2", "SpecPrefill"]),
        (&["--look-ahead", "2"], None, ["--look-ahead", "--prune"]),
        (&["--prune", "SP-0.50", "--sink-tokens", "1"], None, ["--sink-tokens", "KV prediction"]),
    ] {
        fail(&mut with(args, aux), &words);
    }
}

/// The rivals as a user runs them, on the networks whose results were recorded: ids, kept tokens, scores and logits.
#[test]
fn logits_of_rivals() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out.safetensors");
    let spec = ["--prune", "SpecPrefill-0.40", "--look-ahead", "3", "--chunk", "4", "--pool", "5"];
    let gem = ["--prune", "GemFilter-1-11", "--pool", "5"];
    for (name, of, system, args) in [
        ("G2", "G", "specprefill", &spec[..]),
        ("G2", "G", "gemfilter", &gem),
        ("H2", "H", "gemfilter", &["--prune", "GemFilter-2-12"]),
    ] {
        let recorded = fs::read(fixture(name).join("expected.safetensors")).unwrap();
        let recorded = SafeTensors::deserialize(&recorded).unwrap();
        let tokens = tokens(dir.path(), &fixture(name));
        let mut command = ttft();
        command.args(["logits", "--generate", "6", "--tokens"]).arg(&tokens).arg("--out").arg(&out).args(args);
        command.arg("--base").arg(fixture(of).join("base"));
        if system == "specprefill" {
            command.arg("--aux").arg(fixture(of).join("aux"));
        }
        succeed(&mut command);
        let bytes = fs::read(&out).unwrap();
        let found = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(found.len(), 5, "{name} {system}: {:?}", found.names());
        for part in ["kept", "greedy_ids", "scores", "logits_last", "greedy_logits"] {
            let [found, expected] =
                [found.tensor(part), recorded.tensor(&format!("{system}_{part}"))].map(|t| t.unwrap());
            assert_eq!((found.shape(), found.dtype()), (expected.shape(), expected.dtype()), "{name} {system} {part}");
            if found.dtype() == Dtype::I64 {
                assert!(found.data() == expected.data(), "{name} {system} {part}");
            } else {
                let off = f32s(&found).iter().zip(f32s(&expected)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off <= 1e-4, "{name} {system} {part}: {off:e}");
            }
        }
    }
}

#[test]
fn logits_are_written_without_caches_unless_asked() {
    let dir = TempDir::new().unwrap();
    let (fixture, out) = (fixture("A"), dir.path().join("out.safetensors"));
    fs::write(&out, "what was here before").unwrap();
    succeed(&mut logits(&fixture, &tokens(dir.path(), &fixture), true, &out));
    let bytes = fs::read(&out).unwrap();
    let mut names =
        SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect::<Vec<_>>();
    names.sort();
    assert_eq!(names, ["greedy_ids", "greedy_logits", "logits_last"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "only the tokens and the output are left");
}

#[test]
fn bad_tokens_are_refused() {
    let dir = TempDir::new().unwrap();
    let (fixture, path) = (fixture("A"), dir.path().join("t.json"));
    let out = dir.path().join("out.safetensors");
    for (text, words) in [
        ("[[1, 2], [3]]", &["t.json", "ragged", "prompt 1"][..]),
        ("[]", &["t.json", "no prompt"]),
        ("[[]]", &["t.json", "prompt 0 is empty"]),
        ("[[1, -1]]", &["t.json", "position 1", "-1"]),
        ("[[1, 384]]", &["t.json", "384", "vocabulary"]),
        ("[[99999999999]]", &["t.json", "99999999999"]),
        ("[[1, 2", &["t.json", "JSON array"]),
    ] {
        fs::write(&path, text).unwrap();
        fail(&mut logits(&fixture, &path, true, &out), words);
    }
    assert!(!out.exists());
    fail(&mut logits(&fixture, &dir.path().join("none.json"), false, &out), &["none.json", "cannot read"]);
}

#[test]
fn an_unwritable_output_is_found_before_the_work() {
    let dir = TempDir::new().unwrap();
    let (fixture, tokens) = (fixture("A"), dir.path().join("missing.json"));
    // The tokens are missing too: the complaint must be about the output, so it was looked at first.
    fail(
        &mut logits(&fixture, &tokens, false, &dir.path().join("no/out.safetensors")),
        &["out.safetensors", "no folder"],
    );
    fail(&mut logits(&fixture, &tokens, false, dir.path()), &["is a folder"]);
}

#[test]
fn bad_models_are_refused() {
    let dir = TempDir::new().unwrap();
    let (fixture, out) = (fixture("A"), dir.path().join("out.safetensors"));
    let tokens = tokens(dir.path(), &fixture);
    let mut c = ttft();
    c.arg("logits").arg("--base").arg(dir.path()).arg("--tokens").arg(&tokens).arg("--out").arg(&out);
    fail(&mut c, &["config.json"]);
    // A predictor of other networks.
    let mut c = logits(&fixture, &tokens, false, &out);
    c.arg("--aux").arg(fixture.join("aux")).arg("--predictor").arg(self::fixture("C").join("predictor"));
    fail(&mut c, &["predictor"]);
    fail(
        logits(&fixture, &tokens, false, &out).arg("--predictor").arg(fixture.join("predictor")),
        &["source", "no auxiliary"],
    );
    fail(logits(&fixture, &tokens, false, &out).args(["--generate", "0"]), &["--generate"]);
}

#[test]
fn a_forced_isa_fails_with_the_list() {
    let dir = TempDir::new().unwrap();
    let (fixture, out) = (fixture("A"), dir.path().join("out.safetensors"));
    let tokens = tokens(dir.path(), &fixture);
    let have: Vec<_> = Isa::detected().into_iter().map(Isa::name).collect();
    let lacking = Isa::ALL.into_iter().find(|i| !i.available()).expect("no CPU is both x86-64 and AArch64").name();
    for name in [lacking, "avx1024"] {
        let mut words = vec![name];
        words.extend(&have);
        fail(logits(&fixture, &tokens, false, &out).args(["--isa", name]), &words);
        fail(logits(&fixture, &tokens, false, &out).env("TTFT_ISA", name), &words);
        fail(ttft().arg("machine").env("TTFT_ISA", name), &words);
    }
    fail(logits(&fixture, &tokens, false, &out).args(["--backend", "blas"]), &["blas", "ttft, gemm"]);
    fail(logits(&fixture, &tokens, false, &out).args(["--threads", "0"]), &["--threads", "1 to 1024"]);
    fail(logits(&fixture, &tokens, false, &out).args(["--kernel", "nope"]), &["nope"]);
}

#[test]
fn machine_prints_limits() {
    let text = succeed(ttft().arg("machine"));
    assert!(text.contains("CPU") && text.contains("GFLOP/s"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&succeed(ttft().args(["machine", "--json"]))).unwrap();
    assert!(json["limits"]["peaks"][0]["gflops"].as_f64().unwrap() > 0.0, "{json}");
    assert!(json["limits"]["read_gb_per_s"].as_f64().unwrap() > 0.0, "{json}");
    assert!(json["machine"]["logical_cores"].as_u64().unwrap() > 0, "{json}");
}

#[test]
fn bench_runs_tiny_and_leaves_a_record() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("run.jsonl");
    let scenario = dir.path().join("two-pairs.toml");
    // Two groups of six systems, short enough for an emulator, with a budget that not even that exhausts.
    let text = r#"
        name = "two-pairs"
        description = "both pairs of OE1.1B, and shared layers"
        systems = ["OE1.1B-KVP-C-450M", "OE1.1B-KVP-C-270M-m2", "OE1.1B-KVP-S14-m2-s1"]
        dtype = "bf16"
        lengths = [3, 5]
        batches = [1]
        rounds = 3
        budget_s = 100000
    "#;
    fs::write(&scenario, text).unwrap();
    let mut c = ttft();
    c.args(["bench", "--tiny", "--threads", "1", "--preset"])
        .arg(&scenario)
        .arg("--out")
        .arg(&out)
        .arg("--weights")
        .arg(dir.path().join("weights"));
    let text = succeed(&mut c);
    assert!(text.contains("Planned") && text.contains("OE1.1B-KVP-C-450M") && text.contains("tiny"), "{text}");
    let record = ttft_reports::schema::Record::read(&out).unwrap();
    assert_eq!(record.cells.len(), 2 * 6);
    assert!(record.skipped.is_empty());
    // It can be shared: it does not say where things lie.
    let folder = dir.path().to_string_lossy().into_owned();
    assert!(!fs::read_to_string(&out).unwrap().contains(&folder));
    assert_eq!(record.run.command.last().map(String::as_str), Some("weights"));
    for cell in &record.cells {
        assert_eq!(cell.samples_ns.len(), 3, "{}", cell.id);
        assert_eq!(cell.rounds, Some(vec![0, 1, 2]));
        assert_eq!(cell.processes, Some(vec![0, 1, 2]), "three samples are three processes");
        assert_eq!(cell.probes.as_ref().map(|p| p.gflops.len()), Some(3));
        let gate = cell.gate.as_ref().unwrap();
        assert!(gate.passed && !cell.kernels.is_empty(), "{}", cell.id);
        assert_eq!(gate.longest.as_ref().map(|l| l.prompt), Some(5), "{:?}", gate.longest_skipped);
        let phases: Vec<_> = cell.phases.iter().map(|p| p.name.as_str()).collect();
        let expected: &[_] = match (cell.kind, &cell.aux) {
            (ttft_reports::schema::Kind::Kvp, Some(_)) => &["auxiliary", "prediction", "base_step"],
            // Its base reads three tokens itself: all of the short prompt.
            (ttft_reports::schema::Kind::Kvp, None) if cell.prompt == 3 => &["base_step"],
            (ttft_reports::schema::Kind::Kvp, None) => &["shared_layers", "prediction", "base_step"],
            _ => &["prefill"],
        };
        assert_eq!(phases, expected, "{}", cell.id);
        assert!(cell.phases.iter().all(|p| p.samples_ns.iter().all(|&ns| ns > 0)), "{}", cell.id);
        assert!(cell.phases.iter().all(|p| p.parallel_regions.is_some()), "{}", cell.id);
        assert!(cell.cost().unwrap().flops.total() > 0 && cell.paper_flops.unwrap() > 0, "{}", cell.id);
    }
    // Rotation: in every group each system was at every place once.
    for cells in record.cells.chunks(6) {
        let first =
            cells.iter().map(|c| c.round_positions.clone().unwrap()[0]).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(first.len(), 6);
    }
    // An existing record is not overwritten.
    fail(&mut c, &["run.jsonl", "exists"]);
}

#[test]
fn processes_and_rounds_are_as_asked() {
    let dir = TempDir::new().unwrap();
    let (scenario, weights) = (small(dir.path()), dir.path().join("w"));
    let record = |flags: &[&str]| {
        let out = dir.path().join(format!("{}.jsonl", flags.join("")));
        let mut c = ttft();
        c.args(["bench", "--tiny", "--threads", "1", "--scenario"]).arg(&scenario).arg("--weights").arg(&weights);
        succeed(c.args(flags).arg("--out").arg(&out));
        ttft_reports::schema::Record::read(&out).unwrap()
    };
    let several = record(&["--processes=2", "--rounds=6"]);
    assert_eq!((several.run.settings.processes, several.cells.len()), (Some(2), 4));
    for cell in &several.cells {
        assert_eq!(cell.processes, Some(vec![0, 0, 0, 1, 1, 1]), "{}", cell.id);
        assert!(cell.warmup_ns.len() >= 2, "each process warms up");
        assert_eq!(cell.decode.as_ref().map(|d| d.samples_ns.len()), Some(12));
    }
    for cell in &record(&["--processes=1", "--slowdown=10"]).cells {
        assert_eq!((&cell.processes, cell.samples_ns.len()), (&None, 3));
    }
    // A record for each number of threads, bound to CPUs or not.
    let two = std::thread::available_parallelism().is_ok_and(|n| n.get() >= 2);
    let pin: &[&str] = if cfg!(target_os = "linux") && two { &["--pin"] } else { &[] };
    let mut c = ttft();
    c.args(["bench", "--tiny", "--processes=1", "--each-threads", "1,2", "--scenario"]).arg(&scenario);
    let out = succeed(c.args(pin).arg("--weights").arg(&weights).arg("--out").arg(dir.path().join("each.jsonl")));
    assert!(out.contains("TTFT by threads"), "{out}");
    for threads in [1, 2] {
        let path = dir.path().join(format!("each-{threads}-threads.jsonl"));
        let record = ttft_reports::schema::Record::read(&path).unwrap();
        assert_eq!(record.run.settings.threads, Some(threads));
        for cell in &record.cells {
            let placement = cell.placement.as_ref().unwrap();
            assert_eq!(placement.pinned, !pin.is_empty());
            if let Some(cpus) = &placement.cpus {
                assert_eq!(cpus.len(), threads as usize);
                assert!(!placement.pinned || cpus.iter().all(|c| c.len() == 1), "{cpus:?}");
            }
        }
    }
    // What a later of these runs would meet is found before the first.
    let each = |numbers: &str, out: &str| {
        let mut c = ttft();
        c.args(["bench", "--tiny", "--processes=1", "--each-threads", numbers, "--scenario"]).arg(&scenario);
        c.arg("--weights").arg(&weights).arg("--out").arg(dir.path().join(out));
        c
    };
    fail(&mut each("4,1", "each.jsonl"), &["each-1-threads.jsonl exists"]);
    fail(&mut each("1,1", "other.jsonl"), &["1 stands there twice"]);
    fail(&mut each("1,0", "other.jsonl"), &["give 1 to 1024"]);
    assert!(!dir.path().join("each-4-threads.jsonl").exists() && !dir.path().join("other-1-threads.jsonl").exists());
    // The command that does the work of one process is for ttft itself.
    fail(
        ttft().arg("worker").arg("--scenario").arg(&scenario).stdin(std::process::Stdio::null()),
        &["for ttft itself"],
    );
}

#[test]
fn settings_are_compared_in_turn_and_the_exit_code_says_which_is_slower() {
    let dir = TempDir::new().unwrap();
    let (scenario, weights) = (small(dir.path()), dir.path().join("w"));
    let compare = |old: &str, new: &str, flags: &[&str]| {
        let mut c = ttft();
        c.args(["compare", "--settings", old, new, "--scenario"]).arg(&scenario).arg("--weights").arg(&weights);
        c.args(["--rounds", "1"]).args(flags);
        let out = c.output().expect("the command starts");
        (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned(), stderr(&out))
    };
    let tiny = "--tiny --threads 1";
    // Ten times as slow on purpose: no neighbour does that in most pairs.
    let (code, text, err) = compare(tiny, "--tiny --threads 1 --slowdown 1000", &["--pairs", "8"]);
    assert_eq!(code, Some(3), "{text}{err}");
    assert!(text.contains("slower") && text.contains("OE270M"), "{text}");
    let (code, json, err) =
        compare("--tiny --threads 1 --slowdown 1000", tiny, &["--pairs", "8", "--fail-slower", "10", "--json"]);
    assert_eq!(code, Some(0), "{json}{err}");
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["schema"], "ttft-pairs/1");
    // Two pairs leave nothing to see a spread by.
    let (code, text, err) = compare(tiny, tiny, &["--pairs", "2"]);
    assert!(code == Some(2) && err.contains("4..=10000"), "{text}{err}");
    let (code, _, err) = compare(tiny, "--tiny --no-such-flag", &[]);
    assert!(code == Some(1) && err.contains("no flag --no-such-flag"), "{code:?} {err}");
    let (code, _, err) = compare(tiny, "--tiny --isa none", &[]);
    assert!(code == Some(1) && err.contains("ended early") && err.contains("none"), "{code:?} {err}");
}

#[test]
fn a_calibration_goes_on_in_its_folder() {
    let dir = TempDir::new().unwrap();
    let (scenario, weights, folder) = (small(dir.path()), dir.path().join("w"), dir.path().join("c"));
    let calibrate = |minutes: &str, threads: &str| {
        let mut c = ttft();
        c.args([
            "calibrate",
            "--tiny",
            "--processes",
            "2",
            "--rounds",
            "2",
            "--threads",
            threads,
            "--minutes",
            minutes,
        ]);
        c.arg("--scenario").arg(&scenario).arg("--weights").arg(&weights).arg("--folder").arg(&folder);
        c
    };
    let records = || {
        fs::read_dir(&folder)
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().extension() == Some("jsonl".as_ref()))
            .count()
    };
    succeed(&mut calibrate("0.1", "1"));
    let first = records();
    let text = succeed(&mut calibrate("0.1", "1"));
    assert!(first >= 1 && records() > first && text.contains("calibration.json"), "{text}");
    fail(&mut calibrate("0.1", "2"), &["are of another run", "threads"]);
    // A budget has no effect: every occasion has all its processes.
    let whole = dir.path().join("whole");
    let mut c = ttft();
    c.args(["calibrate", "--tiny", "--processes", "5", "--rounds", "5", "--threads", "1", "--minutes", "0.001"]);
    c.args(["--budget", "0.001", "--scenario"]).arg(&scenario).arg("--weights").arg(&weights).arg("--folder");
    let out = c.arg(&whole).output().expect("the command starts");
    assert!(stderr(&out).contains("at least 3 occasions"), "{}", stderr(&out));
    for cell in record(&whole.join("occasion-0001.jsonl")).cells {
        assert_eq!(cell.processes, Some(vec![0, 1, 2, 3, 4]), "{}", cell.id);
    }
    let before = records();
    succeed(&mut calibrate("0", "1"));
    assert_eq!(records(), before, "nothing is measured");
    let file = folder.join("calibration.json");
    assert!(ttft_reports::calibration::Calibration::read(&file).is_ok());
    // A newer document takes the place of an older one, and of nothing else.
    let document = |md: &Path| {
        let mut c = ttft();
        c.arg("calibrate").arg("--show").arg(&file).arg("--md").arg(md);
        c
    };
    (0..2).for_each(|_| drop(succeed(&mut document(&dir.path().join("CALIBRATION.md")))));
    fail(&mut document(&file), &["is no calibration report of ttft"]);
}

/// A process that measures and is killed, as for its memory, fails the cells of its group and no others; a calibration ends there.
#[cfg(unix)]
#[test]
fn a_killed_process_fails_its_group_alone() {
    let dir = TempDir::new().unwrap();
    let (scenario, weights) = (small(dir.path()), dir.path().join("w"));
    let script =
        "job=$(cat)\ncase $job in\n*'\"prompt\":4,'*) kill -9 $$;;\nesac\nprintf '%s\\n' \"$job\" | exec \"$@\"";
    let Some(runner) = runner(dir.path(), script) else { return };
    let out = dir.path().join("r.jsonl");
    let run = |c: &mut Command| {
        c.args(["--tiny", "--threads", "1", "--processes", "3", "--rounds", "3"]).env("TTFT_TEST_RUNNER", &runner);
        c.arg("--scenario").arg(&scenario).arg("--weights").arg(&weights).output().expect("the command starts")
    };
    let bench = run(ttft().args(["bench", "--out"]).arg(&out));
    let (table, said) = (String::from_utf8_lossy(&bench.stdout), stderr(&bench));
    assert!(bench.status.code() == Some(1) && said.contains("2 of the cells failed"), "{table}{said}");
    assert!(table.contains("1 x 5"), "{table}{said}");
    let record = record(&out);
    assert!(record.cells.len() == 2 && record.cells.iter().all(|c| c.prompt == 5), "{:?}", record.cells);
    assert!(record.skipped.len() == 2 && record.skipped.iter().all(|s| s.reason.contains("ended early (signal: 9")));
    let folder = dir.path().join("c");
    let calibrate = run(ttft().args(["calibrate", "--folder"]).arg(&folder));
    let said = stderr(&calibrate);
    assert!(calibrate.status.code() == Some(1) && said.contains("cells failed: ttft/OE270M/"), "{said}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

/// A group that is to be measured again and whose process is killed keeps the samples that it had, is told, and is not tried once
/// more for as long as the time lasts.
#[cfg(unix)]
#[test]
fn a_process_that_is_killed_in_a_repeat_costs_no_samples() {
    let dir = TempDir::new().unwrap();
    let (scenario, weights, out) = (small(dir.path()), dir.path().join("w"), dir.path().join("r.jsonl"));
    // Each process that measures leaves a line; from the one on whose number is in the file, it is killed.
    let (lines, deadly) = (dir.path().join("runner.started"), dir.path().join("runner.deadly"));
    let script = "echo >> \"$0.started\"\n[ \"$(wc -l < \"$0.started\")\" -lt \"$(cat \"$0.deadly\")\" ] || kill -9 $$\nexec \"$@\"";
    let Some(runner) = runner(dir.path(), script) else { return };
    let bench = || {
        let mut c = ttft();
        c.args(["bench", "--tiny", "--threads", "1", "--processes", "3", "--rounds", "3"]);
        c.env("TTFT_TEST_RUNNER", &runner).arg("--scenario").arg(&scenario).arg("--weights").arg(&weights);
        c
    };
    fs::write(&deadly, "1000").unwrap();
    succeed(bench().arg("--out").arg(&out));
    let started = || fs::read(&lines).unwrap().len();
    assert_eq!((started(), record(&out).cells.len()), (6, 4));
    disturb(&out, 1);
    let before = fs::read(&out).unwrap();

    // The first process of the repeat does its work, the second is killed.
    fs::write(&deadly, "8").unwrap();
    let repeat = bench().args(["--until-stable", "60", "--resume"]).arg(&out).output().expect("the command starts");
    let said = stderr(&repeat);
    assert!(repeat.status.success() && fs::read(&out).unwrap() == before, "{said}");
    for words in [
        "b1/p4: it could not be measured again, so its earlier samples stand: a process that measured ended early (signal: 9",
        "b1/p4: it is still disturbed after one attempt, and another one fails",
    ] {
        assert!(said.contains(words), "no '{words}' in: {said}");
    }
    // The other group may have been disturbed by itself.
    assert!((8..=9).contains(&started()), "{} processes: {said}", started());
}

/// A script that `TTFT_TEST_RUNNER` puts before every process that measures; `"$@"` is that process. None in an emulator, which
/// stands in the same place.
#[cfg(unix)]
fn runner(dir: &Path, script: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    if std::env::var_os("TTFT_TEST_RUNNER").is_some() {
        eprintln!("skipped: the emulator stands where the script would");
        return None;
    }
    let runner = dir.join("runner");
    fs::write(&runner, format!("#!/bin/sh\n[ \"$2\" = worker ] || exec \"$@\"\n{script}\n")).unwrap();
    fs::set_permissions(&runner, fs::Permissions::from_mode(0o755)).unwrap();
    Some(runner)
}

/// Has the machine move while the cell in this line of a record was measured.
fn disturb(record: &Path, line: usize) {
    let text = fs::read_to_string(record).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let mut cell: serde_json::Value = serde_json::from_str(&lines[line]).unwrap();
    cell["cell"]["drift"] = serde_json::json!({
        "before_gflops": 1.0, "after_gflops": 2.0, "before_read_gb_per_s": null, "after_read_gb_per_s": null
    });
    lines[line] = cell.to_string();
    fs::write(record, lines.join("\n") + "\n").unwrap();
}

/// A scenario of tiny groups.
fn small(dir: &Path) -> PathBuf {
    let path = dir.join("small.toml");
    fs::write(&path, SMALL).unwrap();
    path
}

/// Every system of every preset runs, on tiny networks and a short prompt; in a small run those of one preset alone. (That
/// the sizes of a preset can be planned is tested with the planner.)
#[test]
fn bench_runs_the_systems_of_every_preset() {
    let dir = TempDir::new().unwrap();
    let small = std::env::var_os("TTFT_TEST_SMALL").is_some_and(|value| !value.is_empty());
    for (preset, text) in PRESETS.iter().filter(|(name, _)| !small || *name == "controls") {
        let [file, out] = ["toml", "jsonl"].map(|end| dir.path().join(format!("{preset}.{end}")));
        let short = |line: &str| match line.split(' ').next() {
            Some("lengths") => "lengths = [5]".to_owned(),
            Some("batches") => "batches = [2]".to_owned(),
            // Cold starts need a disk, and have a test of their own.
            Some("start") => String::new(),
            _ => line.to_owned(),
        };
        fs::write(&file, text.lines().map(short).collect::<Vec<_>>().join("\n")).unwrap();
        let mut c = ttft();
        c.args(["bench", "--tiny", "--rounds", "1", "--threads", "1", "--budget", "1e6", "--preset"]).arg(&file);
        succeed(c.arg("--weights").arg(dir.path().join("w")).arg("--out").arg(&out));
        let (record, scenario) = (ttft_reports::schema::Record::read(&out).unwrap(), Scenario::load(preset).unwrap());
        let ids: Vec<_> =
            scenario.arms().unwrap().iter().map(|a| a.id(2, 5).trim_end_matches("/cold").to_owned()).collect();
        assert_eq!(record.cells.iter().map(|c| c.id.clone()).collect::<Vec<_>>(), ids, "{preset}");
        for cell in &record.cells {
            let gate = cell.gate.as_ref().unwrap();
            assert!(gate.passed, "{}", cell.id);
            // The f32 kernels are compared with nothing but themselves, and the record says so.
            let f32 = cell.precision == Some(ttft_reports::schema::Dtype::F32);
            assert_eq!((gate.longest.is_some(), gate.longest_skipped.is_some()), (!f32, f32), "{}", cell.id);
            assert_eq!(cell.decode.as_ref().map_or(0, |d| d.samples_ns.len()), scenario.decode as usize, "{}", cell.id);
            // Maps from hidden states, which shared layers have here, are multiplied in F32 in a run in BF16 too.
            let (cost, kvp) = (cell.cost().unwrap(), cell.kind == ttft_reports::schema::Kind::Kvp);
            let maps = if kvp && cell.aux.is_none() { cost.flops.prediction } else { 0 };
            assert_eq!(cost.f32_flops, Some(if f32 { cost.flops.total() } else { maps }), "{}", cell.id);
            let (head, last) = (cell.head.as_ref().unwrap(), cell.phases.last().unwrap());
            assert!(head.samples_ns[0] > 0 && head.samples_ns[0] < last.samples_ns[0], "{}", cell.id);
            assert_eq!(head.cost.unwrap().flops.total(), last.cost.unwrap().flops.head, "{}", cell.id);
        }
    }
}

/// Both orders of a pair, at a size where the pipelined one pays and at one where it is the other.
#[test]
fn the_pipelined_order_is_measured_where_it_differs() {
    let dir = TempDir::new().unwrap();
    let name = "OE1.1B-KVP-C-270M";
    let run = |number: u32, systems: String| {
        let [file, out] = ["toml", "jsonl"].map(|end| dir.path().join(format!("{number}.{end}")));
        let text = format!(
            "name = \"p\"\ndescription = \"d\"\nsystems = [{systems}]\ndtype = \"bf16\"\nlengths = [5, 80]\nbatches = [1]\n\
             rounds = 3\nbudget_s = 600\n"
        );
        fs::write(&file, text).unwrap();
        let mut c = ttft();
        c.args(["bench", "--tiny", "--threads", "2", "--processes", "1", "--scenario"]).arg(&file);
        let said = succeed(c.arg("--weights").arg(dir.path().join("w")).arg("--out").arg(&out));
        (said, record(&out), out)
    };
    let id = |prompt: u32| format!("ttft/{name}-pipelined/kvp/b1/p{prompt}");
    let phases = |record: &ttft_reports::schema::Record, id: &str| -> Vec<String> {
        let cell = record.cells.iter().find(|c| c.id == id).unwrap_or_else(|| panic!("no {id}"));
        cell.phases.iter().map(|p| p.name.clone()).collect()
    };
    let (said, both, out) = run(1, format!("\"{name}\", \"{name}-pipelined\""));
    assert_eq!(phases(&both, &id(5)), ["pipelined", "prediction", "base_step"]);
    assert_eq!(both.skipped.iter().map(|s| s.id.as_str()).collect::<Vec<_>>(), [id(80)]);
    let reason = &both.skipped[0].reason;
    assert!(
        reason.contains("would be the same run as without -pipelined") && reason.contains("no more than 64 tokens"),
        "{reason}"
    );
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let times = |text: &str, what: &str| words(text).matches(&words(what)).count();
    assert!(said.contains("the pipelined order does not pay") && times(&said, reason) == 1, "{said}");
    // The reason is said once, and no note repeats it.
    let note = format!("{name}-pipelined at 1 x 80: the base runs after the auxiliary");
    assert!(times(&said, "the base runs after the auxiliary") == 1 && both.run.notes.len() == 1, "{said}");
    let verdict = succeed(ttft().arg("validate").arg(&out));
    assert!(verdict.contains("The pipelined order beside the same in turn"), "{verdict}");
    // Without the other it is measured, in turn, and the record says so.
    let (_, alone, _) = run(2, format!("\"{name}-pipelined\""));
    assert_eq!(phases(&alone, &id(5)), ["pipelined", "prediction", "base_step"]);
    assert_eq!(phases(&alone, &id(80)), ["auxiliary", "prediction", "base_step"]);
    assert!(alone.skipped.is_empty() && alone.run.notes.iter().any(|n| n.starts_with(&note)), "{:?}", alone.run.notes);
}

/// A file on the file system that holds the build can be brought out of memory; else what depends on it is skipped.
#[cfg(target_os = "linux")]
fn evicts(dir: &Path) -> bool {
    use ttft_models::weights::MappedFile;
    let path = dir.join("probe");
    fs::write(&path, [7; 1 << 16]).unwrap();
    let file = fs::File::open(&path).unwrap();
    file.sync_all().unwrap();
    let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    let gone = nix::fcntl::posix_fadvise(&file, 0, 0, advice).is_ok()
        && MappedFile::open(&path).unwrap().resident_pages().is_ok_and(|(resident, _)| resident == 0);
    if !gone {
        println!("SKIPPED: {} is on a file system that evicts nothing: cold starts are not tested", dir.display());
    }
    gone
}

/// Tiny networks from cold starts: what is recorded, said, and refused.
#[cfg(target_os = "linux")]
#[test]
fn cold_starts_read_everything_every_time() {
    use ttft_reports::{schema::Record, summary};
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if !evicts(dir.path()) {
        return;
    }
    let scenario = dir.path().join("pair.toml");
    let text = r#"
        name = "pair"
        description = "a test"
        systems = ["OE1.1B-KVP-C-450M"]
        dtype = "bf16"
        start = "cold"
        lengths = [4]
        batches = [1]
        rounds = 3
        decode = 2
        budget_s = 100000
    "#;
    fs::write(&scenario, text).unwrap();
    let bench_in = |weights: &Path, out: &str, more: &[&str]| {
        let mut c = ttft();
        c.args(["bench", "--tiny", "--threads", "1"]).arg("--scenario").arg(&scenario).arg("--weights").arg(weights);
        c.arg("--out").arg(dir.path().join(out)).args(more);
        c
    };
    let bench = |out: &str, more: &[&str]| bench_in(&dir.path().join("w"), out, more);
    let plan = succeed(&mut bench("none.jsonl", &["--plan"]));
    assert!(plan.contains("starts are cold") && plan.contains("from disk"), "{plan}");
    let text = succeed(&mut bench("cold.jsonl", &[]));
    assert!(text.contains("OE1.1B-KVP-C-450M at 1 x 4 reads ") && text.contains("from opening the folders"), "{text}");
    succeed(&mut bench("one.jsonl", &["--processes", "1"]));
    for out in ["cold.jsonl", "one.jsonl"] {
        let record = Record::read(&dir.path().join(out)).unwrap();
        assert_eq!((record.cells.len(), record.skipped.len()), (3, 0));
        for cell in &record.cells {
            let cold = cell.cold.as_ref().unwrap();
            assert!(cell.id.ends_with("/b1/p4/cold") && cell.gate.as_ref().unwrap().passed, "{}", cell.id);
            assert_eq!((cell.samples_ns.len(), cell.warmup_ns.len()), (3, 0), "{}", cell.id);
            let phases: Vec<_> = cell.phases.iter().map(|p| p.name.as_str()).collect();
            let warm: Vec<_> = cold.warm_phases.iter().map(|p| p.name.as_str()).collect();
            assert_eq!((phases[0], &phases[1..]), ("open", &warm[..]), "{}", cell.id);
            assert!(cell.phases[0].samples_ns.iter().chain(&cold.warm_ns).all(|ns| *ns > 0), "{}", cell.id);
            assert_eq!(cell.decode.as_ref().unwrap().samples_ns.len(), 6);
            // Every start reads what it needs, whatever was in memory before; a system that does not count is no failure.
            let needed = summary::needed_bytes(cell).unwrap();
            match &cold.read_bytes {
                Some(bytes) if cold.read_source.starts_with("read_bytes") => {
                    assert!(bytes.iter().all(|b| 10 * b > 8 * needed), "{}: {bytes:?} of {needed}", cell.id);
                }
                _ => println!("SKIPPED: {}", cold.read_source),
            }
            let doubts = summary::doubts(cell, None);
            assert!(!doubts.iter().any(|d| matches!(d, summary::Doubt::MajorFaults(_))), "{doubts:?}");
            assert!(cold.file_bytes >= needed && !cold.cache.is_empty());
        }
        let bytes = |at: usize| record.cells[at].cold.as_ref().unwrap().file_bytes;
        let (base, aux, kvp) = (bytes(0), bytes(1), bytes(2));
        assert!(kvp > base + aux, "KV prediction opens both networks and its predictor");
    }
    // Cold and warm are never compared, and the flag overrules the file.
    succeed(&mut bench("warm.jsonl", &["--start", "warm", "--rounds", "1"]));
    let [cold, warm] = ["cold.jsonl", "warm.jsonl"].map(|out| dir.path().join(out));
    assert!(Record::read(&warm).unwrap().cells.iter().all(|c| c.cold.is_none() && !c.id.ends_with("cold")));
    fail(ttft().arg("compare").arg(&cold).arg(&warm), &["a cold start against a warm one", "never compared"]);
    fail(bench("new.jsonl", &["--start", "warm", "--resume"]).arg(&cold), &["settings/start"]);
    let verdict = succeed(ttft().arg("validate").arg(&cold));
    assert!(verdict.contains("opening the files") && verdict.contains("no roofline covers reading"), "{verdict}");
    // A mapping of another program keeps pages in memory, and the run says so.
    let network = fs::read_dir(dir.path().join("w")).unwrap().map(|e| e.unwrap().path());
    let network = network.into_iter().find(|p| p.to_string_lossy().contains("tiny-OE1.1B-bf16")).unwrap();
    let mapped = ttft_models::weights::MappedFile::open(&network.join("model.safetensors")).unwrap();
    assert_ne!(mapped.bytes().iter().fold(0u8, |a, b| a | b), 0);
    fail(&mut bench("held.jsonl", &[]), &["pages stay in memory", "end other programs"]);
    drop(mapped);
    // Memory is no disk, which is said before anything is made.
    let shm = Path::new("/dev/shm");
    match nix::sys::statfs::statfs(shm) {
        Ok(found) if found.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC => {
            let weights = shm.join(format!("ttft-cold-{}", std::process::id()));
            fail(&mut bench_in(&weights, "shm.jsonl", &[]), &["memory itself", "TTFT_WEIGHTS"]);
            assert!(!weights.exists());
        }
        _ => println!("SKIPPED: no tmpfs at /dev/shm"),
    }
}

/// Counters of energy that run while the program does: what it says was counted, and no more.
#[test]
fn bench_measures_energy_where_the_machine_tells_it() {
    let dir = TempDir::new().unwrap();
    let package = dir.path().join("powercap/intel-rapl:0");
    fs::create_dir_all(&package).unwrap();
    fs::write(package.join("name"), "package-0\n").unwrap();
    // It begins anew every thousand readings.
    const STEP: u64 = 1_000_000;
    fs::write(package.join("max_energy_range_uj"), format!("{}\n", 1000 * STEP)).unwrap();
    let set = |counter: u64| {
        // Whole at any time, as the kernel's own file is.
        fs::write(package.join("next"), format!("{}\n", counter % (1000 * STEP))).unwrap();
        fs::rename(package.join("next"), package.join("energy_uj")).unwrap();
    };
    set(0);
    let scenario = small(dir.path());
    let bench = |out: &str, root: &Path, more: &[&str]| {
        let mut c = ttft();
        c.env("TTFT_TEST_POWERCAP", root).env("TTFT_ENERGY", "on").args([
            "bench",
            "--tiny",
            "--threads",
            "1",
            "--processes",
            "2",
        ]);
        c.arg("--scenario").arg(&scenario).arg("--weights").arg(dir.path().join("w")).args(more);
        let out = dir.path().join(out);
        let text = succeed(c.arg("--out").arg(&out));
        (text, ttft_reports::schema::Record::read(&out).unwrap().cells)
    };
    let done = std::sync::atomic::AtomicBool::new(false);
    struct Stop<'a>(&'a std::sync::atomic::AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
    let (counted, (text, cells)) = std::thread::scope(|threads| {
        let counting = threads.spawn(|| {
            let mut counter = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                counter += STEP;
                set(counter);
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            counter as f64 * 1e-6
        });
        let stop = Stop(&done);
        let measured = bench("known.jsonl", &dir.path().join("powercap"), &[]);
        drop(stop);
        (counting.join().unwrap(), measured)
    });
    assert!(text.contains("Energy to the first token") && text.contains("powercap: package-0"), "{text}");
    let mut all = 0.0;
    for cell in &cells {
        let energy = cell.energy.as_ref().unwrap();
        assert!(energy.joules.unwrap() > 0.0 && energy.idle_watts.unwrap() > 0.0, "{energy:?}");
        assert!(energy.repetitions > 0 && energy.seconds.unwrap() >= 2.0 && energy.missing.is_none(), "{energy:?}");
        all += energy.joules.unwrap() * f64::from(energy.repetitions);
    }
    assert!(!cells.is_empty() && all <= counted, "{all} of {counted}");

    let (text, cells) = bench("unknown.jsonl", &dir.path().join("none"), &["--rounds", "2"]);
    let reason = cells[0].energy.as_ref().and_then(|e| e.missing.clone()).unwrap();
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        reason.contains("no package tells its energy") && words(&text).contains(&words(&reason)),
        "{reason}\n{text}"
    );
    let (_, cells) = bench("off.jsonl", &dir.path().join("powercap"), &["--rounds", "2", "--energy", "off"]);
    assert!(cells.iter().all(|c| c.energy.is_none()));
}

#[test]
fn bench_skips_what_the_budget_does_not_hold() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("run.jsonl");
    let mut c = ttft();
    c.args(["bench", "--tiny", "--budget", "0.000001"])
        .arg("--out")
        .arg(&out)
        .arg("--weights")
        .arg(dir.path().join("w"));
    fail(&mut c, &["nothing was measured", "all 28 cells", "base/b1/p64 because it would take"]);
    let record = ttft_reports::schema::Record::read(&out).unwrap();
    assert!(record.cells.is_empty());
    assert_eq!(record.skipped.len(), 28);
    // The pipelined order is a system of its own at one of the four sizes, at the others it is the same in turn.
    let (same, rest): (Vec<_>, Vec<_>) =
        record.skipped.iter().partition(|s| s.reason.starts_with("would be the same run as without -pipelined"));
    assert_eq!(same.len(), 6);
    assert!(same.iter().all(|s| s.id.contains("-pipelined/")));
    assert!(rest.iter().all(|s| s.reason.contains("TTFT_BUDGET") && s.estimate_s.is_some()));
}

/// What memory does not hold is told by the plan, and skipped with the reason.
#[test]
fn bench_skips_what_memory_does_not_hold() {
    let dir = TempDir::new().unwrap();
    let (out, scenario) = (dir.path().join("run.jsonl"), dir.path().join("large.toml"));
    fs::write(&scenario, SMALL.replace("[4, 5]", "[131072]").replace("[1]", "[4096]")).unwrap();
    let bench = || {
        let mut c = ttft();
        c.args(["bench", "--tiny", "--threads", "1", "--budget", "1e12", "--scenario"]).arg(&scenario);
        c.arg("--weights").arg(dir.path().join("w")).arg("--out").arg(&out);
        c
    };
    let plan = succeed(bench().arg("--plan"));
    assert!(plan.contains("memory is too small, so the run skips: OE270M, OE270M at 4096 x 131072"), "{plan}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a plan leaves nothing behind");
    fail(&mut bench(), &["nothing was measured", "of memory"]);
    let record = ttft_reports::schema::Record::read(&out).unwrap();
    assert!(record.cells.is_empty());
    assert!(!dir.path().join("w").exists(), "what is not run needs no weights");
    let skipped: Vec<_> = record.skipped.iter().map(|s| (s.id.as_str(), s.reason.contains("of memory"))).collect();
    assert_eq!(skipped, [("ttft/OE270M/base/b4096/p131072", true), ("ttft/OE270M/base/b4096/p131072/2", true)]);
    assert!(record.skipped.iter().all(|s| s.estimate_bytes > Some(1 << 40)), "{:?}", record.skipped);
}

#[test]
fn bench_refuses_bad_scenarios() {
    fail(ttft().args(["bench", "--scenario", "quik"]), &["quik", "quick, grid"]);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("s.toml");
    fs::write(&path, "name = \"x\"\nsystems = 3").unwrap();
    fail(ttft().args(["bench", "--preset"]).arg(&path), &["s.toml", "systems"]);
    fail(ttft().args(["bench", "--budget=-3"]), &["--budget", "positive"]);
    fail(ttft().args(["bench", "--precision", "fp4"]), &["fp4", "f32, bf16"]);
}

/// A scenario of seconds: one small network beside itself, two tokens after the first.
const SMALL: &str = r#"
    name = "small"
    description = "a test"
    systems = ["OE270M", "OE270M"]
    dtype = "f32"
    lengths = [4, 5]
    batches = [1]
    rounds = 3
    decode = 2
    budget_s = 600
"#;

/// A run is resumed where it was cut off; one that is not the same is refused; disturbed groups are measured again.
#[test]
fn bench_resumes_and_repeats_what_was_disturbed() {
    let dir = TempDir::new().unwrap();
    let (out, scenario) = (dir.path().join("run.jsonl"), dir.path().join("small.toml"));
    fs::write(&scenario, SMALL).unwrap();
    let bench = || {
        let mut c = ttft();
        c.args(["bench", "--tiny", "--threads", "1", "--scenario"]).arg(&scenario);
        c.arg("--weights").arg(dir.path().join("w"));
        c
    };
    let text = succeed(bench().arg("--out").arg(&out));
    assert!(text.find("disk: ").is_some_and(|at| text[at..].contains("to be made")), "{text}");
    let read = || ttft_reports::schema::Record::read(&out).unwrap();
    let ids: Vec<_> = read().cells.iter().map(|c| c.id.clone()).collect();
    assert_eq!(ids, ["b1/p4", "b1/p4/2", "b1/p5", "b1/p5/2"].map(|size| format!("ttft/OE270M/base/{size}")));
    for cell in read().cells {
        let decode = cell.decode.expect("generation is recorded");
        assert!((decode.steps, decode.samples_ns.len()) == (2, 6) && decode.samples_ns.iter().all(|&ns| ns > 0));
    }

    // Cut off in the middle of the second group.
    let whole = fs::read_to_string(&out).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let kept = format!("{}\n", lines[..4].join("\n"));
    fs::write(&out, format!("{kept}{}", &lines[4][..20])).unwrap();
    let torn = fs::read(&out).unwrap();
    fail(bench().args(["--rounds", "4", "--resume"]).arg(&out), &["run.jsonl", "rounds: 3 then, 4 now"]);
    if cfg!(target_os = "linux") {
        fail(bench().args(["--pin", "--resume"]).arg(&out), &["pin: false then, true now"]);
    }
    let other = bench().args(["--base", "OE450M", "--resume"]).arg(&out).output().expect("the command starts");
    let said = stderr(&other);
    assert!(
        !other.status.success() && said.contains("networks: not the same") && !said.contains("config_sha256"),
        "{said}"
    );
    assert!(said.contains("It was started with: ttft bench --tiny --threads 1 --scenario small.toml"), "{said}");
    succeed(bench().args(["--plan", "--resume"]).arg(&out));
    assert!(fs::read(&out).unwrap() == torn, "neither a refusal nor a plan changes the record");
    fail(ttft().args(["bench", "--threads", "1", "--resume"]).arg(&out), &["scenario_sha256", "Tiny"]);
    succeed(bench().arg("--resume").arg(&out));
    assert!(fs::read_to_string(&out).unwrap().starts_with(&kept), "what was there stays as it was");
    let attempts = || read().cells.iter().map(|c| c.attempt).collect::<Vec<_>>();
    assert_eq!((read().cells.len(), attempts()), (4, vec![1, 1, 2, 1]));
    // Nothing is left to do.
    let before = fs::read(&out).unwrap();
    let plan = succeed(bench().args(["--plan", "--resume"]).arg(&out));
    assert!(plan.contains("time: about 0 ns") && plan.contains("disk: no weights needed"), "{plan}");
    succeed(bench().arg("--resume").arg(&out));
    assert!(fs::read(&out).unwrap() == before);

    // The machine moved during the first cell: its group is measured again, as a whole.
    fs::write(&out, &whole).unwrap();
    disturb(&out, 1);
    // An emulator needs longer for the least that can be taken.
    let seconds = if std::env::var_os("TTFT_TEST_SMALL").is_some() { "20" } else { "2" };
    succeed(bench().args(["--until-stable", seconds, "--resume"]).arg(&out));
    assert!(attempts()[..2].iter().all(|&n| n >= 2), "{:?}", attempts());
}

/// The kernel that a run was told to take stands in its record, and a run is not resumed with another.
#[test]
fn a_kernel_asked_for_by_name_is_recorded_and_kept() {
    const KERNEL: &str = "gemm_f32xf32_f32_8x4_portable";
    let dir = TempDir::new().unwrap();
    let (out, scenario) = (dir.path().join("run.jsonl"), dir.path().join("small.toml"));
    fs::write(&scenario, SMALL.replace("[4, 5]", "[4]").replace("\"OE270M\", \"OE270M\"", "\"OE270M\"")).unwrap();
    let bench = || {
        let mut c = ttft();
        c.args(["bench", "--tiny", "--threads", "1", "--isa", "portable", "--scenario"]).arg(&scenario);
        c.arg("--weights").arg(dir.path().join("w"));
        c
    };
    let table = succeed(bench().env("TTFT_KERNEL", KERNEL).arg("--out").arg(&out));
    assert!(table.contains(&format!("kernel {KERNEL}")), "{table}");
    let record = ttft_reports::schema::Record::read(&out).unwrap();
    assert_eq!((record.run.settings.kernel.as_deref(), record.cells.len()), (Some(KERNEL), 1));
    let before = fs::read(&out).unwrap();
    fail(
        bench().arg("--resume").arg(&out),
        &["run.jsonl", &format!("settings/kernel: \"{KERNEL}\" then, null now"), "as flags or as variables"],
    );
    fail(
        bench().args(["--kernel", "dot_f32xf32_f32_portable", "--resume"]).arg(&out),
        &[&format!("settings/kernel: \"{KERNEL}\" then, \"dot_f32xf32_f32_portable\" now")],
    );
    succeed(bench().args(["--kernel", KERNEL, "--resume"]).arg(&out));
    assert!(fs::read(&out).unwrap() == before, "nothing is left to do");
}

#[test]
fn zoo_lists_every_system() {
    let text = succeed(ttft().arg("zoo"));
    for name in ttft_models::zoo::names() {
        assert!(text.lines().any(|l| l.split_whitespace().next() == Some(name)), "{name}: {text}");
    }
    // The paper's headline figure and the exact count at its batch and length.
    let has = |text: &str, words: [&str; 3]| text.lines().any(|l| words.iter().all(|w| l.contains(w)));
    assert!(has(&text, ["OE1.1B-KVP-C-450M", "2.36x", "2.43x"]), "{text}");
    let full = succeed(ttft().args(["zoo", "--extent", "full_network"]));
    assert!(has(&full, ["OE1.1B-KVP-C-450M", "2.36x", "2.28x"]), "{full}");
    fail(ttft().args(["zoo", "--batch", "0"]), &["--batch"]);
}

/// First tokens that are kept are in the name and in a note, pass the gate, and take part in no cold start.
#[test]
fn records_say_what_was_kept_from_an_earlier_call() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("shared.toml");
    let text = "name = \"x\"\ndescription = \"x\"\nsystems = [\"OE1.1B-KVP-S14-m3-s1\", \"OE1.1B-KVP-C-270M-s2\"]\n\
                dtype = \"bf16\"\nlengths = [20]\nbatches = [1]\nrounds = 1\nbudget_s = 100000\n";
    fs::write(&file, text).unwrap();
    let run = |out: &Path, more: &[&str]| {
        let mut c = ttft();
        c.args(["bench", "--tiny", "--threads", "1", "--preset"]).arg(&file).arg("--weights").arg(dir.path().join("w"));
        c.arg("--out").arg(out).args(more);
        c
    };
    let out = dir.path().join("kept.jsonl");
    succeed(&mut run(&out, &["--keep-sinks"]));
    let record = ttft_reports::schema::Record::read(&out).unwrap();
    for (name, first) in [("OE1.1B-KVP-S14-m3-s1kept", 1), ("OE1.1B-KVP-C-270M-s2kept", 2)] {
        let cell = record.cells.iter().find(|c| c.system == name).unwrap();
        assert!(cell.gate.as_ref().unwrap().passed, "{name}");
        let says = format!("{name}: the keys and values of the first {first} of");
        assert!(record.run.notes.iter().any(|n| n.starts_with(&says)), "{:?}", record.run.notes);
    }
    let cold = dir.path().join("cold.jsonl");
    let out = run(&cold, &["--keep-sinks", "--start", "cold", "--processes", "1"]).output().unwrap();
    // Where cold starts cannot be had at all, that is said instead.
    assert!(!out.status.success() && stderr(&out).contains("cold"), "{}", stderr(&out));
    fail(ttft().args(["bench", "--tiny", "--preset", "quick", "--plan", "--keep-sinks"]), &["--keep-sinks", "-sS"]);
    let a = fixture("A");
    let tokens = tokens(dir.path(), &a);
    let to = dir.path().join("logits.safetensors");
    fail(logits(&a, &tokens, true, &to).arg("--keep-sinks"), &["--sink-tokens"]);
    let read = |more: &[&str]| {
        succeed(logits(&a, &tokens, true, &to).args(["--sink-tokens", "2", "--generate", "3"]).args(more));
        let bytes = fs::read(&to).unwrap();
        let found = SafeTensors::deserialize(&bytes).unwrap();
        (found.tensor("greedy_ids").unwrap().data().to_vec(), f32s(&found.tensor("greedy_logits").unwrap()))
    };
    let (made, kept) = (read(&[]), read(&["--keep-sinks"]));
    let off = made.1.iter().zip(&kept.1).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(made.0 == kept.0 && off <= TOLERANCE, "{off:e}");
}

/// A pair of one's own whose auxiliary chooses tokens, and a network whose layer does: configurations are enough.
#[test]
fn bench_prunes_networks_of_ones_own() {
    let dir = TempDir::new().unwrap();
    for (prune, aux, system, kind) in [
        ("SpecPrefill-0.40-a2-c3-p3", true, "A-B-SpecPrefill-0.40-a2-c3-p3", "spec_prefill"),
        ("GemFilter-1-4", false, "A-GemFilter-1-4", "gem_filter"),
        ("RP-0.50", false, "A-RP-0.50", "random_pruned"),
    ] {
        let out = dir.path().join(format!("{prune}.jsonl"));
        let [a, b] = [("A", "OE450M"), ("B", "OE270M")].map(|(name, like)| {
            let to = dir.path().join(format!("{name}.json"));
            let config = ttft_models::zoo::network(like).unwrap();
            fs::write(&to, config.to_json("bfloat16").to_string()).unwrap();
            to
        });
        let mut c = ttft();
        c.args([
            "bench",
            "--tiny",
            "--threads",
            "1",
            "--rounds",
            "1",
            "--processes",
            "1",
            "--budget",
            "100000",
            "--base",
        ])
        .arg(&a);
        if aux {
            c.arg("--aux").arg(&b);
        }
        let scenario = dir.path().join("s.toml");
        let text = "name = \"x\"\ndescription = \"x\"\nsystems = [\"OE270M\"]\ndtype = \"bf16\"\nlengths = [12]\n\
                    batches = [2]\nrounds = 1\nbudget_s = 100000\n";
        fs::write(&scenario, text).unwrap();
        c.args(["--prune", prune, "--preset"]).arg(&scenario).arg("--weights").arg(dir.path().join("w"));
        succeed(c.arg("--out").arg(&out));
        let record = ttft_reports::schema::Record::read(&out).unwrap();
        let cell = record.cells.iter().find(|c| c.system == system).unwrap_or_else(|| panic!("{:?}", record.cells));
        assert_eq!((cell.kind.name(), cell.base.as_str(), cell.aux.as_deref()), (kind, "A", aux.then_some("B")));
        assert!(cell.gate.as_ref().unwrap().passed, "{prune}");
    }
}

/// A predictor without maps is what a name says, and what `--init own` asks for.
#[test]
fn synth_writes_predictors_without_maps() {
    let dir = TempDir::new().unwrap();
    let config = fixture("A").join("base/config.json");
    let (own, tokens) = (dir.path().join("own"), tokens(dir.path(), &fixture("A")));
    let synth = |out: &Path, more: &[&str]| {
        let mut c = ttft();
        c.arg("synth").arg(&config).arg("--out").arg(out).args(more);
        c
    };
    succeed(&mut synth(&own, &["--shared-layers", "3", "--init", "own"]));
    let json: serde_json::Value = serde_json::from_slice(&fs::read(own.join("config.json")).unwrap()).unwrap();
    assert_eq!((json["shared_layers"].as_u64(), &json["source"]), (Some(3), &"shared_layers".into()));
    let file = fs::read(own.join("predictor.safetensors")).unwrap();
    assert!(SafeTensors::deserialize(&file).unwrap().is_empty());
    let out = dir.path().join("out.safetensors");
    succeed(logits(&fixture("A"), &tokens, false, &out).arg("--predictor").arg(&own));

    let x = dir.path().join("x");
    fail(&mut synth(&x, &["--shared-layers", "5"]), &["--shared-layers", "1 to 4", "5"]);
    fail(&mut synth(&x, &["--init", "own"]), &["--shared-layers"]);
    fail(ttft().args(["synth", "OE1.1B-KVP-C-450M", "--init", "own", "--out"]).arg(&x), &["shared layers", "450M"]);
    assert!(!x.exists());
}

#[test]
fn synth_writes_a_model_once() {
    let dir = TempDir::new().unwrap();
    let config = fixture("A").join("base/config.json");
    let out = dir.path().join("model");
    let synth = |name: &Path, out: &Path| {
        let mut c = ttft();
        c.arg("synth").arg(name).args(["--dtype", "bf16", "--seed", "7", "--out"]).arg(out);
        c
    };
    succeed(&mut synth(&config, &out));
    // The folder is a model: it runs.
    let tokens = dir.path().join("t.json");
    fs::write(&tokens, "[[1, 2, 3]]").unwrap();
    let logits = dir.path().join("l.safetensors");
    succeed(ttft().arg("logits").arg("--base").arg(&out).arg("--tokens").arg(&tokens).arg("--out").arg(&logits));
    // The same seed gives the same bytes, and nothing is overwritten.
    let again = dir.path().join("again");
    succeed(&mut synth(&config, &again));
    let file = |d: &Path| fs::read(d.join("model.safetensors")).unwrap();
    assert!(file(&out) == file(&again));
    assert!(succeed(&mut synth(&config, &out)).contains("already"));
    let mine = dir.path().join("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("notes.txt"), "mine").unwrap();
    fail(&mut synth(&config, &mine), &["mine"]);
    assert_eq!(fs::read(mine.join("notes.txt")).unwrap(), b"mine");
    fail(&mut synth(Path::new("OE7B"), &dir.path().join("x")), &["OE7B", "OE1.1B", "OE1.1B-KVP-C-450M"]);
    fail(ttft().args(["synth", "OE270M", "--dtype", "i8", "--out", "x"]), &["i8", "f32, f16, bf16"]);
}

#[test]
fn records_are_judged_compared_and_reported() {
    let dir = TempDir::new().expect("a folder");
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reports/data/amd-epyc-zen4-2c/quick.jsonl");
    let verdict = succeed(ttft().arg("validate").arg(&record));
    assert!(verdict.contains("OE1.1B-KVP-C-450M"), "{verdict}");
    let files = ["html", "md", "csv"].map(|f| (f, dir.path().join(format!("report.{f}"))));
    let mut report = ttft();
    report.arg("report").arg(&record).arg("paper");
    for (format, file) in &files {
        report.arg(format!("--{format}")).arg(file);
    }
    succeed(&mut report);
    for (_, file) in &files {
        let text = fs::read_to_string(file).expect("the report is there");
        assert!(text.contains("OE1.1B-KVP-C-270M"), "{}", file.display());
    }
    // The same again replaces the reports; one part alone is a part.
    succeed(&mut report);
    let part = dir.path().join("part.md");
    succeed(ttft().arg("report").arg(&record).args(["--section", "cells,method", "--md"]).arg(&part));
    let text = fs::read_to_string(&part).expect("the part is there");
    let titles: Vec<_> = text.lines().filter(|l| l.starts_with("## ")).collect();
    assert_eq!(titles, ["## All cells", "## Method and bias"]);
    fail(ttft().arg("report").arg(&record).args(["--section", "cell", "--md", "x"]), &["cell", "paper", "validity"]);
    let same = succeed(ttft().arg("compare").arg(&record).arg(&record));
    assert!(same.contains("OE450M"), "{same}");
    fail(ttft().arg("compare").arg(&record).arg("paper"), &["error"]);
    fail(ttft().args(["compare", "--group"]).args([&record, &record]), &["all 2 records are of one machine", "--with"]);
    fail(ttft().arg("report").arg(&record), &["--html"]);
    // An installed program finds what an earlier calibration left in the user's cache: if that is damaged, it says so and goes on.
    let installed = dir.path().join("ttft");
    fs::copy(env!("CARGO_BIN_EXE_ttft"), &installed).unwrap();
    fs::create_dir_all(dir.path().join("ttft-cache/ttft/ttft-calibration")).unwrap();
    fs::write(dir.path().join("ttft-cache/ttft/ttft-calibration/calibration.json"), "{\"schema\": ").unwrap();
    let mut words = program::words();
    *words.last_mut().unwrap() = installed.to_string_lossy().into_owned();
    let mut compare = program::program(&words);
    let compare = compare.arg("compare").args([&record, &record]).env("XDG_CACHE_HOME", dir.path().join("ttft-cache"));
    let out = compare.output().unwrap();
    assert!(out.status.success() && stderr(&out).contains("calibration is not used"), "{}", stderr(&out));
    fail(ttft().args(["compare", "paper", "none.jsonl"]), &["none.jsonl", "a record", "`paper`"]);
    fail(ttft().arg("validate").arg(fixture("A").join("meta.json")), &["error"]);
}

/// Warnings change the exit code only where that is asked for.
#[test]
fn the_doctor_answers_in_words_and_in_json() {
    let words = succeed(ttft().arg("doctor"));
    let answer: serde_json::Value = serde_json::from_str(&succeed(ttft().args(["doctor", "--json"]))).expect("JSON");
    assert_eq!(answer["schema"], "ttft-doctor/1");
    for check in answer["checks"].as_array().expect("a list") {
        assert!(words.contains(check["name"].as_str().expect("a name")), "{words}");
    }
    let strict = ttft().args(["doctor", "--json", "--strict"]).output().expect("it starts");
    let answer: serde_json::Value = serde_json::from_slice(&strict.stdout).expect("JSON");
    assert_eq!(strict.status.code(), Some(if answer["warnings"] == 0 { 0 } else { 3 }));
}

/// A folder with the configuration of part of fixture G alone.
fn shape(dir: &Path, name: &str, part: &str) -> PathBuf {
    let folder = dir.join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::copy(fixture("G").join(part).join("config.json"), folder.join("config.json")).unwrap();
    folder
}

fn record(path: &Path) -> ttft_reports::schema::Record {
    ttft_reports::schema::Record::read(path).unwrap()
}

/// Two config.json files: weights of their shapes are made and kept, the pair is measured in processes and judged; the record
/// says what ran.
#[test]
fn a_pair_of_two_configurations_alone() {
    let dir = TempDir::new().unwrap();
    let (scenario, weights) = (small(dir.path()), dir.path().join("w"));
    let base = shape(dir.path(), "My Base", "base");
    let aux = shape(dir.path(), "sub/aux", "aux").join("config.json");
    let measure = |base: &str| {
        let mut c = ttft();
        c.current_dir(dir.path()).args(["bench", "--threads", "1", "--processes", "2", "--rounds", "4"]);
        c.args(["--base", base, "--aux", "sub/aux/config.json"]).arg("--scenario").arg(&scenario);
        c.arg("--weights").arg(&weights);
        c
    };
    let bench = |out: &str| {
        let mut c = measure("My Base");
        c.arg("--out").arg(dir.path().join(out));
        c
    };
    let plan = succeed(bench("none.jsonl").arg("--plan"));
    for word in ["My-Base base", "aux aux", "My-Base-KVP-aux kvp", "to be made"] {
        assert!(plan.contains(word), "no '{word}' in: {plan}");
    }
    assert!(!weights.exists());
    let done = bench("r.jsonl").output().unwrap();
    assert!(done.status.success(), "{}", stderr(&done));
    for word in ["My-Base", "has no weights", "predicts nothing"] {
        assert!(stderr(&done).contains(word), "no '{word}' in: {}", stderr(&done));
    }
    let run = record(&dir.path().join("r.jsonl"));
    let ids: Vec<&str> = run.cells.iter().map(|c| c.id.as_str()).collect();
    let expected = ["My-Base/base", "aux/aux", "My-Base-KVP-aux/kvp"].map(|s| format!("ttft/{s}/b1/p4"));
    assert_eq!(ids[..3], expected, "{ids:?}");
    assert!(run.cells.iter().all(|c| c.gate.as_ref().is_some_and(|g| g.passed) && c.samples_ns.len() == 4));
    let notes = run.run.notes.join("\n");
    for word in ["My-Base: My-Base (llama), configuration sha256", "synthetic weights", "predicts nothing"] {
        assert!(notes.contains(word), "no '{word}' in: {notes}");
    }
    // Nothing of where the folders lie.
    let text = fs::read_to_string(dir.path().join("r.jsonl")).unwrap();
    assert!(!text.contains(dir.path().to_str().unwrap()));
    // Kept by what they are: the same configurations elsewhere need nothing new.
    assert_eq!(fs::read_dir(&weights).unwrap().count(), 3);
    let (base, aux) = (base.to_str().unwrap(), aux.to_str().unwrap());
    let elsewhere = shape(dir.path(), "elsewhere", "base");
    let again = format!(
        "name = \"mine\"\ndescription = \"d\"\ndtype = \"f32\"\nlengths = [5]\nbatches = [2]\nrounds = 1\nbudget_s = 600\n\
         [[pair]]\nname = \"twins\"\nbase = {:?}\naux = {aux:?}\n[[pair]]\nbase = {base:?}\naux = \"sub/aux\"\n",
        elsewhere.to_str().unwrap()
    );
    fs::write(dir.path().join("mine.toml"), again).unwrap();
    let mut c = ttft();
    c.current_dir(dir.path()).args([
        "bench",
        "--threads",
        "1",
        "--processes",
        "1",
        "--preset",
        "mine.toml",
        "--weights",
    ]);
    succeed(c.arg(&weights).args(["--out", "mine.jsonl"]));
    let systems: Vec<String> = record(&dir.path().join("mine.jsonl")).cells.iter().map(|c| c.system.clone()).collect();
    assert_eq!(systems, ["elsewhere", "My-Base", "aux", "twins", "My-Base-KVP-aux"]);
    assert_eq!(fs::read_dir(&weights).unwrap().count(), 3);
    // The answer in words, a page, and a run that is gone on with; another base is another run.
    let mut validate = ttft();
    let answer = validate.arg("validate").arg(dir.path().join("r.jsonl")).output().unwrap();
    assert!(String::from_utf8_lossy(&answer.stdout).contains("My-Base-KVP-aux"), "{}", stderr(&answer));
    let page = dir.path().join("r.html");
    succeed(ttft().arg("report").arg(dir.path().join("r.jsonl")).arg("--html").arg(&page));
    assert!(fs::read_to_string(&page).unwrap().contains("predicts nothing"));
    let resume = |base: &str| {
        let mut c = measure(base);
        c.arg("--resume").arg(dir.path().join("r.jsonl"));
        c
    };
    succeed(&mut resume("My Base"));
    fail(&mut resume("sub/aux"), &["another run", "notes"]);
}

/// Weights that lie in folders are used where they lie, and a given predictor too.
#[test]
fn a_pair_of_folders_with_weights() {
    let dir = TempDir::new().unwrap();
    let g = fixture("G");
    let [base, aux, predictor] = ["base", "aux", "predictor"].map(|part| g.join(part));
    let (weights, out) = (dir.path().join("w"), dir.path().join("r.jsonl"));
    let mut c = ttft();
    c.args(["bench", "--threads", "1", "--processes", "1", "--rounds", "2", "--scenario"]).arg(small(dir.path()));
    c.arg("--base").arg(&base).arg("--aux").arg(&aux).arg("--predictor").arg(&predictor);
    succeed(c.arg("--weights").arg(&weights).arg("--out").arg(&out));
    assert!(!weights.exists(), "nothing is made");
    let run = record(&out);
    assert_eq!(run.cells.iter().map(|c| c.system.as_str()).collect::<Vec<_>>()[..3], ["base", "aux", "base-KVP-aux"]);
    let notes = run.run.notes.join("\n");
    assert!(notes.contains("its own weights (f32)") && notes.contains("predictor predictor"), "{notes}");
    assert!(!notes.contains("synthetic") && !notes.contains("nothing"), "{notes}");

    // A predictor without an auxiliary is for shared layers; and behind a pair's name stands what its base reads itself.
    let h = fixture("H");
    let file = dir.path().join("own.toml");
    let [h_base, h_predictor] = ["base", "predictor"].map(|part| h.join(part));
    let text = format!(
        "name = \"own\"\ndescription = \"d\"\nsystems = [\"p-m4-s1\"]\ndtype = \"f32\"\nlengths = [9]\nbatches = [1]\nrounds = 1\n\
         budget_s = 600\n[[pair]]\nname = \"p\"\nbase = {base:?}\naux = {aux:?}\n[[pair]]\nname = \"s\"\nbase = {h_base:?}\n\
         predictor = {h_predictor:?}\n"
    );
    fs::write(&file, text).unwrap();
    let mut c = ttft();
    c.args(["bench", "--threads", "1", "--processes", "1", "--preset"]).arg(&file).arg("--weights").arg(&weights);
    succeed(c.arg("--out").arg(dir.path().join("own.jsonl")));
    let own = record(&dir.path().join("own.jsonl"));
    let kvp: Vec<_> = own.cells.iter().filter(|c| c.kind == ttft_reports::schema::Kind::Kvp).collect();
    assert_eq!(kvp.iter().map(|c| c.system.as_str()).collect::<Vec<_>>(), ["p", "s", "p-m4-s1"]);
    assert!(kvp[1].aux.is_none() && kvp[2].phases[2].cost != kvp[0].phases[2].cost);
    assert_eq!(fs::read_dir(&weights).unwrap().count(), 1, "the one predictor that was not given");

    // The logits are those recorded; without the predictor they are others, and a word says why.
    let tokens = tokens(dir.path(), &g);
    let logits = |name: &str, with: bool| {
        let mut c = ttft();
        c.arg("logits").arg("--base").arg(&base).arg("--aux").arg(&aux).arg("--tokens").arg(&tokens);
        if with {
            c.arg("--predictor").arg(&predictor);
        }
        c.arg("--weights").arg(&weights).arg("--out").arg(dir.path().join(name));
        c
    };
    succeed(&mut logits("with", true));
    let said = logits("without", false).output().unwrap();
    assert!(said.status.success() && stderr(&said).contains("predicts nothing"), "{}", stderr(&said));
    let last = |path: &Path, name: &str| {
        let bytes = fs::read(path).unwrap();
        f32s(&SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap())
    };
    let expected = last(&g.join("expected.safetensors"), "kvp_m1_s0_logits_last");
    let differ = |name| {
        let found = last(&dir.path().join(name), "logits_last");
        expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(differ("with") <= TOLERANCE && differ("without") > 0.1);
}

#[test]
fn pairs_that_do_not_belong_together_are_refused() {
    let dir = TempDir::new().unwrap();
    let tokenizer = |folder: &Path, vocab: &str| {
        fs::write(folder.join("tokenizer.json"), format!("{{\"model\": {{\"vocab\": {vocab}}}}}")).unwrap();
    };
    let (base, aux) = (shape(dir.path(), "b", "base"), shape(dir.path(), "a", "aux"));
    let bench = |base: &Path, aux: &Path| {
        let mut c = ttft();
        c.args(["bench", "--plan", "--base"]).arg(base).arg("--aux").arg(aux);
        c
    };
    tokenizer(&base, "{\"x\": 0, \"y\": 1}");
    tokenizer(&aux, "{\"y\": 0, \"x\": 1}");
    fail(&mut bench(&base, &aux), &["vocabularies differ", "'x' as 0", "a has it as 1"]);
    fs::remove_file(aux.join("tokenizer.json")).unwrap();
    succeed(&mut bench(&base, &aux));
    fail(&mut bench(&base, Path::new("OE270M")), &["vocabularies differ", "b has 320", "OE270M has 32000"]);
    fail(&mut bench(Path::new("nowhere"), &aux), &["base", "'nowhere' is no folder", "Llama-3.2-1B"]);
    fail(ttft().args(["bench", "--plan", "--aux", "OE270M"]), &["--base"]);
    let wrong = fixture("A").join("predictor");
    fail(bench(&base, &aux).arg("--predictor").arg(wrong), &["predictor", "config.json", "base_num_layers"]);
    let scenario = dir.path().join("s.toml");
    let text = "name = \"s\"\ndescription = \"d\"\ndtype = \"bf16\"\nlengths = [5]\nbatches = [2]\nrounds = 1\nbudget_s = 600\n";
    for (pair, words) in [
        (format!("base = {:?}", fixture("G").join("base")), ["dtype", "f32"]),
        ("base = \"OE1.1B\"\naux = \"OE270M\"\nname = \"a/b\"".into(), ["name", "a/b"]),
        ("base = \"OE1.1B\"\nauxiliary = \"OE270M\"".into(), ["auxiliary", "unknown field"]),
    ] {
        fs::write(&scenario, format!("{text}[[pair]]\n{pair}\n")).unwrap();
        fail(ttft().args(["bench", "--plan", "--preset"]).arg(&scenario), &words);
    }
}

#[test]
fn man_pages_and_completions_name_every_command() {
    let dir = tempfile::tempdir().expect("a folder");
    succeed(ttft().arg("shell-files").arg(dir.path().join("new")));
    let text =
        |path: &str| fs::read_to_string(dir.path().join("new").join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    for command in ["bench", "doctor", "report"] {
        assert!(text("completions/ttft.bash").contains(command) && text("completions/_ttft").contains(command));
        assert!(text(&format!("man/man1/ttft-{command}.1")).starts_with(".ie"));
    }
    assert!(text("man/man1/ttft-report.1").contains("svg"));
    assert!(text("man/man1/ttft.1").contains("From nothing to a report"));
    for hidden in ["worker", "shell-files"] {
        assert!(
            !text("completions/ttft.bash").contains(hidden) && !text("man/man1/ttft.1").contains(hidden),
            "{hidden}"
        );
    }
}
