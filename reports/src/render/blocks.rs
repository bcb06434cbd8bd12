//! What reports are made of: sections of paragraphs, lists, tables and charts.

use serde::Serialize;

use crate::{
    format::{self, or_unknown},
    schema::Cell,
    stats,
    summary::Row,
};

/// A report.
#[derive(Clone, Debug, Serialize)]
pub struct Document {
    /// Names the runs.
    pub title: String,
    /// What it is about.
    pub subtitle: String,
    /// In order.
    pub sections: Vec<Section>,
}

/// A part with a heading.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// Unique in the document: letters, digits and hyphens.
    pub id: String,
    /// Heading.
    pub title: String,
    /// The heading in a word or two, for a list of contents.
    pub short: String,
    /// The run it is of, where there are several; else empty.
    pub run: String,
    /// In order.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Block {
    /// A paragraph.
    Text {
        /// Its words.
        text: String,
        /// Whether it is the message of its section.
        lead: bool,
    },
    /// Points.
    List {
        /// Their words.
        items: Vec<String>,
    },
    /// A table.
    Table(Table),
    /// Charts side by side.
    Charts {
        /// In order.
        charts: Vec<Chart>,
    },
}

/// A table.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Caption; may be empty.
    pub title: String,
    /// Column titles.
    pub head: Vec<String>,
    /// As many fields each as there are columns.
    pub rows: Vec<Vec<String>>,
    /// Columns that hold words, not numbers.
    pub words: Vec<usize>,
    /// Rows that need attention; their first field ends in `(!)`.
    pub marked: Vec<usize>,
}

/// A chart.
#[derive(Clone, Debug, Serialize)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// `<svg>` element.
    pub svg: String,
    /// Its height in CSS pixels.
    #[serde(skip)]
    pub height: u32,
    /// How to read it.
    pub caption: String,
    /// Names and markers of the series.
    pub legend: Vec<Entry>,
}

/// A line of a legend.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The series.
    pub name: String,
    /// Its marker, an `<svg>` element.
    pub swatch: String,
}

pub(crate) fn text(text: impl Into<String>) -> Block {
    Block::Text { text: text.into(), lead: false }
}

pub(crate) fn lead(text: impl Into<String>) -> Block {
    Block::Text { text: text.into(), lead: true }
}

pub(crate) fn table(title: &str, head: &[&str], words: &[usize], rows: Vec<Vec<String>>) -> Table {
    Table {
        title: title.into(),
        head: head.iter().map(ToString::to_string).collect(),
        rows,
        words: words.into(),
        marked: Vec::new(),
    }
}

impl Table {
    /// Marks rows as in need of attention, not by colour alone.
    pub(crate) fn mark(mut self, rows: Vec<usize>) -> Self {
        for &row in &rows {
            self.rows[row][0].push_str(" (!)");
        }
        self.marked = rows;
        self
    }
}

/// Adds a table, unless it is empty.
pub(crate) fn push_table(blocks: &mut Vec<Block>, table: Table) {
    if !table.rows.is_empty() {
        blocks.push(Block::Table(table));
    }
}

pub(crate) fn size(cell: &Cell) -> String {
    format!("{} x {}", cell.batch, cell.prompt)
}

pub(crate) fn with_interval(value: String, interval: Option<String>) -> String {
    interval.map_or(value.clone(), |i| format!("{value} {i}"))
}

/// The ends of some figures, or the one.
pub(crate) fn range(values: &[f64], show: fn(f64) -> String) -> String {
    match (stats::quantile(values, 0.0).map(show), stats::quantile(values, 1.0).map(show)) {
        (Some(low), Some(high)) if low != high => format!("{low} to {high}"),
        (low, _) => or_unknown(low),
    }
}

pub(crate) fn marked<'a>(rows: impl Iterator<Item = &'a Row<'a>>) -> Vec<usize> {
    rows.enumerate().filter(|(_, r)| !r.doubts.is_empty() || r.cell.has_faults()).map(|(i, _)| i).collect()
}

/// What a ratio is above 1, in percent with its interval.
pub(crate) fn over_text(ratio: &stats::Estimate) -> String {
    let percent = |ratio: f64| format::percent(ratio - 1.0);
    let interval = format::interval_of(ratio, percent);
    with_interval(percent(ratio.value), interval)
}
