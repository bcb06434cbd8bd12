//! A run: the systems of a scenario measured within a budget, and its record.
//!
//! Two samplers drive it: criterion (`benches/ttft.rs`) and rounds ([`crate::rounds`]). What a sample is, what is checked
//! before it and what goes into the record is the same.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    time::Instant,
};

use anyhow::{Result, bail, ensure};
use ttft_models::{Precision, RunSpec, System};
use ttft_reports::schema::{
    self, Cell, Gate, Kind, Limits, LongestGate, Percentiles, Record, RunHeader, Sampler, Settings, Skipped, Start,
    Writer,
};
use ttft_reports::{
    format::{bytes, seconds},
    levels::FEWEST_PROCESSES,
    summary,
    text::printable,
};

use crate::{
    capacity, cold, console,
    design::Costs,
    energy,
    estimate::Speed,
    gate,
    knobs::RunKnobs,
    layout::Layout,
    machine::{self, Rates},
    memory,
    output::{self, To},
    rig::{self, Group, Rig, Running, count, now, phase, phases},
    scenario::{Arm, PRESETS},
    weights::Size,
};

/// A run.
#[derive(Debug)]
pub struct Session {
    /// What it can time.
    pub rig: Rig,
    /// Processes that every group is measured in, if they were asked for.
    pub processes: Option<u32>,
    /// How fast this machine turned out to be.
    pub speed: Speed,
    /// What was asked for.
    pub(crate) knobs: RunKnobs,
    /// What differs from process to process.
    pub(crate) layout: Layout,
    limits: Limits,
    gates: HashMap<String, Gate>,
    /// Seconds that comparisons of the longest prompt may still take.
    gate_left_s: f64,
    /// All that they may.
    gate_s: f64,
    header: RunHeader,
    writer: Writer,
    started: Instant,
    failed: Vec<String>,
    /// The last measurement of every cell in the record.
    measured: HashMap<String, Measured>,
    /// Cells that an earlier part of this run could not measure.
    skipped: BTreeSet<String>,
}

/// How many samples are asked for, and of what.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// Samples of each system; by default the scenario's.
    pub rounds: Option<u32>,
    /// Processes; by default as many as the budget holds.
    pub processes: Option<u32>,
    /// Whether only some cells are measured, so that a system may lack the one that it is the same as.
    pub filtered: bool,
}

/// Seconds that a process takes to start, and bytes of weights that it maps and reads in a second: what is seen on the
/// slower machines, for estimates only.
const START_S: f64 = 0.3;
const MAP_BYTES_PER_S: f64 = 8e9;

/// Part of the budget that comparisons of the longest prompt may take, all systems together.
const GATE_SHARE: f64 = 0.05;

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

/// The command line as records keep it: where things lie is the user's own affair, so of a path only the file's name.
/// Criterion takes no paths, but filters that look like some.
fn command(args: impl Iterator<Item = String>, sampler: Sampler) -> Vec<String> {
    let cut = |(i, arg): (usize, String)| if i == 0 || sampler == Sampler::Rounds { file_name(&arg) } else { arg };
    args.enumerate().map(cut).collect()
}

/// `DIR/FILE` and `--option=DIR/FILE` without the folder; anything else as it is.
pub(crate) fn file_name(arg: &str) -> String {
    let at = arg.find('=').filter(|_| arg.starts_with('-')).map_or(0, |at| at + 1);
    let (option, value) = arg.split_at(at);
    match Path::new(value).file_name() {
        Some(name) if value.contains(std::path::is_separator) => format!("{option}{}", name.to_string_lossy()),
        _ => arg.to_owned(),
    }
}

/// What a resumed run must have in common with its beginning, as places in [`RunHeader`].
const SAME: &[&str] = &[
    "/settings/sampler",
    "/settings/scenario",
    "/settings/scenario_sha256",
    "/settings/rounds",
    "/settings/processes",
    "/settings/isa",
    "/settings/backend",
    "/settings/kernel",
    "/settings/threads",
    "/settings/precision",
    "/settings/extent",
    "/settings/seed",
    "/settings/start",
    "/machine/cpu_model",
    "/machine/arch",
    "/machine/logical_cores",
    "/git/revision",
    "/networks",
    "/predictions",
    "/notes",
];

