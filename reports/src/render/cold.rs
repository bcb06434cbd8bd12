//! What cold starts cost, and what they cost KV prediction, which reads two networks.

use std::collections::BTreeSet;

use super::blocks::*;
use crate::{
    format::{self, or_unknown},
    schema::{Cell, Kind},
    stats::{self, Estimate},
    summary::{self, Row},
};

/// Bytes that a cold start has read from storage: the median of its samples.
pub(crate) fn read_bytes(cell: &Cell) -> Option<u64> {
    let bytes = cell.cold.as_ref()?.read_bytes.as_ref()?;
    stats::median(&bytes.iter().map(|b| *b as f64).collect::<Vec<_>>()).map(|b| b as u64)
}

/// The cold starts of a run, in words and as a table; nothing of a run that has none.
pub(crate) fn blocks(rows: &[Row]) -> Vec<Block> {
    let rows: Vec<&Row> = rows.iter().filter(|r| r.cell.cold.is_some() && r.ttft.is_some()).collect();
    let mut blocks = Vec::new();
    if rows.is_empty() {
        return blocks;
    }
    let sentences: Vec<String> = rows.iter().filter_map(|row| against_base(row, base_of(row, &rows)?)).collect();
    if !sentences.is_empty() {
        blocks.push(text("What reading two networks costs KV prediction:"));
        blocks.push(Block::List { items: sentences });
    }
    let fields = |row: &&Row| {
        let cell = row.cell;
        let own = cell.system == cell.base;
        let warm = cell.cold.as_ref().and_then(|cold| stats::median(&summary::seconds(&cold.warm_ns)));
        let open = cell.phase("open").and_then(|p| stats::median(&summary::seconds(&p.samples_ns)));
        let (extra, read) = (summary::cold_extra(cell).map(|e| e.value), read_bytes(cell));
        let rate = read.zip(extra).filter(|(_, s)| *s > 0.0).map(|(bytes, s)| bytes as f64 * 1e-9 / s);
        let disk = cell.cold.as_ref().and_then(|cold| cold.disk_gb_per_s);
        let warm_ratio = base_of(row, &rows).and_then(|base| summary::warm_ratio(row.limits, base.cell, cell));
        vec![
            cell.system.clone(),
            size(cell),
            or_unknown(row.ttft.map(|t| format::seconds(t.value))),
            or_unknown(warm.map(format::seconds)),
            or_unknown(row.ttft.zip(warm).map(|(cold, warm)| format::ratio(cold.value / warm))),
            or_unknown(open.map(format::seconds)),
            or_unknown(extra.map(format::seconds)),
            or_unknown(read.map(|bytes| format!("{}{}", at_least(cell), format::bytes(bytes)))),
            or_unknown(rate.map(format::figure)),
            or_unknown(disk.map(format::figure)),
            or_unknown(row.speedup.filter(|_| !own).map(|s| with_ratio(&s.estimate))),
            or_unknown(warm_ratio.filter(|_| !own).map(|e| with_ratio(&e))),
        ]
    };
    let head = [
        "system",
        "b x p",
        "TTFT, cold",
        "TTFT, warm",
        "cold / warm",
        "opening",
        "opening + reading",
        "read",
        "GB/s",
        "disk GB/s",
        "TTFT red., cold",
        "TTFT red., warm",
    ];
    let all = table("Cold starts", &head, &[0], rows.iter().map(fields).collect());
    blocks.push(Block::Table(all.mark(marked(rows.iter().copied()))));
    let of = |of: fn(&crate::schema::Cold) -> &str| {
        let all: BTreeSet<&str> = rows.iter().filter_map(|r| Some(of(r.cell.cold.as_ref()?))).collect();
        all.into_iter().collect::<Vec<_>>().join("; ")
    };
    let unbounded = match rows.iter().all(|r| r.cell.cold.as_ref().is_some_and(|c| c.disk_gb_per_s.is_some())) {
        true => " Roofline of a cold start: no less than the time of its weights at disk GB/s.",
        false => " Where disk GB/s is unknown, no roofline covers reading, and there is none.",
    };
    blocks.push(text(format!(
        "Cold: from opening the folders to the first token, with nothing of the weights in memory ({}). Warm: the same work \
         right after, with the weights in memory. Opening + reading: what cold takes beyond warm, by sample; reading happens \
         wherever a phase first needs a weight. Read: bytes from storage ({}); GB/s: these by that time. Disk GB/s: what \
         several threads read of the largest file, by themselves.{unbounded}",
        of(|cold| &cold.cache),
        of(|cold| &cold.read_source),
    )));
    blocks
}

