//! AVX-512: f32 in 16 lanes.

use std::arch::x86_64::*;

use bytemuck::cast;
use pulp::{cast as pun, x86::V4};

use crate::{
    isa::Isa,
    level::Level,
    micro::{
        dot::dot_kernel,
        epilogue::epilogues,
        quads::{Quads, quads_kernel},
        tile::gemm_kernel,
        vector::{MacF32, Vector},
    },
    simd::{self, Call, Kernel},
    tuning::Tuning,
    view::DType,
};

/// Sixteen 32-bit lanes.
#[derive(Clone, Copy)]
pub(crate) struct V(pub __m512);

// SAFETY: each method is the intrinsic that does what the trait says; loads and stores touch exactly 16 lanes.
unsafe impl Vector for V {
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX-512F, by the trait's contract; so in every method below.
        unsafe { V(_mm512_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> Self {
        // SAFETY: 4 readable bytes, by the caller's promise.
        unsafe { V(_mm512_set1_ps(f32::from_bits(p.read_unaligned()))) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32) -> Self {
        // SAFETY: 16 readable lanes, by the caller's promise.
        unsafe { V(_mm512_loadu_ps(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const u32, n: usize) -> Self {
        // SAFETY: masked-off lanes are not read; `n < 16` lanes are readable by the caller's promise.
        unsafe { V(_mm512_maskz_loadu_ps((1u16 << n) - 1, p.cast())) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32) {
        // SAFETY: 16 writable lanes, by the caller's promise.
        unsafe { _mm512_storeu_ps(p.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn widen_bf16(p: *const u16) -> Self {
        // SAFETY: 16 readable u16, by the caller's promise.
        unsafe {
            let w = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            V(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(w)))
        }
    }
    #[inline(always)]
    unsafe fn widen_f16(p: *const u16) -> Self {
        // SAFETY: 16 readable u16, by the caller's promise.
        unsafe { V(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn narrow_bf16(self, p: *mut u16) {
        // SAFETY: the level's instructions, and 16 writable u16, by the caller's promise.
        unsafe { p.cast::<[u16; 16]>().write_unaligned(simd::to_bf16(V4::new_unchecked(), pun(self.0))) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { V(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { V(_mm512_add_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { V(_mm512_mul_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { V(_mm512_div_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn clamp(self, lo: f32, hi: f32) -> Self {
        // SAFETY: AVX-512F. The second operand of max/min is returned if either is NaN.
        unsafe { V(_mm512_min_ps(_mm512_set1_ps(hi), _mm512_max_ps(_mm512_set1_ps(lo), self.0))) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { V(_mm512_roundscale_ps::<8>(self.0)) }
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        // SAFETY: AVX-512F.
        unsafe { V(_mm512_scalef_ps(_mm512_set1_ps(1.0), self.0)) }
    }
    #[inline(always)]
    unsafe fn splat_f32(x: f32) -> Self {
        // SAFETY: AVX-512F.
        unsafe { V(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn sum_each(b: &mut [Self; 16]) -> Self {
        // SAFETY: AVX-512F. Sums of pairs within 128 bits, then of quads, then of the four 128-bit lanes.
        unsafe {
            let mut pairs = [_mm512_setzero_ps(); 8];
            for (i, p) in pairs.iter_mut().enumerate() {
                let (x, y) = (b[2 * i].0, b[2 * i + 1].0);
                *p = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
            }
            let mut quads = [_mm512_setzero_ps(); 4];
            for (i, q) in quads.iter_mut().enumerate() {
                let (x, y) = (_mm512_castps_pd(pairs[2 * i]), _mm512_castps_pd(pairs[2 * i + 1]));
                let (lo, hi) = (_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
                *q = _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
            }
            let mut halves = [_mm512_setzero_ps(); 2];
            for (i, h) in halves.iter_mut().enumerate() {
                let (x, y) = (quads[2 * i], quads[2 * i + 1]);
                *h = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(x, y), _mm512_shuffle_f32x4::<0xdd>(x, y));
            }
            let (x, y) = (halves[0], halves[1]);
            V(_mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(x, y), _mm512_shuffle_f32x4::<0xdd>(x, y)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(b: &mut [Self; 16]) {
        // SAFETY: AVX-512F. Pairs of rows, then quads, then 128-bit lanes, as for a 4x4 transpose of 4x4 blocks.
        unsafe {
            let mut t = [_mm512_setzero_ps(); 16];
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(b[2 * i].0, b[2 * i + 1].0);
                t[2 * i + 1] = _mm512_unpackhi_ps(b[2 * i].0, b[2 * i + 1].0);
            }
            let mut q = t;
            for i in 0..4 {
                let d: [__m512d; 4] = std::array::from_fn(|j| _mm512_castps_pd(t[4 * i + j]));
                q[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(d[0], d[2]));
                q[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(d[0], d[2]));
                q[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(d[1], d[3]));
                q[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(d[1], d[3]));
            }
            for j in 0..4 {
                let (r0, r1, r2, r3) = (q[j], q[4 + j], q[8 + j], q[12 + j]);
                let lo01 = _mm512_shuffle_f32x4::<0x88>(r0, r1);
                let hi01 = _mm512_shuffle_f32x4::<0xdd>(r0, r1);
                let lo23 = _mm512_shuffle_f32x4::<0x88>(r2, r3);
                let hi23 = _mm512_shuffle_f32x4::<0xdd>(r2, r3);
                b[j] = V(_mm512_shuffle_f32x4::<0x88>(lo01, lo23));
                b[4 + j] = V(_mm512_shuffle_f32x4::<0x88>(hi01, hi23));
                b[8 + j] = V(_mm512_shuffle_f32x4::<0xdd>(lo01, lo23));
                b[12 + j] = V(_mm512_shuffle_f32x4::<0xdd>(hi01, hi23));
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_once(p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_l2(p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_write(p: *const u8) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(p.cast()) }
    }
}

gemm_kernel!(f32_64x6, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V, F32, 4 x 6, "gemm_f32xf32_f32_64x6_avx512");
gemm_kernel!(f32_32x12, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V, F32, 2 x 12, "gemm_f32xf32_f32_32x12_avx512");
gemm_kernel!(f32_16x24, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V, F32, 1 x 24, "gemm_f32xf32_f32_16x24_avx512");
gemm_kernel!(f32_48x8, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V, F32, 3 x 8, "gemm_f32xf32_f32_48x8_avx512");

dot_kernel!(dot_f32, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V, MacF32, 6, "dot_f32xf32_f32_avx512", F32 as F32, F32 as F32);
dot_kernel!(dot_f16, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V, MacF32, 6, "dot_f32xf16_f32_avx512", F32 as F32, F16 as F16);
dot_kernel!(dot_bf16, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V, MacF32, 6, "dot_f32xbf16_f32_avx512", F32 as F32, BF16 as Bf16);

// SAFETY: as of `Vector`.
unsafe impl Quads for V {
    #[inline(always)]
    unsafe fn broadcast(p: *const u8) -> Self {
        // SAFETY: AVX-512F, and 16 readable bytes, by the caller's promise.
        unsafe { V(_mm512_broadcast_f32x4(_mm_loadu_ps(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn sum_fours(c: [Self; 4]) -> Self {
        // SAFETY: AVX-512F.
        unsafe {
            let low = _mm512_add_ps(_mm512_unpacklo_ps(c[0].0, c[1].0), _mm512_unpackhi_ps(c[0].0, c[1].0));
            let high = _mm512_add_ps(_mm512_unpacklo_ps(c[2].0, c[3].0), _mm512_unpackhi_ps(c[2].0, c[3].0));
            let (x, y) = (_mm512_castps_pd(low), _mm512_castps_pd(high));
            let (even, odd) = (_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
            V(_mm512_add_ps(_mm512_castpd_ps(even), _mm512_castpd_ps(odd)))
        }
    }
}

quads_kernel!(dot_quads_f32, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V, MacF32, F32 as f32, 4 x 6, 3, "dot_f32xf32_f32_16x6_avx512");

epilogues!([target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V);

pub(crate) const LEVEL: Level = Level {
    isa: Isa::Avx512,
    base: Some(Isa::Avx2),
    gemm: &[f32_32x12::KERNEL, f32_16x24::KERNEL, f32_48x8::KERNEL, f32_64x6::KERNEL],
    dot: &[dot_quads_f32::KERNEL, dot_f32::KERNEL, dot_f16::KERNEL, dot_bf16::KERNEL],
    stream: None,
    epilogues: EPILOGUES,
    tuning: Tuning { dot_rows: 24, dot_cost: 1.02, quads: &[DType::F32], copy_from: usize::MAX, load_bound: Some(16) },
    detect: V4::is_available,
    faster: |_| true,
    spins: &[],
    around: None,
};

/// Sixteen lanes.
pub(crate) fn vectors() -> Option<V4> {
    V4::try_new()
}

impl simd::Vector for V4 {
    type Bits16 = [u16; 16];
    #[inline(always)]
    fn widen(self, x: [u16; 16]) -> pulp::u32x16 {
        pun(self.avx512f._mm512_cvtepu16_epi32(cast::<_, __m256i>(x)))
    }
    #[inline(always)]
    fn narrow(self, x: pulp::u32x16) -> [u16; 16] {
        cast(self.avx512f._mm512_cvtepi32_epi16(pun::<_, __m512i>(x)))
    }
    #[inline(always)]
    fn sums(self, x: [pulp::f32x16; 4]) -> [f32; 4] {
        let mut halves = [self.splat_f32x8(0.0); 4];
        for (half, x) in halves.iter_mut().zip(x) {
            let low = self.avx512f._mm512_castps512_ps256(pun(x));
            *half = cast(self.avx._mm256_add_ps(low, self.avx512dq._mm512_extractf32x8_ps::<1>(pun(x))));
        }
        (*self).sums(halves)
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        (*self).prefetch(p);
    }
    #[inline(always)]
    fn call<K: Kernel>(self, k: K) -> K::Output {
        self.vectorize(Call(self, k))
    }
}
