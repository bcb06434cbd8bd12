//! What a run leaves behind, and what is made of it.
//!
//! - [`schema`]: the record format, its reader and its writer.
//! - [`stats`]: medians, intervals, Student's t; [`levels`]: rounds, processes, occasions; [`summary`]: one row of figures
//!   for every cell; [`modes`]: two modes shown as two.
//! - [`validate`]: does the FLOPs reduction become a TTFT reduction; [`compare`]: records side by side; [`pairs`]: two
//!   builds process by process; [`calibration`]: how much a machine's figures vary.
//! - [`fidelity`]: what became of the answer, judged by controls; [`tradeoff`]: times and answers of the same systems.
//! - [`terminal`]: tables in the terminal; [`render`]: HTML, Markdown and CSV; [`json`]: answers for programs.
//! - [`paper`]: the paper's own machine as a run.
//! - [`trace`]: what `ttft logits --trace` wrote, for a picture of it.
//! - [`text`]: what comes before text from elsewhere, and what must not be shown.
//!
//! This crate knows neither kernels nor models: everything it says, it reads from a record.

pub mod calibration;
pub mod compare;
mod decide;
mod facts;
pub mod fidelity;
pub mod format;
pub mod json;
pub mod levels;
pub mod modes;
pub mod pairs;
pub mod paper;
pub mod render;
#[cfg(test)]
mod samples;
pub mod schema;
pub mod stats;
pub mod summary;
pub mod terminal;
pub mod text;
pub mod trace;
pub mod tradeoff;
pub mod validate;
