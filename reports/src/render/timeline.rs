//! A picture of a trace: the phases of its first call, what the threads did in each, and one step of it thread by thread.

use std::fmt::Write as _;

use super::picture::{MARGIN, WIDTH, fill, legend, line, page};
use crate::{
    format,
    trace::{Span, Trace},
};

/// What a thread can be at, with its ink and words, in the order in which they are told.
const KINDS: [(&str, &str, &str); 6] = [
    ("product", "auxiliary", "products of many rows"),
    ("few rows beside", "base_step", "rows of the base's products beside them"),
    ("few rows", "alone", "products of few rows alone"),
    ("attention", "selection", "attention"),
    ("maps", "prediction", "maps"),
    ("rows", "muted", "operations on rows"),
];

/// Height of a bar.
const BAR: f64 = 24.0;

fn ink(kind: &str) -> &'static str {
    KINDS.iter().find(|k| k.0 == kind).map_or("other", |k| k.1)
}

fn microseconds(us: f64) -> String {
    format::seconds(us * 1e-6)
}

/// A stretch of time drawn over the width of the picture.
struct Scale {
    from: f64,
    to: f64,
}

impl Scale {
    fn of(&self, at: f64) -> f64 {
        MARGIN + (WIDTH - 2.0 * MARGIN) * (at - self.from) / (self.to - self.from)
    }

    fn bar(&self, out: &mut String, span: &Span, y: f64, ink: &str) {
        let (left, right) = (self.of(span.start.max(self.from)), self.of(span.end.min(self.to)));
        if right - left >= 0.05 {
            let width = right - left;
            let _ = writeln!(
                out,
                "<rect x=\"{left:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{BAR}\" {}/>",
                fill(ink)
            );
        }
    }

    /// Times below bars, from the start of the stretch on.
    fn ticks(&self, out: &mut String, y: f64) {
        let length = self.to - self.from;
        let least = length / 8.0;
        let power = 10f64.powf(least.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|f| f * power).into_iter().find(|s| *s >= least).unwrap_or(least);
        let ticks = (0..).map(|i| f64::from(i) * step).take_while(|at| *at <= length);
        for at in ticks {
            let x = self.of(self.from + at);
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{y:.1}\" width=\"1\" height=\"5\" {}/>",
                x.min(WIDTH - MARGIN - 1.0),
                fill("muted")
            );
            let anchor = if at == 0.0 { "start" } else { "middle" };
            let words = if at == 0.0 { "0".into() } else { microseconds(at) };
            if x < WIDTH - MARGIN - 16.0 {
                line(out, x, y + 18.0, "muted", &format!(" font-size=\"12\" text-anchor=\"{anchor}\""), &words);
            }
        }
    }
}

/// Draws it.
pub fn render(trace: &Trace) -> String {
    let (about, call) = (&trace.about, &trace.call);
    let mut out = String::new();
    let mut at = MARGIN + 20.0;
    let took = microseconds(call.took());
    let prompts = if about.batch == 1 { String::new() } else { format!("{} x ", about.batch) };
    let heading =
        format!("{}, {}: {took} to the first token of {prompts}{} tokens", about.system, about.order, about.prompt);
    line(&mut out, MARGIN, at, "text", " font-size=\"17\" font-weight=\"600\"", &heading);
    at += 28.0;

    let whole = Scale { from: call.start, to: call.end };
    line(&mut out, MARGIN, at, "text", "", "Phases, and what the threads did in each");
    at += 8.0;
    for phase in &trace.phases {
        whole.bar(&mut out, phase, at, &phase.name);
    }
    at += BAR + 2.0;
    whole.ticks(&mut out, at);
    at += 40.0;
    let mut names: Vec<&str> = Vec::new();
    trace.phases.iter().for_each(|p| {
        if !names.contains(&p.name.as_str()) {
            names.push(&p.name)
        }
    });
    for name in names {
        let all = || trace.phases.iter().filter(|p| p.name == name);
        let time: f64 = all().map(Span::took).sum();
        let of_threads = time * trace.threads.len().max(1) as f64;
        let share = |kind: &str| {
            let us: f64 = all().flat_map(|p| &p.threads).filter(|t| t.0 == kind).map(|t| t.1).sum();
            us / of_threads
        };
        let known = KINDS.iter().map(|(kind, _, words)| (*words, share(kind)));
        let rest = 1.0 - known.clone().map(|k| k.1).sum::<f64>();
        let told = known.chain([("waiting and all else", rest)]).filter(|(_, share)| *share >= 0.005);
        let told: Vec<String> = told.map(|(words, share)| format!("{words} {}", format::percent(share))).collect();
        let _ =
            writeln!(out, "<rect x=\"{MARGIN}\" y=\"{:.1}\" width=\"13\" height=\"13\" {}/>", at - 11.0, fill(name));
        line(&mut out, MARGIN + 19.0, at, "text", " font-size=\"14\"", &format!("{name}, {}", microseconds(time)));
        for words in told.chunks(2) {
            at += 17.0;
            line(&mut out, MARGIN + 19.0, at, "muted", " font-size=\"13\"", &words.join(", "));
        }
        at += 24.0;
    }

    if let Some(step) = shown(trace) {
        let one = Scale { from: step.start, to: step.end };
        at += 8.0;
        line(
            &mut out,
            MARGIN,
            at,
            "text",
            "",
            &format!("{}, {}, thread by thread", step.name, microseconds(step.took())),
        );
        at += 8.0;
        let mut used: Vec<String> = Vec::new();
        for thread in &trace.threads {
            for span in Trace::flat(thread).into_iter().filter(|s| s.end > step.start && s.start < step.end) {
                one.bar(&mut out, &span, at, ink(&span.name));
                if !used.contains(&span.name) {
                    used.push(span.name);
                }
            }
            at += BAR + 4.0;
        }
        one.ticks(&mut out, at - 2.0);
        let known = KINDS.iter().filter(|k| used.iter().any(|u| u == k.0)).map(|k| (k.1, 13.0, k.2));
        at = legend(&mut out, &known.collect::<Vec<_>>(), at + 28.0) + 16.0;
    }
    let threads = if about.threads == 1 { "1 thread".into() } else { format!("{} threads", about.threads) };
    let cpu = about.cpu.as_deref().map_or(String::new(), |cpu| format!(" of {cpu}"));
    line(&mut out, MARGIN, at + 20.0, "muted", " font-size=\"12\"", &format!("{threads}{cpu}"));
    page("What ran when, on the way to the first token", (at + 36.0).ceil(), &out)
}

