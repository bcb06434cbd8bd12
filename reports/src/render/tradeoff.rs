//! The trade-off: speed against what became of the answer, as charts, tables, words, and lines of numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    RenderError, Run,
    blocks::*,
    charts::chart,
    plot::{Axis, Ink, Mark as Drawn, Plot, swatch},
};
use crate::{
    fidelity::{self, ControlKind, Fidelity, Judgement, Verdict},
    format::{self, UNKNOWN, or_unknown},
    paper,
    schema::Kind,
    stats::Estimate,
    summary,
    text::no_formula,
    tradeoff::{self, Figure, Joined, Mark, Role, Scale, Tradeoff},
};

/// Most systems that all have their names beside their marks.
const FEW: usize = 12;
/// By how much of the axis they stand above it.
const RAISED: f64 = 0.04;

/// What a run's times and the answers of its fidelity file say together; nothing if the run has no such file. `prefix` makes
/// ids unique in a page.
///
/// # Errors
/// No system of the file is one of the record, with what differs; a chart that cannot be drawn.
pub(crate) fn blocks(run: &Run, prefix: &str, with_charts: bool) -> Result<Vec<Block>, RenderError> {
    let Some(file) = run.fidelity.first() else { return Ok(Vec::new()) };
    let joined = tradeoff::join(run.record, run.fidelity);
    if joined.sizes.is_empty() {
        return Err(RenderError::NotJoined(run.name.into(), refusals(&joined)));
    }
    let judgements: Vec<Judgement> = run.fidelity.iter().flat_map(fidelity::judge).collect();
    let mut blocks = vec![lead(answer(&joined.sizes[0], &judgements))];
    let said = |j: &Judgement| format!("{}: {}", j.system, j.words);
    blocks.push(Block::List { items: judgements.iter().map(said).collect() });
    for size in joined.sizes.iter().filter(|_| with_charts) {
        let charts = drawn(size, file, &format!("{prefix}-b{}", size.batch))?;
        blocks.push(Block::Charts { charts });
    }
    for size in &joined.sizes {
        blocks.push(Block::Table(listed(size, file, &judgements)));
    }
    blocks.push(Block::Table(more(&joined.sizes[0], file)));
    blocks.extend(joined.remarks.iter().map(text));
    if !joined.refused.is_empty() {
        blocks
            .push(text("Systems of the fidelity file that stand in no table, as the record has no time of the same:"));
        blocks.push(Block::List { items: joined.refused.clone() });
    }
    blocks.push(text(about(file)));
    blocks.push(text(
        "A time and an answer are joined if base, auxiliary and predictor are the same by their hashes, and k, m, s, precision \
         and prompt length are equal. Controls that the record does not time have the time of the fidelity run, as a ratio to \
         full prefill there. The mean cache and the true caches have the time of the system that they stand beside, and so has \
         what predicts nothing where the fidelity run has no time that counts. The \
         front is what no other mark is better than in both speed and answer; the mean cache and the true caches, which \
         nobody could use, are on no front. Intervals are 95%: of speedups as everywhere in this report, of means over \
         windows Student's t, of shares of items Wilson's.",
    ));
    if with_charts {
        blocks.push(text(
            "Published accuracies stand apart, because they are of other networks on another task and have no interval here.",
        ));
        blocks.push(Block::Charts { charts: vec![published(prefix)?] });
    } else {
        blocks.push(Block::Table(published_table()));
    }
    Ok(blocks)
}

/// What keeps a record and a fidelity file apart, in words.
pub(crate) fn refusals(joined: &Joined) -> String {
    match joined.refused.is_empty() {
        true => "the fidelity file has no systems".into(),
        false => joined.refused.join(". "),
    }
}

fn judgement<'a>(judgements: &'a [Judgement], mark: &Mark) -> Option<&'a Judgement> {
    match mark.role {
        Role::System(system) => judgements.iter().find(|j| j.system == system.name),
        Role::Base | Role::Control(_) => None,
    }
}

