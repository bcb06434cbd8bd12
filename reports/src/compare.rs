//! Runs or machines side by side, on equal work only.
//!
//! Two cells are compared if their scenario hashes are equal: kind, system, base, auxiliary, batch and prompt. Cells
//! that differ in the type of weights or activations, in how much of the network is computed, or in their exact FLOPs, do
//! different work and are refused; other threads are a difference between machines and are said aloud; what one side does not know is
//! warned about. The first side is what the others are compared with.
//!
//! A side is any number of records, each of which gives one value for a workload: the mean over its processes of the
//! logarithm of the median. Faster or slower needs the part between occasions, from the spread of several records or from
//! the machine's calibration; without it the difference is shown and no word falls.

use std::{collections::BTreeSet, fmt};

use crate::{
    calibration::{self, Calibration, same_machine},
    decide::{self, Sample},
    format, levels,
    schema::{Cell, Dtype, Limits, Machine, Record},
    stats::{
        self, Estimate,
        student::{self, Mean},
    },
    summary::{self, Row},
};

/// Largest p-value that lets a difference stand.
pub const ALPHA: f64 = 1.0 - stats::LEVEL;

/// A run with the name it goes by in a report.
#[derive(Clone, Debug)]
pub struct Side<'a> {
    /// Such as a file name without its ending.
    pub name: &'a str,
    /// Its records, at least one; each gives one value for a workload.
    pub records: Vec<&'a Record>,
}

/// Runs side by side.
#[derive(Clone, Debug)]
pub struct Comparison<'a> {
    /// The runs; the first is the reference.
    pub sides: Vec<Side<'a>>,
    /// Workloads that the first side and at least one other measured, in the first side's order.
    pub lines: Vec<Line<'a>>,
    /// For each side but the first: means over all comparable workloads.
    pub means: Vec<Means>,
    /// Workloads on all sides but the first together.
    pub tests: usize,
    /// Chance that so many of them without any difference raise an alarm somewhere at 5% each, if they were independent.
    pub family_rate: f64,
    /// Commands that would decide what is not decided.
    pub commands: Vec<String>,
    /// What limits the comparison.
    pub warnings: Vec<String>,
}

/// One workload on all sides.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// Each side's figures, of its first record that has them, with the doubts of all that have; `None` if it has none that are
    /// comparable.
    pub rows: Vec<Option<Row<'a>>>,
    /// Each side's TTFT in seconds, over all its records.
    pub seconds: Vec<Option<f64>>,
    /// Each side but the first against the first.
    pub versus: Vec<Option<Versus>>,
}

impl<'a> Line<'a> {
    /// The first side's cell.
    pub fn cell(&self) -> &'a Cell {
        // The first side always has one: lines are made from its cells.
        self.rows[0].as_ref().expect("a line starts from the first side's row").cell
    }
}

/// One side against the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Versus {
    /// TTFT of the first by TTFT of this side: above 1, this side is faster. Against a published figure, the interval is
    /// of the measured side's spread alone.
    pub ratio: Estimate,
    /// Two-sided p-value of no difference; `None` if the part between occasions is unknown.
    pub p: Option<f64>,
    /// The same adjusted by Holm's rule for all workloads of all sides.
    pub p_holm: Option<f64>,
    /// What that comes to.
    pub verdict: Verdict,
    /// Whether a side is a published figure, so that the spread is the other side's alone.
    pub single: bool,
    /// Records of the first and of this side.
    pub records: [usize; 2],
    /// The ratio that the machine's speed beside the cells would give by itself; `None` between different machines.
    pub by_probes: Option<f64>,
    /// `ratio` if both machines had the same peak: this side's share of its own peak by the first side's.
    pub by_peak: Option<f64>,
    /// `ratio` if both machines had the same read bandwidth.
    pub by_bandwidth: Option<f64>,
}

/// Which side is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This side takes less time than the first.
    Faster,
    /// This side takes more time than the first.
    Slower,
    /// No difference beyond noise.
    WithinNoise,
    /// No side has a spread: the ratio is all that can be said.
    NoSpread,
    /// How far occasions lie apart is unknown, so no word falls.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Faster => "faster",
            Verdict::Slower => "slower",
            Verdict::WithinNoise => "within noise",
            Verdict::NoSpread => "no spread known",
            Verdict::Unknown => "not decided",
        })
    }
}

/// Geometric means of one side against the first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Means {
    /// Workloads behind them: all but those whose figures have known faults.
    pub workloads: usize,
    /// Of [`Versus::ratio`].
    pub ratio: Option<f64>,
    /// Of [`Versus::by_peak`], if known for all.
    pub by_peak: Option<f64>,
    /// Of [`Versus::by_bandwidth`], if known for all.
    pub by_bandwidth: Option<f64>,
}

/// Why runs cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// Fewer than two.
    #[error("a comparison needs at least two runs, and {0} was given")]
    TooFew(usize),
    /// A side without records.
    #[error("`{0}` has no records: give at least one for each side")]
    Empty(String),
    /// Fewer than three pairs of processes.
    #[error(
        "a judgement needs at least three pairs of processes, and {0} were given: ask for ten, which find 10% as a rule"
    )]
    TooFewPairs(usize),
    /// No workload in common.
    #[error("`{first}` and `{other}` have no comparable workload in common: {reason}")]
    Nothing {
        /// The first run.
        first: String,
        /// The run without a workload in common.
        other: String,
        /// What was found.
        reason: String,
    },
}

