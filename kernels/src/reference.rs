//! Oracles: every operation in f64, plainly written. Tests and correctness gates compare kernels with these. Matrices are
//! dense, row-major slices.
//!
//! # Panics
//! All of them, if slices and dimensions disagree.

use crate::{operands::AttnShape, view::Element};

/// The elements as f64, exactly.
pub fn widen<A: Element>(x: &[A]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// `x[M,K] W[N,K]^T`, `[M, N]`.
pub fn linear(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let dot = |x: &[f64], w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum();
    x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w))).collect()
}

/// `a / (1 + e^-a)`.
pub fn silu(a: f64) -> f64 {
    a / (1.0 + (-a).exp())
}

/// `silu(a) * b` of rows `[a, b]`, each of `f` columns: `[M, 2F]` to `[M, F]`.
pub fn silu_mul(ab: &[f64], f: usize) -> Vec<f64> {
    ab.chunks_exact(2 * f).flat_map(|r| (0..f).map(|j| silu(r[j]) * r[f + j])).collect()
}

/// `x / sqrt(mean(x^2) + eps) * w` of rows as long as `w`.
pub fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let norm = |x: &[f64]| 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64 + eps).sqrt();
    x.chunks_exact(w.len()).flat_map(|x| x.iter().zip(w).map(move |(v, w)| v * norm(x) * w)).collect()
}

/// Rotates one head by its position, half-split: pairs are `(x[j], x[j + d/2])`, the angle is `p * theta^(-2j/d)` with the
/// inverse frequency and the product rounded to f32, as the models' reference does.
pub fn rope(x: &mut [f64], position: usize, theta: f64) {
    let d = x.len();
    for j in 0..d / 2 {
        let inverse = theta.powf(-2.0 * j as f64 / d as f64) as f32;
        let (sin, cos) = f64::from(position as f32 * inverse).sin_cos();
        let (a, b) = (x[j], x[j + d / 2]);
        (x[j], x[j + d / 2]) = (a * cos - b * sin, b * cos + a * sin);
    }
}

/// Heads of `d` features of rows `[B*n, heads*d]`: an optional RMSNorm (weight `[d]`, eps), then an optional rotation
/// (theta, position of each sequence's first row).
pub fn heads(
    src: &[f64],
    (n, heads, d): (usize, usize, usize),
    norm: Option<(&[f64], f64)>,
    rotate: Option<(f64, usize)>,
) -> Vec<f64> {
    let mut out = match norm {
        Some((w, eps)) => rms_norm(src, w, eps),
        None => src.to_vec(),
    };
    if let Some((theta, start)) = rotate {
        for (r, row) in out.chunks_exact_mut(heads * d).enumerate() {
            row.chunks_exact_mut(d).for_each(|x| rope(x, start + r % n, theta));
        }
    }
    out
}

/// Softmax of rows of `cols`.
pub fn softmax(x: &[f64], cols: usize) -> Vec<f64> {
    x.chunks_exact(cols)
        .flat_map(|x| {
            let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = x.iter().map(|x| (x - max).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(move |e| e / sum)
        })
        .collect()
}

/// Means over a window of odd `width` around each element of rows of `cols`, zeros standing beyond the ends.
pub fn pool(x: &[f64], cols: usize, width: usize) -> Vec<f64> {
    let half = width / 2;
    let window = |x: &[f64], t: usize| x[t.saturating_sub(half)..cols.min(t + half + 1)].iter().sum::<f64>();
    x.chunks_exact(cols).flat_map(|x| (0..cols).map(move |t| window(x, t) / width as f64)).collect()
}

/// Index of the largest of each row of `cols`: the first of equals; NaN is smaller than anything.
pub fn argmax(x: &[f64], cols: usize) -> Vec<u32> {
    let better = |x: &[f64], i: usize, j: usize| x[j] > x[i] || (x[i].is_nan() && !x[j].is_nan());
    x.chunks_exact(cols)
        .map(|x| (1..cols).fold(0, |best, j| if better(x, best, j) { j } else { best }) as u32)
        .collect()
}

/// Causal attention with grouped heads: q `[B*n, heads*d]`, k and v `[B, kv_heads, capacity, d]`; `[B*n, heads*d]`.
pub fn attention(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    s: AttnShape,
    (heads, kv_heads, capacity, d): (usize, usize, usize, usize),
) -> Vec<f64> {
    let mut out = Vec::with_capacity(q.len());
    for b in 0..s.batch {
        for i in 0..s.n {
            for h in 0..heads {
                let q = &q[((b * s.n + i) * heads + h) * d..][..d];
                let cache = (b * kv_heads + h / (heads / kv_heads)) * capacity * d;
                let seen = s.past + i + 1;
                let (k, v) = (&k[cache..][..seen * d], &v[cache..][..seen * d]);
                let scores: Vec<f64> = linear(q, k, d).iter().map(|s| s / (d as f64).sqrt()).collect();
                let p = softmax(&scores, seen);
                out.extend((0..d).map(|c| p.iter().zip(v.chunks_exact(d)).map(|(p, v)| p * v[c]).sum::<f64>()));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_cases_by_hand() {
        assert_eq!(linear(&[1.0, 2.0, 3.0, 4.0], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0], 2), [1.0, 2.0, 3.0, 3.0, 4.0, 7.0]);
        assert_eq!(rms_norm(&[6.0, 8.0], &[1.0, 2.0], 14.0), [0.75, 2.0]);
        assert_eq!(silu_mul(&[0.0, 5.0], 1), [0.0]);
        assert_eq!(softmax(&[0.0, 0.0, 7.0, 7.0], 2), [0.5; 4]);
        assert_eq!(pool(&[3.0, 0.0, 6.0, 9.0, 3.0, 0.0], 3, 3), [1.0, 3.0, 2.0, 4.0, 4.0, 1.0]);
        assert_eq!(pool(&[3.0, 0.0, 6.0], 3, 9), [1.0; 3]);
        assert_eq!(argmax(&[f64::NAN, f64::NEG_INFINITY, 2.0, 2.0, f64::NAN, f64::NAN], 2), [1, 0, 0]);
        let mut x = [1.0, 0.0];
        rope(&mut x, 2, 1e4);
        assert!((x[0] - 2f64.cos()).abs() < 1e-15 && (x[1] - 2f64.sin()).abs() < 1e-15);
    }

    #[test]
    fn attention_sees_the_past_and_itself_alone() {
        // Equal keys: the mean of the values seen. Two query heads share one KV head.
        let (k, v) = ([0.0; 8], [1.0, 10.0, 3.0, 30.0, 8.0, 80.0, f64::NAN, f64::NAN]);
        let s = AttnShape { batch: 1, n: 2, past: 1 };
        let out = attention(&[1.0; 8], &k, &v, s, (2, 1, 4, 2));
        assert_eq!(out, [2.0, 20.0, 2.0, 20.0, 4.0, 40.0, 4.0, 40.0]);
    }
}