fn answer(size: &Tradeoff, judgements: &[Judgement]) -> String {
    let judged: Vec<(&Mark, &Judgement)> =
        size.marks.iter().filter_map(|m| Some((m, judgement(judgements, m)?))).collect();
    let mut words: BTreeMap<&str, usize> = BTreeMap::new();
    judged.iter().for_each(|(_, j)| *words.entry(j.verdict.word()).or_default() += 1);
    let words: Vec<String> = words.into_iter().map(|(word, n)| format!("{word} {n}")).collect();
    let fastest = judged
        .iter()
        .filter(|(_, j)| matches!(j.verdict, Verdict::Identical | Verdict::Keeps))
        .filter_map(|(m, j)| Some((m, j, m.speedup?)))
        .max_by(|a, b| a.2.value.total_cmp(&b.2.value));
    let fastest = match fastest {
        Some((mark, j, speedup)) => {
            format!(
                "The fastest on which no loss was found is {}, {} ({}).",
                mark.name,
                times(&speedup),
                j.verdict.word()
            )
        }
        None => "There is none on which no loss was found.".into(),
    };
    let systems = if judged.len() == 1 { "1 system has" } else { &format!("{} systems have", judged.len()) };
    format!("{systems} a time and an answer at {} x {}: {}. {fastest}", size.batch, size.prompt, words.join(", "))
}

fn times(speedup: &Estimate) -> String {
    format!("{} as fast as full prefill", with_interval(format::ratio(speedup.value), format::ratio_interval(speedup)))
}

fn about(file: &Fidelity) -> String {
    let s = &file.settings;
    let text = |t: &fidelity::Text| {
        let of_fit = match t.of_fit {
            Some(true) => ", of the kind that the maps were fitted on",
            Some(false) => ", of another kind than the maps were fitted on",
            None => "",
        };
        let domain = t.domain.as_ref().map(|d| format!(" ({d})")).unwrap_or_default();
        format!("{}{domain}: {} windows{of_fit}", t.name, t.windows)
    };
    let task = |t: &fidelity::Task| {
        let base = t.base.as_ref().map_or("scored elsewhere".into(), |b| format!("the base solves {:.2}", b.share));
        let kind = t.kind.words();
        let named = if t.name == kind { t.name.clone() } else { format!("{} ({kind})", t.name) };
        format!("{named}: {} items of {:.0} tokens, {base}, chance {:.2}", t.items, t.prompt_tokens, t.chance)
    };
    let all: Vec<String> = file.texts.iter().map(text).chain(file.tasks.iter().map(task)).collect();
    format!(
        "Answers are those of {} in {}, after prompts of {} tokens, over {} tokens of text. {}.",
        file.base.network.name,
        s.precision.name(),
        s.prompt,
        s.continuation,
        all.join("; ")
    )
}

/// A value of a scale, with its interval if it has one.
fn figure(scale: &Scale, value: &Estimate) -> String {
    let show = |v: f64| match scale.figure {
        // Those of true caches are a few thousandths.
        Figure::Kl | Figure::LossGap if v.abs() < 0.01 && v != 0.0 => format!("{v:.4}"),
        Figure::Kl | Figure::LossGap => format!("{v:.3}"),
        Figure::Top1 | Figure::Greedy | Figure::Exact | Figure::FirstToken => format!("{v:.2}"),
    };
    let interval = value.interval.map(|i| {
        // Divergences are not negative, whatever the normal distribution says.
        let low = if scale.figure == Figure::LossGap { i.low } else { i.low.max(0.0) };
        let high = if matches!(scale.figure, Figure::Top1 | Figure::Greedy) { i.high.min(1.0) } else { i.high };
        format!("[{}, {}]", show(low), show(high))
    });
    with_interval(show(value.value), interval)
}

fn title(scale: &Scale) -> String {
    format!("{}, {}", scale.figure.name(), scale.place)
}

