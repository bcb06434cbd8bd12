//! The checks of macOS, out of what its own tools print.

use super::{Check, counted};

/// What the system's tools say; None where one of them does not answer.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// `pmset -g`.
    settings: Option<String>,
    /// `pmset -g therm`.
    thermal: Option<String>,
    /// `pmset -g batt`.
    battery: Option<String>,
    /// `sysctl`, the names of [`NAMES`] with their values.
    values: Option<String>,
}

/// What `sysctl` is asked for. It answers for those that there are.
#[cfg(target_os = "macos")]
const NAMES: [&str; 7] = [
    "vm.swapusage",
    "vm.loadavg",
    "kern.hv_vmm_present",
    "hw.physicalcpu",
    "hw.logicalcpu",
    "hw.perflevel0.physicalcpu",
    "hw.perflevel1.physicalcpu",
];

impl Told {
    #[cfg(target_os = "macos")]
    pub fn by_this_machine() -> Told {
        let run = |program: &str, args: &[&str]| {
            let out = std::process::Command::new(program).args(args).output().ok()?;
            let text = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            (!text.is_empty()).then_some(text)
        };
        let pmset = |args: &[&str]| run("/usr/bin/pmset", args);
        Told {
            settings: pmset(&["-g"]),
            thermal: pmset(&["-g", "therm"]),
            battery: pmset(&["-g", "batt"]),
            values: run("/usr/sbin/sysctl", &NAMES),
        }
    }

    pub fn checks(&self) -> Vec<Check> {
        vec![
            self.load(),
            self.low_power(),
            self.heat(),
            self.core_classes(),
            self.siblings(),
            self.virtual_machine(),
            self.swap(),
            self.power(),
        ]
    }

    /// A value of `sysctl`.
    fn value(&self, name: &str) -> Option<&str> {
        self.values.as_deref()?.lines().find_map(|l| Some(l.trim().strip_prefix(name)?.strip_prefix(':')?.trim()))
    }

    fn count(&self, name: &str) -> Option<usize> {
        self.value(name)?.parse().ok()
    }

    fn load(&self) -> Check {
        let advice =
            "Close other programs, and wait until Spotlight and backups have ended (the Activity Monitor shows them).";
        let load = self
            .value("vm.loadavg")
            .and_then(|v| v.trim_start_matches('{').split_whitespace().next()?.parse::<f64>().ok());
        match load {
            None => Check::unknown("load", "the system does not tell what is running", advice),
            Some(load) => {
                let found = format!("{load:.2} programs were running during the last minute");
                // A system at rest stays below this.
                if load > 1.5 { Check::warning("load", found, advice) } else { Check::ok("load", found) }
            }
        }
    }

    fn low_power(&self) -> Check {
        match setting(self.settings.as_deref(), "lowpowermode") {
            Some(0) => Check::ok("low power mode", "low power mode is off"),
            Some(_) => Check::warning(
                "low power mode",
                "low power mode is on",
                "It limits the clock. Switch it off in the settings of the battery, or: sudo pmset -a lowpowermode 0",
            ),
            None => {
                Check::unknown("low power mode", "pmset does not name the low power mode", "Nothing needs to be done.")
            }
        }
    }

    fn heat(&self) -> Check {
        match (self.thermal.as_deref(), setting(self.thermal.as_deref(), "CPU_Speed_Limit")) {
            (None, _) => Check::unknown(
                "heat",
                "pmset does not tell the thermal state",
                "Watch the drift that every report prints.",
            ),
            (_, Some(limit)) if limit < 100 => Check::warning(
                "heat",
                format!("heat limits the clock to {limit}%"),
                "Let the machine cool down, and give it air.",
            ),
            _ => Check::ok("heat", "heat does not limit the clock"),
        }
    }

    fn core_classes(&self) -> Check {
        let level = |i: u32| self.count(&format!("hw.perflevel{i}.physicalcpu"));
        match (level(0), level(1), self.count("hw.physicalcpu")) {
            (Some(fast), Some(slow), _) if slow > 0 => Check::warning(
                "kinds of cores",
                format!("{} performance, {} efficiency", counted(fast, "core"), counted(slow, "core")),
                &format!(
                    "ttft takes {} by default, and macOS keeps a busy program of the foreground on the fast cores: start it from \
                     a terminal, not from a background job.",
                    counted(fast, "thread")
                ),
            ),
            (Some(n), _, _) | (None, _, Some(n)) => {
                Check::ok("kinds of cores", format!("{} of one kind", counted(n, "core")))
            }
            _ => {
                Check::unknown("kinds of cores", "the system does not describe its cores", "Nothing needs to be done.")
            }
        }
    }

    fn siblings(&self) -> Check {
        match self.count("hw.logicalcpu").zip(self.count("hw.physicalcpu")) {
            None => Check::unknown(
                "SMT siblings",
                "the system does not tell which threads share a core",
                "Nothing needs to be done.",
            ),
            Some((logical, physical)) if logical > physical => Check::warning(
                "SMT siblings",
                format!("{} run {} hardware threads", counted(physical, "core"), logical),
                "ttft takes one thread for each core; what runs on the others takes a part of the core. Close other programs.",
            ),
            Some(_) => Check::ok("SMT siblings", "each core runs one hardware thread"),
        }
    }

