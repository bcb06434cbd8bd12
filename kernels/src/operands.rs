//! What operations take and where they put it, beyond plain matrices.

use crate::{
    rope::RopeTable,
    view::{Element, HeadCache, Mat, MatMut, Weight},
};

/// Where [`crate::Engine::linear`] puts `x W^T` (`[M, N]`).
#[derive(Debug)]
pub enum Output<'a, A> {
    /// `y = x W^T`.
    Store(MatMut<'a, f32>),
    /// `y = x W^T + bias`, bias `[N]`.
    Bias(MatMut<'a, f32>, &'a [f32]),
    /// `y += x W^T`.
    Add(MatMut<'a, f32>),
    /// `y = silu(x W^T) * (x V^T)`: a second matrix V of W's shape and row stride.
    SwiGlu(MatMut<'a, A>, Weight<'a>),
}

/// A product `x[M,K] W[N,K]^T` and where it goes, as [`crate::Engine::linear`] takes it.
#[derive(Debug)]
pub struct Product<'a, A> {
    /// `[M, K]`.
    pub x: Mat<'a, A>,
    /// `[N, K]`.
    pub w: Weight<'a>,
    /// `[M, N]`.
    pub out: Output<'a, A>,
}

impl<'a, A: Element> Product<'a, A> {
    /// The same, for shorter.
    pub fn reborrow(&mut self) -> Product<'_, A> {
        let out = match &mut self.out {
            Output::Store(y) => Output::Store(y.reborrow()),
            Output::Bias(y, b) => Output::Bias(y.reborrow(), b),
            Output::Add(y) => Output::Add(y.reborrow()),
            Output::SwiGlu(y, v) => Output::SwiGlu(y.reborrow(), *v),
        };
        Product { x: self.x, w: self.w, out }
    }

    /// Columns `start..start + cols` of the output, out of as many rows of W.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn cols_at(self, start: usize, cols: usize) -> Product<'a, A> {
        let out = match self.out {
            Output::Store(y) => Output::Store(y.cols_at(start, cols)),
            Output::Bias(y, b) => Output::Bias(y.cols_at(start, cols), &b[start..start + cols]),
            Output::Add(y) => Output::Add(y.cols_at(start, cols)),
            Output::SwiGlu(y, v) => Output::SwiGlu(y.cols_at(start, cols), v.rows_at(start, cols)),
        };
        Product { x: self.x, w: self.w.rows_at(start, cols), out }
    }

    /// Bytes of W that make one column, of both matrices if there are two.
    pub fn row_bytes(&self) -> usize {
        self.matrices() * self.w.format().bytes(self.w.k())
    }

    /// Operations, two for each multiplication.
    pub fn flops(&self) -> u64 {
        [self.matrices(), self.x.rows(), self.w.n(), self.w.k()]
            .into_iter()
            .fold(2, |flops, n| flops.saturating_mul(n as u64))
    }

    fn matrices(&self) -> usize {
        if let Output::SwiGlu(..) = self.out { 2 } else { 1 }
    }
}

/// Per-head RMSNorm (weight `[head_dim]`, eps) of [`crate::Engine::heads`].
pub type HeadNorm<'a> = Option<&'a [f32]>;

/// Where the rows of [`crate::Engine::heads`] stand in their sequences.
#[derive(Clone, Copy, Debug)]
pub enum Positions<'a> {
    /// At `start..start + n` in every sequence.
    From(usize),
    /// Each at its own, `[B*n]`.
    Each(&'a [u32]),
}

impl Positions<'_> {
    /// The position of row `r`, which is the i-th of its sequence.
    #[inline(always)]
    pub(crate) fn of(self, r: usize, i: usize) -> usize {
        match self {
            Positions::From(start) => start + i,
            Positions::Each(each) => each[r] as usize,
        }
    }
}

/// Where [`crate::Engine::heads`] puts the heads.
#[derive(Debug)]
pub enum HeadsOut<'a, A> {
    /// `[B*n, heads*d]`, as the source.
    Rows(MatMut<'a, A>),
    /// Positions `start..start + n` of every head of a cache.
    Cache(&'a mut HeadCache<A>, usize),
}

/// One of the products of [`crate::Engine::project_heads`], of x in one type into a cache of another, or of the same.
#[derive(Debug)]
pub struct HeadProjection<'a, A, X = A> {
    /// `[B*n, K]`.
    pub x: Mat<'a, X>,
    /// `[heads*d, K]`.
    pub w: Weight<'a>,
    /// `[heads*d]`.
    pub bias: &'a [f32],
    /// RMSNorm over each head, weight `[d]`.
    pub norm: HeadNorm<'a>,
    /// RoPE.
    pub rope: Option<&'a RopeTable>,
    /// Receives the heads at positions `0..n`.
    pub cache: &'a mut HeadCache<A>,
    /// Receives `x W^T + bias`, `[B*n, heads*d]`, if it is asked for.
    pub keep: Option<&'a mut [f32]>,
}

/// Which positions [`crate::Engine::attention`] computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttnShape {
    /// Sequences.
    pub batch: usize,
    /// Queries of each sequence: the last `n` positions.
    pub n: usize,
    /// Positions in the cache before the first query; the cache holds `past + n`.
    pub past: usize,
}

/// A query of [`crate::Engine::attention_each`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Whose cache it reads.
    pub sequence: usize,
    /// Positions that it sees, from 0 on; 1 or more.
    pub sees: usize,
}

/// How [`crate::Engine::pooled`] makes one row of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// The largest of each column.
    Largest,
    /// The sum of each column.
    Sum,
}