/// The trade-off as a table: a row for each mark.
fn listed(size: &Tradeoff, file: &Fidelity, judgements: &[Judgement]) -> Table {
    let scales: Vec<Scale> = Scale::all(file).into_iter().filter(Scale::is_main).collect();
    let fronts: Vec<Vec<usize>> = scales.iter().map(|s| s.front(&size.marks)).collect();
    let mut head: Vec<String> = ["mark", "TTFT", "speedup", "time from", "operations"].map(String::from).into();
    head.extend(scales.iter().map(title));
    head.extend(["on the front of", "verdict"].map(String::from));
    let row = |(i, mark): (usize, &Mark)| {
        let own = mark.role == Role::Base;
        let speedup = mark.speedup.filter(|_| !own);
        let front: Vec<String> =
            scales.iter().zip(&fronts).filter(|(_, front)| front.contains(&i)).map(|(s, _)| title(s)).collect();
        let known = [
            mark.name.clone(),
            or_unknown(mark.ttft.map(|t| with_interval(format::seconds(t.value), format::seconds_interval(&t)))),
            or_unknown(speedup.map(|s| with_interval(format::ratio(s.value), format::ratio_interval(&s)))),
            mark.clock.words().into(),
            or_unknown(mark.operations().map(format::percent)),
        ];
        let values = scales.iter().map(|s| or_unknown(s.of(mark).map(|v| figure(s, &v))));
        let last = [
            if front.len() == scales.len() { "all".into() } else { front.join("; ") },
            judgement(judgements, mark).map_or(UNKNOWN.into(), |j| j.verdict.word().into()),
        ];
        known.into_iter().chain(values).chain(last).collect()
    };
    let n = head.len();
    let rows = size.marks.iter().enumerate().map(row).collect();
    let title = format!("Speed and answer, {} x {}", size.batch, size.prompt);
    Table { title, head, rows, words: vec![0, 3, n - 2, n - 1], marked: Vec::new() }
}

/// First tokens, loss gaps and greedy text.
fn more(size: &Tradeoff, file: &Fidelity) -> Table {
    let scales: Vec<Scale> = Scale::all(file).into_iter().filter(|s| !s.is_main()).collect();
    let head = ["mark".to_string()].into_iter().chain(scales.iter().map(title)).collect();
    let row = |mark: &Mark| {
        let values = scales.iter().map(|s| or_unknown(s.of(mark).map(|v| figure(s, &v))));
        [mark.name.clone()].into_iter().chain(values).collect()
    };
    let rows = size.marks.iter().filter(|m| m.role != Role::Base).map(row).collect();
    let greedy = scales.iter().any(|s| s.figure == Figure::Greedy);
    let written = if greedy { "loss, and greedy text" } else { "and loss" };
    Table { title: format!("First tokens after the prompt, {written}"), head, rows, words: vec![0], marked: Vec::new() }
}

/// Colour and shape of a mark, and what the legend calls it.
fn series(mark: &Mark) -> (usize, &'static str) {
    use ControlKind::*;
    match mark.role {
        Role::Base => (4, "full prefill"),
        Role::System(_) => (0, "system"),
        Role::Control(control) => match control.kind {
            TruncationEqualOperations | TruncationEqualTtft => (1, "truncation"),
            NoContext => (6, "no context"),
            NothingPredicted => (2, "nothing predicted"),
            AuxiliaryAlone => (5, "auxiliary alone"),
            MeanCache => (3, "mean cache"),
            TrueCaches => (7, "true caches"),
        },
    }
}

/// Every main figure over speed.
fn drawn(size: &Tradeoff, file: &Fidelity, prefix: &str) -> Result<Vec<Chart>, RenderError> {
    let scales = Scale::all(file).into_iter().filter(Scale::is_main).enumerate();
    // Tasks decide, so they come first.
    let (tasks, texts): (Vec<_>, Vec<_>) = scales.partition(|(_, s)| s.figure == Figure::Exact);
    let all = tasks.iter().chain(&texts);
    all.map(|(i, scale)| one(size, scale, &format!("{prefix}-tradeoff-{i}"))).collect()
}

/// What a picture shows of a run with answers, and its heading: the smallest batch's charts of the tasks that give verdicts, and
/// of the divergence on each text. Of many systems it shows only what is on the front of one of these.
///
/// # Errors
/// As [`blocks`].
pub(super) fn pictured(run: &Run) -> Result<(String, Vec<Chart>), RenderError> {
    let mut joined = tradeoff::join(run.record, run.fidelity);
    joined.sizes.sort_by_key(|s| s.batch);
    let (Some(size), Some(file)) = (joined.sizes.first_mut(), run.fidelity.first()) else {
        return Err(RenderError::NotJoined(run.name.into(), refusals(&joined)));
    };
    let scales = Scale::all(file).into_iter().filter(Scale::is_main);
    let (tasks, texts): (Vec<_>, Vec<_>) = scales.partition(|s| s.figure == Figure::Exact);
    let solved = tasks.into_iter().filter(|s| s.base().is_some_and(|base| base >= fidelity::SOLVES));
    let scales: Vec<Scale> = solved.chain(texts.into_iter().filter(|s| s.figure == Figure::Kl)).collect();
    if size.marks.iter().filter(|m| matches!(m.role, Role::System(_))).count() > FEW {
        let fronts: BTreeSet<usize> = scales.iter().flat_map(|s| s.front(&size.marks)).collect();
        let mut at = 0..;
        size.marks.retain(|mark| at.next().is_some_and(|i| fronts.contains(&i)) || mark.role == Role::Base);
    }
    let drawn = scales.iter().enumerate().map(|(i, scale)| one(size, scale, &format!("c{i}")));
    let charts = drawn.collect::<Result<_, _>>()?;
    Ok((format!("{}: answers against speed, {} x {}", file.base.network.name, size.batch, size.prompt), charts))
}

