//! Several processes one after another that measure the same group, and one cell out of what they say.
//!
//! The samples of one process share its memory layout, its page placement and the place of its threads. What would come
//! out in another process can only be seen in another process.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use ttft_reports::schema::{Cell, Clocks, Cold, Decode, Drift, Memory, PhaseRecord, Placement, Probes, WarmPhase};

use crate::{
    cleanup,
    layout::Layout,
    placement,
    sampling::Outcome,
    worker::{Answer, Job},
};

/// The subcommand that does a [`Job`].
pub const WORKER: &str = "worker";

/// Words that stand before every program that is started: an emulator, where this build is for another machine.
const RUNNER: &str = "TTFT_TEST_RUNNER";

/// A command that runs a program of this build.
pub(crate) fn command(program: &Path) -> Command {
    let runner = std::env::var(RUNNER).unwrap_or_default();
    let mut words = runner.split_whitespace();
    let Some(first) = words.next() else { return Command::new(program) };
    let mut command = Command::new(first);
    command.args(words).arg(program);
    command
}

/// This program, even if its file was replaced since it started.
///
/// # Errors
/// A system that does not tell, called in a way that does not tell either.
pub(crate) fn this_program() -> Result<PathBuf> {
    let own = PathBuf::from("/proc/self/exe");
    if cfg!(target_os = "linux") && own.exists() && std::env::var_os(RUNNER).is_none() {
        return Ok(own);
    }
    if let Ok(path) = std::env::current_exe() {
        return Ok(path);
    }
    // Without /proc: as it was called, if that is a path.
    let called = std::env::args_os().next().map(PathBuf::from).filter(|path| path.components().count() > 1);
    called.filter(|path| path.is_file()).context("cannot find this program's own path, to start it again")
}

/// Runs one process that does the job; one outcome for each system. `tick` is told each system before it runs.
///
/// # Errors
/// The process cannot be started, ends before it has answered, or answers in other words.
pub fn run(
    flags: &[std::ffi::OsString],
    job: &Job,
    layout: &mut Layout,
    mut tick: impl FnMut(&str),
) -> Result<Vec<Outcome>> {
    let mut command = command(&this_program()?);
    command.arg(WORKER).args(flags).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = Running(
        placement::unbound(|| layout.vary(&mut command).spawn()).context("cannot start a process to measure in")?,
    );
    let _listed = cleanup::list_process(child.0.id());
    let mut input = child.0.stdin.take().context("the process has no input")?;
    // A process that ends at once says why by itself.
    let _ = serde_json::to_writer(&mut input, job).map_err(std::io::Error::from).and_then(|()| input.write_all(b"\n"));
    drop(input);
    let output = BufReader::new(child.0.stdout.take().context("the process has no output")?);
    let mut outcomes: Vec<Option<Outcome>> = job.arms.iter().map(|_| None).collect();
    let mut done = false;
    for line in output.lines() {
        let line = line.context("cannot read what the process says")?;
        match serde_json::from_str(&line).with_context(|| format!("the process said '{line}'"))? {
            Answer::Run(name) => tick(&name),
            Answer::Cell(at, cell) => {
                *outcomes.get_mut(at).context("a system that is not in the job")? = Some(Ok(*cell))
            }
            Answer::Failed(at, why) => {
                *outcomes.get_mut(at).context("a system that is not in the job")? = Some(Err(anyhow!(why)));
            }
            Answer::Done => done = true,
        }
    }
    let status = child.0.wait().context("cannot wait for the process")?;
    ensure!(status.success() && done, "a process that measured ended early ({status}); what it said stands above");
    outcomes.into_iter().map(|o| o.context("the process left a system out")).collect()
}

