//! One row of figures for every cell: what all reports show.

use std::{fmt, ops::Range};

use crate::{
    format, levels, modes,
    modes::Modes,
    schema::{Cache, Cell, Cost, Kind, Limits, Machine, PhaseRecord, Record},
    stats::{
        self, Estimate,
        student::{self, Mean},
    },
};

/// A cell is doubted if its speed probe moved by more than this over the cell.
pub const MAX_DRIFT: f64 = 0.05;
/// A cell is doubted if the interval of its TTFT is wider than this, relative to the TTFT.
pub const MAX_SPREAD: f64 = 0.10;
/// A cell is doubted if its later half is slower than its earlier half by more than this, beyond chance.
pub const MAX_TREND: f64 = 0.03;

/// A cell and what follows from it.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    /// The cell.
    pub cell: &'a Cell,
    /// The limits of its run.
    pub limits: &'a Limits,
    /// TTFT in seconds: the median of the samples, or the published figure.
    pub ttft: Option<Estimate>,
    /// Prompt tokens of the whole batch by TTFT.
    pub tokens_per_s: Option<f64>,
    /// Exact operations by TTFT, in GFLOP/s.
    pub gflops: Option<f64>,
    /// The time that the operations take at the measured peaks of their types, over TTFT.
    pub peak_share: Option<f64>,
    /// TTFT of the base over the TTFT of this cell.
    pub speedup: Option<Speedup>,
    /// Exact operations of the base over those of this cell.
    pub flops_reduction: Option<f64>,
    /// The same by the paper's approximation, or as published.
    pub paper_flops_reduction: Option<f64>,
    /// Speedup over exact FLOPs reduction: 1 if FLOPs translate to latency.
    pub efficiency: Option<Estimate>,
    /// TTFT in seconds at the measured peak and bandwidth, see [`roofline`].
    pub roofline: Option<f64>,
    /// The base's `roofline` over this cell's: the speedup of a machine that always reaches its limits.
    pub roofline_reduction: Option<f64>,
    /// Seconds for each token after the first.
    pub step: Option<Estimate>,
    /// `step` over the base's: 1 if the system adds nothing after the first token.
    pub step_ratio: Option<Estimate>,
    /// TTFT over `step`: how many generation steps the first token takes.
    pub ttft_steps: Option<Estimate>,
    /// Energy of the base over that of this cell, see [`joules`].
    pub energy_reduction: Option<f64>,
    /// Processes behind the figures, see [`processes`].
    pub processes: usize,
    /// Two modes of its times, if there are two.
    pub modes: Option<Modes>,
    /// Reasons not to trust the cell.
    pub doubts: Vec<Doubt>,
}

/// How many times faster than its base a cell is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speedup {
    /// The ratio with its interval.
    pub estimate: Estimate,
    /// Where it comes from.
    pub pairing: Pairing,
}

/// Where a ratio of two cells comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Ratios within common rounds.
    Paired,
    /// Samples taken independently.
    Unpaired,
    /// At least one side is a single published figure.
    Published,
}

impl Pairing {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Pairing::Paired => "paired rounds",
            Pairing::Unpaired => "unpaired",
            Pairing::Published => "published figures",
        }
    }
}

/// A reason not to trust a cell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Doubt {
    /// The speed probe moved: relative change.
    Drift(f64),
    /// The interval is wide: relative width.
    Spread(f64),
    /// Later samples are slower: relative change. Throttling does this.
    Trend(f64),
    /// Weights were not warm: page faults that went to disk.
    MajorFaults(u64),
    /// More was running than there are cores: load average, cores.
    Load(f64, u32),
    /// Heat slowed the clock so many times while the samples were taken.
    Throttled(u64),
    /// Timed without a correctness gate.
    NoGate,
    /// A cold start that read less from storage than its weights are: bytes read, and bytes of weights.
    NotCold(u64, u64),
    /// Faster than its measured peak: share of the peak.
    AbovePeak(f64),
    /// No ratio, because the machine's speed changed between this cell and its base, which were not measured in common rounds:
    /// what that alone makes of their times.
    NoRatio(f64),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Doubt::Drift(change) => write!(f, "machine speed moved by {}", format::change(*change)),
            Doubt::Spread(width) => write!(f, "interval is {} wide", format::percent(*width)),
            Doubt::Trend(change) => {
                write!(f, "later samples are {} slower (throttling?)", format::percent(*change))
            }
            Doubt::MajorFaults(n) => write!(f, "{n} page faults read from disk"),
            Doubt::Load(load, cores) => write!(f, "load {load:.1} on {cores} cores"),
            Doubt::Throttled(n) => write!(f, "heat slowed the clock {n} times"),
            Doubt::NotCold(read, needed) => {
                let (read, needed) = (format::bytes(*read), format::bytes(*needed));
                write!(f, "{read} of {needed} of weights were read from storage: a cache held the rest")
            }
            Doubt::NoGate => write!(f, "no correctness gate"),
            Doubt::AbovePeak(share) => {
                write!(f, "{} of its peak: the peak was measured too low", format::percent(*share))
            }
            Doubt::NoRatio(change) => {
                write!(
                    f,
                    "no ratio: between it and its base the machine's speed changed, which alone makes {}",
                    format::change(*change)
                )
            }
        }
    }
}