fn one(size: &Tradeoff, scale: &Scale, id: &str) -> Result<Chart, RenderError> {
    let points: Vec<(usize, &Mark, Estimate, Estimate)> =
        size.marks.iter().enumerate().filter_map(|(i, mark)| Some((i, mark, mark.speedup?, scale.of(mark)?))).collect();
    let log = scale.figure == Figure::Kl;
    let reach = |e: &Estimate| e.interval.map_or([e.value; 3], |i| [e.value, i.low, i.high]);
    let x =
        Axis::log("speedup over full prefill", points.iter().flat_map(|p| reach(&p.2)), |v| format!("{}x", plain(v)));
    let y = if log {
        // An end that is 0 has no place on a logarithmic axis; nor has full prefill, which stands on its lower edge.
        let ends = points.iter().flat_map(|p| reach(&p.3)).filter(|v| *v > 0.0);
        let least = points.iter().map(|p| p.3.value).filter(|v| *v > 0.0).fold(f64::INFINITY, f64::min);
        Axis::log("KL, nats", ends.filter(|v| *v >= least / 2.0), plain)
    } else {
        let chance = scale.chance.into_iter();
        Axis::linear(axis(scale.figure), points.iter().flat_map(|p| reach(&p.3)).chain(chance), |v| {
            format!("{}%", plain(100.0 * v))
        })
    };
    let within = |v: f64| v.clamp(y.range.0, y.range.1);
    let mut marks = Vec::new();
    if let Some(chance) = scale.chance.filter(|c| *c > 0.0) {
        let ends = vec![(x.range.0, chance), (x.range.1, chance)];
        marks.push(Drawn::Line { points: ends, ink: Ink::Muted, width: 3, dashed: true });
        let at = x.range.0 * (x.range.1 / x.range.0).powf(0.12);
        let above = chance + 0.03 * (y.range.1 - y.range.0);
        marks.push(Drawn::Label { x: at, y: above, words: "chance".into(), ink: Ink::Muted });
    }
    let front = scale.front(&size.marks);
    let corner = |i: &usize| points.iter().find(|p| p.0 == *i).map(|p| (p.2.value, within(p.3.value)));
    marks.push(Drawn::Line {
        points: stairs(&front.iter().filter_map(corner).collect::<Vec<_>>()),
        ink: Ink::Muted,
        width: 3,
        dashed: false,
    });
    let systems: Vec<&str> =
        size.marks.iter().filter(|m| matches!(m.role, Role::System(_))).map(|m| m.name.as_str()).collect();
    for (i, mark, speedup, value) in &points {
        let (series, _) = series(mark);
        if let Some(interval) = speedup.interval {
            let across = vec![(interval.low, within(value.value)), (interval.high, within(value.value))];
            marks.push(Drawn::Line { points: across, ink: Ink::Series(series), width: 3, dashed: false });
        }
        let on_front = if front.contains(i) { ", on the front" } else { "" };
        let speed = with_interval(format::ratio(speedup.value), format::ratio_interval(speedup));
        let words = format!("{}: {speed}, {} {}{on_front}", mark.name, scale.figure.name(), figure(scale, value));
        let interval = value.interval.map(|i| (within(i.low), within(i.high)));
        marks.push(Drawn::Point { x: speedup.value, y: within(value.value), interval, series, text: words });
    }
    // Above the mark's own height, where the line of the front comes in.
    let raised = |v: f64| match log {
        true => v * (y.range.1 / y.range.0).powf(RAISED),
        false => v + RAISED * (y.range.1 - y.range.0),
    };
    // Of many, those of the front.
    for (_, mark, speedup, value) in points.iter().filter(|p| systems.len() <= FEW || front.contains(&p.0)) {
        if matches!(mark.role, Role::System(_)) {
            let words = short(&mark.name, &systems).to_owned();
            marks.push(Drawn::Aside { x: speedup.value, y: within(raised(within(value.value))), words });
        }
    }
    let better = if scale.figure.more_is_better() { "up and to the right" } else { "down and to the right" };
    let plot = Plot {
        id: id.into(),
        title: match scale.figure {
            Figure::Exact => format!("Right answers on {} against speed", scale.place),
            _ => format!("{} on {} against speed", scale.figure.name(), scale.place),
        },
        description: format!(
            "{} marks at {} x {}, full prefill and controls among them; better is {better}.",
            points.len(),
            size.batch,
            size.prompt
        ),
        height: 340,
        left: 62,
        x,
        y,
        marks,
    };
    let caption = format!(
        "{} Better is {better}; the line joins the marks that no usable mark beats in both. Crosses are intervals.{}",
        match scale.figure {
            Figure::Exact => "Exact matches, greedily.",
            Figure::Kl => "Divergence from full prefill over the continuation.",
            _ => "Share of positions with full prefill's likeliest token, over the continuation.",
        },
        if log { " Both axes are logarithmic; full prefill has none and stands on the lower edge." } else { "" }
    );
    let mut used: Vec<(usize, &str)> = points.iter().map(|p| series(p.1)).collect();
    let mut seen = Vec::new();
    used.retain(|s| {
        !seen.contains(s) && {
            seen.push(*s);
            true
        }
    });
    let legend = used.into_iter().map(|(i, name)| Entry { name: name.into(), swatch: swatch(i) }).collect();
    chart(plot, &caption, legend)
}

