//! What a report says: titles, paragraphs, tables and charts, before any format.

use std::collections::BTreeSet;

use super::{RenderError, Run, blocks::*, charts, cold, energy, machines, method, side_by_side, tradeoff, verdict::*};
use crate::{
    compare::{self, Side},
    facts,
    format::{self, UNKNOWN, or_unknown},
    paper,
    schema::{Cell, Gate, Kind, Limits, Percentiles, Placement, Record},
    stats,
    summary::{self, Row},
    validate,
};

/// The parts of a report, in order, with what they say. All but the first two and the last stand there once for each run.
pub const PARTS: [(&str, &str); 11] = [
    ("machines", "several runs by peak, bandwidth, TTFT and what KV prediction gains"),
    ("comparison", "the runs side by side, on equal work"),
    ("verdict", "does the FLOPs reduction become a TTFT reduction, where not, and why"),
    ("tradeoff", "with a fidelity file: speed against what became of the answer"),
    ("charts", "all other charts"),
    ("cells", "the figures of every cell"),
    ("phases", "time and work of every phase, generation after the first token, energy"),
    ("paper", "beside the paper's machine: its Table 5 and Figures 1 and 5b"),
    ("validity", "drift, load, memory, noise: which cells not to trust"),
    ("run", "command, settings, revision, machine"),
    ("method", "method and bias"),
];

/// What a report of these runs says: the `parts` named, of [`PARTS`], or all if none is. Charts are left out if
/// `with_charts` is false.
///
/// # Errors
/// No run; parts of which these runs have none; a chart that cannot be drawn.
pub fn document(runs: &[Run], with_charts: bool, parts: &[&str]) -> Result<Document, RenderError> {
    if runs.is_empty() {
        return Err(RenderError::NoRuns);
    }
    let wanted = |part: &str| parts.is_empty() || parts.contains(&part);
    let mut sections = Vec::new();
    let mut traded = traded(runs, with_charts)?;
    if runs.len() > 1 && wanted("machines") {
        let blocks = machines::blocks(runs, with_charts)?;
        if !blocks.is_empty() {
            let title = "The machines".to_string();
            let (id, short, run) = ("machines".into(), "Machines".into(), String::new());
            sections.push(Section { id, short, title, run, blocks });
        }
    }
    if runs.len() > 1 && wanted("comparison") {
        sections.push(comparison(runs));
    }
    for (i, side) in runs.iter().enumerate() {
        let name = if runs.len() > 1 { side.name } else { "" };
        let mut add = |id: &str, short: &str, title: &str, blocks: Vec<Block>| {
            if !blocks.is_empty() && wanted(id) {
                let title = if name.is_empty() { title.into() } else { format!("{name}: {title}") };
                sections.push(Section {
                    id: format!("{id}-{i}"),
                    title,
                    short: short.into(),
                    run: name.into(),
                    blocks,
                });
            }
        };
        let rows = summary::rows(side.record);
        let validation = validate::validate(side.record);
        let mut answer = verdict(&validation);
        answer.extend(cold::blocks(&rows));
        let id = format!("r{i}");
        if with_charts && !validation.claims.is_empty() {
            let charts = charts::first(&id, &rows)?;
            answer.splice(ANSWER..ANSWER, (!charts.is_empty()).then_some(Block::Charts { charts }));
        }
        let alone = validation.claims.is_empty() && rows.iter().any(|r| r.ttft.is_some());
        if alone {
            let charts = if with_charts { charts::alone(&id, &rows)? } else { Vec::new() };
            let charts = (!charts.is_empty()).then_some(Block::Charts { charts });
            let words = [lead(alone_text(&rows)), text(NOTHING_BESIDE)];
            answer.splice(..0, words.into_iter().chain(charts));
            add("verdict", "First token", "How long does the first token take?", answer);
        } else {
            add("verdict", "Verdict", "Does the FLOPs reduction become a TTFT reduction?", answer);
        }
        add("tradeoff", "Trade-off", "What becomes of the answer?", std::mem::take(&mut traded[i]));
        if with_charts {
            let charts = charts::others(&id, side.record, &rows)?;
            let charts = (!charts.is_empty()).then_some(Block::Charts { charts });
            add("charts", "Charts", "Charts", charts.into_iter().collect());
        }
        let mut all = cells(&rows);
        if !all.is_empty() {
            let said = facts::units(side.record).into_iter().map(|said| text(format!("Of the peak: {said}.")));
            let read = facts::reading(side.record).map(|said| text(format!("Of the read bandwidth: {said}.")));
            all.splice(..0, said.chain(read));
        }
        add("cells", "Cells", "All cells", all);
        add("phases", "Phases", "Phases", phases(&side.record.run.limits, &rows));
        add("paper", "Paper", "Beside the paper's machine", beside_the_paper(side.record, &rows));
        add("validity", "Trust", "Can the figures be trusted?", validity(side.record, &rows));
        add("run", "Machine", "Run and machine", run(side.record));
    }
    let title = "Method and bias".to_string();
    if wanted("method") {
        let (id, short, run) = ("method".into(), "Method".into(), String::new());
        sections.push(Section { id, short, title, run, blocks: method::blocks() });
    }
    if sections.is_empty() {
        return Err(RenderError::Nothing(parts.join(", ")));
    }
    let names: Vec<&str> = runs.iter().map(|s| s.name).collect();
    let machines: Vec<String> = runs.iter().map(|s| facts::machine(&s.record.run)).collect();
    Ok(Document {
        title: format!("Time to first token: {}", names.join(", ")),
        subtitle: machines.join("; "),
        sections,
    })
}

