//! Loops, packing and threads: everything about an operation that no instruction set changes.

pub mod attention;
mod dot;
mod gemm;
pub(crate) mod library;
pub mod linear;
mod output;
#[cfg(feature = "peers")]
pub mod peers;
pub mod projections;
pub mod rowwise;
pub mod selection;
