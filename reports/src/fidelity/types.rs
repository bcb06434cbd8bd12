//! The types of a fidelity file: every field with its meaning and its unit.

use serde::{Deserialize, Serialize};

#[cfg(test)]
use schemars::JsonSchema;

use crate::{
    schema::{Dtype, Git, Identity, Kind, Prediction},
    stats::{Estimate, Interval, LEVEL, student},
};

/// Name and version of the format, as it stands in [`Fidelity::schema`].
pub const SCHEMA: &str = "ttft-fidelity/1";

/// A fidelity file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Fidelity {
    /// [`SCHEMA`]; any other value is refused.
    pub schema: String,
    /// Start, RFC 3339 in UTC, such as `2026-11-23T05:27:00Z`.
    pub started_at: Option<String>,
    /// Command line, one argument each.
    pub command: Vec<String>,
    /// Version of `ttft`.
    pub ttft_version: Option<String>,
    /// Source revision of the program.
    pub git: Option<Git>,
    /// Where it ran, in short.
    pub machine: Machine,
    /// What was asked for.
    pub settings: Settings,
    /// The network whose full prefill everything is compared with.
    pub base: Base,
    /// Texts, in the order of [`Results::texts`].
    pub texts: Vec<Text>,
    /// Tasks, in the order of [`Results::tasks`].
    pub tasks: Vec<Task>,
    /// What is judged.
    pub systems: Vec<System>,
    /// What the systems are judged by.
    pub controls: Vec<Control>,
    /// Remarks a reader must see.
    pub notes: Vec<String>,
}

/// The machine, as far as times and rounding depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Machine {
    /// CPU model string, as in a record.
    pub cpu_model: Option<String>,
    /// Target architecture, such as `x86_64`.
    pub arch: Option<String>,
    /// Logical cores this process may use.
    pub logical_cores: Option<u32>,
    /// Instruction set used.
    pub isa: Option<String>,
    /// Threads used.
    pub threads: Option<u32>,
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Settings {
    /// Type of activations and caches.
    pub precision: Dtype,
    /// Tokens of the prompt of every window of text, and of the prompts whose TTFT was measured.
    pub prompt: u32,
    /// Tokens of text after the prompt that are compared, the first of them included; at least 2.
    pub continuation: u32,
    /// Tokens that may be generated to answer an item.
    pub answer: u32,
    /// Seed of everything that is drawn.
    pub seed: u64,
}

/// The base network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Base {
    /// Which network.
    pub network: Identity,
    /// Its TTFT in every repetition, in turn with the systems and controls; empty if it was not measured.
    pub ttft_ns: Vec<u64>,
}

/// A text that windows are cut from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Text {
    /// Unique among the texts: the file's name, without the folders above.
    pub name: String,
    /// SHA-256 of its bytes, lower-case hexadecimal.
    pub sha256: String,
    /// Tokens of all of it.
    pub tokens: u64,
    /// What kind of text it is, in a word or two.
    pub domain: Option<String>,
    /// Whether the maps were fitted on text of this domain, of which this part was held out; null if that is unknown.
    pub of_fit: Option<bool>,
    /// Windows that were compared: the length of every list of a text.
    pub windows: u32,
}

/// What a task asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(JsonSchema))]
pub enum TaskKind {
    /// Go on copying a list that stands in the prompt.
    Copy,
    /// The value of one key of a list.
    KeyValue,
    /// A word that is hidden in text.
    Needle,
    /// Questions with answers, from a file.
    Questions,
    /// Code to be completed, from a file; the completions are scored elsewhere.
    Code,
}

impl TaskKind {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            TaskKind::Copy => "copying",
            TaskKind::KeyValue => "key and value",
            TaskKind::Needle => "needle in text",
            TaskKind::Questions => "questions",
            TaskKind::Code => "code",
        }
    }
}

