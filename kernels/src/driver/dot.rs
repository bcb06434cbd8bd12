//! One or few rows of activations: weights are streamed once, in place, unpacked.

use super::gemm::{Split, Target, widen_row};
use crate::{
    contract::{DotFn, DotKernel},
    engine::{Engine, Output},
    registry, tuning,
    view::{DType, Element, Mat, Weight, with_weight},
};

/// The kernel that the engine was told to use, if it takes these types; BF16 activations can be widened.
pub(super) fn forced(e: &Engine, x: DType, w: DType) -> Option<&'static DotKernel> {
    e.forced_dot.filter(|k| k.dtypes() == (x, w) || k.dtypes() == (DType::F32, w))
}

/// The kernel for these types, of the strongest level that has one; failing BF16 activations, for their f32 values.
fn choose(e: &Engine, x: DType, w: DType) -> &'static DotKernel {
    let find = |x| registry::dot_kernels(e.isa).find(|k| k.dtypes() == (x, w));
    find(x).or_else(|| find(DType::F32)).expect("the portable level has f32 activations by every weight type")
}

pub fn linear<A: Element>(e: &Engine, x: Mat<'_, A>, w: Weight<'_>, mut out: Output<'_, A>) {
    let (x_type, w_type) = (A::DTYPE, w.dtype());
    let kernel = forced(e, x_type, w_type).unwrap_or_else(|| choose(e, x_type, w_type));
    e.used.note(kernel.name);
    let (m, k) = (x.rows(), w.k());
    let split = Split::of(w.n(), &out);
    let (target, stride) = Target::of(&mut out);
    let epilogues = &registry::row(e.isa).epilogues;

    // x is copied to rows a line longer than K: at a power of two they would all share the same few cache sets.
    let mut shared = e.scratch.shared();
    let x_stride = k.next_multiple_of(32) + 32;
    let buffer = shared.get(m * x_stride * 4);
    let wide = kernel.dtypes().0 == DType::F32;
    let x = if wide {
        let rows: &mut [f32] = bytemuck::cast_slice_mut(buffer);
        for (i, y) in rows.chunks_exact_mut(x_stride).take(m).enumerate() {
            widen_row(x.row(i), &mut y[..k]);
        }
        Rows::F32(&rows[..m * x_stride])
    } else {
        let rows: &mut [A] = bytemuck::cast_slice_mut(buffer);
        for (i, y) in rows.chunks_exact_mut(x_stride).take(m).enumerate() {
            y[..k].copy_from_slice(x.row(i));
        }
        Rows::Bits(bytemuck::cast_slice(&rows[..m * x_stride]))
    };

    let row_bytes = k * w.dtype().size() * split.halves();
    let fit = (tuning::DOT_TASK_BYTES / row_bytes.max(1)).max(1);
    let rows = fit.min(split.n.div_ceil(4 * e.threads())).next_multiple_of(12);
    let address = |n: usize| with_weight!(w, t => t.row(n).as_ptr().cast::<u8>());
    e.pool.for_each_ahead(split.n.div_ceil(rows), |task, next, thread| {
        let n0 = task * rows;
        let n = rows.min(split.n - n0);
        let mut scratch = e.scratch.thread(thread);
        let temp: &mut [f32] =
            &mut bytemuck::cast_slice_mut(scratch.get(split.halves() * m * n * 4))[..split.halves() * m * n];
        let (a, b) = temp.split_at_mut(m * n);
        let after = next.map_or(std::ptr::null(), |t| address(t * rows));
        match split.second {
            None => call(kernel, x, m, x_stride, w.rows_at(n0, n), a, after),
            Some(half) => {
                call(kernel, x, m, x_stride, w.rows_at(n0, n), a, address(n0 + half));
                call(kernel, x, m, x_stride, w.rows_at(n0 + half, n), b, after);
            }
        }
        if let Target::SwiGluF32(_) | Target::SwiGluBf16(_) = target {
            // SAFETY: both halves hold `m * n` values; the engine's ISA is that of its epilogues.
            unsafe { (epilogues.silu_mul)(m * n, a.as_mut_ptr(), b.as_ptr()) };
        }
        for (i, a) in a.chunks_exact(n).enumerate() {
            let at = i * stride + n0;
            // SAFETY: tasks own disjoint columns `n0..n0 + n` of y.
            unsafe {
                match target {
                    Target::Store(y, None) | Target::SwiGluF32(y) => y.slice(at, n).copy_from_slice(a),
                    Target::Store(y, Some(bias)) => {
                        for ((y, a), b) in y.slice(at, n).iter_mut().zip(a).zip(&bias[n0..]) {
                            *y = a + b;
                        }
                    }
                    Target::Add(y) => y.slice(at, n).iter_mut().zip(a).for_each(|(y, a)| *y += a),
                    Target::SwiGluBf16(y) => {
                        y.slice(at, n).iter_mut().zip(a).for_each(|(y, a)| *y = half::bf16::from_f32(*a).to_bits());
                    }
                }
            }
        }
    });
}

/// The rows of x that a kernel reads.
#[derive(Clone, Copy)]
enum Rows<'a> {
    F32(&'a [f32]),
    Bits(&'a [u16]),
}

/// `out[m][n] = x[m] . w[n]`, dense, for `m` rows of x that start `x_stride` elements apart. `next` is read soon after.
fn call(kernel: &DotKernel, x: Rows<'_>, m: usize, x_stride: usize, w: Weight<'_>, out: &mut [f32], next: *const u8) {
    let (k, n) = (w.k(), w.n());
    let len = match x {
        Rows::F32(x) => x.len(),
        Rows::Bits(x) => x.len(),
    };
    assert!(out.len() >= m * n && len >= m * x_stride && x_stride >= k);
    let o = out.as_mut_ptr();
    // SAFETY: x holds `m` rows and w `n` rows of `k` elements, and `out` takes m x n: asserted above and by the view. The
    // engine checked the ISA. half's types are transparent u16.
    unsafe {
        match (kernel.fun, x, w) {
            (DotFn::F32xF32(f), Rows::F32(x), Weight::F32(w)) => {
                f(k, x.as_ptr(), x_stride, m, w.data().as_ptr(), w.stride(), n, o, n, next);
            }
            (DotFn::F32xF16(f), Rows::F32(x), Weight::F16(w)) => {
                f(k, x.as_ptr(), x_stride, m, w.data().as_ptr().cast(), w.stride(), n, o, n, next);
            }
            (DotFn::F32xBf16(f), Rows::F32(x), Weight::BF16(w)) => {
                f(k, x.as_ptr(), x_stride, m, w.data().as_ptr().cast(), w.stride(), n, o, n, next);
            }
            (DotFn::Bf16xBf16(f), Rows::Bits(x), Weight::BF16(w)) => {
                f(k, x.as_ptr(), x_stride, m, w.data().as_ptr().cast(), w.stride(), n, o, n, next);
            }
            _ => unreachable!("choose() matches the kernel's types"),
        }
    }
}
