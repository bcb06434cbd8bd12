//! Two builds (or settings) judged by pairs of processes: `ttft compare --binaries` and `--settings`.
//!
//! The two processes of a pair are adjacent in time, so what moves slowly cancels in the logarithm of their ratio, d. Which
//! side runs first changes from pair to pair, so the effect of the order can be told apart: d = delta + s beta, with s = 1
//! where the old side ran first and -1 where the new one did. delta, by least squares, has n - 2 degrees of freedom.

use crate::{
    compare::{self, CompareError},
    decide::fit,
    format, levels,
    schema::{Cell, Record},
    stats::{
        Estimate, LEVEL,
        student::{self, Mean},
    },
};

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
    /// One for each workload that both sides measured.
    pub rows: Vec<Row>,
    /// What all rows come to.
    pub outcome: Outcome,
    /// Chance that so many rows without any difference raise an alarm somewhere at 5% a row, if they were independent.
    pub family_rate: f64,
    /// What limits the judgement.
    pub warnings: Vec<String>,
}

/// One workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The cell's id.
    pub id: String,
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
    /// Time of the second process of a pair over the first, whichever side it is.
    pub order_effect: Option<Estimate>,
    /// Ratio of times that the machine's speed beside the processes would give by itself.
    pub by_probes: Option<f64>,
    /// The least slowdown, as a share, that this number of pairs finds in 80% of cases.
    pub detectable: Option<f64>,
    /// Pairs that would decide this row in 80% of cases, from the spread seen; `None` if it is decided, or if more than
    /// [`MOST_PAIRS`] would be needed.
    pub pairs_to_decide: Option<usize>,
    /// What the row comes to.
    pub outcome: Outcome,
}

/// Most pairs that are proposed.
pub const MOST_PAIRS: usize = 1000;

/// Whether the new side is slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The interval lies wholly below the limit.
    NotSlower,
    /// Slower than the limit; over all rows the chance of a wrong alarm is held at 5%.
    Slower,
    /// Neither can be said.
    Undecided,
}

impl Outcome {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::NotSlower => "no slower",
            Outcome::Slower => "slower",
            Outcome::Undecided => "undecided",
        }
    }
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

/// The cells of one workload in every pair that has it on both sides: place of the pair, old, new.
type Found<'a> = Vec<(usize, &'a Cell, &'a Cell)>;

/// Judges pairs of processes.
///
/// # Errors
/// Fewer than 3 pairs; no workload that both sides measured in 3 of them.
pub fn judge(pairs: &[Pair], fail_slower_percent: f64) -> Result<Judgement, CompareError> {
    if pairs.len() < 3 {
        return Err(CompareError::TooFewPairs(pairs.len()));
    }
    let mut warnings = Vec::new();
    let bound = (1.0 + fail_slower_percent / 100.0).ln();
    let mut ids: Vec<&str> = Vec::new();
    for cell in pairs.iter().flat_map(|p| &p.old.cells) {
        if !ids.contains(&cell.id.as_str()) {
            ids.push(&cell.id);
        }
    }
    let mut rows = Vec::new();
    let mut one_sided = Vec::new();
    for id in ids {
        let of = |record: &'_ Record| record.cells.iter().position(|c| c.id == id && !c.samples_ns.is_empty());
        let found: Found = pairs
            .iter()
            .enumerate()
            .filter_map(|(i, p)| Some((i, &p.old.cells[of(&p.old)?], &p.new.cells[of(&p.new)?])))
            .collect();
        if let Some(reason) = found.first().and_then(|(_, old, new)| compare::difference(old, new)) {
            warnings.push(format!("{id}: the two sides do different work: {reason}"));
        }
        match row(pairs, &found, bound) {
            Some((row, p)) => {
                rows.push(row);
                one_sided.push(p);
            }
            None => warnings.push(format!("{id}: left out, because only {} pairs have it", found.len())),
        }
    }
    if rows.is_empty() {
        let reason = "fewer than 3 pairs have a workload that both sides measured".into();
        return Err(CompareError::Nothing { first: "the old side".into(), other: "the new side".into(), reason });
    }
    let first = pairs.iter().filter(|p| p.old_first).count();
    if first == 0 || first == pairs.len() {
        warnings.push("one side always ran first: the effect of the order is part of the ratio".into());
    } else if pairs.len() == 3 {
        warnings.push("three pairs leave one degree of freedom: the intervals are very wide".into());
    }
    let holm = student::holm(&rows.iter().map(|r| r.p.unwrap_or(1.0)).collect::<Vec<_>>());
    let slower = student::holm(&one_sided);
    for ((row, p), slow) in rows.iter_mut().zip(holm).zip(slower) {
        row.p_holm = Some(p);
        row.p_slower_holm = Some(slow);
        let below = row.ratio.interval.is_some_and(|i| i.high.ln() < bound);
        row.outcome = match (slow <= 1.0 - LEVEL, below) {
            (true, _) => Outcome::Slower,
            (false, true) => Outcome::NotSlower,
            (false, false) => Outcome::Undecided,
        };
        if row.outcome != Outcome::Undecided {
            row.pairs_to_decide = None;
        }
    }
    let outcome = if rows.iter().any(|r| r.outcome == Outcome::Slower) {
        Outcome::Slower
    } else if rows.iter().all(|r| r.outcome == Outcome::NotSlower) {
        Outcome::NotSlower
    } else {
        Outcome::Undecided
    };
    let family_rate = 1.0 - LEVEL.powi(rows.len() as i32);
    Ok(Judgement { pairs: pairs.len(), fail_slower_percent, rows, outcome, family_rate, warnings })
}

