//! AArch64 Advanced SIMD, the baseline of every 64-bit Arm CPU.
//!
//! The epilogues are the generic ones of [`crate::micro`]. The tiles are their own: NEON multiplies by a
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
    micro::epilogue::epilogues,
    simd::{Call, Kernel, Vector, operations},
    tuning::Tuning,
};

/// Rows of x in a panel: two registers of f32, four BFMMLA pairs.
pub(super) const MR: usize = 8;
/// Rows of W in a tile: with [`MR`], 24 of the 32 registers accumulate, 6 times the 4 cycles of latency of 4 pipes.
pub(super) const NR: usize = 12;

/// Prefetches the line `offset` bytes behind `p`; any address will do.
#[inline(always)]
pub(super) fn prefetch(p: *const u8, offset: usize) {
    // SAFETY: a prefetch reads no memory that the program sees, and faults on no address.
    unsafe {
        asm!("prfm pldl1keep, [{p}, {offset}]", p = in(reg) p, offset = in(reg) offset,
            options(nostack, readonly, preserves_flags));
    }
}

epilogues!([], Neon);

pub(crate) const LEVEL: Level = Level {
    isa: Isa::Neon,
    base: Some(Isa::Portable),
    gemm: &[fmla::KERNEL],
    dot: dot::NEON,
    stream: None,
    epilogues: EPILOGUES,
    tuning: Tuning { dot_rows: 6, dot_cost: 1.5, quads: &[], copy_from: usize::MAX, load_bound: None, tiles: None },
    detect: || std::arch::is_aarch64_feature_detected!("neon"),
    faster: |_| true,
    around: None,
};

/// Four lanes.
pub(crate) fn vectors() -> Option<Neon> {
    Neon::try_new()
}

impl Vector for Neon {
    const LANES: usize = 4;
    const REGISTERS: usize = 32;
    type F32s = float32x4_t;
    type U32s = uint32x4_t;
    type Mask = uint32x4_t;
    type Bits16 = [u16; 4];
    #[inline(always)]
    unsafe fn held() -> Self {
        // SAFETY: the caller's promise.
        unsafe { Neon::new_unchecked() }
    }
    operations! { self;
        splat_f32s(x: f32) -> float32x4_t = self.neon.vdupq_n_f32(x);
        splat_u32s(x: u32) -> uint32x4_t = self.neon.vdupq_n_u32(x);
        f32s_of(x: uint32x4_t) -> float32x4_t = self.neon.vreinterpretq_f32_u32(x);
        bits_of(x: float32x4_t) -> uint32x4_t = self.neon.vreinterpretq_u32_f32(x);
        add_f32s(a: float32x4_t, b: float32x4_t) -> float32x4_t = self.neon.vaddq_f32(a, b);
        sub_f32s(a: float32x4_t, b: float32x4_t) -> float32x4_t = self.neon.vsubq_f32(a, b);
        mul_f32s(a: float32x4_t, b: float32x4_t) -> float32x4_t = self.neon.vmulq_f32(a, b);
        div_f32s(a: float32x4_t, b: float32x4_t) -> float32x4_t = self.neon.vdivq_f32(a, b);
        neg_f32s(a: float32x4_t) -> float32x4_t = self.neon.vnegq_f32(a);
        mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = self.neon.vfmaq_f32(c, a, b);
        greater_than_f32s(a: float32x4_t, b: float32x4_t) -> uint32x4_t = self.neon.vcgtq_f32(a, b);
        equal_f32s(a: float32x4_t, b: float32x4_t) -> uint32x4_t = self.neon.vceqq_f32(a, b);
        greater_than_u32s(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t = self.neon.vcgtq_u32(a, b);
        select_f32s(mask: uint32x4_t, yes: float32x4_t, no: float32x4_t) -> float32x4_t = self.neon.vbslq_f32(mask, yes, no);
        select_u32s(mask: uint32x4_t, yes: uint32x4_t, no: uint32x4_t) -> uint32x4_t = self.neon.vbslq_u32(mask, yes, no);
        add_u32s(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t = self.neon.vaddq_u32(a, b);
        and_u32s(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t = self.neon.vandq_u32(a, b);
        or_u32s(a: uint32x4_t, b: uint32x4_t) -> uint32x4_t = self.neon.vorrq_u32(a, b);
        shl_u32s(a: uint32x4_t, by: uint32x4_t) -> uint32x4_t = self.neon.vshlq_u32(a, self.neon.vreinterpretq_s32_u32(by));
        shr_u32s(a: uint32x4_t, by: uint32x4_t) -> uint32x4_t =
            self.neon.vshlq_u32(a, self.neon.vnegq_s32(self.neon.vreinterpretq_s32_u32(by)));
        reduce_sum_f32s(x: float32x4_t) -> f32 = self.neon.vaddvq_f32(x);
        reduce_max_f32s(x: float32x4_t) -> f32 = self.neon.vmaxvq_f32(x);
        reduce_min_f32s(x: float32x4_t) -> f32 = self.neon.vminvq_f32(x);
        widen(x: [u16; 4]) -> uint32x4_t = self.neon.vmovl_u16(cast::<_, uint16x4_t>(x));
        narrow(x: uint32x4_t) -> [u16; 4] = cast(self.neon.vmovn_u32(x));
        sums(x: [float32x4_t; 4]) -> [f32; 4] = cast(self.sum_fours(x));
    }
    #[inline(always)]
    unsafe fn widen_f16(self, x: [u16; 4]) -> float32x4_t {
        // SAFETY: NEON, as the token proves.
        unsafe { vcvt_f32_f16(vreinterpret_f16_u16(cast(x))) }
    }
    #[inline(always)]
    fn sum_fours(self, [a, b, c, d]: [float32x4_t; 4]) -> float32x4_t {
        self.neon.vpaddq_f32(self.neon.vpaddq_f32(a, b), self.neon.vpaddq_f32(c, d))
    }
    #[inline(always)]
    fn transpose(self, block: &mut [float32x4_t; 16]) {
        let v = self.neon;
        let d = |x| v.vreinterpretq_f64_f32(x);
        let [r0, r1, r2, r3] = [block[0], block[1], block[2], block[3]];
        let (a, b) = (v.vtrn1q_f32(r0, r1), v.vtrn2q_f32(r0, r1));
        let (c, e) = (v.vtrn1q_f32(r2, r3), v.vtrn2q_f32(r2, r3));
        block[0] = v.vreinterpretq_f32_f64(v.vtrn1q_f64(d(a), d(c)));
        block[1] = v.vreinterpretq_f32_f64(v.vtrn1q_f64(d(b), d(e)));
        block[2] = v.vreinterpretq_f32_f64(v.vtrn2q_f64(d(a), d(c)));
        block[3] = v.vreinterpretq_f32_f64(v.vtrn2q_f64(d(b), d(e)));
    }
    #[inline(always)]
    fn call<K: Kernel>(self, k: K) -> K::Output {
        self.vectorize(Call(self, k))
    }
}