/// Puts runs side by side.
///
/// # Errors
/// Fewer than two runs, or one that has no comparable workload in common with the first.
pub fn compare<'a>(sides: &[Side<'a>], calibrations: &[Calibration]) -> Result<Comparison<'a>, CompareError> {
    let [first, others @ ..] = sides else { return Err(CompareError::TooFew(0)) };
    if others.is_empty() {
        return Err(CompareError::TooFew(1));
    }
    if let Some(empty) = sides.iter().find(|s| s.records.is_empty()) {
        return Err(CompareError::Empty(empty.name.into()));
    }
    let mut warnings = BTreeSet::new();
    let mut refused = vec![BTreeSet::new(); others.len()];
    let mut lines: Vec<Line> = Vec::new();
    let mut seen = BTreeSet::new();
    let of_record = |(i, record): (usize, &&'a Record)| record.cells.iter().map(move |cell| (i, cell));
    let cells = first.records.iter().enumerate().flat_map(of_record);
    for (i, cell) in cells.filter(|(_, c)| summary::ttft(c).is_some()) {
        // A control measures the same again, and a later record what an earlier one has.
        let key = (&cell.scenario_hash, cell.precision, cell.extent.map(|e| e.name()), cell.threads, &cell.backend);
        let earlier = |record: &&Record| mate(cell, record, &mut BTreeSet::new()).is_some();
        if !seen.insert(key) || first.records[..i].iter().any(earlier) {
            continue;
        }
        let ours = gather(cell, first, &mut BTreeSet::new());
        let mut rows = vec![row(&ours)];
        let mut seconds = vec![side_seconds(&ours)];
        let mut versus = Vec::new();
        for (side, refused) in others.iter().zip(&mut refused) {
            let theirs = gather(cell, side, refused);
            for ((_, ours), (_, theirs)) in ours.iter().flat_map(|a| theirs.iter().map(move |b| (a, b))) {
                warn(first, side, ours, theirs, &mut warnings);
            }
            warnings.extend(forced(first, side, &ours, &theirs));
            let apart = apart(&ours, &theirs);
            versus.push(against(&ours, &theirs, apart, calibrations));
            seconds.push(side_seconds(&theirs));
            rows.push(row(&theirs));
            if apart && ours.len().max(theirs.len()) > 1 {
                warnings.insert(format!(
                    "all records of one of {} and {} were taken before all of the other: what the machine changed in \
                     between counts as their difference; take them in turn",
                    first.name, side.name
                ));
            }
        }
        if versus.iter().any(Option::is_some) {
            lines.push(Line { rows, seconds, versus });
        }
    }
    adjust(&mut lines);
    let mut means = Vec::new();
    for (i, (side, refused)) in others.iter().zip(refused).enumerate() {
        let versus: Vec<&Versus> = lines.iter().filter_map(|l| l.versus[i].as_ref()).collect();
        let list = refused.into_iter().collect::<Vec<_>>().join("; ");
        if versus.is_empty() {
            let reason = match list.is_empty() {
                true => format!(
                    "no cell of equal kind, system, base, auxiliary, batch and prompt. {}; {}. Measure a size (batch x \
                     prompt) and systems that both have",
                    holds(first),
                    holds(side)
                ),
                false => format!("{list}. Measure one of them again as the other was"),
            };
            return Err(CompareError::Nothing { first: first.name.into(), other: side.name.into(), reason });
        }
        if !list.is_empty() {
            warnings.insert(format!("{}: some cells are left out: {list}", side.name));
        }
        let faulty = |l: &Line| [&l.rows[0], &l.rows[i + 1]].into_iter().flatten().any(|row| row.cell.has_faults());
        let all = versus.len();
        let versus: Vec<&Versus> = lines.iter().filter(|l| !faulty(l)).filter_map(|l| l.versus[i].as_ref()).collect();
        if versus.len() < all {
            let n = all - versus.len();
            warnings.insert(format!(
                "{}: {n} of {all} workloads are left out of the mean, because a figure has known faults",
                side.name
            ));
        }
        let mean = |of: fn(&Versus) -> Option<f64>| {
            versus.iter().map(|v| of(v)).collect::<Option<Vec<f64>>>().and_then(|v| stats::geometric_mean(&v))
        };
        means.push(Means {
            workloads: versus.len(),
            ratio: mean(|v| Some(v.ratio.value)),
            by_peak: mean(|v| v.by_peak),
            by_bandwidth: mean(|v| v.by_bandwidth),
        });
    }
    for (i, side) in sides.iter().enumerate() {
        let rows: Vec<&Row> = lines.iter().filter_map(|l| l.rows[i].as_ref()).collect();
        let doubted = rows.iter().filter(|r| !r.doubts.is_empty()).count();
        if doubted > 0 {
            warnings.insert(format!(
                "{}: {doubted} of {} cells are not to be trusted ((!) in the table); the run's own report says why",
                side.name,
                rows.len()
            ));
        }
        let unknown = |limits: &Limits| limits.peaks.is_empty() || limits.read_gb_per_s.is_none();
        if side.records.iter().any(|record| unknown(&record.run.limits)) {
            warnings
                .insert(format!("{} does not record its peak and bandwidth: nothing is normalised by them", side.name));
        }
    }
    for calibration in calibrations {
        let machines: Vec<&Machine> = sides.iter().flat_map(|s| &s.records).map(|r| &r.run.machine).collect();
        if !machines.iter().any(|machine| calibration.fits(machine)) {
            let different = machines.into_iter().map(|machine| different(&calibration.machine, machine));
            let different: BTreeSet<String> = different.collect();
            let different = different.into_iter().collect::<Vec<_>>().join(", or ");
            warnings.insert(format!("a calibration is not used, because it is of another machine: {different}"));
        }
    }
    let tests = lines.iter().flat_map(|l| &l.versus).flatten().count();
    let family_rate = 1.0 - stats::LEVEL.powi(tests as i32);
    let commands = commands(sides, &lines);
    let warnings = warnings.into_iter().collect();
    Ok(Comparison { sides: sides.to_vec(), lines, means, tests, family_rate, commands, warnings })
}

