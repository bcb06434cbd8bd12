//! Tile units: packing, and the multiply loop behind one trait, [`TileUnit`], so that all but the instructions themselves is built
//! and tested on any CPU.
//!
//! A tile has 16 rows of 64 bytes. The unit takes 16 rows of W as they lie in memory, 64 bytes of each, and 64 bytes of K of 16 rows
//! of x, interleaved by pairs of BF16 `[16][16][2]`, which is what a panel is; it adds their product, N-major. All here counts bytes
//! of K, so that a unit of four-byte groups (INT8) differs in its panels and its instruction alone.

use std::cell::Cell;

use crate::{
    contract::{Ahead, Columns, ForWeight, GemmKernel, Mul, PackX},
    isa::Isa,
    micro::{
        tile::{looks, pack_x as interleave},
        vector::Bf16Pair,
    },
    simd::Vector,
    view::DType,
};

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;

/// Bytes of a row of a tile, and of a tile.
pub(crate) const ROW: usize = 64;
pub(crate) const TILE: usize = ROWS * ROW;

/// Elements of K of one step, and the steps of the kernel's contract, pairs, that it has.
const DEPTH: usize = ROW / 2;
const PAIRS: usize = DEPTH / 2;

/// Steps of one call, at most: storing and loading sums costs 3 to 4% at this length.
const STEPS: usize = 64;

thread_local! {
    /// Regions of a level of tiles that this thread is in: a whole product may be one thread's task in a region of all.
    static INSIDE: Cell<usize> = const { Cell::new(0) };
}

/// Enters a region, for which the tiles of this thread are set up by `first` unless they are.
pub(crate) fn enter(first: fn()) {
    let inside = INSIDE.get();
    if inside == 0 {
        first();
    }
    INSIDE.set(inside + 1);
}

/// Leaves a region; the outermost one by `last`.
pub(crate) fn leave(last: fn()) {
    let inside = INSIDE.get() - 1;
    INSIDE.set(inside);
    if inside == 0 {
        last();
    }
}

/// The operands of one multiply loop and what it fetches meanwhile. Assembly reads the fields by their offsets.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Loop {
    /// The first row of W, the bytes between rows of a tile, between the first rows of two tiles, and between steps.
    pub w: *const u8,
    pub w_row: usize,
    pub w_tile: usize,
    pub w_step: usize,
    /// A panel of x; its rows are 64 bytes for each of its tiles.
    pub x: *const u8,
    /// The sums, with rows as those of x.
    pub acc: *mut f32,
    /// Steps, at least one. 0 in the end.
    pub steps: usize,
    /// 1 to add to the sums that are there.
    pub accumulate: usize,
    /// A line for each step that will be written, or null for none.
    pub own: *const *const u8,
    /// What [`Columns`] says.
    pub at: *const u8,
    pub stride: usize,
    pub rows: usize,
    pub rows_left: usize,
    pub back: usize,
    pub per_step: usize,
}

/// A unit that multiplies tiles of BF16.
///
/// `acc[16 R][16 C] (+)= W x`. Each step multiplies every one of `R` tiles of W by every one of `C` of x: for each element of C, the
/// products of the even and of the odd elements of K are summed apart, from zero, in the order of K, each addition rounded once to
/// nearest even; then both are added, and that to the sum so far. Subnormal operands count as zero, and so do subnormal results of
/// each of these operations. No control register matters.
pub(crate) trait TileUnit {
    /// Does so, and goes on with what is to be fetched: `own` and [`Columns`] move on by `steps`.
    ///
    /// # Safety
    /// The unit is there, and this thread is in a region of its level ([`enter`]). For each of `steps` steps, `w` is readable for
    /// `R` tiles and `x` for `C`; `acc` is valid for `16 R` rows of `16 C`; `own` is null or holds `steps` addresses. What is fetched
    /// need not be readable.
    unsafe fn multiply<const R: usize, const C: usize>(l: &mut Loop);
}

/// A tile unit in plain Rust. A product of two elements is rounded only where it is subnormal, while the unit rounds it with its
/// addition: a sum just above the subnormal numbers may differ in its last bit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain;

/// What the unit takes a number for.
#[inline(always)]
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

#[inline(always)]
fn operand(bits: u16) -> f32 {
    flush(f32::from_bits(u32::from(bits) << 16))
}

