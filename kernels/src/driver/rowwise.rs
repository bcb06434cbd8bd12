//! Row-wise operations.

use crate::{
    isa::kernel_name,
    levels::dispatch,
    operands::{HeadNorm, HeadsOut, Positions},
    rope::RopeTable,
    shared::SharedMut,
    simd::{self, Kernel, Vector, load, store},
    team::Team,
    view::{Element, HeadCache, Mat, MatMut, Weight},
};

/// Elements below which a fork-join (a microsecond or two) costs more than it saves: 32 Ki elements take some 10 us.
const WORTH_SHARING: usize = 32 * 1024;

/// Chunks for each thread: enough to even out cores of different speed.
const CHUNKS: usize = 4;

/// Calls `f` with ranges that cover `0..rows`, on the pool if `rows * cols * cost` is worth it. `cost` weighs an element
/// against a plain load and store.
pub(super) fn each_range(e: &Team, rows: usize, cols: usize, cost: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
    if rows == 0 {
        return;
    }
    if rows == 1 || e.threads() == 1 || rows * cols * cost < WORTH_SHARING {
        return f(0..rows);
    }
    let chunk = rows.div_ceil(e.threads() * CHUNKS).max((WORTH_SHARING / 8).div_ceil(cols * cost));
    e.take("rows").for_each(rows.div_ceil(chunk), |i, _| f(i * chunk..rows.min((i + 1) * chunk)));
}

/// The rows of a matrix, for threads that each write their own.
struct RowsMut<'a, T> {
    data: SharedMut<'a, T>,
    stride: usize,
    cols: usize,
}

impl<'a, T> RowsMut<'a, T> {
    fn new(m: &'a mut MatMut<'_, T>) -> Self {
        let (stride, cols) = (m.stride(), m.cols());
        RowsMut { data: SharedMut::new(m.data_mut()), stride, cols }
    }

    /// Row `r`.
    ///
    /// # Safety
    /// No other slice of this row is used while this one is.
    #[inline(always)]
    unsafe fn row(&self, r: usize) -> &'a mut [T] {
        // SAFETY: rows do not overlap (`stride >= cols` in every view); the rest is the caller's promise.
        unsafe { self.data.slice(r * self.stride, self.cols) }
    }
}

/// A kernel from row `r` of `x` to a row of the output.
trait RowKernel<X, Y>: Copy + Sync {
    fn row<V: Vector>(self, v: V, x: &[X], y: &mut [Y]);
}

struct Rows<'a, K, X, Y> {
    k: K,
    x: Mat<'a, X>,
    y: &'a RowsMut<'a, Y>,
    range: std::ops::Range<usize>,
}

impl<X, Y, K: RowKernel<X, Y>> Kernel for Rows<'_, K, X, Y> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        for r in self.range {
            // SAFETY: the ranges of `each_range`, which `map_rows` calls, do not overlap: each row goes to one thread.
            self.k.row(v, self.x.row(r), unsafe { self.y.row(r) });
        }
    }
}

/// `k` over all rows of `x` and `y`.
fn map_rows<X: Copy + Sync, Y: Send>(
    e: &Team,
    x: Mat<'_, X>,
    mut y: MatMut<'_, Y>,
    cost: usize,
    k: impl RowKernel<X, Y>,
) {
    let (rows, cols) = (x.rows(), x.cols().max(1));
    let y = RowsMut::new(&mut y);
    each_range(e, rows, cols, cost, |range| dispatch(e.isa(), Rows { k, x, y: &y, range }));
}

#[derive(Clone, Copy)]
struct Convert;

impl<X: Element, Y: Element> RowKernel<X, Y> for Convert {
    #[inline(always)]
    fn row<V: Vector>(self, v: V, x: &[X], y: &mut [Y]) {
        for (x, y) in x.chunks(V::LANES).zip(y.chunks_mut(V::LANES)) {
            store(v, y, load(v, x));
        }
    }
}

pub fn convert<A: Element>(e: &Team, x: Mat<'_, f32>, out: MatMut<'_, A>) {
    e.used.note(kernel_name!(e.isa(), A, "convert_f32"));
    map_rows(e, x, out, 1, Convert);
}

struct Embed<'a, T> {
    table: Mat<'a, T>,
    ids: &'a [u32],
    y: &'a RowsMut<'a, f32>,
    range: std::ops::Range<usize>,
}

impl<T: Element> Kernel for Embed<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        for r in self.range {
            // SAFETY: the ranges of `each_range`, which `embed` calls, do not overlap: each row goes to one thread.
            Convert.row(v, self.table.row(self.ids[r] as usize), unsafe { self.y.row(r) });
        }
    }
}

