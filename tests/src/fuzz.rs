//! Fuzzing of everything that is read from outside: inputs made from good ones by structured and blind mutation.
//!
//! An input may be refused or accepted; it must not panic (overflows included), take long, or take memory out of proportion
//! to its size. What is accepted is used as the program would use it. The same seed makes the same inputs on every machine.

use std::{
    fs,
    hint::black_box,
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use stats_alloc::INSTRUMENTED_SYSTEM;
use ttft_bench::{capacity, scenario::Scenario};
use ttft_models::{
    DType, Extent, Network, NetworkConfig, Precision, RunSpec,
    cost::CostSystem,
    fit::{Fit, Spec, Target as Keys},
    gguf::{Container, Conversion},
    kv_prediction::layout::{Input as Reads, Layout, Origin},
    memory_of, weights, zoo,
};
use ttft_reports::{
    fidelity::{
        Base, Control, ControlKind, Distance, Fidelity, MIN_ITEMS, Machine, Measure, OnTask, OnText, Outcomes, Results,
        Settings, System, Task, TaskKind, Text, judge,
    },
    render,
    schema::{Dtype, Identity, Input, Kind, Named, Prediction, Record, RunHeader, Source, Writer},
    terminal,
    trace::Trace,
};

use crate::models::fixture;

/// Longest that one input may take: a thousand times what the longest takes on slow hardware.
const LONGEST: Duration = Duration::from_secs(5);

/// Bytes that the reading of an input may allocate in all, beside [`PER_BYTE`].
const MOST_BYTES: usize = 4 << 20;

/// Bytes that may be allocated for each byte of an input: the parsers keep several copies as trees.
const PER_BYTE: usize = 1 << 10;

/// Longest input that is made.
const MOST_INPUT: usize = 1 << 14;

/// Accepted inputs that are kept to be changed further.
const KEPT: usize = 256;

/// Something that reads bytes from outside.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Good inputs.
    seeds: fn() -> Vec<Vec<u8>>,
    /// Words of its language.
    words: &'static [&'static str],
    /// What surrounds an input before it is read.
    wrap: fn(&[u8], &mut Random) -> Vec<u8>,
    /// Reads it; whether it is accepted.
    read: fn(&[u8], &mut Random) -> bool,
}

