//! Many small projections to heads, as of KV prediction: each is too short a product to share, so threads take whole ones.

use std::{cmp::Reverse, ops::Range};

use super::{
    linear,
    rowwise::{Heads, Place},
};
use crate::{
    isa::kernel_name,
    levels::dispatch,
    operands::{HeadNorm, HeadProjection, Output, Positions, Product},
    rope::RopeTable,
    shared::SharedMut,
    team::Team,
    tuning,
    view::{Element, Mat, MatMut, Weight},
};

/// What one thread computes at a time: its product stays in the second-level cache until the heads are written.
struct Task {
    job: usize,
    rows: Range<usize>,
    heads: Range<usize>,
    work: usize,
}

/// A product, with its outputs as threads share them.
struct Job<'a, A, X> {
    x: Mat<'a, X>,
    w: Weight<'a>,
    bias: &'a [f32],
    norm: HeadNorm<'a>,
    rope: Option<&'a RopeTable>,
    heads: usize,
    d: usize,
    place: Place,
    cache: SharedMut<'a, A>,
    keep: Option<SharedMut<'a, f32>>,
}

pub fn project_heads<A: Element, X: Element>(
    e: &Team,
    batch: usize,
    eps: f32,
    products: &mut [HeadProjection<'_, A, X>],
) {
    e.used.note(kernel_name!(e.isa(), A, "heads_f32"));
    let jobs: Vec<_> = products
        .iter_mut()
        .map(|p| Job {
            x: p.x,
            w: p.w,
            bias: p.bias,
            norm: p.norm,
            rope: p.rope,
            heads: p.cache.heads(),
            d: p.cache.head_dim(),
            place: Place::in_cache(p.cache, 0),
            cache: SharedMut::new(p.cache.data_mut()),
            keep: p.keep.as_deref_mut().map(SharedMut::new),
        })
        .collect();
    let tasks = tasks(e, &jobs);
    let singles = e.singles();

    let team = e.take("maps");
    team.for_each(tasks.len(), |t, thread| {
        let Task { job, rows, heads, .. } = &tasks[t];
        let j = &jobs[*job];
        let (first, cols) = (heads.start * j.d, heads.len() * j.d);
        let mut scratch = team.thread(thread);
        let y: &mut [f32] = bytemuck::cast_slice_mut(scratch.get(rows.len() * cols * 4));
        let y = &mut y[..rows.len() * cols];
        let x = j.x.rows_at(rows.start, rows.len());
        let bias = &j.bias[first..first + cols];
        let to = Output::Bias(MatMut::new(y, rows.len(), cols), bias);
        linear::linear(&singles[thread], Product { x, w: j.w.rows_at(first, cols), out: to });
        if let Some(keep) = j.keep {
            for (r, y) in rows.clone().zip(y.chunks_exact(cols)) {
                // SAFETY: `tasks` cuts a job into disjoint rows and heads, and each task is given out once.
                unsafe { keep.slice(r * j.w.n() + first, cols) }.copy_from_slice(y);
            }
        }
        let kernel = Heads {
            src: Mat::new(y, rows.len(), cols),
            first: rows.start,
            n: j.x.rows() / batch,
            d: j.d,
            weight: j.norm,
            eps,
            rope: j.rope.map(|table| (table, Positions::From(0))),
            out: j.cache,
            place: j.place.at_head(heads.start),
        };
        dispatch(e.isa(), kernel);
    });
    for s in singles {
        s.used.take().into_iter().for_each(|name| e.used.note(name));
    }
}

/// The longest first, so that threads end together.
fn tasks<A: Element, X: Element>(e: &Team, jobs: &[Job<'_, A, X>]) -> Vec<Task> {
    let chunks = |j: &Job<'_, A, X>| j.x.rows().div_ceil(tuning::PROJECTION_ROWS);
    let whole: usize = jobs.iter().map(chunks).sum();
    let parts = if e.threads() == 1 { 1 } else { (4 * e.threads()).div_ceil(whole.max(1)) };
    let mut tasks = Vec::with_capacity(whole * parts.max(1));
    for (job, j) in jobs.iter().enumerate() {
        let (m, heads) = (j.x.rows(), j.heads);
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
