//! Few rows of x against W as it lies, vectors along K in both.

use super::vector::{Load, Mac, store};
use crate::{contract::Fetch, simd::Vector};

/// Rows of x in a tile of [`dot`].
const DOT_XR: usize = 4;

/// Bytes of each row of x that a tile of [`dot`] works on: those of four rows are half of a first-level cache of 32 KB.
const DOT_CHUNK: usize = 4096;

/// Bytes of W that pass from memory to the second-level cache while the block before them is computed.
pub(crate) const DOT_BLOCK: usize = 64 << 10;

/// `contract::Dot`, by tiles of `WR` rows of W as they lie in memory, in blocks that every row of x meets while they are in
/// the second-level cache. Vectors run along K in both operands: no packing, but sums across lanes at the end.
///
/// # Safety
/// As `contract::Dot`.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn dot<V: Vector, M: Mac<V>, X: Load<V>, W: Load<V>, const WR: usize>(
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
    let (x, x_stride) = (x.cast::<X::T>(), x_stride / size_of::<X::T>());
    let (w, w_stride) = (w.cast::<W::T>(), w_stride / size_of::<W::T>());
    // SAFETY: rows of x below `rows` and of W below `n` are read, `out[m][n]` is written for those alone.
    unsafe {
        let v = V::held();
        if rows == 1 && k * size_of::<X::T>() <= STREAM_X {
            if !next.is_null() {
                for j in 0..n {
                    let [c] = dot_rows::<V, M, X, W, 1>(v, k, x, [w.add(j * w_stride)], true);
                    *out.add(j) = across::<V>(c);
                }
                return;
            }
            for j in (0..n).step_by(2) {
                // The last row may stand for the next, which is not there.
                let second = (j + 1).min(n - 1);
                let pair = [j, second].map(|j| w.add(j * w_stride));
                let [a, b] = dot_rows::<V, M, X, W, 2>(v, k, x, pair, false);
                *out.add(j) = across::<V>(a);
                *out.add(second) = across::<V>(b);
            }
            return;
        }
        let row_bytes = k * size_of::<W::T>();
        let block = (DOT_BLOCK / row_bytes / WR).max(1) * WR;
        let vecs = k.div_ceil(V::LANES * X::PER_LANE);
        for j in (0..n).step_by(block) {
            let (nb, w) = (block.min(n - j), w.add(j * w_stride));
            let turns = rows.div_ceil(DOT_XR) * nb.div_ceil(WR) * vecs;
            let rest = (j + nb < n).then_some(w.wrapping_add(nb * w_stride).cast());
            let mut ahead = Fetch::after_block(w.cast(), rest, next, nb * row_bytes, turns);
            let chunk = DOT_CHUNK / size_of::<X::T>();
            for at in (0..k).step_by(chunk) {
                let len = chunk.min(k - at);
                for i in (0..rows).step_by(DOT_XR) {
                    let (x, out) = (x.add(i * x_stride + at), out.add(i * out_stride + j));
                    let (w, rows) = (w.add(at), rows - i);
                    let to = (out, out_stride, at > 0);
                    match rows {
                        1 => dot_tiles::<V, M, X, W, WR, 1>(v, len, x, x_stride, w, w_stride, nb, to, &mut ahead),
                        2 => dot_tiles::<V, M, X, W, WR, 2>(v, len, x, x_stride, w, w_stride, nb, to, &mut ahead),
                        3 => dot_tiles::<V, M, X, W, WR, 3>(v, len, x, x_stride, w, w_stride, nb, to, &mut ahead),
                        _ => dot_tiles::<V, M, X, W, WR, DOT_XR>(v, len, x, x_stride, w, w_stride, nb, to, &mut ahead),
                    }
                }
            }
        }
    }
}

/// Longest lone row of x, in bytes, that W streams past: a quarter of a first-level cache of 32 KB. Longer ones do not stay
/// there, and rows of W that share a vector of x are ahead.
const STREAM_X: usize = 8 << 10;

/// Bytes by which W is fetched ahead of a lone row of x. Measured from 2048 to 16384.
const STREAM_AHEAD: usize = 5120;

/// The sum over lanes.
#[inline(always)]
fn across<V: Vector>(c: V::F32s) -> f32 {
    let mut lanes = [0f32; 16];
    const { assert!(V::LANES <= 16) };
    // SAFETY: `lanes` is writable for `LANES` lanes, as the line above checks.
    unsafe { store::<V>(lanes.as_mut_ptr(), c) };
    lanes[..V::LANES].iter().sum()
}