/// `c[m] += sums over pairs k of a[m][k] b[k]`, all `[16][16]`, the operands pairs.
#[inline(always)]
fn multiply_tile(c: &mut [[f32; ROWS]; ROWS], a: &[[[u16; 2]; ROWS]; ROWS], b: &[[[u16; 2]; ROWS]; ROWS]) {
    let b = b.map(|row| [0, 1].map(|i| row.map(|pair| operand(pair[i]))));
    for (c, a) in c.iter_mut().zip(a) {
        let mut sums = [[0f32; ROWS]; 2];
        for (a, b) in a.iter().zip(&b) {
            for ((sums, a), b) in sums.iter_mut().zip(a).zip(b) {
                let a = operand(*a);
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = flush(*sum + a * b);
                }
            }
        }
        for ((c, even), odd) in c.iter_mut().zip(sums[0]).zip(sums[1]) {
            *c = flush(flush(*c) + flush(even + odd));
        }
    }
}

impl TileUnit for Plain {
    unsafe fn multiply<const R: usize, const C: usize>(l: &mut Loop) {
        assert!(INSIDE.get() > 0, "tiles are multiplied inside a region of their level");
        assert!(l.steps > 0);
        // SAFETY: the caller's promise for all that is read and written, row by row.
        unsafe {
            for (r, c) in (0..R).flat_map(|r| (0..C).map(move |c| (r, c))) {
                let acc = |m: usize| l.acc.add(((r * ROWS + m) * C + c) * ROWS).cast::<[f32; ROWS]>();
                let mut sums = [[0f32; ROWS]; ROWS];
                if l.accumulate > 0 {
                    sums = std::array::from_fn(|m| acc(m).read_unaligned());
                }
                for s in 0..l.steps {
                    let (w, x) = (l.w.add(r * l.w_tile + s * l.w_step), l.x.add((s * ROWS * C + c) * ROW));
                    let rows = |p: *const u8, stride: usize| {
                        std::array::from_fn(|i| p.add(i * stride).cast::<[[u16; 2]; ROWS]>().read_unaligned())
                    };
                    multiply_tile(&mut sums, &rows(w, l.w_row), &rows(x, C * ROW));
                }
                for (m, sums) in sums.into_iter().enumerate() {
                    acc(m).write_unaligned(sums);
                }
            }
        }
        for _ in 0..l.steps * l.per_step {
            l.fetched();
        }
        l.steps = 0;
    }
}

impl Loop {
    /// Moves on by the lines of a look, which a unit has fetched.
    pub(crate) fn fetched(&mut self) {
        self.at = self.at.wrapping_add(Columns::FOUR * self.stride);
        self.rows_left -= Columns::FOUR;
        if self.rows_left == 0 {
            (self.at, self.rows_left) = (self.at.wrapping_add(self.back), self.rows);
        }
    }
}

/// Where tiles of W lie.
#[derive(Clone, Copy)]
struct Tiles {
    at: *const u8,
    row: usize,
    tile: usize,
    step: usize,
}

/// One multiply loop over `steps` steps of a panel, and what is ahead.
///
/// # Safety
/// As [`TileUnit::multiply`].
#[inline(always)]
unsafe fn run<U: TileUnit, const R: usize, const C: usize>(
    w: Tiles,
    steps: usize,
    panel: *const u8,
    acc: *mut f32,
    accumulate: bool,
    ahead: &mut Ahead,
) {
    assert!((1..=STEPS).contains(&steps));
    let mut own = [acc.cast_const().cast::<u8>(); STEPS];
    let some = (ahead.own.some * looks(steps * PAIRS)).min(steps);
    let mut writes = false;
    for line in &mut own[..some] {
        let Some(next) = ahead.own.next() else { break };
        (*line, writes) = (next, true);
    }
    let part = usize::from(ahead.columns[0].left == 0);
    let columns = &mut ahead.columns[part];
    let per_step = if columns.left > 0 { columns.per_step } else { 0 };
    let mut l = Loop {
        w: w.at,
        w_row: w.row,
        w_tile: w.tile,
        w_step: w.step,
        x: panel,
        acc,
        steps,
        accumulate: accumulate.into(),
        own: if writes { own.as_ptr() } else { std::ptr::null() },
        at: columns.at,
        stride: columns.stride,
        rows: columns.rows,
        rows_left: columns.rows_left,
        back: columns.back(),
        per_step,
    };
    // SAFETY: the caller's promise; `own` holds an address for each of at most STEPS steps.
    unsafe { U::multiply::<R, C>(&mut l) };
    (columns.at, columns.rows_left) = (l.at, l.rows_left);
    columns.left = columns.left.saturating_sub(steps * per_step);
}

