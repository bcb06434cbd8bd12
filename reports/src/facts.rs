//! Facts of a run in one line each: machine, limits, settings.

use std::collections::HashMap;

use crate::{
    format,
    schema::{Dtype, Peak, Record, RunHeader, Sampler, Skipped, Start},
    summary,
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
    let peaks: Vec<&Peak> =
        [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::I8].map(|d| limits.fastest(d)).into_iter().flatten().collect();
    // One name after all of them, or each with its own.
    let alike = peaks.windows(2).all(|p| p[0].isa == p[1].isa);
    let mut parts: Vec<String> = Vec::new();
    for (i, p) in peaks.iter().enumerate() {
        let isa = p.isa.as_ref().filter(|_| !alike || i + 1 == peaks.len()).map(|isa| format!(" ({isa})"));
        parts.push(format!("{} {} GFLOP/s{}", p.dtype.name(), format::figure(p.gflops), isa.unwrap_or_default()));
    }
    parts.extend(limits.read_gb_per_s.map(|b| format!("memory read {} GB/s", format::figure(b))));
    if parts.is_empty() {
        return "unknown".into();
    }
    let threads = limits.threads.map(|n| format!(" with {n} thread{}", if n == 1 { "" } else { "s" }));
    format!("measured {}{}", parts.join(", "), threads.unwrap_or_default())
}

/// How much faster a unit must be to be worth a word: less, and the probes differ by chance.
const WORTH_SAYING: f64 = 1.03;

/// What the peaks leave to be said of a run: a faster unit that its kernels leave unused, or one that was not reached.
pub fn units(record: &Record) -> Vec<String> {
    let limits = &record.run.limits;
    let mut said = Vec::new();
    let dtype = record.cells.iter().find_map(|c| c.compute_dtype);
    if let (Some(used), Some(peak)) = (limits.in_use(), dtype.and_then(|d| limits.peak(d)))
        && peak.gflops > WORTH_SAYING * used.gflops
    {
        let name =
            |p: &Peak| format!("{} ({} GFLOP/s)", p.isa.as_deref().unwrap_or(p.dtype.name()), format::figure(p.gflops));
        said.push(format!(
            "the kernels use {}, but shares of the peak are of the faster unit {}, which they do not use",
            name(used),
            name(peak)
        ));
    }
    if let Some(unit) = &limits.out_of_reach {
        said.push(format!("the program cannot reach {unit}, so the peak is that of the other units"));
    }
    said
}

