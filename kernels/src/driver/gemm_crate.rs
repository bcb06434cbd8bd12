//! The `gemm` crate as a second backend: f32, W widened slab by slab.

use super::gemm::{Split, Target, widen};
use crate::{
    engine::{Engine, Output},
    view::{Element, Mat, MatMut, Weight},
};

/// Output features of one task.
const SLAB: usize = 128;

pub fn linear<A: Element>(e: &Engine, x: Mat<'_, A>, w: Weight<'_>, mut out: Output<'_, A>) {
    e.used.note("gemm_crate_f32xf32_f32");
    let (m, k) = (x.rows(), w.k());
    let split = Split::of(w.n(), &out);
    let (target, stride) = Target::of(&mut out);
    let mut shared = e.scratch.shared();
    let x = widen(x, shared.get(m * k * 4));

    e.pool.for_each(split.n.div_ceil(SLAB), |task, thread| {
        let n0 = task * SLAB;
        let n = SLAB.min(split.n - n0);
        let mut scratch = e.scratch.thread(thread);
        let temp: &mut [f32] = bytemuck::cast_slice_mut(scratch.get((split.halves() * m * n + n * k) * 4));
        let (y, wide) = temp.split_at_mut(split.halves() * m * n);
        for (h, y) in y.chunks_exact_mut(m * n).enumerate() {
            let w = w.rows_at(n0 + h * split.second.unwrap_or(0), n);
            let wf = match w {
                Weight::F32(w) => w,
                Weight::F16(_) | Weight::BF16(_) => {
                    widen_weight(w, &mut wide[..n * k]);
                    Mat::new(&wide[..n * k], n, k)
                }
            };
            product(x, wf, MatMut::new(y, m, n), gemm::Parallelism::None);
        }
        let (a, b) = y.split_at(m * n);
        for (i, a) in a.chunks_exact(n).enumerate() {
            let at = i * stride + n0;
            // SAFETY: tasks own disjoint columns `n0..n0 + n` of y.
            unsafe {
                match target {
                    Target::Store(y, bias) => {
                        for (j, (y, a)) in y.slice(at, n).iter_mut().zip(a).enumerate() {
                            *y = a + bias.map_or(0.0, |b| b[n0 + j]);
                        }
                    }
                    Target::Add(y) => y.slice(at, n).iter_mut().zip(a).for_each(|(y, a)| *y += a),
                    Target::SwiGluF32(y) => {
                        let b = &b[i * n..];
                        y.slice(at, n).iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = silu(*a) * b);
                    }
                    Target::SwiGluBf16(y) => {
                        let b = &b[i * n..];
                        y.slice(at, n).iter_mut().zip(a).zip(b).for_each(|((y, a), b)| {
                            *y = half::bf16::from_f32(silu(*a) * b).to_bits();
                        });
                    }
                }
            }
        }
    });
}

/// `y = x W^T`.
pub(super) fn product(x: Mat<'_, f32>, w: Mat<'_, f32>, mut y: MatMut<'_, f32>, threads: gemm::Parallelism) {
    let (m, n, k) = (x.rows(), w.rows(), x.cols());
    assert_eq!((w.cols(), y.rows(), y.cols()), (k, m, n));
    let (xs, ws, ys) = (x.stride() as isize, w.stride() as isize, y.stride() as isize);
    let y = y.data_mut().as_mut_ptr();
    // SAFETY: the views hold m x k, n x k and m x n elements at these strides, as just checked; gemm reads no `dst`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y,
            1,
            ys,
            false,
            x.data().as_ptr(),
            1,
            xs,
            w.data().as_ptr(),
            ws,
            1,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            threads,
        );
    }
}

fn widen_weight(w: Weight<'_>, out: &mut [f32]) {
    use half::slice::HalfFloatSliceExt;
    let k = w.k();
    for (r, y) in out.chunks_exact_mut(k.max(1)).enumerate() {
        match w {
            Weight::F32(w) => y.copy_from_slice(w.row(r)),
            Weight::F16(w) => w.row(r).convert_to_f32_slice(y),
            Weight::BF16(w) => w.row(r).convert_to_f32_slice(y),
        }
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}
