//! Cores and their classes.

/// Cores of one kind: fast or slow ones of a hybrid CPU, or all of any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreClass {
    /// `performance`, `efficiency`, or `capacity-<n>` (relative speed of 1024) where the system gives more than a name.
    pub name: String,
    /// Physical cores that this process may use.
    pub physical: usize,
    /// Hardware threads of them.
    pub logical: usize,
}

/// The classes of cores that this process may use, the fastest first; empty if the system does not tell.
pub fn core_classes() -> Vec<CoreClass> {
    os::core_classes()
}

/// Physical cores of the fastest class, as far as affinity and quota of the process allow.
pub fn performance_cores() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    core_classes().first().map_or(allowed, |c| c.physical.clamp(1, allowed))
}

/// As [`core_classes`], of the machine that a Linux tree `/sys/devices` describes and of the `allowed` CPUs (all if unknown).
#[cfg(target_os = "linux")]
pub fn core_classes_under(devices: &std::path::Path, allowed: Option<&[usize]>) -> Vec<CoreClass> {
    os::classes(devices, allowed)
}

/// The physical or logical CPUs of a Linux list such as `0-3,8,10-11`; `None` if it is no such list.
pub fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut out = Vec::new();
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        let (a, b) = (a.parse::<usize>().ok()?, b.parse::<usize>().ok()?);
        // A list longer than any machine is a misread file.
        if a > b || b > 1 << 16 {
            return None;
        }
        out.extend(a..=b);
    }
    Some(out)
}

#[cfg(target_os = "linux")]
mod os {
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::Path,
    };

    use super::{CoreClass, parse_list};

    pub fn core_classes() -> Vec<CoreClass> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).and_then(parse_list);
        classes(Path::new("/sys/devices"), allowed.as_deref())
    }

    /// Cores whose rank is at least nine tenths of the fastest of their class are of it: cores that differ in their highest
    /// clock alone are equal in all that a program notices, and no two kinds of cores come this close.
    fn alike<T>(found: BTreeMap<usize, (BTreeSet<T>, usize)>) -> BTreeMap<usize, (BTreeSet<T>, usize)>
    where
        T: Ord,
    {
        let mut classes: Vec<(usize, (BTreeSet<T>, usize))> = Vec::new();
        for (rank, (cores, logical)) in found.into_iter().rev() {
            match classes.last_mut() {
                Some((fastest, class)) if rank > 1 && 10 * rank >= 9 * *fastest => {
                    class.0.extend(cores);
                    class.1 += logical;
                }
                _ => classes.push((rank, (cores, logical))),
            }
        }
        classes.into_iter().collect()
    }

    /// The classes that a `/sys/devices` tree describes, of the `allowed` CPUs (all if unknown).
    pub(super) fn classes(sys: &Path, allowed: Option<&[usize]>) -> Vec<CoreClass> {
        let text = |p: &str| std::fs::read_to_string(sys.join(p)).ok();
        let list = |p: &str| text(p).as_deref().and_then(parse_list);
        let Some(online) = list("system/cpu/online") else { return Vec::new() };
        // Intel hybrids name their classes; elsewhere `cpu_capacity` ranks cores.
        let hybrid = list("cpu_core/cpus").zip(list("cpu_atom/cpus"));
        // Rank (higher is faster) -> physical cores, each the list of its hardware threads; and hardware threads.
        let mut found: BTreeMap<usize, (BTreeSet<String>, usize)> = BTreeMap::new();
        for cpu in online.into_iter().filter(|c| allowed.is_none_or(|a| a.contains(c))) {
            let at = |f: &str| text(&format!("system/cpu/cpu{cpu}/{f}")).map(|t| t.trim().to_owned());
            let rank = match &hybrid {
                Some((core, _)) => usize::from(core.contains(&cpu)),
                None => at("cpu_capacity").and_then(|c| c.parse().ok()).unwrap_or(1024),
            };
            let core = at("topology/core_cpus_list").or_else(|| at("topology/thread_siblings_list"));
            let class = found.entry(rank).or_default();
            class.0.insert(core.unwrap_or_else(|| cpu.to_string()));
            class.1 += 1;
        }
        let found = alike(found);
        let alone = found.len() == 1;
        let name = |rank| match (&hybrid, rank) {
            (Some(_), 0) => "efficiency".to_owned(),
            (Some(_), _) => "performance".to_owned(),
            (None, _) if alone => "performance".to_owned(),
            (None, capacity) => format!("capacity-{capacity}"),
        };
        let class = |(rank, (cores, logical)): (usize, (BTreeSet<String>, usize))| CoreClass {
            name: name(rank),
            physical: cores.len(),
            logical,
        };
        found.into_iter().rev().map(class).collect()
    }
}

