//! Two executables, or one with two settings, process by process in turn: what `ttft compare --binaries` judges.
//!
//! The order is ABBA or BAAB, drawn anew for every block of two pairs, so that a steady drift of the machine cancels within
//! a block and nothing periodic can side with one of them.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use regex::Regex;
use ttft_reports::{format::seconds, pairs::Pair, schema::Record};

use crate::{cleanup, console, layout::Layout, processes, scenario};

/// Flags without which a program cannot be measured.
const NEEDED: [&str; 4] = ["--scenario", "--rounds", "--budget", "--out"];

/// What is measured of both sides.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Preset or scenario file.
    pub scenario: String,
    /// Rounds of each process.
    pub rounds: u32,
    /// Pairs of processes; an even number.
    pub pairs: u32,
    /// Draws the order and the layouts.
    pub seed: u64,
    /// Where both find their weights.
    pub weights: PathBuf,
}

/// One of the two.
#[derive(Clone, Debug)]
pub struct Contender {
    /// Its name in answers.
    pub name: String,
    program: PathBuf,
    settings: Vec<String>,
    flags: BTreeSet<String>,
}

impl Contender {
    /// A program with further flags for its `bench`.
    ///
    /// # Errors
    /// It does not run, is no ttft of a revision that can be measured, or lacks one of the flags.
    pub fn new(name: &str, program: &Path, settings: &str) -> Result<Contender> {
        let shown = program.display();
        ensure!(program.is_file(), "no program is called {shown}: give the path of a build of ttft");
        let program = std::path::absolute(program)?;
        let settings =
            shell_words::split(settings).with_context(|| format!("cannot take the settings '{settings}' apart"))?;
        let help = processes::command(&program).args(["bench", "--help"]).stdin(Stdio::null()).output();
        let help = help.with_context(|| format!("cannot start {shown}"))?;
        let flags = flags(&String::from_utf8_lossy(&help.stdout));
        if let Some(missing) = NEEDED.iter().find(|f| !help.status.success() || !flags.contains(**f)) {
            bail!(
                "{shown} is no build of ttft that can be measured, because its `bench --help` does not name {missing}: give one of \
                 revision ae557bc or later"
            );
        }
        for setting in settings.iter().filter(|s| s.starts_with("--")) {
            let flag = setting.split_once('=').map_or(setting.as_str(), |(flag, _)| flag);
            ensure!(flags.contains(flag) || flag == "--slowdown", "{shown}: its `bench` has no flag {flag}");
        }
        Ok(Contender { name: name.to_owned(), program, settings, flags })
    }

    /// Measures once, in one process, and reads what it recorded.
    fn run(&self, trial: &Trial, scenario: &Path, rounds: u32, out: &Path, layout: &mut Layout) -> Result<Record> {
        let log = out.with_extension("log");
        let mut command = processes::command(&self.program);
        command.arg("bench");
        let rounds = rounds.to_string();
        let all: [(&str, &OsStr); 7] = [
            ("--scenario", scenario.as_os_str()),
            ("--rounds", rounds.as_ref()),
            // What is asked for is measured, however long it takes.
            ("--budget", "1e9".as_ref()),
            ("--out", out.as_os_str()),
            ("--weights", trial.weights.as_os_str()),
            ("--processes", "1".as_ref()),
            ("--energy", "off".as_ref()),
        ];
        for (flag, value) in all.iter().filter(|(flag, _)| self.flags.contains(*flag)) {
            command.arg(flag).arg(value);
        }
        command.args(&self.settings).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&log).with_context(|| format!("{}: cannot write it", log.display()))?);
        let mut child = layout.vary(&mut command).spawn().with_context(|| format!("cannot start {}", self.name))?;
        let listed = cleanup::list_process(child.id());
        let status = child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        drop(listed);
        let said = || fs::read_to_string(&log).unwrap_or_default();
        ensure!(status.success(), "{} ended early ({status}) and said:\n{}", self.name, said().trim());
        let record = Record::read(out).with_context(|| format!("cannot read what {} recorded", self.name))?;
        ensure!(!record.cells.is_empty(), "{} measured nothing and said:\n{}", self.name, said().trim());
        Ok(record)
    }
}

/// Every long flag that a help text names.
fn flags(help: &str) -> BTreeSet<String> {
    // What stands at the beginning of a line, not what a sentence mentions.
    let flag = Regex::new(r"(?m)^\s*(?:-\w, )?(--[a-z][a-z0-9-]*)").expect("a pattern that is right");
    flag.captures_iter(help).map(|c| c[1].to_owned()).collect()
}

/// Runs both in turn; the records stay in `folder`.
///
/// # Errors
/// A process that fails, with what it said.
pub fn run(old: &Contender, new: &Contender, trial: &Trial, folder: &Path) -> Result<Vec<Pair>> {
    let scenario = folder.join("scenario.toml");
    fs::write(&scenario, scenario::text(&trial.scenario)?)
        .with_context(|| format!("{}: cannot write it", scenario.display()))?;
    let mut layout = Layout::new(trial.seed);
    let started = Instant::now();
    // Makes the weights, brings them into the page cache, and shows that both can be measured.
    for (side, contender) in [("old", old), ("new", new)] {
        console::note(format_args!("the first run of {} is not counted", contender.name));
        contender.run(trial, &scenario, 1, &folder.join(format!("first-{side}.jsonl")), &mut layout)?;
    }
    let blocks = trial.pairs.div_ceil(2);
    console::note(format_args!(
        "{} pairs of processes with {} rounds each take about {}, if the first runs had only to read their weights",
        2 * blocks,
        trial.rounds,
        seconds(started.elapsed().as_secs_f64() * f64::from(blocks * 2)),
    ));
    let bar = ProgressBar::new(u64::from(blocks) * 4);
    bar.set_style(ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} (left: {eta})")?.progress_chars("=> "));
    let mut pairs = Vec::new();
    for block in 0..blocks {
        let ahead = layout.below(2) == 0;
        for (i, old_first) in [ahead, !ahead].into_iter().enumerate() {
            let mut measure = |side: &str, contender: &Contender| {
                bar.set_message(contender.name.clone());
                let out = folder.join(format!("{:04}-{side}.jsonl", 2 * block as usize + i + 1));
                let record = contender.run(trial, &scenario, trial.rounds, &out, &mut layout);
                bar.inc(1);
                record
            };
            let (first, second) = match old_first {
                true => (measure("old", old)?, measure("new", new)?),
                false => (measure("new", new)?, measure("old", old)?),
            };
            let (old, new) = if old_first { (first, second) } else { (second, first) };
            pairs.push(Pair { old_first, block, old, new });
        }
    }
    bar.finish_and_clear();
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_from_the_help() {
        let help =
            "Usage: ttft bench [OPTIONS]\n\nOptions:\n      --rounds <R>\n          As with --resume\n  -h, --help\n";
        assert_eq!(flags(help).into_iter().collect::<Vec<_>>(), ["--help", "--rounds"]);
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let refused = |program: &str| Contender::new("x", Path::new(program), "").unwrap_err().to_string();
        assert!(refused("no/such/program").contains("no program is called no/such/program"));
        if cfg!(unix) {
            assert!(refused("/bin/sh").contains("is no build of ttft that can be measured"));
        }
    }
}
