//! The charts of one run.

use std::collections::BTreeSet;

use super::{
    RenderError,
    blocks::{Chart, Entry},
    plot::{Axis, Ink, Mark, Plot, SERIES, area_swatch, swatch},
};
use crate::{
    format,
    schema::{Dtype, Kind, Record},
    stats,
    summary::{self, Row},
};

/// Most samples drawn for one cell.
const MOST_DOTS: usize = 200;

/// Most bars, or labelled points, of a chart that is taken in at a glance.
const FEW: usize = 12;

/// What answers at a glance: FLOPs against latency and, beside it, the phases of a few cells or the map of many. `prefix`
/// makes ids unique in a page.
pub fn first(prefix: &str, rows: &[Row]) -> Result<Vec<Chart>, RenderError> {
    let mut charts: Vec<Chart> = headline(prefix, rows, &Series::of(rows))?.into_iter().collect();
    match bars(rows).len() <= FEW {
        true => charts.extend(stacked_phases(prefix, rows)?),
        false => charts.extend(heat_maps(prefix, rows)?),
    }
    Ok(charts)
}

/// What answers at a glance where no system stands beside its base: TTFT and its generation steps over prompt length.
pub fn alone(prefix: &str, rows: &[Row]) -> Result<Vec<Chart>, RenderError> {
    let series = Series::of(rows);
    let mut charts = lines(prefix, rows, &TTFT, &LENGTH, &series)?;
    charts.extend(lines(&format!("{prefix}-steps"), rows, &STEPS, &LENGTH, &series)?);
    Ok(charts)
}

/// All other charts that the run has data for.
pub fn others(prefix: &str, record: &Record, rows: &[Row]) -> Result<Vec<Chart>, RenderError> {
    let series = Series::of(rows);
    let few = bars(rows).len() <= FEW;
    let mut charts = Vec::new();
    if rows.iter().any(|r| r.cell.system != r.cell.base) {
        charts.extend(lines(prefix, rows, &TTFT, &LENGTH, &series)?);
    }
    charts.extend(lines(prefix, rows, &TTFT, &BATCH, &series)?);
    if few {
        charts.extend(heat_maps(prefix, rows)?);
    }
    charts.extend(overhead(prefix, rows, &series)?);
    charts.extend(roofline(prefix, record, rows)?);
    if !few {
        charts.extend(stacked_phases(prefix, rows)?);
    }
    charts.extend(distributions(prefix, rows)?);
    Ok(charts)
}

/// Rows by colour and shape.
struct Series {
    names: Vec<String>,
    name: fn(&Row) -> String,
}

impl Series {
    /// One series for each system, or for each kind if there are more systems than colours.
    fn of(rows: &[Row]) -> Self {
        let systems = Self::by(rows, |r| r.cell.system.clone());
        if systems.names.len() <= SERIES {
            return systems;
        }
        let mut rows: Vec<&Row> = rows.iter().collect();
        rows.sort_by_key(|r| r.cell.kind);
        Self::by(rows, |r| r.cell.kind.name().into())
    }

    /// One series for each name that `name` gives.
    fn by<'a>(rows: impl IntoIterator<Item = &'a Row<'a>>, name: fn(&Row) -> String) -> Self {
        let mut names: Vec<String> = Vec::new();
        for row in rows {
            let name = name(row);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Self { names, name }
    }

    fn index(&self, row: &Row) -> usize {
        let name = (self.name)(row);
        self.names.iter().position(|n| *n == name).unwrap_or(0)
    }

    fn legend<'a>(&self, rows: impl Iterator<Item = &'a Row<'a>>) -> Vec<Entry> {
        let used: BTreeSet<usize> = rows.map(|r| self.index(r)).collect();
        used.into_iter().map(|i| Entry { name: self.names[i].clone(), swatch: swatch(i) }).collect()
    }
}

fn name(row: &Row) -> String {
    format!("{}, {} x {}", row.cell.system, row.cell.batch, row.cell.prompt)
}

fn bounds(estimate: &stats::Estimate) -> Option<(f64, f64)> {
    estimate.interval.map(|i| (i.low, i.high))
}

