//! How much a machine's figures vary, between rounds, processes and occasions, and what that makes of a comparison.
//!
//! A calibration is made of records of one machine, one an occasion, each of several processes. It keeps the processes'
//! medians, so that everything else in it can be computed again.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    decide::Spread,
    levels,
    schema::{Git, Machine, Record},
    summary,
};

pub mod components;
pub mod trials;

use components::Components;
use trials::{Rates, Share};

#[cfg(test)]
use schemars::JsonSchema;

/// Name and version of the format.
pub const SCHEMA: &str = "ttft-calibration/1";

/// Why there is no calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// Too little to calibrate by.
    #[error("{0}")]
    Records(String),
    /// The file cannot be read, or is no calibration.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
}

/// A machine's calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Calibration {
    /// `ttft-calibration/1`.
    pub schema: String,
    /// The machine, as the first occasion found it.
    pub machine: Machine,
    /// Revision of the program.
    pub revision: Option<Git>,
    /// Start of the first occasion.
    pub started_at: Option<String>,
    /// Start of the last occasion.
    pub ended_at: Option<String>,
    /// Occasions.
    pub occasions: usize,
    /// Processes of all occasions together.
    pub processes: usize,
    /// Rounds of a process, the median.
    pub rounds: usize,
    /// One for each system and size that every occasion measured.
    pub cells: Vec<CellSpread>,
    /// The decisions really made between sets of the same machine, one entry for each design.
    pub designs: Vec<Rates>,
    /// Of pairs of single runs, the share of systems for which `ttft validate` gives contradicting decided words.
    pub contradictions: Option<Share>,
    /// Share of the systems of a single run that `ttft validate` leaves undecided.
    pub undecided: Option<Share>,
}

/// How one system at one size varies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct CellSpread {
    /// As in the records.
    pub id: String,
    /// As in the records.
    pub scenario_hash: String,
    /// System.
    pub system: String,
    /// Sequences.
    pub batch: u32,
    /// Prompt tokens.
    pub prompt: u32,
    /// Exact operations of the base over those of the system; null for the base itself, or if unknown.
    pub flops_reduction: Option<f64>,
    /// Start of every occasion, in whole seconds after the first.
    pub starts_s: Vec<i64>,
    /// Occasion of every process, from 0, never decreasing.
    pub occasions: Vec<u32>,
    /// Median time of every process.
    pub medians_ns: Vec<u64>,
    /// Standard deviation of the logarithm over the rounds of every process, in millionths.
    pub rounds_sd_ppm: Vec<u64>,
    /// Median over the rounds of every process of the base's time over this one's, in millionths; empty for the base.
    pub ratios_ppm: Vec<u64>,
    /// The same standard deviation of the logarithm of that ratio, in millionths.
    pub ratio_rounds_sd_ppm: Vec<u64>,
    /// Of the logarithm of the time.
    pub time: Components,
    /// Of the logarithm of the ratio to the base within rounds; null for the base.
    pub ratio: Option<Components>,
}

impl CellSpread {
    /// Logarithms of the processes' medians, one list an occasion.
    pub fn times(&self) -> Vec<Vec<f64>> {
        self.by_occasion(&self.medians_ns, 1e-9)
    }

    /// Logarithms of the processes' ratios, one list an occasion; empty for the base.
    pub fn ratios(&self) -> Vec<Vec<f64>> {
        self.by_occasion(&self.ratios_ppm, 1e-6)
    }

    fn by_occasion(&self, figures: &[u64], unit: f64) -> Vec<Vec<f64>> {
        let logs: Vec<(u32, f64)> =
            self.occasions.iter().copied().zip(figures.iter().map(|f| (*f as f64 * unit).ln())).collect();
        logs.chunk_by(|a, b| a.0 == b.0).map(|run| run.iter().map(|r| r.1).collect()).collect()
    }

    /// What a comparison takes from it.
    pub fn spread(&self) -> Spread {
        self.time.spread()
    }
}

