//! What dropping tokens needs: how much one query attends to each position, such scores of many heads as one, and caches of
//! chosen positions.

use super::rowwise;
use crate::{
    isa::kernel_name,
    levels::dispatch,
    operands::Join,
    shared::SharedMut,
    simd::{Kernel, Vector, larger, load, store},
    team::Team,
    view::{Element, HeadCache, Mat},
};

/// Queries that share the loads of a key.
const QUAD: usize = 4;

/// The queries of one KV head against its keys, and the softmax of that if it is asked for.
struct Scores<'a, A> {
    /// `[group][d]`.
    q: &'a [A],
    /// `[len][d]`.
    keys: &'a [A],
    /// `[group][len]`.
    out: &'a mut [f32],
    d: usize,
    scale: f32,
    softmax: bool,
}

impl<A: Element> Kernel for Scores<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let Scores { q, keys, out, d, scale, softmax } = self;
        let len = keys.len() / d;
        for (q, out) in q.chunks(QUAD * d).zip(out.chunks_mut(QUAD * len)) {
            for (t, key) in keys.chunks_exact(d).enumerate() {
                let mut acc = [v.splat_f32s(0.0); QUAD];
                for at in (0..d).step_by(V::LANES) {
                    let end = (at + V::LANES).min(d);
                    let x = load(v, &key[at..end]);
                    for (q, acc) in q.chunks_exact(d).zip(&mut acc) {
                        *acc = v.mul_add(x, load(v, &q[at..end]), *acc);
                    }
                }
                for (out, sum) in out.chunks_exact_mut(len).zip(v.sums(acc)) {
                    out[t] = sum * scale;
                }
            }
            if softmax {
                out.chunks_exact_mut(len).for_each(|out| rowwise::softmax_row(v, out));
            }
        }
    }
}

pub fn attention_weights<A: Element>(e: &Team, q: Mat<'_, A>, k: &HeadCache<A>, len: usize, out: &mut [f32]) {
    e.used.note(kernel_name!(e.isa(), A, "attention_weights"));
    scores(e, q, k, len, Some(1.0 / (k.head_dim() as f32).sqrt()), out);
}

pub fn attention_scores<A: Element>(e: &Team, q: Mat<'_, A>, k: &HeadCache<A>, len: usize, out: &mut [f32]) {
    e.used.note(kernel_name!(e.isa(), A, "attention_scores"));
    scores(e, q, k, len, None, out);
}

/// Products of queries and keys, as they are; or scaled and then their softmax.
fn scores<A: Element>(e: &Team, q: Mat<'_, A>, k: &HeadCache<A>, len: usize, scale: Option<f32>, out: &mut [f32]) {
    let (d, heads) = (k.head_dim(), k.heads());
    let group = q.cols() / d / heads;
    let (softmax, scale) = (scale.is_some(), scale.unwrap_or(1.0));
    let out = SharedMut::new(out);
    rowwise::each_range(e, q.rows() * heads, group * len * d, 1, |range| {
        for s in range {
            let (b, h) = (s / heads, s % heads);
            let q = &q.row(b)[h * group * d..][..group * d];
            let keys = &k.head(b, h).data()[..len * d];
            // SAFETY: (sequence, head) names one place; the ranges of `each_range` do not overlap, so it goes to one thread.
            let out = unsafe { out.slice(s * group * len, group * len) };
            dispatch(e.isa(), Scores { q, keys, out, d, scale, softmax });
        }
    });
}

/// Columns `at..at + out.len()` of rows of one sequence, pooled and joined.
struct Pooled<'a> {
    /// `[heads][len]`.
    x: &'a [f32],
    len: usize,
    at: usize,
    width: usize,
    join: Join,
    out: &'a mut [f32],
}

impl Kernel for Pooled<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let Pooled { x, len, at, width, join, out } = self;
        // A window reaches no further than the row does: there are only zeros beyond.
        let half = (width / 2).min(len);
        let (end, share) = (at + out.len(), 1.0 / width as f32);
        let joined = |old: f32, new: f32| match join {
            Join::Largest => old.max(new),
            Join::Sum => old + new,
        };
        for x in x.chunks_exact(len) {
            // Windows that begin before the row, each a step longer than the one before.
            let first = half.min(end);
            if at < first {
                let mut sum: f32 = x[..(at + half).min(len)].iter().sum();
                for (t, out) in (at..first).zip(out.iter_mut()) {
                    sum += x.get(t + half).copied().unwrap_or(0.0);
                    *out = joined(*out, sum * share);
                }
            }
            // The others a vector at a time; what is beyond the row loads as zeros.
            for t in (at.max(first)..end).step_by(V::LANES) {
                let mut sum = v.splat_f32s(0.0);
                for j in (t - half..=t + half).take_while(|j| *j < len) {
                    sum = v.add_f32s(sum, load(v, &x[j..len.min(j + V::LANES)]));
                }
                let (out, new) = (&mut out[t - at..end.min(t + V::LANES) - at], v.mul_f32s(sum, v.splat_f32s(share)));
                let old = load(v, out);
                let joined = match join {
                    Join::Largest => larger(v, old, new),
                    Join::Sum => v.add_f32s(old, new),
                };
                store(v, out, joined);
            }
        }
    }
}

/// Columns that one thread pools at a time.
const SPAN: usize = 256;

pub fn pooled(e: &Team, x: &[f32], len: usize, width: usize, join: Join, out: &mut [f32]) {
    e.used.note(kernel_name!(e.isa(), "pooled_f32_f32"));
    let (batch, spans) = (out.len() / len, len.div_ceil(SPAN));
    let all = x.len() / batch;
    let out = SharedMut::new(out);
    // A window costs a load for each of its places, most of them in the first-level cache.
    rowwise::each_range(e, batch * spans, all / len * len.min(SPAN), width.div_ceil(4), |range| {
        for s in range {
            let (b, at) = (s / spans, s % spans * SPAN);
            // SAFETY: (sequence, span) names one place, which goes to one thread.
            let out = unsafe { out.slice(b * len + at, SPAN.min(len - at)) };
            dispatch(e.isa(), Pooled { x: &x[b * all..][..all], len, at, width, join, out });
        }
    });
}

/// `slots` has `n` of each sequence.
pub fn gather<A: Element>(e: &Team, from: &HeadCache<A>, slots: &[u32], n: usize, to: &mut HeadCache<A>) {
    let (heads, d, capacity) = (from.heads(), from.head_dim(), to.capacity());
    let sequences = from.batch() * heads;
    let to = SharedMut::new(to.data_mut());
    rowwise::each_range(e, sequences, n * d, 1, |range| {
        for s in range {
            let (b, h) = (s / heads, s % heads);
            let head = from.head(b, h);
            // SAFETY: the ranges of `each_range` do not overlap, so each head goes to one thread; `Engine::gather` checked that
            // `n <= capacity`, so heads do not overlap.
            let to = unsafe { to.slice(s * capacity * d, n * d) };
            for (to, &slot) in to.chunks_exact_mut(d).zip(&slots[b * n..][..n]) {
                to.copy_from_slice(head.row(slot as usize));
            }
        }
    });
}
