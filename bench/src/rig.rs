//! What this process can time: an engine, weights, and the systems of a scenario, one call after another.
//!
//! A rig knows no record and no budget. A [`crate::session::Session`] has one, and so has every worker process.

use std::{
    collections::{BTreeSet, HashMap},
    fs, hint,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use jiff::{Timestamp, Unit};
use ttft_kernels::{DType, Engine};
use ttft_models::{
    Extent, Inference, Network, Phase, PhaseTimes, RunSpec, System,
    cost::{CostSystem, Flops, PhaseCost},
    kv_prediction::layout::Order,
    pipeline, plan,
};
use ttft_reports::schema::{self, Cell, Cold, Decode, Memory, PhaseRecord, Probes, WarmPhase, cold_hash};

use crate::{
    clock::{self, Clock, Reading},
    cold,
    energy::Meter,
    knobs::RunKnobs,
    machine::{self, Probe, Rates},
    placement,
    process::{self, Events},
    scenario::{Arm, Scenario},
    weights::{Size, Weights},
};

/// What can be timed.
#[derive(Debug)]
pub struct Rig {
    /// What is to be measured.
    pub scenario: Scenario,
    /// The systems of the scenario.
    pub arms: Vec<Arm>,
    /// What computes.
    pub engine: Engine,
    /// Where the weights are.
    pub weights: Weights,
    /// Type of the factors in the matrix products, whatever the kernels make of them.
    pub compute: DType,
    /// Measures the machine's speed.
    pub probe: Probe,
    /// Measures energy, or why it cannot; none if that is not asked for.
    pub meter: Option<Result<Meter, String>>,
    networks: HashMap<String, Arc<Network>>,
    systems: HashMap<String, Arc<System>>,
    slowdown: f64,
    clock: Clock,
    /// The rate at which this process could read from storage, once it was measured.
    disk_gb_per_s: Option<Option<f64>>,
}

/// Systems that are measured next to one another, at one batch and prompt length.
#[derive(Clone, Debug)]
pub struct Group {
    /// Sequences.
    pub batch: usize,
    /// Prompt tokens of each.
    pub prompt: usize,
    /// 1, or higher where memory does not hold all systems of this batch and length at once.
    pub part: u32,
    /// The systems.
    pub arms: Vec<Arm>,
}

impl Group {
    /// Its name in records.
    pub fn label(&self) -> String {
        let part = if self.part > 1 { format!("/{}", self.part) } else { String::new() };
        format!("b{}/p{}{part}", self.batch, self.prompt)
    }

    /// The ids of its cells.
    pub fn ids(&self) -> impl Iterator<Item = String> + '_ {
        self.arms.iter().map(|a| a.id(self.batch, self.prompt))
    }
}

/// The time now, RFC 3339 in UTC, to the second.
pub(crate) fn now() -> String {
    let now = Timestamp::now();
    now.round(Unit::Second).unwrap_or(now).to_string()
}

pub(crate) fn count(n: usize) -> Option<u32> {
    n.try_into().ok()
}

impl Rig {
    /// A rig for what the knobs ask for. No weights are made or loaded yet.
    ///
    /// # Errors
    /// A knob that cannot be honoured.
    pub fn new(knobs: &RunKnobs, size: Size) -> Result<Rig> {
        let scenario = knobs.scenario()?;
        let weights = Weights::new(knobs.weights.clone(), scenario.dtype, scenario.seed, size)?;
        let weights = weights.of(scenario.catalog.clone());
        let engine = knobs.engine.engine()?;
        let compute = machine::compute_dtype(scenario.precision().dtype(), scenario.dtype);
        let probe = match size {
            Size::Real => Probe::for_machine(compute),
            Size::Tiny => Probe::for_trial(compute),
        };
        // A trial leaves nothing behind that could tell it; to evict weights takes energy too.
        let meter = knobs.energy.unwrap_or(true) && !knobs.trial && scenario.start() == schema::Start::Warm;
        Ok(Rig {
            arms: scenario.arms()?,
            scenario,
            engine,
            weights,
            compute,
            probe,
            meter: meter.then(Meter::find),
            networks: HashMap::new(),
            systems: HashMap::new(),
            slowdown: knobs.slowdown.unwrap_or(0.0) / 100.0,
            clock: Clock::of_this_machine(),
            disk_gb_per_s: None,
        })
    }