/// Before bytes of which the system told a part.
fn at_least(cell: &Cell) -> &'static str {
    if cell.cold.as_ref().is_some_and(|cold| cold.read_at_least) { "at least " } else { "" }
}

fn with_ratio(estimate: &Estimate) -> String {
    with_interval(format::ratio(estimate.value), format::ratio_interval(estimate))
}

/// The base that a row was measured beside.
fn base_of<'a>(row: &Row, rows: &[&'a Row<'a>]) -> Option<&'a Row<'a>> {
    let place = |c: &Cell| (c.base.clone(), c.batch, c.prompt, c.group.clone());
    rows.iter().copied().find(|r| r.cell.kind == Kind::Base && place(r.cell) == place(row.cell))
}

/// What a KV prediction reads beside its base, and what becomes of its speedup.
fn against_base(row: &Row, base: &Row) -> Option<String> {
    let cell = row.cell;
    if cell.kind != Kind::Kvp {
        return None;
    }
    let counted = |cell: &Cell| read_bytes(cell).filter(|_| at_least(cell).is_empty());
    let bytes = |cell: &Cell| counted(cell).or_else(|| Some(cell.cold.as_ref()?.file_bytes));
    let (own, bases) = (bytes(cell)?, bytes(base.cell)?);
    let extra = |cell| summary::cold_extra(cell).map(|e| e.value);
    let (time, bases_time) = (extra(cell)?, extra(base.cell)?);
    let (cold, warm) = (row.speedup?.estimate.value, summary::warm_ratio(row.limits, base.cell, cell)?.value);
    Some(format!(
        "{} at {} reads {} where {} reads {} ({}), and takes {} to open and read them where {} takes {}: from a cold start it \
         is {} as fast as its base, with the weights in memory {}.",
        cell.system,
        size(cell),
        format::bytes(own),
        base.cell.system,
        format::bytes(bases),
        format::ratio(own as f64 / bases as f64),
        format::seconds(time),
        base.cell.system,
        format::seconds(bases_time),
        format::ratio(cold),
        format::ratio(warm)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compare::{Side, compare},
        samples,
        schema::{Cold, PhaseRecord, Record, WarmPhase, cold_hash},
        terminal, validate,
        validate::Cause,
    };

    /// A run from cold starts: reading takes a second for each network, two for KV prediction, and opening 10 ms.
    fn cold_run() -> Record {
        let mut record = samples::run();
        record.cells = ["OE1.1B", "OE450M", "OE1.1B-KVP-C-450M"].map(|s| samples::cell(s, 1, 64, 6)).into();
        for cell in &mut record.cells {
            let n = cell.samples_ns.len();
            let needed = cell.cost().unwrap().weight_bytes;
            let warm = |p: &PhaseRecord| WarmPhase { name: p.name.clone(), samples_ns: p.samples_ns.clone() };
            cell.cold = Some(Cold {
                file_bytes: needed,
                cache: "the guest's cache is cold, the host's unknown".into(),
                read_bytes: Some(vec![needed; n]),
                read_at_least: false,
                read_source: "a test".into(),
                warm_ns: cell.samples_ns.clone(),
                warm_phases: cell.phases.iter().map(warm).collect(),
                disk_gb_per_s: Some(4.0),
            });
            for phase in cell.phases.iter_mut().filter(|p| p.name != "prediction") {
                phase.samples_ns.iter_mut().for_each(|ns| *ns += 1_000_000_000);
                cell.samples_ns.iter_mut().for_each(|ns| *ns += 1_000_000_000);
            }
            let open = PhaseRecord { name: "open".into(), samples_ns: vec![10_000_000; n], ..PhaseRecord::default() };
            let open = PhaseRecord { cost: Some(Default::default()), parallel_regions: Some(0), ..open };
            cell.phases.insert(0, open);
            cell.samples_ns.iter_mut().for_each(|ns| *ns += 10_000_000);
            cell.memory.as_mut().unwrap().major_faults = Some(1000);
            cell.id.push_str("/cold");
            cell.scenario_hash = cold_hash(&cell.scenario_hash);
        }
        record
    }

    #[test]
    fn a_run_of_cold_starts_says_what_reading_costs() {
        let record = cold_run();
        let text = terminal::validation(&record, None).split_whitespace().collect::<Vec<_>>().join(" ");
        // 2 x (408 M + 1014 M) + 12.4 MB against 2 x 1014 MB.
        assert!(text.contains("reads 2.66 GiB where OE1.1B reads 1.89 GiB (1.41x), and takes 2.01 s"), "{text}");
        assert!(text.contains("where OE1.1B takes 1.01 s: from a cold start it is 0.6"), "{text}");
        assert!(text.contains("the guest's cache is cold, the host's unknown"), "{text}");
        assert!(text.contains("Roofline of a cold start"), "{text}");
        let rows = summary::rows(&record);
        assert!(rows.iter().all(|r| r.doubts.is_empty()), "page faults are no doubt here: {:?}", rows[0].doubts);
        assert!((summary::cold_extra(rows[0].cell).unwrap().value - 1.01).abs() < 1e-6);
        // 2.028 GB at 4 GB/s take longer than anything else.
        assert!((rows[0].roofline.unwrap() - 2.028 / 4.0).abs() < 1e-9, "{:?}", rows[0].roofline);
        let mut unknown = record.clone();
        unknown.cells[0].cold.as_mut().unwrap().disk_gb_per_s = None;
        assert_eq!(summary::rows(&unknown)[0].roofline, None);
        assert!(terminal::render(&unknown, None).contains("no roofline"));
    }

    #[test]
    fn the_loss_of_reading_a_second_network_is_named() {
        let record = cold_run();
        let validation = validate::validate(&record);
        let claim = validation.claims.iter().find(|c| c.row.cell.kind == Kind::Kvp).unwrap();
        assert_eq!(claim.losses[0].cause, Cause::Reading);
        assert!(claim.losses.iter().any(|l| l.cause == Cause::Opening && (l.seconds - 0.01).abs() < 1e-9));
        let base = claim.row.ttft.unwrap().value * claim.row.speedup.unwrap().estimate.value;
        let miss = claim.row.ttft.unwrap().value - base / claim.row.flops_reduction.unwrap();
        let all: f64 = claim.losses.iter().map(|l| l.seconds).sum();
        assert!((all / miss - 1.0).abs() < 0.02, "losses add up to the miss: {all} {miss}");
    }

    #[test]
    fn what_was_not_read_was_not_cold() {
        let mut record = cold_run();
        record.cells[0].cold.as_mut().unwrap().read_bytes.as_mut().unwrap()[3] = 1_000_000_000;
        let doubts = summary::row(&record, &record.cells[0]).doubts;
        assert!(matches!(doubts[..], [summary::Doubt::NotCold(1_000_000_000, 2_028_000_000)]), "{doubts:?}");
        assert!(doubts[0].to_string().contains("a cache held the rest"));
        record.cells[0].cold.as_mut().unwrap().read_at_least = true;
        assert_eq!(summary::row(&record, &record.cells[0]).doubts, [], "what is not counted may have been read");
        assert!(terminal::render(&record, None).contains("at least 1.89 GiB"));
    }

    #[test]
    fn cold_and_warm_are_never_compared() {
        let (cold, warm) = (cold_run(), samples::run());
        let side = |name, record| Side { name, records: vec![record] };
        for sides in [[side("cold", &cold), side("warm", &warm)], [side("warm", &warm), side("cold", &cold)]] {
            let error = compare(&sides, &[]).unwrap_err().to_string();
            assert!(error.contains("against a") && error.contains("which are never compared"), "{error}");
        }
        assert_eq!(compare(&[side("a", &cold), side("b", &cold)], &[]).unwrap().lines.len(), 3);
        // Nor in one record.
        let mut both = warm.clone();
        both.cells.truncate(1);
        both.cells.push(cold.cells[1].clone());
        assert_eq!(both.base_of(&both.cells[1]), None);
    }
}
