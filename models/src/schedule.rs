//! What a run does, step by step: which network works on which rows in which layer, and what becomes of its keys and values.
//!
//! One list, made of shapes alone by one function for each method, is run ([`crate::plan`]), counted ([`crate::cost`]), sized
//! ([`crate::memory_of`]) and traced ([`crate::Inference::trace`]). A step is no kernel call: it lowers to several, and those
//! of two steps may be interleaved. A phase is a label; its steps need not be neighbours.

use std::{collections::VecDeque, fmt};

pub use crate::{activations::Rows, network::Out};

use crate::{
    config::NetworkConfig,
    kv_prediction::{
        self,
        control::Filling,
        layout::{Input, Order, Origin},
    },
    pipeline,
    pruning::{Pruning, SpecPrefill},
    spec::{Extent, Phase, RunSpec},
    system::CostSystem,
};

/// A network of a system, by what it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Net {
    /// The one that answers.
    Base,
    /// The one that reads the prompt for it, or chooses its tokens.
    Auxiliary,
}

/// Which tokens are embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tokens {
    /// The prompt's.
    Prompt,
    /// Those of the prompt that [`Op::Choose`] chose, at positions of their own.
    Kept,
    /// The same as a prompt of its own, from position 0 on.
    Renumbered,
    /// Those that the network's last pass chose.
    Last,
    /// Some that are given, to follow the prompt.
    Given,
}

/// What becomes of a layer's keys and values as its attention reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entries {
    /// They stay: later tokens attend to them.
    Kept,
    /// They last until the next layer.
    Passing,
    /// They are not made: the layer ends before.
    None,
}

/// What is kept of a layer as a source of maps, of the first so many rows of each sequence; 0 where nothing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Keeps {
    /// A copy of its keys and values as they were before k_norm and RoPE.
    pub kv: usize,
    /// The residual stream behind it, divided by its root mean square.
    pub hidden: usize,
    /// The residual stream behind it.
    pub own: usize,
}

impl Keeps {
    /// The rows that are kept for an input of maps.
    pub fn rows(self, input: Input) -> usize {
        match input {
            Input::KeysAndValues => self.kv,
            Input::Hidden => self.hidden,
            Input::Own => self.own,
        }
    }

    /// Each of them and the other's, in the order of [`Input::ALL`].
    pub(crate) fn beside(self, other: Keeps) -> [(usize, usize); 3] {
        Input::ALL.map(|input| (self.rows(input), other.rows(input)))
    }
}

/// A layer on some rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerStep {
    /// Whose.
    pub net: Net,
    /// Which.
    pub layer: usize,
    /// Its rows; where it revives some, the new ones alone, as how many come with them depends on what is attended to.
    pub rows: Rows,
    /// At most so many rows of each sequence besides, of tokens that stopped before this layer.
    pub revives: usize,
    /// Keys and values for its attention.
    pub entries: Entries,
    /// What is kept of it for maps.
    pub source: Keeps,
    /// What goes on.
    pub out: Out,
}

/// Where the keys and values of a base layer come from that it does not make itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Map {
    /// The base layer.
    pub layer: usize,
    /// The network that they are mapped from.
    pub net: Net,
    /// The layer of that network.
    pub source: usize,
    /// What is read of that layer.
    pub input: Input,
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Starts a pass: looks up the embeddings of tokens.
    Embed {
        /// Whose.
        net: Net,
        /// Of which rows.
        rows: Rows,
        /// Which tokens these are.
        tokens: Tokens,
    },
    /// A layer.
    Layer(LayerStep),
    /// All rows but these stop here. Where the layers above hold fewer entries, these are the last of so many.
    Ends {
        /// Whose.
        net: Net,
        /// The rows that go on.
        rows: Rows,
    },
    /// Fills the caches of base layers, all at once.
    Map {
        /// Entries of each sequence.
        rows: usize,
        /// By layer.
        maps: Vec<Map>,
    },
    /// Fills the caches of base layers with entries that were made elsewhere.
    Fill {
        /// Entries of each sequence.
        rows: usize,
        /// The layers.
        layers: Vec<usize>,
    },
    /// Keeps the entries of the first tokens in the caches of base layers that are predicted, for later calls; or puts them back.
    Sinks {
        /// So many.
        rows: usize,
        /// Whether they are put back.
        back: bool,
        /// Of these layers.
        layers: Vec<usize>,
    },
    /// Adds to the scores of tokens what the last row of the layer that has just run says of them, or a pseudo-random score.
    Rank {
        /// The layer and whose it is, if it is one.
        layer: Option<(Net, usize)>,
        /// Tokens of each sequence; 0 where none will be dropped.
        of: usize,
    },
    /// Chooses the tokens of the prompt that the base works on.
    Choose {
        /// Out of so many.
        of: usize,
        /// So many.
        keep: usize,
        /// Whole chunks of so many, of which the last may be short.
        chunk: usize,
    },
    /// Chooses the tokens that pass a layer, among those that passed the one before.
    Narrow {
        /// The layer.
        layer: usize,
        /// Out of so many.
        of: usize,
        /// So many.
        keep: usize,
        /// Whether all of the sequence are chosen from anew, and come in from where they stopped; else the others stop here.
        revives: bool,
    },
    /// Logits of the last rows of each sequence; the last of the base, and of a network that decodes ahead, choose a token.
    Head {
        /// Whose.
        net: Net,
        /// So many.
        rows: usize,
    },
}

impl Op {
    /// Whether it is the output head of the network that answers.
    pub fn answers(&self) -> bool {
        matches!(self, Op::Head { net: Net::Base, .. })
    }
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// Where its time and cost count.
    pub phase: Phase,
    /// What it does.
    pub op: Op,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.phase.name())?;
        match &self.op {
            Op::Embed { net, rows, tokens } => write!(f, "{net:?} embeds {} of {tokens:?}", rows.total()),
            Op::Layer(l) => write!(f, "{:?} layer {} on {} of {}", l.net, l.layer, l.rows.total(), l.rows.of),
            Op::Ends { net, rows } => write!(f, "{net:?} goes on with {} of {}", rows.total(), rows.of),
            Op::Map { rows, maps } => write!(f, "maps of {} layers on {rows}", maps.len()),
            Op::Fill { rows, layers } => write!(f, "fills {} layers with {rows}", layers.len()),
            Op::Sinks { rows, back: false, .. } => write!(f, "keeps {rows}"),
            Op::Sinks { rows, back: true, .. } => write!(f, "puts {rows} back"),
            Op::Rank { layer: Some((Net::Base, i)), of } => write!(f, "ranks {of} by layer {i}"),
            Op::Rank { layer: Some((net, i)), of } => write!(f, "ranks {of} by {net:?} layer {i}"),
            Op::Rank { layer: None, of } => write!(f, "ranks {of} by chance"),
            Op::Choose { of, keep, .. } => write!(f, "chooses {keep} of {of}"),
            Op::Narrow { layer, of, keep, .. } => write!(f, "layer {layer} takes {keep} of {of}"),
            Op::Head { net, rows } => write!(f, "{net:?} head on {rows}"),
        }
    }
}

/// Something that a run allocates, and the first and last step that use it; those of later tokens are counted on after the
/// prompt's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot<T> {
    /// What it holds.
    pub shape: T,
    /// The first step that writes it.
    pub first: usize,
    /// The last that reads it.
    pub last: usize,
}