#[cfg(target_os = "macos")]
mod os {
    use super::CoreClass;
    use crate::cpu::sysctl;

    pub fn core_classes() -> Vec<CoreClass> {
        // Level 0 is the fastest. Intel machines have no levels.
        let levels = sysctl("hw.nperflevels").unwrap_or(0);
        let level = |i| {
            let get = |what| sysctl(&format!("hw.perflevel{i}.{what}")).and_then(|n| usize::try_from(n).ok());
            let name = if i == 0 { "performance" } else { "efficiency" };
            Some(CoreClass { name: name.to_owned(), physical: get("physicalcpu")?, logical: get("logicalcpu")? })
        };
        let classes: Vec<_> = (0..levels).filter_map(level).collect();
        if !classes.is_empty() {
            return classes;
        }
        let count = |name| sysctl(name).and_then(|n| usize::try_from(n).ok());
        count("hw.physicalcpu")
            .zip(count("hw.logicalcpu"))
            .map(|(physical, logical)| CoreClass { name: "performance".to_owned(), physical, logical })
            .into_iter()
            .collect()
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
mod os {
    pub fn core_classes() -> Vec<super::CoreClass> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(parse_list("0-3,8,10-11\n"), Some(vec![0, 1, 2, 3, 8, 10, 11]));
        assert_eq!(parse_list("\n"), Some(vec![]));
        for bad in ["x", "3-1", "1-", "0-99999999"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
    }

    #[test]
    fn some_core_to_run_on() {
        let n = performance_cores();
        assert!(n >= 1 && n <= std::thread::available_parallelism().unwrap().get());
        assert!(core_classes().iter().all(|c| c.physical >= 1 && c.logical >= c.physical));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn classes_of_described_machines() {
        let class = |name: &str, physical, logical| CoreClass { name: name.to_owned(), physical, logical };
        let dir = std::env::temp_dir().join(format!("ttft-topology-{}", std::process::id()));
        let write = |path: String, text: String| {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        // Intel hybrid: two performance cores of two threads (0-3), four efficiency cores (4-7).
        write("intel/system/cpu/online".into(), "0-7\n".into());
        write("intel/cpu_core/cpus".into(), "0-3\n".into());
        write("intel/cpu_atom/cpus".into(), "4-7\n".into());
        for cpu in 0..8 {
            let core = if cpu < 4 { format!("{}-{}\n", cpu & !1, cpu | 1) } else { format!("{cpu}\n") };
            write(format!("intel/system/cpu/cpu{cpu}/topology/core_cpus_list"), core);
        }
        let intel = dir.join("intel");
        assert_eq!(os::classes(&intel, None), [class("performance", 2, 4), class("efficiency", 4, 4)]);
        assert_eq!(os::classes(&intel, Some(&[0, 1, 5])), [class("performance", 1, 2), class("efficiency", 1, 1)]);
        // Arm: capacities, no thread lists.
        write("arm/system/cpu/online".into(), "0-2\n".into());
        for (cpu, capacity) in [446, 446, 1024].into_iter().enumerate() {
            write(format!("arm/system/cpu/cpu{cpu}/cpu_capacity"), format!("{capacity}\n"));
        }
        let arm = dir.join("arm");
        assert_eq!(os::classes(&arm, None), [class("capacity-1024", 1, 1), class("capacity-446", 2, 2)]);
        assert_eq!(os::classes(&arm, Some(&[0])), [class("performance", 1, 1)]);
        // Two cores that boost higher, as favoured cores do: one class. Three kinds: three.
        for (name, capacities, expected) in [
            ("boost", vec![1024, 1009, 980, 980], vec![class("performance", 4, 4)]),
            ("boost-and-little", vec![1024, 980, 446], vec![class("capacity-1024", 2, 2), class("capacity-446", 1, 1)]),
            (
                "three",
                vec![1024, 870, 870, 325],
                vec![class("capacity-1024", 1, 1), class("capacity-870", 2, 2), class("capacity-325", 1, 1)],
            ),
        ] {
            write(format!("{name}/system/cpu/online"), format!("0-{}\n", capacities.len() - 1));
            for (cpu, capacity) in capacities.iter().enumerate() {
                write(format!("{name}/system/cpu/cpu{cpu}/cpu_capacity"), format!("{capacity}\n"));
            }
            assert_eq!(os::classes(&dir.join(name), None), expected, "{name}");
        }
        assert_eq!(os::classes(&dir.join("none"), None), []);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
