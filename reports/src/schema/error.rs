//! Why a record could not be read or written.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::types::READABLE;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("{}: cannot {what}", path.display())]
    Io {
        /// The record.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The file exists.
    #[error("{} exists and is not overwritten: choose another name, resume it, or move it away", .0.display())]
    Exists(PathBuf),
    /// Another process writes the record.
    #[error("{}: another run is writing this record: wait for its end, or write another one", .0.display())]
    Busy(PathBuf),
    /// A line is not what the schema says.
    #[error("{}, line {line}, field `{field}`: {message}", path.display())]
    Line {
        /// The record.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// Path of the field, such as `cell.phases[1].samples_ns`; `.` is the line as a whole.
        field: String,
        /// What is wrong, expected and found.
        message: String,
    },
    /// The record has another version of the schema.
    #[error(
        "{}: the record's schema is `{found}`, this program reads `{}`: use the version of ttft that wrote it",
        path.display(),
        READABLE.join("` or `")
    )]
    Version {
        /// The record.
        path: PathBuf,
        /// Its schema.
        found: String,
    },
    /// The last line has no end.
    #[error(
        "{}, line {line}: the file ends inside this line (the run was interrupted while writing it): resume the run, \
         or delete this line",
        path.display()
    )]
    Torn {
        /// The record.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
}

pub(super) type Result<T, E = RecordError> = std::result::Result<T, E>;

pub(super) fn io_error(path: &Path, what: &'static str, source: io::Error) -> RecordError {
    RecordError::Io { path: path.into(), what, source }
}
