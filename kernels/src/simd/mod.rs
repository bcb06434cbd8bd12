//! The vectors of every kernel and driver, generic over the instruction set. A vector is a register of the set as the compiler knows
//! it, so that micro-kernels can keep dozens; its operations are methods of a token, which is `pulp`'s where the set is not every
//! CPU's: holding one proves that the CPU has the set. Drivers work on slices; micro-kernels, which were promised more than a slice can say, on the pointers
//! of [`crate::micro::vector`].

mod math;

pub(crate) use math::{exp_nonpos, exp2_nonpos, exp2_nonpos_coarse, silu_mul};
use pulp::NullaryFnOnce;

use crate::view::{DType, Element};

/// An instruction set's vectors of 32-bit lanes.
pub(crate) trait Vector: Copy {
    /// Lanes, from 4 to 16.
    const LANES: usize;
    /// Registers for vectors.
    const REGISTERS: usize;
    type F32s: bytemuck::Pod;
    type U32s: bytemuck::Pod;
    /// What a comparison says of each lane.
    type Mask: Copy;
    /// `LANES` 16-bit patterns.
    type Bits16: bytemuck::Pod;

    /// The token, for functions whose caller promises the instruction set.
    ///
    /// # Safety
    /// The CPU has it.
    unsafe fn held() -> Self;

    fn splat_f32s(self, x: f32) -> Self::F32s;
    fn splat_u32s(self, x: u32) -> Self::U32s;
    fn f32s_of(self, x: Self::U32s) -> Self::F32s;
    fn bits_of(self, x: Self::F32s) -> Self::U32s;

    fn add_f32s(self, a: Self::F32s, b: Self::F32s) -> Self::F32s;
    fn sub_f32s(self, a: Self::F32s, b: Self::F32s) -> Self::F32s;
    fn mul_f32s(self, a: Self::F32s, b: Self::F32s) -> Self::F32s;
    fn div_f32s(self, a: Self::F32s, b: Self::F32s) -> Self::F32s;
    fn neg_f32s(self, a: Self::F32s) -> Self::F32s;
    /// `a * b + c`, rounded once or twice, whichever is quicker.
    fn mul_add(self, a: Self::F32s, b: Self::F32s, c: Self::F32s) -> Self::F32s;

    /// False where either is NaN; so with the next.
    fn greater_than_f32s(self, a: Self::F32s, b: Self::F32s) -> Self::Mask;
    fn equal_f32s(self, a: Self::F32s, b: Self::F32s) -> Self::Mask;
    /// For lanes below 2^31.
    fn greater_than_u32s(self, a: Self::U32s, b: Self::U32s) -> Self::Mask;
    fn select_f32s(self, mask: Self::Mask, yes: Self::F32s, no: Self::F32s) -> Self::F32s;
    fn select_u32s(self, mask: Self::Mask, yes: Self::U32s, no: Self::U32s) -> Self::U32s;

    fn add_u32s(self, a: Self::U32s, b: Self::U32s) -> Self::U32s;
    fn and_u32s(self, a: Self::U32s, b: Self::U32s) -> Self::U32s;
    fn or_u32s(self, a: Self::U32s, b: Self::U32s) -> Self::U32s;
    /// Each lane shifted by that of `by`, which is below 32.
    fn shl_u32s(self, a: Self::U32s, by: Self::U32s) -> Self::U32s;
    fn shr_u32s(self, a: Self::U32s, by: Self::U32s) -> Self::U32s;

    fn reduce_sum_f32s(self, x: Self::F32s) -> f32;
    /// Of lanes that are numbers; so with the next.
    fn reduce_max_f32s(self, x: Self::F32s) -> f32;
    fn reduce_min_f32s(self, x: Self::F32s) -> f32;

    /// Each pattern as the low half of a 32-bit lane.
    fn widen(self, x: Self::Bits16) -> Self::U32s;

    /// The low halves of the lanes, whose high halves are zero.
    fn narrow(self, x: Self::U32s) -> Self::Bits16;

    /// F16 as f32.
    ///
    /// # Safety
    /// The CPU has the level, of which this may be more than the token proves.
    unsafe fn widen_f16(self, x: Self::Bits16) -> Self::F32s;

