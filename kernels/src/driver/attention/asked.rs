//! What an operation of attention was asked for.

use crate::{
    operands::{AttnShape, Query},
    shared::SharedMut,
    view::{Element, HeadCache, Mat, MatMut},
};

/// The operands of a call and what follows from their shapes.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a, A> {
    pub q: Mat<'a, A>,
    pub k: &'a HeadCache<A>,
    pub v: &'a HeadCache<A>,
    pub shape: AttnShape,
    /// Where queries are one to a "sequence" of the shape: whose cache each reads, and how much of it.
    pub each: Option<&'a [Query]>,
    pub out: SharedMut<'a, A>,
    pub out_stride: usize,
    /// Query heads of a KV head.
    pub group: usize,
    pub d: usize,
    /// Scores are multiplied by it: log2(e) / sqrt(d), for exponentials of base 2.
    pub scale: f32,
}

impl<'a, A: Element> Asked<'a, A> {
    pub fn new(
        q: Mat<'a, A>,
        k: &'a HeadCache<A>,
        v: &'a HeadCache<A>,
        shape: AttnShape,
        out: &'a mut MatMut<'_, A>,
    ) -> Self {
        let d = k.head_dim();
        Asked {
            q,
            k,
            v,
            shape,
            each: None,
            out_stride: out.stride(),
            out: SharedMut::new(out.data_mut()),
            group: q.cols() / d / k.heads(),
            d,
            scale: std::f32::consts::LOG2_E / (d as f32).sqrt(),
        }
    }

    /// Rows of one KV head of one sequence.
    pub fn rows(&self) -> usize {
        self.shape.n * self.group
    }

    /// Keys that row `r` of sequence `b` sees.
    pub fn limit(&self, b: usize, r: usize) -> usize {
        self.each.map_or(self.shape.past + r / self.group + 1, |each| each[b].sees)
    }

    /// The sequence of the caches that sequence `b` reads.
    pub fn cached(&self, b: usize) -> usize {
        self.each.map_or(b, |each| each[b].sequence)
    }

    /// Rows `r..r + heads`, all of one query, of KV head `h` of sequence `b`, in q.
    pub fn queries(&self, b: usize, h: usize, r: usize, heads: usize) -> &[A] {
        let row = self.q.row(b * self.shape.n + r / self.group);
        &row[(h * self.group + r % self.group) * self.d..][..heads * self.d]
    }

    /// The same rows of the output.
    ///
    /// # Safety
    /// No other slice of them is alive.
    pub unsafe fn outputs(&self, b: usize, h: usize, r: usize, heads: usize) -> &'a mut [A] {
        let at = (b * self.shape.n + r / self.group) * self.out_stride + (h * self.group + r % self.group) * self.d;
        // SAFETY: (sequence, head, row) names one place of the output; the rest is the caller's promise.
        unsafe { self.out.slice(at, heads * self.d) }
    }
}
