//! A trace that `ttft logits --trace` wrote, read for a picture of it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::text;

/// Longest file that is read, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// Why a trace could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file system refused.
    #[error("{}: cannot read the trace", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is no trace of ttft.
    #[error("{}: {message}: give a file that `ttft logits --trace` wrote", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// What was expected, and what was found.
        message: String,
    },
}

/// What ran, as the trace says it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct About {
    /// The system's name.
    pub system: String,
    /// When the base runs.
    pub order: String,
    /// Prompts.
    pub batch: u64,
    /// Tokens of each.
    pub prompt: u64,
    /// The CPU, if it was known.
    pub cpu: Option<String>,
    /// Threads that computed.
    pub threads: u64,
}

/// Something that took time; microseconds from the start of the first call.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What it was.
    pub name: String,
    /// Its start.
    pub start: f64,
    /// Its end.
    pub end: f64,
    /// Of a phase: what its threads did, and how long, all of them together.
    pub threads: Vec<(String, f64)>,
}

impl Span {
    /// How long it took.
    pub fn took(&self) -> f64 {
        self.end - self.start
    }

    /// Whether it is inside another one, but for rounding.
    fn within(&self, other: &Span) -> bool {
        other.start - 1e-3 <= self.start && self.end <= other.end + 1e-3
    }
}

/// The first call of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What ran.
    pub about: About,
    /// The call.
    pub call: Span,
    /// Its phases, by start.
    pub phases: Vec<Span>,
    /// Its steps, by start.
    pub steps: Vec<Span>,
    /// What each thread did, by start; of two that overlap the second is inside the first.
    pub threads: Vec<Vec<Span>>,
}

#[derive(Deserialize)]
struct Contents {
    #[serde(rename = "traceEvents")]
    events: Vec<Event>,
    #[serde(rename = "otherData", default)]
    about: About,
}