/// The trade-off of each run. Where at least one is joined with its fidelity file, the others say why they are not.
fn traded(runs: &[Run], with_charts: bool) -> Result<Vec<Vec<Block>>, RenderError> {
    let made = runs.iter().enumerate().map(|(i, run)| tradeoff::blocks(run, &format!("r{i}"), with_charts));
    let made: Vec<Result<Vec<Block>, RenderError>> = made.collect();
    let joined = made.iter().flatten().any(|blocks| !blocks.is_empty());
    let told = |made| match made {
        Err(RenderError::NotJoined(_, why)) if joined => {
            Ok(vec![text(format!("This run and the fidelity file are not joined. {why}"))])
        }
        made => made,
    };
    made.into_iter().map(told).collect()
}

/// What stands in a run whose systems have nothing beside them.
const NOTHING_BESIDE: &str = "No system was measured beside its base, so this run says nothing of FLOPs reductions: the \
    presets quick, fig5b and table5 measure them.";

/// The answer of a run without comparisons: times, and what they are in generation steps.
fn alone_text(rows: &[Row]) -> String {
    let mut systems: Vec<&str> = Vec::new();
    for row in rows {
        if !systems.contains(&row.cell.system.as_str()) {
            systems.push(&row.cell.system);
        }
    }
    let of = |system: &&str| {
        let rows = || rows.iter().filter(|r| r.cell.system == *system);
        let times: Vec<f64> = rows().filter_map(|r| Some(r.ttft?.value)).collect();
        let steps = steps_range(rows()).map(|range| format!(", or {range} generation steps")).unwrap_or_default();
        format!("{system} takes {}{steps}.", range(&times, format::seconds))
    };
    systems.iter().map(of).collect::<Vec<_>>().join(" ")
}

/// Two modes of a cell in words.
pub(crate) fn modes(row: &Row) -> Option<String> {
    Some(format!("{}: {}", row.cell.id, row.modes?))
}

/// Samples, and the processes they come from if there are several.
fn samples(row: &Row) -> String {
    match (row.cell.samples_ns.len(), row.processes) {
        (samples, 0 | 1) => samples.to_string(),
        (samples, processes) => format!("{samples} in {processes} processes"),
    }
}

