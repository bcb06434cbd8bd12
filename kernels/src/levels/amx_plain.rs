//! A tile unit in plain Rust, so that packing, blocking and drivers of `super::amx` run on any CPU.

pub(crate) use super::portable::{Plain, vectors};
use super::portable;
use crate::{
    isa::Isa,
    level::{Around, Level},
    micro::tiles::{self, tiles_kernel},
    tuning::{TILES, Tuning},
};

tiles_kernel!(bf16_32x32, Isa::AmxPlain, [], Plain, tiles::Plain, 2 x 2, 8, "gemm_bf16xbf16_f32_32x32_amx-plain");
tiles_kernel!(bf16_64x16, Isa::AmxPlain, [], Plain, tiles::Plain, 1 x 4, 16, "gemm_bf16xbf16_f32_64x16_amx-plain");
tiles_kernel!(bf16_16x32, Isa::AmxPlain, [], Plain, tiles::Plain, 2 x 1, 4, "gemm_bf16xbf16_f32_16x32_amx-plain");

pub(crate) const LEVEL: Level = Level {
    isa: Isa::AmxPlain,
    base: Some(Isa::Portable),
    gemm: &[bf16_32x32::KERNEL, bf16_64x16::KERNEL, bf16_16x32::KERNEL],
    dot: &[],
    tuning: Tuning { tiles: Some(TILES), ..portable::LEVEL.tuning },
    faster: |_| false,
    around: Some(Around { enter: || tiles::enter(|| ()), leave: || tiles::leave(|| ()) }),
    ..portable::LEVEL
};
