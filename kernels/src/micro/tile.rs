//! Tiles: packing and the multiply-add loop, once for every level that broadcasts weights to lanes.

use super::vector::{Load, Mac, load, store};
use crate::{
    contract::{Ahead, Copier, ForWeight, GemmKernel, Mul, PackX},
    isa::Isa,
    simd::Vector,
    view::DType,
};

/// K steps (32-bit columns) of one tile row.
pub(crate) const STEPS: usize = 1024;
/// Bytes from one tile row to the next: a line more than a row, so that rows do not share cache sets.
pub(crate) const TILE_STRIDE: usize = STEPS * 4 + 64;

/// Most rows of W that a kernel reads in place: where K is a multiple of 4 KB, the rows of a tile all fall on the same set of
/// the first-level cache, whose 8 ways must hold a line of each and one of x.
pub(crate) const IN_PLACE_ROWS: usize = 6;

/// Steps of one turn of the micro-kernel's loop.
pub(crate) const UNROLL: usize = 4;

/// Copies one vector, and fetches what is `below` it; where to go on.
///
/// # Safety
/// A vector is readable at `src` and writable at `dst`.
#[inline(always)]
unsafe fn copy_vector<V: Vector, L: Load<V>>(v: V, src: *const u8, dst: *mut u8, below: usize) -> (*const u8, *mut u8) {
    // SAFETY: the caller's promise; both move to the end of what was copied.
    unsafe {
        v.prefetch(src.wrapping_add(below));
        store::<V>(dst.cast(), L::load(v, src.cast()));
        (src.add(V::LANES * L::PER_LANE * size_of::<L::T>()), dst.add(V::LANES * 4))
    }
}

/// Moves on to the next chunk, row or unit; leaves `in_chunk` 0 after the last.
///
/// # Safety
/// `q.unit` points to `q.units_left` units.
#[inline(always)]
unsafe fn next_chunk(q: &mut Copier) {
    // SAFETY: the caller's promise; pointers move only while chunks, rows or units are left.
    unsafe {
        q.chunks_left -= 1;
        if q.chunks_left > 0 {
            q.chunk_dst = q.chunk_dst.wrapping_add(q.shape.chunk_stride);
            q.dst = q.chunk_dst;
            q.in_chunk = if q.chunks_left > 1 { q.shape.vecs } else { q.shape.last_vecs };
            return;
        }
        q.rows_left -= 1;
        if q.rows_left > 0 {
            q.row_src = q.row_src.add(q.shape.src_stride);
            q.row_dst = q.row_dst.wrapping_add(TILE_STRIDE);
        } else {
            q.units_left -= 1;
            if q.units_left == 0 {
                return;
            }
            q.unit = q.unit.add(1);
            (q.rows_left, q.row_src, q.row_dst) = ((*q.unit).rows, (*q.unit).src, (*q.unit).dst);
        }
        q.start_row();
    }
}

/// `contract::Drain`.
///
/// # Safety
/// As `contract::Drain`.
#[inline(always)]
pub(crate) unsafe fn drain<V: Vector, L: Load<V>>(queue: &mut Copier) {
    // SAFETY: the caller's promise.
    unsafe {
        let v = V::held();
        while queue.in_chunk > 0 {
            (queue.src, queue.dst) = copy_vector::<V, L>(v, queue.src, queue.dst, queue.shape.src_stride);
            queue.in_chunk -= 1;
            if queue.in_chunk == 0 {
                next_chunk(queue);
            }
        }
    }
}

/// `contract::Micro` for `MV` vectors of rows of x and `NR` rows of W.
///
/// # Safety
/// As `contract::Micro`.
#[inline(always)]
pub(crate) unsafe fn micro<V: Vector, M: Mac<V>, L: Load<V>, const MV: usize, const NR: usize>(
    steps: usize,
    panel: *const u8,
    tile: *const u8,
    acc: *mut f32,
    accumulate: bool,
    ahead: &mut Ahead,
) {
    // SAFETY: the rows of a packed tile are TILE_STRIDE bytes apart; the rest is the caller's promise.
    unsafe {
        let v = V::held();
        let rows = std::array::from_fn(|r| tile.add(r * TILE_STRIDE));
        let copy = |src, dst, below| copy_vector::<V, L>(v, src, dst, below);
        multiply::<V, M, MV, NR>(v, steps, panel, rows, acc, accumulate, ahead, copy);
    }
}

