//! Does the FLOPs reduction become a TTFT reduction on this machine, where does it not, and why?
//!
//! For a system with exact FLOPs reduction R over its base, FLOPs translate to latency if the TTFT reduction is R too.
//! Their quotient is the *efficiency*; [`word`] says when its interval holds, falls short, exceeds or decides nothing.
//! Words on samples of fewer than three processes are indicative: what varies from process to process is not in their interval.
//!
//! **Losses.** At the rate of the base (its FLOPs over its TTFT), the cell would take T/R. What each phase takes beyond
//! its FLOPs at that rate is its loss; the losses of all phases and the unattributed rest add up to the whole. The loss
//! of the one-token base step is split at what its weight and cache bytes cost at the measured read bandwidth.
//!
//! **Additive model.** t = FLOPs/F + bytes/BW + regions c, fitted to all phases of the run with F, BW, c >= 0 and equal
//! weight to equal relative errors; c is what was measured in the same process, where the record has it. The first term shrinks
//! with the FLOPs by definition; so a miss is explained by bytes, by the cost of parallel regions, or not at all (residual).
//! Cells of the pipelined order, in which reading passes behind arithmetic, are left out.
//! Terms without which the phases fit about as well are named: the run cannot tell them apart ([`Model::vague`]).
//!
//! **Memory.** Where arithmetic is cheap, reading the weights takes longer than multiplying by them, for a KV prediction and its base
//! ([`MemoryBound`]): KV prediction then reads two networks where full prefill reads one, and fewer FLOPs cannot help.

pub mod word;

use std::fmt;

#[cfg(test)]
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    format,
    schema::{Cell, Cost, Kind, Limits, Named, PhaseRecord, Prediction, Record},
    stats::{self, Estimate},
    summary::{self, Pairing, Row},
    validate::word::Word,
};

/// What a run says about FLOPs and latency.
#[derive(Clone, Debug)]
pub struct Validation<'a> {
    /// One for every system that is not its own base.
    pub claims: Vec<Claim<'a>>,
    /// The additive model, if the run has enough phases to fit it.
    pub model: Option<Model>,
    /// Where KV prediction or a rival of it stops paying, for each system and batch.
    pub break_even: Vec<BreakEven<'a>>,
    /// How many last tokens the base can read itself for hardly more time than one, for each KV prediction that has several numbers.
    pub base_tokens: Vec<BaseTokens<'a>>,
    /// Comparisons whose outcome is known beforehand.
    pub controls: Vec<Control>,
    /// The command that decides, if words are indicative; a record does not hold all that its own command was given.
    pub command: Option<String>,
}

/// One system at one batch and length against its base.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    /// The figures.
    pub row: Row<'a>,
    /// Whether FLOPs translated to latency.
    pub verdict: Verdict,
    /// Whether the verdict rests on fewer than three processes, so that it is indicative only.
    pub indicative: bool,
    /// The smallest deviation that this design finds in 80% of cases, as a share; `None` without an interval.
    pub resolution: Option<f64>,
    /// Where time went beyond the FLOPs at the base's rate, largest first; negative where time was gained. Empty if
    /// counts or phases are unknown.
    pub losses: Vec<Loss>,
    /// What the additive model makes of the miss.
    pub explained: Option<Explained>,
    /// If memory bounds both a KV prediction and its base.
    pub memory: Option<MemoryBound>,
}

/// Both arms take longer to read their bytes at the measured bandwidth than to do their FLOPs at the measured peak.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct MemoryBound {
    /// Bytes that the base reads.
    pub base_bytes: u64,
    /// Bytes that the system reads.
    pub bytes: u64,
    /// Prompt tokens from which on the system is the faster one by these limits; null if it never is.
    pub pays_from: Option<f64>,
}

impl Claim<'_> {
    /// The verdict as reports show it.
    pub fn words(&self) -> String {
        let coarse = self.resolution.filter(|r| matches!(self.verdict, Verdict::Holds) && *r > word::BAND);
        let coarse = coarse.map(|r| format!(" within {}", format::percent(r))).unwrap_or_default();
        let memory = if self.memory.is_some() { "; memory bounds both it and its base" } else { "" };
        format!("{}{}{coarse}{memory}", if self.indicative { "indicative: " } else { "" }, self.verdict)
    }
}

/// Whether FLOPs translated to latency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Within 5%, or within the run's resolution.
    Holds,
    /// The TTFT reduction is smaller than the FLOPs reduction by this share.
    FallsShort(f64),
    /// The TTFT reduction is larger than the FLOPs reduction by this share.
    Exceeds(f64),
    /// There is no figure to judge by, or its interval reaches over the border.
    Undecided(Why),
}

/// Why nothing is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The base was not measured.
    NoBase,
    /// The machine's speed moved between a system and its base.
    NoRatio,
    /// FLOPs are unknown.
    NoFlops,
    /// Fewer than 3 samples.
    TooFew,
    /// The interval reaches over the border: so many processes would decide, if a sensible number would.
    Straddles(Option<usize>),
    /// The interval of one process reaches over the border.
    OneProcess,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::NoBase => f.write_str("the base was not measured"),
            Why::NoRatio => f.write_str("the machine's speed moved between the system and its base"),
            Why::NoFlops => f.write_str("its FLOPs are unknown"),
            Why::TooFew => f.write_str("it has fewer than 3 samples"),
            Why::Straddles(Some(n)) => write!(f, "about {n} processes would decide"),
            Why::Straddles(None) => f.write_str("it is too near the border of 5% for any sensible number of processes"),
            Why::OneProcess => f.write_str("its interval reaches over the border of 5%"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Holds => write!(f, "holds"),
            Verdict::FallsShort(share) => write!(f, "falls short by {}", format::percent(*share)),
            Verdict::Exceeds(share) => write!(f, "exceeds by {}", format::percent(*share)),
            Verdict::Undecided(why) => write!(f, "undecided: {why}"),
        }
    }
}

/// Time beyond what the FLOPs would take at the base's rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Where.
    pub cause: Cause,
    /// Seconds; negative if faster than the base's rate.
    pub seconds: f64,
}

/// Where time went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The smaller network runs at a lower rate than the base.
    SmallModel,
    /// The same with layers of the base behind it.
    Pipelined,
    /// Reading the weights of both takes longer than their FLOPs.
    PipelinedBandwidth,
    /// The base on part of the prompt runs at a lower rate than on all of it.
    FewerTokens,
    /// The base's own layers that read the prompt run at another rate than all of them.
    SharedLayers,
    /// Choosing the tokens that are kept.
    Selection,
    /// Decoding with the smaller network to choose them by.
    LookAhead,
    /// Reading weights and cache for the base's own tokens takes longer than their FLOPs.
    StepBandwidth,
    /// The step on these tokens is slower than its bytes and FLOPs.
    StepBeyondBandwidth,
    /// The KV predictor.
    Prediction,
    /// Opening the folders of a cold start.
    Opening,
    /// Reading weights from storage.
    Reading,
    /// A phase of a name that this program does not know.
    UnknownPhase,
    /// Outside of all phases.
    Unattributed,
}

impl Cause {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Cause::SmallModel => "compute efficiency of the small model",
            Cause::Pipelined => "compute efficiency of the small model with the base behind it",
            Cause::PipelinedBandwidth => "bandwidth of both networks at once",
            Cause::FewerTokens => "compute efficiency on fewer tokens",
            Cause::SharedLayers => "compute efficiency of the shared layers",
            Cause::Selection => "choosing tokens",
            Cause::LookAhead => "decoding ahead",
            Cause::StepBandwidth => "bandwidth-bound base step",
            Cause::StepBeyondBandwidth => "base step beyond its bandwidth",
            Cause::Prediction => "prediction",
            Cause::Opening => "opening the files",
            Cause::Reading => "reading weights from storage",
            Cause::UnknownPhase => "unknown phase",
            Cause::Unattributed => "unattributed overhead",
        }
    }

    /// As the end of a sentence that begins with "most of the missing time went into".
    pub fn in_words(self) -> &'static str {
        match self {
            Cause::SmallModel => "the smaller network, which runs at a lower rate than the base",
            Cause::Pipelined => {
                "the smaller network with the base's layers behind it, which run at a lower rate than the base alone"
            }
            Cause::PipelinedBandwidth => {
                "reading the weights of both networks at once, which takes longer than their arithmetic"
            }
            Cause::FewerTokens => "the base on a part of the prompt, which runs at a lower rate than on all of it",
            Cause::SharedLayers => {
                "the base's own layers that read the prompt, which run at a lower rate than all of them"
            }
            Cause::Selection => "choosing the tokens that are kept",
            Cause::LookAhead => "decoding ahead with the smaller network, which reads all its weights for every token",
            Cause::StepBandwidth => "the base's step on its own tokens, which reads all its weights from memory",
            Cause::StepBeyondBandwidth => {
                "the base's step on its own tokens, which takes longer than reading its weights from memory"
            }
            Cause::Prediction => "the predictor of the cache",
            Cause::Opening => "opening the files of the weights",
            Cause::Reading => "reading weights from storage",
            Cause::UnknownPhase => "a phase that this program does not know",
            Cause::Unattributed => "work outside of all phases",
        }
    }
}

