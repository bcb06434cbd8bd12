//! What a run did, as a trace that chrome://tracing and ui.perfetto.dev show: its calls, their phases and their steps, each in a
//! row of its own, and below them what every thread did.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::{Value, json};
use ttft_kernels::Part;
use ttft_models::{Inference, RunSpec, cost::CostSystem};

/// The rows of the picture, from the top.
const ROWS: [&str; 3] = ["calls", "phases", "steps"];

/// Events so far, one call after another.
#[derive(Debug)]
pub struct Trace {
    cost: CostSystem,
    spec: RunSpec,
    events: Vec<Event>,
    /// Where the next call begins.
    at: Duration,
    /// Threads that did something.
    threads: usize,
}

#[derive(Debug, Serialize)]
struct Event {
    name: String,
    /// A complete event: one with a duration.
    ph: &'static str,
    /// Microseconds, as the format has it.
    ts: f64,
    dur: f64,
    pid: u32,
    tid: usize,
    #[serde(skip_serializing_if = "Value::is_null")]
    args: Value,
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

/// What each part is, its start, and how long its thread was at it and not at another one within it.
fn alone(parts: &[Part]) -> Vec<(&'static str, Instant, Duration)> {
    let mut order: Vec<&Part> = parts.iter().collect();
    order.sort_by_key(|p| (p.thread, p.start, std::cmp::Reverse(p.end)));
    let mut all: Vec<(&str, Instant, Duration)> = Vec::with_capacity(parts.len());
    let mut open: Vec<usize> = Vec::new();
    for (i, part) in order.iter().enumerate() {
        while open.last().is_some_and(|&o| order[o].thread != part.thread || order[o].end <= part.start) {
            open.pop();
        }
        let took = part.end - part.start;
        if let Some(&outer) = open.last() {
            all[outer].2 = all[outer].2.saturating_sub(took);
        }
        all.push((part.what, part.start, took));
        open.push(i);
    }
    all
}

impl Trace {
    /// Of a run of this system.
    pub fn new(cost: CostSystem, spec: RunSpec) -> Trace {
        Trace { cost, spec, events: Vec::new(), at: Duration::ZERO, threads: 0 }
    }

    /// Adds the last call of a run, which began then and took so long. Its steps stand at its end: before them the ids were
    /// checked. `parts` is what the engine's threads did.
    pub fn call(&mut self, name: &str, (began, took): (Instant, Duration), run: &dyn Inference, parts: &[Part]) {
        let (steps, ran) = run.trace();
        let busy = alone(parts);
        for part in parts {
            self.threads = self.threads.max(part.thread + 1);
            let at = self.at + part.start.saturating_duration_since(began);
            self.event(ROWS.len() + part.thread, part.what.to_owned(), at, part.end - part.start, Value::Null);
        }
        let start = self.at;
        self.event(
            0,
            name.to_owned(),
            self.at,
            took,
            json!({ "threads_started": ran.iter().map(|r| r.regions).sum::<usize>() }),
        );
        let mut at = self.at + took.saturating_sub(ran.iter().map(|r| r.time).sum());
        self.at += took;
        let mut ran = ran.iter();
        for phase in steps.chunk_by(|a, b| a.phase == b.phase) {
            let begin = at;
            let mut started = 0;
            for (step, ran) in phase.iter().zip(&mut ran) {
                let cost = self.cost.step(&self.spec, step);
                let (flops, seconds) = (cost.flops.total(), ran.time.as_secs_f64());
                let args = json!({
                    "rows": ran.rows,
                    "threads_started": ran.regions,
                    "flops": flops,
                    "weight_bytes": cost.weight_bytes,
                    "cache_bytes": cost.cache_bytes,
                    "gflops": if seconds > 0.0 { Some(flops as f64 / seconds * 1e-9) } else { None },
                });
                let text = step.to_string();
                let name = text.split_once(": ").map_or(text.as_str(), |(_, what)| what);
                self.event(2, name.to_owned(), at, ran.time, args);
                at += ran.time;
                started += ran.regions;
            }
            // What the threads did in it, all of them together.
            let mut sums = BTreeMap::<&str, f64>::new();
            for (what, when, took) in &busy {
                if (begin..at).contains(&(start + when.saturating_duration_since(began))) {
                    *sums.entry(what).or_default() += micros(*took);
                }
            }
            let args = json!({ "threads_started": started, "thread_us": sums });
            self.event(1, phase[0].phase.name().to_owned(), begin, at - begin, args);
        }
    }

    fn event(&mut self, row: usize, name: String, at: Duration, took: Duration, args: Value) {
        let (ts, dur) = (micros(at), micros(took));
        self.events.push(Event { name, ph: "X", ts, dur, pid: 1, tid: row + 1, args });
    }

    /// The file's content. `about` says what ran.
    pub fn json(&self, about: Value) -> Value {
        let named = |kind: &str, tid: usize, name: &str| json!({"name": kind, "ph": "M", "pid": 1, "tid": tid, "args": {"name": name}});
        let rows = ROWS.iter().enumerate().map(|(i, name)| named("thread_name", i + 1, name));
        let threads = (0..self.threads).map(|i| named("thread_name", ROWS.len() + i + 1, &format!("thread {i}")));
        let names: Vec<Value> = [named("process_name", 0, "ttft")].into_iter().chain(rows).chain(threads).collect();
        let events = self.events.iter().map(|e| json!(e));
        json!({
            "traceEvents": names.into_iter().chain(events).collect::<Vec<_>>(),
            "displayTimeUnit": "ms",
            "otherData": about,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_within_another_is_taken_off_it() {
        let zero = Instant::now();
        let at = |us| zero + Duration::from_micros(us);
        let part = |thread, what, start, end| Part { thread, what, start: at(start), end: at(end) };
        // As they are logged: what ends first.
        let parts = [
            part(0, "inner", 10, 20),
            part(1, "other", 0, 50),
            part(0, "inner", 20, 25),
            part(0, "outer", 0, 100),
            part(0, "outer", 100, 130),
        ];
        let found: Vec<_> = alone(&parts).into_iter().map(|(what, _, took)| (what, took.as_micros())).collect();
        assert_eq!(found, [("outer", 85), ("inner", 10), ("inner", 5), ("outer", 30), ("other", 50)]);
    }
}
