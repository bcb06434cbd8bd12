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

/// `x / (1 + e^-x) * y`.
///
/// # Safety
/// As for [`Vector`]'s methods.
#[inline(always)]
unsafe fn silu<V: Vector>(x: V, y: V) -> V {
    // SAFETY: the caller runs with the ISA's features.
    unsafe { x.mul(y).div(x.mul(V::splat_f32(-1.0)).exp().add(V::splat_f32(1.0))) }
}

/// `contract::SiluMul`.
///
/// # Safety
/// As `contract::SiluMul`.
#[inline(always)]
pub(crate) unsafe fn silu_mul<V: Vector>(len: usize, a: *mut f32, b: *const f32) {
    // SAFETY: whole vectors below `len`, then a part that goes through a buffer of 16 lanes.
    unsafe {
        let full = len / V::LANES * V::LANES;
        for i in (0..full).step_by(V::LANES) {
            silu::<V>(V::load(a.add(i).cast()), V::load(b.add(i).cast())).store(a.add(i).cast());
        }
        if full < len {
            let n = len - full;
            let r = silu::<V>(V::load_part(a.add(full).cast(), n), V::load_part(b.add(full).cast(), n));
            let mut t = [0u32; 16];
            r.store(t.as_mut_ptr());
            std::ptr::copy_nonoverlapping(t.as_ptr(), a.add(full).cast::<u32>(), n);
        }
    }
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
