//! Parts of a layer, for what runs no whole one: LazyLLM, KV prediction, scores of tokens.

use ttft_kernels::{Element, HeadsOut, Mat, MatMut, Positions, Query, RopeTable};

use super::Network;
use crate::{
    activations::{Activations, CHUNK, chunks},
    cache::LayerCache,
    config::Part,
    engine::Engine,
    error::Result,
};

impl Network {
    /// Layer `i` for rows that stand anywhere in their sequences ([`Activations::load`]), up to their keys and values:
    /// `store` takes the keys (RoPE applied) of all rows, then their values, `[rows, kv_heads * head_dim]` each.
    /// [`Network::attend_each`] does the rest.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn keys_and_values<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &mut Activations<A>,
        rope: &RopeTable,
        mut store: impl FnMut(Part, Mat<'_, A>),
    ) -> Result<()> {
        let (d, q_dim, kv_dim) = (self.config.head_dim, self.config.q_dim(i), self.config.kv_dim(i));
        self.project(e, &mut { e }, i, act, 0..q_dim + 2 * kv_dim)?;
        let rows = act.rows();
        for (part, at) in [(Part::Key, q_dim), (Part::Value, q_dim + kv_dim)] {
            let src = Mat::new(&act.y[..rows * act.y_cols], rows, act.y_cols).cols_at(at, kv_dim);
            let (norm, rope) = match part {
                Part::Key => (self.k_norm(i), Some((rope, Positions::Each(&act.positions[..rows])))),
                _ => (None, None),
            };
            // The buffer of attention's output is free until attention runs.
            let to = &mut act.o[..rows * kv_dim];
            e.heads(src, rows, d, norm, self.config.eps, rope, HeadsOut::Rows(MatMut::new(to, rows, kv_dim)))?;
            store(part, Mat::new(to, rows, kv_dim));
        }
        Ok(())
    }

    /// The rest of layer `i` after [`Network::keys_and_values`]: every row attends to what its query says.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn attend_each<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &mut Activations<A>,
        rope: &RopeTable,
        cache: &LayerCache<A>,
        queries: &[Query],
    ) -> Result<()> {
        self.queries(e, i, act, rope)?;
        let (q, out) = act.attention(self.config.q_dim(i), 0..act.rows());
        e.attention_each(q, &cache.k, &cache.v, queries, out)?;
        self.finish(e, &mut { e }, i, act)
    }

    /// Copies the residual stream of the first rows of each sequence, as many as fit into `to`; divided by its root mean
    /// square, if `unit`.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn keep_hidden<A: Element>(&self, e: &Engine, act: &Activations<A>, unit: bool, to: &mut [f32]) -> Result<()> {
        let dim = self.config.dim;
        for part in act.leading(to.len() / dim) {
            let x = &act.x[part.from * dim..][..part.rows * dim];
            let to = &mut to[part.to * dim..][..part.rows * dim];
            if unit {
                let x = Mat::new(x, part.rows, dim);
                e.rms_norm(x, &self.ones, self.config.eps, MatMut::new(to, part.rows, dim))?;
            } else {
                to.copy_from_slice(x);
            }
        }
        Ok(())
    }

    /// Appends to an empty cache the keys and values that layer `i` makes of a residual stream `x`, `[batch * n, D]`. What
    /// `act` holds besides its residual stream is overwritten. `keep` receives the keys before k_norm and RoPE.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    #[allow(clippy::too_many_arguments)]
    pub fn keys_and_values_of<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        (x, batch): (&[f32], usize),
        act: &mut Activations<A>,
        rope: &RopeTable,
        c: &mut LayerCache<A>,
        keep: Option<&mut Vec<f32>>,
    ) -> Result<()> {
        let (dim, q_dim, kv_dim) = (self.config.dim, self.config.q_dim(i), self.config.kv_dim(i));
        let (l, n, rows) = (&self.layers[i], 2 * kv_dim, x.len() / dim);
        for (r, m) in chunks(rows, CHUNK) {
            let h = self.normed(e, &l.attn_norm, &x[r * dim..][..m * dim], &mut act.h)?;
            l.qkv.apply(&mut { e }, h, q_dim..q_dim + n, &mut MatMut::new(&mut act.y[r * n..][..m * n], m, n))?;
        }
        let y = Mat::new(&act.y[..rows * n], rows, n);
        let (keys, values) = (y.cols_at(0, kv_dim), y.cols_at(kv_dim, kv_dim));
        if let Some(keep) = keep {
            keep.clear();
            (0..rows).for_each(|r| keep.extend(keys.row(r)));
        }
        self.put(e, (keys, values, batch), self.k_norm(i), rope, c)
    }

    /// Makes the keys and values of some positions from the first on, `[batch * n, kv_heads * head_dim]` each, the first entries
    /// of a cache; keys by this norm and RoPE.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub(crate) fn put<A: Element>(
        &self,
        e: &Engine,
        (keys, values, batch): (Mat<'_, f32>, Mat<'_, f32>, usize),
        k_norm: Option<&[f32]>,
        rope: &RopeTable,
        c: &mut LayerCache<A>,
    ) -> Result<()> {
        let (d, eps, rope) = (self.config.head_dim, self.config.eps, Some((rope, Positions::From(0))));
        e.heads(keys, batch, d, k_norm, eps, rope, HeadsOut::Cache(&mut c.k, 0))?;
        Ok(e.heads(values, batch, d, None, eps, None, HeadsOut::Cache(&mut c.v, 0))?)
    }

    /// How much the last row of each sequence attended to entries `0..len` of `cache` in layer `i`, the last to run, for
    /// every query head: `[batch, H, len]`. Of rows that were loaded one by one, the first of all count as the last of
    /// their sequences.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn last_weights<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &Activations<A>,
        cache: &LayerCache<A>,
        len: usize,
        out: &mut [f32],
    ) -> Result<()> {
        Ok(e.attention_weights(self.last_queries(i, act, cache), &cache.k, len, out)?)
    }

    /// As [`Network::last_weights`], the products of queries and keys alone.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn last_scores<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &Activations<A>,
        cache: &LayerCache<A>,
        len: usize,
        out: &mut [f32],
    ) -> Result<()> {
        Ok(e.attention_scores(self.last_queries(i, act, cache), &cache.k, len, out)?)
    }

    fn last_queries<'a, A: Element>(&self, i: usize, act: &'a Activations<A>, cache: &LayerCache<A>) -> Mat<'a, A> {
        let (rows, q_dim) = (act.rows(), self.config.q_dim(i));
        Mat::new(&act.q[..rows * q_dim], rows, q_dim).rows_step(act.n - 1, cache.k.batch(), act.n)
    }
}
