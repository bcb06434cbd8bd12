//! A run: the systems of a scenario, measured one sample at a time.
//!
//! Two samplers drive it: criterion (`benches/ttft.rs`) and rounds ([`crate::rounds`]). Both open cells, take samples
//! and close them; what a sample is, and what goes into the record, is the same.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use jiff::{Timestamp, Unit};
use ttft_kernels::Engine;
use ttft_models::{
    Extent, Inference, KvPrediction, Network, PhaseTimes, Predictor, Pruned, RunSpec, System,
    cost::{CostSystem, Flops, PhaseCost},
    plan,
};
use ttft_reports::schema::{
    self, Cell, Decode, Gate, Limits, Memory, PhaseRecord, Record, RunHeader, Sampler, Settings, Skipped, Writer,
};
use ttft_reports::{
    format::{bytes, seconds},
    summary,
    text::printable,
};

use crate::{
    capacity, console,
    estimate::Speed,
    gate,
    knobs::RunKnobs,
    machine::{self, Probe},
    memory, output,
    scenario::{Arm, PRESETS, Scenario},
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
    /// The last measurement of every cell in the record.
    measured: HashMap<String, Measured>,
    /// Cells that an earlier part of this run could not measure.
    skipped: BTreeSet<String>,
    /// The scenario as it was asked for.
    scenario_arg: String,
}

/// What must be known of a cell in the record.
#[derive(Clone, Copy, Debug)]
struct Measured {
    attempt: u32,
    unstable: bool,
}

impl Measured {
    fn of(cell: &Cell) -> Measured {
        Measured { attempt: cell.attempt, unstable: summary::unstable(cell) }
    }
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

/// The command line as records keep it: where things lie is the user's own affair, so of a path only the file's name.
/// Criterion takes no paths, but filters that look like some.
fn command(args: impl Iterator<Item = String>, sampler: Sampler) -> Vec<String> {
    let cut = |(i, arg): (usize, String)| if i == 0 || sampler == Sampler::Rounds { file_name(&arg) } else { arg };
    args.enumerate().map(cut).collect()
}

/// `DIR/FILE` and `--option=DIR/FILE` without the folder; anything else as it is.
fn file_name(arg: &str) -> String {
    let at = arg.find('=').filter(|_| arg.starts_with('-')).map_or(0, |at| at + 1);
    let (option, value) = arg.split_at(at);
    match Path::new(value).file_name() {
        Some(name) if value.contains(std::path::is_separator) => format!("{option}{}", name.to_string_lossy()),
        _ => arg.to_owned(),
    }
}

/// The time now, RFC 3339 in UTC, to the second.
fn now() -> String {
    let now = Timestamp::now();
    now.round(Unit::Second).unwrap_or(now).to_string()
}

fn count(n: usize) -> Option<u32> {
    n.try_into().ok()
}

/// What a resumed run must have in common with its beginning, as places in [`RunHeader`].
const SAME: &[&str] = &[
    "/settings/sampler",
    "/settings/scenario",
    "/settings/scenario_sha256",
    "/settings/rounds",
    "/settings/isa",
    "/settings/backend",
    "/settings/threads",
    "/settings/precision",
    "/settings/extent",
    "/settings/seed",
    "/machine/cpu_model",
    "/machine/arch",
    "/machine/logical_cores",
    "/git/revision",
    "/notes",
];

/// Where two runs are not the same run, in words.
fn differences(before: &RunHeader, now: &RunHeader) -> Result<Vec<String>> {
    let (before, now) = (serde_json::to_value(before)?, serde_json::to_value(now)?);
    let text = |v: Option<&serde_json::Value>| v.map_or("nothing".into(), ToString::to_string);
    let pairs = SAME.iter().map(|place| (place, before.pointer(place), now.pointer(place)));
    let unequal = pairs.filter(|(_, b, n)| b != n);
    let words = unequal.map(|(place, b, n)| format!("{}: {} then, {} now", &place[1..], text(b), text(n)));
    let total = |v: &serde_json::Value| v.pointer("/machine/memory_total_bytes").and_then(serde_json::Value::as_u64);
    let (then, now) = (total(&before), total(&now));
    let other =
        (!memory::about_equal(then, now)).then(|| format!("machine/memory_total_bytes: {then:?} then, {now:?} now"));
    Ok(words.chain(other).collect())
}

/// What stands in a record of tiny networks.
const TINY_NOTE: &str = "Tiny networks of the same structure: nothing here says anything about the real ones.";

/// A run before its record is open.
struct Setup {
    scenario: Scenario,
    engine: Engine,
    weights: Weights,
    compute: ttft_kernels::DType,
    /// Without limits and name.
    header: RunHeader,
}

impl Setup {
    fn new(knobs: &RunKnobs, sampler: Sampler, rounds: Option<u32>, size: Size) -> Result<Setup> {
        let mut scenario = knobs.scenario()?;
        scenario.rounds = rounds.unwrap_or(scenario.rounds);
        capacity::check(scenario.rounds, scenario.decode, scenario.groups().len() * scenario.arms()?.len())?;
        let weights = Weights::new(knobs.weights.clone(), scenario.dtype, scenario.seed, size)?;
        let engine = knobs.engine.engine()?;
        let activations = scenario.precision().dtype();
        let compute = machine::compute_dtype(&engine, activations, scenario.dtype);
        let header = RunHeader {
            schema: schema::SCHEMA.into(),
            started_at: Some(now()),
            command: command(std::env::args_os().map(|a| printable(&a.to_string_lossy())), sampler),
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
            notes: if size == Size::Tiny { vec![TINY_NOTE.into()] } else { Vec::new() },
            ..RunHeader::default()
        };
        Ok(Setup { scenario, engine, weights, compute, header })
    }

