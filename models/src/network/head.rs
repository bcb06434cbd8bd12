//! The output head: the final norm, and logits of the last rows or of all.

use std::sync::Arc;

use ttft_kernels::{Element, Mat, MatMut, Output};

use super::{Cache, Kv, Network, Out};
use crate::{
    activations::{Activations, CHUNK, Rows, chunks},
    cache::LayerCache,
    config::NetworkConfig,
    engine::Engine,
    error::{Error, Result},
    prompts,
    sizes::zeroed,
};

/// Rows of logits held at once where every position needs them.
const HEAD_CHUNK: usize = 256;

/// Elements that [`Network::head_all`] needs for `rows` rows.
pub fn head_buffer(c: &NetworkConfig, rows: usize) -> usize {
    rows.min(HEAD_CHUNK) * c.vocab
}

impl Network {
    /// Logits `[batch, V]` of the last position of each sequence.
    ///
    /// # Errors
    /// [`Error::Spec`]: `logits` has another length.
    pub fn head<A: Element>(&self, e: &Engine, act: &mut Activations<A>, logits: &mut [f32]) -> Result<()> {
        act.keep_last(1);
        self.head_rows(e, act, logits)
    }

    /// Logits `[rows, V]` of every row.
    ///
    /// # Errors
    /// As [`Network::head`].
    pub fn head_rows<A: Element>(&self, e: &Engine, act: &mut Activations<A>, logits: &mut [f32]) -> Result<()> {
        let v = self.config.vocab;
        if logits.len() != act.rows() * v {
            return Err(Error::Spec {
                what: "length of the logits",
                expected: format!("{} x {v}", act.rows()),
                found: logits.len() as u64,
            });
        }
        for (r, m) in chunks(act.rows(), CHUNK) {
            self.logits_of(e, act, r, &mut logits[r * v..][..m * v])?;
        }
        Ok(())
    }

    /// Logits of every position, a bounded number of rows at a time: `sink(first row, [rows, V])`. `buffer` holds
    /// [`head_buffer`] elements or more.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn head_all<A: Element>(
        &self,
        e: &Engine,
        act: &mut Activations<A>,
        buffer: &mut [f32],
        mut sink: impl FnMut(usize, Mat<'_, f32>),
    ) -> Result<()> {
        let v = self.config.vocab;
        for (r, m) in chunks(act.rows(), HEAD_CHUNK) {
            let out = &mut buffer[..m * v];
            self.logits_of(e, act, r, out)?;
            sink(r, Mat::new(out, m, v));
        }
        Ok(())
    }

    /// Final norm and output head of the rows from `row` on, of which `out` holds at most [`CHUNK`].
    fn logits_of<A: Element>(&self, e: &Engine, act: &mut Activations<A>, row: usize, out: &mut [f32]) -> Result<()> {
        let (dim, v) = (act.dim, self.config.vocab);
        let m = out.len() / v;
        let h = self.normed(e, &self.norm, &act.x[row * dim..][..m * dim], &mut act.h)?;
        let w = self.head.as_ref().unwrap_or(&self.embedding).view();
        Ok(e.linear(h, w, Output::Store(MatMut::new(out, m, v)))?)
    }

    /// Logits `[batch, n, V]` of all positions of fresh sequences: for evaluation, not for timing.
    ///
    /// # Errors
    /// Those of [`crate::prompts::check`], [`Error::Memory`], [`Error::Kernel`].
    pub fn logits<A: Element>(self: &Arc<Self>, e: &Engine, ids: &[u32], batch: usize) -> Result<Vec<f32>> {
        let n = prompts::check_batch(ids, batch, self.config.vocab)?;
        let rope = self.rope(n);
        let mut act = Activations::<A>::new(&self.config, batch * n)?;
        self.embed(e, ids, batch, Rows::all(n), &mut act)?;
        for (i, l) in self.config.layers.iter().enumerate() {
            let mut cache = LayerCache::new(batch, l.kv_heads, n, self.config.head_dim);
            let kv = Kv { cache: Cache::Own(&mut cache), source: None };
            self.layer(e, i, &mut act, &rope, kv, Out::Rows(n))?;
        }
        self.all_logits(e, &mut act)
    }

    /// Logits of every row of `act`.
    pub(crate) fn all_logits<A: Element>(&self, e: &Engine, act: &mut Activations<A>) -> Result<Vec<f32>> {
        let v = self.config.vocab;
        let mut out: Vec<f32> = zeroed((act.rows() * v) as u64)?;
        let mut buffer: Vec<f32> = zeroed(head_buffer(&self.config, act.rows()) as u64)?;
        self.head_all(e, act, &mut buffer, |row, m| {
            for r in 0..m.rows() {
                out[(row + r) * v..][..v].copy_from_slice(m.row(r));
            }
        })?;
        Ok(out)
    }
}
