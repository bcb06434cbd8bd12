//! Many small projections to heads, as of KV prediction: each is too short a product to share, so threads take whole ones.

use std::{cmp::Reverse, ops::Range};

use super::{
    SharedMut,
    rowwise::{Heads, Place},
};
use crate::{
    engine::{Engine, HeadProjection, Output, Positions},
    simd::{dispatch, kernel_name},
    tuning,
    view::{Element, MatMut},
};

/// What one thread computes at a time: its product stays in the second-level cache until the heads are written.
struct Task {
    job: usize,
    rows: Range<usize>,
    heads: Range<usize>,
    work: usize,
}

pub fn project_heads<A: Element>(e: &Engine, batch: usize, eps: f32, jobs: &mut [HeadProjection<'_, A>]) {
    e.used.note(kernel_name!(e.isa(), A, "heads_f32"));
    let outputs: Vec<_> = jobs
        .iter_mut()
        .map(|j| {
            let keep = j.keep.as_deref_mut().map(SharedMut::new);
            (SharedMut::new(j.cache.data_mut()), keep)
        })
        .collect();
    let jobs = &*jobs;
    let tasks = tasks(e, jobs);
    let alone = e.alone();

    e.pool.for_each(tasks.len(), |t, thread| {
        let Task { job, rows, heads, .. } = &tasks[t];
        let (j, (out, keep)) = (&jobs[*job], &outputs[*job]);
        let d = j.cache.head_dim();
        let (first, cols) = (heads.start * d, heads.len() * d);
        let mut scratch = e.scratch.thread(thread);
        let y: &mut [f32] = bytemuck::cast_slice_mut(scratch.get(rows.len() * cols * 4));
        let y = &mut y[..rows.len() * cols];
        let x = j.x.rows_at(rows.start, rows.len());
        let bias = &j.bias[first..first + cols];
        let to = Output::Bias(MatMut::new(y, rows.len(), cols), bias);
        super::gemm::linear(&alone[thread], x, j.w.rows_at(first, cols), to);
        if let Some(keep) = keep {
            for (r, y) in rows.clone().zip(y.chunks_exact(cols)) {
                // SAFETY: tasks of a job own disjoint rows and heads.
                unsafe { keep.slice(r * j.w.n() + first, cols) }.copy_from_slice(y);
            }
        }
        let src = MatMut::new(y, rows.len(), cols);
        let kernel = Heads {
            src: src.as_ref(),
            first: rows.start,
            n: j.x.rows() / batch,
            d,
            weight: j.norm,
            eps,
            rope: j.rope.map(|table| (table, Positions::From(0))),
            out,
            place: Place::in_cache(j.cache, 0, heads.start),
        };
        dispatch(e.isa(), kernel);
    });
    for a in alone {
        a.used.take().into_iter().for_each(|name| e.used.note(name));
    }
}

/// The longest first, so that threads end together.
fn tasks<A: Element>(e: &Engine, jobs: &[HeadProjection<'_, A>]) -> Vec<Task> {
    let chunks = |j: &HeadProjection<'_, A>| j.x.rows().div_ceil(tuning::PROJECTION_ROWS);
    let whole: usize = jobs.iter().map(chunks).sum();
    let parts = if e.threads() == 1 { 1 } else { (4 * e.threads()).div_ceil(whole.max(1)) };
    let mut tasks = Vec::with_capacity(whole * parts.max(1));
    for (job, j) in jobs.iter().enumerate() {
        let (m, heads) = (j.x.rows(), j.cache.heads());
        let (rows, some) = (m.div_ceil(chunks(j).max(1)), heads.div_ceil(parts.clamp(1, heads.max(1))));
        for r in (0..m).step_by(rows.max(1)) {
            for h in (0..heads).step_by(some.max(1)) {
                let (rows, heads) = (r..m.min(r + rows), h..heads.min(h + some));
                let work = rows.len() * heads.len() * j.x.cols();
                tasks.push(Task { job, rows, heads, work });
            }
        }
    }
    tasks.sort_unstable_by_key(|t| Reverse(t.work));
    tasks
}
