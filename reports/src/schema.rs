//! The record format: what a run leaves behind, and everything a report is made of.
//!
//! A record is a UTF-8 file of JSON lines. Its first line is `{"run": …}` ([`RunHeader`]); every further line is
//! `{"cell": …}` ([`Cell`]: one system at one batch and prompt length) or `{"skipped": …}` ([`Skipped`]). Lines are
//! appended as cells finish, so an interrupted run leaves a readable record. A cell measured again is appended again
//! with a higher [`Cell::attempt`]; the last attempt counts and the earlier ones stay in the file.
//!
//! **Time to first token (TTFT)** runs from prompt token ids in memory to the first token id chosen for *every*
//! sequence of the batch, with weights mapped and warm and buffers allocated. Tokenization is excluded, and the time is
//! never divided by the batch.
//!
//! Units are part of every name. Raw samples are integer nanoseconds. What is not known is `null`, never guessed.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    place::{Kind as PlaceKind, Place},
    text,
};

#[cfg(test)]
use schemars::JsonSchema;

/// Name and version of the format, as it stands in [`RunHeader::schema`].
pub const SCHEMA: &str = "ttft-record/1";
/// Longest line that is read, in bytes.
pub const MAX_LINE_BYTES: u64 = 32 << 20;
/// Most lines that are read from one record.
pub const MAX_LINES: usize = 100_000;
/// Most samples in one list.
pub const MAX_SAMPLES: usize = 1_000_000;
/// Longest string that is read, in bytes.
pub const MAX_TEXT_BYTES: usize = 8192;

/// One line of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub enum Line {
    /// The first line, and only the first.
    Run(Box<RunHeader>),
    /// One measured (or published) cell.
    Cell(Box<Cell>),
    /// One cell that was planned and not measured.
    Skipped(Box<Skipped>),
}

/// What holds for the whole run: how it was started, where, and what that machine can do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct RunHeader {
    /// [`SCHEMA`]; any other value is refused.
    pub schema: String,
    /// Names the run in reports and file names; unique to the run by the writer's choice.
    pub run_id: String,
    /// Start of the run, RFC 3339 in UTC, such as `2026-11-23T05:27:00Z`.
    pub started_at: Option<String>,
    /// Command line, one argument each; empty if there was none.
    pub command: Vec<String>,
    /// Source revision of the program.
    pub git: Option<Git>,
    /// Version of `ttft`.
    pub ttft_version: Option<String>,
    /// `rustc --version` of the build.
    pub rustc: Option<String>,
    /// What was asked for.
    pub settings: Settings,
    /// Where it ran. The host name is never recorded.
    pub machine: Machine,
    /// What the machine reached in micro-benchmarks of the same process.
    pub limits: Limits,
    /// Remarks a reader must see, such as the source of published figures.
    pub notes: Vec<String>,
}

/// Source revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Git {
    /// Commit id.
    pub revision: String,
    /// Whether tracked files differed from the commit.
    pub dirty: Option<bool>,
}

/// How samples were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(JsonSchema))]
pub enum Sampler {
    /// Systems of a group interleaved round by round: samples of one round are paired.
    Rounds,
    /// One system after another by criterion: samples are not paired.
    Criterion,
    /// Not measured here: figures printed in a publication.
    Published,
}

/// What a run was asked to do. What a cell really used stands in the cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Settings {
    /// How samples were taken.
    pub sampler: Option<Sampler>,
    /// Name of the scenario file or preset.
    pub scenario: Option<String>,
    /// SHA-256 of the scenario file's bytes, lower-case hexadecimal.
    pub scenario_sha256: Option<String>,
    /// Rounds asked for.
    pub rounds: Option<u32>,
    /// Forced instruction set; null if the dispatcher chose.
    pub isa: Option<String>,
    /// GEMM backend.
    pub backend: Option<String>,
    /// Threads.
    pub threads: Option<u32>,
    /// Type of activations and caches.
    pub precision: Option<Dtype>,
    /// How much of the network is computed.
    pub extent: Option<Extent>,
    /// Seed of synthetic weights and prompts.
    pub seed: Option<u64>,
}

/// Numeric type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(JsonSchema))]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
    /// 8-bit integer.
    I8,
}

impl Dtype {
    /// The name in records and tables.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
            Dtype::I8 => "i8",
        }
    }
}

/// How much of the network is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(JsonSchema))]
pub enum Extent {
    /// Only what the first token needs: the head at the last position, the last layer's K and V and its last position.
    FirstToken,
    /// Every layer at every position and the head everywhere, as the paper's FLOPs formula counts.
    FullNetwork,
}

impl Extent {
    /// The name in records and tables.
    pub fn name(self) -> &'static str {
        match self {
            Extent::FirstToken => "first_token",
            Extent::FullNetwork => "full_network",
        }
    }
}