/// Nanoseconds as seconds.
pub fn seconds(samples_ns: &[u64]) -> Vec<f64> {
    samples_ns.iter().map(|&ns| ns as f64 * 1e-9).collect()
}

/// TTFT in seconds: of enough processes the geometric mean of their medians, else the median of the samples. A published
/// figure stands alone, without samples or interval.
pub fn ttft(cell: &Cell) -> Option<Estimate> {
    match &cell.published {
        Some(published) => Some(Estimate { value: published.ttft_s, interval: None, samples: 0 }),
        None => central(cell, &seconds(&cell.samples_ns)),
    }
}

/// Processes behind a cell's figures; 0 for published ones. Fewer than [`levels::FEWEST_PROCESSES`] count as one.
pub fn processes(cell: &Cell) -> usize {
    match cell.process_ranges().len() {
        0 => 0,
        n if n < levels::FEWEST_PROCESSES => 1,
        n => n,
    }
}

/// The centre of a figure that every sample has: by processes if there are enough, else the median.
fn central(cell: &Cell, figures: &[f64]) -> Option<Estimate> {
    if processes(cell) > 1 && figures.len() == cell.samples_ns.len() {
        return stats::t_estimate(&levels::process_medians(cell, figures));
    }
    stats::median_estimate(figures)
}

/// The limits that hold for a cell: measured beside it, or else the run's.
pub fn limits_of<'a>(run: &'a Limits, cell: &'a Cell) -> &'a Limits {
    cell.limits.as_ref().filter(|l| !l.peaks.is_empty()).unwrap_or(run)
}

/// TTFT in seconds if every phase took the longer of its arithmetic at the measured peak and its bytes at the measured
/// bandwidth, and nothing else took time. Of a cold start, no less than storage takes to give the weights, by the rate that was
/// measured beside it; none if that is unknown.
pub fn roofline(limits: &Limits, cell: &Cell) -> Option<f64> {
    let limits = limits_of(limits, cell);
    let bytes_per_s = limits.read_gb_per_s? * 1e9;
    let bound = |cost: &Cost| Some(limits.arithmetic(cost, cell.compute_dtype)?.max(cost.bytes() as f64 / bytes_per_s));
    let bounds = cell.phases.iter().map(|p| bound(p.cost.as_ref()?));
    let warm = bounds.sum::<Option<f64>>().filter(|s| *s > 0.0)?;
    match &cell.cold {
        None => Some(warm),
        // Storage may give the weights while others are computed with, but no faster than it can.
        Some(_) => Some(warm.max(needed_bytes(cell)? as f64 / storage_rate(cell)?)),
    }
}

/// Bytes of weights that a cold start cannot do without: what its phases read, but no more than there is.
pub fn needed_bytes(cell: &Cell) -> Option<u64> {
    Some(cell.cost()?.weight_bytes.min(cell.cold.as_ref()?.file_bytes))
}

/// Bytes per second that storage can give: what was measured, or what a sample had of it if that is more.
fn storage_rate(cell: &Cell) -> Option<f64> {
    let cold = cell.cold.as_ref()?;
    let read =
        cold.read_bytes.iter().flatten().zip(&cell.samples_ns).map(|(bytes, ns)| *bytes as f64 / (*ns as f64 * 1e-9));
    Some(read.fold(cold.disk_gb_per_s? * 1e9, f64::max))
}

/// Seconds that a cold start takes beyond the same work right after it: the centre over its samples.
pub fn cold_extra(cell: &Cell) -> Option<Estimate> {
    let cold = cell.cold.as_ref()?;
    let extra: Vec<f64> =
        seconds(&cell.samples_ns).iter().zip(seconds(&cold.warm_ns)).map(|(all, warm)| all - warm).collect();
    // What varies about 0 has no logarithm.
    stats::median_estimate(&extra)
}

/// How many times the warm runs of `fast` the warm runs of `slow` take, right after cold starts in common rounds.
pub fn warm_ratio(limits: &Limits, slow: &Cell, fast: &Cell) -> Option<Estimate> {
    let warm = |cell: &Cell| Some(seconds(&cell.cold.as_ref()?.warm_ns));
    Some(quotients(limits, (slow, &warm(slow)?), (fast, &warm(fast)?))?.estimate)
}

/// Part of the weights that a cold start must have read, to be one: page by page some may not be needed.
const LEAST_READ: f64 = 0.8;

/// The time that exact operations take at the measured peaks over TTFT: at the cell's own peaks if they were measured again beside
/// it, else at the run's.
pub fn peak_share(limits: &Limits, cell: &Cell) -> Option<f64> {
    Some(limits_of(limits, cell).arithmetic(&cell.cost()?, cell.compute_dtype)? / ttft(cell)?.value)
}

