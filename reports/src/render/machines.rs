//! A set of machines: their peak and bandwidth, and what they make of one workload that most of them measured.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{
    RenderError, Run,
    blocks::*,
    charts,
    plot::{Axis, Ink, Mark, Plot, SERIES, swatch},
};
use crate::{
    format::{self, UNKNOWN, or_unknown},
    schema::{Dtype, Kind},
    stats::Estimate,
    summary::{self, Row},
};

/// A base at one batch and prompt length.
type Workload = (String, u32, u32);

/// A machine with what it makes of the workload.
struct Machine<'a> {
    run: Run<'a>,
    /// Type of the factors, and the peak in it, GFLOP/s.
    peak: Option<(Dtype, f64)>,
    /// 1e9 bytes per second.
    read: Option<f64>,
    base: Option<Row<'a>>,
    kvp: Vec<Row<'a>>,
}

impl Machine<'_> {
    fn seconds(&self) -> Option<f64> {
        Some(self.base.as_ref()?.ttft?.value)
    }
}

/// Charts and a table of the machines, the fastest first; nothing if no KV prediction was measured anywhere.
pub(crate) fn blocks(runs: &[Run], with_charts: bool) -> Result<Vec<Block>, RenderError> {
    let rows: Vec<Vec<Row>> = runs.iter().map(|run| summary::rows(run.record)).collect();
    let Some(workload) = workload(&rows) else { return Ok(Vec::new()) };
    let mut machines: Vec<Machine> = runs.iter().zip(rows).map(|(run, rows)| machine(*run, rows, &workload)).collect();
    machines.sort_by(|a, b| {
        let known = |m: &Machine| m.seconds().unwrap_or(f64::INFINITY);
        known(a).total_cmp(&known(b))
    });
    let (base, batch, prompt) = &workload;
    let of = machines.iter().filter(|m| m.base.is_some()).count();
    let mut blocks = vec![lead(format!(
        "{of} of {} runs measured {base} with {batch} x {prompt} prompt tokens; {}.",
        machines.len(),
        gains(&machines)
    ))];
    if with_charts {
        blocks.push(Block::Charts { charts: drawn(&machines, &workload)? });
    }
    blocks.push(Block::Table(listed(&machines)));
    blocks.push(text(format!(
        "Each row is a run, and the fastest stands first. The peak is measured in the type in which the run multiplied. TTFT is \
         that of {base} alone. Of every KV prediction its speedup over {base} is shown, and behind it the speedup over the \
         reduction of operations. (!): not to be trusted.",
    )));
    Ok(blocks)
}

/// The base and size that most runs measured KV prediction at; of several, the largest.
fn workload(runs: &[Vec<Row>]) -> Option<Workload> {
    let mut count: BTreeMap<Workload, usize> = BTreeMap::new();
    for rows in runs {
        let mut seen: Vec<Workload> = rows
            .iter()
            .filter(|r| r.cell.kind == Kind::Kvp && r.speedup.is_some())
            .map(|r| (r.cell.base.clone(), r.cell.batch, r.cell.prompt))
            .collect();
        seen.sort();
        seen.dedup();
        seen.into_iter().for_each(|w| *count.entry(w).or_default() += 1);
    }
    let size = |w: &Workload| u64::from(w.1) * u64::from(w.2);
    count.into_iter().max_by_key(|(w, n)| (*n, size(w), Reverse(w.1))).map(|(w, _)| w)
}

fn machine<'a>(run: Run<'a>, rows: Vec<Row<'a>>, (base, batch, prompt): &Workload) -> Machine<'a> {
    let limits = &run.record.run.limits;
    let mut here: Vec<Row> = rows
        .into_iter()
        .filter(|r| (r.cell.batch, r.cell.prompt) == (*batch, *prompt) && r.cell.base == *base)
        .collect();
    let at = here.iter().position(|r| r.cell.system == *base && r.ttft.is_some());
    let base = at.map(|at| here.remove(at));
    here.retain(|r| r.cell.kind == Kind::Kvp && r.speedup.is_some());
    let dtype = base.as_ref().and_then(|b| b.cell.compute_dtype);
    let peak = dtype.and_then(|d| Some((d, limits.peak_gflops(d)?)));
    Machine { run, peak, read: limits.read_gb_per_s, base, kvp: here }
}