/// The additive model of phase times.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Seconds for each operation; the rate is its inverse. 0 if the fit has no use for the term.
    pub s_per_flop: f64,
    /// Seconds for each byte.
    pub s_per_byte: f64,
    /// Seconds for each parallel region; `None` if the record does not count regions.
    pub s_per_region: Option<f64>,
    /// Whether they were measured, and not fitted.
    pub region_measured: bool,
    /// Fitted terms without which the phases fit about as well: the run does not show one that is alone, and cannot tell several
    /// apart.
    pub vague: Vec<Term>,
    /// Phases it was fitted to.
    pub phases: usize,
    /// Whether they are all of one batch and prompt length: the three terms then hardly differ.
    pub one_size: bool,
    /// Root mean square of the relative residuals.
    pub rms: f64,
    /// The phase the model misses by most: cell id, phase, relative residual (positive: slower than the model).
    pub worst: Option<(String, String, f64)>,
}

/// A term of the additive model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// FLOPs over a rate.
    Flops,
    /// Bytes over a bandwidth.
    Bytes,
    /// Parallel regions.
    Regions,
}

impl Term {
    const ALL: [Term; 3] = [Term::Flops, Term::Bytes, Term::Regions];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Term::Flops => "FLOPs",
            Term::Bytes => "bytes",
            Term::Regions => "parallel regions",
        }
    }
}

impl Model {
    /// GFLOP/s of the compute term.
    pub fn gflops(&self) -> Option<f64> {
        (self.s_per_flop > 0.0).then(|| 1e-9 / self.s_per_flop)
    }

    /// GB/s of the byte term.
    pub fn gb_per_s(&self) -> Option<f64> {
        (self.s_per_byte > 0.0).then(|| 1e-9 / self.s_per_byte)
    }

    /// Seconds of the three terms for all phases of a cell.
    pub fn terms(&self, cell: &Cell) -> Option<[f64; 3]> {
        let cost = cell.cost()?;
        let regions = match self.s_per_region {
            Some(s) => s * cell.phases.iter().map(|p| p.parallel_regions.map(|r| r as f64)).sum::<Option<f64>>()?,
            None => 0.0,
        };
        Some([cost.flops.total() as f64 * self.s_per_flop, cost.bytes() as f64 * self.s_per_byte, regions])
    }
}

/// A miss, T - T(base)/R, by the terms of the model, in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Explained {
    /// The whole miss.
    pub miss: f64,
    /// Through bytes that do not shrink with the FLOPs.
    pub bytes: f64,
    /// Through parallel regions that do not shrink with the FLOPs; `None` if the record does not count them.
    pub regions: Option<f64>,
    /// Not explained by the model.
    pub residual: f64,
}

impl Explained {
    /// The term with the largest part of the miss, in words.
    pub fn largest(&self) -> &'static str {
        let side = self.miss.signum();
        let terms = [(self.bytes, "bytes"), (self.regions.unwrap_or(0.0), "parallel regions"), (self.residual, "none")];
        terms.into_iter().max_by(|a, b| (a.0 * side).total_cmp(&(b.0 * side))).map_or("none", |t| t.1)
    }
}

/// Where KV prediction or a rival of it stops paying, for one system and batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakEven<'a> {
    /// The system.
    pub system: &'a str,
    /// The batch.
    pub batch: u32,
    /// Measured prompt lengths with the speedup, by length.
    pub measured: Vec<(u32, Estimate)>,
    /// What that comes to.
    pub outcome: Outcome,
}

/// Where KV prediction stops paying.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// It pays from this prompt length on, interpolated between measured lengths.
    From(f64),
    /// It pays at all measured lengths; the straight lines through the shortest two meet at this shorter length.
    AlwaysMeetsAt(f64),
    /// It pays at all measured lengths.
    Always,
    /// It does not pay at the longest measured length.
    Never,
}

impl fmt::Display for BreakEven<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths: Vec<u32> = self.measured.iter().map(|m| m.0).collect();
        let at = match lengths[..] {
            [only] => format!("at {only} prompt tokens, the only length measured"),
            [first, .., last] => format!("at every length measured, {first} to {last} prompt tokens"),
            [] => "at no length".into(),
        };
        match self.outcome {
            Outcome::From(n) => write!(f, "pays from about {n:.0} prompt tokens on")?,
            Outcome::AlwaysMeetsAt(n) => write!(f, "pays {at}; break-even extrapolated to about {n:.0}")?,
            Outcome::Always => write!(f, "pays {at}")?,
            Outcome::Never if lengths.len() > 1 => {
                write!(f, "does not pay up to {} prompt tokens, the longest measured", lengths[lengths.len() - 1])?;
            }
            Outcome::Never => write!(f, "does not pay {at}")?,
        }
        let even = |speedup: &Estimate| speedup.interval.is_some_and(|i| i.contains(1.0));
        let unsure: Vec<String> = self.measured.iter().filter(|m| even(&m.1)).map(|m| m.0.to_string()).collect();
        if unsure.is_empty() { Ok(()) } else { write!(f, " (within noise of the base at {})", unsure.join(", ")) }
    }
}

/// The phase in which the base reads its own tokens.
const BASE_STEP: &str = "base_step";

/// More time of the base step than with one token that is still next to nothing.
pub const HARDLY_MORE: f64 = 0.05;

/// What more last tokens of the base cost, of one KV prediction at one size.
#[derive(Clone, Debug, PartialEq)]
pub struct BaseTokens<'a> {
    /// The cell with one.
    pub one: &'a Cell,
    /// By their number, ascending: the time of the base step over that with one.
    pub steps: Vec<(u32, Estimate)>,
}

impl BaseTokens<'_> {
    /// How many of `steps`, from the first on, take at most [`HARDLY_MORE`] more.
    fn within(&self) -> usize {
        self.steps.iter().take_while(|(_, ratio)| ratio.value <= 1.0 + HARDLY_MORE).count()
    }

    /// The largest number up to which the base step takes at most [`HARDLY_MORE`] more.
    pub fn most(&self) -> u32 {
        self.within().checked_sub(1).map_or(1, |last| self.steps[last].0)
    }
}

impl fmt::Display for BaseTokens<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = format::percent(HARDLY_MORE);
        let more = |(m, ratio): &(u32, Estimate)| {
            let percent = |ratio: f64| format::percent(ratio - 1.0);
            let interval = format::interval_of(ratio, percent).map(|i| format!(" {i}")).unwrap_or_default();
            let unsure = ratio.interval.is_some_and(|i| i.contains(1.0 + HARDLY_MORE));
            let unsure = if unsure { format!(", not to be told from {limit}") } else { String::new() };
            format!("m = {m} costs {}{interval} more{unsure}", percent(ratio.value))
        };
        write!(f, "up to m = {} the base step costs at most {limit} more than with m = 1", self.most())?;
        let (within, beyond) = self.steps.split_at(self.within());
        let told: Vec<String> = within.last().into_iter().chain(beyond.first()).map(more).collect();
        let end = if beyond.is_empty() { ", and no larger one was measured" } else { "" };
        write!(f, " ({}{end})", told.join("; "))
    }
}