/// What a cell says against the read bandwidth of a run, if it read faster than the probe by more than chance makes it.
pub fn reading(record: &Record) -> Option<String> {
    let RunHeader { machine, limits, .. } = &record.run;
    let of = |cell| summary::fastest_reading(machine, limits, cell).map(|(times, phase)| (times, phase, cell));
    let fastest = record.cells.iter().filter_map(of).max_by(|a, b| a.0.total_cmp(&b.0));
    let (times, phase, cell) = fastest.filter(|f| f.0 > 1.0 + summary::PROBE_BEATEN)?;
    Some(format!(
        "{} of {} read its weights at least {} faster than the probe, whose figure is therefore too low: rooflines bound by \
         memory are too long, and shares of the read bandwidth too large",
        phase.name,
        cell.id,
        format::percent(times - 1.0)
    ))
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
        s.kernel.as_ref().map(|kernel| format!("kernel {kernel}")),
        git,
        run.started_at.clone(),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The cells that were skipped for one reason, and the reason, in the order in which the reasons first come.
pub fn skipped(record: &Record) -> Vec<(String, &str)> {
    let mut reasons: Vec<(Vec<&str>, &str)> = Vec::new();
    let mut places = HashMap::new();
    for Skipped { id, reason, .. } in &record.skipped {
        let place = *places.entry(reason).or_insert(reasons.len());
        match reasons.get_mut(place) {
            Some((cells, _)) => cells.push(id),
            None => reasons.push((vec![id], reason)),
        }
    }
    reasons.into_iter().map(|(cells, reason)| (cells.join(", "), reason)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        samples,
        schema::{Cache, Probes},
    };

    fn peak(dtype: Dtype, isa: &str, gflops: f64, in_use: bool) -> Peak {
        Peak { dtype, isa: Some(isa.into()), gflops, in_use: Some(in_use) }
    }

    #[test]
    fn a_kernel_that_reads_faster_than_the_probe_is_named() {
        let mut record = samples::run();
        record.run.limits.read_gb_per_s = Some(36.0);
        assert_eq!(reading(&record), None, "caches are unknown");
        let cache =
            |level, bytes, shared_by| Cache { level, kind: "unified".into(), bytes, shared_by: Some(shared_by) };
        record.run.machine.caches = Some(vec![cache(2, 1 << 20, 1), cache(3, 32 << 20, 1)]);
        // The step of one token computes for 5 ms and reads 2 GB at 36 GB/s, of which two caches may hold 64 MiB.
        let step = |record: &Record| {
            let cell = record.cells.iter().find(|c| c.id == "ttft/OE1.1B-KVP-C-450M/kvp/b1/p64").unwrap();
            let (times, phase) = summary::fastest_reading(&record.run.machine, &record.run.limits, cell).unwrap();
            assert_eq!(phase.name, "base_step");
            times
        };
        let times = step(&record);
        assert!((0.8..1.0).contains(&times) && reading(&record).is_none(), "{times}");
        record.run.limits.read_gb_per_s = Some(36.0 * times / 1.01);
        assert_eq!(reading(&record), None);
        record.run.limits.read_gb_per_s = Some(36.0 * times / 1.06);
        let said = reading(&record).unwrap();
        assert!(said.contains("base_step of ttft/") && said.contains("% faster than the probe"), "{said}");
        let text = crate::terminal::render(&record, None);
        assert!(text.find(&format!("read     {said}")) < text.find("TTFT") && text.contains(&said), "{text}");
        // Where the probes beside every cell saw the machine as fast, it only became faster.
        for cell in &mut record.cells {
            let n = cell.samples_ns.len();
            cell.probes = Some(Probes { gflops: vec![400.0; n], read_gb_per_s: vec![36.0; n] });
        }
        assert_eq!(reading(&record), None);
        // Weights that fit the caches tell nothing.
        record.cells.iter_mut().for_each(|c| c.probes = None);
        record.run.machine.caches = Some(vec![cache(3, 4 << 30, 2)]);
        assert_eq!(reading(&record), None);
    }

    #[test]
    fn a_faster_unit_that_is_left_unused_is_named_and_is_the_peak() {
        let mut record = samples::run();
        assert_eq!(units(&record), Vec::<String>::new(), "a record that does not say which unit is used");
        let with = |amx: f64| {
            vec![
                peak(Dtype::F32, "FMA", 230.0, false),
                peak(Dtype::Bf16, "vdpbf16ps", 460.0, true),
                peak(Dtype::Bf16, "AMX", amx, false),
                peak(Dtype::I8, "VNNI", 9000.0, false),
            ]
        };
        record.run.limits.peaks = with(4600.0);
        let said = units(&record);
        assert_eq!(
            said,
            [
                "the kernels use vdpbf16ps (460 GFLOP/s), but shares of the peak are of the faster unit AMX (4600 GFLOP/s), which they do not use"
            ]
        );
        assert_eq!(record.run.limits.peak_gflops(Dtype::Bf16), Some(4600.0));
        assert!(limits(&record.run).contains("f32 230 GFLOP/s (FMA), bf16 4600 GFLOP/s (AMX), i8 9000 GFLOP/s (VNNI)"));
        // As fast as probes can tell.
        record.run.limits.peaks = with(465.0);
        assert!(units(&record).is_empty());
        // Products of F32 have none of it.
        record.run.limits.peaks = with(4600.0);
        record.run.limits.peaks.iter_mut().for_each(|p| p.in_use = Some(p.isa.as_deref() == Some("FMA")));
        record.cells.iter_mut().for_each(|c| c.compute_dtype = Some(Dtype::F32));
        assert!(units(&record).is_empty() && record.run.limits.peak_gflops(Dtype::F32) == Some(230.0));
    }

    #[test]
    fn factors_of_16_bits_may_be_widened() {
        let mut record = samples::run();
        record.run.limits.peaks = vec![peak(Dtype::F32, "FMA", 230.0, true)];
        assert_eq!(record.run.limits.peak_gflops(Dtype::Bf16), Some(230.0));
        assert_eq!(record.run.limits.peak_gflops(Dtype::I8), None);
        assert!(units(&record).is_empty());
        // BF16 instructions that are slower than that are not the peak.
        record.run.limits.peaks.push(peak(Dtype::Bf16, "vdpbf16ps", 150.0, false));
        assert_eq!(record.run.limits.peak_gflops(Dtype::Bf16), Some(230.0));
    }

    #[test]
    fn a_unit_out_of_reach_is_named() {
        let mut record = samples::run();
        record.run.limits.out_of_reach = Some("the matrix unit".into());
        let said = units(&record);
        assert_eq!(said, ["the program cannot reach the matrix unit, so the peak is that of the other units"]);
        assert!(crate::terminal::render(&record, None).contains(&format!("peak     {}", said[0])));
    }
}