/// By how much KV prediction gains, over all machines.
fn gains(machines: &[Machine]) -> String {
    let all: Vec<f64> = machines.iter().flat_map(|m| &m.kvp).filter_map(|r| Some(r.speedup?.estimate.value)).collect();
    format!("KV prediction is {} as fast there", range(&all, format::ratio))
}

fn mark(row: &Row) -> &'static str {
    if row.doubts.is_empty() { "" } else { " (!)" }
}

fn listed(machines: &[Machine]) -> Table {
    let fields = |m: &Machine| {
        let info = &m.run.record.run.machine;
        let kvp = |r: &Row| {
            let speedup = r.speedup.map(|s| format::ratio(s.estimate.value));
            let share = r.efficiency.map(|e| format!(" ({:.2})", e.value)).unwrap_or_default();
            format!("{} {}{share}{}", r.cell.system, or_unknown(speedup), mark(r))
        };
        let all: Vec<String> = m.kvp.iter().map(kvp).collect();
        vec![
            m.run.name.to_owned(),
            or_unknown(info.cpu_model.clone()),
            or_unknown(m.run.record.run.limits.threads.map(|t| t.to_string())),
            or_unknown(m.peak.map(|(d, p)| format!("{} ({})", format::figure(p), d.name()))),
            or_unknown(m.read.map(format::figure)),
            or_unknown(m.seconds().map(|s| format!("{}{}", format::seconds(s), m.base.as_ref().map_or("", mark)))),
            if all.is_empty() { UNKNOWN.into() } else { all.join(", ") },
        ]
    };
    let head = ["run", "CPU", "threads", "peak, GFLOP/s", "read, GB/s", "TTFT of the base", "KV prediction"];
    table("", &head, &[0, 1, 6], machines.iter().map(fields).collect())
}

/// A quantity of machines that is drawn as bars.
struct Quantity {
    id: &'static str,
    title: String,
    unit: &'static str,
    of: fn(&Machine) -> Option<Estimate>,
    show: fn(f64) -> String,
    caption: &'static str,
}

fn drawn(machines: &[Machine], (base, batch, prompt): &Workload) -> Result<Vec<Chart>, RenderError> {
    const fn plain(value: f64) -> Estimate {
        Estimate { value, interval: None, samples: 1 }
    }
    let quantities = [
        Quantity {
            id: "ttft",
            title: format!("TTFT of {base}, {batch} x {prompt}"),
            unit: "time to first token",
            of: |m| m.base.as_ref()?.ttft,
            show: |s| if s == 0.0 { "0".into() } else { format::seconds(s) },
            caption: "Shorter is better. The line at the end of a bar is its interval.",
        },
        Quantity {
            id: "peak",
            title: "Measured peak".into(),
            unit: "GFLOP/s",
            of: |m| Some(plain(m.peak?.1)),
            show: format::figure,
            caption: "What all threads reach together, in the type in which the run multiplied.",
        },
        Quantity {
            id: "read",
            title: "Measured read bandwidth".into(),
            unit: "GB/s",
            of: |m| Some(plain(m.read?)),
            show: format::figure,
            caption: "What all threads read from memory together.",
        },
    ];
    let mut charts: Vec<Chart> = gain(machines)?.into_iter().collect();
    for quantity in quantities {
        charts.extend(bars(machines, &quantity)?);
    }
    Ok(charts)
}

