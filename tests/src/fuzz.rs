//! Fuzzing of everything that is read from outside: inputs made from good ones by structured and blind mutation.
//!
//! An input may be refused or accepted; it must not panic (overflows included), take long, or take memory out of proportion
//! to its size. What is accepted is used as the program would use it. The same seed makes the same inputs on every machine.

use std::{
    panic::{self, AssertUnwindSafe},
    path::Path,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use stats_alloc::INSTRUMENTED_SYSTEM;
use ttft_bench::{capacity, scenario::Scenario};
use ttft_models::{
    DType, Extent, NetworkConfig, Precision, RunSpec,
    cost::CostSystem,
    gguf::{Container, Conversion},
    kv_prediction::layout::Layout,
    memory_of, weights, zoo,
};
use ttft_reports::{
    render,
    schema::{Record, RunHeader, Writer},
    terminal,
};

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
pub const TARGETS: [Target; 6] = [
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
        std::hint::black_box(value.to_string());
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
        std::hint::black_box(system.first_token(&spec(1, 2048)));
        std::hint::black_box(memory_of(&system, &spec(1 << 12, 1 << 17)).total());
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
        let runs = [render::Run { name: "=a|b", record: &record, fidelity: None }];
        std::hint::black_box((terminal::render(&record, None), terminal::validation(&record, None)));
        render::FORMATS.iter().for_each(|format| drop((format.render)(&runs, &[])));
    }
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
        std::hint::black_box(arms.iter().map(|a| a.id(batch, prompt).len()).sum::<usize>());
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
        let surrounded = ["safetensors", "gguf"].contains(&target.name);
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