fn cells(rows: &[Row]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let fields = |row: &Row| {
        let own = row.cell.system == row.cell.base;
        let reduction = row.flops_reduction.or(row.paper_flops_reduction).filter(|_| !own);
        vec![
            row.cell.system.clone(),
            row.cell.kind.name().into(),
            size(row.cell),
            or_unknown(row.ttft.map(|t| with_interval(format::seconds(t.value), format::seconds_interval(&t)))),
            samples(row),
            or_unknown(row.tokens_per_s.map(format::figure)),
            or_unknown(row.gflops.map(format::figure)),
            or_unknown(row.peak_share.map(format::percent)),
            or_unknown(row.roofline.map(format::seconds)),
            or_unknown(row.speedup.filter(|_| !own).map(|s| format::ratio(s.estimate.value))),
            or_unknown(reduction.map(format::ratio)),
            or_unknown(row.cell.precision.map(|p| p.name().into())),
            or_unknown(row.cell.threads.map(|t| t.to_string())),
        ]
    };
    let head = [
        "system",
        "kind",
        "b x p",
        "TTFT",
        "samples",
        "tokens/s",
        "GFLOP/s",
        "of peak",
        "roofline",
        "TTFT red.",
        "FLOPs red.",
        "type",
        "threads",
    ];
    let all = table("", &head, &[0, 1], rows.iter().map(fields).collect());
    push_table(&mut blocks, all.mark(marked(rows.iter())));
    let modes: Vec<String> = rows.iter().filter_map(modes).collect();
    if !modes.is_empty() {
        blocks.push(text("Times of two modes, which one figure does not describe:"));
        blocks.push(Block::List { items: modes });
    }
    if rows.iter().any(|r| r.roofline.is_some()) {
        blocks.push(text(
            "The roofline is the TTFT that a system would have if every phase took the longer of two times, its FLOPs at the \
             measured peak or its bytes at the measured bandwidth, and nothing else took time.",
        ));
    }
    blocks
}

/// Unattributed shares of TTFT below this are left out.
const LEAST_REST: f64 = 0.001;

fn phases(limits: &Limits, rows: &[Row]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = Vec::new();
    for row in rows {
        let rest = stats::median(&summary::seconds(&row.cell.unattributed_ns()));
        let limits = summary::limits_of(limits, row.cell);
        for phase in row.cell.phases.iter().chain(&row.cell.head) {
            let time = stats::median(&summary::seconds(&phase.samples_ns)).filter(|t| *t > 0.0);
            let per = |amount: Option<u64>| Some(amount? as f64 * 1e-9 / time?);
            let flops = phase.cost.map(|c| c.flops.total());
            let bytes = phase.cost.map(|c| c.bytes());
            let of_peak = || Some(limits.arithmetic(phase.cost.as_ref()?, row.cell.compute_dtype)? / time?);
            let of_read = || Some(per(bytes)? / limits.read_gb_per_s?);
            let part = row.cell.head.as_ref().is_some_and(|head| std::ptr::eq(head, phase));
            lines.push(vec![
                row.cell.system.clone(),
                if part { format!("of this, {}", phase.name) } else { phase.name.clone() },
                size(row.cell),
                or_unknown(time.map(format::seconds)),
                or_unknown(time.zip(row.ttft).map(|(t, all)| format::percent(t / all.value))),
                or_unknown(flops.map(format::flops)),
                or_unknown(per(flops).map(format::figure)),
                or_unknown(of_peak().map(format::percent)),
                or_unknown(bytes.map(format::bytes)),
                or_unknown(per(bytes).map(format::figure)),
                or_unknown(of_read().map(format::percent)),
                or_unknown(phase.parallel_regions.map(|r| r.to_string())),
            ]);
        }
        if let (Some(rest), Some(ttft), false) = (rest, row.ttft, row.cell.phases.is_empty())
            && rest / ttft.value >= LEAST_REST
        {
            let known = [row.cell.system.clone(), "unattributed".into(), size(row.cell), format::seconds(rest)];
            let share = format::percent(rest / ttft.value);
            let unknown = std::iter::repeat_n(UNKNOWN.to_string(), 7);
            lines.push(known.into_iter().chain([share]).chain(unknown).collect());
        }
    }
    let head = [
        "system",
        "phase",
        "b x p",
        "time",
        "of TTFT",
        "FLOPs",
        "GFLOP/s",
        "of peak",
        "weights + cache",
        "GB/s",
        "of read",
        "parallel regions",
    ];
    if !lines.is_empty() {
        blocks.push(Block::Table(table("", &head, &[0, 1], lines)));
        let least = format::percent(LEAST_REST);
        blocks.push(text(format!(
            "The part of TTFT that no phase accounts for is unattributed; it is listed where it is {least} or more. \
             The last two shares are of the measured peak and of the measured read bandwidth: a phase that memory bounds is near 100% of \
             the second. What is read again while it is in a cache can take it above."
        )));
    }
    push_table(&mut blocks, generation(rows));
    blocks.extend(energy::blocks(rows));
    blocks
}