pub fn embed(e: &Team, table: Weight<'_>, ids: &[u32], mut out: MatMut<'_, f32>) {
    let cols = table.k().max(1);
    let y = &RowsMut::new(&mut out);
    let isa = e.isa();
    match table {
        Weight::F32(table) => {
            e.used.note(kernel_name!(isa, "embed_f32_f32"));
            each_range(e, ids.len(), cols, 1, |range| dispatch(isa, Embed { table, ids, y, range }));
        }
        Weight::BF16(table) => {
            e.used.note(kernel_name!(isa, "embed_bf16_f32"));
            each_range(e, ids.len(), cols, 1, |range| dispatch(isa, Embed { table, ids, y, range }));
        }
        _ => each_range(e, ids.len(), cols, 1, |range| {
            for r in range {
                // SAFETY: the ranges of `each_range` do not overlap: each row goes to one thread.
                table.widen_row(ids[r] as usize, unsafe { y.row(r) });
            }
        }),
    }
}

#[derive(Clone, Copy)]
struct RmsNorm<'a> {
    w: &'a [f32],
    eps: f32,
}

/// 1 / sqrt(mean(x^2) + eps).
#[inline(always)]
fn inverse_rms<V: Vector>(v: V, x: &[f32], eps: f32) -> f32 {
    1.0 / (simd::sum_squares(v, x) / x.len() as f32 + eps).sqrt()
}

impl<A: Element> RowKernel<f32, A> for RmsNorm<'_> {
    #[inline(always)]
    fn row<V: Vector>(self, v: V, x: &[f32], y: &mut [A]) {
        let s = v.splat_f32s(inverse_rms(v, x, self.eps));
        let chunks = x.chunks(V::LANES).zip(self.w.chunks(V::LANES)).zip(y.chunks_mut(V::LANES));
        for ((x, w), y) in chunks {
            store(v, y, v.mul_f32s(v.mul_f32s(load(v, x), s), load(v, w)));
        }
    }
}

pub fn rms_norm<A: Element>(e: &Team, x: Mat<'_, f32>, w: &[f32], eps: f32, out: MatMut<'_, A>) {
    e.used.note(kernel_name!(e.isa(), A, "rms_norm_f32"));
    map_rows(e, x, out, 2, RmsNorm { w, eps });
}

/// Where head `h` of row `r` goes: `start + (r / n) * batch + (r % n) * row + h * head`.
#[derive(Clone, Copy)]
pub(super) struct Place {
    start: usize,
    batch: usize,
    row: usize,
    head: usize,
}

impl Place {
    /// Positions from `start` on of every head of a cache.
    pub fn in_cache<A: Element>(c: &HeadCache<A>, start: usize) -> Place {
        let head = c.capacity() * c.head_dim();
        Place { start: start * c.head_dim(), batch: c.heads() * head, row: c.head_dim(), head }
    }

    /// As if head `first` were head 0.
    pub fn at_head(self, first: usize) -> Place {
        Place { start: self.start + first * self.head, ..self }
    }
}

/// Rows `first..first + src.rows()` of `n` for each sequence, head by head.
pub(super) struct Heads<'a, A> {
    pub src: Mat<'a, f32>,
    pub first: usize,
    pub n: usize,
    pub d: usize,
    pub weight: HeadNorm<'a>,
    pub eps: f32,
    pub rope: Option<(&'a RopeTable, Positions<'a>)>,
    /// No two threads have the same rows and heads of it.
    pub out: SharedMut<'a, A>,
    pub place: Place,
}

/// Features `at` of a head, normed by `norm`'s weight, if it has one, and inverse RMS.
#[inline(always)]
fn normed<V: Vector>(v: V, x: &[f32], (w, scale): (HeadNorm<'_>, V::F32s), at: std::ops::Range<usize>) -> V::F32s {
    let y = load(v, &x[at.clone()]);
    match w {
        Some(w) => v.mul_f32s(v.mul_f32s(y, scale), load(v, &w[at])),
        None => y,
    }
}

impl<A: Element> Heads<'_, A> {
    /// One head: norm, rotation at `angles` and conversion in one pass, in registers.
    #[inline(always)]
    fn head<V: Vector>(&self, v: V, x: &[f32], angles: Option<(&[f32], &[f32])>, y: &mut [A]) {
        let scale = v.splat_f32s(if self.weight.is_some() { inverse_rms(v, x, self.eps) } else { 1.0 });
        let norm = (self.weight, scale);
        let (step, half) = (V::LANES, self.d / 2);
        let Some((cos, sin)) = angles else {
            for j in (0..self.d).step_by(step) {
                let at = j..(j + step).min(self.d);
                store(v, &mut y[at.clone()], normed(v, x, norm, at));
            }
            return;
        };
        let (ylo, yhi) = y.split_at_mut(half);
        for j in (0..half).step_by(step) {
            let end = (j + step).min(half);
            let (lo, hi) = (normed(v, x, norm, j..end), normed(v, x, norm, half + j..half + end));
            let (c, s) = (load(v, &cos[j..end]), load(v, &sin[j..end]));
            store(v, &mut ylo[j..end], v.sub_f32s(v.mul_f32s(lo, c), v.mul_f32s(hi, s)));
            store(v, &mut yhi[j..end], v.mul_add(hi, c, v.mul_f32s(lo, s)));
        }
    }
}

