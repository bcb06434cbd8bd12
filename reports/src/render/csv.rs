//! One line for each cell, as plain numbers with their units in the header. Unknown is empty.

use super::{RenderError, Run, tradeoff};
use crate::{
    schema::{Cell, Percentiles},
    stats::{self, Estimate},
    summary,
    text::no_formula,
    validate,
};

const HEADER: [&str; 74] = [
    "run",
    "id",
    "kind",
    "system",
    "base",
    "aux",
    "batch",
    "prompt",
    "weight_dtype",
    "precision",
    "extent",
    "threads",
    "isa",
    "backend",
    "samples",
    "processes",
    "modes",
    "ttft_s",
    "ttft_low_s",
    "ttft_high_s",
    "interval_level",
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_p99_s",
    "tokens_per_s",
    "flops",
    "bytes",
    "gflops",
    "share_of_peak",
    "speedup",
    "speedup_low",
    "speedup_high",
    "pairing",
    "flops_reduction",
    "paper_flops_reduction",
    "efficiency",
    "verdict",
    "roofline_s",
    "roofline_reduction",
    "step_s",
    "step_ratio",
    "ttft_steps",
    "start",
    "open_s",
    "warm_ttft_s",
    "read_bytes",
    "prefill_s",
    "selection_s",
    "auxiliary_s",
    "pipelined_s",
    "shared_layers_s",
    "prediction_s",
    "base_step_s",
    "look_ahead_s",
    "unattributed_s",
    "parallel_regions",
    "mad_s",
    "drift",
    "load",
    "clock_low_mhz",
    "clock_high_mhz",
    "throttled",
    "clock_unknown",
    "major_faults",
    "minor_faults",
    "peak_rss_bytes",
    "rss_anon_bytes",
    "joules",
    "idle_watts",
    "energy_reduction",
    "gate_error",
    "attempt",
    "published",
    "doubts",
];

/// The cells of all runs; of runs with a fidelity file, the figures of the trade-off.
pub fn render(sides: &[Run], _: &[&str]) -> Result<String, RenderError> {
    let refuse = |e: &dyn std::fmt::Display| RenderError::Csv(e.to_string());
    let mut out = ::csv::Writer::from_writer(Vec::new());
    let traded: Vec<_> = sides.iter().filter(|side| !side.fidelity.is_empty()).map(tradeoff::lines).collect();
    if !traded.is_empty() {
        let joined = traded.iter().any(Result::is_ok);
        out.write_record(tradeoff::HEADER).map_err(|e| refuse(&e))?;
        for lines in traded {
            match lines {
                Err(RenderError::NotJoined(..)) if joined => {}
                lines => lines?.iter().try_for_each(|line| out.write_record(line)).map_err(|e| refuse(&e))?,
            }
        }
        return finished(out);
    }
    out.write_record(HEADER).map_err(|e| refuse(&e))?;
    for side in sides {
        let claims = validate::validate(side.record).claims;
        for row in summary::rows(side.record) {
            let verdict = claims.iter().find(|c| c.row.cell.id == row.cell.id).map(|c| c.words());
            out.write_record(fields(side.name, &row, verdict)).map_err(|e| refuse(&e))?;
        }
    }
    finished(out)
}

fn finished(out: ::csv::Writer<Vec<u8>>) -> Result<String, RenderError> {
    let refuse = |e: &dyn std::fmt::Display| RenderError::Csv(e.to_string());
    let bytes = out.into_inner().map_err(|e| refuse(&e))?;
    String::from_utf8(bytes).map_err(|e| refuse(&e))
}

