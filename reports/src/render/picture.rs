//! One picture of a run, for a page that is not this program's: TTFT of the base and of KV prediction at one size, by phase; or,
//! with answers, both against each other.
//!
//! It is SVG without scripts, dark where the reader's system is; a program that knows no style sheets draws the light one.

use std::fmt::Write as _;

use super::{
    RenderError, Run,
    blocks::size,
    plot::{self, Ink, SERIES, escape},
    tradeoff,
};
use crate::{
    facts, format,
    schema::{Kind, Record},
    stats,
    summary::{self, Row},
};

/// Width in CSS pixels.
pub(super) const WIDTH: f64 = 720.0;
/// Room at the sides.
pub(super) const MARGIN: f64 = 16.0;
/// Height of a system's words and bar.
const ROW: f64 = 54.0;

/// Colours in light and dark, by the class of what has them.
pub(super) const INKS: [(&str, &str, &str); 20] = [
    ("page", "#ffffff", "#14171c"),
    ("text", "#1a1c20", "#e6e9ee"),
    ("muted", "#5a6270", "#a2abb8"),
    ("prefill", "#0072b2", "#56a8e8"),
    ("auxiliary", "#2a8bc4", "#8fd0f5"),
    ("pipelined", "#1c7f88", "#5cc8cf"),
    ("prediction", "#c05000", "#f08a3c"),
    ("base_step", "#00805e", "#2fc096"),
    ("alone", "#00402f", "#b5efd8"),
    ("selection", "#8a6d00", "#e3c23f"),
    ("other", "#7a4fc2", "#b89bf0"),
    ("grid", "#dfe3e8", "#333a45"),
    ("s0", "#0072b2", "#56a8e8"),
    ("s1", "#c05000", "#f08a3c"),
    ("s2", "#00805e", "#2fc096"),
    ("s3", "#a83c7d", "#e08abf"),
    ("s4", "#20242c", "#f2f4f8"),
    ("s5", "#2a8bc4", "#8fd0f5"),
    ("s6", "#7a4fc2", "#b89bf0"),
    ("s7", "#8a6d00", "#e3c23f"),
];

/// Distance between charts.
const GAP: f64 = 8.0;

/// A phase as a legend names it.
fn words(phase: &str) -> &str {
    match phase {
        "prefill" => "prefill of the whole prompt",
        "auxiliary" => "auxiliary network",
        "pipelined" => "auxiliary network, the base's layers behind it",
        "prediction" => "predicting the cache",
        "base_step" => "one step of the base",
        "selection" => "choosing tokens",
        "look_ahead" => "decoding ahead",
        other => other,
    }
}

/// The name and the light colour of an ink.
fn ink(name: &str) -> (&'static str, &'static str) {
    let known = INKS.iter().find(|(n, ..)| *n == name).or(INKS.iter().find(|(n, ..)| *n == "other")).expect("is there");
    (known.0, known.1)
}

pub(super) fn fill(name: &str) -> String {
    let (class, light) = ink(name);
    format!("class=\"{class}\" fill=\"{light}\"")
}

/// The runs, one below the other.
pub fn render(runs: &[Run], _: &[&str]) -> Result<String, RenderError> {
    if runs.is_empty() {
        return Err(RenderError::NoRuns);
    }
    let mut drawn = String::new();
    let mut top = MARGIN;
    for run in runs {
        let title = if runs.len() > 1 { format!("{}: ", run.name) } else { String::new() };
        top = match run.fidelity {
            [] => block(&mut drawn, run.record, &title, top),
            _ => answers(&mut drawn, run, &title, top)?,
        };
    }
    let of = if runs[0].fidelity.is_empty() { "beside its base" } else { "against its answers" };
    Ok(page(&format!("Time to first token of KV prediction {of}"), top.ceil(), &drawn))
}