/// A kernel that reads faster than the probe of reading by more than this shows that the probe found too little.
pub const PROBE_BEATEN: f64 = 0.03;

/// The part of a cell that read its weights fastest, with the GB/s that came from memory at least, over the rate of the probe: of the
/// run or of the cell's rounds, whichever is higher. As much as the machine's caches hold together is not counted; `None` where these
/// or the probe are unknown, of starts that are cold, and where nothing is left.
pub fn fastest_reading<'a>(machine: &Machine, limits: &Limits, cell: &'a Cell) -> Option<(f64, &'a PhaseRecord)> {
    let level = |c: &&Cache| (c.level, c.bytes);
    let last = machine.caches.iter().flatten().filter(|c| c.kind != "instruction").max_by_key(level)?;
    let instances = machine.logical_cores?.div_ceil(last.shared_by?.max(1));
    let caches = last.bytes.saturating_mul(instances.into());
    let beside = stats::median(cell.probes.as_ref().map_or(&[][..], |p| &p.read_gb_per_s));
    let probe = limits_of(limits, cell).read_gb_per_s?.max(beside.unwrap_or(0.0));
    let rate = |phase: &'a PhaseRecord| {
        let bytes = phase.cost?.weight_bytes.checked_sub(caches)?;
        let time = stats::median(&seconds(&phase.samples_ns)).filter(|t| *t > 0.0)?;
        Some((bytes as f64 * 1e-9 / time / probe, phase))
    };
    let parts = cell.phases.iter().chain(&cell.head).filter(|_| cell.cold.is_none());
    parts.filter_map(rate).max_by(|a, b| a.0.total_cmp(&b.0))
}

/// Seconds for each token after the first: of every sample the mean of its steps, of these the median.
pub fn step(cell: &Cell) -> Option<Estimate> {
    central(cell, &steps(cell))
}

/// Mean step of every sample, in seconds; empty if none was timed.
fn steps(cell: &Cell) -> Vec<f64> {
    let Some(decode) = cell.decode.as_ref().filter(|d| d.steps > 0) else { return Vec::new() };
    let mean = |steps: &[u64]| seconds(steps).iter().sum::<f64>() / steps.len() as f64;
    decode.samples_ns.chunks(decode.steps as usize).map(mean).collect()
}

/// Energy to the first token.
pub fn joules(cell: &Cell) -> Option<f64> {
    cell.energy.as_ref()?.joules
}

/// TTFT over the time for each token after the first: the median of the samples' own ratios.
pub fn ttft_steps(cell: &Cell) -> Option<Estimate> {
    let ratios: Vec<f64> =
        seconds(&cell.samples_ns).into_iter().zip(steps(cell)).map(|(all, step)| all / step).collect();
    central(cell, &ratios)
}

/// The auxiliary network of a KV prediction alone, at the same size and in the same way; of several, that of its group.
pub fn auxiliary_of<'a>(cells: impl Iterator<Item = &'a Cell>, kvp: &Cell) -> Option<&'a Cell> {
    let place = |c: &Cell| (c.batch, c.prompt, c.base.clone(), c.precision, c.extent, c.cold.is_some());
    let alone = cells.filter(|c| Some(&c.system) == kvp.aux.as_ref() && place(c) == place(kvp));
    let mut alone: Vec<&Cell> = alone.collect();
    alone.sort_by_key(|c| c.group != kvp.group);
    alone.first().copied()
}

/// How many times the steps of `base` those of `cell` take: paired as TTFT is.
pub fn step_ratio(limits: &Limits, cell: &Cell, base: &Cell) -> Option<Estimate> {
    Some(quotients(limits, (cell, &steps(cell)), (base, &steps(base)))?.estimate)
}

/// How many times `fast`'s phase takes `slow`'s phase: paired as TTFT is.
pub fn phase_ratio(limits: &Limits, slow: (&Cell, &str), fast: (&Cell, &str)) -> Option<Estimate> {
    let times = |(cell, name): (&Cell, &str)| Some(seconds(&cell.phase(name)?.samples_ns));
    Some(quotients(limits, (slow.0, &times(slow)?), (fast.0, &times(fast)?))?.estimate)
}

/// How many times `slow` takes the TTFT of `fast`: paired if both were measured in rounds of one group, else not.
pub fn ratio(limits: &Limits, slow: &Cell, fast: &Cell) -> Option<Speedup> {
    if slow.published.is_some() || fast.published.is_some() {
        let value = ttft(slow)?.value / ttft(fast)?.value;
        let estimate = Estimate { value, interval: None, samples: 0 };
        return Some(Speedup { estimate, pairing: Pairing::Published });
    }
    quotients(limits, (slow, &seconds(&slow.samples_ns)), (fast, &seconds(&fast.samples_ns)))
}

