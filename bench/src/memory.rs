//! Memory as this process may use it: what the system has, less what a limit on one of its control groups or on its address
//! space takes away.
//!
//! Unknown is `None`.

use std::{collections::HashMap, fs, path::Path, sync::OnceLock};

use crate::groups::{self, Place};

/// A limit, and what could be taken under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes in all.
    pub limit: u64,
    /// Bytes that could be taken now.
    pub available: u64,
}

impl Allowance {
    /// What two limits leave together.
    fn and(self, other: Allowance) -> Allowance {
        Allowance { limit: self.limit.min(other.limit), available: self.available.min(other.available) }
    }
}

/// What all limits on this process leave; `None` if there are none.
pub fn allowance() -> Option<Allowance> {
    control_groups().into_iter().chain(address_space()).reduce(Allowance::and)
}

/// What the limits on this process's control groups leave.
fn control_groups() -> Option<Allowance> {
    groups::limiting("memory", Path::new("/")).iter().filter_map(left).reduce(Allowance::and)
}

/// What a group and all groups above it leave.
fn left(place: &Place) -> Option<Allowance> {
    place.groups().filter_map(|dir| left_by(place.version, dir)).reduce(Allowance::and)
}

/// What one group leaves. Pages of files count as used and can be had: the system gives them up when memory is asked for.
fn left_by(version: u8, dir: &Path) -> Option<Allowance> {
    let text = |file: &str| fs::read_to_string(dir.join(file)).ok();
    let number = |file: &str| text(file)?.trim().parse::<u64>().ok();
    let stat: HashMap<String, u64> = text("memory.stat").map(|t| statistics(&t)).unwrap_or_default();
    let sum = |keys: &[&str]| keys.iter().filter_map(|k| stat.get(*k)).fold(0, |a: u64, b| a.saturating_add(*b));
    let (limits, used, files) = if version == 2 {
        let files = sum(&["active_file", "inactive_file", "slab_reclaimable"]);
        ([number("memory.max"), number("memory.high")], number("memory.current"), files)
    } else {
        // The second holds for groups above that this process does not see.
        let limits = [number("memory.limit_in_bytes"), stat.get("hierarchical_memory_limit").copied()];
        (limits, number("memory.usage_in_bytes"), sum(&["total_active_file", "total_inactive_file"]))
    };
    // Without a limit the first version says the largest number that it can count, in pages.
    let limit = limits.into_iter().flatten().filter(|limit| *limit < 1 << 60).min()?;
    let used = used?.saturating_sub(files);
    Some(Allowance { limit, available: limit.saturating_sub(used) })
}

/// Lines of `name number`.
fn statistics(text: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let (name, number) = line.split_once(' ')?;
        Some((name.to_owned(), number.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// What a limit on address space leaves beside what the program itself took at its start. Mapped weights take address space
/// too, and whoever asks counts them among what it needs.
#[cfg(unix)]
fn address_space() -> Option<Allowance> {
    use nix::sys::resource::{Resource, getrlimit};
    static AT_START: OnceLock<u64> = OnceLock::new();
    let (limit, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    if limit >= 1 << 60 {
        return None;
    }
    let taken = *AT_START.get_or_init(|| crate::process::status_bytes("VmSize").unwrap_or(0));
    Some(Allowance { limit, available: limit.saturating_sub(taken) })
}

#[cfg(not(unix))]
fn address_space() -> Option<Allowance> {
    None
}

/// Whether two sizes of memory may be those of one machine: what a kernel keeps for itself differs from start to start.
pub fn about_equal(a: Option<u64>, b: Option<u64>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.abs_diff(b) <= a.max(b) / 20,
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A described tree: files of groups by path.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn allowance(version: u8, dir: &Path, group: &str) -> Option<(u64, u64)> {
        let place = Place { version, top: dir.into(), group: dir.join(group) };
        left(&place).map(|a| (a.limit / MIB, a.available / MIB))
    }

    #[test]
    fn the_tightest_limit_of_all_groups_counts_and_file_pages_can_be_had() {
        let mib = |n: u64| format!("{}\n", n * MIB);
        let stat =
            |file: u64| format!("anon 1\nactive_file {}\ninactive_file {}\nshmem 99\n", file * MIB / 2, file * MIB / 2);
        let dir = tree(&[
            ("memory.max", &mib(4096)),
            ("memory.current", &mib(1000)),
            ("memory.stat", &stat(0)),
            ("a/memory.max", &mib(1400)),
            ("a/memory.current", &mib(1000)),
            ("a/memory.stat", &stat(900)),
            ("a/b/memory.max", "max\n"),
            ("a/b/memory.current", &mib(10)),
            ("a/b/c/memory.high", &mib(500)),
            ("a/b/c/memory.max", "max\n"),
            ("a/b/c/memory.current", &mib(600)),
        ]);
        let of = |group: &str| allowance(2, dir.path(), group);
        assert_eq!(of("a"), Some((1400, 1300)));
        assert_eq!(of("a/b"), Some((1400, 1300)), "a group without a limit has that of the group above it");
        assert_eq!(of("a/b/c"), Some((500, 0)), "what is over its limit can take nothing");
        assert_eq!(of("x"), Some((4096, 3096)), "a group that is not there");
        assert_eq!(allowance(2, &dir.path().join("none"), ""), None);
    }

    #[test]
    fn limits_of_the_first_version() {
        let none = "9223372036854771712\n";
        let mib = |n: u64| format!("{}\n", n * MIB);
        let stat = format!(
            "hierarchical_memory_limit {}\ntotal_active_file {}\ntotal_inactive_file {}\ntotal_cache 5\n",
            800 * MIB,
            100 * MIB,
            50 * MIB
        );
        let dir = tree(&[
            ("memory.limit_in_bytes", none),
            ("memory.usage_in_bytes", &mib(9000)),
            ("a/memory.limit_in_bytes", &mib(1536)),
            ("a/memory.usage_in_bytes", &mib(36)),
            ("seen/memory.limit_in_bytes", none),
            ("seen/memory.usage_in_bytes", &mib(300)),
            ("seen/memory.stat", &stat),
        ]);
        let of = |group: &str| allowance(1, dir.path(), group);
        assert_eq!(of(""), None);
        assert_eq!(of("a"), Some((1536, 1500)));
        assert_eq!(of("seen"), Some((800, 650)), "the limit of a group that is not seen");
    }

    #[test]
    fn a_reboot_changes_some_pages() {
        let gib = |n: f64| Some((n * 1e9) as u64);
        assert!(about_equal(gib(16.0), gib(15.8)) && about_equal(gib(15.8), gib(16.0)));
        assert!(!about_equal(gib(16.0), gib(32.0)) && !about_equal(gib(16.0), gib(15.0)));
        assert!(about_equal(None, None) && !about_equal(None, gib(16.0)));
    }
}
