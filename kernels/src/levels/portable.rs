//! Plain Rust on four lanes: any CPU, and the slow but simple twin of every other backend.

use half::{bf16, f16};

use crate::{
    isa::Isa,
    level::Level,
    micro::{dot::dot_kernel, epilogue::epilogues, tile::gemm_kernel, vector::{MacF32, Vector}},
    simd::{self, Kernel},
    tuning::Tuning,
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

dot_kernel!(dot_f32, Isa::Portable, [], V, MacF32, 2, "dot_f32xf32_f32_portable", F32 as F32, F32 as F32);
dot_kernel!(dot_f16, Isa::Portable, [], V, MacF32, 2, "dot_f32xf16_f32_portable", F32 as F32, F16 as F16);
dot_kernel!(dot_bf16, Isa::Portable, [], V, MacF32, 2, "dot_f32xbf16_f32_portable", F32 as F32, BF16 as Bf16);

epilogues!([], V);

pub(crate) const LEVEL: Level = Level {
    isa: Isa::Portable,
    base: None,
    gemm: &[f32_8x4::KERNEL],
    dot: &[dot_f32::KERNEL, dot_f16::KERNEL, dot_bf16::KERNEL],
    stream: None,
    epilogues: EPILOGUES,
    tuning: Tuning { dot_rows: 6, dot_cost: 1.5, quads: &[], copy_from: usize::MAX, load_bound: None },
    detect: || true,
    faster: |_| true,
    spins: &[],
    around: None,
};

/// One lane: plain f32.
pub(crate) fn vectors() -> Option<impl simd::Vector> {
    Some(pulp::Scalar)
}

impl simd::Vector for pulp::Scalar {
    type Bits16 = u16;
    #[inline(always)]
    fn widen(self, x: u16) -> u32 {
        x.into()
    }
    #[inline(always)]
    fn narrow(self, x: u32) -> u16 {
        x as u16
    }
    #[inline(always)]
    fn sums(self, x: [f32; 4]) -> [f32; 4] {
        x
    }
    #[inline(always)]
    fn call<K: Kernel>(self, k: K) -> K::Output {
        k.run(self)
    }
}

