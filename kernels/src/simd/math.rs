//! Exponentials.

use super::Vector;

/// `p * 2^n` for p near 1, `biased` = `n + MAGIC`, and a normal result: the integer sits in the low bits of `biased`;
/// shifted to the exponent's place, what is above falls off, and it adds to that of p.
#[inline(always)]
fn scale<V: Vector>(v: V, p: V::F32s, biased: V::F32s) -> V::F32s {
    let n = v.shl_u32s(v.bits_of(biased), v.splat_u32s(23));
    v.f32s_of(v.add_u32s(v.bits_of(p), n))
}

/// e^r for |r| <= ln(2)/2: Cephes' minimax, of relative error 2e-8.
#[inline(always)]
fn poly<V: Vector>(v: V, r: V::F32s) -> V::F32s {
    let mut p = v.splat_f32s(POLY[0]);
    for &c in &POLY[1..] {
        p = v.mul_add(p, r, v.splat_f32s(c));
    }
    v.add_f32s(v.mul_add(p, v.mul_f32s(r, r), r), v.splat_f32s(1.0))
}

/// 1.5 * 2^23: adding it rounds to the nearest integer, which is then in the low bits.
const MAGIC: f32 = 12_582_912.0;
/// ln 2 in two parts: products of the first with small integers are exact.
#[allow(clippy::excessive_precision)] // exact: 355/512
const LN2: [f32; 2] = [0.693_359_375, -2.121_944_4e-4];
/// (e^r - 1 - r) / r^2, highest power first.
#[allow(clippy::excessive_precision)] // as published
const POLY: [f32; 6] = [
    1.987_569_150_0e-4,
    1.398_199_950_7e-3,
    8.333_451_907_3e-3,
    4.166_579_589_4e-2,
    1.666_666_545_9e-1,
    5.000_000_120_1e-1,
];
/// 2^f for |f| <= 1/2, highest power first: the minimax of the relative error.
const COARSE: [f32; 4] = [0.055_179_764, 0.242_622_88, 0.693_259_95, 0.999_926_6];
/// ln of the smallest normal f32.
const LN_MIN: f32 = -87.336_54;
/// Above it e^x is infinite in f32.
const LN_MAX: f32 = 88.722_83;

/// e^x for a normal result: `x = n ln 2 + r`.
#[inline(always)]
fn exp_unchecked<V: Vector>(v: V, x: V::F32s) -> V::F32s {
    let magic = v.splat_f32s(MAGIC);
    let biased = v.mul_add(x, v.splat_f32s(std::f32::consts::LOG2_E), magic);
    let n = v.sub_f32s(biased, magic);
    let r = v.mul_add(n, v.splat_f32s(-LN2[0]), x);
    scale(v, poly(v, v.mul_add(n, v.splat_f32s(-LN2[1]), r)), biased)
}

/// e^x for x <= 0, within 1.25 ulp where the result is a normal number; below, it is 0 (an error under 2^-126). NaN stays.
#[inline(always)]
pub(crate) fn exp_nonpos<V: Vector>(v: V, x: V::F32s) -> V::F32s {
    v.select_f32s(v.greater_than_f32s(v.splat_f32s(LN_MIN), x), v.splat_f32s(0.0), exp_unchecked(v, x))
}

/// e^x, within 1.25 ulp where the result is a normal number; below it is 0, above infinity. NaN stays.
#[inline(always)]
pub(crate) fn exp<V: Vector>(v: V, x: V::F32s) -> V::F32s {
    let over = v.greater_than_f32s(x, v.splat_f32s(LN_MAX));
    v.select_f32s(over, v.splat_f32s(f32::INFINITY), exp_nonpos(v, x))
}

/// The nearest integer with [`MAGIC`] added, and the rest.
#[inline(always)]
fn split<V: Vector>(v: V, x: V::F32s) -> (V::F32s, V::F32s) {
    let magic = v.splat_f32s(MAGIC);
    let biased = v.add_f32s(x, magic);
    (biased, v.sub_f32s(x, v.sub_f32s(biased, magic)))
}

/// 0 where `2^x` is below the normal numbers.
#[inline(always)]
fn flush<V: Vector>(v: V, x: V::F32s, y: V::F32s) -> V::F32s {
    v.select_f32s(v.greater_than_f32s(v.splat_f32s(-126.0), x), v.splat_f32s(0.0), y)
}

/// 2^x for x <= 0, within 1.25 ulp where the result is a normal number; below, it is 0. NaN stays.
#[inline(always)]
pub(crate) fn exp2_nonpos<V: Vector>(v: V, x: V::F32s) -> V::F32s {
    let (biased, f) = split(v, x);
    flush(v, x, scale(v, poly(v, v.mul_f32s(f, v.splat_f32s(std::f32::consts::LN_2))), biased))
}

