//! Planning and executing a schedule.

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use half::bf16;
use ttft_kernels::{Element, Mat, RopeTable};

use crate::{
    activations::Activations,
    cache::{LayerCache, NamedTensor, RawKv, Source, heads_first},
    config::NetworkConfig,
    engine::Engine,
    error::{Error, Result},
    inference::{Chosen, Inference, PhaseTime, PhaseTimes, Ran},
    kv_prediction::{
        KvPrediction,
        control::{Control, Entries},
        layout::Input,
        predictor::{Prediction, Predictor},
    },
    loan,
    memory::memory_of_lending,
    network::{Cache, Kv, Network, head_buffer},
    pipeline::{Behind, Queue},
    prompts,
    pruning::{
        Pruning,
        lazy::Lazy,
        select::{Rule, Scores},
    },
    schedule::{
        self, Gap, KvShape, LayerStep, Map, Net, Op, Schedule, Slot, Step, Stream, Tokens, Uses, given, next, shapes,
    },
    sizes::zeroed,
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
        let expected =
            format!("at most {most}{}", if lazy { ", of LazyLLM" } else { ", to be generated after the first" });
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
    /// At work behind another network's products.
    fn behind<'a>(&'a mut self, e: &'a Engine, caches: &'a mut [LayerCache<A>], queue: &'a mut Queue) -> Behind<'a, A> {
        Behind { engine: e, net: &self.net, act: &mut self.act, rope: &self.rope, caches, queue }
    }
}

