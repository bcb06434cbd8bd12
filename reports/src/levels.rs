//! Three levels of variation: rounds within a process, processes within an occasion, occasions.
//!
//! The rounds of one process share its memory layout, the placement of its pages and threads, and its minutes. So one
//! process gives one value: the median over its rounds of the logarithm, of the time or of the ratio within a round.

use crate::{
    schema::{Cell, Cost, Limits},
    stats::{
        self,
        student::{self, Mean},
    },
};

/// Fewer processes than this are reported as one process is.
pub const FEWEST_PROCESSES: usize = 3;

/// Natural logarithms of the processes' median times in seconds; one value if one process took all samples.
pub fn process_logs(cell: &Cell) -> Vec<f64> {
    process_medians(cell, &cell.samples_ns.iter().map(|&ns| ns as f64 * 1e-9).collect::<Vec<_>>())
}

/// The logarithms of the processes' medians of any positive figure of every sample.
pub fn process_medians(cell: &Cell, figures: &[f64]) -> Vec<f64> {
    let median = |range: std::ops::Range<usize>| Some(stats::median(figures.get(range)?)?.ln());
    cell.process_ranges().into_iter().filter_map(median).collect()
}

/// Of every process that both cells share, the median over its common rounds of the logarithm of `of_a` over `of_b`.
/// `mates` are places of samples of common rounds.
pub fn process_ratio_logs(a: &Cell, of_a: &[f64], of_b: &[f64], mates: &[(usize, usize)]) -> Vec<f64> {
    let process = |i: usize| a.processes.as_ref().map_or(0, |p| p[i]);
    let logs: Vec<(u32, f64)> = mates.iter().map(|&(i, j)| (process(i), (of_a[i] / of_b[j]).ln())).collect();
    let median = |run: &[(u32, f64)]| stats::median(&run.iter().map(|r| r.1).collect::<Vec<_>>());
    logs.chunk_by(|x, y| x.0 == y.0).filter_map(median).collect()
}

/// The one value that a record gives of a cell: the mean over its processes of the logarithm of the median time.
pub fn value(cell: &Cell) -> Option<f64> {
    let logs = process_logs(cell);
    (!logs.is_empty()).then(|| logs.iter().sum::<f64>() / logs.len() as f64)
}

/// A speed of the machine beside a cell, as logarithms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// Mean.
    pub value: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

fn speed(all: &[f64], before_after: (Option<f64>, Option<f64>)) -> Option<Speed> {
    let logs: Vec<f64> = all.iter().map(|v| v.ln()).collect();
    if let Some(mean @ Mean { value, .. }) = student::mean(&logs) {
        let half = mean.half_width(stats::LEVEL);
        return Some(Speed { value, low: value - half, high: value + half });
    }
    let (before, after) = (before_after.0?.ln(), before_after.1?.ln());
    Some(Speed { value: f64::midpoint(before, after), low: before.min(after), high: before.max(after) })
}

/// Arithmetic speed beside a cell: by the probes of its rounds, or else before and after it.
pub fn arithmetic(cell: &Cell) -> Option<Speed> {
    let drift = cell.drift.as_ref();
    let probes = cell.probes.as_ref().map_or(&[][..], |p| &p.gflops);
    speed(probes, (drift.and_then(|d| d.before_gflops), drift.and_then(|d| d.after_gflops)))
}

/// Read bandwidth beside a cell, likewise.
pub fn bandwidth(cell: &Cell) -> Option<Speed> {
    let drift = cell.drift.as_ref();
    let probes = cell.probes.as_ref().map_or(&[][..], |p| &p.read_gb_per_s);
    speed(probes, (drift.and_then(|d| d.before_read_gb_per_s), drift.and_then(|d| d.after_read_gb_per_s)))
}

/// The logarithm of the ratio of times, `a` over `b`, that the machine's speed beside the cells would give by itself:
/// arithmetic and memory weigh as the roofline of `a` has them, all arithmetic if it is unknown.
pub fn by_probes(a: &Cell, b: &Cell, limits: &Limits) -> Option<f64> {
    let compute = arithmetic(b)?.value - arithmetic(a)?.value;
    let share = compute_share(a, limits).unwrap_or(1.0);
    match (bandwidth(a), bandwidth(b)) {
        (Some(own), Some(other)) => Some(share * compute + (1.0 - share) * (other.value - own.value)),
        _ => Some(compute),
    }
}

/// The share of a cell's roofline time that arithmetic bounds.
fn compute_share(cell: &Cell, limits: &Limits) -> Option<f64> {
    let limits = cell.limits.as_ref().unwrap_or(limits);
    let bytes_per_s = limits.read_gb_per_s? * 1e9;
    let (mut compute, mut all) = (0.0, 0.0);
    for phase in &cell.phases {
        let cost: Cost = phase.cost?;
        let (flops, bytes) = (limits.arithmetic(&cost, cell.compute_dtype)?, cost.bytes() as f64 / bytes_per_s);
        all += flops.max(bytes);
        compute += if flops >= bytes { flops } else { 0.0 };
    }
    (all > 0.0).then(|| compute / all)
}

/// Two speeds must lie so far apart, beside their intervals, that a time changes by this, before cells measured one after the
/// other give no ratio.
pub const LEAST_SPEED_CHANGE: f64 = 0.05;
/// A speed that moved within a cell so that its time changes by more than this does not say how fast the machine was.
pub const MOST_OWN_CHANGE: f64 = 0.25;

/// By how much a time differs between two cells that were not measured in common rounds through the machine's speed alone, if
/// a speed moved by more than the probes' own intervals and that makes [`LEAST_SPEED_CHANGE`], or if it moved by
/// [`MOST_OWN_CHANGE`] within one of them. Arithmetic and memory weigh as the roofline of either cell has them, whichever is
/// more; fully where that is unknown.
pub fn speeds_differ(a: &Cell, b: &Cell, limits: &Limits) -> Option<f64> {
    let shares = [a, b].map(|cell| compute_share(cell, limits));
    let most = |of: fn(f64) -> f64| shares.map(|share| share.map_or(1.0, of)).into_iter().fold(0.0, f64::max);
    let differ = |a: Option<Speed>, b: Option<Speed>, weight: f64| {
        let (a, b) = (a?, b?);
        let change = (weight * (a.value - b.value).abs()).exp() - 1.0;
        let apart = a.low > b.high || b.low > a.high;
        let own = [a, b].map(|s| (weight * (s.high - s.low)).exp() - 1.0).into_iter().fold(0.0, f64::max);
        match (apart && change >= LEAST_SPEED_CHANGE, own > MOST_OWN_CHANGE) {
            (true, _) => Some(change.max(if own > MOST_OWN_CHANGE { own } else { 0.0 })),
            (false, true) => Some(own),
            (false, false) => None,
        }
    };
    let changes = [
        differ(arithmetic(a), arithmetic(b), most(|compute| compute)),
        differ(bandwidth(a), bandwidth(b), most(|compute| 1.0 - compute)),
    ];
    changes.into_iter().flatten().reduce(f64::max)
}

/// Seconds since 1970 of an RFC 3339 time.
pub fn unix_seconds(time: &str) -> Option<f64> {
    Some(time.parse::<jiff::Timestamp>().ok()?.as_millisecond() as f64 / 1000.0)
}
