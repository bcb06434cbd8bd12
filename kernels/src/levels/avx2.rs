//! AVX2 with FMA and F16C: f32 in 8 lanes.

use std::arch::x86_64::*;

use bytemuck::cast;
use pulp::x86::V3;

use crate::{
    isa::Isa,
    level::Level,
    micro::{
        dot::dot_kernel,
        epilogue::epilogues,
        quads::quads_kernel,
        tile::gemm_kernel,
        vector::MacF32,
    },
    simd::{Call, Kernel, Vector, operations},
    tuning::Tuning,
};

gemm_kernel!(f32_16x6, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V3, F32, 2 x 6, "gemm_f32xf32_f32_16x6_avx2");
gemm_kernel!(f32_8x12, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V3, F32, 1 x 12, "gemm_f32xf32_f32_8x12_avx2");

quads_kernel!(dot_quads_f32, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V3, MacF32, F32 as f32, 2 x 6, 3, "dot_f32xf32_f32_4x6_avx2");
dot_kernel!(dot_f32, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V3, MacF32, 2, "dot_f32xf32_f32_avx2", F32 as F32, F32 as F32);
dot_kernel!(dot_f16, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V3, MacF32, 2, "dot_f32xf16_f32_avx2", F32 as F32, F16 as F16);
dot_kernel!(dot_bf16, Isa::Avx2, [target_feature(enable = "avx2,fma,f16c")], V3, MacF32, 2, "dot_f32xbf16_f32_avx2", F32 as F32, BF16 as Bf16);

epilogues!([target_feature(enable = "avx2,fma,f16c")], V3);

pub(crate) const LEVEL: Level = Level {
    isa: Isa::Avx2,
    base: Some(Isa::Portable),
    gemm: &[f32_16x6::KERNEL, f32_8x12::KERNEL],
    dot: &[dot_quads_f32::KERNEL, dot_f32::KERNEL, dot_f16::KERNEL, dot_bf16::KERNEL],
    stream: None,
    epilogues: EPILOGUES,
    // The six rows of a tile, 4 KB apart, and two vectors of x for each leave the first-level cache no room: from 64 rows of x on
    // a copy costs less, and is up to 6% ahead.
    tuning: Tuning { dot_rows: 8, dot_cost: 1.5, quads: &[], copy_from: 64, load_bound: None, tiles: None },
    detect: || V3::is_available() && is_x86_feature_detected!("f16c"),
    faster: |_| true,
    around: None,
};

/// Eight lanes.
pub(crate) fn vectors() -> Option<V3> {
    V3::try_new()
}

/// The two halves together, then the halves of that, and of that.
macro_rules! reduce {
    ($self:ident, $x:ident, $f:ident) => {{
        let (x, sse) = ($x, $self.sse);
        let x = sse.$f($self.avx._mm256_castps256_ps128(x), $self.avx._mm256_extractf128_ps::<1>(x));
        let x = sse.$f(x, sse._mm_movehl_ps(x, x));
        sse._mm_cvtss_f32(sse.$f(x, sse._mm_shuffle_ps::<1>(x, x)))
    }};
}

