//! The machine, as far as it tells: what it is, what it reaches, and what this process takes from it.
//!
//! Unknown is `None`. The host's name is not asked for.

use std::{fs, path::Path};

use crate::{memory, pages::Pages, placement};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};
use ttft_kernels::{
    DType, Engine, Isa,
    cpu::{self, topology},
    peak::{self, Factors, Fastest, Reading, Unit},
};

pub use ttft_models::cost::compute_dtype;
use ttft_reports::schema::{Cache, CoreClass, Drift, Dtype, Git, Limits, Machine, Peak};

const CPUS: &str = "/sys/devices/system/cpu";

fn read(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

fn number<T: std::str::FromStr>(path: impl AsRef<Path>) -> Option<T> {
    read(path)?.parse().ok()
}

fn text(s: &str) -> Option<String> {
    let s: String = s.chars().filter(|c| !c.is_control()).collect();
    (!s.trim().is_empty()).then(|| s.trim().to_owned())
}

/// `0-3,8` as the number of CPUs it lists.
fn listed(list: &str) -> Option<u32> {
    list.split(',').try_fold(0, |n, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u32>().ok()?, last.trim().parse::<u32>().ok()?);
        Some(n + last.checked_sub(first)? + 1)
    })
}

/// `32K`, `1M` as bytes.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn caches() -> Option<Vec<Cache>> {
    let mut out = Vec::new();
    for index in 0..16 {
        let dir = format!("{CPUS}/cpu0/cache/index{index}");
        let Some(level) = number(format!("{dir}/level")) else { break };
        out.push(Cache {
            level,
            kind: read(format!("{dir}/type"))?.to_lowercase(),
            bytes: size(&read(format!("{dir}/size"))?)?,
            shared_by: read(format!("{dir}/shared_cpu_list")).as_deref().and_then(listed),
        });
    }
    if out.is_empty() {
        let cpu::cache::Caches { l1d, l2, l3 } = cpu::cache::caches();
        let level = |(level, kind, bytes): (u8, &str, Option<u64>)| {
            Some(Cache { level, kind: kind.into(), bytes: bytes?, shared_by: None })
        };
        out = [(1, "data", l1d), (2, "unified", l2), (3, "unified", l3)].into_iter().filter_map(level).collect();
    }
    (!out.is_empty()).then_some(out)
}

fn core_classes() -> Option<Vec<CoreClass>> {
    let class =
        |c: topology::CoreClass| Some(CoreClass { name: c.name, cores: c.physical.try_into().ok()?, max_mhz: None });
    let classes: Vec<_> = topology::core_classes().into_iter().filter_map(class).collect();
    (!classes.is_empty()).then_some(classes)
}

/// Whether this is a virtual machine.
pub(crate) fn virtual_machine() -> Option<bool> {
    virtualised(|path| read(Path::new("/").join(path)))
}

