//! Times of a record joined with the answers of a fidelity file: what became faster, and what became of the answer.
//!
//! A time and an answer are joined only if they are of the same thing: base, auxiliary and predictor by hash, k, m, s, precision
//! and prompt length. What is not joined is named with what differs.

use std::collections::BTreeMap;

use crate::{
    fidelity::{Control, ControlKind, Distance, Fidelity, Results, System},
    schema::{Cell, Extent, Identity, Kind, Prediction, Record},
    stats::{self, Estimate},
    summary::{self, Row},
};

/// A record and a fidelity file, joined.
#[derive(Clone, Debug)]
pub struct Joined<'a> {
    /// One for each batch, the smallest first.
    pub sizes: Vec<Tradeoff<'a>>,
    /// Systems of the fidelity file that no cell was joined with, each with what differs from the cell that is nearest.
    pub refused: Vec<String>,
    /// What a reader must know of the times of controls.
    pub remarks: Vec<String>,
}

/// All marks of one batch.
#[derive(Clone, Debug)]
pub struct Tradeoff<'a> {
    /// Sequences.
    pub batch: u32,
    /// Prompt tokens of each.
    pub prompt: u32,
    /// Full prefill first, then the systems, then the controls.
    pub marks: Vec<Mark<'a>>,
}

/// What a mark is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role<'a> {
    /// Full prefill of the base.
    Base,
    /// A system.
    System(&'a System),
    /// A control.
    Control(&'a Control),
}

/// Where the time of a mark comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// A cell of the record.
    Record,
    /// The fidelity run, in turn with full prefill.
    Fidelity,
    /// It is that of the system that it stands beside, as it does the same work.
    System,
    /// There is none.
    Unknown,
}

impl Clock {
    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Clock::Record => "record",
            Clock::Fidelity => "fidelity run",
            Clock::System => "its system's",
            Clock::Unknown => "none",
        }
    }
}

/// One mark: a time and an answer of the same thing.
#[derive(Clone, Debug)]
pub struct Mark<'a> {
    /// The system, or the control with the system that it stands beside.
    pub name: String,
    /// What it is.
    pub role: Role<'a>,
    /// The cell that it was timed in.
    pub cell: Option<&'a Cell>,
    /// TTFT in seconds.
    pub ttft: Option<Estimate>,
    /// TTFT of full prefill over this one's.
    pub speedup: Option<Estimate>,
    /// Where the two come from.
    pub clock: Clock,
}

impl<'a> Mark<'a> {
    /// What it answers; `None` of full prefill, which everything is compared with.
    pub fn results(&self) -> Option<&'a Results> {
        match self.role {
            Role::Base => None,
            Role::System(system) => Some(&system.results),
            Role::Control(control) => Some(&control.results),
        }
    }

    /// Operations over those of full prefill.
    pub fn operations(&self) -> Option<f64> {
        match self.role {
            Role::Base => Some(1.0),
            Role::System(system) => Some(system.operations_share),
            Role::Control(control) => control.operations_share,
        }
    }

    /// Whether one could use it in place of full prefill: a mean cache only shows what maps are worth, and true caches have
    /// taken the time of full prefill before.
    pub fn is_usable(&self) -> bool {
        match self.role {
            Role::Base | Role::System(_) => true,
            Role::Control(c) => !matches!(c.kind, ControlKind::MeanCache | ControlKind::TrueCaches),
        }
    }
}

/// What is asked of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// Divergence from the base's distribution, in nats.
    Kl,
    /// Share of positions with the base's likeliest token.
    Top1,
    /// Cross-entropy minus the base's, in nats.
    LossGap,
    /// Share of the base's greedy text that is written too, up to the first token that differs.
    Greedy,
    /// Share of items with the right answer.
    Exact,
    /// Share of items with the base's first token.
    FirstToken,
}

impl Figure {
    /// The name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Figure::Kl => "KL",
            Figure::Top1 => "top-1",
            Figure::LossGap => "loss gap",
            Figure::Greedy => "greedy agreement",
            Figure::Exact => "exact",
            Figure::FirstToken => "first token",
        }
    }

    /// Whether more is better.
    pub fn more_is_better(self) -> bool {
        !matches!(self, Figure::Kl | Figure::LossGap)
    }
}

