//! Answers as JSON, each with the name of its schema; the schemas stand in `reports/schema/`.
//!
//! Times are in seconds, shares and ratios are plain numbers, and what is unknown is null.

use serde::Serialize;
use serde_json::Value;

use crate::{
    compare::{self, Comparison},
    pairs::{self, Judgement},
    schema::Record,
    stats::Estimate,
    summary,
    validate::{self, MemoryBound, Verdict, Why},
};

#[cfg(test)]
use schemars::JsonSchema;

/// A figure with its interval.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// Lower end of its interval.
    pub low: Option<f64>,
    /// Upper end.
    pub high: Option<f64>,
    /// Confidence of the interval.
    pub level: Option<f64>,
    /// Independent values behind it: processes, pairs, records, or samples of one process.
    pub values: usize,
}

impl From<Estimate> for Figure {
    fn from(e: Estimate) -> Self {
        let i = e.interval;
        let (low, high, level) = (i.map(|i| i.low), i.map(|i| i.high), i.map(|i| i.level));
        Self { value: e.value, low, high, level, values: e.samples }
    }
}

/// Answer of `ttft validate --json`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ValidationAnswer {
    /// `ttft-validate/1`.
    pub schema: &'static str,
    /// The run's id.
    pub run: String,
    /// One for every system that is not its own base.
    pub systems: Vec<System>,
    /// How many last tokens the base can read itself for hardly more time than one, for each KV prediction that has several numbers.
    pub base_tokens: Vec<BaseTokensAnswer>,
    /// Comparisons whose outcome is known beforehand.
    pub controls: Vec<ControlAnswer>,
    /// The command that decides, where words are indicative.
    pub command: Option<String>,
}

/// One system beside its base.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct System {
    /// The cell's id.
    pub id: String,
    /// System.
    pub system: String,
    /// Sequences.
    pub batch: u32,
    /// Prompt tokens.
    pub prompt: u32,
    /// `holds`, `falls_short`, `exceeds` or `undecided`.
    pub word: &'static str,
    /// Why nothing is decided, in words.
    pub reason: Option<String>,
    /// Processes that would decide, where that is known.
    pub processes_to_decide: Option<usize>,
    /// Whether the word rests on one process.
    pub indicative: bool,
    /// The smallest deviation that this design finds in 80% of cases.
    pub resolution: Option<f64>,
    /// Processes behind the figures.
    pub processes: usize,
    /// TTFT in seconds.
    pub ttft_s: Option<Figure>,
    /// Two modes of its times, in words.
    pub modes: Option<String>,
    /// Time of the base over time of the system.
    pub ttft_reduction: Option<Figure>,
    /// Exact operations of the base over those of the system.
    pub flops_reduction: Option<f64>,
    /// TTFT reduction over FLOPs reduction.
    pub efficiency: Option<Figure>,
    /// Where the time went beyond the FLOPs at the base's rate: cause and seconds, largest first.
    pub losses: Vec<LossAnswer>,
    /// If memory bounds both it and its base; null otherwise.
    pub memory_bound: Option<MemoryBound>,
    /// Reasons not to trust the cell, in words.
    pub doubts: Vec<String>,
}

/// What more last tokens of the base cost, of one KV prediction at one size.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct BaseTokensAnswer {
    /// The system with one.
    pub system: String,
    /// Sequences.
    pub batch: u32,
    /// Prompt tokens.
    pub prompt: u32,
    /// The largest number up to which the base step takes at most 5% more time than with one.
    pub up_to: u32,
    /// Each number that was measured, ascending.
    pub steps: Vec<BaseStepAnswer>,
}

/// A base step of several tokens.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct BaseStepAnswer {
    /// How many.
    pub base_tokens: u32,
    /// Its time over that with one.
    pub ratio: Figure,
}

/// Time beyond the FLOPs at the base's rate.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct LossAnswer {
    /// In words.
    pub cause: &'static str,
    /// Negative if time was gained.
    pub seconds: f64,
}

/// A control.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ControlAnswer {
    /// What is compared.
    pub name: String,
    /// The ratio found.
    pub ratio: Figure,
    /// The ratio that must be found.
    pub expected: f64,
    /// Null if undecided.
    pub passed: Option<bool>,
    /// Whether it rests on one process.
    pub indicative: bool,
}