/// `contract::Micro`. A packed tile is `[steps][R][16]` rows of 64 bytes.
///
/// # Safety
/// As `contract::Micro`, in a region of the level.
pub(crate) unsafe fn micro<U: TileUnit, const R: usize, const C: usize>(
    steps: usize,
    panel: *const u8,
    tile: *const u8,
    acc: *mut f32,
    accumulate: bool,
    ahead: &mut Ahead,
) {
    let w = Tiles { at: tile, row: ROW, tile: TILE, step: R * TILE };
    // SAFETY: panel and tile are filled up to whole steps; the rest is the caller's promise.
    unsafe { run::<U, R, C>(w, steps.div_ceil(PAIRS), panel, acc, accumulate, ahead) }
}

/// Steps of rows that are copied at a time.
const STAGE: usize = 8;

/// Room for them, in as many tiles as a kernel takes.
#[repr(align(64))]
struct Stage([u8; STAGE * 2 * TILE]);

/// `contract::InPlace`. The unit reads whole tiles, so rows that are fewer are copied, a few steps at a time.
///
/// # Safety
/// As `contract::InPlace`, in a region of the level; `steps` is a multiple of 16, whole steps of the unit.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn in_place<U: TileUnit, const R: usize, const C: usize>(
    steps: usize,
    panel: *const u8,
    w: *const u8,
    stride: usize,
    rows: usize,
    acc: *mut f32,
    accumulate: bool,
    ahead: &mut Ahead,
) {
    const { assert!(R <= 2) };
    assert!(steps.is_multiple_of(PAIRS) && (1..=R * ROWS).contains(&rows));
    let steps = steps / PAIRS;
    if rows == R * ROWS {
        let w = Tiles { at: w, row: stride, tile: ROWS * stride, step: ROW };
        // SAFETY: all rows are there; the rest is the caller's promise.
        return unsafe { run::<U, R, C>(w, steps, panel, acc, accumulate, ahead) };
    }
    let mut stage = Stage([0; STAGE * 2 * TILE]);
    for first in (0..steps).step_by(STAGE) {
        let some = STAGE.min(steps - first);
        // SAFETY: rows below `rows` are readable for `steps` steps, and `stage` holds STAGE steps of R tiles, of which missing rows
        // stay zero; the panel has `steps` steps; the rest is the caller's promise.
        unsafe {
            for (r, s) in (0..rows).flat_map(|r| (0..some).map(move |s| (r, s))) {
                let from = w.add(r * stride + (first + s) * ROW);
                std::ptr::copy_nonoverlapping(from, stage.0.as_mut_ptr().add(s * R * TILE + r * ROW), ROW);
            }
            let w = Tiles { at: stage.0.as_ptr(), row: ROW, tile: TILE, step: R * TILE };
            let panel = panel.add(first * C * TILE);
            run::<U, R, C>(w, some, panel, acc, accumulate || first > 0, ahead);
        }
    }
}

/// `contract::PackX`: a panel of `MV` vectors of pairs, filled up with zeros to whole steps.
///
/// # Safety
/// As `contract::PackX`.
#[inline(always)]
pub(crate) unsafe fn pack_x<V: Vector, const MV: usize>(
    src: *const u8,
    stride: usize,
    rows: usize,
    k: usize,
    dst: *mut u8,
) {
    let pair = MV * V::LANES * 4;
    let (pairs, all) = (k.div_ceil(2), k.div_ceil(DEPTH) * PAIRS);
    // SAFETY: a panel is `all` pairs long; the rest is the caller's promise.
    unsafe {
        interleave::<V, Bf16Pair, MV>(src, stride, rows, k, dst);
        dst.add(pairs * pair).write_bytes(0, (all - pairs) * pair);
    }
}