/// The residual stream of a network and all that it takes besides caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// Whose.
    pub net: Net,
    /// Rows of each sequence, at most.
    pub rows: usize,
    /// Positions, for RoPE.
    pub positions: usize,
    /// Whether logits of more than the last rows are made.
    pub all_logits: bool,
}

/// Keys and values of a layer, its cache. One that is not kept serves layers of the same shape one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Whose.
    pub net: Net,
    /// The layer, or the first of them.
    pub layer: usize,
    /// Entries of each sequence.
    pub entries: usize,
    /// Whether they are that layer's alone.
    pub kept: bool,
}

/// What maps read of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceShape {
    /// Whose.
    pub net: Net,
    /// The layer.
    pub layer: usize,
    /// What of it.
    pub input: Input,
    /// Rows of each sequence.
    pub entries: usize,
}

impl SourceShape {
    /// Whether a map reads it.
    pub fn feeds(&self, m: &Map) -> bool {
        (self.net, self.layer, self.input) == (m.net, m.source, m.input)
    }
}

/// Which slots of [`Schedule`] a step uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// The cache that a layer appends to.
    pub cache: Option<usize>,
    /// Where the entries that it attends to are gathered, if not in `cache`.
    pub gathered: Option<usize>,
    /// Where it keeps what maps read, by the place in [`Input::ALL`].
    pub sources: [Option<usize>; 3],
}

/// The steps of a run, for the prompt and for a later token, and what they need.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// The first token's.
    pub prompt: Vec<Step>,
    /// A later token's, as [`next`] says; the first one's to begin with.
    pub next: Vec<Step>,
    /// Those that score tokens that are given to follow the prompt, as [`given`] says; none unless they were planned.
    pub given: Vec<Step>,
    /// What is done before the first token where prompts begin with others than before, and the entries of first tokens are kept.
    pub earlier: Vec<Step>,
    /// Of `prompt`, then of `next`, of `given` and of `earlier`: what each step uses.
    pub uses: Vec<Uses>,
    /// The base's, then the auxiliary's if there is one.
    pub streams: Vec<Slot<Stream>>,
    /// Caches.
    pub caches: Vec<Slot<KvShape>>,
    /// Sources of maps.
    pub sources: Vec<Slot<SourceShape>>,
    /// Entries of first tokens that are kept, of the base layers that are predicted.
    pub sinks: Vec<KvShape>,
    /// Tokens of each sequence that are scored at once, at most; 0 where none are.
    pub ranked: usize,
    /// Tokens of the prompt that are dropped before the base runs.
    pub dropped: usize,
    /// Steps of the prompt among which layers of the base may be put off, to run behind the auxiliary's: those before its last.
    pub behind: usize,
}

impl Schedule {
    /// Of a system and a run.
    pub fn new(s: &CostSystem, spec: &RunSpec) -> Schedule {
        Schedule::keeping(s, spec, 0, |_| ())
    }

    /// The same, with up to `scored` tokens that are given to follow each prompt, and but for what layers of the prompt keep, which
    /// `keep` may make more.
    pub(crate) fn keeping(s: &CostSystem, spec: &RunSpec, scored: usize, keep: impl FnOnce(&mut [Step])) -> Schedule {
        let (mut prompt, behind) = first_token(s, spec);
        keep(&mut prompt);
        let dropped = dropped(s, spec);
        let lazy = matches!(s.pruning, Some(Pruning::Lazy { .. }));
        let mut schedule = Schedule {
            prompt,
            next: Vec::new(),
            earlier: Vec::new(),
            given: Vec::new(),
            uses: Vec::new(),
            streams: Vec::new(),
            caches: Vec::new(),
            sources: Vec::new(),
            sinks: Vec::new(),
            // Later tokens are ranked among all before them.
            ranked: if lazy { spec.positions() } else { 0 },
            dropped,
            behind,
        };
        next(s, spec, spec.prompt, &mut schedule.next);
        if let Some(rows) = kept_sinks(&schedule.prompt) {
            let layers = predicted_layers(s).map(|layer| KvShape { net: Net::Base, layer, entries: rows, kept: true });
            schedule.sinks = layers.collect();
            earlier(s, rows, &mut schedule.earlier);
        }
        if scored > 0 {
            given(s, spec, scored, &mut schedule.given);
        }
        let all = [&schedule.prompt, &schedule.next, &schedule.given, &schedule.earlier];
        let steps: Vec<Step> = all.into_iter().flatten().cloned().collect();
        for (at, step) in steps.iter().enumerate() {
            let uses = schedule.place(s, spec, at, &step.op);
            schedule.uses.push(uses);
        }
        // Of the base the last rows' alone are looked at, and made in their place where they are all.
        for Slot { shape, .. } in schedule.streams.iter_mut().filter(|slot| slot.shape.net == Net::Base) {
            shape.all_logits = spec.extent == Extent::FullNetwork && shape.rows > 1;
        }
        schedule
    }

    /// Finds the slots of a step, the `at`-th, or makes them.
    fn place(&mut self, s: &CostSystem, spec: &RunSpec, at: usize, op: &Op) -> Uses {
        let mut uses = Uses::default();
        match op {
            Op::Embed { net, rows, .. } | Op::Ends { net, rows } => self.stream(s, spec, at, *net, rows.total()),
            Op::Layer(l) => {
                self.stream(s, spec, at, l.net, l.rows.total().max(l.revives));
                let entries = positions(s, spec, l.net) - if l.net == Net::Base { self.dropped } else { 0 };
                match l.entries {
                    Entries::Kept => uses.cache = Some(self.cache(s, at, l, entries, true)),
                    Entries::Passing => uses.cache = Some(self.cache(s, at, l, l.rows.of, false)),
                    Entries::None => {}
                }
                if l.revives > 0 {
                    uses.gathered = Some(self.cache(s, at, l, entries, false));
                }
                for (input, slot) in Input::ALL.into_iter().zip(&mut uses.sources) {
                    let entries = l.source.rows(input);
                    if entries > 0 {
                        let shape = SourceShape { net: l.net, layer: l.layer, input, entries };
                        self.sources.push(Slot { shape, first: at, last: at });
                        *slot = Some(self.sources.len() - 1);
                    }
                }
            }
            Op::Map { maps, .. } => {
                for m in maps {
                    let source = self.sources.iter_mut().find(|slot| slot.shape.feeds(m));
                    source.expect("a map reads what a layer has left").last = at;
                    let shape = KvShape { net: Net::Base, layer: m.layer, entries: spec.positions(), kept: true };
                    self.caches.push(Slot { shape, first: at, last: at });
                }
            }
            Op::Fill { layers, .. } => {
                for &layer in layers {
                    let shape = KvShape { net: Net::Base, layer, entries: spec.positions(), kept: true };
                    self.caches.push(Slot { shape, first: at, last: at });
                }
            }
            Op::Rank { layer, of } => {
                if at < self.prompt.len() {
                    self.ranked = self.ranked.max(*of);
                }
                if layer.is_some() {
                    uses = self.uses[at - 1];
                    [uses.cache, uses.gathered].into_iter().flatten().for_each(|c| self.caches[c].last = at);
                }
            }
            Op::Choose { .. } | Op::Narrow { .. } | Op::Sinks { .. } => {}
            Op::Head { net, rows } => {
                let slot =
                    self.streams.iter_mut().find(|slot| slot.shape.net == *net).expect("a pass begins by embedding");
                slot.last = at;
                // A network that decodes ahead has a place for those of its last rows.
                slot.shape.all_logits |= *net == Net::Auxiliary && (*rows > 1 || s.prediction.is_some());
            }
        }
        uses
    }

