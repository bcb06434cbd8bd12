//! Two builds (or settings) judged by pairs of processes: `ttft compare --binaries` and `--settings`.

use crate::{compare::CompareError, schema::Record, stats::Estimate};

/// One process of either side, adjacent in time.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Whether the old side ran first.
    pub old_first: bool,
    /// Block of two pairs, ABBA or BAAB, that this pair is of.
    pub block: u32,
    /// The old side's process.
    pub old: Record,
    /// The new side's process.
    pub new: Record,
}

/// What the pairs come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Pairs given.
    pub pairs: usize,
    /// A slowdown of more than this, in percent, fails.
    pub fail_slower_percent: f64,
    /// One for each workload that both sides measured in every counted pair.
    pub rows: Vec<Row>,
    /// What all rows come to.
    pub outcome: Outcome,
    /// Chance that a family of these rows without any difference raises an alarm at 5% a row, if rows were independent.
    pub family_rate: f64,
    /// What limits the judgement.
    pub warnings: Vec<String>,
}

/// One workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// System.
    pub system: String,
    /// Sequences.
    pub batch: u32,
    /// Prompt tokens.
    pub prompt: u32,
    /// Pairs that have it.
    pub pairs: usize,
    /// Geometric means of the old and the new side's medians, in seconds.
    pub seconds: [f64; 2],
    /// Time of the new over time of the old, the order effect taken out; above 1, the new is slower.
    pub ratio: Estimate,
    /// Two-sided p-value of no difference.
    pub p: Option<f64>,
    /// The same adjusted by Holm's rule for all rows.
    pub p_holm: Option<f64>,
    /// One-sided p-value of a slowdown of at most the limit, adjusted by Holm's rule for all rows.
    pub p_slower_holm: Option<f64>,
    /// Time of the second process over the first, of the same side.
    pub order_effect: Option<Estimate>,
    /// Ratio of times that the speed probes alone would give: old speed by new speed.
    pub by_probes: Option<f64>,
    /// The least slowdown, as a share, that this number of pairs finds in 80% of cases.
    pub detectable: Option<f64>,
    /// Pairs that would decide this row, from the spread seen; `None` if it is decided or no number would.
    pub pairs_to_decide: Option<usize>,
    /// What the row comes to.
    pub outcome: Outcome,
}

/// Whether the new side is slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The interval lies below the limit.
    NotSlower,
    /// Slower than the limit, with the family-wise error held.
    Slower,
    /// Neither.
    Undecided,
}

impl Judgement {
    /// Exit code for a shell: 0 no slower, 3 slower, 4 undecided.
    pub fn exit_code(&self) -> u8 {
        match self.outcome {
            Outcome::NotSlower => 0,
            Outcome::Slower => 3,
            Outcome::Undecided => 4,
        }
    }
}

/// Judges pairs of processes.
///
/// # Errors
/// No pairs, or no workload that both sides measured.
pub fn judge(pairs: &[Pair], fail_slower_percent: f64) -> Result<Judgement, CompareError> {
    let _ = (pairs, fail_slower_percent);
    todo!("statistics follow")
}
