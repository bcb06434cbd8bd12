//! The record format: what a run leaves behind, and everything a report is made of.
//!
//! A record is a UTF-8 file of JSON lines. Its first line is `{"run": …}` ([`RunHeader`]); every further line is
//! `{"cell": …}` ([`Cell`]: one system at one batch and prompt length) or `{"skipped": …}` ([`Skipped`]). Lines are
//! appended as cells finish, so an interrupted run leaves a readable record. A cell measured again is appended again
//! with a higher [`Cell::attempt`]; the last attempt counts and the earlier ones stay in the file.
//!
//! **Time to first token (TTFT)** runs from prompt token ids in memory to the first token id chosen for *every*
//! sequence of the batch, with weights mapped and warm and buffers allocated. Tokenization is excluded, and the time is
//! never divided by the batch.
//!
//! Units are part of every name. Raw samples are integer nanoseconds. What is not known is `null`, never guessed.

pub(crate) mod check;
mod error;
mod place;
mod read;
mod types;
mod write;

pub use error::RecordError;
pub use types::*;
pub use write::Writer;

#[cfg(test)]
mod tests;
