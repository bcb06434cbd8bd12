//! The BF16 products of Armv8.6 (Apple M2 on). BFMMLA multiplies 2x4 by 4x2 blocks: tiles are 8 rows of x by 12 of W, four elements
//! of K at a time. Panel and tile are `[k/4][rows][4]`, so that one register holds a pair of rows, and a product is the 2x2 block of
//! two pairs. Few rows take BFDOT.
//!
//! Rust has no intrinsic for either. BFMMLA sums two products, then the other two, with rounding of its own (to odd, subnormals
//! flushed): as accurate as a chain of fused multiply-adds, but not equal to one in the last bit.

use std::arch::{aarch64::*, asm};

pub(crate) use super::neon::vectors;
use pulp::aarch64::Neon;

use super::neon::{self, MR, NR, dot::dot, prefetch};
use crate::{
    contract::{Ahead, DotKernel, ForWeight, GemmKernel, Mul},
    isa::Isa,
    level::Level,
    micro::vector::{Bf16Pair, Mac, stamp},
    view::{DType, Format},
};

pub(crate) const LEVEL: Level = Level {
    isa: Isa::NeonBf16,
    base: Some(Isa::Neon),
    gemm: &[KERNEL],
    dot: &[DOT],
    detect: || std::arch::is_aarch64_feature_detected!("bf16"),
    ..neon::LEVEL
};

/// Elements of K in one step.
const KU: usize = 4;
/// 1024 elements of panel and tile are 40 KB: a third of the first-level cache of an Apple performance core.
const KC: usize = 1024;