/// The machine, as far as it tells.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Machine {
    /// CPU model string.
    pub cpu_model: Option<String>,
    /// CPU vendor string.
    pub cpu_vendor: Option<String>,
    /// Target architecture, such as `x86_64`.
    pub arch: Option<String>,
    /// Instruction set features found at run time.
    pub isa_features: Vec<String>,
    /// Physical cores this process may use.
    pub physical_cores: Option<u32>,
    /// Logical cores this process may use.
    pub logical_cores: Option<u32>,
    /// Classes of cores, fastest first.
    pub core_classes: Option<Vec<CoreClass>>,
    /// Caches.
    pub caches: Option<Vec<Cache>>,
    /// Memory installed (or granted).
    pub memory_total_bytes: Option<u64>,
    /// Memory available at the start.
    pub memory_available_bytes: Option<u64>,
    /// Page size.
    pub page_bytes: Option<u64>,
    /// Operating system and version.
    pub os: Option<String>,
    /// Kernel version.
    pub kernel: Option<String>,
    /// CPU frequency governor; on macOS low power mode and the thermal limit of the clock.
    pub governor: Option<String>,
    /// CPU frequency at the start.
    pub frequency_mhz: Option<f64>,
    /// One-minute load average at the start.
    pub load_1m: Option<f64>,
    /// Whether this is a virtual machine.
    pub virtualised: Option<bool>,
}

/// Cores of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct CoreClass {
    /// Such as `performance` or `efficiency`.
    pub name: String,
    /// How many.
    pub cores: u32,
    /// Highest frequency.
    pub max_mhz: Option<f64>,
}

/// One level of cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Cache {
    /// 1, 2, 3.
    pub level: u8,
    /// `data`, `instruction` or `unified`.
    pub kind: String,
    /// Size of one instance.
    pub bytes: u64,
    /// Logical cores that share one instance.
    pub shared_by: Option<u32>,
}

/// What the machine reaches, measured in the process that took the samples, with the run's threads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Limits {
    /// Multiply-add peaks.
    pub peaks: Vec<Peak>,
    /// Read bandwidth from memory, 1e9 bytes per second.
    pub read_gb_per_s: Option<f64>,
    /// Threads of these measurements.
    pub threads: Option<u32>,
}

impl Limits {
    /// Highest measured peak for products of this type, in GFLOP/s.
    pub fn peak_gflops(&self, dtype: Dtype) -> Option<f64> {
        self.peaks.iter().filter(|p| p.dtype == dtype).map(|p| p.gflops).reduce(f64::max)
    }
}

/// Peak rate of multiply-adds in registers, two operations each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Peak {
    /// Type of the factors.
    pub dtype: Dtype,
    /// Instruction set that reached it.
    pub isa: Option<String>,
    /// 1e9 operations per second.
    pub gflops: f64,
}

/// What kind of inference a cell times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(JsonSchema))]
pub enum Kind {
    /// Full prefill of the base network.
    Base,
    /// Full prefill of a smaller network alone: an auxiliary, canonical or layer-pruned.
    Aux,
    /// KV prediction: auxiliary, prediction, one step of the base.
    Kvp,
    /// The base on a random part of the prompt.
    RandomPruned,
    /// The base on the part of the prompt that its first layers attend to.
    StaticPruned,
    /// LazyLLM: tokens dropped progressively.
    LazyPruned,
}

impl Kind {
    /// The name in records and ids.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Base => "base",
            Kind::Aux => "aux",
            Kind::Kvp => "kvp",
            Kind::RandomPruned => "random_pruned",
            Kind::StaticPruned => "static_pruned",
            Kind::LazyPruned => "lazy_pruned",
        }
    }
}

/// One system at one batch and prompt length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Cell {
    /// Such as `ttft/OE1.1B-KVP-C-450M/kvp/b4/p256`; unique in the run but for repeated attempts.
    pub id: String,
    /// 1 for the first measurement of this id; a later line with a higher number replaces it.
    pub attempt: u32,
    /// Start of this cell, RFC 3339 in UTC.
    pub started_at: Option<String>,
    /// Cells of one group were measured next to one another; where `rounds` is set, samples of one round are paired.
    pub group: String,
    /// [`scenario_hash`] of the cell: equal hashes ask for the same work, on whatever machine.
    pub scenario_hash: String,
    /// What kind of inference this is.
    pub kind: Kind,
    /// The system timed, such as `OE1.1B-KVP-C-450M`, `OE1.1B`, `OE450M`, `OE1.1B-RP-0.50`.
    pub system: String,
    /// The base network whose full prefill this system is compared with.
    pub base: String,
    /// The auxiliary network of a KV prediction; null otherwise.
    pub aux: Option<String>,
    /// Sequences.
    pub batch: u32,
    /// Prompt tokens of each sequence.
    pub prompt: u32,
    /// Type of the weights in the file.
    pub weight_dtype: Option<Dtype>,
    /// Type of activations and caches.
    pub precision: Option<Dtype>,
    /// Type of the factors in the matrix products: the row of [`Limits::peaks`] that bounds this cell.
    pub compute_dtype: Option<Dtype>,
    /// How much of the network is computed.
    pub extent: Option<Extent>,
    /// Threads.
    pub threads: Option<u32>,
    /// Instruction set used.
    pub isa: Option<String>,
    /// GEMM backend used.
    pub backend: Option<String>,
    /// Kernels used.
    pub kernels: Vec<String>,
    /// Runs before the first sample, not counted.
    pub warmup_ns: Vec<u64>,
    /// TTFT of every sample, in the order taken.
    pub samples_ns: Vec<u64>,
    /// Round of every sample, increasing; null if the samples were not taken in rounds.
    pub rounds: Option<Vec<u32>>,
    /// Place of every sample within its round, from 0; null if not taken in rounds.
    pub round_positions: Option<Vec<u32>>,
    /// Phases in the order they run. What they leave of a sample is unattributed.
    pub phases: Vec<PhaseRecord>,
    /// Floating-point operations by the paper's approximation, 2 x parameters x tokens, for the whole batch.
    pub paper_flops: Option<u64>,
    /// Generation after the first token.
    pub decode: Option<Decode>,
    /// Speed probe around the cell.
    pub drift: Option<Drift>,
    /// Memory of the process.
    pub memory: Option<Memory>,
    /// Correctness gate passed before the cell was timed.
    pub gate: Option<Gate>,
    /// One-minute load average before the cell.
    pub load_before: Option<f64>,
    /// One-minute load average after the cell.
    pub load_after: Option<f64>,
    /// Figures as printed in a publication; `samples_ns` is then empty.
    pub published: Option<Published>,
}

