//! The sampler without criterion: the systems of a group interleaved round by round, in rotating order, so that drift
//! of the machine meets all of them alike.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use ttft_reports::{
    format::seconds,
    schema::{Kind, Skipped},
};

use crate::{
    console,
    planner::{Plan, Residence},
    scenario::Arm,
    session::{Group, Running, Session},
};

/// Fewest rounds worth taking: below it there is no median to speak of.
const FEWEST: u32 = 3;

/// Rounds that `left` seconds hold at `round` seconds each, one more for the warm-up; none if they are too few.
pub(crate) fn rounds_within(left: f64, round: f64, asked: u32) -> Option<u32> {
    let fit = (left / round - 1.0).floor();
    let rounds = if fit >= f64::from(asked) { asked } else { fit.max(0.0) as u32 };
    (rounds >= FEWEST.min(asked)).then_some(rounds)
}

/// What [`run`] would take.
///
/// # Errors
/// A system that is not in the zoo.
pub fn plan(session: &Session) -> Result<Plan> {
    Plan::new(session, &session.arms, session.scenario.rounds, Residence::Together)
}

/// Measures every group of the scenario that the record does not hold yet; then, for at most `until_stable` seconds,
/// again those whose figures were disturbed.
///
/// # Errors
/// What writing the record says. A cell that cannot be timed is noted and the others go on.
pub fn run(session: &mut Session, until_stable: Option<f64>) -> Result<()> {
    let arms = session.arms.clone();
    let plan = plan(session)?;
    console::print(format_args!("{plan}\n"))?;
    session.weights.make(plan.needed())?;
    let mut groups = Vec::new();
    for (batch, prompt) in session.scenario.groups() {
        for group in fitting(session, &arms, batch, prompt)? {
            if session.finished(&group) {
                console::note(format_args!("{}: finished before", group.label()));
            } else {
                measure_group(session, &group)?;
            }
            groups.push(group);
        }
    }
    match until_stable {
        Some(limit) => measure_again(session, &groups, limit),
        None => Ok(()),
    }
}

/// All arms at one size, in as few groups as memory allows, and those that do not fit at all.
pub(crate) fn parts(session: &Session, arms: &[Arm], batch: usize, prompt: usize) -> Result<(Vec<Group>, Vec<Arm>)> {
    let (parts, left) = split(arms, |part| Ok(session.over_memory(part.iter(), batch, prompt)?.is_none()))?;
    Ok((parts.into_iter().zip(1..).map(|(arms, part)| Group { batch, prompt, part, arms }).collect(), left))
}

/// As [`parts`]; what does not fit is noted.
fn fitting(session: &mut Session, arms: &[Arm], batch: usize, prompt: usize) -> Result<Vec<Group>> {
    let (groups, left) = parts(session, arms, batch, prompt)?;
    for arm in left {
        // What is free may have changed since.
        let over = session.over_memory([&arm].into_iter(), batch, prompt)?;
        let (reason, need) = over.unwrap_or_else(|| ("does not fit in memory beside its base".into(), 0));
        let (id, estimate_bytes) = (arm.id(batch, prompt), (need > 0).then_some(need));
        session.skip(Skipped { id, reason, estimate_bytes, ..Default::default() })?;
    }
    Ok(groups)
}

/// Arms in as few parts as possible that all fit, and those that do not fit at all. Every part after the first has its own
/// copy of the bases it needs, so that speedups come from common rounds.
fn split(arms: &[Arm], fits: impl Fn(&[Arm]) -> Result<bool>) -> Result<(Vec<Vec<Arm>>, Vec<Arm>)> {
    let (mut parts, mut left) = (Vec::new(), Vec::new());
    let mut part: Vec<Arm> = Vec::new();
    for arm in arms {
        let mut beside = vec![arm.clone()];
        if !parts.is_empty() && !part.iter().any(|a| a.system == arm.base) {
            beside.splice(..0, base_copy(arms, arm, parts.len()));
        }
        if fits(&[&part[..], &beside].concat())? {
            part.extend(beside);
            continue;
        }
        let whole: Vec<Arm> = base_copy(arms, arm, parts.len() + 1).into_iter().chain([arm.clone()]).collect();
        if part.is_empty() || !fits(&whole)? {
            left.push(arm.clone());
        } else {
            parts.push(std::mem::replace(&mut part, whole));
        }
    }
    parts.extend((!part.is_empty()).then_some(part));
    Ok((parts, left))
}