    /// What a cell asks of the models.
    pub fn spec(&self, batch: usize, prompt: usize) -> RunSpec {
        let (precision, extent) = (self.scenario.precision(), self.scenario.extent());
        RunSpec { batch, prompt, generate: 1 + self.scenario.decode as usize, precision, extent }
    }

    /// The system of an arm, its weights made, verified and mapped.
    ///
    /// # Errors
    /// What making or loading the weights says.
    pub fn system(&mut self, arm: &Arm) -> Result<Arc<System>> {
        if let Some(system) = self.systems.get(&arm.system) {
            return Ok(Arc::clone(system));
        }
        let networks = arm.networks().into_iter().map(|n| self.network(n)).collect::<Result<Vec<_>>>()?;
        let predictor = self.weights.prediction(arm)?;
        let system = arm.assemble(networks, predictor)?;
        if let System::KvPrediction(kvp) = &system {
            kvp.predictor.warm();
        }
        let system = Arc::new(system);
        self.systems.insert(arm.system.clone(), Arc::clone(&system));
        Ok(system)
    }

    /// Drops what is mapped, if starts are cold: nobody can evict what somebody has mapped.
    pub fn release(&mut self) {
        if self.scenario.start() == schema::Start::Cold {
            self.systems.clear();
            self.networks.clear();
        }
    }

    /// Makes the weights of these arms, where that has a use.
    ///
    /// # Errors
    /// Cold starts where they cannot be had; as [`Weights::make`].
    pub fn make(&self, arms: &[Arm]) -> Result<()> {
        if self.scenario.start() == schema::Start::Cold {
            cold::possible(self.weights.root())?;
        }
        self.weights.make(arms)
    }

    /// A system from cold starts: its folders verified, and everything in them brought out of memory.
    fn start(&mut self, arm: &Arm, spec: RunSpec) -> Result<(cold::Start, Cold)> {
        let networks = arm.networks().into_iter().map(|n| self.weights.network_dir(n)).collect::<Result<Vec<_>>>()?;
        let predictor = self.weights.prediction(arm)?;
        ensure!(
            predictor.as_ref().is_none_or(|(_, own, _)| !own.kept),
            "{}: a cold start has no earlier call that could have kept anything: leave --keep-sinks, or 'kept' in the name, out",
            arm.system
        );
        let start = cold::Start { arm: arm.clone(), spec, networks, predictor };
        start.evict()?;
        let sizes: Vec<(u64, PathBuf)> =
            start.files()?.into_iter().map(|file| Ok((fs::metadata(&file)?.len(), file))).collect::<Result<_>>()?;
        let disk_gb_per_s = match (self.disk_gb_per_s, sizes.iter().max()) {
            (Some(known), _) => known,
            (None, Some((_, largest))) => *self.disk_gb_per_s.insert(cold::read_rate(largest)?),
            (None, None) => None,
        };
        let file_bytes = sizes.iter().map(|(size, _)| size).sum();
        Ok((start, Cold { file_bytes, cache: cold::cache(), disk_gb_per_s, ..Cold::default() }))
    }

    /// Whether an arm's layers run in turn at this size though the pipelined order was asked for.
    ///
    /// # Errors
    /// A system that is not in the zoo.
    pub fn falls_back(&self, arm: &Arm, batch: usize, prompt: usize) -> Result<bool> {
        Ok(self.weights.cost(arm)?.falls_back(&self.spec(batch, prompt)))
    }

