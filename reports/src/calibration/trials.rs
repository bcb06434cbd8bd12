//! Decisions really made between sets of one machine, taken interleaved in time, where no difference is right.

use serde::{Deserialize, Serialize};

use super::{CellSpread, components};
use crate::{
    decide::{self, Sample, Spread},
    stats::{
        LEVEL,
        simulate::Normal,
        student::{self, Mean},
    },
    validate::word::{self, Word},
};

#[cfg(test)]
use schemars::JsonSchema;

/// A mean share with its 95% interval; each comparison counts once, because its rows are not independent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Share {
    /// The mean.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Independent comparisons.
    pub comparisons: usize,
}

/// What one design of a comparison does on this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Rates {
    /// The design in words.
    pub design: String,
    /// Rows of a comparison.
    pub rows: usize,
    /// Share of rows called different, where nothing is: false alarms.
    pub different: Share,
    /// Share of rows whose interval lies within 5% of no difference.
    pub no_difference: Share,
    /// The rest.
    pub undecided: Share,
    /// Share of tables with an alarm somewhere, each row judged by its own p.
    pub any_alarm: Share,
    /// Share of tables with an alarm somewhere under Holm's rule.
    pub any_alarm_holm: Share,
    /// Share of rows in which a true slowdown of 5% is found, one side's times being multiplied by 1.05.
    pub finds_5_percent: Share,
    /// The same of 10%.
    pub finds_10_percent: Share,
    /// The least slowdown found in 80% of rows, as a share, as measured.
    pub least_found: Option<f64>,
    /// The same as simulated from the components, the largest of all rows.
    pub least_found_simulated: Option<f64>,
    /// Share of simulated 95% intervals that cover the truth.
    pub coverage_simulated: Option<f64>,
}

/// One comparison: of every row the difference found.
type Comparison = Vec<Mean>;

/// Differences within this of none are no difference.
const NEAR: f64 = 0.05;
/// Simulated decisions of each row.
const SIMULATED: usize = 2000;

fn half(mean: &Mean) -> f64 {
    mean.half_width(LEVEL)
}

fn differs(mean: &Mean) -> bool {
    mean.value.abs() > half(mean)
}

/// Mean and interval over comparisons. If all agree, the interval reaches as far as that many can exclude.
fn share(values: &[f64]) -> Share {
    let comparisons = values.len();
    let Some(mean) = student::mean(values) else {
        let value = values.first().copied().unwrap_or(0.0);
        return Share { value, low: 0.0, high: 1.0, comparisons };
    };
    if mean.error == 0.0 {
        let rest = 1.0 - ((1.0 - LEVEL) / 2.0).powf(1.0 / comparisons as f64);
        let (low, high) = ((mean.value - rest).max(0.0), (mean.value + rest).min(1.0));
        return Share { value: mean.value, low, high, comparisons };
    }
    let half = half(&mean);
    Share { value: mean.value, low: (mean.value - half).max(0.0), high: (mean.value + half).min(1.0), comparisons }
}

/// The rates of comparisons, each drawn in several ways that are not independent of one another.
fn rates(design: &str, comparisons: &[Vec<Comparison>], simulated: Option<(f64, f64)>) -> Option<Rates> {
    let rows = comparisons.first()?.first()?.len();
    let over = |of: &dyn Fn(&Comparison) -> f64| {
        let mean = |draws: &Vec<Comparison>| draws.iter().map(of).sum::<f64>() / draws.len() as f64;
        share(&comparisons.iter().map(mean).collect::<Vec<_>>())
    };
    let rows_share = |of: &dyn Fn(&Mean) -> f64| over(&|c| c.iter().map(of).sum::<f64>() / c.len() as f64);
    let yes = f64::from;
    let near = |m: &Mean| !differs(m) && m.value.abs() + half(m) <= (1.0 + NEAR).ln();
    // Either side may be the slower one.
    let finds = |factor: f64| {
        let need = f64::ln(factor);
        rows_share(&move |m| (yes(need + m.value > half(m)) + yes(need - m.value > half(m))) / 2.0)
    };
    let mut needs: Vec<f64> =
        comparisons.iter().flatten().flatten().flat_map(|m| [half(m) - m.value, half(m) + m.value]).collect();
    let holm = |c: &Comparison| student::holm(&c.iter().map(|m| m.p(0.0)).collect::<Vec<_>>());
    Some(Rates {
        design: design.into(),
        rows,
        different: rows_share(&|m| yes(differs(m))),
        no_difference: rows_share(&|m| yes(near(m))),
        undecided: rows_share(&|m| yes(!differs(m) && !near(m))),
        any_alarm: over(&|c| yes(c.iter().any(differs))),
        any_alarm_holm: over(&|c| yes(holm(c).iter().any(|p| *p < 1.0 - LEVEL))),
        finds_5_percent: finds(1.05),
        finds_10_percent: finds(1.1),
        least_found: found_in_80_percent(&mut needs),
        least_found_simulated: simulated.map(|s| s.0),
        coverage_simulated: simulated.map(|s| s.1),
    })
}

