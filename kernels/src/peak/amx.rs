//! The peak of Intel's tile unit, by inline assembly: its intrinsics are unstable.

use std::arch::asm;

use super::Work;
use crate::cpu::amx::{Config, ROW, ROWS};

/// Bytes of a tile.
const TILE: usize = ROWS as usize * ROW as usize;

/// Bytes of a step: two tiles of either factor, for four multiplications.
const STEP: usize = 2 * TILE;

/// Steps of a pass: both factors together are 32 KB of a first-level cache of 48.
const STEPS: usize = 8;

/// [`super::units::Run`] by blocks of 2 x 2 tiles, the loop over K in tiles that lie one after another, results stored after
/// [`STEPS`] steps. Tiles are set up before and released after, so that the thread carries no state of theirs on.
macro_rules! run {
    ($name:ident, $instruction:literal, $per_row:literal) => {
        /// # Safety
        /// The unit is there: [`crate::cpu::amx::has`].
        pub(super) unsafe fn $name(work: &mut Work, passes: u64) -> u64 {
            assert!(work.x.len() * 4 >= STEPS * STEP && work.w.len() * 4 >= STEPS * STEP && work.out.len() * 4 >= 4 * TILE);
            if passes == 0 {
                return 0;
            }
            // SAFETY: the unit and the permission are there, by the caller's promise; a pass reads STEPS steps of both factors, and
            // writes four tiles, which are inside as asserted.
            unsafe {
                asm!(
                    "ldtilecfg [{config}]",
                    "2:",
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    "mov {p}, {x}",
                    "mov {q}, {w}",
                    "mov {n:e}, {steps}",
                    "3:",
                    "tileloadd tmm4, [{q}+{stride}*1]",
                    "tileloadd tmm5, [{q}+{stride}*1+1024]",
                    "tileloadd tmm6, [{p}+{stride}*1]",
                    concat!($instruction, " tmm0, tmm4, tmm6"),
                    "tileloadd tmm7, [{p}+{stride}*1+1024]",
                    concat!($instruction, " tmm1, tmm5, tmm6"),
                    concat!($instruction, " tmm2, tmm4, tmm7"),
                    concat!($instruction, " tmm3, tmm5, tmm7"),
                    "add {p}, 2048",
                    "add {q}, 2048",
                    "dec {n:e}",
                    "jnz 3b",
                    "tilestored [{out}+{stride}*1], tmm0",
                    "tilestored [{out}+{stride}*1+1024], tmm1",
                    "tilestored [{out}+{stride}*1+2048], tmm2",
                    "tilestored [{out}+{stride}*1+3072], tmm3",
                    "dec {passes}",
                    "jnz 2b",
                    "tilerelease",
                    config = in(reg) Config::address(),
                    x = in(reg) work.x.as_ptr(),
                    w = in(reg) work.w.as_ptr(),
                    out = in(reg) work.out.as_mut_ptr(),
                    stride = in(reg) usize::from(ROW),
                    steps = const STEPS,
                    passes = inout(reg) passes => _,
                    p = out(reg) _,
                    q = out(reg) _,
                    n = out(reg) _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
            let multiply_adds = u64::from(ROWS) * 16 * 16 * $per_row;
            passes * STEPS as u64 * 4 * multiply_adds * 2
        }
    };
}
run!(bf16, "tdpbf16ps", 2);
run!(int8, "tdpbssd", 4);

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::{cpu::amx::has, peak::Factors};

    /// `c[m][n] = sum of a[m][k] b[k / per][n][k % per]` for tile `at` of W and of x, over all steps.
    fn tile<T: Copy>(
        w: &[T],
        x: &[T],
        (a, b): (usize, usize),
        (m, n): (usize, usize),
        per: usize,
        f: impl Fn(T) -> f64,
    ) -> f64 {
        let tile = TILE / size_of::<T>();
        let row = 16 * per;
        let products = (0..STEPS).flat_map(|s| (0..row).map(move |k| (s, k)));
        products
            .map(|(s, k)| {
                let a = w[(2 * s + a) * tile + m * row + k];
                let b = x[(2 * s + b) * tile + k / per * row + n * per + k % per];
                f(a) * f(b)
            })
            .sum()
    }

    /// Plain Rust against the unit, on a machine that has it.
    #[test]
    fn tiles_hold_the_products() {
        println!("AMX: {:?}", has());
        for (m, n) in [(0, 0), (15, 15), (3, 8)] {
            for (i, (a, b)) in [(0, 0), (1, 0), (0, 1), (1, 1)].into_iter().enumerate() {
                let at = i * TILE / 4 + m * 16 + n;
                if has().bf16 {
                    let mut work = Work::new(Factors::Bf16);
                    // SAFETY: the unit is there.
                    unsafe { super::bf16(&mut work, 2) };
                    let (w, x): (&[bf16], &[bf16]) = (bytemuck::cast_slice(&work.w), bytemuck::cast_slice(&work.x));
                    let want = tile(w, x, (a, b), (m, n), 2, |x| x.to_f64());
                    let products = (STEPS * 32) as f64;
                    assert!((f64::from(work.out[at]) - want).abs() <= products * products * f64::from(f32::EPSILON));
                }
                if has().int8 {
                    let mut work = Work::new(Factors::Int8);
                    // SAFETY: the unit is there.
                    unsafe { int8(&mut work, 2) };
                    let (w, x): (&[i8], &[i8]) = (bytemuck::cast_slice(&work.w), bytemuck::cast_slice(&work.x));
                    assert_eq!(f64::from(work.out[at].to_bits() as i32), tile(w, x, (a, b), (m, n), 4, f64::from));
                }
            }
        }
    }
}
