//! Facts of a run in one line each: machine, limits, settings.

use crate::{
    format,
    schema::{Dtype, RunHeader, Sampler, Start},
};

/// The machine in one line.
pub fn machine(run: &RunHeader) -> String {
    let m = &run.machine;
    let cores = match (m.physical_cores, m.logical_cores) {
        (Some(physical), Some(logical)) if physical != logical => Some(format!("{physical} cores ({logical} logical)")),
        (Some(n), _) | (None, Some(n)) => Some(format!("{n} cores")),
        (None, None) => None,
    };
    let parts = [
        Some(m.cpu_model.clone().unwrap_or_else(|| "unknown CPU".into())),
        m.arch.clone(),
        cores,
        m.memory_total_bytes.map(|b| format!("{} memory", format::bytes(b))),
        m.os.clone(),
        m.virtualised.filter(|v| *v).map(|_| "virtual machine".into()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The measured limits in one line.
pub fn limits(run: &RunHeader) -> String {
    let limits = &run.limits;
    let peak = |dtype: Dtype| Some(format!("{} {} GFLOP/s", dtype.name(), format::figure(limits.peak_gflops(dtype)?)));
    let mut parts: Vec<String> =
        [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::I8].into_iter().filter_map(peak).collect();
    // Which roof it is that shares of the peak stand against.
    if let (Some(last), Some(isa)) = (parts.last_mut(), limits.peaks.first().and_then(|p| p.isa.as_deref())) {
        last.push_str(&format!(" ({isa})"));
    }
    parts.extend(limits.read_gb_per_s.map(|b| format!("memory read {} GB/s", format::figure(b))));
    if parts.is_empty() {
        return "unknown".into();
    }
    let threads = limits.threads.map(|n| format!(" with {n} thread{}", if n == 1 { "" } else { "s" }));
    format!("measured {}{}", parts.join(", "), threads.unwrap_or_default())
}

/// Settings and revision in one line.
pub fn settings(run: &RunHeader) -> String {
    let s = &run.settings;
    let sampler = s.sampler.map(|sampler| match sampler {
        Sampler::Rounds => s.rounds.map_or("interleaved rounds".into(), |n| format!("{n} interleaved rounds")),
        Sampler::Criterion => "sampled by criterion, unpaired".into(),
        Sampler::Published => "published figures".into(),
    });
    let git = run.git.as_ref().map(|g| {
        let short = g.revision.get(..12).unwrap_or(&g.revision);
        format!("revision {short}{}", if g.dirty == Some(true) { " (modified)" } else { "" })
    });
    let parts = [
        s.scenario.as_ref().map(|name| format!("scenario {name}")),
        sampler,
        s.precision.map(|p| p.name().into()),
        s.extent.map(|e| e.name().into()),
        s.start.filter(|start| *start == Start::Cold).map(|_| "cold starts".into()),
        s.threads.map(|n| format!("{n} threads")),
        s.isa.as_ref().map(|isa| format!("isa {isa}")),
        s.backend.as_ref().map(|b| format!("backend {b}")),
        git,
        run.started_at.clone(),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