/// Time for each token after the first, beside the base's and the TTFT.
pub(crate) fn generation(rows: &[Row]) -> Table {
    let fields = |row: &Row| {
        let step = row.step?;
        let ratio = row.step_ratio.filter(|_| row.cell.system != row.cell.base);
        Some(vec![
            row.cell.system.clone(),
            size(row.cell),
            with_interval(format::seconds(step.value), format::seconds_interval(&step)),
            or_unknown(ratio.map(|r| with_interval(format!("{:.3}", r.value), format::interval(&r)))),
            or_unknown(row.ttft_steps.map(|s| with_interval(format::figure(s.value), format::interval(&s)))),
        ])
    };
    let head = ["system", "b x p", "time per next token", "of the base's", "TTFT / step"];
    table("Generation after the first token", &head, &[0], rows.iter().filter_map(fields).collect())
}

fn beside_the_paper(record: &Record, rows: &[Row]) -> Vec<Block> {
    if rows.iter().all(|r| r.cell.published.is_some()) {
        let notes = record.run.notes.clone();
        return if notes.is_empty() { Vec::new() } else { vec![Block::List { items: notes }] };
    }
    // The paper's starts are warm.
    if rows.iter().any(|r| r.cell.cold.is_some()) {
        return Vec::new();
    }
    let mut blocks = figure_1(rows);
    blocks.extend(figure_5b(rows));
    let paper = paper::table5();
    let measured = |c: &Cell| rows.iter().any(|r| r.cell.scenario_hash == c.scenario_hash);
    if !blocks.is_empty() && !paper.cells.iter().any(measured) {
        return blocks;
    }
    let mut lines = Vec::new();
    let mut marked = Vec::new();
    let mut elsewhere = false;
    let mut faults: Vec<String> = paper.run.notes.clone();
    for theirs in summary::rows(&paper) {
        // The same work; else the same system at its largest size.
        let same = rows.iter().find(|r| r.cell.scenario_hash == theirs.cell.scenario_hash);
        let largest = || {
            let of_system =
                rows.iter().filter(|r| r.cell.system == theirs.cell.system && r.cell.base == theirs.cell.base);
            of_system.max_by_key(|r| u64::from(r.cell.batch) * u64::from(r.cell.prompt))
        };
        let Some(ours) = same.or_else(largest) else { continue };
        elsewhere |= same.is_none();
        let published = theirs.cell.published.as_ref();
        if let Some(list) = published.map(|p| &p.faults).filter(|f| !f.is_empty()) {
            marked.push(lines.len());
            faults.extend(list.iter().map(|fault| format!("{}: {fault}", theirs.cell.system)));
        }
        let speedup = |row: &Row| row.speedup.map(|s| s.estimate.value);
        let quotient = |row: &Row, reduction: Option<f64>| {
            or_unknown(speedup(row).zip(reduction).map(|(s, r)| format!("{:.2}", s / r)))
        };
        lines.push(vec![
            theirs.cell.system.clone(),
            or_unknown(theirs.paper_flops_reduction.map(format::ratio)),
            or_unknown(ours.flops_reduction.map(format::ratio)),
            or_unknown(theirs.ttft.map(|t| format::seconds(t.value))),
            or_unknown(ours.ttft.map(|t| format::seconds(t.value))),
            or_unknown(speedup(&theirs).map(format::ratio)),
            or_unknown(speedup(ours).map(format::ratio)),
            quotient(&theirs, theirs.paper_flops_reduction),
            quotient(&theirs, ours.flops_reduction.filter(|_| same.is_some())),
            quotient(ours, ours.flops_reduction),
            size(ours.cell),
        ]);
    }
    if lines.is_empty() {
        return blocks;
    }
    let head = [
        "system",
        "FLOPs red., paper",
        "FLOPs red., exact here",
        "TTFT, M2 Pro",
        "TTFT, here",
        "TTFT red., M2 Pro",
        "TTFT red., here",
        "ratio, M2 Pro, paper's FLOPs",
        "ratio, M2 Pro, exact",
        "ratio, here, exact",
        "b x p here",
    ];
    blocks.push(text(
        "The paper timed batch 64 with prompts of 59 tokens with PyTorch on the CPU of an Apple M2 Pro. The ratio is the \
         TTFT reduction over the FLOPs reduction, by the paper's own FLOPs or by the exact count of this run, which leaves out what \
         the first token does not need if the extent is first_token.",
    ));
    if elsewhere {
        blocks.push(text(
            "This run did not measure all of these at 64 x 59: such rows show the largest size it measured. Their times \
             are not comparable; their reductions are, with care.",
        ));
    }
    let table = table("Table 5 of the paper beside this run", &head, &[0], lines);
    blocks.push(Block::Table(table.mark(marked)));
    blocks.push(Block::List { items: faults });
    blocks
}

