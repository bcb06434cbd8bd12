//! How long a cell will take, before it is run.

use std::collections::HashMap;

use ttft_reports::{
    schema::{Cell, Cost, Dtype, Limits},
    summary,
};

/// Part of the measured limits that a phase is expected to reach before one has been measured.
const EFFICIENCY: f64 = 0.7;

/// Bytes of weights that a cold start opens and reads in a second, before one has been measured: a slow SSD.
const DISK_BYTES_PER_S: f64 = 0.5e9;

/// Seconds of this much arithmetic and memory at the machine's limits: whichever takes longer.
pub fn roofline(flops: f64, bytes: f64, flops_per_s: f64, bytes_per_s: f64) -> f64 {
    (flops / flops_per_s).max(bytes / bytes_per_s)
}

/// The speed of this machine on phases of inference: the measured limits, corrected by what was measured.
#[derive(Clone, Debug)]
pub struct Speed {
    flops_per_s: f64,
    bytes_per_s: f64,
    disk_bytes_per_s: f64,
    /// Measured over expected time, by phase.
    factor: HashMap<String, f64>,
}

impl Speed {
    /// From the measured limits for products of `dtype`, by the unit that the kernels use.
    pub fn new(limits: &Limits, dtype: Dtype) -> Speed {
        // What could not be measured is assumed slow, so that cells are skipped rather than run for hours.
        let gflops = limits.in_use().map(|p| p.gflops).or_else(|| limits.peak_gflops(dtype)).unwrap_or(10.0);
        let gb = limits.read_gb_per_s.unwrap_or(5.0);
        Speed {
            flops_per_s: gflops * 1e9,
            bytes_per_s: gb * 1e9,
            disk_bytes_per_s: DISK_BYTES_PER_S,
            factor: HashMap::new(),
        }
    }

    /// Expected seconds of a phase at the limits.
    fn bound(&self, cost: &Cost) -> f64 {
        roofline(cost.flops.total() as f64, cost.bytes() as f64, self.flops_per_s, self.bytes_per_s)
    }

    /// Expected seconds of phases one after another.
    pub fn seconds(&self, phases: &[(String, Cost)]) -> f64 {
        let default = 1.0 / EFFICIENCY;
        phases.iter().map(|(name, cost)| self.bound(cost) * self.factor.get(name).copied().unwrap_or(default)).sum()
    }

    /// Expected seconds that a cold start takes to open and read so many bytes.
    pub fn reading(&self, bytes: u64) -> f64 {
        bytes as f64 / self.disk_bytes_per_s
    }

    /// Takes the measured speed of a cell's phases for the next estimates.
    pub fn learn(&mut self, cell: &Cell) {
        if let (Some(cold), Some(extra)) = (&cell.cold, summary::cold_extra(cell).filter(|e| e.value > 0.0)) {
            self.disk_bytes_per_s = cold.file_bytes as f64 / extra.value;
        }
        for phase in &cell.phases {
            let (Some(cost), Some(times)) = (&phase.cost, cell.warm_phase_ns(&phase.name)) else { continue };
            let n = times.len();
            let expected = self.bound(cost);
            if n > 0 && expected > 0.0 {
                let mean = times.iter().map(|&ns| ns as f64).sum::<f64>() / n as f64 * 1e-9;
                self.factor.insert(phase.name.clone(), mean / expected);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttft_reports::schema::{Cold, Flops, Kind, Peak, PhaseRecord, WarmPhase};

    fn cost(flops: u64, weight_bytes: u64) -> Cost {
        Cost { flops: Flops { projections: flops, ..Default::default() }, weight_bytes, ..Cost::default() }
    }

    #[test]
    fn the_longer_of_arithmetic_and_memory_then_what_was_measured() {
        let peak = |gflops, in_use| Peak { dtype: Dtype::F32, isa: None, gflops, in_use: Some(in_use) };
        // The kernels leave a faster unit unused.
        let peaks = vec![peak(900.0, false), peak(100.0, true)];
        let limits = Limits { peaks, read_gb_per_s: Some(10.0), ..Limits::default() };
        let mut speed = Speed::new(&limits, Dtype::F32);
        let phases = |flops, bytes| vec![("prefill".to_owned(), cost(flops, bytes))];
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        near(speed.seconds(&phases(70_000_000_000, 1)), 1.0);
        near(speed.seconds(&phases(1, 7_000_000_000)), 1.0);
        let mut cell = Cell::new(Kind::Base, "x", "x", None, 1, 1);
        cell.phases = vec![PhaseRecord {
            name: "prefill".into(),
            samples_ns: vec![1_000_000_000, 3_000_000_000],
            cost: Some(cost(100_000_000_000, 1)),
            parallel_regions: None,
        }];
        speed.learn(&cell);
        near(speed.seconds(&phases(50_000_000_000, 1)), 1.0);
        near(speed.seconds(&[("base_step".to_owned(), cost(70_000_000_000, 1))]), 1.0);
        // A cold start teaches how fast storage is, and its warm runs how fast the phases are.
        near(speed.reading(500_000_000), 1.0);
        let warm = vec![WarmPhase { name: "prefill".into(), samples_ns: vec![1_000_000_000; 3] }];
        cell.cold = Some(Cold {
            file_bytes: 6_000_000_000,
            warm_ns: vec![1_000_000_000; 3],
            warm_phases: warm,
            ..Cold::default()
        });
        cell.samples_ns = vec![4_000_000_000; 3];
        speed.learn(&cell);
        near(speed.reading(2_000_000_000), 1.0);
        near(speed.seconds(&phases(50_000_000_000, 1)), 0.5);
    }
}
