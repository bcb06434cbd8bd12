//! Numbers only: what was measured, or follows from a cache size, for each ISA. kernels/README.md has the arithmetic.

use crate::{contract::GemmKernel, cpu::Isa, view::DType};

/// Packed bytes of one block of W: a fifth of a 1 MB second-level cache, so that the block, the next one being packed
/// and a panel of x fit together.
pub(crate) const BLOCK_BYTES: usize = 208 * 1024;

/// Bytes of W that one few-row task streams: long enough for the hardware's prefetchers, short enough to balance.
pub(crate) const DOT_TASK_BYTES: usize = 128 * 1024;

/// Up to this many rows of x, weights are streamed through the few-row kernels: above, K = 2048 of x no longer fits the
/// first-level cache, and tiles are as fast.
pub(crate) fn dot_rows(_isa: Isa, _x: DType, _w: DType) -> usize {
    6
}

/// Time of a tile for each row of x, relative to the best tile of its ISA.
pub(crate) fn tile_cost(_k: &GemmKernel) -> f64 {
    1.0
}

/// Keys of one block of attention: long enough to make packing and rescaling cheap, while the scores of a panel (55 KB) and
/// the packed block (100 KB) stay in the second-level cache. Measured from 96 to 288: 65 to 72% of the BF16 peak.
pub(crate) const ATTENTION_KEYS: usize = 288;

/// Panels of rows that share one packing of keys and values: their queries and outputs (300 KB at d = 64) stay in the
/// second-level cache.
pub(crate) const ATTENTION_PANELS: usize = 16;

/// Up to this many rows of one KV head, attention streams its cache in place.
pub(crate) const ATTENTION_STREAM_ROWS: usize = 8;
