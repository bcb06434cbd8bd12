//! AVX-512: f32 in 16 lanes.

use std::arch::x86_64::*;

use bytemuck::cast;
use pulp::x86::V4;

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
    view::DType,
};

gemm_kernel!(f32_64x6, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, F32, 4 x 6, "gemm_f32xf32_f32_64x6_avx512");
gemm_kernel!(f32_32x12, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, F32, 2 x 12, "gemm_f32xf32_f32_32x12_avx512");
gemm_kernel!(f32_16x24, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, F32, 1 x 24, "gemm_f32xf32_f32_16x24_avx512");
gemm_kernel!(f32_48x8, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, F32, 3 x 8, "gemm_f32xf32_f32_48x8_avx512");

dot_kernel!(dot_f32, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, MacF32, 6, "dot_f32xf32_f32_avx512", F32 as F32, F32 as F32);
dot_kernel!(dot_f16, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, MacF32, 6, "dot_f32xf16_f32_avx512", F32 as F32, F16 as F16);
dot_kernel!(dot_bf16, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, MacF32, 6, "dot_f32xbf16_f32_avx512", F32 as F32, BF16 as Bf16);

quads_kernel!(dot_quads_f32, Isa::Avx512, [target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4, MacF32, F32 as f32, 4 x 6, 3, "dot_f32xf32_f32_16x6_avx512");

epilogues!([target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], V4);

pub(crate) const LEVEL: Level = Level {
    isa: Isa::Avx512,
    base: Some(Isa::Avx2),
    gemm: &[f32_32x12::KERNEL, f32_16x24::KERNEL, f32_48x8::KERNEL, f32_64x6::KERNEL],
    dot: &[dot_quads_f32::KERNEL, dot_f32::KERNEL, dot_f16::KERNEL, dot_bf16::KERNEL],
    stream: None,
    epilogues: EPILOGUES,
    tuning: Tuning { dot_rows: 24, dot_cost: 1.02, quads: &[DType::F32], copy_from: usize::MAX, load_bound: Some(16), tiles: None },
    detect: V4::is_available,
    faster: |_| true,
    around: None,
};

/// Sixteen lanes.
pub(crate) fn vectors() -> Option<V4> {
    V4::try_new()
}

impl Vector for V4 {
    const LANES: usize = 16;
    const REGISTERS: usize = 32;
    type F32s = __m512;
    type U32s = __m512i;
    type Mask = __mmask16;
    type Bits16 = [u16; 16];
    #[inline(always)]
    unsafe fn held() -> Self {
        // SAFETY: the caller's promise.
        unsafe { V4::new_unchecked() }
    }
    operations! { self;
        splat_f32s(x: f32) -> __m512 = self.avx512f._mm512_set1_ps(x);
        splat_u32s(x: u32) -> __m512i = self.avx512f._mm512_set1_epi32(x as i32);
        f32s_of(x: __m512i) -> __m512 = self.avx512f._mm512_castsi512_ps(x);
        bits_of(x: __m512) -> __m512i = self.avx512f._mm512_castps_si512(x);
        add_f32s(a: __m512, b: __m512) -> __m512 = self.avx512f._mm512_add_ps(a, b);
        sub_f32s(a: __m512, b: __m512) -> __m512 = self.avx512f._mm512_sub_ps(a, b);
        mul_f32s(a: __m512, b: __m512) -> __m512 = self.avx512f._mm512_mul_ps(a, b);
        div_f32s(a: __m512, b: __m512) -> __m512 = self.avx512f._mm512_div_ps(a, b);
        neg_f32s(a: __m512) -> __m512 = self.avx512dq._mm512_xor_ps(a, self.splat_f32s(-0.0));
        mul_add(a: __m512, b: __m512, c: __m512) -> __m512 = self.avx512f._mm512_fmadd_ps(a, b, c);
        greater_than_f32s(a: __m512, b: __m512) -> __mmask16 = self.avx512f._mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b);
        equal_f32s(a: __m512, b: __m512) -> __mmask16 = self.avx512f._mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b);
        greater_than_u32s(a: __m512i, b: __m512i) -> __mmask16 = self.avx512f._mm512_cmpgt_epu32_mask(a, b);
        select_f32s(k: __mmask16, yes: __m512, no: __m512) -> __m512 = self.avx512f._mm512_mask_blend_ps(k, no, yes);
        select_u32s(k: __mmask16, yes: __m512i, no: __m512i) -> __m512i = self.avx512f._mm512_mask_blend_epi32(k, no, yes);
        add_u32s(a: __m512i, b: __m512i) -> __m512i = self.avx512f._mm512_add_epi32(a, b);
        and_u32s(a: __m512i, b: __m512i) -> __m512i = self.avx512f._mm512_and_si512(a, b);
        or_u32s(a: __m512i, b: __m512i) -> __m512i = self.avx512f._mm512_or_si512(a, b);
        shl_u32s(a: __m512i, by: __m512i) -> __m512i = self.avx512f._mm512_sllv_epi32(a, by);
        shr_u32s(a: __m512i, by: __m512i) -> __m512i = self.avx512f._mm512_srlv_epi32(a, by);
        reduce_sum_f32s(x: __m512) -> f32 = self.avx512f._mm512_reduce_add_ps(x);
        reduce_max_f32s(x: __m512) -> f32 = self.avx512f._mm512_reduce_max_ps(x);
        reduce_min_f32s(x: __m512) -> f32 = self.avx512f._mm512_reduce_min_ps(x);
    }
    #[inline(always)]
    fn widen(self, x: [u16; 16]) -> __m512i {
        self.avx512f._mm512_cvtepu16_epi32(cast::<_, __m256i>(x))
    }
    #[inline(always)]
    fn narrow(self, x: __m512i) -> [u16; 16] {
        cast(self.avx512f._mm512_cvtepi32_epi16(x))
    }
    #[inline(always)]
    unsafe fn widen_f16(self, x: [u16; 16]) -> __m512 {
        self.avx512f._mm512_cvtph_ps(cast(x))
    }
    #[inline(always)]
    unsafe fn load_part(self, p: *const f32, n: usize) -> __m512 {
        // SAFETY: masked-off lanes are not read; `n < 16` lanes are readable by the caller's promise.
        unsafe { self.avx512f._mm512_maskz_loadu_ps((1u16 << n) - 1, p) }
    }
    #[inline(always)]
    unsafe fn broadcast(self, p: *const f32) -> __m512 {
        // SAFETY: 16 readable bytes, by the caller's promise.
        self.avx512f._mm512_broadcast_f32x4(unsafe { self.sse._mm_loadu_ps(p) })
    }
    #[inline(always)]
    fn sum_fours(self, c: [__m512; 4]) -> __m512 {
        let v = self.avx512f;
        let low = v._mm512_add_ps(v._mm512_unpacklo_ps(c[0], c[1]), v._mm512_unpackhi_ps(c[0], c[1]));
        let high = v._mm512_add_ps(v._mm512_unpacklo_ps(c[2], c[3]), v._mm512_unpackhi_ps(c[2], c[3]));
        let (x, y) = (v._mm512_castps_pd(low), v._mm512_castps_pd(high));
        let (even, odd) = (v._mm512_unpacklo_pd(x, y), v._mm512_unpackhi_pd(x, y));
        v._mm512_add_ps(v._mm512_castpd_ps(even), v._mm512_castpd_ps(odd))
    }
    #[inline(always)]
    fn sums(self, x: [__m512; 4]) -> [f32; 4] {
        let x = self.sum_fours(x);
        let high = self.avx512dq._mm512_extractf32x8_ps::<1>(x);
        let x = self.avx._mm256_add_ps(self.avx512f._mm512_castps512_ps256(x), high);
        let high = self.avx._mm256_extractf128_ps::<1>(x);
        cast(self.sse._mm_add_ps(self.avx._mm256_castps256_ps128(x), high))
    }
    /// Sums of pairs within 128 bits, then of quads, then of the four 128-bit lanes.
    #[inline(always)]
    fn sum_each(self, b: &mut [__m512; 16]) -> __m512 {
        let v = self.avx512f;
        let mut quads = [v._mm512_setzero_ps(); 4];
        for (quad, four) in quads.iter_mut().zip(b.as_chunks::<4>().0) {
            *quad = self.sum_fours(*four);
        }
        let mut halves = [v._mm512_setzero_ps(); 2];
        for (i, h) in halves.iter_mut().enumerate() {
            let (x, y) = (quads[2 * i], quads[2 * i + 1]);
            *h = v._mm512_add_ps(v._mm512_shuffle_f32x4::<0x88>(x, y), v._mm512_shuffle_f32x4::<0xdd>(x, y));
        }
        let (x, y) = (halves[0], halves[1]);
        v._mm512_add_ps(v._mm512_shuffle_f32x4::<0x88>(x, y), v._mm512_shuffle_f32x4::<0xdd>(x, y))
    }
    /// Pairs of rows, then quads, then 128-bit lanes, as for a 4x4 transpose of 4x4 blocks.
    #[inline(always)]
    fn transpose(self, b: &mut [__m512; 16]) {
        let v = self.avx512f;
        let mut t = [v._mm512_setzero_ps(); 16];
        for i in 0..8 {
            let (x, y) = (b[2 * i], b[2 * i + 1]);
            t[2 * i] = v._mm512_unpacklo_ps(x, y);
            t[2 * i + 1] = v._mm512_unpackhi_ps(x, y);
        }
        let mut q = t;
        for i in 0..4 {
            let mut d = [v._mm512_setzero_pd(); 4];
            for (d, t) in d.iter_mut().zip(&t[4 * i..]) {
                *d = v._mm512_castps_pd(*t);
            }
            q[4 * i] = v._mm512_castpd_ps(v._mm512_unpacklo_pd(d[0], d[2]));
            q[4 * i + 1] = v._mm512_castpd_ps(v._mm512_unpackhi_pd(d[0], d[2]));
            q[4 * i + 2] = v._mm512_castpd_ps(v._mm512_unpacklo_pd(d[1], d[3]));
            q[4 * i + 3] = v._mm512_castpd_ps(v._mm512_unpackhi_pd(d[1], d[3]));
        }
        for j in 0..4 {
            let (r0, r1, r2, r3) = (q[j], q[4 + j], q[8 + j], q[12 + j]);
            let lo01 = v._mm512_shuffle_f32x4::<0x88>(r0, r1);
            let hi01 = v._mm512_shuffle_f32x4::<0xdd>(r0, r1);
            let lo23 = v._mm512_shuffle_f32x4::<0x88>(r2, r3);
            let hi23 = v._mm512_shuffle_f32x4::<0xdd>(r2, r3);
            b[j] = v._mm512_shuffle_f32x4::<0x88>(lo01, lo23);
            b[4 + j] = v._mm512_shuffle_f32x4::<0x88>(hi01, hi23);
            b[8 + j] = v._mm512_shuffle_f32x4::<0xdd>(lo01, lo23);
            b[12 + j] = v._mm512_shuffle_f32x4::<0xdd>(hi01, hi23);
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        (*self).prefetch(p);
    }
    #[inline(always)]
    fn prefetch_l2(self, p: *const u8) {
        (*self).prefetch_l2(p);
    }
    #[inline(always)]
    fn prefetch_once(self, p: *const u8) {
        // Into the second level: at 64 bytes a load, past it takes 10 to 20% longer where memory reads 60 GB/s (Zen 4).
        (*self).prefetch_l2(p);
    }
    #[inline(always)]
    fn prefetch_write(self, p: *const u8) {
        (*self).prefetch_write(p);
    }
    #[inline(always)]
    fn call<K: Kernel>(self, k: K) -> K::Output {
        self.vectorize(Call(self, k))
    }
}
