//! AVX2 with FMA and F16C: f32 in 8 lanes.

use std::arch::x86_64::*;

use bytemuck::cast;
use pulp::{cast as pun, x86::V3};

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
};

/// Eight 32-bit lanes.
#[derive(Clone, Copy)]
pub(crate) struct V(__m256);

// SAFETY: each method is the intrinsic that does what the trait says; loads and stores touch exactly 8 lanes.
unsafe impl Vector for V {
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: AVX2 and FMA, by the trait's contract; so in every method below.
        unsafe { V(_mm256_setzero_ps()) }
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> Self {
        // SAFETY: 4 readable bytes, by the caller's promise.
        unsafe { V(_mm256_set1_ps(f32::from_bits(p.read_unaligned()))) }
    }
    #[inline(always)]
    unsafe fn load(p: *const u32) -> Self {
        // SAFETY: 8 readable lanes, by the caller's promise.
        unsafe { V(_mm256_loadu_ps(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32) {
        // SAFETY: 8 writable lanes, by the caller's promise.
        unsafe { _mm256_storeu_ps(p.cast(), self.0) }
    }
    #[inline(always)]
    unsafe fn widen_bf16(p: *const u16) -> Self {
        // SAFETY: 8 readable u16, by the caller's promise.
        unsafe {
            let w = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            V(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(w)))
        }
    }
    #[inline(always)]
    unsafe fn widen_f16(p: *const u16) -> Self {
        // SAFETY: 8 readable u16, by the caller's promise; F16C.
        unsafe { V(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn narrow_bf16(self, p: *mut u16) {
        // SAFETY: the level's instructions, and 8 writable u16, by the caller's promise.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(simd::to_bf16(V3::new_unchecked(), pun(self.0))) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: FMA.
        unsafe { V(_mm256_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: AVX.
        unsafe { V(_mm256_add_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: AVX.
        unsafe { V(_mm256_mul_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        // SAFETY: AVX.
        unsafe { V(_mm256_div_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn clamp(self, lo: f32, hi: f32) -> Self {
        // SAFETY: AVX. The second operand of max/min is returned if either is NaN.
        unsafe { V(_mm256_min_ps(_mm256_set1_ps(hi), _mm256_max_ps(_mm256_set1_ps(lo), self.0))) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: AVX.
        unsafe { V(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        // SAFETY: AVX2.
        unsafe {
            let n = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            V(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(n)))
        }
    }
    #[inline(always)]
    unsafe fn splat_f32(x: f32) -> Self {
        // SAFETY: AVX.
        unsafe { V(_mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn transpose(b: &mut [Self; 16]) {
        // SAFETY: AVX. Pairs of rows, then quads, then 128-bit halves.
        unsafe {
            let mut t = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(b[2 * i].0, b[2 * i + 1].0);
                t[2 * i + 1] = _mm256_unpackhi_ps(b[2 * i].0, b[2 * i + 1].0);
            }
            let mut q = t;
            for i in 0..2 {
                q[4 * i] = _mm256_shuffle_ps::<0x44>(t[4 * i], t[4 * i + 2]);
                q[4 * i + 1] = _mm256_shuffle_ps::<0xee>(t[4 * i], t[4 * i + 2]);
                q[4 * i + 2] = _mm256_shuffle_ps::<0x44>(t[4 * i + 1], t[4 * i + 3]);
                q[4 * i + 3] = _mm256_shuffle_ps::<0xee>(t[4 * i + 1], t[4 * i + 3]);
            }
            for j in 0..4 {
                b[j] = V(_mm256_permute2f128_ps::<0x20>(q[j], q[4 + j]));
                b[4 + j] = V(_mm256_permute2f128_ps::<0x31>(q[j], q[4 + j]));
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
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(p.cast()) }
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

gemm_kernel!(f32_16x6, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V, F32, 2 x 6, "gemm_f32xf32_f32_16x6_avx2");
gemm_kernel!(f32_8x12, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V, F32, 1 x 12, "gemm_f32xf32_f32_8x12_avx2");

// SAFETY: as of `Vector`.
unsafe impl Quads for V {
    #[inline(always)]
    unsafe fn broadcast(p: *const u8) -> Self {
        // SAFETY: AVX, and 16 readable bytes, by the caller's promise.
        unsafe { V(_mm256_broadcast_ps(&p.cast::<__m128>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn sum_fours(c: [Self; 4]) -> Self {
        // SAFETY: AVX.
        unsafe {
            let low = _mm256_add_ps(_mm256_unpacklo_ps(c[0].0, c[1].0), _mm256_unpackhi_ps(c[0].0, c[1].0));
            let high = _mm256_add_ps(_mm256_unpacklo_ps(c[2].0, c[3].0), _mm256_unpackhi_ps(c[2].0, c[3].0));
            let (x, y) = (_mm256_castps_pd(low), _mm256_castps_pd(high));
            let (even, odd) = (_mm256_unpacklo_pd(x, y), _mm256_unpackhi_pd(x, y));
            V(_mm256_add_ps(_mm256_castpd_ps(even), _mm256_castpd_ps(odd)))
        }
    }
}

quads_kernel!(dot_quads_f32, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V, MacF32, F32 as f32, 2 x 6, 3, "dot_f32xf32_f32_4x6_avx2");
dot_kernel!(dot_f32, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V, MacF32, 2, "dot_f32xf32_f32_avx2", F32 as F32, F32 as F32);
dot_kernel!(dot_f16, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V, MacF32, 2, "dot_f32xf16_f32_avx2", F32 as F32, F16 as F16);
dot_kernel!(dot_bf16, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V, MacF32, 2, "dot_f32xbf16_f32_avx2", F32 as F32, BF16 as Bf16);

epilogues!([target_feature(enable = "avx2,fma,f16c")], V);

pub(crate) const LEVEL: Level = Level {
    isa: Isa::Avx2,
    base: Some(Isa::Portable),
    gemm: &[f32_16x6::KERNEL, f32_8x12::KERNEL],
    dot: &[dot_quads_f32::KERNEL, dot_f32::KERNEL, dot_f16::KERNEL, dot_bf16::KERNEL],
    stream: None,
    epilogues: EPILOGUES,
    // The six rows of a tile, 4 KB apart, and two vectors of x for each leave the first-level cache no room: from 64 rows of x on
    // a copy costs less, and is up to 6% ahead.
    tuning: Tuning { dot_rows: 8, dot_cost: 1.5, quads: &[], copy_from: 64, load_bound: None },
    detect: || V3::is_available() && is_x86_feature_detected!("f16c"),
    faster: |_| true,
    spins: &[],
    around: None,
};

/// Eight lanes.
pub(crate) fn vectors() -> Option<V3> {
    V3::try_new()
}

impl simd::Vector for V3 {
    type Bits16 = [u16; 8];
    #[inline(always)]
    fn widen(self, x: [u16; 8]) -> pulp::u32x8 {
        cast(self.avx2._mm256_cvtepu16_epi32(cast::<_, __m128i>(x)))
    }
    #[inline(always)]
    fn narrow(self, x: pulp::u32x8) -> [u16; 8] {
        let x: __m256i = cast(x);
        let x = self.avx2._mm256_permute4x64_epi64::<0b1000>(self.avx2._mm256_packus_epi32(x, x));
        cast(self.avx._mm256_castsi256_si128(x))
    }
    #[inline(always)]
    fn sums(self, x: [pulp::f32x8; 4]) -> [f32; 4] {
        let [a, b, c, d]: [__m256; 4] = pun(x);
        let x = self.avx._mm256_hadd_ps(self.avx._mm256_hadd_ps(a, b), self.avx._mm256_hadd_ps(c, d));
        let high = self.avx._mm256_extractf128_ps::<1>(x);
        cast(self.sse._mm_add_ps(self.avx._mm256_castps256_ps128(x), high))
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch of any address is harmless, and every x86-64 CPU has SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn call<K: Kernel>(self, k: K) -> K::Output {
        self.vectorize(Call(self, k))
    }
}
