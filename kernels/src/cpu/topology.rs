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

/// The CPUs that this process may use, in the order in which threads are bound to them: one of each core of the fastest class, then
/// their siblings, then the same of slower classes. Empty if the system does not tell.
pub fn cpus_by_speed() -> Vec<usize> {
    os::cpus_by_speed()
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
    use std::{collections::BTreeMap, path::Path};

    use super::{CoreClass, parse_list};

    /// The hardware threads of each core, by the core's list of them.
    type Cores = BTreeMap<String, Vec<usize>>;

    fn allowed() -> Option<Vec<usize>> {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).and_then(parse_list)
    }

    pub fn core_classes() -> Vec<CoreClass> {
        classes(Path::new("/sys/devices"), allowed().as_deref())
    }

    pub fn cpus_by_speed() -> Vec<usize> {
        by_speed(Path::new("/sys/devices"), allowed().as_deref())
    }

    pub(super) fn by_speed(sys: &Path, allowed: Option<&[usize]>) -> Vec<usize> {
        let (_, found) = ranked(sys, allowed);
        let of_class = |(_, cores): (usize, Cores)| {
            let mut cores: Vec<Vec<usize>> = cores.into_values().collect();
            cores.iter_mut().for_each(|threads| threads.sort_unstable());
            cores.sort_unstable();
            let most = cores.iter().map(Vec::len).max().unwrap_or(0);
            (0..most)
                .flat_map(|i| cores.iter().filter_map(|c| c.get(i).copied()).collect::<Vec<_>>())
                .collect::<Vec<_>>()
        };
        found.into_iter().flat_map(of_class).collect()
    }

    /// Cores whose rank is at least nine tenths of the fastest of their class are of it: cores that differ in their highest
    /// clock alone are equal in all that a program notices, and no two kinds of cores come this close. The fastest come first.
    fn alike(found: BTreeMap<usize, Cores>) -> Vec<(usize, Cores)> {
        let mut classes: Vec<(usize, Cores)> = Vec::new();
        for (rank, cores) in found.into_iter().rev() {
            match classes.last_mut() {
                Some((fastest, class)) if rank > 1 && 10 * rank >= 9 * *fastest => class.extend(cores),
                _ => classes.push((rank, cores)),
            }
        }
        classes
    }

    /// The cores of each class that a `/sys/devices` tree describes, of the `allowed` CPUs (all if unknown), the fastest first; and
    /// whether the classes have names.
    fn ranked(sys: &Path, allowed: Option<&[usize]>) -> (bool, Vec<(usize, Cores)>) {
        let text = |p: &str| std::fs::read_to_string(sys.join(p)).ok();
        let list = |p: &str| text(p).as_deref().and_then(parse_list);
        let Some(online) = list("system/cpu/online") else { return (false, Vec::new()) };
        // Intel hybrids name their classes; elsewhere `cpu_capacity` ranks cores.
        let hybrid = list("cpu_core/cpus").zip(list("cpu_atom/cpus"));
        let mut found: BTreeMap<usize, Cores> = BTreeMap::new();
        for cpu in online.into_iter().filter(|c| allowed.is_none_or(|a| a.contains(c))) {
            let at = |f: &str| text(&format!("system/cpu/cpu{cpu}/{f}")).map(|t| t.trim().to_owned());
            let rank = match &hybrid {
                Some((core, _)) => usize::from(core.contains(&cpu)),
                None => at("cpu_capacity").and_then(|c| c.parse().ok()).unwrap_or(1024),
            };
            let core = at("topology/core_cpus_list").or_else(|| at("topology/thread_siblings_list"));
            found.entry(rank).or_default().entry(core.unwrap_or_else(|| cpu.to_string())).or_default().push(cpu);
        }
        (hybrid.is_some(), alike(found))
    }

    /// The classes that a `/sys/devices` tree describes, of the `allowed` CPUs (all if unknown).
    pub(super) fn classes(sys: &Path, allowed: Option<&[usize]>) -> Vec<CoreClass> {
        let (hybrid, found) = ranked(sys, allowed);
        let alone = found.len() == 1;
        let name = |rank| match (hybrid, rank) {
            (true, 0) => "efficiency".to_owned(),
            (true, _) => "performance".to_owned(),
            (false, _) if alone => "performance".to_owned(),
            (false, capacity) => format!("capacity-{capacity}"),
        };
        let class = |(rank, cores): (usize, Cores)| CoreClass {
            name: name(rank),
            physical: cores.len(),
            logical: cores.values().map(Vec::len).sum(),
        };
        found.into_iter().map(class).collect()
    }
}

#[cfg(target_os = "macos")]
mod os {
    use super::CoreClass;
    use crate::cpu::sysctl;

    /// The system binds no thread to a CPU.
    pub fn cpus_by_speed() -> Vec<usize> {
        Vec::new()
    }

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

    pub fn cpus_by_speed() -> Vec<usize> {
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
        assert_eq!(os::by_speed(&intel, None), [0, 2, 1, 3, 4, 5, 6, 7], "cores, then siblings, then slower cores");
        assert_eq!(os::by_speed(&intel, Some(&[1, 3, 2, 6])), [1, 2, 3, 6]);
        // Arm: capacities, no thread lists.
        write("arm/system/cpu/online".into(), "0-2\n".into());
        for (cpu, capacity) in [446, 446, 1024].into_iter().enumerate() {
            write(format!("arm/system/cpu/cpu{cpu}/cpu_capacity"), format!("{capacity}\n"));
        }
        let arm = dir.join("arm");
        assert_eq!(os::classes(&arm, None), [class("capacity-1024", 1, 1), class("capacity-446", 2, 2)]);
        assert_eq!(os::classes(&arm, Some(&[0])), [class("performance", 1, 1)]);
        assert_eq!(os::by_speed(&arm, None), [2, 0, 1]);
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
        assert_eq!(os::by_speed(&dir.join("none"), None), [0; 0]);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