fn axis(figure: Figure) -> &'static str {
    match figure {
        Figure::Exact => "exact matches",
        _ => "top-1 agreement",
    }
}

/// From mark to mark of a front, of which each is the best as far as its own speed: down first, then on.
fn stairs(front: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let steps = front.windows(2).flat_map(|w| [w[0], (w[0].0, w[1].1)]);
    steps.chain(front.last().copied()).collect()
}

fn plain(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// A system's name without what all of them begin with, up to a hyphen.
fn short<'a>(name: &'a str, all: &[&str]) -> &'a str {
    let common = |end: &usize| all.len() > 1 && all.iter().all(|other| other.starts_with(&name[..*end]));
    let mut ends = name.match_indices('-').map(|(i, _)| i + 1);
    name.get(ends.rfind(common).unwrap_or(0)..).filter(|rest| !rest.is_empty()).unwrap_or(name)
}

/// The paper's accuracies over its speeds.
fn published(prefix: &str) -> Result<Chart, RenderError> {
    let record = paper::table5();
    let rows = summary::rows(&record);
    let points: Vec<(&summary::Row, f64, f64)> = rows
        .iter()
        .filter_map(|r| Some((r, r.speedup?.estimate.value, r.cell.published.as_ref()?.triviaqa_percent?)))
        .collect();
    let kinds = [
        (Kind::Base, 4, "full prefill"),
        (Kind::Kvp, 0, "KV prediction"),
        (Kind::Aux, 5, "smaller network alone"),
        (Kind::RandomPruned, 1, "random pruning"),
        (Kind::StaticPruned, 2, "static pruning"),
        (Kind::LazyPruned, 3, "LazyLLM"),
    ];
    let of = |kind: Kind| kinds.iter().find(|k| k.0 == kind).map_or(0, |k| k.1);
    let marks = points.iter().map(|(row, x, y)| {
        let fault = if row.cell.has_faults() { ", with a known fault" } else { "" };
        let text = format!("{}: {}, TriviaQA {y:.2}%{fault}", row.cell.system, format::ratio(*x));
        Drawn::Point { x: *x, y: *y, interval: None, series: of(row.cell.kind), text }
    });
    let plot = Plot {
        id: format!("{prefix}-published"),
        title: "Published: TriviaQA against speed, the paper's Table 5".into(),
        description: format!("{} published systems of OpenELM 1.1B on an Apple M2 Pro.", points.len()),
        height: 320,
        left: 56,
        x: Axis::linear("TTFT reduction, M2 Pro, 64 x 59", points.iter().map(|p| p.1), |v| format!("{}x", plain(v))),
        y: Axis::linear("TriviaQA, exact match", points.iter().map(|p| p.2), |v| format!("{}%", plain(v))),
        marks: marks.collect(),
    };
    let legend = kinds.iter().filter(|k| points.iter().any(|p| p.0.cell.kind == k.0));
    let legend = legend.map(|(_, i, name)| Entry { name: (*name).into(), swatch: swatch(*i) }).collect();
    let caption = "Printed figures of trained OpenELM networks, without intervals. Nothing here was measured by this program, \
                   and no mark of it is comparable with one above.";
    chart(plot, caption, legend)
}