/// What an axis must hold of an estimate.
fn reach(estimate: &stats::Estimate) -> [f64; 3] {
    let (low, high) = bounds(estimate).unwrap_or((estimate.value, estimate.value));
    [estimate.value, low, high]
}

fn plain(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

pub(super) fn chart(plot: Plot, caption: &str, legend: Vec<Entry>) -> Result<Chart, RenderError> {
    let (svg, height) = (plot.svg()?, plot.height);
    Ok(Chart { title: plot.title, svg, height, caption: caption.into(), legend })
}

fn headline(prefix: &str, rows: &[Row], series: &Series) -> Result<Option<Chart>, RenderError> {
    let points: Vec<(&Row, f64, stats::Estimate)> = rows
        .iter()
        .filter(|r| r.cell.system != r.cell.base)
        .filter_map(|r| Some((r, r.flops_reduction.or(r.paper_flops_reduction)?, r.speedup?.estimate)))
        .collect();
    if points.is_empty() {
        return Ok(None);
    }
    let values = || points.iter().flat_map(|(_, x, y)| reach(y).into_iter().chain([*x])).chain([1.0]);
    let axis = |title: &str| Axis::linear(title, values(), |v| format!("{}x", plain(v)));
    let (x, y) = (axis("FLOPs reduction"), axis("TTFT reduction"));
    let ends = vec![(x.range.0, x.range.0), (x.range.1, x.range.1)];
    let mut marks = vec![Mark::Line { points: ends, ink: Ink::Muted, width: 3, dashed: true }];
    let at = x.range.0 + 0.22 * (x.range.1 - x.range.0);
    let above = at + 0.23 * (x.range.1 - x.range.0);
    marks.push(Mark::Label { x: at, y: above, words: "FLOPs = latency".into(), ink: Ink::Muted });
    for (row, x, y) in &points {
        let interval = format::ratio_interval(y).map(|i| format!(" {i}")).unwrap_or_default();
        let text = format!(
            "{}: FLOPs {}, TTFT {}{interval}, ratio {:.2}",
            name(row),
            format::ratio(*x),
            format::ratio(y.value),
            y.value / x
        );
        marks.push(Mark::Point { x: *x, y: y.value, interval: bounds(y), series: series.index(row), text });
    }
    let kvp: Vec<_> = points.iter().filter(|p| p.0.cell.kind == Kind::Kvp).collect();
    let place = |row: &Row| (row.cell.batch, row.cell.prompt);
    if kvp.len() <= FEW && kvp.iter().any(|p| place(p.0) != place(kvp[0].0)) {
        let words = |row: &Row| format!("{} x {}", row.cell.batch, row.cell.prompt);
        marks.extend(kvp.iter().map(|(row, x, y)| Mark::Aside { x: *x, y: y.value, words: words(row) }));
    }
    let plot = Plot {
        id: format!("{prefix}-headline"),
        title: "FLOPs reduction against TTFT reduction".into(),
        description: format!(
            "{} systems and sizes against their base; below the dashed line, less time was saved than FLOPs.",
            points.len()
        ),
        height: 380,
        left: 56,
        x,
        y,
        marks,
    };
    let caption = "Each mark is a system at one batch x prompt length, against its base. On the dashed line TTFT falls as \
                   much as FLOPs, and below it TTFT falls less. Bars are intervals.";
    chart(plot, caption, series.legend(points.iter().map(|p| p.0))).map(Some)
}

/// What is drawn over prompt length or batch, on a logarithmic axis.
struct Quantity {
    /// Title of the axis.
    name: &'static str,
    of: fn(&Row) -> Option<stats::Estimate>,
    show: fn(f64) -> String,
    interval: fn(&stats::Estimate) -> Option<String>,
    /// How to read the chart.
    caption: &'static str,
}

const TTFT: Quantity = Quantity {
    name: "TTFT",
    of: |r| r.ttft,
    show: format::seconds,
    interval: format::seconds_interval,
    caption: "Both axes are logarithmic. Lower is better.",
};

const STEPS: Quantity = Quantity {
    name: "TTFT / generation step",
    of: |r| r.ttft_steps,
    show: plain,
    interval: format::interval,
    caption: "How many generation steps the first token takes. Both axes are logarithmic.",
};

/// What lines go along: prompt length or batch.
struct Along {
    id: &'static str,
    title: &'static str,
    axis: &'static str,
    of: fn(&Row) -> u32,
    /// The other of the two, and in words.
    other: fn(&Row) -> u32,
    words: fn(&Row) -> String,
}

const LENGTH: Along = Along {
    id: "length",
    title: "over prompt length",
    axis: "prompt tokens of each sequence",
    of: |r| r.cell.prompt,
    other: |r| r.cell.batch,
    words: |r| format!("batch {}", r.cell.batch),
};

const BATCH: Along = Along {
    id: "batch",
    title: "over batch",
    axis: "sequences in the batch",
    of: |r| r.cell.batch,
    other: |r| r.cell.prompt,
    words: |r| format!("{} prompt tokens", r.cell.prompt),
};

/// Lines of a quantity: a chart of all systems for each batch (or length); of one system alone, a chart of all batches (or
/// lengths).
fn lines(
    prefix: &str,
    rows: &[Row],
    quantity: &Quantity,
    along: &Along,
    series: &Series,
) -> Result<Vec<Chart>, RenderError> {
    let known = |r: &&Row| (quantity.of)(r).is_some();
    let values: BTreeSet<u32> = rows.iter().filter(known).map(along.other).collect();
    let of_value =
        |value: u32| rows.iter().filter(known).filter(move |r| (along.other)(r) == value).collect::<Vec<_>>();
    let long = |rows: &Vec<&Row>| rows.iter().map(|r| (along.of)(r)).collect::<BTreeSet<_>>().len() > 1;
    let groups: Vec<Vec<&Row>> = values.into_iter().map(of_value).filter(long).collect();
    let alone = rows.iter().all(|r| r.cell.system == rows[0].cell.system) && groups.len() <= SERIES;
    if alone && groups.len() > 1 {
        let rows: Vec<&Row> = groups.concat();
        let by_other = Series::by(rows.iter().copied(), along.words);
        let title = format!("{}: {} {}", rows[0].cell.system, quantity.name, along.title);
        return Ok(vec![line_chart(format!("{prefix}-{}", along.id), title, &rows, quantity, along, &by_other)?]);
    }
    let make = |rows: &Vec<&Row>| {
        let id = format!("{prefix}-{}-{}", along.id, (along.other)(rows[0]));
        let title = format!("{} {}, {}", quantity.name, along.title, (along.words)(rows[0]));
        line_chart(id, title, rows, quantity, along, series)
    };
    groups.iter().map(make).collect()
}

fn line_chart(
    id: String,
    title: String,
    rows: &[&Row],
    quantity: &Quantity,
    along: &Along,
    series: &Series,
) -> Result<Chart, RenderError> {
    let lines: BTreeSet<(&str, u32)> = rows.iter().map(|r| (r.cell.system.as_str(), (along.other)(r))).collect();
    let mut marks = Vec::new();
    for line in lines {
        let mut of_line: Vec<&Row> =
            rows.iter().copied().filter(|r| (r.cell.system.as_str(), (along.other)(r)) == line).collect();
        of_line.sort_by_key(|r| (along.of)(r));
        let points: Vec<(f64, f64)> =
            of_line.iter().filter_map(|r| Some((f64::from((along.of)(r)), (quantity.of)(r)?.value))).collect();
        let ink = Ink::Series(series.index(of_line[0]));
        marks.push(Mark::Line { points, ink, width: 4, dashed: false });
        for row in of_line {
            let Some(estimate) = (quantity.of)(row) else { continue };
            let interval = (quantity.interval)(&estimate).map(|i| format!(" {i}")).unwrap_or_default();
            let text = format!("{}: {}{interval}", name(row), (quantity.show)(estimate.value));
            let (x, y) = (f64::from((along.of)(row)), estimate.value);
            marks.push(Mark::Point { x, y, interval: bounds(&estimate), series: series.index(row), text });
        }
    }
    let estimates = rows.iter().filter_map(|r| (quantity.of)(r));
    let plot = Plot {
        id,
        title,
        description: format!("{} of {} cells, both axes logarithmic.", quantity.name, rows.len()),
        height: 320,
        left: 70,
        x: Axis::log_at(along.axis, rows.iter().map(|r| f64::from((along.of)(r))), |v| format!("{v:.0}")),
        y: Axis::log(quantity.name, estimates.flat_map(|e| reach(&e)), quantity.show),
        marks,
    };
    chart(plot, quantity.caption, series.legend(rows.iter().copied()))
}

/// From orange (0.5 and less) over white (1) to blue (1.5 and more).
fn diverging(value: f64) -> Ink {
    let t = (2.0 * (value - 1.0)).clamp(-1.0, 1.0);
    let end = if t < 0.0 { [230.0, 120.0, 30.0] } else { [60.0, 140.0, 210.0] };
    let [r, g, b] = end.map(|e| (250.0 + (e - 250.0) * t.abs()) as u8);
    Ink::Fixed(r, g, b)
}

fn heat_maps(prefix: &str, rows: &[Row]) -> Result<Vec<Chart>, RenderError> {
    let mut systems: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|r| r.cell.kind == Kind::Kvp) {
        if !systems.contains(&row.cell.system.as_str()) {
            systems.push(&row.cell.system);
        }
    }
    let mut charts = Vec::new();
    for (i, system) in systems.into_iter().enumerate() {
        let cells: Vec<&Row> = rows
            .iter()
            .filter(|r| r.cell.system == system && r.cell.kind == Kind::Kvp && r.efficiency.is_some())
            .collect();
        let lengths: Vec<u32> = cells.iter().map(|r| r.cell.prompt).collect::<BTreeSet<_>>().into_iter().collect();
        let batches: Vec<u32> = cells.iter().map(|r| r.cell.batch).collect::<BTreeSet<_>>().into_iter().collect();
        if lengths.len() < 2 && batches.len() < 2 {
            continue;
        }
        let find = |x: usize, y: usize| {
            cells.iter().find(|r| Some(&r.cell.prompt) == lengths.get(x) && Some(&r.cell.batch) == batches.get(y))
        };
        let pays = |x: usize, y: usize| find(x, y).and_then(|r| r.speedup).map(|s| s.estimate.value > 1.0);
        let mut marks = Vec::new();
        let mut borders = Vec::new();
        for x in 0..lengths.len() {
            for y in 0..batches.len() {
                let (left, top) = (x as f64, y as f64);
                if let Some(row) = find(x, y)
                    && let (Some(efficiency), Some(speedup)) = (row.efficiency, row.speedup)
                {
                    let value = efficiency.value;
                    let mark = if row.doubts.is_empty() { "" } else { " (!)" };
                    let text = format!(
                        "{}: ratio {value:.2}, TTFT {}, FLOPs {}",
                        name(row),
                        format::ratio(speedup.estimate.value),
                        format::or_unknown(row.flops_reduction.map(format::ratio))
                    );
                    let (from, to) = ((left, top), (left + 1.0, top + 1.0));
                    marks.push(Mark::Area { from, to, ink: diverging(value), text });
                    let words = format!("{value:.2}{mark}");
                    marks.push(Mark::Label { x: left + 0.5, y: top + 0.5, words, ink: Ink::Dark });
                }
                // The line between sizes where it pays and where it does not.
                for (dx, dy) in [(1, 0), (0, 1)] {
                    if let (Some(here), Some(there)) = (pays(x, y), pays(x + dx, y + dy))
                        && here != there
                    {
                        let corner = (left + dx as f64, top + dy as f64);
                        borders.push(vec![corner, (left + 1.0, top + 1.0)]);
                    }
                }
            }
        }
        let crossed = !borders.is_empty();
        marks.extend(borders.into_iter().map(|points| Mark::Line { points, ink: Ink::Dark, width: 8, dashed: false }));
        let plot = Plot {
            id: format!("{prefix}-heat-{i}"),
            title: format!("{system}: TTFT reduction / FLOPs reduction"),
            description: format!("Ratio over {} lengths and {} batches.", lengths.len(), batches.len()),
            height: 56 + 44 * batches.len() as u32,
            left: 56,
            x: Axis::names("prompt tokens", lengths.iter().map(u32::to_string), false),
            y: Axis::names("batch", batches.iter().map(u32::to_string), true),
            marks,
        };
        let speedups = cells.iter().filter_map(|r| r.speedup).map(|s| s.estimate.value);
        let caption = match (crossed, speedups.fold(f64::INFINITY, f64::min) > 1.0) {
            (true, _) => {
                "At 1 all FLOPs saved are time saved; orange is less. The thick line is the break-even: on its side of lower ratios, KV prediction is slower than the base."
            }
            (false, true) => {
                "At 1 all FLOPs saved are time saved; orange is less. There is no break-even line, because KV prediction pays at every size measured."
            }
            (false, false) => {
                "At 1 all FLOPs saved are time saved; orange is less. There is no break-even line, because KV prediction pays at no size measured."
            }
        };
        charts.push(chart(plot, caption, Vec::new())?);
    }
    Ok(charts)
}