    fn stream(&mut self, s: &CostSystem, spec: &RunSpec, at: usize, net: Net, most: usize) {
        let slot = match self.streams.iter().position(|slot| slot.shape.net == net) {
            Some(slot) => slot,
            None => {
                let shape = Stream { net, rows: 0, positions: positions(s, spec, net), all_logits: false };
                self.streams.push(Slot { shape, first: at, last: at });
                self.streams.len() - 1
            }
        };
        let slot = &mut self.streams[slot];
        slot.last = at;
        slot.shape.rows = slot.shape.rows.max(most);
    }

    /// The layer's own cache, or one for layers of its shape that is free by now.
    fn cache(&mut self, s: &CostSystem, at: usize, l: &LayerStep, entries: usize, kept: bool) -> usize {
        let heads = |layer: usize| shapes(s, l.net).layers[layer].kv_heads;
        let shape = KvShape { net: l.net, layer: l.layer, entries, kept };
        let fits = |slot: &Slot<KvShape>| {
            let c = slot.shape;
            let same = || if kept { c.layer == l.layer } else { slot.last < at && heads(c.layer) == heads(l.layer) };
            (c.net, c.entries, c.kept) == (l.net, entries, kept) && same()
        };
        let slot = self.caches.iter().position(fits).unwrap_or_else(|| {
            self.caches.push(Slot { shape, first: at, last: at });
            self.caches.len() - 1
        });
        self.caches[slot].last = at;
        slot
    }
}

/// The shapes of a network of `s`.
///
/// # Panics
/// If it has no auxiliary.
pub fn shapes(s: &CostSystem, net: Net) -> &NetworkConfig {
    match net {
        Net::Base => &s.base,
        Net::Auxiliary => s.aux().expect("only pairs have steps of an auxiliary"),
    }
}

/// Positions that a network of `s` comes to.
fn positions(s: &CostSystem, spec: &RunSpec, net: Net) -> usize {
    match (net, &s.prediction, s.pruning) {
        (Net::Base, ..) => spec.positions(),
        (Net::Auxiliary, Some(p), _) => spec.prompt.saturating_sub(p.own.last),
        (Net::Auxiliary, None, Some(Pruning::Spec(p))) => spec.prompt.saturating_add(p.look_ahead - 1),
        (Net::Auxiliary, None, _) => spec.prompt,
    }
}

/// First tokens whose entries a first token finds kept.
fn kept_sinks(prompt: &[Step]) -> Option<usize> {
    prompt.iter().find_map(|step| if let Op::Sinks { rows, .. } = step.op { Some(rows) } else { None })
}

/// Base layers whose entries are predicted, but for one that makes its own of all tokens.
fn predicted_layers(s: &CostSystem) -> impl Iterator<Item = usize> + '_ {
    let layout = s.prediction.iter().map(|p| &p.layout);
    layout.flat_map(|l| l.predicted().filter(move |(i, _)| Some(*i) != l.exact()).map(|(i, _)| i))
}

/// The base on the first tokens alone, as far as their keys and values.
fn earlier(s: &CostSystem, rows: usize, out: &mut Vec<Step>) {
    let (c, phase, rows) = (&s.base, Phase::BaseStep, Rows::all(rows));
    out.push(Step { phase, op: Op::Embed { net: Net::Base, rows, tokens: Tokens::Prompt } });
    for layer in 0..c.layers.len() {
        let goes_on = if layer + 1 < c.layers.len() { rows.count } else { 0 };
        out.push(Step { phase, op: kept(layer, rows, Out::Rows(goes_on)) });
    }
    out.push(Step { phase, op: Op::Sinks { rows: rows.count, back: false, layers: predicted_layers(s).collect() } });
}

/// Tokens of the prompt without an entry in any cache of the base.
fn dropped(s: &CostSystem, spec: &RunSpec) -> usize {
    match s.pruning {
        None | Some(Pruning::Lazy { .. }) => 0,
        Some(p) => spec.prompt - p.tokens(0, s.base.layers.len(), spec.prompt),
    }
}

/// The steps of the first token, in the order in which they run, and [`Schedule::behind`].
pub(crate) fn first_token(s: &CostSystem, spec: &RunSpec) -> (Vec<Step>, usize) {
    let steps = prompt(s, spec);
    match &s.prediction {
        Some(p) if p.order == Order::Pipelined && pipeline::pays(p, spec) => pipelined(steps),
        _ => (steps, 0),
    }
}

/// The same, in turn.
fn prompt(s: &CostSystem, spec: &RunSpec) -> Vec<Step> {
    let (n, extent, c) = (spec.prompt, spec.extent, &s.base);
    let mut out = Vec::new();
    match (&s.prediction, s.pruning) {
        (Some(p), _) => predicted(c, p, n, extent, &mut out),
        (None, None) => pass(Phase::Prefill, Tokens::Prompt, c, Rows::all(n), Gap::NONE, extent, &mut out),
        (None, Some(p @ Pruning::Lazy { .. })) => lazy(Phase::Prefill, c, p, n, None, extent, &mut out),
        (None, Some(Pruning::Spec(p))) => {
            ahead(shapes(s, Net::Auxiliary), p, n, extent, &mut out);
            chosen(c, Pruning::Spec(p), Phase::Selection, n, extent, &mut out);
        }
        (None, Some(p)) => subset(c, p, n, extent, &mut out),
    }
    out
}

/// Sets `out` to the steps of the token after `past` positions. How many there are, and which slots they use, does not
/// depend on `past`.
pub fn next(s: &CostSystem, spec: &RunSpec, past: usize, out: &mut Vec<Step>) {
    out.clear();
    let (c, phase, extent) = (&s.base, Phase::BaseStep, Extent::FirstToken);
    match s.pruning {
        Some(p @ Pruning::Lazy { .. }) => lazy(phase, c, p, past.saturating_add(1), Some(spec.prompt), extent, out),
        _ => {
            let rows = Rows::last_of(1, past.saturating_add(1) - dropped(s, spec));
            pass(phase, Tokens::Last, c, rows, Gap::of(s, spec), extent, out);
        }
    }
}

/// Sets `out` to the steps that score `count` given tokens right behind the prompt, in one pass. How many there are, and which
/// slots they use, does not depend on `count`. None of LazyLLM, where each token chooses anew what it attends to.
pub fn given(s: &CostSystem, spec: &RunSpec, count: usize, out: &mut Vec<Step>) {
    out.clear();
    if !matches!(s.pruning, Some(Pruning::Lazy { .. })) {
        let rows = Rows::last_of(count, spec.prompt.saturating_add(count) - dropped(s, spec));
        pass(Phase::BaseStep, Tokens::Given, &s.base, rows, Gap::of(s, spec), Extent::FullNetwork, out);
    }
}

