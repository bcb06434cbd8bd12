//! Loops, packing and threads: everything about an operation that no instruction set changes.

pub mod attention;
mod dot;
pub mod gemm;
pub(crate) mod library;
#[cfg(feature = "peers")]
pub mod peers;
pub mod projections;
pub mod rope;
pub mod rowwise;
mod scratch;
pub mod selection;

pub use scratch::Scratch;
pub(crate) use scratch::{SharedMut, block};