/// [`exp2_nonpos`] for results that will be rounded to BF16: a relative error of at most 8e-5, a
/// twenty-fourth of that rounding's.
#[inline(always)]
pub(crate) fn exp2_nonpos_coarse<V: Vector>(v: V, x: V::F32s) -> V::F32s {
    let (biased, f) = split(v, x);
    let mut p = v.splat_f32s(COARSE[0]);
    for &c in &COARSE[1..] {
        p = v.mul_add(p, f, v.splat_f32s(c));
    }
    flush(v, x, scale(v, p, biased))
}

/// `a / (1 + e^-a) * b`.
#[inline(always)]
pub(crate) fn silu_mul<V: Vector>(v: V, a: V::F32s, b: V::F32s) -> V::F32s {
    let gate = v.add_f32s(v.splat_f32s(1.0), exp(v, v.neg_f32s(a)));
    v.mul_f32s(v.div_f32s(a, gate), b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        isa::Isa,
        levels::dispatch,
        simd::{Kernel, load, store},
    };

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum F {
        Exp,
        ExpNonpos,
        Exp2Nonpos,
        Exp2NonposCoarse,
    }

    struct Map<'a>(F, &'a mut [f32]);

    impl Kernel for Map<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Vector>(self, v: V) {
            for x in self.1.chunks_mut(V::LANES) {
                let y = match self.0 {
                    F::Exp => exp(v, load(v, x)),
                    F::ExpNonpos => exp_nonpos(v, load(v, x)),
                    F::Exp2Nonpos => exp2_nonpos(v, load(v, x)),
                    F::Exp2NonposCoarse => exp2_nonpos_coarse(v, load(v, x)),
                };
                store(v, x, y);
            }
        }
    }

    fn exact(f: F, x: f32) -> f64 {
        match f {
            F::Exp | F::ExpNonpos => f64::from(x).exp(),
            F::Exp2Nonpos | F::Exp2NonposCoarse => f64::from(x).exp2(),
        }
    }

    /// Error in units of the last place of the exact value.
    fn ulps(got: f32, want: f64) -> f64 {
        let ulp = 2f64.powi((want.log2().floor() as i32).max(-126) - 23);
        (f64::from(got) - want).abs() / ulp
    }

    #[test]
    fn exponentials_stay_within_1_25_ulp() {
        for isa in Isa::detected() {
            for f in [F::Exp, F::ExpNonpos, F::Exp2Nonpos, F::Exp2NonposCoarse] {
                let bound = if f == F::Exp2NonposCoarse { 8e-5 * (1u64 << 24) as f64 } else { 1.25 };
                // Every 509th f32 of either sign: all exponents, dense in each.
                let x: Vec<f32> = (0..=f32::INFINITY.to_bits())
                    .step_by(509)
                    .flat_map(|b| [-f32::from_bits(b), f32::from_bits(b)])
                    .filter(|x| f == F::Exp || *x <= 0.0)
                    .collect();
                let mut y = x.clone();
                dispatch(isa, Map(f, &mut y));
                let mut worst = (0.0, 0.0);
                for (&x, &y) in x.iter().zip(&y) {
                    let want = exact(f, x);
                    if want < f64::from(f32::MIN_POSITIVE) {
                        assert!(y == 0.0 || y == f32::MIN_POSITIVE, "{isa} {f:?}({x}) = {y}");
                    } else if want > f64::from(f32::MAX) {
                        assert!(y == f32::INFINITY || y == f32::MAX, "{isa} {f:?}({x}) = {y}");
                    } else if ulps(y, want) > worst.0 {
                        worst = (ulps(y, want), x);
                    }
                }
                println!("{isa} {f:?}: {:.3} ulp at {:e}", worst.0, worst.1);
                assert!(worst.0 <= bound, "{isa} {f:?}: {} ulp at {:e}", worst.0, worst.1);
            }
        }
    }

    #[test]
    fn exponentials_of_special_values() {
        for isa in Isa::detected() {
            for f in [F::Exp, F::ExpNonpos, F::Exp2Nonpos, F::Exp2NonposCoarse] {
                let mut x = [0.0, -0.0, f32::NEG_INFINITY, f32::MIN, -150.0, f32::NAN];
                dispatch(isa, Map(f, &mut x));
                assert_eq!(x[2..5], [0.0; 3], "{isa} {f:?}");
                if f != F::Exp2NonposCoarse {
                    assert_eq!(x[..2], [1.0; 2], "{isa} {f:?}");
                }
                assert!(x[5].is_nan(), "{isa} {f:?}");
            }
            let mut x = [f32::INFINITY, f32::MAX, 89.0, 1e3];
            dispatch(isa, Map(F::Exp, &mut x));
            assert_eq!(x, [f32::INFINITY; 4], "{isa}");
        }
    }
}