fn bars(machines: &[Machine], quantity: &Quantity) -> Result<Option<Chart>, RenderError> {
    let values: Vec<Option<Estimate>> = machines.iter().map(quantity.of).collect();
    let longest = values.iter().flatten().map(|e| e.interval.map_or(e.value, |i| i.high)).fold(0.0, f64::max);
    if longest <= 0.0 {
        return Ok(None);
    }
    let mut marks = Vec::new();
    for (i, (machine, value)) in machines.iter().zip(values).enumerate() {
        let top = i as f64;
        let words = format!("{}: {}", machine.run.name, or_unknown(value.map(|e| (quantity.show)(e.value))));
        marks.push(Mark::Heading { y: top + 0.24, words: words.clone() });
        let Some(value) = value else { continue };
        let (from, to) = ((0.0, top + 0.48), (value.value, top + 0.9));
        marks.push(Mark::Area { from, to, ink: Ink::Series(0), text: words });
        if let Some(interval) = value.interval {
            let points = vec![(interval.low, top + 0.69), (interval.high, top + 0.69)];
            marks.push(Mark::Line { points, ink: Ink::Text, width: 4, dashed: false });
        }
    }
    let plot = Plot {
        id: format!("machines-{}", quantity.id),
        title: quantity.title.clone(),
        description: format!("A bar for each of {} runs.", machines.len()),
        height: charts::rows_height(machines.len()),
        left: 14,
        x: Axis::linear(quantity.unit, [0.0, longest], quantity.show),
        y: Axis::rows(machines.len()),
        marks,
    };
    charts::chart(plot, quantity.caption, Vec::new()).map(Some)
}

/// What KV prediction gains on every machine: a mark for each system, and a line where its operations would put it.
fn gain(machines: &[Machine]) -> Result<Option<Chart>, RenderError> {
    let mut systems: Vec<&str> = Vec::new();
    for row in machines.iter().flat_map(|m| &m.kvp) {
        if !systems.contains(&row.cell.system.as_str()) {
            systems.push(&row.cell.system);
        }
    }
    let series = |row: &Row| systems.iter().position(|s| *s == row.cell.system).unwrap_or(0);
    let reduction = |row: &Row| row.flops_reduction.or(row.paper_flops_reduction);
    let mut marks = Vec::new();
    let mut reach = vec![1.0];
    for (i, machine) in machines.iter().enumerate() {
        let top = i as f64;
        marks.push(Mark::Heading { y: top + 0.24, words: machine.run.name.into() });
        for row in &machine.kvp {
            let (Some(speedup), y) = (row.speedup.map(|s| s.estimate), top + 0.7) else { continue };
            let ink = Ink::Series(series(row));
            let of = reduction(row).map(|r| format!(" of {} of operations", format::ratio(r))).unwrap_or_default();
            let text =
                format!("{}: {} {}{of}{}", machine.run.name, row.cell.system, format::ratio(speedup.value), mark(row));
            if let Some(r) = reduction(row) {
                marks.push(Mark::Line { points: vec![(r, y - 0.2), (r, y + 0.2)], ink, width: 5, dashed: false });
                marks.push(Mark::Line { points: vec![(speedup.value, y), (r, y)], ink, width: 2, dashed: true });
                reach.push(r);
            }
            marks.push(Mark::Point { x: speedup.value, y, interval: None, series: series(row), text });
            reach.push(speedup.value);
        }
    }
    if reach.len() == 1 {
        return Ok(None);
    }
    let plot = Plot {
        id: "machines-gain".into(),
        title: "What KV prediction gains".into(),
        description: format!("Speedups of {} systems over their base in {} runs.", systems.len(), machines.len()),
        height: charts::rows_height(machines.len()),
        left: 14,
        x: Axis::linear("times as fast as the base", reach, format::ratio),
        y: Axis::rows(machines.len()),
        marks,
    };
    // More systems than colours share them.
    let legend = systems.iter().enumerate().take(SERIES);
    let legend = legend.map(|(i, name)| Entry { name: (*name).into(), swatch: swatch(i) }).collect();
    let caption = "Each mark is a system. The upright line of its colour is the reduction of operations: the speedup, if all \
                   operations saved were time saved.";
    charts::chart(plot, caption, legend).map(Some)
}