/// A comparison whose outcome is known beforehand.
#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    /// What is compared.
    pub name: String,
    /// The ratio found.
    pub ratio: Estimate,
    /// The ratio that must be found.
    pub expected: f64,
    /// Whether the ratio is what is expected, by the rule of [`word`]; `None` if that is undecided.
    pub passed: Option<bool>,
    /// Whether it rests on fewer than three processes.
    pub indicative: bool,
    /// The smallest deviation that this design finds in 80% of cases, as a share.
    pub resolution: f64,
}

/// Validates a run.
pub fn validate(record: &Record) -> Validation<'_> {
    let model = fit(record);
    let rows = summary::rows(record);
    let claims: Vec<Claim> =
        rows.iter().filter(|r| r.cell.system != r.cell.base).map(|row| claim(record, row, &model)).collect();
    let controls = controls(record);
    let indicative = claims.iter().any(|c| c.indicative) || claims.is_empty() && controls.iter().any(|c| c.indicative);
    let command = indicative.then(|| "ttft bench --processes 5, with the flags and variables of this run".into());
    let base_tokens = base_tokens(record);
    Validation { claims, break_even: break_even(&rows), base_tokens, controls, model, command }
}

fn claim<'a>(record: &'a Record, row: &Row<'a>, model: &Option<Model>) -> Claim<'a> {
    let base = record.base_of(row.cell);
    let processes = base.map_or(0, |base| summary::processes(base).min(row.processes));
    let (verdict, resolution) = verdict(row, base.is_some(), processes);
    Claim {
        verdict,
        resolution,
        indicative: processes == 1 && row.speedup.is_some(),
        losses: base.map(|base| losses(record, base, row.cell)).unwrap_or_default(),
        explained: model.as_ref().zip(base).and_then(|(model, base)| explain(model, base, row)),
        memory: base.filter(|_| row.cell.kind == Kind::Kvp).and_then(|base| memory_bound(record, base, row.cell)),
        row: row.clone(),
    }
}

fn verdict(row: &Row, has_base: bool, processes: usize) -> (Verdict, Option<f64>) {
    let none = |why| (Verdict::Undecided(why), None);
    let Some(speedup) = row.speedup else { return none(if has_base { Why::NoRatio } else { Why::NoBase }) };
    let Some(reduction) = row.flops_reduction.or(row.paper_flops_reduction) else { return none(Why::NoFlops) };
    let efficiency = speedup.estimate.value / reduction;
    let Some(judged) = word::of_estimate(&speedup.estimate, reduction, processes) else {
        if speedup.pairing != Pairing::Published {
            return none(Why::TooFew);
        }
        return match efficiency {
            e if (e - 1.0).abs() <= word::BAND => (Verdict::Holds, None),
            e if e < 1.0 => (Verdict::FallsShort(1.0 - e), None),
            e => (Verdict::Exceeds(e - 1.0), None),
        };
    };
    let verdict = match judged.word {
        Word::Holds => Verdict::Holds,
        Word::FallsShort(share) => Verdict::FallsShort(share),
        Word::Exceeds(share) => Verdict::Exceeds(share),
        Word::Straddles(_) if processes <= 1 => Verdict::Undecided(Why::OneProcess),
        Word::Straddles(needed) => Verdict::Undecided(Why::Straddles(needed)),
    };
    (verdict, Some(judged.resolution))
}

/// Median seconds of a phase.
fn phase_seconds(phase: &PhaseRecord) -> Option<f64> {
    stats::median(&summary::seconds(&phase.samples_ns))
}

fn losses(record: &Record, base: &Cell, cell: &Cell) -> Vec<Loss> {
    let rate = || Some(base.cost()?.flops.total() as f64 / summary::ttft(base)?.value);
    let Some(rate) = rate().filter(|r| *r > 0.0 && r.is_finite()) else { return Vec::new() };
    let mut losses = Vec::new();
    let mut reading = 0.0;
    for phase in &cell.phases {
        let (Some(time), Some(cost)) = (phase_seconds(phase), phase.cost) else { return Vec::new() };
        let ideal = cost.flops.total() as f64 / rate;
        let mut loss = time - ideal;
        // What the phase takes less with the weights in memory went into reading them.
        if let (Some(_), Some(warm)) = (&cell.cold, cell.warm_phase_ns(&phase.name)) {
            let warm = stats::median(&summary::seconds(warm)).unwrap_or(time);
            let read = (time - warm).clamp(0.0, loss.max(0.0));
            reading += read;
            loss -= read;
        }
        // What reading its bytes takes beyond its FLOPs, where that is known.
        let split = |losses: &mut Vec<Loss>, loss: &mut f64, cause| {
            if let Some(bandwidth) = summary::limits_of(&record.run.limits, cell).read_gb_per_s {
                let floor = (cost.bytes() as f64 / (bandwidth * 1e9) - ideal).clamp(0.0, loss.max(0.0));
                losses.push(Loss { cause, seconds: floor });
                *loss -= floor;
            }
        };
        let cause = match phase.name.as_str() {
            "prediction" => Cause::Prediction,
            "base_step" => {
                split(&mut losses, &mut loss, Cause::StepBandwidth);
                Cause::StepBeyondBandwidth
            }
            "pipelined" => {
                split(&mut losses, &mut loss, Cause::PipelinedBandwidth);
                Cause::Pipelined
            }
            "selection" => Cause::Selection,
            "open" => Cause::Opening,
            "look_ahead" => Cause::LookAhead,
            "prefill" if cell.kind.drops_tokens() => Cause::FewerTokens,
            "prefill" | "auxiliary" => Cause::SmallModel,
            "shared_layers" => Cause::SharedLayers,
            _ => Cause::UnknownPhase,
        };
        losses.push(Loss { cause, seconds: loss });
    }
    if cell.cold.is_some() {
        losses.push(Loss { cause: Cause::Reading, seconds: reading });
    }
    if let Some(rest) = stats::median(&summary::seconds(&cell.unattributed_ns()))
        && !losses.is_empty()
    {
        losses.push(Loss { cause: Cause::Unattributed, seconds: rest });
    }
    losses.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    losses
}

fn explain(model: &Model, base: &Cell, row: &Row) -> Option<Explained> {
    let reduction = row.flops_reduction.filter(|_| !row.cell.pipelined())?;
    let [_, base_bytes, base_regions] = model.terms(base)?;
    let [_, bytes, regions] = model.terms(row.cell)?;
    let miss = row.ttft?.value - summary::ttft(base)?.value / reduction;
    let (bytes, regions) = (bytes - base_bytes / reduction, regions - base_regions / reduction);
    let residual = miss - bytes - regions;
    Some(Explained { miss, bytes, regions: model.s_per_region.map(|_| regions), residual })
}

/// Where a KV prediction and its base are bound by memory, by the limits that were measured beside the system.
fn memory_bound(record: &Record, base: &Cell, cell: &Cell) -> Option<MemoryBound> {
    let limits = summary::limits_of(&record.run.limits, cell);
    let bound = |cell| {
        let times = phase_bounds(cell, 1.0, limits)?;
        let all: f64 = times.iter().map(|(compute, memory)| compute.max(*memory)).sum();
        let memory: f64 = times.iter().filter(|(compute, memory)| memory > compute).map(|t| t.1).sum();
        Some(memory > all / 2.0)
    };
    if !(bound(base)? && bound(cell)?) {
        return None;
    }
    // How much longer the base takes with a prompt of so many tokens.
    let saved = |tokens: f64| {
        let roofline = |cell| {
            let times = phase_bounds(cell, tokens / f64::from(cell.prompt), limits)?;
            Some(times.iter().map(|(compute, memory)| compute.max(*memory)).sum::<f64>())
        };
        Some(roofline(base)? - roofline(cell)?)
    };
    // It loses at the lower end, and gains at the upper one of the last doubling.
    const LONGEST: f64 = (1u32 << 20) as f64;
    let mut upper = LONGEST;
    let pays_from = if saved(upper)? > 0.0 {
        while upper > 1.0 && saved(upper / 2.0)? > 0.0 {
            upper /= 2.0;
        }
        let mut lower = upper / 2.0;
        while upper - lower > 0.5 {
            let middle = f64::midpoint(lower, upper);
            if saved(middle)? > 0.0 { upper = middle } else { lower = middle }
        }
        Some(upper)
    } else {
        None
    };
    Some(MemoryBound { base_bytes: base.cost()?.bytes(), bytes: cell.cost()?.bytes(), pays_from })
}