/// What the caches of some layers lack, because nothing was predicted for them.
#[derive(Clone, Copy)]
pub(crate) struct Gap {
    /// The first of these layers.
    from: usize,
    /// Entries of each sequence that stand before it: of the first tokens.
    before: usize,
    /// Entries of each sequence.
    entries: usize,
}

impl Gap {
    const NONE: Gap = Gap { from: 0, before: 0, entries: 0 };

    /// How many entries a layer lacks.
    pub fn in_layer(self, layer: usize) -> usize {
        if layer < self.from { 0 } else { self.entries }
    }

    /// Which entry it would be in a layer that lacks none.
    pub fn place(self, layer: usize, entry: usize) -> usize {
        if entry < self.before { entry } else { entry + self.in_layer(layer) }
    }

    pub fn of(s: &CostSystem, spec: &RunSpec) -> Gap {
        s.prediction.as_ref().map_or(Gap::NONE, |p| Gap::of_prediction(p, spec.prompt))
    }

    fn of_prediction(p: &kv_prediction::Shape, prompt: usize) -> Gap {
        let own = p.own.last.saturating_add(p.own.first);
        if p.filling != Some(Filling::Nothing) || own >= prompt {
            return Gap::NONE;
        }
        let from = p.layout.shared.unwrap_or(0) + usize::from(p.layout.exact().is_some());
        Gap { from, before: p.own.first, entries: prompt - own }
    }
}

/// A pass of the base: all of its layers, then its head.
fn pass(phase: Phase, tokens: Tokens, c: &NetworkConfig, rows: Rows, gap: Gap, extent: Extent, out: &mut Vec<Step>) {
    out.push(Step { phase, op: Op::Embed { net: Net::Base, rows, tokens } });
    rest(phase, 0, c, rows, gap, extent, out);
}

/// The layers of the base from `first` on, then its head.
fn rest(phase: Phase, first: usize, c: &NetworkConfig, mut rows: Rows, gap: Gap, extent: Extent, out: &mut Vec<Step>) {
    for layer in first..c.layers.len() {
        if gap.entries > 0 && layer == gap.from.max(first) {
            rows.of -= gap.entries;
            out.push(Step { phase, op: Op::Ends { net: Net::Base, rows } });
        }
        out.push(Step { phase, op: kept(layer, rows, goes_on(layer, c, rows, extent)) });
    }
    out.push(Step { phase, op: Op::Head { net: Net::Base, rows: needed(extent, rows.total()) } });
}

/// Rows of `n` whose logits an extent asks for.
fn needed(extent: Extent, n: usize) -> usize {
    if extent == Extent::FirstToken { 1 } else { n }
}

/// What a layer of the base puts out of `rows`: of the last layer what the head needs.
fn goes_on(layer: usize, c: &NetworkConfig, rows: Rows, extent: Extent) -> Out {
    if layer + 1 == c.layers.len() && extent == Extent::FirstToken { Out::Rows(1) } else { ends(rows) }
}

/// These rows.
fn ends(rows: Rows) -> Out {
    if rows.first == 0 { Out::Rows(rows.count) } else { Out::Ends(rows.first, rows.count) }
}

/// A layer of the base that keeps its entries.
fn kept(layer: usize, rows: Rows, out: Out) -> Op {
    let source = Keeps::default();
    Op::Layer(LayerStep { net: Net::Base, layer, rows, revives: 0, entries: Entries::Kept, source, out })
}

/// KV prediction of `n` tokens: a source reads the prompt but for the base's last tokens, maps, and the base on those that it
/// reads itself. If these are all, there is nothing to predict.
fn predicted(base: &NetworkConfig, p: &kv_prediction::Shape, n: usize, extent: Extent, out: &mut Vec<Step>) {
    let Some(own) = p.own.of(n) else {
        return pass(Phase::BaseStep, Tokens::Prompt, base, Rows::all(n), Gap::NONE, extent, out);
    };
    match (p.layout.shared, &p.aux) {
        (Some(k), _) => shared(base, k, p, own, extent, out),
        (None, aux) => {
            match p.filling {
                Some(filling) => fill(filling, p.layout.predicted(), own.past(), out),
                None => {
                    let aux = aux.as_ref().expect("an auxiliary, where no layers are shared");
                    auxiliary(aux, p, own.past(), extent, out);
                }
            }
            sinks_back(p, out);
            pass(Phase::BaseStep, Tokens::Prompt, base, own, Gap::of_prediction(p, n), extent, out);
        }
    }
}

/// The auxiliary on `n` tokens, as far as the last layer that a map reads, unless the extent is all of it; and the maps.
fn auxiliary(aux: &NetworkConfig, p: &kv_prediction::Shape, n: usize, extent: Extent, out: &mut Vec<Step>) {
    let (net, phase, whole, rows) = (Net::Auxiliary, Phase::Auxiliary, extent == Extent::FullNetwork, Rows::all(n));
    let read = |layer, input| p.layout.predicted().any(|(_, o)| (o.layer, o.input) == (layer, input));
    let deepest = p.layout.predicted().map(|(_, o)| o.layer).max().expect("a base has layers");
    let from_kv = p.layout.predicted().any(|(_, o)| o.input == Input::KeysAndValues);
    out.push(Step { phase, op: Op::Embed { net, rows, tokens: Tokens::Prompt } });
    let layers = if whole { aux.layers.len() } else { deepest + 1 };
    for layer in 0..layers {
        let hidden = if read(layer, Input::Hidden) { n } else { 0 };
        let ends = layer + 1 == layers && !whole && hidden == 0;
        let (entries, goes_on) = if ends { (Entries::None, 0) } else { (Entries::Passing, n) };
        // The whole network leaves the keys and values of every layer, as the paper's does.
        let kv = if read(layer, Input::KeysAndValues) || whole && from_kv { n } else { 0 };
        let source = Keeps { kv, hidden, own: 0 };
        let op = LayerStep { net, layer, rows, revives: 0, entries, source, out: Out::Rows(goes_on) };
        out.push(Step { phase, op: Op::Layer(op) });
    }
    if whole {
        out.push(Step { phase, op: Op::Head { net, rows: n } });
    }
    maps(net, p.layout.predicted(), n, out);
}

/// Where the entries of first tokens are kept, predicted ones give way to them.
fn sinks_back(p: &kv_prediction::Shape, out: &mut Vec<Step>) {
    let maps = out.iter().find_map(|step| if let Op::Map { maps, .. } = &step.op { Some(maps) } else { None });
    if let Some(maps) = maps.filter(|_| p.own.kept && p.own.first > 0) {
        let layers = maps.iter().map(|m| m.layer).collect();
        out.push(Step { phase: Phase::BaseStep, op: Op::Sinks { rows: p.own.first, back: true, layers } });
    }
}

fn maps(net: Net, from: impl Iterator<Item = (usize, Origin)>, rows: usize, out: &mut Vec<Step>) {
    let map = |(layer, Origin { layer: source, input })| Map { layer, net, source, input };
    let maps: Vec<Map> = from.map(map).collect();
    if !maps.is_empty() {
        out.push(Step { phase: Phase::Prediction, op: Op::Map { rows, maps } });
    }
}