/// The 80th percentile of the differences that would just have been found, as a share.
fn found_in_80_percent(needs: &mut [f64]) -> Option<f64> {
    needs.sort_unstable_by(f64::total_cmp);
    Some(needs.get((needs.len() * 4).div_ceil(5).checked_sub(1)?)?.exp() - 1.0)
}

/// Both sides of every comparison here.
const ONE_MACHINE: decide::Taken = decide::Taken { same_machine: true, apart: false };
/// Pairs of processes in the design of `ttft compare --binaries`.
const PAIRS: usize = 10;
/// Ways in which one set of processes is dealt to the two sides.
const DEALS: usize = 8;

/// All designs on the calibrated cells.
pub fn designs(cells: &[CellSpread]) -> Vec<Rates> {
    let Some(first) = cells.first() else { return Vec::new() };
    let whole: Vec<&CellSpread> = cells.iter().filter(|c| c.occasions == first.occasions).collect();
    let mut all = Vec::new();
    let processes: Vec<Vec<f64>> = whole.iter().map(|c| c.times().concat()).collect();
    let mut coin = Normal::new(11);
    let blocks = processes[0].len() / (2 * PAIRS);
    let compared: Vec<Vec<Comparison>> =
        (0..blocks).map(|block| (0..DEALS).map(|_| deal(&processes, block * 2 * PAIRS, &mut coin)).collect()).collect();
    let of_processes = |cell: &CellSpread, normal: &mut Normal| {
        let processes = vec![(0..2 * PAIRS).map(|_| cell.time.medians.value * normal.draw()).collect()];
        deal(&processes, 0, normal).pop()
    };
    let simulated = simulate(&whole, of_processes);
    all.extend(rates("ten ABBA pairs of processes (--binaries)", &compared, simulated));
    for k in 1..=3 {
        let compared: Vec<Vec<Comparison>> =
            (0..first.starts().div_euclid(2 * k)).map(|set| vec![sets(&whole, set * 2 * k, k, &mut coin)]).collect();
        let name = match k {
            1 => "one record a side, with the calibration of the other occasions".to_string(),
            k => format!("{k} records a side, interleaved in time"),
        };
        let draw = |cell: &CellSpread, normal: &mut Normal| simulated_sets(cell, k, normal);
        all.extend(rates(&name, &compared, simulate(&whole, draw)));
    }
    all
}

/// Twenty processes from `start` on dealt to two sides in ABBA or BAAB blocks, and judged as pairs are.
fn deal(processes: &[Vec<f64>], start: usize, coin: &mut Normal) -> Comparison {
    let order: Vec<bool> = (0..PAIRS / 2)
        .flat_map(|_| {
            let first = coin.coin();
            [first, !first]
        })
        .collect();
    let row = |logs: &Vec<f64>| {
        let differences: Vec<f64> = order
            .iter()
            .enumerate()
            .map(|(i, old_first)| {
                let (a, b) = (logs[start + 2 * i], logs[start + 2 * i + 1]);
                if *old_first { b - a } else { a - b }
            })
            .collect();
        decide::fit(&differences, &order).map(|f| f.0)
    };
    processes.iter().filter_map(row).collect()
}