/// Everything that is fuzzed.
pub const TARGETS: [Target; 9] = [
    Target {
        name: "safetensors",
        seeds: safetensors_seeds,
        words: &[
            "\"dtype\"",
            "\"shape\"",
            "\"data_offsets\"",
            "\"__metadata__\"",
            "\"F32\"",
            "\"BF16\"",
            "\"F4\"",
            "\"U8\"",
        ],
        wrap: safetensors_file,
        read: |file, _| weights::count(Path::new("x.safetensors"), file).is_ok(),
    },
    Target {
        name: "config",
        seeds: || vec![CONFIG.to_vec(), zoo_config("OE270M"), zoo_config("OE1.1B-LP-0.50")],
        words: &[
            "NaN",
            "Infinity",
            "-Infinity",
            "\u{feff}",
            "\"model_dim\"",
            "\"num_kv_heads\"",
            "\"ffn_multipliers\"",
        ],
        wrap: |text, _| text.to_vec(),
        read: read_config,
    },
    Target {
        name: "predictor",
        seeds: || vec![PREDICTOR.to_vec(), SHARED.to_vec()],
        words: &[
            "NaN",
            "\u{feff}",
            "\"aux_layer_for_base_layer\"",
            "\"source_layer_for_base_layer\"",
            "\"base_num_layers\"",
            "\"aux_num_layers\"",
            "\"shared_layers\"",
            "\"hidden\"",
        ],
        wrap: |text, _| text.to_vec(),
        read: |text, _| {
            static NETWORKS: LazyLock<[NetworkConfig; 2]> = LazyLock::new(|| {
                [CONFIG, AUX].map(|c| NetworkConfig::parse(Path::new("config.json"), c).expect("the fixture is good"))
            });
            let [base, aux] = &*NETWORKS;
            let read = |aux| Layout::parse(Path::new("config.json"), text, base, aux).is_ok();
            // Both readers see every input.
            read(Some(aux)) | read(None)
        },
    },
    Target {
        name: "record",
        seeds: record_seeds,
        words: &[
            "{\"run\":",
            "{\"cell\":",
            "{\"skipped\":",
            "\n",
            "\r\n",
            "\u{feff}",
            "\"samples_ns\"",
            "\"rounds\"",
            "\"drift\"",
        ],
        wrap: |text, _| text.to_vec(),
        read: read_record,
    },
    Target {
        name: "fidelity",
        seeds: || [2, MIN_ITEMS].map(|n| answers(n).to_text(Path::new("f")).expect("good").into_bytes()).into(),
        words: &[
            "NaN",
            "\u{feff}",
            "\"schema\": \"ttft-fidelity/1\"",
            "\"values\"",
            "\"each\"",
            "\"system\":null",
            "\"sink_tokens\"",
            "\"prediction\":null",
            "\"exact\":null",
            "true_caches",
            "auxiliary_alone",
        ],
        wrap: |text, _| text.to_vec(),
        read: read_fidelity,
    },
    Target {
        name: "trace",
        seeds: || vec![TRACE.into()],
        words: &[
            "NaN",
            "\u{feff}",
            "\"tid\"",
            "\"ph\":\"X\"",
            "\"ph\":\"M\"",
            "thread_name",
            "thread 0",
            "\"thread_us\":{",
            "\"ts\":1e308",
        ],
        wrap: |text, _| text.to_vec(),
        read: |text, _| Trace::parse(Path::new("t.json"), text).map(|t| black_box(render::timeline(&t))).is_ok(),
    },
    Target {
        name: "state",
        seeds: || vec![FIT.header.clone()],
        words: &[
            "\"ttft_fit\"",
            "\"windows\"",
            "\"form\"",
            "\\\"window\\\"",
            "\"__metadata__\"",
            "\"F32\"",
            "\"F64\"",
            "\"shape\"",
            "\"data_offsets\"",
            "features.0.products",
        ],
        wrap: state_file,
        read: read_state,
    },
    Target {
        name: "scenario",
        seeds: || ttft_bench::scenario::PRESETS.iter().map(|(_, text)| text.as_bytes().to_vec()).collect(),
        words: &[
            "name",
            "systems",
            "lengths",
            "batches",
            "rounds",
            "decode",
            "[[",
            "]]",
            "'''",
            "\"OE270M-L0.75-0.10\"",
            "nan",
        ],
        wrap: |text, _| text.to_vec(),
        read: read_scenario,
    },
    Target {
        name: "gguf",
        seeds: || vec![SMOLLM.to_vec(), QWEN3.to_vec(), FORMATS.to_vec()],
        words: &[
            "GGUF",
            "general.alignment",
            "general.architecture",
            "llama.block_count",
            "llama.rope.scaling.type",
            "rope_freqs.weight",
            "output.weight",
            "tokenizer.ggml.pre",
            "qwen2",
            "\0\0\0\0",
            "\u{1}\0\0\0\0\0\0\0",
        ],
        wrap: gguf_file,
        read: read_gguf,
    },
];

/// A call of one thread that computes some rows of one product within another.
const TRACE: &str = r#"{"otherData":{"system":"a","order":"pipelined","batch":1,"prompt":64,"threads":1,"cpu":"<CPU>"},"traceEvents":[
{"args":{"name":"calls"},"name":"thread_name","ph":"M","tid":1},{"args":{"name":"phases"},"name":"thread_name","ph":"M","tid":2},
{"args":{"name":"steps"},"name":"thread_name","ph":"M","tid":3},{"args":{"name":"thread 0"},"name":"thread_name","ph":"M","tid":4},
{"name":"first token","ph":"X","tid":1,"ts":0,"dur":110},{"name":"token 2","ph":"X","tid":1,"ts":110,"dur":50},
{"args":{"thread_us":{"product":60}},"name":"pipelined","ph":"X","tid":2,"ts":10,"dur":80},
{"name":"Base head on 1","ph":"X","tid":3,"ts":90,"dur":20},{"name":"product","ph":"X","tid":4,"ts":10,"dur":40},
{"name":"few rows beside","ph":"X","tid":4,"ts":20,"dur":10},{"name":"few rows","ph":"X","tid":4,"ts":90,"dur":20}]}"#;

