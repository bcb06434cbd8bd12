//! Prompts: equal-length sequences of token ids.

use crate::error::{Error, Result};

/// A batch of equal-length prompts, `[batch * len]` row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompts {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub len: usize,
    /// Ids, row-major.
    pub ids: Vec<u32>,
}

impl Prompts {
    /// Joins the rows of a batch.
    ///
    /// # Errors
    /// [`Error::EmptyBatch`], [`Error::EmptyPrompt`], [`Error::Ragged`].
    pub fn new(rows: &[Vec<u32>]) -> Result<Prompts> {
        let len = rows.first().ok_or(Error::EmptyBatch)?.len();
        for (row, r) in rows.iter().enumerate() {
            if r.is_empty() {
                return Err(Error::EmptyPrompt { row });
            }
            if r.len() != len {
                return Err(Error::Ragged { row, expected: len, found: r.len() });
            }
        }
        Ok(Prompts { batch: rows.len(), len, ids: rows.concat() })
    }
}

/// Checks ids against the plan and the vocabulary.
///
/// # Errors
/// [`Error::TokenCount`], [`Error::TokenId`].
pub fn check(ids: &[u32], batch: usize, prompt: usize, vocab: usize) -> Result<()> {
    let expected = batch * prompt;
    if ids.len() != expected {
        return Err(Error::TokenCount { batch, prompt, expected, found: ids.len() });
    }
    match ids.iter().position(|id| *id as usize >= vocab) {
        Some(at) => Err(Error::TokenId { id: ids[at], row: at / prompt, position: at % prompt, vocab }),
        None => Ok(()),
    }
}

/// As [`check`] for any length; returns it.
pub(crate) fn check_batch(ids: &[u32], batch: usize, vocab: usize) -> Result<usize> {
    if batch == 0 {
        return Err(Error::EmptyBatch);
    }
    let n = ids.len() / batch;
    if n == 0 {
        return Err(Error::EmptyPrompt { row: 0 });
    }
    check(ids, batch, n, vocab)?;
    Ok(n)
}
