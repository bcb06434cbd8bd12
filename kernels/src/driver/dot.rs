//! One or few rows of activations: weights are streamed once, in place, unpacked.

use std::ops::Range;

use super::output::{Factors, Target, widen_row};
use crate::{
    contract::DotKernel,
    isa::Isa,
    levels,
    operands::Output,
    team::Team,
    tuning,
    view::{DType, Element, Format, Mat, Stored, Weight},
};

/// The kernel that the engine was told to use, if it takes these types; BF16 activations can be widened.
pub(super) fn forced(e: &Team, x: DType, w: Format) -> Option<&'static DotKernel> {
    e.kernels.dot.filter(|k| k.takes() == (x, w) || k.takes() == (DType::F32, w))
}

/// The kernel for `m` rows of these types, of the strongest level that has one; failing BF16 activations, for their f32 values.
fn choose(e: &Team, m: usize, x: DType, w: Format) -> &'static DotKernel {
    let find = |x| levels::dot_kernels(e.isa()).find(|k| k.takes() == (x, w) && m >= k.least);
    find(x).or_else(|| find(DType::F32)).expect("the portable level has f32 activations by every format of weights")
}

/// The kernel for a product, as it was told or as it is best.
pub(super) fn kernel(e: &Team, m: usize, x: DType, w: Format) -> &'static DotKernel {
    forced(e, x, w).unwrap_or_else(|| choose(e, m, x, w))
}

/// A product of few rows, made ready: any thread may compute any rows of W.
pub(super) struct Few<'a> {
    kernel: &'static DotKernel,
    isa: Isa,
    x: Rows<'a>,
    w: [Stored<'a>; 2],
    halves: usize,
    target: Target<'a>,
    /// Elements between rows of y.
    stride: usize,
}

impl<'a> Few<'a> {
    /// Bytes of memory for `m` rows of x of `k` elements, and one row more.
    pub fn bytes(kernel: &DotKernel, m: usize, k: usize) -> usize {
        (m.div_ceil(kernel.group) * x_stride(kernel, k) + k) * kernel.x.size()
    }

    /// Puts x into `memory` as the kernel reads it.
    pub fn new<A: Element>(
        e: &Team,
        kernel: &'static DotKernel,
        x: Mat<'_, A>,
        factors: Factors<'a>,
        (target, stride): (Target<'a>, usize),
        memory: &'a mut [u8],
    ) -> Few<'a> {
        e.used.note(kernel.name);
        let (m, k) = (x.rows(), x.cols());
        let (wide, size) = (kernel.x == DType::F32, kernel.x.size());
        let x_stride = x_stride(kernel, k);
        let x_len = m.div_ceil(kernel.group) * x_stride;
        let (to, room) = memory[..Few::bytes(kernel, m, k)].split_at_mut(x_len * size);
        let places = (0..m.next_multiple_of(kernel.group)).map(|i| (i, i / kernel.group * x_stride, i % kernel.group));
        if wide && A::DTYPE != DType::F32 {
            let (to, room): (&mut [f32], &mut [f32]) =
                (bytemuck::cast_slice_mut(&mut *to), bytemuck::cast_slice_mut(room));
            for (i, at, r) in places {
                if i < m {
                    widen_row(x.row(i), room);
                }
                place((i < m).then_some(room), k, &mut to[at..][..x_stride], r, kernel.group);
            }
        } else {
            let to: &mut [A] = bytemuck::cast_slice_mut(&mut *to);
            for (i, at, r) in places {
                place((i < m).then(|| x.row(i)), k, &mut to[at..][..x_stride], r, kernel.group);
            }
        }
        let halves = factors.halves();
        let w = std::array::from_fn(|h| factors.half(h.min(halves - 1)).stored());
        Few { kernel, isa: e.isa(), x: Rows { bytes: to, stride: x_stride * size, m }, w, halves, target, stride }
    }

    /// Rows of each matrix.
    pub fn n(&self) -> usize {
        self.w[0].n
    }

    /// Matrices.
    pub fn halves(&self) -> usize {
        self.halves
    }

    /// Rows `n..n + rows` of matrix `h`.
    pub fn rows(&self, h: usize, n: usize, rows: usize) -> &'a [u8] {
        self.w[h].rows(n, rows, 0)
    }

    /// Elements of what `rows` rows need while they are computed.
    pub fn room(&self, rows: usize) -> usize {
        self.halves * self.x.m * rows
    }

    /// Computes rows `range` of W, and what they make of y. `next` is read soon after; null
    /// where these are in the second-level cache.
    ///
    /// # Safety
    /// No other thread computes these rows.
    pub unsafe fn compute(&self, range: Range<usize>, room: &mut [f32], next: *const u8) {
        let (n0, n, m) = (range.start, range.len(), self.x.m);
        let room = &mut room[..self.room(n)];
        let (a, b) = room.split_at_mut(m * n);
        if self.halves == 1 {
            call(self.kernel, self.x, self.w[0], range, a, next);
        } else {
            let second = if next.is_null() { next } else { self.rows(1, n0, n).as_ptr() };
            call(self.kernel, self.x, self.w[0], range.clone(), a, second);
            call(self.kernel, self.x, self.w[1], range, b, next);
        }
        for (i, a) in a.chunks_exact(n).enumerate() {
            let b = if self.halves == 1 { &[] } else { &b[i * n..][..n] };
            // SAFETY: columns `n0..n0 + n` of y are this thread's, by the caller's promise.
            unsafe { self.target.put(self.isa, i * self.stride, n0, a, b) };
        }
    }
}

