//! What this CPU is: instruction sets, and the ISA in force.

pub mod cache;
pub mod topology;

use crate::{Error, Result};

/// An instruction-set level. A level includes the kernels of the levels it builds on, where it has none of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, any CPU.
    Portable,
    /// x86-64 AVX2, FMA and F16C.
    Avx2,
    /// x86-64 AVX-512 F, BW, DQ, VL and CD.
    Avx512,
    /// [`Isa::Avx512`] with `vdpbf16ps`.
    Avx512Bf16,
    /// AArch64 Advanced SIMD.
    Neon,
    /// [`Isa::Neon`] with `BFMMLA` and `BFDOT` (Armv8.6, Apple M2 on).
    NeonBf16,
}

impl Isa {
    /// Every level of every architecture, weakest first.
    pub const ALL: [Isa; 6] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Neon, Isa::NeonBf16];

    /// The name that `--isa` and `TTFT_ISA` take.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Neon => "neon",
            Isa::NeonBf16 => "neonbf16",
        }
    }

    /// Whether this CPU has it.
    pub fn available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => pulp::x86::V3::is_available() && std::arch::is_x86_feature_detected!("f16c"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Isa::Avx2.available() && pulp::x86::V4::is_available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512.available() && std::arch::is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonBf16 => Isa::Neon.available() && std::arch::is_aarch64_feature_detected!("bf16"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The levels that this CPU has, weakest first.
    pub fn detected() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|i| i.available()).collect()
    }

    /// The level to take unless told otherwise: the strongest of this CPU, on Intel's up to [`Isa::Avx512`].
    pub fn best() -> Isa {
        choice(&Isa::detected(), vendor_and_family().0)
    }

    /// Parses a name; only levels of this CPU pass.
    ///
    /// # Errors
    /// [`Error::IsaUnknown`] or [`Error::IsaUnavailable`], both with the list of what this CPU has.
    pub fn parse(name: &str) -> Result<Isa> {
        let isa = Isa::ALL
            .into_iter()
            .find(|i| i.name().eq_ignore_ascii_case(name.trim()))
            .ok_or_else(|| Error::IsaUnknown { name: name.to_owned(), have: Isa::detected() })?;
        isa.check()
    }

    /// `Ok(self)` if this CPU has it.
    ///
    /// # Errors
    /// [`Error::IsaUnavailable`].
    pub fn check(self) -> Result<Isa> {
        if self.available() { Ok(self) } else { Err(Error::IsaUnavailable { wanted: self, have: Isa::detected() }) }
    }
}

/// The fastest of `levels`, weakest first. On Intel cores `vdpbf16ps` multiplies more slowly than FMA does after widening
/// (kernels/FIGURES.md, Emerald Rapids).
fn choice(levels: &[Isa], vendor: [u8; 12]) -> Isa {
    let fast = |i: Isa| i != Isa::Avx512Bf16 || vendor != *b"GenuineIntel";
    *levels.iter().rfind(|&&i| fast(i)).expect("the portable level is always there")
}

/// Whether two 512-bit multiply-adds start each cycle, as many as loads: taken to be so of all x86 cores but AMD's up to Zen 4.
pub(crate) fn full_width() -> bool {
    // Asking is slow: a virtual machine's host answers.
    static FULL: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FULL.get_or_init(|| {
        let (vendor, family) = vendor_and_family();
        cfg!(target_arch = "x86_64") && starts_two(vendor, family)
    })
}

/// [`full_width`] of an x86 core. Zen 4 is of family 25, Zen 5 of 26.
fn starts_two(vendor: [u8; 12], family: u32) -> bool {
    vendor != *b"AuthenticAMD" || family > 25
}

