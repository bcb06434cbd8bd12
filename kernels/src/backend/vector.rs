//! The algorithms of every lane-broadcast kernel, written once over a small vector trait.
//!
//! Each ISA implements [`Vector`] and stamps out its kernels with [`gemm_kernel`]: the generic bodies are inlined into
//! functions that carry the ISA's target features.

use crate::{
    contract::{Ahead, Copier, ForWeight, GemmKernel, Mul, PackX},
    cpu::Isa,
};

/// A vector of 32-bit lanes, read as f32 or as pairs of BF16.
///
/// # Safety
/// Implementors promise that the methods do what they say for any input the method's own Safety section allows. Every
/// method may use the ISA's instructions: callers run inside a function with its target features.
pub(crate) unsafe trait Vector: Copy {
    /// Lanes, at most 16.
    const LANES: usize;

    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// All lanes the 32 bits at `p`.
    ///
    /// # Safety
    /// `p` is readable for 4 bytes.
    unsafe fn splat(p: *const u32) -> Self;
    /// # Safety
    /// `p` is readable for `LANES` lanes.
    unsafe fn load(p: *const u32) -> Self;
    /// The first `n < LANES` lanes; the rest are zero.
    ///
    /// # Safety
    /// `p` is readable for `n` lanes.
    unsafe fn load_part(p: *const u32, n: usize) -> Self {
        let mut t = [0u32; 16];
        // SAFETY: `n < LANES <= 16` lanes are readable at `p`; `t` holds 16.
        unsafe {
            std::ptr::copy_nonoverlapping(p, t.as_mut_ptr(), n);
            Self::load(t.as_ptr())
        }
    }
    /// # Safety
    /// `p` is writable for `LANES` lanes.
    unsafe fn store(self, p: *mut u32);
    /// `LANES` BF16 as f32.
    ///
    /// # Safety
    /// `p` is readable for `LANES` u16.
    unsafe fn widen_bf16(p: *const u16) -> Self;
    /// `LANES` F16 as f32.
    ///
    /// # Safety
    /// `p` is readable for `LANES` u16.
    unsafe fn widen_f16(p: *const u16) -> Self;
    /// `LANES` f32, rounded to nearest even, as BF16.
    ///
    /// # Safety
    /// `p` is writable for `LANES` u16.
    unsafe fn narrow_bf16(self, p: *mut u16);
    /// `self * b + c` in f32.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// Lane-wise bounds; NaN stays.
    unsafe fn clamp(self, lo: f32, hi: f32) -> Self;
    /// To the nearest integer.
    unsafe fn round(self) -> Self;
    /// `2^self` for integers in -126..=127.
    unsafe fn pow2(self) -> Self;
    /// `e^self`, within 2 ulp for -87.3..=88.3 (the Cephes reduction and polynomial); constant beyond.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller runs with the ISA's features; the clamp keeps `n` in the range of `pow2`.
        unsafe {
            let x = self.clamp(-87.3, 88.3);
            let n = x.mul(Self::splat_f32(std::f32::consts::LOG2_E)).round();
            let r = n.fma(Self::splat_f32(-0.693_359_4), x);
            let r = n.fma(Self::splat_f32(2.121_944_4e-4), r);
            let mut p = Self::splat_f32(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = p.fma(r, Self::splat_f32(c));
            }
            let one_r = r.add(Self::splat_f32(1.0));
            p.fma(r.mul(r), one_r).mul(n.pow2())
        }
    }
    unsafe fn splat_f32(x: f32) -> Self;
    /// The sum of the lanes of each of the first `LANES` vectors.
    #[inline(always)]
    unsafe fn sum_each(block: &mut [Self; 16]) -> Self {
        // SAFETY: the caller runs with the ISA's features.
        unsafe {
            Self::transpose(block);
            let mut s = block[0];
            for v in &block[1..Self::LANES] {
                s = s.add(*v);
            }
            s
        }
    }
    /// Transposes the `LANES x LANES` block in the first `LANES` vectors.
    unsafe fn transpose(block: &mut [Self; 16]);
    /// `acc + a . b` lane by lane: the BF16 pair product. Only for ISAs that have it.
    unsafe fn dot_bf16(self, _a: Self, _b: Self) -> Self {
        unreachable!("this ISA multiplies in f32")
    }
    /// Prefetches the line at `p`; any address will do.
    unsafe fn prefetch(_p: *const u8) {}
    /// Prefetches the line at `p` of a stream that is read once, the way that suits the ISA's loads; any address will do.
    unsafe fn prefetch_once(_p: *const u8) {}
    /// Prefetches the line at `p` to the second-level cache; any address will do.
    unsafe fn prefetch_l2(_p: *const u8) {}
    /// Prefetches the line at `p`, to be written; any address will do.
    unsafe fn prefetch_write(_p: *const u8) {}
}

