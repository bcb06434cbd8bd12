//! Fused causal attention with an online softmax: scores of one block of keys at a time, never the `n x T` matrix.
//!
//! A *row* is one query of one head; the `g` query heads that share a KV head are neighbours, query by query, so one block
//! of keys and values, packed once, serves them all, and a panel of rows reaches barely past its diagonal.
//!
//! Many rows ([`blocks`]) run on the GEMM micro-kernels, in their transposed order: `S^T = K Q^T`, then `O^T += V^T P^T`.
//! Rows are then lanes: maximum, sum and rescaling are vertical, and `P^T` is the next product's panel as it stands (or
//! after rounding, for BF16). Few rows ([`stream`]) read the cache once, in place, at the speed of memory.

mod asked;
mod blocks;
mod stream;

use asked::Asked;

use crate::{
    operands::{AttnShape, Query},
    team::Team,
    tuning,
    view::{Element, HeadCache, Mat, MatMut},
};

pub fn attention<A: Element>(
    e: &Team,
    q: Mat<'_, A>,
    k: &HeadCache<A>,
    v: &HeadCache<A>,
    shape: AttnShape,
    mut out: MatMut<'_, A>,
) {
    let call = Asked::new(q, k, v, shape, &mut out);
    match blocks::choose(e, &call) {
        Some(kernel) if call.rows() > tuning::ATTENTION_STREAM_ROWS => blocks::blocks(e, kernel, &call),
        _ => stream::streams(e, &call),
    }
}

pub fn attention_each<A: Element>(
    e: &Team,
    q: Mat<'_, A>,
    k: &HeadCache<A>,
    v: &HeadCache<A>,
    queries: &[Query],
    mut out: MatMut<'_, A>,
) {
    let most = queries.iter().map(|q| q.sees).max().unwrap_or(1);
    let shape = AttnShape { batch: queries.len(), n: 1, past: most - 1 };
    stream::streams(e, &Asked { each: Some(queries), ..Asked::new(q, k, v, shape, &mut out) });
}
