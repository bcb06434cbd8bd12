//! What this CPU is: its extensions, caches and cores.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
pub mod cache;
pub mod topology;

/// Whether two 512-bit multiply-adds start each cycle, as many as loads: taken to be so of all x86 cores but AMD's up to Zen 4.
pub(crate) fn full_width() -> bool {
    // Asking is slow: a virtual machine's host answers.
    static FULL: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FULL.get_or_init(|| {
        let (vendor, family) = vendor_and_family();
        cfg!(target_arch = "x86_64") && starts_two(vendor, family)
    })
}

/// Whether a kernel that widens W for a sum across lanes takes longer to do so than the units take to multiply: Intel's cores with
/// two 512-bit units, which widen on one port that shuffles need as well.
pub(crate) fn widens_slowly() -> bool {
    static SLOWLY: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *SLOWLY.get_or_init(|| full_width() && vendor() == *b"GenuineIntel")
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

/// Who made this CPU.
pub(crate) fn vendor() -> [u8; 12] {
    vendor_and_family().0
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
    fn widths_of_described_cpus() {
        // Zen 4, Zen 5, Sapphire Rapids.
        let cpus = [(*b"AuthenticAMD", 25), (*b"AuthenticAMD", 26), (*b"GenuineIntel", 6)];
        assert_eq!(cpus.map(|(vendor, family)| starts_two(vendor, family)), [false, true, true]);
    }
}