/// The same as a table.
fn published_table() -> Table {
    let record = paper::table5();
    let rows = summary::rows(&record);
    let row = |r: &summary::Row| {
        let accuracy = r.cell.published.as_ref()?.triviaqa_percent?;
        let speedup = or_unknown(r.speedup.map(|s| format::ratio(s.estimate.value)));
        let fault = if r.cell.has_faults() { " (!)" } else { "" };
        Some(vec![format!("{}{fault}", r.cell.system), speedup, format!("{accuracy:.2}%")])
    };
    let title =
        "Published: the paper's Table 5, other networks on an Apple M2 Pro, not comparable with what is measured above";
    table(title, &["system", "TTFT reduction", "TriviaQA"], &[0], rows.iter().filter_map(row).collect())
}

/// The columns of [`lines`].
pub(crate) const HEADER: [&str; 25] = [
    "run",
    "id",
    "kind",
    "mark",
    "batch",
    "prompt",
    "verdict",
    "time_from",
    "ttft_s",
    "ttft_low_s",
    "ttft_high_s",
    "speedup",
    "speedup_low",
    "speedup_high",
    "operations_share",
    "figure",
    "place",
    "position",
    "value",
    "value_low",
    "value_high",
    "values",
    "chance",
    "more_is_better",
    "on_front",
];

/// One line of numbers for each mark and figure.
///
/// # Errors
/// As [`blocks`].
pub(crate) fn lines(run: &Run) -> Result<Vec<[String; 25]>, RenderError> {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map(|v| v.to_string()).unwrap_or_default()
    }
    let Some(file) = run.fidelity.first() else { return Ok(Vec::new()) };
    let joined = tradeoff::join(run.record, run.fidelity);
    if joined.sizes.is_empty() {
        return Err(RenderError::NotJoined(run.name.into(), refusals(&joined)));
    }
    let judgements: Vec<Judgement> = run.fidelity.iter().flat_map(fidelity::judge).collect();
    let mut out = Vec::new();
    for size in &joined.sizes {
        for scale in Scale::all(file) {
            let front = scale.front(&size.marks);
            for (i, mark) in size.marks.iter().enumerate() {
                let Some(value) = scale.of(mark) else { continue };
                let ends = |e: Option<Estimate>| {
                    let interval = e.and_then(|e| e.interval);
                    [text(e.map(|e| e.value)), text(interval.map(|i| i.low)), text(interval.map(|i| i.high))]
                };
                let kind = match mark.role {
                    Role::Base => "base".into(),
                    Role::System(system) => system.kind.name().into(),
                    Role::Control(c) => format!("control: {}", c.kind.words()),
                };
                let position = match scale.figure {
                    Figure::Exact => "answer",
                    _ if scale.first => "first",
                    _ => "continuation",
                };
                let [[ttft, ttft_low, ttft_high], [speedup, speedup_low, speedup_high], [value, value_low, value_high]] =
                    [mark.ttft, mark.speedup, Some(value)].map(ends);
                out.push([
                    no_formula(run.name),
                    no_formula(&text(mark.cell.map(|c| c.id.as_str()))),
                    kind,
                    no_formula(&mark.name),
                    size.batch.to_string(),
                    size.prompt.to_string(),
                    text(judgement(&judgements, mark).map(|j| j.verdict.name())),
                    mark.clock.words().into(),
                    ttft,
                    ttft_low,
                    ttft_high,
                    speedup,
                    speedup_low,
                    speedup_high,
                    text(mark.operations()),
                    scale.figure.name().into(),
                    no_formula(scale.place),
                    position.into(),
                    value,
                    value_low,
                    value_high,
                    text(scale.of(mark).map(|v| v.samples)),
                    text(scale.chance),
                    scale.figure.more_is_better().to_string(),
                    front.contains(&i).to_string(),
                ]);
            }
        }
    }
    Ok(out)
}
