//! A run's own answer: whether FLOPs became latency, and where they did not.

use std::collections::BTreeSet;

use super::blocks::*;
use crate::{
    format::{self, UNKNOWN, or_unknown},
    levels::FEWEST_PROCESSES,
    schema::{Cell, Kind},
    summary,
    validate::{self, Cause, Claim, Validation, Verdict},
};

/// The answer of a run: headline, claims, model, break-even, tokens of the base and controls.
pub(crate) fn verdict(validation: &Validation) -> Vec<Block> {
    let mut blocks = if validation.claims.is_empty() { Vec::new() } else { claims(validation) };
    let items: Vec<String> =
        validation.base_tokens.iter().map(|b| format!("{}, {}: {b}", b.one.system, size(b.one))).collect();
    if !items.is_empty() {
        blocks.push(text("Last tokens, m, that the base can read itself for hardly more time than one:"));
        blocks.push(Block::List { items });
    }
    let items: Vec<String> = validation.controls.iter().map(control_text).collect();
    if !items.is_empty() {
        blocks.push(text("Controls, whose outcome is known beforehand:"));
        blocks.push(Block::List { items });
    } else if validation.claims.iter().any(|c| c.row.cell.published.is_none()) {
        blocks.push(text(
            "Controls: none in this run; ttft bench --preset controls measures the base against itself and as its own \
             auxiliary.",
        ));
    }
    blocks
}

/// Blocks of [`claims`] that answer in words, before all tables.
pub(crate) const ANSWER: usize = 2;

/// What follows from every system beside its base.
fn claims(validation: &Validation) -> Vec<Block> {
    let (answer, reason) = headline(validation);
    let mut blocks = vec![lead(answer), text(reason)];
    let rows: Vec<Vec<String>> = validation.claims.iter().map(claim_fields).collect();
    let head =
        ["system", "verdict", "b x p", "ratio", "TTFT red.", "FLOPs red.", "roofline red.", "where the time went"];
    let claims = table("Every system against its base", &head, &[0, 1, 7], rows);
    push_table(&mut blocks, claims.mark(marked(validation.claims.iter().map(|c| &c.row))));
    blocks.push(text(
        "b x p: sequences x prompt tokens of each. Ratio: TTFT red. over FLOPs red. TTFT red.: time of the base over time of \
         the system. FLOPs red.: exact operations of the base over those of the system (with *: by the paper's \
         approximation). Roofline red.: the same ratio of the times that the roofline gives, in which every phase takes the \
         longer of two times: its FLOPs at the measured peak, or its bytes at the measured bandwidth. Where it is smaller than \
         FLOPs red., memory limits what can be saved. Where \
         the time went: time beyond what the FLOPs would take at the base's own rate, as a share of the system's TTFT, \
         largest first; a negative share is time gained. (!) marks rows that are not to be trusted.",
    ));
    blocks.extend(resolution(&validation.claims).map(text));
    push_table(&mut blocks, over_auxiliary(&validation.claims));
    let pipelined = pipelined(&validation.claims);
    if !pipelined.rows.is_empty() {
        push_table(&mut blocks, pipelined);
        blocks.push(text(
            "In the pipelined order, the auxiliary and the base's layers that run beside it are one phase. Its bound is the longer of two \
             times: that of the arithmetic of both, and that of the memory traffic of both. The bound of the work that the base does after \
             the auxiliary has ended is added to it. Faster: the time with the networks one after the other divided by the pipelined time, \
             as measured and by the two bounds. Share of its bound: the bound divided by the time. At other sizes the networks run one \
             after the other, and the run's notes say so.",
        ));
    }
    if let Some(model) = &validation.model {
        blocks.push(text(model_text(model)));
        let explained = validation.claims.iter().filter(|c| c.row.cell.kind == Kind::Kvp).filter_map(|c| {
            let e = c.explained?;
            let share = |s: f64| format::percent(s / c.row.ttft.map_or(f64::NAN, |t| t.value));
            let fields = [Some(e.miss), Some(e.bytes), e.regions, Some(e.residual)].map(|s| or_unknown(s.map(share)));
            let largest = if matches!(c.verdict, Verdict::Holds) { UNKNOWN } else { e.largest() };
            let names = [c.row.cell.system.clone(), size(c.row.cell)].into_iter();
            Some(names.chain(fields).chain([largest.into()]).collect())
        });
        let head =
            ["system", "b x p", "miss", "by bytes", "by parallel regions", "not explained", "term that explains it"];
        let title = "The miss by the terms of the model, in shares of TTFT";
        push_table(&mut blocks, table(title, &head, &[0, 6], explained.collect()));
    }
    let items: Vec<String> =
        validation.break_even.iter().map(|b| format!("{}, batch {}: {b}", b.system, b.batch)).collect();
    if !items.is_empty() {
        blocks.push(text("From which prompt length on KV prediction pays (TTFT shorter than the base's):"));
        blocks.push(Block::List { items });
    }
    blocks
}