/// A figure on one text or task.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale<'a> {
    /// Which figure.
    pub figure: Figure,
    /// The text or task.
    pub place: &'a str,
    /// Of a text: the first token after the prompt, or those after it.
    pub first: bool,
    /// The level of chance of a task's exact matches.
    pub chance: Option<f64>,
    at: usize,
    file: &'a Fidelity,
}

impl<'a> Scale<'a> {
    /// Every figure of a file, or of several that go together: those of continuations and the exact matches first,
    /// then those of first tokens, loss gaps and greedy text.
    pub fn all(file: &'a Fidelity) -> Vec<Scale<'a>> {
        let of_text = |figure, first| {
            file.texts.iter().enumerate().map(move |(at, t)| Scale {
                figure,
                place: &t.name,
                first,
                chance: None,
                at,
                file,
            })
        };
        let of_task = |figure| {
            file.tasks.iter().enumerate().map(move |(at, t)| {
                let chance = (figure == Figure::Exact).then_some(t.chance);
                Scale { figure, place: &t.name, first: figure == Figure::FirstToken, chance, at, file }
            })
        };
        let scored = of_task(Figure::Exact).filter(|s| file.tasks[s.at].base.is_some());
        let main = of_text(Figure::Kl, false).chain(of_text(Figure::Top1, false)).chain(scored);
        let more = of_text(Figure::Kl, true).chain(of_text(Figure::Top1, true)).chain(of_text(Figure::LossGap, false));
        let written = |s: &Scale| file.systems.iter().any(|system| system.results.texts[s.at].greedy.is_some());
        let greedy = of_text(Figure::Greedy, false).filter(written);
        main.chain(more).chain(greedy).chain(of_task(Figure::FirstToken)).collect()
    }

    /// Whether it belongs to the axes of a trade-off: continuations and exact matches.
    pub fn is_main(&self) -> bool {
        !self.first && !matches!(self.figure, Figure::LossGap | Figure::Greedy)
    }

    /// The share of a task's items that the base solves.
    pub fn base(&self) -> Option<f64> {
        Some(self.file.tasks.get(self.at).filter(|_| self.figure == Figure::Exact)?.base.as_ref()?.share)
    }

    /// Its value for a mark; of full prefill nothing is lost.
    pub fn of(&self, mark: &Mark) -> Option<Estimate> {
        let exactly = |value| Some(Estimate { value, interval: None, samples: 0 });
        let Some(results) = mark.results() else {
            return match self.figure {
                Figure::Kl | Figure::LossGap => exactly(0.0),
                Figure::Top1 | Figure::Greedy | Figure::FirstToken => exactly(1.0),
                Figure::Exact => Some(self.file.tasks[self.at].base.as_ref()?.estimate()),
            };
        };
        let distance = |pick: fn(&Distance) -> Estimate| {
            let on = results.texts.get(self.at)?;
            Some(pick(if self.first { &on.first } else { &on.continuation }))
        };
        match self.figure {
            Figure::Kl => distance(|d| d.kl.estimate()),
            Figure::Top1 => distance(|d| d.top1.estimate()),
            Figure::LossGap => distance(|d| d.loss_gap.estimate()),
            Figure::Greedy => Some(results.texts.get(self.at)?.greedy.as_ref()?.estimate()),
            Figure::Exact => Some(results.tasks.get(self.at)?.exact.as_ref()?.estimate()),
            Figure::FirstToken => Some(results.tasks.get(self.at)?.first_token.estimate()),
        }
    }

    /// The marks that no usable mark is better than, in both speed and this figure, the slowest first. By the figures alone:
    /// their intervals may overlap.
    pub fn front(&self, marks: &[Mark]) -> Vec<usize> {
        let better = if self.figure.more_is_better() { 1.0 } else { -1.0 };
        let place = |mark: &Mark| Some((mark.speedup?.value, better * self.of(mark)?.value));
        let points: Vec<(usize, (f64, f64))> = marks
            .iter()
            .enumerate()
            .filter(|(_, mark)| mark.is_usable())
            .filter_map(|(i, mark)| Some((i, place(mark)?)))
            .collect();
        let beats = |a: (f64, f64), b: (f64, f64)| a.0 >= b.0 && a.1 >= b.1 && a != b;
        let mut front: Vec<_> = points.iter().filter(|p| !points.iter().any(|other| beats(other.1, p.1))).collect();
        front.sort_by(|a, b| a.1.0.total_cmp(&b.1.0));
        front.into_iter().map(|p| p.0).collect()
    }
}

/// Joins the times of a record with the answers of fidelity files that [go together](crate::fidelity::together).
pub fn join<'a>(record: &'a Record, files: &'a [Fidelity]) -> Joined<'a> {
    let rows = summary::rows(record);
    let mut all = Joined { sizes: Vec::new(), refused: Vec::new(), remarks: Vec::new() };
    for file in files {
        let joined = one(record, &rows, file, files.iter().map(|f| f.systems.len()).sum::<usize>() > 1);
        all.refused.extend(joined.refused);
        joined.remarks.into_iter().for_each(|r| {
            if !all.remarks.contains(&r) {
                all.remarks.push(r)
            }
        });
        for size in joined.sizes {
            let Some(known) = all.sizes.iter_mut().find(|s| s.batch == size.batch) else {
                all.sizes.push(size);
                continue;
            };
            // Full prefill is there, and so is what stands beside all systems.
            let of_all = |m: &Mark| match m.role {
                Role::Base => true,
                Role::System(_) => false,
                Role::Control(c) => c.system.is_none(),
            };
            known.marks.extend(size.marks.into_iter().filter(|m| !of_all(m)));
        }
    }
    all.sizes.sort_by_key(|s| s.batch);
    for size in &mut all.sizes {
        size.marks.sort_by_key(|m| match m.role {
            Role::Base => 0,
            Role::System(_) => 1,
            Role::Control(_) => 2,
        });
    }
    all
}

fn one<'a>(record: &'a Record, rows: &[Row<'a>], file: &'a Fidelity, several: bool) -> Joined<'a> {
    let mut by_batch: BTreeMap<u32, Vec<(&System, &Row)>> = BTreeMap::new();
    let (mut refused, mut remarks) = (Vec::new(), Vec::new());
    for system in &file.systems {
        let timed = |r: &&Row| r.cell.kind == system.kind && r.cell.cold.is_none() && r.speedup.is_some();
        let mut nearest: Option<(&Row, Vec<String>)> = None;
        let mut found = false;
        for row in rows.iter().filter(timed).filter(|r| r.cell.published.is_none()) {
            let differs = differences(record, row.cell, file, system);
            if differs.is_empty() {
                // Of a workload that was measured twice, the first time counts.
                let of_batch = by_batch.entry(row.cell.batch).or_default();
                if !of_batch.iter().any(|(s, _)| s.name == system.name) {
                    of_batch.push((system, row));
                }
                found = true;
            } else if nearest.as_ref().is_none_or(|(_, least)| differs.len() < least.len()) {
                nearest = Some((row, differs));
            }
        }
        if !found {
            refused.push(match nearest {
                Some((row, differs)) => format!("{}: not {}: {}", system.name, row.cell.id, differs.join("; ")),
                None => {
                    let cold = rows.iter().any(|r| r.cell.kind == system.kind && r.cell.cold.is_some());
                    let warm = if cold { " but from cold starts, and answers are set beside warm times" } else { "" };
                    format!("{}: the record times no system of its kind ({}){warm}", system.name, system.kind.name())
                }
            });
        }
    }
    let here = same_machine(record, file);
    if let Err(why) = &here {
        remarks.push(format!("The times of the fidelity run are left out, because {why}."));
    }
    let sizes: Vec<Tradeoff> = by_batch
        .into_iter()
        .map(|(batch, systems)| size(record, file, rows, (batch, several), &systems, here.is_ok()))
        .collect();
    Joined { sizes, refused, remarks }
}

