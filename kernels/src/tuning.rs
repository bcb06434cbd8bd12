//! Numbers, and the choices that follow from them: what was measured, or follows from a cache size. Those of a level are in its file,
//! as a [`Tuning`]; the tile unit's are here. kernels/README.md has the arithmetic.

use crate::{
    contract::{GemmKernel, Mul},
    cpu::{self, cache::Caches},
    view::{DType, Format},
};

/// Bytes of one block of W for a tile unit, beside `x` bytes of panels that are to stay in the second-level cache: two thirds of it,
/// half of what x leaves for the block that is being fetched. Where 1 MB of x and 128 KB of W share 2 MB, all is fast; at 2 MB a step
/// takes twice the time (Xeon of the fourth generation, with AMX).
pub(crate) fn tiles_block_bytes(caches: Caches, x: usize) -> usize {
    let room = caches.l2.map_or(2 << 20, |l2| l2 as usize) / 3 * 2;
    (room.saturating_sub(x) / 2).clamp(64 << 10, 400 << 10)
}

/// Packed bytes of one block of W: a fifth of a core's second-level cache, so that the block, the next one being packed and
/// a panel of x fit together. More than a fifth of 1 MB gains nothing and balances worse, so that this is also what cores
/// with a large shared cache take (Apple's: 12 or 16 MB for four or five of them); an unknown cache counts as one of 1 MB.
pub(crate) fn block_bytes(caches: Caches) -> usize {
    const MOST: usize = 208 << 10;
    caches.l2.map_or(MOST, |l2| (l2 / 5) as usize).clamp(32 << 10, MOST)
}

/// Chunks of K that a block of W spans where its fetching is hidden. With a longer K a block would have too few tiles to reuse
/// a panel while it is in the second-level cache.
pub(crate) const BLOCK_CHUNKS: usize = 1;

/// Packed rows of x of one pass over W, of all threads: a quarter of a last-level cache of 32 MB, which others use too. Beyond,
/// panels come from memory for every block of W; reading W again costs less.
pub(crate) const PACKED_X_BYTES: usize = 8 << 20;

/// Groups of rows of x that threads share a product by, before they share its features: each group has its own threads, which
/// pack its rows and write its rows of y alone, so that neither moves between cores; but all of them read W. 64 rows of BF16 do
/// 64 operations for each byte of W.
pub(crate) const GROUP_ROWS: usize = 64;

/// Features for each of the threads that share rows of x from which on every one of them packs all the rows for itself. At 768 each,
/// two threads gain 1% by it where their cores share a last-level cache, 6% where not; at 256, 2%.
pub(crate) const ALONE_FEATURES: usize = 256;

/// Elements of K of one task of packing, where threads share it: a few microseconds, so that those of a single panel keep several
/// threads busy.
pub(crate) const PACK_DEPTH: usize = 512;

/// What is other where a tile unit multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles {
    /// Time of a row of x by kernels of so many rows in a panel.
    pub costs: &'static [(usize, f64)],
    /// Rows of x of a group, at most: more take another group, or another pass over W.
    pub group_rows: usize,
    /// For [`ALONE_FEATURES`].
    pub alone_features: usize,
}

/// Of AMX. Written in advance of kernels and machine: W in place, x in blocks of 256 rows, took 35% less time by 64x16 than by 32x32 at
/// M = 64, 17 to 34% less at 128 to 1024; what multiplies five times as fast must read W a fifth as often, and feels the packing of x
/// five times as much. At K = 2048, 320 rows of x are 1.25 MB.
pub(crate) const TILES: Tiles =
    Tiles { costs: &[(16, 1.6), (32, 1.25), (64, 1.0)], group_rows: 320, alone_features: 1280 };

/// Bytes of W that one few-row task streams: long enough for the hardware's prefetchers, short enough to balance.
pub(crate) const DOT_TASK_BYTES: usize = 512 * 1024;

/// Bytes of W, at least, that a thread computes at a time of a product of few rows beside one of many: they stay in the
/// second-level cache, and take longer than their claiming.
pub(crate) const BESIDE_BYTES: usize = 32 << 10;