/// Steps of the auxiliary, maps and base in turn, in the order in which each first can run: maps behind the layer that they read,
/// kept entries behind the maps that they replace, and a base layer behind its map; and where the auxiliary's last layer stands
/// among them. Its layers and what may run behind them are one phase. What has no auxiliary stays as it is.
fn pipelined(steps: Vec<Step>) -> (Vec<Step>, usize) {
    let (mut auxiliary, mut base, mut maps, mut sinks) = (Vec::new(), VecDeque::new(), Vec::new(), None);
    for step in &steps {
        match &step.op {
            Op::Embed { net: Net::Auxiliary, .. } | Op::Head { net: Net::Auxiliary, .. } => auxiliary.push(step),
            Op::Layer(l) if l.net == Net::Auxiliary => auxiliary.push(step),
            Op::Map { rows, maps: all } => maps.extend(all.iter().map(|m| (step.phase, *rows, *m))),
            Op::Sinks { rows, back: true, .. } => sinks = Some((step.phase, *rows)),
            _ => base.push_back(step),
        }
    }
    if auxiliary.is_empty() {
        return (steps, 0);
    }
    let mut out = Vec::with_capacity(steps.len() + auxiliary.len());
    for step in auxiliary {
        out.push(step.clone());
        let Op::Layer(LayerStep { layer: source, .. }) = step.op else { continue };
        let ready: Vec<_> = maps.extract_if(.., |(.., m)| m.source == source).collect();
        if let Some(&(phase, rows, _)) = ready.first() {
            let maps: Vec<Map> = ready.into_iter().map(|(.., m)| m).collect();
            let layers = maps.iter().map(|m| m.layer).collect();
            out.push(Step { phase, op: Op::Map { rows, maps } });
            if let Some((phase, rows)) = sinks {
                out.push(Step { phase, op: Op::Sinks { rows, back: true, layers } });
            }
        }
        let waits = |step: &Step| match &step.op {
            Op::Layer(l) => maps.iter().any(|(.., m)| m.layer == l.layer),
            // It follows all layers.
            Op::Head { .. } => !maps.is_empty(),
            _ => maps.iter().any(|(.., m)| m.layer == 0),
        };
        while let Some(step) = base.pop_front_if(|step| !waits(step)) {
            out.push(step.clone());
        }
    }
    out.extend(base.into_iter().cloned());
    let of = |step: &Step, net| matches!(&step.op, Op::Layer(l) if l.net == net);
    let last = out.iter().rposition(|s| of(s, Net::Auxiliary)).unwrap_or(0);
    for (at, step) in out.iter_mut().enumerate() {
        if step.phase == Phase::Auxiliary || at < last && of(step, Net::Base) {
            step.phase = Phase::Pipelined;
        }
    }
    (out, last)
}

/// What a control does in place of the maps of these layers.
fn fill(filling: Filling, of: impl Iterator<Item = (usize, Origin)>, rows: usize, out: &mut Vec<Step>) {
    let layers: Vec<usize> = of.map(|(layer, _)| layer).collect();
    if filling == Filling::Entries && !layers.is_empty() {
        out.push(Step { phase: Phase::Prediction, op: Op::Fill { rows, layers } });
    }
}

/// The first `k` layers of the base on the whole prompt, maps, and the layers above on `own`. If layer k projects what layer
/// k-1 left, its keys and values are those of full prefill, of all rows, and made in its own step.
fn shared(base: &NetworkConfig, k: usize, p: &kv_prediction::Shape, own: Rows, extent: Extent, out: &mut Vec<Step>) {
    let (net, phase, all, n) = (Net::Base, Phase::SharedLayers, Rows::all(own.of), own.past());
    let exact = p.layout.exact().is_some();
    let predicted = || p.layout.predicted().filter(|(i, _)| !(exact && *i == k));
    out.push(Step { phase, op: Op::Embed { net, rows: all, tokens: Tokens::Prompt } });
    let mut narrow = false;
    for layer in 0..k {
        let feeds = |input| p.filling.is_none() && predicted().any(|(_, o)| (o.layer, o.input) == (layer, input));
        let kept = |input| if feeds(input) { n } else { 0 };
        let source = Keeps { kv: kept(Input::KeysAndValues), hidden: kept(Input::Hidden), own: kept(Input::Own) };
        // Of the other rows nothing is read but keys and values.
        narrow = layer + 1 == k && !exact && source.hidden + source.own == 0 && extent == Extent::FirstToken;
        let goes_on = if narrow { ends(own) } else { Out::Rows(own.of) };
        let entries = Entries::Kept;
        let op = LayerStep { net, layer, rows: all, revives: 0, entries, source, out: goes_on };
        out.push(Step { phase, op: Op::Layer(op) });
    }
    match p.filling {
        Some(filling) => fill(filling, predicted(), n, out),
        None => maps(net, predicted(), n, out),
    }
    sinks_back(p, out);
    let phase = Phase::BaseStep;
    if exact {
        out.push(Step { phase, op: kept(k, all, goes_on(k, base, own, extent)) });
    } else if !narrow {
        out.push(Step { phase, op: Op::Ends { net, rows: own } });
    }
    rest(phase, k + usize::from(exact), base, own, Gap::of_prediction(p, own.of), extent, out);
}

/// What SpecPrefill's auxiliary does: it reads `n` tokens and decodes some ahead, and in every pass each layer scores the prompt.
/// Of the last pass nobody reads more than the queries.
fn ahead(aux: &NetworkConfig, p: SpecPrefill, n: usize, extent: Extent, out: &mut Vec<Step>) {
    let (net, layers) = (Net::Auxiliary, aux.layers.len());
    for pass in 0..p.look_ahead {
        let (phase, tokens, rows) = match pass {
            0 => (Phase::Auxiliary, Tokens::Prompt, Rows::all(n)),
            _ => (Phase::LookAhead, Tokens::Last, Rows::last_of(1, n + pass)),
        };
        let ends = pass + 1 == p.look_ahead && extent == Extent::FirstToken;
        out.push(Step { phase, op: Op::Embed { net, rows, tokens } });
        for layer in 0..layers {
            let goes_on = match layer + 1 == layers {
                true if ends => Out::Query,
                true => Out::Rows(needed(extent, rows.count)),
                false => Out::Rows(rows.count),
            };
            let (entries, source) = (Entries::Kept, Keeps::default());
            let op = LayerStep { net, layer, rows, revives: 0, entries, source, out: goes_on };
            out.push(Step { phase, op: Op::Layer(op) });
            out.push(Step { phase: Phase::Selection, op: Op::Rank { layer: Some((net, layer)), of: n } });
        }
        if !ends {
            out.push(Step { phase, op: Op::Head { net, rows: needed(extent, rows.count) } });
        }
    }
}

/// Pruning before the base runs: the choice, and the base on what is chosen.
fn chosen(c: &NetworkConfig, p: Pruning, phase: Phase, n: usize, extent: Extent, out: &mut Vec<Step>) {
    let keep = p.tokens(0, c.layers.len(), n);
    out.push(Step { phase, op: Op::Choose { of: n, keep, chunk: p.chunk() } });
    let tokens = if p.renumbers() { Tokens::Renumbered } else { Tokens::Kept };
    pass(Phase::Prefill, tokens, c, Rows::all(keep), Gap::NONE, extent, out);
}