impl Calibration {
    /// Calibrates by records of one machine, one an occasion, in order of time.
    ///
    /// # Errors
    /// Fewer than three occasions, different machines, or no cell that every occasion measured in two processes or more.
    pub fn of(records: &[Record]) -> Result<Self, CalibrationError> {
        let refuse = |message: String| Err(CalibrationError::Records(message));
        let [first, rest @ ..] = records else {
            return refuse("a calibration needs records, and none is given".into());
        };
        if rest.len() < 2 {
            return refuse(format!("a calibration needs at least 3 occasions, and {} are given", records.len()));
        }
        if let Some(other) = rest.iter().find(|r| !same_machine(&first.run.machine, &r.run.machine)) {
            return refuse(format!(
                "`{}` was measured on another machine than `{}`: calibrate each machine by its own records",
                other.run.run_id, first.run.run_id
            ));
        }
        let cells: Vec<CellSpread> = first.cells.iter().filter_map(|cell| cell_spread(records, &cell.id)).collect();
        let Some(one) = cells.first() else {
            return refuse(
                "no cell was measured in two processes or more on every occasion: take the records with ttft bench \
                 --processes 5"
                    .into(),
            );
        };
        let processes = one.medians_ns.len();
        let per_process = |record: &Record| {
            let cell = record.cells.iter().find(|c| c.id == one.id)?;
            Some(cell.samples_ns.len() / cell.process_ranges().len().max(1))
        };
        let mut rounds: Vec<usize> = records.iter().filter_map(per_process).collect();
        rounds.sort_unstable();
        let mut calibration = Self {
            schema: SCHEMA.into(),
            machine: first.run.machine.clone(),
            revision: first.run.git.clone(),
            started_at: first.run.started_at.clone(),
            ended_at: rest.last().and_then(|r| r.run.started_at.clone()),
            occasions: records.len(),
            processes,
            rounds: rounds.get(rounds.len() / 2).copied().unwrap_or(0),
            cells,
            designs: Vec::new(),
            contradictions: None,
            undecided: None,
        };
        calibration.designs = trials::designs(&calibration.cells);
        (calibration.contradictions, calibration.undecided) = trials::words(&calibration.cells);
        Ok(calibration)
    }

    /// Reads a calibration file.
    ///
    /// # Errors
    /// The file cannot be read or is not of this version.
    pub fn read(path: &Path) -> Result<Self, CalibrationError> {
        let fault = |message: String| CalibrationError::File { path: path.display().to_string(), message };
        let text = std::fs::read_to_string(path).map_err(|e| fault(format!("cannot read it: {e}")))?;
        let mut json = serde_json::Deserializer::from_str(&text);
        let calibration: Self = serde_path_to_error::deserialize(&mut json)
            .map_err(|e| fault(format!("this is no calibration of ttft: field `{}`: {}", e.path(), e.inner())))?;
        if calibration.schema != SCHEMA {
            return Err(fault(format!("its schema is `{}`, and this program reads `{SCHEMA}`", calibration.schema)));
        }
        Ok(calibration)
    }

    /// The file's text: JSON, one line for each cell.
    pub fn write(&self) -> String {
        let text = serde_json::to_string(self).expect("a calibration holds nothing that JSON cannot carry");
        text.replace("{\"id\":", "\n{\"id\":").replace("\"designs\":", "\n\"designs\":") + "\n"
    }

    /// Whether it is of this machine: the same CPU, cores and instruction sets, virtual or not, and memory within 10%.
    pub fn fits(&self, machine: &Machine) -> bool {
        same_machine(&self.machine, machine)
    }

    /// The spread of a workload; of one that was not calibrated, the largest of all.
    pub fn spread(&self, scenario_hash: &str) -> Option<Spread> {
        let own = self.cells.iter().find(|c| c.scenario_hash == scenario_hash).map(CellSpread::spread);
        let largest = |a: Spread, b: Spread| Spread {
            processes: a.processes.max(b.processes),
            occasions: a.occasions.max(b.occasions),
            freedom: a.freedom.min(b.freedom),
        };
        own.or_else(|| self.cells.iter().map(CellSpread::spread).reduce(largest))
    }
}