fn size<'a>(
    record: &'a Record,
    file: &'a Fidelity,
    rows: &[Row<'a>],
    (batch, several): (u32, bool),
    systems: &[(&'a System, &Row<'a>)],
    here: bool,
) -> Tradeoff<'a> {
    let base = record.base_of(systems[0].1.cell);
    let base_row = base.and_then(|base| rows.iter().find(|r| r.cell.id == base.id));
    let full = base_row.and_then(|r| r.ttft);
    let one = Estimate { value: 1.0, interval: None, samples: 0 };
    let mut marks = vec![Mark {
        name: "full prefill".into(),
        role: Role::Base,
        cell: base,
        ttft: full,
        speedup: Some(one),
        clock: Clock::Record,
    }];
    marks.extend(systems.iter().map(|(system, row)| Mark {
        name: system.name.clone(),
        role: Role::System(system),
        cell: Some(row.cell),
        ttft: row.ttft,
        speedup: row.speedup.map(|s| s.estimate),
        clock: Clock::Record,
    }));
    let joined = |name: &str| systems.iter().find(|(s, _)| s.name == name);
    for control in &file.controls {
        // Beside a system without a time, a control tells nothing of a trade-off.
        let own = control.system.as_deref().map(joined);
        if matches!(own, Some(None)) {
            continue;
        }
        let beside = own.flatten();
        let name = match beside {
            Some((system, _)) if several => format!("{}, beside {}", control.words(), system.name),
            _ => control.words(),
        };
        let mut mark =
            Mark { name, role: Role::Control(control), cell: None, ttft: None, speedup: None, clock: Clock::Unknown };
        let same_work =
            matches!(control.kind, ControlKind::MeanCache | ControlKind::TrueCaches | ControlKind::NothingPredicted);
        // A mean cache shows what the maps of its system are worth at their own time, however fast their means are.
        let timed = batch == 1 && here && control.kind != ControlKind::MeanCache;
        let speedup = if timed { ratio(&file.base.ttft_ns, &control.ttft_ns) } else { None };
        if let Some(row) = alone(record, rows, control, beside.map(|b| b.0), systems[0].1.cell) {
            (mark.cell, mark.ttft, mark.clock) = (Some(row.cell), row.ttft, Clock::Record);
            mark.speedup = row.speedup.map(|s| s.estimate);
        } else if let Some(speedup) = speedup {
            (mark.speedup, mark.clock) = (Some(speedup), Clock::Fidelity);
            mark.ttft = full.map(|full| speedup.over(full.value));
        } else if let (true, Some((_, row))) = (same_work, beside) {
            (mark.ttft, mark.clock) = (row.ttft, Clock::System);
            mark.speedup = row.speedup.map(|s| s.estimate);
        }
        marks.push(mark);
    }
    Tradeoff { batch, prompt: file.settings.prompt, marks }
}