/// Rows of W of which such tasks are multiples: tiles of six, and in their smallest number, which balances them.
pub(crate) const DOT_UNIT: usize = 6;

/// The numbers of one level.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tuning {
    /// Up to this many rows of x, weights are used in place by the few-row kernels: packing them would cost more than the sums
    /// across lanes do. Measured at the shapes of OpenELM-1.1B.
    pub dot_rows: usize,
    /// Time of a few-row kernel for each row of x, relative to a tile's: from `dot_rows` to [`DOT_ROWS_MAX`] rows it still wins
    /// where tiles would pad more.
    pub dot_cost: f64,
    /// Types for which few-row kernels take x interleaved, and add few lanes at the end: they are good for more rows.
    pub quads: &'static [DType],
    /// From this many rows of x on, tiles copy rows of W that they could use as they lie.
    pub copy_from: usize,
    /// Rows of a tile of one vector, which loads more often than it multiplies: that is felt where as many multiply-adds as loads
    /// start each cycle.
    pub load_bound: Option<usize>,
    /// If it has kernels of a tile unit, which multiply BF16: their numbers.
    pub tiles: Option<Tiles>,
}

impl Tuning {
    /// The tile unit that multiplies these.
    fn tiles(&self, x: DType, w: Format) -> Option<&Tiles> {
        self.tiles.as_ref().filter(|_| (x, w) == (DType::BF16, DType::BF16.into()))
    }

    /// Groups of rows of x, of `m`: see [`GROUP_ROWS`]. For a tile unit as few as hold [`Tiles::group_rows`] each, or some more if
    /// these have as many threads each.
    pub fn row_groups(&self, m: usize, threads: usize) -> usize {
        let Some(tiles) = self.tiles else { return (m / (16 * threads).max(GROUP_ROWS)).clamp(1, threads) };
        let least = m.div_ceil(tiles.group_rows).clamp(1, threads);
        // Groups of as many threads each end together.
        (least..2 * least).find(|groups| threads.is_multiple_of(*groups)).unwrap_or(least)
    }

    /// Whether each of the threads that share rows of x packs all of them for itself: see [`ALONE_FEATURES`].
    pub fn packs_alone(&self, threads: usize, n: usize) -> bool {
        threads == 1 || n >= self.tiles.map_or(ALONE_FEATURES, |t| t.alone_features) * threads
    }

    fn interleaves(&self, x: DType, w: Format) -> bool {
        w == x.into() && self.quads.contains(&x)
    }

    /// [`Tuning::dot_rows`] for this type and this format.
    pub fn dot_rows(&self, x: DType, w: Format) -> usize {
        if self.tiles(x, w).is_some() {
            return 1;
        }
        match self.interleaves(x, w) {
            true if outruns_cache(x) => 24,
            true => 32,
            false if self.widens_slowly(w) => WIDENED_ROWS,
            false => self.dot_rows,
        }
    }

    /// [`Tuning::dot_cost`] for this type and this format.
    pub fn dot_cost(&self, x: DType, w: Format) -> f64 {
        if self.tiles(x, w).is_some() {
            return f64::INFINITY;
        }
        match self.interleaves(x, w) {
            true if outruns_cache(x) => 1.15,
            true => 1.05,
            false if self.widens_slowly(w) => WIDENED_COST,
            false => self.dot_cost,
        }
    }

    /// Whether a few-row kernel of 512-bit vectors would be held up by widening these weights.
    fn widens_slowly(&self, w: Format) -> bool {
        self.load_bound.is_some() && w != Format::F32 && cpu::widens_slowly()
    }

