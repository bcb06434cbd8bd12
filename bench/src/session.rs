//! A run: the systems of a scenario, measured one sample at a time.
//!
//! Two samplers drive it: criterion (`benches/ttft.rs`) and rounds ([`crate::rounds`]). Both open cells, take samples
//! and close them; what a sample is, and what goes into the record, is the same.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use jiff::{Timestamp, Unit};
use ttft_kernels::Engine;
use ttft_models::{
    Extent, Inference, KvPrediction, Network, PhaseTimes, Predictor, RunSpec, System,
    cost::{CostSystem, Flops, PhaseCost},
    plan,
};
use ttft_reports::schema::{
    self, Cell, Gate, Limits, Memory, PhaseRecord, Record, RunHeader, Sampler, Settings, Skipped, Writer,
};

use ttft_reports::format::{bytes, seconds};

use crate::{
    estimate::Speed,
    gate,
    knobs::RunKnobs,
    machine::{self, Probe},
    output,
    scenario::{Arm, Scenario},
    weights::{Size, Weights},
};

/// A run.
#[derive(Debug)]
pub struct Session {
    /// What it measures.
    pub scenario: Scenario,
    /// The systems of the scenario.
    pub arms: Vec<Arm>,
    /// What computes.
    pub engine: Engine,
    /// Where the weights are.
    pub weights: Weights,
    /// How fast this machine turned out to be.
    pub speed: Speed,
    limits: Limits,
    probe: Probe,
    networks: HashMap<String, Arc<Network>>,
    systems: HashMap<String, Arc<System>>,
    gates: HashMap<String, Gate>,
    writer: Writer,
    started: Instant,
    failed: Vec<String>,
    /// The scenario as it was asked for.
    scenario_arg: String,
}

/// The command line; of the program only its name, since where it lies is the user's own affair.
fn command() -> Vec<String> {
    let mut args: Vec<String> = std::env::args().collect();
    if let Some(program) = args.first_mut() {
        let name = Path::new(program.as_str()).file_name().map(|n| n.to_string_lossy().into_owned());
        *program = name.unwrap_or_default();
    }
    args
}

/// The time now, RFC 3339 in UTC, to the second.
fn now() -> String {
    let now = Timestamp::now();
    now.round(Unit::Second).unwrap_or(now).to_string()
}

fn count(n: usize) -> Option<u32> {
    n.try_into().ok()
}

impl Session {
    /// Starts a run: builds the engine, measures the machine's limits, opens the record.
    ///
    /// # Errors
    /// A knob that cannot be honoured; a record that exists or cannot be written.
    pub fn start(knobs: &RunKnobs, sampler: Sampler, rounds: Option<u32>, size: Size) -> Result<Session> {
        let mut scenario = knobs.scenario()?;
        scenario.rounds = rounds.unwrap_or(scenario.rounds);
        let arms = scenario.arms()?;
        let weights = Weights::new(knobs.weights.clone(), scenario.dtype, scenario.seed, size)?;
        let engine = knobs.engine.engine()?;
        let started_at = now();
        let path = match &knobs.out {
            Some(path) => path.clone(),
            None => default_record(&scenario.name, &started_at)?,
        };
        let precision = scenario.precision();
        let activations = precision.dtype();
        let compute = machine::compute_dtype(&engine, activations, scenario.dtype);
        let probe = match size {
            Size::Real => Probe::for_machine(compute),
            Size::Tiny => Probe::new(1 << 20, compute),
        };
        let limits = probe.limits(&engine);
        let name = path.file_stem().map(|s| s.to_string_lossy().replace(char::is_whitespace, "_"));
        let header = RunHeader {
            schema: schema::SCHEMA.into(),
            run_id: name.unwrap_or_else(|| scenario.name.clone()),
            started_at: Some(started_at),
            command: command(),
            git: machine::git(),
            ttft_version: Some(env!("CARGO_PKG_VERSION").into()),
            rustc: machine::rustc(),
            settings: Settings {
                sampler: Some(sampler),
                scenario: Some(scenario.name.clone()),
                scenario_sha256: Some(scenario.sha256.clone()),
                rounds: Some(scenario.rounds),
                isa: knobs.engine.isa.map(|i| i.name().into()),
                backend: Some(engine.backend().name().into()),
                threads: count(engine.threads()),
                precision: Some(machine::dtype(activations)),
                extent: Some(extent(scenario.extent())),
                seed: Some(scenario.seed),
            },
            machine: machine::fingerprint(),
            limits: limits.clone(),
            notes: Vec::new(),
        };
        let speed = Speed::new(&limits, machine::dtype(compute));
        let writer = Writer::create(&path, header)?;
        Ok(Session {
            scenario,
            arms,
            engine,
            weights,
            speed,
            limits,
            probe,
            networks: HashMap::new(),
            systems: HashMap::new(),
            gates: HashMap::new(),
            writer,
            started: Instant::now(),
            failed: Vec::new(),
            scenario_arg: knobs.scenario.clone(),
        })
    }

