//! The checks of Linux, out of `/proc` and `/sys`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use ttft_kernels::cpu::topology;

use super::{Check, counted};
use crate::{
    cpus::{self, FOLDER as CPUS},
    groups, machine,
};

/// CPUs that other programs keep busy, beyond which a measurement is disturbed: more than a quiet system needs for itself.
const BUSY: f64 = 0.1;

/// The folders `proc` and `sys` of a machine: of this one, or of one that a test describes.
pub(super) struct Tree {
    root: PathBuf,
}

impl Tree {
    pub fn of_this_machine() -> Tree {
        Tree { root: "/".into() }
    }

    /// Every check. The load is watched for as long as `watch`.
    pub fn checks(&self, watch: Duration) -> Vec<Check> {
        let before = self.read("proc/stat");
        thread::sleep(watch);
        let times = before.zip(self.read("proc/stat"));
        let times = times.as_ref().map(|(before, after)| (before.as_str(), after.as_str()));
        vec![
            self.processors(),
            self.quota(),
            self.load(times),
            self.governor(),
            self.clock_limit(),
            self.throttling(),
            self.core_classes(),
            self.siblings(),
            self.virtual_machine(times),
            self.huge_pages(),
            self.swap(),
            self.power(),
        ]
    }

    fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?.trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    fn number(&self, path: impl AsRef<Path>) -> Option<f64> {
        self.read(path)?.parse().ok().filter(|n: &f64| n.is_finite())
    }

    fn of_cpu(&self, cpu: usize, file: &str) -> Option<String> {
        self.read(format!("{CPUS}/cpu{cpu}/{file}"))
    }