/// What the run can tell apart at all.
fn resolution(claims: &[Claim]) -> Option<String> {
    let all: Vec<f64> = claims.iter().filter_map(|c| c.resolution).collect();
    let processes = claims.iter().map(|c| c.row.processes).max().unwrap_or(0);
    let of = match processes {
        0 | 1 => "with the rounds of one process, and without what varies between processes".into(),
        n => format!("with {n} processes"),
    };
    (!all.is_empty()).then(|| {
        format!(
            "This run ({of}) finds a deviation of {} in 80% of cases, which is its resolution. A system holds if the \
             interval of its ratio lies within {} of 1, or within the resolution where that is coarser. It falls short or \
             exceeds if the interval lies outside, and is undecided if a part of the interval lies inside and a part outside.",
            range(&all, format::percent),
            format::percent(validate::word::BAND)
        )
    })
}

/// The run's answer, and its reason, in a few sentences each.
pub(crate) fn headline(validation: &Validation) -> (String, String) {
    let kvp: Vec<&Claim> = validation.claims.iter().filter(|c| c.row.cell.kind == Kind::Kvp).collect();
    let (with, claims) = match kvp.is_empty() {
        true => ("With smaller systems", validation.claims.iter().collect()),
        false => ("With KV prediction", kvp),
    };
    let count = |f: fn(&Verdict) -> bool| claims.iter().filter(|c| f(&c.verdict)).count();
    let (holds, exceeds) = (count(|v| matches!(v, Verdict::Holds)), count(|v| matches!(v, Verdict::Exceeds(_))));
    let short: Vec<(&Claim, f64)> = claims
        .iter()
        .filter_map(|c| if let Verdict::FallsShort(share) = c.verdict { Some((*c, share)) } else { None })
        .collect();
    let undecided = claims.len() - holds - exceeds - short.len();
    let mut answer = if undecided == claims.len() {
        let why = |c: &&Claim| if let Verdict::Undecided(why) = c.verdict { Some(why) } else { None };
        let reasons: BTreeSet<String> = claims.iter().filter_map(why).map(|why| why.to_string()).collect();
        let reasons = reasons.into_iter().collect::<Vec<_>>().join("; ");
        format!("Whether TTFT falls as much as FLOPs cannot be told: {reasons}.")
    } else {
        let mut parts = vec![format!("{with}, TTFT falls as much as FLOPs in {holds} of {} cells", claims.len())];
        if !short.is_empty() {
            let shares: Vec<f64> = short.iter().map(|s| s.1).collect();
            parts.push(format!("it falls less in {} (by {})", short.len(), range(&shares, format::percent)));
        }
        if exceeds > 0 {
            parts.push(format!("it falls more in {exceeds}"));
        }
        if undecided > 0 {
            parts.push(format!("{undecided} {} undecided", if undecided == 1 { "is" } else { "are" }));
        }
        format!("{}.", parts.join("; "))
    };
    if claims.iter().any(|c| c.indicative) {
        answer.push_str(&format!(
            " This is indicative, because fewer than {FEWEST_PROCESSES} processes took the samples."
        ));
    }
    if let Some(command) = &validation.command {
        answer.push_str(&format!(" The following command decides: {command}."));
    }
    match claims.iter().filter(|c| !c.row.doubts.is_empty()).count() {
        0 => {}
        1 => answer.push_str(" One of these cells is not to be trusted (!)."),
        n => answer.push_str(&format!(" {n} of these cells are not to be trusted (!).")),
    }
    let failed = validation.controls.iter().filter(|c| c.passed == Some(false)).count();
    if failed > 0 {
        let all = validation.controls.len();
        answer
            .push_str(&format!(" {failed} of {all} controls did not come out as they must, so the run proves little."));
    }
    let speedups: Vec<f64> = claims.iter().filter_map(|c| Some(c.row.speedup?.estimate.value)).collect();
    let mut reason = Vec::new();
    if !speedups.is_empty() {
        let slower = speedups.iter().filter(|s| **s <= 1.0).count();
        let but = match slower {
            0 => String::new(),
            n => format!(", and no faster in {n} of {} cells", speedups.len()),
        };
        reason.push(format!("It is {} as fast as the base{but}.", range(&speedups, format::ratio)));
    }
    reason.extend(main_causes(&short));
    reason.extend(memory_text(&claims, validation));
    (answer, reason.join(" "))
}