    /// The first `n < LANES` lanes; the rest are zero.
    ///
    /// # Safety
    /// `p` is readable for `n` lanes.
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> Self::F32s {
        let mut t = [0f32; 16];
        // SAFETY: `n < LANES <= 16` lanes are readable at `p`; `t` holds 16.
        unsafe { std::ptr::copy_nonoverlapping(p, t.as_mut_ptr(), n) };
        bytemuck::pod_read_unaligned(bytemuck::cast_slice(&t[..Self::LANES]))
    }

    /// The four lanes at `p`, in every 128 bits.
    ///
    /// # Safety
    /// They are readable.
    #[cfg(target_arch = "x86_64")]
    unsafe fn broadcast(self, p: *const f32) -> Self::F32s;

    /// The sums of the four lanes of each 128 bits of four vectors; those of the same 128 bits are neighbours.
    fn sum_fours(self, x: [Self::F32s; 4]) -> Self::F32s;

    /// The sums of the lanes of four vectors.
    fn sums(self, x: [Self::F32s; 4]) -> [f32; 4];

    /// The sum of the lanes of each of the first `LANES` vectors.
    #[inline(always)]
    fn sum_each(self, block: &mut [Self::F32s; 16]) -> Self::F32s {
        self.transpose(block);
        let mut sum = block[0];
        for &x in &block[1..Self::LANES] {
            sum = self.add_f32s(sum, x);
        }
        sum
    }

    /// Transposes the block of as many rows as lanes in the first vectors.
    fn transpose(self, block: &mut [Self::F32s; 16]);

    /// Fetches the line at `p`, any address, into the first-level cache, where the instruction set has a way; so with the others.
    fn prefetch(self, _p: *const u8) {}
    /// Into the second-level cache.
    fn prefetch_l2(self, _p: *const u8) {}
    /// A line of a stream that is read once, the way that suits the loads.
    fn prefetch_once(self, _p: *const u8) {}
    /// A line that will be written.
    fn prefetch_write(self, _p: *const u8) {}

    /// Runs `k` with the instruction set enabled for the code inlined into it.
    fn call<K: Kernel>(self, k: K) -> K::Output;
}

/// Methods of [`Vector`] that are one expression each.
macro_rules! operations {
    ($self:ident; $($name:ident($($a:ident: $t:ty),*) -> $r:ty = $e:expr;)*) => {
        $(#[inline(always)]
        fn $name($self, $($a: $t),*) -> $r {
            $e
        })*
    };
}
pub(crate) use operations;

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

/// The first `LANES` elements of `x`; lanes past its end are zero.
#[inline(always)]
pub(crate) fn load<V: Vector, A: Element>(v: V, x: &[A]) -> V::F32s {
    if x.len() >= V::LANES {
        return load_exact(v, &x[..V::LANES]);
    }
    let mut t = [A::default(); 16];
    t[..x.len()].copy_from_slice(x);
    load_exact(v, &t[..V::LANES])
}

/// Exactly `LANES` elements.
#[inline(always)]
pub(crate) fn load_exact<V: Vector, A: Element>(v: V, x: &[A]) -> V::F32s {
    let bytes = bytemuck::cast_slice::<A, u8>(x);
    match A::DTYPE {
        DType::BF16 => from_bf16(v, bytemuck::pod_read_unaligned(bytes)),
        _ => bytemuck::pod_read_unaligned(bytes),
    }
}

/// Exactly `2 * LANES` elements as two vectors, in whichever order is quickest: [`place_in_pair`] says where they are.
#[inline(always)]
pub(crate) fn load_pair<V: Vector, A: Element>(v: V, x: &[A]) -> [V::F32s; 2] {
    let (low, high) = x.split_at(V::LANES);
    match A::DTYPE {
        DType::BF16 => {
            // A lane holds two neighbours: the first moves to the high half, where the second stands already (little-endian).
            let x = bytemuck::pod_read_unaligned(bytemuck::cast_slice::<A, u8>(x));
            let even = v.shl_u32s(x, v.splat_u32s(16));
            let odd = v.and_u32s(x, v.splat_u32s(0xffff_0000));
            [v.f32s_of(even), v.f32s_of(odd)]
        }
        _ => [load_exact(v, low), load_exact(v, high)],
    }
}