/// Who made this CPU, and its family, both as x86 CPUs tell them; others tell nothing.
fn vendor_and_family() -> ([u8; 12], u32) {
    #[cfg(target_arch = "x86_64")]
    {
        let (id, eax) = (std::arch::x86_64::__cpuid(0), std::arch::x86_64::__cpuid(1).eax);
        let vendor = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes);
        (*vendor.as_flattened().as_array().expect("three words"), (eax >> 8 & 15) + (eax >> 20 & 255))
    }
    #[cfg(not(target_arch = "x86_64"))]
    ([0; 12], 0)
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The instruction-set extensions of this CPU that kernels here or elsewhere use or could use, for the record.
pub fn features() -> Vec<&'static str> {
    let mut out = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! have {
            ($($f:tt),*) => { $(if std::arch::is_x86_feature_detected!($f) { out.push($f); })* };
        }
        have!(
            "sse4.2",
            "avx",
            "f16c",
            "fma",
            "avx2",
            "avxvnni",
            "avx512f",
            "avx512bw",
            "avx512cd",
            "avx512dq",
            "avx512vl",
            "avx512vnni",
            "avx512bf16",
            "avx512fp16",
            "avx512vbmi",
            "avx512vbmi2",
            "avx512ifma",
            "avx512bitalg",
            "avx512vpopcntdq"
        );
        // Detection of AMX is not stable in std: leaf 7, EDX.
        if std::arch::x86_64::__cpuid(0).eax >= 7 {
            let edx = std::arch::x86_64::__cpuid_count(7, 0).edx;
            let amx = [(22, "amx-bf16"), (24, "amx-tile"), (25, "amx-int8")];
            out.extend(amx.into_iter().filter(|(bit, _)| edx >> bit & 1 == 1).map(|(_, name)| name));
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! have {
            ($($f:tt),*) => { $(if std::arch::is_aarch64_feature_detected!($f) { out.push($f); })* };
        }
        have!("neon", "fp16", "fhm", "dotprod", "bf16", "i8mm", "sve", "sve2");
    }
    out
}

/// Asks the scheduler to run the calling thread on the fast cores: on macOS, by its class of service. Other systems have no
/// such request and need none.
pub(crate) fn prefer_fast_cores() {
    #[cfg(target_os = "macos")]
    // SAFETY: the call concerns the calling thread alone, and its arguments are constants that it knows. Refused, it leaves
    // the class as it was.
    unsafe {
        libc::pthread_set_qos_class_self_np(libc::qos_class_t::QOS_CLASS_USER_INITIATED, 0);
    }
}

/// An integer that macOS' `sysctl` gives under `name`.
#[cfg(target_os = "macos")]
fn sysctl(name: &str) -> Option<u64> {
    use sysctl::{CtlValue, Sysctl};
    match sysctl::Ctl::new(name).ok()?.value().ok()? {
        CtlValue::Int(n) | CtlValue::S32(n) => u64::try_from(n).ok(),
        CtlValue::Long(n) | CtlValue::S64(n) => u64::try_from(n).ok(),
        CtlValue::Uint(n) | CtlValue::U32(n) => Some(n.into()),
        CtlValue::Ulong(n) | CtlValue::U64(n) => Some(n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back_and_unknown_ones_list_what_there_is() {
        for isa in Isa::detected() {
            assert_eq!(Isa::parse(&isa.name().to_uppercase()).unwrap(), isa);
        }
        let missing: Vec<_> = Isa::ALL.into_iter().filter(|i| !i.available()).collect();
        for name in missing.iter().map(|i| i.name()).chain(["mmx"]) {
            let e = Isa::parse(name).unwrap_err().to_string();
            assert!(e.contains(name) && e.contains("portable"), "{e}");
        }
    }

    #[test]
    fn choices_for_described_cpus() {
        let x86 = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];
        let arm = [Isa::Portable, Isa::Neon, Isa::NeonBf16];
        assert_eq!(choice(&x86, *b"AuthenticAMD"), Isa::Avx512Bf16);
        assert_eq!(choice(&x86, *b"GenuineIntel"), Isa::Avx512);
        assert_eq!(choice(&x86[..2], *b"GenuineIntel"), Isa::Avx2);
        assert_eq!(choice(&arm, [0; 12]), Isa::NeonBf16);
        assert!(Isa::best().available());

        // Zen 4, Zen 5, Sapphire Rapids.
        let cpus = [(*b"AuthenticAMD", 25), (*b"AuthenticAMD", 26), (*b"GenuineIntel", 6)];
        assert_eq!(cpus.map(|(vendor, family)| starts_two(vendor, family)), [false, true, true]);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn features_agree_with_the_levels() {
        let f = features();
        assert_eq!(f.contains(&"avx2") && f.contains(&"fma") && f.contains(&"f16c"), Isa::Avx2.available());
        assert_eq!(f.contains(&"avx512bf16") && Isa::Avx512.available(), Isa::Avx512Bf16.available());
    }
}
