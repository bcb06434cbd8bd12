//! Vectors of f32, generic over the instruction set: `pulp`'s tokens (holding one proves that the CPU has the set), with
//! what `pulp` lacks: BF16 lanes, loads and stores of whichever activation type, and the ISA that an engine forces.

mod math;

pub(crate) use math::{exp_nonpos, exp2_nonpos, exp2_nonpos_coarse, silu_mul};
use pulp::{NullaryFnOnce, Simd};

use crate::view::{DType, Element};

/// An instruction set's vectors of f32.
pub(crate) trait Vector: Simd {
    /// `F32_LANES` 16-bit patterns.
    type Bits16: bytemuck::Pod;

    /// Each pattern as the low half of a 32-bit lane.
    fn widen(self, x: Self::Bits16) -> Self::u32s;

    /// The low halves of the lanes, whose high halves are zero.
    fn narrow(self, x: Self::u32s) -> Self::Bits16;

    /// The sums of the lanes of four vectors.
    fn sums(self, x: [Self::f32s; 4]) -> [f32; 4];

    /// Fetches the line at `p`, any address, into the second-level cache, where the instruction set has a way.
    fn prefetch(self, _p: *const u8) {}

    /// Runs `k` with the instruction set enabled for the code inlined into it.
    fn call<K: Kernel>(self, k: K) -> K::Output;
}

/// A computation that [`crate::levels::dispatch`] compiles once for each instruction set. `run` is `#[inline(always)]`, as is all that
/// it calls with vectors: what is not inlined lacks the instruction set, and calls every instruction as a function. So no
/// vectors in closures that std's adapters call (`array::map`, `from_fn`).
pub(crate) trait Kernel {
    type Output;
    fn run<V: Vector>(self, v: V) -> Self::Output;
}

/// A computation with its vectors, as `pulp` runs it.
pub(crate) struct Call<V, K>(pub V, pub K);

impl<V: Vector, K: Kernel> NullaryFnOnce for Call<V, K> {
    type Output = K::Output;
    #[inline(always)]
    fn call(self) -> K::Output {
        self.1.run(self.0)
    }
}

/// The first `F32_LANES` elements of `x`; lanes past its end are zero.
#[inline(always)]
pub(crate) fn load<V: Vector, A: Element>(v: V, x: &[A]) -> V::f32s {
    if x.len() >= V::F32_LANES {
        return load_exact(v, &x[..V::F32_LANES]);
    }
    let mut t = [A::default(); 16];
    t[..x.len()].copy_from_slice(x);
    load_exact(v, &t[..V::F32_LANES])
}

/// Exactly `F32_LANES` elements.
#[inline(always)]
pub(crate) fn load_exact<V: Vector, A: Element>(v: V, x: &[A]) -> V::f32s {
    let bytes = bytemuck::cast_slice::<A, u8>(x);
    match A::DTYPE {
        DType::BF16 => from_bf16(v, bytemuck::pod_read_unaligned(bytes)),
        _ => bytemuck::pod_read_unaligned(bytes),
    }
}

/// Exactly `2 * F32_LANES` elements as two vectors, in whichever order is quickest: [`place_in_pair`] says where they are.
#[inline(always)]
pub(crate) fn load_pair<V: Vector, A: Element>(v: V, x: &[A]) -> [V::f32s; 2] {
    let (low, high) = x.split_at(V::F32_LANES);
    match A::DTYPE {
        DType::BF16 => {
            // A lane holds two neighbours: the first moves to the high half, where the second stands already (little-endian).
            let x = bytemuck::pod_read_unaligned(bytemuck::cast_slice::<A, u8>(x));
            let even = v.wrapping_dyn_shl_u32s(x, v.splat_u32s(16));
            let odd = v.and_u32s(x, v.splat_u32s(0xffff_0000));
            [v.transmute_f32s_u32s(even), v.transmute_f32s_u32s(odd)]
        }
        _ => [load_exact(v, low), load_exact(v, high)],
    }
}

/// Where [`load_pair`] puts element `i < 2 * F32_LANES`, counted through both vectors.
#[inline(always)]
pub(crate) fn place_in_pair<V: Vector, A: Element>(i: usize) -> usize {
    match A::DTYPE {
        DType::BF16 => i % 2 * V::F32_LANES + i / 2,
        _ => i,
    }
}

/// Stores the first lanes of `x`, as many as `y` holds, rounding to nearest (ties to even).
#[inline(always)]
pub(crate) fn store<V: Vector, A: Element>(v: V, y: &mut [A], x: V::f32s) {
    let whole = y.len() >= V::F32_LANES;
    let y = bytemuck::cast_slice_mut::<A, u8>(y);
    match A::DTYPE {
        DType::BF16 => put(y, whole, bytemuck::bytes_of(&to_bf16(v, x))),
        _ => put(y, whole, bytemuck::bytes_of(&x)),
    }
}

/// A vector store if all of `x` fits, of a length that the compiler knows; else a copy.
#[inline(always)]
fn put(y: &mut [u8], whole: bool, x: &[u8]) {
    if whole {
        y[..x.len()].copy_from_slice(x);
    } else {
        y.copy_from_slice(&x[..y.len()]);
    }
}

#[inline(always)]
pub(crate) fn from_bf16<V: Vector>(v: V, x: V::Bits16) -> V::f32s {
    v.transmute_f32s_u32s(v.wrapping_dyn_shl_u32s(v.widen(x), v.splat_u32s(16)))
}

