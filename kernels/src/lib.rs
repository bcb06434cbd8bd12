//! SIMD kernels for transformer inference on CPUs: GEMM on row-major weights, fused causal attention and row-wise
//! operations, chosen at run time for the CPU at hand.
//!
//! [`Engine`] is the entry point. It owns a persistent thread pool and the kernels of one instruction set ([`Isa`]);
//! every method checks shapes, so callers write no `unsafe`. Matrices are row-major ([`Mat`], [`MatMut`], [`Weight`]).
//!
//! ```
//! use ttft_kernels::{Engine, Mat, MatMut, Options, Output, Weight};
//!
//! let engine = Engine::new(&Options { threads: Some(1), ..Options::default() })?;
//! // Two tokens of three features, and a layer that makes four features of them: y = x W^T.
//! let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
//! let w = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0];
//! let mut y = [0.0f32; 8];
//! let (x, w) = (Mat::<f32>::new(&x, 2, 3), Weight::F32(Mat::new(&w, 4, 3)));
//! engine.linear(x, w, Output::Store(MatMut::new(&mut y, 2, 4)))?;
//! assert_eq!(y, [1.0, 2.0, 3.0, 6.0, 4.0, 5.0, 6.0, 15.0]);
//! println!("{} ran on {}", engine.take_used().join(", "), engine.isa().name());
//! # Ok::<(), ttft_kernels::Error>(())
//! ```
//!
//! Numerics: products accumulate in f32. Activations are f32 or BF16 ([`Element`]); weights F32, F16 or BF16.
//!
//! Subnormal numbers: arithmetic in f32 keeps them at every level, and so do conversions. The crate leaves the control register of
//! its threads (MXCSR, FPCR) as Rust wants it, and expects the same of its caller. Instructions that multiply BF16 read no such
//! register: they count subnormal operands and sums as zero ([`Mul::Bf16`]). Exponentials whose result would be subnormal are zero.

mod contract;
pub mod cpu;
mod driver;
mod engine;
mod error;
#[cfg(feature = "guard")]
pub mod guard;
mod isa;
mod level;
mod levels;
mod lines;
mod micro;
mod operands;
pub mod peak;
mod pool;
pub mod reference;
mod rope;
mod scratch;
mod shared;
mod simd;
mod team;
mod tuning;
mod view;

pub use contract::{DotKernel, GemmKernel, Mul, StreamKernel};
#[cfg(feature = "peers")]
pub use driver::peers;
pub use engine::{Engine, Options};
pub use error::{Error, Result};
pub use isa::Isa;
pub use level::Level;
pub use levels::{isas, kernels_of};
pub use lines::Buffer;
pub use operands::{AttnShape, HeadNorm, HeadProjection, HeadsOut, Join, Output, Positions, Product, Query};
pub use pool::{Part, Pool};
pub use rope::RopeTable;
pub use team::Backend;
pub use view::{DType, Element, Format, HeadCache, Mat, MatMut, Weight};

/// Where operations cut their work, for tests that go around the edges.
pub mod edges {
    pub use crate::{
        contract::STREAM_KEYS,
        tuning::{ATTENTION_STREAM_ROWS, PROJECTION_ROWS, attention_keys},
    };
}