/// Whether two descriptions are of one machine, as far as machines tell.
pub fn same_machine(a: &Machine, b: &Machine) -> bool {
    let key = |m: &Machine| {
        let mut features = m.isa_features.clone();
        features.sort_unstable();
        let cores = (m.physical_cores, m.logical_cores);
        (m.cpu_model.clone(), m.cpu_vendor.clone(), m.arch.clone(), features, cores)
    };
    // Not every version of this program could tell it on every system.
    let virtualised = a.virtualised.zip(b.virtualised).is_none_or(|(a, b)| a == b);
    key(a) == key(b) && virtualised && memory_alike(a, b)
}

/// Whether both have about the same memory: hypervisors take some of it.
pub(crate) fn memory_alike(a: &Machine, b: &Machine) -> bool {
    match (a.memory_total_bytes, b.memory_total_bytes) {
        (Some(a), Some(b)) => a.abs_diff(b) as f64 <= 0.1 * a.max(b) as f64,
        (a, b) => a == b,
    }
}

fn ppm(value: f64) -> u64 {
    (value * 1e6).round() as u64
}

/// The cell of this id on every occasion; `None` if one lacks it.
fn cell_spread(records: &[Record], id: &str) -> Option<CellSpread> {
    let mut starts = Vec::new();
    let (mut occasions, mut medians, mut spreads) = (Vec::new(), Vec::new(), Vec::new());
    let (mut ratios, mut ratio_spreads) = (Vec::new(), Vec::new());
    for (i, record) in records.iter().enumerate() {
        let cell = record.cells.iter().find(|c| c.id == id)?;
        let start = cell.started_at.as_ref().or(record.run.started_at.as_ref());
        starts.push(start.and_then(|t| levels::unix_seconds(t)));
        let logs: Vec<f64> = cell.samples_ns.iter().map(|&ns| (ns as f64).ln()).collect();
        let ranges = cell.process_ranges();
        if ranges.len() < 2 {
            return None;
        }
        let deviation = |logs: &[f64]| ppm(crate::stats::student::variance(logs).unwrap_or(0.0).sqrt());
        for range in ranges {
            occasions.push(i as u32);
            medians.push(crate::stats::median(&logs[range.clone()])?.exp().round() as u64);
            spreads.push(deviation(&logs[range]));
        }
        if let Some(base) = record.base_of(cell).filter(|base| base.id != cell.id) {
            let rounds = summary::round_ratio_logs(base, cell);
            for run in rounds.chunk_by(|a, b| a.0 == b.0) {
                let logs: Vec<f64> = run.iter().map(|r| r.1).collect();
                ratios.push(ppm(crate::stats::median(&logs)?.exp()));
                ratio_spreads.push(deviation(&logs));
            }
        }
    }
    let first = &records[0];
    let cell = first.cells.iter().find(|c| c.id == id)?;
    let flops_reduction = first
        .base_of(cell)
        .filter(|base| base.id != cell.id)
        .and_then(|base| Some(base.cost()?.flops.total() as f64 / cell.cost()?.flops.total() as f64));
    let known: Option<Vec<f64>> = starts.into_iter().collect();
    let starts_s = known.map_or_else(Vec::new, |s| s.iter().map(|t| (t - s[0]).round() as i64).collect());
    // Ratios count only if every process has one.
    if ratios.len() != medians.len() {
        ratios.clear();
        ratio_spreads.clear();
    }
    let mut spread = CellSpread {
        id: id.into(),
        scenario_hash: cell.scenario_hash.clone(),
        system: cell.system.clone(),
        batch: cell.batch,
        prompt: cell.prompt,
        flops_reduction,
        starts_s,
        occasions,
        medians_ns: medians,
        rounds_sd_ppm: spreads,
        ratios_ppm: ratios,
        ratio_rounds_sd_ppm: ratio_spreads,
        time: Components::default(),
        ratio: None,
    };
    let rounds = cell.samples_ns.len() / cell.process_ranges().len();
    let sd = |ppm: &[u64]| ppm.iter().map(|v| *v as f64 * 1e-6).collect::<Vec<_>>();
    spread.time = components::of(&spread.times(), &sd(&spread.rounds_sd_ppm), rounds, &spread.starts_s)?;
    if !spread.ratios_ppm.is_empty() {
        spread.ratio = components::of(&spread.ratios(), &sd(&spread.ratio_rounds_sd_ppm), rounds, &spread.starts_s);
    }
    Some(spread)
}

#[cfg(test)]
mod tests;
