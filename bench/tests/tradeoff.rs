//! `ttft report --fidelity` from outside: the record of a real run beside answers of the same networks.

mod program;

use std::{fs, path::Path, process::Output};

use ttft_reports::{
    fidelity::{
        Base, Control, ControlKind, Distance, Fidelity, Machine, Measure, OnTask, OnText, Outcomes, Results, SCHEMA,
        Settings, System, Task, TaskKind, Text,
    },
    schema::{Dtype, Kind, Record},
};

const SCENARIO: &str = r#"
name = "small"
description = "one KV prediction"
systems = ["OE1.1B-KVP-C-270M"]
dtype = "bf16"
lengths = [16]
batches = [1]
rounds = 3
budget_s = 600.0
"#;

/// The command, called in a folder.
fn ttft(args: &[&str], folder: &Path) -> Output {
    program::ttft().args(args).current_dir(folder).output().expect("the command starts")
}

fn words(out: &Output) -> String {
    [&out.stdout, &out.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

/// Answers that are what they would be of networks that know something, of the very networks that a record timed.
fn answers(record: &Record) -> Fidelity {
    let named = &record.run.predictions.as_ref().expect("the run says what it predicts")[0];
    let networks = record.run.networks.as_ref().expect("the run names its networks");
    let base = networks.iter().find(|n| n.name == "OE1.1B").expect("the base").clone();
    let outcomes = |right: usize| Outcomes::of((0..50).map(|i| i * 7 % 50 < right));
    let results = |kl: f64, right: usize| {
        let about = |mean: f64| Measure::of((0..30).map(|i| mean * (0.9 + 0.01 * f64::from(i % 21))));
        let distance = || Distance { kl: about(kl), top1: about(1.0 / (1.2 + kl)), loss_gap: about(kl) };
        Results {
            texts: vec![OnText { text: "a.txt".into(), first: distance(), continuation: distance(), greedy: None }],
            tasks: vec![OnTask { task: "copying".into(), exact: Some(outcomes(right)), first_token: outcomes(right) }],
        }
    };
    let control = |kind, results| Control {
        kind,
        system: Some("judged".into()),
        base_tokens: None,
        sink_tokens: None,
        operations_share: None,
        ttft_ns: Vec::new(),
        results,
    };
    Fidelity {
        schema: SCHEMA.into(),
        started_at: None,
        command: Vec::new(),
        ttft_version: None,
        git: None,
        machine: Machine::default(),
        settings: Settings { precision: Dtype::Bf16, prompt: 16, continuation: 8, answer: 4, seed: 0 },
        base: Base { network: base, ttft_ns: Vec::new() },
        texts: vec![Text {
            name: "a.txt".into(),
            sha256: "a".repeat(64),
            tokens: 10_000,
            domain: None,
            of_fit: None,
            windows: 30,
        }],
        tasks: vec![Task {
            name: "copying".into(),
            kind: TaskKind::Copy,
            sha256: None,
            items: 50,
            prompt_tokens: 16.0,
            chance: 0.0,
            base: Some(outcomes(45)),
        }],
        systems: vec![System {
            name: "judged".into(),
            kind: Kind::Kvp,
            prediction: Some(named.prediction.clone()),
            aux: None,
            operations_share: 0.3,
            ttft_ns: Vec::new(),
            results: results(0.1, 20),
        }],
        controls: vec![
            control(ControlKind::MeanCache, results(0.5, 0)),
            control(ControlKind::TrueCaches, results(0.001, 45)),
        ],
        notes: Vec::new(),
    }
}

#[test]
fn times_and_answers_of_the_same_networks_are_joined_and_others_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("small.toml"), SCENARIO).unwrap();
    let bench = ["bench", "--tiny", "--threads", "1", "--processes", "1", "--scenario", "small.toml", "--weights", "w"];
    let out = ttft(&[&bench[..], &["--out", "run.jsonl"]].concat(), folder.path());
    assert!(out.status.success(), "{}", words(&out));
    let record = Record::read(&path("run.jsonl")).unwrap();
    assert!(record.run.networks.as_ref().unwrap().iter().all(|n| n.synthetic && n.weights_sha256.is_some()));
    let file = answers(&record);
    let write = |file: &Fidelity| fs::write(path("f.json"), file.to_text(&path("f.json")).unwrap()).unwrap();
    write(&file);

    let report =
        |args: &[&str]| ttft(&[&["report", "run.jsonl", "--fidelity", "f.json"], args].concat(), folder.path());
    let out = report(&[]);
    let text = words(&out);
    assert!(out.status.success() && text.contains("1 system has a time and an answer at 1 x 16: loses 1"), "{text}");
    assert!(text.contains("judged: It loses: on copying") && text.contains("Speed and answer, 1 x 16"), "{text}");

    let out = report(&["--html", "t.html", "--md", "t.md", "--csv", "t.csv", "--section", "tradeoff"]);
    assert!(out.status.success(), "{}", words(&out));
    let page = fs::read_to_string(path("t.html")).unwrap();
    assert!(page.contains("Right answers on copying against speed") && page.contains("TriviaQA"), "{page}");
    let csv = fs::read_to_string(path("t.csv")).unwrap();
    assert!(csv.lines().any(|l| l.contains(",judged,1,16,loses,record,")), "{csv}");
    // A newer report takes the place of an older one, and never that of what it is made of.
    assert!(report(&["--csv", "t.csv"]).status.success());
    let before = fs::read(path("f.json")).unwrap();
    let out = report(&["--csv", "f.json"]);
    assert!(!out.status.success() && words(&out).contains("f.json is read for this report"), "{}", words(&out));
    assert_eq!(fs::read(path("f.json")).unwrap(), before);

    let mut other = file.clone();
    other.systems[0].prediction.as_mut().unwrap().base_tokens = 4;
    write(&other);
    let out = report(&["--html", "u.html"]);
    let text = words(&out);
    assert!(!out.status.success() && !path("u.html").exists(), "{text}");
    assert!(
        text.contains(
            "judged: not ttft/OE1.1B-KVP-C-270M/kvp/b1/p16: m, the last tokens that the base reads: 1 there, 4 here"
        ),
        "{text}"
    );
    // The same sizes with other weights are another thing.
    let seed = [&bench[..], &["--out", "other.jsonl"]].concat();
    fs::write(path("small.toml"), format!("{SCENARIO}seed = 1\n")).unwrap();
    assert!(ttft(&seed, folder.path()).status.success());
    write(&file);
    let out = ttft(&["report", "other.jsonl", "--fidelity", "f.json"], folder.path());
    let text = words(&out);
    assert!(!out.status.success() && text.contains("base: weights ") && text.contains("predictor: weights "), "{text}");
    fs::write(path("f.json"), "{\"schema\": \"ttft-fidelity/9\"}").unwrap();
    let text = words(&report(&[]));
    assert!(text.contains("f.json: the file's schema is `ttft-fidelity/9`"), "{text}");
}
