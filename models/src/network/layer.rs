//! The forward pass of a layer.

use std::ops::Range;

use ttft_kernels::{Element, HeadsOut, Mat, MatMut, Positions, RopeTable};

use super::{
    Network,
    products::{Multiply, Piece},
};
use crate::{
    activations::{Activations, CHUNK, Run, chunks},
    cache::{LayerCache, RawKv},
    engine::Engine,
    error::Result,
};

/// What becomes of a layer's keys and values.
#[derive(Debug)]
pub struct Kv<'a, A> {
    /// What its attention reads.
    pub cache: Cache<'a, A>,
    /// Receives a copy as they were before k_norm and RoPE.
    pub source: Option<&'a mut RawKv<A>>,
}

/// What a layer's attention reads.
#[derive(Debug)]
pub enum Cache<'a, A> {
    /// Nothing: the layer ends before.
    None,
    /// The cache, to which the layer's own are appended.
    Own(&'a mut LayerCache<A>),
    /// The cache, which already holds all positions, these included; the layer's own are not computed.
    Given(&'a LayerCache<A>),
}

/// What a layer puts out; keys and values are made for all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Out {
    /// The residual stream of so many last rows of each sequence; 0 where the layer ends after its keys and values.
    Rows(usize),
    /// The residual stream of so many first and so many last rows of each sequence.
    Ends(usize, usize),
    /// The last row's query.
    Query,
}

impl Out {
    /// First and last rows of each sequence whose queries are made.
    pub fn ends(self) -> (usize, usize) {
        match self {
            Out::Rows(last) => (0, last),
            Out::Ends(first, last) => (first, last),
            Out::Query => (0, 1),
        }
    }
}