    fn network(&mut self, name: &str) -> Result<Arc<Network>> {
        if let Some(n) = self.networks.get(name) {
            return Ok(Arc::clone(n));
        }
        let network = Arc::new(Network::load(&self.weights.network_dir(name)?)?);
        network.warm();
        self.networks.insert(name.to_owned(), Arc::clone(&network));
        Ok(network)
    }

    /// Token ids of the synthetic prompt: spread over the vocabulary, the same for every system.
    pub fn prompt(&self, system: &System, n: usize) -> Vec<u32> {
        let vocab = system.networks().map(|n| n.config().vocab).fold(usize::MAX, usize::min);
        self.ids(vocab, n)
    }

    fn ids(&self, vocab: usize, n: usize) -> Vec<u32> {
        let mut state = self.scenario.seed;
        (0..n).map(|_| (split_mix(&mut state) % vocab as u64) as u32).collect()
    }

    /// Opens a cell: weights and buffers. Nothing is checked or timed yet.
    ///
    /// # Errors
    /// What making or loading the weights, or planning the run, says.
    pub fn open(&mut self, arm: &Arm, group: &Group) -> Result<Running> {
        let (batch, prompt) = (group.batch, group.prompt);
        let spec = self.spec(batch, prompt);
        let cost = self.weights.cost(arm)?;
        let (at, ids, cold) = match arm.start {
            schema::Start::Warm => {
                let system = self.system(arm)?;
                (At::Warm(plan(&system, &spec)?), self.prompt(&system, batch * prompt), None)
            }
            schema::Start::Cold => {
                let (start, cold) = self.start(arm, spec)?;
                let vocab = cost.aux().iter().map(|aux| aux.vocab).fold(cost.base.vocab, usize::min);
                (At::Cold(Box::new(start)), self.ids(vocab, batch * prompt), Some(cold))
            }
        };
        let mut cell = Cell::new(
            arm.kind,
            &arm.system,
            &arm.base,
            arm.aux.as_deref(),
            batch.try_into().context("batch")?,
            prompt.try_into().context("prompt")?,
        );
        cell.id = arm.id(batch, prompt);
        cell.group = group.label();
        cell.started_at = Some(now());
        cell.weight_dtype = Some(machine::dtype(self.scenario.dtype));
        cell.precision = Some(machine::dtype(spec.precision.dtype()));
        cell.compute_dtype = Some(machine::dtype(self.compute));
        cell.extent = Some(extent(spec.extent));
        cell.threads = count(self.engine.threads());
        cell.isa = Some(self.engine.isa().name().into());
        cell.backend = Some(self.engine.backend().name().into());
        cell.paper_flops = Some(cost.paper_flops(batch, prompt));
        cell.load_before = machine::load();
        cell.phases = phases(&cost, &spec)
            .into_iter()
            .map(|(name, cost)| PhaseRecord { name, cost: Some(cost), ..Default::default() })
            .collect();
        let head = Some(phase(cost.head(&spec)).1);
        cell.head = Some(PhaseRecord { name: HEAD.into(), cost: head, ..Default::default() });
        if cold.is_some() {
            let cost = Some(schema::Cost::default());
            let open = PhaseRecord { name: OPEN.into(), cost, parallel_regions: Some(0), ..Default::default() };
            cell.phases.insert(0, open);
            cell.scenario_hash = cold_hash(&cell.scenario_hash);
            cell.cold = cold;
        }
        Ok(Running {
            at,
            ids,
            decode: self.scenario.decode,
            slowdown: self.slowdown,
            cell,
            calls: Vec::new(),
            kernels: BTreeSet::new(),
            clock: self.clock.clone(),
        })
    }
}

/// What is said of a system that falls back.
pub(crate) fn in_turn() -> String {
    format!(
        "the base runs after the auxiliary, because the pipelined order pays only where the auxiliary reads no more than {} \
         tokens of all prompts together",
        pipeline::MOST_ROWS
    )
}

