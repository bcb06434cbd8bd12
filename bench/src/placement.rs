//! Where threads run and on which pages memory lies: what a run with many cores must tell.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::Result;
use ttft_kernels::{Engine, cpu::topology};
use ttft_reports::schema::Placement;

thread_local! {
    /// CPUs that this thread was allowed before it was bound to one, and that one.
    static BOUND: RefCell<Option<(Vec<usize>, usize)>> = const { RefCell::new(None) };
}

/// Binds each thread of the engine to a CPU of its own: cores of the fastest class first, then their siblings, then slower cores.
///
/// # Errors
/// A system that binds no threads, or does not describe its CPUs; more threads than CPUs.
#[cfg(target_os = "linux")]
pub fn pin(engine: &Engine) -> Result<()> {
    let cpus = unbound(topology::cpus_by_speed);
    anyhow::ensure!(
        engine.threads() <= cpus.len(),
        "--pin: {} threads need a CPU each, and this process may use {}: give --threads {}",
        engine.threads(),
        cpus.len(),
        cpus.len()
    );
    let failed = Mutex::new(None);
    engine.pool().run(|thread| {
        if let Err(e) = bind(&cpus[thread..=thread]) {
            *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some((cpus[thread], e));
        }
    });
    if let Some((cpu, e)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        anyhow::bail!("--pin: the system does not bind a thread to CPU {cpu}: {e}");
    }
    let own = cpus[0];
    BOUND.set(Some((cpus, own)));
    Ok(())
}

/// Binds each thread of the engine to a CPU of its own.
///
/// # Errors
/// This system binds no threads.
#[cfg(not(target_os = "linux"))]
pub fn pin(_: &Engine) -> Result<()> {
    anyhow::bail!("--pin: this system does not let a program choose the CPUs of its threads")
}

/// Lets the calling thread run on these CPUs alone.
#[cfg(target_os = "linux")]
fn bind(cpus: &[usize]) -> nix::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu))?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
}

/// Runs `start`, which starts a process or threads, on all CPUs: what is started inherits those of the thread that starts it.
pub fn unbound<T>(start: impl FnOnce() -> T) -> T {
    #[cfg(target_os = "linux")]
    if let Some((all, own)) = BOUND.with_borrow(Clone::clone) {
        // Where it is refused, what is started has what this thread has, and says so if it is too little.
        let _ = bind(&all);
        let out = start();
        let _ = bind(&[own]);
        return out;
    }
    start()
}

/// Whether the engine of this thread was bound.
pub fn pinned() -> bool {
    BOUND.with_borrow(Option::is_some)
}

/// The CPU that each thread of the engine is on now; none where the system does not tell.
pub fn cpus(engine: &Engine) -> Option<Vec<u32>> {
    let found = Mutex::new(vec![None; engine.threads()]);
    engine.pool().run(|thread| found.lock().unwrap_or_else(PoisonError::into_inner)[thread] = current());
    found.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect()
}

#[cfg(target_os = "linux")]
fn current() -> Option<u32> {
    nix::sched::sched_getcpu().ok()?.try_into().ok()
}

#[cfg(not(target_os = "linux"))]
fn current() -> Option<u32> {
    None
}

/// What the samples of a cell say of their threads: CPUs as [`cpus`] gave them after each, and switches while they were taken.
pub fn record(seen: &[Option<Vec<u32>>], involuntary_switches: Option<u64>) -> Placement {
    let each = seen.iter().cloned().collect::<Option<Vec<_>>>().filter(|all| !all.is_empty());
    let cpus = each.map(|all| {
        let of = |thread: usize| all.iter().map(|s| s[thread]).collect::<BTreeSet<_>>().into_iter().collect();
        (0..all[0].len()).map(of).collect::<Vec<Vec<u32>>>()
    });
    let nodes = cpus.as_ref().and_then(|cpus| {
        let of_cpu = |cpu: &u32| nodes()?.into_iter().find(|(_, has)| has.contains(&(*cpu as usize))).map(|n| n.0);
        let found: Option<BTreeSet<u32>> = cpus.iter().flatten().map(of_cpu).collect();
        Some(found?.into_iter().collect())
    });
    Placement {
        cpus,
        nodes,
        pinned: pinned(),
        involuntary_switches,
        anon_huge_bytes: huge_bytes("AnonHugePages"),
        file_huge_bytes: huge_bytes("FilePmdMapped"),
    }
}