/// Seconds of arithmetic and of reading of each phase, at these limits, if the prompt were `times` as long.
fn phase_bounds(cell: &Cell, times: f64, limits: &Limits) -> Option<Vec<(f64, f64)>> {
    let bytes_per_s = limits.read_gb_per_s? * 1e9;
    let bounds = |phase: &PhaseRecord| {
        let cost = phase.cost?;
        // Of one type in a phase, or of several that grow alike.
        let s_per_flop = limits.arithmetic(&cost, cell.compute_dtype)? / cost.flops.total().max(1) as f64;
        // The step of the base is one of its own token, which attends to the whole prompt; the head is for the last token alone.
        // What runs behind an auxiliary is taken for a part of it: its token is one of many.
        let own = phase.name == "base_step";
        let by_token = cost.flops.projections as f64 + cost.flops.prediction as f64;
        let by_token = by_token * if own { 1.0 } else { times };
        let attention = cost.flops.attention as f64 * if own { times } else { times * times };
        let flops = by_token + attention + cost.flops.head as f64;
        let bytes = cost.weight_bytes as f64 + cost.cache_bytes as f64 * times;
        Some((flops * s_per_flop, bytes / bytes_per_s))
    };
    cell.phases.iter().map(bounds).collect::<Option<Vec<_>>>().filter(|all| !all.is_empty())
}

/// Fits the additive model to every phase of the run whose time and work are known.
fn fit(record: &Record) -> Option<Model> {
    // In the pipelined order reading passes behind arithmetic: its terms do not add up.
    let phases: Vec<(&Cell, &PhaseRecord)> = record
        .cells
        .iter()
        .filter(|cell| !cell.pipelined())
        .flat_map(|cell| cell.phases.iter().map(move |phase| (cell, phase)))
        .collect();
    let with_regions = phases.iter().all(|(_, p)| p.parallel_regions.is_some());
    let measured = record.run.limits.region_us.filter(|_| with_regions).map(|us| us * 1e-6);
    let mut observed = Vec::new();
    for (cell, phase) in phases {
        let (Some(cost), Some(time)) = (phase.cost, phase_seconds(phase)) else { continue };
        let regions = if with_regions { phase.parallel_regions.unwrap_or(0) } else { 0 };
        let work = [weighed(&record.run.limits, cell, &cost), cost.bytes() as f64, regions as f64];
        if time > 0.0 && work.iter().any(|w| *w > 0.0) {
            // Divided by the time, every equation asks for 1 and errors count relatively; what is known is no longer asked for.
            let known = measured.unwrap_or(0.0) * work[2];
            observed.push((cell, phase, Equation { work: work.map(|w| w / time), rest: 1.0 - known / time }));
        }
    }
    if observed.len() < 6 {
        return None;
    }
    let equations: Vec<Equation> = observed.iter().map(|o| o.2).collect();
    let fitted: Vec<usize> = (0..3).filter(|j| *j < 2 || measured.is_none() && with_regions).collect();
    let (x, squares) = non_negative_least_squares(&equations, &fitted)?;
    let residual = |e: &Equation| e.rest - dot(&e.work, &x);
    let worst = observed.iter().max_by(|a, b| residual(&a.2).abs().total_cmp(&residual(&b.2).abs()));
    Some(Model {
        s_per_flop: x[0],
        s_per_byte: x[1],
        s_per_region: with_regions.then_some(measured.unwrap_or(x[2])),
        region_measured: measured.is_some(),
        vague: vague(&equations, &fitted, squares),
        phases: observed.len(),
        one_size: observed.iter().all(|o| (o.0.batch, o.0.prompt) == (observed[0].0.batch, observed[0].0.prompt)),
        rms: (squares / observed.len() as f64).sqrt(),
        worst: worst.map(|(cell, phase, e)| (cell.id.clone(), phase.name.clone(), residual(e))),
    })
}

/// FLOPs as the model counts them: one that is not of the cell's own type counts for as many as take as long at the measured peaks.
fn weighed(limits: &Limits, cell: &Cell, cost: &Cost) -> f64 {
    let limits = summary::limits_of(limits, cell);
    let at_peak =
        || Some(limits.arithmetic(cost, cell.compute_dtype)? * limits.peak_gflops(cell.compute_dtype?)? * 1e9);
    at_peak().unwrap_or(cost.flops.total() as f64)
}

/// Fitted terms without which the squares of the residuals are about as small: within what leaving out a term that means nothing
/// adds in 95% of cases (4 is the F distribution's, of one and many degrees of freedom).
fn vague(equations: &[Equation], fitted: &[usize], squares: f64) -> Vec<Term> {
    let scatter = squares / equations.len().saturating_sub(fitted.len()).max(1) as f64;
    let needless = |j: &usize| {
        let others: Vec<usize> = fitted.iter().copied().filter(|other| other != j).collect();
        let without = non_negative_least_squares(equations, &others);
        without.is_some_and(|(_, without)| without - squares <= 4.0 * scatter)
    };
    fitted.iter().filter(|j| needless(j)).map(|j| Term::ALL[*j]).collect()
}

/// A phase of the model: its FLOPs, bytes and regions, and what of its time they are to explain, both divided by its time.
#[derive(Clone, Copy, Debug)]
struct Equation {
    work: [f64; 3],
    rest: f64,
}

fn dot(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// x >= 0 that minimises |A x - b|, of the unknowns `fitted`, the others 0; and the sum of squares. With three unknowns all sets of
/// positive ones can be tried: the best feasible solution of a subset is the optimum.
fn non_negative_least_squares(equations: &[Equation], fitted: &[usize]) -> Option<([f64; 3], f64)> {
    // Columns differ by ten orders of magnitude: scaled to unit length, the normal equations are well posed.
    let scale: [f64; 3] = std::array::from_fn(|j| equations.iter().map(|e| e.work[j] * e.work[j]).sum::<f64>().sqrt());
    let mut best: Option<([f64; 3], f64)> = None;
    for set in 1..8usize {
        let columns: Vec<usize> = (0..3).filter(|j| set >> j & 1 == 1).collect();
        if columns.iter().any(|j| scale[*j] == 0.0 || !fitted.contains(j)) {
            continue;
        }
        let product =
            |i: usize, j: usize| equations.iter().map(|e| e.work[i] / scale[i] * e.work[j] / scale[j]).sum::<f64>();
        let mut system: Vec<Vec<f64>> = columns
            .iter()
            .map(|&i| {
                let right: f64 = equations.iter().map(|e| e.work[i] / scale[i] * e.rest).sum();
                columns.iter().map(|&j| product(i, j)).chain([right]).collect()
            })
            .collect();
        let Some(solution) = eliminate(&mut system) else { continue };
        if solution.iter().any(|s| !(*s >= 0.0 && s.is_finite())) {
            continue;
        }
        let mut x = [0.0; 3];
        columns.iter().zip(&solution).for_each(|(&j, s)| x[j] = s / scale[j]);
        let squares: f64 = equations.iter().map(|e| (e.rest - dot(&e.work, &x)).powi(2)).sum();
        if best.is_none_or(|(_, least)| squares < least) {
            best = Some((x, squares));
        }
    }
    best
}

/// Gaussian elimination with pivoting of an augmented matrix; `None` if it is singular to working accuracy.
fn eliminate(system: &mut [Vec<f64>]) -> Option<Vec<f64>> {
    let n = system.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| system[a][column].abs().total_cmp(&system[b][column].abs()))?;
        if system[pivot][column].abs() < 1e-10 {
            return None;
        }
        system.swap(column, pivot);
        let (head, tail) = system.split_at_mut(column + 1);
        let top = &head[column];
        for row in tail {
            let factor = row[column] / top[column];
            row.iter_mut().zip(top).skip(column).for_each(|(r, t)| *r -= factor * t);
        }
    }
    let mut x = vec![0.0; n];
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|j| system[i][j] * x[j]).sum();
        x[i] = (system[i][n] - known) / system[i][i];
    }
    Some(x)
}

