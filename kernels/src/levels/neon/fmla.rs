//! F32 tiles: FMLA by lane, 8 rows of x by 12 of W. The tile is `[k][12]`.

use std::arch::aarch64::*;

use pulp::aarch64::Neon;

use super::{MR, NR, prefetch};
use crate::{
    contract::{Ahead, ForWeight, GemmKernel, Mul, PackW},
    isa::Isa,
    micro::{
        tile::pack_x,
        vector::{Bf16, F16, F32, Load, stamp, store},
    },
    simd::Vector,
    view::{DType, Format},
};

/// 512 steps of panel and tile are 40 KB: a third of the first-level cache of an Apple performance core.
const KC: usize = 512;

/// # Safety
/// As `contract::Micro`.
unsafe fn micro(steps: usize, panel: *const u8, tile: *const u8, acc: *mut f32, accumulate: bool, ahead: &mut Ahead) {
    const UNROLL: usize = 4;
    let (mut x, mut w) = (panel.cast::<f32>(), tile.cast::<f32>());
    // SAFETY: `panel` holds `steps` rows of MR, `tile` of NR, `acc` NR rows of MR floats: the caller's promise.
    unsafe {
        let mut c = [[vdupq_n_f32(0.0); 2]; NR];
        if accumulate {
            for (n, c) in c.iter_mut().enumerate() {
                *c = [vld1q_f32(acc.add(n * MR)), vld1q_f32(acc.add(n * MR + 4))];
            }
        }
        macro_rules! lanes {
            ($xs:ident, $ws:ident, $($l:literal)*) => {
                for q in 0..NR / 4 {
                    $(for v in 0..2 {
                        c[4 * q + $l][v] = vfmaq_laneq_f32::<$l>(c[4 * q + $l][v], $xs[v], $ws[q]);
                    })*
                }
            };
        }
        macro_rules! step {
            ($u:expr) => {
                let xs: [float32x4_t; 2] = std::array::from_fn(|v| vld1q_f32(x.add($u * MR + 4 * v)));
                let ws: [float32x4_t; NR / 4] = std::array::from_fn(|q| vld1q_f32(w.add($u * NR + 4 * q)));
                lanes!(xs, ws, 0 1 2 3);
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
            x = x.add(UNROLL * MR);
            w = w.add(UNROLL * NR);
        }
        ahead.prefetch = line;
        for _ in 0..steps % UNROLL {
            step!(0);
            x = x.add(MR);
            w = w.add(NR);
        }
        for (n, c) in c.iter().enumerate() {
            vst1q_f32(acc.add(n * MR), c[0]);
            vst1q_f32(acc.add(n * MR + 4), c[1]);
        }
    }
}

/// `contract::PackW`: transposes rows to `[k][NR]`.
///
/// # Safety
/// As `contract::PackW`.
#[inline(always)]
unsafe fn transpose_w<L: Load<Neon>>(src: *const u8, stride: usize, rows: usize, k: usize, dst: *mut u8) {
    let dst = dst.cast::<f32>();
    // SAFETY: row `r < rows` is read at elements `< k` only (`load_part` at the end); `dst` is written at
    // `step * NR + row` for `step < k`: the caller's promise.
    unsafe {
        let v = Neon::held();
        for at in (0..k).step_by(Neon::LANES) {
            let left = k - at;
            for g in (0..NR).step_by(4) {
                let mut block = [v.splat_f32s(0.0); 16];
                for (i, to) in block.iter_mut().enumerate().take(4.min(rows.saturating_sub(g))) {
                    let p = src.add((g + i) * stride).cast::<L::T>().add(at);
                    *to = if left >= Neon::LANES { L::load(v, p) } else { L::load_part(v, p, left) };
                }
                v.transpose(&mut block);
                for (s, t) in block.iter().enumerate().take(left.min(4)) {
                    store::<Neon>(dst.add((at + s) * NR + g), *t);
                }
            }
        }
    }
}

stamp!([], pack_x_f32: Pack => pack_x::<Neon, F32, 2>);
stamp!([], pack_x_bf16: Pack => pack_x::<Neon, Bf16, 2>);
stamp!([], pack_w_f32: Pack => transpose_w::<F32>);
stamp!([], pack_w_f16: Pack => transpose_w::<F16>);
stamp!([], pack_w_bf16: Pack => transpose_w::<Bf16>);

pub(super) const KERNEL: GemmKernel = GemmKernel {
    name: "gemm_f32xf32_f32_8x12_neon",
    isa: Isa::Neon,
    mul: Mul::F32,
    mr: MR,
    nr: NR,
    ku: 1,
    fill: 1,
    kc: KC,
    tile_bytes: |_| KC * NR * 4,
    lanes: Neon::LANES,
    columns: false,
    pack_x: &[(DType::F32, pack_x_f32), (DType::BF16, pack_x_bf16)],
    weights: &[row(Format::F32, pack_w_f32), row(Format::F16, pack_w_f16), row(Format::BF16, pack_w_bf16)],
};

const fn row(format: Format, pack: PackW) -> ForWeight {
    ForWeight { format, micro, in_place: None, pack, drain: None }
}
