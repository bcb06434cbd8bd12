//! What this process takes of the machine.

/// Minor and major page faults of this process so far.
#[cfg(unix)]
pub fn faults() -> Option<(u64, u64)> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).ok()?;
    Some((usage.minor_page_faults().try_into().ok()?, usage.major_page_faults().try_into().ok()?))
}

/// Minor and major page faults of this process so far.
#[cfg(not(unix))]
pub fn faults() -> Option<(u64, u64)> {
    None
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
        let before = faults().unwrap();
        let page = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(faults().unwrap().0 > before.0);
        assert!(status_bytes("RssAnon").unwrap() >= page.len() as u64);
        assert!(status_bytes("VmHWM").unwrap() >= page.len() as u64);
        assert_eq!(status_bytes("Vm"), None);
    }
}
