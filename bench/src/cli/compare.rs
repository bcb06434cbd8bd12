//! `ttft compare`: records side by side, or two programs measured in turn.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use ttft_reports::{
    calibration::Calibration,
    compare::{Side, compare, group},
    json, pairs,
    schema::Record,
    terminal,
};

use super::report::{print_json, read};
use crate::{
    ab::{self, Contender, Trial},
    calibrate, cleanup,
    console::{self, Misuse},
    knobs, output, processes,
};

/// Say which of two is faster: two sets of records, or two programs that are measured in turn
///
/// Records: the first record is the reference, and each record is a side of its own. `--with` makes two sides, each of any
/// number of records taken at several times. `--group` puts the records of one machine, revision and settings on one side.
/// Only cells of equal system, batch and prompt are compared; cells with other types, another extent or other FLOPs are
/// refused by name. A calibration (`ttft calibrate`) says how much the figures of a machine vary from one time to another.
/// Without one, the difference between single records is shown, but it is not judged.
///
/// Programs: `--binaries` runs two builds of ttft process by process, in random ABBA order, and judges the pairs. OLD may be
/// any revision from ae557bc on. `--settings` gives each side its own flags; a single program is then enough.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  ttft compare before.jsonl after.jsonl\n  \
                        ttft compare a1.jsonl a2.jsonl a3.jsonl --with b1.jsonl b2.jsonl b3.jsonl\n  \
                        ttft compare table5.jsonl paper\n  \
                        ttft compare --binaries ./ttft-before ./ttft-after --scenario quick --fail-slower 3\n  \
                        ttft compare --settings '--isa avx2' '--isa avx512' --scenario calibrate\n\n\
                        Exit codes of --binaries and --settings: 0 if NEW is no slower than --fail-slower allows,\n\
                        3 if it is slower than that, 4 if the pairs do not decide; 1 if something failed,\n\
                        2 if the command line is not valid.")]
pub struct Compare {
    /// Records to compare; the first is the reference, and `paper` stands for the paper's Table 5 on its Apple M2 Pro
    #[arg(required_unless_present_any = ["binaries", "settings"], conflicts_with_all = ["binaries", "settings"])]
    runs: Vec<PathBuf>,
    /// Records of the other side; the records before this flag then form one side together
    #[arg(long, value_name = "RECORDS", num_args = 1.., requires = "runs")]
    with: Vec<PathBuf>,
    /// Put the records of one machine, revision and settings on one side
    #[arg(long, conflicts_with = "with")]
    group: bool,
    /// How much a machine's figures vary, as `ttft calibrate` wrote it (default: the calibration in the target folder, if it
    /// is of the same machine)
    #[arg(long, value_name = "FILE")]
    calibration: Vec<PathBuf>,
    /// Two programs that are measured in turn; with --settings, one is enough (default: this program)
    #[arg(long, value_names = ["OLD", "NEW"], num_args = 1..=2)]
    binaries: Vec<PathBuf>,
    /// Flags of `ttft bench` for the old side and for the new side
    #[arg(long, value_names = ["OLD", "NEW"], num_args = 2, allow_hyphen_values = true)]
    settings: Vec<String>,
    /// Preset or scenario file that both sides measure
    #[arg(long, visible_alias = "preset", value_name = "NAME|FILE", default_value = "calibrate")]
    scenario: String,
    /// Number of pairs of processes, at least 4; an odd number is raised by one
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=10_000))]
    pairs: u32,
    /// Number of rounds in each process
    #[arg(long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Slowdown in percent that is tolerated
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = knobs::percent)]
    fail_slower: f64,
    /// Seed of the order of the processes and of their memory layouts
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Folder in which both sides find their weights (default: ttft-weights in the target folder)
    #[arg(long, env = "TTFT_WEIGHTS", value_name = "DIR")]
    weights: Option<PathBuf>,
    /// Keep the record of every process in this new folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Answer in JSON; its schema is in reports/schema
    #[arg(long)]
    json: bool,
}