fn value(answer: &impl Serialize) -> Value {
    serde_json::to_value(answer).expect("an answer has only names as keys")
}

/// `ttft validate --json`: schema `ttft-validate/1`.
pub fn validation(record: &Record) -> Value {
    let validation = validate::validate(record);
    let system = |claim: &validate::Claim| {
        let row = &claim.row;
        let (word, why) = match claim.verdict {
            Verdict::Holds => ("holds", None),
            Verdict::FallsShort(_) => ("falls_short", None),
            Verdict::Exceeds(_) => ("exceeds", None),
            Verdict::Undecided(why) => ("undecided", Some(why)),
        };
        System {
            id: row.cell.id.clone(),
            system: row.cell.system.clone(),
            batch: row.cell.batch,
            prompt: row.cell.prompt,
            word,
            reason: why.map(|w| w.to_string()),
            processes_to_decide: why.and_then(|w| if let Why::Straddles(n) = w { n } else { None }),
            indicative: claim.indicative,
            resolution: claim.resolution,
            processes: row.processes,
            ttft_s: row.ttft.map(Into::into),
            modes: row.modes.map(|m| m.to_string()),
            ttft_reduction: row.speedup.map(|s| s.estimate.into()),
            flops_reduction: row.flops_reduction,
            efficiency: row.efficiency.map(Into::into),
            losses: claim.losses.iter().map(|l| LossAnswer { cause: l.cause.name(), seconds: l.seconds }).collect(),
            memory_bound: claim.memory,
            doubts: row.doubts.iter().map(ToString::to_string).collect(),
        }
    };
    let control = |c: &validate::Control| ControlAnswer {
        name: c.name.clone(),
        ratio: c.ratio.into(),
        expected: c.expected,
        passed: c.passed,
        indicative: c.indicative,
    };
    let base_tokens = |b: &validate::BaseTokens| BaseTokensAnswer {
        system: b.one.system.clone(),
        batch: b.one.batch,
        prompt: b.one.prompt,
        up_to: b.most(),
        steps: b.steps.iter().map(|(m, ratio)| BaseStepAnswer { base_tokens: *m, ratio: (*ratio).into() }).collect(),
    };
    value(&ValidationAnswer {
        schema: "ttft-validate/1",
        base_tokens: validation.base_tokens.iter().map(base_tokens).collect(),
        run: record.run.run_id.clone(),
        systems: validation.claims.iter().map(system).collect(),
        controls: validation.controls.iter().map(control).collect(),
        command: validation.command.clone(),
    })
}

/// Answer of `ttft compare --json`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct ComparisonAnswer {
    /// `ttft-compare/1`.
    pub schema: &'static str,
    /// The sides; the first is the reference.
    pub sides: Vec<SideAnswer>,
    /// One for each workload and each side but the first.
    pub rows: Vec<RowAnswer>,
    /// Chance of a false alarm somewhere in a table of so many rows at 5% each, if they were independent.
    pub family_rate: f64,
    /// Commands that would decide what is not decided.
    pub commands: Vec<String>,
    /// What limits the comparison.
    pub warnings: Vec<String>,
}

/// One side.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct SideAnswer {
    /// Its name.
    pub name: String,
    /// Its records' ids.
    pub runs: Vec<String>,
    /// Geometric mean of the ratios to the first side; null for the first.
    pub ratio: Option<f64>,
}

/// One workload of one side against the first.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct RowAnswer {
    /// The side.
    pub side: String,
    /// The cell's id on the first side.
    pub id: String,
    /// TTFT of the first and of this side, in seconds.
    pub ttft_s: [Option<f64>; 2],
    /// Records of the first and of this side.
    pub records: [usize; 2],
    /// TTFT of the first over this side's: above 1, this side is faster.
    pub ratio: Figure,
    /// `faster`, `slower`, `within noise`, `no spread known` or `not decided`.
    pub word: String,
    /// Two-sided p-value of no difference.
    pub p: Option<f64>,
    /// The same by Holm's rule over all workloads.
    pub p_holm: Option<f64>,
    /// The ratio that the speed probes alone would give.
    pub by_probes: Option<f64>,
    /// Energy to the first token of the first and of this side, in joules.
    pub joules: [Option<f64>; 2],
    /// Whether a side is a published figure.
    pub published: bool,
}