/// `c + a b^T` for a 2x4 `a`, a 2x4 `b` and a 2x2 `c`, all row-major.
///
/// # Safety
/// The CPU has BF16.
#[inline(always)]
unsafe fn bfmmla(mut c: float32x4_t, a: uint16x8_t, b: uint16x8_t) -> float32x4_t {
    // SAFETY: the caller's promise; registers alone.
    unsafe {
        asm!(
            ".arch_extension bf16",
            "bfmmla {c:v}.4s, {a:v}.8h, {b:v}.8h",
            c = inout(vreg) c, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    c
}

/// The low halves of both, and the high halves of both: between two rows of four and their two 2x2 blocks, either way.
///
/// In assembly, because the compiler would otherwise join loads and zips of neighbouring blocks to LD4, whose four
/// registers must be consecutive: with 24 accumulators that costs spills in the inner loop.
#[inline(always)]
fn halves(a: float32x4_t, b: float32x4_t) -> [float32x4_t; 2] {
    let (low, high);
    // SAFETY: NEON, which every AArch64 CPU of Rust's targets has; registers alone.
    unsafe {
        asm!(
            "zip1 {low:v}.2d, {a:v}.2d, {b:v}.2d",
            "zip2 {high:v}.2d, {a:v}.2d, {b:v}.2d",
            a = in(vreg) a, b = in(vreg) b, low = out(vreg) low, high = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}

/// # Safety
/// As `contract::Micro`.
#[target_feature(enable = "neon,bf16")]
unsafe fn micro(steps: usize, panel: *const u8, tile: *const u8, acc: *mut f32, accumulate: bool, ahead: &mut Ahead) {
    const UNROLL: usize = 4;
    let (mut x, mut w) = (panel.cast::<u16>(), tile.cast::<u16>());
    // SAFETY: `panel` holds `steps` blocks of MR x KU, `tile` of NR x KU, `acc` NR rows of MR floats, and the CPU has BF16:
    // the caller's promise.
    unsafe {
        // c[p][q]: rows 2p, 2p + 1 of W by rows 2q, 2q + 1 of x.
        let mut c = [[vdupq_n_f32(0.0); MR / 2]; NR / 2];
        if accumulate {
            for (p, c) in c.iter_mut().enumerate() {
                for q in 0..2 {
                    let a = acc.add(2 * p * MR + 4 * q);
                    [c[2 * q], c[2 * q + 1]] = halves(vld1q_f32(a), vld1q_f32(a.add(MR)));
                }
            }
        }
        macro_rules! step {
            ($u:expr) => {
                let xs: [uint16x8_t; MR / 2] = std::array::from_fn(|q| vld1q_u16(x.add(($u * MR / 2 + q) * 8)));
                for p in 0..NR / 2 {
                    let wp = vld1q_u16(w.add(($u * NR / 2 + p) * 8));
                    for q in 0..MR / 2 {
                        c[p][q] = bfmmla(c[p][q], wp, xs[q]);
                    }
                }
            };
        }
        // Without a next block, a line that is there already: a prefetch of no page at all costs a walk of the tables.
        let mut line = if ahead.step > 0 { ahead.prefetch } else { panel };
        for _ in 0..steps / UNROLL {
            // Written out: the compiler does not unroll a loop around assembly.
            prefetch(line, 0);
            step!(0);
            prefetch(line, ahead.step);
            step!(1);
            line = line.wrapping_add(2 * ahead.step);
            prefetch(line, 0);
            step!(2);
            prefetch(line, ahead.step);
            step!(3);
            line = line.wrapping_add(2 * ahead.step);
            x = x.add(UNROLL * MR * KU);
            w = w.add(UNROLL * NR * KU);
        }
        ahead.prefetch = line;
        for _ in 0..steps % UNROLL {
            step!(0);
            x = x.add(MR * KU);
            w = w.add(NR * KU);
        }
        for (p, c) in c.iter().enumerate() {
            for q in 0..2 {
                let a = acc.add(2 * p * MR + 4 * q);
                let [even, odd] = halves(c[2 * q], c[2 * q + 1]);
                vst1q_f32(a, even);
                vst1q_f32(a.add(MR), odd);
            }
        }
    }
}

/// `contract::PackX` and `contract::PackW`: `[k/4][R][4]`.
///
/// # Safety
/// As `contract::PackX`, for `R` rows.
unsafe fn pack<const R: usize>(src: *const u8, stride: usize, rows: usize, k: usize, dst: *mut u8) {
    let dst = dst.cast::<u16>();
    // SAFETY: row `r < rows` is read at elements `< k` only, the last few through a copy of eight; `dst` is written for
    // steps below `k.div_ceil(KU)`: the caller's promise.
    unsafe {
        for r in (0..R).step_by(2) {
            for at in (0..k).step_by(2 * KU) {
                let left = k - at;
                let [a, b] = [r, r + 1].map(|r| {
                    let mut part = [0u16; 8];
                    if r < rows {
                        let p = src.add(r * stride).cast::<u16>().add(at);
                        if left >= part.len() {
                            return vld1q_u16(p);
                        }
                        std::ptr::copy_nonoverlapping(p, part.as_mut_ptr(), left);
                    }
                    vld1q_u16(part.as_ptr())
                });
                let [lo, hi] = halves(vreinterpretq_f32_u16(a), vreinterpretq_f32_u16(b));
                let d = dst.add(at * R + r * KU);
                vst1q_u16(d, vreinterpretq_u16_f32(lo));
                if left > KU {
                    vst1q_u16(d.add(R * KU), vreinterpretq_u16_f32(hi));
                }
            }
        }
    }
}

const KERNEL: GemmKernel = GemmKernel {
    name: "gemm_bf16xbf16_f32_8x12_neonbf16",
    isa: Isa::NeonBf16,
    mul: Mul::Bf16,
    mr: MR,
    nr: NR,
    ku: KU,
    fill: KU,
    kc: KC,
    tile_bytes: |_| KC * NR * 2,
    lanes: MR,
    columns: false,
    pack_x: &[(DType::BF16, pack::<MR>)],
    weights: &[ForWeight { format: Format::BF16, micro, pack: pack::<NR>, drain: None, in_place: None }],
};

/// BFDOT.
struct MacBf16;
impl Mac<Neon> for MacBf16 {
    #[inline(always)]
    unsafe fn mac(_: Neon, mut acc: float32x4_t, x: float32x4_t, w: float32x4_t) -> float32x4_t {
        // SAFETY: the CPU has the level, by the caller's promise, which `Isa::check` keeps; the instruction touches registers
        // alone.
        unsafe {
            asm!(
                ".arch_extension bf16",
                "bfdot {c:v}.4s, {a:v}.8h, {b:v}.8h",
                c = inout(vreg) acc, a = in(vreg) x, b = in(vreg) w,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        acc
    }
}

stamp!([target_feature(enable = "neon,bf16")], bf16_bf16: Dot => dot::<MacBf16, Bf16Pair, Bf16Pair>);

const DOT: DotKernel = DotKernel {
    name: "dot_bf16xbf16_f32_2x4_neonbf16",
    isa: Isa::NeonBf16,
    x: DType::BF16,
    w: Format::BF16,
    least: 1,
    group: 1,
    fun: bf16_bf16,
};
