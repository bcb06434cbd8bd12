use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::Args;
use ttft_kernels::cpu::topology;
use ttft_reports::{
    format,
    schema::{Record, RecordError, Sampler},
    summary,
};

use crate::{
    console::{self, Misuse},
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
    /// Run the scenario once with each of these numbers of threads (without numbers: 1, 2, 4, 8 and 16, as far as there are cores),
    /// and show the times side by side. Each has a record of its own: of --out FILE.jsonl it is FILE-4-threads.jsonl
    #[arg(long, value_name = "N,N", num_args = 0..=1, value_delimiter = ',', value_parser = knobs::threads, conflicts_with_all = ["resume", "plan", "threads"])]
    each_threads: Option<Vec<usize>>,
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
        if let Some(asked) = self.each_threads.take() {
            return self.run_each(&asked);
        }
        // A plan leaves no record behind.
        self.knobs.trial = self.plan;
        let asked = Asked { rounds: self.rounds, processes: self.processes, ..Asked::default() };
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

    /// Runs once for each number of threads.
    fn run_each(&self, asked: &[usize]) -> Result<()> {
        let cores = topology::performance_cores();
        let counts: Vec<usize> = match asked {
            [] => [1, 2, 4, 8, 16].into_iter().filter(|n| *n <= cores).collect(),
            asked => asked.to_vec(),
        };
        // Hours may lie between the first run and the last.
        for (i, &threads) in counts.iter().enumerate() {
            ensure!(!counts[..i].contains(&threads), Misuse(format!("--each-threads: {threads} stands there twice")));
            if let Some(out) = self.knobs.out.as_deref().map(|out| with_threads(out, threads)) {
                ensure!(out.metadata().map_or(0, |there| there.len()) == 0, RecordError::Exists(out));
            }
        }
        let (processes, rounds) = (self.processes, self.rounds);
        let size = if self.tiny { Size::Tiny } else { Size::Real };
        let mut records = Vec::new();
        for &threads in &counts {
            console::note(format_args!("with {threads} thread{}", if threads == 1 { "" } else { "s" }));
            let mut knobs = self.knobs.clone();
            knobs.engine.threads = Some(threads);
            knobs.out = self.knobs.out.as_deref().map(|out| with_threads(out, threads));
            let mut session =
                Session::start(&knobs, Sampler::Rounds, Asked { rounds, processes, ..Asked::default() }, size)?;
            rounds::run(&mut session, self.until_stable)?;
            let path = session.record_path().to_owned();
            session.finish()?;
            records.push((threads, Record::read(&path)?));
        }
        console::print(side_by_side(&records))
    }
}

/// `FILE-4-threads.jsonl` for `FILE.jsonl`.
fn with_threads(out: &Path, threads: usize) -> PathBuf {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let end = out.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    out.with_file_name(format!("{stem}-{threads}-threads{end}"))
}

/// TTFT of every cell with each number of threads, and how many times as fast it is as with the first of them.
fn side_by_side(records: &[(usize, Record)]) -> String {
    let mut lines = vec!["\nTTFT by threads, and its speed over that of the first column:".to_owned()];
    let Some((_, first)) = records.first() else { return lines.remove(0) };
    for cell in &first.cells {
        let time = |record: &Record| {
            let same = record.cells.iter().rfind(|c| c.id == cell.id)?;
            Some(summary::ttft(same)?.value)
        };
        let base = time(first);
        let each = records.iter().map(|(threads, record)| match (time(record), base) {
            (Some(t), Some(base)) => format!("{threads}: {} ({:.2}x)", format::seconds(t), base / t),
            _ => format!("{threads}: unknown"),
        });
        lines.push(format!("{}  {}", cell.id, each.collect::<Vec<_>>().join("  ")));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttft_reports::schema::{Cell, Kind};

    #[test]
    fn times_stand_side_by_side() {
        let record = |ns: u64| {
            let cell = Cell { samples_ns: vec![ns; 3], ..Cell::new(Kind::Base, "OE1.1B", "OE1.1B", None, 1, 64) };
            Record { cells: vec![cell], ..Record::default() }
        };
        let text = side_by_side(&[(1, record(80_000_000)), (4, record(20_000_000)), (8, Record::default())]);
        assert!(text.contains("1: 80.0 ms (1.00x)  4: 20.0 ms (4.00x)  8: unknown"), "{text}");
        assert!(side_by_side(&[]).contains("TTFT"));
        assert_eq!(with_threads(Path::new("a/b.jsonl"), 16), Path::new("a/b-16-threads.jsonl"));
        assert_eq!(with_threads(Path::new("b"), 1), Path::new("b-1-threads"));
    }
}
