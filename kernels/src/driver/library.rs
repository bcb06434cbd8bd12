//! Other libraries as backends: f32, weights of other formats widened slab by slab.

use super::output::{Factors, Target, widen};
use crate::{
    operands::Output,
    team::Team,
    view::{Element, Mat, MatMut, Weight},
};

/// A library that multiplies matrices in f32.
pub struct Library {
    /// The name that [`crate::Engine::take_used`] gives.
    name: &'static str,
    /// `y = x W^T`.
    product: fn(Mat<'_, f32>, Mat<'_, f32>, MatMut<'_, f32>),
    /// Output features of one call.
    slab: usize,
    /// Whether calls are made from all threads of the pool at once; else the library has its own.
    ours: bool,
}

/// The `gemm` crate.
pub const GEMM: Library = Library {
    name: "gemm_crate_f32xf32_f32",
    product: |x, w, y| product(x, w, y, gemm::Parallelism::None),
    slab: 128,
    ours: true,
};

/// Apple's Accelerate, which reaches the matrix unit that NEON does not.
#[cfg(all(target_os = "macos", feature = "accelerate"))]
pub const ACCELERATE: Library =
    Library { name: "accelerate_f32xf32_f32", product: accelerate::product, slab: 4096, ours: false };

pub fn linear<'a, A: Element>(e: &Team, l: &Library, x: Mat<'_, A>, w: Weight<'a>, mut out: Output<'a, A>) {
    e.used.note(l.name);
    let (m, n_all, k) = (x.rows(), w.n(), w.k());
    let factors = Factors::of(w, &out);
    let (target, stride) = Target::of(&mut out);
    let team = e.take("product");
    let mut shared = team.shared();
    let x = widen(x, shared.get(m * k * 4));

    let slab = |task: usize, thread: usize| {
        let n0 = task * l.slab;
        let n = l.slab.min(n_all - n0);
        let mut scratch = team.thread(thread);
        let temp: &mut [f32] = bytemuck::cast_slice_mut(scratch.get((factors.halves() * m * n + n * k) * 4));
        let (y, wide) = temp.split_at_mut(factors.halves() * m * n);
        for (h, y) in y.chunks_exact_mut(m * n).enumerate() {
            let w = factors.half(h).rows_at(n0, n);
            let w = w.as_f32().unwrap_or_else(|| {
                let wide = &mut wide[..n * k];
                wide.chunks_exact_mut(k.max(1)).enumerate().for_each(|(r, y)| w.widen_row(r, y));
                Mat::new(wide, n, k)
            });
            (l.product)(x, w, MatMut::new(y, m, n));
        }
        let (a, b) = y.split_at(m * n);
        for (i, a) in a.chunks_exact(n).enumerate() {
            let b = if factors.halves() == 1 { &[] } else { &b[i * n..][..n] };
            // SAFETY: each task is given out once, and tasks own disjoint columns `n0..n0 + n` of y.
            unsafe { target.put(e.isa(), i * stride, n0, a, b) };
        }
    };
    let tasks = n_all.div_ceil(l.slab);
    if l.ours { team.for_each(tasks, slab) } else { (0..tasks).for_each(|task| slab(task, 0)) }
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

#[cfg(all(target_os = "macos", feature = "accelerate"))]
pub mod accelerate {
    use std::{
        ffi::{c_float, c_int},
        time::Instant,
    };

    use crate::view::{Mat, MatMut};

    const ROW_MAJOR: c_int = 101;
    const NO_TRANSPOSE: c_int = 111;
    const TRANSPOSE: c_int = 112;

    #[link(name = "Accelerate", kind = "framework")]
    unsafe extern "C" {
        #[allow(clippy::too_many_arguments)]
        fn cblas_sgemm(
            order: c_int,
            trans_a: c_int,
            trans_b: c_int,
            m: c_int,
            n: c_int,
            k: c_int,
            alpha: c_float,
            a: *const c_float,
            lda: c_int,
            b: *const c_float,
            ldb: c_int,
            beta: c_float,
            c: *mut c_float,
            ldc: c_int,
        );
    }

    /// `y = x W^T`.
    pub fn product(x: Mat<'_, f32>, w: Mat<'_, f32>, mut y: MatMut<'_, f32>) {
        let (m, n, k) = (x.rows(), w.rows(), x.cols());
        assert_eq!((w.cols(), y.rows(), y.cols()), (k, m, n));
        let int = |n: usize| c_int::try_from(n).expect("a dimension that BLAS can count");
        let (lda, ldb, ldc) = (int(x.stride().max(1)), int(w.stride().max(1)), int(y.stride().max(1)));
        let (a, b, c) = (x.data().as_ptr(), w.data().as_ptr(), y.data_mut().as_mut_ptr());
        // SAFETY: the views hold m x k, n x k and m x n elements at these strides, as just checked; with beta = 0 BLAS
        // reads no `c`.
        unsafe {
            cblas_sgemm(ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE, int(m), int(n), int(k), 1.0, a, lda, b, ldb, 0.0, c, ldc);
        }
    }

    /// GFLOP/s of the largest product tried: the roof of this backend, which no register-only loop of ours can show.
    pub fn gflops() -> f64 {
        const N: usize = 2048;
        let (x, w) = (vec![0.5f32; N * N], vec![0.25f32; N * N]);
        let mut y = vec![0.0; N * N];
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            product(Mat::new(&x, N, N), Mat::new(&w, N, N), MatMut::new(&mut y, N, N));
            best = best.min(start.elapsed().as_secs_f64());
        }
        2.0 * (N as f64).powi(3) / best / 1e9
    }
}
