//! Planning a run: its schedule, what that works on, and the calls that run the steps.

mod allocate;
mod borrow;
mod dump;
mod steps;

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use half::bf16;
use ttft_kernels::{Element, Mat, RopeTable};

use crate::{
    activations::Activations,
    cache::{LayerCache, NamedTensor, Source},
    engine::Engine,
    error::{Error, Result},
    inference::{Chosen, Inference, PhaseTime, PhaseTimes, Ran},
    kv_prediction::{control::Entries, predictor::Predictor},
    loan,
    memory::memory_of_lending,
    network::Network,
    pipeline::{Behind, Queue},
    prompts,
    pruning::{Pruning, lazy::Lazy, select::Scores},
    schedule::{Net, Op, Schedule, Step, Uses, given, next},
    spec::{Phase, Precision, RunSpec},
    system::{CostSystem, System},
};

/// Allocates everything that a run needs.
///
/// # Errors
/// [`Error::Spec`]: a batch, prompt or count of tokens of 0 or beyond any machine, or a base that reads no last token itself.
/// [`Error::Memory`]: the allocation fails. Those of [`Pruning::check`].
pub fn plan(system: &System, spec: &RunSpec) -> Result<Box<dyn Inference>> {
    plan_scoring(system, spec, 0)
}

/// The same, with up to `scored` given tokens behind each prompt ([`Inference::score`]).
///
/// # Errors
/// As [`plan`]; [`Error::Spec`]: there is no room for them among the tokens to generate, or it is LazyLLM, of which every token
/// chooses anew what it attends to.
pub fn plan_scoring(system: &System, spec: &RunSpec, scored: usize) -> Result<Box<dyn Inference>> {
    plan_lending(system, spec, scored, &[])
}

/// The same, keeping what runs of other systems on the same prompts need to begin where this one is
/// ([`Inference::first_token_after`]).
///
/// # Errors
/// As [`plan_scoring`].
pub fn plan_lending(system: &System, spec: &RunSpec, scored: usize, to: &[&CostSystem]) -> Result<Box<dyn Inference>> {
    spec.check()?;
    if let System::Pruned(p) = system {
        p.pruning.check(p.base.config().layers.len(), p.aux.is_some())?;
    }
    if matches!(system, System::KvPrediction(p) if p.own.last == 0) {
        let what = "last tokens that the base reads itself";
        return Err(Error::Spec { what, expected: "1 or more".into(), found: 0 });
    }
    let lazy = matches!(system, System::Pruned(s) if matches!(s.pruning, Pruning::Lazy { .. }));
    let most = if lazy { 0 } else { spec.generate - 1 };
    if scored > most {
        let expected = match lazy {
            true => "none of LazyLLM (each token chooses anew what it attends to)".into(),
            false => format!("at most {most} (plan to generate more to score more)"),
        };
        return Err(Error::Spec { what: "tokens to score", expected, found: scored as u64 });
    }
    let bytes = memory_of_lending(&CostSystem::of(system), spec, scored, to).allocated();
    // Caches are allocated by a type that cannot report failure; whether their memory can be had is asked here first.
    let asked = usize::try_from(bytes).map_err(|_| Error::Memory { bytes })?;
    Vec::<u8>::new().try_reserve_exact(asked).map_err(|_| Error::Memory { bytes })?;
    Ok(match spec.precision {
        Precision::F32 => Box::new(Run::<f32>::new(system, *spec, scored, to)?),
        Precision::Bf16 => Box::new(Run::<bf16>::new(system, *spec, scored, to)?),
    })
}

/// A network at work.
struct Lane<A> {
    net: Arc<Network>,
    rope: RopeTable,
    act: Activations<A>,
    /// For logits of all positions, where the extent asks for them.
    all: Vec<f32>,
}

