//! What records say: `ttft validate` and `ttft report`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::{
    Args,
    builder::{PossibleValue, PossibleValuesParser},
};
use ttft_reports::{
    fidelity::{self, Fidelity},
    json, paper, render,
    schema::Record,
    terminal,
    text::printable,
    trace::Trace,
};

use crate::{
    console::{self, Misuse},
    output::{self, Pending},
};

/// The name that stands for the paper's own figures.
const PAPER: &str = "paper";

/// Say whether the FLOPs saved in a run were time saved, and where they were not
///
/// For every system it prints the TTFT reduction over the FLOPs reduction with its interval, a verdict, and the phases that
/// took longer. It also prints an additive model of the run, the prompt length from which on KV prediction pays, and the
/// controls, whose outcome is known beforehand.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  ttft bench --preset quick --out run.jsonl && ttft validate run.jsonl")]
pub struct Validate {
    /// A record of `ttft bench` or `cargo bench`; `paper` stands for the paper's Table 5 on its Apple M2 Pro
    run: PathBuf,
    /// Answer in JSON; its schema is in reports/schema
    #[arg(long)]
    json: bool,
}

/// Write a report of one run or several
///
/// A newer report replaces an older one; a file that is no report is not overwritten.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  ttft report run.jsonl --html run.html --csv run.csv\n  \
                        ttft report table5.jsonl --section paper --md TABLE5.md\n  \
                        ttft report run.jsonl --fidelity answers.json --html tradeoff.html\n  \
                        ttft report here.jsonl there.jsonl paper --html machines.html\n  \
                        ttft report --trace trace.json --svg trace.svg")]
pub struct Report {
    /// Records to report; `paper` stands for the paper's Table 5 on its Apple M2 Pro
    #[arg(required_unless_present = "trace")]
    runs: Vec<PathBuf>,
    /// A trace of `ttft logits --trace` in place of records: --svg draws its phases, and one step of it thread by thread
    #[arg(long, value_name = "FILE", requires = "svg", conflicts_with_all = ["runs", "fidelity", "html", "md", "csv", "section"])]
    trace: Option<PathBuf>,
    /// Files of `ttft fidelity` with the answers of the same systems. Several files must have one base, the same texts and the same
    /// tasks. The report shows the answers beside the speedups, and the CSV holds these figures. Without a file to write, the
    /// report is printed
    #[arg(long, value_name = "FILE", num_args = 1..)]
    fidelity: Vec<PathBuf>,
    /// Write one self-contained page with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the same words and tables as Markdown
    #[arg(long, value_name = "FILE")]
    md: Option<PathBuf>,
    /// Write one picture, light and dark: TTFT of the base and of KV prediction at one size, by phase; with --fidelity, the answers
    /// over the speedups; with --trace, what ran when
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write one line of numbers for each cell, or with --fidelity for each mark and figure
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write only these parts of the page and of the Markdown, separated by commas
    #[arg(long, value_name = "PART", value_delimiter = ',', value_parser = part_names())]
    section: Vec<String>,
}

/// The parts of a report as the command line lists them.
fn part_names() -> PossibleValuesParser {
    PossibleValuesParser::new(render::PARTS.map(|(name, about)| PossibleValue::new(name).help(about)))
}

fn open(path: &Path) -> Result<Record> {
    if path.as_os_str() == PAPER {
        return Ok(paper::table5());
    }
    ensure!(
        path.exists(),
        "no file is called '{}': give a record (ttft bench and cargo bench print the path of theirs at the end), or `{PAPER}`",
        path.display()
    );
    Ok(Record::read(path)?)
}

/// Runs with their names: the files' names without ending; of files that are called alike, with their folders; and where
/// that does not tell them apart either, with a number.
pub(super) fn read(paths: &[PathBuf]) -> Result<Vec<(String, Record)>> {
    let text = |name: &std::ffi::OsStr| printable(&name.to_string_lossy());
    let stem = |path: &Path| path.file_stem().map_or_else(|| PAPER.into(), text);
    let stems: Vec<String> = paths.iter().map(|p| stem(p)).collect();
    let mut seen = BTreeMap::<String, u32>::new();
    let name = |(path, stem): (&PathBuf, &String)| {
        let alike = stems.iter().filter(|other| *other == stem).count() > 1;
        let folder = path.parent().and_then(Path::file_name).filter(|_| alike);
        let name = folder.map_or_else(|| stem.clone(), |folder| format!("{}/{stem}", text(folder)));
        let count = seen.entry(name.clone()).and_modify(|n| *n += 1).or_insert(1);
        Ok((if *count > 1 { format!("{name} ({count})") } else { name }, open(path)?))
    };
    paths.iter().zip(&stems).map(name).collect()
}

/// Prints an answer in JSON.
pub(super) fn print_json(value: &serde_json::Value) -> Result<()> {
    console::print(serde_json::to_string_pretty(value)?)
}

/// Draws a trace.
fn picture(trace: &Path, file: &Path) -> Result<()> {
    refuse_to_overwrite("svg", file)?;
    ensure!(!output::same(trace, file), "{} is read for this picture and is not overwritten", file.display());
    let drawn = render::timeline(&Trace::read(trace)?);
    Pending::claim(file)?.write(|out| Ok(out.write_all(drawn.as_bytes())?))?;
    console::print(format_args!("wrote {}", output::shown(file)))
}

/// The format of this name, in which a report may be written to `file`.
fn refuse_to_overwrite(name: &str, file: &Path) -> Result<&'static render::Format> {
    let format = render::format(name).with_context(|| format!("no report format {name}"))?;
    output::replaces(file, &format!("{name} report"), format.begins)?;
    Ok(format)
}