/// The row of one workload, its outcome still open, and its one-sided p-value.
fn row(pairs: &[Pair], found: &Found, bound: f64) -> Option<(Row, f64)> {
    let logs: Vec<(bool, f64, f64)> = found
        .iter()
        .filter_map(|(i, old, new)| Some((pairs[*i].old_first, levels::value(old)?, levels::value(new)?)))
        .collect();
    let differences: Vec<f64> = logs.iter().map(|(_, old, new)| new - old).collect();
    let (delta, beta) = fit(&differences, &logs.iter().map(|l| l.0).collect::<Vec<_>>())?;
    let n = logs.len();
    let mean = |of: fn(&(bool, f64, f64)) -> f64| (logs.iter().map(of).sum::<f64>() / n as f64).exp();
    let probes: Option<Vec<f64>> =
        found.iter().map(|(i, old, new)| levels::by_probes(new, old, &pairs[*i].old.run.limits)).collect();
    let cell = found.first()?.1;
    let row = Row {
        id: cell.id.clone(),
        system: cell.system.clone(),
        batch: cell.batch,
        prompt: cell.prompt,
        pairs: n,
        seconds: [mean(|l| l.1), mean(|l| l.2)],
        ratio: delta.ratio(n),
        p: Some(delta.p(0.0)),
        p_holm: None,
        p_slower_holm: None,
        order_effect: beta.map(|b| b.ratio(n)),
        by_probes: probes.map(|p| (p.iter().sum::<f64>() / n as f64).exp()),
        detectable: Some(student::detectable(delta.error, delta.freedom).exp() - 1.0),
        pairs_to_decide: pairs_to_decide(&delta, n, bound),
        outcome: Outcome::Undecided,
    };
    Some((row, delta.p_above(bound)))
}

/// Pairs, in whole blocks of two, that would tell the difference seen from the limit in 80% of cases.
fn pairs_to_decide(delta: &Mean, n: usize, bound: f64) -> Option<usize> {
    let spread = delta.error * (n as f64).sqrt();
    let enough =
        |m: &usize| student::detectable(spread / (*m as f64).sqrt(), *m as f64 - 2.0) <= (delta.value - bound).abs();
    ((n / 2 + 1) * 2..=MOST_PAIRS).step_by(2).find(enough)
}