    /// Time of a product with `m` rows of x by tiles of `k`, a kernel of this level, in rows: of `W` as it lies if `in_place`,
    /// with a second half if `halves` is 2. Packing costs the same at any `m`; tiles that need none fetch panels at twice the rate,
    /// which F32 hides better than BF16 does, and their blocks of a SwiGLU write short pieces of rows of y. Measured at the shapes
    /// of OpenELM-1.1B.
    pub fn tile_cost(&self, k: &GemmKernel, m: usize, in_place: bool, halves: usize) -> f64 {
        if let Some(tiles) = &self.tiles {
            let cost = tiles.costs.iter().find(|c| c.0 == k.mr).expect("a cost for each kernel of the unit").1;
            return m.next_multiple_of(k.mr) as f64 * cost;
        }
        let load_bound = self.load_bound == Some(k.mr) && cpu::full_width();
        let rows = m.next_multiple_of(k.mr) as f64 * if load_bound { 1.08 } else { 1.0 };
        match (in_place, k.mul) {
            (false, _) => rows + 1.6,
            (true, Mul::F32) => rows,
            (true, Mul::Bf16) => rows * if halves == 1 { 1.015 } else { 1.03 },
        }
    }
}

/// Whether multiply-adds outrun the second-level cache that the x of such a kernel comes from: 16 rows of F32 do not fit into the
/// first.
fn outruns_cache(x: DType) -> bool {
    x == DType::F32 && cpu::full_width()
}

/// Groups of rows of x that meet a block of W at once, of `all` and at `most`. Full-width units are so soon done with two that
/// fetching the next block comes in bursts; with one after the other, it is spread twice as far: 3 to 19% ahead at 8 rows on Zen 5.
#[cfg(target_arch = "x86_64")]
pub(crate) fn quads_at_once(all: usize, most: usize) -> usize {
    if all <= 2 && cpu::full_width() { 1 } else { most }
}

/// [`Tuning::dot_rows`] and [`Tuning::dot_cost`] where widening holds a few-row kernel up: on a Xeon with AMX, by AVX-512 alone, it
/// reached 42 to 52% of the peak at 16 to 128 rows, tiles 80% at 512 (revision ae557bc). Not measured since.
const WIDENED_ROWS: usize = 8;
const WIDENED_COST: f64 = 1.6;

/// Most rows of x for a few-row kernel: with more, x no longer stays in the second-level cache.
pub(crate) const DOT_ROWS_MAX: usize = 128;

/// Rows of x of one task of many projections: its product (256 KB for 512 features) stays in the second-level cache.
pub const PROJECTION_ROWS: usize = 128;

/// Keys of one block of attention: long enough to make packing and rescaling cheap, while the scores of a panel (55 KB) and
/// the packed block (100 KB) stay in the second-level cache. Measured from 96 to 288: 65 to 72% of the BF16 peak.
pub(crate) const ATTENTION_KEYS: usize = 288;

/// Keys of one block of attention by tiles of `k`: whole panels of its rows (the transposition of V packs a block as such), and no
/// more than one call of it multiplies.
pub fn attention_keys(k: &GemmKernel) -> usize {
    (ATTENTION_KEYS / k.mr).clamp(1, k.kc / k.mr) * k.mr
}

/// Panels of rows that share one packing of keys and values: their queries and outputs (300 KB at d = 64) stay in the
/// second-level cache.
pub(crate) const ATTENTION_PANELS: usize = 16;

/// Bytes of keys and values of one task of streaming attention, where heads have fewer: at 15 KB, claiming tasks and moving lines
/// of the output between cores takes longer than the work.
pub(crate) const STREAM_TASK_BYTES: usize = 128 << 10;

/// Bytes of the parts of streaming attention from which threads put them together: fewer are read faster than a region takes.
/// Estimated: at 50 ns for a line that another core wrote, 64 KB take 50 us, and a region on 16 threads takes 4.
pub(crate) const MERGED_BYTES: usize = 64 << 10;

/// Up to this many rows of one KV head, attention streams its cache in place.
pub const ATTENTION_STREAM_ROWS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_the_cache() {
        let of = |kb: Option<u64>| block_bytes(Caches { l2: kb.map(|k| k << 10), ..Caches::default() }) >> 10;
        // Unknown, Apple M2's clusters, Zen 4, Zen 2, an old Intel core, nonsense.
        let sizes = [None, Some(16 << 10), Some(1024), Some(512), Some(256), Some(1)];
        assert_eq!(sizes.map(of), [208, 208, 204, 102, 51, 32]);
    }
}