/// Draws a run's answers over its speedups from `top` on, two charts beside each other, and gives where they end.
fn answers(out: &mut String, run: &Run, title: &str, top: f64) -> Result<f64, RenderError> {
    let (heading, charts) = tradeoff::pictured(run)?;
    line(out, MARGIN, top + 20.0, "text", " font-size=\"18\" font-weight=\"600\"", &format!("{title}{heading}"));
    let width = (WIDTH - 2.0 * MARGIN - GAP) / 2.0;
    let scale = width / f64::from(plot::WIDTH);
    let mut at = top + 40.0;
    let mut known: Vec<(&str, &str)> = Vec::new();
    for pair in charts.chunks(2) {
        let mut lowest = 0f64;
        for (i, chart) in pair.iter().enumerate() {
            let x = MARGIN + i as f64 * (width + GAP);
            line(out, x, at + 12.0, "text", " font-size=\"13\" font-weight=\"600\"", &chart.title);
            let place = format!("translate({x:.1} {:.1}) scale({scale:.4})", at + 16.0);
            let _ = writeln!(out, "<g transform=\"{place}\">{}</g>", unthemed(&chart.svg));
            lowest = lowest.max(scale * f64::from(chart.height));
            chart.legend.iter().map(|e| (e.name.as_str(), e.swatch.as_str())).for_each(|e| {
                if !known.contains(&e) {
                    known.push(e);
                }
            });
        }
        at += lowest + 30.0;
    }
    let sample = |swatch: &str, x: f64, at: f64| {
        unthemed(&swatch.replacen("<svg ", &format!("<svg x=\"{x:.1}\" y=\"{at:.1}\" "), 1))
    };
    let at = samples(out, &known, at, |(name, swatch), x, at| (sample(swatch, x, at), name));
    Ok(at + 20.0 + MARGIN)
}

/// A chart of a page, whose colours are the style sheet's, with those of a picture.
fn unthemed(svg: &str) -> String {
    let named = [("text", Ink::Text), ("muted", Ink::Muted), ("grid", Ink::Grid)].map(|(n, i)| (n.to_string(), i));
    let series = (0..SERIES).map(|i| (format!("s{i}"), Ink::Series(i)));
    named.into_iter().chain(series).fold(svg.replace(" class=\"target\"", ""), |svg, (name, css)| {
        let (class, light) = ink(&name);
        svg.replace(&format!("fill=\"{}\"", css.css()), &fill(&name))
            .replace(&format!("stroke=\"{}\"", css.css()), &format!("class=\"{class}-line\" stroke=\"{light}\""))
    })
}

/// A picture of this height.
pub(super) fn page(title: &str, height: f64, drawn: &str) -> String {
    let styles = |dark: bool| {
        let of = |(class, l, d): &(&str, &str, &str)| {
            let color = if dark { d } else { l };
            let used = |class: &str| class == "page" || drawn.contains(&format!("class=\"{class}\""));
            let fill = used(class).then(|| format!(".{class}{{fill:{color}}}"));
            let stroke = used(&format!("{class}-line")).then(|| format!(".{class}-line{{stroke:{color}}}"));
            fill.into_iter().chain(stroke).collect::<String>()
        };
        INKS.iter().map(of).collect::<String>()
    };
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', Arial, sans-serif\" font-size=\"15\">\n\
         <title>{}</title>\n\
         <style>{}@media (prefers-color-scheme:dark){{{}}}</style>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"8\" {}/>\n{drawn}</svg>\n",
        escape(title),
        styles(false),
        styles(true),
        fill("page")
    )
}

pub(super) fn line(out: &mut String, x: f64, y: f64, ink: &str, more: &str, words: &str) {
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" {}{more}>{}</text>", fill(ink), escape(words));
}

/// Names of inks, with the width of their sample and words, from `at` on; where the last line begins.
pub(super) fn legend(out: &mut String, entries: &[(&str, f64, &str)], at: f64) -> f64 {
    samples(out, entries, at, |(name, width, words), x, at| {
        let left = x + (13.0 - width) / 2.0;
        (format!("<rect x=\"{left:.1}\" y=\"{at:.1}\" width=\"{width}\" height=\"13\" {}/>", fill(name)), words)
    })
}

/// A line of entries that is broken where it is full, from `at` on: of each a sample, drawn at a place, and words. Where the last
/// line begins.
fn samples<'a, T: Copy>(
    out: &mut String,
    entries: &[T],
    mut at: f64,
    sample: impl Fn(T, f64, f64) -> (String, &'a str),
) -> f64 {
    let mut x = MARGIN;
    for entry in entries {
        // Letters of this size are about this wide.
        let room = 20.0 + 6.9 * sample(*entry, x, at).1.chars().count() as f64;
        if x + room > WIDTH - MARGIN && x > MARGIN {
            (x, at) = (MARGIN, at + 20.0);
        }
        let (drawn, words) = sample(*entry, x, at + 1.0);
        let _ = writeln!(out, "{drawn}");
        line(out, x + 19.0, at + 12.0, "muted", " font-size=\"13\"", words);
        x += room + 14.0;
    }
    at
}