impl<A: Element> Lane<A> {
    /// Lends the base to the products of the auxiliary, behind which the layers that wait in `queue` are run.
    fn behind<'a>(&'a mut self, e: &'a Engine, caches: &'a mut [LayerCache<A>], queue: &'a mut Queue) -> Behind<'a, A> {
        Behind { engine: e, net: &self.net, act: &mut self.act, rope: &self.rope, caches, queue }
    }
}

/// The networks at work, by what they do.
struct Lanes<A> {
    base: Lane<A>,
    auxiliary: Option<Lane<A>>,
}

impl<A> Lanes<A> {
    fn of(&self, net: Net) -> &Lane<A> {
        match net {
            Net::Base => &self.base,
            Net::Auxiliary => self.auxiliary.as_ref().expect(NO_AUXILIARY),
        }
    }

    fn of_mut(&mut self, net: Net) -> &mut Lane<A> {
        match net {
            Net::Base => &mut self.base,
            Net::Auxiliary => self.auxiliary.as_mut().expect(NO_AUXILIARY),
        }
    }
}

const NO_AUXILIARY: &str = "every network of a schedule has a lane";

/// A schedule, and what it runs on.
struct Run<A> {
    shapes: CostSystem,
    schedule: Schedule,
    state: State<A>,
    /// Phases of the prompt's steps.
    phases: usize,
    /// Bytes of weights of the base's layers that may be put off, and operations of the auxiliary's products behind which they
    /// then run.
    behind: (u64, u64),
    /// What each step of the last call did, and whose steps these were.
    ran: Vec<Ran>,
    last: Call,
}

/// Which of a schedule's lists is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Prompt,
    Next,
    Given,
}

impl Call {
    fn steps(self, s: &Schedule) -> (&[Step], &[Uses]) {
        let (prompt, later) = s.uses.split_at(s.prompt.len());
        let (next, given) = later.split_at(s.next.len());
        match self {
            Call::Prompt => (&s.prompt, prompt),
            Call::Next => (&s.next, next),
            Call::Given => (&s.given, given),
        }
    }
}

/// Everything that steps work on; the slots in the order of the schedule's.
struct State<A> {
    spec: RunSpec,
    dropped: usize,
    lanes: Lanes<A>,
    caches: Vec<LayerCache<A>>,
    sources: Vec<Source<A>>,
    /// Entries of first tokens that are kept, and which tokens these are, `[batch * s]`: none before there are any.
    sinks: Vec<LayerCache<A>>,
    sink_ids: Vec<u32>,
    predictor: Option<Arc<Predictor>>,
    /// What stands in the place of predictions, if it is entries.
    entries: Option<Arc<Entries>>,
    /// Predicted keys before k_norm, by base layer, if recorded.
    predicted: Option<Vec<Vec<f32>>>,
    scores: Option<Scores>,
    lazy: Option<Lazy>,
    /// Layers of the base that are put off.
    queue: Queue,
    /// Logits and tokens of a network that decodes ahead.
    ahead: Option<(Vec<f32>, Vec<u32>)>,
    /// Positions of the tokens of the prompt that were chosen, `[batch * count]`.
    kept: Vec<u32>,
    /// Whether these are a prompt of their own for the base.
    renumbered: bool,
    /// Ids on their way into a network.
    input: Vec<u32>,
    /// The prompts of which this holds what others may begin from, if it lends.
    read: Vec<u32>,
    lends: bool,
    /// Entries of the base's caches that are filled.
    len: usize,
    logits: Vec<f32>,
    /// Logits of given tokens, as many as can be scored at once; and whether they are being made.
    scored: Vec<f32>,
    scoring: bool,
    /// The tokens last chosen, `[batch]`.
    ids: Vec<u32>,
}