/// A task: items with one right answer each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Task {
    /// Unique among the tasks.
    pub name: String,
    /// What is asked.
    pub kind: TaskKind,
    /// SHA-256 of the file that the items come from; null if they are drawn from the seed.
    pub sha256: Option<String>,
    /// Items: the length of every list of a task.
    pub items: u32,
    /// Mean tokens of a prompt.
    pub prompt_tokens: f64,
    /// Exact matches of one who knows what kind of answer is wanted and picks one of those in the prompt at random, 0 to 1.
    pub chance: f64,
    /// Exact matches of full prefill of the base; null if the items are scored elsewhere, which makes every other score of
    /// this task null.
    pub base: Option<Outcomes>,
}

/// A system that is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct System {
    /// Unique among the systems; as in the record if it was timed there.
    pub name: String,
    /// What kind of inference it is.
    pub kind: Kind,
    /// The prediction; null of another kind than `kvp`.
    pub prediction: Option<Prediction>,
    /// The network that chooses which tokens the base reads, where another than the base does; a prediction names its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aux: Option<Identity>,
    /// Floating-point operations to the first token over those of full prefill, at the prompt length of the settings.
    pub operations_share: f64,
    /// Its TTFT in every repetition, in turn with the base; empty if it was not measured.
    pub ttft_ns: Vec<u64>,
    /// What it answers.
    pub results: Results,
}

/// What a control is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(JsonSchema))]
pub enum ControlKind {
    /// The base reads the last token alone (and the sink, if it has one).
    NoContext,
    /// The base reads as many last tokens as the system's operations allow, rounded up a little (and the sink, if it has one).
    TruncationEqualOperations,
    /// The base reads as many last tokens as the system's measured TTFT allows, likewise (and the sink, if it has one).
    TruncationEqualTtft,
    /// The system with nothing predicted: positions that would be are dropped.
    NothingPredicted,
    /// The system with its maps reduced to their bias.
    MeanCache,
    /// The auxiliary network answers alone.
    AuxiliaryAlone,
    /// The base's own caches, sent the way of the predicted ones: what rounding alone does.
    TrueCaches,
}

impl ControlKind {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            ControlKind::NoContext => "no context",
            ControlKind::TruncationEqualOperations => "truncation, equal operations",
            ControlKind::TruncationEqualTtft => "truncation, equal TTFT",
            ControlKind::NothingPredicted => "nothing predicted",
            ControlKind::MeanCache => "mean cache",
            ControlKind::AuxiliaryAlone => "auxiliary alone",
            ControlKind::TrueCaches => "true caches",
        }
    }

    /// Whether it stands in for a system at its cost, so that a system must be better.
    pub fn is_rival(self) -> bool {
        use ControlKind::{AuxiliaryAlone, NothingPredicted, TruncationEqualOperations, TruncationEqualTtft};
        matches!(self, TruncationEqualOperations | TruncationEqualTtft | NothingPredicted | AuxiliaryAlone)
    }
}

/// A control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Control {
    /// What it is.
    pub kind: ControlKind,
    /// The system that it stands beside; null if it stands beside all of them.
    pub system: Option<String>,
    /// Last tokens of the prompt that the base reads, where that is not the system's m; null otherwise.
    pub base_tokens: Option<u32>,
    /// First tokens of the prompt that the base reads: 0 without the sink; null where that is the system's s.
    pub sink_tokens: Option<u32>,
    /// As of a system; null if it cannot be said.
    pub operations_share: Option<f64>,
    /// As of a system.
    pub ttft_ns: Vec<u64>,
    /// What it answers.
    pub results: Results,
}

impl Control {
    /// What it is, with what it reads where that makes it another one.
    pub fn words(&self) -> String {
        let last = self.base_tokens.map(|m| format!(" (last {m})")).unwrap_or_default();
        let sink = match self.sink_tokens {
            None | Some(0) => String::new(),
            Some(1) => " with the sink".into(),
            Some(s) => format!(" with {s} sinks"),
        };
        format!("{}{last}{sink}", self.kind.words())
    }

    /// Whether it stands beside this system.
    pub fn is_of(&self, system: &str) -> bool {
        self.system.as_deref().is_none_or(|own| own == system)
    }
}

/// Answers of a system or control.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Results {
    /// One for each text, in their order.
    pub texts: Vec<OnText>,
    /// One for each task, in their order.
    pub tasks: Vec<OnTask>,
}