/// The size that is drawn: of KV prediction with phases, the smallest batch with its longest prompt; and the rows there, the
/// base first.
fn chosen<'a, 'b>(rows: &'b [Row<'a>]) -> Vec<&'b Row<'a>> {
    let drawn = |r: &&Row| r.cell.kind == Kind::Kvp && r.ttft.is_some() && !r.cell.phases.is_empty();
    let place = |r: &Row| (r.cell.batch, r.cell.prompt);
    let best = rows.iter().filter(drawn).min_by_key(|r| (r.cell.batch, std::cmp::Reverse(r.cell.prompt)));
    let Some(best) = best else { return Vec::new() };
    let there = |r: &&Row| place(r) == place(best) && r.ttft.is_some() && !r.cell.phases.is_empty();
    let base = rows.iter().filter(there).filter(|r| r.cell.system == best.cell.base).take(1);
    base.chain(rows.iter().filter(there).filter(|r| r.cell.kind == Kind::Kvp && r.cell.base == best.cell.base))
        .collect()
}

/// Draws a run from `top` on, and gives where it ends.
fn block(out: &mut String, record: &Record, title: &str, top: f64) -> f64 {
    let rows = summary::rows(record);
    let rows = chosen(&rows);
    let Some(first) = rows.first() else {
        line(out, MARGIN, top + 20.0, "text", "", &format!("{title}no KV prediction was measured in this run"));
        return top + 40.0;
    };
    let heading = match first.cell.batch {
        1 => format!("{title}time to the first token of a prompt of {} tokens", first.cell.prompt),
        _ => format!("{title}time to the first tokens, {} prompts x tokens", size(first.cell)),
    };
    let mut heading = heading.chars();
    let heading: String = heading.next().into_iter().flat_map(char::to_uppercase).chain(heading).collect();
    line(out, MARGIN, top + 20.0, "text", " font-size=\"18\" font-weight=\"600\"", &heading);
    let longest = rows.iter().filter_map(|r| r.ttft).map(|t| t.value).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - 2.0 * MARGIN) / longest;
    let mut at = top + 36.0;
    let mut used: Vec<&str> = Vec::new();
    let mut ideal_drawn = false;
    for row in &rows {
        let Some(ttft) = row.ttft else { continue };
        let mark = if row.doubts.is_empty() { "" } else { " (!)" };
        let alone = if row.cell.kind == Kind::Base { ", alone" } else { "" };
        line(out, MARGIN, at + 16.0, "text", "", &format!("{}{alone}{mark}", row.cell.system));
        let faster = row.speedup.filter(|_| row.cell.system != row.cell.base);
        let faster = faster.map_or(String::new(), |s| format!(", {} as fast", format::ratio(s.estimate.value)));
        let words = format!("{}{faster}", format::seconds(ttft.value));
        line(out, WIDTH - MARGIN, at + 16.0, "text", " text-anchor=\"end\"", &words);
        let (mut x, end) = (MARGIN, MARGIN + scale * ttft.value);
        let phases: Vec<(&str, f64)> = row
            .cell
            .phases
            .iter()
            .filter_map(|p| Some((p.name.as_str(), stats::median(&summary::seconds(&p.samples_ns))?)))
            .collect();
        for (phase, seconds) in &phases {
            // Medians of parts may add up to more than the median of the whole.
            let width = (scale * seconds).min(end - x).max(0.0);
            let _ = writeln!(
                out,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"20\" {}/>",
                at + 23.0,
                fill(phase)
            );
            x += width;
            if !used.contains(phase) {
                used.push(phase);
            }
        }
        let ideal = first.ttft.zip(row.flops_reduction).filter(|_| row.cell.system != row.cell.base);
        if let Some((base, reduction)) = ideal.filter(|(_, r)| *r > 0.0) {
            let x = (MARGIN + scale * base.value / reduction).min(WIDTH - MARGIN);
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"3\" height=\"28\" {}/>",
                x - 1.5,
                at + 19.0,
                fill("text")
            );
            ideal_drawn = true;
        }
        at += ROW;
    }
    let ideal = ideal_drawn.then_some(("text", 3.0, "if all operations saved were time saved"));
    let entries: Vec<_> = used.iter().map(|p| (*p, 13.0, words(p))).chain(ideal).collect();
    at = legend(out, &entries, at + 8.0);
    let day =
        record.run.started_at.as_deref().and_then(|t| t.get(..10)).map_or(String::new(), |day| format!(", {day}"));
    line(out, MARGIN, at + 36.0, "muted", " font-size=\"12\"", &format!("{}{day}", facts::machine(&record.run)));
    at + 52.0
}