const SMOLLM: &[u8] = include_bytes!("../fixtures/gguf/smollm.gguf");
const QWEN3: &[u8] = include_bytes!("../fixtures/gguf/qwen3.gguf");
const FORMATS: &[u8] = include_bytes!("../fixtures/gguf/formats.gguf");
const CONFIG: &[u8] = include_bytes!("../fixtures/A/base/config.json");
const AUX: &[u8] = include_bytes!("../fixtures/A/aux/config.json");
const PREDICTOR: &[u8] = include_bytes!("../fixtures/A/predictor/config.json");
const SHARED: &[u8] = include_bytes!("../fixtures/A2/predictor/config.json");
const RECORD: &str = include_str!("../../reports/data/amd-epyc-zen5-2c/quick.jsonl");
const PAPER: &str = include_str!("../../reports/data/apple-m2-pro/table5.jsonl");

fn zoo_config(name: &str) -> Vec<u8> {
    zoo::network(name).expect("a name of the zoo").to_json("bfloat16").to_string().into_bytes()
}

/// Headers alone: [`safetensors_file`] puts the length before them and data behind.
fn safetensors_seeds() -> Vec<Vec<u8>> {
    let small = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#;
    let zero =
        r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}"#;
    vec![small.into(), zero.into(), b"{}".into()]
}

fn safetensors_file(header: &[u8], random: &mut Random) -> Vec<u8> {
    let length = match random.below(8) {
        0 => random.next(),
        1 => (header.len() as u64).wrapping_add(random.below(17) as u64).wrapping_sub(8),
        _ => header.len() as u64,
    };
    let data = [0, 8, 24, 32, 33][random.below(5)];
    [&length.to_le_bytes(), header, &vec![0; data]].concat()
}

/// A file some of whose numbers are hostile: lengths and counts are numbers of 64 bits, at any place.
fn gguf_file(file: &[u8], random: &mut Random) -> Vec<u8> {
    let mut file = file.to_vec();
    for _ in 0..random.below(4) {
        let number = match random.below(6) {
            0 => random.next(),
            1 => u64::MAX - random.below(64) as u64,
            2 => 1 << random.below(64),
            3 => file.len() as u64,
            _ => random.below(64) as u64,
        };
        // Most of what is read as a number stands before the tensors.
        let longest = if random.below(2) == 0 { 1 << 10 } else { file.len() };
        let at = random.below(longest.min(file.len()));
        let len = [1, 4, 8][random.below(3)].min(file.len() - at);
        file[at..at + len].copy_from_slice(&number.to_le_bytes()[..len]);
    }
    file
}

fn read_gguf(file: &[u8], _: &mut Random) -> bool {
    let path = Path::new("x.gguf");
    let Ok(container) = Container::parse(path, file) else { return false };
    for (_, value) in container.values() {
        black_box(value.to_string());
    }
    for (_, tensor) in container.tensors() {
        let values: usize = tensor.shape.iter().product();
        if let Some(widen) = tensor.format.widen.filter(|_| values <= 1 << 20) {
            widen(tensor.bytes, &mut vec![0.0; values]);
        }
    }
    let Ok(conversion) = Conversion::new(&container, DType::F32, true) else {
        return Conversion::new(&container, DType::BF16, false).is_ok();
    };
    assert!(conversion.tokenizer().is_some() && conversion.bytes() > 0);
    NetworkConfig::parse(path, conversion.config().to_string().as_bytes()).expect("what is written is read back");
    true
}

