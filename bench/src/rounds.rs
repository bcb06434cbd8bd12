//! The sampler without criterion: every group in several processes, each of which takes rounds of all systems of the group.

use anyhow::{Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};

use ttft_reports::{
    format::seconds,
    schema::{Cell, Skipped},
};

use crate::{
    console,
    design::{self, Costs, Design},
    planner::{self, Plan, Residence},
    processes,
    rig::Group,
    sampling::{self, Outcome},
    scenario::Arm,
    session::Session,
    weights::Size,
    worker::Job,
};

/// What [`run`] would take.
///
/// # Errors
/// A system that is not in the zoo.
pub fn plan(session: &Session) -> Result<Plan> {
    Plan::new(session, &session.rig.arms, session.rig.scenario.rounds, Residence::Together)
}

/// Measures every group of the scenario that the record does not hold yet; then, for at most `until_stable` seconds,
/// again those whose figures were disturbed.
///
/// # Errors
/// What writing the record says. A cell that cannot be timed is noted and the others go on.
pub fn run(session: &mut Session, until_stable: Option<f64>) -> Result<()> {
    let arms = session.rig.arms.clone();
    let plan = plan(session)?;
    console::print(format_args!("{plan}\n"))?;
    session.rig.make(plan.needed())?;
    let mut groups = Vec::new();
    for (batch, prompt) in session.rig.scenario.groups() {
        groups.extend(fitting(session, &arms, batch, prompt)?);
    }
    for (i, group) in groups.iter().enumerate() {
        if session.finished(group) {
            console::note(format_args!("{}: it is finished already", group.label()));
            continue;
        }
        // What the groups before took is known by now, so the rest is planned anew.
        let to_come: Vec<&Group> = groups[i..].iter().filter(|g| !session.finished(g)).collect();
        match planner::designs(session, &to_come)?[0] {
            Some(design) => measure(session, group, design)?,
            None => skip(session, group)?,
        }
    }
    match until_stable {
        Some(limit) => measure_again(session, &groups, limit),
        None => Ok(()),
    }
}

/// All arms at one size, in as few groups as memory allows; what does not fit is noted.
fn fitting(session: &mut Session, arms: &[Arm], batch: usize, prompt: usize) -> Result<Vec<Group>> {
    let (arms, same) = planner::distinct(session, arms, batch, prompt)?;
    session.skip_same(&same, batch, prompt)?;
    let (groups, left) = planner::parts(session, &arms, batch, prompt)?;
    for arm in left {
        // What is free may have changed since.
        let over = session.over_memory([&arm].into_iter(), batch, prompt)?;
        let (reason, need) = over.unwrap_or_else(|| ("does not fit in memory beside its base".into(), 0));
        let (id, estimate_bytes) = (arm.id(batch, prompt), (need > 0).then_some(need));
        session.skip(Skipped { id, reason, estimate_bytes, ..Default::default() })?;
    }
    Ok(groups)
}

/// Measures disturbed groups again, as a whole because their samples are paired by round, until none is left or the time
/// is over.
fn measure_again(session: &mut Session, groups: &[Group], limit: f64) -> Result<()> {
    session.grant(limit);
    // Groups that cannot be measured any more.
    let mut lost = vec![false; groups.len()];
    loop {
        let mut measured = false;
        for (group, lost) in groups.iter().zip(&mut lost) {
            let unstable = session.unstable(group);
            let Some(design) = planner::designs(session, &[group])?[0].filter(|_| !unstable.is_empty() && !*lost)
            else {
                continue;
            };
            console::note(format_args!(
                "{}: {} of its cells were disturbed, so it is measured again",
                group.label(),
                unstable.len()
            ));
            measure(session, group, design)?;
            *lost = session.unstable(group) == unstable;
            measured = true;
        }
        if !measured {
            break;
        }
    }
    for (group, lost) in groups.iter().zip(lost) {
        let end = if lost { "another one fails" } else { "there is no time for another" };
        for (id, attempts) in session.unstable(group) {
            let attempts = if attempts == 1 { "one attempt".into() } else { format!("{attempts} attempts") };
            console::note(format_args!("{id}: it is still disturbed after {attempts}, and {end}"));
        }
    }
    Ok(())
}

/// Notes that the budget does not hold a group.
fn skip(session: &mut Session, group: &Group) -> Result<()> {
    let cost = session.costs(group)?;
    let ladder = design::ladder(session.rig.scenario.rounds, session.processes);
    let [least, most] = [ladder.first(), ladder.last()].map(|d| d.map_or(0.0, |d| d.seconds(&cost)));
    let reason = session.over_budget(least).unwrap_or_else(|| "the budget is spent".into());
    for id in group.ids() {
        session.skip(Skipped { id, reason: reason.clone(), estimate_s: Some(most), ..Default::default() })?;
    }
    Ok(())
}