impl<A: Element> Run<A> {
    fn new(system: &System, spec: RunSpec, scored: usize, to: &[&CostSystem]) -> Result<Self> {
        let shapes = CostSystem::of(system);
        let schedule = loan::lending(&shapes, &spec, scored, to);
        let state = State::new(system, spec, (&shapes, &schedule), scored, !to.is_empty())?;
        let phases = Phase::ALL.iter().filter(|phase| schedule.prompt.iter().any(|s| s.phase == **phase)).count();
        let ran = Vec::with_capacity(schedule.prompt.len().max(schedule.next.len()).max(schedule.given.len()));
        let mut behind = (0, 0);
        for step in &schedule.prompt[..schedule.behind] {
            let cost = shapes.step(&spec, step);
            match &step.op {
                Op::Layer(l) if l.net == Net::Base => behind.0 += cost.weight_bytes,
                Op::Layer(_) => behind.1 += cost.flops.projections,
                _ => {}
            }
        }
        Ok(Run { shapes, schedule, state, phases, behind, ran, last: Call::Prompt })
    }

    /// Makes the entries of first tokens that are kept, unless those of an earlier call are of the same tokens.
    fn sinks(&mut self, e: &Engine, ids: &[u32]) -> Result<()> {
        let (s, Some(shape)) = (&mut self.state, self.schedule.sinks.first()) else { return Ok(()) };
        let prompt = s.spec.prompt;
        let first = || ids.chunks_exact(prompt).flat_map(|prompt| &prompt[..shape.entries]);
        if s.sink_ids.iter().eq(first()) {
            return Ok(());
        }
        s.sink_ids.clear();
        let before = self.schedule.uses.len() - self.schedule.earlier.len();
        for (step, uses) in self.schedule.earlier.iter().zip(&self.schedule.uses[before..]) {
            s.step(e, &self.schedule, &step.op, *uses, ids, false)?;
        }
        s.sink_ids.extend(first());
        Ok(())
    }

    fn first(&mut self, e: &Engine, ids: &[u32], lender: Option<&Run<A>>) -> Result<PhaseTimes> {
        let start = Instant::now();
        let s = &mut self.state;
        let RunSpec { batch, prompt, .. } = s.spec;
        let networks = [&s.lanes.base].into_iter().chain(&s.lanes.auxiliary).map(|lane| lane.net.config());
        prompts::check(ids, batch, prompt, networks.map(|c| c.vocab).min().expect("there is a base"))?;
        s.len = 0;
        s.read.clear();
        // What a call that failed has put off is not this one's.
        s.queue.start(0, 0);
        if let Some(scores) = &mut s.scores {
            scores.prompts(ids);
        }
        if let Some(lazy) = &mut s.lazy {
            lazy.start();
        }
        self.sinks(e, ids)?;
        let begun = lender.map_or(Ok(0), |lender| self.borrow(lender, ids))?;
        self.steps(e, ids, Call::Prompt, begun)?;
        let s = &mut self.state;
        s.len = prompt - s.dropped;
        if s.lends && begun == 0 {
            s.read.extend_from_slice(ids);
        }
        let mut phases: Vec<PhaseTime> = Vec::with_capacity(self.phases);
        for (step, ran) in self.schedule.prompt.iter().zip(&self.ran) {
            match phases.iter_mut().find(|p| p.phase == step.phase) {
                Some(p) => (p.time, p.regions) = (p.time + ran.time, p.regions + ran.regions),
                None => phases.push(PhaseTime { phase: step.phase, time: ran.time, regions: ran.regions }),
            }
        }
        let heads = self.schedule.prompt.iter().zip(&self.ran).filter(|(step, _)| step.op.answers());
        let head = heads.map(|(_, ran)| ran.time).sum();
        Ok(PhaseTimes { total: start.elapsed(), phases, head })
    }

