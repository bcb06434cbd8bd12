//! Few rows of x against W as it lies, both types alike: vectors hold 16 bytes along K of each of `LANES / 4` rows of x.
//!
//! The same 16 bytes of a row of W are broadcast to all of them while they are loaded, which takes no shuffle. So W is read
//! once for all rows of a tile, nothing is packed but x, and no row of x is padded to more than `LANES / 4`; what is left to
//! add at the end are four neighbouring lanes, nine operations for sixteen of the sums that `super::dot` takes 45 for.

use super::{
    dot::DOT_BLOCK,
    vector::{Mac, load, store},
};
use crate::{contract::Fetch, simd::Vector, tuning};

/// `contract::Dot` for x in groups of `LANES / 4` rows, by tiles of up to `MOST <= 4` of them (fewer by
/// `tuning::quads_at_once`) and `WR` rows of W.
///
/// # Safety
/// As `contract::Dot`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn dot<V: Vector, M: Mac<V>, T: Copy, const MOST: usize, const WR: usize>(
    k: usize,
    x: *const u8,
    x_stride: usize,
    rows: usize,
    w: *const u8,
    w_stride: usize,
    n: usize,
    out: *mut f32,
    out_stride: usize,
    next: *const u8,
) {
    let (x, x_stride) = (x.cast::<T>(), x_stride / size_of::<T>());
    let (w, w_stride) = (w.cast::<T>(), w_stride / size_of::<T>());
    // SAFETY: the caller's promise; `tile` is called for groups that have a row below `rows` and rows of W below `n`.
    unsafe {
        let v = V::held();
        let (group, row_bytes) = (V::LANES / 4, k * size_of::<T>());
        let all = rows.div_ceil(group);
        let most = tuning::quads_at_once(all, MOST);
        let block = (DOT_BLOCK / row_bytes / WR).max(1) * WR;
        for j in (0..n).step_by(block) {
            let (nb, w) = (block.min(n - j), w.add(j * w_stride));
            let turns = all.div_ceil(most) * nb.div_ceil(WR) * (row_bytes / 16).max(1);
            let rest = (j + nb < n).then_some(w.wrapping_add(nb * w_stride).cast());
            let mut ahead = Fetch::after_block(w.cast(), rest, next, nb * row_bytes, turns);
            for g in (0..all).step_by(most) {
                let (x, rows) = (x.add(g * x_stride), rows - g * group);
                for r in (0..nb).step_by(WR) {
                    let w = (w.add(r * w_stride), w_stride, WR.min(nb - r));
                    let out = (out.add(g * group * out_stride + j + r), out_stride);
                    match most.min(all - g) {
                        1 => tile::<V, M, T, 1, WR>(v, k, x, x_stride, rows, w, out, &mut ahead),
                        2 => tile::<V, M, T, 2, WR>(v, k, x, x_stride, rows, w, out, &mut ahead),
                        3 => tile::<V, M, T, 3, WR>(v, k, x, x_stride, rows, w, out, &mut ahead),
                        _ => tile::<V, M, T, 4, WR>(v, k, x, x_stride, rows, w, out, &mut ahead),
                    }
                }
            }
        }
    }
}

/// `out[m][r] = x[m] . w[r]` for `G` groups of x, of which `rows` rows count, and the first `n <= WR` rows of W.
///
/// # Safety
/// As [`dot`]; `w` is W, its stride and `n`, `out` has its stride.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn tile<V: Vector, M: Mac<V>, T: Copy, const G: usize, const WR: usize>(
    v: V,
    k: usize,
    x: *const T,
    x_stride: usize,
    rows: usize,
    (w, w_stride, n): (*const T, usize, usize),
    (out, out_stride): (*mut f32, usize),
    ahead: &mut Fetch,
) {
    // SAFETY: elements `< k` of rows `< n` of W are read, the last ones as a copy; groups of x end in zeros; elements of rows
    // `< rows` and columns `< n` are written.
    unsafe {
        let (some, group) = (16 / size_of::<T>(), V::LANES / 4);
        // Past the last row stands the last.
        let mut ws = [w; WR];
        for (r, w) in ws.iter_mut().enumerate() {
            *w = w.add(r.min(n - 1) * w_stride);
        }
        let mut c = [[v.splat_f32s(0.0); WR]; G];
        let mut at = 0;
        while at + some <= k {
            ahead.turn(v);
            step::<V, M, T, G, WR>(v, &mut c, x.add(at * group), x_stride, ws.map(|w| w.wrapping_add(at).cast()));
            at += some;
        }
        if at < k {
            let mut rest = [[0u64; 2]; WR];
            for (rest, w) in rest.iter_mut().zip(ws) {
                std::ptr::copy_nonoverlapping(w.add(at), rest.as_mut_ptr().cast(), k - at);
            }
            let rest = rest.each_ref().map(|r| r.as_ptr().cast());
            step::<V, M, T, G, WR>(v, &mut c, x.add(at * group), x_stride, rest);
        }
        for (g, c) in c.iter().enumerate() {
            for first in (0..WR).step_by(4) {
                let mut four = [v.splat_f32s(0.0); 4];
                four[..4.min(WR - first)].copy_from_slice(&c[first..WR.min(first + 4)]);
                let mut sums = [[0f32; 4]; 4];
                store::<V>(sums.as_mut_ptr().cast(), v.sum_fours(four));
                let width = n.saturating_sub(first).min(4);
                for (r, sums) in sums.iter().enumerate().take(group.min(rows.saturating_sub(g * group))) {
                    let out = out.add((g * group + r) * out_stride + first);
                    // Of known length, a vector store.
                    match width {
                        4 => out.cast::<[f32; 4]>().write_unaligned(*sums),
                        _ => std::ptr::copy_nonoverlapping(sums.as_ptr(), out, width),
                    }
                }
            }
        }
    }
}

/// 16 bytes of each row.
///
/// # Safety
/// `G` vectors of x, `x_stride` elements apart, and 16 bytes at each of `ws` are readable.
#[inline(always)]
unsafe fn step<V: Vector, M: Mac<V>, T: Copy, const G: usize, const WR: usize>(
    v: V,
    c: &mut [[V::F32s; WR]; G],
    x: *const T,
    x_stride: usize,
    ws: [*const u8; WR],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut xs = [v.splat_f32s(0.0); G];
        for (g, to) in xs.iter_mut().enumerate() {
            *to = load::<V>(x.add(g * x_stride).cast());
        }
        for (r, w) in ws.into_iter().enumerate() {
            let w = v.broadcast(w.cast());
            for (c, x) in c.iter_mut().zip(xs) {
                c[r] = M::mac(v, c[r], x, w);
            }
        }
    }
}

/// A module with a kernel's function and its row, `KERNEL`.
macro_rules! quads_kernel {
    ($module:ident, $isa:expr, $attr:tt, $v:ty, $mac:ty, $dtype:ident as $t:ty, $most:literal x $wr:literal, $least:literal, $name:literal) => {
        pub(super) mod $module {
            use super::*;
            use $crate::{contract::DotKernel, micro::{quads, vector::stamp}, view::{DType, Format}};

            stamp!($attr, fun: Dot => quads::dot::<$v, $mac, $t, $most, $wr>);
            pub const KERNEL: DotKernel = DotKernel {
                name: $name,
                isa: $isa,
                x: DType::$dtype,
                w: Format::$dtype,
                least: $least,
                group: <$v as $crate::simd::Vector>::LANES / 4,
                fun,
            };
        }
    };
}
pub(crate) use quads_kernel;
