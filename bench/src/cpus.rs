//! The CPUs that this process may use, by their numbers.

use std::{fs, path::Path};

use ttft_kernels::cpu::topology::parse_list;

/// Where Linux describes its CPUs, below a root folder.
pub const FOLDER: &str = "sys/devices/system/cpu";

/// The CPUs that the system runs on; `root` is `/` but for described machines.
pub fn online(root: &Path) -> Option<Vec<usize>> {
    parse_list(&fs::read_to_string(root.join(FOLDER).join("online")).ok()?)
}

/// The CPUs that this process may use; none if the system does not tell.
pub fn usable(root: &Path) -> Vec<usize> {
    let online = online(root).unwrap_or_default();
    let status = fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    match status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).and_then(parse_list) {
        Some(allowed) => online.into_iter().filter(|cpu| allowed.contains(cpu)).collect(),
        None => online,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_mask_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(usable(dir.path()).is_empty());
        fs::create_dir_all(dir.path().join(FOLDER)).unwrap();
        fs::write(dir.path().join(FOLDER).join("online"), "0-3,8\n").unwrap();
        assert_eq!(usable(dir.path()), [0, 1, 2, 3, 8]);
        fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        fs::write(dir.path().join("proc/self/status"), "Name:\tx\nCpus_allowed_list:\t2-20\n").unwrap();
        assert_eq!(usable(dir.path()), [2, 3, 8]);
    }
}
