//! What a level of instructions is: the one value that its file in [`crate::levels`] gives.

use crate::{
    contract::{DotKernel, Epilogues, GemmKernel, StreamKernel},
    isa::Isa,
    tuning::Tuning,
};

/// One instruction-set level.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    /// The level.
    pub isa: Isa,
    /// The level whose kernels it falls back on, and whose instructions it needs.
    pub base: Option<Isa>,
    /// Its GEMM kernels.
    pub gemm: &'static [GemmKernel],
    /// Its few-row kernels.
    pub dot: &'static [DotKernel],
    /// Its kernel for few queries over a BF16 cache, if it is better at that than vectors of f32.
    pub stream: Option<&'static StreamKernel>,
    pub(crate) epilogues: Epilogues,
    pub(crate) tuning: Tuning,
    /// Whether the CPU has what the level needs beyond its base.
    pub(crate) detect: fn() -> bool,
    /// Whether it is faster than its base on CPUs of this vendor.
    pub(crate) faster: fn(vendor: [u8; 12]) -> bool,
    /// What a thread does on entering a region and on leaving it, such as setting up registers that only this level has.
    pub(crate) around: Option<Around>,
}

/// What a thread does around its part of a region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    pub enter: fn(),
    pub leave: fn(),
}
