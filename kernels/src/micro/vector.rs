//! What micro-kernels read and multiply: vectors of 32-bit lanes, of f32 or pairs of BF16, by pointers. The functions of the
//! contract are stamped out of the generic bodies of [`super`], which are inlined into functions with a level's target features.

use crate::simd::{self, Vector};

/// # Safety
/// `p` is readable for `LANES` lanes.
#[inline(always)]
pub(crate) unsafe fn load<V: Vector>(p: *const f32) -> V::F32s {
    // SAFETY: the caller's promise.
    unsafe { p.cast::<V::F32s>().read_unaligned() }
}

/// # Safety
/// `p` is writable for `LANES` lanes.
#[inline(always)]
pub(crate) unsafe fn store<V: Vector>(p: *mut f32, x: V::F32s) {
    // SAFETY: the caller's promise.
    unsafe { p.cast::<V::F32s>().write_unaligned(x) }
}

/// The multiply-add of a kernel: both operands are vectors of 32-bit lanes.
pub(crate) trait Mac<V: Vector> {
    /// # Safety
    /// The CPU has the level of the kernel.
    unsafe fn mac(v: V, acc: V::F32s, x: V::F32s, w: V::F32s) -> V::F32s;
}

pub(crate) struct MacF32;
impl<V: Vector> Mac<V> for MacF32 {
    #[inline(always)]
    unsafe fn mac(v: V, acc: V::F32s, x: V::F32s, w: V::F32s) -> V::F32s {
        v.mul_add(x, w, acc)
    }
}

/// How to read 32-bit lanes from memory of one element type.
pub(crate) trait Load<V: Vector> {
    /// Stored elements of one lane.
    const PER_LANE: usize;
    type T: Copy;
    /// # Safety
    /// `p` is readable for `LANES * PER_LANE` elements, and the CPU has the level.
    unsafe fn load(v: V, p: *const Self::T) -> V::F32s;
    /// The first `n` elements, fewer than a vector's; the rest are zero.
    ///
    /// # Safety
    /// `p` is readable for `n` elements, and the CPU has the level.
    unsafe fn load_part(v: V, p: *const Self::T, n: usize) -> V::F32s;
}

pub(crate) struct F32;
impl<V: Vector> Load<V> for F32 {
    const PER_LANE: usize = 1;
    type T = f32;
    #[inline(always)]
    unsafe fn load(_: V, p: *const f32) -> V::F32s {
        // SAFETY: the caller's promise.
        unsafe { load::<V>(p) }
    }
    #[inline(always)]
    unsafe fn load_part(v: V, p: *const f32, n: usize) -> V::F32s {
        // SAFETY: the caller's promise.
        unsafe { v.load_part(p, n) }
    }
}

/// Copies the `n <= 32` u16 at `p` into a zeroed buffer.
///
/// # Safety
/// `p` is readable for `n` u16.
#[inline(always)]
unsafe fn part16(p: *const u16, n: usize) -> [u16; 32] {
    let mut t = [0; 32];
    assert!(n <= 32);
    // SAFETY: `n <= 32` elements are readable by the caller's promise, and `t` holds 32.
    unsafe { std::ptr::copy_nonoverlapping(p, t.as_mut_ptr(), n) };
    t
}

macro_rules! load_u16 {
    ($(#[$doc:meta])* $name:ident, $per_lane:expr, $v:ident, $p:ident => $load:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;
        impl<V: Vector> Load<V> for $name {
            const PER_LANE: usize = $per_lane;
            type T = u16;
            #[inline(always)]
            unsafe fn load($v: V, $p: *const u16) -> V::F32s {
                // SAFETY: the caller's promise.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn load_part(v: V, p: *const u16, n: usize) -> V::F32s {
                // SAFETY: the caller's promise for the copy; the copy holds LANES * PER_LANE <= 32 elements.
                unsafe {
                    let t = part16(p, n);
                    <Self as Load<V>>::load(v, t.as_ptr())
                }
            }
        }
    };
}
load_u16!(
    /// BF16 widened to f32.
    Bf16, 1, v, p => simd::from_bf16(v, p.cast::<V::Bits16>().read_unaligned()));
load_u16!(
    /// F16 widened to f32.
    F16, 1, v, p => v.widen_f16(p.cast::<V::Bits16>().read_unaligned()));
load_u16!(
    /// Pairs of BF16, as they are.
    Bf16Pair, 2, _v, p => load::<V>(p.cast()));

/// Defines `$name`, a function of the contract: a generic body inlined into a function with the level's target features.
macro_rules! stamp {
    ($attr:tt, $name:ident: Micro => $body:expr) => {
        stamp!($attr, $name: "`contract::Micro`", (steps: usize, panel: *const u8, tile: *const u8, acc: *mut f32,
            accumulate: bool, ahead: &mut $crate::contract::Ahead) => $body);
    };
    ($attr:tt, $name:ident: InPlace => $body:expr) => {
        stamp!($attr, $name: "`contract::InPlace`", (steps: usize, panel: *const u8, w: *const u8, stride: usize, rows: usize,
            acc: *mut f32, accumulate: bool, ahead: &mut $crate::contract::Ahead) => $body);
    };
    ($attr:tt, $name:ident: Drain => $body:expr) => {
        stamp!($attr, $name: "`contract::Drain`", (queue: &mut $crate::contract::Copier) => $body);
    };
    ($attr:tt, $name:ident: Pack => $body:expr) => {
        stamp!($attr, $name: "`contract::PackX` or `PackW`", (src: *const u8, stride: usize, rows: usize, k: usize, dst: *mut u8)
            => $body);
    };
    ($attr:tt, $name:ident: Dot => $body:expr) => {
        stamp!($attr, $name: "`contract::Dot`", (k: usize, x: *const u8, x_stride: usize, rows: usize, w: *const u8, w_stride: usize,
            n: usize, out: *mut f32, out_stride: usize, next: *const u8) => $body);
    };
    ($attr:tt, $name:ident: Unpack<$t:ty> => $body:expr) => {
        stamp!($attr, $name: "`contract::Unpack`", (src: *const f32, src_stride: usize, rows: usize, cols: usize, dst: *mut $t,
            dst_stride: usize) => $body);
    };
    ($attr:tt, $name:ident: SiluMul => $body:expr) => {
        stamp!($attr, $name: "`contract::SiluMul`", (len: usize, a: *mut f32, b: *const f32) => $body);
    };
    ([$($attr:meta)?], $name:ident: $doc:literal, ($($arg:ident: $ty:ty),*) => $body:expr) => {
        #[doc = $doc]
        ///
        /// # Safety
        #[doc = concat!("As ", $doc, ".")]
        $(#[$attr])?
        #[allow(clippy::too_many_arguments)]
        unsafe fn $name($($arg: $ty),*) {
            // SAFETY: the same promise, passed on; the ISA is part of it.
            unsafe { $body($($arg),*) }
        }
    };
}
pub(crate) use stamp;
