//! SIMD kernels for transformer inference on CPUs: GEMM on row-major weights, fused causal attention and row-wise
//! operations, chosen at run time for the CPU at hand.
//!
//! [`Engine`] is the entry point. It owns a persistent thread pool and the kernels of one instruction set ([`Isa`]);
//! every method checks shapes, so callers write no `unsafe`. Matrices are row-major ([`Mat`], [`MatMut`], [`Weight`]).
//!
//! Numerics: products accumulate in f32. Activations are f32 or BF16 ([`Element`]); weights F32, F16 or BF16.
//!
//! Subnormal numbers: arithmetic in f32 keeps them at every level, and so do conversions. The crate leaves the control register of
//! its threads (MXCSR, FPCR) as Rust wants it, and expects the same of its caller. Instructions that multiply BF16 read no such
//! register: they count subnormal operands and sums as zero ([`Mul::Bf16`]). Exponentials whose result would be subnormal are zero.

mod backend;
mod contract;
pub mod cpu;
mod driver;
mod engine;
mod error;
#[cfg(feature = "guard")]
pub mod guard;
mod lines;
pub mod peak;
mod pool;
pub mod reference;
mod registry;
mod simd;
mod tuning;
mod view;

pub use contract::{GemmKernel, Mul};
pub use cpu::Isa;
#[cfg(feature = "peers")]
pub use driver::peers;
pub use driver::rope::RopeTable;
pub use engine::{AttnShape, Backend, Engine, HeadNorm, HeadProjection, HeadsOut, Options, Output, Positions, Query};
pub use error::{Error, Result};
pub use lines::Buffer;
pub use pool::Pool;
pub use registry::{IsaRow, isas, kernels_of};
pub use view::{DType, Element, HeadCache, Mat, MatMut, Weight};
