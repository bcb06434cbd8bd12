//! Reports of one or more runs, in the formats of [`FORMATS`].
//!
//! [`document`] says everything once, as paragraphs, tables and charts; a format is a way to write that down. CSV and
//! the picture are the exceptions: the one lists the cells alone, one a line, as plain numbers; the other shows a few of them.

pub(crate) mod blocks;
pub(crate) mod calibration;
mod charts;
pub(crate) mod cold;
pub(crate) mod content;
mod csv;
pub(crate) mod energy;
mod html;
pub(crate) mod judgement;
mod machines;
mod markdown;
mod method;
mod picture;
mod plot;
pub(crate) mod side_by_side;
mod timeline;
pub(crate) mod tradeoff;
pub(crate) mod verdict;

pub use blocks::{Block, Chart, Document, Section, Table};
pub use content::{PARTS, document};

use crate::{calibration::Calibration, fidelity::Fidelity, schema::Record, trace::Trace};

/// A run with the name it goes by in a report.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Such as a file name without its ending.
    pub name: &'a str,
    /// The run.
    pub record: &'a Record,
    /// What became of the answers of its systems; several files [go together](crate::fidelity::together), and none means that
    /// nothing is said of answers.
    pub fidelity: &'a [Fidelity],
}

/// A way to write a report.
#[derive(Clone, Copy)]
pub struct Format {
    /// As on the command line: `html`, `md`, `csv`.
    pub name: &'static str,
    /// What it is good for.
    pub about: &'static str,
    /// How every report in this format begins; a file that begins otherwise is somebody's own.
    pub begins: &'static str,
    /// Writes the report of these runs: the parts named, of [`PARTS`], or all if none is. Cells as numbers and the picture
    /// have no parts.
    pub render: fn(&[Run], parts: &[&str]) -> Result<String, RenderError>,
}

/// All formats: a new one is one line here and one file beside this one.
pub const FORMATS: [Format; 4] = [
    Format {
        name: "html",
        about: "one self-contained page with charts",
        begins: "<!DOCTYPE html>\n<html lang=\"en\">",
        render: html::render,
    },
    Format {
        name: "md",
        about: "the same words and tables as Markdown",
        begins: "# Time to first token: ",
        render: markdown::render,
    },
    Format {
        name: "svg",
        about: "one picture, light and dark",
        begins: "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"720\"",
        render: picture::render,
    },
    Format { name: "csv", about: "one line of numbers for each cell", begins: "run,id,kind,", render: csv::render },
];

/// The format of this name.
pub fn format(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|f| f.name == name)
}

/// A trace as a picture: what ran when.
pub fn timeline(trace: &Trace) -> String {
    timeline::render(trace)
}

/// Title of a [`calibration`], with which it begins.
pub const CALIBRATION: &str = "How much this machine's figures vary";

/// A machine's calibration as Markdown, for the documents.
///
/// # Errors
/// The template engine refused.
pub fn calibration(calibration: &Calibration) -> Result<String, RenderError> {
    let section = Section {
        id: "calibration".into(),
        title: "Levels, decisions and what they find".into(),
        short: "Calibration".into(),
        run: String::new(),
        blocks: calibration::blocks(calibration),
    };
    markdown::write(&Document { title: CALIBRATION.into(), subtitle: String::new(), sections: vec![section] })
}

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// No run was given.
    #[error("a report needs at least one run")]
    NoRuns,
    /// The runs have nothing for the parts asked for.
    #[error("these runs have nothing to say in: {0}")]
    Nothing(String),
    /// No system of the fidelity file is one of the record: the run, and what differs.
    #[error("{0} and the fidelity file are not joined. {1}")]
    NotJoined(String, String),
    /// The plotting library refused.
    #[error("chart `{0}`: {1}")]
    Plot(String, String),
    /// The template engine refused.
    #[error("template: {0:#}")]
    Template(#[from] minijinja::Error),
    /// The CSV writer refused.
    #[error("CSV: {0}")]
    Csv(String),
}

#[cfg(test)]
mod tests;