    /// The names in a folder; None if there is no such folder.
    fn entries(&self, path: &str) -> Option<Vec<String>> {
        let entries = fs::read_dir(self.root.join(path)).ok()?;
        Some(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
    }

    fn online(&self) -> Option<Vec<usize>> {
        cpus::online(&self.root)
    }

    fn usable(&self) -> Vec<usize> {
        cpus::usable(&self.root)
    }

    fn processors(&self) -> Check {
        let (usable, online) = (self.usable().len(), self.online().map_or(0, |o| o.len()));
        match (usable, online) {
            (0, _) => Check::unknown("CPUs", "the system does not list its CPUs", "Make /proc and /sys visible."),
            (usable, online) if usable < online => Check::warning(
                "CPUs",
                format!("this process may use {usable} of {}", counted(online, "CPU")),
                "What runs on the other CPUs shares the caches, the memory and the power with the measurement: measure when \
                 they are idle, or ask the scheduler for the whole machine.",
            ),
            (usable, _) => Check::ok(
                "CPUs",
                format!(
                    "this process may use {}",
                    if usable == 1 { "the only CPU".into() } else { format!("all {usable} CPUs") }
                ),
            ),
        }
    }

    /// Processor time that control groups allow, in CPUs, and how often they stopped this group.
    fn quota(&self) -> Check {
        let places = groups::limiting("cpu", &self.root);
        let mut least: Option<f64> = None;
        let mut stopped = None;
        for (version, group) in places.iter().flat_map(|p| p.groups().map(|g| (p.version, g))) {
            let text = |file: &str| fs::read_to_string(group.join(file)).ok();
            let limit = if version == 2 {
                text("cpu.max").and_then(|t| share(t.split_whitespace()))
            } else {
                let quota = text("cpu.cfs_quota_us").zip(text("cpu.cfs_period_us"));
                quota.and_then(|(quota, period)| share([quota.trim(), period.trim()].into_iter()))
            };
            least = least.into_iter().chain(limit).reduce(f64::min);
            let times = text("cpu.stat")
                .and_then(|t| t.lines().find_map(|l| l.strip_prefix("nr_throttled ")?.parse::<u64>().ok()));
            stopped = stopped.into_iter().chain(times).max();
        }
        let cpus = self.usable().len();
        match least {
            _ if places.is_empty() => Check::unknown(
                "CPU quota",
                "no control group of this process is visible",
                "Ask whoever runs the container for its quota.",
            ),
            Some(limit) if cpus == 0 || limit < cpus as f64 => {
                let stopped = stopped
                    .filter(|n| *n > 0)
                    .map_or(String::new(), |n| format!("; the group was stopped {n} times so far"));
                Check::warning(
                    "CPU quota",
                    format!("the control group allows the time of {limit:.2} CPUs{stopped}"),
                    "Every thread stops when the time of a period is used up, so times come in steps. Give the container a set \
                     of CPUs instead of a quota (docker run --cpuset-cpus), or set TTFT_THREADS to fewer threads than the quota.",
                )
            }
            _ => Check::ok("CPU quota", "no control group limits the processor time below that of the CPUs"),
        }
    }

    fn load(&self, times: Option<(&str, &str)>) -> Check {
        let usable = self.usable();
        let advice = "Close other programs, and wait until what is running in the background has ended.";
        if let Some(used) = times.and_then(|(before, after)| used(before, after, &usable)) {
            let found = format!("other programs kept {:.2} of {} busy", used.busy, counted(usable.len(), "CPU"));
            return if used.busy > BUSY { Check::warning("load", found, advice) } else { Check::ok("load", found) };
        }
        // The system counts what runs on all of its CPUs.
        let whole = self.online().is_some_and(|online| online.len() == usable.len());
        let load =
            self.read("proc/loadavg").and_then(|t| t.split_whitespace().next()?.parse::<f64>().ok()).filter(|_| whole);
        match load {
            Some(load) if load > 0.5 => {
                Check::warning("load", format!("{load:.2} programs were running during the last minute"), advice)
            }
            Some(load) => Check::ok("load", format!("{load:.2} programs were running during the last minute")),
            None => Check::unknown("load", "the system does not tell what runs on these CPUs", advice),
        }
    }

    fn governor(&self) -> Check {
        let mut found = BTreeSet::new();
        let mut slow = false;
        for cpu in self.usable() {
            let Some(governor) = self.of_cpu(cpu, "cpufreq/scaling_governor") else { continue };
            // Drivers that leave the clock to the processor have two governors, and a preference that says how eager it is.
            let preference = self.of_cpu(cpu, "cpufreq/energy_performance_preference");
            slow |= match (governor.as_str(), preference.as_deref()) {
                ("performance", _) => false,
                ("powersave", Some(preference)) => {
                    preference.contains("power") || preference.parse::<u8>().is_ok_and(|n| n > 128)
                }
                _ => true,
            };
            found.insert(match preference.filter(|_| governor != "performance") {
                Some(preference) => format!("{governor} with the preference {preference}"),
                None => governor,
            });
        }
        let words = found.into_iter().collect::<Vec<_>>().join(", ");
        let advice = "The clock follows the load, so the first rounds are slower than the others. Until the next start: \
                      echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor";
        match (words.is_empty(), slow) {
            (true, _) => Check::unknown(
                "governor",
                "the system does not tell how the clock is set",
                "On a virtual machine the host sets the clock: measure several processes (ttft bench), and at different times.",
            ),
            (_, true) => Check::warning("governor", words, advice),
            (_, false) => Check::ok("governor", words),
        }
    }

    fn clock_limit(&self) -> Check {
        let clocks = |cpu: usize| {
            let mhz = |file: &str| {
                Some(self.number(format!("{CPUS}/cpu{cpu}/cpufreq/{file}"))? / 1000.0).filter(|f| *f > 0.0)
            };
            Some((mhz("scaling_max_freq")?, mhz("cpuinfo_max_freq")?))
        };
        let clocks: Vec<(f64, f64)> = self.usable().into_iter().filter_map(clocks).collect();
        let limited = clocks.iter().min_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let turbo_off = self.read(format!("{CPUS}/intel_pstate/no_turbo")).is_some_and(|t| t == "1")
            || self.read(format!("{CPUS}/cpufreq/boost")).is_some_and(|t| t == "0");
        match limited {
            None => Check::unknown("clock limit", "the system does not tell its clocks", "Nothing needs to be done."),
            Some((limit, highest)) if limit / highest < 0.97 => Check::warning(
                "clock limit",
                format!("the clock is limited to {limit:.0} of {highest:.0} MHz"),
                "The figures are those of a slower machine. Lift the limit: sudo cpupower frequency-set --max with the higher clock.",
            ),
            Some((_, highest)) => {
                let boost = if turbo_off { "; boosting is switched off, which keeps it steady" } else { "" };
                Check::ok("clock limit", format!("the clock may reach {highest:.0} MHz{boost}"))
            }
        }
    }

    fn throttling(&self) -> Check {
        let count = |cpu: usize| {
            let of = |file: &str| self.of_cpu(cpu, &format!("thermal_throttle/{file}"))?.parse::<u64>().ok();
            of("core_throttle_count").into_iter().chain(of("package_throttle_count")).max()
        };
        match self.usable().into_iter().filter_map(count).max() {
            None => Check::unknown(
                "heat",
                "this CPU has no counters of throttling",
                "Watch the drift that every report prints: a machine that grows hot becomes slower within a run.",
            ),
            Some(0) => Check::ok("heat", "heat has not slowed the clock since the system started"),
            Some(n) => Check::warning(
                "heat",
                format!("heat slowed the clock {n} times since the system started"),
                "Look at the count again after a run. If it grows, give the machine air, or pause between runs.",
            ),
        }
    }

    fn core_classes(&self) -> Check {
        let usable = self.usable();
        let classes = topology::core_classes_under(&self.root.join("sys/devices"), Some(&usable));
        let words: Vec<String> =
            classes.iter().map(|c| format!("{} {}", counted(c.physical, "core"), c.name)).collect();
        match classes.as_slice() {
            [] => Check::unknown("kinds of cores", "the system does not describe its cores", "Make /sys visible."),
            [one] => Check::ok("kinds of cores", format!("{} of one kind", counted(one.physical, "core"))),
            [fast, ..] => Check::warning(
                "kinds of cores",
                words.join(", "),
                &format!(
                    "ttft takes {} by default, but the system may move one to a slow core. Keep them on the fast ones: \
                     taskset --cpu-list {} ttft bench …",
                    counted(fast.physical, "thread"),
                    self.fast_cpus(&usable),
                ),
            ),
        }
    }

    /// The CPUs of the fastest class, as a list.
    fn fast_cpus(&self, usable: &[usize]) -> String {
        let capacity = |cpu: usize| self.number(format!("{CPUS}/cpu{cpu}/cpu_capacity"));
        let highest = usable.iter().filter_map(|c| capacity(*c)).fold(0.0, f64::max);
        let named = self.read("sys/devices/cpu_core/cpus").and_then(|list| topology::parse_list(&list));
        let fast = |cpu: usize| match &named {
            Some(named) => named.contains(&cpu),
            None => capacity(cpu).is_none_or(|c| 10.0 * c >= 9.0 * highest),
        };
        usable.iter().filter(|c| fast(**c)).map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    fn siblings(&self) -> Check {
        let threads = |cpu: usize| {
            let list = self
                .of_cpu(cpu, "topology/core_cpus_list")
                .or_else(|| self.of_cpu(cpu, "topology/thread_siblings_list"))?;
            Some(topology::parse_list(&list)?.len())
        };
        match self.usable().into_iter().filter_map(threads).max() {
            None => Check::unknown(
                "SMT siblings",
                "the system does not tell which threads share a core",
                "Make /sys visible.",
            ),
            Some(0 | 1) if machine::virtualised(|path| self.read(path)) == Some(true) => Check::unknown(
                "SMT siblings",
                "the virtual machine shows one thread on each core, and the host may run another beside it",
                "Rent a machine with dedicated cores, or measure at different times.",
            ),
            Some(0 | 1) => Check::ok("SMT siblings", "each core runs one hardware thread"),
            Some(n) => Check::warning(
                "SMT siblings",
                format!("each core runs {n} hardware threads"),
                "ttft takes one thread for each core; what runs on the others takes a part of the core. Close other programs, or \
                 switch the siblings off until the next start: echo off | sudo tee /sys/devices/system/cpu/smt/control",
            ),
        }
    }

    fn virtual_machine(&self, times: Option<(&str, &str)>) -> Check {
        let stolen = times
            .and_then(|(before, after)| used(before, after, &self.usable()))
            .map(|u| u.stolen)
            .filter(|s| *s > 0.005);
        let stolen = stolen
            .map_or(String::new(), |s| format!(", and the host took away {:.1}% of its time just now", 100.0 * s));
        match machine::virtualised(|path| self.read(path)) {
            None => Check::unknown(
                "virtual machine",
                "the system does not tell whether it is a virtual machine",
                "Nothing needs to be done.",
            ),
            Some(false) => Check::ok("virtual machine", "the system runs on the hardware itself"),
            Some(true) => Check::warning(
                "virtual machine",
                format!("this is a virtual machine{stolen}"),
                "Others on its host change its speed. Measure several records at different times, and run ttft calibrate once, \
                 which measures how much the figures vary.",
            ),
        }
    }

    fn huge_pages(&self) -> Check {
        let setting = self.read("sys/kernel/mm/transparent_hugepage/enabled");
        let chosen = setting.as_deref().and_then(|t| t.split_once('[')?.1.split_once(']')).map(|(chosen, _)| chosen);
        match chosen {
            None => Check::unknown(
                "huge pages",
                "the system does not tell whether it gives huge pages",
                "Nothing needs to be done.",
            ),
            Some("never") => Check::warning(
                "huge pages",
                "transparent huge pages are switched off",
                "Reading large matrices takes more address translations, which costs time. Until the next start: \
                 echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
            ),
            Some(chosen) => Check::ok("huge pages", format!("transparent huge pages: {chosen}")),
        }
    }

    fn swap(&self) -> Check {
        let Some(table) = self.read("proc/swaps") else {
            return Check::unknown("swap", "the system does not tell whether it swaps", "Nothing needs to be done.");
        };
        let column = |line: &str, i: usize| line.split_whitespace().nth(i)?.parse::<u64>().ok();
        let (size, used) = table.lines().skip(1).fold((0, 0), |(size, used), line| {
            (size + column(line, 2).unwrap_or(0), used + column(line, 3).unwrap_or(0))
        });
        let mib = |kib: u64| kib >> 10;
        match (size, used) {
            (0, _) => Check::ok("swap", "there is no swap space"),
            (_, used) if mib(used) >= 64 => Check::warning(
                "swap",
                format!("{} MiB of memory are swapped out", mib(used)),
                "Memory was short. Close programs that hold memory, then: sudo swapoff -a && sudo swapon -a",
            ),
            (size, used) => Check::ok("swap", format!("{} of {} MiB are in use", mib(used), mib(size))),
        }
    }

    fn power(&self) -> Check {
        let Some(supplies) = self.entries("sys/class/power_supply") else {
            return Check::unknown(
                "power",
                "the system does not tell what powers it",
                "If this is a laptop, connect the mains.",
            );
        };
        let of =
            |supply: &str, file: &str| self.read(format!("sys/class/power_supply/{supply}/{file}")).unwrap_or_default();
        // A mouse has a battery too, of the scope of a device.
        let own = |s: &&String| of(s, "type") == "Battery" && of(s, "scope") != "Device";
        let batteries: Vec<&String> = supplies.iter().filter(own).collect();
        let profile = self.read("sys/firmware/acpi/platform_profile");
        if batteries.iter().any(|b| of(b, "status") == "Discharging") {
            return Check::warning(
                "power",
                "the machine runs on its battery",
                "Connect the mains: a battery limits the clock.",
            );
        }
        if let Some(profile) = profile.filter(|p| ["low-power", "cool", "quiet"].contains(&p.as_str())) {
            return Check::warning(
                "power",
                format!("the power profile is {profile}"),
                "This profile limits the clock. Until the next start: echo performance | sudo tee /sys/firmware/acpi/platform_profile",
            );
        }
        Check::ok(
            "power",
            if batteries.is_empty() { "the machine has no battery" } else { "the machine does not run on its battery" },
        )
    }
}

/// `quota period` as CPUs; None if there is no limit.
fn share<'a>(mut numbers: impl Iterator<Item = &'a str>) -> Option<f64> {
    let (quota, period) = (numbers.next()?.parse::<f64>().ok()?, numbers.next()?.parse::<f64>().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// How CPUs spent their time.
#[derive(Debug, PartialEq)]
struct Used {
    /// CPUs that were busy.
    busy: f64,
    /// The share of the time that a hypervisor gave to others.
    stolen: f64,
}

/// How these CPUs spent their time between two readings of `/proc/stat`; None if it does not tell.
fn used(before: &str, after: &str, cpus: &[usize]) -> Option<Used> {
    let times = |text: &str, cpu: usize| {
        let name = format!("cpu{cpu}");
        let line = text.lines().find(|l| l.split_whitespace().next() == Some(&name))?;
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in the first two already.
        let times: Vec<u64> = line.split_whitespace().skip(1).take(8).map_while(|n| n.parse().ok()).collect();
        let at = |i: usize| times.get(i).copied().unwrap_or(0);
        (times.len() >= 4).then(|| (at(3) + at(4), at(7), times.iter().sum::<u64>()))
    };
    let (mut busy, mut stolen, mut shares) = (0.0, 0.0, 0);
    for &cpu in cpus {
        let ((idle, steal, all), (idle_after, steal_after, all_after)) = (times(before, cpu)?, times(after, cpu)?);
        let all = all_after.checked_sub(all).filter(|n| *n > 0)? as f64;
        let (idle, steal) = (idle_after.saturating_sub(idle) as f64, steal_after.saturating_sub(steal) as f64);
        busy += (all - idle - steal).max(0.0) / all;
        stolen += steal / all;
        shares += 1;
    }
    (shares > 0).then(|| Used { busy, stolen: stolen / f64::from(shares) })
}

#[cfg(test)]
mod tests {
    use super::{
        super::State::{self, Ok, Unknown, Warning},
        *,
    };

    /// A described machine: files by path, in a folder that goes when it is dropped.
    struct Described {
        dir: tempfile::TempDir,
    }

    impl Described {
        fn new(files: &[(&str, &str)]) -> Described {
            let described = Described { dir: tempfile::tempdir().unwrap() };
            files.iter().for_each(|(path, text)| described.write(path, text));
            described
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn check(&self, name: &str) -> (State, String, String) {
            let checks = Tree { root: self.dir.path().into() }.checks(Duration::ZERO);
            let check = checks.into_iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no check {name}"));
            assert!(check.state != Warning || check.advice.is_some(), "{name} warns without a way out");
            (check.state, check.found, check.advice.unwrap_or_default())
        }

        #[track_caller]
        fn expect(&self, name: &str, state: State, words: &str) {
            let (found, text, _) = self.check(name);
            assert_eq!(found, state, "{name}: {text}");
            assert!(text.contains(words), "{name}: {text}");
        }
    }

    /// A quiet machine of four cores that tells everything.
    fn quiet() -> Described {
        let d = Described::new(&[
            ("proc/self/status", "Name:\tttft\nCpus_allowed_list:\t0-3\n"),
            ("proc/self/cgroup", "0::/user/run\n"),
            ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("sys/fs/cgroup/user/cpu.max", "max 100000\n"),
            ("proc/loadavg", "0.10 0.20 0.30 1/100 4242\n"),
            ("proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu avx2\n"),
            ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 8388604 2048 -2\n"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
            ("sys/devices/system/cpu/online", "0-3\n"),
            ("sys/class/power_supply/AC/type", "Mains\n"),
        ]);
        for cpu in 0..4 {
            let at = |file: &str| format!("sys/devices/system/cpu/cpu{cpu}/{file}");
            d.write(&at("cpufreq/scaling_governor"), "performance\n");
            d.write(&at("cpufreq/scaling_max_freq"), "4000000\n");
            d.write(&at("cpufreq/cpuinfo_max_freq"), "4000000\n");
            d.write(&at("thermal_throttle/core_throttle_count"), "0\n");
            d.write(&at("thermal_throttle/package_throttle_count"), "0\n");
            d.write(&at("topology/core_cpus_list"), &format!("{cpu}\n"));
        }
        d
    }

    #[test]
    fn a_quiet_machine_has_no_warning() {
        let checks = Tree { root: quiet().dir.path().into() }.checks(Duration::ZERO);
        assert!(checks.len() >= 12);
        for c in checks {
            assert_eq!(c.state, Ok, "{}: {}", c.name, c.found);
        }
    }

    #[test]
    fn a_machine_that_tells_nothing_is_unknown() {
        for c in (Tree { root: Described::new(&[]).dir.path().into() }).checks(Duration::ZERO) {
            assert_eq!(c.state, Unknown, "{}: {}", c.name, c.found);
        }
    }

    #[test]
    fn the_quota_is_the_tightest_of_all_groups() {
        let d = quiet();
        d.write("sys/fs/cgroup/user/cpu.max", "150000 100000\n");
        d.write("sys/fs/cgroup/user/run/cpu.max", "max 100000\n");
        d.write("sys/fs/cgroup/user/run/cpu.stat", "usage_usec 5\nnr_throttled 17\n");
        d.expect("CPU quota", Warning, "1.50 CPUs; the group was stopped 17 times");
        d.write("sys/fs/cgroup/user/cpu.max", "400000 100000\n");
        d.expect("CPU quota", Ok, "no control group limits");
        // The first version.
        d.write("proc/self/cgroup", "3:cpu,cpuacct:/docker/x\n");
        d.write("proc/self/mountinfo", "41 40 0:30 / /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n");
        d.write("sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "-1\n");
        d.write("sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us", "100000\n");
        d.expect("CPU quota", Ok, "");
        d.write("sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us", "50000\n");
        d.expect("CPU quota", Warning, "0.50 CPUs");
    }

    #[test]
    fn some_of_the_processors() {
        let d = quiet();
        d.write("proc/self/status", "Cpus_allowed_list:\t1-2\n");
        d.expect("CPUs", Warning, "2 of 4 CPUs");
        d.expect("load", Unknown, "these CPUs");
    }

    #[test]
    fn load_is_what_others_do_on_the_processors_that_we_may_use() {
        let stat = |busy: u64, idle: u64, steal: u64, other: u64| {
            format!("cpu  9 9 9 9\ncpu0 {busy} 0 0 {idle} 0 0 0 {steal} 0 0\ncpu10 {other} 0 0 0\nintr 5\n")
        };
        let before = stat(100, 1000, 10, 0);
        assert_eq!(used(&before, &stat(110, 1085, 15, 0), &[0]), Some(Used { busy: 0.1, stolen: 0.05 }));
        // What runs on a CPU that is not ours.
        assert_eq!(used(&before, &stat(100, 1100, 10, 50), &[0]), Some(Used { busy: 0.0, stolen: 0.0 }));
        assert_eq!(used(&before, &stat(100, 1050, 10, 50), &[0, 10]).unwrap().busy, 1.0);
        for none in [
            used(&before, &before, &[0]),
            used(&before, &before, &[]),
            used("", "", &[0]),
            used(&before, &before, &[1]),
        ] {
            assert_eq!(none, None);
        }
        let d = quiet();
        d.write("proc/loadavg", "1.70 0.20 0.30 1/100 4242\n");
        d.expect("load", Warning, "1.70");
    }

    #[test]
    fn governors_and_their_preferences() {
        let d = quiet();
        let set = |file: &str, text: &str| d.write(&format!("sys/devices/system/cpu/cpu2/cpufreq/{file}"), text);
        for (governor, preference, state) in [
            ("schedutil", None, Warning),
            ("powersave", None, Warning),
            ("powersave", Some("balance_power"), Warning),
            ("powersave", Some("power"), Warning),
            ("powersave", Some("balance_performance"), Ok),
            ("performance", Some("performance"), Ok),
        ] {
            set("scaling_governor", governor);
            if let Some(preference) = preference {
                set("energy_performance_preference", preference);
            }
            d.expect("governor", state, governor);
        }
        set("scaling_max_freq", "1000000\n");
        d.expect("clock limit", Warning, "1000 of 4000 MHz");
        d.write("sys/devices/system/cpu/cpu3/thermal_throttle/core_throttle_count", "12\n");
        d.expect("heat", Warning, "12 times");
    }

    #[test]
    fn fast_and_slow_cores_and_their_siblings() {
        let d = quiet();
        d.write("sys/devices/cpu_core/cpus", "0-1\n");
        d.write("sys/devices/cpu_atom/cpus", "2-3\n");
        for cpu in 0..2 {
            d.write(&format!("sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list"), "0-1\n");
        }
        d.expect("kinds of cores", Warning, "1 core performance, 2 cores efficiency");
        assert!(d.check("kinds of cores").2.contains("--cpu-list 0,1 "));
        d.expect("SMT siblings", Warning, "2 hardware threads");
        let d = quiet();
        for (cpu, capacity) in ["446", "980", "1024", "446"].into_iter().enumerate() {
            d.write(&format!("sys/devices/system/cpu/cpu{cpu}/cpu_capacity"), capacity);
        }
        d.expect("kinds of cores", Warning, "capacity-1024");
        assert!(d.check("kinds of cores").2.contains("--cpu-list 1,2 "));
    }

    #[test]
    fn virtual_machines() {
        let d = quiet();
        d.write("proc/cpuinfo", "flags\t\t: fpu hypervisor avx2\n");
        d.expect("virtual machine", Warning, "this is a virtual machine");
        d.expect("SMT siblings", Unknown, "the host");
        // Not x86: the firmware tells.
        d.write("proc/cpuinfo", "processor\t: 0\nFeatures\t: asimd\n");
        d.expect("virtual machine", Unknown, "does not tell");
        for (vendor, product, state) in [
            ("QEMU", "QEMU Virtual Machine", Warning),
            ("Amazon EC2", "c7g.metal", Ok),
            ("Amazon EC2", "c7g.large", Warning),
            ("Ampere", "Altra", Ok),
        ] {
            d.write("sys/class/dmi/id/sys_vendor", vendor);
            d.write("sys/class/dmi/id/product_name", product);
            d.expect("virtual machine", state, "");
        }
    }

    #[test]
    fn memory_and_power() {
        let d = quiet();
        d.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n");
        d.expect("huge pages", Warning, "switched off");
        d.write(
            "proc/swaps",
            "Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 8388604 204800 -2\n/swap file 100 48000 -3\n",
        );
        d.expect("swap", Warning, "246 MiB");
        d.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n");
        d.expect("swap", Ok, "no swap");
        d.write("sys/class/power_supply/mouse/type", "Battery\n");
        d.write("sys/class/power_supply/mouse/scope", "Device\n");
        d.write("sys/class/power_supply/mouse/status", "Discharging\n");
        d.expect("power", Ok, "no battery");
        d.write("sys/class/power_supply/BAT0/type", "Battery\n");
        d.write("sys/class/power_supply/BAT0/status", "Full\n");
        d.expect("power", Ok, "does not run on its battery");
        d.write("sys/firmware/acpi/platform_profile", "low-power\n");
        d.expect("power", Warning, "low-power");
        d.write("sys/class/power_supply/BAT0/status", "Discharging\n");
        d.expect("power", Warning, "runs on its battery");
    }
}
