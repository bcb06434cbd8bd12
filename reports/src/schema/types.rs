//! The types of a record: every field with its meaning and its unit.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

#[cfg(test)]
use schemars::JsonSchema;

/// Name and version of the format, as it stands in [`RunHeader::schema`].
pub const SCHEMA: &str = "ttft-record/3";
/// Every version that is read. The second added processes, the probes of each round and a cell's own limits; the third
/// percentiles and clocks.
pub const READABLE: [&str; 3] = ["ttft-record/1", "ttft-record/2", SCHEMA];
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
    /// One of [`READABLE`]; any other value is refused.
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
    /// The networks of the run, each once; null if the writer did not say.
    pub networks: Option<Vec<Identity>>,
    /// The KV predictions of the run, each once; null if the writer did not say.
    pub predictions: Option<Vec<Named>>,
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

/// Which network, or which predictor: what a time measured here and an answer judged there must have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Identity {
    /// As in the cells. Two of one name need not be the same, and the same may have two names.
    pub name: String,
    /// SHA-256 of the configuration, lower-case hexadecimal: of a network as this program writes it, of a predictor's
    /// `config.json` as it lies there; null if it has none.
    pub config_sha256: Option<String>,
    /// SHA-256 of the weights, lower-case hexadecimal: over the `.safetensors` files of the folder in the order of their
    /// names, of each its name, a zero byte, its size in 8 bytes (little endian), and its bytes. Of synthetic weights, which
    /// follow from little, of the words that say from what; null if there are none.
    pub weights_sha256: Option<String>,
    /// Whether the weights are random values of the right shape, so that no answer means anything.
    pub synthetic: bool,
}

/// What reads the prompt in place of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(JsonSchema))]
pub enum Source {
    /// An auxiliary network.
    Auxiliary,
    /// The first layers of the base itself.
    SharedLayers,
}

/// What the maps of a predictor read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(JsonSchema))]
pub enum Input {
    /// Keys for keys, values for values.
    Kv,
    /// The residual stream, divided by its root mean square.
    Hidden,
    /// The residual stream, by the predicted layer's own norm and projections: no maps.
    Own,
}

impl Input {
    /// The name in records and tables.
    pub fn name(self) -> &'static str {
        match self {
            Input::Kv => "kv",
            Input::Hidden => "hidden",
            Input::Own => "own",
        }
    }
}

/// A KV prediction: what reads the prompt, what is predicted from that, and what the base reads itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Prediction {
    /// What reads the prompt.
    pub source: Source,
    /// The auxiliary; null where layers of the base read the prompt.
    pub aux: Option<Identity>,
    /// k: layers of the base that read the prompt; null where an auxiliary reads it.
    pub shared_layers: Option<u32>,
    /// What the maps read; null if that is unknown.
    pub input: Option<Input>,
    /// The predictor; null where each layer projects the hidden state itself.
    pub predictor: Option<Identity>,
    /// m: last tokens of the prompt that the base reads itself.
    pub base_tokens: u32,
    /// s: first tokens of the prompt that the base reads itself.
    pub sink_tokens: u32,
}

/// A KV prediction by the name that it has in cells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Named {
    /// As in [`Cell::system`].
    pub system: String,
    /// What it is.
    pub prediction: Prediction,
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
    /// Rounds asked for, of all processes together.
    pub rounds: Option<u32>,
    /// Processes that every group is measured in; null if all samples come from the process that wrote the record.
    pub processes: Option<u32>,
    /// Forced instruction set; null if the dispatcher chose.
    pub isa: Option<String>,
    /// GEMM backend.
    pub backend: Option<String>,
    /// Kernel that was asked for by its name; null if the dispatcher chose, and in records of earlier versions.
    pub kernel: Option<String>,
    /// Threads.
    pub threads: Option<u32>,
    /// Type of activations and caches.
    pub precision: Option<Dtype>,
    /// How much of the network is computed.
    pub extent: Option<Extent>,
    /// Seed of synthetic weights and prompts.
    pub seed: Option<u64>,
    /// What is in memory when the clock starts; null is warm.
    pub start: Option<Start>,
}

