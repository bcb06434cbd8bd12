use anyhow::Result;
use clap::Args;
use comfy_table::{Table, presets};
use serde::Serialize;
use ttft_kernels::DType;
use ttft_reports::schema::{Dtype, Limits, Machine as Fingerprint};

use ttft_reports::format::bytes;

use crate::{
    console,
    knobs::EngineKnobs,
    machine::{self, Probe},
};

/// Print what this machine is, and the peaks that it reaches
#[derive(Args, Debug)]
pub struct Machine {
    /// Print JSON, in the form of the records
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineKnobs,
}

#[derive(Serialize)]
struct Report {
    machine: Fingerprint,
    limits: Limits,
}

impl Machine {
    pub fn run(self) -> Result<()> {
        let engine = self.engine.engine()?;
        let limits = Probe::for_machine(DType::F32).limits(&engine);
        let report = Report { machine: machine::fingerprint(), limits };
        if self.json {
            console::print(serde_json::to_string_pretty(&report)?)
        } else {
            console::print(table(&report, engine.isa().name()).trim_fmt())
        }
    }
}

/// Columns of a terminal below which lines are better broken by the terminal.
const NARROWEST: u16 = 20;

fn or_unknown(value: Option<impl ToString>) -> String {
    value.map_or("unknown".into(), |v| v.to_string())
}

/// A table without lines, as wide as the terminal.
pub(super) fn columns() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    // Some terminals say that they are 0 columns wide, which is to say nothing.
    if table.width().is_some_and(|columns| columns >= NARROWEST) {
        table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    }
    table
}

fn table(report: &Report, isa: &str) -> Table {
    let Report { machine: m, limits } = report;
    let mut table = columns();
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row("CPU", or_unknown(m.cpu_model.as_ref()));
    row("architecture", or_unknown(m.arch.as_ref()));
    row("features", m.isa_features.join(" "));
    row("ISA levels", machine::isa_names());
    row("ISA in use", isa.into());
    let (physical, logical) = (or_unknown(m.physical_cores), or_unknown(m.logical_cores));
    row("cores", format!("{physical} physical, {logical} logical"));
    for c in m.core_classes.iter().flatten() {
        let mhz = c.max_mhz.map_or(String::new(), |mhz| format!(", up to {mhz:.0} MHz"));
        row("", format!("{} {}{mhz}", c.cores, c.name));
    }
    if let Some(nodes) = m.numa_nodes {
        row("NUMA nodes", nodes.to_string());
    }
    for c in m.caches.iter().flatten().filter(|c| c.kind != "instruction") {
        let shared = c.shared_by.map_or(String::new(), |n| format!(", shared by {n}"));
        row(&format!("cache L{}", c.level), format!("{} KiB {}{shared}", c.bytes >> 10, c.kind));
    }
    let memory = |b: Option<u64>| b.map_or("unknown".into(), bytes);
    row("memory", format!("{}, {} available", memory(m.memory_total_bytes), memory(m.memory_available_bytes)));
    row("system", format!("{}, kernel {}", or_unknown(m.os.as_ref()), or_unknown(m.kernel.as_ref())));
    row("governor", or_unknown(m.governor.as_ref()));
    row("frequency", m.frequency_mhz.map_or("unknown".into(), |f| format!("{f:.0} MHz")));
    row("load", m.load_1m.map_or("unknown".into(), |l| format!("{l:.2}")));
    row("virtual", m.virtualised.map_or("unknown", |v| if v { "yes" } else { "no" }).into());
    let threads = or_unknown(limits.threads);
    for p in &limits.peaks {
        let best = limits.fastest(p.dtype) == Some(p);
        let operations = if p.dtype == Dtype::I8 { "GOP/s" } else { "GFLOP/s" };
        let mut said = format!("{:.0} {operations} by {}", p.gflops, or_unknown(p.isa.as_ref()));
        if best {
            said.push_str(": the peak");
        }
        row(&format!("{} unit", p.dtype.name()), said);
    }
    if let Some(unit) = &limits.out_of_reach {
        row("out of reach", format!("{unit}: the peaks are those of the units above"));
    }
    let read = limits.read_gb_per_s.map_or("unknown".into(), |r| format!("{r:.1} GB/s"));
    row("memory read", read);
    if let Some(us) = limits.region_us {
        row("parallel region", format!("{us:.2} µs"));
    }
    row("measured with", format!("{threads} threads"));
    table
}