/// Whether a hypervisor runs the system whose files `read` gives, by their paths below its root.
pub(crate) fn virtualised(read: impl Fn(&str) -> Option<String>) -> Option<bool> {
    // x86 has a bit for it, which the kernel lists. Elsewhere the firmware names the maker of the machine.
    let info = read("proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find_map(|l| l.strip_prefix("flags")?.trim_start().strip_prefix(':'));
    if let Some(flags) = flags {
        return Some(flags.split_whitespace().any(|f| f == "hypervisor"));
    }
    if read("sys/hypervisor/type").is_some() || read("proc/device-tree/hypervisor/compatible").is_some() {
        return Some(true);
    }
    let [vendor, product] = ["sys_vendor", "product_name"].map(|f| read(&format!("sys/class/dmi/id/{f}")));
    let words = format!("{} {}", vendor?, product?).to_lowercase();
    let virtual_ones = [
        "qemu",
        "kvm",
        "vmware",
        "virtualbox",
        "virtual machine",
        "xen",
        "google compute engine",
        "parallels",
        "apple virtualization",
    ];
    // Amazon's machines without a hypervisor carry it in their name.
    let amazon = words.contains("amazon ec2") && !words.contains(".metal");
    Some(amazon || virtual_ones.iter().any(|v| words.contains(v)))
}

fn system() -> Option<System> {
    let what = RefreshKind::nothing()
        .with_memory(MemoryRefreshKind::nothing().with_ram())
        .with_cpu(CpuRefreshKind::nothing().with_frequency());
    System::new_with_specifics(what).ok()
}

/// The fingerprint.
pub fn fingerprint() -> Machine {
    let system = system();
    let cpu = system.as_ref().and_then(|s| s.cpus().first());
    let known = |bytes: u64| (bytes > 0).then_some(bytes);
    Machine {
        cpu_model: cpu.and_then(|c| text(c.brand())),
        cpu_vendor: cpu.and_then(|c| text(c.vendor_id())),
        arch: Some(std::env::consts::ARCH.into()),
        isa_features: cpu::features().into_iter().map(Into::into).collect(),
        physical_cores: System::physical_core_count().ok().and_then(|n| n.try_into().ok()),
        logical_cores: std::thread::available_parallelism().ok().and_then(|n| n.get().try_into().ok()),
        core_classes: core_classes(),
        caches: caches(),
        memory_total_bytes: least(
            system.as_ref().and_then(|s| known(s.total_memory())),
            memory::allowance().map(|a| a.limit),
        ),
        memory_available_bytes: available_memory(),
        page_bytes: page_bytes(),
        os: System::long_os_version().ok().and_then(|s| text(&s)),
        kernel: System::kernel_version().ok().and_then(|s| text(&s)),
        governor: read(format!("{CPUS}/cpu0/cpufreq/scaling_governor")).or_else(power),
        frequency_mhz: cpu.and_then(|c| known(c.frequency())).map(|mhz| mhz as f64),
        load_1m: load(),
        virtualised: virtual_machine(),
        numa_nodes: placement::nodes().and_then(|nodes| nodes.len().try_into().ok()),
    }
}

fn least(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// Bytes that could be taken now: what the system calls available, or what a limit on this process leaves if that is less.
pub fn available_memory() -> Option<u64> {
    let available = system().map(|s| s.available_memory()).filter(|&bytes| bytes > 0);
    least(available, memory::allowance().map(|a| a.available))
}

#[cfg(unix)]
pub(crate) fn page_bytes() -> Option<u64> {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().and_then(|n| n.try_into().ok())
}

#[cfg(not(unix))]
pub(crate) fn page_bytes() -> Option<u64> {
    None
}

/// What limits the clock, where there is no governor: macOS tells it by `pmset`.
#[cfg(target_os = "macos")]
fn power() -> Option<String> {
    let pmset = |args: &[&str]| {
        let out = std::process::Command::new("/usr/bin/pmset").args(args).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    };
    power_state(&pmset(&["-g"])?, &pmset(&["-g", "therm"]).unwrap_or_default())
}

#[cfg(not(target_os = "macos"))]
fn power() -> Option<String> {
    None
}

/// Low power mode out of `pmset -g`, and the thermal limit of the clock out of `pmset -g therm`; a machine that was not
/// throttled since it started has no such limit.
#[cfg(any(test, target_os = "macos"))]
fn power_state(settings: &str, thermal: &str) -> Option<String> {
    let number = |text: &str, key: &str| {
        let rest = text.lines().find_map(|l| l.trim().strip_prefix(key))?;
        rest.trim_start_matches(['=', ' ', '\t']).split_whitespace().next()?.parse::<u32>().ok()
    };
    let low = number(settings, "lowpowermode").map(|n| if n == 0 { "low power mode off" } else { "low power mode on" });
    let limit = number(thermal, "CPU_Speed_Limit").map(|n| format!("clock limited to {n}% by heat"));
    let parts: Vec<_> = low.map(Into::into).into_iter().chain(limit).collect::<Vec<String>>();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// One-minute load average, if it is that of the CPUs that this process may use: the system counts what runs on all of
/// them, so it is unknown under an affinity mask or a quota, and where the number of CPUs is.
pub fn load() -> Option<f64> {
    let usable = std::thread::available_parallelism().ok()?.get();
    let all = online()?;
    System::load_average().ok().map(|l| l.one).filter(|l| usable >= all && l.is_finite())
}

/// CPUs that the system runs on.
fn online() -> Option<usize> {
    // Not by sysconf: some C libraries count there only what the process may use.
    if cfg!(target_os = "linux") {
        return read(format!("{CPUS}/online")).as_deref().and_then(listed)?.try_into().ok();
    }
    std::thread::available_parallelism().ok().map(usize::from)
}

/// The source revision the program was built from.
pub fn git() -> Option<Git> {
    let revision = text(env!("TTFT_BUILD_REVISION"))?;
    Some(Git { revision, dirty: env!("TTFT_BUILD_DIRTY").parse().ok() })
}

/// The compiler the program was built with.
pub fn rustc() -> Option<String> {
    text(env!("TTFT_BUILD_RUSTC"))
}

/// A type of the kernels in the words of the records.
pub fn dtype(d: DType) -> Dtype {
    match d {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::Bf16,
    }
}

/// What a unit multiplies, in the words of the records.
fn factors(f: Factors) -> Dtype {
    match f {
        Factors::F32 => Dtype::F32,
        Factors::Bf16 => Dtype::Bf16,
        Factors::Int8 => Dtype::I8,
    }
}

/// Measures what the machine reaches, and goes on measuring it around cells.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    bytes: usize,
    dtype: DType,
    /// How often each limit is measured; the fastest counts.
    tries: usize,
}

impl Probe {
    /// A probe of multiply-adds in `dtype`, and of memory larger than this machine's last cache, but at most an eighth of what is
    /// available.
    pub fn for_machine(dtype: DType) -> Probe {
        let last = caches().and_then(|c| c.iter().map(|c| c.bytes).max()).unwrap_or(64 << 20);
        let most = available_memory().map_or(256 << 20, |m| m / 8);
        let bytes = (4 * last).clamp(64 << 20, 1 << 30).min(most.max(1 << 20)) as usize;
        Probe { bytes, dtype, tries: 25 }
    }

    /// A probe that takes a tenth of the time and 1 MiB, for runs of tiny networks, whose figures nobody uses.
    pub fn for_trial(dtype: DType) -> Probe {
        Probe { bytes: 1 << 20, dtype, tries: 2 }
    }

    /// The memory that is read. It is held only meanwhile, so that it is not counted as a cell's; and written, so that
    /// every page is there and is its own. None if the system does not give it.
    fn memory(&self) -> Option<Pages<u8>> {
        Pages::new(self.bytes, |_| 1).ok()
    }

    /// The limits of this machine with the engine's threads: by each of its units, and by the way of reading that is fastest.
    pub fn limits(&self, engine: &Engine) -> Limits {
        let used = Unit::in_use(engine, self.dtype);
        let library = peak::library_gflops(engine).map(|(name, gflops)| Peak {
            dtype: Dtype::F32,
            isa: Some(name.into()),
            gflops,
            in_use: Some(true),
        });
        let unit = |unit: Unit| {
            // Short, so that on a busy machine some are not interrupted.
            let gflops = fastest((0..self.tries).map(|_| peak::gflops(engine, unit, 1, 4)))?;
            let in_use = used.map(|used| used == unit);
            Some(Peak { dtype: factors(unit.factors()), isa: Some(unit.name().into()), gflops, in_use })
        };
        let memory = self.memory();
        let read = |memory: &Pages<u8>| {
            fastest(
                (0..self.tries.div_ceil(5)).flat_map(|_| Reading::all()).map(|way| way.gb_s(engine, memory.as_slice())),
            )
        };
        Limits {
            peaks: Unit::all().into_iter().filter_map(unit).chain(library).collect(),
            read_gb_per_s: memory.as_ref().and_then(read),
            threads: engine.threads().try_into().ok(),
            region_us: region_us(engine),
            out_of_reach: peak::out_of_reach().map(Into::into),
        }
    }

    /// The speed now: bursts of multiply-adds and of reading in turn, spread over some ten milliseconds.
    pub fn speed(&self, engine: &Engine) -> Rates {
        self.hold(engine).rates_of(engine, 8)
    }

    /// The probe with its memory, and with the unit and the way of reading that are fastest now, for many measurements in a row.
    pub fn hold(&self, engine: &Engine) -> Held {
        let memory = self.memory();
        let fastest = Fastest::find(engine, self.dtype, memory.as_ref().map_or(&[], |m| m.as_slice()));
        Held { memory, fastest }
    }
}

/// A probe that keeps the memory it reads.
#[derive(Debug)]
pub struct Held {
    memory: Option<Pages<u8>>,
    fastest: Fastest,
}

impl Held {
    /// Bytes of memory that it keeps.
    pub fn bytes(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.as_slice().len() as u64)
    }

    /// The speed now, by fewer bursts than [`Probe::speed`] takes: short enough to stand before every round.
    pub fn rates(&self, engine: &Engine) -> Rates {
        self.rates_of(engine, 4)
    }

    fn rates_of(&self, engine: &Engine, bursts: usize) -> Rates {
        // Each burst finds out for itself how long a millisecond is, so that an interruption there spoils no other.
        let read = || self.memory.as_ref().map_or(0.0, |memory| self.fastest.read_gb_s(engine, memory.as_slice()));
        let burst = |_| (self.fastest.gflops(engine, 1, 1), read());
        let (gflops, gb_s): (Vec<_>, Vec<_>) = (0..bursts).map(burst).unzip();
        Rates { gflops: fastest(gflops), read_gb_per_s: fastest(gb_s) }
    }
}

/// How fast the machine is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Multiply-adds, GFLOP/s.
    pub gflops: Option<f64>,
    /// Reading from memory, 1e9 bytes per second.
    pub read_gb_per_s: Option<f64>,
}