/// Whether the same system in turn stands among the arms, so that an arm has nothing to measure where it falls back.
pub(crate) fn beside_in_turn(arms: &[Arm], arm: &Arm) -> bool {
    let plain = Order::strip(&arm.system).0;
    arms.iter().any(|other| other.kind == arm.kind && other.system == plain)
}

/// Why a system that falls back is not measured where the same one in turn stands beside it.
pub(crate) fn same_in_turn() -> String {
    format!("would be the same run as without -pipelined: {}", in_turn())
}

/// The phase of a cold start before those of the models.
const OPEN: &str = "open";

/// What of the last phase is recorded apart.
const HEAD: &str = "head";

/// A system, before a sample.
enum At {
    /// Planned, its weights in memory.
    Warm(Box<dyn Inference>),
    /// To be opened, with nothing of it in memory.
    Cold(Box<cold::Start>),
}

/// What a cold start adds to a sample.
#[derive(Debug)]
struct Opening {
    open: Duration,
    /// Bytes read, or why that is unknown.
    read: Result<u64, String>,
    /// The same work again with the weights in memory.
    warm: PhaseTimes,
}

/// One call of the sampler: a sample, or several where criterion wants more at once.
#[derive(Debug)]
struct Call {
    times: Vec<PhaseTimes>,
    /// Tokens after the first, sample after sample.
    steps: Vec<Duration>,
    events: Option<Events>,
    /// The CPU of each thread after each of the times.
    cpus: Vec<Option<Vec<u32>>>,
    /// Before and after.
    clocks: (Reading, Reading),
    /// One for each of the times, of cold starts.
    openings: Vec<Opening>,
}

/// An open cell.
pub struct Running {
    at: At,
    ids: Vec<u32>,
    decode: u32,
    slowdown: f64,
    cell: Cell,
    calls: Vec<Call>,
    kernels: BTreeSet<&'static str>,
    clock: Clock,
}

/// Where and when the samples of a cell were taken.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// Place of every sample within its round.
    pub positions: Vec<u32>,
    /// Speed of the machine before the round of every sample.
    pub rates: Vec<Rates>,
}

impl Running {
    /// The cell's id.
    pub fn id(&self) -> &str {
        &self.cell.id
    }

    /// The system's name.
    pub fn system(&self) -> &str {
        &self.cell.system
    }

    /// Runs to the first token `n` times, one call of the sampler, and after each time some steps further; the sum of the
    /// times to first token.
    ///
    /// # Errors
    /// What the models say.
    pub fn call(&mut self, engine: &Engine, n: u64) -> Result<Duration> {
        engine.take_used();
        let clocks = (self.clock.read(), Reading::default());
        let (times, steps, openings, cpus) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut call = Call { times, steps, events: Some(Events::default()), cpus, clocks, openings };
        for _ in 0..n {
            if let At::Cold(start) = &self.at {
                start.evict()?;
            }
            let (before, read) = (Events::now(), process::read_bytes());
            let mut opened;
            let (inference, open) = match &mut self.at {
                At::Warm(inference) => (inference, None),
                At::Cold(start) => {
                    let clock = Instant::now();
                    opened = start.open()?;
                    (&mut opened, Some(clock.elapsed()))
                }
            };
            let mut times = inference.first_token(engine, &self.ids)?;
            times.total += open.unwrap_or_default();
            times.total += delay(times.total.mul_f64(self.slowdown));
            call.times.push(times);
            let taken = before.zip(Events::now()).map(|(before, now)| now.with(before, |now, then| now - then));
            call.events = call.events.zip(taken).map(|(sum, n)| sum.with(n, |sum, n| sum + n));
            call.cpus.push(placement::cpus(engine));
            self.kernels.extend(engine.take_used());
            if let Some(open) = open {
                let by_io = read.and_then(|before| Ok(process::read_bytes()?.saturating_sub(before)));
                let read = by_io.or_else(|why| by_faults(taken, why));
                call.openings.push(Opening { open, read, warm: inference.first_token(engine, &self.ids)? });
            }
            for _ in 0..self.decode {
                call.steps.push(inference.next_token(engine)?);
            }
            // Kernels of generation are no part of the time to first token.
            engine.take_used();
        }
        call.clocks.1 = self.clock.read();
        let total = call.times.iter().map(|t| t.total).sum();
        self.calls.push(call);
        Ok(total)
    }

