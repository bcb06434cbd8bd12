//! What records say: `ttft validate`, `ttft compare` and `ttft report`.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use ttft_reports::{
    compare::{Side, compare},
    paper, render,
    schema::Record,
    terminal,
};

use crate::output::Pending;

/// The name that stands for the paper's own figures.
const PAPER: &str = "paper";

/// Say whether FLOPs became latency in a run, and where they did not
#[derive(Args, Debug)]
pub struct Validate {
    /// A record of `ttft bench` or `cargo bench`; `paper` stands for the paper's Table 5 on its Apple M2 Pro
    run: PathBuf,
}

/// Put runs side by side: the same work, on other machines or of other code
#[derive(Args, Debug)]
pub struct Compare {
    /// Records, the first is the reference; `paper` stands for the paper's Table 5 on its Apple M2 Pro
    #[arg(required = true, num_args = 2..)]
    runs: Vec<PathBuf>,
}

/// Write a report of one run or several
#[derive(Args, Debug)]
pub struct Report {
    /// Records; `paper` stands for the paper's Table 5 on its Apple M2 Pro
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// One self-contained page with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The same words and tables as Markdown
    #[arg(long, value_name = "FILE")]
    md: Option<PathBuf>,
    /// One line of numbers for each cell
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

fn open(path: &Path) -> Result<Record> {
    if path.as_os_str() == PAPER { Ok(paper::table5()) } else { Ok(Record::read(path)?) }
}

/// Runs with their names: the files' names without ending, told apart by a number where they are equal.
fn read(paths: &[PathBuf]) -> Result<Vec<(String, Record)>> {
    let mut seen = BTreeMap::<String, u32>::new();
    paths
        .iter()
        .map(|path| {
            let record = open(path)?;
            let stem = path.file_stem().map_or_else(|| PAPER.into(), |s| s.to_string_lossy().into_owned());
            let count = seen.entry(stem.clone()).and_modify(|n| *n += 1).or_insert(1);
            Ok((if *count > 1 { format!("{stem} ({count})") } else { stem }, record))
        })
        .collect()
}

/// Prints to a reader that may have seen enough, such as `head`.
fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("cannot print the answer"),
    }
}

fn sides(runs: &[(String, Record)]) -> Vec<Side<'_>> {
    runs.iter().map(|(name, record)| Side { name, record }).collect()
}

impl Validate {
    pub fn run(self) -> Result<()> {
        print(&terminal::validation(&open(&self.run)?, None))
    }
}

impl Compare {
    pub fn run(self) -> Result<()> {
        let runs = read(&self.runs)?;
        print(&terminal::comparison(&compare(&sides(&runs))?, None))
    }
}

impl Report {
    pub fn run(self) -> Result<()> {
        let wanted = [("html", self.html), ("md", self.md), ("csv", self.csv)];
        ensure!(wanted.iter().any(|(_, f)| f.is_some()), "nothing to write: give --html, --md or --csv with a file");
        let runs = read(&self.runs)?;
        let files: Vec<(&str, PathBuf)> =
            wanted.into_iter().filter_map(|(format, file)| Some((format, file?))).collect();
        for (i, (_, file)) in files.iter().enumerate() {
            ensure!(
                files[..i].iter().all(|(_, other)| other != file),
                "{} is named twice: give each format a file of its own",
                file.display()
            );
            let same = |run: &PathBuf| matches!((run.canonicalize(), file.canonicalize()), (Ok(a), Ok(b)) if a == b);
            ensure!(
                !self.runs.iter().any(same),
                "{} is a record and is not overwritten: write the report elsewhere",
                file.display()
            );
        }
        for (name, file) in files {
            let format = render::format(name).with_context(|| format!("no report format {name}"))?;
            let pending = Pending::claim(&file)?;
            let text = (format.render)(&sides(&runs))?;
            pending.write(|out| Ok(out.write_all(text.as_bytes())?))?;
            println!("wrote {}", file.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ttft_reports::schema::{RunHeader, Writer};

    use super::*;

    #[test]
    fn a_report_never_takes_the_place_of_a_record_or_of_another_report() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let run = path("run.jsonl");
        Writer::create(&run, RunHeader { run_id: "r".into(), ..RunHeader::default() }).unwrap();
        let before = std::fs::read(&run).unwrap();
        let report = |md: &str, csv: &str| {
            Report { runs: vec![PAPER.into(), run.clone()], html: None, md: Some(path(md)), csv: Some(path(csv)) }.run()
        };
        let error = report("a", "run.jsonl").unwrap_err().to_string();
        assert!(error.contains("run.jsonl is a record and is not overwritten"), "{error}");
        let error = report("a", "a").unwrap_err().to_string();
        assert!(error.contains("named twice"), "{error}");
        assert_eq!(std::fs::read(&run).unwrap(), before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is written before all is well");
        report("a", "b").unwrap();
        assert!(path("a").is_file() && path("b").is_file());
    }
}
