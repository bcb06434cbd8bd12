//! Plain Rust on four lanes: any CPU, and the slow but simple twin of every other backend.

use half::f16;

use crate::{
    isa::Isa,
    level::Level,
    micro::{dot::dot_kernel, epilogue::epilogues, tile::gemm_kernel, vector::MacF32},
    simd::{Kernel, Vector, operations},
    tuning::Tuning,
};

gemm_kernel!(f32_8x4, Isa::Portable, [], Plain, F32, 2 x 4, "gemm_f32xf32_f32_8x4_portable");

dot_kernel!(dot_f32, Isa::Portable, [], Plain, MacF32, 2, "dot_f32xf32_f32_portable", F32 as F32, F32 as F32);
dot_kernel!(dot_f16, Isa::Portable, [], Plain, MacF32, 2, "dot_f32xf16_f32_portable", F32 as F32, F16 as F16);
dot_kernel!(dot_bf16, Isa::Portable, [], Plain, MacF32, 2, "dot_f32xbf16_f32_portable", F32 as F32, BF16 as Bf16);

epilogues!([], Plain);

pub(crate) const LEVEL: Level = Level {
    isa: Isa::Portable,
    base: None,
    gemm: &[f32_8x4::KERNEL],
    dot: &[dot_f32::KERNEL, dot_f16::KERNEL, dot_bf16::KERNEL],
    stream: None,
    epilogues: EPILOGUES,
    tuning: Tuning { dot_rows: 6, dot_cost: 1.5, quads: &[], copy_from: usize::MAX, load_bound: None, tiles: None },
    detect: || true,
    faster: |_| true,
    around: None,
};

/// Four lanes of plain Rust, on every CPU.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

pub(crate) fn vectors() -> Option<Plain> {
    Some(Plain)
}

#[inline(always)]
fn zip<A: Copy, B: Copy, C>(a: [A; 4], b: [B; 4], f: impl Fn(A, B) -> C) -> [C; 4] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn reduce(x: [f32; 4], f: impl Fn(f32, f32) -> f32) -> f32 {
    f(f(x[0], x[2]), f(x[1], x[3]))
}

type F = [f32; 4];
type U = [u32; 4];

impl Vector for Plain {
    const LANES: usize = 4;
    const REGISTERS: usize = 16;
    type F32s = F;
    type U32s = U;
    type Mask = [bool; 4];
    type Bits16 = [u16; 4];
    #[inline(always)]
    unsafe fn held() -> Self {
        Plain
    }
    operations! { self;
        splat_f32s(x: f32) -> F = [x; 4];
        splat_u32s(x: u32) -> U = [x; 4];
        f32s_of(x: U) -> F = x.map(f32::from_bits);
        bits_of(x: F) -> U = x.map(f32::to_bits);
        add_f32s(a: F, b: F) -> F = zip(a, b, |a, b| a + b);
        sub_f32s(a: F, b: F) -> F = zip(a, b, |a, b| a - b);
        mul_f32s(a: F, b: F) -> F = zip(a, b, |a, b| a * b);
        div_f32s(a: F, b: F) -> F = zip(a, b, |a, b| a / b);
        neg_f32s(a: F) -> F = a.map(|a| -a);
        // Two roundings: a fused multiply-add is a library call on CPUs without the instruction.
        mul_add(a: F, b: F, c: F) -> F = self.add_f32s(self.mul_f32s(a, b), c);
        greater_than_f32s(a: F, b: F) -> [bool; 4] = zip(a, b, |a, b| a > b);
        equal_f32s(a: F, b: F) -> [bool; 4] = zip(a, b, |a, b| a == b);
        greater_than_u32s(a: U, b: U) -> [bool; 4] = zip(a, b, |a, b| a > b);
        select_f32s(mask: [bool; 4], yes: F, no: F) -> F = std::array::from_fn(|i| if mask[i] { yes[i] } else { no[i] });
        select_u32s(mask: [bool; 4], yes: U, no: U) -> U = std::array::from_fn(|i| if mask[i] { yes[i] } else { no[i] });
        add_u32s(a: U, b: U) -> U = zip(a, b, u32::wrapping_add);
        and_u32s(a: U, b: U) -> U = zip(a, b, |a, b| a & b);
        or_u32s(a: U, b: U) -> U = zip(a, b, |a, b| a | b);
        shl_u32s(a: U, by: U) -> U = zip(a, by, |a, by| a << by);
        shr_u32s(a: U, by: U) -> U = zip(a, by, |a, by| a >> by);
        reduce_sum_f32s(x: F) -> f32 = reduce(x, |a, b| a + b);
        reduce_max_f32s(x: F) -> f32 = reduce(x, f32::max);
        reduce_min_f32s(x: F) -> f32 = reduce(x, f32::min);
        widen(x: [u16; 4]) -> U = x.map(u32::from);
        narrow(x: U) -> [u16; 4] = x.map(|x| x as u16);
        sums(x: [F; 4]) -> F = self.sum_fours(x);
    }
    #[inline(always)]
    unsafe fn widen_f16(self, x: [u16; 4]) -> F {
        x.map(|x| f16::from_bits(x).to_f32())
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn broadcast(self, p: *const f32) -> F {
        // SAFETY: 4 readable lanes, by the caller's promise.
        unsafe { p.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    fn sum_fours(self, mut x: [F; 4]) -> F {
        transpose(&mut x);
        self.add_f32s(self.add_f32s(x[0], x[1]), self.add_f32s(x[2], x[3]))
    }
    #[inline(always)]
    fn transpose(self, block: &mut [F; 16]) {
        transpose(block.first_chunk_mut().expect("16 rows"));
    }
    #[inline(always)]
    fn call<K: Kernel>(self, k: K) -> K::Output {
        k.run(self)
    }
}

#[inline(always)]
fn transpose(block: &mut [F; 4]) {
    let rows = *block;
    *block = std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]));
}