/// What is in memory when the clock starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(JsonSchema))]
pub enum Start {
    /// Weights are mapped and warm, buffers allocated; the clock starts at token ids in memory.
    #[default]
    Warm,
    /// Nothing of the weights is in memory; the clock starts before their folders are opened.
    Cold,
}

impl Start {
    /// The name in scenarios and tables.
    pub fn name(self) -> &'static str {
        match self {
            Start::Warm => "warm",
            Start::Cold => "cold",
        }
    }
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
    /// Nodes of memory (NUMA) that hold its CPUs.
    pub numa_nodes: Option<u32>,
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
    /// Multiply-add peaks, of each unit of the machine for each type.
    pub peaks: Vec<Peak>,
    /// Read bandwidth from memory, 1e9 bytes per second.
    pub read_gb_per_s: Option<f64>,
    /// Threads of these measurements.
    pub threads: Option<u32>,
    /// Microseconds of an empty parallel region while all threads are awake.
    pub region_us: Option<f64>,
    /// A unit of the machine that the program did not reach, so that the peaks are those of the others; null if there is none.
    pub out_of_reach: Option<String>,
}

impl Limits {
    /// The fastest unit for factors of exactly this type.
    pub fn fastest(&self, dtype: Dtype) -> Option<&Peak> {
        self.peaks.iter().filter(|p| p.dtype == dtype).max_by(|a, b| a.gflops.total_cmp(&b.gflops))
    }

    /// The fastest unit for products of this type: also one of F32, to which 16-bit factors can be widened.
    pub fn peak(&self, dtype: Dtype) -> Option<&Peak> {
        let wider = if matches!(dtype, Dtype::Bf16 | Dtype::F16) { self.fastest(Dtype::F32) } else { None };
        self.fastest(dtype).into_iter().chain(wider).max_by(|a, b| a.gflops.total_cmp(&b.gflops))
    }

    /// Highest measured peak for products of this type, in GFLOP/s.
    pub fn peak_gflops(&self, dtype: Dtype) -> Option<f64> {
        self.peak(dtype).map(|p| p.gflops)
    }

    /// Seconds that arithmetic takes at these peaks, every product at the peak of the type that multiplies it: of what does not say
    /// its types, all of it in `own`.
    pub fn arithmetic(&self, cost: &Cost, own: Option<Dtype>) -> Option<f64> {
        let seconds = |flops: u64, dtype| match flops {
            0 => Some(0.0),
            _ => Some(flops as f64 * 1e-9 / self.peak_gflops(dtype)?),
        };
        let all = cost.flops.total();
        match cost.f32_flops {
            Some(part) => Some(seconds(part, Dtype::F32)? + seconds(all.saturating_sub(part), Dtype::Bf16)?),
            None => seconds(all, own?),
        }
    }

    /// The unit that the run's kernels use, if the record says so.
    pub fn in_use(&self) -> Option<&Peak> {
        self.peaks.iter().find(|p| p.in_use == Some(true))
    }
}

/// Peak rate of one unit's multiply-adds, two operations each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Peak {
    /// Type of the factors.
    pub dtype: Dtype,
    /// The unit, or the instruction set, that reached it.
    pub isa: Option<String>,
    /// 1e9 operations per second.
    pub gflops: f64,
    /// Whether the kernels that ran use this unit for the products of the run; null if that is unknown.
    pub in_use: Option<bool>,
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
    /// SpecPrefill: the base on the part of the prompt that an auxiliary attends to.
    SpecPrefill,
    /// GemFilter: the base on the part of the prompt that one of its own layers chooses, as a prompt of its own.
    GemFilter,
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
            Kind::SpecPrefill => "spec_prefill",
            Kind::GemFilter => "gem_filter",
        }
    }

    /// Whether the base works on part of the prompt.
    pub fn drops_tokens(self) -> bool {
        match self {
            Kind::Base | Kind::Aux | Kind::Kvp => false,
            Kind::RandomPruned | Kind::StaticPruned | Kind::LazyPruned | Kind::SpecPrefill | Kind::GemFilter => true,
        }
    }
}

