//! A made-up fidelity file for tests, of the same networks as the made-up run.

use sha2::{Digest, Sha256};

use super::*;
use crate::schema::{Dtype, Identity, Input, Kind, Prediction, Source};

/// Windows of each text, and items of each task.
pub const WINDOWS: usize = 40;
pub const ITEMS: usize = 100;

pub fn identity(name: &str) -> Identity {
    // Any digits will do, as long as they are the name's own.
    let hash: String = Sha256::digest(name).iter().map(|b| format!("{b:02x}")).collect();
    Identity { name: name.into(), config_sha256: Some(hash.clone()), weights_sha256: Some(hash), synthetic: false }
}

/// The prediction that the made-up run calls `OE1.1B-KVP-C-{size}`.
pub fn prediction(size: &str) -> Prediction {
    Prediction {
        source: Source::Auxiliary,
        aux: Some(identity(&format!("OE{size}"))),
        shared_layers: None,
        input: Some(Input::Kv),
        predictor: Some(identity(&format!("maps-{size}"))),
        base_tokens: 1,
        sink_tokens: 0,
    }
}

/// `right` of all items, and of two lists the same ones as far as they go.
pub fn outcomes(right: usize) -> Outcomes {
    Outcomes::of((0..ITEMS).map(|i| i * 37 % ITEMS < right))
}

fn distance(kl: f64) -> Distance {
    let about = |mean: f64, k: usize| (0..WINDOWS).map(move |i| mean * (0.75 + 0.05 * (i * k % 11) as f64));
    Distance {
        kl: Measure::of(about(kl, 7)),
        top1: Measure::of(about(1.0 / (1.0 + kl), 3).map(|v| v.min(1.0))),
        loss_gap: Measure::of(about(0.8 * kl, 5)),
    }
}

/// Divergences on both texts, and exact matches on both tasks.
pub fn results(kl: [f64; 2], right: [usize; 2]) -> Results {
    let text = |(name, kl): (&str, f64)| OnText {
        text: name.into(),
        first: distance(0.6 * kl),
        continuation: distance(kl),
        greedy: Some(Measure::of((0..WINDOWS).map(|i| 1.0 / (1.0 + kl * (i % 7) as f64)))),
    };
    let task = |(name, right): (&str, usize)| OnTask {
        task: name.into(),
        exact: Some(outcomes(right)),
        first_token: outcomes((right + ITEMS) / 2),
    };
    Results {
        texts: ["manual.txt", "novel.txt"].into_iter().zip(kl).map(text).collect(),
        tasks: ["copy", "needle"].into_iter().zip(right).map(task).collect(),
    }
}

pub fn control(kind: ControlKind, system: Option<&str>, results: Results) -> Control {
    Control {
        kind,
        system: system.map(Into::into),
        base_tokens: None,
        sink_tokens: None,
        operations_share: Some(0.4),
        ttft_ns: Vec::new(),
        results,
    }
}

/// Times about a mean, one in a hundred apart.
fn times(ms: u64) -> Vec<u64> {
    (0..6).map(|i| ms * 1_000_000 * (100 + i * 7 % 5) / 100).collect()
}

/// Two systems: the larger auxiliary loses some of the tasks, and the smaller one most.
pub fn file() -> Fidelity {
    let text = |name: &str, domain: &str, of_fit| Text {
        name: name.into(),
        sha256: "5".repeat(64),
        tokens: 50_000,
        domain: Some(domain.into()),
        of_fit: Some(of_fit),
        windows: WINDOWS as u32,
    };
    let task = |name: &str, kind, chance, right| Task {
        name: name.into(),
        kind,
        sha256: None,
        items: ITEMS as u32,
        prompt_tokens: 250.0,
        chance,
        base: Some(outcomes(right)),
    };
    let (large, small) = ("OE1.1B-KVP-C-450M", "OE1.1B-KVP-C-270M");
    let system = |name: &str, size, share, results| System {
        name: name.into(),
        kind: Kind::Kvp,
        prediction: Some(prediction(size)),
        aux: None,
        operations_share: share,
        ttft_ns: Vec::new(),
        results,
    };
    let truncated = |kind, system: &str, last, sink, ms, results| Control {
        base_tokens: Some(last),
        sink_tokens: Some(sink),
        ttft_ns: times(ms),
        ..control(kind, Some(system), results)
    };
    use ControlKind::*;
    Fidelity {
        schema: SCHEMA.into(),
        started_at: Some("2026-11-28T00:05:00Z".into()),
        command: ["ttft", "fidelity", "--base", "OE1.1B"].map(String::from).into(),
        ttft_version: Some("0.1.0".into()),
        git: None,
        machine: Machine {
            cpu_model: Some("Example CPU 9000".into()),
            arch: Some("x86_64".into()),
            logical_cores: Some(2),
            isa: Some("avx512bf16".into()),
            threads: Some(2),
        },
        settings: Settings { precision: Dtype::Bf16, prompt: 256, continuation: 32, answer: 12, seed: 1 },
        base: Base { network: identity("OE1.1B"), ttft_ns: times(1400) },
        texts: vec![text("manual.txt", "documentation", true), text("novel.txt", "prose", false)],
        tasks: vec![task("copy", TaskKind::Copy, 0.0, 90), task("needle", TaskKind::Needle, 0.25, 80)],
        systems: vec![
            system(large, "450M", 0.42, results([0.06, 0.15], [70, 60])),
            system(small, "270M", 0.25, results([0.12, 0.31], [8, 27])),
        ],
        controls: vec![
            Control { ttft_ns: times(60), ..control(NoContext, None, results([1.1, 1.3], [0, 0])) },
            truncated(TruncationEqualOperations, large, 106, 0, 610, results([0.11, 0.2], [6, 32])),
            truncated(TruncationEqualOperations, small, 62, 0, 360, results([0.1, 0.26], [2, 20])),
            truncated(TruncationEqualTtft, large, 110, 1, 640, results([0.1, 0.18], [7, 33])),
            control(MeanCache, Some(large), results([0.42, 0.5], [0, 5])),
            control(MeanCache, Some(small), results([0.45, 0.52], [0, 4])),
            control(TrueCaches, Some(large), results([0.0015, 0.0016], [90, 80])),
            control(TrueCaches, Some(small), results([0.0015, 0.0016], [90, 80])),
        ],
        notes: Vec::new(),
    }
}