fn fields(run: &str, row: &summary::Row, verdict: Option<String>) -> [String; 74] {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map(|v| v.to_string()).unwrap_or_default()
    }
    let cell: &Cell = row.cell;
    let low = |e: Option<Estimate>| text(e.and_then(|e| e.interval).map(|i| i.low));
    let high = |e: Option<Estimate>| text(e.and_then(|e| e.interval).map(|i| i.high));
    let speedup = row.speedup.map(|s| s.estimate);
    let cost = cell.cost();
    let seconds = |ns: &[u64]| text(stats::median(&summary::seconds(ns)));
    let phase = |name: &str| cell.phase(name).map(|p| seconds(&p.samples_ns)).unwrap_or_default();
    let rest = if cell.phases.is_empty() { String::new() } else { seconds(&cell.unattributed_ns()) };
    let regions = cell.phases.iter().try_fold(0u64, |sum, p| Some(sum.saturating_add(p.parallel_regions?)));
    let memory = cell.memory.as_ref();
    let words = |words: &str| no_formula(words);
    let percentiles = Percentiles::of(&cell.samples_ns);
    let percentile =
        |of: fn(&Percentiles) -> Option<u64>| text(percentiles.as_ref().and_then(of).map(|ns| ns as f64 * 1e-9));
    let clocks = cell.clocks.as_ref();
    let mhz = || clocks.and_then(|c| c.mhz.as_deref()).into_iter().flatten().copied();
    [
        words(run),
        words(&cell.id),
        cell.kind.name().into(),
        words(&cell.system),
        words(&cell.base),
        text(cell.aux.as_deref().map(words)),
        cell.batch.to_string(),
        cell.prompt.to_string(),
        text(cell.weight_dtype.map(|d| d.name())),
        text(cell.precision.map(|d| d.name())),
        text(cell.extent.map(|e| e.name())),
        text(cell.threads),
        text(cell.isa.as_deref().map(words)),
        text(cell.backend.as_deref().map(words)),
        cell.samples_ns.len().to_string(),
        row.processes.to_string(),
        text(row.modes),
        text(row.ttft.map(|t| t.value)),
        low(row.ttft),
        high(row.ttft),
        text(row.ttft.and_then(|t| t.interval).map(|i| i.level)),
        percentile(|p| p.p50_ns),
        percentile(|p| p.p90_ns),
        percentile(|p| p.p99_ns),
        text(row.tokens_per_s),
        text(cost.map(|c| c.flops.total())),
        text(cost.map(|c| c.bytes())),
        text(row.gflops),
        text(row.peak_share),
        text(speedup.map(|s| s.value)),
        low(speedup),
        high(speedup),
        text(row.speedup.map(|s| s.pairing.name())),
        text(row.flops_reduction),
        text(row.paper_flops_reduction),
        text(row.efficiency.map(|e| e.value)),
        text(verdict),
        text(row.roofline),
        text(row.roofline_reduction),
        text(row.step.map(|s| s.value)),
        text(row.step_ratio.map(|s| s.value)),
        text(row.ttft_steps.map(|s| s.value)),
        if cell.cold.is_some() { "cold" } else { "warm" }.into(),
        phase("open"),
        cell.cold.as_ref().map(|cold| seconds(&cold.warm_ns)).unwrap_or_default(),
        text(super::cold::read_bytes(cell)),
        phase("prefill"),
        phase("selection"),
        phase("auxiliary"),
        phase("pipelined"),
        phase("shared_layers"),
        phase("prediction"),
        phase("base_step"),
        phase("look_ahead"),
        rest,
        text(regions.filter(|_| !cell.phases.is_empty())),
        text(stats::mad(&summary::seconds(&cell.samples_ns))),
        text(cell.drift.as_ref().and_then(|d| d.change())),
        text(cell.load_before.into_iter().chain(cell.load_after).reduce(f64::max)),
        text(mhz().reduce(f64::min)),
        text(mhz().reduce(f64::max)),
        text(cell.throttled()),
        text(clocks.and_then(|c| c.unknown.as_deref()).map(words)),
        text(memory.and_then(|m| m.major_faults)),
        text(memory.and_then(|m| m.minor_faults)),
        text(memory.and_then(|m| m.peak_rss_bytes)),
        text(memory.and_then(|m| m.rss_anon_bytes)),
        text(summary::joules(cell)),
        text(cell.energy.as_ref().and_then(|e| e.idle_watts)),
        text(row.energy_reduction),
        text(cell.gate.as_ref().map(|g| g.max_abs_err)),
        cell.attempt.to_string(),
        cell.published.is_some().to_string(),
        row.doubts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    ]
}
