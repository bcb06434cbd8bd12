//! What this process takes of the machine.

/// What the system did to this process, all its threads together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Events {
    /// Page faults without reading from storage.
    pub minor_faults: u64,
    /// Page faults with it.
    pub major_faults: u64,
    /// Times that a thread had to leave its CPU to another program.
    pub involuntary_switches: u64,
}

impl Events {
    /// So far.
    #[cfg(unix)]
    pub fn now() -> Option<Events> {
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).ok()?;
        Some(Events {
            minor_faults: usage.minor_page_faults().try_into().ok()?,
            major_faults: usage.major_page_faults().try_into().ok()?,
            involuntary_switches: usage.involuntary_context_switches().try_into().ok()?,
        })
    }

    /// So far.
    #[cfg(not(unix))]
    pub fn now() -> Option<Events> {
        None
    }

    /// Each count of both, by `f`.
    pub fn with(self, other: Events, f: impl Fn(u64, u64) -> u64) -> Events {
        Events {
            minor_faults: f(self.minor_faults, other.minor_faults),
            major_faults: f(self.major_faults, other.major_faults),
            involuntary_switches: f(self.involuntary_switches, other.involuntary_switches),
        }
    }
}

/// A line of `/proc/self/status`, in bytes: `VmHWM` is the highest resident set, `RssAnon` the anonymous memory.
pub fn status_bytes(key: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes that this process has had read from storage so far, by all of its threads.
///
/// # Errors
/// Why that is unknown.
pub fn read_bytes() -> Result<u64, String> {
    const FILE: &str = "/proc/self/io";
    let text = std::fs::read_to_string(FILE).map_err(|e| format!("{FILE}: {e}"))?;
    let bytes = text.lines().find_map(|l| l.strip_prefix("read_bytes: ")?.parse().ok());
    bytes.ok_or_else(|| format!("{FILE}: no read_bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_is_seen() {
        let before = Events::now().unwrap();
        let page = std::hint::black_box(vec![1u8; 64 << 20]);
        let since = Events::now().unwrap().with(before, |now, then| now - then);
        assert!(since.minor_faults > 0 && since.major_faults < since.minor_faults);
        assert!(status_bytes("RssAnon").unwrap() >= page.len() as u64);
        assert!(status_bytes("VmHWM").unwrap() >= page.len() as u64);
        assert_eq!(status_bytes("Vm"), None);
    }
}