/// The base of an arm for a part after the first.
fn base_copy(arms: &[Arm], arm: &Arm, part: usize) -> Option<Arm> {
    let base = arms.iter().find(|a| a.kind == Kind::Base && a.system == arm.base && arm.kind != Kind::Base)?;
    // The scenario's own copies come first in the count.
    let own = arms.iter().filter(|a| a.system == base.system).count();
    Some(Arm { copy: (own + part) as u32, ..base.clone() })
}

/// Measures disturbed groups again, as a whole because their samples are paired by round, until none is left or the time
/// is over.
fn measure_again(session: &mut Session, groups: &[Group], limit: f64) -> Result<()> {
    session.grant(limit);
    loop {
        let mut measured = false;
        for group in groups {
            let unstable = session.unstable(group);
            let need = round_seconds(session, group)? * f64::from(session.scenario.rounds + 1);
            if unstable.is_empty() || need > session.budget_left() {
                continue;
            }
            console::note(format_args!("{}: again, for {} of its cells were disturbed", group.label(), unstable.len()));
            measure_group(session, group)?;
            measured = true;
        }
        if !measured {
            break;
        }
    }
    for (id, attempts) in groups.iter().flat_map(|g| session.unstable(g)) {
        console::note(format_args!("{id}: still disturbed after {attempts} attempts, and no time for another"));
    }
    Ok(())
}

/// Estimated seconds of one sample of each system.
pub(crate) fn round_seconds(session: &Session, group: &Group) -> Result<f64> {
    group.arms.iter().map(|arm| session.estimate(arm, group.batch, group.prompt)).sum()
}

/// Opens the cells of a group and takes as many rounds as the budget holds.
fn measure_group(session: &mut Session, group: &Group) -> Result<()> {
    let (asked, label) = (session.scenario.rounds, group.label());
    let round = round_seconds(session, group)?;
    let Some(rounds) = rounds_within(session.budget_left(), round, asked) else {
        let reason = session.over_budget(round * f64::from(FEWEST.min(asked) + 1));
        let reason = reason.unwrap_or_else(|| "the budget is spent".into());
        for id in group.ids() {
            let estimate_s = Some(round * f64::from(asked + 1));
            session.skip(Skipped { id, reason: reason.clone(), estimate_s, ..Default::default() })?;
        }
        return Ok(());
    };
    if rounds < asked {
        console::note(format_args!("{label}: {rounds} rounds of {asked}, so that the budget holds"));
    }
    let mut open = Vec::new();
    for arm in &group.arms {
        match session.open(arm, group) {
            Ok(running) => open.push(Some(running)),
            Err(e) => session.fail(&arm.id(group.batch, group.prompt), &e)?,
        }
    }
    let n = open.len();
    let bar = ProgressBar::new((u64::from(rounds) + 1) * n as u64);
    let style = "{prefix} [{bar:30}] {pos}/{len} {msg} (left: {eta})";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    bar.set_prefix(label.clone());
    if bar.is_hidden() {
        console::note(format_args!(
            "{label}: {rounds} rounds of {n} systems, about {}",
            seconds(round * f64::from(rounds + 1))
        ));
    }
    let positions = interleave(&mut open, rounds, |running: &mut Running| {
        bar.set_message(running.system().to_owned());
        bar.inc(1);
        match running.call(&session.engine, 1) {
            Ok(_) => Ok(true),
            Err(e) => session.fail(running.id(), &e).map(|()| false),
        }
    })?;
    bar.finish_and_clear();
    for (running, positions) in open.iter().zip(positions) {
        if let Some(running) = running {
            session.close(running, rounds as usize, Some(((0..rounds).collect(), positions)))?;
        }
    }
    Ok(())
}