/// Random and static pruning and GemFilter: the base on tokens that are chosen before it runs, by chance or by its first layers.
fn subset(c: &NetworkConfig, p: Pruning, n: usize, extent: Extent, out: &mut Vec<Step>) {
    let (net, layers, rows) = (Net::Base, p.selection_layers(c.layers.len()), Rows::all(n));
    let phase = if layers > 0 { Phase::Selection } else { Phase::Prefill };
    if layers > 0 {
        out.push(Step { phase, op: Op::Embed { net, rows, tokens: Tokens::Prompt } });
    } else {
        out.push(Step { phase, op: Op::Rank { layer: None, of: n } });
    }
    for layer in 0..layers {
        let last = layer + 1 == layers;
        let goes_on = if last && extent == Extent::FirstToken { Out::Query } else { Out::Rows(n) };
        let (entries, source) = (Entries::Passing, Keeps::default());
        let op = LayerStep { net, layer, rows, revives: 0, entries, source, out: goes_on };
        out.push(Step { phase, op: Op::Layer(op) });
        if last || matches!(p, Pruning::Static(_)) {
            out.push(Step { phase, op: Op::Rank { layer: Some((net, layer)), of: n } });
        }
    }
    chosen(c, p, phase, n, extent, out);
}

/// LazyLLM on `n` tokens: on all of them, or on a new one, which comes with revived ones of a prompt of so many.
fn lazy(
    phase: Phase,
    c: &NetworkConfig,
    p: Pruning,
    n: usize,
    prompt: Option<usize>,
    extent: Extent,
    out: &mut Vec<Step>,
) {
    let (net, layers) = (Net::Base, c.layers.len());
    let first = p.first_narrowed(layers);
    let rows_of = |layer: usize| {
        let of = p.tokens(layer, layers, n);
        Rows::last_of(if prompt.is_some() { 1 } else { of }, of)
    };
    let tokens = if prompt.is_some() { Tokens::Last } else { Tokens::Prompt };
    out.push(Step { phase, op: Op::Embed { net, rows: rows_of(0), tokens } });
    let needed = needed(extent, rows_of(layers - 1).count);
    for layer in 0..layers {
        let rows = rows_of(layer);
        if layer >= first {
            let of = rows_of(layer - 1).of;
            out.push(Step { phase, op: Op::Narrow { layer, of, keep: rows.of, revives: prompt.is_some() } });
        }
        let goes_on = if layer + 1 == layers { needed } else { rows.count };
        let mut op = kept(layer, rows, Out::Rows(goes_on));
        if let (Op::Layer(l), Some(prompt)) = (&mut op, prompt)
            && layer >= first
        {
            l.revives = prompt;
        }
        out.push(Step { phase, op });
        if layer + 1 >= first && layer + 1 < layers {
            let of = if rows_of(layer + 1).of < rows.of { rows.of } else { 0 };
            out.push(Step { phase, op: Op::Rank { layer: Some((net, layer)), of } });
        }
    }
    out.push(Step { phase, op: Op::Head { net, rows: needed } });
}

#[cfg(test)]
mod tests {
    use ttft_kernels::DType;

    use super::*;
    use crate::{kv_prediction::layout::Layout, spec::Precision, zoo};

    fn spec(prompt: usize, extent: Extent) -> RunSpec {
        RunSpec { batch: 2, prompt, generate: 3, precision: Precision::F32, extent }
    }

    fn all() -> impl Iterator<Item = CostSystem> {
        let pruned = zoo::PRUNINGS.map(|p| format!("OE270M-{p}"));
        let rivals = zoo::RIVALS.into_iter().map(String::from);
        let own = [
            "OE1.1B-KVP-C-270M-m16-s1",
            "OE1.1B-KVP-C-270M-pipelined",
            "OE3B-KVP-C-450M-m2-s3-pipelined",
            "OE1.1B-KVP-S19own-m15",
            "OE3B-KVP-S1-m2-s3kept",
            "OE1.1B-KVP-C-270M-s1kept",
            "OE1.1B-KVP-C-270M-s1kept-pipelined",
        ];
        let own = own.into_iter().chain(zoo::SHARED).map(String::from);
        let names = zoo::names().map(String::from).chain(pruned).chain(rivals).chain(own);
        names.map(|name| CostSystem::named(&name, DType::BF16).unwrap())
    }

    #[test]
    fn a_trace_names_what_is_done() {
        let mut s = CostSystem::named("OE1.1B-KVP-C-270M", DType::BF16).unwrap();
        s.base.layers.truncate(2);
        s.prediction.as_mut().unwrap().layout = Layout::auxiliary(&[0, 1]);
        let steps: Vec<String> =
            Schedule::new(&s, &spec(9, Extent::FirstToken)).prompt.iter().map(Step::to_string).collect();
        assert_eq!(
            steps,
            [
                "auxiliary: Auxiliary embeds 8 of Prompt",
                "auxiliary: Auxiliary layer 0 on 8 of 8",
                "auxiliary: Auxiliary layer 1 on 8 of 8",
                "prediction: maps of 2 layers on 8",
                "base_step: Base embeds 1 of Prompt",
                "base_step: Base layer 0 on 1 of 9",
                "base_step: Base layer 1 on 1 of 9",
                "base_step: Base head on 1",
            ]
        );
    }

    /// Copies of keys and values take memory and traffic: none are made that no map reads, but where the whole network runs.
    #[test]
    fn of_the_auxiliary_what_maps_read_is_kept() {
        let mut s = CostSystem::named("OE1.1B-KVP-C-270M", DType::BF16).unwrap();
        s.base.layers.truncate(3);
        s.prediction.as_mut().unwrap().layout = Layout::auxiliary(&[2, 0, 2]);
        let aux = s.aux().unwrap().layers.len();
        for (extent, kept) in [(Extent::FirstToken, vec![0, 2]), (Extent::FullNetwork, (0..aux).collect())] {
            let (spec, schedule) = (spec(9, extent), Schedule::new(&s, &spec(9, extent)));
            let layers: Vec<usize> = schedule.sources.iter().map(|slot| slot.shape.layer).collect();
            assert_eq!(layers, kept, "{extent:?}");
            // Memory and traffic follow: with layer 1 read as well, they are those of one copy more.
            let mut all = s.clone();
            all.prediction.as_mut().unwrap().layout = Layout::auxiliary(&[2, 0, 1]);
            let copy = (2 * 2 * 8 * s.aux().unwrap().kv_dim(1) * 4) as u64;
            let copies = if kept.contains(&1) { 0 } else { copy };
            let caches = |s: &CostSystem| crate::memory_of(s, &spec).caches;
            assert_eq!(caches(&all) - caches(&s), copies, "{extent:?}");
            let traffic = |s: &CostSystem| s.first_token(&spec)[0].cache_bytes;
            assert!((traffic(&all) > traffic(&s)) == (copies > 0), "{extent:?}");
        }
    }

    fn steps(name: &str, n: usize, extent: Extent) -> Vec<String> {
        let mut s = CostSystem::named(name, DType::BF16).unwrap();
        s.base.layers.truncate(4);
        let p = s.prediction.as_mut().unwrap();
        p.layout.layers.truncate(4);
        Schedule::new(&s, &spec(n, extent)).prompt.iter().map(Step::to_string).collect()
    }