/// Microseconds of an empty parallel region while all threads are awake: the median of many bursts; none of one thread, which enters
/// no region.
fn region_us(engine: &Engine) -> Option<f64> {
    const REGIONS: u32 = 200;
    let pool = engine.pool();
    let burst = || {
        let start = std::time::Instant::now();
        (0..REGIONS).for_each(|_| pool.run(|_| ()));
        start.elapsed().as_secs_f64() * 1e6 / f64::from(REGIONS)
    };
    let mut bursts: Vec<f64> = (0..25).map(|_| burst()).collect();
    bursts.sort_by(f64::total_cmp);
    Some(bursts[bursts.len() / 2]).filter(|us| engine.threads() > 1 && *us > 0.0)
}

/// The highest of the rates of several bursts: an interruption slows some of them, a machine that has become slower all.
/// None if no rate is a positive number.
fn fastest(rates: impl IntoIterator<Item = f64>) -> Option<f64> {
    rates.into_iter().filter(|r| r.is_finite() && *r > 0.0).reduce(f64::max)
}

/// The speed before and after.
pub fn drift(before: Rates, after: Rates) -> Drift {
    Drift {
        before_gflops: before.gflops,
        after_gflops: after.gflops,
        before_read_gb_per_s: before.read_gb_per_s,
        after_read_gb_per_s: after.read_gb_per_s,
    }
}