/// The paper's Figure 1 beside this run: one network alone, and its TTFT in generation steps.
fn figure_1(rows: &[Row]) -> Vec<Block> {
    let theirs = paper::FIGURE_1;
    let of_figure = |r: &&Row| r.cell.system == theirs.system && r.cell.kind == Kind::Base && r.ttft_steps.is_some();
    let mut rows: Vec<&Row> = rows.iter().filter(of_figure).collect();
    let Some(range) = steps_range(rows.iter().copied()) else { return Vec::new() };
    rows.sort_by_key(|r| (r.cell.batch, r.cell.prompt));
    let (batch, prompt) = theirs.point;
    let fields = |row: &&Row| {
        let there = (row.cell.batch, row.cell.prompt) == theirs.point;
        let of_paper = |value: String| if there { value } else { UNKNOWN.into() };
        vec![
            size(row.cell),
            or_unknown(row.ttft.map(|t| with_interval(format::seconds(t.value), format::seconds_interval(&t)))),
            or_unknown(row.step.map(|s| format::seconds(s.value))),
            or_unknown(row.ttft_steps.map(|s| with_interval(format::figure(s.value), format::interval(&s)))),
            of_paper(format::seconds(theirs.ttft_s)),
            of_paper(format::figure(theirs.steps)),
        ]
    };
    let head = ["b x p", "TTFT, here", "step, here", "TTFT / step, here", "TTFT, M2 Pro", "TTFT / step, M2 Pro"];
    let lines = rows.iter().map(fields).collect();
    let table = table("Figure 1 of the paper beside this run", &head, &[], lines).mark(marked(rows.into_iter()));
    vec![
        lead(format!("{}: TTFT is {range} generation steps here.", theirs.system)),
        text(format!(
            "Of its Figure 1, {} alone over prompt length and batch, the paper's text gives one point, {prompt} tokens at \
             batch {batch}: {} on the M2 Pro, {} times one generation step (the time for each token after the first).",
            theirs.system,
            format::seconds(theirs.ttft_s),
            format::figure(theirs.steps)
        )),
        Block::Table(table),
    ]
}

/// How many generation steps the first token takes, from the least to the most.
fn steps_range<'a>(rows: impl Iterator<Item = &'a Row<'a>>) -> Option<String> {
    let steps: Vec<f64> = rows.filter_map(|r| Some(r.ttft_steps?.value)).collect();
    (!steps.is_empty()).then(|| range(&steps, format::figure))
}

