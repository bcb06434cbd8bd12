//! The paper's own machine as a run: its Table 5, timed on the CPU of an Apple M2 Pro.

use std::path::Path;

use crate::schema::Record;

const TABLE_5: &str = include_str!("../data/apple-m2-pro/table5.jsonl");

/// Figure 1: one network alone, at several batches and prompt lengths.
pub struct Figure1 {
    /// The network.
    pub system: &'static str,
    /// The one point that the text gives: batch and prompt tokens.
    pub point: (u32, u32),
    /// Seconds to the first token there.
    pub ttft_s: f64,
    /// The same over one generation step.
    pub steps: f64,
}

/// Figure 1 as far as the text gives it in numbers.
pub const FIGURE_1: Figure1 = Figure1 { system: "OE3B", point: (1, 1024), ttft_s: 4.8, steps: 12.0 };

/// Figure 5b: KV prediction beside its auxiliary alone.
pub struct Figure5b {
    /// The pair.
    pub system: &'static str,
    /// Its batch.
    pub batch: u32,
    /// Its prompt lengths.
    pub prompts: [u32; 4],
    /// By how much, in the text's words, the TTFT is longer than the auxiliary's.
    pub over_auxiliary: &'static str,
}

/// Figure 5b in the text's words.
pub const FIGURE_5B: Figure5b =
    Figure5b { system: "OE1.1B-KVP-C-450M", batch: 8, prompts: [128, 256, 512, 1024], over_auxiliary: "10 to 20%" };

/// Table 5 of Horton et al., "KV Prediction for Improved Time to First Token", arXiv 2410.08391, with the faults known
/// of it. One printed figure for each cell; types, threads and spread are not stated there and unknown here.
pub fn table5() -> Record {
    Record::from_reader(TABLE_5.as_bytes(), Path::new("data/apple-m2-pro/table5.jsonl"))
        .expect("the record is part of this program and read by its tests")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{schema::Kind, summary, validate};

    #[test]
    fn table_5_is_whole_and_its_reductions_follow_from_its_times() {
        let record = table5();
        assert_eq!(record.cells.len(), 27);
        for row in summary::rows(&record) {
            let published = row.cell.published.as_ref().unwrap();
            let (printed, computed) = (published.ttft_reduction.unwrap(), row.speedup.unwrap().estimate.value);
            // Times are printed with two decimals, reductions too.
            assert!((printed - computed).abs() < 0.011, "{}: {printed} {computed}", row.cell.system);
            assert_eq!((row.cell.batch, row.cell.prompt), (64, 59));
        }
    }

    #[test]
    fn known_faults_stand_beside_their_rows() {
        let record = table5();
        let faulty: Vec<&str> = record
            .cells
            .iter()
            .filter(|c| c.published.as_ref().is_some_and(|p| !p.faults.is_empty()))
            .map(|c| c.system.as_str())
            .collect();
        assert_eq!(faulty, ["OE1.1B-RP-0.25", "OE1.1B-L0.75-0.10", "OE1.1B-L0.75-0.01"]);
        assert!(record.run.notes.iter().any(|n| n.contains("26.57")));
    }

    #[test]
    fn flops_did_not_translate_to_latency_on_that_machine() {
        let record = table5();
        let claims = validate::validate(&record).claims;
        let of = |system: &str| {
            let row = &claims.iter().find(|c| c.row.cell.system == system && c.row.cell.kind == Kind::Kvp).unwrap().row;
            row.speedup.unwrap().estimate.value / row.paper_flops_reduction.unwrap()
        };
        for (system, expected) in [
            ("OE1.1B-KVP-C-450M", 0.75),
            ("OE1.1B-KVP-C-270M", 0.63),
            ("OE1.1B-KVP-LP-0.75", 0.90),
            ("OE1.1B-KVP-LP-0.50", 0.87),
            ("OE1.1B-KVP-LP-0.25", 0.76),
        ] {
            assert!((of(system) - expected).abs() < 0.006, "{system}: {}", of(system));
        }
    }
}