/// Records that can stand on one side together: by machine, revision (and whether it was modified) and settings that
/// change times. Each group has a name and the places of its records, in order of their first.
pub fn group(runs: &[(String, Record)]) -> Vec<(String, Vec<usize>)> {
    let alike = |a: &Record, b: &Record| {
        let settings = |r: &Record| {
            let s = &r.run.settings;
            (
                s.isa.clone(),
                s.backend.clone(),
                s.kernel.clone(),
                s.threads,
                s.precision,
                s.extent,
                s.seed,
                s.sampler,
                s.start.unwrap_or_default(),
            )
        };
        let unequal = |(a, b): (Option<bool>, Option<bool>)| a.zip(b).is_some_and(|(a, b)| a != b);
        // Of records of earlier versions, a kernel that was asked for shows in the cells alone.
        let kernels = |cell: &Cell| {
            let twin = b.cells.iter().find(|c| c.id == cell.id);
            twin.is_some_and(|twin| {
                !cell.kernels.is_empty() && !twin.kernels.is_empty() && cell.kernels != twin.kernels
            })
        };
        same_machine(&a.run.machine, &b.run.machine)
            && a.run.git == b.run.git
            && settings(a) == settings(b)
            && !unequal((a.pinned(), b.pinned()))
            && !a.cells.iter().any(kernels)
    };
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, (_, record)) in runs.iter().enumerate() {
        match groups.iter_mut().find(|g| alike(&runs[g[0]].1, record)) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    let name = |group: &Vec<usize>| {
        let (first, record) = &runs[group[0]];
        let revision = record.run.git.as_ref().map(|g| {
            let short = g.revision.get(..8).unwrap_or(&g.revision);
            format!(" at {short}{}", if g.dirty == Some(true) { " (modified)" } else { "" })
        });
        let more = if group.len() > 1 { format!(" and {} more", group.len() - 1) } else { String::new() };
        format!("{first}{more}{}", revision.unwrap_or_default())
    };
    groups.into_iter().map(|group| (name(&group), group)).collect()
}

/// How a machine differs from that of a calibration, in words.
fn different(calibrated: &Machine, machine: &Machine) -> String {
    let unknown = || format::UNKNOWN.to_owned();
    let memory = calibration::memory_alike(calibrated, machine);
    let of = |m: &Machine| {
        let number = |n: Option<u32>| n.map_or_else(unknown, |n| n.to_string());
        [
            ("CPU", m.cpu_model.clone().unwrap_or_else(unknown)),
            ("architecture", m.arch.clone().unwrap_or_else(unknown)),
            ("physical cores", number(m.physical_cores)),
            ("logical cores", number(m.logical_cores)),
            ("memory", if memory { String::new() } else { m.memory_total_bytes.map_or_else(unknown, format::bytes) }),
        ]
    };
    let pairs = of(calibrated).into_iter().zip(of(machine));
    let unequal: Vec<String> = pairs
        .filter(|((_, there), (_, here))| there != here)
        .map(|((what, there), (_, here))| format!("{what} {there} there, {here} here"))
        .collect();
    if unequal.is_empty() { "other instructions, or another hypervisor".into() } else { unequal.join(", ") }
}

/// The systems and sizes of a run, in words.
fn holds(side: &Side) -> String {
    const MOST: usize = 12;
    let list = |all: Vec<String>| {
        let more = if all.len() > MOST { format!(" and {} more", all.len() - MOST) } else { String::new() };
        all[..all.len().min(MOST)].join(", ") + &more
    };
    let cells = || side.records.iter().flat_map(|r| &r.cells);
    if cells().next().is_none() {
        return format!("{} has no cells", side.name);
    }
    let systems: BTreeSet<&String> = cells().map(|c| &c.system).collect();
    let sizes: BTreeSet<(u32, u32)> = cells().map(|c| (c.batch, c.prompt)).collect();
    let sizes = list(sizes.into_iter().map(|(batch, prompt)| format!("{batch} x {prompt}")).collect());
    format!("{} has {} at {sizes}", side.name, list(systems.into_iter().cloned().collect()))
}