/// `contract::PackW`: rows of `R` tiles, step by step.
///
/// # Safety
/// As `contract::PackW`.
pub(crate) unsafe fn pack_w<const R: usize>(src: *const u8, stride: usize, rows: usize, k: usize, dst: *mut u8) {
    for r in 0..R * ROWS {
        for (s, at) in (0..k).step_by(DEPTH).enumerate() {
            let there = if r < rows { 2 * DEPTH.min(k - at) } else { 0 };
            // SAFETY: a row that is there is read at elements below `k` only, and a tile has R * 16 rows in each step.
            unsafe {
                let to = dst.add((s * R * ROWS + r) * ROW);
                match there {
                    ROW => std::ptr::copy_nonoverlapping(src.add(r * stride + 2 * at), to, ROW),
                    0 => to.write_bytes(0, ROW),
                    _ => {
                        std::ptr::copy_nonoverlapping(src.add(r * stride + 2 * at), to, there);
                        to.add(there).write_bytes(0, ROW - there);
                    }
                }
            }
        }
    }
}

/// The row of a kernel that multiplies `r` tiles of W by `c` of x.
pub(crate) const fn row(
    name: &'static str,
    isa: Isa,
    (r, c): (usize, usize),
    tile_bytes: fn(usize) -> usize,
    pack_x: &'static [(DType, PackX)],
    weights: &'static [ForWeight],
) -> GemmKernel {
    GemmKernel {
        name,
        isa,
        mul: Mul::Bf16,
        mr: c * ROWS,
        nr: r * ROWS,
        ku: 2,
        fill: DEPTH,
        kc: STEPS * DEPTH,
        tile_bytes,
        // Rows of whole steps are used as they lie.
        lanes: PAIRS,
        columns: true,
        pack_x,
        weights,
    }
}