/// Where the run of a record and another, whose threads are bound to CPUs if `pin`, are not the same run, in words.
pub(crate) fn differences(record: &Record, now: &RunHeader, pin: bool) -> Result<Vec<String>> {
    let bound = record.pinned().filter(|bound| *bound != pin).map(|bound| format!("pin: {bound} then, {pin} now"));
    let (before, now) = (serde_json::to_value(&record.run)?, serde_json::to_value(now)?);
    let text = |v: Option<&serde_json::Value>| v.map_or("nothing".into(), ToString::to_string);
    let long = |v: Option<&serde_json::Value>| v.is_some_and(|v| v.get(0).is_some_and(serde_json::Value::is_object));
    let pairs = SAME.iter().map(|place| (place, before.pointer(place), now.pointer(place)));
    let unequal = pairs.filter(|(_, b, n)| b != n);
    let words = unequal.map(|(place, b, n)| match &place[1..] {
        // Hashes of everything that runs tell nobody more.
        name if long(b) || long(n) => format!("{name}: not the same"),
        name => format!("{name}: {} then, {} now", text(b), text(n)),
    });
    let total = |v: &serde_json::Value| v.pointer("/machine/memory_total_bytes").and_then(serde_json::Value::as_u64);
    let (then, now) = (total(&before), total(&now));
    let other =
        (!memory::about_equal(then, now)).then(|| format!("machine/memory_total_bytes: {then:?} then, {now:?} now"));
    Ok(words.chain(other).chain(bound).collect())
}

/// What stands in a record of tiny networks.
const TINY_NOTE: &str = "Tiny networks of the same structure: nothing here says anything about the real ones.";

/// What stands in a record of samples that were slowed down.
fn slowdown_note(percent: f64) -> String {
    format!("Every sample was made {percent}% slower on purpose: this run tests comparisons.")
}

/// The first line of a record, without limits and name.
fn header(rig: &Rig, knobs: &RunKnobs, sampler: Sampler, asked: Asked) -> Result<RunHeader> {
    let scenario = &rig.scenario;
    let (networks, predictions) = rig.weights.identities(&rig.arms)?;
    let tiny = (rig.weights.size() == Size::Tiny).then(|| TINY_NOTE.to_owned());
    let slower = knobs.slowdown.filter(|s| *s > 0.0).map(slowdown_note);
    Ok(RunHeader {
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
            processes: asked.processes,
            isa: knobs.engine.isa.map(|i| i.name().into()),
            backend: Some(rig.engine.backend().name().into()),
            kernel: knobs.engine.kernel.clone(),
            threads: count(rig.engine.threads()),
            precision: Some(machine::dtype(scenario.precision().dtype())),
            extent: Some(rig::extent(scenario.extent())),
            seed: Some(scenario.seed),
            start: Some(scenario.start()),
        },
        machine: machine::fingerprint(),
        networks: Some(networks),
        predictions: Some(predictions),
        notes: tiny
            .into_iter()
            .chain(slower)
            .chain(scenario.catalog.notes(rig.weights.size() == Size::Real))
            .chain(kept(rig))
            .chain(in_turn(rig, asked)?)
            .collect(),
        ..RunHeader::default()
    })
}