    fn probe(&self) -> Probe {
        match self.weights.size() {
            Size::Real => Probe::for_machine(self.compute),
            Size::Tiny => Probe::new(1 << 20, self.compute),
        }
    }

    /// The session that goes on with `writer`, of which `record` is what is there already.
    fn session(self, probe: Probe, limits: Limits, writer: Writer, record: &Record, arg: &str) -> Result<Session> {
        Ok(Session {
            arms: self.scenario.arms()?,
            scenario: self.scenario,
            engine: self.engine,
            weights: self.weights,
            speed: Speed::new(&limits, machine::dtype(self.compute)),
            limits,
            probe,
            networks: HashMap::new(),
            systems: HashMap::new(),
            gates: HashMap::new(),
            writer,
            started: Instant::now(),
            failed: Vec::new(),
            measured: record.cells.iter().map(|c| (c.id.clone(), Measured::of(c))).collect(),
            skipped: record.skipped.iter().map(|s| s.id.clone()).collect(),
            scenario_arg: arg.to_owned(),
        })
    }
}

impl Session {
    /// Starts a run: builds the engine, measures the machine's limits, opens the record.
    ///
    /// # Errors
    /// A knob that cannot be honoured; a record that exists or cannot be written.
    pub fn start(knobs: &RunKnobs, sampler: Sampler, rounds: Option<u32>, size: Size) -> Result<Session> {
        let mut setup = Setup::new(knobs, sampler, rounds, size)?;
        let probe = setup.probe();
        let limits = probe.limits(&setup.engine);
        setup.header.limits = limits.clone();
        let writer = output::record(knobs, &setup.scenario.name, setup.header.clone())?;
        setup.session(probe, limits, writer, &Record::default(), knobs.scenario_name())
    }