impl Cell {
    /// The cell of one workload, with nothing measured: everything optional is unknown, every list is empty.
    ///
    /// The id is `ttft/{system}/{kind}/b{batch}/p{prompt}`, the group `b{batch}/p{prompt}`.
    pub fn new(kind: Kind, system: &str, base: &str, aux: Option<&str>, batch: u32, prompt: u32) -> Self {
        Self {
            id: format!("ttft/{system}/{}/b{batch}/p{prompt}", kind.name()),
            attempt: 1,
            started_at: None,
            group: format!("b{batch}/p{prompt}"),
            scenario_hash: scenario_hash(kind, system, base, aux, batch, prompt),
            kind,
            system: system.into(),
            base: base.into(),
            aux: aux.map(Into::into),
            batch,
            prompt,
            weight_dtype: None,
            precision: None,
            compute_dtype: None,
            extent: None,
            threads: None,
            isa: None,
            backend: None,
            kernels: Vec::new(),
            warmup_ns: Vec::new(),
            samples_ns: Vec::new(),
            rounds: None,
            round_positions: None,
            phases: Vec::new(),
            paper_flops: None,
            decode: None,
            drift: None,
            memory: None,
            gate: None,
            load_before: None,
            load_after: None,
            published: None,
        }
    }

    /// Exact operations and bytes of all phases; `None` if there are no phases or one of them has no count.
    pub fn cost(&self) -> Option<Cost> {
        let (first, rest) = self.phases.split_first()?;
        rest.iter().try_fold(first.cost?, |sum, p| Some(sum.plus(&p.cost?)))
    }

    /// Whether its figures are published ones with known faults.
    pub fn has_faults(&self) -> bool {
        self.published.as_ref().is_some_and(|p| !p.faults.is_empty())
    }

    /// The phase of this name.
    pub fn phase(&self, name: &str) -> Option<&PhaseRecord> {
        self.phases.iter().find(|p| p.name == name)
    }

    /// What the phases leave of every sample, in nanoseconds.
    pub fn unattributed_ns(&self) -> Vec<u64> {
        (0..self.samples_ns.len())
            .map(|i| self.phases.iter().fold(self.samples_ns[i], |left, p| left.saturating_sub(p.samples_ns[i])))
            .collect()
    }
}

/// Hash of what a cell asks for: 16 hexadecimal digits of SHA-256 over kind, system, networks, batch and prompt.
///
/// Types, threads and machine are left out: they are what a comparison is about, and it checks them by themselves.
pub fn scenario_hash(kind: Kind, system: &str, base: &str, aux: Option<&str>, batch: u32, prompt: u32) -> String {
    let mut hash = Sha256::new();
    for text in [kind.name(), system, base, aux.unwrap_or("")] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.update(batch.to_le_bytes());
    hash.update(prompt.to_le_bytes());
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// One phase of a system: its time in every sample, and its work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct PhaseRecord {
    /// `selection`, `prefill`, `auxiliary`, `prediction` or `base_step`.
    pub name: String,
    /// Time of the phase in every sample of the cell, in the same order.
    pub samples_ns: Vec<u64>,
    /// Exact work.
    pub cost: Option<Cost>,
    /// Parallel regions entered (starts of the thread pool).
    pub parallel_regions: Option<u64>,
}

/// Work of a phase for the whole batch, counted from shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Cost {
    /// Floating-point operations.
    pub flops: Flops,
    /// Bytes of weights read, each once.
    pub weight_bytes: u64,
    /// Bytes of KV cache written and read, each once.
    pub cache_bytes: u64,
}

impl Cost {
    /// The sum of two costs.
    pub fn plus(&self, other: &Cost) -> Cost {
        Cost {
            flops: Flops {
                projections: self.flops.projections.saturating_add(other.flops.projections),
                attention: self.flops.attention.saturating_add(other.flops.attention),
                head: self.flops.head.saturating_add(other.flops.head),
                prediction: self.flops.prediction.saturating_add(other.flops.prediction),
            },
            weight_bytes: self.weight_bytes.saturating_add(other.weight_bytes),
            cache_bytes: self.cache_bytes.saturating_add(other.cache_bytes),
        }
    }

    /// Weight and cache bytes.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.cache_bytes)
    }
}