    /// A base that reads the last four tokens of nine and the first, of which only the last goes on from its last layer.
    #[test]
    fn the_base_may_read_more_tokens() {
        let all = steps("OE1.1B-KVP-C-270M-m4-s1", 9, Extent::FirstToken);
        assert_eq!(
            all[3..],
            [
                "prediction: maps of 4 layers on 5",
                "base_step: Base embeds 5 of Prompt",
                "base_step: Base layer 0 on 5 of 9",
                "base_step: Base layer 1 on 5 of 9",
                "base_step: Base layer 2 on 5 of 9",
                "base_step: Base layer 3 on 5 of 9",
                "base_step: Base head on 1",
            ]
        );
        // At positions 0 and 5 to 8 they see 1 + 6 + 7 + 8 + 9.
        let rows = Rows { first: 1, count: 4, of: 9 };
        assert_eq!((rows.past(), rows.seen(), rows.total()), (5, 31, 5));
        // All nine: nothing is left to predict, and every row passes every layer once.
        for name in ["OE1.1B-KVP-C-270M-m8-s1", "OE1.1B-KVP-C-270M-m9", "OE1.1B-KVP-S2-m2-s7"] {
            let all = steps(name, 9, Extent::FirstToken);
            assert_eq!((all.len(), all[1].as_str()), (6, "base_step: Base layer 0 on 9 of 9"), "{name}");
        }
    }

    /// Of first tokens that are kept the base runs none, and their entries stand in place of predicted ones.
    #[test]
    fn kept_sinks_are_put_back() {
        let all = steps("OE1.1B-KVP-C-270M-m4-s1kept", 9, Extent::FirstToken);
        let base =
            ["puts 1 back", "Base embeds 4 of Prompt", "Base layer 0 on 4 of 9"].map(|s| format!("base_step: {s}"));
        assert_eq!(all[4..7], base);
        let shared = steps("OE1.1B-KVP-S2-m4-s2kept", 9, Extent::FirstToken);
        let base = ["base_step: puts 2 back", "base_step: Base layer 2 on 9 of 9", "base_step: Base layer 3 on 4 of 9"];
        assert_eq!(shared[4..7], base);
        let mut s = CostSystem::named("OE1.1B-KVP-S2-m4-s2kept", DType::BF16).unwrap();
        s.base.layers.truncate(4);
        s.prediction.as_mut().unwrap().layout.layers.truncate(4);
        let schedule = Schedule::new(&s, &spec(9, Extent::FirstToken));
        let earlier: Vec<String> = schedule.earlier.iter().map(Step::to_string).collect();
        assert_eq!(earlier[0], "base_step: Base embeds 2 of Prompt");
        assert_eq!(
            earlier[3..],
            ["base_step: Base layer 2 on 2 of 2", "base_step: Base layer 3 on 2 of 2", "base_step: keeps 2"]
        );
        // Layer 2 makes its own of all tokens.
        assert_eq!(schedule.sinks, [KvShape { net: Net::Base, layer: 3, entries: 2, kept: true }]);
        // Full prefill has nothing to put back.
        for name in ["OE1.1B-KVP-C-270M-m8-s1kept", "OE1.1B-KVP-S2-m2-s7kept"] {
            assert_eq!(steps(name, 9, Extent::FirstToken).len(), 6, "{name}");
        }
    }

    #[test]
    fn shared_layers_read_the_prompt_and_the_rest_a_few_tokens() {
        // Layer 2 projects the state behind layer 1 itself, on all rows; layer 3 has a map.
        let first = [
            "shared_layers: Base embeds 9 of Prompt",
            "shared_layers: Base layer 0 on 9 of 9",
            "shared_layers: Base layer 1 on 9 of 9",
            "prediction: maps of 1 layers on 5",
        ];
        let last = ["base_step: Base layer 3 on 5 of 9", "base_step: Base head on 1"];
        for name in ["OE1.1B-KVP-S2-m4-s1", "OE1.1B-KVP-S2own-m4-s1"] {
            let exact = ["base_step: Base layer 2 on 9 of 9"];
            assert_eq!(steps(name, 9, Extent::FirstToken), [&first[..], &exact, &last].concat(), "{name}");
        }
        let mut s = CostSystem::named("OE1.1B-KVP-S2-m4-s1", DType::BF16).unwrap();
        s.base.layers.truncate(4);
        let p = s.prediction.as_mut().unwrap();
        let with = |input, source| {
            let origin = |i| (i >= 2).then_some(Origin { layer: source, input });
            Layout { shared: Some(2), layers: (0..4).map(origin).collect() }
        };
        // From keys and values: nobody reads more of layer 1 than these, but for the rows that go on.
        p.layout = with(Input::KeysAndValues, 1);
        let prompt = Schedule::new(&s, &spec(9, Extent::FirstToken)).prompt;
        let Op::Layer(LayerStep { out, .. }) = prompt[2].op else { panic!("{}", prompt[2]) };
        assert_eq!((out, prompt.len()), (Out::Ends(1, 4), 7));
        // From the hidden state the layer is run whole, and rows are left out after it.
        s.prediction.as_mut().unwrap().layout = with(Input::Hidden, 1);
        let prompt = Schedule::new(&s, &spec(9, Extent::FirstToken)).prompt;
        assert_eq!(prompt[4].to_string(), "base_step: Base goes on with 5 of 9");
        let own = Rows { first: 1, count: 4, of: 9 };
        assert_eq!(prompt[5].op, kept(2, own, Out::Ends(1, 4)));
    }

    /// A slot is in use from its first step to its last, and a cache that layers share by one of them at a time.
    #[test]
    fn slots_are_used_while_they_live_and_shared_one_after_another() {
        for s in all() {
            for extent in [Extent::FirstToken, Extent::FullNetwork] {
                let schedule = Schedule::new(&s, &spec(59, extent));
                let all = [&schedule.prompt, &schedule.next, &schedule.earlier];
                let steps: Vec<&Step> = all.into_iter().flatten().collect();
                assert_eq!(schedule.uses.len(), steps.len());
                // Which layers a shared cache serves, in order.
                let mut serves = vec![Vec::new(); schedule.caches.len()];
                for (at, (step, uses)) in steps.iter().zip(&schedule.uses).enumerate() {
                    let sources = uses.sources.into_iter().flatten().map(|i| schedule.sources[i]);
                    let caches = [uses.cache, uses.gathered].into_iter().flatten().map(|i| schedule.caches[i]);
                    let lives = caches.map(|slot| slot.first..=slot.last);
                    for lives in lives.chain(sources.map(|slot| slot.first..=slot.last)) {
                        assert!(lives.contains(&at), "{step}");
                    }
                    if let Op::Layer(l) = &step.op {
                        let heads = |layer: usize| shapes(&s, l.net).layers[layer].kv_heads;
                        for i in [uses.cache, uses.gathered].into_iter().flatten() {
                            let c = schedule.caches[i].shape;
                            assert_eq!((c.net, heads(c.layer)), (l.net, heads(l.layer)), "{step}");
                            assert!(c.entries >= l.rows.of, "{step}");
                            serves[i].push(l.layer);
                        }
                    }
                }
                for (slot, serves) in schedule.caches.iter().zip(serves) {
                    if slot.shape.kept {
                        assert!(serves.iter().all(|l| *l == slot.shape.layer));
                        // The next token reads what is the base's.
                        assert!(slot.shape.net == Net::Auxiliary || slot.last >= schedule.prompt.len());
                    } else {
                        assert!(serves.is_sorted_by(|a, b| a < b), "{serves:?}");
                    }
                }
                for slot in &schedule.sources {
                    let reads = |step: &&Step| matches!(&step.op, Op::Map { maps, .. } if maps.iter().any(|m| slot.shape.feeds(m)));
                    assert_eq!(slot.last, steps.iter().position(reads).unwrap_or(slot.first));
                }
            }
        }
    }

