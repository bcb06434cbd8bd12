//! AArch64 Advanced SIMD, the baseline of every 64-bit Arm CPU.
//!
//! The epilogues are the generic ones of [`crate::micro`] on pairs of registers. The tiles are their own: NEON multiplies by a
//! lane of a register, so a tile is `[k][12]` and one load brings four broadcasts ([`fmla`]). So are the few-row kernels ([`dot`]).
//!
//! F16 weights are widened (`FCVTL`) and multiplied in f32. `FMLAL` would save nothing: it too yields four sums per
//! instruction, and it would round the activations to F16, 11 bits and 65504 at most.

pub(super) mod dot;
mod fmla;

use std::arch::{aarch64::*, asm};

use pulp::{aarch64::Neon, cast};

use crate::{
    isa::Isa,
    level::Level,
    micro::{epilogue::epilogues, vector::Vector},
    simd::{self, Call, Kernel},
    tuning::Tuning,
};

/// Rows of x in a panel: two registers of f32, four BFMMLA pairs.
pub(super) const MR: usize = 8;
/// Rows of W in a tile: with [`MR`], 24 of the 32 registers accumulate, 6 times the 4 cycles of latency of 4 pipes.
pub(super) const NR: usize = 12;

/// Eight 32-bit lanes in two registers.
#[derive(Clone, Copy)]
pub(crate) struct V(pub [float32x4_t; 2]);

impl V {
    #[inline(always)]
    fn zip(self, b: V, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> V {
        V([f(self.0[0], b.0[0]), f(self.0[1], b.0[1])])
    }

    /// Sum of the lanes.
    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: NEON, which every AArch64 CPU of Rust's targets has.
        unsafe { vaddvq_f32(vaddq_f32(self.0[0], self.0[1])) }
    }
}

/// Transposes a 4x4 block.
///
/// # Safety
/// None beyond NEON, which every AArch64 CPU of Rust's targets has.
#[inline(always)]
unsafe fn transpose4(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: NEON alone.
    unsafe {
        let d = |x| vreinterpretq_f64_f32(x);
        let (a, b) = (vtrn1q_f32(r[0], r[1]), vtrn2q_f32(r[0], r[1]));
        let (c, e) = (vtrn1q_f32(r[2], r[3]), vtrn2q_f32(r[2], r[3]));
        [
            vreinterpretq_f32_f64(vtrn1q_f64(d(a), d(c))),
            vreinterpretq_f32_f64(vtrn1q_f64(d(b), d(e))),
            vreinterpretq_f32_f64(vtrn2q_f64(d(a), d(c))),
            vreinterpretq_f32_f64(vtrn2q_f64(d(b), d(e))),
        ]
    }
}

/// Prefetches the line `offset` bytes behind `p`; any address will do.
#[inline(always)]
pub(super) fn prefetch(p: *const u8, offset: usize) {
    // SAFETY: a prefetch reads no memory that the program sees, and faults on no address.
    unsafe {
        asm!("prfm pldl1keep, [{p}, {offset}]", p = in(reg) p, offset = in(reg) offset,
            options(nostack, readonly, preserves_flags));
    }
}