/// Where memory bounds a KV prediction and its base, and from which prompt length on KV prediction pays: as measured, or else by the
/// limits.
fn memory_text(claims: &[&Claim], validation: &Validation) -> Option<String> {
    let bound: Vec<(&Claim, &validate::MemoryBound)> =
        claims.iter().filter_map(|c| Some((*c, c.memory.as_ref()?))).collect();
    let (first, memory) = bound.first()?;
    let mut text = format!(
        "Memory bounds both KV prediction and full prefill in {} of {} cells: at {} full prefill reads {} and KV prediction {}, \
         which takes longer than their arithmetic at the measured peak, so that fewer FLOPs save nothing there.",
        bound.len(),
        claims.len(),
        size(first.row.cell),
        format::bytes(memory.base_bytes),
        format::bytes(memory.bytes)
    );
    let mut said: Vec<(&str, u32)> = Vec::new();
    for (claim, memory) in &bound {
        let cell = claim.row.cell;
        let key = (cell.system.as_str(), cell.batch);
        if said.contains(&key) {
            continue;
        }
        said.push(key);
        let measured = validation.break_even.iter().find(|b| (b.system, b.batch) == key).map(|b| b.outcome);
        let from = match (measured, memory.pays_from) {
            (Some(validate::Outcome::From(n)), _) => format!("pays from about {n:.0} prompt tokens on, as measured"),
            (_, Some(n)) => format!("pays from about {n:.0} prompt tokens on, by the measured limits"),
            (_, None) => "does not pay at any prompt length, by the measured limits".into(),
        };
        text.push_str(&format!(" {} at batch {} {from}.", cell.system, cell.batch));
    }
    Some(text)
}

/// Which loss is the largest where systems fall short, by the number of cells.
fn main_causes(short: &[(&Claim, f64)]) -> Option<String> {
    let mut causes: Vec<(Cause, usize)> = Vec::new();
    for (claim, _) in short {
        let Some(loss) = claim.losses.first() else { continue };
        match causes.iter_mut().find(|c| c.0 == loss.cause) {
            Some(cause) => cause.1 += 1,
            None => causes.push((loss.cause, 1)),
        }
    }
    causes.sort_by_key(|c| std::cmp::Reverse(c.1));
    let list: Vec<String> =
        causes.iter().map(|(cause, n)| format!("{} ({n} of {} cells)", cause.in_words(), short.len())).collect();
    match (short.is_empty(), list.is_empty()) {
        (true, _) => None,
        (_, true) => {
            Some("The record has no phases, so it does not say what stood in the way where TTFT falls less.".into())
        }
        _ => Some(format!("Where TTFT falls less, most of the missing time went into {}.", list.join("; into "))),
    }
}

fn claim_fields(claim: &Claim) -> Vec<String> {
    let row = &claim.row;
    let speedup = row.speedup.map(|s| s.estimate);
    let (reduction, star) = match row.flops_reduction {
        Some(r) => (Some(r), ""),
        None => (row.paper_flops_reduction, "*"),
    };
    let efficiency = row.efficiency.map(|e| with_interval(format!("{:.2}", e.value), format::ratio_interval(&e)));
    let own = || speedup.zip(reduction).map(|(s, r)| format!("{:.2}", s.value / r));
    vec![
        row.cell.system.clone(),
        claim.words(),
        size(row.cell),
        or_unknown(efficiency.or_else(own)),
        or_unknown(speedup.map(|s| with_interval(format::ratio(s.value), format::ratio_interval(&s)))),
        or_unknown(reduction.map(|r| format!("{}{star}", format::ratio(r)))),
        or_unknown(row.roofline_reduction.map(format::ratio)),
        losses_text(claim),
    ]
}

/// KV prediction against its auxiliary alone: without overhead, the one costs more than the other by its FLOPs.
fn over_auxiliary(claims: &[Claim]) -> Table {
    let fields = |claim: &Claim| {
        let kvp = claim.row.cell;
        let alone = summary::auxiliary_of(claims.iter().map(|c| c.row.cell), kvp)?;
        let time = summary::ratio(claim.row.limits, kvp, alone)?.estimate;
        let work = kvp.cost()?.flops.total() as f64 / alone.cost()?.flops.total() as f64;
        Some(vec![
            kvp.system.clone(),
            size(kvp),
            format!("{:.3}", time.value),
            format!("{work:.3}"),
            over_text(&time.scaled(1.0 / work)),
        ])
    };
    let head = ["system", "b x p", "TTFT / auxiliary's", "FLOPs / auxiliary's", "time beyond its FLOPs"];
    table("KV prediction over its auxiliary alone", &head, &[0], claims.iter().filter_map(fields).collect())
}