    /// An auxiliary that chooses in chunks of four of nine tokens, by three queries; a layer of the base that chooses three.
    #[test]
    fn rivals_choose_before_the_base_runs() {
        let steps = |pruning: &str, chooser: bool, extent| {
            let mut s = CostSystem::named("OE1.1B", DType::BF16).unwrap();
            s.base.layers.truncate(2);
            s.pruning = Some(pruning.parse().unwrap());
            s.chooser = chooser.then(|| s.base.clone());
            Schedule::new(&s, &spec(9, extent)).prompt.iter().map(Step::to_string).collect::<Vec<_>>()
        };
        let passed = |phase: &str, rows: &str| {
            let layer = |i| {
                let ranks = format!("selection: ranks 9 by Auxiliary layer {i}");
                [format!("{phase}: Auxiliary layer {i} on {rows}"), ranks]
            };
            [layer(0), layer(1)].concat()
        };
        let pass = |phase: &str, embeds: &str, rows: &str, head: Option<usize>| {
            let embeds = vec![format!("{phase}: Auxiliary embeds {embeds}")];
            let head: Vec<String> = head.iter().map(|n| format!("{phase}: Auxiliary head on {n}")).collect();
            [embeds, passed(phase, rows), head].concat()
        };
        let base = |embeds: &str, rows: &str| {
            let names = [
                format!("prefill: Base embeds {embeds}"),
                format!("prefill: Base layer 0 on {rows}"),
                format!("prefill: Base layer 1 on {rows}"),
                "prefill: Base head on 1".into(),
            ];
            names.to_vec()
        };
        let chooses = |n: usize| vec![format!("selection: chooses {n} of 9")];
        assert_eq!(
            steps("SpecPrefill-0.50-a3-c4-p3", true, Extent::FirstToken),
            [
                pass("auxiliary", "9 of Prompt", "9 of 9", Some(1)),
                pass("look_ahead", "1 of Last", "1 of 10", Some(1)),
                pass("look_ahead", "1 of Last", "1 of 11", None),
                chooses(5),
                base("5 of Kept", "5 of 5"),
            ]
            .concat()
        );
        // Nothing is decoded for one query.
        let all = steps("SpecPrefill-0.50-a1-c4", true, Extent::FirstToken);
        assert_eq!(all[..6], [pass("auxiliary", "9 of Prompt", "9 of 9", None), chooses(5)].concat());
        let all = steps("SpecPrefill-0.50-a1-c4", true, Extent::FullNetwork);
        assert_eq!(all[..7], [pass("auxiliary", "9 of Prompt", "9 of 9", Some(9)), chooses(5)].concat());
        let first: Vec<String> = ["selection: Base embeds 9 of Prompt", "selection: Base layer 0 on 9 of 9"]
            .into_iter()
            .chain(["selection: Base layer 1 on 9 of 9", "selection: ranks 9 by layer 1", "selection: chooses 3 of 9"])
            .map(String::from)
            .collect();
        let all = steps("GemFilter-1-3", false, Extent::FirstToken);
        assert_eq!(all, [first, base("3 of Renumbered", "3 of 3")].concat());
    }

    /// What later tokens do changes in numbers, not in kind: the slots found once are those of every one of them.
    #[test]
    fn later_tokens_have_the_same_steps() {
        let kind = |s: &Step| (std::mem::discriminant(&s.op), s.phase);
        for s in all() {
            let (spec, mut steps) = (spec(7, Extent::FirstToken), Vec::new());
            let first = Schedule::new(&s, &spec).next;
            for past in [7, 8, 300] {
                next(&s, &spec, past, &mut steps);
                assert!(steps.iter().map(kind).eq(first.iter().map(kind)), "{:?} after {past}", s.pruning);
            }
        }
    }

    fn pipelined_steps(name: &str, map: &[usize], extent: Extent) -> Vec<String> {
        let mut s = CostSystem::named(name, DType::BF16).unwrap();
        s.base.layers.truncate(map.len());
        let p = s.prediction.as_mut().unwrap();
        assert_eq!(p.order, Order::Pipelined);
        p.layout = Layout::auxiliary(map);
        let spec = RunSpec { batch: 1, prompt: 9, generate: 1, precision: Precision::F32, extent };
        Schedule::new(&s, &spec).prompt.iter().map(Step::to_string).collect()
    }

    #[test]
    fn a_base_layer_follows_its_map_and_the_layer_before_it() {
        let steps = pipelined_steps("OE1.1B-KVP-C-270M-pipelined", &[1, 0, 0, 2], Extent::FirstToken);
        assert_eq!(
            steps,
            [
                "pipelined: Auxiliary embeds 8 of Prompt",
                "pipelined: Auxiliary layer 0 on 8 of 8",
                "prediction: maps of 2 layers on 8",
                "pipelined: Auxiliary layer 1 on 8 of 8",
                "prediction: maps of 1 layers on 8",
                "base_step: Base embeds 1 of Prompt",
                "pipelined: Base layer 0 on 1 of 9",
                "pipelined: Base layer 1 on 1 of 9",
                "pipelined: Base layer 2 on 1 of 9",
                "pipelined: Auxiliary layer 2 on 8 of 8",
                "prediction: maps of 1 layers on 8",
                "base_step: Base layer 3 on 1 of 9",
                "base_step: Base head on 1",
            ]
        );
    }

    #[test]
    fn the_whole_auxiliary_may_run() {
        let steps = pipelined_steps("OE1.1B-KVP-C-270M-m2-pipelined", &[0, 0], Extent::FullNetwork);
        let head = steps.iter().position(|s| s == "pipelined: Auxiliary head on 7").unwrap();
        assert_eq!((steps[5].as_str(), head), ("pipelined: Base layer 1 on 2 of 9", 22));
        assert_eq!(steps[6], "base_step: Base head on 2");
    }

    #[test]
    fn where_it_does_not_pay_the_order_is_in_turn() {
        let steps = |name: &str, batch, prompt| {
            let spec = RunSpec { batch, ..spec(prompt, Extent::FirstToken) };
            Schedule::new(&CostSystem::named(name, DType::BF16).unwrap(), &spec)
        };
        let (turn, pipelined) = ("OE1.1B-KVP-C-270M", "OE1.1B-KVP-C-270M-pipelined");
        let asked = CostSystem::named(pipelined, DType::BF16).unwrap();
        for (batch, prompt, pays) in [(1, 64, true), (1, 65, true), (1, 66, false), (4, 64, false)] {
            let (turn, pipelined) = (steps(turn, batch, prompt), steps(pipelined, batch, prompt));
            assert_eq!((turn.prompt != pipelined.prompt, pipelined.behind > 0), (pays, pays), "{batch}x{prompt}");
            assert_eq!(asked.falls_back(&RunSpec { batch, ..spec(prompt, Extent::FirstToken) }), !pays);
        }
    }
}
