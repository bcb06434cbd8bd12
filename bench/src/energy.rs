//! Energy to the first token, where the machine tells what its packages take: by powercap (RAPL) on Linux.
//!
//! The counters are those of whole packages, so everything that runs on the machine is in them; what it takes when it has
//! nothing to do is measured beforehand and shown apart. Unknown is `None`, with the reason.

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use ttft_reports::schema::Energy;

use crate::machine;

/// Where Linux keeps the counters.
const ROOT: &str = "/sys/class/powercap";
/// The variable that names another place, for tests.
const TEST_ROOT: &str = "TTFT_TEST_POWERCAP";
/// The controller whose packages count if there are several: another one counts the same packages again.
const CONTROLLER: &str = "intel-rapl";
/// The time over which the power of the idle machine is measured.
const IDLE: Duration = Duration::from_secs(1);
/// The least time of repetitions: the counters move about once a millisecond.
const LEAST: Duration = Duration::from_secs(2);

/// The counters of all packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meter {
    packages: Vec<Package>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Package {
    name: String,
    /// The file that holds microjoules.
    counter: PathBuf,
    /// The number of microjoules at which the counter begins at 0 again.
    range: u64,
}

impl Meter {
    /// The meter of this machine.
    ///
    /// # Errors
    /// Why there is none, and what to do about it.
    pub fn find() -> Result<Meter, String> {
        match std::env::var_os(TEST_ROOT).filter(|root| !root.is_empty()) {
            Some(root) => Meter::of(Path::new(&root)),
            None if cfg!(target_os = "macos") => {
                Err("macOS tells its energy to the administrator alone (powermetrics), which ttft does not use".into())
            }
            None if cfg!(target_os = "linux") => Meter::of(Path::new(ROOT)),
            None => Err("ttft knows no counter of energy on this operating system".into()),
        }
    }

    /// The packages of a powercap tree: domains of the first level that are called `package-N`. What lies below them
    /// (cores, memory controllers) is part of them, and `psys`, the whole machine, is not there on most machines.
    ///
    /// # Errors
    /// As [`Meter::find`].
    pub fn of(root: &Path) -> Result<Meter, String> {
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(none(root)),
            Err(e) => return Err(format!("{}: {e}", root.display())),
        };
        let mut controllers: BTreeMap<String, Vec<Package>> = BTreeMap::new();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((controller, number)) = name.split_once(':') else { continue };
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let dir = entry.path();
            let Ok(name) = fs::read_to_string(dir.join("name")) else { continue };
            if name.starts_with("package-") {
                let package = Package {
                    name: name.trim().to_owned(),
                    counter: dir.join("energy_uj"),
                    range: microjoules(&dir.join("max_energy_range_uj"))?,
                };
                controllers.entry(controller.to_owned()).or_default().push(package);
            }
        }
        let mut packages = controllers.remove(CONTROLLER).or_else(|| controllers.pop_first().map(|c| c.1));
        if let Some(packages) = &mut packages {
            packages.sort_by(|a, b| a.counter.cmp(&b.counter));
        }
        let meter = Meter { packages: packages.ok_or_else(|| none(root))? };
        meter.read()?;
        Ok(meter)
    }

    /// All counters, in microjoules.
    fn read(&self) -> Result<Vec<u64>, String> {
        self.packages.iter().map(|p| microjoules(&p.counter)).collect()
    }

    /// Where its figures come from.
    fn source(&self) -> String {
        let names: Vec<&str> = self.packages.iter().map(|p| p.name.as_str()).collect();
        format!("powercap: {}", names.join(", "))
    }

    /// Begins to count.
    fn start(&self) -> Result<Count<'_>, String> {
        Ok(Count { meter: self, last: self.read()?, microjoules: 0 })
    }
}

/// Energy since a start.
struct Count<'a> {
    meter: &'a Meter,
    last: Vec<u64>,
    microjoules: u64,
}

impl Count<'_> {
    /// Joules so far. A counter may begin anew once between two calls.
    fn joules(&mut self) -> Result<f64, String> {
        let now = self.meter.read()?;
        for ((package, before), now) in self.meter.packages.iter().zip(&self.last).zip(&now) {
            let more = if now >= before { now - before } else { package.range.saturating_sub(*before) + now };
            self.microjoules = self.microjoules.saturating_add(more);
        }
        self.last = now;
        Ok(self.microjoules as f64 * 1e-6)
    }
}

