//! What this process can time: an engine, weights, and the systems of a scenario, one call after another.
//!
//! A rig knows no record and no budget. A [`crate::session::Session`] has one, and so has every worker process.

use std::{
    collections::{BTreeSet, HashMap},
    hint,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use jiff::{Timestamp, Unit};
use ttft_kernels::{DType, Engine};
use ttft_models::{
    Extent, Inference, KvPrediction, Network, PhaseTimes, Pruned, RunSpec, System,
    cost::{CostSystem, Flops, PhaseCost},
    plan,
};
use ttft_reports::schema::{self, Cell, Decode, Kind, Memory, PhaseRecord, Probes};

use crate::{
    clock::{self, Clock, Reading},
    energy::Meter,
    knobs::RunKnobs,
    machine::{self, Probe, Rates},
    process,
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
            Size::Tiny => Probe::new(1 << 20, compute),
        };
        Ok(Rig {
            arms: scenario.arms()?,
            scenario,
            engine,
            weights,
            compute,
            probe,
            // A trial leaves nothing behind that could tell it.
            meter: (knobs.energy.unwrap_or(true) && !knobs.trial).then(Meter::find),
            networks: HashMap::new(),
            systems: HashMap::new(),
            slowdown: knobs.slowdown.unwrap_or(0.0) / 100.0,
            clock: Clock::of_this_machine(),
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
        let [base, aux @ ..] = &networks[..] else { bail!("{}: a system without a network", arm.system) };
        let system = match (arm.kind, arm.pruning()) {
            (Kind::Kvp, _) => {
                let own = self.scenario.catalog.pair(&arm.system)?.own;
                let dir = self.weights.predictor_dir(&arm.system)?;
                let kvp = KvPrediction::new(base.clone(), aux.first().cloned(), &dir)?.reading(own);
                kvp.predictor.warm();
                System::KvPrediction(kvp)
            }
            (_, Some(pruning)) => System::Pruned(Pruned::new(base.clone(), pruning)),
            (_, None) => System::Network(base.clone()),
        };
        let system = Arc::new(system);
        self.systems.insert(arm.system.clone(), Arc::clone(&system));
        Ok(system)
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
        let vocab = match system {
            System::Network(_) | System::Pruned(_) => system.base().config().vocab,
            System::KvPrediction(p) => p.networks().map(|n| n.config().vocab).fold(usize::MAX, usize::min),
        };
        let mut state = self.scenario.seed;
        (0..n).map(|_| (split_mix(&mut state) % vocab as u64) as u32).collect()
    }

    /// Opens a cell: weights and buffers. Nothing is checked or timed yet.
    ///
    /// # Errors
    /// What making or loading the weights, or planning the run, says.
    pub fn open(&mut self, arm: &Arm, group: &Group) -> Result<Running> {
        let (batch, prompt) = (group.batch, group.prompt);
        let system = self.system(arm)?;
        let spec = self.spec(batch, prompt);
        let inference = plan(&system, &spec)?;
        let mut cell = Cell::new(
            arm.kind,
            &arm.system,
            &arm.base,
            arm.aux.as_deref(),
            batch.try_into().context("batch")?,
            prompt.try_into().context("prompt")?,
        );
        let cost = self.weights.cost(arm)?;
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
        Ok(Running {
            inference,
            ids: self.prompt(&system, batch * prompt),
            decode: self.scenario.decode,
            slowdown: self.slowdown,
            cell,
            calls: Vec::new(),
            kernels: BTreeSet::new(),
            clock: self.clock.clone(),
        })
    }
}

/// One call of the sampler: a sample, or several where criterion wants more at once.
#[derive(Debug)]
struct Call {
    times: Vec<PhaseTimes>,
    /// Tokens after the first, sample after sample.
    steps: Vec<Duration>,
    faults: Option<(u64, u64)>,
    /// Before and after.
    clocks: (Reading, Reading),
}

/// An open cell.
pub struct Running {
    inference: Box<dyn Inference>,
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
        let mut call = Call { times: Vec::new(), steps: Vec::new(), faults: Some((0, 0)), clocks };
        for _ in 0..n {
            let before = process::faults();
            let mut times = self.inference.first_token(engine, &self.ids)?;
            times.total += delay(times.total.mul_f64(self.slowdown));
            call.times.push(times);
            let taken = before.zip(process::faults()).map(|(b, a)| (a.0 - b.0, a.1 - b.1));
            call.faults = call.faults.zip(taken).map(|(sum, n)| (sum.0 + n.0, sum.1 + n.1));
            self.kernels.extend(engine.take_used());
            for _ in 0..self.decode {
                call.steps.push(self.inference.next_token(engine)?);
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
        self.inference.first_token(engine, &self.ids)?;
        engine.take_used();
        Ok(())
    }

    /// Minor page faults of the last call; none if the system does not tell.
    pub fn last_minor_faults(&self) -> Option<u64> {
        Some(self.calls.last()?.faults?.0)
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
        let faults = |f: fn(&(u64, u64)) -> u64| taken.iter().map(|c| c.faults.as_ref().map(f)).sum::<Option<u64>>();
        cell.memory = Some(Memory {
            peak_rss_bytes: process::status_bytes("VmHWM"),
            rss_anon_bytes: process::status_bytes("RssAnon"),
            minor_faults: faults(|f| f.0),
            major_faults: faults(|f| f.1),
        });
        cell.load_after = machine::load();
        Ok(cell)
    }
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
    let PhaseCost { phase, flops, weight_bytes, cache_bytes } = cost;
    let Flops { projections, attention, head, prediction } = flops;
    let flops = schema::Flops { projections, attention, head, prediction };
    (phase.name().to_owned(), schema::Cost { flops, weight_bytes, cache_bytes })
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
        assert_eq!(Phase::ALL.map(Phase::name), schema::PHASES);
    }
}