/// `x . w` for a lone row of x and `R` rows of W, but for the sum over lanes. Where they are to be fetched, W is one stream:
/// consecutive rows follow each other in memory.
///
/// # Safety
/// `k` elements are readable at each.
#[inline(always)]
unsafe fn dot_rows<V: Vector, M: Mac<V>, X: Load<V>, W: Load<V>, const R: usize>(
    v: V,
    k: usize,
    x: *const X::T,
    w: [*const W::T; R],
    fetch: bool,
) -> [V::F32s; R] {
    const SUMS: usize = 8;
    let per_vec = V::LANES * X::PER_LANE;
    let turn = SUMS * per_vec;
    // SAFETY: elements `< k` of all are read, by the caller's promise; the tail by `load_part`.
    unsafe {
        let mut c = [[v.splat_f32s(0.0); SUMS]; R];
        let mut at = 0;
        while at + turn <= k {
            if fetch {
                for line in (0..turn * size_of::<W::T>()).step_by(64) {
                    v.prefetch_once(w[0].add(at).cast::<u8>().wrapping_add(STREAM_AHEAD + line));
                }
            }
            for i in 0..SUMS {
                let at = at + i * per_vec;
                let x = X::load(v, x.add(at));
                for (c, w) in c.iter_mut().zip(w) {
                    c[i] = M::mac(v, c[i], x, W::load(v, w.add(at)));
                }
            }
            at += turn;
        }
        while at + per_vec <= k {
            for (c, w) in c.iter_mut().zip(w) {
                c[0] = M::mac(v, c[0], X::load(v, x.add(at)), W::load(v, w.add(at)));
            }
            at += per_vec;
        }
        if at < k {
            for (c, w) in c.iter_mut().zip(w) {
                c[0] = M::mac(v, c[0], X::load_part(v, x.add(at), k - at), W::load_part(v, w.add(at), k - at));
            }
        }
        // Loops and no closures: a closure is not sure to be inlined where the level is known.
        let mut sums = [v.splat_f32s(0.0); R];
        for (sum, c) in sums.iter_mut().zip(&c) {
            *sum = c[0];
            for &c in &c[1..] {
                *sum = v.add_f32s(*sum, c);
            }
        }
        sums
    }
}

/// `out[m][j] (+)= x[m] . w[j]` for XR rows of x and `n` rows of W.
///
/// # Safety
/// As `contract::Dot`; `to` is `out`, its stride, and whether to add.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn dot_tiles<V: Vector, M: Mac<V>, X: Load<V>, W: Load<V>, const WR: usize, const XR: usize>(
    v: V,
    k: usize,
    x: *const X::T,
    x_stride: usize,
    w: *const W::T,
    w_stride: usize,
    n: usize,
    to: (*mut f32, usize, bool),
    ahead: &mut Fetch,
) {
    // SAFETY: the caller's promise; full tiles, then single rows.
    unsafe {
        let at = |j: usize| (w.add(j * w_stride), (to.0.add(j), to.1, to.2));
        let full = n - n % WR;
        for j in (0..full).step_by(WR) {
            let (w, to) = at(j);
            dot_tile::<V, M, X, W, WR, XR>(v, k, x, x_stride, w, w_stride, to, ahead);
        }
        for j in full..n {
            let (w, to) = at(j);
            dot_tile::<V, M, X, W, 1, XR>(v, k, x, x_stride, w, w_stride, to, ahead);
        }
    }
}

/// [`dot_tiles`] for `WR` rows of W: each vector of W serves XR rows of x, each of x WR rows of W.
///
/// # Safety
/// As [`dot_tiles`].
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn dot_tile<V: Vector, M: Mac<V>, X: Load<V>, W: Load<V>, const WR: usize, const XR: usize>(
    v: V,
    k: usize,
    x: *const X::T,
    x_stride: usize,
    w: *const W::T,
    w_stride: usize,
    (out, out_stride, add): (*mut f32, usize, bool),
    ahead: &mut Fetch,
) {
    let per_vec = V::LANES * X::PER_LANE;
    // SAFETY: elements `< k` of each row are read, by the caller's promise; the tail by `load_part`.
    unsafe {
        let mut c = [[v.splat_f32s(0.0); WR]; XR];
        let mut at = 0;
        while at + per_vec <= k {
            ahead.turn(v);
            let mut ws = [v.splat_f32s(0.0); WR];
            for (r, to) in ws.iter_mut().enumerate() {
                *to = W::load(v, w.add(r * w_stride + at));
            }
            for (i, c) in c.iter_mut().enumerate() {
                let xv = X::load(v, x.add(i * x_stride + at));
                for r in 0..WR {
                    c[r] = M::mac(v, c[r], xv, ws[r]);
                }
            }
            at += per_vec;
        }
        if at < k {
            for (i, c) in c.iter_mut().enumerate() {
                let xv = X::load_part(v, x.add(i * x_stride + at), k - at);
                for (r, c) in c.iter_mut().enumerate() {
                    *c = M::mac(v, *c, xv, W::load_part(v, w.add(r * w_stride + at), k - at));
                }
            }
        }
        let c = c.as_flattened();
        for from in (0..c.len()).step_by(V::LANES) {
            let some = &c[from..c.len().min(from + V::LANES)];
            let mut block = [v.splat_f32s(0.0); 16];
            block[..some.len()].copy_from_slice(some);
            let mut sums = [0f32; 16];
            store::<V>(sums.as_mut_ptr(), v.sum_each(&mut block));
            for (at, sum) in sums.iter().enumerate().take(some.len()) {
                let out = out.add((from + at) / WR * out_stride + (from + at) % WR);
                *out = if add { *out + sum } else { *sum };
            }
        }
    }
}

/// A module with one few-row kernel (tiles of `$wr` rows of W) and its row, `KERNEL`.
macro_rules! dot_kernel {
    ($module:ident, $isa:expr, $attr:tt, $v:ty, $mac:ty, $wr:literal, $name:literal,
     $xt:ident as $x:ident, $wt:ident as $w:ident) => {
        pub(super) mod $module {
            use super::*;
            use $crate::{contract::DotKernel, micro::{dot, vector::{self as vk, stamp}}, view::{DType, Format}};

            stamp!($attr, fun: Dot => dot::dot::<$v, $mac, vk::$x, vk::$w, $wr>);
            pub const KERNEL: DotKernel =
                DotKernel { name: $name, isa: $isa, x: DType::$xt, w: Format::$wt, least: 1, group: 1, fun };
        }
    };
}
pub(crate) use dot_kernel;