impl Vector for V3 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    type F32s = __m256;
    type U32s = __m256i;
    type Mask = __m256;
    type Bits16 = [u16; 8];
    #[inline(always)]
    unsafe fn held() -> Self {
        // SAFETY: the caller's promise.
        unsafe { V3::new_unchecked() }
    }
    operations! { self;
        splat_f32s(x: f32) -> __m256 = self.avx._mm256_set1_ps(x);
        splat_u32s(x: u32) -> __m256i = self.avx._mm256_set1_epi32(x as i32);
        f32s_of(x: __m256i) -> __m256 = self.avx._mm256_castsi256_ps(x);
        bits_of(x: __m256) -> __m256i = self.avx._mm256_castps_si256(x);
        add_f32s(a: __m256, b: __m256) -> __m256 = self.avx._mm256_add_ps(a, b);
        sub_f32s(a: __m256, b: __m256) -> __m256 = self.avx._mm256_sub_ps(a, b);
        mul_f32s(a: __m256, b: __m256) -> __m256 = self.avx._mm256_mul_ps(a, b);
        div_f32s(a: __m256, b: __m256) -> __m256 = self.avx._mm256_div_ps(a, b);
        neg_f32s(a: __m256) -> __m256 = self.avx._mm256_xor_ps(a, self.splat_f32s(-0.0));
        mul_add(a: __m256, b: __m256, c: __m256) -> __m256 = self.fma._mm256_fmadd_ps(a, b, c);
        greater_than_f32s(a: __m256, b: __m256) -> __m256 = self.avx._mm256_cmp_ps::<_CMP_GT_OQ>(a, b);
        equal_f32s(a: __m256, b: __m256) -> __m256 = self.avx._mm256_cmp_ps::<_CMP_EQ_OQ>(a, b);
        greater_than_u32s(a: __m256i, b: __m256i) -> __m256 = self.f32s_of(self.avx2._mm256_cmpgt_epi32(a, b));
        select_f32s(mask: __m256, yes: __m256, no: __m256) -> __m256 = self.avx._mm256_blendv_ps(no, yes, mask);
        select_u32s(mask: __m256, yes: __m256i, no: __m256i) -> __m256i =
            self.bits_of(self.select_f32s(mask, self.f32s_of(yes), self.f32s_of(no)));
        add_u32s(a: __m256i, b: __m256i) -> __m256i = self.avx2._mm256_add_epi32(a, b);
        and_u32s(a: __m256i, b: __m256i) -> __m256i = self.avx2._mm256_and_si256(a, b);
        or_u32s(a: __m256i, b: __m256i) -> __m256i = self.avx2._mm256_or_si256(a, b);
        shl_u32s(a: __m256i, by: __m256i) -> __m256i = self.avx2._mm256_sllv_epi32(a, by);
        shr_u32s(a: __m256i, by: __m256i) -> __m256i = self.avx2._mm256_srlv_epi32(a, by);
        reduce_sum_f32s(x: __m256) -> f32 = reduce!(self, x, _mm_add_ps);
        reduce_max_f32s(x: __m256) -> f32 = reduce!(self, x, _mm_max_ps);
        reduce_min_f32s(x: __m256) -> f32 = reduce!(self, x, _mm_min_ps);
    }
    #[inline(always)]
    fn widen(self, x: [u16; 8]) -> __m256i {
        self.avx2._mm256_cvtepu16_epi32(cast::<_, __m128i>(x))
    }
    #[inline(always)]
    fn narrow(self, x: __m256i) -> [u16; 8] {
        let x = self.avx2._mm256_permute4x64_epi64::<0b1000>(self.avx2._mm256_packus_epi32(x, x));
        cast(self.avx._mm256_castsi256_si128(x))
    }
    #[inline(always)]
    unsafe fn widen_f16(self, x: [u16; 8]) -> __m256 {
        // SAFETY: F16C, by the caller's promise.
        unsafe { _mm256_cvtph_ps(cast(x)) }
    }
    #[inline(always)]
    unsafe fn broadcast(self, p: *const f32) -> __m256 {
        // SAFETY: 16 readable bytes, by the caller's promise.
        let four = unsafe { p.cast::<__m128>().read_unaligned() };
        self.avx._mm256_broadcast_ps(&four)
    }
    #[inline(always)]
    fn sum_fours(self, c: [__m256; 4]) -> __m256 {
        let v = self.avx;
        let low = v._mm256_add_ps(v._mm256_unpacklo_ps(c[0], c[1]), v._mm256_unpackhi_ps(c[0], c[1]));
        let high = v._mm256_add_ps(v._mm256_unpacklo_ps(c[2], c[3]), v._mm256_unpackhi_ps(c[2], c[3]));
        let (x, y) = (v._mm256_castps_pd(low), v._mm256_castps_pd(high));
        let (even, odd) = (v._mm256_unpacklo_pd(x, y), v._mm256_unpackhi_pd(x, y));
        v._mm256_add_ps(v._mm256_castpd_ps(even), v._mm256_castpd_ps(odd))
    }
    #[inline(always)]
    fn sums(self, x: [__m256; 4]) -> [f32; 4] {
        let x = self.sum_fours(x);
        let high = self.avx._mm256_extractf128_ps::<1>(x);
        cast(self.sse._mm_add_ps(self.avx._mm256_castps256_ps128(x), high))
    }
    /// Pairs of rows, then quads, then 128-bit halves.
    #[inline(always)]
    fn transpose(self, b: &mut [__m256; 16]) {
        let v = self.avx;
        let mut t: [__m256; 8] = [v._mm256_setzero_ps(); 8];
        for i in 0..4 {
            let (x, y) = (b[2 * i], b[2 * i + 1]);
            t[2 * i] = v._mm256_unpacklo_ps(x, y);
            t[2 * i + 1] = v._mm256_unpackhi_ps(x, y);
        }
        let mut q = t;
        for i in 0..2 {
            q[4 * i] = v._mm256_shuffle_ps::<0x44>(t[4 * i], t[4 * i + 2]);
            q[4 * i + 1] = v._mm256_shuffle_ps::<0xee>(t[4 * i], t[4 * i + 2]);
            q[4 * i + 2] = v._mm256_shuffle_ps::<0x44>(t[4 * i + 1], t[4 * i + 3]);
            q[4 * i + 3] = v._mm256_shuffle_ps::<0xee>(t[4 * i + 1], t[4 * i + 3]);
        }
        for j in 0..4 {
            b[j] = v._mm256_permute2f128_ps::<0x20>(q[j], q[4 + j]);
            b[4 + j] = v._mm256_permute2f128_ps::<0x31>(q[j], q[4 + j]);
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch of any address is harmless, and every x86-64 CPU has SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_l2(self, p: *const u8) {
        // SAFETY: as in `prefetch`: harmless at any address, and SSE.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_once(self, p: *const u8) {
        // SAFETY: as in `prefetch`: harmless at any address, and SSE.
        unsafe { _mm_prefetch::<_MM_HINT_NTA>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_write(self, p: *const u8) {
        // The intrinsic would become `prefetcht0`, as no list of features names this instruction.
        // SAFETY: as in `prefetch`: harmless at any address; a CPU without this one takes it for no operation.
        unsafe { std::arch::asm!("prefetchw [{}]", in(reg) p, options(nostack, preserves_flags, readonly)) }
    }
    #[inline(always)]
    fn call<K: Kernel>(self, k: K) -> K::Output {
        self.vectorize(Call(self, k))
    }
}