/// A KV prediction, what it takes beyond its auxiliary alone as a share of that, and the interval.
type Excess<'a> = (&'a Row<'a>, f64, Option<(f64, f64)>);

fn overhead(prefix: &str, rows: &[Row], series: &Series) -> Result<Option<Chart>, RenderError> {
    let mut points: Vec<Excess> = Vec::new();
    for row in rows.iter().filter(|r| r.cell.kind == Kind::Kvp) {
        let alone = summary::auxiliary_of(rows.iter().map(|r| r.cell), row.cell);
        if let Some(ratio) = alone.and_then(|alone| summary::ratio(row.limits, row.cell, alone)) {
            let e = ratio.estimate;
            points.push((row, e.value - 1.0, bounds(&e).map(|(low, high)| (low - 1.0, high - 1.0))));
        }
    }
    if points.is_empty() {
        return Ok(None);
    }
    let lengths: BTreeSet<u32> = points.iter().map(|p| p.0.cell.prompt).collect();
    // Lines need a colour for each system.
    let systems: BTreeSet<(&str, usize)> =
        points.iter().map(|p| (p.0.cell.system.as_str(), series.index(p.0))).collect();
    let colours: BTreeSet<usize> = systems.iter().map(|s| s.1).collect();
    let over_lengths = lengths.len() > 1 && colours.len() == systems.len();
    let reach = points.iter().flat_map(|(_, y, i)| i.map_or([*y; 2], |(low, high)| [low, high])).chain([0.0]);
    let excess = Axis::linear("additional TTFT", reach, |v| format!("{}%", plain(100.0 * v)));
    let (height, left, x, y, marks) = if over_lengths {
        let title = "prompt tokens of each sequence";
        let x = Axis::log_at(title, lengths.into_iter().map(f64::from), |v| format!("{v:.0}"));
        (320, 66, x, excess, excess_lines(&points, series))
    } else {
        (rows_height(points.len()), 14, excess, Axis::rows(points.len()), excess_rows(&points))
    };
    let plot = Plot {
        id: format!("{prefix}-overhead"),
        title: "KV prediction over its auxiliary alone".into(),
        description: format!("Additional TTFT of {} cells in percent of the auxiliary network's own.", points.len()),
        height,
        left,
        x,
        y,
        marks,
    };
    let caption =
        "What prediction and the one-token base step add to the auxiliary network's own TTFT, with intervals.";
    if over_lengths {
        let legend = series.legend(points.iter().map(|p| p.0));
        chart(plot, &format!("{caption} b is the batch."), legend).map(Some)
    } else {
        chart(plot, caption, Vec::new()).map(Some)
    }
}