/// Short records: one cell of each sampler, and one that has everything.
fn record_seeds() -> Vec<Vec<u8>> {
    let lines: Vec<&str> = RECORD.lines().collect();
    let paper: Vec<&str> = PAPER.lines().collect();
    let skipped = r#"{"skipped":{"id":"ttft/x","reason":"too slow","estimate_s":900.0,"estimate_bytes":null}}"#;
    let full = {
        let header = RunHeader { run_id: "r".into(), ..RunHeader::default() };
        let mut cells = Record::from_reader(format!("{}\n{}\n", lines[0], lines[4]).as_bytes(), Path::new("r"))
            .expect("the record is good")
            .cells;
        let cell = &mut cells[0];
        let n = cell.samples_ns.len();
        cell.rounds = Some((0..n as u32).collect());
        cell.round_positions = Some(vec![0; n]);
        cell.decode = Some(ttft_reports::schema::Decode { steps: 2, samples_ns: vec![7; 2 * n] });
        let line = |line: &ttft_reports::schema::Line| serde_json::to_string(line).expect("plain values");
        let run = RunHeader { schema: ttft_reports::schema::SCHEMA.into(), ..header };
        let [run, cell] = [
            line(&ttft_reports::schema::Line::Run(Box::new(run))),
            line(&ttft_reports::schema::Line::Cell(Box::new(cell.clone()))),
        ];
        format!("{run}\n{cell}\n{skipped}\n")
    };
    vec![
        format!("{}\n{}\n", lines[0], lines[1]).into_bytes(),
        format!("{}\n{}\n{}\n", paper[0], paper[1], paper[2]).into_bytes(),
        full.into_bytes(),
    ]
}

fn read_config(text: &[u8], _: &mut Random) -> bool {
    let Ok(config) = NetworkConfig::parse(Path::new("config.json"), text) else { return false };
    let again = NetworkConfig::parse(Path::new("config.json"), config.to_json("float32").to_string().as_bytes());
    assert_eq!(again.as_ref().ok(), Some(&config), "what is written is read back");
    if config.layers.len() <= 64 {
        let system = CostSystem::network(config, DType::F32);
        let (precision, extent) = (Precision::F32, Extent::FirstToken);
        let spec = |batch, prompt| RunSpec { batch, prompt, generate: 1, precision, extent };
        // Operations are counted for runs that somebody can wait for, memory for whatever is asked.
        black_box(system.first_token(&spec(1, 2048)));
        black_box(memory_of(&system, &spec(1 << 12, 1 << 17)).total());
    }
    true
}

fn read_record(text: &[u8], random: &mut Random) -> bool {
    let Ok(record) = Record::from_reader(text, Path::new("r.jsonl")) else { return false };
    let mut writer = Writer::nowhere(record.run.clone()).expect("what was read can be written");
    record.cells.iter().for_each(|cell| writer.cell(cell).expect("what was read can be written"));
    assert_eq!(writer.finish().expect("what was written can be read").cells, record.cells);
    // Reports take a thousand times as long as the reading.
    if random.below(256) == 0 {
        let runs = [render::Run { name: "=a|b", record: &record, fidelity: &[] }];
        black_box((terminal::render(&record, None), terminal::validation(&record, None)));
        render::FORMATS.iter().for_each(|format| drop((format.render)(&runs, &[])));
    }
    true
}

/// A run of three systems that says which networks they were.
static TIMED: LazyLock<Record> = LazyLock::new(|| {
    let lines: Vec<&str> = RECORD.lines().take(5).collect();
    let mut record = Record::from_reader(lines.join("\n").as_bytes(), Path::new("r")).expect("the record is good");
    record.run.networks = Some([BASE, AUXILIARY].map(identity).into());
    record.run.predictions = Some(vec![Named { system: SYSTEM.into(), prediction: prediction() }]);
    record
});

const BASE: &str = "OE1.1B";
const AUXILIARY: &str = "OE450M";
const SYSTEM: &str = "OE1.1B-KVP-C-450M";

fn identity(name: &str) -> Identity {
    let hash = Some(format!("{:064x}", name.len()));
    Identity { name: name.into(), config_sha256: hash.clone(), weights_sha256: hash, synthetic: false }
}

fn prediction() -> Prediction {
    Prediction {
        source: Source::Auxiliary,
        aux: Some(identity(AUXILIARY)),
        shared_layers: None,
        input: Some(Input::Kv),
        predictor: Some(identity("maps")),
        base_tokens: 1,
        sink_tokens: 0,
    }
}

