//! Vectors of 32-bit lanes as micro-kernels use them, and how they are read from memory.
//!
//! Each level implements [`Vector`] and stamps out its kernels: the generic bodies of [`super`] are inlined into functions that
//! carry the level's target features.

/// A vector of 32-bit lanes, read as f32 or as pairs of BF16.
///
/// # Safety
/// Implementors promise that the methods do what they say for any input the method's own Safety section allows. Every
/// method may use the ISA's instructions: callers run inside a function with its target features.
pub(crate) unsafe trait Vector: Copy {
    /// Lanes, at most 16.
    const LANES: usize;

    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// All lanes the 32 bits at `p`.
    ///
    /// # Safety
    /// `p` is readable for 4 bytes.
    unsafe fn splat(p: *const u32) -> Self;
    /// # Safety
    /// `p` is readable for `LANES` lanes.
    unsafe fn load(p: *const u32) -> Self;
    /// The first `n < LANES` lanes; the rest are zero.
    ///
    /// # Safety
    /// `p` is readable for `n` lanes.
    unsafe fn load_part(p: *const u32, n: usize) -> Self {
        let mut t = [0u32; 16];
        // SAFETY: `n < LANES <= 16` lanes are readable at `p`; `t` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, t.as_mut_ptr(), n);
            Self::load(t.as_ptr())
        }
    }
    /// # Safety
    /// `p` is writable for `LANES` lanes.
    unsafe fn store(self, p: *mut u32);
    /// `LANES` BF16 as f32.
    ///
    /// # Safety
    /// `p` is readable for `LANES` u16.
    unsafe fn widen_bf16(p: *const u16) -> Self;
    /// `LANES` F16 as f32.
    ///
    /// # Safety
    /// `p` is readable for `LANES` u16.
    unsafe fn widen_f16(p: *const u16) -> Self;
    /// `LANES` f32, rounded to nearest even, as BF16.
    ///
    /// # Safety
    /// `p` is writable for `LANES` u16.
    unsafe fn narrow_bf16(self, p: *mut u16);
    /// `self * b + c` in f32.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// Lane-wise bounds; NaN stays.
    unsafe fn clamp(self, lo: f32, hi: f32) -> Self;
    /// To the nearest integer.
    unsafe fn round(self) -> Self;
    /// `2^self` for integers in -126..=127.
    unsafe fn pow2(self) -> Self;
    /// `e^self`, within 2 ulp for -87.3..=88.3 (the Cephes reduction and polynomial); constant beyond.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller runs with the ISA's features; the clamp keeps `n` in the range of `pow2`.
        unsafe {
            let x = self.clamp(-87.3, 88.3);
            let n = x.mul(Self::splat_f32(std::f32::consts::LOG2_E)).round();
            let r = n.fma(Self::splat_f32(-0.693_359_4), x);
            let r = n.fma(Self::splat_f32(2.121_944_4e-4), r);
            let mut p = Self::splat_f32(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = p.fma(r, Self::splat_f32(c));
            }
            let one_r = r.add(Self::splat_f32(1.0));
            p.fma(r.mul(r), one_r).mul(n.pow2())
        }
    }
    unsafe fn splat_f32(x: f32) -> Self;
    /// The sum of the lanes of each of the first `LANES` vectors.
    #[inline(always)]
    unsafe fn sum_each(block: &mut [Self; 16]) -> Self {
        // SAFETY: the caller runs with the ISA's features.
        unsafe {
            Self::transpose(block);
            let mut s = block[0];
            for v in &block[1..Self::LANES] {
                s = s.add(*v);
            }
            s
        }
    }
    /// Transposes the `LANES x LANES` block in the first `LANES` vectors.
    unsafe fn transpose(block: &mut [Self; 16]);
    /// Prefetches the line at `p`; any address will do.
    unsafe fn prefetch(_p: *const u8) {}
    /// Prefetches the line at `p` of a stream that is read once, the way that suits the ISA's loads; any address will do.
    unsafe fn prefetch_once(_p: *const u8) {}
    /// Prefetches the line at `p` to the second-level cache; any address will do.
    unsafe fn prefetch_l2(_p: *const u8) {}
    /// Prefetches the line at `p`, to be written; any address will do.
    unsafe fn prefetch_write(_p: *const u8) {}
}

/// The multiply-add of a kernel: both operands are vectors of 32-bit lanes.
pub(crate) trait Mac<V: Vector> {
    /// # Safety
    /// As for [`Vector`]'s methods.
    unsafe fn mac(acc: V, x: V, w: V) -> V;
}

pub(crate) struct MacF32;
impl<V: Vector> Mac<V> for MacF32 {
    #[inline(always)]
    unsafe fn mac(acc: V, x: V, w: V) -> V {
        // SAFETY: the caller runs with the ISA's features.
        unsafe { x.fma(w, acc) }
    }
}

/// How to read 32-bit lanes from memory of one element type.
pub(crate) trait Load<V: Vector> {
    /// Stored elements of one lane.
    const PER_LANE: usize;
    type T: Copy;
    /// # Safety
    /// `p` is readable for `V::LANES * PER_LANE` elements.
    unsafe fn load(p: *const Self::T) -> V;
    /// The first `n` elements, fewer than a vector's; the rest are zero.
    ///
    /// # Safety
    /// `p` is readable for `n` elements.
    unsafe fn load_part(p: *const Self::T, n: usize) -> V;
}

pub(crate) struct F32;
impl<V: Vector> Load<V> for F32 {
    const PER_LANE: usize = 1;
    type T = f32;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_part(p.cast(), n) }
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
    ($(#[$doc:meta])* $name:ident, $per_lane:expr, $p:ident => $load:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;
        impl<V: Vector> Load<V> for $name {
            const PER_LANE: usize = $per_lane;
            type T = u16;
            #[inline(always)]
            unsafe fn load($p: *const u16) -> V {
                // SAFETY: the caller's promise.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn load_part(p: *const u16, n: usize) -> V {
                // SAFETY: the caller's promise for the copy; the copy holds LANES * PER_LANE <= 32 elements.
                unsafe {
                    let t = part16(p, n);
                    <Self as Load<V>>::load(t.as_ptr())
                }
            }
        }
    };
}
load_u16!(
    /// BF16 widened to f32.
    Bf16, 1, p => V::widen_bf16(p));
load_u16!(
    /// F16 widened to f32.
    F16, 1, p => V::widen_f16(p));
load_u16!(
    /// Pairs of BF16, as they are.
    Bf16Pair, 2, p => V::load(p.cast()));

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