impl Session {
    /// Starts a run: builds the engine, measures the machine's limits, opens the record.
    ///
    /// # Errors
    /// A knob that cannot be honoured; a record that exists or cannot be written.
    pub fn start(knobs: &RunKnobs, sampler: Sampler, asked: Asked, size: Size) -> Result<Session> {
        let mut rig = Rig::new(knobs, size)?;
        rig.scenario.rounds = asked.rounds.unwrap_or(rig.scenario.rounds);
        let scenario = &rig.scenario;
        if size == Size::Real {
            scenario.catalog.stand_ins().iter().for_each(console::note);
        }
        capacity::check(scenario.rounds, scenario.decode, scenario.groups().len() * rig.arms.len())?;
        let mut header = header(&rig, knobs, sampler, asked)?;
        header.limits = rig.probe.limits(&rig.engine);
        let writer = output::record(place(knobs), &rig.scenario.name, header.clone())?;
        Ok(Session::new(rig, knobs, asked, header, writer, &Record::default()))
    }

    /// Goes on with an interrupted run in rounds. What its record tells is taken from there: the scenario, if it is a
    /// preset and none is asked for, the rounds and the processes.
    ///
    /// # Errors
    /// As [`Session::start`]; a record of another scenario, other settings, another machine or revision.
    pub fn resume(knobs: &RunKnobs, asked: Asked, size: Size, path: &Path) -> Result<Session> {
        let (writer, record) = Writer::resume(path)?;
        let then = &record.run.settings;
        let mut knobs = knobs.clone();
        if knobs.scenario.is_none() {
            knobs.scenario = then.scenario.clone().filter(|name| PRESETS.iter().any(|(n, _)| n == name));
        }
        let asked =
            Asked { rounds: asked.rounds.or(then.rounds), processes: asked.processes.or(then.processes), ..asked };
        let mut rig = Rig::new(&knobs, size)?;
        rig.scenario.rounds = asked.rounds.unwrap_or(rig.scenario.rounds);
        let mut header = header(&rig, &knobs, Sampler::Rounds, asked)?;
        let differences = differences(&record, &header, knobs.engine.pin)?;
        ensure!(
            differences.is_empty(),
            "{}: this is another run, so it is not resumed ({}): give the settings it was started with, as flags or as \
             variables of the environment, or start a new run. It was started with: {}",
            path.display(),
            differences.join("; "),
            record.run.command.join(" ")
        );
        console::note(format_args!("resuming {}: {} cells are there", path.display(), record.cells.len()));
        header.limits = record.run.limits.clone();
        Ok(Session::new(rig, &knobs, asked, header, writer, &record))
    }