fn break_even<'a>(rows: &[Row<'a>]) -> Vec<BreakEven<'a>> {
    let mut keys: Vec<(&str, u32)> = Vec::new();
    let pays = |kind: Kind| matches!(kind, Kind::Kvp | Kind::SpecPrefill | Kind::GemFilter);
    for row in rows.iter().filter(|r| pays(r.cell.kind) && r.speedup.is_some()) {
        let key = (row.cell.system.as_str(), row.cell.batch);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.into_iter()
        .filter_map(|(system, batch)| {
            let mut cells: Vec<(u32, f64, Estimate)> = rows
                .iter()
                .filter(|r| r.cell.system == system && r.cell.batch == batch && pays(r.cell.kind))
                .filter_map(|r| Some((r.cell.prompt, r.ttft?.value, r.speedup?.estimate)))
                .collect();
            cells.sort_by_key(|c| c.0);
            cells.dedup_by_key(|c| c.0);
            let outcome = outcome(&cells.iter().map(|(n, ttft, s)| (*n, *ttft, s.value)).collect::<Vec<_>>())?;
            Some(BreakEven { system, batch, measured: cells.into_iter().map(|(n, _, s)| (n, s)).collect(), outcome })
        })
        .collect()
}

/// Of points (length, TTFT, speedup) by length.
fn outcome(points: &[(u32, f64, f64)]) -> Option<Outcome> {
    // What the system saves over its base, in seconds, crosses zero where it starts to pay.
    let saved = |p: &(u32, f64, f64)| (f64::from(p.0), p.1 * (p.2 - 1.0));
    let crossing = |a, b| {
        let ((n0, s0), (n1, s1)) = (saved(a), saved(b));
        n0 - s0 * (n1 - n0) / (s1 - s0)
    };
    if points.is_empty() {
        return None;
    }
    // The last length at which it does not pay decides.
    match points.iter().rposition(|p| p.2 <= 1.0) {
        Some(last) if last + 1 == points.len() => Some(Outcome::Never),
        Some(last) => Some(Outcome::From(crossing(&points[last], &points[last + 1]))),
        None => {
            let meets = points.get(1).map(|second| crossing(&points[0], second));
            let shorter = meets.filter(|n| (1.0..f64::from(points[0].0)).contains(n));
            Some(shorter.map_or(Outcome::Always, Outcome::AlwaysMeetsAt))
        }
    }
}

/// Of every KV prediction with one last token of the base, the base steps of those that differ from it in that number alone.
fn base_tokens(record: &Record) -> Vec<BaseTokens<'_>> {
    let named: Vec<&Named> = record.run.predictions.iter().flatten().collect();
    // Without the number, which stands in names too.
    let kind = |cell: &Cell| {
        let of = named.iter().find(|n| n.system == cell.system)?;
        let m = of.prediction.base_tokens;
        let name = if m == 1 { of.system.clone() } else { of.system.replacen(&format!("-m{m}"), "", 1) };
        Some((m, name, Prediction { base_tokens: 1, ..of.prediction.clone() }))
    };
    let all: Vec<_> = record.cells.iter().filter_map(|cell| Some((cell, kind(cell)?))).collect();
    let mut found = Vec::new();
    for &(one, (_, ref name, ref prediction)) in all.iter().filter(|(_, kind)| kind.0 == 1) {
        let alike = |(cell, kind): &&(&'_ Cell, (u32, String, Prediction))| {
            kind.0 > 1 && (&kind.1, &kind.2) == (name, prediction) && cell.group == one.group
        };
        let ratio = |(cell, kind): &(&'_ Cell, (u32, String, Prediction))| {
            Some((kind.0, summary::phase_ratio(&record.run.limits, (cell, BASE_STEP), (one, BASE_STEP))?))
        };
        let mut steps: Vec<(u32, Estimate)> = all.iter().filter(alike).filter_map(ratio).collect();
        steps.sort_by_key(|step| step.0);
        steps.dedup_by_key(|step| step.0);
        if !steps.is_empty() {
            found.push(BaseTokens { one, steps });
        }
    }
    found
}