/// The ratio of two lists of times, one for each sample of their cells; `None` too if they were not measured in common
/// rounds and the machine's speed differed between them.
fn quotients(limits: &Limits, (a, of_a): (&Cell, &[f64]), (b, of_b): (&Cell, &[f64])) -> Option<Speedup> {
    if of_a.is_empty() || of_b.is_empty() {
        return None;
    }
    let places = mates(a, b);
    if places.is_empty() {
        if levels::speeds_differ(a, b, limits).is_some() {
            return None;
        }
        let estimate = match processes(a).min(processes(b)) {
            // Groups of their own have processes of their own.
            2.. => Mean::apart(
                &student::mean(&levels::process_medians(a, of_a))?,
                &student::mean(&levels::process_medians(b, of_b))?,
            )
            .ratio(processes(a).min(processes(b))),
            _ => stats::unpaired_ratio(of_a, of_b)?,
        };
        return Some(Speedup { estimate, pairing: Pairing::Unpaired });
    }
    let logs = levels::process_ratio_logs(a, of_a, of_b, &places);
    let estimate = if logs.len() >= levels::FEWEST_PROCESSES {
        stats::t_estimate(&logs)?
    } else {
        stats::paired_ratio(&places.into_iter().map(|(i, j)| (of_a[i], of_b[j])).collect::<Vec<_>>())?
    };
    Some(Speedup { estimate, pairing: Pairing::Paired })
}

/// Of every common round the process and the logarithm of the time of `slow` over that of `fast`; empty if they do not
/// share a group.
pub fn round_ratio_logs(slow: &Cell, fast: &Cell) -> Vec<(u32, f64)> {
    let process = |i: usize| slow.processes.as_ref().map_or(0, |p| p[i]);
    let log = |(i, j): (usize, usize)| (process(i), (slow.samples_ns[i] as f64 / fast.samples_ns[j] as f64).ln());
    mates(slow, fast).into_iter().map(log).collect()
}

/// The logarithms of `slow` over `fast`, one for each common process, if there are enough of them.
pub fn process_ratios(slow: &Cell, fast: &Cell) -> Option<Vec<f64>> {
    let of = |c: &Cell| seconds(&c.samples_ns);
    let logs = levels::process_ratio_logs(slow, &of(slow), &of(fast), &mates(slow, fast));
    (logs.len() >= levels::FEWEST_PROCESSES).then_some(logs)
}

/// Which samples were taken in the same rounds; empty if the cells do not share a group.
fn mates(a: &Cell, b: &Cell) -> Vec<(usize, usize)> {
    let (Some(rounds_a), Some(rounds_b)) = (&a.rounds, &b.rounds) else { return Vec::new() };
    if a.group != b.group {
        return Vec::new();
    }
    let mate = |(i, round)| Some((i, rounds_b.binary_search(round).ok()?));
    rounds_a.iter().enumerate().filter_map(mate).collect()
}

/// Reasons not to trust a cell; `cores` is what the machine has. None for published figures: nothing is known of them.
pub fn doubts(cell: &Cell, cores: Option<u32>) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    if cell.published.is_some() || cell.samples_ns.is_empty() {
        return doubts;
    }
    doubts.extend(cell.drift.as_ref().and_then(|d| d.change()).filter(|c| *c > MAX_DRIFT).map(Doubt::Drift));
    doubts.extend(ttft(cell).and_then(|t| t.spread()).filter(|s| *s > MAX_SPREAD).map(Doubt::Spread));
    doubts.extend(trend(cell).filter(|t| *t > MAX_TREND).map(Doubt::Trend));
    let faults = cell.memory.as_ref().and_then(|m| m.major_faults);
    // Reading from disk is what a cold start is about.
    doubts.extend(faults.filter(|n| *n > 0 && cell.cold.is_none()).map(Doubt::MajorFaults));
    let counted = cell.cold.as_ref().filter(|cold| !cold.read_at_least);
    let read = counted.and_then(|cold| cold.read_bytes.as_ref()?.iter().min().copied());
    if let (Some(read), Some(needed)) = (read, needed_bytes(cell))
        && (read as f64) < LEAST_READ * needed as f64
    {
        doubts.push(Doubt::NotCold(read, needed));
    }
    if let (Some(load), Some(cores)) = (cell.load_before.into_iter().chain(cell.load_after).reduce(f64::max), cores)
        && load > f64::from(cores) + 0.75
    {
        doubts.push(Doubt::Load(load, cores));
    }
    doubts.extend(cell.throttled().filter(|n| *n > 0).map(Doubt::Throttled));
    if cell.gate.is_none() {
        doubts.push(Doubt::NoGate);
    }
    doubts
}

/// Whether the machine disturbed a cell so that it is worth measuring again: it moved, or the interval is wide.
pub fn unstable(cell: &Cell) -> bool {
    doubts(cell, None).iter().any(|d| matches!(d, Doubt::Drift(_) | Doubt::Spread(_)))
}