/// The paper's Figure 5b beside this run: KV prediction, its auxiliary alone and its base over prompt length.
fn figure_5b(rows: &[Row]) -> Vec<Block> {
    let theirs = paper::FIGURE_5B;
    let mut lines = Vec::new();
    let mut doubted = Vec::new();
    let (mut times, mut works) = (Vec::new(), Vec::new());
    let of_figure = |r: &&Row| {
        r.cell.system == theirs.system && r.cell.batch == theirs.batch && theirs.prompts.contains(&r.cell.prompt)
    };
    for row in rows.iter().filter(of_figure) {
        let alone = summary::auxiliary_of(rows.iter().map(|r| r.cell), row.cell);
        let Some((alone, over)) =
            alone.and_then(|alone| Some((alone, summary::ratio(row.limits, row.cell, alone)?.estimate)))
        else {
            continue;
        };
        let work = row
            .cell
            .cost()
            .zip(alone.cost())
            .map(|(all, part)| all.flops.total() as f64 / part.flops.total() as f64 - 1.0);
        times.push(over.value - 1.0);
        works.extend(work);
        // The base's time as the speedup has it, which is paired where the rounds are.
        let base = rows
            .iter()
            .find(|r| r.cell.kind == Kind::Base && size(r.cell) == size(row.cell) && r.cell.base == row.cell.base);
        let three = [Some(row), rows.iter().find(|r| std::ptr::eq(r.cell, alone)), base];
        if three.into_iter().flatten().any(|r| !r.doubts.is_empty()) {
            doubted.push(lines.len());
        }
        let [kvp, alone, base] = three.map(|r| or_unknown(r.and_then(|r| r.ttft).map(|t| format::seconds(t.value))));
        let speedup =
            row.speedup.map(|s| with_interval(format::ratio(s.estimate.value), format::ratio_interval(&s.estimate)));
        lines.push(vec![
            size(row.cell),
            base,
            alone,
            kvp,
            or_unknown(speedup),
            over_text(&over),
            or_unknown(work.map(format::percent)),
            theirs.over_auxiliary.into(),
        ]);
    }
    if lines.is_empty() {
        return Vec::new();
    }
    let head = [
        "b x p",
        "TTFT, base",
        "TTFT, auxiliary",
        "TTFT, KV prediction",
        "TTFT red. over the base",
        "TTFT over the auxiliary's, here",
        "by FLOPs alone",
        "TTFT over the auxiliary's, M2 Pro",
    ];
    let by_flops = if works.is_empty() {
        String::new()
    } else {
        format!("; its FLOPs alone are {} more", range(&works, format::percent))
    };
    let title = "Figure 5b of the paper beside this run";
    vec![
        lead(format!(
            "{} takes {} longer to its first token than its auxiliary alone here{by_flops}.",
            theirs.system,
            range(&times, format::percent)
        )),
        text(format!(
            "Of its Figure 5b, {} at batch {} over prompt length, the paper's text says that it is within {} of its auxiliary \
             alone on the M2 Pro.",
            theirs.system, theirs.batch, theirs.over_auxiliary
        )),
        Block::Table(table(title, &head, &[], lines).mark(doubted)),
    ]
}

/// Where threads ran and on which pages memory lay, of all cells together.
fn placement_text(record: &Record, measured: &[&Row]) -> Option<String> {
    let all: Vec<&Placement> = measured.iter().filter_map(|r| r.cell.placement.as_ref()).collect();
    let first = all.first()?;
    let cpus: Option<BTreeSet<u32>> = all
        .iter()
        .map(|p| p.cpus.as_ref())
        .collect::<Option<Vec<_>>>()
        .map(|c| c.into_iter().flatten().flatten().copied().collect());
    let moved = all.iter().filter(|p| p.cpus.iter().flatten().any(|each| each.len() > 1)).count();
    let mut parts = vec![match cpus {
        Some(cpus) => {
            let list: Vec<String> = cpus.iter().map(ToString::to_string).collect();
            let bound = if first.pinned { ", each thread bound to one" } else { "" };
            let changes = match moved {
                0 => String::new(),
                n => format!("; in {n} of {} cells a thread changed its CPU from sample to sample", all.len()),
            };
            format!("Threads ran on CPUs {}{bound}{changes}", list.join(", "))
        }
        None => "The system does not tell on which CPUs threads ran".into(),
    }];
    let nodes = all.iter().filter_map(|p| p.nodes.as_ref()).flatten().collect::<BTreeSet<_>>().len();
    if let (Some(there), 1..) = (record.run.machine.numa_nodes, nodes) {
        parts.push(format!("on {nodes} of {there} NUMA node{}", if there == 1 { "" } else { "s" }));
    }
    if let Some(most) = all.iter().filter_map(|p| p.involuntary_switches).max() {
        parts.push(format!("threads had to leave their CPUs {most} times in a cell at most"));
    }
    let least = |of: fn(&Placement) -> Option<u64>| all.iter().filter_map(|p| of(p)).min().map(format::bytes);
    if let Some((anon, files)) = least(|p| p.anon_huge_bytes).zip(least(|p| p.file_huge_bytes)) {
        parts.push(format!("at least {anon} of working memory and {files} of weights lay on huge pages"));
    }
    Some(format!("{}.", parts.join("; ")))
}