/// KV prediction in the pipelined order beside the same in turn.
fn pipelined(claims: &[Claim]) -> Table {
    let fields = |claim: &Claim| {
        let (row, cell) = (&claim.row, claim.row.cell);
        let name = cell.system.strip_suffix("-pipelined").filter(|_| cell.pipelined())?;
        let place = |c: &Cell| (c.batch, c.prompt, c.aux.clone(), c.precision, c.extent, c.cold.is_some());
        let in_turn = |c: &&Claim| c.row.cell.system == name && place(c.row.cell) == place(cell);
        let turn = &claims.iter().find(in_turn)?.row;
        let faster = summary::ratio(row.limits, turn.cell, cell)?.estimate;
        let bounds = turn.roofline.zip(row.roofline).map(|(turn, own)| format::ratio(turn / own));
        let share = row.roofline.zip(row.ttft).map(|(bound, ttft)| format::percent(bound / ttft.value));
        Some(vec![
            cell.system.clone(),
            size(cell),
            or_unknown(turn.ttft.map(|t| format::seconds(t.value))),
            or_unknown(row.ttft.map(|t| format::seconds(t.value))),
            with_interval(format::ratio(faster.value), format::ratio_interval(&faster)),
            or_unknown(bounds),
            or_unknown(share),
        ])
    };
    let head =
        ["system", "b x p", "TTFT in turn", "TTFT pipelined", "faster", "faster by the bounds", "share of its bound"];
    table("The pipelined order beside the same in turn", &head, &[0], claims.iter().filter_map(fields).collect())
}

/// The losses that matter: at least 1% of TTFT.
fn losses_text(claim: &Claim) -> String {
    let Some(ttft) = claim.row.ttft else { return UNKNOWN.into() };
    let shares = claim.losses.iter().map(|l| (l.cause, l.seconds / ttft.value)).filter(|(_, s)| s.abs() >= 0.01);
    let parts: Vec<String> =
        shares.map(|(cause, share)| format!("{} {}", cause.name(), format::percent(share))).collect();
    match (parts.is_empty(), claim.losses.is_empty()) {
        (_, true) => UNKNOWN.into(),
        (true, _) => "nothing above 1%".into(),
        _ => parts.join(", "),
    }
}

fn model_text(model: &validate::Model) -> String {
    let compute = model.gflops().map(|g| format!("FLOPs / {} GFLOP/s", format::figure(g)));
    let bytes = model.gb_per_s().map(|b| format!("bytes / {} GB/s", format::figure(b)));
    let measured = if model.region_measured { " (measured)" } else { "" };
    let regions =
        model.s_per_region.filter(|s| *s > 0.0).map(|s| format!("parallel regions x {}{measured}", format::seconds(s)));
    let terms: Vec<String> = [compute, bytes, regions].into_iter().flatten().collect();
    let worst = model.worst.as_ref().map(|(cell, phase, residual)| {
        let side = if *residual > 0.0 { "slower" } else { "faster" };
        format!(", most in {phase} of {cell} ({} {side} than the model)", format::percent(residual.abs()))
    });
    let caution = if model.one_size {
        " All phases have one batch and prompt length, which hardly tells the terms apart: a run over several sizes does."
    } else {
        ""
    };
    let names: Vec<&str> = model.vague.iter().map(|t| t.name()).collect();
    let vague = match names[..] {
        [] => String::new(),
        [one] => format!(" Without the term of {one} the phases fit about as well: the run does not show it."),
        [.., last] => format!(
            " The run cannot tell apart the terms of {} and {last}: without any one of them the phases fit about as well, so their \
             figures mean nothing each by itself.",
            names[..names.len() - 1].join(", ")
        ),
    };
    format!(
        "Additive model of {} phases: t = {}; root mean square of the relative residuals {}{}.{vague}{caution}",
        model.phases,
        terms.join(" + "),
        format::percent(model.rms),
        worst.unwrap_or_default()
    )
}

fn control_text(control: &validate::Control) -> String {
    let outcome = match control.passed {
        Some(true) => "as expected",
        Some(false) => "NOT as expected",
        None => "undecided",
    };
    let indicative = if control.indicative { " (indicative)" } else { "" };
    let ratio = with_interval(format!("{:.3}", control.ratio.value), format::interval(&control.ratio));
    format!("{}: ratio {ratio}, expected {:.3}: {outcome}{indicative}", control.name, control.expected)
}