    /// Runs to the first token once more, without a sample: for what else there is to measure.
    ///
    /// # Errors
    /// What the models say.
    pub fn again(&mut self, engine: &Engine) -> Result<()> {
        if let At::Warm(inference) = &mut self.at {
            inference.first_token(engine, &self.ids)?;
        }
        engine.take_used();
        Ok(())
    }

    /// Minor page faults of the last call; none if the system does not tell.
    pub fn last_minor_faults(&self) -> Option<u64> {
        Some(self.calls.last()?.events?.minor_faults)
    }

    /// The cell as far as this process measured it. The last `samples` calls are its samples, the ones before warm-up.
    /// Its buffers stay: a system that takes memory back while the next cell's probe runs would disturb that.
    ///
    /// # Errors
    /// No samples were taken.
    pub fn cell(&self, samples: usize, places: Option<Places>) -> Result<Cell> {
        let (mut cell, decode) = (self.cell.clone(), self.decode);
        let (warm, taken) = self.calls.split_at(self.calls.len().saturating_sub(samples));
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        cell.warmup_ns = warm.iter().flat_map(|c| &c.times).map(|t| nanos(t.total)).collect();
        let times: Vec<&PhaseTimes> = taken.iter().flat_map(|c| &c.times).collect();
        ensure!(!times.is_empty(), "{}: no samples were taken", cell.id);
        cell.samples_ns = times.iter().map(|t| nanos(t.total)).collect();
        for phase in &mut cell.phases {
            let of = |t: &&PhaseTimes| t.phases.iter().find(|p| p.phase.name() == phase.name).copied();
            phase.samples_ns = times.iter().map(|t| of(t).map_or(0, |p| nanos(p.time))).collect();
            // The same in every sample: it follows from shapes and threads.
            phase.parallel_regions = times.first().and_then(of).map(|p| p.regions as u64);
        }
        if let Some(head) = &mut cell.head {
            head.samples_ns = times.iter().map(|t| nanos(t.head)).collect();
        }
        if let Some(cold) = &mut cell.cold {
            let openings: Vec<&Opening> = taken.iter().flat_map(|c| &c.openings).collect();
            cell.phases[0].samples_ns = openings.iter().map(|o| nanos(o.open)).collect();
            fill(cold, &openings);
        }
        cell.decode = (decode > 0).then(|| Decode {
            steps: decode,
            samples_ns: taken.iter().flat_map(|c| &c.steps).map(|d| nanos(*d)).collect(),
        });
        if let Some(places) = places {
            cell.rounds = count(samples).map(|n| (0..n).collect());
            cell.round_positions = Some(places.positions);
            let rates = places.rates.iter();
            let all = rates.map(|r| r.gflops.zip(r.read_gb_per_s)).collect::<Option<Vec<_>>>();
            cell.probes = all.map(|all| {
                let (gflops, read_gb_per_s) = all.into_iter().unzip();
                Probes { gflops, read_gb_per_s }
            });
        }
        // Of several samples in one call, each has what the call has.
        let readings = taken.iter().flat_map(|c| c.times.iter().map(|_| c.clocks));
        cell.clocks = Some(clock::record(&readings.collect::<Vec<_>>()));
        cell.kernels = self.kernels.iter().map(|k| (*k).into()).collect();
        let events = |f: fn(&Events) -> u64| taken.iter().map(|c| c.events.as_ref().map(f)).sum::<Option<u64>>();
        cell.memory = Some(Memory {
            peak_rss_bytes: process::status_bytes("VmHWM"),
            rss_anon_bytes: process::status_bytes("RssAnon"),
            minor_faults: events(|e| e.minor_faults),
            major_faults: events(|e| e.major_faults),
        });
        let seen: Vec<_> = taken.iter().flat_map(|c| c.cpus.iter().cloned()).collect();
        cell.placement = Some(placement::record(&seen, events(|e| e.involuntary_switches)));
        cell.load_after = machine::load();
        Ok(cell)
    }
}

