//! Appending to a record.

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{
    check::*,
    error::*,
    place::{Kind as PlaceKind, Place, lock},
    read::{Scan, scan},
    types::*,
};

/// Appends to a record, one flushed line for each cell.
///
/// A line is written only if the reader accepts it, so a record that exists can be read. The file is locked while its
/// writer lives.
#[derive(Debug)]
pub struct Writer {
    /// None if the record is kept in memory alone.
    pub(super) file: Option<File>,
    path: PathBuf,
    lines: usize,
    /// What the whole lines take.
    bytes: u64,
    /// Whether something else may follow them: part of a line.
    pub(super) torn: bool,
    /// Whether the last of them lacks its end.
    unended: bool,
    /// The lines again, where they cannot be read back.
    kept: Option<Vec<u8>>,
}

impl Writer {
    /// Creates the record with its first line, or writes it into what is there and holds nothing: an empty file, a device,
    /// a pipe. Missing folders are made. [`RunHeader::schema`] is set to [`SCHEMA`].
    ///
    /// # Errors
    /// [`RecordError::Exists`] if the file holds something; what the file system says; a header the reader would refuse.
    pub fn create(path: &Path, run: RunHeader) -> Result<Self> {
        Self::begin(path, run, Place::open)
    }

    /// As [`Writer::create`], but any file of this name is [`RecordError::Exists`]: of several runs that choose the same name
    /// at once, one gets it.
    ///
    /// # Errors
    /// As [`Writer::create`].
    pub fn create_new(path: &Path, run: RunHeader) -> Result<Self> {
        Self::begin(path, run, Place::make)
    }

    /// A record that is kept in memory and leaves nothing behind.
    ///
    /// # Errors
    /// A header the reader would refuse.
    pub fn nowhere(run: RunHeader) -> Result<Self> {
        let path = PathBuf::from("(no record)");
        let kept = Some(encode(&Line::Run(Box::new(of_this_schema(run))), &path, 1)?);
        Ok(Self { file: None, path, lines: 1, bytes: 0, torn: false, unended: false, kept })
    }

    fn begin(path: &Path, run: RunHeader, open: fn(&Path) -> Result<Place>) -> Result<Self> {
        let line = encode(&Line::Run(Box::new(of_this_schema(run))), path, 1)?;
        let Place { mut file, kind } = open(path)?;
        if let Err(source) = file.write_all(&line).and_then(|()| file.flush()) {
            // What is left is as it was: nothing, or an empty file.
            let _ = match kind {
                PlaceKind::Made => std::fs::remove_file(path),
                PlaceKind::Empty => file.set_len(0),
                PlaceKind::Stream => Ok(()),
            };
            return Err(io_error(path, "write it", source));
        }
        let bytes = line.len() as u64;
        let kept = (kind == PlaceKind::Stream).then_some(line);
        Ok(Self { file: Some(file), path: path.into(), lines: 1, bytes, torn: false, unended: false, kept })
    }

    /// Opens an existing record to append to, and returns what it holds. A torn last line is cut off when something is
    /// appended; until then the file stays as it is.
    ///
    /// # Errors
    /// As [`Record::read`], but for the torn line; [`RecordError::Busy`] if another run writes it.
    pub fn resume(path: &Path) -> Result<(Self, Record)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| io_error(path, "open it to resume", source))?;
        lock(&file, path)?;
        let Scan { record, bytes, lines, torn, unended } = scan(&mut file, path)?;
        Ok((Self { file: Some(file), path: path.into(), lines, bytes, torn, unended, kept: None }, record))
    }

    /// Appends a cell.
    ///
    /// # Errors
    /// What the file system says; the field of the cell that the reader would refuse.
    pub fn cell(&mut self, cell: &Cell) -> Result<()> {
        self.append(&Line::Cell(Box::new(cell.clone())))
    }

    /// Appends a skipped cell.
    ///
    /// # Errors
    /// As [`Writer::cell`].
    pub fn skipped(&mut self, skipped: &Skipped) -> Result<()> {
        self.append(&Line::Skipped(Box::new(skipped.clone())))
    }

    /// The record's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the writing: what the record holds now.
    ///
    /// # Errors
    /// As [`Record::read`].
    pub fn finish(self) -> Result<Record> {
        let Self { file, path, kept, .. } = self;
        drop(file);
        match kept {
            Some(lines) => Record::from_reader(&lines[..], &path),
            None => Record::read(&path),
        }
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        let text = encode(line, &self.path, self.lines + 1)?;
        self.put(&text)?;
        self.lines += 1;
        Ok(())
    }

    /// Writes at the end of the whole lines.
    fn put(&mut self, text: &[u8]) -> Result<()> {
        let Self { file, path, bytes, torn, kept, unended, .. } = self;
        let path: &Path = path;
        let failed = |what| move |source| io_error(path, what, source);
        if let Some(lines) = kept {
            lines.extend_from_slice(text);
            if let Some(stream) = file {
                stream.write_all(text).and_then(|()| stream.flush()).map_err(failed("append to it"))?;
            }
            return Ok(());
        }
        let Some(file) = file else { return Ok(()) };
        if *torn {
            // Of a run that was cut off, or of a line that a full disk did not hold.
            file.set_len(*bytes).map_err(failed("cut off its torn last line"))?;
        }
        *torn = true;
        let text = if *unended { &[b"\n", text].concat() } else { text };
        let written = file.seek(SeekFrom::Start(*bytes)).and_then(|_| file.write_all(text)).and_then(|()| file.flush());
        if written.is_err() {
            // Of a full disk: the record stays one that can be read.
            *torn = file.set_len(*bytes).is_err();
        }
        written.map_err(failed("append to it"))?;
        (*torn, *unended) = (false, false);
        *bytes += text.len() as u64;
        Ok(())
    }
}

/// The header with this program's schema.
pub(super) fn of_this_schema(run: RunHeader) -> RunHeader {
    RunHeader { schema: SCHEMA.into(), ..run }
}

/// One line as bytes with its end, checked by the reader.
pub(super) fn encode(line: &Line, path: &Path, number: usize) -> Result<Vec<u8>> {
    let refuse = |(field, message)| RecordError::Line { path: path.into(), line: number, field, message };
    let mut text = serde_json::to_string(line).map_err(|e| refuse((".".into(), e.to_string())))?;
    parse(&text).map_err(refuse)?;
    text.push('\n');
    Ok(text.into_bytes())
}