    /// Goes on with an interrupted run in rounds. What its record tells is taken from there: the scenario, if it is a
    /// preset and none is asked for, and the rounds.
    ///
    /// # Errors
    /// As [`Session::start`]; a record of another scenario, other settings, another machine or revision.
    pub fn resume(knobs: &RunKnobs, rounds: Option<u32>, size: Size, path: &Path) -> Result<Session> {
        let (writer, record) = Writer::resume(path)?;
        let then = &record.run.settings;
        let mut knobs = knobs.clone();
        if knobs.scenario.is_none() {
            knobs.scenario = then.scenario.clone().filter(|name| PRESETS.iter().any(|(n, _)| n == name));
        }
        let setup = Setup::new(&knobs, Sampler::Rounds, rounds.or(then.rounds), size)?;
        let differences = differences(&record.run, &setup.header)?;
        ensure!(
            differences.is_empty(),
            "{}: not the same run, so it is not resumed ({}): give the settings it was started with, or start a new run",
            path.display(),
            differences.join("; ")
        );
        console::note(format_args!("resuming {}: {} cells are there", path.display(), record.cells.len()));
        let probe = setup.probe();
        setup.session(probe, record.run.limits.clone(), writer, &record, knobs.scenario_name())
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

    /// Lets the run take `seconds` from now on.
    pub fn grant(&mut self, seconds: f64) {
        self.scenario.budget_s = self.started.elapsed().as_secs_f64() + seconds;
    }

    /// Whether the record holds all that can be had of a group.
    pub fn finished(&self, group: &Group) -> bool {
        let there = |id: &String| self.measured.contains_key(id);
        group.ids().any(|id| there(&id)) && group.ids().all(|id| there(&id) || self.skipped.contains(&id))
    }

    /// The cells of a group whose last measurement was disturbed, with the number of attempts so far.
    pub fn unstable(&self, group: &Group) -> Vec<(String, u32)> {
        let attempts = |id: String| self.measured.get(&id).filter(|m| m.unstable).map(|m| (id, m.attempt));
        group.ids().filter_map(attempts).collect()
    }

    /// What a cell asks of the models.
    pub fn spec(&self, batch: usize, prompt: usize) -> RunSpec {
        let (precision, extent) = (self.scenario.precision(), self.scenario.extent());
        RunSpec { batch, prompt, generate: 1 + self.scenario.decode as usize, precision, extent }
    }

    /// Estimated seconds of one sample, generation included.
    ///
    /// # Errors
    /// A system that is not in the zoo.
    pub fn estimate(&self, arm: &Arm, batch: usize, prompt: usize) -> Result<f64> {
        let (cost, spec) = (self.weights.cost(arm)?, self.spec(batch, prompt));
        let (_, step) = phase(cost.next_token(&spec, prompt));
        let decode = f64::from(self.scenario.decode) * self.speed.seconds(&[("decode".into(), step)]);
        Ok(self.speed.seconds(&phases(&cost, &spec)) + decode)
    }

    /// Bytes that these systems need next to one another: weights mapped (each network once), caches and activations.
    ///
    /// # Errors
    /// A system that is not in the zoo.
    pub fn memory<'a>(&self, arms: impl Iterator<Item = &'a Arm>, batch: usize, prompt: usize) -> Result<u64> {
        let (spec, arms) = (self.spec(batch, prompt), arms.collect::<Vec<_>>());
        let weights = self.weights.bytes(arms.iter().copied())?;
        arms.iter().try_fold(weights, |sum, arm| {
            let own = ttft_models::memory_of(&self.weights.cost(arm)?, &spec).allocated();
            Ok(sum.saturating_add(own))
        })
    }