fn excess_text((row, excess, interval): &Excess) -> String {
    let interval = interval.map(|(low, high)| format!(" [{}, {}]", format::percent(low), format::percent(high)));
    let interval = interval.unwrap_or_default();
    format!("{}: {}{interval} over the auxiliary alone", name(row), format::percent(*excess))
}

/// Lines over prompt length, one for each system and batch.
fn excess_lines(points: &[Excess], series: &Series) -> Vec<Mark> {
    let mut marks = Vec::new();
    let keys: BTreeSet<(&str, u32)> = points.iter().map(|p| (p.0.cell.system.as_str(), p.0.cell.batch)).collect();
    for (system, batch) in keys {
        let mut line: Vec<_> = points.iter().filter(|p| p.0.cell.system == system && p.0.cell.batch == batch).collect();
        line.sort_by_key(|p| p.0.cell.prompt);
        let place = |p: &Excess| (f64::from(p.0.cell.prompt), p.1);
        let of = series.index(line[0].0);
        let path = line.iter().map(|p| place(p)).collect();
        marks.push(Mark::Line { points: path, ink: Ink::Series(of), width: 3, dashed: false });
        for point in &line {
            let (x, y) = place(point);
            marks.push(Mark::Point { x, y, interval: point.2, series: of, text: excess_text(point) });
        }
        // Where what is added differs most.
        let (x, y) = place(line[0]);
        marks.push(Mark::Aside { x, y, words: format!("b{batch}") });
    }
    marks
}