/// The cell of `record` that does the same work; why not, if all that ask for the same do it differently.
fn mate<'a>(cell: &Cell, record: &'a Record, refused: &mut BTreeSet<String>) -> Option<&'a Cell> {
    let same = |c: &&Cell| c.scenario_hash == cell.scenario_hash && summary::ttft(c).is_some();
    let mut candidates: Vec<&Cell> = record.cells.iter().filter(same).collect();
    let mut reasons = Vec::new();
    candidates.retain(|c| match difference(cell, c) {
        Some(reason) => {
            reasons.push(reason);
            false
        }
        None => true,
    });
    if candidates.is_empty() {
        let place = |c: &Cell| (c.kind, c.system.clone(), c.base.clone(), c.aux.clone(), c.batch, c.prompt);
        let other = |c: &&Cell| c.cold.is_some() != cell.cold.is_some() && place(c) == place(cell);
        reasons.extend(record.cells.iter().find(other).map(|there| {
            let start = |c: &Cell| if c.cold.is_some() { "a cold start" } else { "a warm one" };
            format!("{} against {}, which are never compared", start(cell), start(there))
        }));
        refused.extend(reasons);
    }
    // The same threads, backend and instruction set if there are such.
    let likeness = |c: &&Cell| {
        (c.threads == cell.threads) as u8 * 4 + (c.backend == cell.backend) as u8 * 2 + (c.isa == cell.isa) as u8
    };
    let best = candidates.iter().map(likeness).max()?;
    candidates.into_iter().find(|c| likeness(c) == best)
}

/// How the work of two cells of one scenario differs.
pub(crate) fn difference(a: &Cell, b: &Cell) -> Option<String> {
    fn differ<T: Copy + PartialEq>(
        what: &str,
        a: Option<T>,
        b: Option<T>,
        name: fn(T) -> &'static str,
    ) -> Option<String> {
        let (a, b) = (a?, b?);
        (a != b).then(|| format!("{what} {} against {}", name(a), name(b)))
    }
    differ("weights", a.weight_dtype, b.weight_dtype, Dtype::name)
        .or_else(|| differ("precision", a.precision, b.precision, Dtype::name))
        .or_else(|| differ("extent", a.extent, b.extent, |e| e.name()))
        .or_else(|| {
            // Equal names with other counts are other networks.
            let (a, b) = (a.cost()?.flops.total(), b.cost()?.flops.total());
            (a != b).then(|| format!("{} against {} by exact count", format::flops(a), format::flops(b)))
        })
}

fn warn(first: &Side, side: &Side, a: &Cell, b: &Cell, warnings: &mut BTreeSet<String>) {
    let unknown = [
        ("the type of weights", a.weight_dtype.is_none(), b.weight_dtype.is_none()),
        ("the type of activations", a.precision.is_none(), b.precision.is_none()),
        ("how much of the network is computed", a.extent.is_none(), b.extent.is_none()),
        ("the number of threads", a.threads.is_none(), b.threads.is_none()),
    ];
    for (name, at) in [(first.name, 0), (side.name, 1)] {
        let list: Vec<&str> = unknown.iter().filter(|u| [u.1, u.2][at]).map(|u| u.0).collect();
        if !list.is_empty() {
            warnings.insert(format!("{name} does not record {}", list.join(", ")));
        }
    }
    if let (Some(m), Some(n)) = (a.threads, b.threads)
        && m != n
    {
        warnings.insert(format!("{} ran {m} threads, {} ran {n}", first.name, side.name));
    }
    for (name, cell) in [(first.name, a), (side.name, b)] {
        for fault in cell.published.iter().flat_map(|p| &p.faults) {
            warnings.insert(format!("{name}, {}: {fault}", cell.system));
        }
    }
}

/// How the kernels that two sides were told to take differ, in words.
fn forced(first: &Side, side: &Side, ours: &Cells, theirs: &Cells) -> Option<String> {
    let asked = |cells: &Cells| -> BTreeSet<Option<String>> {
        cells.iter().map(|(record, _)| record.run.settings.kernel.clone()).collect()
    };
    let (ours, theirs) = (asked(ours), asked(theirs));
    if ours.is_empty() || theirs.is_empty() || ours == theirs {
        return None;
    }
    let words = |asked: BTreeSet<Option<String>>| {
        let name = |asked: Option<String>| asked.map_or("no --kernel".into(), |name| format!("--kernel {name}"));
        asked.into_iter().map(name).collect::<Vec<String>>().join(" and ")
    };
    Some(format!("the records of {} name {}, those of {} {}", first.name, words(ours), side.name, words(theirs)))
}

/// The cells of one workload in all records of a side.
type Cells<'a> = Vec<(&'a Record, &'a Cell)>;

fn gather<'a>(cell: &Cell, side: &Side<'a>, refused: &mut BTreeSet<String>) -> Cells<'a> {
    side.records.iter().filter_map(|record| Some((*record, mate(cell, record, refused)?))).collect()
}

/// The figures of a side's first record, with the doubts of all its records.
fn row<'a>(cells: &Cells<'a>) -> Option<Row<'a>> {
    let mut rows = cells.iter().map(|(record, cell)| summary::row(record, cell));
    let first = rows.next()?;
    Some(rows.fold(first, |mut all, row| {
        all.doubts.extend(row.doubts);
        all
    }))
}

/// The geometric mean of a side's records.
fn side_seconds(cells: &Cells) -> Option<f64> {
    let times: Vec<f64> = cells.iter().filter_map(|(_, c)| Some(summary::ttft(c)?.value)).collect();
    stats::geometric_mean(&times)
}