impl Compare {
    /// Compares.
    ///
    /// # Errors
    /// Records that cannot be read or have nothing in common; programs that cannot be measured.
    pub fn run(self) -> Result<ExitCode> {
        if self.measures() {
            return self.programs();
        }
        let sides = if self.with.is_empty() {
            self.runs.iter().map(|run| vec![run.clone()]).collect::<Vec<_>>()
        } else {
            vec![self.runs.clone(), self.with.clone()]
        };
        let all = read(&sides.concat())?;
        let sides: Vec<(String, Vec<usize>)> = if self.group {
            let groups = group(&all);
            ensure!(
                groups.len() != 1 || all.len() == 1,
                "all {} records are of one machine, revision and settings, so --group makes one side of them: name the other \
                 side with --with in place of it, or leave it out, and each record is a side",
                all.len()
            );
            groups
        } else {
            let mut next = 0..;
            let mut side = |paths: &Vec<PathBuf>| -> Vec<usize> { next.by_ref().take(paths.len()).collect() };
            let several = |of: &[usize]| match of {
                [one] => all[*one].0.clone(),
                [first, ..] => format!("{} and {} more", all[*first].0, of.len() - 1),
                [] => String::new(),
            };
            sides.iter().map(&mut side).map(|of| (several(&of), of)).collect()
        };
        let sides: Vec<Side<'_>> = sides
            .iter()
            .map(|(name, of)| Side { name, records: of.iter().map(|&i| &all[i].1).collect::<Vec<&Record>>() })
            .collect();
        let comparison = compare(&sides, &self.calibrations(&all)?)?;
        if self.json {
            print_json(&json::comparison(&comparison))?
        } else {
            console::print(terminal::comparison(&comparison, None).trim_end())?
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Whether programs are run in turn, and not records compared.
    pub fn measures(&self) -> bool {
        self.runs.is_empty()
    }

    /// The calibrations that are named, or the one that `ttft calibrate` leaves, if it is of a machine of these records.
    fn calibrations(&self, all: &[(String, Record)]) -> Result<Vec<Calibration>> {
        if !self.calibration.is_empty() {
            return Ok(self.calibration.iter().map(|path| Calibration::read(path)).collect::<Result<_, _>>()?);
        }
        let own = output::calibration_dir().ok().map(|dir| dir.join(calibrate::FILE)).filter(|path| path.exists());
        let Some(path) = own else { return Ok(Vec::new()) };
        // Nobody asked for this one: it may be of another machine, and is no reason to compare nothing.
        match Calibration::read(&path) {
            Ok(own) => {
                Ok(vec![own].into_iter().filter(|own| all.iter().any(|(_, r)| own.fits(&r.run.machine))).collect())
            }
            Err(e) => {
                console::note(format_args!(
                    "this machine's calibration is not used: {e}: ttft calibrate --minutes 0 makes it anew from its records, or \
                     remove the file"
                ));
                Ok(Vec::new())
            }
        }
    }

    fn programs(&self) -> Result<ExitCode> {
        let own = processes::this_program()?;
        let [old, new] = match &self.binaries[..] {
            [] => [own.clone(), own],
            [one] => [one.clone(), one.clone()],
            [old, new, ..] => [old.clone(), new.clone()],
        };
        let [old_settings, new_settings] = match &self.settings[..] {
            [old, new, ..] => [old.as_str(), new.as_str()],
            _ => ["", ""],
        };
        ensure!(
            self.binaries.len() == 2 || self.settings.len() == 2,
            Misuse(
                "there is nothing to compare: give --binaries two programs, or --settings the flags of each side"
                    .into()
            )
        );
        let name = |program: &Path, settings: &str, side: &str| match (self.binaries.len(), settings) {
            (2, "") => format!("{side} ({})", program.display()),
            (2, _) => format!("{side} ({} {settings})", program.display()),
            _ => format!("{side} ({})", if settings.is_empty() { "no flags" } else { settings }),
        };
        let contender =
            |side, program: &Path, settings| Contender::new(&name(program, settings, side), program, settings);
        let (old, new) = (contender("old", &old, old_settings)?, contender("new", &new, new_settings)?);
        let weights = match &self.weights {
            Some(weights) => std::path::absolute(weights)?,
            None => output::target_dir()?.join("ttft-weights"),
        };
        let trial =
            Trial { scenario: self.scenario.clone(), rounds: self.rounds, pairs: self.pairs, seed: self.seed, weights };
        let scratch = tempfile::tempdir().context("no place for the records")?;
        let _listed = cleanup::list_folder(scratch.path().to_owned());
        let folder = match &self.keep {
            Some(keep) => {
                std::fs::create_dir(keep).with_context(|| format!("{}: cannot make the folder", keep.display()))?;
                keep.as_path()
            }
            None => scratch.path(),
        };
        let pairs = ab::run(&old, &new, &trial, folder)?;
        let judgement = pairs::judge(&pairs, self.fail_slower)?;
        if self.json {
            print_json(&json::judgement(&judgement))?;
        } else {
            console::print(terminal::judgement(&judgement, &old.name, &new.name).trim_end())?;
        }
        Ok(ExitCode::from(judgement.exit_code()))
    }
}
