//! The sampler without criterion: the systems of a group interleaved round by round, in rotating order, so that drift
//! of the machine meets all of them alike.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use ttft_reports::format::seconds;

use crate::{
    planner::Plan,
    session::{Running, Session},
};

/// Fewest rounds worth taking: below it there is no median to speak of.
const FEWEST: u32 = 3;

/// Rounds that `left` seconds hold at `round` seconds each, one more for the warm-up; none if they are too few.
fn rounds_within(left: f64, round: f64, asked: u32) -> Option<u32> {
    let fit = (left / round - 1.0).floor();
    let rounds = if fit >= f64::from(asked) { asked } else { fit.max(0.0) as u32 };
    (rounds >= FEWEST.min(asked)).then_some(rounds)
}

/// Measures every group of the scenario.
///
/// # Errors
/// What writing the record says. A cell that cannot be timed is noted and the others go on.
pub fn run(session: &mut Session) -> Result<()> {
    let (arms, samples) = (session.arms.clone(), session.scenario.rounds + 1);
    println!("{}\n", Plan::new(session, &arms, samples)?);
    for (batch, prompt) in session.scenario.groups() {
        let mut open: Vec<Running> = Vec::new();
        let mut round = 0.0;
        for arm in &arms {
            match session.open(arm, batch, prompt, &open) {
                Ok(running) => {
                    round += session.estimate(arm, batch, prompt)?;
                    open.push(running);
                }
                Err(e) => session.fail(&arm.id(batch, prompt), &e)?,
            }
        }
        let asked = session.scenario.rounds;
        let Some(rounds) = rounds_within(session.budget_left(), round, asked) else {
            let reason = session.over_budget(round * f64::from(FEWEST.min(asked) + 1));
            let reason = reason.unwrap_or_else(|| "the budget is spent".into());
            for running in open {
                session.skip(&running.arm.id(batch, prompt), &reason, Some(round * f64::from(asked + 1)))?;
            }
            continue;
        };
        if rounds < asked {
            eprintln!("b{batch}/p{prompt}: {rounds} rounds of {asked}, so that the budget holds");
        }
        measure(session, open, rounds, &format!("b{batch}/p{prompt}"), round)?;
    }
    Ok(())
}

/// A warm-up of each, then the rounds.
fn measure(session: &mut Session, mut open: Vec<Running>, rounds: u32, group: &str, round: f64) -> Result<()> {
    let n = open.len();
    if n == 0 {
        return Ok(());
    }
    let bar = ProgressBar::new((rounds as u64 + 1) * n as u64);
    let style = "{prefix} [{bar:30}] {pos}/{len} {msg} (left: {eta})";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    bar.set_prefix(group.to_owned());
    if bar.is_hidden() {
        eprintln!("{group}: {rounds} rounds of {n} systems, about {}", seconds(round * f64::from(rounds + 1)));
    }
    let mut positions = vec![Vec::new(); n];
    for r in 0..=rounds as usize {
        for position in 0..n {
            let at = (r + position) % n;
            bar.set_message(open[at].arm.system.clone());
            open[at].call(&session.engine, 1)?;
            if r > 0 {
                positions[at].push(position as u32);
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    for (running, positions) in open.into_iter().zip(positions) {
        session.close(running, rounds as usize, Some(((0..rounds).collect(), positions)))?;
    }
    Ok(())
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
}