/// How many times the first takes the time of the second: round by round if there are as many.
fn ratio(slow_ns: &[u64], fast_ns: &[u64]) -> Option<Estimate> {
    let (slow, fast) = (summary::seconds(slow_ns), summary::seconds(fast_ns));
    if slow.len() == fast.len() {
        let pairs: Vec<(f64, f64)> = slow.into_iter().zip(fast).collect();
        return stats::paired_ratio(&pairs);
    }
    stats::unpaired_ratio(&slow, &fast)
}

/// The cell of an auxiliary alone, if the record has one of the size of `like`.
fn alone<'r, 'a>(
    record: &Record,
    rows: &'r [Row<'a>],
    control: &Control,
    beside: Option<&System>,
    like: &Cell,
) -> Option<&'r Row<'a>> {
    let aux = beside?.prediction.as_ref()?.aux.as_ref().filter(|_| control.kind == ControlKind::AuxiliaryAlone)?;
    rows.iter().filter(|r| r.cell.kind == Kind::Aux && r.cell.cold.is_none() && r.speedup.is_some()).find(|r| {
        let network = network(record, &r.cell.system);
        (r.cell.batch, r.cell.prompt, r.cell.precision) == (like.batch, like.prompt, like.precision)
            && network.is_some_and(|n| unlike("auxiliary", Some(n), Some(aux)).is_none())
    })
}

