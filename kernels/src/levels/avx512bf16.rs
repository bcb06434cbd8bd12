//! AVX-512 with `vdpbf16ps`: pairs of BF16, and attention of four queries over a cache as it lies.

use std::{arch::x86_64::*, mem::MaybeUninit};

use pulp::x86::V4;

pub(crate) use super::avx512::vectors;
use super::avx512;
use crate::{
    contract::{STREAM_KEYS, STREAM_ROWS, StreamKernel},
    isa::Isa,
    level::Level,
    micro::{
        dot::dot_kernel,
        quads::quads_kernel,
        tile::gemm_kernel,
        vector::{Mac, store},
    },
    simd::Vector,
    tuning::Tuning,
    view::DType,
};

struct MacBf16;
impl Mac<V4> for MacBf16 {
    #[inline(always)]
    unsafe fn mac(_: V4, acc: __m512, x: __m512, w: __m512) -> __m512 {
        // SAFETY: the CPU has the level, by the caller's promise; a kernel is called through its row alone, and `Isa::check` let
        // the engine have it.
        unsafe { dot(acc, x, w) }
    }
}

gemm_kernel!(bf16_64x6, Isa::Avx512Bf16, [target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")], V4, MacBf16, 4 x 6, "gemm_bf16xbf16_f32_64x6_avx512bf16");
gemm_kernel!(bf16_32x12, Isa::Avx512Bf16, [target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")], V4, MacBf16, 2 x 12, "gemm_bf16xbf16_f32_32x12_avx512bf16");
gemm_kernel!(bf16_16x24, Isa::Avx512Bf16, [target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")], V4, MacBf16, 1 x 24, "gemm_bf16xbf16_f32_16x24_avx512bf16");
gemm_kernel!(bf16_48x8, Isa::Avx512Bf16, [target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")], V4, MacBf16, 3 x 8, "gemm_bf16xbf16_f32_48x8_avx512bf16");

dot_kernel!(dot_bf16, Isa::Avx512Bf16, [target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")], V4, MacBf16, 6, "dot_bf16xbf16_f32_avx512bf16", BF16 as Bf16Pair, BF16 as Bf16Pair);
quads_kernel!(dot_quads_bf16, Isa::Avx512Bf16, [target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")], V4, MacBf16, BF16 as u16, 4 x 6, 3, "dot_bf16xbf16_f32_16x6_avx512bf16");

pub(crate) const LEVEL: Level = Level {
    isa: Isa::Avx512Bf16,
    base: Some(Isa::Avx512),
    gemm: &[bf16_32x12::KERNEL, bf16_16x24::KERNEL, bf16_48x8::KERNEL, bf16_64x6::KERNEL],
    dot: &[dot_quads_bf16::KERNEL, dot_bf16::KERNEL],
    stream: Some(&STREAM_BF16),
    tuning: Tuning { quads: &[DType::F32, DType::BF16], ..avx512::LEVEL.tuning },
    detect: || is_x86_feature_detected!("avx512bf16"),
    // On Intel cores `vdpbf16ps` multiplies more slowly than FMA does after widening (kernels/FIGURES.md, Emerald Rapids).
    faster: |vendor| vendor != *b"GenuineIntel",
    ..avx512::LEVEL
};

const STREAM_BF16: StreamKernel =
    StreamKernel { name: "attention_stream_bf16_avx512bf16", isa: Isa::Avx512Bf16, features: 32, scores, weigh };

/// Keys of a turn of [`scores`]: as many chains of multiply-adds hide their latency.
const KEYS: usize = 8;

/// `contract::StreamScores`. A vector holds eight features of each query, 128 bits for one; those of a key are broadcast to
/// all four while they are loaded. What is left to add are four neighbouring lanes, of four keys at once: nine operations,
/// where a vector for each query and key would take 45.
///
/// # Safety
/// As `contract::StreamScores`.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn scores(q: *const u16, keys: *const u16, n: usize, d: usize, s: *mut f32, ahead: *const u8) {
    // SAFETY: features `< d` of keys `< n` are read; scores are written to the end of `n`'s group of eight, inside STREAM_KEYS.
    unsafe {
        match d {
            64 => scores_of::<64>(q, keys, n, d, s, ahead),
            128 => scores_of::<128>(q, keys, n, d, s, ahead),
            _ => scores_of::<0>(q, keys, n, d, s, ahead),
        }
    }
}

/// [`scores`] for heads of `D` features, whose loops unroll, or 0 for any.
///
/// # Safety
/// As [`scores`].
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn scores_of<const D: usize>(
    q: *const u16,
    keys: *const u16,
    n: usize,
    d: usize,
    s: *mut f32,
    ahead: *const u8,
) {
    let d = if D > 0 { D } else { d };
    // SAFETY: features `< d` of keys `< n` are read, the last key standing in for those past it; scores are written to the end
    // of `n`'s group of eight, inside STREAM_KEYS: the caller's promise.
    unsafe {
        for j in (0..n).step_by(KEYS) {
            let mut sums = [_mm512_setzero_ps(); KEYS];
            for at in (0..d).step_by(8) {
                fetch(ahead, 2 * (j * d + at * KEYS), 2 * 8 * KEYS);
                let x = _mm512_loadu_ps(q.add(at * STREAM_ROWS).cast());
                for (i, sum) in sums.iter_mut().enumerate() {
                    // Past the last key stands the last: nothing else of the cache is read.
                    let key = if j + KEYS <= n { j + i } else { (j + i).min(n - 1) };
                    let w = _mm512_broadcast_f32x4(_mm_loadu_ps(keys.add(key * d + at).cast()));
                    *sum = dot(*sum, x, w);
                }
            }
            for (i, c) in sums.as_chunks::<4>().0.iter().enumerate() {
                store::<V4>(s.add((j + 4 * i) * STREAM_ROWS), V4::held().sum_fours(*c));
            }
        }
    }
}

/// `contract::StreamWeigh`. Two values, interleaved, meet two probabilities, rounded to BF16 and broadcast.
///
/// # Safety
/// As `contract::StreamWeigh`.
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn weigh(p: *const f32, values: *const u16, n: usize, d: usize, o: *mut f32, ahead: *const u8) {
    // SAFETY: features `< d` of values `< n`, and probabilities to the end of `n`'s group of four, are read.
    unsafe {
        let mut pairs = [MaybeUninit::<u64>::uninit(); STREAM_KEYS / 4 * STREAM_ROWS];
        for i in 0..n.div_ceil(4) {
            let x = _mm512_cvtneps_pbh(_mm512_loadu_ps(p.add(i * 16)));
            _mm256_storeu_ps(pairs[i * STREAM_ROWS..].as_mut_ptr().cast(), std::mem::transmute::<__m256bh, __m256>(x));
        }
        let pairs = pairs.as_ptr().cast();
        let mut at = 0;
        while at + 64 <= d {
            match d {
                64 => weigh_some::<2>(pairs, values, n, 64, o.add(at), ahead),
                128 => weigh_some::<2>(pairs, values.add(at), n, 128, o.add(at), ahead.wrapping_add(2 * at)),
                _ => weigh_some::<2>(pairs, values.add(at), n, d, o.add(at), ahead.wrapping_add(2 * at)),
            }
            at += 64;
        }
        if at < d {
            weigh_some::<1>(pairs, values.add(at), n, d, o.add(at), ahead.wrapping_add(2 * at));
        }
    }
}

/// [`weigh`] for `32 C` features from where `values`, `o` and `ahead` point to.
///
/// # Safety
/// As [`weigh`]; `p` is its probabilities as pairs of BF16.
#[inline]
#[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn weigh_some<const C: usize>(
    p: *const i32,
    values: *const u16,
    n: usize,
    d: usize,
    o: *mut f32,
    ahead: *const u8,
) {
    // SAFETY: `32 C` features of values `< n` and of `o` are inside their rows, as `weigh` cuts `d` so; of `p` the pairs of `n`
    // values are read, which `weigh` wrote.
    unsafe {
        let mut acc = [[[_mm512_setzero_ps(); 2]; C]; STREAM_ROWS];
        for j in (0..n).step_by(2) {
            fetch(ahead, 2 * j * d, 64 * C);
            fetch(ahead, 2 * (j + 1) * d, 64 * C);
            // The probability of a value past the last is 0: the last stands in for it.
            let (a, b) = (values.add(j * d), values.add((j + 1).min(n - 1) * d));
            let mut v = [[_mm512_setzero_ps(); 2]; C];
            for (c, v) in v.iter_mut().enumerate() {
                let (a, b) = (_mm512_loadu_si512(a.add(32 * c).cast()), _mm512_loadu_si512(b.add(32 * c).cast()));
                *v = [
                    _mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b)),
                    _mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b)),
                ];
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let p = _mm512_castsi512_ps(_mm512_set1_epi32(*p.add(j / 4 * 8 + 2 * r + j % 4 / 2)));
                for (acc, v) in acc.as_flattened_mut().iter_mut().zip(v.as_flattened()) {
                    *acc = dot(*acc, p, *v);
                }
            }
        }
        // Unpacked by 128 bits: the low half has features 0-3, 8-11, 16-19, 24-27 of each 32.
        let first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        for (r, acc) in acc.iter().enumerate() {
            for (c, &[low, high]) in acc.iter().enumerate() {
                for (h, order) in [first, second].into_iter().enumerate() {
                    let o = o.add(r * d + 32 * c + 16 * h);
                    let x = _mm512_permutex2var_ps(low, order, high);
                    _mm512_storeu_ps(o, _mm512_add_ps(_mm512_loadu_ps(o), x));
                }
            }
        }
    }
}

/// Fetches `bytes`, a multiple of 64, `at` bytes from `ahead`.
#[inline]
#[target_feature(enable = "avx512f")]
fn fetch(ahead: *const u8, at: usize, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(at + line).cast());
    }
}

/// `acc` and the products of pairs of BF16.
#[inline]
#[target_feature(enable = "avx512bf16,avx512f")]
fn dot(acc: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: all three types are 512 bits of any content.
    unsafe {
        _mm512_dpbf16_ps(acc, std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b))
    }
}
