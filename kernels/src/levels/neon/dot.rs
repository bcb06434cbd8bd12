//! Few-row kernels: four rows of W at a time by one or two of x.
//!
//! A vector is 16 bytes and a multiply-add takes four cycles: one row of W would keep one or two chains of them busy and
//! stop at a quarter of what memory delivers. Four rows, two vectors of each at a time, make eight chains and read x once for all four. The hardware
//! prefetches four streams by itself.

use std::arch::aarch64::float32x4_t;

use pulp::aarch64::Neon;

use crate::{
    contract::DotKernel,
    isa::Isa,
    micro::vector::{Bf16, F16, F32, Load, Mac, MacF32, stamp},
    simd::Vector,
    view::{DType, Format},
};

/// Rows of x in a block.
const MR: usize = 2;
/// Rows of W in a block.
const NR: usize = 4;

/// Vectors of each row that are multiplied at a time.
const VECS: usize = 2;

/// `contract::Dot`.
///
/// # Safety
/// As `contract::Dot`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn dot<M: Mac<Neon>, X: Load<Neon>, W: Load<Neon>>(
    k: usize,
    x: *const u8,
    x_stride: usize,
    rows: usize,
    w: *const u8,
    w_stride: usize,
    n: usize,
    out: *mut f32,
    out_stride: usize,
    _next: *const u8,
) {
    let (x, x_stride) = (x.cast::<X::T>(), x_stride / size_of::<X::T>());
    let (w, w_stride) = (w.cast::<W::T>(), w_stride / size_of::<W::T>());
    // SAFETY: blocks are of rows of x below `rows` and of W below `n` alone, which are readable, and of `out`, which is writable,
    // by the caller's promise.
    unsafe {
        let mut j = 0;
        while j < n {
            let wj = w.add(j * w_stride);
            let whole = n - j >= NR;
            let mut i = 0;
            while i < rows {
                let (x, out) = (x.add(i * x_stride), out.add(i * out_stride + j));
                i += match (whole, rows - i) {
                    (true, MR..) => block::<M, X, W, MR, NR>(k, x, x_stride, wj, w_stride, out, out_stride),
                    (true, _) => block::<M, X, W, 1, NR>(k, x, x_stride, wj, w_stride, out, out_stride),
                    (false, _) => block::<M, X, W, 1, 1>(k, x, x_stride, wj, w_stride, out, out_stride),
                };
            }
            j += if whole { NR } else { 1 };
        }
    }
}

/// `out[m][n] = x[m] . w[n]` for `R` rows of x and `C` of W; returns `R`.
///
/// # Safety
/// `x` is readable for R rows, `w` for C rows of `k` elements; `out` is writable at `m * out_stride + n` of them.
#[inline(always)]
unsafe fn block<M: Mac<Neon>, X: Load<Neon>, W: Load<Neon>, const R: usize, const C: usize>(
    k: usize,
    x: *const X::T,
    x_stride: usize,
    w: *const W::T,
    w_stride: usize,
    out: *mut f32,
    out_stride: usize,
) -> usize {
    let per_vec = Neon::LANES * X::PER_LANE;
    // SAFETY: elements `< k` of each row are read, by the caller's promise; the tail by `load_part`.
    unsafe {
        let v = Neon::held();
        let mut c = [[[v.splat_f32s(0.0); VECS]; C]; R];
        let mut at = 0;
        while at + VECS * per_vec <= k {
            let mut ws = [[v.splat_f32s(0.0); VECS]; C];
            for (n, ws) in ws.iter_mut().enumerate() {
                for (i, to) in ws.iter_mut().enumerate() {
                    *to = W::load(v, w.add(n * w_stride + at + i * per_vec));
                }
            }
            for (m, c) in c.iter_mut().enumerate() {
                for i in 0..VECS {
                    let x = X::load(v, x.add(m * x_stride + at + i * per_vec));
                    for n in 0..C {
                        c[n][i] = M::mac(v, c[n][i], x, ws[n][i]);
                    }
                }
            }
            at += VECS * per_vec;
        }
        while at < k {
            for (m, c) in c.iter_mut().enumerate() {
                let x = some::<X>(v, x.add(m * x_stride + at), k - at);
                for (n, c) in c.iter_mut().enumerate() {
                    c[0] = M::mac(v, c[0], x, some::<W>(v, w.add(n * w_stride + at), k - at));
                }
            }
            at += per_vec;
        }
        for (m, c) in c.iter().enumerate() {
            for (n, c) in c.iter().enumerate() {
                *out.add(m * out_stride + n) = v.reduce_sum_f32s(v.add_f32s(c[0], c[1]));
            }
        }
    }
    R
}

/// A vector, of which the first `n` elements are there.
///
/// # Safety
/// `p` is readable for `n` elements, or a whole vector.
#[inline(always)]
unsafe fn some<L: Load<Neon>>(v: Neon, p: *const L::T, n: usize) -> float32x4_t {
    // SAFETY: the caller's promise.
    unsafe { if n >= Neon::LANES * L::PER_LANE { L::load(v, p) } else { L::load_part(v, p, n) } }
}

stamp!([], f32_f32: Dot => dot::<MacF32, F32, F32>);
stamp!([], f32_f16: Dot => dot::<MacF32, F32, F16>);
stamp!([], f32_bf16: Dot => dot::<MacF32, F32, Bf16>);

pub(super) const NEON: &[DotKernel] = &[
    row("dot_f32xf32_f32_2x4_neon", Format::F32, f32_f32),
    row("dot_f32xf16_f32_2x4_neon", Format::F16, f32_f16),
    row("dot_f32xbf16_f32_2x4_neon", Format::BF16, f32_bf16),
];

const fn row(name: &'static str, w: Format, fun: crate::contract::Dot) -> DotKernel {
    DotKernel { name, isa: Isa::Neon, x: DType::F32, w, least: 1, group: 1, fun }
}
