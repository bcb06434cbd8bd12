//! Ridge regression from sums, in float64.

use faer::{
    MatMut, MatRef, Side,
    linalg::solvers::{Llt, Solve},
};

use super::sums::{Cross, Gram};
use crate::error::{Error, Result};

/// A feature whose deviation is less than this share of what features are like is constant but for rounding: it gets no weight.
const CONSTANT: f64 = 1e-6;

/// A feature of which others leave less than this share of its variance depends on them: what is left is rounding.
const DEPENDENT: f64 = 1e-12;

/// A linear map in float64: weights `[N, F]`, and what it takes to know the bias once these are rounded.
#[derive(Clone, Debug)]
pub(super) struct Solved {
    pub weight: Vec<f64>,
    /// Means of the features, `[F]`.
    pub x: Vec<f64>,
    /// Means of what they should give, `[N]`.
    pub y: Vec<f64>,
}

/// The equations of all maps that read the same.
pub(super) struct Equations {
    factor: Llt<f64>,
    /// Over so many tokens.
    rows: usize,
    /// Means of the features less their shifts, and whole.
    mean: Vec<f64>,
    whole: Vec<f64>,
    /// One over the deviation; 0 of what does not deviate.
    scale: Vec<f64>,
}

impl Equations {
    /// Of the features of `gram`.
    ///
    /// # Errors
    /// [`Error::Unfit`].
    pub fn new(gram: &Gram, rows: usize, lambda: f64) -> Result<Equations> {
        let (f, t) = (gram.x.sum.len(), rows as f64);
        let mean = gram.x.means(rows);
        let whole: Vec<f64> = mean.iter().zip(&gram.x.shift).map(|(m, s)| m + f64::from(*s)).collect();
        let variance: Vec<f64> = (0..f).map(|i| gram.products[i * f + i] / t - mean[i] * mean[i]).collect();
        if let Some(i) = (0..f).find(|i| !(variance[*i] + whole[*i]).is_finite()) {
            return Err(unfit(format!("feature {i} of the source is not a number at every token: {PRECISION}")));
        }
        let squares: f64 = whole.iter().zip(&variance).map(|(m, v)| m * m + v).sum();
        let least = CONSTANT * (squares / f as f64).sqrt();
        let scale = |v: &f64| if *v > least * least { 1.0 / v.sqrt() } else { 0.0 };
        let scale: Vec<f64> = variance.iter().map(scale).collect();
        let mut matrix = vec![0.0; f * f];
        for i in 0..f {
            for j in 0..=i {
                // Both triangles were multiplied; their mean is symmetric.
                let product = 0.5 * (gram.products[i * f + j] + gram.products[j * f + i]) / t;
                matrix[i * f + j] = (product - mean[i] * mean[j]) * scale[i] * scale[j];
                matrix[j * f + i] = matrix[i * f + j];
            }
            matrix[i * f + i] = if scale[i] == 0.0 { 1.0 } else { 1.0 + lambda };
        }
        let factor = Llt::new(MatRef::from_row_major_slice(&matrix, f, f), Side::Lower).ok();
        let apart = |factor: &Llt<f64>| (0..f).all(|i| factor.L()[(i, i)].powi(2) > DEPENDENT);
        let factor = factor.filter(apart).ok_or_else(|| {
            unfit(format!(
                "some features depend on others, and lambda {lambda:e} does not tell them apart: take a larger lambda, or more \
                 text"
            ))
        })?;
        Ok(Equations { factor, rows, mean, whole, scale })
    }

    /// The map that fits `cross`.
    ///
    /// # Errors
    /// [`Error::Unfit`].
    pub fn solve(&self, cross: &Cross) -> Result<Solved> {
        let (f, t, y) = (self.mean.len(), self.rows as f64, cross.y.means(self.rows));
        let mut weight = cross.products.clone();
        for (row, y) in weight.chunks_exact_mut(f).zip(&y) {
            for ((w, m), s) in row.iter_mut().zip(&self.mean).zip(&self.scale) {
                *w = (*w / t - y * m) * s;
            }
        }
        // Rows of the weights are columns of the equations.
        self.factor.solve_in_place(MatMut::from_column_major_slice_mut(&mut weight, f, y.len()));
        for row in weight.chunks_exact_mut(f) {
            row.iter_mut().zip(&self.scale).for_each(|(w, s)| *w *= s);
        }
        let y: Vec<f64> = y.iter().zip(&cross.y.shift).map(|(m, s)| m + f64::from(*s)).collect();
        if weight.iter().chain(&y).any(|w| !w.is_finite()) {
            return Err(unfit(format!("keys or values of the base are not numbers at every token: {PRECISION}")));
        }
        Ok(Solved { weight, x: self.whole.clone(), y })
    }
}

