//! Sizes of the data caches.

/// Bytes of the data (or unified) caches that a core of the fastest class sees; `None` where the system does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caches {
    /// Level 1 data cache.
    pub l1d: Option<u64>,
    /// Level 2.
    pub l2: Option<u64>,
    /// Level 3, shared by the cores of its group.
    pub l3: Option<u64>,
}

/// The caches of this machine.
pub fn caches() -> Caches {
    os::caches()
}

#[cfg(target_os = "linux")]
mod os {
    use std::path::Path;

    use super::Caches;

    pub fn caches() -> Caches {
        // The fastest core has the largest private caches: take the largest of each level.
        let Ok(dir) = std::fs::read_dir("/sys/devices/system/cpu") else { return Caches::default() };
        let is_cpu = |n: &str| n.strip_prefix("cpu").is_some_and(|n| n.parse::<usize>().is_ok());
        dir.flatten()
            .filter(|e| e.file_name().to_str().is_some_and(is_cpu))
            .map(|e| of_cpu(&e.path()))
            .fold(Caches::default(), |a, b| Caches { l1d: a.l1d.max(b.l1d), l2: a.l2.max(b.l2), l3: a.l3.max(b.l3) })
    }

    /// The caches that `<cpu>/cache/index*` describe.
    pub(super) fn of_cpu(cpu: &Path) -> Caches {
        let mut out = Caches::default();
        for index in 0.. {
            let text = |f: &str| {
                let t = std::fs::read_to_string(cpu.join(format!("cache/index{index}/{f}"))).ok()?;
                Some(t.trim().to_owned())
            };
            let Some(level) = text("level") else { break };
            if text("type").is_some_and(|t| t == "Instruction") {
                continue;
            }
            let size = text("size").as_deref().and_then(bytes);
            match level.as_str() {
                "1" => out.l1d = size,
                "2" => out.l2 = size,
                "3" => out.l3 = size,
                _ => {}
            }
        }
        out
    }

    /// `32K`, `1024K`, `32M` or plain bytes; 0 is as good as unknown.
    pub(super) fn bytes(text: &str) -> Option<u64> {
        let (digits, unit) = match text.strip_suffix(['K', 'M', 'G']) {
            Some(digits) => (digits, [b'K', b'M', b'G'].iter().position(|u| text.as_bytes().last() == Some(u))? + 1),
            None => (text, 0),
        };
        digits.parse::<u64>().ok()?.checked_mul(1 << (10 * unit)).filter(|b| *b > 0)
    }
}

#[cfg(target_os = "macos")]
mod os {
    use super::Caches;
    use crate::cpu::sysctl;

    pub fn caches() -> Caches {
        let get = |names: [&str; 2]| names.into_iter().find_map(sysctl).filter(|b| *b > 0);
        Caches {
            l1d: get(["hw.perflevel0.l1dcachesize", "hw.l1dcachesize"]),
            l2: get(["hw.perflevel0.l2cachesize", "hw.l2cachesize"]),
            l3: get(["hw.perflevel0.l3cachesize", "hw.l3cachesize"]),
        }
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
mod os {
    pub fn caches() -> super::Caches {
        super::Caches::default()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [("32K", 32 << 10), ("1024K", 1 << 20), ("36M", 36 << 20), ("512", 512)] {
            assert_eq!(os::bytes(text), Some(want), "{text}");
        }
        for bad in ["", "K", "-1K", "0K", "1T", "99999999999999999G"] {
            assert_eq!(os::bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn caches_of_a_described_cpu() {
        let dir = std::env::temp_dir().join(format!("ttft-cache-{}", std::process::id()));
        let write = |index: usize, level: &str, kind: &str, size: &str| {
            let at = dir.join(format!("cache/index{index}"));
            std::fs::create_dir_all(&at).unwrap();
            for (f, text) in [("level", level), ("type", kind), ("size", size)] {
                std::fs::write(at.join(f), format!("{text}\n")).unwrap();
            }
        };
        write(0, "1", "Data", "48K");
        write(1, "1", "Instruction", "32K");
        write(2, "2", "Unified", "2M");
        assert_eq!(os::of_cpu(&dir), Caches { l1d: Some(48 << 10), l2: Some(2 << 20), l3: None });
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(os::of_cpu(&dir), Caches::default());
    }
}
