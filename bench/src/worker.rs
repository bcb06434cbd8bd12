//! One process of several that measure a group: it gets a job on its standard input and answers in JSON lines on its
//! standard output.

use std::io::{self, BufRead, Write};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use ttft_reports::schema::Cell;

use crate::{
    knobs::RunKnobs,
    rig::{Group, Rig},
    sampling,
    scenario::Arm,
    weights::Size,
};

/// What a worker is to measure. The scenario and the engine stand in its command line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// Hash of the scenario's text: a file that was changed since the run began is another scenario.
    pub scenario_sha256: String,
    /// Whether the networks are tiny ones.
    pub tiny: bool,
    /// Sequences.
    pub batch: usize,
    /// Prompt tokens of each.
    pub prompt: usize,
    /// Part of the group.
    pub part: u32,
    /// The systems.
    pub arms: Vec<Arm>,
    /// Rounds after the warm-up.
    pub rounds: u32,
    /// Place of the system that begins the first round.
    pub turn: u32,
}

/// One line of a worker's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// A system is about to run.
    Run(String),
    /// What came of the system at this place of the group.
    Cell(usize, Box<Cell>),
    /// Why the system at this place was not measured.
    Failed(usize, String),
    /// Everything is said.
    Done,
}

/// Does one job.
///
/// # Errors
/// A job that cannot be read, a knob that cannot be honoured, a scenario that is no longer the same.
pub fn work(knobs: &RunKnobs) -> Result<()> {
    let mut text = String::new();
    io::stdin().lock().read_line(&mut text).context("cannot read the job")?;
    let job: Job =
        serde_json::from_str(&text).context("this command is for ttft itself: the job is not one of its own")?;
    let mut rig = Rig::new(knobs, if job.tiny { Size::Tiny } else { Size::Real })?;
    ensure!(
        rig.scenario.sha256 == job.scenario_sha256,
        "the scenario '{}' was changed while the run was going on: start a new run",
        knobs.scenario_name()
    );
    let group = Group { batch: job.batch, prompt: job.prompt, part: job.part, arms: job.arms };
    let mut out = io::stdout().lock();
    let mut say = |answer: &Answer| -> Result<()> {
        serde_json::to_writer(&mut out, answer)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    };
    let outcomes = sampling::sample(&mut rig, &group, job.rounds, job.turn, |name| {
        // Nobody waits for the answer any more: what would still be measured disturbs others.
        if say(&Answer::Run(name.into())).is_err() {
            std::process::exit(1);
        }
    });
    for (at, outcome) in outcomes.into_iter().enumerate() {
        say(&match outcome {
            Ok(cell) => Answer::Cell(at, Box::new(cell)),
            Err(e) => Answer::Failed(at, format!("{e:#}")),
        })?;
    }
    say(&Answer::Done)
}
