//! One or few rows of activations: weights are streamed once, in place, unpacked.

use super::{
    output::{Factors, Target, widen_row},
    rowwise::SiluMulRow,
};
use crate::{
    contract::DotKernel,
    levels::{self, dispatch},
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

pub fn linear<'a, A: Element>(e: &Team, x: Mat<'_, A>, w: Weight<'a>, mut out: Output<'a, A>) {
    let format = w.format();
    let kernel = forced(e, A::DTYPE, format).unwrap_or_else(|| choose(e, x.rows(), A::DTYPE, format));
    e.used.note(kernel.name);
    let (m, k) = (x.rows(), w.k());
    let factors = Factors::of(w, &out);
    let (halves, n_all) = (factors.halves(), w.n());
    let (target, stride) = Target::of(&mut out);

    let team = e.take();
    let mut shared = team.shared();
    let (wide, size) = (kernel.x == DType::F32, kernel.x.size());
    let x_stride = x_stride(kernel, k);
    let x_len = m.div_ceil(kernel.group) * x_stride;
    let (to, room) = shared.get((x_len + k) * size)[..(x_len + k) * size].split_at_mut(x_len * size);
    let places = (0..m.next_multiple_of(kernel.group)).map(|i| (i, i / kernel.group * x_stride, i % kernel.group));
    if wide && A::DTYPE != DType::F32 {
        let (to, room): (&mut [f32], &mut [f32]) = (bytemuck::cast_slice_mut(to), bytemuck::cast_slice_mut(room));
        for (i, at, r) in places {
            if i < m {
                widen_row(x.row(i), room);
            }
            place((i < m).then_some(room), k, &mut to[at..][..x_stride], r, kernel.group);
        }
    } else {
        let to: &mut [A] = bytemuck::cast_slice_mut(to);
        for (i, at, r) in places {
            place((i < m).then(|| x.row(i)), k, &mut to[at..][..x_stride], r, kernel.group);
        }
    }
    let x = Rows { bytes: to, stride: x_stride * size, m };

    let row_bytes = format.bytes(k) * halves;
    let starts = starts(n_all, row_bytes, e.threads());
    let range = |task: usize| starts[task]..starts.get(task + 1).copied().unwrap_or(n_all);
    let w: [Stored<'_>; 2] = std::array::from_fn(|h| factors.half(h.min(halves - 1)).stored());
    let address = |w: Stored<'_>, n: usize| w.rows(n, 1, 0).as_ptr();
    team.for_each_ahead(starts.len(), |task, next, thread| {
        let (n0, n) = (starts[task], range(task).len());
        let mut scratch = team.thread(thread);
        let temp: &mut [f32] = &mut bytemuck::cast_slice_mut(scratch.get(halves * m * n * 4))[..halves * m * n];
        let (a, b) = temp.split_at_mut(m * n);
        let after = next.map_or(std::ptr::null(), |t| address(w[0], starts[t]));
        if halves == 1 {
            call(kernel, x, w[0], n0..n0 + n, a, after);
        } else {
            call(kernel, x, w[0], n0..n0 + n, a, address(w[1], n0));
            call(kernel, x, w[1], n0..n0 + n, b, after);
        }
        for (i, a) in a.chunks_exact(n).enumerate() {
            let at = i * stride + n0;
            // SAFETY: `for_each_ahead` gives each task out once, and tasks own disjoint columns `n0..n0 + n` of y; `slice` checks
            // that they are inside.
            unsafe {
                match target {
                    Target::Store(y, None) => y.slice(at, n).copy_from_slice(a),
                    Target::Store(y, Some(bias)) => {
                        for ((y, a), b) in y.slice(at, n).iter_mut().zip(a).zip(&bias[n0..]) {
                            *y = a + b;
                        }
                    }
                    Target::Add(y) => y.slice(at, n).iter_mut().zip(a).for_each(|(y, a)| *y += a),
                    Target::SwiGluF32(y) => dispatch(e.isa(), SiluMulRow { a, b: &b[i * n..][..n], y: y.slice(at, n) }),
                    Target::SwiGluBf16(y) => {
                        let y: &mut [half::bf16] = bytemuck::cast_slice_mut(y.slice(at, n));
                        dispatch(e.isa(), SiluMulRow { a, b: &b[i * n..][..n], y });
                    }
                }
            }
        }
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
fn call(
    kernel: &DotKernel,
    x: Rows<'_>,
    w: Stored<'_>,
    range: std::ops::Range<usize>,
    out: &mut [f32],
    next: *const u8,
) {
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