/// Floating-point operations by where they arise; a multiply-add counts as two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Flops {
    /// Linear maps of the layers.
    pub projections: u64,
    /// Scores and weighted sums.
    pub attention: u64,
    /// Output head.
    pub head: u64,
    /// KV predictor.
    pub prediction: u64,
}

impl Flops {
    /// All of them.
    pub fn total(&self) -> u64 {
        [self.attention, self.head, self.prediction].into_iter().fold(self.projections, u64::saturating_add)
    }
}

/// Generation after the first token; only the base network runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Decode {
    /// Steps timed after each first token.
    pub steps: u32,
    /// Time of every step, sample after sample.
    pub samples_ns: Vec<u64>,
}

/// Speed of a fixed probe before and after a cell: a machine that keeps still shows the same twice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Drift {
    /// Multiply-add rate before the cell.
    pub before_gflops: Option<f64>,
    /// Multiply-add rate after the cell.
    pub after_gflops: Option<f64>,
    /// Read bandwidth before the cell.
    pub before_read_gb_per_s: Option<f64>,
    /// Read bandwidth after the cell.
    pub after_read_gb_per_s: Option<f64>,
}

impl Drift {
    /// Relative change of the multiply-add rate over the cell: 0.05 is 5% either way.
    pub fn change(&self) -> Option<f64> {
        let (before, after) = (self.before_gflops?, self.after_gflops?);
        (before > 0.0 && after > 0.0).then(|| (after / before).max(before / after) - 1.0)
    }
}

/// Memory of the process, at the end of the cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Memory {
    /// Highest resident set so far.
    pub peak_rss_bytes: Option<u64>,
    /// Resident anonymous memory: what is not the mapped weights.
    pub rss_anon_bytes: Option<u64>,
    /// Minor page faults while the samples were taken.
    pub minor_faults: Option<u64>,
    /// Major page faults while the samples were taken: weights were not warm if this is not 0.
    pub major_faults: Option<u64>,
}

/// Comparison with a slow reference on a short prompt of the same networks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Gate {
    /// Largest absolute difference of a logit.
    pub max_abs_err: f64,
    /// Largest difference allowed.
    pub tolerance: f64,
    /// Whether it was within the tolerance. A wrong result is never timed.
    pub passed: bool,
}

/// Figures as printed in a publication.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Published {
    /// TTFT; one figure, its spread unknown.
    pub ttft_s: f64,
    /// FLOPs reduction over the base.
    pub flops_reduction: Option<f64>,
    /// TTFT reduction over the base.
    pub ttft_reduction: Option<f64>,
    /// TriviaQA exact match, percent.
    pub triviaqa_percent: Option<f64>,
    /// Known faults of these figures.
    pub faults: Vec<String>,
}

/// A cell that was planned and not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Skipped {
    /// As in [`Cell::id`].
    pub id: String,
    /// Why, with the figures, in words.
    pub reason: String,
    /// Time it was estimated to take.
    pub estimate_s: Option<f64>,
    /// Memory it was estimated to need.
    pub estimate_bytes: Option<u64>,
}

/// A whole record in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Record {
    /// The first line.
    pub run: RunHeader,
    /// Cells in the order first measured, each by its last attempt.
    pub cells: Vec<Cell>,
    /// Attempts that a later one replaced.
    pub superseded: Vec<Cell>,
    /// Skipped cells that were not measured later in the file.
    pub skipped: Vec<Skipped>,
}

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("{}: cannot {what}", path.display())]
    Io {
        /// The record.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The file exists.
    #[error("{} exists and is not overwritten: choose another name, resume it, or move it away", .0.display())]
    Exists(PathBuf),
    /// Another process writes the record.
    #[error("{}: another run is writing this record: wait for its end, or write another one", .0.display())]
    Busy(PathBuf),
    /// A line is not what the schema says.
    #[error("{}, line {line}, field `{field}`: {message}", path.display())]
    Line {
        /// The record.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Path of the field, such as `cell.phases[1].samples_ns`; `.` is the line as a whole.
        field: String,
        /// What is wrong, expected and found.
        message: String,
    },
    /// The record has another version of the schema.
    #[error(
        "{}: the record's schema is `{found}`, this program reads `{SCHEMA}`: use the version of ttft that wrote it",
        path.display()
    )]
    Version {
        /// The record.
        path: PathBuf,
        /// Its schema.
        found: String,
    },
    /// The last line has no end.
    #[error(
        "{}, line {line}: the file ends inside this line (the run was interrupted while writing it): resume the run, \
         or delete this line",
        path.display()
    )]
    Torn {
        /// The record.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
}

type Result<T, E = RecordError> = std::result::Result<T, E>;

/// A fault inside one line: field and message.
type Fault = (String, String);

