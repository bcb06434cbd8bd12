//! The same run again and again: what a machine's figures vary by when nothing is changed.
//!
//! Each occasion is a record of its own, of several processes; they stand in one folder, so that an interrupted calibration
//! goes on where it was, and everything that is said of it can be worked out again.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use ttft_reports::{
    calibration::Calibration,
    format::{bytes, seconds},
    schema::{Record, RecordError, Sampler},
};

use crate::{
    console,
    design::Design,
    knobs::RunKnobs,
    output::Pending,
    planner,
    rig::Group,
    rounds,
    session::{Asked, Session, differences},
    weights::Size,
};

/// The file of the analysis, beside the records.
pub const FILE: &str = "calibration.json";

/// Takes occasions for so long, in `folder`, after those that are there already.
///
/// # Errors
/// Records of another run in the folder; a cell that failed; what measuring and writing say.
pub fn take(knobs: &RunKnobs, asked: Asked, size: Size, folder: &Path, time: Duration) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot make the folder", folder.display()))?;
    let mut number = next_number(folder)?;
    let mut knobs = knobs.clone();
    knobs.out = Some(occasion(folder, number));
    // It is no part of what varies here, and takes longer than an occasion's samples.
    knobs.energy = Some(false);
    knobs.budget = Some(time.as_secs_f64());
    let start = Instant::now();
    let mut session = Session::start(&knobs, Sampler::Rounds, asked, size)?;
    for earlier in records(folder)?.iter().take(1) {
        let differences = differences(earlier, session.header(), knobs.engine.pin)?;
        if !differences.is_empty() {
            // What was begun here is not of this folder.
            fs::remove_file(session.record_path())?;
        }
        ensure!(
            differences.is_empty(),
            "{}: its records are of another run ({}): give the same settings, or another folder",
            folder.display(),
            differences.join("; ")
        );
    }
    let arms = session.rig.arms.clone();
    let disk = session.rig.weights.disk(&arms)?;
    let (mut groups, mut same) = (Vec::new(), Vec::new());
    for (batch, prompt) in session.rig.scenario.groups() {
        let (apart, others) = planner::distinct(&session, &arms, batch, prompt)?;
        let (parts, left) = planner::parts(&session, &apart, batch, prompt)?;
        ensure!(left.is_empty(), "memory is too small for all systems at {batch} x {prompt}: take a smaller scenario");
        groups.extend(parts);
        same.push((others, batch, prompt));
    }
    let processes = asked.processes.unwrap_or(PROCESSES);
    let design = Design { processes, rounds: session.rig.scenario.rounds.div_ceil(processes) };
    console::print(plan(&session, &groups, design, time, &disk)?)?;
    session.rig.make(&arms)?;
    let bar = ProgressBar::new(time.as_secs());
    bar.set_style(ProgressStyle::with_template("{msg} [{bar:30}] {percent}% (left: {eta})")?.progress_chars("=> "));
    // Every occasion is of the same design: the last one is measured to its end.
    session.grant(f64::INFINITY);
    loop {
        for (others, batch, prompt) in &same {
            session.skip_same(others, *batch, *prompt)?;
        }
        for group in &groups {
            rounds::measure(&mut session, group, design)?;
        }
        if !session.failed().is_empty() {
            // Another would lack the same cells.
            fs::remove_file(session.record_path())?;
            bar.finish_and_clear();
            bail!(
                "occasion {number} is not kept, because cells failed: {}; ttft calibrate --minutes 0 works out what the occasions \
                 before it say",
                session.failed().join(", ")
            );
        }
        bar.set_position(start.elapsed().as_secs().min(time.as_secs()));
        bar.set_message(format!("occasion {number}"));
        if bar.is_hidden() && number % 10 == 0 {
            let left = seconds(time.saturating_sub(start.elapsed()).as_secs_f64());
            console::note(format_args!("occasion {number}, {left} left"));
        }
        if start.elapsed() >= time {
            break;
        }
        number += 1;
        session.next_record(&occasion(folder, number))?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// What it will take, in words.
fn plan(session: &Session, groups: &[Group], design: Design, time: Duration, disk: &str) -> Result<String> {
    let (mut occasion, mut memory) = (0.0, 0);
    for group in groups {
        let cost = session.costs(group)?;
        occasion += design.seconds(&cost);
        memory = memory.max(session.memory(group.arms.iter(), group.batch, group.prompt)?);
    }
    let Design { processes, rounds } = design;
    Ok(format!(
        "time: {}, about {:.0} occasions of {processes} processes of {rounds} rounds\nmemory: {}\ndisk: {disk}, and 10 to 50 \
         KB for each occasion",
        seconds(time.as_secs_f64()),
        (time.as_secs_f64() / occasion).max(1.0),
        bytes(memory)
    ))
}

/// Processes of an occasion.
pub const PROCESSES: u32 = 5;

fn occasion(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("occasion-{number:04}.jsonl"))
}

/// The first number after all occasions in the folder.
fn next_number(folder: &Path) -> Result<u32> {
    let numbers = files(folder)?.into_iter().filter_map(|path| {
        let name = path.file_stem()?.to_str()?.strip_prefix("occasion-")?.parse::<u32>().ok()?;
        Some(name)
    });
    Ok(numbers.max().map_or(1, |n| n + 1))
}

/// The files of all occasions, in order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{}: cannot list the folder", folder.display()))?;
    let mut files = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with("occasion-") && name.ends_with(".jsonl")
    });
    files.sort();
    Ok(files)
}

/// All occasions of a folder that were measured to the end, in order.
///
/// # Errors
/// A record that cannot be read; one that was interrupted is left out.
pub fn records(folder: &Path) -> Result<Vec<Record>> {
    let interrupted = |read: &Result<Record, RecordError>| matches!(read, Err(RecordError::Torn { .. }));
    let reads = files(folder)?.into_iter().map(|path| Record::read(&path)).filter(|read| !interrupted(read));
    let mut records = reads.collect::<Result<Vec<_>, _>>()?;
    let most = records.iter().map(|r| r.cells.len()).max().unwrap_or(0);
    records.retain(|r| r.cells.len() == most && most > 0);
    Ok(records)
}

/// The calibration of a folder, written beside its records.
///
/// # Errors
/// Too few occasions; what reading and writing say.
pub fn analyse(folder: &Path) -> Result<Calibration> {
    let records = records(folder)?;
    let calibration = Calibration::of(&records).with_context(|| folder.display().to_string())?;
    let path = folder.join(FILE);
    Pending::claim(&path)?.write(|out| Ok(out.write_all(calibration.write().as_bytes())?))?;
    Ok(calibration)
}