/// What is left of the base's answers on one text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct OnText {
    /// [`Text::name`].
    pub text: String,
    /// Of the first token after the prompt.
    pub first: Distance,
    /// Of the tokens after that, which are given (teacher forcing), their mean in each window.
    pub continuation: Distance,
    /// Share of the tokens that the base writes greedily after the prompt which are written too, up to the first that is not: 0 to
    /// 1. Files of earlier versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub greedy: Option<Measure>,
}

/// How far a next-token distribution is from the base's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Distance {
    /// Kullback-Leibler divergence from the base's distribution, in nats: 0 or more.
    pub kl: Measure,
    /// Share of positions at which the likeliest token is the base's: 0 to 1.
    pub top1: Measure,
    /// Cross-entropy of the text minus the base's, in nats.
    pub loss_gap: Measure,
}

/// A mean over windows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Measure {
    /// Mean of the values.
    pub mean: f64,
    /// Standard error of the mean, from the spread of the values; null if there is one alone.
    pub standard_error: Option<f64>,
    /// One for each window, with 7 significant digits.
    pub values: Vec<f64>,
}

impl Measure {
    /// Rounds the values and takes their mean and its error. Of no values everything is 0, which the reader refuses.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Measure {
        // Through text, as decimal digits are what the file holds.
        let rounded = |v: f64| format!("{v:.6e}").parse().unwrap_or(v);
        let values: Vec<f64> = values.into_iter().map(rounded).collect();
        let (mean, standard_error) = Measure::summary(&values);
        Measure { mean, standard_error, values }
    }

    /// The mean with Student's interval.
    pub fn estimate(&self) -> Estimate {
        let interval = student::mean(&self.values).map(|m| {
            let half = m.half_width(LEVEL);
            Interval { low: m.value - half, high: m.value + half, level: LEVEL }
        });
        Estimate { value: self.mean, interval, samples: self.values.len() }
    }

    pub(super) fn summary(values: &[f64]) -> (f64, Option<f64>) {
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        (mean, student::mean(values).map(|m| m.error))
    }
}

/// What a system or control answers to the items of one task, greedily.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct OnTask {
    /// [`Task::name`].
    pub task: String,
    /// Exact matches; null if the items are scored elsewhere.
    pub exact: Option<Outcomes>,
    /// Items whose first token is the base's.
    pub first_token: Outcomes,
}

/// Yes or no for every item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Outcomes {
    /// Share of items with a yes.
    pub share: f64,
    /// Standard error of the share, sqrt(p (1 - p) / n).
    pub standard_error: f64,
    /// 1 or 0 for each item.
    pub each: Vec<u8>,
}

impl Outcomes {
    /// The outcomes of these items, in order.
    pub fn of(each: impl IntoIterator<Item = bool>) -> Outcomes {
        let each: Vec<u8> = each.into_iter().map(u8::from).collect();
        let (share, standard_error) = Outcomes::summary(&each);
        Outcomes { share, standard_error, each }
    }

    pub(super) fn summary(each: &[u8]) -> (f64, f64) {
        let n = each.len().max(1) as f64;
        let p = each.iter().map(|&o| f64::from(o)).sum::<f64>() / n;
        (p, (p * (1.0 - p) / n).sqrt())
    }

    /// The share with Wilson's interval, which has a width also where all items end alike.
    pub fn estimate(&self) -> Estimate {
        let (n, p, z) = (self.each.len().max(1) as f64, self.share, 1.959_964f64);
        let (centre, half) = (p + z * z / (2.0 * n), z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt());
        let [low, high] = [centre - half, centre + half].map(|end| (end / (1.0 + z * z / n)).clamp(0.0, 1.0));
        // Rounding may leave the share itself outside at 0 and at 1.
        let interval = Interval { low: low.min(p), high: high.max(p), level: LEVEL };
        Estimate { value: p, interval: Some(interval), samples: self.each.len() }
    }

    /// The outcomes as numbers.
    pub fn values(&self) -> Vec<f64> {
        self.each.iter().map(|&o| f64::from(o)).collect()
    }
}