    /// Runs the steps of a call, but for the first `begun`, which another run has done.
    fn steps(&mut self, e: &Engine, ids: &[u32], call: Call, begun: usize) -> Result<()> {
        let (steps, uses) = call.steps(&self.schedule);
        self.last = call;
        self.state.scoring = call == Call::Given;
        self.ran.clear();
        self.ran.resize(begun, Ran { rows: 0, time: Duration::ZERO, regions: 0 });
        let (mut at, mut regions) = (Instant::now(), e.pool().regions());
        self.state.queue.start(self.behind.0, self.behind.1);
        for (i, (step, uses)) in steps.iter().zip(uses).enumerate().skip(begun) {
            let may_wait = call == Call::Prompt && i < self.schedule.behind;
            let rows = self.state.step(e, &self.schedule, &step.op, *uses, ids, may_wait)?;
            let (then, count) = (Instant::now(), e.pool().regions());
            self.ran.push(Ran { rows, time: then - at, regions: count.wrapping_sub(regions) });
            (at, regions) = (then, count);
        }
        Ok(())
    }
}

impl<A: Element> Inference for Run<A> {
    fn first_token(&mut self, e: &Engine, ids: &[u32]) -> Result<PhaseTimes> {
        self.first(e, ids, None)
    }

    fn first_token_after(&mut self, e: &Engine, ids: &[u32], lender: &dyn Inference) -> Result<PhaseTimes> {
        let lender: &dyn Any = lender;
        let Some(lender) = lender.downcast_ref() else {
            return Err(Error::Loan {
                reason: "the two have activations of different types; plan both with one precision",
            });
        };
        self.first(e, ids, Some(lender))
    }

    fn next_token(&mut self, e: &Engine) -> Result<Duration> {
        let start = Instant::now();
        let (spec, past) = (self.state.spec, self.state.len + self.state.dropped);
        if self.state.len == 0 {
            return Err(Error::NotStarted);
        }
        if past >= spec.positions() {
            let RunSpec { prompt, generate, .. } = spec;
            return Err(Error::CacheFull { planned: spec.positions(), prompt, generate });
        }
        next(&self.shapes, &spec, past, &mut self.schedule.next);
        self.steps(e, &[], Call::Next, 0)?;
        self.state.len += 1;
        Ok(start.elapsed())
    }

    fn score(&mut self, e: &Engine, ids: &[u32]) -> Result<Mat<'_, f32>> {
        let (spec, vocab) = (self.state.spec, self.shapes.base.vocab);
        if self.state.len == 0 || self.state.len != spec.prompt - self.state.dropped {
            return Err(Error::NotBehindPrompt);
        }
        let most = self.state.scored.len() / (spec.batch * vocab);
        let n = prompts::check_batch(ids, spec.batch, vocab)?;
        if n > most {
            let expected = format!("at most the {most} planned (plan more)");
            return Err(Error::Spec { what: "tokens to score", expected, found: n as u64 });
        }
        given(&self.shapes, &spec, n, &mut self.schedule.given);
        self.steps(e, ids, Call::Given, 0)?;
        Ok(Mat::new(&self.state.scored[..spec.batch * n * vocab], spec.batch * n, vocab))
    }

    fn token_ids(&self) -> &[u32] {
        &self.state.ids
    }

    fn logits(&self) -> Mat<'_, f32> {
        Mat::new(&self.state.logits, self.state.spec.batch, self.shapes.base.vocab)
    }

    fn chosen(&self) -> Option<Chosen<'_>> {
        let s = &self.state;
        let scores = s.scores.as_ref().filter(|_| !s.kept.is_empty())?.last();
        Some(Chosen { kept: &s.kept, scores })
    }

    fn trace(&self) -> (&[Step], &[Ran]) {
        let (steps, _) = self.last.steps(&self.schedule);
        (&steps[..self.ran.len()], &self.ran)
    }

    fn record(&mut self, on: bool) {
        self.state.predicted = on.then(|| vec![Vec::new(); self.shapes.base.layers.len()]);
    }

    fn cache_dump(&self) -> Vec<NamedTensor> {
        self.dump()
    }
}

#[cfg(test)]
mod tests;