/// Whether times of the fidelity run are comparable with those of the record, or why not.
fn same_machine(record: &Record, file: &Fidelity) -> Result<(), String> {
    let (there, here) = (&record.run.machine.cpu_model, &file.machine.cpu_model);
    if let (Some(there), Some(here)) = (there, here)
        && there != here
    {
        return Err(format!("it ran on another CPU ({here}) than the record ({there})"));
    }
    match (record.run.settings.threads, file.machine.threads) {
        (Some(there), Some(here)) if there != here => Err(format!("it had {here} threads, and the record {there}")),
        _ => Ok(()),
    }
}

fn network<'a>(record: &'a Record, name: &str) -> Option<&'a Identity> {
    record.run.networks.iter().flatten().find(|n| n.name == name)
}

/// What keeps a cell from being joined with a system, in words; nothing if they are the same.
pub fn differences(record: &Record, cell: &Cell, file: &Fidelity, system: &System) -> Vec<String> {
    let mut out = Vec::new();
    let mut note = |different: Option<String>| out.extend(different);
    if record.run.networks.is_none() {
        return vec![
            "the record does not say which weights it ran, as one of an earlier version of ttft: measure again".into(),
        ];
    }
    note(unlike("base", network(record, &cell.base), Some(&file.base.network)));
    let named = record.run.predictions.iter().flatten().find(|n| n.system == cell.system);
    match (named.map(|n| &n.prediction), &system.prediction) {
        (None, None) => {
            note((cell.system != system.name).then(|| format!("system: {} there, {} here", cell.system, system.name)));
            note(unlike("auxiliary", cell.aux.as_deref().and_then(|aux| network(record, aux)), system.aux.as_ref()));
        }
        (None, Some(_)) => note(Some("the record does not say what its prediction is".into())),
        (Some(_), None) => note(Some("a prediction there, and none here".into())),
        (Some(there), Some(here)) => predictions(there, here).into_iter().for_each(|d| note(Some(d))),
    }
    let precision = file.settings.precision;
    note((cell.precision != Some(precision)).then(|| {
        let there = cell.precision.map_or("unknown", |p| p.name());
        format!("precision: {there} there, {} here", precision.name())
    }));
    note(
        cell.extent
            .is_some_and(|e| e != Extent::FirstToken)
            .then(|| "the record's times are of all positions, not of the first token alone".into()),
    );
    let prompt = file.settings.prompt;
    note((cell.prompt != prompt).then(|| format!("prompt length: {} there, {prompt} here", cell.prompt)));
    out
}

fn predictions(there: &Prediction, here: &Prediction) -> Vec<String> {
    let mut out = Vec::new();
    out.extend(unlike("auxiliary", there.aux.as_ref(), here.aux.as_ref()));
    out.extend(unlike("predictor", there.predictor.as_ref(), here.predictor.as_ref()));
    let number = |n: Option<u32>| n.map_or("none".into(), |n| n.to_string());
    for (what, there, here) in [
        ("k, the layers that read the prompt", there.shared_layers, here.shared_layers),
        ("m, the last tokens that the base reads", Some(there.base_tokens), Some(here.base_tokens)),
        ("s, the first tokens that the base reads", Some(there.sink_tokens), Some(here.sink_tokens)),
    ] {
        if there != here {
            out.push(format!("{what}: {} there, {} here", number(there), number(here)));
        }
    }
    out
}

