//! Other libraries' `y = x W^T` in f32, for benchmarks: each as its own documentation has it, with its own threads.

use crate::{Mat, MatMut};

/// A library.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The crate.
    pub name: &'static str,
    /// `y[M,N] = x[M,K] W[N,K]^T` on so many threads; all three dense.
    pub product: fn(Mat<'_, f32>, Mat<'_, f32>, MatMut<'_, f32>, usize),
}

/// All of them. The number of threads is rayon's global pool's in rten-gemm, and in matrixmultiply what the variable
/// `MATMUL_NUM_THREADS` says, or that of the physical cores, at most 4.
pub const PEERS: &[Peer] = &[
    Peer { name: "gemm", product: gemm },
    Peer { name: "matrixmultiply", product: matrixmultiply },
    Peer { name: "faer", product: faer },
    Peer { name: "rten-gemm", product: rten },
];

fn gemm(x: Mat<'_, f32>, w: Mat<'_, f32>, y: MatMut<'_, f32>, threads: usize) {
    super::library::product(x, w, y, gemm::Parallelism::Rayon(threads));
}

fn matrixmultiply(x: Mat<'_, f32>, w: Mat<'_, f32>, mut y: MatMut<'_, f32>, _threads: usize) {
    let (m, n, k) = (x.rows(), w.rows(), x.cols());
    assert_eq!((w.cols(), y.rows(), y.cols()), (k, m, n));
    let (xs, ws, ys) = (x.stride() as isize, w.stride() as isize, y.stride() as isize);
    let y = y.data_mut().as_mut_ptr();
    // SAFETY: the views hold m x k, n x k and m x n elements at these strides, as just checked; y is borrowed mutably.
    unsafe { matrixmultiply::sgemm(m, k, n, 1.0, x.data().as_ptr(), xs, 1, w.data().as_ptr(), 1, ws, 0.0, y, ys, 1) }
}

fn faer(x: Mat<'_, f32>, w: Mat<'_, f32>, mut y: MatMut<'_, f32>, threads: usize) {
    use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
    let (m, n, k) = (x.rows(), w.rows(), x.cols());
    let x = MatRef::from_row_major_slice(&x.data()[..m * k], m, k);
    let w = MatRef::from_row_major_slice(&w.data()[..n * k], n, k);
    let y = MatMut::from_row_major_slice_mut(&mut y.data_mut()[..m * n], m, n);
    matmul(y, Accum::Replace, x, w.transpose(), 1.0, Par::rayon(threads));
}

fn rten(x: Mat<'_, f32>, w: Mat<'_, f32>, mut y: MatMut<'_, f32>, _threads: usize) {
    use rten_gemm::{GemmExecutor, GemmInputA, GemmInputB, GemmOptions};
    use rten_tensor::NdTensorView;
    let (m, n, k) = (x.rows(), w.rows(), x.cols());
    let x = NdTensorView::from_data([m, k], &x.data()[..m * k]);
    let w = NdTensorView::from_data([n, k], &w.data()[..n * k]);
    let (a, b) = (GemmInputA::Unpacked(x), GemmInputB::Unpacked(w.transposed()));
    let y = &mut y.data_mut()[..m * n];
    GemmExecutor::<f32>::new().gemm(y, a, b, GemmOptions::default()).expect("the shapes fit");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_computes_the_product() {
        let (m, n, k) = (7, 19, 33);
        let value = |i: usize| (i * 37 % 101) as f32 / 50.0 - 1.0;
        let (x, w): (Vec<f32>, Vec<f32>) = ((0..m * k).map(value).collect(), (5..5 + n * k).map(value).collect());
        for p in PEERS {
            let mut y = vec![f32::NAN; m * n];
            (p.product)(Mat::new(&x, m, k), Mat::new(&w, n, k), MatMut::new(&mut y, m, n), 2);
            for (i, y) in y.iter().enumerate() {
                let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let products = || x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let right: f64 = products().sum();
                // As many roundings as elements, of sums of at most this much.
                let bound = (k + 2) as f64 * f64::from(f32::EPSILON) * products().map(f64::abs).sum::<f64>();
                assert!((f64::from(*y) - right).abs() <= bound, "{}: {y} for {right}", p.name);
            }
        }
    }
}
