//! Micro-kernels, one file for each instruction set; the algorithms they share are in [`vector`].

pub(crate) mod portable;
#[cfg(target_arch = "x86_64")]
pub(crate) mod quads;
pub(crate) mod vector;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
