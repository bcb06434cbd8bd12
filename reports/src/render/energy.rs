//! Energy to the first token.

use std::collections::BTreeSet;

use super::blocks::*;
use crate::{
    format::{self, or_unknown},
    summary::{self, Row},
};

/// The energy of every cell of which it is known, and why it is not known of others; nothing of a run that did not ask.
pub(crate) fn blocks(rows: &[Row]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let fields = |row: &Row| {
        let (cell, energy) = (row.cell, row.cell.energy.as_ref()?);
        let joules = energy.joules?;
        let watts = |watts: Option<f64>| or_unknown(watts.map(|w| format!("{} W", format::figure(w))));
        let tokens = f64::from(cell.batch) * f64::from(cell.prompt);
        let own = cell.system == cell.base;
        Some(vec![
            cell.system.clone(),
            size(cell),
            format::joules(joules),
            format::joules(joules / tokens),
            watts(energy.watts()),
            watts(energy.idle_watts),
            energy.repetitions.to_string(),
            or_unknown(row.energy_reduction.filter(|_| !own).map(format::ratio)),
            or_unknown(row.speedup.filter(|_| !own).map(|s| format::ratio(s.estimate.value))),
        ])
    };
    let head = ["system", "b x p", "energy", "per token", "power", "idle", "repetitions", "energy red.", "TTFT red."];
    let known = table("Energy to the first token", &head, &[0], rows.iter().filter_map(fields).collect());
    let sources: BTreeSet<&str> = rows
        .iter()
        .filter(|row| summary::joules(row.cell).is_some())
        .filter_map(|row| row.cell.energy.as_ref()?.source.as_deref())
        .collect();
    if !known.rows.is_empty() {
        blocks.push(Block::Table(known));
        let sources = sources.into_iter().collect::<Vec<_>>().join("; ");
        blocks.push(text(format!(
            "Energy ({sources}): of all packages and all that ran on them, over at least two seconds of repetitions after \
             the samples, divided by their number; idle power, just before, is part of it. Energy red.: energy of the base \
             over energy of the system."
        )));
    }
    let reasons: BTreeSet<&str> = rows.iter().filter_map(|r| r.cell.energy.as_ref()?.missing.as_deref()).collect();
    if !reasons.is_empty() {
        let reasons = reasons.into_iter().collect::<Vec<_>>().join("; ");
        blocks.push(text(format!("Energy is unknown: {reasons}.")));
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{samples, schema::Energy, terminal};

    #[test]
    fn energy_stands_beside_the_bases() {
        let mut record = samples::run();
        record.cells.truncate(3);
        for (cell, joules) in record.cells.iter_mut().zip([12.0, 5.0]) {
            cell.energy = Some(Energy {
                joules: Some(joules),
                idle_watts: Some(3.0),
                repetitions: 10,
                seconds: Some(2.5),
                source: Some("powercap: package-0".into()),
                missing: None,
            });
        }
        record.cells[2].energy = Some(Energy { missing: Some("no such counter".into()), ..Energy::default() });
        let rows = summary::rows(&record);
        assert_eq!(rows[1].energy_reduction, Some(12.0 / 5.0));
        assert_eq!((rows[0].energy_reduction, rows[2].energy_reduction), (Some(1.0), None));
        let text = terminal::render(&record, None);
        let line = text.lines().find(|l| l.contains("5.00 J")).unwrap();
        let fields: Vec<_> = line.split_whitespace().collect();
        assert_eq!(fields[..4], ["OE450M", "1", "x", "64"]);
        assert!(line.contains("78.1 mJ") && line.contains("20.0 W") && line.contains("3.00 W"), "{line}");
        assert!(line.contains("2.40x"), "{line}");
        assert!(text.contains("powercap: package-0") && text.contains("Energy is unknown: no such counter."), "{text}");
        record.cells.iter_mut().for_each(|c| c.energy = None);
        assert!(!terminal::render(&record, None).contains("nergy"));
    }
}