impl Record {
    /// Reads and checks a record file.
    ///
    /// # Errors
    /// The first line and field that is not as the schema says; an unknown schema version; a line without its end.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| io_error(path, "open it for reading", source))?;
        Self::from_reader(file, path)
    }

    /// Reads and checks a record from any source; `name` stands in errors.
    ///
    /// # Errors
    /// As [`Record::read`].
    pub fn from_reader(source: impl Read, name: &Path) -> Result<Self> {
        let scan = scan(source, name)?;
        if scan.torn {
            return Err(RecordError::Torn { path: name.into(), line: scan.lines + 1 });
        }
        Ok(scan.record)
    }

    /// The cell that `cell`'s speedup is measured against: the same base, batch and prompt, in the same group if
    /// there is one.
    pub fn base_of(&self, cell: &Cell) -> Option<&Cell> {
        let same = |c: &&Cell| {
            c.kind == Kind::Base
                && (&c.base, c.batch, c.prompt, c.extent) == (&cell.base, cell.batch, cell.prompt, cell.extent)
                && (c.precision, c.weight_dtype, c.threads) == (cell.precision, cell.weight_dtype, cell.threads)
        };
        let mut bases = self.cells.iter().filter(same);
        let first = bases.next()?;
        if first.group == cell.group {
            return Some(first);
        }
        Some(bases.find(|c| c.group == cell.group).unwrap_or(first))
    }
}

pub(crate) fn io_error(path: &Path, what: &'static str, source: io::Error) -> RecordError {
    RecordError::Io { path: path.into(), what, source }
}

/// All whole lines of a record.
struct Scan {
    record: Record,
    /// What the whole lines take.
    bytes: u64,
    /// How many there are.
    lines: usize,
    /// Whether part of a line follows them.
    torn: bool,
    /// Whether the last of them lacks its end.
    unended: bool,
}

fn scan(source: impl Read, path: &Path) -> Result<Scan> {
    let mut input = BufReader::new(source);
    let mut builder = Builder::default();
    let (mut bytes, mut lines, mut buffer, mut unended) = (0u64, 0usize, Vec::new(), false);
    let torn = loop {
        buffer.clear();
        let read = (&mut input)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut buffer)
            .map_err(|source| io_error(path, "read it", source))?;
        if read == 0 {
            break false;
        }
        let line = lines + 1;
        let fault = |field: &str, message: String| RecordError::Line {
            path: path.into(),
            line,
            field: printable(field),
            message: printable(&message),
        };
        if read as u64 > MAX_LINE_BYTES {
            return Err(fault(".", format!("longer than {MAX_LINE_BYTES} bytes: this is not a ttft record")));
        }
        if line > MAX_LINES {
            return Err(fault(".", format!("more than {MAX_LINES} lines: this is not a ttft record")));
        }
        if buffer.last() != Some(&b'\n') {
            // An editor may have dropped the end of the last line; a run that was cut off leaves no whole line.
            if line > 1 && serde_json::from_slice::<serde::de::IgnoredAny>(&buffer).is_err() {
                break true;
            }
            unended = true;
        }
        if line == 1
            && let Some(what) = text::stand_in(&buffer)
        {
            return Err(fault(".", what.into()));
        }
        let whole = if line == 1 { text::without_mark(&buffer) } else { &buffer };
        let text = std::str::from_utf8(whole).map_err(|e| fault(".", format!("not UTF-8: {e}")))?;
        if line > 1 && text.trim().is_empty() {
            bytes += read as u64;
            lines += 1;
            continue;
        }
        if line == 1
            && let Some(found) = other_schema(text)
        {
            return Err(RecordError::Version { path: path.into(), found });
        }
        parse(text).and_then(|l| builder.add(l)).map_err(|(field, message)| {
            let hint = if line == 1 {
                " (a record of `ttft bench` or `cargo bench` starts with a whole `run` line)"
            } else {
                ""
            };
            fault(&field, message + hint)
        })?;
        bytes += read as u64;
        lines += 1;
    };
    match builder.finish() {
        Some(record) => Ok(Scan { record, bytes, lines, torn, unended }),
        None => Err(RecordError::Line {
            path: path.into(),
            line: 1,
            field: ".".into(),
            message: "empty file: expected a `run` line".into(),
        }),
    }
}

/// The schema a first line names, if it names one and it is not ours.
fn other_schema(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Probe {
        run: Header,
    }
    #[derive(Deserialize)]
    struct Header {
        schema: String,
    }
    let found = serde_json::from_str::<Probe>(text).ok()?.run.schema;
    (found != SCHEMA).then(|| printable(&found))
}

/// What stands in a file, such as an unknown field's name, as it can be shown: no end of it, and nothing that steers a
/// terminal.
fn printable(text: &str) -> String {
    const MOST: usize = 600;
    let more = text.chars().nth(MOST).map(|_| '…');
    text::printable(&text.chars().take(MOST).chain(more).collect::<String>())
}

/// Parses and checks one line.
fn parse(text: &str) -> Result<Line, Fault> {
    let mut json = serde_json::Deserializer::from_str(text);
    let line: Line = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let (path, message) = (e.path().to_string(), e.inner().to_string());
        // serde_json counts lines from the start of its own text, which is always one line here.
        let message = message.replace(" at line 1 column ", " at column ");
        let near = text.get(e.inner().column().saturating_sub(2)..).unwrap_or_default();
        let python = ["NaN", "Infinity"].iter().any(|word| near.trim_start_matches([':', ' ', '-']).starts_with(word));
        (path, if python { message + ": NaN and Infinity are no JSON, unknown is null" } else { message })
    })?;
    json.end().map_err(|e| (".".to_string(), e.to_string()))?;
    if let Ok(value) = serde_json::from_str(text) {
        check_text(&value, &mut String::new())?;
    }
    match &line {
        Line::Run(run) => check_run(run),
        Line::Cell(cell) => check_cell(cell),
        Line::Skipped(skipped) => check_id(&skipped.id, "skipped.id"),
    }?;
    Ok(line)
}