    /// What the machine reached.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The record's file.
    pub fn record_path(&self) -> &Path {
        self.writer.path()
    }

    /// Seconds of the budget that are left.
    pub fn budget_left(&self) -> f64 {
        self.scenario.budget_s - self.started.elapsed().as_secs_f64()
    }

    /// What a cell asks of the models.
    pub fn spec(&self, batch: usize, prompt: usize) -> RunSpec {
        let (precision, extent) = (self.scenario.precision(), self.scenario.extent());
        RunSpec { batch, prompt, generate: 1, precision, extent }
    }

    /// Estimated seconds of one sample.
    ///
    /// # Errors
    /// A system that is not in the zoo.
    pub fn estimate(&self, arm: &Arm, batch: usize, prompt: usize) -> Result<f64> {
        Ok(self.speed.seconds(&phases(&self.weights.cost(arm)?, &self.spec(batch, prompt))))
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
        let system = match &networks[..] {
            [base, aux] => {
                let dir = self.weights.predictor_dir(&arm.system)?;
                let predictor = Predictor::load(&dir, base, aux)?;
                predictor.warm();
                System::KvPrediction(KvPrediction { base: base.clone(), aux: aux.clone(), predictor: predictor.into() })
            }
            [network, ..] => System::Network(network.clone()),
            [] => bail!("{}: a system without a network", arm.system),
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

    /// Bytes that a cell needs: weights mapped, caches and activations.
    ///
    /// # Errors
    /// As [`Session::system`].
    pub fn memory(&mut self, arm: &Arm, batch: usize, prompt: usize) -> Result<u64> {
        Ok(ttft_models::memory(&*self.system(arm)?, &self.spec(batch, prompt)).total())
    }

    /// Bytes of weights that these arms map, each network once.
    fn mapped<'a>(&self, arms: impl Iterator<Item = &'a Arm>) -> u64 {
        let systems: Vec<_> = arms.filter_map(|a| self.systems.get(&a.system)).collect();
        let mut networks = BTreeMap::new();
        for s in &systems {
            let (aux, predictor) = match &***s {
                System::Network(_) => (None, None),
                System::KvPrediction(p) => (Some(&p.aux), Some(&p.predictor)),
            };
            networks.extend([s.base()].into_iter().chain(aux).map(|n| (Arc::as_ptr(n) as usize, n.mapped_bytes())));
            networks.extend(predictor.map(|p| (Arc::as_ptr(p) as usize, p.mapped_bytes())));
        }
        networks.into_values().fold(0, u64::saturating_add)
    }

    /// Opens a cell: weights, memory preflight, correctness gate, buffers, and the speed of the machine before it.
    /// `beside` are the cells that stay open.
    ///
    /// # Errors
    /// Why the cell must not be timed; [`Session::skip`] notes it.
    pub fn open(&mut self, arm: &Arm, batch: usize, prompt: usize, beside: &[Running]) -> Result<Running> {
        let system = self.system(arm)?;
        let spec = self.spec(batch, prompt);
        let own = ttft_models::memory(&system, &spec).allocated();
        let need = self.mapped(beside.iter().map(|r| &r.arm).chain([arm]))
            + beside.iter().fold(own, |sum, r| sum.saturating_add(r.allocated));
        if let Some(free) = machine::available_memory() {
            ensure!(
                need <= free,
                "needs {} of memory (weights mapped, caches and activations, with the {} systems measured beside it), {} \
                 are available: take a smaller batch, prompt or model",
                bytes(need),
                beside.len(),
                bytes(free)
            );
        }
        let gate = self.gate(arm, &system)?;
        let inference = plan(&system, &spec)?;
        let weights = self.scenario.dtype;
        let activations = spec.precision.dtype();
        let mut cell = Cell::new(
            arm.kind,
            &arm.system,
            &arm.base,
            arm.aux.as_deref(),
            batch.try_into().context("batch")?,
            prompt.try_into().context("prompt")?,
        );
        let cost = self.weights.cost(arm)?;
        cell.started_at = Some(now());
        cell.weight_dtype = Some(machine::dtype(weights));
        cell.precision = Some(machine::dtype(activations));
        cell.compute_dtype = Some(machine::dtype(machine::compute_dtype(&self.engine, activations, weights)));
        cell.extent = Some(extent(spec.extent));
        cell.threads = count(self.engine.threads());
        cell.isa = Some(self.engine.isa().name().into());
        cell.backend = Some(self.engine.backend().name().into());
        cell.paper_flops = Some(cost.paper_flops(batch, prompt));
        cell.gate = Some(gate);
        cell.load_before = machine::load();
        cell.phases = phases(&cost, &spec)
            .into_iter()
            .map(|(name, cost)| PhaseRecord { name, cost: Some(cost), ..Default::default() })
            .collect();
        let ids = self.prompt(&system, batch * prompt);
        let before = self.probe.speed(&self.engine);
        Ok(Running {
            arm: arm.clone(),
            allocated: own,
            inference,
            ids,
            cell,
            before,
            calls: Vec::new(),
            kernels: BTreeSet::new(),
        })
    }

    /// Token ids of the synthetic prompt: spread over the vocabulary, the same for every system.
    fn prompt(&self, system: &System, n: usize) -> Vec<u32> {
        let vocab = match system {
            System::Network(n) => n.config().vocab,
            System::KvPrediction(p) => p.base.config().vocab.min(p.aux.config().vocab),
        };
        let mut state = self.scenario.seed;
        (0..n).map(|_| (split_mix(&mut state) % vocab as u64) as u32).collect()
    }

    fn gate(&mut self, arm: &Arm, system: &System) -> Result<Gate> {
        if !self.gates.contains_key(&arm.system) {
            let ids = self.prompt(system, 64);
            let (precision, extent) = (self.scenario.precision(), self.scenario.extent());
            let gate = gate::check(&self.engine, system, self.weights.depth(arm)?, precision, extent, &ids)?;
            self.gates.insert(arm.system.clone(), gate);
            // The gate's own kernels are no part of any cell.
            self.engine.take_used();
        }
        let gate = self.gates[&arm.system].clone();
        ensure!(
            gate.passed,
            "the result is wrong and is not timed: a logit is {:.3e} away from the portable reference, at most {:.3e} is \
             rounding; try another --isa or --backend, and report this",
            gate.max_abs_err,
            gate.tolerance
        );
        Ok(gate)
    }

    /// Closes a cell and writes it to the record. The last `samples` calls are its samples, the ones before warm-up.
    ///
    /// # Errors
    /// What writing the record says.
    pub fn close(&mut self, running: Running, samples: usize, rounds: Option<(Vec<u32>, Vec<u32>)>) -> Result<()> {
        let Running { mut cell, calls, kernels, before, .. } = running;
        let (warm, taken) = calls.split_at(calls.len().saturating_sub(samples));
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        cell.warmup_ns = warm.iter().flat_map(|c| &c.times).map(|t| nanos(t.total)).collect();
        let times: Vec<&PhaseTimes> = taken.iter().flat_map(|c| &c.times).collect();
        ensure!(!times.is_empty(), "{}: no samples were taken", cell.id);
        cell.samples_ns = times.iter().map(|t| nanos(t.total)).collect();
        for phase in &mut cell.phases {
            let of =
                |t: &&PhaseTimes| t.phases.iter().find(|(p, _)| p.name() == phase.name).map_or(0, |(_, d)| nanos(*d));
            phase.samples_ns = times.iter().map(of).collect();
        }
        (cell.rounds, cell.round_positions) = rounds.unzip();
        cell.kernels = kernels.into_iter().map(Into::into).collect();
        let faults = |f: fn(&(u64, u64)) -> u64| taken.iter().map(|c| c.faults.as_ref().map(f)).sum::<Option<u64>>();
        cell.memory = Some(Memory {
            peak_rss_bytes: machine::status_bytes("VmHWM"),
            rss_anon_bytes: machine::status_bytes("RssAnon"),
            minor_faults: faults(|f| f.0),
            major_faults: faults(|f| f.1),
        });
        cell.drift = Some(machine::drift(before, self.probe.speed(&self.engine)));
        cell.load_after = machine::load();
        self.speed.learn(&cell);
        Ok(self.writer.cell(&cell)?)
    }

    /// Notes a cell that is not timed.
    ///
    /// # Errors
    /// What writing the record says.
    pub fn skip(&mut self, id: &str, reason: &str, estimate_s: Option<f64>) -> Result<()> {
        eprintln!("skipped {id}: {reason}");
        let reason = reason.replace(char::is_control, " ");
        Ok(self.writer.skipped(&Skipped { id: id.into(), reason, estimate_s, ..Default::default() })?)
    }

    /// Notes a cell that failed; [`Session::finish`] reports it.
    ///
    /// # Errors
    /// What writing the record says.
    pub fn fail(&mut self, id: &str, error: &anyhow::Error) -> Result<()> {
        self.failed.push(id.to_owned());
        self.skip(id, &format!("{error:#}"), None)
    }

    /// Whether the budget holds `estimate` seconds more; if not, the reason.
    pub fn over_budget(&self, estimate: f64) -> Option<String> {
        let left = self.budget_left().max(0.0);
        (estimate > left).then(|| {
            let (estimate, left, all) = (seconds(estimate), seconds(left), seconds(self.scenario.budget_s));
            format!(
                "would take about {estimate}, {left} of {all} are left; TTFT_BUDGET (or --budget) gives more seconds"
            )
        })
    }

    /// Ends the run: prints the table, where the record is, and what to do next.
    ///
    /// # Errors
    /// A record that cannot be read back; cells that failed.
    pub fn finish(self) -> Result<()> {
        let path = self.writer.path().to_owned();
        drop(self.writer);
        let record = Record::read(&path)?;
        println!("\n{}", ttft_reports::terminal::render(&record, None));
        if self.weights.size() == Size::Tiny {
            println!("these were tiny networks: nothing here says anything about the real ones");
        } else {
            println!("record: {}", path.display());
            println!("verdict: ttft validate {0}; report: ttft report {0} --html report.html", path.display());
            println!(
                "again, in paired rounds: cargo run --release --bin ttft -- bench --scenario {}",
                self.scenario_arg
            );
        }
        let failed = self.failed;
        ensure!(failed.is_empty(), "{} of the cells failed: {}", failed.len(), failed.join(", "));
        Ok(())
    }
}

/// One sample after another.
#[derive(Debug)]
struct Call {
    times: Vec<PhaseTimes>,
    faults: Option<(u64, u64)>,
}

/// An open cell.
pub struct Running {
    /// The system.
    pub arm: Arm,
    /// Bytes of its buffers.
    allocated: u64,
    inference: Box<dyn Inference>,
    ids: Vec<u32>,
    cell: Cell,
    before: (Option<f64>, Option<f64>),
    calls: Vec<Call>,
    kernels: BTreeSet<&'static str>,
}

impl Running {
    /// Runs to the first token `n` times, one call of the sampler; the sum of the times.
    ///
    /// # Errors
    /// What the models say.
    pub fn call(&mut self, engine: &Engine, n: u64) -> Result<Duration> {
        engine.take_used();
        let before = machine::faults();
        let mut times = Vec::new();
        for _ in 0..n {
            times.push(self.inference.first_token(engine, &self.ids)?);
        }
        let faults = before.zip(machine::faults()).map(|(b, a)| (a.0 - b.0, a.1 - b.1));
        self.kernels.extend(engine.take_used());
        let total = times.iter().map(|t| t.total).sum();
        self.calls.push(Call { times, faults });
        Ok(total)
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("id", &self.cell.id).field("calls", &self.calls.len()).finish_non_exhaustive()
    }
}

/// The phases of a system to its first token, with their work, in the words of the records.
fn phases(cost: &CostSystem, spec: &RunSpec) -> Vec<(String, schema::Cost)> {
    let record = |p: PhaseCost| {
        let PhaseCost { phase, flops, weight_bytes, cache_bytes } = p;
        let Flops { projections, attention, head, prediction } = flops;
        let flops = schema::Flops { projections, attention, head, prediction };
        (phase.name().to_owned(), schema::Cost { flops, weight_bytes, cache_bytes })
    };
    cost.first_token(spec).into_iter().map(record).collect()
}

/// SplitMix64, for prompts: the same ids on every machine.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn extent(e: Extent) -> schema::Extent {
    match e {
        Extent::FirstToken => schema::Extent::FirstToken,
        Extent::FullNetwork => schema::Extent::FullNetwork,
    }
}

/// A new file in the target folder, named by scenario and time.
fn default_record(scenario: &str, started_at: &str) -> Result<PathBuf> {
    let stamp: String = started_at.chars().filter(char::is_ascii_alphanumeric).collect();
    let dir = output::target_dir()?.join("ttft-records");
    let name =
        |i: u32| if i == 0 { format!("{scenario}-{stamp}.jsonl") } else { format!("{scenario}-{stamp}-{i}.jsonl") };
    (0..1000).map(|i| dir.join(name(i))).find(|p| !p.exists()).context("no free name for the record")
}