/// `ttft compare --json`: schema `ttft-compare/1`.
pub fn comparison(comparison: &Comparison) -> Value {
    let rows = comparison.lines.iter().flat_map(|line| {
        let row = |(i, versus): (usize, &Option<compare::Versus>)| {
            let versus = versus.as_ref()?;
            Some(RowAnswer {
                side: comparison.sides[i + 1].name.into(),
                id: line.cell().id.clone(),
                ttft_s: [line.seconds[0], line.seconds[i + 1]],
                records: versus.records,
                ratio: versus.ratio.into(),
                word: versus.verdict.to_string(),
                p: versus.p,
                p_holm: versus.p_holm,
                by_probes: versus.by_probes,
                joules: [0, i + 1].map(|side| summary::joules(line.rows[side].as_ref()?.cell)),
                published: versus.single,
            })
        };
        line.versus.iter().enumerate().filter_map(row).collect::<Vec<_>>()
    });
    let side = |(i, side): (usize, &compare::Side)| SideAnswer {
        name: side.name.into(),
        runs: side.records.iter().map(|r| r.run.run_id.clone()).collect(),
        ratio: i.checked_sub(1).and_then(|i| comparison.means[i].ratio),
    };
    value(&ComparisonAnswer {
        schema: "ttft-compare/1",
        sides: comparison.sides.iter().enumerate().map(side).collect(),
        rows: rows.collect(),
        family_rate: comparison.family_rate,
        commands: comparison.commands.clone(),
        warnings: comparison.warnings.clone(),
    })
}

/// Answer of `ttft compare --binaries --json`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct JudgementAnswer {
    /// `ttft-pairs/1`.
    pub schema: &'static str,
    /// Pairs of processes.
    pub pairs: usize,
    /// A slowdown of more than this, in percent, fails.
    pub fail_slower_percent: f64,
    /// `no slower`, `slower` or `undecided`.
    pub outcome: &'static str,
    /// 0, 3 or 4.
    pub exit_code: u8,
    /// One for each workload.
    pub rows: Vec<PairsRow>,
    /// Chance of a false alarm somewhere in a table of so many rows at 5% each, if they were independent.
    pub family_rate: f64,
    /// What limits the judgement.
    pub warnings: Vec<String>,
}

/// One workload of two builds.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct PairsRow {
    /// The cell's id.
    pub id: String,
    /// Pairs that have it.
    pub pairs: usize,
    /// Times of the old and the new side in seconds.
    pub ttft_s: [f64; 2],
    /// Time of the new over time of the old: above 1, the new is slower.
    pub ratio: Figure,
    /// Two-sided p-value of no difference.
    pub p: Option<f64>,
    /// The same by Holm's rule over all rows.
    pub p_holm: Option<f64>,
    /// One-sided p-value of a slowdown of at most the limit, by Holm's rule.
    pub p_slower_holm: Option<f64>,
    /// Time of the second process of a pair over the first.
    pub order_effect: Option<Figure>,
    /// The ratio that the speed probes alone would give.
    pub by_probes: Option<f64>,
    /// The least slowdown that this number of pairs finds in 80% of cases, as a share.
    pub detectable: Option<f64>,
    /// Pairs that would decide.
    pub pairs_to_decide: Option<usize>,
    /// `no slower`, `slower` or `undecided`.
    pub outcome: &'static str,
}

/// `ttft compare --binaries --json`: schema `ttft-pairs/1`.
pub fn judgement(judgement: &Judgement) -> Value {
    let row = |row: &pairs::Row| PairsRow {
        id: row.id.clone(),
        pairs: row.pairs,
        ttft_s: row.seconds,
        ratio: row.ratio.into(),
        p: row.p,
        p_holm: row.p_holm,
        p_slower_holm: row.p_slower_holm,
        order_effect: row.order_effect.map(Into::into),
        by_probes: row.by_probes,
        detectable: row.detectable,
        pairs_to_decide: row.pairs_to_decide,
        outcome: row.outcome.name(),
    };
    value(&JudgementAnswer {
        schema: "ttft-pairs/1",
        pairs: judgement.pairs,
        fail_slower_percent: judgement.fail_slower_percent,
        outcome: judgement.outcome.name(),
        exit_code: judgement.exit_code(),
        rows: judgement.rows.iter().map(row).collect(),
        family_rate: judgement.family_rate,
        warnings: judgement.warnings.clone(),
    })
}

#[cfg(test)]
mod tests;