const PRECISION: &str = "try f32 activations, and whether the network's weights are whole";

fn unfit(reason: String) -> Error {
    Error::Unfit { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::Engine, fit::sums::Sums};

    /// Orthogonal features of mean 0 and deviation 1, apart from an offset: what is linear in them is found, and shrinks by the
    /// ridge. All sums are of numbers that F32 holds, so nothing but the last rounding is lost.
    #[test]
    fn a_linear_target_is_recovered_exactly() {
        const WINDOW: usize = 33;
        const F: usize = 24;
        const N: usize = 20;
        let e = Engine::new(0);
        let x = |r: usize, i: usize| (if (r & (i + 1)).count_ones() % 2 == 0 { 1.0 } else { -1.0 }) + 3.0 * i as f32;
        let weight = |n: usize, i: usize| ((n * 31 + i * 17) % 29) as f32 / 16.0 - 0.875;
        let bias = |n: usize| n as f32 * 0.5 - 3.0;
        let y = |r: usize, n: usize| (0..F).map(|i| weight(n, i) * x(r, i)).sum::<f32>() + bias(n);
        let mut sums = Sums::new(&[F], [(N, 0)].into_iter()).unwrap();
        for block in 0..4 {
            // The first row of each window is left out, whatever it is.
            let rows = |width: usize, of: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
                let row = |w: usize, p: usize| (p > 0).then(|| block * 128 + w * (WINDOW - 1) + p - 1);
                let all = (0..4).flat_map(|w| (0..WINDOW).map(move |p| row(w, p)));
                all.flat_map(|r| (0..width).map(move |i| r.map_or(f32::NAN, |r| of(r, i)))).collect()
            };
            sums.begin(128);
            sums.feature(&e, 0, &rows(F, &x), WINDOW).unwrap();
            sums.output(&e, 0, &rows(N, &y), WINDOW).unwrap();
            sums.end();
        }
        assert_eq!(sums.rows(), 512);
        for lambda in [0.0, 0.5] {
            let equations = Equations::new(&sums.grams()[0], 512, lambda).unwrap();
            let solved = equations.solve(&sums.crosses()[0]).unwrap();
            for n in 0..N {
                for i in 0..F {
                    let (found, exact) = (solved.weight[n * F + i], f64::from(weight(n, i)) / (1.0 + lambda));
                    assert!((found - exact).abs() < 1e-12, "lambda {lambda}, {n} {i}: {found}, and {exact} is right");
                }
                let mean: f64 =
                    (0..F).map(|i| f64::from(weight(n, i)) * 3.0 * i as f64).sum::<f64>() + f64::from(bias(n));
                assert!((solved.y[n] - mean).abs() < 1e-12 * mean.abs().max(1.0));
            }
            assert!((0..F).all(|i| (solved.x[i] - 3.0 * i as f64).abs() < 1e-12));
        }
    }

    #[test]
    fn dependent_features_need_a_ridge_and_constant_ones_get_no_weight() {
        let e = Engine::new(0);
        // A feature, the same doubled, and one that does not vary.
        let x: Vec<f32> = (0..65).flat_map(|r| [(r % 7) as f32, (r % 7) as f32 * 2.0, 5.0]).collect();
        let y: Vec<f32> = (0..65).map(|r| (r % 7) as f32 * 3.0 + 1.0).collect();
        let mut sums = Sums::new(&[3], [(1, 0)].into_iter()).unwrap();
        sums.begin(64);
        sums.feature(&e, 0, &x, 65).unwrap();
        sums.output(&e, 0, &y, 65).unwrap();
        sums.end();
        let refused = Equations::new(&sums.grams()[0], 64, 0.0).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("take a larger lambda"), "{refused}");
        let solved = Equations::new(&sums.grams()[0], 64, 1e-6).unwrap().solve(&sums.crosses()[0]).unwrap();
        let w = &solved.weight;
        // Shared evenly between standardised features.
        assert!((w[0] - 1.5).abs() < 1e-4 && (w[1] - 0.75).abs() < 1e-4 && w[2] == 0.0, "{w:?}");
    }
}