/// Checks the systems of a group, measures them, and writes their cells.
pub(crate) fn measure(session: &mut Session, group: &Group, design: Design) -> Result<()> {
    let mut checked = Group { arms: Vec::new(), ..group.clone() };
    for arm in &group.arms {
        match session.gate(arm) {
            Ok(()) => checked.arms.push(arm.clone()),
            Err(e) => session.fail(&arm.id(group.batch, group.prompt), &e)?,
        }
    }
    // What was checked is not to stay in memory when starts are cold.
    session.rig.release();
    if checked.arms.is_empty() {
        return Ok(());
    }
    let mut design = design;
    if design.processes > 1
        && let Err(e) = processes::this_program()
    {
        console::note(format_args!(
            "{}: {e:#}; so this process takes all samples, and its words are indicative",
            group.label()
        ));
        design = Design { processes: 1, rounds: design.samples() };
    }
    let bar = progress(session, &checked, design)?;
    let outcomes = match design.processes {
        1 => sampling::sample(&mut session.rig, &checked, design.rounds, 0, |system| advance(&bar, system)),
        _ => in_processes(session, &checked, design, &bar)?,
    };
    bar.finish_and_clear();
    for (arm, outcome) in checked.arms.iter().zip(outcomes) {
        match outcome {
            Ok(cell) => session.keep(cell)?,
            Err(e) => session.fail(&arm.id(group.batch, group.prompt), &e)?,
        }
    }
    Ok(())
}

fn progress(session: &Session, group: &Group, design: Design) -> Result<ProgressBar> {
    let Design { processes, rounds } = design;
    let (label, n) = (group.label(), group.arms.len());
    let bar = ProgressBar::new(u64::from(processes) * (u64::from(rounds) + 1) * n as u64);
    let style = "{prefix} [{bar:30}] {pos}/{len} {msg} (left: {eta})";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    bar.set_prefix(label.clone());
    if bar.is_hidden() {
        let cost = session.costs(group)?;
        let about = seconds(design.seconds(&cost));
        let processes = if processes > 1 { format!("{processes} processes of ") } else { String::new() };
        console::note(format_args!("{label}: {processes}{rounds} rounds of {n} systems, about {about}"));
    }
    Ok(bar)
}

fn advance(bar: &ProgressBar, system: &str) {
    bar.set_message(system.to_owned());
    bar.inc(1);
}

/// One outcome for each system out of all processes. The budget may end before the last one; three are enough.
fn in_processes(session: &mut Session, group: &Group, design: Design, bar: &ProgressBar) -> Result<Vec<Outcome>> {
    let mut cells: Vec<Result<Vec<Cell>>> = group.arms.iter().map(|_| Ok(Vec::new())).collect();
    let cost = session.costs(group)?;
    let one = Design { processes: 1, ..design }.seconds(&Costs { once: 0.0, ..cost });
    for process in 0..design.processes {
        if process >= design::FEWEST_PROCESSES && session.budget_left() < one {
            console::note(format_args!(
                "{}: the budget ends after {process} of {} processes",
                group.label(),
                design.processes
            ));
            break;
        }
        let turn = process.wrapping_mul(design.rounds);
        let outcomes = match one_process(session, group, design.rounds, turn, bar) {
            Ok(outcomes) => outcomes,
            // It may have been killed for the memory that this group takes: the others can still be measured.
            Err(e) => return Ok(group.arms.iter().map(|_| Err(anyhow!("{e:#}"))).collect()),
        };
        for (all, outcome) in cells.iter_mut().zip(outcomes) {
            match (all.as_mut(), outcome) {
                (Ok(cells), Ok(cell)) => cells.push(cell),
                (Ok(_), Err(e)) => *all = Err(e.context(format!("in process {} of {}", process + 1, design.processes))),
                (Err(_), _) => {}
            }
        }
    }
    Ok(cells.into_iter().map(|cells| processes::merge(cells?)).collect())
}

/// What one process makes of a group.
pub(crate) fn one_process(
    session: &mut Session,
    group: &Group,
    rounds: u32,
    turn: u32,
    bar: &ProgressBar,
) -> Result<Vec<Outcome>> {
    let job = Job {
        scenario_sha256: session.rig.scenario.sha256.clone(),
        tiny: session.rig.weights.size() == Size::Tiny,
        batch: group.batch,
        prompt: group.prompt,
        part: group.part,
        arms: group.arms.clone(),
        rounds,
        turn,
    };
    let Session { knobs, layout, .. } = session;
    processes::run(&knobs.flags(), &job, layout, |system| advance(bar, system))
}