/// What the system of [`TIMED`] answers on a text and a task of `n` each, with every kind of control.
fn answers(n: usize) -> Fidelity {
    let measure = |scale: f64| Measure::of((0..n).map(|i| scale * (1 + i % 3) as f64));
    let distance = || Distance { kl: measure(0.1), top1: measure(0.3), loss_gap: measure(-0.1) };
    let outcomes = |right: usize| Outcomes::of((0..n).map(|i| i % 5 < right));
    let results = |right| Results {
        texts: vec![OnText {
            text: "t".into(),
            first: distance(),
            continuation: distance(),
            greedy: Some(distance().top1),
        }],
        tasks: vec![OnTask { task: "k".into(), exact: Some(outcomes(right)), first_token: outcomes(4) }],
    };
    use ControlKind::*;
    // A file of many items has the controls alone that a verdict takes.
    let mut kinds = vec![MeanCache, TrueCaches, TruncationEqualTtft];
    if n < MIN_ITEMS {
        kinds.extend([NoContext, TruncationEqualOperations, NothingPredicted, AuxiliaryAlone]);
    }
    let control = |kind| Control {
        kind,
        system: (kind != NoContext).then(|| SYSTEM.into()),
        base_tokens: (kind == TruncationEqualTtft).then_some(9),
        sink_tokens: (kind == TruncationEqualTtft).then_some(1),
        operations_share: (kind != TrueCaches).then_some(0.4),
        ttft_ns: if kind == TruncationEqualTtft { vec![400, 410] } else { Vec::new() },
        results: results(if kind == TrueCaches { 5 } else { 1 }),
    };
    Fidelity {
        schema: String::new(),
        started_at: Some("2026-11-28T00:05:00Z".into()),
        command: vec!["ttft".into(), "fidelity".into()],
        ttft_version: Some("0.1.0".into()),
        git: None,
        machine: Machine { threads: Some(2), ..Machine::default() },
        settings: Settings { precision: Dtype::Bf16, prompt: 64, continuation: 2, answer: 1, seed: 1 },
        base: Base { network: identity(BASE), ttft_ns: vec![1000, 1010] },
        texts: vec![Text {
            name: "t".into(),
            sha256: "5".repeat(64),
            tokens: 500,
            domain: None,
            of_fit: None,
            windows: n as u32,
        }],
        tasks: vec![Task {
            name: "k".into(),
            kind: TaskKind::Copy,
            sha256: None,
            items: n as u32,
            prompt_tokens: 50.0,
            chance: 0.1,
            base: Some(outcomes(5)),
        }],
        systems: vec![System {
            name: SYSTEM.into(),
            kind: Kind::Kvp,
            prediction: Some(prediction()),
            aux: None,
            operations_share: 0.4,
            ttft_ns: vec![500, 510],
            results: results(3),
        }],
        controls: kinds.into_iter().map(control).collect(),
        notes: Vec::new(),
    }
}

fn read_fidelity(text: &[u8], random: &mut Random) -> bool {
    let path = Path::new("f.json");
    let Ok(file) = Fidelity::parse(text, path) else { return false };
    let again = file.to_text(path).expect("what was read can be written");
    assert_eq!(Fidelity::parse(again.as_bytes(), path).expect("what was written can be read"), file);
    // Reports take a hundred times as long as the reading.
    if random.below(64) == 0 {
        let run = render::Run { name: "=a|b", record: &TIMED, fidelity: std::slice::from_ref(&file) };
        black_box((judge(&file), terminal::tradeoff(&run).is_ok()));
        render::FORMATS.iter().for_each(|format| drop((format.render)(&[run], &[])));
    }
    true
}

/// A fit of one layer, the header of its state, and how many bytes lie behind that.
struct Interrupted {
    fit: Mutex<Fit>,
    of: serde_json::Value,
    header: Vec<u8>,
    data: usize,
}

