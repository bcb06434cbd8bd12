use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use ttft_reports::schema::Sampler;

use crate::{
    console,
    knobs::{self, RunKnobs},
    rounds,
    session::{Asked, Session},
    weights::Size,
};

/// Measure the systems of a scenario in several processes, interleaved round by round
///
/// Each process measures all systems of a group in turn, so that their ratios are paired. The figures and their intervals
/// come from the spread between the processes. (`cargo bench` takes all samples of a system in one process, with
/// criterion.) The weights are made once and kept. The record gets a line for each cell as soon as the cell is finished.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  ttft bench --preset table5 --plan\n  \
                        ttft bench --preset table5 --out table5.jsonl\n  \
                        ttft bench --resume table5.jsonl\n  \
                        ttft bench --preset fig1 --budget 3600 --until-stable 600 --out fig1.jsonl")]
pub struct Bench {
    /// Number of samples of each system, over all processes together (default: the scenario's)
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: Option<u32>,
    /// Number of processes in which every group is measured (default: as many as the budget allows, from 3 to 10). With 1,
    /// this process takes all samples, and the result does not say what another process would show
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    processes: Option<u32>,
    /// Continue the interrupted run of this record: the groups that it holds are not measured again
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Measure groups again whose cells were disturbed (the machine's speed moved, or an interval is wide), for at most this
    /// many seconds in all (600 if no number is given)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "600", value_parser = knobs::seconds)]
    until_stable: Option<f64>,
    /// Print what the run would take (time, memory, disk) and what it would skip, and stop
    #[arg(long)]
    plan: bool,
    /// Run tiny networks of the same structure: this takes some seconds, and says nothing about the real networks
    #[arg(long)]
    tiny: bool,
    #[command(flatten)]
    knobs: RunKnobs,
}

impl Bench {
    pub fn run(mut self) -> Result<()> {
        // A plan leaves no record behind.
        self.knobs.trial = self.plan;
        let asked = Asked { rounds: self.rounds, processes: self.processes };
        let size = if self.tiny { Size::Tiny } else { Size::Real };
        let mut session = match &self.resume {
            Some(record) => Session::resume(&self.knobs, asked, size, record)?,
            None => Session::start(&self.knobs, Sampler::Rounds, asked, size)?,
        };
        if self.plan {
            return console::print(rounds::plan(&session)?);
        }
        rounds::run(&mut session, self.until_stable)?;
        session.finish()
    }
}