/// A row for each cell, around the line of no excess.
fn excess_rows(points: &[Excess]) -> Vec<Mark> {
    let mut marks = Vec::new();
    for (i, point @ (row, x, interval)) in points.iter().enumerate() {
        let (y, ink) = (i as f64 + 0.7, Ink::Series(0));
        marks.push(Mark::Heading { y: i as f64 + 0.28, words: name(row) });
        let zero = vec![(0.0, y - 0.2), (0.0, y + 0.2)];
        marks.push(Mark::Line { points: zero, ink: Ink::Text, width: 4, dashed: false });
        if let Some((low, high)) = interval {
            marks.push(Mark::Line { points: vec![(*low, y), (*high, y)], ink, width: 3, dashed: false });
        }
        marks.push(Mark::Dot { x: *x, y, ink, text: excess_text(point) });
    }
    marks
}

/// Height of a plot of `n` rows with headings.
pub(super) fn rows_height(n: usize) -> u32 {
    56 + 36 * n as u32
}

const PHASES: [(&str, usize); 10] = [
    ("open", 3),
    ("prefill", 0),
    ("selection", 7),
    ("auxiliary", 5),
    ("shared_layers", 6),
    ("prediction", 1),
    ("base_step", 2),
    // No system has several of one colour.
    ("look_ahead", 6),
    ("pipelined", 6),
    ("unattributed", 4),
];