/// `contract::InPlace` for `MV` vectors of rows of x and `NR` rows of W.
///
/// # Safety
/// As `contract::InPlace`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn in_place<V: Vector, M: Mac<V>, L: Load<V>, const MV: usize, const NR: usize>(
    steps: usize,
    panel: *const u8,
    w: *const u8,
    stride: usize,
    rows: usize,
    acc: *mut f32,
    accumulate: bool,
    ahead: &mut Ahead,
) {
    // SAFETY: `rows` rows of `steps` lanes are readable, `stride` bytes apart; rows beyond them read the last one again.
    unsafe {
        let v = V::held();
        let rows = std::array::from_fn(|r| w.add(r.min(rows - 1) * stride));
        multiply::<V, M, MV, NR>(v, steps, panel, rows, acc, accumulate, ahead, |src, dst, _| {
            v.prefetch_l2(src);
            (src.wrapping_add(V::LANES * L::PER_LANE * size_of::<L::T>()), dst)
        });
    }
}

/// Steps by which a micro-kernel fetches its panel ahead of its multiply-adds, from the second-level cache: a chunk of a panel
/// is larger than the first. Measured from 6 to 24.
const X_AHEAD: usize = 12;

/// Most turns of a micro-kernel's loop between two looks at what is [`Ahead`].
const STRETCH: usize = 16;

/// Looks that a call of a micro-kernel takes at what is [`Ahead`], at least.
pub(crate) const fn looks(steps: usize) -> usize {
    (steps / UNROLL).div_ceil(STRETCH)
}

/// `acc[NR][MV] (+)= rows x panel`, and of the queue some vectors in each turn, by `copy(src, dst, bytes to the row below)`,
/// which returns where to go on.
///
/// # Safety
/// As `contract::Micro`; `steps` lanes are readable at each of `rows`; `copy` does what the queue asks for.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn multiply<V: Vector, M: Mac<V>, const MV: usize, const NR: usize>(
    v: V,
    steps: usize,
    panel: *const u8,
    rows: [*const u8; NR],
    acc: *mut f32,
    accumulate: bool,
    ahead: &mut Ahead,
    copy: impl Fn(*const u8, *mut u8, usize) -> (*const u8, *mut u8),
) {
    let mut x = panel.cast::<f32>();
    let mut at = 0;
    // SAFETY: `acc` holds NR * MV * LANES lanes; `panel` `steps` rows of MV * LANES lanes; the rest is the caller's promise.
    unsafe {
        let mut c = [[v.splat_f32s(0.0); MV]; NR];
        if accumulate {
            for (r, c) in c.iter_mut().enumerate() {
                for (i, c) in c.iter_mut().enumerate() {
                    *c = load::<V>(acc.add((r * MV + i) * V::LANES));
                }
            }
        }
        macro_rules! step {
            ($u:expr) => {
                for i in (0..MV).step_by(16 / V::LANES) {
                    v.prefetch(x.wrapping_add((($u + X_AHEAD) * MV + i) * V::LANES).cast());
                }
                let mut xs = [v.splat_f32s(0.0); MV];
                for (i, to) in xs.iter_mut().enumerate() {
                    *to = load::<V>(x.add(($u * MV + i) * V::LANES));
                }
                for r in 0..NR {
                    let b = v.splat_f32s(rows[r].add(at + $u * 4).cast::<f32>().read_unaligned());
                    for i in 0..MV {
                        c[r][i] = M::mac(v, c[r][i], xs[i], b);
                    }
                }
            };
        }
        let turns = steps / UNROLL;
        let mut turn = 0;
        // Stretches of turns within one row of the queue, so that their loop holds nothing of it but two pointers.
        while turn < turns {
            for _ in 0..ahead.own.some {
                let Some(line) = ahead.own.next() else { break };
                v.prefetch_write(line);
            }
            let q = &mut ahead.queue;
            let per_turn = q.per_turn.min(q.in_chunk);
            let some = q.in_chunk.checked_div(per_turn).unwrap_or(STRETCH).min(STRETCH).min(turns - turn);
            let (mut src, mut dst, below) = (q.src, q.dst, q.shape.src_stride);
            let beside = ahead.beside;
            let mut line = beside.at;
            for _ in 0..some {
                for _ in 0..beside.per_turn {
                    v.prefetch_l2(line);
                    line = line.wrapping_add(beside.step);
                }
                for _ in 0..per_turn {
                    (src, dst) = copy(src, dst, below);
                }
                for u in 0..UNROLL {
                    step!(u);
                }
                x = x.add(UNROLL * MV * V::LANES);
                at += UNROLL * 4;
            }
            turn += some;
            ahead.beside.at = line;
            if per_turn > 0 {
                (q.src, q.dst) = (src, dst);
                q.in_chunk -= some * per_turn;
                if q.in_chunk == 0 {
                    next_chunk(q);
                }
            }
        }
        for _ in 0..steps % UNROLL {
            step!(0);
            x = x.add(MV * V::LANES);
            at += 4;
        }
        for (r, c) in c.iter().enumerate() {
            for (i, c) in c.iter().enumerate() {
                store::<V>(acc.add((r * MV + i) * V::LANES), *c);
            }
        }
    }
}

