//! Lines to record.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use serde::Deserialize;

use super::{check::*, error::*, types::*};
use crate::text;

impl Record {
    /// Reads and checks a record file.
    ///
    /// # Errors
    /// The first line and field that is not as the schema says; an unknown schema version; a line without its end.
    pub fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| io_error(path, "open it for reading", source))?;
        Self::from_reader(file, path)
    }

    /// Reads and checks a record from any source; `name` stands in errors.
    ///
    /// # Errors
    /// As [`Record::read`].
    pub fn from_reader(source: impl Read, name: &Path) -> Result<Self> {
        let scan = scan(source, name)?;
        if scan.torn {
            return Err(RecordError::Torn { path: name.into(), line: scan.lines + 1 });
        }
        Ok(scan.record)
    }

    /// Whether its threads were bound to CPUs; `None` if no cell says.
    pub fn pinned(&self) -> Option<bool> {
        self.cells.iter().find_map(|cell| Some(cell.placement.as_ref()?.pinned))
    }

    /// The cell that `cell`'s speedup is measured against: the same base, batch and prompt, in the same group if
    /// there is one.
    pub fn base_of(&self, cell: &Cell) -> Option<&Cell> {
        let same = |c: &&Cell| {
            c.kind == Kind::Base
                && c.cold.is_some() == cell.cold.is_some()
                && (&c.base, c.batch, c.prompt, c.extent) == (&cell.base, cell.batch, cell.prompt, cell.extent)
                && (c.precision, c.weight_dtype, c.threads) == (cell.precision, cell.weight_dtype, cell.threads)
        };
        let mut bases = self.cells.iter().filter(same);
        let first = bases.next()?;
        if first.group == cell.group {
            return Some(first);
        }
        Some(bases.find(|c| c.group == cell.group).unwrap_or(first))
    }
}

/// All whole lines of a record.
pub(super) struct Scan {
    pub(super) record: Record,
    /// What the whole lines take.
    pub(super) bytes: u64,
    /// How many there are.
    pub(super) lines: usize,
    /// Whether part of a line follows them.
    pub(super) torn: bool,
    /// Whether the last of them lacks its end.
    pub(super) unended: bool,
}

pub(super) fn scan(source: impl Read, path: &Path) -> Result<Scan> {
    let mut input = BufReader::new(source);
    let mut builder = Builder::default();
    let (mut bytes, mut lines, mut buffer, mut unended) = (0u64, 0usize, Vec::new(), false);
    let torn = loop {
        buffer.clear();
        let read = (&mut input)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut buffer)
            .map_err(|source| io_error(path, "read it", source))?;
        if read == 0 {
            break false;
        }
        let line = lines + 1;
        let fault = |field: &str, message: String| RecordError::Line {
            path: path.into(),
            line,
            field: printable(field),
            message: printable(&message),
        };
        if read as u64 > MAX_LINE_BYTES {
            return Err(fault(".", format!("longer than {MAX_LINE_BYTES} bytes: this is not a ttft record")));
        }
        if line > MAX_LINES {
            return Err(fault(".", format!("more than {MAX_LINES} lines: this is not a ttft record")));
        }
        if buffer.last() != Some(&b'\n') {
            // An editor may have dropped the end of the last line; a run that was cut off leaves no whole line.
            if line > 1 && serde_json::from_slice::<serde::de::IgnoredAny>(&buffer).is_err() {
                break true;
            }
            unended = true;
        }
        if line == 1
            && let Some(what) = text::stand_in(&buffer)
        {
            return Err(fault(".", what.into()));
        }
        let whole = if line == 1 { text::without_mark(&buffer) } else { &buffer };
        let text = std::str::from_utf8(whole).map_err(|e| fault(".", format!("not UTF-8: {e}")))?;
        if line > 1 && text.trim().is_empty() {
            bytes += read as u64;
            lines += 1;
            continue;
        }
        if line == 1
            && let Some(found) = other_schema(text)
        {
            return Err(RecordError::Version { path: path.into(), found });
        }
        parse(text).and_then(|l| builder.add(l)).map_err(|(field, message)| {
            let hint = if line == 1 {
                " (a record of `ttft bench` or `cargo bench` starts with a whole `run` line)"
            } else {
                ""
            };
            fault(&field, message + hint)
        })?;
        bytes += read as u64;
        lines += 1;
    };
    match builder.finish() {
        Some(record) => Ok(Scan { record, bytes, lines, torn, unended }),
        None => Err(RecordError::Line {
            path: path.into(),
            line: 1,
            field: ".".into(),
            message: "empty file: expected a `run` line".into(),
        }),
    }
}

/// The schema a first line names, if it names one and it is not ours.
pub(super) fn other_schema(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Probe {
        run: Header,
    }
    #[derive(Deserialize)]
    struct Header {
        schema: String,
    }
    let found = serde_json::from_str::<Probe>(text).ok()?.run.schema;
    (!READABLE.contains(&found.as_str())).then(|| printable(&found))
}

/// Lines to record.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) run: Option<RunHeader>,
    pub(super) cells: Vec<Cell>,
    pub(super) superseded: Vec<Cell>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) by_id: HashMap<String, usize>,
}

impl Builder {
    pub(super) fn add(&mut self, line: Line) -> Result<(), Fault> {
        match line {
            Line::Run(run) if self.run.is_none() => self.run = Some(*run),
            Line::Run(_) => return fault("run", "a second `run` line: one record holds one run"),
            _ if self.run.is_none() => return fault(".", "expected the `run` line first"),
            Line::Skipped(skipped) => self.skipped.push(*skipped),
            Line::Cell(cell) => match self.by_id.get(&cell.id) {
                None => {
                    self.by_id.insert(cell.id.clone(), self.cells.len());
                    self.cells.push(*cell);
                }
                Some(&at) if self.cells[at].attempt >= cell.attempt => {
                    let (id, last, found) = (&cell.id, self.cells[at].attempt, cell.attempt);
                    return fault("cell.attempt", format!("`{id}` again: expected more than {last}, found {found}"));
                }
                Some(&at) => self.superseded.push(std::mem::replace(&mut self.cells[at], *cell)),
            },
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Option<Record> {
        let Builder { run, cells, superseded, mut skipped, by_id } = self;
        // Of a cell skipped again, the last reason stands.
        let mut seen = HashSet::new();
        skipped.reverse();
        skipped.retain(|s| !by_id.contains_key(&s.id) && seen.insert(s.id.clone()));
        skipped.reverse();
        Some(Record { run: run?, cells, superseded, skipped })
    }
}