static FIT: LazyLock<Interrupted> = LazyLock::new(|| {
    let base = Arc::new(Network::load(&fixture("A").join("base")).expect("the fixture loads"));
    let last = base.config().layers.len() - 1;
    let origin = Origin { layer: last - 1, input: Reads::KeysAndValues };
    let layout = Layout { shared: Some(last), layers: (0..=last).map(|i| (i == last).then_some(origin)).collect() };
    let spec = Spec { layout, target: Keys::Raw, window: 16, precision: Precision::F32 };
    let mut fit = Fit::new(base, None, spec).expect("the fixture can be fitted");
    let of = serde_json::json!({"text": [{"sha256": "ab"}], "window": 16, "shared_layers": last});
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("sums.safetensors");
    let written = fit.save(&path, &of).map(|()| fs::read(&path).expect("it was written"));
    let (length, rest) = written.as_ref().expect("the disk has room").split_first_chunk().expect("it begins so");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    Interrupted { fit: Mutex::new(fit), of, header: header.into(), data: data.len() }
});

/// The sums of no tokens, sometimes cut.
fn state_file(header: &[u8], random: &mut Random) -> Vec<u8> {
    let data = if random.below(8) == 0 { random.below(FIT.data + 9) } else { FIT.data };
    [&(header.len() as u64).to_le_bytes(), header, &vec![0; data]].concat()
}

fn read_state(file: &[u8], _: &mut Random) -> bool {
    let mut fit = FIT.fit.lock().unwrap_or_else(PoisonError::into_inner);
    if fit.restore(Path::new("sums.safetensors"), file, &FIT.of).is_err() {
        return false;
    }
    // Of sums that are all 0, it is refused or gives maps without weights.
    black_box(fit.solve(1e-5, DType::F32).is_ok());
    true
}

fn read_scenario(text: &[u8], _: &mut Random) -> bool {
    let parsed = std::str::from_utf8(text).ok().and_then(|text| Scenario::parse(text).ok());
    // Pairs of its own are files, which are read where it is loaded.
    let Some(scenario) = parsed.filter(|s| s.pair.is_empty()) else {
        return false;
    };
    let (arms, groups) = (scenario.arms().expect("checked"), scenario.groups());
    let _ = capacity::check(scenario.rounds, scenario.decode, arms.len() * groups.len());
    for &(batch, prompt) in groups.iter().take(8) {
        black_box(arms.iter().map(|a| a.id(batch, prompt).len()).sum::<usize>());
    }
    true
}

/// SplitMix64.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`, or 0.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Numbers at which programs break.
const NUMBERS: [&str; 26] = [
    "0",
    "1",
    "-1",
    "2",
    "7",
    "63",
    "64",
    "65",
    "255",
    "256",
    "65535",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "0.5",
    "-0.0",
    "1e308",
    "1e999",
    "5e-324",
    "00",
];

/// Values of JSON and TOML.
const VALUES: [&str; 14] = [
    "null",
    "true",
    "false",
    "[]",
    "{}",
    "\"\"",
    "\"a\"",
    "[0]",
    "[[[[]]]]",
    "{\"a\":{\"a\":{}}}",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\u{1b}\"",
    "\"\u{202e}\"",
];