/// A/A: the same workload measured twice in one group, and the odd against the even rounds of each base. Auxiliary =
/// base: the same network alone and inside of KV prediction takes times in the ratio of its FLOPs. After the first token,
/// KV prediction is its base, and takes its time.
fn controls(record: &Record) -> Vec<Control> {
    let mut controls = Vec::new();
    let mut control = |name: String, ratio: Estimate, expected: f64, processes: usize| {
        if let Some(judged) = word::of_estimate(&ratio, expected, processes) {
            let passed = match judged.word {
                Word::Holds => Some(true),
                Word::FallsShort(_) | Word::Exceeds(_) => Some(false),
                Word::Straddles(_) => None,
            };
            let (indicative, resolution) = (processes <= 1, judged.resolution);
            controls.push(Control { name, ratio, expected, passed, indicative, resolution });
        }
    };
    let both = |a: &Cell, b: &Cell| summary::processes(a).min(summary::processes(b));
    for (i, cell) in record.cells.iter().enumerate() {
        for twin in &record.cells[..i] {
            let key = |c: &Cell| (c.precision, c.extent, c.threads, c.backend.clone(), c.isa.clone());
            let same = twin.scenario_hash == cell.scenario_hash && twin.group == cell.group && key(twin) == key(cell);
            // Only of what is the same: an interval costs thousands of resamples.
            if same && let Some(ratio) = summary::ratio(&record.run.limits, cell, twin) {
                control(format!("A/A: {} against {}", cell.id, twin.id), ratio.estimate, 1.0, both(cell, twin));
            }
        }
        if let Some(base) = record.base_of(cell).filter(|base| cell.aux.as_deref() == Some(&base.system)) {
            let (alone, inside) = ((base, "prefill"), (cell, "auxiliary"));
            let flops = |(cell, name): (&Cell, &str)| Some(cell.phase(name)?.cost?.flops.total() as f64);
            if let (Some(ratio), Some(all), Some(part)) =
                (summary::phase_ratio(&record.run.limits, alone, inside), flops(alone), flops(inside))
            {
                let name = format!("auxiliary = base: prefill of {} against the auxiliary of {}", base.id, cell.id);
                control(name, ratio, all / part, both(base, cell));
            }
        }
        if cell.kind == Kind::Kvp
            && let Some((base, ratio)) =
                record.base_of(cell).and_then(|base| Some((base, summary::step_ratio(&record.run.limits, cell, base)?)))
        {
            let name = format!("time per token after the first, against the base: {}", cell.id);
            control(name, ratio, 1.0, both(cell, base));
        }
        if cell.kind == Kind::Base && cell.samples_ns.len() >= 12 {
            let samples = summary::seconds(&cell.samples_ns);
            let half = |odd| samples.iter().copied().skip(odd).step_by(2).collect::<Vec<_>>();
            if let Some(ratio) = stats::unpaired_ratio(&half(1), &half(0)) {
                control(format!("A/A: odd against even samples of {}", cell.id), ratio, 1.0, 1);
            }
        }
    }
    controls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{samples, schema::Published, stats::Interval};

    fn claim_of<'a>(validation: &'a Validation, id: &str) -> &'a Claim<'a> {
        validation.claims.iter().find(|c| c.row.cell.id == id).unwrap()
    }

    #[test]
    fn the_model_recovers_the_machine_that_made_the_times() {
        let record = samples::run();
        let model = validate(&record).model.unwrap();
        // The made-up machine: 421 GFLOP/s, 36 GB/s, 200 us for the 400 regions of a phase, and a spread of 0.5%.
        assert!((model.gflops().unwrap() / 421.0 - 1.0).abs() < 0.01, "{model:?}");
        assert!((model.gb_per_s().unwrap() / 36.0 - 1.0).abs() < 0.02, "{model:?}");
        assert!((model.s_per_region.unwrap() / 0.5e-6 - 1.0).abs() < 0.1, "{model:?}");
        assert!(model.rms < 0.01 && model.phases == 36, "{model:?}");
    }

    #[test]
    fn a_measured_cost_of_regions_is_not_fitted() {
        let mut record = samples::run();
        record.run.limits.region_us = Some(0.5);
        let model = validate(&record).model.unwrap();
        assert_eq!((model.s_per_region, model.region_measured), (Some(0.5e-6), true));
        assert!((model.gflops().unwrap() / 421.0 - 1.0).abs() < 0.01, "{model:?}");
        assert!((model.gb_per_s().unwrap() / 36.0 - 1.0).abs() < 0.02, "{model:?}");
        assert!(model.rms < 0.01 && model.vague.is_empty(), "{model:?}");
        // A cost that is not the regions' stays unexplained, where a fit would have blamed them.
        record.run.limits.region_us = Some(0.05);
        let blamed = validate(&record).model.unwrap();
        assert!(blamed.s_per_region == Some(0.05e-6) && blamed.rms > 2.0 * model.rms, "{blamed:?}");
    }

    #[test]
    fn the_model_counts_flops_of_another_type_by_the_peaks() {
        let mut record = samples::run();
        let rms = validate(&record).model.unwrap().rms;
        // A prediction of ten times the FLOPs, in the time that F32 takes for them.
        for phase in record.cells.iter_mut().flat_map(|c| &mut c.phases) {
            let cost = phase.cost.as_mut().unwrap();
            cost.f32_flops = Some(0);
            if phase.name == "prediction" {
                cost.flops.prediction *= 10;
                let more = cost.flops.prediction as f64 * (468.0 / 233.0 - 0.1) / 421.0;
                phase.samples_ns.iter_mut().for_each(|ns| *ns += more as u64);
            }
        }
        let unknown = validate(&record).model.unwrap().rms;
        for phase in record.cells.iter_mut().flat_map(|c| &mut c.phases).filter(|p| p.name == "prediction") {
            let cost = phase.cost.as_mut().unwrap();
            cost.f32_flops = Some(cost.flops.prediction);
        }
        let known = validate(&record).model.unwrap().rms;
        assert!(rms < 0.005 && known < 0.005 && unknown > 0.05, "{rms} {unknown} {known}");
    }

    #[test]
    fn terms_that_a_run_cannot_tell_apart_are_named() {
        assert_eq!(validate(&samples::run()).model.unwrap().vague, []);
        // Bytes of every phase in one ratio to its regions.
        let mut record = samples::run();
        for phase in record.cells.iter_mut().flat_map(|c| &mut c.phases) {
            phase.parallel_regions = Some(phase.cost.unwrap().bytes() / 1000);
        }
        assert_eq!(validate(&record).model.unwrap().vague, [Term::Bytes, Term::Regions]);
        // Times without a trace of the bytes.
        let mut record = samples::run();
        let phases = record.cells.iter_mut().flat_map(|c| &mut c.phases);
        for (i, phase) in phases.enumerate() {
            let ns = phase.cost.unwrap().flops.total() as f64 / 400.0 + 200e3;
            phase.samples_ns = vec![(ns * (1.0 + 0.001 * (i * 7 % 11) as f64)) as u64; 6];
        }
        assert_eq!(validate(&record).model.unwrap().vague, [Term::Bytes]);
    }

    #[test]
    fn memory_that_bounds_both_is_named_with_the_length_that_pays() {
        let id = "ttft/OE1.1B-KVP-C-450M/kvp/b1/p64";
        let record = samples::run();
        assert_eq!(claim_of(&validate(&record), id).memory, None, "arithmetic bounds the base");
        // Tiles: ten times the arithmetic beside the same memory.
        let mut record = samples::run();
        record.run.limits.peaks[1].gflops = 5000.0;
        let validation = validate(&record);
        let claim = claim_of(&validation, id);
        let memory = claim.memory.unwrap();
        assert!(claim.words().ends_with("; memory bounds both it and its base"), "{}", claim.words());
        assert!(memory.bytes > memory.base_bytes);
        // The base computes 0.406 ms a token, the auxiliary 0.161 ms, beside which KV prediction reads its base in 51.5 ms.
        let pays = memory.pays_from.unwrap();
        assert!((pays - 51.5 / (0.406 - 0.161)).abs() < 4.0, "{memory:?}");
        // With four sequences the base at 256 tokens computes longer than it reads.
        assert_eq!(claim_of(&validation, "ttft/OE1.1B-KVP-C-450M/kvp/b4/p256").memory, None);
        // An auxiliary as large as its base, which no length pays back.
        let base = record.cells[0].phases[0].cost;
        let kvp = record.cells.iter_mut().find(|c| c.id == id).unwrap();
        kvp.phases[0].cost = base;
        assert_eq!(claim_of(&validate(&record), id).memory.unwrap().pays_from, None);
        record.run.limits.read_gb_per_s = None;
        assert_eq!(claim_of(&validate(&record), id).memory, None);
    }

    #[test]
    fn a_bandwidth_bound_step_is_found_and_explains_the_miss() {
        let record = samples::run();
        let validation = validate(&record);
        let claim = claim_of(&validation, "ttft/OE1.1B-KVP-C-450M/kvp/b1/p64");
        assert!(matches!(claim.verdict, Verdict::FallsShort(x) if (0.2..0.35).contains(&x)), "{:?}", claim.verdict);
        assert_eq!(claim.losses[0].cause, Cause::StepBandwidth);
        let explained = claim.explained.unwrap();
        let total: f64 = claim.losses.iter().map(|l| l.seconds).sum();
        assert!((total / explained.miss - 1.0).abs() < 0.05, "losses add up to the miss: {total} {explained:?}");
        assert!(explained.bytes / explained.miss > 0.9, "{explained:?}");
        assert_eq!(explained.largest(), "bytes");
        assert!((explained.bytes + explained.regions.unwrap() + explained.residual - explained.miss).abs() < 1e-12);
        let alone = claim_of(&validation, "ttft/OE450M/aux/b4/p256");
        assert_eq!(alone.verdict, Verdict::Holds);
    }

    #[test]
    fn verdicts_follow_the_interval() {
        let record = samples::run();
        let mut row = summary::row(&record, &record.cells[2]);
        row.flops_reduction = Some(2.0);
        let mut judge = |value: f64, interval: Option<(f64, f64)>, processes: usize| {
            let interval = interval.map(|(low, high)| Interval { low, high, level: 0.95 });
            row.speedup.as_mut().unwrap().estimate = Estimate { value, interval, samples: 9 };
            verdict(&row, true, processes).0
        };
        assert_eq!(judge(1.98, Some((1.94, 2.02)), 1), Verdict::Holds);
        assert!(matches!(judge(1.5, Some((1.4, 1.6)), 1), Verdict::FallsShort(s) if (s - 0.25).abs() < 1e-9));
        assert!(matches!(judge(2.5, Some((2.4, 2.6)), 1), Verdict::Exceeds(s) if (s - 0.25).abs() < 1e-9));
        assert_eq!(judge(1.88, Some((1.75, 2.01)), 1), Verdict::Undecided(Why::OneProcess));
        let Verdict::Undecided(Why::Straddles(Some(n))) = judge(1.85, Some((1.75, 1.96)), 5) else { panic!() };
        assert!(n > 5, "{n}");
        assert_eq!(judge(1.5, None, 1), Verdict::Undecided(Why::TooFew));
        row.flops_reduction = None;
        row.paper_flops_reduction = None;
        assert_eq!(verdict(&row, true, 1).0, Verdict::Undecided(Why::NoFlops));
        row.speedup = None;
        assert_eq!(verdict(&row, false, 1).0, Verdict::Undecided(Why::NoBase));
        assert_eq!(verdict(&row, true, 1).0, Verdict::Undecided(Why::NoRatio));
    }

    #[test]
    fn words_on_one_process_are_indicative_and_name_the_command() {
        let record = samples::run();
        let validation = validate(&record);
        assert!(validation.claims.iter().all(|c| c.indicative && c.words().starts_with("indicative: ")));
        assert_eq!(
            validation.command.as_deref(),
            Some("ttft bench --processes 5, with the flags and variables of this run")
        );
        let processes = samples::occasions(1, 5, 5, [0.0, 0.01, 0.01], 4).remove(0);
        let validation = validate(&processes);
        assert!(validation.claims.iter().all(|c| !c.indicative && c.row.processes == 5));
        assert_eq!(validation.command, None);
    }

    #[test]
    fn every_phase_of_a_record_has_a_cause() {
        for name in crate::schema::PHASES {
            let mut record = samples::run();
            record.cells[1].phases[0].name = name.into();
            let validation = validate(&record);
            let losses = &claim_of(&validation, "ttft/OE450M/aux/b1/p64").losses;
            assert!(!losses.is_empty() && losses.iter().all(|l| l.cause != Cause::UnknownPhase), "{name}");
        }
    }

    #[test]
    fn no_count_of_operations_is_too_large_to_be_judged() {
        let mut record = samples::run();
        let phases = record.cells.iter_mut().flat_map(|cell| &mut cell.phases);
        for cost in phases.filter_map(|phase| phase.cost.as_mut()) {
            (cost.flops.projections, cost.flops.prediction) = (u64::MAX, u64::MAX);
            (cost.weight_bytes, cost.cache_bytes) = (u64::MAX, u64::MAX);
        }
        assert!(!validate(&record).claims.is_empty());
    }

    /// The sample machine, on which the base's layers but for two pass behind the auxiliary in the longer of both times.
    fn with_pipelined() -> Record {
        let mut record = samples::run();
        let of = record.cells.iter().find(|c| c.id == "ttft/OE1.1B-KVP-C-450M/kvp/b1/p64").unwrap();
        let system = format!("{}-pipelined", of.system);
        let mut cell = Cell::new(Kind::Kvp, &system, &of.base, of.aux.as_deref(), 1, 64);
        cell = Cell { id: cell.id, system, scenario_hash: cell.scenario_hash, ..of.clone() };
        let (mut front, mut tail) = (of.phases[0].cost.unwrap(), of.phases[2].cost.unwrap());
        let behind = tail.weight_bytes / 28 * 26;
        front.weight_bytes += behind;
        tail.weight_bytes -= behind;
        let time = |bytes: u64, flops: u64| (bytes as f64 / 36e9).max(flops as f64 / 421e9) * 1e9;
        let ns = [&front, &tail].map(|c| time(c.bytes(), c.flops.total()) as u64);
        (cell.phases[0].cost, cell.phases[2].cost) = (Some(front), Some(tail));
        cell.phases[0].name = "pipelined".into();
        for i in 0..cell.samples_ns.len() {
            (cell.phases[0].samples_ns[i], cell.phases[2].samples_ns[i]) = (ns[0], ns[1]);
            cell.samples_ns[i] = cell.phases.iter().map(|p| p.samples_ns[i]).sum::<u64>() + 1000;
        }
        record.cells.push(cell);
        record
    }

    #[test]
    fn the_pipelined_order_has_its_own_bound_and_causes() {
        let (before, record) = (samples::run(), with_pipelined());
        let validation = validate(&record);
        let [turn, pipelined] =
            ["", "-pipelined"].map(|order| claim_of(&validation, &format!("ttft/OE1.1B-KVP-C-450M{order}/kvp/b1/p64")));
        // Its bound is the longer of arithmetic and traffic of what runs together, and the tail.
        let (flops, bytes) = (468e9, 40e9);
        let seconds = |c: &Cell| -> f64 {
            let longer = |p: &PhaseRecord| {
                let cost = p.cost.unwrap();
                (cost.flops.total() as f64 / flops).max(cost.bytes() as f64 / bytes)
            };
            c.phases.iter().map(longer).sum()
        };
        assert!((pipelined.row.roofline.unwrap() / seconds(pipelined.row.cell) - 1.0).abs() < 1e-12);
        assert!(pipelined.row.roofline_reduction > turn.row.roofline_reduction);
        let causes: Vec<Cause> = pipelined.losses.iter().map(|l| l.cause).collect();
        assert!(causes.contains(&Cause::Pipelined) && causes.contains(&Cause::PipelinedBandwidth), "{causes:?}");
        assert!(!causes.contains(&Cause::SmallModel) && !causes.contains(&Cause::UnknownPhase), "{causes:?}");
        // The additive model is that of the others.
        assert_eq!(validation.model, validate(&before).model);
        assert!(pipelined.explained.is_none() && turn.explained.is_some());
        let system = pipelined.row.cell.system.as_str();
        assert!(validation.break_even.iter().any(|b| b.system == system && b.batch == 1 && b.measured.len() == 1));
        let text = crate::terminal::validation(&record, None);
        let rows: Vec<&str> =
            text.lines().skip_while(|l| *l != "The pipelined order beside the same in turn:").take(4).collect();
        let share = pipelined.row.roofline.unwrap() / pipelined.row.ttft.unwrap().value;
        assert!(
            rows[3].contains("OE1.1B-KVP-C-450M-pipelined") && rows[3].ends_with(&format::percent(share)),
            "{text}"
        );
        assert!(!crate::terminal::validation(&before, None).contains("pipelined"));
    }

    #[test]
    fn an_unknown_phase_is_a_cause_of_its_own() {
        let mut record = samples::run();
        record.cells[1].phases[0].name = "embedding".into();
        let validation = validate(&record);
        let causes: Vec<_> = claim_of(&validation, "ttft/OE450M/aux/b1/p64").losses.iter().map(|l| l.cause).collect();
        assert!(causes.contains(&Cause::UnknownPhase) && !causes.contains(&Cause::SmallModel), "{causes:?}");
    }

    #[test]
    fn tokens_of_the_base_that_cost_hardly_more_are_counted() {
        use crate::{fidelity::samples::prediction, schema::Named};
        let one = samples::cell("OE1.1B-KVP-C-450M", 1, 256, 6);
        let mut record = samples::run();
        record.cells = vec![one.clone()];
        let mut named = vec![Named { system: one.system.clone(), prediction: prediction("450M") }];
        let mut add = |m: u32, times: f64, suffix: &str| {
            let mut cell = Cell { system: format!("{}-m{m}{suffix}", one.system), ..one.clone() };
            let step = cell.phases.iter_mut().find(|p| p.name == "base_step").unwrap();
            step.samples_ns.iter_mut().for_each(|ns| *ns = (*ns as f64 * times) as u64);
            let sinks = u32::from(!suffix.is_empty());
            let prediction = Prediction { base_tokens: m, sink_tokens: sinks, ..prediction("450M") };
            named.push(Named { system: cell.system.clone(), prediction });
            record.cells.push(cell);
        };
        // Out of order, one that is slow, and one with sinks, which is another system.
        [(16, 1.03), (4, 1.01), (32, 1.09), (64, 1.02)].into_iter().for_each(|(m, times)| add(m, times, ""));
        add(8, 1.5, "-s1");
        record.run.predictions = Some(named);
        let [found] = &validate(&record).base_tokens[..] else { panic!() };
        assert_eq!(found.steps.iter().map(|s| s.0).collect::<Vec<_>>(), [4, 16, 32, 64]);
        assert_eq!((found.one.id.as_str(), found.most()), (one.id.as_str(), 16));
        assert_eq!(
            found.to_string(),
            "up to m = 16 the base step costs at most 5.0% more than with m = 1 (m = 16 costs 3.0% [3.0%, 3.0%] more; m = 32 \
             costs 9.0% [9.0%, 9.0%] more)"
        );
        // Of a run that was not interleaved, of a record that does not say what it ran, of the first that is too slow.
        let mut apart = record.clone();
        apart.cells[1..].iter_mut().for_each(|c| c.group = "elsewhere".into());
        assert_eq!(validate(&apart).base_tokens, []);
        apart.run.predictions = None;
        assert_eq!(validate(&apart).base_tokens, []);
        let step = |m, value: f64, half: f64| {
            let interval = Some(Interval { low: value - half, high: value + half, level: 0.95 });
            (m, Estimate { value, interval, samples: 9 })
        };
        let said = |steps| BaseTokens { one: &one, steps }.to_string();
        let none = said(vec![step(4, 1.2, 0.01)]);
        assert!(
            none.starts_with("up to m = 1 the base step") && none.ends_with("(m = 4 costs 20% [19%, 21%] more)"),
            "{none}"
        );
        let all = said(vec![step(4, 1.01, 0.01), step(8, 1.04, 0.02)]);
        let end = "(m = 8 costs 4.0% [2.0%, 6.0%] more, not to be told from 5.0%, and no larger one was measured)";
        assert!(all.ends_with(end), "{all}");
    }

    #[test]
    fn break_even_is_where_the_lines_meet() {
        let at = |n, ttft: f64, speedup| (n, ttft, speedup);
        // Base: n. System: 50 + n/2. They meet at 100.
        let point = |n: u32| at(n, 50.0 + f64::from(n) / 2.0, f64::from(n) / (50.0 + f64::from(n) / 2.0));
        assert_eq!(outcome(&[]), None);
        assert_eq!(outcome(&[point(32), point(64)]), Some(Outcome::Never));
        assert!(matches!(outcome(&[point(64), point(128)]), Some(Outcome::From(n)) if (n - 100.0).abs() < 1e-9));
        assert!(
            matches!(outcome(&[point(128), point(256)]), Some(Outcome::AlwaysMeetsAt(n)) if (n - 100.0).abs() < 1e-9)
        );
        assert_eq!(outcome(&[point(128)]), Some(Outcome::Always));
        assert_eq!(outcome(&[at(8, 1.0, 2.0), at(16, 2.0, 2.0)]), Some(Outcome::Always));
    }

    #[test]
    fn break_even_is_said_of_what_was_measured() {
        let text = |measured: &[(u32, f64, f64)], outcome| {
            let estimate = |low, high| {
                let interval = Some(Interval { low, high, level: 0.95 });
                Estimate { value: f64::midpoint(low, high), interval, samples: 9 }
            };
            let measured = measured.iter().map(|(n, low, high)| (*n, estimate(*low, *high))).collect();
            BreakEven { system: "s", batch: 1, measured, outcome }.to_string()
        };
        let (one, two) = ([(59, 1.5, 1.6)], [(64, 0.9, 1.2), (256, 1.5, 1.6)]);
        assert_eq!(text(&one, Outcome::Always), "pays at 59 prompt tokens, the only length measured");
        assert_eq!(text(&one, Outcome::Never), "does not pay at 59 prompt tokens, the only length measured");
        assert_eq!(
            text(&two, Outcome::AlwaysMeetsAt(33.3)),
            "pays at every length measured, 64 to 256 prompt tokens; break-even extrapolated to about 33 (within noise of the \
             base at 64)"
        );
        assert_eq!(text(&two[1..], Outcome::From(99.6)), "pays from about 100 prompt tokens on");
        assert!(text(&two, Outcome::Never).starts_with("does not pay up to 256 prompt tokens, the longest measured"));
    }

    #[test]
    fn token_pruning_loses_by_choosing_and_by_fewer_tokens() {
        let mut record = samples::run();
        record.cells = ["OE1.1B", "OE450M"].map(|s| samples::cell(s, 4, 64, 6)).into();
        let pruned = &mut record.cells[1];
        pruned.kind = Kind::StaticPruned;
        let selection = PhaseRecord { name: "selection".into(), ..pruned.phases[0].clone() };
        pruned.phases.insert(0, selection);
        let causes: Vec<_> = validate(&record).claims[0].losses.iter().map(|l| l.cause).collect();
        assert!(causes.contains(&Cause::Selection) && causes.contains(&Cause::FewerTokens), "{causes:?}");

        let spec = &mut record.cells[1];
        (spec.kind, spec.aux) = (Kind::SpecPrefill, Some("OE270M".into()));
        let phase = |name: &str| PhaseRecord { name: name.into(), ..spec.phases[0].clone() };
        spec.phases = ["auxiliary", "selection", "look_ahead", "prefill"].map(phase).into();
        let validation = validate(&record);
        let causes: Vec<_> = validation.claims[0].losses.iter().map(|l| l.cause).collect();
        for cause in [Cause::SmallModel, Cause::Selection, Cause::LookAhead, Cause::FewerTokens] {
            assert!(causes.contains(&cause), "{causes:?}");
        }
        let [even] = &validation.break_even[..] else { panic!("{:?}", validation.break_even) };
        assert_eq!((even.system, even.batch), ("OE450M", 4));
    }

    #[test]
    fn controls_see_a_difference_and_no_difference() {
        let mut record = samples::run();
        record.cells = vec![samples::cell("OE1.1B", 1, 64, 12), samples::cell("OE1.1B", 1, 64, 12)];
        record.cells[1].id = "ttft/OE1.1B/again/b1/p64".into();
        let outcomes = |record: &Record| controls(record).iter().map(|c| c.passed).collect::<Vec<_>>();
        let passed = |record: &Record| outcomes(record).into_iter().map(|p| p == Some(true)).collect::<Vec<_>>();
        assert_eq!(passed(&record), [true, true, true], "two halves, and one against the other");
        record.cells[1].samples_ns.iter_mut().for_each(|ns| *ns = *ns * 110 / 100);
        assert_eq!(passed(&record), [true, false, true]);
        let mut record = samples::run();
        record.cells = ["OE1.1B", "OE1.1B-KVP-C-450M"].map(|s| samples::cell(s, 1, 64, 6)).into();
        record.cells[1].aux = Some("OE1.1B".into());
        record.cells[1].phases[0] = PhaseRecord { name: "auxiliary".into(), ..record.cells[0].phases[0].clone() };
        assert_eq!(passed(&record), [true, true], "auxiliary = base, and generation after the first token");
        record.cells[1].phases[0].samples_ns.iter_mut().for_each(|ns| *ns = *ns * 110 / 100);
        assert_eq!(passed(&record), [false, true]);
        let mut record = samples::run();
        record.cells = ["OE1.1B", "OE1.1B-KVP-C-450M"].map(|s| samples::cell(s, 1, 64, 6)).into();
        let decode = record.cells[1].decode.as_mut().unwrap();
        decode.samples_ns.iter_mut().for_each(|ns| *ns = *ns * 110 / 100);
        assert_eq!(outcomes(&record), [Some(false)]);
        let decode = record.cells[1].decode.as_mut().unwrap();
        decode.samples_ns.iter_mut().step_by(4).for_each(|ns| *ns = *ns * 10 / 13);
        assert_eq!(outcomes(&record), [None], "too noisy to tell");
    }

    #[test]
    fn published_figures_are_judged_as_they_stand() {
        let mut record = samples::run();
        record.cells.truncate(2);
        for (cell, ttft_s, reduction) in [(0, 5.59, 1.0), (1, 2.58, 2.36)].map(|(i, t, r)| (i, t, Some(r))) {
            let published = Published { ttft_s, flops_reduction: reduction, ..Published::default() };
            let cell = &mut record.cells[cell];
            *cell = Cell { published: Some(published), ..Cell::new(cell.kind, &cell.system, "OE1.1B", None, 1, 64) };
        }
        let validation = validate(&record);
        assert!(matches!(validation.claims[0].verdict, Verdict::FallsShort(x) if (x - 0.082).abs() < 0.001));
        assert_eq!((validation.model, validation.claims[0].losses.len()), (None, 0));
    }

    #[test]
    fn least_squares_keeps_terms_non_negative() {
        // t = 2 a - 0.1 b would fit; b must stay 0.
        let rows: Vec<[f64; 3]> = (1..9)
            .map(|i| {
                let (a, b) = (f64::from(i), f64::from(i % 3));
                let t = 2.0 * a - 0.1 * b;
                [a / t, b / t, 0.0]
            })
            .collect();
        let solve = |rows: &[[f64; 3]]| {
            let equations: Vec<Equation> = rows.iter().map(|work| Equation { work: *work, rest: 1.0 }).collect();
            non_negative_least_squares(&equations, &[0, 1, 2]).map(|(x, _)| x)
        };
        let x = solve(&rows).unwrap();
        assert!(x[0] > 1.8 && x[1] == 0.0 && x[2] == 0.0, "{x:?}");
        // Collinear columns: still solved, by one of them.
        let x = solve(&[[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]).unwrap();
        assert!(x.iter().filter(|v| **v > 0.0).count() == 1, "{x:?}");
        assert_eq!(solve(&[[0.0; 3]]), None);
    }
}