/// The multiply-add of a kernel: both operands are vectors of 32-bit lanes.
pub(crate) trait Mac<V: Vector> {
    /// # Safety
    /// As for [`Vector`]'s methods.
    unsafe fn mac(acc: V, x: V, w: V) -> V;
}

pub(crate) struct MacF32;
impl<V: Vector> Mac<V> for MacF32 {
    #[inline(always)]
    unsafe fn mac(acc: V, x: V, w: V) -> V {
        // SAFETY: the caller runs with the ISA's features.
        unsafe { x.fma(w, acc) }
    }
}

pub(crate) struct MacBf16;
impl<V: Vector> Mac<V> for MacBf16 {
    #[inline(always)]
    unsafe fn mac(acc: V, x: V, w: V) -> V {
        // SAFETY: the caller runs with the ISA's features.
        unsafe { acc.dot_bf16(x, w) }
    }
}

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
unsafe fn copy_vector<V: Vector, L: Load<V>>(src: *const u8, dst: *mut u8, below: usize) -> (*const u8, *mut u8) {
    // SAFETY: the caller's promise; both move to the end of what was copied.
    unsafe {
        V::prefetch(src.wrapping_add(below));
        L::load(src.cast()).store(dst.cast());
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
        while queue.in_chunk > 0 {
            (queue.src, queue.dst) = copy_vector::<V, L>(queue.src, queue.dst, queue.shape.src_stride);
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
        let rows = std::array::from_fn(|r| tile.add(r * TILE_STRIDE));
        let copy = |src, dst, below| copy_vector::<V, L>(src, dst, below);
        multiply::<V, M, MV, NR>(steps, panel, rows, acc, accumulate, ahead, copy);
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
        let rows = std::array::from_fn(|r| w.add(r.min(rows - 1) * stride));
        multiply::<V, M, MV, NR>(steps, panel, rows, acc, accumulate, ahead, |src, dst, _| {
            V::prefetch_l2(src);
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
    steps: usize,
    panel: *const u8,
    rows: [*const u8; NR],
    acc: *mut f32,
    accumulate: bool,
    ahead: &mut Ahead,
    copy: impl Fn(*const u8, *mut u8, usize) -> (*const u8, *mut u8),
) {
    let mut x = panel.cast::<u32>();
    let mut at = 0;
    let acc = acc.cast::<u32>();
    // SAFETY: `acc` holds NR * MV * LANES lanes; `panel` `steps` rows of MV * LANES lanes; the rest is the caller's promise.
    unsafe {
        let mut c = [[V::zero(); MV]; NR];
        if accumulate {
            for (r, c) in c.iter_mut().enumerate() {
                for (v, c) in c.iter_mut().enumerate() {
                    *c = V::load(acc.add((r * MV + v) * V::LANES));
                }
            }
        }
        macro_rules! step {
            ($u:expr) => {
                for v in (0..MV).step_by(16 / V::LANES) {
                    V::prefetch(x.wrapping_add((($u + X_AHEAD) * MV + v) * V::LANES).cast());
                }
                let xs: [V; MV] = std::array::from_fn(|v| V::load(x.add(($u * MV + v) * V::LANES)));
                for r in 0..NR {
                    let b = V::splat(rows[r].add(at + $u * 4).cast());
                    for v in 0..MV {
                        c[r][v] = M::mac(c[r][v], xs[v], b);
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
                V::prefetch_write(line);
            }
            let q = &mut ahead.queue;
            let per_turn = q.per_turn.min(q.in_chunk);
            let some = q.in_chunk.checked_div(per_turn).unwrap_or(STRETCH).min(STRETCH).min(turns - turn);
            let (mut src, mut dst, below) = (q.src, q.dst, q.shape.src_stride);
            for _ in 0..some {
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
            for (v, c) in c.iter().enumerate() {
                c.store(acc.add((r * MV + v) * V::LANES));
            }
        }
    }
}

/// How to read 32-bit lanes from memory of one element type.
pub(crate) trait Load<V: Vector> {
    /// Stored elements of one lane.
    const PER_LANE: usize;
    type T: Copy;
    /// # Safety
    /// `p` is readable for `V::LANES * PER_LANE` elements.
    unsafe fn load(p: *const Self::T) -> V;
    /// The first `n` elements, fewer than a vector's; the rest are zero.
    ///
    /// # Safety
    /// `p` is readable for `n` elements.
    unsafe fn load_part(p: *const Self::T, n: usize) -> V;
}

pub(crate) struct F32;
impl<V: Vector> Load<V> for F32 {
    const PER_LANE: usize = 1;
    type T = f32;
    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_part(p.cast(), n) }
    }
}

/// Copies the `n <= 32` u16 at `p` into a zeroed buffer.
///
/// # Safety
/// `p` is readable for `n` u16.
#[inline(always)]
unsafe fn part16(p: *const u16, n: usize) -> [u16; 32] {
    let mut t = [0; 32];
    assert!(n <= 32);
    // SAFETY: `n <= 32` elements are readable by the caller's promise, and `t` holds 32.
    unsafe { std::ptr::copy_nonoverlapping(p, t.as_mut_ptr(), n) };
    t
}

macro_rules! load_u16 {
    ($(#[$doc:meta])* $name:ident, $per_lane:expr, $p:ident => $load:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;
        impl<V: Vector> Load<V> for $name {
            const PER_LANE: usize = $per_lane;
            type T = u16;
            #[inline(always)]
            unsafe fn load($p: *const u16) -> V {
                // SAFETY: the caller's promise.
                unsafe { $load }
            }
            #[inline(always)]
            unsafe fn load_part(p: *const u16, n: usize) -> V {
                // SAFETY: the caller's promise for the copy; the copy holds LANES * PER_LANE <= 32 elements.
                unsafe {
                    let t = part16(p, n);
                    <Self as Load<V>>::load(t.as_ptr())
                }
            }
        }
    };
}
load_u16!(
    /// BF16 widened to f32.
    Bf16, 1, p => V::widen_bf16(p));
load_u16!(
    /// F16 widened to f32.
    F16, 1, p => V::widen_f16(p));
load_u16!(
    /// Pairs of BF16, as they are.
    Bf16Pair, 2, p => V::load(p.cast()));

/// `contract::PackX`: rows to a panel of `MV` vectors.
///
/// # Safety
/// As `contract::PackX`.
#[inline(always)]
pub(crate) unsafe fn pack_x<V: Vector, L: Load<V>, const MV: usize>(
    src: *const L::T,
    stride: usize,
    rows: usize,
    k: usize,
    dst: *mut u8,
) {
    let dst = dst.cast::<u32>();
    let (lanes, per_vec) = (V::LANES, V::LANES * L::PER_LANE);
    let steps = k.div_ceil(L::PER_LANE);
    // SAFETY: row `m < rows` is read at elements `< k` only (`load_part` at the end); `dst` is written at
    // `step * MV * LANES + lane` for `step < steps`: the caller's promise.
    unsafe {
        for v in 0..MV {
            let mut at = 0;
            while at < k {
                let mut block = [V::zero(); 16];
                for (l, b) in block.iter_mut().enumerate().take(lanes) {
                    let m = v * lanes + l;
                    if m < rows {
                        let p = src.add(m * stride + at);
                        *b = if at + per_vec <= k { L::load(p) } else { L::load_part(p, k - at) };
                    }
                }
                V::transpose(&mut block);
                let first = at / L::PER_LANE;
                // The lines of the next block.
                for s in (0..lanes).step_by(16 / lanes) {
                    V::prefetch_write(dst.wrapping_add(((first + lanes + s) * MV + v) * lanes).cast());
                }
                for (s, b) in block.iter().enumerate().take(lanes.min(steps - first)) {
                    b.store(dst.add(((first + s) * MV + v) * lanes));
                }
                at += per_vec;
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
    src: *const L::T,
    stride: usize,
    rows: usize,
    k: usize,
    dst: *mut u8,
) {
    let per_vec = V::LANES * L::PER_LANE;
    // SAFETY: row `r < rows` is read at elements `< k` only (`load_part` at the end). A tile row holds STEPS lanes and one
    // line more, so the whole vector that the last, partial load fills stays inside it.
    unsafe {
        for r in 0..NR {
            let d = dst.add(r * TILE_STRIDE).cast::<u32>();
            let p = src.add(if r < rows { r * stride } else { 0 });
            let mut at = 0;
            while at < k {
                let v = if r >= rows {
                    V::zero()
                } else if at + per_vec <= k {
                    L::load(p.add(at))
                } else {
                    L::load_part(p.add(at), k - at)
                };
                v.store(d.add(at / L::PER_LANE));
                at += per_vec;
            }
        }
    }
}

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
    x: *const X::T,
    x_stride: usize,
    rows: usize,
    w: *const W::T,
    w_stride: usize,
    n: usize,
    out: *mut f32,
    out_stride: usize,
    next: *const u8,
) {
    // SAFETY: rows of x below `rows` and of W below `n` are read, `out[m][n]` is written for those alone.
    unsafe {
        if rows == 1 && k * size_of::<X::T>() <= STREAM_X {
            for j in 0..n {
                *out.add(j) = dot_row::<V, M, X, W>(k, x, w.add(j * w_stride));
            }
            return;
        }
        let row_bytes = k * size_of::<W::T>();
        let block = (DOT_BLOCK / row_bytes / WR).max(1) * WR;
        let vecs = k.div_ceil(V::LANES * X::PER_LANE);
        for j in (0..n).step_by(block) {
            let (nb, w) = (block.min(n - j), w.add(j * w_stride));
            let following = if j + nb < n { w.add(nb * w_stride).cast() } else { next };
            let turns = rows.div_ceil(DOT_XR) * nb.div_ceil(WR) * vecs;
            let mut ahead = Lines::new(following, nb * row_bytes, turns);
            let chunk = DOT_CHUNK / size_of::<X::T>();
            for at in (0..k).step_by(chunk) {
                let len = chunk.min(k - at);
                for i in (0..rows).step_by(DOT_XR) {
                    let (x, out) = (x.add(i * x_stride + at), out.add(i * out_stride + j));
                    let (w, rows) = (w.add(at), rows - i);
                    let to = (out, out_stride, at > 0);
                    match rows {
                        1 => dot_tiles::<V, M, X, W, WR, 1>(len, x, x_stride, w, w_stride, nb, to, &mut ahead),
                        2 => dot_tiles::<V, M, X, W, WR, 2>(len, x, x_stride, w, w_stride, nb, to, &mut ahead),
                        3 => dot_tiles::<V, M, X, W, WR, 3>(len, x, x_stride, w, w_stride, nb, to, &mut ahead),
                        _ => dot_tiles::<V, M, X, W, WR, DOT_XR>(len, x, x_stride, w, w_stride, nb, to, &mut ahead),
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

/// `x . w` for a lone row of x, with W as one stream: consecutive rows follow each other in memory.
///
/// # Safety
/// `k` elements are readable at both.
#[inline(always)]
unsafe fn dot_row<V: Vector, M: Mac<V>, X: Load<V>, W: Load<V>>(k: usize, x: *const X::T, w: *const W::T) -> f32 {
    const SUMS: usize = 8;
    let per_vec = V::LANES * X::PER_LANE;
    let turn = SUMS * per_vec;
    // SAFETY: elements `< k` of both are read, by the caller's promise; the tail by `load_part`.
    unsafe {
        let mut c = [V::zero(); SUMS];
        let mut at = 0;
        while at + turn <= k {
            for line in (0..turn * size_of::<W::T>()).step_by(64) {
                V::prefetch_once(w.add(at).cast::<u8>().wrapping_add(STREAM_AHEAD + line));
            }
            for (i, c) in c.iter_mut().enumerate() {
                let at = at + i * per_vec;
                *c = M::mac(*c, X::load(x.add(at)), W::load(w.add(at)));
            }
            at += turn;
        }
        while at + per_vec <= k {
            c[0] = M::mac(c[0], X::load(x.add(at)), W::load(w.add(at)));
            at += per_vec;
        }
        if at < k {
            c[0] = M::mac(c[0], X::load_part(x.add(at), k - at), W::load_part(w.add(at), k - at));
        }
        let mut sums = [0f32; 16];
        c[1..].iter().fold(c[0], |s, c| s.add(*c)).store(sums.as_mut_ptr().cast());
        sums[..V::LANES].iter().sum()
    }
}

/// Prefetches a stretch of memory evenly over a number of turns.
pub(crate) struct Lines {
    at: *const u8,
    /// Prefetches in each turn, and bytes between them.
    per_turn: usize,
    step: usize,
}

impl Lines {
    pub fn new(at: *const u8, bytes: usize, turns: usize) -> Lines {
        let each = bytes.div_ceil(turns);
        let per_turn = each.div_ceil(64);
        Lines { at, per_turn, step: each.div_ceil(per_turn) }
    }

    #[inline(always)]
    pub unsafe fn turn<V: Vector>(&mut self) {
        for _ in 0..self.per_turn {
            // SAFETY: prefetches may have any address.
            unsafe { V::prefetch_l2(self.at) };
            self.at = self.at.wrapping_add(self.step);
        }
    }
}

/// `out[m][j] (+)= x[m] . w[j]` for XR rows of x and `n` rows of W.
///
/// # Safety
/// As `contract::Dot`; `to` is `out`, its stride, and whether to add.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn dot_tiles<V: Vector, M: Mac<V>, X: Load<V>, W: Load<V>, const WR: usize, const XR: usize>(
    k: usize,
    x: *const X::T,
    x_stride: usize,
    w: *const W::T,
    w_stride: usize,
    n: usize,
    to: (*mut f32, usize, bool),
    ahead: &mut Lines,
) {
    // SAFETY: the caller's promise; full tiles, then single rows.
    unsafe {
        let at = |j: usize| (w.add(j * w_stride), (to.0.add(j), to.1, to.2));
        let full = n - n % WR;
        for j in (0..full).step_by(WR) {
            let (w, to) = at(j);
            dot_tile::<V, M, X, W, WR, XR>(k, x, x_stride, w, w_stride, to, ahead);
        }
        for j in full..n {
            let (w, to) = at(j);
            dot_tile::<V, M, X, W, 1, XR>(k, x, x_stride, w, w_stride, to, ahead);
        }
    }
}

/// [`dot_tiles`] for `WR` rows of W: each vector of W serves XR rows of x, each of x WR rows of W.
///
/// # Safety
/// As [`dot_tiles`].
#[inline(always)]
unsafe fn dot_tile<V: Vector, M: Mac<V>, X: Load<V>, W: Load<V>, const WR: usize, const XR: usize>(
    k: usize,
    x: *const X::T,
    x_stride: usize,
    w: *const W::T,
    w_stride: usize,
    (out, out_stride, add): (*mut f32, usize, bool),
    ahead: &mut Lines,
) {
    let per_vec = V::LANES * X::PER_LANE;
    // SAFETY: elements `< k` of each row are read, by the caller's promise; the tail by `load_part`.
    unsafe {
        let mut c = [[V::zero(); WR]; XR];
        let mut at = 0;
        while at + per_vec <= k {
            ahead.turn::<V>();
            let mut ws = [V::zero(); WR];
            for (r, v) in ws.iter_mut().enumerate() {
                *v = W::load(w.add(r * w_stride + at));
            }
            for (i, c) in c.iter_mut().enumerate() {
                let xv = X::load(x.add(i * x_stride + at));
                for r in 0..WR {
                    c[r] = M::mac(c[r], xv, ws[r]);
                }
            }
            at += per_vec;
        }
        if at < k {
            for (i, c) in c.iter_mut().enumerate() {
                let xv = X::load_part(x.add(i * x_stride + at), k - at);
                for (r, c) in c.iter_mut().enumerate() {
                    *c = M::mac(*c, xv, W::load_part(w.add(r * w_stride + at), k - at));
                }
            }
        }
        let c = c.as_flattened();
        for from in (0..c.len()).step_by(V::LANES) {
            let some = &c[from..c.len().min(from + V::LANES)];
            let mut block = [V::zero(); 16];
            block[..some.len()].copy_from_slice(some);
            let mut sums = [0f32; 16];
            V::sum_each(&mut block).store(sums.as_mut_ptr().cast());
            for (at, sum) in sums.iter().enumerate().take(some.len()) {
                let out = out.add((from + at) / WR * out_stride + (from + at) % WR);
                *out = if add { *out + sum } else { *sum };
            }
        }
    }
}

/// Where unpacked values go.
pub(crate) trait Put<V: Vector> {
    type T;
    /// # Safety
    /// `p` is valid for `V::LANES` elements.
    unsafe fn put(v: V, p: *mut Self::T);
    /// # Safety
    /// `p` is valid for one element.
    unsafe fn put1(x: f32, p: *mut Self::T);
}

pub(crate) struct Store;
impl<V: Vector> Put<V> for Store {
    type T = f32;
    #[inline(always)]
    unsafe fn put(v: V, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { v.store(p.cast()) }
    }
    #[inline(always)]
    unsafe fn put1(x: f32, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { *p = x }
    }
}

pub(crate) struct Add;
impl<V: Vector> Put<V> for Add {
    type T = f32;
    #[inline(always)]
    unsafe fn put(v: V, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { v.add(V::load(p.cast())).store(p.cast()) }
    }
    #[inline(always)]
    unsafe fn put1(x: f32, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { *p += x }
    }
}

pub(crate) struct StoreBf16;
impl<V: Vector> Put<V> for StoreBf16 {
    type T = u16;
    #[inline(always)]
    unsafe fn put(v: V, p: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { v.narrow_bf16(p) }
    }
    #[inline(always)]
    unsafe fn put1(x: f32, p: *mut u16) {
        // SAFETY: the caller's promise.
        unsafe { *p = half::bf16::from_f32(x).to_bits() }
    }
}

/// `contract::Unpack`.
///
/// # Safety
/// As `contract::Unpack`.
#[inline(always)]
pub(crate) unsafe fn unpack<V: Vector, P: Put<V>>(
    src: *const f32,
    src_stride: usize,
    rows: usize,
    cols: usize,
    dst: *mut P::T,
    dst_stride: usize,
) {
    let l = V::LANES;
    let (full_n, full_m) = (rows / l * l, cols / l * l);
    // SAFETY: blocks cover `n < full_n`, `m < full_m`; the loops after them the rest: all inside what the caller promised.
    unsafe {
        for m in (0..full_m).step_by(l) {
            for n in (0..full_n).step_by(l) {
                let mut block = [V::zero(); 16];
                for (i, b) in block.iter_mut().enumerate().take(l) {
                    *b = V::load(src.add((n + i) * src_stride + m).cast());
                }
                V::transpose(&mut block);
                for (i, b) in block.iter().enumerate().take(l) {
                    P::put(*b, dst.add((m + i) * dst_stride + n));
                }
            }
        }
        for m in 0..cols {
            for n in if m < full_m { full_n } else { 0 }..rows {
                P::put1(*src.add(n * src_stride + m), dst.add(m * dst_stride + n));
            }
        }
    }
}

/// `x / (1 + e^-x) * y`.
///
/// # Safety
/// As for [`Vector`]'s methods.
#[inline(always)]
unsafe fn silu<V: Vector>(x: V, y: V) -> V {
    // SAFETY: the caller runs with the ISA's features.
    unsafe { x.mul(y).div(x.mul(V::splat_f32(-1.0)).exp().add(V::splat_f32(1.0))) }
}

/// `contract::SiluMul`.
///
/// # Safety
/// As `contract::SiluMul`.
#[inline(always)]
pub(crate) unsafe fn silu_mul<V: Vector>(len: usize, a: *mut f32, b: *const f32) {
    // SAFETY: whole vectors below `len`, then a part that goes through a buffer of 16 lanes.
    unsafe {
        let full = len / V::LANES * V::LANES;
        for i in (0..full).step_by(V::LANES) {
            silu::<V>(V::load(a.add(i).cast()), V::load(b.add(i).cast())).store(a.add(i).cast());
        }
        if full < len {
            let n = len - full;
            let r = silu::<V>(V::load_part(a.add(full).cast(), n), V::load_part(b.add(full).cast(), n));
            let mut t = [0u32; 16];
            r.store(t.as_mut_ptr());
            std::ptr::copy_nonoverlapping(t.as_ptr(), a.add(full).cast::<u32>(), n);
        }
    }
}

/// Defines `$name`: a generic body inlined into a function with the ISA's target features.
macro_rules! stamp {
    ([$($attr:meta)?], $name:ident: $doc:literal, ($($arg:ident: $ty:ty),*) => $body:expr) => {
        #[doc = $doc]
        ///
        /// # Safety
        #[doc = concat!("As ", $doc, ".")]
        $(#[$attr])?
        #[allow(clippy::too_many_arguments)]
        unsafe fn $name($($arg: $ty),*) {
            // SAFETY: the same promise, passed on; the ISA is part of it.
            unsafe { $body($($arg),*) }
        }
    };
}
pub(crate) use stamp;

/// A tile's functions for one type of weights, in a module of its own.
macro_rules! for_weight {
    ($module:ident, $attr:tt, $v:ty, $mac:ident, $load:ident as $t:ty, $mv:literal x $nr:literal, $in_place:expr) => {
        mod $module {
            use super::*;

            vk::stamp!($attr, micro: "`contract::Micro`",
                (steps: usize, panel: *const u8, tile: *const u8, acc: *mut f32, accumulate: bool, ahead: &mut ct::Ahead)
                => vk::micro::<$v, vk::$mac, vk::$load, $mv, $nr>);
            vk::stamp!($attr, drain: "`contract::Drain`", (queue: &mut ct::Copier) => vk::drain::<$v, vk::$load>);
            vk::stamp!($attr, pack: "`contract::PackW`",
                (src: *const $t, stride: usize, rows: usize, k: usize, dst: *mut u8) => vk::pack_w::<$v, vk::$load, $nr>);

            vk::stamp!($attr, in_place: "`contract::InPlace`",
                (steps: usize, panel: *const u8, w: *const u8, stride: usize, rows: usize, acc: *mut f32, accumulate: bool, ahead: &mut ct::Ahead)
                => vk::in_place::<$v, vk::$mac, vk::$load, $mv, $nr>);

            pub const FNS: ct::ForWeight<$t> =
                ct::ForWeight { micro, in_place: if $in_place { Some(in_place) } else { None }, pack, drain: Some(drain) };
        }
    };
}
pub(crate) use for_weight;

/// A module with one tile's functions and its registry row, `KERNEL`. `F32` tiles take every element type and multiply
/// in f32; `Bf16` tiles take BF16 alone.
macro_rules! gemm_kernel {
    ($module:ident, $isa:expr, $attr:tt, $v:ty, F32, $mv:literal x $nr:literal, $name:literal) => {
        pub(super) mod $module {
            use super::*;
            use $crate::{backend::vector as vk, contract as ct};

            vk::stamp!($attr, pack_x_f32: "`contract::PackX`",
                (src: *const f32, stride: usize, rows: usize, k: usize, dst: *mut u8) => vk::pack_x::<$v, vk::F32, $mv>);
            vk::stamp!($attr, pack_x_bf16: "`contract::PackX`",
                (src: *const u16, stride: usize, rows: usize, k: usize, dst: *mut u8) => vk::pack_x::<$v, vk::Bf16, $mv>);
            vk::for_weight!(w_f32, $attr, $v, MacF32, F32 as f32, $mv x $nr, $nr <= vk::IN_PLACE_ROWS);
            vk::for_weight!(w_f16, $attr, $v, MacF32, F16 as u16, $mv x $nr, false);
            vk::for_weight!(w_bf16, $attr, $v, MacF32, Bf16 as u16, $mv x $nr, false);

            pub const KERNEL: ct::GemmKernel = ct::GemmKernel {
                pack_x_f32: Some(pack_x_f32),
                w_f32: Some(w_f32::FNS),
                w_f16: Some(w_f16::FNS),
                ..vk::row::<$v>($name, $isa, ct::Mul::F32, $mv, $nr, pack_x_bf16, w_bf16::FNS)
            };
        }
    };
    ($module:ident, $isa:expr, $attr:tt, $v:ty, Bf16, $mv:literal x $nr:literal, $name:literal) => {
        pub(super) mod $module {
            use super::*;
            use $crate::{backend::vector as vk, contract as ct};

            vk::stamp!($attr, pack_x: "`contract::PackX`",
                (src: *const u16, stride: usize, rows: usize, k: usize, dst: *mut u8) => vk::pack_x::<$v, vk::Bf16Pair, $mv>);
            vk::for_weight!(w_bf16, $attr, $v, MacBf16, Bf16Pair as u16, $mv x $nr, $nr <= vk::IN_PLACE_ROWS);

            pub const KERNEL: ct::GemmKernel =
                vk::row::<$v>($name, $isa, ct::Mul::Bf16, $mv, $nr, pack_x, w_bf16::FNS);
        }
    };
}
pub(crate) use gemm_kernel;

/// A registry row that takes BF16 operands alone.
pub(crate) const fn row<V: Vector>(
    name: &'static str,
    isa: Isa,
    mul: Mul,
    mv: usize,
    nr: usize,
    pack_x_bf16: PackX<u16>,
    w_bf16: ForWeight<u16>,
) -> GemmKernel {
    let ku = match mul {
        Mul::F32 => 1,
        Mul::Bf16 => 2,
    };
    GemmKernel {
        name,
        isa,
        mul,
        mr: mv * V::LANES,
        nr,
        ku,
        kc: STEPS * ku,
        tile_bytes: nr * TILE_STRIDE,
        lanes: V::LANES,
        pack_x_f32: None,
        pack_x_bf16,
        w_f32: None,
        w_f16: None,
        w_bf16,
    }
}

/// A module with one few-row kernel (tiles of `$wr` rows of W) and its registry row.
macro_rules! dot_kernel {
    ($module:ident, $isa:expr, $attr:tt, $v:ty, $variant:ident, $mac:ident, $wr:literal, $name:literal,
     $xt:ty as $x:ident, $wt:ty as $w:ident) => {
        pub(super) mod $module {
            use super::*;
            use $crate::{
                backend::vector::{self as vk, stamp},
                contract::{DotFn, DotKernel},
            };

            stamp!($attr, dot: "`contract::Dot`",
                (k: usize, x: *const $xt, x_stride: usize, rows: usize, w: *const $wt, w_stride: usize, n: usize, out: *mut f32, out_stride: usize, next: *const u8)
                => vk::dot::<$v, vk::$mac, vk::$x, vk::$w, $wr>);
            pub const KERNEL: DotKernel = DotKernel { name: $name, isa: $isa, least: 1, group: 1, fun: DotFn::$variant(dot) };
        }
    };
}
pub(crate) use dot_kernel;

/// The epilogues of an ISA, as `EPILOGUES`.
macro_rules! epilogues {
    ($attr:tt, $v:ty) => {
        mod epilogues {
            use super::*;
            use $crate::{
                backend::vector::{self as vk, stamp},
                contract::Epilogues,
            };

            stamp!($attr, store: "`contract::Unpack`",
                (src: *const f32, ss: usize, rows: usize, cols: usize, dst: *mut f32, ds: usize) => vk::unpack::<$v, vk::Store>);
            stamp!($attr, add: "`contract::Unpack`",
                (src: *const f32, ss: usize, rows: usize, cols: usize, dst: *mut f32, ds: usize) => vk::unpack::<$v, vk::Add>);
            stamp!($attr, store_bf16: "`contract::Unpack`",
                (src: *const f32, ss: usize, rows: usize, cols: usize, dst: *mut u16, ds: usize) => vk::unpack::<$v, vk::StoreBf16>);
            stamp!($attr, silu_mul: "`contract::SiluMul`",
                (len: usize, a: *mut f32, b: *const f32) => vk::silu_mul::<$v>);

            pub const TABLE: Epilogues = Epilogues { store, add, store_bf16, silu_mul };
        }
        pub(crate) use epilogues::TABLE as EPILOGUES;
    };
}
pub(crate) use epilogues;