/// Changes an input at a random place.
fn mutate(input: &mut Vec<u8>, other: &[u8], words: &[&str], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let range = |random: &mut Random, len: usize| {
        let start = random.below(len + 1);
        let longest = if random.below(4) == 0 { 256 } else { 12 };
        start..(start + random.below(longest)).min(len)
    };
    match random.below(12) {
        0 if !input.is_empty() => {
            let i = random.below(input.len());
            input[i] ^= 1 << random.below(8);
        }
        1 if !input.is_empty() => {
            let i = random.below(input.len());
            input[i] = random.next() as u8;
        }
        2 => drop(input.drain(range(random, input.len()))),
        3 => {
            let copied = input[range(random, input.len())].to_vec();
            input.splice(at..at, copied);
        }
        4 => drop(input.splice(at..at, random.of(words).bytes())),
        5 => {
            let part = range(random, other.len());
            let replaced = range(random, input.len());
            input.splice(replaced, other[part].iter().copied());
        }
        6 => input.truncate(at),
        // The number or the value that stands next.
        7 | 8 => {
            let digit = |c: &u8| c.is_ascii_digit();
            if let Some(start) = input[at..].iter().position(digit).map(|i| at + i) {
                let number = |c: &u8| c.is_ascii_digit() || b"+-.eE".contains(c);
                let end = input[start..].iter().position(|c| !number(c)).map_or(input.len(), |i| start + i);
                input.splice(start..end, random.of(&NUMBERS).bytes());
            }
        }
        9 | 10 => {
            if let Some(start) = input[at..].iter().position(|c| b":=,[".contains(c)).map(|i| at + i + 1) {
                let end = input[start..].iter().position(|c| b",]}\n".contains(c)).map_or(input.len(), |i| start + i);
                let value = if random.below(2) == 0 { random.of(&VALUES) } else { random.of(&NUMBERS) };
                input.splice(start..end, value.bytes());
            }
        }
        _ => {
            let deep = [b'[', b'{', b'"', b'\\'][random.below(4)];
            let many = 1 << random.below(12);
            input.splice(at..at, std::iter::repeat_n(deep, many));
        }
    }
    input.truncate(MOST_INPUT);
}

/// What a run of a target came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Inputs read.
    pub inputs: u64,
    /// Inputs accepted.
    pub accepted: u64,
    /// Longest that one input took.
    pub slowest: Duration,
    /// Most bytes allocated while one input was read; 0 if the program does not count.
    pub most_bytes: usize,
}

/// The input that is being read, and since when: for whoever watches for hangs.
pub static CURRENT: Mutex<Option<(Instant, Vec<u8>)>> = Mutex::new(None);

/// Reads `count` inputs that are made from `seed`.
///
/// # Errors
/// The first input that panics, takes too long or too much memory: why, and its bytes.
pub fn run(target: &Target, count: u64, seed: u64) -> Result<Summary, (String, Vec<u8>)> {
    let mut random = Random(seed);
    let mut inputs = (target.seeds)();
    let seeds = inputs.len();
    let mut summary = Summary::default();
    for seed in &inputs {
        let file = (target.wrap)(seed, &mut Random(2));
        // What surrounds these makes them bad as often as not.
        let surrounded = ["safetensors", "gguf", "state"].contains(&target.name);
        assert!((target.read)(&file, &mut random) || surrounded, "{}: a good input", target.name);
    }
    for _ in 0..count {
        let mut input = random.of(&inputs).clone();
        let other = random.of(&inputs).clone();
        for _ in 0..=random.below(4) {
            mutate(&mut input, &other, target.words, &mut random);
        }
        let file = (target.wrap)(&input, &mut random);
        let (before, since) = (INSTRUMENTED_SYSTEM.stats().bytes_allocated, Instant::now());
        let current = || CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        *current() = Some((since, file));
        // Cloned while nobody else holds it; a watcher looks only at inputs that take seconds.
        let file = current().as_ref().map(|(_, file)| file.clone()).unwrap_or_default();
        let read = panic::catch_unwind(AssertUnwindSafe(|| (target.read)(&file, &mut random)));
        let took = since.elapsed();
        let bytes = INSTRUMENTED_SYSTEM.stats().bytes_allocated.saturating_sub(before);
        let accepted = match read {
            Ok(accepted) => accepted,
            Err(_) => return Err(("panics".into(), file)),
        };
        if took > LONGEST {
            return Err((format!("takes {took:?}"), file));
        }
        // What is accepted is rendered and written too, which takes what it takes.
        if !accepted && bytes > MOST_BYTES + PER_BYTE * file.len() {
            return Err((format!("allocates {bytes} bytes for {}", file.len()), file));
        }
        summary.inputs += 1;
        summary.accepted += u64::from(accepted);
        summary.slowest = summary.slowest.max(took);
        if !accepted {
            summary.most_bytes = summary.most_bytes.max(bytes);
        }
        if accepted && random.below(16) == 0 {
            if inputs.len() < KEPT {
                inputs.push(input);
            } else {
                let place = seeds + random.below(KEPT - seeds);
                inputs[place] = input;
            }
        }
    }
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = None;
    Ok(summary)
}