/// `contract::PackX`: rows to a panel of `MV` vectors.
///
/// # Safety
/// As `contract::PackX`.
#[inline(always)]
pub(crate) unsafe fn pack_x<V: Vector, L: Load<V>, const MV: usize>(
    src: *const u8,
    stride: usize,
    rows: usize,
    k: usize,
    dst: *mut u8,
) {
    let dst = dst.cast::<f32>();
    let (lanes, per_vec) = (V::LANES, V::LANES * L::PER_LANE);
    let steps = k.div_ceil(L::PER_LANE);
    // SAFETY: row `m < rows` is read at elements `< k` only (`load_part` at the end); `dst` is written at
    // `step * MV * LANES + lane` for `step < steps`: the caller's promise.
    unsafe {
        let v = V::held();
        for i in 0..MV {
            let here = rows.saturating_sub(i * lanes).min(lanes);
            let row = |l: usize| src.add((i * lanes + l) * stride).cast::<L::T>();
            let to = |step: usize| dst.wrapping_add((step * MV + i) * lanes);
            for at in (0..k).step_by(per_vec) {
                let first = at / L::PER_LANE;
                // The lines of the next block.
                for s in (0..lanes).step_by(16 / lanes) {
                    v.prefetch_write(to(first + lanes + s).cast());
                }
                // A whole block stays in registers.
                if here == lanes && at + per_vec <= k {
                    let mut block = std::array::from_fn(|l| L::load(v, row(l % lanes).add(at)));
                    v.transpose(&mut block);
                    for (s, b) in block.iter().enumerate().take(lanes) {
                        store::<V>(to(first + s), *b);
                    }
                    continue;
                }
                let mut block = [v.splat_f32s(0.0); 16];
                for (l, b) in block.iter_mut().enumerate().take(here) {
                    let p = row(l).add(at);
                    *b = if at + per_vec <= k { L::load(v, p) } else { L::load_part(v, p, k - at) };
                }
                v.transpose(&mut block);
                for (s, b) in block.iter().enumerate().take(lanes.min(steps - first)) {
                    store::<V>(to(first + s), *b);
                }
            }
        }
    }
}

/// `contract::PackW`: rows to a tile of `NR` rows, `TILE_STRIDE` bytes apart.
///
/// # Safety
/// As `contract::PackW`.
#[inline(always)]
pub(crate) unsafe fn pack_w<V: Vector, L: Load<V>, const NR: usize>(
    src: *const u8,
    stride: usize,
    rows: usize,
    k: usize,
    dst: *mut u8,
) {
    let per_vec = V::LANES * L::PER_LANE;
    // SAFETY: row `r < rows` is read at elements `< k` only (`load_part` at the end). A tile row holds STEPS lanes and one
    // line more, so the whole vector that the last, partial load fills stays inside it.
    unsafe {
        let v = V::held();
        for r in 0..NR {
            let d = dst.add(r * TILE_STRIDE).cast::<f32>();
            let p = src.add(if r < rows { r * stride } else { 0 }).cast::<L::T>();
            let mut at = 0;
            while at < k {
                let x = if r >= rows {
                    v.splat_f32s(0.0)
                } else if at + per_vec <= k {
                    L::load(v, p.add(at))
                } else {
                    L::load_part(v, p.add(at), k - at)
                };
                store::<V>(d.add(at / L::PER_LANE), x);
                at += per_vec;
            }
        }
    }
}

