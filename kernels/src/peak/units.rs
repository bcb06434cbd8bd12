//! The units that multiply, a row each: what it is called, whether this CPU has it, and a loop that keeps it busy as a kernel would.
//!
//! A loop works on random values, because units are faster on zeros, and loads both factors from the first-level cache, because a
//! product does. Nothing in it is one of the crate's kernels: what the machine can do is no better where they are, and no worse.

use super::{Factors, Work};
use crate::{
    isa::Isa,
    micro::vector::{Mac, MacF32, load, store},
    simd::Vector,
};

/// A unit that multiplies.
#[derive(Debug)]
pub(super) struct Row {
    pub name: &'static str,
    pub factors: Factors,
    /// The level whose products it computes, if one has kernels for it.
    pub level: Option<Isa>,
    pub detect: fn() -> bool,
    pub run: Run,
}

/// Multiplies `passes` times over the operands; the operations that it did.
///
/// # Safety
/// The CPU has the unit.
pub(super) type Run = unsafe fn(work: &mut Work, passes: u64) -> u64;

/// Steps of a panel of x: with 4 vectors of 64 bytes, 16 KB of a first-level cache of 32 KB or more.
const STEPS: usize = 64;

/// Times that a panel is multiplied before its sums are stored: as many steps as a kernel's chunk of K has.
const TURNS: usize = 8;

/// [`Run`] by the outer product of `MV` vectors of x and `NR` of W, in each of which four bytes count and are broadcast, or all.
///
/// # Safety
/// The CPU has what `V` and `M` need.
#[inline(always)]
unsafe fn tile<V: Vector, M: Mac<V>, const MV: usize, const NR: usize, const WHOLE: bool>(
    work: &mut Work,
    passes: u64,
) -> u64 {
    let lanes = if WHOLE { V::LANES } else { 1 };
    assert!(MV * STEPS * V::LANES <= work.x.len() && NR * STEPS * lanes <= work.w.len());
    assert!(MV * NR * V::LANES <= work.out.len());
    // SAFETY: the CPU has the level, by the caller's promise; what is read and written is inside, as asserted.
    unsafe {
        let v = V::held();
        for _ in 0..passes {
            // The sums may be read by anyone, and the operands have been written: no pass can be left out.
            let work = std::hint::black_box(&mut *work);
            let (x, w) = (work.x.as_ptr(), work.w.as_ptr());
            let mut c = [[v.splat_f32s(0.0); MV]; NR];
            for _ in 0..TURNS {
                for s in 0..STEPS {
                    let mut xs = [v.splat_f32s(0.0); MV];
                    for (i, to) in xs.iter_mut().enumerate() {
                        *to = load::<V>(x.add((s * MV + i) * V::LANES));
                    }
                    for (r, c) in c.iter_mut().enumerate() {
                        let w = w.add((r * STEPS + s) * lanes);
                        let w = if WHOLE { load::<V>(w) } else { v.splat_f32s(w.read()) };
                        for (c, x) in c.iter_mut().zip(xs) {
                            *c = M::mac(v, *c, x, w);
                        }
                    }
                }
            }
            for (r, c) in c.iter().enumerate() {
                for (i, c) in c.iter().enumerate() {
                    store::<V>(work.out.as_mut_ptr().add((r * MV + i) * V::LANES), *c);
                }
            }
        }
    }
    passes * (TURNS * STEPS * MV * NR * V::LANES) as u64
}