/// A schedule, and what it runs on.
struct Run<A> {
    shapes: CostSystem,
    schedule: Schedule,
    state: State<A>,
    /// Phases of the prompt's steps.
    phases: usize,
    /// Bytes of weights of the base's layers that may be put off, and operations of the auxiliary's products meanwhile.
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
    lanes: Vec<(Net, Lane<A>)>,
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
        let shapes_of = CostSystem::of(system);
        let schedule = loan::lending(&shapes_of, &spec, scored, to);
        let (b, c) = (spec.batch, &shapes_of.base);
        let net = |net| match net {
            Net::Base => system.base(),
            Net::Auxiliary => system.networks().nth(1).expect("only pairs have steps of an auxiliary"),
        };
        let lane = |&Slot { shape: s, .. }: &Slot<Stream>| {
            let (net, c) = (net(s.net), shapes(&shapes_of, s.net));
            let all = if s.all_logits { head_buffer(c, b * s.rows) } else { 0 };
            let act = Activations::new(c, b * s.rows)?;
            Ok((s.net, Lane { net: Arc::clone(net), rope: net.rope(s.positions), act, all: zeroed(all as u64)? }))
        };
        let cache = |net, layer: usize, entries| {
            let c = shapes(&shapes_of, net);
            LayerCache::new(b, c.layers[layer].kv_heads, entries, c.head_dim)
        };
        let sinks = schedule.sinks.first().map_or(0, |s| s.entries);
        let (mut kept, mut input) = (0, sinks.max(1));
        for step in &schedule.prompt {
            match step.op {
                Op::Choose { keep, .. } => (kept, input) = (keep, keep),
                Op::Embed { tokens: Tokens::Prompt, rows, .. } if rows.count < spec.prompt => {
                    input = input.max(rows.total())
                }
                _ => {}
            }
        }
        let (mut lazy, mut scores) = (None, None);
        if let System::Pruned(s) = system {
            if let Pruning::Lazy { .. } = s.pruning {
                lazy = Some(Lazy::new(c, s.pruning, &spec)?);
            }
            if schedule.ranked > 0 {
                let by = shapes_of.chooser.as_ref().unwrap_or(c);
                scores = Some(Scores::new(by, s.pruning, Rule::of(s), b, schedule.ranked)?);
            }
        }
        let ahead = |aux: &NetworkConfig| -> Result<_> { Ok((zeroed((b * aux.vocab) as u64)?, zeroed(b as u64)?)) };
        let state = State {
            spec,
            dropped: schedule.dropped,
            lanes: schedule.streams.iter().map(lane).collect::<Result<_>>()?,
            caches: schedule.caches.iter().map(|s| cache(s.shape.net, s.shape.layer, s.shape.entries)).collect(),
            sources: schedule
                .sources
                .iter()
                .map(|Slot { shape: s, .. }| {
                    let (c, rows) = (shapes(&shapes_of, s.net), b * s.entries);
                    Ok(match s.input {
                        Input::KeysAndValues => Source::KeysAndValues(RawKv::new(rows, c.kv_dim(s.layer))),
                        Input::Hidden | Input::Own => Source::Hidden(zeroed((rows * c.dim) as u64)?),
                    })
                })
                .collect::<Result<_>>()?,
            sinks: schedule.sinks.iter().map(|s| cache(s.net, s.layer, s.entries)).collect(),
            sink_ids: Vec::with_capacity(b * sinks),
            predictor: match system {
                System::KvPrediction(s) => Some(Arc::clone(&s.predictor)),
                _ => None,
            },
            entries: match system {
                System::KvPrediction(KvPrediction { control: Some(Control::Entries(entries)), .. }) => {
                    Some(Arc::clone(entries))
                }
                _ => None,
            },
            predicted: None,
            scores,
            lazy,
            queue: Queue::default(),
            ahead: shapes_of.chooser.as_ref().map(ahead).transpose()?,
            renumbered: shapes_of.pruning.is_some_and(Pruning::renumbers),
            kept: Vec::with_capacity(b * kept),
            input: Vec::with_capacity(b * input),
            read: Vec::with_capacity(if to.is_empty() { 0 } else { b * spec.prompt }),
            lends: !to.is_empty(),
            len: 0,
            logits: zeroed((b * c.vocab) as u64)?,
            scored: zeroed((b * scored * c.vocab) as u64)?,
            scoring: false,
            ids: zeroed(b as u64)?,
        };
        let phases = Phase::ALL.iter().filter(|phase| schedule.prompt.iter().any(|s| s.phase == **phase)).count();
        let ran = Vec::with_capacity(schedule.prompt.len().max(schedule.next.len()).max(schedule.given.len()));
        let mut behind = (0, 0);
        for step in &schedule.prompt[..schedule.behind] {
            let cost = shapes_of.step(&spec, step);
            match &step.op {
                Op::Layer(l) if l.net == Net::Base => behind.0 += cost.weight_bytes,
                Op::Layer(_) => behind.1 += cost.flops.projections,
                _ => {}
            }
        }
        Ok(Run { shapes: shapes_of, schedule, state, phases, behind, ran, last: Call::Prompt })
    }

    /// Makes the entries of first tokens that are kept, unless those of an earlier call are of the same tokens.
    fn sinks(&mut self, e: &Engine, ids: &[u32]) -> Result<()> {
        let (s, Some(shape)) = (&mut self.state, self.schedule.sinks.first()) else { return Ok(()) };
        let first = || ids.chunks_exact(s.spec.prompt).flat_map(|prompt| &prompt[..shape.entries]);
        if s.sink_ids.iter().eq(first()) {
            return Ok(());
        }
        s.sink_ids.clear();
        let before = self.schedule.uses.len() - self.schedule.earlier.len();
        for (step, uses) in self.schedule.earlier.iter().zip(&self.schedule.uses[before..]) {
            s.step(e, &self.schedule, &step.op, *uses, ids, false)?;
        }
        s.sink_ids.extend(ids.chunks_exact(s.spec.prompt).flat_map(|prompt| &prompt[..shape.entries]));
        Ok(())
    }

    /// Takes over what another run has left behind its first steps; how many of its own need not be run.
    fn borrow(&mut self, from: &Run<A>, ids: &[u32]) -> Result<usize> {
        let refuse = |reason| Err(Error::Loan { reason });
        if from.state.spec.batch != self.state.spec.batch || from.state.read != ids {
            return refuse(
                "it has not read these prompts, or was not planned to lend; plan it so, and have it read them",
            );
        }
        let steps = &self.schedule.prompt[..loan::steps(&from.schedule.prompt, &self.schedule.prompt)];
        let Some(Step { op: Op::Embed { net, rows, .. }, .. }) = steps.first() else {
            return refuse("it keeps nothing of steps that are this run's too; plan it to lend to this system");
        };
        let (own, other) = (&mut self.state, &from.state);
        let other_lane = other.lanes.iter().find(|(n, _)| n == net).map(|(_, lane)| lane);
        let lane = lane(&mut own.lanes, *net);
        if !other_lane.is_some_and(|other| Arc::ptr_eq(&other.net, &lane.net)) {
            return refuse("their networks are not the same loaded ones");
        }
        let b = own.spec.batch;
        lane.act.start(b, *rows);
        for ((step, uses), others) in steps.iter().zip(&self.schedule.uses).zip(&from.schedule.uses) {
            let Op::Layer(l) = &step.op else { continue };
            if let (schedule::Entries::Kept, Some(to), Some(from)) = (l.entries, uses.cache, others.cache) {
                own.caches[to].copy_first(&other.caches[from], rows.of);
            }
            for (to, from) in uses.sources.iter().zip(&others.sources) {
                if let (Some(to), Some(from)) = (to, from) {
                    own.sources[*to].copy_first(&other.sources[*from], b);
                }
            }
        }
        // Where the stream ends, nobody has kept it.
        let last = from.schedule.uses[steps.len() - 1].sources[2];
        if let Some(Source::Hidden(x)) = last.map(|at| &other.sources[at]) {
            lane.act.x[..x.len()].copy_from_slice(x);
        }
        Ok(steps.len())
    }

    fn first(&mut self, e: &Engine, ids: &[u32], lender: Option<&Run<A>>) -> Result<PhaseTimes> {
        let start = Instant::now();
        let s = &mut self.state;
        let RunSpec { batch, prompt, .. } = s.spec;
        let vocab = s.lanes.iter().map(|(_, lane)| lane.net.config().vocab).min().expect("a schedule has a network");
        prompts::check(ids, batch, prompt, vocab)?;
        s.len = 0;
        s.read.clear();
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

    /// Runs the steps of the prompt, of a later token, or of given ones; but for those that another run has done.
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

impl<A: Element> State<A> {
    /// Runs a step, or puts it off if it `may_wait`; how many rows of all sequences it works on.
    fn step(
        &mut self,
        e: &Engine,
        schedule: &Schedule,
        op: &Op,
        uses: Uses,
        ids: &[u32],
        may_wait: bool,
    ) -> Result<usize> {
        let (b, prompt) = (self.spec.batch, self.spec.prompt);
        match op {
            &Op::Embed { net, rows, tokens } => {
                self.input.clear();
                match tokens {
                    Tokens::Prompt if rows.count == prompt => {}
                    Tokens::Prompt => {
                        for run in [0..rows.first, rows.past()..rows.of] {
                            self.input.extend(ids.chunks_exact(prompt).flat_map(|row| &row[run.clone()]));
                        }
                    }
                    Tokens::Kept | Tokens::Renumbered => {
                        let rows = ids.chunks_exact(prompt).zip(self.kept.chunks_exact(rows.count));
                        self.input.extend(rows.flat_map(|(ids, kept)| kept.iter().map(|&p| ids[p as usize])));
                    }
                    Tokens::Last => self.input.extend(match (net, &self.ahead) {
                        (Net::Auxiliary, Some((_, ids))) => ids,
                        _ => &self.ids,
                    }),
                    Tokens::Given => {}
                }
                let ids = if self.input.is_empty() { ids } else { &self.input };
                let lane = lane(&mut self.lanes, net);
                lane.net.embed(e, ids, b, rows, &mut lane.act)?;
                match tokens {
                    Tokens::Kept => lane.act.place(&self.kept),
                    Tokens::Last | Tokens::Given if net == Net::Base && !self.renumbered => {
                        lane.act.shift(self.dropped)
                    }
                    Tokens::Prompt | Tokens::Renumbered | Tokens::Last | Tokens::Given => {}
                }
                if net == Net::Base
                    && matches!(tokens, Tokens::Last)
                    && let Some(lazy) = &mut self.lazy
                {
                    lazy.begin(rows.past());
                }
                Ok(ids.len())
            }
            Op::Layer(l) => self.layer(e, l, uses, may_wait),
            &Op::Ends { net, rows } => {
                let act = &mut lane(&mut self.lanes, net).act;
                act.keep_ends(rows.first, rows.count);
                act.past = rows.past();
                Ok(act.rows())
            }
            Op::Map { rows, maps } => self.map(e, schedule, *rows, maps),
            &Op::Sinks { rows, back, ref layers } => {
                let sinks = schedule.sinks.iter().zip(&mut self.sinks);
                for (shape, kept) in sinks.filter(|(shape, _)| layers.contains(&shape.layer)) {
                    let of = |slot: &Slot<KvShape>| (slot.shape.net, slot.shape.layer, slot.shape.kept);
                    let at = schedule.caches.iter().position(|slot| of(slot) == (shape.net, shape.layer, true));
                    let cache = &mut self.caches[at.expect("a layer that is predicted has a cache")];
                    let (from, to) = if back { (&*kept, cache) } else { (&*cache, kept) };
                    to.copy_first(from, rows);
                }
                Ok(b * rows)
            }
            Op::Fill { rows, layers } => self.fill(e, schedule, *rows, layers),
            &Op::Rank { layer, of } => {
                let Some(scores) = self.scores.as_mut().filter(|_| of > 0) else { return Ok(0) };
                let Some((net, layer)) = layer else {
                    scores.add_seeded(of, |_, p| p as u32);
                    return Ok(b * of);
                };
                let read = uses.gathered.or(uses.cache).expect("a layer that is ranked by has entries");
                let (lane, lazy) = (lane(&mut self.lanes, net), &self.lazy);
                let position = |b: usize, p: usize| lazy.as_ref().map_or(p as u32, |lazy| lazy.position(layer, b, p));
                scores.add(e, (&lane.net, layer), &lane.act, (&self.caches[read], of), position)?;
                Ok(b * of)
            }
            &Op::Choose { of, keep, chunk } => {
                let scores = self.scores.as_mut().expect("tokens are scored before they are chosen");
                scores.choose(chunk, keep, &mut self.kept);
                Ok(b * of)
            }
            &Op::Narrow { layer, of, keep, revives } => {
                let (Some(lazy), Some(scores)) = (&mut self.lazy, &mut self.scores) else {
                    unreachable!("only LazyLLM narrows")
                };
                lazy.take(layer, of, keep, scores);
                let act = &mut lane(&mut self.lanes, Net::Base).act;
                if revives {
                    lazy.revive(layer, act)
                } else {
                    lazy.stop(layer, act)
                }
                Ok(act.rows())
            }
            &Op::Head { net, rows } => self.head(e, net, rows),
        }
    }

    fn layer(&mut self, e: &Engine, l: &LayerStep, uses: Uses, may_wait: bool) -> Result<usize> {
        let own = lane(&mut self.lanes, l.net);
        let rows = own.act.rows();
        if l.net == Net::Base {
            match uses.cache {
                Some(cache) if may_wait && Queue::takes(e, &own.net, &own.act, (l.rows, l.out)) => {
                    self.queue.push(l.layer, cache);
                    return Ok(rows);
                }
                _ => self.finish_queue(e)?,
            }
        }
        let lane = lane(&mut self.lanes, l.net);
        if let (Some(gathered), Some(cache)) = (uses.gathered, uses.cache) {
            let [cache, gathered] = self.caches.get_disjoint_mut([cache, gathered]).expect("slots of their own");
            let lazy = self.lazy.as_mut().expect("only LazyLLM revives tokens");
            lazy.layer(e, (&lane.net, l.layer), &mut lane.act, &lane.rope, cache, gathered)?;
            return Ok(rows);
        }
        let [kv_source, hidden, own] = uses.sources;
        // Out of the way of those that the base's layers append to meanwhile.
        let mut taken = uses.cache.map(|i| std::mem::replace(&mut self.caches[i], LayerCache::new(0, 0, 0, 0)));
        let kv = Kv {
            cache: taken.as_mut().map_or(Cache::None, Cache::Own),
            source: kv_source.map(|i| match &mut self.sources[i] {
                Source::KeysAndValues(raw) => raw,
                Source::Hidden(_) => unreachable!("a source is what its shape says"),
            }),
        };
        let mut lanes = self.lanes.iter_mut();
        let (lane, base) = match (lanes.next(), lanes.next()) {
            (Some((net, lane)), other) if *net == l.net => (lane, other),
            (other, Some((_, lane))) => (lane, other),
            _ => unreachable!("every network of a schedule has a lane"),
        };
        let done = match base {
            Some((_, base)) if l.net == Net::Auxiliary && !self.queue.is_empty() => {
                let (caches, queue) = (&mut self.caches, &mut self.queue);
                let mut behind = base.behind(e, caches, queue);
                lane.net.layer_by(e, &mut behind, l.layer, &mut lane.act, &lane.rope, kv, l.out)
            }
            _ => lane.net.layer(e, l.layer, &mut lane.act, &lane.rope, kv, l.out),
        };
        if let (Some(i), Some(cache)) = (uses.cache, taken) {
            self.caches[i] = cache;
        }
        done?;
        for (slot, unit) in [(hidden, true), (own, false)] {
            if let Some(Source::Hidden(to)) = slot.map(|i| &mut self.sources[i]) {
                lane.net.keep_hidden(e, &lane.act, unit, to)?;
            }
        }
        Ok(rows)
    }

    /// Runs what was put off and is not done.
    fn finish_queue(&mut self, e: &Engine) -> Result<()> {
        lane(&mut self.lanes, Net::Base).behind(e, &mut self.caches, &mut self.queue).finish()
    }

    /// Fills the caches of base layers: of those that have maps all at once.
    fn map(&mut self, e: &Engine, schedule: &Schedule, rows: usize, maps: &[Map]) -> Result<usize> {
        let (lane, b) = (lane(&mut self.lanes, Net::Base), self.spec.batch);
        let (mut from_kv, mut from_hidden) = (Vec::new(), Vec::new());
        let mut kept: Vec<Option<&mut Vec<f32>>> = self.predicted.iter_mut().flatten().map(Some).collect();
        for (cache, Slot { shape: to, .. }) in self.caches.iter_mut().zip(&schedule.caches) {
            let map = maps.iter().find(|m| to.kept && (to.net, to.layer) == (Net::Base, m.layer));
            let Some(m) = map else { continue };
            let (layer, keep) = (m.layer, kept.get_mut(m.layer).and_then(Option::take));
            let source = schedule.sources.iter().position(|slot| slot.shape.feeds(m)).expect("a map has a source");
            match (&self.sources[source], m.input) {
                (Source::KeysAndValues(raw), _) => {
                    from_kv.push(Prediction { layer, k: &raw.k, v: &raw.v, cache, keep });
                }
                (Source::Hidden(x), Input::Own) => {
                    lane.net.keys_and_values_of(e, layer, (x, b), &mut lane.act, &lane.rope, cache, keep)?;
                }
                (Source::Hidden(x), _) => from_hidden.push(Prediction { layer, k: x, v: x, cache, keep }),
            }
        }
        let predictor = self.predictor.as_ref().expect("only KV prediction maps");
        predictor.predict(e, &lane.net, (b, rows), &lane.rope, from_kv)?;
        predictor.predict(e, &lane.net, (b, rows), &lane.rope, from_hidden)?;
        Ok(b * rows)
    }

    /// Puts entries that were made elsewhere into the caches of base layers.
    fn fill(&mut self, e: &Engine, schedule: &Schedule, rows: usize, layers: &[usize]) -> Result<usize> {
        let (lane, rows) = (lane(&mut self.lanes, Net::Base), self.spec.batch * rows);
        let entries = self.entries.as_ref().expect("a control that fills has entries");
        for (cache, Slot { shape: to, .. }) in self.caches.iter_mut().zip(&schedule.caches) {
            if !to.kept || to.net != Net::Base || !layers.contains(&to.layer) {
                continue;
            }
            let width = lane.net.config().kv_dim(to.layer);
            let [keys, values] =
                entries.layer(to.layer, rows, width)?.map(|part| part.repeat(rows * width / part.len()));
            let [keys, values] = [&keys, &values].map(|part| Mat::new(part, rows, width));
            let k_norm = if entries.normed { None } else { lane.net.k_norm(to.layer) };
            lane.net.put(e, (keys, values, self.spec.batch), k_norm, &lane.rope, cache)?;
        }
        Ok(rows)
    }

    /// Logits, and of the base and of a network that decodes ahead the choice of a token by the last row of each sequence.
    fn head(&mut self, e: &Engine, net: Net, rows: usize) -> Result<usize> {
        if net == Net::Base {
            self.finish_queue(e)?;
        }
        let lane = lane(&mut self.lanes, net);
        let (logits, ids) = match (net, &mut self.ahead) {
            (Net::Base, _) => (&mut self.logits, &mut self.ids),
            (Net::Auxiliary, Some((logits, ids))) => (logits, ids),
            (Net::Auxiliary, None) => {
                lane.net.head_all(e, &mut lane.act, &mut lane.all, |_, _| ())?;
                return Ok(lane.act.rows());
            }
        };
        if let Some(lazy) = &mut self.lazy {
            lazy.finish(&mut lane.act);
        }
        let (b, n, v) = (self.spec.batch, lane.act.n(), lane.net.config().vocab);
        if self.scoring {
            lane.net.head_rows(e, &mut lane.act, &mut self.scored[..b * n * v])?;
            return Ok(b * n);
        }
        let firsts = lane.act.rows() - b * n;
        if rows > 1 {
            lane.net.head_all(e, &mut lane.act, &mut lane.all, |row, m| {
                // Of all these logits, only those of the last positions are looked at.
                for r in 0..m.rows() {
                    if let Some(at) = (row + r).checked_sub(firsts)
                        && at % n == n - 1
                    {
                        logits[at / n * v..][..v].copy_from_slice(m.row(r));
                    }
                }
            })?;
        } else {
            lane.net.head(e, &mut lane.act, logits)?;
        }
        e.argmax(Mat::new(logits, b, v), ids)?;
        Ok(b * rows)
    }

    /// Which token of sequence `b` entry `i` is of, in caches that have the same entries in every layer.
    fn token(&self, b: usize, i: usize) -> usize {
        let kept = self.kept.len() / self.spec.batch;
        if i < kept { self.kept[b * kept + i] as usize } else { i + self.dropped }
    }

    /// At which position it stands there.
    fn position(&self, b: usize, i: usize) -> usize {
        if self.renumbered { i } else { self.token(b, i) }
    }
}

fn lane<A>(lanes: &mut [(Net, Lane<A>)], net: Net) -> &mut Lane<A> {
    &mut lanes.iter_mut().find(|(n, _)| *n == net).expect("every network of a schedule has a lane").1
}

impl<A: Element> Inference for Run<A> {
    fn first_token(&mut self, e: &Engine, ids: &[u32]) -> Result<PhaseTimes> {
        self.first(e, ids, None)
    }

    fn first_token_after(&mut self, e: &Engine, ids: &[u32], lender: &dyn Inference) -> Result<PhaseTimes> {
        let lender: &dyn Any = lender;
        let Some(lender) = lender.downcast_ref() else {
            return Err(Error::Loan { reason: "the two have activations of different types" });
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
            let expected = format!("at most the {most} planned");
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
        let (s, b) = (&self.state, self.state.spec.batch);
        let kept = |slot: &Slot<KvShape>| {
            let s = slot.shape;
            (s.kept && s.net == Net::Base).then_some(s.layer)
        };
        let mut caches: Vec<(usize, &LayerCache<A>)> =
            self.schedule.caches.iter().zip(&s.caches).filter_map(|(slot, c)| Some((kept(slot)?, c))).collect();
        caches.sort_by_key(|(layer, _)| *layer);
        let rope = &s.lanes.iter().find(|(net, _)| *net == Net::Base).expect("the base has a lane").1.rope;
        if let Some(lazy) = &s.lazy {
            return caches.into_iter().flat_map(|(i, c)| lazy.dump(i, c, s.len, rope)).collect();
        }
        let name = if s.predictor.is_some() { "kvp_cache" } else { "base_cache" };
        let gap = Gap::of(&self.shapes, &s.spec);
        let dump = |&(i, c): &(usize, &LayerCache<A>)| {
            let at = |b, entry| (entry, s.position(b, gap.place(i, entry)));
            c.dump(&format!("{name}.{i}"), s.len.saturating_sub(gap.in_layer(i)), at, rope)
        };
        let mut out: Vec<NamedTensor> = caches.iter().flat_map(dump).collect();
        if !s.kept.is_empty() {
            let data = (0..b).flat_map(|b| (0..s.len).map(move |i| s.token(b, i) as f32)).collect();
            out.push(NamedTensor { name: "kept".into(), shape: vec![b, s.len], data });
        }
        for step in &self.schedule.prompt {
            let Op::Map { rows, maps } = &step.op else { continue };
            let c = &self.shapes.base;
            for m in maps {
                let (_, cache) = caches.iter().find(|(i, _)| *i == m.layer).expect("a map fills a cache");
                let [mut k, v] = cache.dump(&format!("predicted.{}", m.layer), *rows, |_, p| (p, p), rope);
                k.name = format!("predicted.{}.k_normed", m.layer);
                out.extend([k, v]);
                if let Some(keys) = s.predicted.as_ref().map(|p| &p[m.layer]).filter(|keys| !keys.is_empty()) {
                    let name = format!("predicted.{}.k", m.layer);
                    out.push(heads_first(name, keys, b, c.layers[m.layer].kv_heads, c.head_dim));
                }
            }
        }
        for (Slot { shape: from, .. }, source) in self.schedule.sources.iter().zip(&s.sources) {
            let (c, j) = (shapes(&self.shapes, from.net), from.layer);
            let name = if from.net == Net::Base { "source" } else { "aux_cache" };
            match source {
                Source::KeysAndValues(raw) => {
                    for (part, rows) in [("k", &raw.k), ("v", &raw.v)] {
                        out.push(heads_first(format!("{name}.{j}.{part}"), rows, b, c.layers[j].kv_heads, c.head_dim));
                    }
                }
                Source::Hidden(x) => {
                    let part = if from.input == Input::Hidden { "unit" } else { "hidden" };
                    let shape = vec![b, from.entries, c.dim];
                    out.push(NamedTensor { name: format!("source.{j}.{part}"), shape, data: x.clone() });
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use ttft_kernels::DType;

    use super::*;
    use crate::{
        cost::Flops,
        kv_prediction::{
            control::Mean,
            layout::{Layout, Order, Origin, OwnTokens},
        },
        pruning::Pruned,
        spec::Extent,
        synth, zoo,
    };

    /// A network of the zoo, so narrow that it runs in no time.
    fn tiny(name: &str, layers: usize) -> crate::NetworkConfig {
        let mut c = zoo::network(name).unwrap();
        (c.vocab, c.dim, c.head_dim) = (99, 24, 4);
        c.layers.truncate(layers);
        for (i, l) in c.layers.iter_mut().enumerate() {
            (l.kv_heads, l.query_heads, l.ffn) = (1 + i % 2, 4, 8 * (i + 1));
            l.ffn_multiplier = l.ffn as f64 / 24.0;
        }
        c.ffn_dim_divisor = 8;
        c
    }

    /// Weights of networks and of maps in these types.
    fn systems(networks: DType, maps: DType) -> Vec<System> {
        let dir = tempfile::tempdir().unwrap();
        let (base, aux) = (tiny("OE1.1B", 7), tiny("OE270M", 4));
        let map = vec![2, 0, 0, 1, 2, 2, 1];
        let make = |name: &str, spec: synth::Spec| {
            spec.make(&dir.path().join(name), &|_, _| ()).unwrap();
        };
        make("base", synth::Spec::custom("base", base.clone(), networks, 1));
        make("aux", synth::Spec::custom("aux", aux.clone(), networks, 1));
        let predictor = |name: &str, aux: Option<&crate::NetworkConfig>, layout: Layout| {
            make(name, synth::Spec::custom_predictor("p", base.clone(), aux.cloned(), layout, maps, 1));
        };
        predictor("predictor", Some(&aux), Layout::auxiliary(&map));
        let hidden = Origin { layer: 2, input: Input::Hidden };
        predictor("hidden", Some(&aux), Layout { shared: None, layers: vec![Some(hidden); 7] });
        // Every layer from another one, or in another way.
        let mut mixed = Layout::shared(7, 3, Input::Own);
        mixed.layers[5] = Some(Origin { layer: 0, input: Input::Hidden });
        mixed.layers[6] = Some(Origin { layer: 2, input: Input::Hidden });
        predictor("mixed", None, mixed.clone());
        mixed.layers[3] = Some(Origin { layer: 1, input: Input::Hidden });
        predictor("inexact", None, mixed);
        predictor("S6", None, Layout::shared(7, 6, Input::Hidden));
        predictor("own", None, Layout::shared(7, 2, Input::Own));
        let kv = |i: usize| (i >= 3).then_some(Origin { layer: i % 3, input: Input::KeysAndValues });
        predictor("kv", None, Layout { shared: Some(3), layers: (0..7).map(kv).collect() });
        let part = |part: &str| dir.path().join(part);
        let pair = KvPrediction::load(&part("base"), &part("aux"), &part("predictor")).unwrap();
        let load = |aux, name| KvPrediction::new(Arc::clone(&pair.base), aux, &part(name)).unwrap();
        let shared = ["mixed", "inexact", "S6", "own", "kv"].map(|name| load(None, name));
        let reads = [(1, 0), (3, 2), (1, 4), (15, 1), (16, 1)];
        let reads: Vec<_> = reads.into_iter().flat_map(|own| [false, true].map(|kept| (own, kept))).collect();
        let read = |s: &KvPrediction| {
            let own = |&((last, first), kept): &_| s.clone().reading(OwnTokens { last, first, kept });
            reads.iter().map(own).collect::<Vec<_>>()
        };
        let variants = [pair.clone(), load(pair.aux.clone(), "hidden")].into_iter().chain(shared);
        let variants: Vec<KvPrediction> = variants.flat_map(|s| read(&s)).collect();
        let controls = variants.iter().flat_map(|s| {
            let entries = Control::Entries(Arc::new(zeros(&s.base)));
            [Control::Nothing, entries].map(|control| s.clone().control(control))
        });
        let variants: Vec<System> = variants.iter().cloned().chain(controls).map(System::KvPrediction).collect();
        let pruned = |name: &str| System::Pruned(Pruned::new(Arc::clone(&pair.base), name.parse().unwrap()));
        let pipelined = [pair.clone(), load(pair.aux.clone(), "hidden")].map(|s| s.ordered(Order::Pipelined));
        let mut all = vec![System::Network(Arc::clone(&pair.base)), System::KvPrediction(pair.clone())];
        all.extend(pipelined.iter().flat_map(read).map(System::KvPrediction));
        all.extend(variants);
        all.extend(["RP-0.40", "SP-0.30", "SP-1.00", "L0.70-0.20", "L1.00-1.00"].map(pruned));
        all.extend(["GemFilter-0-3", "GemFilter-3-5-p3", "GemFilter-6-99"].map(pruned));
        let rivals = ["SpecPrefill-0.40-a3-c4-p3", "SpecPrefill-1.00-a1-p1", "SpecPrefill-0.01-c1"];
        all.extend(rivals.map(|name| {
            System::Pruned(Pruned {
                aux: pair.aux.clone(),
                ..Pruned::new(Arc::clone(&pair.base), name.parse().unwrap())
            })
        }));
        all
    }

    /// A row of zeros for every layer.
    fn zeros(base: &Network) -> Entries {
        let c = base.config();
        let mut mean = Mean::default();
        for i in 0..c.layers.len() {
            let shape = vec![1, c.layers[i].kv_heads, 1, c.head_dim];
            let zero = |part: &str| NamedTensor {
                name: format!("predicted.{i}.{part}"),
                shape: shape.clone(),
                data: vec![0.0; c.kv_dim(i)],
            };
            mean.add(&[zero("k"), zero("v")], c.layers.len(), 0).unwrap();
        }
        mean.entries()
    }

    fn counts(f: Flops) -> [u64; 4] {
        [f.projections, f.attention, f.head, f.prediction]
    }

    /// A pass asks the engine for the multiplications that its cost says, and its layers work on the rows that they name.
    #[test]
    fn costs_are_what_the_engine_is_asked_for() {
        let e = Engine::new(99);
        let mut all_extra = 0;
        for system in systems(DType::F32, DType::F32) {
            for extent in [Extent::FirstToken, Extent::FullNetwork] {
                for (batch, prompt) in [(1, 1), (1, 2), (2, 17), (1, 60)] {
                    let spec = RunSpec { batch, prompt, generate: 6, precision: Precision::F32, extent };
                    let mut run = Run::<f32>::new(&system, spec, 5, &[]).unwrap();
                    let ids: Vec<u32> = (0..batch * prompt).map(|i| (i * 31 % 99) as u32).collect();
                    let what = format!(
                        "{:?} {:?} {spec:?}",
                        run.shapes.pruning,
                        run.shapes.prediction.as_ref().map(|p| (p.own, p.filling, &p.layout))
                    );
                    // What an earlier call leaves costs nothing in this one.
                    run.sinks(&e, &ids).unwrap();
                    e.take();
                    run.first_token(&e, &ids).unwrap();
                    let asked = e.take();
                    let phases = run.shapes.first_token(&spec);
                    let sum = phases.iter().fold(Flops::default(), |sum, p| sum + p.flops);
                    assert_eq!(asked, counts(sum), "{what}");
                    let times = run.first_token(&e, &ids).unwrap();
                    let named: Vec<Phase> = times.phases.iter().map(|p| p.phase).collect();
                    assert_eq!(named, phases.iter().map(|p| p.phase).collect::<Vec<_>>(), "{what}");
                    let (steps, ran) = run.trace();
                    assert_eq!(steps.len(), ran.len());
                    assert_eq!(ran.iter().map(|r| r.time).sum::<Duration>(), times.phases.iter().map(|p| p.time).sum());
                    for (step, ran) in steps.iter().zip(ran) {
                        if let Op::Layer(l) = &step.op {
                            assert_eq!(ran.rows, batch * l.rows.total(), "{what}: {step}");
                        }
                    }
                    e.take();
                    for past in prompt..prompt + 5 {
                        run.next_token(&e).unwrap();
                        let (asked, cost) = (e.take(), run.shapes.next_token(&spec, past));
                        let (steps, ran) = run.trace();
                        let revived = steps.iter().zip(ran).filter_map(|(step, ran)| match &step.op {
                            Op::Layer(l) if l.revives > 0 => {
                                assert!(ran.rows <= batch * (1 + l.revives), "{what}: {step}");
                                Some((l.layer, ran.rows - batch))
                            }
                            _ => None,
                        });
                        // A row that is revived passes a layer, and goes on to no head.
                        let c = &run.shapes.base;
                        let extra: u64 = revived
                            .map(|(i, rows)| {
                                let (q, kv, f) = (c.q_dim(i), c.kv_dim(i), c.layers[i].ffn);
                                (2 * rows * c.dim * (2 * q + 2 * kv + 3 * f)) as u64
                            })
                            .sum();
                        all_extra += extra;
                        assert_eq!(asked[0], cost.flops.projections + extra, "{what} after {past}");
                        assert_eq!(asked[2], cost.flops.head, "{what} after {past}");
                        if extra == 0 {
                            assert_eq!(asked, counts(cost.flops), "{what} after {past}");
                        }
                    }
                }
            }
        }
        assert!(all_extra > 0, "nothing was revived");
    }

    /// Of networks and activations in BF16: maps whose weights, or what they read, are not.
    #[test]
    fn costs_say_what_is_multiplied_in_f32() {
        let e = Engine::new(99);
        let (batch, prompt) = (2, 17);
        let spec = RunSpec { batch, prompt, generate: 1, precision: Precision::Bf16, extent: Extent::FirstToken };
        let ids: Vec<u32> = (0..batch * prompt).map(|i| (i * 31 % 99) as u32).collect();
        for (maps, by_keys) in [(DType::BF16, false), (DType::F16, true), (DType::F32, true)] {
            let (mut some, mut all) = (0, 0);
            for system in systems(DType::BF16, maps) {
                let mut run = Run::<bf16>::new(&system, spec, 0, &[]).unwrap();
                run.sinks(&e, &ids).unwrap();
                e.take();
                e.take_f32();
                run.first_token(&e, &ids).unwrap();
                let phases = run.shapes.first_token(&spec);
                let f32_flops: u64 = phases.iter().map(|p| p.f32_flops).sum();
                assert_eq!(e.take_f32(), f32_flops, "{maps}: {:?}", run.shapes.prediction);
                let maps: u64 = phases.iter().map(|p| p.flops.prediction).sum();
                assert!(f32_flops == 0 || f32_flops == maps);
                some += u64::from(f32_flops > 0);
                all += u64::from(maps > 0);
            }
            assert!(some > 0 && (some == all) == by_keys, "{maps}: {some} of {all}");
        }
    }
}