/// A process that does not outlive the call that started it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, unless something failed here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One cell of what several processes measured of one system, in order.
///
/// # Errors
/// No cells, or cells of different things.
pub fn merge(cells: Vec<Cell>) -> Result<Cell> {
    let mut cells = cells.into_iter().enumerate();
    let Some((_, mut all)) = cells.next() else { bail!("no process measured anything") };
    let mut processes = vec![0; all.samples_ns.len()];
    for (process, next) in cells {
        ensure!(all.id == next.id, "{} and {} are not the same cell", all.id, next.id);
        let n = next.samples_ns.len();
        processes.extend(vec![u32::try_from(process)?; n]);
        let start = all.rounds.as_ref().and_then(|r| r.last()).map_or(0, |last| last + 1);
        all.rounds = all.rounds.zip(next.rounds).map(|(a, b)| joined(a, b.into_iter().map(|r| start + r)));
        all.round_positions = all.round_positions.zip(next.round_positions).map(|(a, b)| joined(a, b));
        all.probes = all.probes.zip(next.probes).map(|(a, b)| Probes {
            gflops: joined(a.gflops, b.gflops),
            read_gb_per_s: joined(a.read_gb_per_s, b.read_gb_per_s),
        });
        all.clocks = all.clocks.zip(next.clocks).map(|(a, b)| Clocks {
            mhz: a.mhz.zip(b.mhz).map(|(a, b)| joined(a, b)),
            throttled: a.throttled.zip(b.throttled).map(|(a, b)| joined(a, b)),
            unknown: a.unknown.or(b.unknown),
        });
        all.warmup_ns.extend(next.warmup_ns);
        all.samples_ns.extend(next.samples_ns);
        ensure!(
            all.phases.iter().map(|p| &p.name).eq(next.phases.iter().map(|p| &p.name)),
            "{}: processes disagree about its phases",
            all.id
        );
        let phases = all.phases.into_iter().zip(next.phases);
        let phases = phases.map(|(a, b)| PhaseRecord { samples_ns: joined(a.samples_ns, b.samples_ns), ..a });
        all.phases = phases.collect();
        all.head =
            all.head.zip(next.head).map(|(a, b)| PhaseRecord { samples_ns: joined(a.samples_ns, b.samples_ns), ..a });
        all.decode =
            all.decode.zip(next.decode).map(|(a, b)| Decode { samples_ns: joined(a.samples_ns, b.samples_ns), ..a });
        all.kernels.extend(next.kernels);
        all.kernels.sort();
        all.kernels.dedup();
        all.memory = all.memory.zip(next.memory).map(|(a, b)| Memory {
            peak_rss_bytes: a.peak_rss_bytes.max(b.peak_rss_bytes),
            rss_anon_bytes: a.rss_anon_bytes.max(b.rss_anon_bytes),
            minor_faults: a.minor_faults.zip(b.minor_faults).map(|(a, b)| a + b),
            major_faults: a.major_faults.zip(b.major_faults).map(|(a, b)| a + b),
        });
        all.placement = all.placement.zip(next.placement).map(|(a, b)| placements(a, b));
        all.cold = match (all.cold, next.cold) {
            (Some(a), Some(b)) => Some(cold(a, b)),
            (None, None) => None,
            _ => bail!("{}: processes disagree about its start", all.id),
        };
        all.drift = all.drift.zip(next.drift).map(|(a, b)| Drift {
            after_gflops: b.after_gflops,
            after_read_gb_per_s: b.after_read_gb_per_s,
            ..a
        });
        all.load_after = next.load_after;
    }
    all.processes = Some(processes);
    Ok(all)
}

/// Where the threads of two processes were.
fn placements(a: Placement, b: Placement) -> Placement {
    let union = |a: Vec<u32>, b: Vec<u32>| joined(a, b).into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    Placement {
        cpus: a.cpus.zip(b.cpus).map(|(a, b)| a.into_iter().zip(b).map(|(a, b)| union(a, b)).collect()),
        nodes: a.nodes.zip(b.nodes).map(|(a, b)| union(a, b)),
        pinned: a.pinned && b.pinned,
        involuntary_switches: a.involuntary_switches.zip(b.involuntary_switches).map(|(a, b)| a + b),
        // The worse of both: huge pages that one of them lacks explain its times.
        anon_huge_bytes: a.anon_huge_bytes.zip(b.anon_huge_bytes).map(|(a, b)| a.min(b)),
        file_huge_bytes: a.file_huge_bytes.zip(b.file_huge_bytes).map(|(a, b)| a.min(b)),
    }
}

/// The cold starts of two processes.
fn cold(a: Cold, b: Cold) -> Cold {
    let phases = a.warm_phases.into_iter().zip(b.warm_phases);
    Cold {
        read_bytes: a.read_bytes.zip(b.read_bytes).map(|(a, b)| joined(a, b)),
        read_at_least: a.read_at_least || b.read_at_least,
        warm_ns: joined(a.warm_ns, b.warm_ns),
        warm_phases: phases.map(|(a, b)| WarmPhase { samples_ns: joined(a.samples_ns, b.samples_ns), ..a }).collect(),
        // What storage can do is what it did at its best.
        disk_gb_per_s: a.disk_gb_per_s.into_iter().chain(b.disk_gb_per_s).reduce(f64::max),
        ..a
    }
}