/// A [`Run`] by [`tile`], of so many multiply-adds in each lane.
macro_rules! run {
    ([$($attr:meta)?], $name:ident: $v:ty, $mac:ty, $mv:literal x $nr:literal, $whole:literal, $per_lane:literal) => {
        /// # Safety
        /// As [`Run`].
        $(#[$attr])?
        pub(super) unsafe fn $name(work: &mut Work, passes: u64) -> u64 {
            // SAFETY: the caller's promise.
            unsafe { tile::<$v, $mac, $mv, $nr, $whole>(work, passes) * 2 * $per_lane }
        }
    };
}

/// The units of this architecture, those of one type in the order of preference of kernels that could use several.
pub(super) static UNITS: &[Row] = &[
    Row {
        name: "no vector unit (plain Rust)",
        factors: Factors::F32,
        level: Some(Isa::Portable),
        detect: || true,
        run: plain,
    },
    #[cfg(target_arch = "x86_64")]
    Row {
        name: "AVX2 FMA",
        factors: Factors::F32,
        level: Some(Isa::Avx2),
        detect: || Isa::Avx2.available(),
        run: x86::fma_256,
    },
    #[cfg(target_arch = "x86_64")]
    Row {
        name: "AVX-512 FMA",
        factors: Factors::F32,
        level: Some(Isa::Avx512),
        detect: || Isa::Avx512.available(),
        run: x86::fma_512,
    },
    #[cfg(target_arch = "x86_64")]
    Row {
        name: "AVX512-BF16 (vdpbf16ps)",
        factors: Factors::Bf16,
        level: Some(Isa::Avx512Bf16),
        detect: || Isa::Avx512Bf16.available(),
        run: x86::bf16_512,
    },
    #[cfg(target_arch = "x86_64")]
    Row {
        name: "AMX-BF16 (tdpbf16ps)",
        factors: Factors::Bf16,
        level: Some(Isa::Amx),
        detect: || crate::cpu::amx::has().bf16,
        run: super::amx::bf16,
    },
    #[cfg(target_arch = "x86_64")]
    Row {
        name: "AVX-VNNI (vpdpbusd)",
        factors: Factors::Int8,
        level: None,
        detect: || Isa::Avx2.available() && is_x86_feature_detected!("avxvnni"),
        run: x86::int8_256,
    },
    #[cfg(target_arch = "x86_64")]
    Row {
        name: "AVX512-VNNI (vpdpbusd)",
        factors: Factors::Int8,
        level: None,
        detect: || Isa::Avx512.available() && is_x86_feature_detected!("avx512vnni"),
        run: x86::int8_512,
    },
    #[cfg(target_arch = "x86_64")]
    Row {
        name: "AMX-INT8 (tdpbssd)",
        factors: Factors::Int8,
        level: None,
        detect: || crate::cpu::amx::has().int8,
        run: super::amx::int8,
    },
    #[cfg(target_arch = "aarch64")]
    Row {
        name: "NEON (FMLA)",
        factors: Factors::F32,
        level: Some(Isa::Neon),
        detect: || Isa::Neon.available(),
        run: arm::fmla,
    },
    #[cfg(target_arch = "aarch64")]
    Row {
        name: "BF16 (BFMMLA)",
        factors: Factors::Bf16,
        level: Some(Isa::NeonBf16),
        detect: || Isa::NeonBf16.available(),
        run: arm::bfmmla,
    },
    #[cfg(target_arch = "aarch64")]
    Row {
        name: "BF16 (BFDOT)",
        factors: Factors::Bf16,
        level: Some(Isa::NeonBf16),
        detect: || Isa::NeonBf16.available(),
        run: arm::bfdot,
    },
    #[cfg(target_arch = "aarch64")]
    Row {
        name: "dot product (SDOT)",
        factors: Factors::Int8,
        level: None,
        detect: || std::arch::is_aarch64_feature_detected!("dotprod"),
        run: arm::sdot,
    },
    #[cfg(target_arch = "aarch64")]
    Row {
        name: "I8MM (SMMLA)",
        factors: Factors::Int8,
        level: None,
        detect: || std::arch::is_aarch64_feature_detected!("i8mm"),
        run: arm::smmla,
    },
];

run!([], plain: crate::levels::portable::Plain, MacF32, 2 x 4, false, 1);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use pulp::x86::{V3, V4};

    use super::*;

    /// A multiply-add of one intrinsic, on lanes that it takes for what it likes.
    macro_rules! mac {
        ($name:ident: $v:ty, $f32s:ty, |$acc:ident, $x:ident, $w:ident| $e:expr) => {
            struct $name;
            impl Mac<$v> for $name {
                #[inline(always)]
                unsafe fn mac(_: $v, $acc: $f32s, $x: $f32s, $w: $f32s) -> $f32s {
                    // SAFETY: the instruction is there, by the caller's promise; bits of one size change their type.
                    unsafe { $e }
                }
            }
        };
    }
    mac!(Bf16: V4, __m512, |acc, x, w| {
        _mm512_dpbf16_ps(acc, std::mem::transmute::<__m512, __m512bh>(x), std::mem::transmute::<__m512, __m512bh>(w))
    });
    mac!(Int8x64: V4, __m512, |acc, x, w| {
        let [acc, x, w] = [acc, x, w].map(|x| _mm512_castps_si512(x));
        _mm512_castsi512_ps(_mm512_dpbusd_epi32(acc, x, w))
    });
    mac!(Int8x32: V3, __m256, |acc, x, w| {
        let [acc, x, w] = [acc, x, w].map(|x| _mm256_castps_si256(x));
        _mm256_castsi256_ps(_mm256_dpbusd_avx_epi32(acc, x, w))
    });

    // 24 sums of 32 registers, or 12 of 16: chains enough for the latency, and few loads for each.
    run!([target_feature(enable = "avx2,fma,f16c")], fma_256: V3, MacF32, 2 x 6, false, 1);
    run!([target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")], fma_512: V4, MacF32, 4 x 6, false, 1);
    run!([target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512vl,avx512dq")], bf16_512: V4, Bf16, 4 x 6, false, 2);
    run!([target_feature(enable = "avxvnni,avx2,fma,f16c")], int8_256: V3, Int8x32, 2 x 6, false, 4);
    run!([target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq")], int8_512: V4, Int8x64, 4 x 6, false, 4);
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::{aarch64::float32x4_t, asm};

    use pulp::aarch64::Neon;

    use super::*;

    /// A multiply-add of one instruction, on lanes that it takes for what it likes.
    macro_rules! mac {
        ($name:ident: $extension:literal, $instruction:literal) => {
            struct $name;
            impl Mac<Neon> for $name {
                #[inline(always)]
                unsafe fn mac(_: Neon, mut acc: float32x4_t, x: float32x4_t, w: float32x4_t) -> float32x4_t {
                    // SAFETY: the instruction is there, by the caller's promise; it touches registers alone.
                    unsafe {
                        asm!(
                            concat!(".arch_extension ", $extension),
                            $instruction,
                            c = inout(vreg) acc, a = in(vreg) x, b = in(vreg) w,
                            options(pure, nomem, nostack, preserves_flags),
                        );
                    }
                    acc
                }
            }
        };
    }
    mac!(Bfmmla: "bf16", "bfmmla {c:v}.4s, {a:v}.8h, {b:v}.8h");
    mac!(Bfdot: "bf16", "bfdot {c:v}.4s, {a:v}.8h, {b:v}.8h");
    mac!(Sdot: "dotprod", "sdot {c:v}.4s, {a:v}.16b, {b:v}.16b");
    mac!(Smmla: "i8mm", "smmla {c:v}.4s, {a:v}.16b, {b:v}.16b");

    run!([], fmla: Neon, MacF32, 4 x 6, true, 1);
    run!([], bfmmla: Neon, Bfmmla, 4 x 6, true, 4);
    run!([], bfdot: Neon, Bfdot, 4 x 6, true, 2);
    run!([], sdot: Neon, Sdot, 4 x 6, true, 4);
    run!([], smmla: Neon, Smmla, 4 x 6, true, 8);
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::peak::Unit;

    /// Factors in 32 bits.
    fn in_word(factors: Factors) -> usize {
        match factors {
            Factors::F32 => 1,
            Factors::Bf16 => 2,
            Factors::Int8 => 4,
        }
    }

    /// A sum of a run of `tile`, from its operands.
    fn sum(work: &Work, factors: Factors, x_at: usize, x_step: usize, w_at: usize) -> f64 {
        let element = |words: &[f32], at: usize, i: usize, signed: bool| -> f64 {
            let word = words[at].to_bits();
            match factors {
                Factors::F32 => f32::from_bits(word).into(),
                Factors::Bf16 => f32::from_bits(word >> (16 * i) << 16).into(),
                Factors::Int8 => {
                    let byte = (word >> (8 * i)) as u8;
                    if signed { f64::from(byte as i8) } else { f64::from(byte) }
                }
            }
        };
        let each = in_word(factors);
        let products = (0..STEPS).flat_map(|s| {
            (0..each).map(move |i| {
                // `vpdpbusd` takes its first factor without a sign.
                element(&work.x, x_at + s * x_step, i, false) * element(&work.w, w_at + s, i, true)
            })
        });
        TURNS as f64 * products.sum::<f64>()
    }

    #[test]
    fn vector_units_multiply_what_they_say() {
        for unit in Unit::all().into_iter().filter(|u| !u.name().starts_with("AMX")) {
            let (factors, lanes, mv) = match unit.name() {
                n if n.contains("512") => (unit.factors(), 16, 4),
                n if n.contains("AVX") => (unit.factors(), 8, 2),
                _ => (unit.factors(), 4, 2),
            };
            let mut work = Work::new(factors);
            let operations = unit.run(&mut work, 3);
            // A multiply and an addition for each of the sums, steps, turns and passes.
            let sums = mv * lanes * if lanes == 4 { 4 } else { 6 };
            assert_eq!(operations, (2 * sums * STEPS * TURNS * 3 * in_word(factors)) as u64, "{}", unit.name());
            for (r, lane) in [(0, 0), (3, lanes - 1), (1, mv * lanes - 1)] {
                let want = sum(&work, factors, lane, mv * lanes, r * STEPS);
                let found = work.out[r * mv * lanes + lane];
                match factors {
                    Factors::Int8 => assert_eq!(f64::from(found.to_bits() as i32), want, "{}", unit.name()),
                    // Factors are below 1: as many roundings as products, of sums of at most as many.
                    _ => {
                        let n = (STEPS * TURNS * 2) as f64;
                        let bound = n * n * f64::from(f32::EPSILON);
                        assert!((f64::from(found) - want).abs() <= bound, "{}: {found} for {want}", unit.name());
                    }
                }
            }
        }
    }
}