fn validity(record: &Record, rows: &[Row]) -> Vec<Block> {
    let measured: Vec<&Row> = rows.iter().filter(|r| r.cell.published.is_none()).collect();
    let mut blocks = Vec::new();
    if !measured.is_empty() {
        let doubted = measured.iter().filter(|r| !r.doubts.is_empty()).count();
        blocks.push(lead(match doubted {
            0 => format!("There is no reason to distrust any of the {} cells.", measured.len()),
            n => format!("{n} of {} cells are not to be trusted; they are marked.", measured.len()),
        }));
        let m = &record.run.machine;
        blocks.push(text(format!(
            "The governor was {}, the frequency {}, the load average at the start {}, and {}. A cell is doubted if the speed probe moved by \
             more than {} over it, if the interval of its TTFT is wider than {}, if later samples are more than {} slower \
             beyond chance, if a warm start read weights from disk or a cold one did not, if more was running than there are \
             cores, if heat slowed the clock, or if no correctness gate was passed.",
            m.governor.as_deref().unwrap_or("unknown"),
            m.frequency_mhz.map_or("unknown".into(), |f| format!("{f:.0} MHz")),
            m.load_1m.map_or("unknown".into(), |l| format!("{l:.2}")),
            match m.virtualised {
                Some(true) => "the system a virtual machine",
                Some(false) => "the system not virtualised",
                None => "whether the system is virtual is unknown",
            },
            format::percent(summary::MAX_DRIFT),
            format::percent(summary::MAX_SPREAD),
            format::percent(summary::MAX_TREND),
        )));
    }
    let fields = |row: &&Row| {
        let cell = row.cell;
        let memory = cell.memory.as_ref();
        let seconds = summary::seconds(&cell.samples_ns);
        let deviation = stats::mad(&seconds).zip(row.ttft).map(|(mad, t)| format::percent(mad / t.value));
        let doubts: Vec<String> = row.doubts.iter().map(ToString::to_string).collect();
        vec![
            cell.system.clone(),
            if doubts.is_empty() { "-".into() } else { doubts.join(", ") },
            size(cell),
            cell.samples_ns.len().to_string(),
            or_unknown(row.ttft.and_then(|t| t.spread()).map(format::percent)),
            or_unknown(deviation),
            or_unknown(cell.drift.as_ref().and_then(|d| d.change()).map(format::change)),
            or_unknown(cell.load_after.or(cell.load_before).map(|l| format!("{l:.1}"))),
            or_unknown(memory.and_then(|m| m.major_faults).map(|n| n.to_string())),
            or_unknown(memory.and_then(|m| m.minor_faults).map(|n| n.to_string())),
            or_unknown(memory.and_then(|m| m.peak_rss_bytes).map(format::bytes)),
            or_unknown(memory.and_then(|m| m.rss_anon_bytes).map(format::bytes)),
            or_unknown(cell.gate.as_ref().map(gate)),
            cell.attempt.to_string(),
        ]
    };
    let head = [
        "system",
        "doubts",
        "b x p",
        "samples",
        "interval",
        "MAD",
        "drift",
        "load",
        "major faults",
        "minor faults",
        "peak memory",
        "anonymous",
        "gate error",
        "attempt",
    ];
    let cells = table("", &head, &[0, 1], measured.iter().map(fields).collect());
    push_table(&mut blocks, cells.mark(marked(measured.iter().copied())));
    blocks.extend(placement_text(record, &measured).map(text));
    let percentiles = |row: &&Row| {
        let p = Percentiles::of(&row.cell.samples_ns).filter(|p| p.p90_ns.is_some())?;
        let shown = |ns: Option<u64>| or_unknown(ns.map(|ns| format::seconds(ns as f64 * 1e-9)));
        let names = [row.cell.system.clone(), size(row.cell), row.cell.samples_ns.len().to_string()];
        Some(names.into_iter().chain([p.p50_ns, p.p90_ns, p.p99_ns].map(shown)).collect())
    };
    let rows = measured.iter().filter_map(percentiles).collect();
    let title = "Percentiles of the samples (p90 takes 10 of them, p99 takes 100)";
    push_table(&mut blocks, table(title, &["system", "b x p", "samples", "p50", "p90", "p99"], &[0], rows));
    let skipped = facts::skipped(record).into_iter().map(|(cells, reason)| vec![cells, reason.to_owned()]).collect();
    push_table(&mut blocks, table("Skipped", &["cells", "reason"], &[0, 1], skipped));
    blocks
}