impl<A: Element> Kernel for Heads<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        for row in 0..self.src.rows() {
            let r = self.first + row;
            let (b, i) = (r / self.n, r % self.n);
            let angles = self.rope.map(|(t, positions)| t.at(positions.of(r, i)));
            let p = self.place;
            for (h, x) in self.src.row(row).chunks_exact(self.d).enumerate() {
                // SAFETY: (batch, position, head) names one place, which one thread has (`out`).
                let y = unsafe { self.out.slice(p.start + b * p.batch + i * p.row + h * p.head, self.d) };
                self.head(v, x, angles, y);
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub fn heads<A: Element>(
    e: &Team,
    src: Mat<'_, f32>,
    batch: usize,
    d: usize,
    weight: HeadNorm<'_>,
    eps: f32,
    rope: Option<(&RopeTable, Positions<'_>)>,
    mut out: HeadsOut<'_, A>,
) {
    e.used.note(kernel_name!(e.isa(), A, "heads_f32"));
    let n = src.rows() / batch;
    let (out, place) = match &mut out {
        HeadsOut::Rows(y) => {
            let row = y.stride();
            (SharedMut::new(y.data_mut()), Place { start: 0, batch: n * row, row, head: d })
        }
        HeadsOut::Cache(c, start) => {
            let place = Place::in_cache(c, *start);
            (SharedMut::new(c.data_mut()), place)
        }
    };
    each_range(e, src.rows(), src.cols().max(1), 2, |range| {
        let (first, src) = (range.start, src.rows_at(range.start, range.len()));
        dispatch(e.isa(), Heads { src, first, n, d, weight, eps, rope, out, place });
    });
}

#[derive(Clone, Copy)]
struct SiluMul;

impl<A: Element> RowKernel<f32, A> for SiluMul {
    #[inline(always)]
    fn row<V: Vector>(self, v: V, ab: &[f32], y: &mut [A]) {
        let (a, b) = ab.split_at(y.len());
        SiluMulRow { a, b, y }.run(v);
    }
}

/// `y = silu(a) * b`.
pub(super) struct SiluMulRow<'a, A> {
    pub a: &'a [f32],
    pub b: &'a [f32],
    pub y: &'a mut [A],
}

impl<A: Element> Kernel for SiluMulRow<'_, A> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        let SiluMulRow { a, b, y } = self;
        let chunks = a.chunks(V::LANES).zip(b.chunks(V::LANES)).zip(y.chunks_mut(V::LANES));
        for ((a, b), y) in chunks {
            store(v, y, simd::silu_mul(v, load(v, a), load(v, b)));
        }
    }
}

pub fn silu_mul<A: Element>(e: &Team, ab: Mat<'_, f32>, out: MatMut<'_, A>) {
    e.used.note(kernel_name!(e.isa(), A, "silu_mul_f32"));
    map_rows(e, ab, out, 4, SiluMul);
}

struct Softmax<'a> {
    x: &'a RowsMut<'a, f32>,
    range: std::ops::Range<usize>,
}

impl Kernel for Softmax<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector>(self, v: V) {
        for r in self.range {
            // SAFETY: the ranges of `each_range`, which `softmax` calls, do not overlap: each row goes to one thread.
            softmax_row(v, unsafe { self.x.row(r) });
        }
    }
}

/// Softmax of one row, in place.
#[inline(always)]
pub(super) fn softmax_row<V: Vector>(v: V, x: &mut [f32]) {
    let max = v.splat_f32s(simd::max(v, x));
    for x in x.chunks_mut(V::LANES) {
        let e = simd::exp_nonpos(v, v.sub_f32s(load(v, x), max));
        store(v, x, e);
    }
    let scale = v.splat_f32s(1.0 / simd::sum(v, x));
    for x in x.chunks_mut(V::LANES) {
        let y = v.mul_f32s(load(v, x), scale);
        store(v, x, y);
    }
}

pub fn softmax(e: &Team, mut x: MatMut<'_, f32>) {
    e.used.note(kernel_name!(e.isa(), "softmax_f32_f32"));
    let (rows, cols) = (x.rows(), x.cols().max(1));
    let x = RowsMut::new(&mut x);
    each_range(e, rows, cols, 6, |range| dispatch(e.isa(), Softmax { x: &x, range }));
}

#[derive(Clone, Copy)]
struct Argmax;

impl RowKernel<f32, u32> for Argmax {
    #[inline(always)]
    fn row<V: Vector>(self, v: V, x: &[f32], y: &mut [u32]) {
        // The maximum of each block, then a plain search in the first block that holds the largest.
        const BLOCK: usize = 512;
        let (mut best, mut at) = (f32::NEG_INFINITY, 0);
        for (i, x) in x.chunks(BLOCK).enumerate() {
            let m = simd::max(v, x);
            if m > best {
                (best, at) = (m, i * BLOCK);
            }
        }
        // -inf is found from the start on; a row of NaN alone has no largest, and its first element stands for it.
        let found = x[at..].iter().position(|x| *x == best);
        y[0] = (at + found.unwrap_or(0)) as u32;
    }
}

pub fn argmax(e: &Team, x: Mat<'_, f32>, out: &mut [u32]) {
    e.used.note(kernel_name!(e.isa(), "argmax_f32_u32"));
    let rows = out.len();
    map_rows(e, x, MatMut::new(out, rows, 1), 1, Argmax);
}