/// Round to nearest, ties to even; NaN stays NaN (made quiet).
#[inline(always)]
pub(crate) fn to_bf16<V: Vector>(v: V, x: V::f32s) -> V::Bits16 {
    let (bits, s16) = (v.transmute_u32s_f32s(x), v.splat_u32s(16));
    let high = v.wrapping_dyn_shr_u32s(bits, s16);
    let odd = v.and_u32s(high, v.splat_u32s(1));
    let up = v.add_u32s(v.add_u32s(bits, v.splat_u32s(0x7fff)), odd);
    let quiet = v.or_u32s(high, v.splat_u32s(0x40));
    v.narrow(v.select_u32s(v.equal_f32s(x, x), v.wrapping_dyn_shr_u32s(up, s16), quiet))
}

/// The larger; `m` if `x` is NaN.
#[inline(always)]
pub(crate) fn larger<V: Vector>(v: V, m: V::f32s, x: V::f32s) -> V::f32s {
    v.select_f32s(v.greater_than_f32s(x, m), x, m)
}

/// Largest of `x`, NaN left out; -inf if there is none.
#[inline(always)]
pub(crate) fn max<V: Vector>(v: V, x: &[f32]) -> f32 {
    let (head, tail) = V::as_simd_f32s(x);
    let low = v.splat_f32s(f32::NEG_INFINITY);
    let mut m = [low; 4];
    let (blocks, rest) = head.as_chunks::<4>();
    for b in blocks {
        for (m, &x) in m.iter_mut().zip(b) {
            *m = larger(v, *m, x);
        }
    }
    for &x in rest {
        m[0] = larger(v, m[0], x);
    }
    let m = v.reduce_max_f32s(larger(v, larger(v, m[0], m[1]), larger(v, m[2], m[3])));
    tail.iter().fold(m, |m, &x| if x > m { x } else { m })
}

/// Sum of `x`.
#[inline(always)]
pub(crate) fn sum<V: Vector>(v: V, x: &[f32]) -> f32 {
    accumulate::<V, false>(v, x)
}

/// Sum of the squares of `x`.
#[inline(always)]
pub(crate) fn sum_squares<V: Vector>(v: V, x: &[f32]) -> f32 {
    accumulate::<V, true>(v, x)
}

/// The sum of `x` or of its squares. Four accumulators cover the latency of the addition.
#[inline(always)]
fn accumulate<V: Vector, const SQUARES: bool>(v: V, x: &[f32]) -> f32 {
    let (head, tail) = V::as_simd_f32s(x);
    let mut acc = [v.splat_f32s(0.0); 4];
    let (blocks, rest) = head.as_chunks::<4>();
    for b in blocks {
        for (a, &x) in acc.iter_mut().zip(b) {
            *a = if SQUARES { v.mul_add_e_f32s(x, x, *a) } else { v.add_f32s(*a, x) };
        }
    }
    let tail = load(v, tail);
    for (i, &x) in rest.iter().chain([&tail]).enumerate() {
        acc[i] = if SQUARES { v.mul_add_e_f32s(x, x, acc[i]) } else { v.add_f32s(acc[i], x) };
    }
    v.reduce_sum_f32s(v.add_f32s(v.add_f32s(acc[0], acc[1]), v.add_f32s(acc[2], acc[3])))
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::{isa::Isa, levels::dispatch};

    /// Converts a slice to BF16 and back with the vectors of an ISA.
    struct Round<'a>(&'a [f32], &'a mut [bf16], &'a mut [f32]);

    impl Kernel for Round<'_> {
        type Output = ();
        #[inline(always)]
        fn run<V: Vector>(self, v: V) {
            let Round(x, y, z) = self;
            let chunks = x.chunks(V::F32_LANES).zip(y.chunks_mut(V::F32_LANES)).zip(z.chunks_mut(V::F32_LANES));
            for ((x, y), z) in chunks {
                store(v, y, load(v, x));
                store(v, z, load(v, y));
            }
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_even_and_keeps_nan() {
        // Every BF16 value with the bits that decide its rounding: below, at and above the tie, and the last f32.
        let x: Vec<f32> = (0..=u16::MAX)
            .flat_map(|h| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|l| f32::from_bits(u32::from(h) << 16 | l)))
            .collect();
        for isa in Isa::detected() {
            for n in [x.len(), x.len() - 1, x.len() - 13] {
                let (mut y, mut z) = (vec![bf16::ZERO; n], vec![0.0; n]);
                dispatch(isa, Round(&x[..n], &mut y, &mut z));
                for ((x, y), z) in x.iter().zip(&y).zip(&z) {
                    if x.is_nan() {
                        assert!(y.is_nan() && z.is_nan(), "{isa}: {:08x}", x.to_bits());
                    } else {
                        assert_eq!(y.to_bits(), bf16::from_f32(*x).to_bits(), "{isa}: {:08x}", x.to_bits());
                        assert_eq!(z.to_bits(), y.to_f32().to_bits(), "{isa}: {:08x}", x.to_bits());
                    }
                }
            }
        }
    }

    struct Reduce<'a>(&'a [f32]);

    impl Kernel for Reduce<'_> {
        type Output = [f32; 3];
        #[inline(always)]
        fn run<V: Vector>(self, v: V) -> [f32; 3] {
            [max(v, self.0), sum(v, self.0), sum_squares(v, self.0)]
        }
    }

    #[test]
    fn reductions_see_every_element_once() {
        for isa in Isa::detected() {
            for n in 0..150 {
                let x: Vec<f32> = (0..n).map(|i| -((i * 37 % 101) as f32) - 1.0).collect();
                let want = [
                    x.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                    x.iter().sum(),
                    x.iter().map(|x| x * x).sum(), // small integers: exact in any order
                ];
                assert_eq!(dispatch(isa, Reduce(&x)), want, "{isa}, {n} elements");
            }
            let x = [f32::NAN, -3.0, f32::NAN, -7.0];
            assert_eq!(dispatch(isa, Reduce(&x))[0], -3.0, "{isa}: NaN is left out of the maximum");
        }
    }
}