fn phase_series(name: &str) -> usize {
    PHASES.iter().find(|p| p.0 == name).map_or(3, |p| p.1)
}

fn phase_legend<'a>(names: impl Iterator<Item = &'a str>, swatch: fn(usize) -> String) -> Vec<Entry> {
    let mut used: Vec<&str> = Vec::new();
    for name in names {
        if !used.contains(&name) {
            used.push(name);
        }
    }
    used.into_iter().map(|name| Entry { name: name.into(), swatch: swatch(phase_series(name)) }).collect()
}

fn roofline(prefix: &str, record: &Record, rows: &[Row]) -> Result<Option<Chart>, RenderError> {
    let Some(bandwidth) = record.run.limits.read_gb_per_s else { return Ok(None) };
    // (intensity, GFLOP/s, phase, text)
    let mut points = Vec::new();
    for row in rows {
        for phase in &row.cell.phases {
            let (Some(cost), Some(time)) = (phase.cost, stats::median(&summary::seconds(&phase.samples_ns))) else {
                continue;
            };
            let (flops, bytes) = (cost.flops.total() as f64, cost.bytes() as f64);
            if flops > 0.0 && bytes > 0.0 && time > 0.0 {
                let (x, y) = (flops / bytes, flops * 1e-9 / time);
                let text = format!(
                    "{} of {}: {} GFLOP/s at {} FLOP/byte, {}",
                    phase.name,
                    name(row),
                    format::figure(y),
                    format::figure(x),
                    format::seconds(time)
                );
                points.push((x, y, phase.name.as_str(), text));
            }
        }
    }
    let own = rows.iter().filter_map(|r| r.cell.compute_dtype);
    let in_f32 = |r: &Row| r.cell.cost().and_then(|c| c.f32_flops).is_some_and(|flops| flops > 0);
    let dtypes: BTreeSet<_> = own.chain(rows.iter().any(in_f32).then_some(Dtype::F32)).collect();
    let peaks: Vec<_> = dtypes.into_iter().filter_map(|d| Some((d, record.run.limits.peak_gflops(d)?))).collect();
    if points.is_empty() || peaks.is_empty() {
        return Ok(None);
    }
    let knees = peaks.iter().map(|(_, peak)| peak / bandwidth);
    let x = Axis::log("FLOP per byte of weights and cache", points.iter().map(|p| p.0).chain(knees), plain);
    let highest = peaks.iter().map(|p| p.1).fold(0.0, f64::max);
    let y = Axis::log("GFLOP/s", points.iter().map(|p| p.1).chain([highest]), plain);
    let mut marks = Vec::new();
    for (dtype, peak) in &peaks {
        let knee = peak / bandwidth;
        // The slope enters the plot from the left or from below.
        let start = x.range.0.max(y.range.0 / bandwidth);
        let points = vec![(start, start * bandwidth), (knee, *peak), (x.range.1, *peak)];
        marks.push(Mark::Line { points, ink: Ink::Text, width: 4, dashed: false });
        let words = format!("{} peak {} GFLOP/s", dtype.name(), format::figure(*peak));
        let middle = (knee.max(x.range.0) * x.range.1).sqrt();
        marks.push(Mark::Label { x: middle, y: peak * (y.range.1 / y.range.0).powf(0.028), words, ink: Ink::Muted });
    }
    for (x, y, phase, text) in &points {
        let (series, text) = (phase_series(phase), text.clone());
        marks.push(Mark::Point { x: *x, y: *y, interval: None, series, text });
    }
    let plot = Plot {
        id: format!("{prefix}-roofline"),
        title: "Roofline: every phase against the machine's limits".into(),
        description: format!("{} phases under a read bandwidth of {} GB/s.", points.len(), format::figure(bandwidth)),
        height: 340,
        left: 62,
        x,
        y,
        marks,
    };
    let caption = format!(
        "The sloped line is the measured read bandwidth, {} GB/s; the flat one the measured peak. A mark on the slope is \
         bound by memory, on the flat by compute; above the slope, weights came from cache.",
        format::figure(bandwidth)
    );
    chart(plot, &caption, phase_legend(points.iter().map(|p| p.2), swatch)).map(Some)
}