/// 2 k occasions from `start` on, dealt in turn to two sides; one a side takes the calibration of all others.
fn sets(cells: &[&CellSpread], start: usize, k: usize, coin: &mut Normal) -> Comparison {
    let first = usize::from(coin.coin());
    let row = |cell: &&CellSpread| {
        let times = cell.times();
        let side =
            |which: usize| times[start..start + 2 * k].iter().skip(which).step_by(2).cloned().collect::<Vec<_>>();
        let spread = (k == 1).then(|| others(&times, start, 2 * k)).flatten();
        let sample = |which| Sample::of(&side(which), spread);
        decide::difference(&sample(first), &sample(1 - first), ONE_MACHINE)
    };
    cells.iter().filter_map(row).collect()
}

/// The spread of all occasions but `count` from `start` on.
fn others(times: &[Vec<f64>], start: usize, count: usize) -> Option<Spread> {
    let rest: Vec<Vec<f64>> = times[..start].iter().chain(&times[start + count..]).cloned().collect();
    Some(components::of(&rest, &[], 1, &[])?.spread())
}

fn simulated_sets(cell: &CellSpread, k: usize, normal: &mut Normal) -> Option<Mean> {
    let spread = cell.spread();
    let m = (cell.medians_ns.len() / cell.starts().max(1)).max(1);
    let mut side = || {
        let record = |normal: &mut Normal| {
            let occasion = spread.occasions * normal.draw();
            (0..m).map(|_| occasion + spread.processes * normal.draw()).collect()
        };
        Sample::of(&(0..k).map(|_| record(normal)).collect::<Vec<_>>(), (k == 1).then_some(spread))
    };
    decide::difference(&side(), &side(), ONE_MACHINE)
}

/// Least difference found in 80% of simulated cases and coverage, the worst of all cells.
fn simulate(cells: &[&CellSpread], draw: impl Fn(&CellSpread, &mut Normal) -> Option<Mean>) -> Option<(f64, f64)> {
    let mut normal = Normal::new(29);
    let of = |cell: &&CellSpread| {
        let found: Vec<Mean> = (0..SIMULATED).filter_map(|_| draw(cell, &mut normal)).collect();
        let covered = found.iter().filter(|m| !differs(m)).count() as f64 / found.len() as f64;
        let mut needs: Vec<f64> = found.iter().map(|m| half(m) - m.value).collect();
        Some((found_in_80_percent(&mut needs)?, covered))
    };
    let all: Vec<(f64, f64)> = cells.iter().filter_map(of).collect();
    let farthest = |a: f64, b: f64| if (a - LEVEL).abs() >= (b - LEVEL).abs() { a } else { b };
    all.into_iter().reduce(|a, b| (a.0.max(b.0), farthest(a.1, b.1)))
}

/// Of neighbouring single runs, two by two: the share of systems whose decided words contradict each other, and of
/// single runs the share of systems that stay undecided. `None` if no system has a known FLOPs reduction.
pub fn words(cells: &[CellSpread]) -> (Option<Share>, Option<Share>) {
    let judged: Vec<Vec<Word>> = cells
        .iter()
        .filter_map(|cell| {
            let reduction = cell.flops_reduction?.ln();
            let of = |logs: &Vec<f64>| {
                let efficiency: Vec<f64> = logs.iter().map(|r| r - reduction).collect();
                Some(word::of(&student::mean(&efficiency)?, efficiency.len()).word)
            };
            cell.ratios().iter().map(of).collect::<Option<Vec<Word>>>().filter(|w| !w.is_empty())
        })
        .collect();
    let Some(runs) = judged.iter().map(Vec::len).min().filter(|n| *n >= 2) else { return (None, None) };
    let mean = |of: &dyn Fn(&Vec<Word>) -> bool| judged.iter().filter(|w| of(w)).count() as f64 / judged.len() as f64;
    let contradictions: Vec<f64> =
        (0..runs / 2).map(|i| mean(&|words| words[2 * i].contradicts(&words[2 * i + 1]))).collect();
    let undecided: Vec<f64> = (0..runs).map(|i| mean(&|words| matches!(words[i], Word::Straddles(_)))).collect();
    (Some(share(&contradictions)), Some(share(&undecided)))
}

impl CellSpread {
    /// How many occasions it was measured on.
    fn starts(&self) -> usize {
        self.occasions.last().map_or(0, |last| *last as usize + 1)
    }
}