/// Why there is no package in a tree.
fn none(root: &Path) -> String {
    let no = format!("no package tells its energy in {}", root.display());
    match machine::virtual_machine() {
        Some(true) => format!("{no}: hosts do not show it to virtual machines; measure on the host or another machine"),
        _ => {
            format!("{no}: load the kernel's module intel_rapl_msr, which also serves AMD; a container does not see it")
        }
    }
}

/// A number out of one of the tree's files.
fn microjoules(path: &Path) -> Result<u64, String> {
    let shown = path.display();
    let text = fs::read_to_string(path).map_err(|e| match e.kind() {
        ErrorKind::PermissionDenied => {
            format!("{shown}: only root may read it; run as root, or let others read it: sudo chmod a+r {shown}")
        }
        _ => format!("{shown}: {e}"),
    })?;
    let found = text.trim();
    let shown_text: String = found.chars().take(40).filter(|c| !c.is_control()).collect();
    found.parse().map_err(|_| format!("{shown}: expected a number of microjoules, found '{shown_text}'"))
}

/// Seconds that [`measure`] takes of a run of `seconds`.
pub fn seconds_for(seconds: f64) -> f64 {
    IDLE.as_secs_f64() + (LEAST.as_secs_f64() + seconds / 2.0).max(seconds)
}

/// The energy of one `run`: first the idle machine, then repetitions for two seconds at least.
pub fn measure(meter: &Result<Meter, String>, run: impl FnMut() -> Result<()>) -> Energy {
    measure_for(meter, (IDLE, LEAST), run)
}