#[derive(Deserialize)]
struct Event {
    name: String,
    ph: String,
    tid: u64,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Args {
    name: String,
    thread_us: BTreeMap<String, f64>,
}

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// No such file; one that is longer than 256 MiB or no trace of this program, with what was expected.
    pub fn read(path: &Path) -> Result<Trace, TraceError> {
        let io = |source| TraceError::Io { path: path.into(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(io)?;
        let form = |message| TraceError::Form { path: path.into(), message };
        if bytes.len() as u64 > MAX_BYTES {
            return Err(form(format!("it is longer than {} MiB", MAX_BYTES >> 20)));
        }
        Trace::parse(path, &bytes)
    }

    /// Reads what a file holds.
    ///
    /// # Errors
    /// It is no trace of this program, with what was expected.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Trace, TraceError> {
        Trace::contents(bytes).map_err(|message| TraceError::Form { path: path.into(), message })
    }

    fn contents(bytes: &[u8]) -> Result<Trace, String> {
        if let Some(what) = text::stand_in(bytes) {
            return Err(what.to_string());
        }
        let mut json = serde_json::Deserializer::from_slice(text::without_mark(bytes));
        let contents: Contents = serde_path_to_error::deserialize(&mut json)
            .map_err(|e| format!("expected a trace in JSON, found in `{}`: {}", e.path(), e.inner()))?;
        let mut tids: BTreeMap<&str, u64> = BTreeMap::new();
        let mut of: BTreeMap<u64, Vec<&Event>> = BTreeMap::new();
        for e in &contents.events {
            match (e.ph.as_str(), e.name.as_str()) {
                ("M", "thread_name") => drop(tids.entry(&e.args.name).or_insert(e.tid)),
                ("X", _) => of.entry(e.tid).or_default().push(e),
                _ => {}
            }
        }
        let row = |name: &str| -> Result<Vec<Span>, String> {
            let tid = tids.get(name).ok_or_else(|| format!("expected a row `{name}`, found none"))?;
            let mut spans = Vec::new();
            for e in of.get(tid).into_iter().flatten() {
                if !(e.ts.is_finite() && e.dur >= 0.0 && e.dur.is_finite()) {
                    return Err(format!(
                        "expected times of `{}` in row `{name}`, found {} and {}",
                        e.name, e.ts, e.dur
                    ));
                }
                let threads = e.args.thread_us.iter().map(|(what, us)| (what.clone(), *us)).collect();
                spans.push(Span { name: e.name.clone(), start: e.ts, end: e.ts + e.dur, threads });
            }
            spans.sort_by(|a, b| a.start.total_cmp(&b.start).then(b.end.total_cmp(&a.end)));
            Ok(spans)
        };
        let call = row("calls")?.into_iter().next().filter(|c| c.took() > 0.0);
        let call = call.ok_or("expected a call in row `calls`, found none")?;
        let of_call = |spans: Vec<Span>| spans.into_iter().filter(|s| s.within(&call)).collect::<Vec<_>>();
        let (phases, steps) = (of_call(row("phases")?), of_call(row("steps")?));
        let names = (0..).map(|i| format!("thread {i}")).take_while(|name| tids.contains_key(name.as_str()));
        let threads = names.map(|name| Ok(of_call(row(&name)?))).collect::<Result<Vec<_>, String>>()?;
        for (i, thread) in threads.iter().enumerate() {
            let mut open: Vec<&Span> = Vec::new();
            for span in thread {
                open.retain(|o| o.end > span.start + 1e-3);
                if let Some(outer) = open.last().filter(|o| !span.within(o)) {
                    let (a, b) = (&span.name, &outer.name);
                    return Err(format!("expected `{a}` inside `{b}` in row `thread {i}`, found it across its end"));
                }
                open.push(span);
            }
        }
        Ok(Trace { about: contents.about, call, phases, steps, threads })
    }

    /// What a thread was at, one after another: of what is inside something else, that alone.
    pub fn flat(thread: &[Span]) -> Vec<Span> {
        let mut out = Vec::new();
        let mut open: Vec<&Span> = Vec::new();
        let mut at = f64::MIN;
        let mut add = |span: &Span, from: f64, to: f64| {
            if to > from {
                out.push(Span { start: from, end: to, ..span.clone() });
            }
        };
        for span in thread {
            while let Some(top) = open.pop_if(|top| top.end <= span.start) {
                add(top, at.max(top.start), top.end);
                at = at.max(top.end);
            }
            if let Some(top) = open.last() {
                add(top, at.max(top.start), span.start);
            }
            at = span.start;
            open.push(span);
        }
        while let Some(top) = open.pop() {
            add(top, at.max(top.start), top.end);
            at = at.max(top.end);
        }
        out
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A trace of one thread, which computes some rows of another product within each of two.
    pub(crate) fn sample() -> String {
        let mut events = Vec::new();
        for (tid, name) in [(1, "calls"), (2, "phases"), (3, "steps"), (4, "thread 0")] {
            let args = serde_json::json!({ "name": name });
            events.push(serde_json::json!({"name": "thread_name", "ph": "M", "pid": 1, "tid": tid, "args": args}));
        }
        let shares = serde_json::json!({ "thread_us": { "product": 60.0, "few rows beside": 20.0 } });
        for (tid, name, ts, dur, args) in [
            (1, "first token", 0.0, 110.0, None),
            (1, "token 2", 110.0, 50.0, None),
            (2, "pipelined", 10.0, 80.0, Some(shares)),
            (2, "base_step", 90.0, 20.0, None),
            (3, "Auxiliary layer 0 on 63 of 63", 10.0, 80.0, None),
            (3, "Base head on 1", 90.0, 20.0, None),
            (4, "few rows beside", 20.0, 10.0, None),
            (4, "product", 10.0, 40.0, None),
            (4, "few rows beside", 50.0, 10.0, None),
            (4, "product", 50.0, 40.0, None),
            (4, "few rows", 90.0, 20.0, None),
            (4, "few rows", 120.0, 20.0, None),
        ] {
            let mut event = serde_json::json!({"name": name, "ph": "X", "ts": ts, "dur": dur, "pid": 1, "tid": tid});
            event["args"] = args.unwrap_or_else(|| serde_json::json!({}));
            events.push(event);
        }
        let about = serde_json::json!({
            "system": "OE1.1B-KVP-C-450M", "order": "pipelined", "batch": 1, "prompt": 64, "threads": 1, "cpu": "a <CPU>",
        });
        serde_json::json!({ "traceEvents": events, "otherData": about }).to_string()
    }

    #[test]
    fn a_trace_is_read_and_taken_apart() {
        let trace = Trace::contents(sample().as_bytes()).unwrap();
        assert_eq!((trace.call.took(), trace.phases.len(), trace.steps.len()), (110.0, 2, 2));
        assert_eq!(trace.phases[0].threads, [("few rows beside".into(), 20.0), ("product".into(), 60.0)]);
        let flat: Vec<_> = Trace::flat(&trace.threads[0]).into_iter().map(|s| (s.name, s.start, s.end)).collect();
        let expected = [
            ("product", 10.0, 20.0),
            ("few rows beside", 20.0, 30.0),
            ("product", 30.0, 50.0),
            ("few rows beside", 50.0, 60.0),
            ("product", 60.0, 90.0),
            ("few rows", 90.0, 110.0),
        ];
        assert_eq!(flat, expected.map(|(name, from, to)| (name.to_owned(), from, to)));
    }

    #[test]
    fn what_is_no_trace_is_refused_by_name() {
        let text = sample();
        for (text, words) in [
            ("{}".to_owned(), "traceEvents"),
            ("[1".to_owned(), "expected a trace in JSON"),
            (text.replace("\"calls\"", "\"others\""), "expected a row `calls`"),
            (text.replace("\"ts\":50.0", "\"ts\":45.0"), "inside `product` in row `thread 0`"),
            (text.replace("\"dur\":110.0", "\"dur\":-1.0"), "expected times of `first token`"),
            (text.replace("\"ts\":50.0", "\"ts\":\"x\""), "traceEvents["),
        ] {
            let error = Trace::contents(text.as_bytes()).unwrap_err();
            assert!(error.contains(words), "{words}: {error}");
        }
        let missing = Trace::read(Path::new("nowhere.json")).unwrap_err().to_string();
        assert!(missing.contains("nowhere.json: cannot read the trace"), "{missing}");
    }
}