fn joined<T>(mut a: Vec<T>, b: impl IntoIterator<Item = T>) -> Vec<T> {
    a.extend(b);
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttft_reports::schema::Kind;

    fn cell(times: &[u64], rate: f64) -> Cell {
        let n = times.len();
        let phase = PhaseRecord { name: "prefill".into(), samples_ns: times.to_vec(), ..PhaseRecord::default() };
        Cell {
            warmup_ns: vec![9],
            samples_ns: times.to_vec(),
            rounds: Some((0..n as u32).collect()),
            round_positions: Some(vec![1; n]),
            probes: Some(Probes { gflops: vec![rate; n], read_gb_per_s: vec![1.0; n] }),
            clocks: Some(Clocks { mhz: Some(vec![rate; n]), throttled: None, unknown: Some("no counters".into()) }),
            phases: vec![phase],
            decode: Some(Decode { steps: 2, samples_ns: vec![3; 2 * n] }),
            kernels: vec![format!("k{n}")],
            memory: Some(Memory { peak_rss_bytes: Some(rate as u64), minor_faults: Some(2), ..Memory::default() }),
            placement: Some(Placement {
                cpus: Some(vec![vec![0], vec![rate as u32]]),
                involuntary_switches: Some(3),
                anon_huge_bytes: Some(rate as u64),
                ..Placement::default()
            }),
            drift: Some(Drift { before_gflops: Some(rate), after_gflops: Some(rate + 1.0), ..Drift::default() }),
            load_before: Some(rate),
            load_after: Some(rate + 1.0),
            ..Cell::new(Kind::Base, "OE1.1B", "OE1.1B", None, 1, 64)
        }
    }

    #[test]
    fn samples_of_several_processes_become_one_cell() {
        let all = merge(vec![cell(&[5, 6], 10.0), cell(&[7], 20.0), cell(&[8, 9], 30.0)]).unwrap();
        assert_eq!(all.samples_ns, [5, 6, 7, 8, 9]);
        assert_eq!(all.processes, Some(vec![0, 0, 1, 2, 2]));
        assert_eq!(all.process_ranges(), [0..2, 2..3, 3..5]);
        assert_eq!(all.rounds, Some(vec![0, 1, 2, 3, 4]));
        assert_eq!((all.warmup_ns.len(), all.phases[0].samples_ns.len()), (3, 5));
        assert_eq!(all.decode.unwrap().samples_ns.len(), 10);
        assert_eq!(all.probes.unwrap().gflops, [10.0, 10.0, 20.0, 30.0, 30.0]);
        let clocks = all.clocks.unwrap();
        assert_eq!(clocks.mhz, Some(vec![10.0, 10.0, 20.0, 30.0, 30.0]));
        assert_eq!((clocks.throttled, clocks.unknown), (None, Some("no counters".into())));
        assert_eq!(all.kernels, ["k1", "k2"]);
        let memory = all.memory.unwrap();
        assert_eq!((memory.peak_rss_bytes, memory.minor_faults), (Some(30), Some(6)));
        let placement = all.placement.unwrap();
        assert_eq!(placement.cpus, Some(vec![vec![0], vec![10, 20, 30]]));
        assert_eq!((placement.involuntary_switches, placement.anon_huge_bytes), (Some(9), Some(10)));
        assert_eq!((placement.nodes, placement.pinned), (None, false));
        let drift = all.drift.unwrap();
        assert_eq!((drift.before_gflops, drift.after_gflops), (Some(10.0), Some(31.0)));
        assert_eq!((all.load_before, all.load_after), (Some(10.0), Some(31.0)));
        let cold = |times: &[u64], rate| Cell {
            cold: Some(Cold {
                read_bytes: Some(times.to_vec()),
                warm_ns: times.to_vec(),
                warm_phases: vec![WarmPhase { name: "prefill".into(), samples_ns: times.to_vec() }],
                disk_gb_per_s: Some(rate),
                ..Cold::default()
            }),
            ..cell(times, 1.0)
        };
        let all = merge(vec![cold(&[1, 2], 3.0), cold(&[4], 2.0)]).unwrap().cold.unwrap();
        assert_eq!((all.read_bytes.as_deref(), &all.warm_ns[..]), (Some(&[1, 2, 4][..]), &[1, 2, 4][..]));
        assert_eq!((&all.warm_phases[0].samples_ns[..], all.disk_gb_per_s), (&[1, 2, 4][..], Some(3.0)));
        assert!(merge(vec![cold(&[1], 1.0), cell(&[1], 1.0)]).is_err());
        assert!(merge(Vec::new()).is_err());
        let other = Cell { id: "ttft/x".into(), ..cell(&[1], 1.0) };
        assert!(merge(vec![cell(&[1], 1.0), other]).unwrap_err().to_string().contains("not the same cell"));
    }
}
