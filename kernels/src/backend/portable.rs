//! Plain Rust on four lanes: any CPU, and the slow but simple twin of every other backend.

use half::{bf16, f16};

use super::vector::{Vector, dot_kernel, epilogues, gemm_kernel};
use crate::{
    contract::{DotKernel, GemmKernel},
    cpu::Isa,
};

/// Four f32 lanes.
#[derive(Clone, Copy)]
pub(crate) struct V([f32; 4]);

impl V {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> V {
        V(self.0.map(f))
    }
    #[inline(always)]
    fn zip(self, b: V, f: impl Fn(f32, f32) -> f32) -> V {
        V(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

// SAFETY: plain Rust; loads and stores touch exactly 4 lanes.
unsafe impl Vector for V {
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn zero() -> Self {
        V([0.0; 4])
    }
    #[inline(always)]
    unsafe fn splat(p: *const u32) -> Self {
        // SAFETY: 4 readable bytes, by the caller's promise.
        V([f32::from_bits(unsafe { p.read_unaligned() }); 4])
    }
    #[inline(always)]
    unsafe fn load(p: *const u32) -> Self {
        // SAFETY: 4 readable lanes, by the caller's promise.
        V(unsafe { p.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut u32) {
        // SAFETY: 4 writable lanes, by the caller's promise.
        unsafe { p.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn widen_bf16(p: *const u16) -> Self {
        // SAFETY: 4 readable u16, by the caller's promise.
        V(unsafe { p.cast::<[bf16; 4]>().read_unaligned() }.map(bf16::to_f32))
    }
    #[inline(always)]
    unsafe fn widen_f16(p: *const u16) -> Self {
        // SAFETY: 4 readable u16, by the caller's promise.
        V(unsafe { p.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32))
    }
    #[inline(always)]
    unsafe fn narrow_bf16(self, p: *mut u16) {
        // SAFETY: 4 writable u16, by the caller's promise.
        unsafe { p.cast::<[bf16; 4]>().write_unaligned(self.0.map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // Two roundings: a fused multiply-add is a library call on CPUs without the instruction.
        V(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn clamp(self, lo: f32, hi: f32) -> Self {
        self.map(|x| x.clamp(lo, hi))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.map(|x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        self.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn splat_f32(x: f32) -> Self {
        V([x; 4])
    }
    #[inline(always)]
    unsafe fn transpose(b: &mut [Self; 16]) {
        let t: [V; 4] = std::array::from_fn(|i| V(std::array::from_fn(|j| b[j].0[i])));
        b[..4].copy_from_slice(&t);
    }
}

gemm_kernel!(f32_8x4, Isa::Portable, [], V, F32, 2 x 4, "gemm_f32xf32_f32_8x4_portable");

dot_kernel!(dot_f32, Isa::Portable, [], V, F32xF32, MacF32, 2, "dot_f32xf32_f32_portable", f32 as F32, f32 as F32);
dot_kernel!(dot_f16, Isa::Portable, [], V, F32xF16, MacF32, 2, "dot_f32xf16_f32_portable", f32 as F32, u16 as F16);
dot_kernel!(dot_bf16, Isa::Portable, [], V, F32xBf16, MacF32, 2, "dot_f32xbf16_f32_portable", f32 as F32, u16 as Bf16);

epilogues!([], V);

pub(crate) const GEMM: &[GemmKernel] = &[f32_8x4::KERNEL];
pub(crate) const DOT: &[DotKernel] = &[dot_f32::KERNEL, dot_f16::KERNEL, dot_bf16::KERNEL];