/// Cells of several phases, and the TTFT of their base at the same size in seconds.
fn bars<'a>(rows: &'a [Row<'a>]) -> Vec<(&'a Row<'a>, f64)> {
    rows.iter()
        .filter(|r| r.cell.system != r.cell.base && r.cell.phases.len() > 1)
        .filter_map(|r| Some((r, r.ttft?.value * r.speedup?.estimate.value)))
        .collect()
}

fn stacked_phases(prefix: &str, rows: &[Row]) -> Result<Option<Chart>, RenderError> {
    let bars = bars(rows);
    if bars.is_empty() {
        return Ok(None);
    }
    let mut marks = Vec::new();
    let mut longest = 1.0f64;
    for (i, (row, base)) in bars.iter().enumerate() {
        let mut start = 0.0;
        marks.push(Mark::Heading { y: i as f64 + 0.24, words: name(row) });
        let rest = stats::median(&summary::seconds(&row.cell.unattributed_ns()));
        let phases = row.cell.phases.iter().map(|p| (p.name.as_str(), stats::median(&summary::seconds(&p.samples_ns))));
        for (phase, time) in phases.chain([("unattributed", rest)]) {
            let Some(time) = time else { continue };
            let end = start + time / base;
            let (from, to) = ((start, i as f64 + 0.46), (end, i as f64 + 0.92));
            let share = format::percent(time / base);
            let text = format!("{}: {phase} {}, {share} of the base's TTFT", name(row), format::seconds(time));
            marks.push(Mark::Area { from, to, ink: Ink::Series(phase_series(phase)), text });
            start = end;
        }
        longest = longest.max(start);
        if let Some(reduction) = row.flops_reduction {
            let x = 1.0 / reduction;
            let points = vec![(x, i as f64 + 0.40), (x, i as f64 + 0.98)];
            marks.push(Mark::Line { points, ink: Ink::Text, width: 5, dashed: false });
        }
    }
    let plot = Plot {
        id: format!("{prefix}-phases"),
        title: "Phases, in percent of the base's TTFT".into(),
        description: format!("Stacked phases of {} cells; a line marks the share of the base's FLOPs.", bars.len()),
        height: rows_height(bars.len()),
        left: 14,
        x: Axis::linear("share of the base's TTFT", [0.0, longest], |v| format!("{:.0}%", 100.0 * v)),
        y: Axis::rows(bars.len()),
        marks,
    };
    let caption = "Each bar is a system's TTFT relative to its base at the same size. The upright line is its share of the \
                   base's FLOPs: what the bar would reach if FLOPs were all that counts.";
    let names = bars.iter().flat_map(|(r, _)| r.cell.phases.iter().map(|p| p.name.as_str()));
    chart(plot, caption, phase_legend(names.chain(["unattributed"]), area_swatch)).map(Some)
}