/// Bytes of the pages that faults read, where the system does not count them; `why` it does not.
fn by_faults(taken: Option<Events>, why: String) -> Result<u64, String> {
    match taken.zip(machine::page_bytes()) {
        Some((taken, page)) => Ok(taken.major_faults * page),
        None => Err(why),
    }
}

/// What the samples of a cold start add.
fn fill(cold: &mut Cold, openings: &[&Opening]) {
    let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    let read: Result<Vec<u64>, String> = openings.iter().map(|o| o.read.clone()).collect();
    let counts = process::read_bytes();
    cold.read_at_least = counts.is_err();
    (cold.read_bytes, cold.read_source) = match (read, counts) {
        (Ok(bytes), Ok(_)) => (Some(bytes), "read_bytes in /proc/self/io".into()),
        (Ok(bytes), Err(why)) => {
            (Some(bytes), format!("major page faults, a page each, without what was read ahead; {why}"))
        }
        (Err(why), _) => (None, format!("unknown: {why}")),
    };
    cold.warm_ns = openings.iter().map(|o| nanos(o.warm.total)).collect();
    let names = openings.first().map(|o| o.warm.phases.iter().map(|p| p.phase).collect::<Vec<_>>());
    let of = |phase| move |o: &&Opening| o.warm.phases.iter().find(|p| p.phase == phase).map_or(0, |p| nanos(p.time));
    let warm =
        |phase: Phase| WarmPhase { name: phase.name().into(), samples_ns: openings.iter().map(of(phase)).collect() };
    cold.warm_phases = names.into_iter().flatten().map(warm).collect();
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("id", &self.cell.id).field("calls", &self.calls.len()).finish_non_exhaustive()
    }
}

/// Keeps this core busy for a time, as slower code would; what it took.
fn delay(time: Duration) -> Duration {
    if time.is_zero() {
        return time;
    }
    let start = Instant::now();
    while start.elapsed() < time {
        hint::spin_loop();
    }
    start.elapsed()
}

/// The phases of a system to its first token, with their work, in the words of the records.
pub(crate) fn phases(cost: &CostSystem, spec: &RunSpec) -> Vec<(String, schema::Cost)> {
    cost.first_token(spec).into_iter().map(phase).collect()
}

pub(crate) fn phase(cost: PhaseCost) -> (String, schema::Cost) {
    let PhaseCost { phase, flops, f32_flops, weight_bytes, cache_bytes } = cost;
    let Flops { projections, attention, head, prediction } = flops;
    let flops = schema::Flops { projections, attention, head, prediction };
    (phase.name().to_owned(), schema::Cost { flops, f32_flops: Some(f32_flops), weight_bytes, cache_bytes })
}

/// SplitMix64, for prompts: the same ids on every machine.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

pub(crate) fn extent(e: Extent) -> schema::Extent {
    match e {
        Extent::FirstToken => schema::Extent::FirstToken,
        Extent::FullNetwork => schema::Extent::FullNetwork,
    }
}

#[cfg(test)]
mod tests {
    use ttft_models::Phase;

    use super::*;

    #[test]
    fn phases_are_those_that_reports_know() {
        let names: Vec<&str> = [OPEN].into_iter().chain(Phase::ALL.map(Phase::name)).collect();
        assert_eq!(names, schema::PHASES);
    }
}
