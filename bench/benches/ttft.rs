//! Criterion's view of the benchmarks: one id for every system, batch and prompt length of the scenario.
//!
//! Criterion's flags all work; what is measured is chosen by the environment (`ttft bench --help` lists it).

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use criterion::{Bencher, Criterion, SamplingMode, Throughput};
use ttft_bench::{
    cleanup, console,
    criterion_args::CriterionArgs,
    knobs::RunKnobs,
    planner::{self, Plan, Residence},
    remarks,
    rig::Group,
    scenario::Arm,
    session::{Asked, Session},
    weights::Size,
};
use ttft_reports::schema::{Sampler, Skipped};

fn main() -> ExitCode {
    console::init();
    let args = CriterionArgs::from_env();
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let knobs = match RunKnobs::from_env() {
        Ok(knobs) => knobs,
        Err(refused) => return console::refused(&refused),
    };
    cleanup::watch();
    let done = if args.runs() { run(&mut criterion, &args, knobs) } else { list(&mut criterion, &knobs) };
    criterion.final_summary();
    console::end(done.map(|()| ExitCode::SUCCESS))
}

/// Names every benchmark, for `--list` and `--load-baseline`.
fn list(criterion: &mut Criterion, knobs: &RunKnobs) -> Result<()> {
    let scenario = knobs.scenario()?;
    let mut group = criterion.benchmark_group("ttft");
    for (batch, prompt) in scenario.groups() {
        for arm in scenario.arms()? {
            group.bench_function(name(&arm.id(batch, prompt)), not_run);
        }
    }
    group.finish();
    Ok(())
}

fn not_run(_: &mut Bencher<'_>) {}

/// Criterion puts the group in front by itself.
fn name(id: &str) -> &str {
    id.strip_prefix("ttft/").unwrap_or(id)
}

fn run(criterion: &mut Criterion, args: &CriterionArgs, mut knobs: RunKnobs) -> Result<()> {
    // A smoke run leaves no record behind.
    knobs.trial = args.test();
    let size = if args.test() { Size::Tiny } else { Size::Real };
    let mut session = {
        let asked =
            Asked { rounds: u32::try_from(args.sample_size()).ok(), processes: None, filtered: args.filtered() };
        Session::start(&knobs, Sampler::Criterion, asked, size)?
    };
    let samples = session.rig.scenario.rounds;
    let runs = samples + 1;
    let groups = session.rig.scenario.groups();
    let any = |a: &&Arm| groups.iter().any(|&(batch, prompt)| args.selects(&a.id(batch, prompt)));
    let arms: Vec<Arm> = session.rig.arms.iter().filter(any).cloned().collect();
    let plan = Plan::new(&session, &arms, samples, Residence::Alone)?;
    if !args.test() {
        console::print(format_args!("{plan}\n"))?;
    }
    session.rig.make(plan.needed())?;
    let mut group = criterion.benchmark_group("ttft");
    group.sampling_mode(SamplingMode::Flat);
    for (batch, prompt) in groups {
        let arms: Vec<_> = arms.iter().filter(|a| args.selects(&a.id(batch, prompt))).cloned().collect();
        let (arms, same) = planner::distinct(&session, &arms, batch, prompt)?;
        session.skip_same(&same, batch, prompt)?;
        let estimates = arms.iter().map(|a| session.estimate(a, batch, prompt)).collect::<Result<Vec<_>>>()?;
        let selected = Group { batch, prompt, part: 1, arms: arms.clone() };
        let all = estimates.iter().sum::<f64>() * f64::from(runs) + session.costs(&selected)?.once;
        if let Some(reason) = session.over_budget(all) {
            for (arm, estimate) in arms.iter().zip(estimates) {
                let (id, reason) = (arm.id(batch, prompt), reason.clone());
                let estimate_s = Some(estimate * f64::from(runs));
                session.skip(Skipped { id, reason, estimate_s, ..Default::default() })?;
            }
            continue;
        }
        for arm in &arms {
            let id = arm.id(batch, prompt);
            if let Some((reason, need)) = session.over_memory([arm].into_iter(), batch, prompt)? {
                session.skip(Skipped { id, reason, estimate_bytes: Some(need), ..Default::default() })?;
                continue;
            }
            let cell = Group { batch, prompt, part: 1, arms: vec![arm.clone()] };
            let mut opened = match session.open(arm, &cell) {
                Ok(opened) => opened,
                Err(e) => {
                    session.fail(&id, &e)?;
                    continue;
                }
            };
            // One run is one sample: a longer time would have criterion run twice for each.
            if !args.measurement_time() {
                group.measurement_time(Duration::from_nanos(1));
            }
            // One run is the warm-up, unless it ends after a quarter of the time that it is to take.
            if !args.warm_up_time() {
                let quarter = session.estimate(arm, batch, prompt)? / 4.0;
                group.warm_up_time(
                    Duration::try_from_secs_f64(quarter).unwrap_or_default().max(Duration::from_nanos(1)),
                );
            }
            if args.quick() {
                opened.running.call(&session.rig.engine, 1)?;
            }
            let mut calls = 0;
            let mut error = None;
            group.throughput(Throughput::Elements((batch * prompt) as u64));
            let mut measure = || {
                group.bench_function(name(&id), |b| {
                    calls += 1;
                    b.iter_custom(|n| match opened.running.call(&session.rig.engine, n) {
                        Ok(time) => time,
                        Err(e) => {
                            error.get_or_insert(e);
                            Duration::from_nanos(1)
                        }
                    });
                });
            };
            match args.measurement_time() {
                true => measure(),
                false => remarks::without_target_time(measure),
            }
            match error {
                Some(e) => session.fail(&id, &e)?,
                None if args.profile() => {}
                None => session.close(opened, if args.quick() { calls } else { args.sample_size() })?,
            }
        }
    }
    group.finish();
    session.finish()
}