/// How much slower the later half is, if that is beyond chance: of several processes, whose times differ, the later half of
/// each against its own earlier half.
fn trend(cell: &Cell) -> Option<f64> {
    let samples = seconds(&cell.samples_ns);
    if samples.len() < 8 {
        return None;
    }
    let halves = |range: Range<usize>| samples[range.clone()].split_at(range.len() / 2);
    let change = |(early, late): (&[f64], &[f64])| Some(stats::median(late)? / stats::median(early)?);
    let processes = cell.process_ranges();
    if processes.len() > 1 {
        let changes: Vec<f64> = processes.into_iter().filter_map(|p| change(halves(p)).map(f64::ln)).collect();
        let mean = student::mean(&changes).filter(|mean| mean.p(0.0) < 0.01)?;
        return Some(mean.value.exp() - 1.0);
    }
    let (early, late) = halves(0..samples.len());
    (stats::mann_whitney(early, late)?.p < 0.01).then_some(change((early, late))? - 1.0)
}

/// `a / b`, if both are known and b is not 0.
fn quotient(a: Option<u64>, b: Option<u64>) -> Option<f64> {
    let (a, b) = (a?, b?);
    (a > 0 && b > 0).then(|| a as f64 / b as f64)
}

/// The row of one cell of a record.
pub fn row<'a>(record: &'a Record, cell: &'a Cell) -> Row<'a> {
    let ttft = ttft(cell);
    let base = record.base_of(cell);
    let flops = |c: &Cell| c.cost().map(|cost| cost.flops.total());
    let rate = |amount: Option<f64>| Some(amount? / ttft?.value);
    let gflops = rate(flops(cell).map(|f| f as f64 * 1e-9));
    let peak_share = peak_share(&record.run.limits, cell);
    let mut doubts = doubts(cell, record.run.machine.logical_cores);
    doubts.extend(peak_share.filter(|share| *share > 1.0).map(Doubt::AbovePeak));
    let speedup = base.and_then(|base| ratio(&record.run.limits, base, cell));
    let flops_reduction = base.and_then(|base| quotient(flops(base), flops(cell)));
    if let Some(base) = base.filter(|_| speedup.is_none()) {
        doubts.extend(levels::speeds_differ(base, cell, &record.run.limits).map(Doubt::NoRatio));
    }
    let roofline = |cell: &Cell| roofline(&record.run.limits, cell);
    Row {
        cell,
        limits: &record.run.limits,
        ttft,
        tokens_per_s: rate(Some(f64::from(cell.batch) * f64::from(cell.prompt))),
        gflops,
        peak_share,
        speedup,
        flops_reduction,
        paper_flops_reduction: match &cell.published {
            Some(published) => published.flops_reduction,
            None => base.and_then(|base| quotient(base.paper_flops, cell.paper_flops)),
        },
        efficiency: speedup.zip(flops_reduction).map(|(s, reduction)| s.estimate.scaled(1.0 / reduction)),
        roofline: roofline(cell),
        roofline_reduction: base.and_then(|base| Some(roofline(base)? / roofline(cell)?)),
        step: step(cell),
        step_ratio: base.and_then(|base| step_ratio(&record.run.limits, cell, base)),
        ttft_steps: ttft_steps(cell),
        energy_reduction: base.and_then(|base| Some(joules(base)? / joules(cell)?)),
        processes: processes(cell),
        modes: modes::of(cell),
        doubts,
    }
}

/// The rows of a record: groups in the order first measured, within a group the base first, then as measured.
pub fn rows(record: &Record) -> Vec<Row<'_>> {
    let mut groups: Vec<&str> = Vec::new();
    for cell in &record.cells {
        if !groups.contains(&cell.group.as_str()) {
            groups.push(&cell.group);
        }
    }
    let mut cells: Vec<&Cell> = record.cells.iter().collect();
    cells.sort_by_key(|c| (groups.iter().position(|g| *g == c.group), c.kind != Kind::Base));
    cells.into_iter().map(|cell| row(record, cell)).collect()
}