/// One system at one batch and prompt length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Cell {
    /// Such as `ttft/OE1.1B-KVP-C-450M/kvp/b4/p256`, of a cold start with `/cold` behind; unique in the run but for repeated attempts.
    pub id: String,
    /// 1 for the first measurement of this id; a later line with a higher number replaces it.
    pub attempt: u32,
    /// Start of this cell, RFC 3339 in UTC.
    pub started_at: Option<String>,
    /// Cells of one group were measured next to one another; where `rounds` is set, samples of one round are paired.
    pub group: String,
    /// [`scenario_hash`] of the cell ([`cold_hash`] of a cold start): equal hashes ask for the same work, on whatever machine.
    pub scenario_hash: String,
    /// What kind of inference this is.
    pub kind: Kind,
    /// The system timed, such as `OE1.1B-KVP-C-450M`, `OE1.1B`, `OE450M`, `OE1.1B-RP-0.50`.
    pub system: String,
    /// The base network whose full prefill this system is compared with.
    pub base: String,
    /// The auxiliary network of a KV prediction, null where layers of the base read the prompt in its place; the network that chooses
    /// the tokens of SpecPrefill; null otherwise.
    pub aux: Option<String>,
    /// Sequences.
    pub batch: u32,
    /// Prompt tokens of each sequence.
    pub prompt: u32,
    /// Type of the weights in the file.
    pub weight_dtype: Option<Dtype>,
    /// Type of activations and caches.
    pub precision: Option<Dtype>,
    /// Type of the factors in the products of the networks, whatever kernel multiplied them: the fastest row of [`Limits::peaks`] for it
    /// bounds this cell, but for what [`Cost::f32_flops`] says of others.
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
    /// Percentiles of the samples; null if there are fewer than 2.
    pub percentiles: Option<Percentiles>,
    /// Round of every sample, increasing; null if the samples were not taken in rounds.
    pub rounds: Option<Vec<u32>>,
    /// Place of every sample within its round, from 0; null if not taken in rounds.
    pub round_positions: Option<Vec<u32>>,
    /// Process of every sample, counted from 0, never decreasing; null if one process took them all.
    pub processes: Option<Vec<u32>>,
    /// Speed of the machine just before the round of every sample; null if it was not measured.
    pub probes: Option<Probes>,
    /// Clock of the CPUs and throttling by heat at every sample; null if the writer did not look.
    pub clocks: Option<Clocks>,
    /// What the machine reached when it was measured again beside this cell; null if the run's own limits hold.
    pub limits: Option<Limits>,
    /// Phases in the order they run. What they leave of a sample is unattributed.
    pub phases: Vec<PhaseRecord>,
    /// The output head of the network that answers, which is a part of the last phase: `head`; null if the writer did not time it.
    pub head: Option<PhaseRecord>,
    /// Floating-point operations by the paper's approximation, 2 x parameters x tokens, for the whole batch.
    pub paper_flops: Option<u64>,
    /// What a cold start adds; null for a warm one.
    pub cold: Option<Cold>,
    /// Generation after the first token.
    pub decode: Option<Decode>,
    /// Speed probe around the cell.
    pub drift: Option<Drift>,
    /// Memory of the process.
    pub memory: Option<Memory>,
    /// Where its threads ran; null if the writer did not look.
    pub placement: Option<Placement>,
    /// Energy to the first token; null if it was not asked for.
    pub energy: Option<Energy>,
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
            percentiles: None,
            rounds: None,
            round_positions: None,
            processes: None,
            probes: None,
            clocks: None,
            limits: None,
            phases: Vec::new(),
            head: None,
            paper_flops: None,
            cold: None,
            decode: None,
            drift: None,
            memory: None,
            placement: None,
            energy: None,
            gate: None,
            load_before: None,
            load_after: None,
            published: None,
        }
    }

    /// The times of a phase with the weights in memory: of a warm cell its samples, of a cold one those right after.
    pub fn warm_phase_ns(&self, name: &str) -> Option<&[u64]> {
        match &self.cold {
            None => self.phase(name).map(|p| &p.samples_ns[..]),
            Some(cold) => cold.warm_phases.iter().find(|p| p.name == name).map(|p| &p.samples_ns[..]),
        }
    }

    /// Exact operations and bytes of all phases; `None` if there are no phases or one of them has no count.
    pub fn cost(&self) -> Option<Cost> {
        let (first, rest) = self.phases.split_first()?;
        rest.iter().try_fold(first.cost?, |sum, p| Some(sum.plus(&p.cost?)))
    }

    /// Where the samples of each process lie, in order; one range of all samples if one process took them.
    pub fn process_ranges(&self) -> Vec<Range<usize>> {
        match &self.processes {
            None if self.samples_ns.is_empty() => Vec::new(),
            None => std::iter::once(0..self.samples_ns.len()).collect(),
            Some(processes) => {
                let mut start = 0;
                let ranges = processes.chunk_by(|a, b| a == b).map(|run| {
                    let range = start..start + run.len();
                    start = range.end;
                    range
                });
                ranges.collect()
            }
        }
    }

    /// How often heat slowed a CPU over all samples; `None` if that is unknown.
    pub fn throttled(&self) -> Option<u64> {
        let counts = self.clocks.as_ref()?.throttled.as_ref()?;
        Some(counts.iter().fold(0, |sum, n| sum.saturating_add(*n)))
    }

    /// Whether its figures are published ones with known faults.
    pub fn has_faults(&self) -> bool {
        self.published.as_ref().is_some_and(|p| !p.faults.is_empty())
    }

    /// Whether layers of the base run behind the auxiliary.
    pub fn pipelined(&self) -> bool {
        self.phase("pipelined").is_some()
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

/// The names of phases that a record of this program has.
pub const PHASES: [&str; 9] = [
    "open",
    "auxiliary",
    "pipelined",
    "selection",
    "look_ahead",
    "prefill",
    "shared_layers",
    "prediction",
    "base_step",
];

/// [`scenario_hash`] of the same workload from a cold start, which is compared with cold starts alone.
pub fn cold_hash(warm: &str) -> String {
    Sha256::digest(format!("cold {warm}")).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A start with nothing of the weights in memory, beside the samples: what was read, and the same work with the weights in
/// memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Cold {
    /// Bytes of all files in the folders that a start opens.
    pub file_bytes: u64,
    /// Which caches were empty, in words.
    pub cache: String,
    /// Bytes that the process had read from storage during every sample; null if the system does not tell.
    pub read_bytes: Option<Vec<u64>>,
    /// Whether more may have been read than `read_bytes` says.
    pub read_at_least: bool,
    /// What counted `read_bytes`, or why nothing did.
    pub read_source: String,
    /// Time of the same work again right after every sample, when the weights were in memory.
    pub warm_ns: Vec<u64>,
    /// The phases of `warm_ns`.
    pub warm_phases: Vec<WarmPhase>,
    /// Rate at which the same processes could read the largest of the files from storage, several threads together; 1e9 bytes
    /// per second. Null if it is too small for that.
    pub disk_gb_per_s: Option<f64>,
}

/// A phase with the weights in memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct WarmPhase {
    /// As in [`PhaseRecord::name`].
    pub name: String,
    /// Its time right after every sample of the cell.
    pub samples_ns: Vec<u64>,
}