fn measure_for(
    meter: &Result<Meter, String>,
    (idle, least): (Duration, Duration),
    mut run: impl FnMut() -> Result<()>,
) -> Energy {
    let mut measured = || -> Result<Energy, String> {
        let meter = meter.as_ref().map_err(String::clone)?;
        let (mut count, start) = (meter.start()?, Instant::now());
        thread::sleep(idle);
        let idle_watts = count.joules()? / start.elapsed().as_secs_f64();
        let (mut count, start) = (meter.start()?, Instant::now());
        let mut repetitions = 0;
        let (joules, seconds) = loop {
            run().map_err(|e| format!("{e:#}"))?;
            repetitions += 1;
            // Read after each of them, so that a counter does not begin anew twice in between.
            let (joules, time) = (count.joules()?, start.elapsed());
            if time >= least {
                break (joules, time.as_secs_f64());
            }
        };
        if joules == 0.0 {
            return Err(format!("{}: the counters stood still for {seconds:.1} s", meter.source()));
        }
        Ok(Energy {
            joules: Some(joules / f64::from(repetitions)),
            idle_watts: Some(idle_watts),
            repetitions,
            seconds: Some(seconds),
            source: Some(meter.source()),
            missing: None,
        })
    };
    measured().unwrap_or_else(|missing| Energy { missing: Some(missing), ..Energy::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree as Linux shows it: domains with their name, counter and range.
    fn tree(domains: &[(&str, &str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (domain, name, counter, range) in domains {
            let dir = root.path().join(domain);
            fs::create_dir_all(&dir).unwrap();
            for (file, text) in [("name", name), ("energy_uj", counter), ("max_energy_range_uj", range)] {
                fs::write(dir.join(file), format!("{text}\n")).unwrap();
            }
        }
        fs::create_dir_all(root.path().join("intel-rapl")).unwrap();
        root
    }

    fn set(root: &Path, domain: &str, counter: u64) {
        fs::write(root.join(domain).join("energy_uj"), format!("{counter}\n")).unwrap();
    }

    const SHORT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(1));

    #[test]
    fn packages_count_once_and_nothing_else_does() {
        let root = tree(&[
            ("intel-rapl:0", "package-0", "1000", "10000"),
            ("intel-rapl:0:0", "core", "1000", "10000"),
            ("intel-rapl:0:1", "dram", "1000", "10000"),
            ("intel-rapl:1", "package-1", "9000", "10000"),
            ("intel-rapl:2", "psys", "1000", "10000"),
            ("intel-rapl-mmio:0", "package-0", "1000", "10000"),
            ("dtpm:0", "package", "1000", "10000"),
        ]);
        let meter = Meter::of(root.path()).unwrap();
        assert_eq!(meter.source(), "powercap: package-0, package-1");
        let mut count = meter.start().unwrap();
        for domain in ["intel-rapl:0:0", "intel-rapl:2", "intel-rapl-mmio:0"] {
            set(root.path(), domain, 5000);
        }
        assert_eq!(count.joules().unwrap(), 0.0);
        set(root.path(), "intel-rapl:0", 1500);
        // From 9000 to the range of 10000, and on to 200.
        set(root.path(), "intel-rapl:1", 200);
        assert!((count.joules().unwrap() - (500.0 + 1200.0) * 1e-6).abs() < 1e-12);
        set(root.path(), "intel-rapl:0", 1400);
        assert!((count.joules().unwrap() - (1700.0 + 9900.0) * 1e-6).abs() < 1e-12, "it began anew");
    }

    #[test]
    fn another_controller_serves_where_the_usual_one_has_no_package() {
        let root = tree(&[("intel-rapl:0", "psys", "1", "10"), ("intel-rapl-mmio:0", "package-0", "1", "10")]);
        assert_eq!(Meter::of(root.path()).unwrap().packages.len(), 1);
    }

    #[test]
    fn joules_are_of_one_repetition() {
        let root = tree(&[("intel-rapl:0", "package-0", "0", "100000000")]);
        let meter = Meter::of(root.path());
        let mut counter = 0;
        let energy = measure_for(&meter, SHORT, || {
            thread::sleep(Duration::from_millis(1));
            counter += 30_000_000;
            // Begins anew at the range.
            set(root.path(), "intel-rapl:0", counter % 100_000_000);
            Ok(())
        });
        assert!((energy.joules.unwrap() - 30.0).abs() < 1e-9, "{energy:?}");
        assert_eq!((energy.idle_watts, energy.missing), (Some(0.0), None));
        assert!(energy.repetitions >= 1 && energy.seconds.unwrap() >= 0.001);
    }

    #[test]
    fn what_is_missing_has_a_reason() {
        let missing = |root: &Path| measure_for(&Meter::of(root), SHORT, || Ok(())).missing.unwrap();
        let still = tree(&[("intel-rapl:0", "package-0", "5", "100")]);
        assert_eq!(missing(still.path()).split(": the counters stood still").count(), 2);
        let failing = measure_for(&Meter::of(still.path()), SHORT, || anyhow::bail!("no"));
        assert_eq!((failing.joules, failing.missing.as_deref()), (None, Some("no")));
        for (counter, range) in [("many", "100"), ("", "100"), ("5", "-1"), ("5", "99999999999999999999999")] {
            let garbage = tree(&[("intel-rapl:0", "package-0", counter, range)]);
            assert!(missing(garbage.path()).contains("expected a number of microjoules, found '"), "{counter} {range}");
        }
        let empty = tree(&[]);
        assert!(missing(empty.path()).starts_with("no package tells its energy in "));
        assert!(missing(&empty.path().join("none")).starts_with("no package tells its energy in "));
        fs::remove_file(still.path().join("intel-rapl:0/max_energy_range_uj")).unwrap();
        assert!(missing(still.path()).contains("max_energy_range_uj: "));
    }

    #[cfg(unix)]
    #[test]
    fn a_counter_that_only_root_reads_says_what_to_do() {
        use std::os::unix::fs::PermissionsExt;
        let root = tree(&[("intel-rapl:0", "package-0", "5", "100")]);
        let counter = root.path().join("intel-rapl:0/energy_uj");
        fs::set_permissions(&counter, fs::Permissions::from_mode(0o000)).unwrap();
        match Meter::of(root.path()) {
            Err(reason) => assert!(reason.contains("run as root") && reason.contains("sudo chmod a+r "), "{reason}"),
            // Root reads everything.
            Ok(_) => assert!(fs::read_to_string(&counter).is_ok()),
        }
    }
}