/// A warm-up of each, then the rounds, in rotating order; the place of every sample within its round. What fails (`call`
/// says false) leaves `open`, and the others go on.
fn interleave<T>(
    open: &mut [Option<T>],
    rounds: u32,
    mut call: impl FnMut(&mut T) -> Result<bool>,
) -> Result<Vec<Vec<u32>>> {
    let n = open.len();
    let mut positions = vec![Vec::new(); n];
    for round in 0..=rounds as usize {
        for position in 0..n {
            let at = (round + position) % n;
            let Some(system) = &mut open[at] else { continue };
            if !call(system)? {
                open[at] = None;
            } else if round > 0 {
                positions[at].push(position as u32);
            }
        }
    }
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_shrink_to_the_budget_and_then_go() {
        assert_eq!(rounds_within(100.0, 1.0, 10), Some(10));
        assert_eq!(rounds_within(8.5, 1.0, 10), Some(7));
        assert_eq!(rounds_within(4.0, 1.0, 10), Some(3));
        assert_eq!(rounds_within(3.9, 1.0, 10), None);
        assert_eq!(rounds_within(2.0, 1.0, 1), Some(1));
        assert_eq!(rounds_within(-5.0, 1.0, 10), None);
        assert_eq!(rounds_within(10.0, 0.0, 10), Some(10));
    }

    #[test]
    fn systems_rotate_and_one_that_fails_stops_no_other() {
        let mut open = [Some('a'), Some('b'), Some('c')];
        let mut order = String::new();
        let positions = interleave(&mut open, 2, |system| {
            order.push(*system);
            Ok(order.chars().filter(|c| c == system).count() < 2 || *system != 'b')
        });
        // A warm-up and two rounds; b fails in its second call.
        assert_eq!((order.as_str(), open), ("abcbcaca", [Some('a'), None, Some('c')]));
        assert_eq!(positions.unwrap(), [vec![2, 1], vec![], vec![1, 0]]);
    }

    #[test]
    fn what_memory_does_not_hold_is_split_beside_its_base() {
        let systems = ["OE1.1B-KVP-C-450M", "OE1.1B-KVP-C-270M", "OE3B"];
        let arms = crate::scenario::arms(None, &systems).unwrap();
        // The base weighs 3, the 3B network never fits, everything else 1.
        let weight = |a: &Arm| match a.system.as_str() {
            "OE1.1B" => 3,
            "OE3B" => 100,
            _ => 1,
        };
        let split = |most: u32| {
            let (parts, left) = split(&arms, |part| Ok(part.iter().map(weight).sum::<u32>() <= most)).unwrap();
            let name = |a: &Arm| format!("{} {}", a.system, a.copy);
            let parts: Vec<Vec<_>> = parts.iter().map(|p| p.iter().map(name).collect()).collect();
            (parts, left.iter().map(name).collect::<Vec<_>>())
        };
        let (aux, kvp) = (["OE450M 1", "OE270M 1"], ["OE1.1B-KVP-C-450M 1", "OE1.1B-KVP-C-270M 1"]);
        let part = |base: &'static str, rest: [&'static str; 2]| [base, rest[0], rest[1]];
        let (parts, left) = split(5);
        assert_eq!(parts, [part("OE1.1B 1", aux), part("OE1.1B 2", kvp)]);
        assert_eq!(left, ["OE3B 1"]);
        assert_eq!(split(7).0, [[&part("OE1.1B 1", aux)[..], &kvp].concat()]);
        assert_eq!((split(203).0.len(), split(203).1.len()), (1, 0));
        assert_eq!(split(2).0, [aux]);
    }
}