/// The errors of the correctness gate, each beside what rounding may do.
fn gate(g: &Gate) -> String {
    let short = format!("{:.1e} of {:.1e}", g.max_abs_err, g.tolerance);
    match (&g.longest, &g.longest_skipped) {
        (Some(l), _) => format!("{short}, {:.1e} of {:.1e} at {} tokens", l.max_abs_err, l.tolerance, l.prompt),
        (None, Some(_)) => format!("{short}, longest prompt skipped"),
        (None, None) => short,
    }
}

fn run(record: &Record) -> Vec<Block> {
    let run = &record.run;
    let m = &run.machine;
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            rows.push(vec![name.into(), value]);
        }
    };
    add("run", run.run_id.clone());
    add("started", run.started_at.clone().unwrap_or_default());
    add("command", run.command.join(" "));
    add("settings", facts::settings(run));
    add("scenario file", run.settings.scenario_sha256.as_ref().map(|s| format!("SHA-256 {s}")).unwrap_or_default());
    let git = run.git.as_ref().map(|g| match g.dirty {
        Some(true) => format!("{} (modified)", g.revision),
        Some(false) => g.revision.clone(),
        None => format!("{} (modified or not: unknown)", g.revision),
    });
    add("revision", git.unwrap_or_default());
    let version = run.ttft_version.as_ref().map(|v| format!("ttft {v}"));
    add("program", version.into_iter().chain(run.rustc.clone()).collect::<Vec<_>>().join(", "));
    add("machine", facts::machine(run));
    add("kernel", m.kernel.clone().unwrap_or_default());
    add("instruction sets", m.isa_features.join(" "));
    let caches = m.caches.iter().flatten().map(|c| {
        let shared = c.shared_by.map(|n| format!(", shared by {n}")).unwrap_or_default();
        format!("L{} {} {}{shared}", c.level, c.kind, format::bytes(c.bytes))
    });
    add("caches", caches.collect::<Vec<_>>().join("; "));
    let classes = m.core_classes.iter().flatten().map(|c| format!("{} {}", c.cores, c.name));
    add("core classes", classes.collect::<Vec<_>>().join(", "));
    add("limits", facts::limits(run));
    add("schema", run.schema.clone());
    let mut kernels: Vec<&str> = record.cells.iter().flat_map(|c| &c.kernels).map(String::as_str).collect();
    kernels.sort_unstable();
    kernels.dedup();
    add("kernels used", kernels.join(", "));
    for note in &run.notes {
        add("note", note.clone());
    }
    vec![Block::Table(table("", &["", ""], &[0, 1], rows))]
}

/// What decides where a report cannot.
const COMPARE: &str =
    "ttft compare on these records: it also uses the calibrations of their machines, and says what would decide";

fn comparison(runs: &[Run]) -> Section {
    let sides: Vec<Side> = runs.iter().map(|r| Side { name: r.name, records: vec![r.record] }).collect();
    let blocks = match compare::compare(&sides, &[]) {
        Err(error) => vec![text(format!("{error}."))],
        Ok(mut comparison) => {
            // A report takes no calibration, which may be what decides.
            if !comparison.commands.is_empty() {
                comparison.commands = vec![COMPARE.into()];
            }
            side_by_side::blocks(&comparison)
        }
    };
    let title = "Side by side".to_string();
    Section { id: "comparison".into(), short: title.clone(), title, run: String::new(), blocks }
}
