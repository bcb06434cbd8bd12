//! What became of the answer: systems against full prefill of their base, on text and on tasks, with their controls.
//!
//! A fidelity file is one JSON object ([`Fidelity`]), written by `ttft fidelity` and read with a record's strictness. It
//! keeps the figure of every window and the outcome of every item, in the same order for all systems and controls, so that
//! differences are taken pair by pair. [`judge`] puts each system into words.

mod read;
#[cfg(test)]
pub(crate) mod samples;
mod together;
mod types;
mod verdict;

pub use read::{FidelityError, MAX_BYTES, MAX_VALUES};
pub use together::together;
pub use types::*;
pub use verdict::{Judgement, LEAST_KL, MIN_ITEMS, Placed, Rival, SOLVES, Verdict, judge, ratio};

#[cfg(test)]
mod tests;