/// A tile's functions for weights of one format, as `FNS` in a module of its own.
macro_rules! for_weight {
    ($module:ident, $attr:tt, $v:ty, $mac:ty, $format:ident as $load:ty, $mv:literal x $nr:literal, $in_place:expr) => {
        mod $module {
            use super::*;

            stamp!($attr, micro: Micro => tile::micro::<$v, $mac, $load, $mv, $nr>);
            stamp!($attr, drain: Drain => tile::drain::<$v, $load>);
            stamp!($attr, pack: Pack => tile::pack_w::<$v, $load, $nr>);
            stamp!($attr, in_place: InPlace => tile::in_place::<$v, $mac, $load, $mv, $nr>);

            pub const FNS: ct::ForWeight = ct::ForWeight {
                format: Format::$format,
                micro,
                in_place: if $in_place { Some(in_place) } else { None },
                pack,
                drain: Some(drain),
            };
        }
    };
}
pub(crate) use for_weight;

/// A module with one tile's functions and its row, `KERNEL`: F32 tiles take every type and multiply in f32; BF16 tiles take
/// BF16 alone, and are given their multiply-add.
macro_rules! gemm_kernel {
    ($module:ident, $isa:expr, $attr:tt, $v:ty, F32, $mv:literal x $nr:literal, $name:literal) => {
        pub(super) mod $module {
            use super::*;
            use $crate::{contract as ct, micro::{tile, vector::{self as vk, stamp}}, view::{DType, Format}};

            stamp!($attr, pack_f32: Pack => tile::pack_x::<$v, vk::F32, $mv>);
            stamp!($attr, pack_bf16: Pack => tile::pack_x::<$v, vk::Bf16, $mv>);
            tile::for_weight!(w_f32, $attr, $v, vk::MacF32, F32 as vk::F32, $mv x $nr, $nr <= tile::IN_PLACE_ROWS);
            tile::for_weight!(w_f16, $attr, $v, vk::MacF32, F16 as vk::F16, $mv x $nr, false);
            tile::for_weight!(w_bf16, $attr, $v, vk::MacF32, BF16 as vk::Bf16, $mv x $nr, false);

            pub const KERNEL: ct::GemmKernel = tile::row::<$v>($name, $isa, ct::Mul::F32, $mv, $nr, |_| $nr * tile::TILE_STRIDE,
                &[(DType::F32, pack_f32), (DType::BF16, pack_bf16)], &[w_f32::FNS, w_f16::FNS, w_bf16::FNS]);
        }
    };
    ($module:ident, $isa:expr, $attr:tt, $v:ty, $mac:ty, $mv:literal x $nr:literal, $name:literal) => {
        pub(super) mod $module {
            use super::*;
            use $crate::{contract as ct, micro::{tile, vector::{self as vk, stamp}}, view::{DType, Format}};

            stamp!($attr, pack_x: Pack => tile::pack_x::<$v, vk::Bf16Pair, $mv>);
            tile::for_weight!(w_bf16, $attr, $v, $mac, BF16 as vk::Bf16Pair, $mv x $nr, $nr <= tile::IN_PLACE_ROWS);

            pub const KERNEL: ct::GemmKernel = tile::row::<$v>($name, $isa, ct::Mul::Bf16, $mv, $nr, |_| $nr * tile::TILE_STRIDE,
                &[(DType::BF16, pack_x)], &[w_bf16::FNS]);
        }
    };
}
pub(crate) use gemm_kernel;

/// A kernel of `mv` vectors of rows of x by `nr` rows of W.
#[allow(clippy::too_many_arguments)]
pub(crate) const fn row<V: Vector>(
    name: &'static str,
    isa: Isa,
    mul: Mul,
    mv: usize,
    nr: usize,
    tile_bytes: fn(usize) -> usize,
    pack_x: &'static [(DType, PackX)],
    weights: &'static [ForWeight],
) -> GemmKernel {
    let ku = 4 / mul.size();
    GemmKernel {
        name,
        isa,
        mul,
        mr: mv * V::LANES,
        nr,
        ku,
        fill: ku,
        kc: STEPS * ku,
        tile_bytes,
        lanes: V::LANES,
        columns: false,
        pack_x,
        weights,
    }
}