/// The NUMA nodes with their CPUs.
pub fn nodes() -> Option<Vec<(u32, Vec<usize>)>> {
    nodes_under(Path::new("/sys/devices/system/node"))
}

fn nodes_under(dir: &Path) -> Option<Vec<(u32, Vec<usize>)>> {
    let node = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
        let list = fs::read_to_string(entry.path().join("cpulist")).ok()?;
        Some((number, topology::parse_list(&list)?))
    };
    let mut nodes: Vec<_> = fs::read_dir(dir).ok()?.flatten().filter_map(node).collect();
    nodes.sort();
    (!nodes.is_empty()).then_some(nodes)
}

/// Bytes of this process's memory on huge pages, of one kind.
fn huge_bytes(kind: &str) -> Option<u64> {
    huge_in(&fs::read_to_string("/proc/self/smaps_rollup").ok()?, kind)
}

fn huge_in(smaps: &str, kind: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|l| l.strip_prefix(kind)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttft_kernels::Options;

    #[test]
    fn pages_and_nodes_of_described_systems() {
        let smaps = "00400000-7ffe [rollup]\nRss:  100 kB\nAnonHugePages:    4096 kB\nFilePmdMapped:   0 kB\n";
        assert_eq!((huge_in(smaps, "AnonHugePages"), huge_in(smaps, "FilePmdMapped")), (Some(4 << 20), Some(0)));
        assert_eq!(huge_in(smaps, "Anon"), None);
        let dir = tempfile::tempdir().unwrap();
        for (node, list) in [("node0", "0-3\n"), ("node1", "4-7\n"), ("possible", "0-1\n")] {
            fs::create_dir(dir.path().join(node)).unwrap();
            fs::write(dir.path().join(node).join("cpulist"), list).unwrap();
        }
        assert_eq!(nodes_under(dir.path()), Some(vec![(0, vec![0, 1, 2, 3]), (1, vec![4, 5, 6, 7])]));
        assert_eq!(nodes_under(&dir.path().join("none")), None);
    }

    #[test]
    fn each_thread_names_the_cpus_that_it_was_on() {
        let seen = [Some(vec![3, 1]), Some(vec![0, 1]), Some(vec![3, 1])];
        assert_eq!(record(&seen, Some(7)).cpus, Some(vec![vec![0, 3], vec![1]]));
        assert_eq!(record(&[None], None).cpus, None);
        assert_eq!(record(&[], None).cpus, None);
        let engine = Engine::new(&Options { threads: Some(2), ..Options::default() }).unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(cpus(&engine).unwrap().len(), 2);
        }
    }

    /// In a thread of its own, which stays bound.
    #[cfg(target_os = "linux")]
    #[test]
    fn bound_threads_stay_where_they_are() {
        std::thread::spawn(|| {
            let all = topology::cpus_by_speed();
            let too_many = Engine::new(&Options { threads: Some(all.len() + 1), ..Options::default() }).unwrap();
            let refused = pin(&too_many).unwrap_err().to_string();
            assert!(refused.contains(&format!("--threads {}", all.len())), "{refused}");
            let engine = Engine::new(&Options { threads: Some(all.len().min(2)), ..Options::default() }).unwrap();
            pin(&engine).unwrap();
            let want: Vec<u32> = all.iter().take(2).map(|c| *c as u32).collect();
            for _ in 0..20 {
                assert_eq!(cpus(&engine).unwrap(), want);
            }
            assert!(pinned() && record(&[], None).pinned);
            let allowed = unbound(topology::cpus_by_speed);
            assert_eq!(allowed, all, "a process that is started has them all");
            assert_eq!(topology::cpus_by_speed(), all[..1]);
        })
        .join()
        .unwrap();
    }
}