/// Whether all records of one side were taken before all of the other, on the same machine.
fn apart(a: &Cells, b: &Cells) -> bool {
    let starts = |cells: &Cells| -> Option<Vec<f64>> {
        let start = |(record, cell): &(&Record, &Cell)| {
            levels::unix_seconds(cell.started_at.as_ref().or(record.run.started_at.as_ref())?)
        };
        cells.iter().map(start).collect()
    };
    let (Some(first), Some(other)) = (a.first(), b.first()) else { return false };
    let (Some(a), Some(b)) = (starts(a), starts(b)) else { return false };
    let ends = |t: &[f64]| (t.iter().copied().fold(f64::MAX, f64::min), t.iter().copied().fold(f64::MIN, f64::max));
    let ((a_low, a_high), (b_low, b_high)) = (ends(&a), ends(&b));
    same_machine(&first.0.run.machine, &other.0.run.machine) && (a_high < b_low || b_high < a_low)
}

/// The values of a side, with what the calibration of its machine knows.
fn sample(cells: &Cells, calibrations: &[Calibration]) -> Option<Sample> {
    let (record, cell) = cells.first()?;
    let calibration = calibrations.iter().find(|c| c.fits(&record.run.machine));
    let spread = calibration.and_then(|c| c.spread(&cell.scenario_hash));
    let logs: Vec<Vec<f64>> = cells.iter().map(|(_, c)| levels::process_logs(c)).filter(|l| !l.is_empty()).collect();
    (!logs.is_empty()).then(|| Sample::of(&logs, spread))
}

/// One side against the first; `theirs` above 1 is faster.
fn against(ours: &Cells, theirs: &Cells, apart: bool, calibrations: &[Calibration]) -> Option<Versus> {
    let (&(first, a), &(other, b)) = (ours.first()?, theirs.first()?);
    let records = [ours.len(), theirs.len()];
    let single = a.published.is_some() || b.published.is_some();
    let bare = |value: f64| Estimate { value, interval: None, samples: 0 };
    let own = side_seconds(ours)?.ln() - side_seconds(theirs)?.ln();
    let (ratio, p, verdict) = if std::ptr::eq(first, other) && records == [1, 1] && !single {
        // Within one run, its own rounds decide.
        let ratio = if std::ptr::eq(a, b) { bare(1.0) } else { summary::ratio(&first.run.limits, a, b)?.estimate };
        let verdict = match ratio.interval {
            Some(i) if i.low > 1.0 => Verdict::Faster,
            Some(i) if i.high < 1.0 => Verdict::Slower,
            _ => Verdict::WithinNoise,
        };
        (ratio, None, verdict)
    } else {
        let difference = match (&a.published, &b.published) {
            (Some(_), Some(_)) => None,
            (None, Some(there)) => decide::against_figure(&sample(ours, calibrations)?, there.ttft_s.ln()),
            (Some(here), None) => decide::against_figure(&sample(theirs, calibrations)?, here.ttft_s.ln())
                .map(|d| Mean { value: -d.value, ..d }),
            (None, None) => {
                let same_machine = same_machine(&first.run.machine, &other.run.machine);
                let taken = decide::Taken { same_machine, apart };
                decide::difference(&sample(ours, calibrations)?, &sample(theirs, calibrations)?, taken)
            }
        };
        match difference {
            Some(d) => {
                let p = d.p(0.0);
                let word = match p < ALPHA {
                    true if d.value > 0.0 => Verdict::Faster,
                    true => Verdict::Slower,
                    false => Verdict::WithinNoise,
                };
                (d.ratio(records[0].min(records[1])), Some(p), word)
            }
            None if a.published.is_some() && b.published.is_some() => (bare(own.exp()), None, Verdict::NoSpread),
            None => (bare(own.exp()), None, Verdict::Unknown),
        }
    };
    let normalised = |of: &dyn Fn(&Limits, &Cell) -> Option<f64>| {
        let one = |(record, cell): &(&Record, &Cell)| of(summary::limits_of(&record.run.limits, cell), cell);
        let all = |cells: &Cells| stats::geometric_mean(&cells.iter().map(one).collect::<Option<Vec<f64>>>()?);
        Some(ratio.value * all(ours)? / all(theirs)?)
    };
    let probes = || {
        let all: Option<Vec<f64>> = ours
            .iter()
            .flat_map(|(record, a)| theirs.iter().map(|(_, b)| levels::by_probes(a, b, &record.run.limits)))
            .collect();
        all.map(|v| (v.iter().sum::<f64>() / v.len() as f64).exp())
    };
    Some(Versus {
        ratio,
        p,
        p_holm: None,
        verdict,
        single,
        records,
        by_probes: same_machine(&first.run.machine, &other.run.machine).then(probes).flatten(),
        by_peak: normalised(&|limits, cell| limits.peak_gflops(cell.compute_dtype?)),
        by_bandwidth: normalised(&|limits, _| limits.read_gb_per_s),
    })
}

/// Holm's rule over all workloads of all sides.
fn adjust(lines: &mut [Line]) {
    let all = lines.iter_mut().flat_map(|l| &mut l.versus).flatten();
    let mut tested: Vec<&mut Versus> = all.filter(|v| v.p.is_some()).collect();
    let p: Vec<f64> = tested.iter().filter_map(|v| v.p).collect();
    for (versus, p) in tested.iter_mut().zip(student::holm(&p)) {
        versus.p_holm = Some(p);
    }
}