fn distributions(prefix: &str, rows: &[Row]) -> Result<Vec<Chart>, RenderError> {
    let strips: Vec<(&Row, f64)> =
        rows.iter().filter(|r| r.cell.samples_ns.len() > 1).filter_map(|r| Some((r, r.ttft?.value))).collect();
    let deviations = strips.iter().flat_map(|(row, median)| {
        let interval = row.ttft.as_ref().and_then(bounds).into_iter().flat_map(|(low, high)| [low, high]);
        summary::seconds(&row.cell.samples_ns).into_iter().chain(interval).map(move |s| s / median - 1.0)
    });
    let x = Axis::linear("deviation from the cell's median", deviations.chain([-0.02, 0.02]), |v| {
        format!("{}%", plain(100.0 * v))
    });
    // Side by side, as high as they are few.
    let parts = if strips.len() > 8 { 2 * strips.len().div_ceil(40) } else { 1 };
    let make = |(i, strips): (usize, &[(&Row, f64)])| {
        let title = "All samples, around their median";
        let plot = Plot {
            id: format!("{prefix}-samples-{i}"),
            title: if parts > 1 { format!("{title}, {} of {parts}", i + 1) } else { title.into() },
            description: format!("Deviation of every sample of {} cells from the cell's median.", strips.len()),
            height: rows_height(strips.len()),
            left: 14,
            x: x.clone(),
            y: Axis::rows(strips.len()),
            marks: strips.iter().enumerate().flat_map(|(i, (row, median))| strip(i as f64, row, *median)).collect(),
        };
        let thinned = strips.iter().any(|(row, _)| row.cell.samples_ns.len() > MOST_DOTS);
        let thin = format!(" Of longer lists, every n-th sample is drawn, at most {MOST_DOTS}.");
        let caption = format!(
            "One dot for each sample; the line is the interval of the median. Orange and (!): not to be trusted.{}",
            if thinned { &thin } else { "" }
        );
        chart(plot, &caption, Vec::new())
    };
    strips.chunks(strips.len().div_ceil(parts).max(1)).enumerate().map(make).collect()
}

/// The samples of a cell in row `top`.
fn strip(top: f64, row: &Row, median: f64) -> Vec<Mark> {
    let samples = summary::seconds(&row.cell.samples_ns);
    let (mark, ink) = if row.doubts.is_empty() { ("", Ink::Series(0)) } else { (" (!)", Ink::Series(1)) };
    let y = top + 0.7;
    let mut marks = vec![Mark::Heading { y: top + 0.28, words: format!("{}{mark}", name(row)) }];
    if let Some((low, high)) = row.ttft.as_ref().and_then(bounds) {
        let points = [low, high].map(|end| (end / median - 1.0, y)).into();
        marks.push(Mark::Line { points, ink, width: 3, dashed: false });
    }
    let step = samples.len().div_ceil(MOST_DOTS).max(1);
    for (n, sample) in samples.iter().enumerate().step_by(step) {
        let x = sample / median - 1.0;
        let text = format!("{}: sample {n}, {} ({:+.1}%)", name(row), format::seconds(*sample), 100.0 * x);
        marks.push(Mark::Dot { x, y, ink, text });
    }
    marks
}