/// A module with the functions of `$r` tiles of W by `$c` of x, whose panels are `$mv` vectors, and its row, `KERNEL`.
macro_rules! tiles_kernel {
    ($module:ident, $isa:expr, $attr:tt, $v:ty, $unit:ty, $r:literal x $c:literal, $mv:literal, $name:literal) => {
        mod $module {
            use super::*;
            use $crate::{contract as ct, micro::{tiles, vector::stamp}, view::{DType, Format}};

            stamp!($attr, pack_x: Pack => tiles::pack_x::<$v, $mv>);
            stamp!([], pack: Pack => tiles::pack_w::<$r>);
            stamp!([], micro: Micro => tiles::micro::<$unit, $r, $c>);
            stamp!([], in_place: InPlace => tiles::in_place::<$unit, $r, $c>);

            pub const KERNEL: ct::GemmKernel = tiles::row($name, $isa, ($r, $c), |k| k.div_ceil(32) * $r * tiles::TILE,
                &[(DType::BF16, pack_x)],
                &[ct::ForWeight { format: Format::BF16, micro, in_place: Some(in_place), pack, drain: None }]);
        }
    };
}
pub(crate) use tiles_kernel;

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn pairs(mut f: impl FnMut(usize, usize) -> f32) -> [[[u16; 2]; ROWS]; ROWS] {
        std::array::from_fn(|i| std::array::from_fn(|j| [0, 1].map(|h| bf16::from_f32(f(i, 2 * j + h)).to_bits())))
    }

    #[test]
    fn a_tile_is_the_product_of_rows_and_pairs() {
        let (w, x) =
            (|m: usize, k: usize| (m * 3 + k) as f32 % 7.0 - 3.0, |n: usize, k: usize| (n + k * 5) as f32 % 9.0);
        let a = pairs(w);
        // Pairs of x stand side by side, 16 rows of x to a row of the tile.
        let b =
            std::array::from_fn(|k| std::array::from_fn(|n| [0, 1].map(|h| bf16::from_f32(x(n, 2 * k + h)).to_bits())));
        let mut c = [[0.5; ROWS]; ROWS];
        multiply_tile(&mut c, &a, &b);
        for (m, n) in [(0, 0), (15, 15), (3, 11), (9, 2)] {
            let want: f32 = (0..DEPTH).map(|k| w(m, k) * x(n, k)).sum();
            assert_eq!(c[m][n], want + 0.5, "small whole numbers are exact");
        }
    }

    /// Even and odd elements are summed apart, so a large number hides the small ones of its own kind alone; and what is subnormal
    /// is zero with its sign: operands, sums, results.
    #[test]
    fn sums_have_their_order_and_nothing_is_subnormal() {
        let one = pairs(|_, _| 1.0);
        let result = |a: [[[u16; 2]; ROWS]; ROWS], b, c| {
            let mut c = [[c; ROWS]; ROWS];
            multiply_tile(&mut c, &a, b);
            c[5][7]
        };
        let big = 2f32.powi(30);
        let hides = |k: usize| {
            if k == 0 {
                big
            } else if k == DEPTH - 2 {
                -big
            } else {
                1.0
            }
        };
        // 15 even ones are lost, 16 odd ones are not.
        assert_eq!(
            result(pairs(|_, k| hides(k)), &one, 0.0),
            16.0 + if hides(2) + big == big { 0.0 } else { f32::NAN }
        );
        let tiny = 2f32.powi(-127);
        assert_eq!(result(pairs(|_, _| tiny), &one, 0.0), 0.0, "operands");
        let (left, right) = (pairs(|_, k| if k == 0 { 2f32.powi(-100) } else { 0.0 }), pairs(|_, _| 2f32.powi(-30)));
        assert_eq!(result(left, &right, 0.0), 0.0, "sums");
        assert_eq!(result(pairs(|_, _| 0.0), &one, tiny), 0.0, "what is added to");
        let least = f32::MIN_POSITIVE;
        assert_eq!(result(pairs(|_, k| if k == 0 { least * 1.5 } else { 0.0 }), &one, -least), 0.0, "results");
        assert_eq!(
            result(pairs(|_, k| if k == 0 { least } else { 0.0 }), &one, least),
            2.0 * least,
            "normal ones are kept"
        );
    }

    #[test]
    fn columns_visit_every_line_of_every_row_once() {
        for (rows, len, stride, steps) in
            [(16, 4096, 4096, 256), (32, 640, 704, 7), (4, 64, 64, 1), (13, 128, 4160, 50)]
        {
            let base = 1 << 20;
            let mut columns = Columns::new(std::ptr::without_provenance(base), len, rows, stride, steps);
            let mut seen = Vec::new();
            let (mut x, mut acc) = (vec![0u8; 2 * TILE], vec![0f32; ROWS * ROWS]);
            let w = vec![0u8; TILE];
            enter(|| ());
            for _ in 0..steps {
                let before = columns;
                let mut ahead = Ahead { columns: [columns, Columns::nothing()], ..Ahead::nothing() };
                let w = Tiles { at: w.as_ptr(), row: ROW, tile: TILE, step: 0 };
                // SAFETY: one tile of each operand and one of sums.
                unsafe { run::<Plain, 1, 1>(w, 1, x.as_mut_ptr(), acc.as_mut_ptr(), false, &mut ahead) };
                columns = ahead.columns[0];
                let mut at = before.at.addr();
                let mut left = before.rows_left;
                for _ in 0..before.per_step.min(before.left) {
                    seen.extend((0..4).map(|i| at + i * stride));
                    (at, left) = (at + 4 * stride, left - 4);
                    if left == 0 {
                        (at, left) = (at + 64 - rows.next_multiple_of(4) * stride, rows.next_multiple_of(4));
                    }
                }
            }
            leave(|| ());
            assert_eq!(columns.left, 0);
            let all: std::collections::BTreeSet<usize> = seen.iter().copied().collect();
            assert_eq!(seen.len(), all.len(), "no line twice");
            let rows = rows.next_multiple_of(4);
            let want = (0..rows).flat_map(|r| (0..len / 64).map(move |l| base + r * stride + l * 64)).collect();
            assert_eq!(all, want, "{rows} rows of {len} bytes");
            // The first column comes first.
            assert!(seen[..rows].iter().enumerate().all(|(r, at)| *at == base + r * stride));
        }
    }

    #[test]
    fn tiles_are_set_up_once_for_a_region_in_a_region() {
        thread_local! {
            static STATE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
        }
        let first = || STATE.with(|s| s.set((s.get().0 + 1, s.get().1)));
        let last = || STATE.with(|s| s.set((s.get().0, s.get().1 + 1)));
        enter(first);
        enter(first);
        leave(last);
        assert_eq!(STATE.get(), (1, 0), "the inner region left the outer one its tiles");
        leave(last);
        assert_eq!(STATE.get(), (1, 1));
        enter(first);
        leave(last);
        assert_eq!(STATE.get(), (2, 2));
    }
}