/// The judgement in one sentence.
pub fn answer(judgement: &Judgement, old: &str, new: &str) -> String {
    let limit = format::percent(judgement.fail_slower_percent / 100.0);
    let count = |outcome| judgement.rows.iter().filter(|r| r.outcome == outcome).count();
    let all = judgement.rows.len();
    match judgement.outcome {
        Outcome::Slower => {
            format!("{new} is slower than {old} by more than {limit} in {} of {all} rows.", count(Outcome::Slower))
        }
        Outcome::NotSlower => format!("{new} is no slower than {old}, to within {limit}, in all of {all} rows."),
        Outcome::Undecided => {
            let needed = judgement.rows.iter().filter(|r| r.outcome == Outcome::Undecided).map(|r| r.pairs_to_decide);
            let needed: Option<usize> = needed.collect::<Option<Vec<_>>>().and_then(|n| n.into_iter().max());
            let how = match needed {
                Some(n) => format!("about {n} pairs would decide, from the spread seen"),
                None => format!("not even {MOST_PAIRS} pairs would decide all of them, from what was seen"),
            };
            format!(
                "Whether {new} is slower than {old} by more than {limit} is undecided in {} of {all} rows; {how}.",
                count(Outcome::Undecided)
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{samples, stats::simulate::Normal};

    /// Pairs of single processes whose logarithms differ by `shift`, with an effect of the order.
    fn pairs(n: usize, shift: f64, order: f64, spread: f64, seed: u64) -> Vec<Pair> {
        let mut normal = Normal::new(seed);
        let record = |log: f64| {
            let mut record = samples::run();
            record.cells.truncate(3);
            for cell in &mut record.cells {
                cell.phases.clear();
                cell.samples_ns = vec![(5e8 * log.exp()) as u64; 3];
            }
            record
        };
        (0..n)
            .map(|i| {
                let old_first = (i / 2) % 2 == i % 2;
                let (a, b) = (spread * normal.draw(), spread * normal.draw());
                let drift = 0.01 * i as f64;
                let (old, new) = if old_first { (0.0, order) } else { (order, 0.0) };
                let block = i as u32 / 2;
                Pair { old_first, block, old: record(a + old + drift), new: record(b + new + drift + shift) }
            })
            .collect()
    }

    #[test]
    fn the_order_of_the_two_processes_is_taken_out() {
        let d: Vec<f64> = [true, false, false, true, true].map(|f| 0.04 + if f { 0.03 } else { -0.03 }).into();
        let (delta, beta) = fit(&d, &[true, false, false, true, true]).unwrap();
        assert!((delta.value - 0.04).abs() < 1e-12 && (beta.unwrap().value - 0.03).abs() < 1e-12 && delta.error < 1e-9);
        assert_eq!(delta.freedom, 3.0);
        let (delta, beta) = fit(&[0.01, 0.02, 0.03], &[true; 3]).unwrap();
        assert!((delta.value - 0.02).abs() < 1e-12 && beta.is_none() && delta.freedom == 2.0);
        assert_eq!(fit(&[0.01, 0.02], &[true, false]), None);
        let row = &judge(&pairs(10, 0.0, 0.05, 0.002, 3), 5.0).unwrap().rows[0];
        assert!((row.ratio.value - 1.0).abs() < 0.005 && (row.order_effect.unwrap().value - 1.051).abs() < 0.005);
    }

    #[test]
    fn exit_codes_follow_the_intervals() {
        let judged = |shift: f64, spread: f64| judge(&pairs(10, shift, 0.0, spread, 8), 5.0).unwrap();
        assert_eq!((judged(0.0, 0.01).exit_code(), judged(0.2, 0.01).exit_code()), (0, 3));
        let undecided = judged(0.03, 0.08);
        assert_eq!(undecided.exit_code(), 4);
        let row = &undecided.rows[0];
        assert!(row.pairs_to_decide.is_some_and(|n| n > 10 && n % 2 == 0) || row.pairs_to_decide.is_none());
        assert!((undecided.family_rate - (1.0 - 0.95f64.powi(3))).abs() < 1e-12);
        let text = crate::terminal::judgement(&judged(0.2, 0.01), "before", "after");
        assert!(text.starts_with("after is slower than before by more than 5.0% in 3 of 3 rows."), "{text}");
        assert!(crate::json::judgement(&undecided)["exit_code"] == 4);
        assert!(matches!(judge(&pairs(2, 0.0, 0.0, 0.1, 1), 5.0), Err(CompareError::TooFewPairs(2))));
    }

    #[test]
    fn ten_pairs_find_ten_percent_and_raise_few_alarms() {
        let mut normal = Normal::new(6);
        let order: Vec<bool> = (0..10).map(|i| (i / 2) % 2 == i % 2).collect();
        let trials = 2000;
        let mut count = |shift: f64, spread: f64| {
            let found = (0..trials).filter(|_| {
                let d: Vec<f64> = (0..10).map(|_| shift + spread * (normal.draw() - normal.draw())).collect();
                fit(&d, &order).unwrap().0.p(0.0) < 0.05
            });
            found.count() as f64 / f64::from(trials)
        };
        assert!((0.035..0.065).contains(&count(0.0, 0.03)), "false alarms");
        assert!(count(1.1f64.ln(), 0.03) > 0.99);
        assert!(count(1.05f64.ln(), 0.03) > 0.8);
    }
}