/// The instruction sets of this CPU, weakest first, in words; without the one that is for tests.
pub fn isa_names() -> String {
    Isa::detected().iter().filter(|i| **i != Isa::AmxPlain).map(|i| i.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_sizes_parse() {
        for (list, n) in [("0", Some(1)), ("0-3", Some(4)), ("0-1,4,6-7", Some(5)), ("3-1", None), ("x", None)] {
            assert_eq!(listed(list), n, "{list}");
        }
        for (s, bytes) in [("32K", Some(32768)), ("1M", Some(1 << 20)), ("7", Some(7)), ("K", None), ("1T", None)] {
            assert_eq!(size(s), bytes, "{s}");
        }
    }

    #[test]
    fn power_states_of_macos() {
        let settings =
            "System-wide power settings:\nCurrently in use:\n standby              1\n lowpowermode         1\n";
        let thermal = "Note: No thermal warning level has been recorded\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 72\n";
        let state = |s, t| power_state(s, t).unwrap();
        assert_eq!(state(settings, thermal), "low power mode on, clock limited to 72% by heat");
        assert_eq!(state(&settings.replace("mode         1", "mode         0"), ""), "low power mode off");
        assert_eq!(power_state("", "CPU_Speed_Limit = soon"), None);
    }

    #[test]
    fn an_interruption_is_no_drift_and_a_lasting_slowdown_is() {
        let calm = [464.0, 470.0, 469.0, 466.0];
        let change = |after: &[f64]| {
            let speed = |rates: &[f64]| Rates { gflops: fastest(rates.iter().copied()), read_gb_per_s: None };
            drift(speed(&calm), speed(after)).change()
        };
        // An interrupted burst has the rate of almost nothing done, or half of it where one of two threads waited.
        assert!(change(&[7.0, 235.0, 234.0, 468.0]).unwrap() < 0.01);
        assert!(change(&[235.0, 7.0, 234.0, 235.0]).unwrap() > 0.9);
        assert!((change(&calm.map(|r| r / 1.25)).unwrap() - 0.25).abs() < 1e-9);
        assert_eq!(change(&[]), None);
    }

    #[test]
    fn the_fastest_is_the_highest_true_rate() {
        assert_eq!(fastest([3.0, 1.0, 2.0]), Some(3.0));
        assert_eq!(fastest([5.0]), Some(5.0));
        assert_eq!(fastest([f64::NAN, 4.0, f64::INFINITY, -1.0]), Some(4.0));
        for none in [&[][..], &[0.0], &[f64::NAN, f64::NEG_INFINITY]] {
            assert_eq!(fastest(none.iter().copied()), None);
        }
    }

    #[test]
    fn the_machine_has_memory_and_cores() {
        let m = fingerprint();
        assert!(m.logical_cores.unwrap() >= 1);
        assert!(m.memory_available_bytes.unwrap() <= m.memory_total_bytes.unwrap());
        assert_eq!(m.arch.as_deref(), Some(std::env::consts::ARCH));
    }
}