    /// Why memory does not hold these systems next to one another, with what they need.
    ///
    /// # Errors
    /// A system that is not in the zoo.
    pub fn over_memory<'a>(
        &self,
        arms: impl Iterator<Item = &'a Arm>,
        batch: usize,
        prompt: usize,
    ) -> Result<Option<(String, u64)>> {
        let need = self.memory(arms, batch, prompt)?;
        // Something is left for the rest of the process and of the machine.
        let free = machine::available_memory().map(|free| free - free / 16);
        Ok(free.filter(|free| need > *free).map(|free| {
            let (asked, there) = (bytes(need), bytes(free));
            let hint = "take a smaller batch, prompt or model";
            (format!("needs {asked} of memory (weights mapped, caches, activations), {there} can be had: {hint}"), need)
        }))
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
            [network, ..] => match arm.pruning() {
                Some(pruning) => System::Pruned(Pruned::new(network.clone(), pruning)),
                None => System::Network(network.clone()),
            },
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

    /// Opens a cell: weights, correctness gate, buffers, and the speed of the machine before it.
    ///
    /// # Errors
    /// Why the cell must not be timed; [`Session::fail`] notes it.
    pub fn open(&mut self, arm: &Arm, group: &Group) -> Result<Running> {
        let (batch, prompt) = (group.batch, group.prompt);
        let system = self.system(arm)?;
        let spec = self.spec(batch, prompt);
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
        cell.id = arm.id(batch, prompt);
        cell.attempt = self.measured.get(&cell.id).map_or(1, |m| m.attempt + 1);
        cell.group = group.label();
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
            inference,
            ids,
            decode: self.scenario.decode,
            cell,
            before,
            calls: Vec::new(),
            kernels: BTreeSet::new(),
        })
    }

    /// Token ids of the synthetic prompt: spread over the vocabulary, the same for every system.
    fn prompt(&self, system: &System, n: usize) -> Vec<u32> {
        let vocab = match system {
            System::Network(_) | System::Pruned(_) => system.base().config().vocab,
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
    /// Its buffers stay: a system that takes memory back while the next cell's probe runs would disturb that.
    ///
    /// # Errors
    /// What writing the record says.
    pub fn close(&mut self, running: &Running, samples: usize, rounds: Option<(Vec<u32>, Vec<u32>)>) -> Result<()> {
        let Running { cell, calls, kernels, before, decode, .. } = running;
        let (mut cell, decode) = (cell.clone(), *decode);
        let (warm, taken) = calls.split_at(calls.len().saturating_sub(samples));
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
        (cell.rounds, cell.round_positions) = rounds.unzip();
        cell.kernels = kernels.iter().map(|k| (*k).into()).collect();
        let faults = |f: fn(&(u64, u64)) -> u64| taken.iter().map(|c| c.faults.as_ref().map(f)).sum::<Option<u64>>();
        cell.memory = Some(Memory {
            peak_rss_bytes: machine::status_bytes("VmHWM"),
            rss_anon_bytes: machine::status_bytes("RssAnon"),
            minor_faults: faults(|f| f.0),
            major_faults: faults(|f| f.1),
        });
        cell.drift = Some(machine::drift(*before, self.probe.speed(&self.engine)));
        cell.load_after = machine::load();
        self.speed.learn(&cell);
        self.writer.cell(&cell)?;
        self.measured.insert(cell.id.clone(), Measured::of(&cell));
        Ok(())
    }

    /// Notes a cell that is not timed.
    ///
    /// # Errors
    /// What writing the record says.
    pub fn skip(&mut self, skipped: Skipped) -> Result<()> {
        let Skipped { id, reason, .. } = &skipped;
        let reason = reason.replace(char::is_control, " ");
        console::note(format_args!("skipped {id}: {reason}"));
        self.skipped.insert(id.clone());
        let reason = self.weights.without_root(&reason);
        Ok(self.writer.skipped(&Skipped { reason, ..skipped })?)
    }

    /// Notes a cell that failed; [`Session::finish`] reports it.
    ///
    /// # Errors
    /// What writing the record says.
    pub fn fail(&mut self, id: &str, error: &anyhow::Error) -> Result<()> {
        self.failed.push(id.to_owned());
        self.skip(Skipped { id: id.into(), reason: format!("failed: {error:#}"), ..Default::default() })
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
    /// A record that cannot be read back; cells that failed; nothing measured, though something was to be.
    pub fn finish(self) -> Result<()> {
        let path = output::shown(self.writer.path());
        let record = self.writer.finish()?;
        console::print(format_args!("\n{}", ttft_reports::terminal::render(&record, None)))?;
        if self.weights.size() == Size::Tiny {
            console::print("these were tiny networks: nothing here says anything about the real ones")?;
        } else {
            let again = match PRESETS.iter().any(|(name, _)| *name == self.scenario_arg) {
                true => self.scenario_arg,
                false => output::shown(Path::new(&self.scenario_arg)),
            };
            console::print(format_args!(
                "record: {path}\nverdict: ttft validate {path}; report: ttft report {path} --html report.html\n\
                 again, in paired rounds: cargo run --release --bin ttft -- bench --scenario {again}"
            ))?;
        }
        let failed = self.failed;
        ensure!(failed.is_empty(), "{} of the cells failed: {}", failed.len(), failed.join(", "));
        if let (true, Some(first)) = (record.cells.is_empty(), record.skipped.first()) {
            bail!(
                "nothing was measured: all {} cells were skipped, the first because it {}",
                record.skipped.len(),
                first.reason
            );
        }
        Ok(())
    }
}

/// One sample after another.
#[derive(Debug)]
struct Call {
    times: Vec<PhaseTimes>,
    /// Tokens after the first, sample after sample.
    steps: Vec<Duration>,
    faults: Option<(u64, u64)>,
}

/// An open cell.
pub struct Running {
    inference: Box<dyn Inference>,
    ids: Vec<u32>,
    decode: u32,
    cell: Cell,
    before: (Option<f64>, Option<f64>),
    calls: Vec<Call>,
    kernels: BTreeSet<&'static str>,
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
        let mut call = Call { times: Vec::new(), steps: Vec::new(), faults: Some((0, 0)) };
        for _ in 0..n {
            let before = machine::faults();
            call.times.push(self.inference.first_token(engine, &self.ids)?);
            let taken = before.zip(machine::faults()).map(|(b, a)| (a.0 - b.0, a.1 - b.1));
            call.faults = call.faults.zip(taken).map(|(sum, n)| (sum.0 + n.0, sum.1 + n.1));
            self.kernels.extend(engine.take_used());
            for _ in 0..self.decode {
                call.steps.push(self.inference.next_token(engine)?);
            }
            // Kernels of generation are no part of the time to first token.
            engine.take_used();
        }
        let total = call.times.iter().map(|t| t.total).sum();
        self.calls.push(call);
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
    cost.first_token(spec).into_iter().map(phase).collect()
}

fn phase(cost: PhaseCost) -> (String, schema::Cost) {
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

fn extent(e: Extent) -> schema::Extent {
    match e {
        Extent::FirstToken => schema::Extent::FirstToken,
        Extent::FullNetwork => schema::Extent::FullNetwork,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_keep_no_folders() {
        let recorded = |args: &[&str], sampler| command(args.iter().map(|a| (*a).to_owned()), sampler).join(" ");
        let args =
            ["/opt/ttft", "bench", "--preset", "fig1", "--out=/home/me/r.jsonl", "--weights", "../w/", "--rounds=3"];
        assert_eq!(recorded(&args, Sampler::Rounds), "ttft bench --preset fig1 --out=r.jsonl --weights w --rounds=3");
        let args = ["/a/target/release/deps/ttft-0a1b", "--bench", "kvp/b4", "--sample-size=20"];
        assert_eq!(recorded(&args, Sampler::Criterion), "ttft-0a1b --bench kvp/b4 --sample-size=20");
    }

    #[test]
    fn systems_of_one_checkpoint_share_its_mapping() {
        let dir = tempfile::tempdir().unwrap();
        let scenario = dir.path().join("s.toml");
        let text = r#"
            name = "s"
            description = "d"
            systems = ["OE1.1B-KVP-LP-0.25", "OE1.1B-LP-0.25", "OE1.1B"]
            dtype = "bf16"
            lengths = [4]
            batches = [1]
            rounds = 1
            budget_s = 60
        "#;
        std::fs::write(&scenario, text).unwrap();
        let mut knobs = RunKnobs::from_env().unwrap();
        knobs.scenario = Some(scenario.to_string_lossy().into_owned());
        knobs.weights = Some(dir.path().join("w"));
        knobs.out = Some(dir.path().join("r.jsonl"));
        let mut session = Session::start(&knobs, Sampler::Rounds, None, Size::Tiny).unwrap();
        let arms = session.arms.clone();
        let systems: Vec<_> = arms.iter().map(|arm| session.system(arm).unwrap()).collect();
        let [base, pruned, kvp] = &systems[..] else { panic!("{arms:?}") };
        let System::KvPrediction(pair) = &**kvp else { panic!("{kvp:?}") };
        assert!(Arc::ptr_eq(base.base(), &pair.base) && Arc::ptr_eq(pruned.base(), &pair.aux));
        // And it is counted once.
        let memory = |arms: &[Arm]| session.memory(arms.iter(), 1, 4).unwrap();
        let (alone, all) = (memory(&arms[2..]), memory(&arms));
        assert!(all < alone + memory(&arms[..1]) / 2, "{all} {alone}");
    }
}