impl Validate {
    pub fn run(self) -> Result<()> {
        let record = open(&self.run)?;
        match self.json {
            true => print_json(&json::validation(&record)),
            false => console::print(terminal::validation(&record, None).trim_end()),
        }
    }
}

impl Report {
    pub fn run(self) -> Result<()> {
        if let (Some(trace), Some(file)) = (&self.trace, &self.svg) {
            return picture(trace, file);
        }
        let wanted = [("html", self.html), ("md", self.md), ("svg", self.svg), ("csv", self.csv)];
        ensure!(
            !self.fidelity.is_empty() || wanted.iter().any(|(_, f)| f.is_some()),
            Misuse("nothing to write: give --html, --md, --svg or --csv with a file".into())
        );
        let runs = read(&self.runs)?;
        let answers = self.fidelity.iter().map(|file| Fidelity::read(file)).collect::<Result<Vec<_>, _>>()?;
        let named: Vec<(&Path, &Fidelity)> = self.fidelity.iter().map(PathBuf::as_path).zip(&answers).collect();
        fidelity::together(&named)?;
        let files: Vec<(&str, PathBuf)> =
            wanted.into_iter().filter_map(|(format, file)| Some((format, file?))).collect();
        for (i, (_, file)) in files.iter().enumerate() {
            ensure!(
                !files[..i].iter().any(|(_, other)| output::same(other, file)),
                "{} is named twice: give each format a file of its own",
                file.display()
            );
            ensure!(
                !self.runs.iter().chain(&self.fidelity).any(|run| output::same(run, file)),
                "{} is read for this report and is not overwritten: write the report elsewhere",
                file.display()
            );
        }
        let parts: Vec<&str> = self.section.iter().map(String::as_str).collect();
        let formats = files.iter().map(|(name, file)| refuse_to_overwrite(name, file)).collect::<Result<Vec<_>>>()?;
        let fidelity = answers.as_slice();
        let named: Vec<_> = runs.iter().map(|(name, record)| render::Run { name, record, fidelity }).collect();
        if files.is_empty() {
            let mut apart = Vec::new();
            for run in &named {
                match terminal::tradeoff(run) {
                    Ok(text) if named.len() > 1 => console::print(format_args!("{}\n\n{text}", run.name))?,
                    Ok(text) => console::print(text.trim_end())?,
                    Err(why) => apart.push(why),
                }
            }
            return match apart.len() == named.len() {
                true => Err(apart.remove(0).into()),
                false => apart.iter().try_for_each(console::print),
            };
        }
        for ((_, file), format) in files.into_iter().zip(formats) {
            let pending = Pending::claim(&file)?;
            let text = (format.render)(&named, &parts)?;
            pending.write(|out| Ok(out.write_all(text.as_bytes())?))?;
            console::print(format_args!("wrote {}", output::shown(&file)))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ttft_reports::schema::{RunHeader, Writer};

    use super::*;

    #[test]
    fn runs_that_are_called_alike_go_by_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["a/run.jsonl", "b/run.jsonl", "b/other.jsonl"] {
            Writer::create(&path(name), RunHeader { run_id: "r".into(), ..RunHeader::default() }).unwrap();
        }
        let names = |paths: &[PathBuf]| read(paths).unwrap().into_iter().map(|r| r.0).collect::<Vec<_>>();
        let [a, b, other] = ["a/run.jsonl", "b/run.jsonl", "b/other.jsonl"].map(path);
        assert_eq!(names(&[a.clone(), other.clone(), PAPER.into()]), ["run", "other", "paper"]);
        assert_eq!(names(&[a.clone(), b, other]), ["a/run", "b/run", "other"]);
        assert_eq!(names(&[a.clone(), a]), ["a/run", "a/run (2)"]);
    }

    #[test]
    fn a_report_never_takes_the_place_of_a_record_or_of_another_report() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let run = path("run.jsonl");
        Writer::create(&run, RunHeader { run_id: "r".into(), ..RunHeader::default() }).unwrap();
        let before = std::fs::read(&run).unwrap();
        let report = |md: &str, csv: &str| {
            let (md, csv) = (Some(path(md)), Some(path(csv)));
            Report {
                runs: vec![PAPER.into(), run.clone()],
                trace: None,
                fidelity: Vec::new(),
                html: None,
                svg: None,
                md,
                csv,
                section: Vec::new(),
            }
            .run()
        };
        let error = report("a", "run.jsonl").unwrap_err().to_string();
        assert!(error.contains("run.jsonl is read for this report and is not overwritten"), "{error}");
        let error = report("a", "a").unwrap_err().to_string();
        assert!(error.contains("named twice"), "{error}");
        assert_eq!(std::fs::read(&run).unwrap(), before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is written before all is well");
        report("a", "b").unwrap();
        assert!(path("a").is_file() && path("b").is_file());
        report("a", "b").unwrap();
        // What is not a report of this format is somebody's own: another record, a page, notes.
        std::fs::copy(&run, path("other.jsonl")).unwrap();
        std::fs::write(path("notes"), "mine").unwrap();
        for (md, csv, kept) in [("a", "other.jsonl", "other.jsonl"), ("notes", "b", "notes"), ("b", "a", "b")] {
            let before = std::fs::read(path(kept)).unwrap();
            let error = report(md, csv).unwrap_err().to_string();
            assert!(error.contains(kept) && error.contains("is not overwritten"), "{error}");
            assert_eq!(std::fs::read(path(kept)).unwrap(), before);
        }
    }
}
