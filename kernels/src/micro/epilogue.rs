//! From accumulators to rows of y.

use super::vector::Vector;

/// Where unpacked values go.
pub(crate) trait Put<V: Vector> {
    type T;
    /// # Safety
    /// `p` is valid for `V::LANES` elements.
    unsafe fn put(v: V, p: *mut Self::T);
    /// # Safety
    /// `p` is valid for one element.
    unsafe fn put1(x: f32, p: *mut Self::T);
}

pub(crate) struct Store;
impl<V: Vector> Put<V> for Store {
    type T = f32;
    #[inline(always)]
    unsafe fn put(v: V, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { v.store(p.cast()) }
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
    unsafe fn put(v: V, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { v.add(V::load(p.cast())).store(p.cast()) }
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
    unsafe fn put(v: V, p: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { v.narrow_bf16(p) }
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
        for m in (0..full_m).step_by(l) {
            for n in (0..full_n).step_by(l) {
                let mut block = [V::zero(); 16];
                for (i, b) in block.iter_mut().enumerate().take(l) {
                    *b = V::load(src.add((n + i) * src_stride + m).cast());
                }
                V::transpose(&mut block);
                for (i, b) in block.iter().enumerate().take(l) {
                    P::put(*b, dst.add((m + i) * dst_stride + n));
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

/// The epilogues of an ISA, as `EPILOGUES`.
macro_rules! epilogues {
    ($attr:tt, $v:ty) => {
        mod epilogues {
            use super::*;
            use $crate::{contract::Epilogues, micro::{epilogue as vk, vector::stamp}};

            stamp!($attr, store: "`contract::Unpack`",
                (src: *const f32, ss: usize, rows: usize, cols: usize, dst: *mut f32, ds: usize) => vk::unpack::<$v, vk::Store>);
            stamp!($attr, add: "`contract::Unpack`",
                (src: *const f32, ss: usize, rows: usize, cols: usize, dst: *mut f32, ds: usize) => vk::unpack::<$v, vk::Add>);
            stamp!($attr, store_bf16: "`contract::Unpack`",
                (src: *const f32, ss: usize, rows: usize, cols: usize, dst: *mut u16, ds: usize) => vk::unpack::<$v, vk::StoreBf16>);

            pub const TABLE: Epilogues = Epilogues { store, add, store_bf16 };
        }
        use epilogues::TABLE as EPILOGUES;
    };
}
pub(crate) use epilogues;