    fn virtual_machine(&self) -> Check {
        match self.count("kern.hv_vmm_present") {
            Some(0) => Check::ok("virtual machine", "the system runs on the hardware itself"),
            Some(_) => Check::warning(
                "virtual machine",
                "this is a virtual machine",
                "Others on its host change its speed. Measure several records at different times, and run ttft calibrate once.",
            ),
            None => Check::unknown(
                "virtual machine",
                "the system does not tell whether it is a virtual machine",
                "Nothing needs to be done.",
            ),
        }
    }

    fn swap(&self) -> Check {
        let used = self.value("vm.swapusage").and_then(|v| {
            let (_, rest) = v.split_once("used = ")?;
            rest.split('M').next()?.trim().parse::<f64>().ok()
        });
        match used {
            None => Check::unknown("swap", "the system does not tell whether it swaps", "Nothing needs to be done."),
            Some(mib) if mib >= 64.0 => Check::warning(
                "swap",
                format!("{mib:.0} MiB of memory are swapped out"),
                "Memory was short. Close programs that hold memory, or restart.",
            ),
            Some(mib) => Check::ok("swap", format!("{mib:.0} MiB of memory are swapped out")),
        }
    }

    fn power(&self) -> Check {
        match self.battery.as_deref() {
            None => Check::unknown(
                "power",
                "pmset does not tell what powers the machine",
                "If this is a laptop, connect the mains.",
            ),
            Some(text) if text.contains("'Battery Power'") => Check::warning(
                "power",
                "the machine runs on its battery",
                "Connect the mains: a battery limits the clock.",
            ),
            Some(_) => Check::ok("power", "the machine does not run on its battery"),
        }
    }
}

/// A number out of the lines of `pmset`, which have an equals sign or none.
fn setting(text: Option<&str>, key: &str) -> Option<u32> {
    let rest = text?.lines().find_map(|l| l.trim().strip_prefix(key))?;
    rest.trim_start_matches(['=', ' ', '\t']).split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{
        super::State::{self, Ok, Unknown, Warning},
        *,
    };

    fn told(changes: &[(&str, &str)]) -> Told {
        let change = |text: &str| changes.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
        Told {
            settings: Some(change(
                "System-wide power settings:\nCurrently in use:\n standby 1\n lowpowermode         0\n",
            )),
            thermal: Some(change("Note: No thermal warning level has been recorded\n\tCPU_Speed_Limit \t= 100\n")),
            battery: Some(change("Now drawing from 'AC Power'\n -InternalBattery-0 (id=1)\t80%; charging\n")),
            values: Some(change(
                "vm.swapusage: total = 2048.00M  used = 12.50M  free = 2035.50M  (encrypted)\nvm.loadavg: { 0.90 1.50 1.70 }\n\
                 kern.hv_vmm_present: 0\nhw.physicalcpu: 8\nhw.logicalcpu: 8\nhw.perflevel0.physicalcpu: 8\n",
            )),
        }
    }

    fn state(told: &Told, name: &str) -> (State, String) {
        let check = told.checks().into_iter().find(|c| c.name == name).unwrap();
        (check.state, check.found)
    }

    #[test]
    fn a_quiet_machine_has_no_warning_and_a_silent_one_is_unknown() {
        told(&[]).checks().iter().for_each(|c| assert_eq!(c.state, Ok, "{}: {}", c.name, c.found));
        Told::default().checks().iter().for_each(|c| assert_eq!(c.state, Unknown, "{}: {}", c.name, c.found));
    }

    #[test]
    fn what_spoils_a_measurement_is_told() {
        for (name, from, to, words) in [
            ("load", "{ 0.90", "{ 4.20", "4.20"),
            ("low power mode", "mode         0", "mode         1", "on"),
            ("heat", "Limit \t= 100", "Limit \t= 72", "72%"),
            ("SMT siblings", "logicalcpu: 8", "logicalcpu: 16", "8 cores run 16"),
            (
                "kinds of cores",
                "hw.physicalcpu: 8",
                "hw.perflevel1.physicalcpu: 4",
                "8 cores performance, 4 cores efficiency",
            ),
            ("virtual machine", "present: 0", "present: 1", "virtual"),
            ("swap", "used = 12.50M", "used = 900.25M", "900 MiB"),
            ("power", "'AC Power'", "'Battery Power'", "battery"),
        ] {
            let (state, found) = state(&told(&[(from, to)]), name);
            assert_eq!(state, Warning, "{name}: {found}");
            assert!(found.contains(words), "{name}: {found}");
        }
        assert_eq!(state(&told(&[("CPU_Speed_Limit \t= 100", "")]), "heat").0, Ok, "never throttled since the start");
    }
}