// SAFETY: each method is the intrinsics that do what the trait says; loads and stores touch exactly 8 lanes.
unsafe impl Vector for V {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: NEON; so in every method below.
        unsafe { V([vdupq_n_f32(0.0); 2]) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> Self {
        // SAFETY: 4 readable bytes, by the caller's promise.
        unsafe { V([vdupq_n_f32(f32::from_bits(p.read_unaligned())); 2]) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32) -> Self {
        // SAFETY: 8 readable lanes, by the caller's promise.
        unsafe { V([vld1q_f32(p.cast()), vld1q_f32(p.add(4).cast())]) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32) {
        // SAFETY: 8 writable lanes, by the caller's promise.
        unsafe {
            vst1q_f32(p.cast(), self.0[0]);
            vst1q_f32(p.add(4).cast(), self.0[1]);
        }
    }
    #[inline(always)]
    unsafe fn widen_bf16(p: *const u16) -> Self {
        // SAFETY: 8 readable u16, by the caller's promise.
        unsafe {
            let w = vld1q_u16(p);
            V([
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(w))),
                vreinterpretq_f32_u32(vshll_high_n_u16::<16>(w)),
            ])
        }
    }
    #[inline(always)]
    unsafe fn widen_f16(p: *const u16) -> Self {
        // SAFETY: 8 readable u16, by the caller's promise.
        unsafe {
            let w = vreinterpretq_f16_u16(vld1q_u16(p));
            V([vcvt_f32_f16(vget_low_f16(w)), vcvt_high_f32_f16(w)])
        }
    }
    #[inline(always)]
    unsafe fn narrow_bf16(self, p: *mut u16) {
        // SAFETY: NEON, and 8 writable u16, by the caller's promise.
        unsafe {
            let neon = Neon::new_unchecked();
            p.cast::<[[u16; 4]; 2]>().write_unaligned(self.0.map(|x| simd::to_bf16(neon, cast(x))));
        }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: NEON.
        unsafe { V([vfmaq_f32(c.0[0], self.0[0], b.0[0]), vfmaq_f32(c.0[1], self.0[1], b.0[1])]) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: NEON.
        self.zip(b, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: NEON.
        self.zip(b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        // SAFETY: NEON.
        self.zip(b, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn clamp(self, lo: f32, hi: f32) -> Self {
        // SAFETY: NEON. FMAX and FMIN return NaN if either operand is.
        unsafe { V(self.0.map(|x| vminq_f32(vmaxq_f32(x, vdupq_n_f32(lo)), vdupq_n_f32(hi)))) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: NEON.
        unsafe { V(self.0.map(|x| vrndnq_f32(x))) }
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        // SAFETY: NEON.
        unsafe {
            V(self.0.map(|n| {
                let exponent = vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent))
            }))
        }
    }
    #[inline(always)]
    unsafe fn splat_f32(x: f32) -> Self {
        // SAFETY: NEON.
        unsafe { V([vdupq_n_f32(x); 2]) }
    }
    #[inline(always)]
    unsafe fn transpose(block: &mut [Self; 16]) {
        let rows = *block;
        for (g, h) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            // SAFETY: NEON.
            let t = unsafe { transpose4(std::array::from_fn(|i| rows[4 * g + i].0[h])) };
            for (i, t) in t.into_iter().enumerate() {
                block[4 * h + i].0[g] = t;
            }
        }
    }
}

epilogues!([], V);

pub(crate) const LEVEL: Level = Level {
    isa: Isa::Neon,
    base: Some(Isa::Portable),
    gemm: &[fmla::KERNEL],
    dot: dot::NEON,
    stream: None,
    epilogues: EPILOGUES,
    tuning: Tuning { dot_rows: 6, dot_cost: 1.5, quads: &[], copy_from: usize::MAX, load_bound: None },
    detect: || std::arch::is_aarch64_feature_detected!("neon"),
    faster: |_| true,
    spins: &[],
    around: None,
};

/// Four lanes.
pub(crate) fn vectors() -> Option<Neon> {
    Neon::try_new()
}

impl simd::Vector for Neon {
    type Bits16 = [u16; 4];
    #[inline(always)]
    fn widen(self, x: [u16; 4]) -> pulp::u32x4 {
        cast(self.neon.vmovl_u16(cast::<_, uint16x4_t>(x)))
    }
    #[inline(always)]
    fn narrow(self, x: pulp::u32x4) -> [u16; 4] {
        cast(self.neon.vmovn_u32(cast::<_, uint32x4_t>(x)))
    }
    #[inline(always)]
    fn sums(self, x: [pulp::f32x4; 4]) -> [f32; 4] {
        let [a, b, c, d]: [float32x4_t; 4] = cast(x);
        cast(self.neon.vpaddq_f32(self.neon.vpaddq_f32(a, b), self.neon.vpaddq_f32(c, d)))
    }
    #[inline(always)]
    fn call<K: Kernel>(self, k: K) -> K::Output {
        self.vectorize(Call(self, k))
    }
}
