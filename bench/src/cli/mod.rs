//! The `ttft` command: one module for each subcommand.

mod bench;
mod calibrate;
mod compare;
mod convert;
mod doctor;
mod fidelity;
mod fit;
mod generate;
mod logits;
mod machine;
mod prompt;
mod report;
mod shell_files;
mod synth;
mod system;
mod zoo;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    cleanup,
    knobs::{self, RunKnobs},
    processes, worker,
};

const AFTER: &str = "From nothing to a report:
  ttft doctor                                 says what would spoil a measurement here
  ttft bench --preset quick --plan            prints the time, memory and disk that a run takes
  ttft bench --preset quick --out run.jsonl   measures for some minutes
  ttft validate run.jsonl                     says whether the FLOPs saved were time saved
  ttft compare run.jsonl other.jsonl          compares with another machine or another time
  ttft compare --binaries ./old ./new         measures two builds in turn and judges them
  ttft report run.jsonl --html run.html       writes a page with charts";

/// Measure the time to first token of KV Prediction and of full prefill on this machine
#[derive(Debug, Parser)]
#[command(name = "ttft", version, max_term_width = 100, after_help = AFTER)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::Bench),
    Calibrate(calibrate::Calibrate),
    Validate(report::Validate),
    Compare(Box<compare::Compare>),
    Report(report::Report),
    Logits(logits::Logits),
    Fit(fit::Fit),
    Generate(generate::Generate),
    Convert(convert::Convert),
    Machine(machine::Machine),
    Doctor(doctor::Doctor),
    Fidelity(Box<fidelity::Fidelity>),
    Synth(synth::Synth),
    Zoo(zoo::Zoo),
    #[command(hide = true)]
    ShellFiles(shell_files::ShellFiles),
    /// Measure one group, for `ttft bench` itself
    #[command(name = processes::WORKER, hide = true)]
    Worker {
        #[command(flatten)]
        knobs: RunKnobs,
    },
}

impl Command {
    /// Whether temporary files of it may have to be removed.
    fn writes(&self) -> bool {
        use Command::{Compare, Doctor, Generate, Machine, Validate, Zoo};
        match self {
            Compare(c) => c.measures(),
            Validate(_) | Generate(_) | Machine(_) | Doctor(_) | Zoo(_) => false,
            _ => true,
        }
    }
}

impl Cli {
    /// The command line, and the environment where it says nothing.
    ///
    /// # Errors
    /// What clap refuses; help and version.
    pub fn from_args() -> Result<Cli, clap::Error> {
        let command = || knobs::without_empty(Cli::command());
        let matches = command().try_get_matches()?;
        Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command()))
    }

    /// Runs the command.
    ///
    /// # Errors
    /// What went wrong, and what to do about it.
    pub fn run(self) -> Result<ExitCode> {
        if self.command.writes() {
            cleanup::watch();
        }
        let done = match self.command {
            Command::Compare(c) => return c.run(),
            Command::Doctor(c) => return c.run(),
            Command::Bench(c) => c.run(),
            Command::Calibrate(c) => c.run(),
            Command::Validate(c) => c.run(),
            Command::Report(c) => c.run(),
            Command::Logits(c) => c.run(),
            Command::Fit(c) => c.run(),
            Command::Generate(c) => c.run(),
            Command::Convert(c) => c.run(),
            Command::Fidelity(c) => c.run(),
            Command::Machine(c) => c.run(),
            Command::Synth(c) => c.run(),
            Command::ShellFiles(c) => c.run(),
            Command::Zoo(c) => c.run(),
            Command::Worker { knobs } => worker::work(&knobs),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_lists_every_command_and_flag() {
        let reference = include_str!("../../../docs/reference.md");
        let cli = Cli::command();
        for command in cli.get_subcommands().filter(|c| !c.is_hide_set()) {
            let name = command.get_name();
            assert!(reference.contains(&format!("`ttft {name}")), "docs/reference.md does not name {name}");
            for flag in command.get_arguments().filter(|a| !a.is_hide_set()).filter_map(|a| a.get_long()) {
                assert!(reference.contains(&format!("`--{flag}")), "docs/reference.md lacks --{flag} of {name}");
            }
        }
    }
}