    /// The session that goes on with `writer`, of which `record` is what is there already.
    fn new(rig: Rig, knobs: &RunKnobs, asked: Asked, header: RunHeader, writer: Writer, record: &Record) -> Session {
        let since_epoch = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos() as u64);
        Session {
            speed: Speed::new(&header.limits, machine::dtype(rig.compute)),
            processes: asked.processes,
            knobs: knobs.clone(),
            layout: Layout::new(since_epoch),
            limits: header.limits.clone(),
            gates: HashMap::new(),
            gate_left_s: rig.scenario.budget_s * GATE_SHARE,
            gate_s: rig.scenario.budget_s * GATE_SHARE,
            rig,
            header,
            writer,
            started: Instant::now(),
            failed: Vec::new(),
            measured: record.cells.iter().map(|c| (c.id.clone(), Measured::of(c))).collect(),
            skipped: record.skipped.iter().map(|s| s.id.clone()).collect(),
        }
    }

    /// Goes on in a new record: the same run once more, at another time.
    ///
    /// # Errors
    /// A record that exists or cannot be written.
    pub fn next_record(&mut self, path: &Path) -> Result<()> {
        self.header.started_at = Some(now());
        self.header.machine = machine::fingerprint();
        self.writer = output::record(To::File(path), &self.rig.scenario.name, self.header.clone())?;
        self.measured.clear();
        self.skipped.clear();
        Ok(())
    }

    /// What the machine reached.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The first line of the record.
    pub fn header(&self) -> &RunHeader {
        &self.header
    }

    /// The record's file.
    pub fn record_path(&self) -> &Path {
        self.writer.path()
    }

    /// Seconds of the budget that are left.
    pub fn budget_left(&self) -> f64 {
        self.rig.scenario.budget_s - self.started.elapsed().as_secs_f64()
    }

    /// Lets the run take `seconds` from now on.
    pub fn grant(&mut self, seconds: f64) {
        self.rig.scenario.budget_s = self.started.elapsed().as_secs_f64() + seconds;
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

    /// Estimated seconds of one sample, generation included.
    ///
    /// # Errors
    /// A system that is not in the zoo.
    pub fn estimate(&self, arm: &Arm, batch: usize, prompt: usize) -> Result<f64> {
        let warm = self.estimate_warm(arm, batch, prompt)?;
        Ok(match arm.start {
            Start::Warm => warm,
            // The same work runs again with the weights in memory.
            Start::Cold => self.speed.reading(self.rig.weights.bytes([arm])?) + 2.0 * warm,
        })
    }

    fn estimate_warm(&self, arm: &Arm, batch: usize, prompt: usize) -> Result<f64> {
        let (cost, spec) = (self.rig.weights.cost(arm)?, self.rig.spec(batch, prompt));
        let (_, step) = phase(cost.next_token(&spec, prompt));
        let decode = f64::from(self.rig.scenario.decode) * self.speed.seconds(&[("decode".into(), step)]);
        Ok(self.speed.seconds(&phases(&cost, &spec)) + decode)
    }

    /// Bytes that these systems need next to one another: weights mapped (each network once), caches and activations.
    ///
    /// # Errors
    /// A system that is not in the zoo.
    pub fn memory<'a>(&self, arms: impl Iterator<Item = &'a Arm>, batch: usize, prompt: usize) -> Result<u64> {
        let (spec, arms) = (self.rig.spec(batch, prompt), arms.collect::<Vec<_>>());
        // Cold starts drop one system before they open the next.
        if self.rig.scenario.start() == Start::Cold && arms.len() > 1 {
            let alone = arms.iter().map(|arm| self.memory([*arm].into_iter(), batch, prompt));
            return alone.reduce(|most, one| Ok(most?.max(one?))).unwrap_or(Ok(0));
        }
        let weights = self.rig.weights.bytes(arms.iter().copied())?;
        arms.iter().try_fold(weights, |sum, arm| {
            let own = ttft_models::memory_of(&self.rig.weights.cost(arm)?, &spec).allocated();
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

    /// Seconds that a group takes: once, a process before its first round, and a round.
    ///
    /// # Errors
    /// A system that is not in the zoo.
    pub fn costs(&self, group: &Group) -> Result<Costs> {
        let round = group.arms.iter().map(|arm| self.estimate(arm, group.batch, group.prompt)).sum::<Result<f64>>()?;
        let weights = self.rig.weights.bytes(&group.arms)?;
        let once = match &self.rig.meter {
            Some(Ok(_)) => {
                let one = |arm| Ok(energy::seconds_for(self.estimate(arm, group.batch, group.prompt)?));
                group.arms.iter().map(one).sum::<Result<f64>>()?
            }
            _ => 0.0,
        };
        Ok(match self.rig.scenario.start() {
            Start::Warm => Costs { once, start: START_S + weights as f64 / MAP_BYTES_PER_S, warmup: round, round },
            Start::Cold => Costs { once, start: START_S + cold::READING_TIME.as_secs_f64(), warmup: 0.0, round },
        })
    }

    /// Checks the result of a system before it is timed, once.
    ///
    /// # Errors
    /// Why the system must not be timed.
    pub fn gate(&mut self, arm: &Arm) -> Result<()> {
        if !self.gates.contains_key(&arm.system) {
            let system = self.rig.system(arm)?;
            let rig = &self.rig;
            let ids = rig.prompt(&system, 64);
            let (precision, extent) = (rig.scenario.precision(), rig.scenario.extent());
            let mut gate = gate::check(&rig.engine, &system, rig.weights.depth(arm)?, precision, extent, &ids)?;
            if gate.passed {
                match self.check_longest(arm, &system)? {
                    Ok(longest) => {
                        gate.passed = longest.max_abs_err <= longest.tolerance;
                        gate.longest = Some(longest);
                    }
                    Err(reason) => gate.longest_skipped = Some(reason),
                }
            }
            self.gates.insert(arm.system.clone(), gate);
            // The gate's own kernels are no part of any cell.
            self.rig.engine.take_used();
        }
        let gate = &self.gates[&arm.system];
        if let Some(longest) = gate.longest.as_ref().filter(|_| !gate.passed) {
            bail!(
                "the result is wrong and is not timed: with a prompt of {} tokens a logit is {:.3e} away from that of the f32 \
                 kernels, at most {:.3e} is rounding; try another --isa, or --precision f32, and report this",
                longest.prompt,
                longest.max_abs_err,
                longest.tolerance
            );
        }
        ensure!(
            gate.passed,
            "the result is wrong and is not timed: a logit is {:.3e} away from the portable reference, at most {:.3e} is \
             rounding; try another --isa or --backend, and report this",
            gate.max_abs_err,
            gate.tolerance
        );
        Ok(())
    }

    /// Compares a system at the longest prompt with the f32 kernels of the same instruction set, or says why that is left out.
    fn check_longest(&mut self, arm: &Arm, system: &System) -> Result<Result<LongestGate, String>> {
        let rig = &self.rig;
        if rig.scenario.precision() == Precision::F32 {
            return Ok(Err("the run takes the f32 kernels, which are what a long prompt is compared with".into()));
        }
        let prompt = rig.scenario.lengths.iter().copied().max().unwrap_or(1);
        let spec = RunSpec { precision: Precision::F32, generate: 1, ..rig.spec(1, prompt) };
        let cost = rig.weights.cost(arm)?;
        let in_f32 = Speed::new(&self.limits, schema::Dtype::F32).seconds(&phases(&cost, &spec));
        let (expected, left) = (in_f32 + self.estimate_warm(arm, 1, prompt)?, self.gate_left_s);
        if expected > left {
            return Ok(Err(format!(
                "{prompt} tokens would take about {}, and {} of the {} are left that checks may take ({:.0}% of the budget)",
                seconds(expected),
                seconds(left.max(0.0)),
                seconds(self.gate_s),
                GATE_SHARE * 100.0,
            )));
        }
        let need = rig.weights.bytes([arm])?.saturating_add(ttft_models::memory_of(&cost, &spec).allocated());
        if let Some(free) = machine::available_memory().filter(|free| need > *free) {
            return Ok(Err(format!(
                "{prompt} tokens in f32 need {} of memory, {} can be had",
                bytes(need),
                bytes(free)
            )));
        }
        let began = Instant::now();
        let longest = gate::check_longest(&rig.engine, system, rig.weights.depth(arm)?, &rig.prompt(system, prompt))?;
        self.gate_left_s -= began.elapsed().as_secs_f64();
        Ok(Ok(longest))
    }

    /// Opens a cell for criterion: gate, weights, buffers, and the speed of the machine before it.
    ///
    /// # Errors
    /// Why the cell must not be timed; [`Session::fail`] notes it.
    pub fn open(&mut self, arm: &Arm, group: &Group) -> Result<Opened> {
        self.gate(arm)?;
        self.rig.release();
        let running = self.rig.open(arm, group)?;
        Ok(Opened { running, before: self.rig.probe.speed(&self.rig.engine) })
    }

    /// Closes a cell of criterion. The last `samples` calls are its samples, the ones before warm-up.
    ///
    /// # Errors
    /// What writing the record says.
    pub fn close(&mut self, mut opened: Opened, samples: usize) -> Result<()> {
        let mut cell = opened.running.cell(samples, None)?;
        cell.drift = Some(machine::drift(opened.before, self.rig.probe.speed(&self.rig.engine)));
        let (meter, engine) = (&self.rig.meter, &self.rig.engine);
        cell.energy = meter.as_ref().map(|meter| energy::measure(meter, || opened.running.again(engine)));
        self.keep(cell)
    }

    /// Writes a measured cell to the record.
    ///
    /// # Errors
    /// What writing the record says.
    pub fn keep(&mut self, mut cell: Cell) -> Result<()> {
        cell.attempt = self.measured.get(&cell.id).map_or(1, |m| m.attempt + 1);
        cell.gate = self.gates.get(&cell.system).cloned();
        cell.percentiles = Percentiles::of(&cell.samples_ns);
        let above = summary::peak_share(&self.limits, &cell).is_some_and(|share| share > 1.0);
        let reading = summary::fastest_reading(&self.header.machine, &self.limits, &cell);
        let faster = reading.is_some_and(|(times, _)| times > 1.0 + summary::PROBE_BEATEN);
        if above || faster {
            let what = if above { "the measured peak" } else { "the measured read bandwidth" };
            console::note(format_args!("{}: above {what}, so the limits are measured again", cell.id));
            self.limits = best(&self.limits, self.rig.probe.limits(&self.rig.engine));
        }
        // The record's first line stays as it was written.
        cell.limits = (self.limits != self.header.limits).then(|| self.limits.clone());
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
        self.leave_out(Skipped { reason, ..skipped })
    }

    /// Notes systems that are not timed at a size because another one is the same there ([`crate::planner::distinct`]), once. The
    /// plan has said so aloud.
    ///
    /// # Errors
    /// What writing the record says.
    pub fn skip_same(&mut self, same: &[Arm], batch: usize, prompt: usize) -> Result<()> {
        for id in same.iter().map(|arm| arm.id(batch, prompt)) {
            if !self.skipped.contains(&id) {
                self.leave_out(Skipped { id, reason: rig::same_in_turn(), ..Default::default() })?;
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, skipped: Skipped) -> Result<()> {
        self.skipped.insert(skipped.id.clone());
        let reason = self.rig.weights.without_root(&skipped.reason);
        Ok(self.writer.skipped(&Skipped { reason, ..skipped })?)
    }

    /// Notes a cell that failed; [`Session::finish`] reports it. One that was measured before keeps its samples.
    ///
    /// # Errors
    /// What writing the record says.
    pub fn fail(&mut self, id: &str, error: &anyhow::Error) -> Result<()> {
        if self.measured.contains_key(id) {
            console::note(format_args!(
                "{id}: it could not be measured again, so its earlier samples stand: {error:#}"
            ));
            return Ok(());
        }
        self.failed.push(id.to_owned());
        self.skip(Skipped { id: id.into(), reason: format!("failed: {error:#}"), ..Default::default() })
    }

    /// The cells that failed so far.
    pub fn failed(&self) -> &[String] {
        &self.failed
    }

    /// Whether the budget holds `estimate` seconds more; if not, the reason.
    pub fn over_budget(&self, estimate: f64) -> Option<String> {
        let left = self.budget_left().max(0.0);
        (estimate > left).then(|| {
            let (estimate, left, all) = (seconds(estimate), seconds(left), seconds(self.rig.scenario.budget_s));
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
        if self.rig.weights.size() == Size::Tiny {
            console::print("these were tiny networks: nothing here says anything about the real ones")?;
        } else {
            let ttft = output::own_command();
            console::print(format_args!(
                "record: {path}\nwhat it says: {ttft} validate {path}\na page of it: {ttft} report {path} --html report.html"
            ))?;
            let decides = format!("{ttft} bench {}", self.knobs.typed());
            match ttft_reports::terminal::answer(&record, &decides) {
                Some(answer) => {
                    console::print(format_args!("\nWere the operations saved time saved?\n{}", answer.trim_end()))?
                }
                None if record.cells.iter().all(|c| summary::processes(c) <= 1) => console::print(format_args!(
                    "These samples are of fewer than {FEWEST_PROCESSES} processes, so they are indicative. The following \
                     command decides: {decides}"
                ))?,
                None => {}
            }
        }
        let failed = self.failed;
        ensure!(failed.is_empty(), "{} of the cells failed: {}", failed.len(), failed.join(", "));
        // That one system is another, and so was not measured, is not why the other was not.
        let lacking = record.skipped.iter().find(|s| s.estimate_s.is_some() || s.estimate_bytes.is_some());
        if let (true, Some(one)) = (record.cells.is_empty(), lacking.or(record.skipped.first())) {
            bail!(
                "nothing was measured: all {} cells were skipped, {} because it {}",
                record.skipped.len(),
                one.id,
                one.reason
            );
        }
        Ok(())
    }
}

/// A cell that criterion samples.
#[derive(Debug)]
pub struct Opened {
    /// What it runs.
    pub running: Running,
    before: Rates,
}

/// Where the knobs want the record.
fn place(knobs: &RunKnobs) -> To<'_> {
    match &knobs.out {
        _ if knobs.trial => To::Nowhere,
        Some(path) => To::File(path),
        None => To::New,
    }
}

/// The better of each limit.
fn best(before: &Limits, mut now: Limits) -> Limits {
    for peak in &mut now.peaks {
        let old = before.peaks.iter().filter(|p| (p.dtype, &p.isa) == (peak.dtype, &peak.isa)).map(|p| p.gflops);
        peak.gflops = old.fold(peak.gflops, f64::max);
    }
    now.read_gb_per_s = now.read_gb_per_s.into_iter().chain(before.read_gb_per_s).reduce(f64::max);
    now.region_us = now.region_us.into_iter().chain(before.region_us).reduce(f64::min);
    now
}

/// What a record says of systems whose first tokens are kept from an earlier call.
fn kept(rig: &Rig) -> Vec<String> {
    let note = |arm: &Arm| {
        let own = rig.scenario.catalog.pair(&arm.system).ok().filter(|_| arm.kind == Kind::Kvp)?.own;
        let text = format!(
            "{}: the keys and values of the first {} of the prompt's tokens are kept from an earlier call, as where all prompts begin \
             alike; TTFT is without them",
            arm.system, own.first
        );
        (own.kept && own.first > 0).then_some(text)
    };
    rig.arms.iter().filter_map(note).collect()
}

/// What a record says of systems that are measured in turn at some sizes, as the pipelined order does not pay there. Where they
/// are skipped, the reason says it.
fn in_turn(rig: &Rig, asked: Asked) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let measured = |arm: &&Arm| asked.filtered || !rig::beside_in_turn(&rig.arms, arm);
    for arm in rig.arms.iter().filter(measured) {
        let mut sizes = Vec::new();
        for (batch, prompt) in rig.scenario.groups() {
            if rig.falls_back(arm, batch, prompt)? {
                sizes.push(format!("{batch} x {prompt}"));
            }
        }
        if !sizes.is_empty() {
            notes.push(format!("{} at {}: {}", arm.system, sizes.join(", "), rig::in_turn()));
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ttft_models::System;

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
        let mut session = Session::start(&knobs, Sampler::Rounds, Asked::default(), Size::Tiny).unwrap();
        let arms = session.rig.arms.clone();
        let systems: Vec<_> = arms.iter().map(|arm| session.rig.system(arm).unwrap()).collect();
        let [base, pruned, kvp] = &systems[..] else { panic!("{arms:?}") };
        let System::KvPrediction(pair) = &**kvp else { panic!("{kvp:?}") };
        assert!(Arc::ptr_eq(base.base(), &pair.base) && Arc::ptr_eq(pruned.base(), pair.aux.as_ref().unwrap()));
        // And it is counted once.
        let memory = |arms: &[Arm]| session.memory(arms.iter(), 1, 4).unwrap();
        let (alone, all) = (memory(&arms[2..]), memory(&arms));
        assert!(all < alone + memory(&arms[..1]) / 2, "{all} {alone}");
    }
}
