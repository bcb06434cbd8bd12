//! From accumulators to rows of y.

use super::vector::{load, store};
use crate::simd::{self, Vector};

/// Where unpacked values go.
pub(crate) trait Put<V: Vector> {
    type T;
    /// # Safety
    /// `p` is valid for `V::LANES` elements.
    unsafe fn put(v: V, x: V::F32s, p: *mut Self::T);
    /// # Safety
    /// `p` is valid for one element.
    unsafe fn put1(x: f32, p: *mut Self::T);
}

pub(crate) struct Store;
impl<V: Vector> Put<V> for Store {
    type T = f32;
    #[inline(always)]
    unsafe fn put(_: V, x: V::F32s, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { store::<V>(p, x) }
    }
    #[inline(always)]
    unsafe fn put1(x: f32, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { *p = x }
    }
}

pub(crate) struct Add;
impl<V: Vector> Put<V> for Add {
    type T = f32;
    #[inline(always)]
    unsafe fn put(v: V, x: V::F32s, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { store::<V>(p, v.add_f32s(x, load::<V>(p))) }
    }
    #[inline(always)]
    unsafe fn put1(x: f32, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { *p += x }
    }
}

pub(crate) struct StoreBf16;
impl<V: Vector> Put<V> for StoreBf16 {
    type T = u16;
    #[inline(always)]
    unsafe fn put(v: V, x: V::F32s, p: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<V::Bits16>().write_unaligned(simd::to_bf16(v, x)) }
    }
    #[inline(always)]
    unsafe fn put1(x: f32, p: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { *p = half::bf16::from_f32(x).to_bits() }
    }
}

/// `contract::Unpack`.
///
/// # Safety
/// As `contract::Unpack`.
#[inline(always)]
pub(crate) unsafe fn unpack<V: Vector, P: Put<V>>(
    src: *const f32,
    src_stride: usize,
    rows: usize,
    cols: usize,
    dst: *mut P::T,
    dst_stride: usize,
) {
    let l = V::LANES;
    let (full_n, full_m) = (rows / l * l, cols / l * l);
    // SAFETY: blocks cover `n < full_n`, `m < full_m`; the loops after them the rest: all inside what the caller promised.
    unsafe {
        let v = V::held();
        for m in (0..full_m).step_by(l) {
            for n in (0..full_n).step_by(l) {
                let mut block = [v.splat_f32s(0.0); 16];
                for (i, b) in block.iter_mut().enumerate().take(l) {
                    *b = load::<V>(src.add((n + i) * src_stride + m));
                }
                v.transpose(&mut block);
                for (i, b) in block.iter().enumerate().take(l) {
                    P::put(v, *b, dst.add((m + i) * dst_stride + n));
                }
            }
        }
        for m in 0..cols {
            for n in if m < full_m { full_n } else { 0 }..rows {
                P::put1(*src.add(n * src_stride + m), dst.add(m * dst_stride + n));
            }
        }
    }
}

/// `contract::SiluMul`.
///
/// # Safety
/// As `contract::SiluMul`.
#[inline(always)]
pub(crate) unsafe fn silu_mul<V: Vector>(len: usize, a: *mut f32, b: *const f32) {
    // SAFETY: both are valid for `len` elements, by the caller's promise, and the accumulators of a product and its second half
    // do not overlap.
    let (v, a, b) = unsafe { (V::held(), std::slice::from_raw_parts_mut(a, len), std::slice::from_raw_parts(b, len)) };
    let (mut whole, rest) = (a.chunks_exact_mut(V::LANES), b.chunks_exact(V::LANES));
    let tail = rest.remainder();
    for (a, b) in whole.by_ref().zip(rest) {
        let y = simd::silu_mul(v, simd::load_exact(v, a), simd::load_exact(v, b));
        simd::store(v, a, y);
    }
    let a = whole.into_remainder();
    let y = simd::silu_mul(v, simd::load(v, a), simd::load(v, tail));
    simd::store(v, a, y);
}

/// The epilogues of an ISA, as `EPILOGUES`.
macro_rules! epilogues {
    ($attr:tt, $v:ty) => {
        mod epilogues {
            use super::*;
            use $crate::{contract::Epilogues, micro::{epilogue as vk, vector::stamp}};

            stamp!($attr, store: Unpack<f32> => vk::unpack::<$v, vk::Store>);
            stamp!($attr, add: Unpack<f32> => vk::unpack::<$v, vk::Add>);
            stamp!($attr, store_bf16: Unpack<u16> => vk::unpack::<$v, vk::StoreBf16>);
            stamp!($attr, silu_mul: SiluMul => vk::silu_mul::<$v>);

            pub const TABLE: Epilogues = Epilogues { store, add, store_bf16, silu_mul };
        }
        use epilogues::TABLE as EPILOGUES;
    };
}
pub(crate) use epilogues;
