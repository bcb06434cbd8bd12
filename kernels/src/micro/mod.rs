//! The algorithms of micro-kernels, once for every level, over the vectors of [`crate::simd`].

pub(crate) mod dot;
pub(crate) mod epilogue;
#[cfg(target_arch = "x86_64")]
pub(crate) mod quads;
pub(crate) mod tile;
pub(crate) mod tiles;
pub(crate) mod vector;
