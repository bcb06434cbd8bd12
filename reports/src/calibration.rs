//! How much a machine's figures vary, between rounds, processes and occasions, and what that makes of a comparison.

use std::path::Path;

use crate::schema::{Machine, Record};

/// Name and version of the format.
pub const SCHEMA: &str = "ttft-calibration/1";

/// Why there is no calibration.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// Too little to calibrate by.
    #[error("{0}")]
    Records(String),
    /// The file cannot be read, or is no calibration.
    #[error("{path}: {message}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
}

/// A machine's calibration.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// [`SCHEMA`].
    pub schema: String,
    /// The machine.
    pub machine: Machine,
}

impl Calibration {
    /// Calibrates by records of one machine, one an occasion, in order of time.
    ///
    /// # Errors
    /// Fewer than two occasions, different machines, or no cell with processes.
    pub fn of(records: &[Record]) -> Result<Self, CalibrationError> {
        let _ = records;
        todo!("analysis follows")
    }

    /// Reads a calibration file.
    ///
    /// # Errors
    /// The file cannot be read or is not of this version.
    pub fn read(path: &Path) -> Result<Self, CalibrationError> {
        let _ = path;
        todo!("follows")
    }

    /// The file's text: JSON with a line break at its end.
    pub fn write(&self) -> String {
        todo!("follows")
    }

    /// Whether it is of this machine: the same CPU, cores, instruction sets, and memory within 10%.
    pub fn fits(&self, machine: &Machine) -> bool {
        let _ = machine;
        todo!("follows")
    }
}
