//! A machine's calibration as paragraphs and tables.

use super::blocks::{Block, lead, push_table, table, text, with_interval};
use crate::{
    calibration::{
        Calibration,
        components::{Components, Deviation},
        trials::{Rates, Share},
    },
    facts,
    format::{self, or_unknown},
    schema::RunHeader,
};

/// Components, rates and what they mean.
pub(crate) fn blocks(calibration: &Calibration) -> Vec<Block> {
    let c = calibration;
    let run = RunHeader { machine: c.machine.clone(), ..RunHeader::default() };
    let revision = c.revision.as_ref().map(|g| {
        let short = g.revision.get(..12).unwrap_or(&g.revision);
        format!(" at revision {short}{}", if g.dirty == Some(true) { " (modified)" } else { "" })
    });
    let span = match (&c.started_at, &c.ended_at) {
        (Some(start), Some(end)) => format!(", from {start} to {end}"),
        _ => String::new(),
    };
    let mut blocks = vec![
        lead(answer(c)),
        text(format!(
            "{}: {} occasions of {} processes together, {} rounds each{}{span}.",
            facts::machine(&run),
            c.occasions,
            c.processes,
            c.rounds,
            revision.unwrap_or_default()
        )),
    ];
    let rows = c.cells.iter().flat_map(|cell| {
        let names = |of: &str| vec![cell.system.clone(), of.to_string(), format!("{} x {}", cell.batch, cell.prompt)];
        let row = |of: &str, parts: &Components| names(of).into_iter().chain(fields(parts)).collect::<Vec<_>>();
        [Some(row("TTFT", &cell.time)), cell.ratio.as_ref().map(|r| row("ratio to base", r))].into_iter().flatten()
    });
    let head = ["system", "of", "b x p", "rounds", "processes", "occasions", "trend an hour"];
    push_table(&mut blocks, table("Standard deviations of the logarithm, by level", &head, &[0, 1], rows.collect()));
    blocks.push(text(
        "The columns show how much rounds vary within a process, how much processes vary within an occasion without the part \
         of their rounds, and how much occasions vary without the part of their processes. They come from a nested analysis of \
         variance, with 95% intervals by chi-square.",
    ));
    let lags = c.cells.iter().flat_map(|cell| {
        cell.time.lags.iter().map(|lag| {
            vec![
                cell.system.clone(),
                lag.name.clone(),
                format!("{} x {}", cell.batch, cell.prompt),
                format::seconds(lag.seconds),
                lag.pairs.to_string(),
                format::percent(lag.deviation),
            ]
        })
    });
    let head = ["system", "occasions apart", "b x p", "mean distance", "pairs", "standard deviation"];
    push_table(&mut blocks, table("Occasions by their distance in time", &head, &[0, 1], lags.collect()));
    let head =
        ["design", "comparisons", "rows", "false alarms", "no difference", "undecided", "any alarm", "any, Holm"];
    let rates = c.designs.iter().map(alarms).collect();
    push_table(&mut blocks, table("Decisions on one machine against itself", &head, &[0], rates));
    let head = ["design", "finds 5%", "finds 10%", "80% found", "80% found, simulated", "coverage, simulated"];
    push_table(&mut blocks, table("What the designs find", &head, &[0], c.designs.iter().map(power).collect()));
    blocks.push(text(
        "The decisions were really made, on sets of processes or records that were taken interleaved in time and have none \
         in common. Shares are means over comparisons with 95% intervals; the rows of one comparison count together, because \
         they are not independent. A false alarm is a row that is called different, and a row shows no difference if its interval \
         lies within 5% of none. The columns of any alarm count the tables with a false alarm somewhere, by each row's own p and by \
         Holm's rule. The columns of 80% found name the least slowdown that is found in 80% of rows, and the last column says how \
         many of the 95% intervals cover the truth, by simulation with the measured components.",
    ));
    if let (Some(contradictions), Some(undecided)) = (c.contradictions, c.undecided) {
        blocks.push(text(format!(
            "ttft validate: of two single runs, {} of the systems get decided words that contradict each other; of one run, {} \
             of the systems stay undecided.",
            share(&contradictions),
            share(&undecided)
        )));
    }
    blocks
}

fn answer(c: &Calibration) -> String {
    let of = |name: &str, level: fn(&Components) -> Deviation| {
        let all: Vec<f64> = c.cells.iter().map(|cell| level(&cell.time).value).collect();
        let (low, high) = (all.iter().copied().fold(f64::MAX, f64::min), all.iter().copied().fold(0.0, f64::max));
        match (format::percent(low), format::percent(high)) {
            (low, high) if low == high => format!("{low} between {name}"),
            (low, high) => format!("{low} to {high} between {name}"),
        }
    };
    format!(
        "Times vary by {}, by {}, and by {}.",
        of("rounds of a process", |c| c.rounds),
        of("processes of an occasion", |c| c.processes),
        of("occasions", |c| c.occasions)
    )
}

fn fields(parts: &Components) -> [String; 4] {
    let deviation = |d: &Deviation| {
        with_interval(
            format::percent(d.value),
            Some(format!("[{}, {}]", format::percent(d.low), format::percent(d.high))),
        )
    };
    let trend = parts.trend_per_hour.map(format::percent);
    [deviation(&parts.rounds), deviation(&parts.processes), deviation(&parts.occasions), or_unknown(trend)]
}

fn share(s: &Share) -> String {
    with_interval(format::percent(s.value), Some(format!("[{}, {}]", format::percent(s.low), format::percent(s.high))))
}

fn alarms(rates: &Rates) -> Vec<String> {
    let shares = [rates.different, rates.no_difference, rates.undecided, rates.any_alarm, rates.any_alarm_holm];
    let known = [rates.design.clone(), rates.different.comparisons.to_string(), rates.rows.to_string()];
    known.into_iter().chain(shares.iter().map(share)).collect()
}

fn power(rates: &Rates) -> Vec<String> {
    vec![
        rates.design.clone(),
        share(&rates.finds_5_percent),
        share(&rates.finds_10_percent),
        or_unknown(rates.least_found.map(format::percent)),
        or_unknown(rates.least_found_simulated.map(format::percent)),
        or_unknown(rates.coverage_simulated.map(format::percent)),
    ]
}