/// One phase of a system: its time in every sample, and its work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct PhaseRecord {
    /// `open` (of a cold start: the folders opened, the run planned), `auxiliary`, `pipelined` (the auxiliary with layers of the
    /// base behind it), `selection`, `look_ahead`, `prefill`, `shared_layers`, `prediction` or `base_step`.
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
    /// What of `flops` is multiplied in F32, the rest being in BF16; null in records of earlier versions, where all are taken to
    /// be of the cell's `compute_dtype`.
    pub f32_flops: Option<u64>,
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
            f32_flops: self.f32_flops.zip(other.f32_flops).map(|(a, b)| a.saturating_add(b)),
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

/// Speed of the machine before each sample's round, measured by a short probe: one entry for each sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Probes {
    /// Multiply-add rate, GFLOP/s.
    pub gflops: Vec<f64>,
    /// Read bandwidth, 1e9 bytes per second.
    pub read_gb_per_s: Vec<f64>,
}

/// Percentiles of a cell's samples, each the smallest sample that so many percent of all samples do not exceed. One is null
/// if there are too few samples for it: it takes 2, 10 and 100 of them, so that one of them may be expected above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Percentiles {
    /// Half of the samples are no longer. It takes 2 samples.
    pub p50_ns: Option<u64>,
    /// 90% of the samples are no longer. It takes 10 samples.
    pub p90_ns: Option<u64>,
    /// 99% of the samples are no longer. It takes 100 samples.
    pub p99_ns: Option<u64>,
}

