//! Intel's tile unit as this process may use it: what CPUID and the system say, the permission, and what a thread sets up.

use std::{arch::asm, sync::OnceLock};

/// What the CPU and the system let this process use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Has {
    pub bf16: bool,
    pub int8: bool,
}

const NONE: Has = Has { bf16: false, int8: false };

/// What there is. The permission is asked for at the first call, where the CPU has the unit; one that is refused is no unit.
pub(crate) fn has() -> Has {
    static HAS: OnceLock<Has> = OnceLock::new();
    *HAS.get_or_init(|| match detected() {
        NONE if emulated() => Has { bf16: true, int8: true },
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

/// Whether an emulator of the unit has been loaded before this program, as `tests/amx.sh` does. Releases do not ask.
fn emulated() -> bool {
    #[cfg(all(debug_assertions, target_os = "linux", not(target_feature = "crt-static")))]
    // SAFETY: a look-up of a name, which is a C string.
    let loaded = unsafe { !libc::dlsym(libc::RTLD_DEFAULT, c"ttft_emulated_tiles".as_ptr()).is_null() };
    #[cfg(not(all(debug_assertions, target_os = "linux", not(target_feature = "crt-static"))))]
    let loaded = false;
    loaded
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
pub(crate) const ROWS: u8 = 16;
pub(crate) const ROW: u16 = 64;

/// Palette 1: at byte 16 the bytes of a row of each tile, at 48 its rows.
#[repr(C, align(64))]
pub(crate) struct Config([u8; 64]);

const fn config() -> Config {
    let mut c = [0; 64];
    c[0] = 1;
    let (mut tile, [low, high]) = (0, ROW.to_le_bytes());
    while tile < 8 {
        (c[16 + 2 * tile], c[16 + 2 * tile + 1], c[48 + tile]) = (low, high, ROWS);
        tile += 1;
    }
    Config(c)
}

static CONFIG: Config = config();

impl Config {
    /// What `ldtilecfg` reads.
    pub(crate) fn address() -> *const u8 {
        CONFIG.0.as_ptr()
    }
}

/// Sets up the tiles of the calling thread.
///
/// # Panics
/// Where [`has`] finds no unit.
pub(crate) fn load() {
    assert!(has().bf16 || has().int8, "tiles are set up where there is a unit");
    // SAFETY: the unit and the permission are there, as asserted; the configuration is a valid one of 64 bytes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) Config::address(), options(nostack, preserves_flags)) }
}

/// Gives up the tiles of the calling thread, so that the system saves none of theirs for it.
///
/// # Panics
/// As [`load`].
pub(crate) fn release() {
    assert!(has().bf16 || has().int8, "tiles are released where there is a unit");
    // SAFETY: as in `load`; no tile holds anything that is read again.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags)) }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        if detected() == NONE && !emulated() {
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
}
