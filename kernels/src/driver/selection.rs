//! What dropping tokens needs: how much one query attends to each position, and caches of chosen positions.

use super::rowwise;
use crate::{
    isa::kernel_name,
    levels::dispatch,
    shared::SharedMut,
    simd::{Kernel, Vector, load},
    team::Team,
    view::{Element, HeadCache, Mat},
};

/// Queries that share the loads of a key.
const QUAD: usize = 4;

/// The queries of one KV head against its keys.
struct Weights<'a, A> {
    /// `[group][d]`.
    q: &'a [A],
    /// `[len][d]`.
    keys: &'a [A],
    /// `[group][len]`.
    out: &'a mut [f32],
    d: usize,
    scale: f32,
}

impl<A: Element> Kernel for Weights<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let Weights { q, keys, out, d, scale } = self;
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
            for out in out.chunks_exact_mut(len) {
                rowwise::softmax_row(v, out);
            }
        }
    }
}

pub fn attention_weights<A: Element>(e: &Team, q: Mat<'_, A>, k: &HeadCache<A>, len: usize, out: &mut [f32]) {
    e.used.note(kernel_name!(e.isa(), A, "attention_weights"));
    let (d, heads) = (k.head_dim(), k.heads());
    let group = q.cols() / d / heads;
    let scale = 1.0 / (d as f32).sqrt();
    let out = SharedMut::new(out);
    rowwise::each_range(e, q.rows() * heads, group * len * d, 1, |range| {
        for s in range {
            let (b, h) = (s / heads, s % heads);
            let q = &q.row(b)[h * group * d..][..group * d];
            let keys = &k.head(b, h).data()[..len * d];
            // SAFETY: (sequence, head) names one place; the ranges of `each_range` do not overlap, so it goes to one thread.
            let out = unsafe { out.slice(s * group * len, group * len) };
            dispatch(e.isa(), Weights { q, keys, out, d, scale });
        }
    });
}

pub fn gather<A: Element>(e: &Team, from: &HeadCache<A>, slots: &[u32], to: &mut HeadCache<A>) {
    let (heads, d, capacity) = (from.heads(), from.head_dim(), to.capacity());
    let n = slots.len() / from.batch();
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