impl Percentiles {
    /// The percentiles of these samples; `None` if there are too few for any.
    pub fn of(samples_ns: &[u64]) -> Option<Percentiles> {
        let mut sorted = samples_ns.to_vec();
        sorted.sort_unstable();
        let n = sorted.len();
        let of = |percent: usize| {
            let enough = n * (100 - percent) >= 100;
            enough.then(|| sorted[(n * percent).div_ceil(100) - 1])
        };
        of(50).map(|p50| Percentiles { p50_ns: Some(p50), p90_ns: of(90), p99_ns: of(99) })
    }
}

/// What the CPUs that the process may use did at every sample: one entry for each sample.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Clocks {
    /// Highest clock of these CPUs just after the sample, in MHz; null if the machine does not tell.
    pub mhz: Option<Vec<f64>>,
    /// How often heat slowed one of these CPUs while the sample was taken; null if the machine does not count.
    pub throttled: Option<Vec<u64>>,
    /// Why one of the two is null.
    pub unknown: Option<String>,
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

/// Where the threads of a cell ran, and on which pages the memory of the process lay at its end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Placement {
    /// CPUs that each thread was found on right after the samples, ascending; null if the system does not tell.
    pub cpus: Option<Vec<Vec<u32>>>,
    /// NUMA nodes of these CPUs, ascending; null if unknown.
    pub nodes: Option<Vec<u32>>,
    /// Whether each thread was bound to one CPU.
    pub pinned: bool,
    /// Times that a thread of the process had to leave its CPU while the samples were taken.
    pub involuntary_switches: Option<u64>,
    /// Anonymous memory on huge pages: working memory, caches and activations.
    pub anon_huge_bytes: Option<u64>,
    /// Mapped files on huge pages: weights.
    pub file_huge_bytes: Option<u64>,
}

/// Energy of the machine's packages to the first token, measured once, by repetitions after the samples. It is that of
/// everything that ran meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Energy {
    /// Joules of one repetition, idle power included; null if the machine does not tell.
    pub joules: Option<f64>,
    /// Power of the packages just before, when nothing was asked of them.
    pub idle_watts: Option<f64>,
    /// Repetitions that were measured together.
    pub repetitions: u32,
    /// Seconds that all of them took.
    pub seconds: Option<f64>,
    /// The counters, in words.
    pub source: Option<String>,
    /// Why `joules` is null, and what to do about it.
    pub missing: Option<String>,
}

impl Energy {
    /// Power of the packages during the repetitions.
    pub fn watts(&self) -> Option<f64> {
        Some(self.joules? * f64::from(self.repetitions) / self.seconds?)
    }
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
    /// Whether all differences were within their tolerances. A wrong result is never timed.
    pub passed: bool,
    /// The longest prompt of the run, where the large kernels were compared with the same instruction set's f32 kernels.
    pub longest: Option<LongestGate>,
    /// Why the longest prompt was not compared.
    pub longest_skipped: Option<String>,
}

/// Comparison of a long prompt's logits with those of the f32 kernels of the same instruction set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct LongestGate {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Largest absolute difference of a logit.
    pub max_abs_err: f64,
    /// Largest difference allowed.
    pub tolerance: f64,
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
