//! One line for each cell, as plain numbers with their units in the header. Unknown is empty.

use super::RenderError;
use crate::{compare::Side, schema::Cell, stats::Estimate, summary, validate};

const HEADER: [&str; 41] = [
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
    "ttft_s",
    "ttft_low_s",
    "ttft_high_s",
    "interval_level",
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
    "drift",
    "peak_rss_bytes",
    "rss_anon_bytes",
    "published",
    "doubts",
];

/// The cells of all runs.
pub fn render(sides: &[Side]) -> Result<String, RenderError> {
    let refuse = |e: &dyn std::fmt::Display| RenderError::Csv(e.to_string());
    let mut out = ::csv::Writer::from_writer(Vec::new());
    out.write_record(HEADER).map_err(|e| refuse(&e))?;
    for side in sides {
        let claims = validate::validate(side.record).claims;
        for row in summary::rows(side.record) {
            let verdict = claims.iter().find(|c| c.row.cell.id == row.cell.id).map(|c| c.verdict.to_string());
            out.write_record(fields(side.name, &row, verdict)).map_err(|e| refuse(&e))?;
        }
    }
    let bytes = out.into_inner().map_err(|e| refuse(&e))?;
    String::from_utf8(bytes).map_err(|e| refuse(&e))
}

fn fields(run: &str, row: &summary::Row, verdict: Option<String>) -> [String; 41] {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map(|v| v.to_string()).unwrap_or_default()
    }
    let cell: &Cell = row.cell;
    let low = |e: Option<Estimate>| text(e.and_then(|e| e.interval).map(|i| i.low));
    let high = |e: Option<Estimate>| text(e.and_then(|e| e.interval).map(|i| i.high));
    let speedup = row.speedup.map(|s| s.estimate);
    let cost = cell.cost();
    let memory = cell.memory.as_ref();
    [
        run.into(),
        cell.id.clone(),
        cell.kind.name().into(),
        cell.system.clone(),
        cell.base.clone(),
        text(cell.aux.as_ref()),
        cell.batch.to_string(),
        cell.prompt.to_string(),
        text(cell.weight_dtype.map(|d| d.name())),
        text(cell.precision.map(|d| d.name())),
        text(cell.extent.map(|e| e.name())),
        text(cell.threads),
        text(cell.isa.as_ref()),
        text(cell.backend.as_ref()),
        cell.samples_ns.len().to_string(),
        text(row.ttft.map(|t| t.value)),
        low(row.ttft),
        high(row.ttft),
        text(row.ttft.and_then(|t| t.interval).map(|i| i.level)),
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
        text(cell.drift.as_ref().and_then(|d| d.change())),
        text(memory.and_then(|m| m.peak_rss_bytes)),
        text(memory.and_then(|m| m.rss_anon_bytes)),
        cell.published.is_some().to_string(),
        row.doubts.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    ]
}
