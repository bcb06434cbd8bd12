//! The clock of the CPUs, and how often heat slowed them, as far as the machine tells.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ttft_reports::schema::Clocks;

use crate::cpus;

/// CPUs that are read at most: on some of them, every reading takes microseconds.
const MOST_CPUS: usize = 64;

/// Reads the clock and the counters of throttling of the CPUs that this process may use.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    files: Arc<Files>,
}

#[derive(Debug, Default)]
struct Files {
    clocks: Vec<PathBuf>,
    /// Of every core.
    cores: Vec<PathBuf>,
    /// Of the package, which all its CPUs show alike.
    packages: Vec<PathBuf>,
}

/// What a meter shows at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Highest clock, MHz.
    pub mhz: Option<f64>,
    /// Times that heat slowed a CPU since the system started.
    pub throttled: Option<u64>,
}

impl Clock {
    /// The meter of this machine.
    pub fn of_this_machine() -> Clock {
        Clock::under(Path::new("/"))
    }

    fn under(root: &Path) -> Clock {
        let usable = cpus::usable(root);
        let of = |file: &str| {
            let paths = usable.iter().take(MOST_CPUS).map(|cpu| root.join(format!("{}/cpu{cpu}/{file}", cpus::FOLDER)));
            paths.filter(|path| number(path).is_some()).collect::<Vec<_>>()
        };
        Clock {
            files: Arc::new(Files {
                clocks: of("cpufreq/scaling_cur_freq"),
                cores: of("thermal_throttle/core_throttle_count"),
                packages: of("thermal_throttle/package_throttle_count"),
            }),
        }
    }

    /// What it shows now.
    pub fn read(&self) -> Reading {
        let Files { clocks, cores, packages } = &*self.files;
        let all = |paths: &[PathBuf]| paths.iter().filter_map(|path| number(path)).collect::<Vec<u64>>();
        let kilohertz = all(clocks).into_iter().max().filter(|khz| *khz > 0);
        let package = all(packages).into_iter().max();
        let throttled = match (cores.is_empty(), package) {
            (true, None) => None,
            (_, package) => Some(all(cores).iter().fold(package.unwrap_or(0), |sum, n| sum.saturating_add(*n))),
        };
        Reading { mhz: kilohertz.map(|khz| khz as f64 / 1000.0), throttled }
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What the meter showed before and after every sample, in the words of the records.
pub fn record(readings: &[(Reading, Reading)]) -> Clocks {
    let mhz: Option<Vec<f64>> = readings.iter().map(|(_, after)| after.mhz).collect();
    let grown = |(before, after): &(Reading, Reading)| Some(after.throttled?.saturating_sub(before.throttled?));
    let throttled: Option<Vec<u64>> = readings.iter().map(grown).collect();
    let missing = [
        (mhz.is_none(), "the system does not tell the clock of its CPUs"),
        (throttled.is_none(), "the CPU has no counters of throttling"),
    ];
    let missing: Vec<&str> = missing.into_iter().filter(|m| m.0).map(|m| m.1).collect();
    Clocks { mhz, throttled, unknown: (!missing.is_empty()).then(|| missing.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_described_machine_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(Clock::under(dir.path()).read(), Reading::default());
        write("proc/self/status", "Cpus_allowed_list:\t0-1\n");
        write("sys/devices/system/cpu/online", "0-2\n");
        for (cpu, khz, core) in [(0, "2100000\n", "3\n"), (1, "3250500\n", "4\n"), (2, "9999999\n", "99\n")] {
            let at = |file: &str| format!("sys/devices/system/cpu/cpu{cpu}/{file}");
            write(&at("cpufreq/scaling_cur_freq"), khz);
            write(&at("thermal_throttle/core_throttle_count"), core);
            write(&at("thermal_throttle/package_throttle_count"), "10\n");
        }
        let meter = Clock::under(dir.path());
        let before = meter.read();
        assert_eq!(before, Reading { mhz: Some(3250.5), throttled: Some(17) }, "a CPU that is not ours is not read");
        write("sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count", "6\n");
        let clocks = record(&[(before, before), (before, meter.read())]);
        assert_eq!(clocks, Clocks { mhz: Some(vec![3250.5; 2]), throttled: Some(vec![0, 2]), unknown: None });
    }

    #[test]
    fn what_is_not_told_has_a_reason() {
        let clock = Reading { mhz: Some(2000.0), throttled: None };
        let clocks = record(&[(clock, clock)]);
        assert_eq!((clocks.mhz, clocks.throttled), (Some(vec![2000.0]), None));
        assert!(clocks.unknown.unwrap().contains("throttling"));
        let none = record(&[(Reading::default(), Reading::default())]);
        assert!(none.mhz.is_none() && none.unknown.unwrap().contains("clock"));
    }
}