/// How two networks or predictors differ; nothing if both are the same by hash, or if there is none on either side.
fn unlike(what: &str, there: Option<&Identity>, here: Option<&Identity>) -> Option<String> {
    let short =
        |hash: &Option<String>| hash.as_deref().map_or("unknown".into(), |h| h.chars().take(12).collect::<String>());
    let (a, b) = match (there, here) {
        (None, None) => return None,
        (None, Some(here)) => return Some(format!("{what}: none there, {} here", here.name)),
        (Some(there), None) => return Some(format!("{what}: {} there, none here", there.name)),
        (Some(there), Some(here)) => (there, here),
    };
    if a.weights_sha256.is_none() || a.weights_sha256 != b.weights_sha256 {
        return Some(format!("{what}: weights {} there, {} here", short(&a.weights_sha256), short(&b.weights_sha256)));
    }
    (a.config_sha256 != b.config_sha256)
        .then(|| format!("{what}: configuration {} there, {} here", short(&a.config_sha256), short(&b.config_sha256)))
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;
    use crate::{
        fidelity::samples::{self as files, control, identity, prediction, results},
        samples,
        schema::{Dtype, Named},
        stats::Interval,
    };

    /// The made-up run, with the identities that the made-up fidelity file has.
    fn record() -> Record {
        samples::with_identities(samples::run())
    }

    #[test]
    fn the_same_things_are_joined_at_every_batch() {
        let (record, file) = (record(), files::file());
        let joined = join(&record, slice::from_ref(&file));
        assert_eq!((joined.refused.len(), joined.remarks.len()), (0, 0), "{:?}", joined.refused);
        let batches: Vec<u32> = joined.sizes.iter().map(|s| s.batch).collect();
        assert_eq!(batches, [1, 4]);
        let names: Vec<&str> = joined.sizes[0].marks.iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names[..3], ["full prefill", "OE1.1B-KVP-C-450M", "OE1.1B-KVP-C-270M"]);
        assert_eq!(names.len(), 1 + 2 + 8);
        let of = |i: usize| &joined.sizes[0].marks[i];
        assert_eq!((of(1).clock, of(1).cell.unwrap().prompt), (Clock::Record, 256));
        // No context was timed in the fidelity run: 1400 ms against 60.
        assert_eq!(of(3).clock, Clock::Fidelity);
        assert!((of(3).speedup.unwrap().value - 1400.0 / 60.0).abs() < 1e-9);
        let full = of(0).ttft.unwrap().value;
        assert!((of(3).ttft.unwrap().value - full * 60.0 / 1400.0).abs() < 1e-9 * full);
        let mean = of(7);
        assert_eq!((mean.name.as_str(), mean.clock), ("mean cache, beside OE1.1B-KVP-C-450M", Clock::System));
        assert_eq!(mean.speedup, of(1).speedup);
        // It stays with its system even if the fidelity run timed it, and what predicts nothing does not.
        let mut timed = file.clone();
        for (place, control) in timed.controls.iter_mut().filter(|c| c.kind == ControlKind::MeanCache).enumerate() {
            control.ttft_ns = vec![700_000_000; 5];
            control.kind = [ControlKind::MeanCache, ControlKind::NothingPredicted][place];
        }
        let clocks = |batch: usize| -> Vec<(ControlKind, Clock)> {
            let joined = join(&record, slice::from_ref(&timed));
            let control = |m: &Mark| if let Role::Control(c) = m.role { Some((c.kind, m.clock)) } else { None };
            let of = |(kind, _): &(ControlKind, Clock)| {
                matches!(kind, ControlKind::MeanCache | ControlKind::NothingPredicted)
            };
            joined.sizes[batch].marks.iter().filter_map(control).filter(of).collect()
        };
        let (mean, nothing) = (ControlKind::MeanCache, ControlKind::NothingPredicted);
        assert_eq!(clocks(0), [(mean, Clock::System), (nothing, Clock::Fidelity)]);
        assert_eq!(clocks(1), [(mean, Clock::System), (nothing, Clock::System)]);
        // The times of the fidelity run are those of one sequence.
        assert_eq!(joined.sizes[1].marks[3].clock, Clock::Unknown);
    }

    #[test]
    fn files_of_one_system_each_give_the_marks_of_a_file_of_both() {
        let (record, file) = (record(), files::file());
        let of = |i: usize| {
            let mut part = file.clone();
            let name = part.systems[i].name.clone();
            part.systems.retain(|s| s.name == name);
            part.controls.retain(|c| c.is_of(&name));
            part
        };
        let parts = [of(0), of(1)];
        let (one, two) = (join(&record, slice::from_ref(&file)), join(&record, &parts));
        assert_eq!(two.refused.len(), 0);
        for (one, two) in one.sizes.iter().zip(&two.sizes) {
            let marks = |size: &Tradeoff| {
                let mut all: Vec<String> = size
                    .marks
                    .iter()
                    .map(|m| format!("{} {:?} {:?} {:?}", m.name, m.ttft, m.speedup, m.clock))
                    .collect();
                // The controls of a system follow each other in the one, and those of a kind in the other.
                all[3..].sort();
                all
            };
            assert_eq!((one.batch, marks(one)), (two.batch, marks(two)));
        }
        assert_eq!(one.sizes.len(), two.sizes.len());
    }

    #[test]
    fn what_differs_is_refused_with_its_words() {
        let file = files::file();
        let refusal = |change: &dyn Fn(&mut Record)| {
            let mut record = record();
            record.cells.retain(|c| (c.batch, c.prompt) == (1, 256));
            change(&mut record);
            let joined = join(&record, slice::from_ref(&file));
            assert!(joined.refused.len() == 1 || joined.sizes.is_empty(), "{:?}", joined.refused);
            joined.refused[0].clone()
        };
        let of = |record: &mut Record, change: fn(&mut Prediction)| {
            change(&mut record.run.predictions.as_mut().unwrap()[0].prediction);
        };
        let other = "f".repeat(64);
        for (words, found) in [
            ("m, the last tokens that the base reads: 16 there, 1 here", refusal(&|r| of(r, |p| p.base_tokens = 16))),
            ("s, the first tokens that the base reads: 1 there, 0 here", refusal(&|r| of(r, |p| p.sink_tokens = 1))),
            (
                "k, the layers that read the prompt: 5 there, none here",
                refusal(&|r| of(r, |p| p.shared_layers = Some(5))),
            ),
            ("auxiliary: none there, OE450M here", refusal(&|r| of(r, |p| p.aux = None))),
            ("predictor: none there, maps-450M here", refusal(&|r| of(r, |p| p.predictor = None))),
            (
                "predictor: weights unknown there",
                refusal(&|r| of(r, |p| p.predictor.as_mut().unwrap().weights_sha256 = None)),
            ),
            (
                "auxiliary: configuration unknown there",
                refusal(&|r| of(r, |p| p.aux.as_mut().unwrap().config_sha256 = None)),
            ),
            (
                "base: weights ffffffffffff there",
                refusal(&|r| r.run.networks.as_mut().unwrap()[0].weights_sha256 = Some(other.clone())),
            ),
            ("prompt length: 64 there, 256 here", refusal(&|r| r.cells.iter_mut().for_each(|c| c.prompt = 64))),
            (
                "precision: f32 there, bf16 here",
                refusal(&|r| r.cells.iter_mut().for_each(|c| c.precision = Some(Dtype::F32))),
            ),
            (
                "times are of all positions, not of the first token alone",
                refusal(&|r| r.cells.iter_mut().for_each(|c| c.extent = Some(Extent::FullNetwork))),
            ),
            ("does not say what its prediction is", refusal(&|r| r.run.predictions = Some(Vec::new()))),
            ("does not say which weights it ran", refusal(&|r| r.run.networks = None)),
            ("the record times no system of its kind (kvp)", refusal(&|r| r.cells.truncate(2))),
        ] {
            assert!(found.starts_with("OE1.1B-KVP-C-") && found.contains(words), "{words}: {found}");
        }
        // A system that predicts nothing is known by its name, and by the network that chooses its tokens.
        let mut chosen = files::file();
        chosen.systems.truncate(1);
        let (system, mut record) = (&mut chosen.systems[0], record());
        let aux = system.prediction.take().unwrap().aux;
        (system.kind, system.aux) = (Kind::SpecPrefill, aux);
        record.run.predictions = Some(Vec::new());
        record.cells.iter_mut().filter(|c| c.system == system.name).for_each(|c| c.kind = Kind::SpecPrefill);
        assert!(join(&record, slice::from_ref(&chosen)).refused.is_empty());
        let networks = record.run.networks.as_mut().unwrap();
        networks.iter_mut().filter(|n| n.name == "OE450M").for_each(|n| n.weights_sha256 = Some(other.clone()));
        let refused = join(&record, slice::from_ref(&chosen)).refused;
        assert!(refused[0].contains("auxiliary: weights ffffffffffff there"), "{refused:?}");
        // Another name is no other thing.
        let mut renamed = self::record();
        for named in renamed.run.networks.iter_mut().flatten().filter(|n| n.name != "OE1.1B") {
            named.name.push_str("-copy");
        }
        assert!(join(&renamed, slice::from_ref(&file)).refused.is_empty());
    }

    #[test]
    fn times_of_another_machine_are_left_out() {
        let (record, mut file) = (record(), files::file());
        file.machine.cpu_model = Some("Other CPU".into());
        let joined = join(&record, slice::from_ref(&file));
        assert!(joined.remarks[0].contains("another CPU (Other CPU) than the record (Example CPU 9000)"));
        assert!(joined.sizes[0].marks.iter().all(|m| m.clock != Clock::Fidelity));
        assert_eq!(joined.sizes[0].marks[1].clock, Clock::Record, "what the record timed stays");
        file.machine = Default::default();
        file.machine.threads = Some(1);
        assert!(join(&record, slice::from_ref(&file)).remarks[0].contains("1 threads, and the record 2"));
    }

    #[test]
    fn an_auxiliary_alone_is_timed_by_the_record() {
        let (record, mut file) = (record(), files::file());
        let system = file.systems[0].name.clone();
        file.controls.push(control(ControlKind::AuxiliaryAlone, Some(&system), results([0.9, 0.9], [5, 5])));
        let joined = join(&record, slice::from_ref(&file));
        let mark = joined.sizes[0].marks.last().unwrap();
        assert_eq!((mark.clock, mark.cell.unwrap().id.as_str()), (Clock::Record, "ttft/OE450M/aux/b1/p256"));
        let joined = join(&record, slice::from_ref(&file));
        assert_eq!(joined.sizes[1].marks.last().unwrap().cell.unwrap().batch, 4);
    }

    #[test]
    fn the_front_is_what_nothing_usable_beats() {
        let mut file = files::file();
        let record = record();
        // Whatever the true caches answer, they are on no front.
        file.controls.retain(|c| c.kind != ControlKind::TruncationEqualTtft);
        let joined = join(&record, slice::from_ref(&file));
        let mut marks = joined.sizes[0].marks.clone();
        let at = |value: f64| Some(Estimate { value, interval: None::<Interval>, samples: 1 });
        for (mark, speedup) in marks.iter_mut().zip([1.0, 2.0, 3.0, 20.0, 1.5, 3.5, 2.0, 3.0, 2.0, 3.0]) {
            mark.speedup = at(speedup);
        }
        let scales = Scale::all(&file);
        let names = |scale: &Scale| scale.front(&marks);
        let exact = scales.iter().find(|s| s.figure == Figure::Exact && s.place == "needle").unwrap();
        // 80 at 1x, 60 at 2x, 27 at 3x, 20 at 3.5x (truncated), 0 at 20x; 32 at 1.5x is beaten.
        assert_eq!(names(exact), [0, 1, 2, 5, 3]);
        let kl = scales.iter().find(|s| s.figure == Figure::Kl && s.place == "manual.txt" && !s.first).unwrap();
        // The smaller system's .12 at 3x is beaten by the .10 of a truncated prompt at 3.5x.
        assert_eq!(names(kl), [0, 1, 5, 3]);
        // A mark without a time is on no front.
        marks[1].speedup = None;
        assert!(!kl.front(&marks).contains(&1));
    }

    #[test]
    fn full_prefill_has_lost_nothing() {
        let (record, file) = (record(), files::file());
        let joined = join(&record, slice::from_ref(&file));
        let base = &joined.sizes[0].marks[0];
        for scale in Scale::all(&file) {
            let value = scale.of(base).unwrap().value;
            let expected = match (scale.figure, scale.place) {
                (Figure::Kl | Figure::LossGap, _) => 0.0,
                (Figure::Exact, "copy") => 0.9,
                (Figure::Exact, _) => 0.8,
                _ => 1.0,
            };
            assert_eq!(value, expected, "{scale:?}");
        }
        assert_eq!(Scale::all(&file).iter().filter(|s| s.is_main()).count(), 2 + 2 + 2);
    }

    #[test]
    fn identities_of_the_samples_are_the_files() {
        let named: Vec<Named> = record().run.predictions.unwrap();
        assert_eq!(named[0].prediction, prediction("450M"));
        assert_ne!(identity("OE450M").weights_sha256, identity("OE270M").weights_sha256);
    }
}