pub fn linear<'a, A: Element>(e: &Team, x: Mat<'_, A>, w: Weight<'a>, mut out: Output<'a, A>) {
    let kernel = kernel(e, x.rows(), A::DTYPE, w.format());
    let factors = Factors::of(w, &out);
    let (n_all, row_bytes) = (w.n(), w.format().bytes(w.k()) * factors.halves());
    let target = Target::of(&mut out);

    let team = e.take("few rows");
    let mut shared = team.shared();
    let few = Few::new(e, kernel, x, factors, target, shared.get(Few::bytes(kernel, x.rows(), w.k())));
    let starts = starts(n_all, row_bytes, e.threads());
    team.for_each_ahead(starts.len(), |task, next, thread| {
        let range = starts[task]..starts.get(task + 1).copied().unwrap_or(n_all);
        let mut scratch = team.thread(thread);
        let room = bytemuck::cast_slice_mut(scratch.get(few.room(range.len()) * 4));
        let after = few.rows(0, starts[next.unwrap_or(task)], 1).as_ptr();
        // SAFETY: `for_each_ahead` gives each task out once, and tasks own disjoint rows.
        unsafe { few.compute(range, room, after) };
    });
}

/// The first rows of tasks over `n` rows of W: each a share of what is left, so that the last ones are short and threads end together.
fn starts(n: usize, row_bytes: usize, threads: usize) -> Vec<usize> {
    let most = (tuning::DOT_TASK_BYTES / row_bytes.max(1)).max(1);
    let next = |at: usize| {
        let some = (n - at).div_ceil(2 * threads).min(most) / tuning::DOT_UNIT;
        Some(at + some.max(1) * tuning::DOT_UNIT).filter(|next| *next < n)
    };
    std::iter::successors(Some(0), |at| next(*at)).collect()
}

/// Elements between groups of rows of x: a line more than they need, as at a power of two they would all share the same few cache
/// sets.
fn x_stride(kernel: &DotKernel, k: usize) -> usize {
    kernel.group * k.next_multiple_of(32) + 32
}

/// Row `r` of a group: 16 bytes in turn with the other rows', the last ones filled up with zeros, as is a row that is not there.
fn place<T: bytemuck::Pod>(row: Option<&[T]>, k: usize, group: &mut [T], r: usize, rows: usize) {
    let some = 16 / size_of::<T>();
    let to = bytemuck::cast_slice_mut::<T, [u8; 16]>(group).iter_mut().skip(r).step_by(rows).take(k.div_ceil(some));
    let Some(row) = row else { return to.for_each(|to| *to = [0; 16]) };
    let (whole, rest) = row.split_at(k / some * some);
    let mut last = 0u128;
    bytemuck::cast_slice_mut(std::slice::from_mut(&mut last))[..rest.len()].copy_from_slice(rest);
    let last = last.to_ne_bytes();
    let whole: &[[u8; 16]] = bytemuck::cast_slice(whole);
    whole.iter().chain([&last]).zip(to).for_each(|(from, to)| *to = *from);
}

/// The `m` rows of x as a kernel reads them: groups `stride` bytes apart.
#[derive(Clone, Copy)]
struct Rows<'a> {
    bytes: &'a [u8],
    stride: usize,
    m: usize,
}

/// `out[m][n] = x[m] . w[n]`, dense, for rows `range` of W. `next` is read soon after.
fn call(kernel: &DotKernel, x: Rows<'_>, w: Stored<'_>, range: Range<usize>, out: &mut [f32], next: *const u8) {
    let (m, n) = (x.m, range.len());
    assert!(out.len() >= m * n && x.stride >= x_stride(kernel, w.k) * kernel.x.size());
    assert!(x.bytes.len() >= m.div_ceil(kernel.group) * x.stride && x.bytes.as_ptr().addr().is_multiple_of(64));
    let rows = w.rows(range.start, n, 0).as_ptr();
    // SAFETY: x holds `m` rows and w `n` rows of `k` elements, and `out` takes m x n: asserted above and by `Stored::rows`. The
    // engine checked the ISA; `choose` and `forced` match the kernel's types.
    unsafe { (kernel.fun)(w.k, x.bytes.as_ptr(), x.stride, m, rows, w.stride, n, out.as_mut_ptr(), n, next) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::balance::{end, shapes};

    #[test]
    fn tasks_cover_all_rows_and_threads_end_together() {
        for (n, k) in shapes() {
            for threads in [1, 2, 4, 8, 16] {
                let starts = starts(n, 2 * k, threads);
                assert!(starts[0] == 0 && starts.windows(2).all(|s| s[0] < s[1]) && *starts.last().unwrap() < n);
                let sizes: Vec<usize> = starts.iter().zip(starts[1..].iter().chain([&n])).map(|(a, b)| b - a).collect();
                let most = 2 * tuning::DOT_UNIT.max(tuning::DOT_TASK_BYTES / (2 * k));
                assert!(sizes.iter().sum::<usize>() == n && sizes.iter().all(|s| *s <= most));
                // A thread claims the next task before it begins one.
                let late = end(threads, true, &sizes) as f64 * threads as f64 / n as f64;
                assert!(late <= 1.05, "{n}x{k} on {threads} threads: {late:.3}");
            }
        }
        assert_eq!(starts(5, 100, 3), [0]);
        assert_eq!(starts(0, 100, 3), [0]);
    }
}