/// The step that is shown thread by thread: of those of which the trace has what the threads did and that are long enough to be seen,
/// the one nearest to the middle of the longest phase.
fn shown(trace: &Trace) -> Option<&Span> {
    let spans = || trace.threads.iter().flatten();
    let (from, to) = (spans().map(|s| s.start).reduce(f64::min)?, spans().map(|s| s.end).reduce(f64::max)?);
    let time = |name: &str| trace.phases.iter().filter(|p| p.name == name).map(Span::took).sum::<f64>();
    let longest = trace.phases.iter().map(|p| p.name.as_str()).max_by(|a, b| time(a).total_cmp(&time(b)))?;
    let of_it = || trace.phases.iter().filter(|p| p.name == longest);
    let middle = f64::midpoint(of_it().next()?.start, of_it().next_back()?.end);
    let covered = |s: &&Span| s.start >= from - 100.0 && s.end <= to + 100.0 && s.took() >= trace.call.took() / 100.0;
    let distance = |s: &Span| (f64::midpoint(s.start, s.end) - middle).abs();
    trace.steps.iter().filter(covered).min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The picture in docs is the one that the program draws of the trace that lies here.
    #[test]
    fn the_picture_of_the_pipelined_order_is_up_to_date() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let trace = Trace::read(&root.join("reports/data/amd-epyc-zen4-2c/pipelined-trace.json")).unwrap();
        assert!(trace.phases.iter().any(|p| p.name == "pipelined"));
        let (drawn, path) = (render(&trace), root.join("docs/pipelined.svg"));
        if std::env::var_os("UPDATE_PICTURE").is_some() {
            std::fs::write(&path, &drawn).unwrap();
        }
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(there == drawn, "docs/pipelined.svg: run with UPDATE_PICTURE=1");
    }

    #[test]
    fn a_picture_is_well_formed_and_shows_each_thread_in_its_place() {
        let sample = crate::trace::tests::sample();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.json");
        std::fs::write(&path, sample).unwrap();
        let drawn = render(&Trace::read(&path).unwrap());
        let svg = roxmltree::Document::parse(&drawn).unwrap();
        let texts: Vec<&str> = svg.descendants().filter(|n| n.has_tag_name("text")).filter_map(|n| n.text()).collect();
        for words in [
            "OE1.1B-KVP-C-450M, pipelined: 110 µs to the first token of 64 tokens",
            "pipelined, 80.0 µs",
            "products of many rows 75%, rows of the base's products beside them 25%",
            "Auxiliary layer 0 on 63 of 63, 80.0 µs, thread by thread",
            "1 thread of a <CPU>",
        ] {
            assert!(texts.contains(&words), "{words}: {texts:?}");
        }
        // The bars of the step: product, rows beside it, and so on, from end to end.
        let number = |n: &roxmltree::Node<'_, '_>, name: &str| n.attribute(name).unwrap().parse::<f64>().unwrap();
        let bars: Vec<_> = svg.descendants().filter(|n| n.attribute("height") == Some("24")).collect();
        let last = bars.iter().map(|b| number(b, "y")).fold(0.0, f64::max);
        let thread: Vec<_> = bars.iter().filter(|b| number(b, "y") == last).collect();
        let classes: Vec<_> = thread.iter().map(|b| b.attribute("class").unwrap()).collect();
        assert_eq!(classes, ["auxiliary", "base_step", "auxiliary", "base_step", "auxiliary"]);
        let ends = thread.iter().map(|b| (number(b, "x"), number(b, "x") + number(b, "width")));
        let ends: Vec<_> = ends.collect();
        assert!((ends[0].0 - MARGIN).abs() < 0.1 && (ends[4].1 - (WIDTH - MARGIN)).abs() < 0.1, "{ends:?}");
        assert!(ends.windows(2).all(|w| (w[0].1 - w[1].0).abs() < 0.1), "{ends:?}");
    }
}