/// Where [`load_pair`] puts element `i < 2 * LANES`, counted through both vectors.
#[inline(always)]
pub(crate) fn place_in_pair<V: Vector, A: Element>(i: usize) -> usize {
    match A::DTYPE {
        DType::BF16 => i % 2 * V::LANES + i / 2,
        _ => i,
    }
}

/// Stores the first lanes of `x`, as many as `y` holds, rounding to nearest (ties to even).
#[inline(always)]
pub(crate) fn store<V: Vector, A: Element>(v: V, y: &mut [A], x: V::F32s) {
    let whole = y.len() >= V::LANES;
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
pub(crate) fn from_bf16<V: Vector>(v: V, x: V::Bits16) -> V::F32s {
    v.f32s_of(v.shl_u32s(v.widen(x), v.splat_u32s(16)))
}

/// Round to nearest, ties to even; NaN stays NaN (made quiet).
#[inline(always)]
pub(crate) fn to_bf16<V: Vector>(v: V, x: V::F32s) -> V::Bits16 {
    let (bits, s16) = (v.bits_of(x), v.splat_u32s(16));
    let high = v.shr_u32s(bits, s16);
    let odd = v.and_u32s(high, v.splat_u32s(1));
    let up = v.add_u32s(v.add_u32s(bits, v.splat_u32s(0x7fff)), odd);
    let quiet = v.or_u32s(high, v.splat_u32s(0x40));
    v.narrow(v.select_u32s(v.equal_f32s(x, x), v.shr_u32s(up, s16), quiet))
}

/// Two vectors of numbers as pairs of BF16, the second in the high halves. To the nearest like [`to_bf16`], but ties away from zero:
/// an instruction instead of four for the sake of values, such as exponentials, that no tie is more likely among than chance.
#[inline(always)]
pub(crate) fn to_bf16_pairs<V: Vector>(v: V, x: [V::F32s; 2]) -> V::U32s {
    let half = v.splat_u32s(0x8000);
    let a = v.add_u32s(v.bits_of(x[0]), half);
    let b = v.add_u32s(v.bits_of(x[1]), half);
    v.or_u32s(v.shr_u32s(a, v.splat_u32s(16)), v.and_u32s(b, v.splat_u32s(0xffff_0000)))
}

/// The larger; `m` if `x` is NaN.
#[inline(always)]
pub(crate) fn larger<V: Vector>(v: V, m: V::F32s, x: V::F32s) -> V::F32s {
    v.select_f32s(v.greater_than_f32s(x, m), x, m)
}

/// Largest of `x`, NaN left out; -inf if there is none.
#[inline(always)]
pub(crate) fn max<V: Vector>(v: V, x: &[f32]) -> f32 {
    let low = v.splat_f32s(f32::NEG_INFINITY);
    let mut m = [low; 4];
    let blocks = x.chunks_exact(4 * V::LANES);
    let rest = blocks.remainder().chunks_exact(V::LANES);
    let tail = rest.remainder();
    for b in blocks {
        for (m, x) in m.iter_mut().zip(b.chunks_exact(V::LANES)) {
            *m = larger(v, *m, load_exact(v, x));
        }
    }
    for x in rest {
        m[0] = larger(v, m[0], load_exact(v, x));
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
    let mut acc = [v.splat_f32s(0.0); 4];
    let blocks = x.chunks_exact(4 * V::LANES);
    let rest = blocks.remainder().chunks_exact(V::LANES);
    let tail = load(v, rest.remainder());
    for b in blocks {
        for (a, x) in acc.iter_mut().zip(b.chunks_exact(V::LANES)) {
            let x = load_exact(v, x);
            *a = if SQUARES { v.mul_add(x, x, *a) } else { v.add_f32s(*a, x) };
        }
    }
    for x in rest {
        let x = load_exact(v, x);
        acc[0] = if SQUARES { v.mul_add(x, x, acc[0]) } else { v.add_f32s(acc[0], x) };
    }
    acc[1] = if SQUARES { v.mul_add(tail, tail, acc[1]) } else { v.add_f32s(acc[1], tail) };
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
            let chunks = x.chunks(V::LANES).zip(y.chunks_mut(V::LANES)).zip(z.chunks_mut(V::LANES));
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