impl Versus {
    /// Whether faster or slower also stands when all workloads are judged together.
    pub fn in_family(&self) -> bool {
        matches!(self.verdict, Verdict::Faster | Verdict::Slower) && self.p_holm.is_some_and(|p| p < ALPHA)
    }
}

/// What would decide the workloads for which no word falls.
fn commands(sides: &[Side], lines: &[Line]) -> Vec<String> {
    let mut commands = Vec::new();
    let (first, others) = (&sides[0], &sides[1..]);
    for (i, side) in others.iter().enumerate() {
        let unknown = |l: &&Line| l.versus[i].is_some_and(|v| v.verdict == Verdict::Unknown);
        if !lines.iter().any(|l| unknown(&l)) {
            continue;
        }
        let (a, b) = (&first.records[0].run, &side.records[0].run);
        commands.push(if same_machine(&a.machine, &b.machine) {
            format!(
                "{} and {}: ttft compare --binaries OLD NEW judges two builds by pairs of processes, of what --scenario and \
                 --settings say; or ttft calibrate measures this machine's occasions once, and comparisons then use it; or two records a \
                 side and more, taken in turn: ttft compare A1 A2 A3 --with B1 B2 B3",
                first.name, side.name
            )
        } else {
            let published = |side: &Side| side.records[0].cells.iter().all(|c| c.published.is_some());
            let on = match (published(first), published(side)) {
                (false, true) => format!("the machine of {}", first.name),
                (true, _) => format!("the machine of {}", side.name),
                (false, false) => "both machines".into(),
            };
            format!(
                "{} and {}: ttft calibrate on {on}; or several records of each measured side, taken at different hours: ttft \
                 compare A1 A2 A3 --with B1 B2 B3",
                first.name, side.name
            )
        });
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        paper, samples,
        schema::{Extent, Kind, Placement},
    };

    /// A cell of the paper's size without samples.
    fn random_pruned(system: &str) -> Cell {
        Cell::new(Kind::RandomPruned, system, "OE1.1B", None, 64, 59)
    }

    fn sides<'a>(a: &'a Record, b: &'a Record) -> [Side<'a>; 2] {
        [Side { name: "here", records: vec![a] }, Side { name: "there", records: vec![b] }]
    }

    fn compare<'a>(sides: &[Side<'a>]) -> Result<Comparison<'a>, CompareError> {
        super::compare(sides, &[])
    }

    /// The sample run on a machine `permille` / 1000 times as slow.
    fn slower(permille: u64) -> Record {
        let mut record = samples::run();
        for cell in &mut record.cells {
            cell.samples_ns.iter_mut().for_each(|ns| *ns = *ns * permille / 1000);
        }
        record
    }

    #[test]
    fn without_a_calibration_one_record_a_side_gets_no_word() {
        let (a, b) = (samples::run(), slower(500));
        let comparison = compare(&sides(&a, &b)).unwrap();
        assert_eq!((comparison.lines.len(), comparison.means[0].workloads), (20, 20));
        assert!(comparison.lines.iter().all(|l| l.versus[0].unwrap().verdict == Verdict::Unknown));
        assert!((comparison.means[0].ratio.unwrap() - 2.0).abs() < 1e-6);
        assert!(comparison.commands[0].contains("--binaries") && comparison.commands[0].contains("ttft calibrate"));
        let text = crate::terminal::comparison(&comparison, None);
        assert!(text.contains("not decided") && !text.contains(" faster\n"), "{text}");
        let back = compare(&sides(&b, &a)).unwrap();
        assert!((back.means[0].ratio.unwrap() - 0.5).abs() < 1e-6);
    }

    #[test]
    fn a_calibration_or_several_records_let_words_fall() {
        let occasions = samples::occasions(24, 5, 5, [0.02, 0.01, 0.02], 9);
        let calibration = Calibration::of(&occasions).unwrap();
        let verdict = |a: &[&Record], b: &[&Record], calibrations: &[Calibration]| {
            let sides = [Side { name: "a", records: a.to_vec() }, Side { name: "b", records: b.to_vec() }];
            let comparison = super::compare(&sides, calibrations).unwrap();
            let versus = comparison.lines[0].versus[0].unwrap();
            (versus.verdict, versus.in_family(), !comparison.warnings.iter().all(|w| !w.contains("take them in turn")))
        };
        let slow = |record: &Record| {
            let mut record = record.clone();
            for cell in &mut record.cells {
                cell.samples_ns.iter_mut().for_each(|ns| *ns = *ns * 13 / 10);
            }
            record
        };
        let [a, b, c, d] = [0, 1, 2, 3].map(|i| occasions[i].clone());
        let calibrations = [calibration];
        assert_eq!(verdict(&[&a], &[&b], &[]).0, Verdict::Unknown);
        assert_eq!(verdict(&[&a], &[&b], &calibrations).0, Verdict::WithinNoise);
        assert_eq!(verdict(&[&a], &[&slow(&b)], &calibrations), (Verdict::Slower, true, false));
        let (slow_b, slow_d) = (slow(&b), slow(&d));
        assert_eq!(verdict(&[&a, &c], &[&slow_b, &slow_d], &calibrations).0, Verdict::Slower);
        // One side after the other: only with the machine's occasions.
        let (slow_c, slow_d) = (slow(&c), slow(&d));
        assert_eq!(verdict(&[&a, &b], &[&slow_c, &slow_d], &[]), (Verdict::Unknown, false, true));
        let elsewhere = |record: &Record| {
            let mut record = record.clone();
            record.run.machine.cpu_model = Some("Another CPU".into());
            record
        };
        let there = elsewhere(&slow_b);
        assert_eq!(verdict(&[&a], &[&there], &calibrations).0, Verdict::Unknown, "calibrated on one side only");
    }

    #[test]
    fn two_cells_of_one_run_are_compared_by_their_rounds() {
        let record = samples::run();
        let comparison = compare(&sides(&record, &record)).unwrap();
        assert!(comparison.lines.iter().all(|l| l.versus[0].unwrap().verdict == Verdict::WithinNoise));
    }

    #[test]
    fn records_are_grouped_by_machine_revision_and_settings() {
        let a = samples::run();
        let mut runs =
            vec![("a".to_string(), a.clone()), ("b".into(), a.clone()), ("c".into(), a.clone()), ("d".into(), a)];
        runs[1].1.run.git.as_mut().unwrap().dirty = Some(true);
        runs[3].1.run.machine.memory_total_bytes = Some(23 << 30);
        let groups = group(&runs);
        assert_eq!(groups.iter().map(|g| g.1.clone()).collect::<Vec<_>>(), [vec![0, 2, 3], vec![1]]);
        assert_eq!(groups[0].0, "a and 2 more at 7c62dcb0");
        assert_eq!(groups[1].0, "b at 7c62dcb0 (modified)");
        let before = runs.clone();
        let pin = |(_, record): &mut (String, Record), pinned: bool| {
            record.cells[0].placement = Some(Placement { pinned, ..Placement::default() });
        };
        pin(&mut runs[0], false);
        pin(&mut runs[2], true);
        assert_eq!(group(&runs).len(), 3, "bound to CPUs");
        runs = before.clone();
        runs[2].1.cells[0].kernels = vec!["another".into()];
        assert_eq!(group(&runs).len(), 3, "of another kernel");
        runs = before.clone();
        runs[2].1.run.settings.kernel = Some("another".into());
        assert_eq!(group(&runs).len(), 3, "asked for a kernel");
        runs = before;
        runs[2].1.run.settings.threads = Some(1);
        assert_eq!(group(&runs).len(), 3);
    }

    #[test]
    fn normalised_figures_take_the_machines_limits_out() {
        let (a, mut b) = (samples::run(), slower(500));
        b.run.limits.peaks.iter_mut().for_each(|p| p.gflops *= 4.0);
        b.run.limits.read_gb_per_s = None;
        let means = compare(&sides(&a, &b)).unwrap().means[0];
        assert!((means.by_peak.unwrap() - 0.5).abs() < 1e-6, "twice as fast on four times the peak");
        assert_eq!(means.by_bandwidth, None);
    }

    #[test]
    fn different_work_is_refused_and_named() {
        let (a, mut b) = (samples::run(), samples::run());
        b.cells.iter_mut().for_each(|c| c.precision = Some(Dtype::F32));
        let error = compare(&sides(&a, &b)).unwrap_err().to_string();
        assert_eq!(
            error,
            "`here` and `there` have no comparable workload in common: precision bf16 against f32. Measure one of them \
             again as the other was"
        );
        b.cells[0].precision = Some(Dtype::Bf16);
        b.cells[0].threads = Some(8);
        b.cells[1].extent = Some(Extent::FullNetwork);
        let comparison = compare(&sides(&a, &b)).unwrap();
        assert_eq!(comparison.lines.len(), 1);
        assert!(
            comparison.warnings.contains(&"here ran 2 threads, there ran 8".to_string()),
            "{:?}",
            comparison.warnings
        );
        assert!(comparison.warnings.iter().any(|w| w.starts_with("there: some cells are left out: precision")));
        b.cells[0].phases[0].cost.as_mut().unwrap().flops.projections /= 1000;
        assert!(compare(&sides(&a, &b)).unwrap_err().to_string().contains("by exact count"));
        b.cells.truncate(0);
        let error = compare(&sides(&a, &b)).unwrap_err().to_string();
        assert!(error.contains("OE450M at 1 x 64, 1 x 256, 4 x 64, 4 x 256; there has no cells. Measure"), "{error}");
        assert!(matches!(compare(&sides(&a, &b)[..1]), Err(CompareError::TooFew(1))));
    }

    #[test]
    fn doubts_are_counted_for_each_side() {
        let (a, mut b) = (samples::run(), samples::run());
        b.cells.iter_mut().take(3).for_each(|c| c.gate = None);
        let warnings = compare(&sides(&a, &b)).unwrap().warnings;
        assert!(warnings.iter().any(|w| w.starts_with("here: 1 of 20 cells")), "{warnings:?}");
        assert!(warnings.iter().any(|w| w.starts_with("there: 4 of 20 cells")), "{warnings:?}");
    }

    #[test]
    fn every_record_of_a_side_counts() {
        let (mut lacking, whole, mut doubted) = (samples::run(), samples::run(), samples::run());
        lacking.cells.remove(1);
        doubted.cells[2].gate = None;
        doubted.cells[3].threads = Some(8);
        doubted.run.limits.peaks.clear();
        doubted.run.settings.kernel = Some("dot_x".into());
        let sides = [
            Side { name: "here", records: vec![&lacking, &whole] },
            Side { name: "there", records: vec![&whole, &doubted] },
        ];
        let comparison = compare(&sides).unwrap();
        assert_eq!(comparison.lines.len(), 20);
        let last = comparison.lines.last().unwrap();
        assert_eq!((&last.cell().id, last.versus[0].unwrap().records), (&whole.cells[1].id, [1, 2]));
        let all = &comparison.warnings;
        for words in [
            "the records of here name no --kernel, those of there no --kernel and --kernel dot_x",
            "there: 2 of 20 cells are not to be trusted",
            "there does not record its peak and bandwidth",
            "here ran 2 threads, there ran 8",
        ] {
            assert!(all.iter().any(|w| w.starts_with(words)), "{words}: {all:?}");
        }
        assert_eq!(comparison.means[0].by_peak, None);
    }

    #[test]
    fn a_calibration_of_another_machine_is_named() {
        let occasions = samples::occasions(4, 5, 5, [0.02, 0.01, 0.02], 9);
        let mut calibration = Calibration::of(&occasions).unwrap();
        let warned = |calibration: &Calibration| {
            let sides = sides(&occasions[0], &occasions[1]);
            let warnings = super::compare(&sides, std::slice::from_ref(calibration)).unwrap().warnings;
            warnings.into_iter().find(|w| w.starts_with("a calibration is not used"))
        };
        assert_eq!(warned(&calibration), None);
        calibration.machine.cpu_model = Some("Another CPU".into());
        calibration.machine.logical_cores = Some(64);
        let words = warned(&calibration).unwrap();
        assert!(
            words.ends_with("CPU Another CPU there, Example CPU 9000 here, logical cores 64 there, 2 here"),
            "{words}"
        );
    }

    #[test]
    fn words_are_adjusted_over_all_sides() {
        let occasions = samples::occasions(24, 5, 5, [0.02, 0.01, 0.02], 9);
        let calibrations = [Calibration::of(&occasions).unwrap()];
        let side = |i: usize| Side { name: "x", records: vec![&occasions[i]] };
        let (two, three) = ([side(0), side(1)], [side(0), side(1), side(2)]);
        let [two, three] = [&two[..], &three[..]].map(|sides| super::compare(sides, &calibrations).unwrap());
        assert_eq!((two.tests, three.tests), (two.lines.len(), 2 * two.lines.len()));
        assert!(three.family_rate > two.family_rate);
        let all = three.lines.iter().flat_map(|l| &l.versus).flatten();
        let least = all.min_by(|a, b| a.p.unwrap().total_cmp(&b.p.unwrap())).unwrap();
        let adjusted = (least.p.unwrap() * three.tests as f64).min(1.0);
        assert!((least.p_holm.unwrap() - adjusted).abs() < 1e-12, "{least:?}");
    }

    #[test]
    fn the_paper_compares_by_its_single_figures() {
        let paper = paper::table5();
        let mut here = samples::run();
        here.cells = ["OE1.1B", "OE450M", "OE1.1B-KVP-C-450M"].map(|s| samples::cell(s, 64, 59, 4)).into();
        let side = |name, record| Side { name, records: vec![record] };
        let there = compare(&[side("paper", &paper), side("here", &here)]).unwrap();
        let back = compare(&[side("here", &here), side("paper", &paper)]).unwrap();
        assert_eq!(there.lines.len(), 3);
        for (there, back) in there.lines.iter().zip(&back.lines) {
            let (there, back) = (there.versus[0].unwrap(), back.versus[0].unwrap());
            // How far occasions lie apart on the sample machine is unknown.
            assert_eq!((there.verdict, back.verdict), (Verdict::Unknown, Verdict::Unknown));
            assert!((there.ratio.value * back.ratio.value - 1.0).abs() < 1e-12);
        }
        let mut many = samples::occasions(4, 5, 5, [0.02, 0.01, 0.02], 1);
        for record in &mut many {
            record.cells[0] =
                Cell { samples_ns: record.cells[0].samples_ns.clone(), ..samples::cell("OE1.1B", 64, 59, 25) };
            record.cells[0].phases.clear();
        }
        let several = Side { name: "here", records: many.iter().collect() };
        let decided = compare(&[side("paper", &paper), several]).unwrap();
        let versus = decided.lines[0].versus[0].unwrap();
        assert!(versus.single && versus.verdict == Verdict::Faster, "{versus:?}");
        assert!(crate::terminal::comparison(&decided, None).contains("faster*"));
        let faulty = "OE1.1B-RP-0.25";
        let mut pruned = here.clone();
        pruned.cells[1] = Cell { samples_ns: pruned.cells[1].samples_ns.clone(), ..random_pruned(faulty) };
        let comparison = compare(&[side("paper", &paper), side("here", &pruned)]).unwrap();
        assert_eq!((comparison.lines.len(), comparison.means[0].workloads), (3, 2), "{:?}", comparison.warnings);
        assert!(comparison.warnings.iter().any(|w| w.contains("1 of 3 workloads are left out")));
        let unknown = |needle: &str| there.warnings.iter().any(|w| w.starts_with(needle));
        assert!(unknown("paper does not record the type of weights"));
        assert!(unknown("paper does not record its peak and bandwidth"));
        let alone = compare(&[side("paper", &paper), side("again", &paper)]).unwrap();
        assert!(alone.lines.iter().all(|l| l.versus[0].unwrap().verdict == Verdict::NoSpread));
    }
}