impl Network {
    /// Layer `i`: `x += attention(norm(x))`, then `x += ffn(norm(x))`, as far as `out` and `kv` ask for it.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`]: `act`, `rope` or the cache are too small for this layer.
    pub fn layer<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &mut Activations<A>,
        rope: &RopeTable,
        kv: Kv<'_, A>,
        out: Out,
    ) -> Result<()> {
        self.layer_by(e, &mut { e }, i, act, rope, kv, out)
    }

    /// As [`Network::layer`], its products computed `by` another.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn layer_by<A: Element>(
        &self,
        e: &Engine,
        by: &mut impl Multiply<A>,
        i: usize,
        act: &mut Activations<A>,
        rope: &RopeTable,
        kv: Kv<'_, A>,
        out: Out,
    ) -> Result<()> {
        let (q_dim, kv_dim) = (self.config.q_dim(i), self.config.kv_dim(i));
        let (first, last) = out.ends();
        // Queries, keys and values come out of one product where all rows need all three.
        let whole = matches!(kv.cache, Cache::Own(_)) && (first, last) == (act.first, act.n);
        let keys_at = if whole { q_dim } else { 0 };
        if !matches!(kv.cache, Cache::Given(_)) {
            self.project(e, by, i, act, q_dim - keys_at..q_dim + 2 * kv_dim)?;
            if let Some(source) = kv.source {
                act.keep(e, keys_at, kv_dim, source)?;
            }
        }
        let cache = match kv.cache {
            Cache::None => return Ok(()),
            Cache::Given(cache) => cache,
            Cache::Own(cache) => {
                self.append(e, i, act, keys_at, rope, cache)?;
                cache
            }
        };
        if last == 0 {
            return Ok(());
        }
        act.keep_ends(first, last);
        if !whole {
            self.project(e, by, i, act, 0..q_dim)?;
        }
        self.queries(e, i, act, rope)?;
        if out == Out::Query {
            return Ok(());
        }
        self.attend(e, i, act, cache)?;
        self.finish(e, by, i, act)
    }

    /// Does what layer `i` needs between the product before its `p`-th one and this one, of at most [`CHUNK`] rows.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`]: `act`, `rope` or the cache are too small for this layer.
    pub(crate) fn before<A: Element>(
        &self,
        e: &Engine,
        (i, p): (usize, usize),
        act: &mut Activations<A>,
        rope: &RopeTable,
        cache: &mut LayerCache<A>,
    ) -> Result<()> {
        let (l, q_dim) = (&self.layers[i], self.config.q_dim(i));
        let all = act.rows() * act.dim;
        match self.part(i, p) {
            Piece::Project(0) => {
                self.normed(e, &l.attn_norm, &act.x[..all], &mut act.h)?;
                act.y_cols = q_dim + 2 * self.config.kv_dim(i);
            }
            Piece::Out => {
                self.append(e, i, act, q_dim, rope, cache)?;
                self.queries(e, i, act, rope)?;
                self.attend(e, i, act, cache)?;
                add(&mut act.x[..all], l.out_bias.as_ref());
            }
            Piece::Up(0) => {
                self.normed(e, &l.ffn_norm, &act.x[..all], &mut act.h)?;
            }
            Piece::Down => self.gate(e, i, act, (0, act.rows()))?,
            Piece::Project(_) | Piece::Up(_) => {}
        }
        Ok(())
    }

    /// Columns `cols` of layer `i`'s queries, keys and values, out of the normalised residual stream.
    pub(super) fn project<A: Element>(
        &self,
        e: &Engine,
        by: &mut impl Multiply<A>,
        i: usize,
        act: &mut Activations<A>,
        cols: Range<usize>,
    ) -> Result<()> {
        let (l, dim, n) = (&self.layers[i], act.dim, cols.len());
        for (r, m) in chunks(act.rows(), CHUNK) {
            let h = self.normed(e, &l.attn_norm, &act.x[r * dim..][..m * dim], &mut act.h)?;
            l.qkv.apply(by, h, cols.clone(), &mut MatMut::new(&mut act.y[r * n..][..m * n], m, n))?;
        }
        act.y_cols = n;
        Ok(())
    }

    /// Appends the keys and values of the last projection, which begin at column `at`.
    fn append<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &Activations<A>,
        at: usize,
        rope: &RopeTable,
        c: &mut LayerCache<A>,
    ) -> Result<()> {
        let (b, d, kv_dim, eps) = (act.batch, self.config.head_dim, self.config.kv_dim(i), self.config.eps);
        for Run { rows, shape } in act.runs().into_iter().flatten() {
            let y = |at| act.y_at(at, kv_dim).rows_at(rows.start, rows.len());
            let rope = Some((rope, Positions::Each(&act.positions[rows.clone()])));
            e.heads(y(at), b, d, self.k_norm(i), eps, rope, HeadsOut::Cache(&mut c.k, shape.past))?;
            e.heads(y(at + kv_dim), b, d, None, eps, None, HeadsOut::Cache(&mut c.v, shape.past))?;
        }
        Ok(())
    }

    /// The heads of the queries, out of the last projection.
    pub(super) fn queries<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &mut Activations<A>,
        rope: &RopeTable,
    ) -> Result<()> {
        let (rows, q_dim, c) = (act.rows(), self.config.q_dim(i), &self.config);
        let q = Mat::new(&act.y[..rows * act.y_cols], rows, act.y_cols).cols_at(0, q_dim);
        let to = HeadsOut::Rows(MatMut::new(&mut act.q[..rows * q_dim], rows, q_dim));
        let rope = Some((rope, Positions::Each(&act.positions[..rows])));
        Ok(e.heads(q, act.batch, c.head_dim, self.layers[i].q_norm.as_deref(), c.eps, rope, to)?)
    }

    /// Attention of all rows to `cache`.
    fn attend<A: Element>(&self, e: &Engine, i: usize, act: &mut Activations<A>, cache: &LayerCache<A>) -> Result<()> {
        for Run { rows, shape } in act.runs().into_iter().flatten() {
            let (q, out) = act.attention(self.config.q_dim(i), rows);
            e.attention(q, &cache.k, &cache.v, shape, out)?;
        }
        Ok(())
    }

    /// A layer after its attention: output projection and feed-forward network.
    pub(super) fn finish<A: Element>(
        &self,
        e: &Engine,
        by: &mut impl Multiply<A>,
        i: usize,
        act: &mut Activations<A>,
    ) -> Result<()> {
        let (l, rows, dim) = (&self.layers[i], act.rows(), act.dim);
        add(&mut act.x[..rows * dim], l.out_bias.as_ref());
        by.linear(self.product_of(i, Piece::Out, act, (0, rows)))?;
        for chunk in chunks(rows, CHUNK) {
            self.normed(e, &l.ffn_norm, &act.x[chunk.0 * dim..][..chunk.1 * dim], &mut act.h)?;
            for j in 0..self.ups(i) {
                by.linear(self.product_of(i, Piece::Up(j), act, chunk))?;
            }
            self.gate(e, i, act, chunk)?;
            by.linear(self.product_of(i, Piece::Down, act, chunk))?;
        }
        Ok(())
    }

    /// What comes between up and down projection, of rows `r..r + m`: the activation, where the product has not applied it, and
    /// the bias of the down projection, which adds its product to the residual stream.
    fn gate<A: Element>(&self, e: &Engine, i: usize, act: &mut Activations<A>, (r, m): (usize, usize)) -> Result<()> {
        let (l, dim, f) = (&self.layers[i], act.dim, self.layers[i].shape.ffn);
        if l.gate_up.halves().is_none() {
            e.silu_mul(Mat::new(&act.u[..m * 2 * f], m, 2 * f), MatMut::new(&mut act.g[..m * f], m, f))?;
        }
        add(&mut act.x[r * dim..][..m * dim], l.down_bias.as_ref());
        Ok(())
    }
}

/// Adds a bias to every row of `x`.
fn add(x: &mut [f32], bias: Option<&Vec<f32>>) {
    if let Some(bias) = bias {
        x.chunks_exact_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
    }
}
