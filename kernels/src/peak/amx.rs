//! Intel's tile unit, by inline assembly: its intrinsics are unstable. Here it is a unit whose peak is measured, and no more: what
//! uses it needs a permission that the system gives once for a process, and asks for it by [`has`].

use std::{arch::asm, sync::OnceLock};

use super::Work;

/// What the CPU and the system let this process use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Has {
    pub bf16: bool,
    pub int8: bool,
}

const NONE: Has = Has { bf16: false, int8: false };

/// What there is. The permission is asked for at the first call, where the CPU has the unit; one that is refused is no unit.
pub(super) fn has() -> Has {
    static HAS: OnceLock<Has> = OnceLock::new();
    *HAS.get_or_init(|| match detected() {
        NONE => NONE,
        has if permitted() => has,
        _ => NONE,
    })
}

/// What CPUID and the system's save areas say.
fn detected() -> Has {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return NONE;
    }
    // SAFETY: the instruction is there where the system has set OSXSAVE.
    let saved = unsafe { _xgetbv(0) };
    told(__cpuid_count(7, 0).edx, saved)
}

/// What leaf 7 (EDX) and XCR0 mean: the unit, tiles whose configuration and data the system saves, and each type.
fn told(edx: u32, xcr0: u64) -> Has {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    const SAVED: u64 = 0b11 << 17;
    let tiles = edx & TILE != 0 && xcr0 & SAVED == SAVED;
    Has { bf16: tiles && edx & BF16 != 0, int8: tiles && edx & INT8 != 0 }
}

/// Asks Linux to let this process have tiles.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const REQUEST: i32 = 0x1023;
    const TILE_DATA: u64 = 18;
    // SAFETY: `arch_prctl` with a request for a feature reads and writes no memory of the process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Rows of a tile, and bytes of a row: all eight tiles are of the full size.
const ROWS: u8 = 16;
const ROW: u16 = 64;
const TILE: usize = ROWS as usize * ROW as usize;

/// Bytes of a step: two tiles of either factor, for four multiplications.
const STEP: usize = 2 * TILE;

/// Steps of a pass: both factors together are 32 KB of a first-level cache of 48.
const STEPS: usize = 8;

/// Palette 1: at byte 16 the bytes of a row of each tile, at 48 its rows.
#[repr(C, align(64))]
struct Config([u8; 64]);

fn config() -> Config {
    let mut c = [0; 64];
    c[0] = 1;
    for tile in 0..8 {
        c[16 + 2 * tile..][..2].copy_from_slice(&ROW.to_le_bytes());
        c[48 + tile] = ROWS;
    }
    Config(c)
}

/// [`super::units::Run`] by blocks of 2 x 2 tiles, the loop over K in tiles that lie one after another, results stored after
/// [`STEPS`] steps. Tiles are set up before and released after, so that the thread carries no state of theirs on.
macro_rules! run {
    ($name:ident, $instruction:literal, $per_row:literal) => {
        /// # Safety
        /// The unit is there: [`has`].
        pub(super) unsafe fn $name(work: &mut Work, passes: u64) -> u64 {
            assert!(work.x.len() * 4 >= STEPS * STEP && work.w.len() * 4 >= STEPS * STEP && work.out.len() * 4 >= 4 * TILE);
            if passes == 0 {
                return 0;
            }
            let config = config();
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
                    config = in(reg) config.0.as_ptr(),
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
    use crate::peak::Factors;

    #[test]
    fn the_unit_is_there_if_the_cpu_and_the_system_say_so() {
        let (tile, bf16, int8) = (1 << 24, 1 << 22, 1 << 25);
        let saved = 0b11 << 17;
        assert_eq!(told(tile | bf16 | int8, saved), Has { bf16: true, int8: true });
        assert_eq!(told(tile | bf16, saved), Has { bf16: true, int8: false });
        // No tiles; tiles that the system does not save, or only their configuration.
        for (edx, xcr0) in [(bf16 | int8, saved), (tile | bf16 | int8, 0), (tile | bf16 | int8, 1 << 17), (0, saved)] {
            assert_eq!(told(edx, xcr0), NONE);
        }
        if detected() == NONE {
            assert_eq!(has(), NONE);
        }
    }

    #[test]
    fn the_configuration_is_eight_full_tiles() {
        let c = config();
        assert!(c.0.as_ptr().addr().is_multiple_of(64));
        assert_eq!((c.0[0], &c.0[1..16]), (1, &[0; 15][..]));
        assert!(c.0[16..32].chunks(2).all(|b| b == [64, 0]) && c.0[32..48] == [0; 16]);
        assert!(c.0[48..56] == [16; 8] && c.0[56..] == [0; 8]);
    }

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