/// Refuses strings that are too long or that would steer a terminal.
fn check_text(value: &serde_json::Value, path: &mut String) -> Result<(), Fault> {
    use serde_json::Value;
    let end = path.len();
    match value {
        Value::String(text) if text.len() > MAX_TEXT_BYTES => {
            Err((path.clone(), format!("{} bytes of text, at most {MAX_TEXT_BYTES} are read", text.len())))
        }
        Value::String(text) => match text.chars().find(|c| c.is_control()) {
            Some(c) => Err((path.clone(), format!("control character {:#04x} in text", c as u32))),
            None => Ok(()),
        },
        Value::Array(items) => items.iter().enumerate().try_for_each(|(i, item)| {
            path.truncate(end);
            path.push_str(&format!("[{i}]"));
            check_text(item, path)
        }),
        Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
            path.truncate(end);
            if end > 0 {
                path.push('.');
            }
            path.push_str(name);
            check_text(field, path)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

fn fault<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Fault> {
    Err((field.into(), message.into()))
}

fn check_id(id: &str, field: &str) -> Result<(), Fault> {
    if id.is_empty() || id.chars().any(char::is_whitespace) {
        return fault(field, format!("expected an id without spaces, found `{id}`"));
    }
    Ok(())
}

fn check_time(time: Option<&str>, field: &str) -> Result<(), Fault> {
    let pattern = b"0000-00-00T00:00:00";
    let good = |t: &str| {
        let (head, tail) = t.as_bytes().split_at_checked(pattern.len())?;
        let same = |(c, p): (&u8, &u8)| if *p == b'0' { c.is_ascii_digit() } else { c == p };
        let fraction = tail.strip_suffix(b"Z")?;
        let digits = fraction.strip_prefix(b".").map_or(fraction.is_empty(), |d| d.iter().all(u8::is_ascii_digit));
        (head.iter().zip(pattern).all(same) && digits).then_some(())
    };
    match time {
        Some(t) if good(t).is_none() => fault(field, format!("expected a time like 2026-11-23T05:27:00Z, found `{t}`")),
        _ => Ok(()),
    }
}

fn check_run(run: &RunHeader) -> Result<(), Fault> {
    if run.schema != SCHEMA {
        return fault("run.schema", format!("expected `{SCHEMA}`, found `{}`", run.schema));
    }
    check_id(&run.run_id, "run.run_id")?;
    check_time(run.started_at.as_deref(), "run.started_at")?;
    for (i, peak) in run.limits.peaks.iter().enumerate() {
        check_positive(Some(peak.gflops), || format!("run.limits.peaks[{i}].gflops"))?;
    }
    check_positive(run.limits.read_gb_per_s, || "run.limits.read_gb_per_s".into())
}

fn check_positive(value: Option<f64>, field: impl Fn() -> String) -> Result<(), Fault> {
    match value {
        Some(v) if !(v > 0.0 && v.is_finite()) => fault(field(), format!("expected a positive number, found {v}")),
        _ => Ok(()),
    }
}

/// A list of times must hold as many as the cell has samples, none of them 0 where a time cannot be 0.
fn check_samples(list: &[u64], expected: Option<usize>, field: impl Fn() -> String) -> Result<(), Fault> {
    if list.len() > MAX_SAMPLES {
        return fault(field(), format!("{} samples, at most {MAX_SAMPLES} are read", list.len()));
    }
    match expected {
        Some(n) if n != list.len() => {
            fault(field(), format!("expected {n} entries, one for each sample of the cell, found {}", list.len()))
        }
        _ => Ok(()),
    }
}

fn check_cell(cell: &Cell) -> Result<(), Fault> {
    let samples = cell.samples_ns.len();
    check_id(&cell.id, "cell.id")?;
    check_time(cell.started_at.as_deref(), "cell.started_at")?;
    if cell.attempt == 0 {
        return fault("cell.attempt", "expected 1 or more, found 0");
    }
    if cell.batch == 0 || cell.prompt == 0 {
        let field = if cell.batch == 0 { "cell.batch" } else { "cell.prompt" };
        return fault(field, "expected 1 or more, found 0");
    }
    let hash = scenario_hash(cell.kind, &cell.system, &cell.base, cell.aux.as_deref(), cell.batch, cell.prompt);
    if cell.scenario_hash != hash {
        let found = &cell.scenario_hash;
        return fault(
            "cell.scenario_hash",
            format!("expected {hash} for this system, batch and prompt, found {found}"),
        );
    }
    if cell.kind == Kind::Base && cell.system != cell.base {
        return fault("cell.system", format!("expected the base `{}`, found `{}`", cell.base, cell.system));
    }
    if (cell.kind == Kind::Kvp) != cell.aux.is_some() {
        return fault("cell.aux", format!("expected a name for kvp and null for all others, kind is {:?}", cell.kind));
    }
    check_samples(&cell.samples_ns, None, || "cell.samples_ns".into())?;
    check_samples(&cell.warmup_ns, None, || "cell.warmup_ns".into())?;
    if let Some(i) = cell.samples_ns.iter().position(|&ns| ns == 0) {
        return fault(format!("cell.samples_ns[{i}]"), "expected a positive time, found 0");
    }
    for (name, list) in [("rounds", &cell.rounds), ("round_positions", &cell.round_positions)] {
        if let Some(list) = list
            && list.len() != samples
        {
            let message = format!("expected {samples} entries, one for each sample, found {}", list.len());
            return fault(format!("cell.{name}"), message);
        }
    }
    if cell.rounds.as_ref().is_some_and(|r| !r.is_sorted_by(|a, b| a < b)) {
        return fault("cell.rounds", "expected increasing numbers, one sample for each round");
    }
    for (i, phase) in cell.phases.iter().enumerate() {
        check_samples(&phase.samples_ns, Some(samples), || format!("cell.phases[{i}].samples_ns"))?;
        if cell.phases[..i].iter().any(|p| p.name == phase.name) {
            return fault(format!("cell.phases[{i}].name"), format!("phase `{}` occurs twice", phase.name));
        }
    }
    for (s, &total) in cell.samples_ns.iter().enumerate() {
        let sum = cell.phases.iter().fold(0u64, |sum, p| sum.saturating_add(p.samples_ns[s]));
        if sum > total {
            return fault("cell.phases", format!("phases of sample {s} take {sum} ns, the whole only {total} ns"));
        }
    }
    if let Some(decode) = &cell.decode {
        check_samples(&decode.samples_ns, (decode.steps as usize).checked_mul(samples), || {
            "cell.decode.samples_ns".into()
        })?;
    }
    if let Some(gate) = &cell.gate {
        if gate.passed != (gate.max_abs_err <= gate.tolerance) {
            let (err, tolerance, passed) = (gate.max_abs_err, gate.tolerance, gate.passed);
            return fault("cell.gate.passed", format!("{passed}, but error {err} and tolerance {tolerance}"));
        }
        if !gate.passed && samples > 0 {
            return fault("cell.samples_ns", "expected none: the correctness gate failed");
        }
    }
    if let Some(published) = &cell.published {
        check_positive(Some(published.ttft_s), || "cell.published.ttft_s".into())?;
        check_positive(published.flops_reduction, || "cell.published.flops_reduction".into())?;
        if samples > 0 {
            return fault("cell.published", format!("expected null: the cell has {samples} samples of its own"));
        }
    }
    Ok(())
}

/// Lines to record.
#[derive(Default)]
struct Builder {
    run: Option<RunHeader>,
    cells: Vec<Cell>,
    superseded: Vec<Cell>,
    skipped: Vec<Skipped>,
    by_id: HashMap<String, usize>,
}

impl Builder {
    fn add(&mut self, line: Line) -> Result<(), Fault> {
        match line {
            Line::Run(run) if self.run.is_none() => self.run = Some(*run),
            Line::Run(_) => return fault("run", "a second `run` line: one record holds one run"),
            _ if self.run.is_none() => return fault(".", "expected the `run` line first"),
            Line::Skipped(skipped) => self.skipped.push(*skipped),
            Line::Cell(cell) => match self.by_id.get(&cell.id) {
                None => {
                    self.by_id.insert(cell.id.clone(), self.cells.len());
                    self.cells.push(*cell);
                }
                Some(&at) if self.cells[at].attempt >= cell.attempt => {
                    let (id, last, found) = (&cell.id, self.cells[at].attempt, cell.attempt);
                    return fault("cell.attempt", format!("`{id}` again: expected more than {last}, found {found}"));
                }
                Some(&at) => self.superseded.push(std::mem::replace(&mut self.cells[at], *cell)),
            },
        }
        Ok(())
    }

    fn finish(self) -> Option<Record> {
        let Builder { run, cells, superseded, mut skipped, by_id } = self;
        // Of a cell skipped again, the last reason stands.
        let mut seen = HashSet::new();
        skipped.reverse();
        skipped.retain(|s| !by_id.contains_key(&s.id) && seen.insert(s.id.clone()));
        skipped.reverse();
        Some(Record { run: run?, cells, superseded, skipped })
    }
}

/// Appends to a record, one flushed line for each cell.
///
/// A line is written only if the reader accepts it, so a record that exists can be read. The file is locked while its
/// writer lives.
#[derive(Debug)]
pub struct Writer {
    /// None if the record is kept in memory alone.
    file: Option<File>,
    path: PathBuf,
    lines: usize,
    /// What the whole lines take.
    bytes: u64,
    /// Whether something else may follow them: part of a line.
    torn: bool,
    /// Whether the last of them lacks its end.
    unended: bool,
    /// The lines again, where they cannot be read back.
    kept: Option<Vec<u8>>,
}

impl Writer {
    /// Creates the record with its first line, or writes it into what is there and holds nothing: an empty file, a device,
    /// a pipe. Missing folders are made. [`RunHeader::schema`] is set to [`SCHEMA`].
    ///
    /// # Errors
    /// [`RecordError::Exists`] if the file holds something; what the file system says; a header the reader would refuse.
    pub fn create(path: &Path, run: RunHeader) -> Result<Self> {
        Self::begin(path, run, Place::open)
    }

    /// As [`Writer::create`], but any file of this name is [`RecordError::Exists`]: of several runs that choose the same name
    /// at once, one gets it.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn create_new(path: &Path, run: RunHeader) -> Result<Self> {
        Self::begin(path, run, Place::make)
    }

    /// A record that is kept in memory and leaves nothing behind.
    ///
    /// # Errors
    /// A header the reader would refuse.
    pub fn nowhere(run: RunHeader) -> Result<Self> {
        let path = PathBuf::from("(no record)");
        let kept = Some(encode(&Line::Run(Box::new(of_this_schema(run))), &path, 1)?);
        Ok(Self { file: None, path, lines: 1, bytes: 0, torn: false, unended: false, kept })
    }

    fn begin(path: &Path, run: RunHeader, open: fn(&Path) -> Result<Place>) -> Result<Self> {
        let line = encode(&Line::Run(Box::new(of_this_schema(run))), path, 1)?;
        let Place { mut file, kind } = open(path)?;
        if let Err(source) = file.write_all(&line).and_then(|()| file.flush()) {
            // What is left is as it was: nothing, or an empty file.
            let _ = match kind {
                PlaceKind::Made => std::fs::remove_file(path),
                PlaceKind::Empty => file.set_len(0),
                PlaceKind::Stream => Ok(()),
            };
            return Err(io_error(path, "write it", source));
        }
        let bytes = line.len() as u64;
        let kept = (kind == PlaceKind::Stream).then_some(line);
        Ok(Self { file: Some(file), path: path.into(), lines: 1, bytes, torn: false, unended: false, kept })
    }

    /// Opens an existing record to append to, and returns what it holds. A torn last line is cut off when something is
    /// appended; until then the file stays as it is.
    ///
    /// # Errors
    /// As [`Record::read`], but for the torn line; [`RecordError::Busy`] if another run writes it.
    pub fn resume(path: &Path) -> Result<(Self, Record)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| io_error(path, "open it to resume", source))?;
        lock(&file, path)?;
        let Scan { record, bytes, lines, torn, unended } = scan(&mut file, path)?;
        Ok((Self { file: Some(file), path: path.into(), lines, bytes, torn, unended, kept: None }, record))
    }

    /// Appends a cell.
    ///
    /// # Errors
    /// What the file system says; the field of the cell that the reader would refuse.
    pub fn cell(&mut self, cell: &Cell) -> Result<()> {
        self.append(&Line::Cell(Box::new(cell.clone())))
    }

    /// Appends a skipped cell.
    ///
    /// # Errors
    /// As [`Writer::cell`].
    pub fn skipped(&mut self, skipped: &Skipped) -> Result<()> {
        self.append(&Line::Skipped(Box::new(skipped.clone())))
    }

    /// The record's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the writing: what the record holds now.
    ///
    /// # Errors
    /// As [`Record::read`].
    pub fn finish(self) -> Result<Record> {
        let Self { file, path, kept, .. } = self;
        drop(file);
        match kept {
            Some(lines) => Record::from_reader(&lines[..], &path),
            None => Record::read(&path),
        }
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        let text = encode(line, &self.path, self.lines + 1)?;
        self.put(&text)?;
        self.lines += 1;
        Ok(())
    }

    /// Writes at the end of the whole lines.
    fn put(&mut self, text: &[u8]) -> Result<()> {
        let Self { file, path, bytes, torn, kept, unended, .. } = self;
        let path: &Path = path;
        let failed = |what| move |source| io_error(path, what, source);
        if let Some(lines) = kept {
            lines.extend_from_slice(text);
            if let Some(stream) = file {
                stream.write_all(text).and_then(|()| stream.flush()).map_err(failed("append to it"))?;
            }
            return Ok(());
        }
        let Some(file) = file else { return Ok(()) };
        if *torn {
            // Of a run that was cut off, or of a line that a full disk did not hold.
            file.set_len(*bytes).map_err(failed("cut off its torn last line"))?;
        }
        *torn = true;
        let text = if *unended { &[b"\n", text].concat() } else { text };
        let written = file.seek(SeekFrom::Start(*bytes)).and_then(|_| file.write_all(text)).and_then(|()| file.flush());
        if written.is_err() {
            // Of a full disk: the record stays one that can be read.
            *torn = file.set_len(*bytes).is_err();
        }
        written.map_err(failed("append to it"))?;
        (*torn, *unended) = (false, false);
        *bytes += text.len() as u64;
        Ok(())
    }
}

/// The header with this program's schema.
fn of_this_schema(run: RunHeader) -> RunHeader {
    RunHeader { schema: SCHEMA.into(), ..run }
}

/// Keeps others from writing the same record. Where the file system knows no locks there is nothing to keep.
pub(crate) fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(RecordError::Busy(path.into())),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// One line as bytes with its end, checked by the reader.
fn encode(line: &Line, path: &Path, number: usize) -> Result<Vec<u8>> {
    let refuse = |(field, message)| RecordError::Line { path: path.into(), line: number, field, message };
    let mut text = serde_json::to_string(line).map_err(|e| refuse((".".into(), e.to_string())))?;
    parse(&text).map_err(refuse)?;
    text.push('\n');
    Ok(text.into_bytes())
}

#[cfg(test)]
mod tests;