/// The largest change of the speed probe over a cell, and that cell.
pub fn largest_drift(record: &Record) -> Option<(f64, &Cell)> {
    let changes = record.cells.iter().filter_map(|c| Some((c.drift.as_ref()?.change()?, c)));
    changes.max_by(|a, b| a.0.total_cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        samples,
        schema::{Clocks, Drift, Dtype},
    };

    fn find<'a>(rows: &'a [Row<'a>], id: &str) -> &'a Row<'a> {
        rows.iter().find(|r| r.cell.id == id).unwrap()
    }

    #[test]
    fn rates_and_ratios_follow_from_times_and_counts() {
        let record = samples::run();
        let rows = rows(&record);
        let kvp = find(&rows, "ttft/OE1.1B-KVP-C-450M/kvp/b1/p64");
        let ttft = kvp.ttft.unwrap();
        let flops = kvp.cell.cost().unwrap().flops.total() as f64;
        assert_eq!(kvp.tokens_per_s.unwrap(), 64.0 / ttft.value);
        assert!((kvp.gflops.unwrap() - flops * 1e-9 / ttft.value).abs() < 1e-9);
        assert!((kvp.peak_share.unwrap() - kvp.gflops.unwrap() / 468.0).abs() < 1e-12);
        let speedup = kvp.speedup.unwrap();
        assert_eq!((speedup.pairing, speedup.estimate.samples), (Pairing::Paired, 6));
        let efficiency = kvp.efficiency.unwrap();
        assert!((efficiency.value * kvp.flops_reduction.unwrap() - speedup.estimate.value).abs() < 1e-12);
        let base = find(&rows, "ttft/OE1.1B/base/b1/p64");
        assert_eq!((base.speedup.unwrap().estimate.value, base.flops_reduction), (1.0, Some(1.0)));
    }

    #[test]
    fn the_roofline_takes_the_longer_of_arithmetic_and_memory_in_every_phase() {
        let record = samples::run();
        let rows = rows(&record);
        let kvp = find(&rows, "ttft/OE1.1B-KVP-C-450M/kvp/b1/p64");
        let bound = |name: &str| {
            let cost = kvp.cell.phase(name).unwrap().cost.unwrap();
            (cost.flops.total() as f64 / 468e9, cost.bytes() as f64 / 40e9)
        };
        let ((auxiliary, _), (_, step)) = (bound("auxiliary"), bound("base_step"));
        let (flops, bytes) = bound("prediction");
        let ideal = auxiliary + flops.max(bytes) + step;
        assert!((kvp.roofline.unwrap() / ideal - 1.0).abs() < 1e-12);
        // The sample machine reaches 90% of either limit, one after the other.
        assert!(kvp.ttft.unwrap().value > ideal / 0.9);
        let base = find(&rows, "ttft/OE1.1B/base/b1/p64");
        assert_eq!(kvp.roofline_reduction, Some(base.roofline.unwrap() / kvp.roofline.unwrap()));
        assert!(kvp.roofline_reduction < kvp.flops_reduction, "the step is bound by memory");
        let mut unknown = record.clone();
        unknown.run.limits.read_gb_per_s = None;
        assert_eq!(row(&unknown, &unknown.cells[0]).roofline, None);
    }

    /// Maps in F32 count at its peak, which is about half of BF16's in the sample; in older records all are of one type.
    #[test]
    fn products_count_at_the_peak_of_their_type() {
        let mut record = samples::run();
        let index = record.cells.iter().position(|c| c.id == "ttft/OE1.1B-KVP-C-450M/kvp/b1/p256").unwrap();
        let of = |record: &Record| {
            let row = row(record, &record.cells[index]);
            (row.peak_share.unwrap() * row.ttft.unwrap().value, row.roofline.unwrap())
        };
        let before = of(&record);
        let phases = &mut record.cells[index].phases;
        phases.iter_mut().for_each(|p| p.cost.as_mut().unwrap().f32_flops = Some(0));
        let same = of(&record);
        assert!((same.0 / before.0 - 1.0).abs() < 1e-12 && same.1 == before.1);
        // As many as make the phase one of arithmetic.
        let cost = record.cells[index].phases[1].cost.as_mut().unwrap();
        cost.flops.prediction *= 10;
        cost.f32_flops = Some(0);
        let (bf16, flops) = (of(&record), cost_of(&record, index));
        record.cells[index].phases[1].cost.as_mut().unwrap().f32_flops = Some(flops);
        let f32 = of(&record);
        let more = flops as f64 * (1.0 / 233e9 - 1.0 / 468e9);
        assert!((f32.0 - bf16.0 - more).abs() < 1e-9 * more, "{bf16:?} {f32:?} {more}");
        assert!(f32.1 > bf16.1, "{bf16:?} {f32:?}");
        // Without the peak of a type that is used, nothing is known.
        record.run.limits.peaks.retain(|p| p.dtype != Dtype::F32);
        let row = row(&record, &record.cells[index]);
        assert_eq!((row.peak_share, row.roofline), (None, None));
    }

    fn cost_of(record: &Record, index: usize) -> u64 {
        record.cells[index].phases[1].cost.unwrap().flops.prediction
    }

    #[test]
    fn steps_are_compared_with_the_bases() {
        let record = samples::run();
        let rows = rows(&record);
        let kvp = find(&rows, "ttft/OE1.1B-KVP-C-450M/kvp/b1/p64");
        let ratio = kvp.step_ratio.unwrap();
        assert!((ratio.value - 1.0).abs() < 0.01 && ratio.samples == 6, "{ratio:?}");
        assert!(kvp.step.unwrap().value > 0.0);
        let (ttft, steps) = (kvp.ttft.unwrap(), kvp.ttft_steps.unwrap());
        assert!((steps.value * kvp.step.unwrap().value / ttft.value - 1.0).abs() < 0.01 && steps.interval.is_some());
        let aux = find(&rows, "ttft/OE450M/aux/b1/p64");
        assert!(aux.step_ratio.unwrap().value < 0.6);
        let base = find(&rows, "ttft/OE1.1B/base/b1/p64").cell;
        assert_eq!(step_ratio(&Limits::default(), &Cell { decode: None, ..kvp.cell.clone() }, base), None);
        assert_eq!(
            step_ratio(&Limits::default(), &Cell { rounds: None, ..kvp.cell.clone() }, base).map(|r| r.samples),
            Some(6)
        );
    }

    #[test]
    fn only_samples_of_common_rounds_are_paired() {
        let (slow, fast) = (samples::cell("OE1.1B", 1, 64, 10), samples::cell("OE450M", 1, 64, 10));
        let mut late = fast.clone();
        late.rounds = late.rounds.map(|rounds| rounds.into_iter().map(|r| r + 4).collect());
        assert_eq!(ratio(&Limits::default(), &slow, &fast).unwrap().estimate.samples, 10);
        assert_eq!(ratio(&Limits::default(), &slow, &late).unwrap().estimate.samples, 6);
        assert_eq!(ratio(&Limits::default(), &slow, &late).unwrap().pairing, Pairing::Paired);
        let elsewhere = Cell { group: "other".into(), ..fast.clone() };
        assert_eq!(ratio(&Limits::default(), &slow, &elsewhere).unwrap().pairing, Pairing::Unpaired);
        let criterion = Cell { rounds: None, ..fast };
        assert_eq!(ratio(&Limits::default(), &slow, &criterion).unwrap().pairing, Pairing::Unpaired);
    }

    #[test]
    fn a_speed_weighs_as_much_as_the_time_that_it_bounds() {
        let limits = samples::run().run.limits;
        // Memory, then arithmetic, becomes faster by half.
        let pair = |prompt: u32, drift: Drift, of: fn(&mut Drift)| {
            let mut cells = ["OE1.1B", "OE450M"].map(|system| samples::cell(system, 4, prompt, 10));
            for cell in &mut cells {
                (cell.rounds, cell.round_positions, cell.drift) = (None, None, Some(drift.clone()));
            }
            cells[1].drift.as_mut().map(of);
            ratio(&limits, &cells[0], &cells[1])
        };
        let drift = Drift {
            before_gflops: Some(200.0),
            after_gflops: Some(200.0),
            before_read_gb_per_s: Some(40.0),
            after_read_gb_per_s: Some(40.0),
        };
        let memory = |d: &mut Drift| (d.before_read_gb_per_s, d.after_read_gb_per_s) = (Some(60.0), Some(60.0));
        let arithmetic = |d: &mut Drift| (d.before_gflops, d.after_gflops) = (Some(300.0), Some(300.0));
        assert!(pair(256, drift.clone(), memory).is_some(), "arithmetic bounds both");
        assert_eq!(pair(256, drift.clone(), arithmetic), None);
        assert_eq!(pair(1, drift.clone(), memory), None, "memory bounds both");
        assert!(pair(1, drift, arithmetic).is_some());
    }

    #[test]
    fn cells_taken_at_other_speeds_of_the_machine_give_no_ratio() {
        let at = |system: &str, before: f64, after: f64| {
            let mut cell = samples::cell(system, 1, 64, 10);
            (cell.rounds, cell.round_positions) = (None, None);
            cell.drift = Some(Drift { before_gflops: Some(before), after_gflops: Some(after), ..Drift::default() });
            cell
        };
        let base = at("OE1.1B", 200.0, 204.0);
        assert!(ratio(&Limits::default(), &base, &at("OE450M", 203.0, 207.0)).is_some(), "the intervals overlap");
        assert!(ratio(&Limits::default(), &base, &at("OE450M", 206.0, 208.0)).is_some(), "less than 5% apart");
        assert_eq!(ratio(&Limits::default(), &base, &at("OE450M", 260.0, 262.0)), None);
        // What cargo bench saw: 89% within one of the two.
        assert_eq!(ratio(&Limits::default(), &base, &at("OE450M", 204.0, 386.0)), None);
        let record = Record { cells: vec![base.clone(), at("OE450M", 260.0, 262.0)], ..Record::default() };
        let row = row(&record, &record.cells[1]);
        assert!(row.speedup.is_none() && row.efficiency.is_none());
        assert!(
            row.doubts.iter().any(|d| matches!(d, Doubt::NoRatio(c) if (c - 0.292).abs() < 0.01)),
            "{:?}",
            row.doubts
        );
        assert!(
            crate::terminal::render(&record, None).contains("A speedup is missing where the machine's speed differed")
        );
        // In common rounds the machine's speed cancels.
        let (mut paired, mut with) = (base, at("OE450M", 260.0, 262.0));
        paired.rounds = Some((0..10).collect());
        with.rounds = paired.rounds.clone();
        assert!(ratio(&Limits::default(), &paired, &with).is_some());
    }

    #[test]
    fn figures_of_enough_processes_are_students_t_over_them() {
        let record = samples::occasions(1, 5, 7, [0.0, 0.02, 0.01], 3).remove(0);
        let (base, small) = (&record.cells[0], &record.cells[1]);
        let logs = levels::process_logs(base);
        assert_eq!((logs.len(), ttft(base)), (5, stats::t_estimate(&logs)));
        let speedup = ratio(&Limits::default(), base, small).unwrap().estimate;
        assert_eq!((speedup.samples, processes(base)), (5, 5));
        assert_eq!(stats::t_estimate(&process_ratios(base, small).unwrap()), Some(speedup));
        let mut two = base.clone();
        two.processes.as_mut().unwrap().iter_mut().for_each(|p| *p /= 3);
        assert_eq!((processes(&two), ttft(&two).unwrap().samples), (1, 35), "two processes count as one");
    }

    #[test]
    fn a_cell_is_measured_by_its_own_limits_and_faster_than_its_peak_is_doubted() {
        let mut record = samples::run();
        assert!(row(&record, &record.cells[0]).peak_share.unwrap() < 1.0);
        record.run.limits.peaks.iter_mut().for_each(|p| p.gflops /= 2.0);
        let doubts = row(&record, &record.cells[0]).doubts;
        assert!(
            doubts.iter().any(|d| d.to_string().ends_with("of its peak: the peak was measured too low")),
            "{doubts:?}"
        );
        let mut own = record.run.limits.clone();
        own.peaks.iter_mut().for_each(|p| p.gflops *= 2.0);
        record.cells[0].limits = Some(own);
        assert!(row(&record, &record.cells[0]).peak_share.unwrap() < 1.0);
    }

    #[test]
    fn slower_processes_are_no_trend_but_a_slowing_of_each_is() {
        let mut cell = samples::occasions(1, 5, 6, [0.0, 0.0, 0.002], 3).remove(0).cells[0].clone();
        let trend_of = |cell: &Cell| doubts(cell, None).into_iter().find(|d| matches!(d, Doubt::Trend(_)));
        let scale = |cell: &mut Cell, percent: fn(usize) -> u64| {
            let times = cell.samples_ns.iter_mut().enumerate();
            times.for_each(|(i, ns)| *ns = *ns * (100 + percent(i)) / 100);
        };
        // Each process is 2% slower than the one before it, from its first round to its last.
        scale(&mut cell, |i| 2 * (i as u64 / 6));
        assert_eq!(trend_of(&cell), None);
        scale(&mut cell, |i| if i % 6 < 3 { 0 } else { 6 });
        assert!(matches!(trend_of(&cell), Some(Doubt::Trend(t)) if (t - 0.06).abs() < 0.01), "{:?}", trend_of(&cell));
    }

    #[test]
    fn each_doubt_has_its_cause() {
        let good = samples::cell("OE1.1B", 1, 64, 12);
        assert_eq!(doubts(&good, Some(2)), []);
        let moved = Drift { before_gflops: Some(100.0), after_gflops: Some(94.0), ..Drift::default() };
        assert!(matches!(doubts(&Cell { drift: Some(moved), ..good.clone() }, None)[..], [Doubt::Drift(_)]));
        assert_eq!(doubts(&Cell { gate: None, ..good.clone() }, None), [Doubt::NoGate]);
        assert_eq!(doubts(&Cell { load_after: Some(5.0), ..good.clone() }, Some(2)), [Doubt::Load(5.0, 2)]);
        let clocks = Clocks { throttled: Some(vec![0, 2, 1]), ..Clocks::default() };
        assert_eq!(doubts(&Cell { clocks: Some(clocks), ..good.clone() }, None), [Doubt::Throttled(3)]);
        let mut cold = good.clone();
        cold.memory.as_mut().unwrap().major_faults = Some(3);
        assert_eq!(doubts(&cold, None), [Doubt::MajorFaults(3)]);
        let mut hot = good.clone();
        hot.phases.clear();
        hot.samples_ns.iter_mut().skip(6).for_each(|ns| *ns = *ns * 106 / 100);
        assert!(
            matches!(doubts(&hot, None)[..], [Doubt::Trend(t)] if (t - 0.06).abs() < 0.01),
            "{:?}",
            doubts(&hot, None)
        );
        let mut noisy = good.clone();
        noisy.samples_ns.iter_mut().step_by(2).for_each(|ns| *ns = *ns * 13 / 10);
        assert!(matches!(doubts(&noisy, None)[..], [Doubt::Spread(_)]), "{:?}", doubts(&noisy, None));
        // Only what measuring again can mend makes a cell unstable.
        assert!(unstable(&noisy) && !unstable(&hot) && !unstable(&cold) && !unstable(&good));
        assert_eq!(doubts(&Cell { samples_ns: vec![], gate: None, ..good }, None), []);
    }
}
