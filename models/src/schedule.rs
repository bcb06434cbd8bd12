//! What a run does, step by step: which network works on which rows in which layer, and what becomes of its keys and values.
//!
//! One list, made of shapes alone by one function for each method, is run ([`crate::plan`]), counted ([`crate::cost`]), sized
//! ([`crate::memory_of`]) and traced ([`crate::Inference::trace`]). A step is no kernel call: it lowers to several, and those
//! of two steps may be interleaved. A phase is a label; its steps need not be neighbours.

use std::fmt;

pub use crate::{activations::Rows, network::Out};

use crate::{
    config::NetworkConfig,
    kv_prediction::{
        self,
        layout::{Input, Order, Origin},
    },
    pipeline,
    pruning::Pruning,
    spec::{Extent, Phase, RunSpec},
    system::CostSystem,
};

/// A network of a system, by what it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Net {
    /// The one that answers.
    Base,
    /// The one that reads the prompt for it.
    Auxiliary,
}

/// Which tokens are embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tokens {
    /// The prompt's.
    Prompt,
    /// Those of the prompt that [`Op::Choose`] chose, at positions of their own.
    Kept,
    /// Those that the last pass chose.
    Last,
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
    /// The network that they are mapped from,
    pub net: Net,
    /// the layer,
    pub source: usize,
    /// and what is read of it.
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
    /// All rows but these stop here.
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
    /// Adds to the scores of tokens the last row's attention in the base layer that has just run, or a pseudo-random score.
    Rank {
        /// The layer, if it is one.
        layer: Option<usize>,
        /// Tokens of each sequence; 0 where none will be dropped.
        of: usize,
    },
    /// Chooses the tokens of the prompt that the base works on.
    Choose {
        /// Out of so many.
        of: usize,
        /// So many.
        keep: usize,
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
    /// Logits of the last rows of each sequence; the base's last choose a token.
    Head {
        /// Whose.
        net: Net,
        /// So many.
        rows: usize,
    },
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
            Op::Rank { layer: Some(i), of } => write!(f, "ranks {of} by layer {i}"),
            Op::Rank { layer: None, of } => write!(f, "ranks {of} by chance"),
            Op::Choose { of, keep } => write!(f, "chooses {keep} of {of}"),
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
    /// Of `prompt`, then of `next`: what each step uses.
    pub uses: Vec<Uses>,
    /// The base's, then the auxiliary's if there is one.
    pub streams: Vec<Slot<Stream>>,
    /// Caches.
    pub caches: Vec<Slot<KvShape>>,
    /// Sources of maps.
    pub sources: Vec<Slot<SourceShape>>,
    /// Tokens of each sequence that are scored at once, at most; 0 where none are.
    pub ranked: usize,
    /// Tokens of the prompt that are dropped before the base runs.
    pub dropped: usize,
    /// Steps of the prompt among which layers of the base may be put off, to run behind the auxiliary's.
    pub behind: usize,
}

impl Schedule {
    /// Of a system and a run.
    pub fn new(s: &CostSystem, spec: &RunSpec) -> Schedule {
        let dropped = dropped(s, spec);
        let lazy = matches!(s.pruning, Some(Pruning::Lazy { .. }));
        let mut schedule = Schedule {
            prompt: prompt(s, spec),
            next: Vec::new(),
            uses: Vec::new(),
            streams: Vec::new(),
            caches: Vec::new(),
            sources: Vec::new(),
            // Later tokens are ranked among all before them.
            ranked: if lazy { spec.positions() } else { 0 },
            dropped,
            behind: 0,
        };
        if s.prediction.as_ref().is_some_and(|p| p.order == Order::Pipelined) {
            let auxiliary = |s: &Step| matches!(&s.op, Op::Layer(l) if l.net == Net::Auxiliary);
            schedule.prompt = pipeline::order(schedule.prompt);
            schedule.behind = schedule.prompt.iter().rposition(auxiliary).unwrap_or(0);
        }
        next(s, spec, spec.prompt, &mut schedule.next);
        let steps: Vec<Step> = schedule.prompt.iter().chain(&schedule.next).cloned().collect();
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
            Op::Embed { net, rows, .. } | Op::Ends { net, rows } => self.stream(spec, at, *net, *rows, rows.total()),
            Op::Layer(l) => {
                self.stream(spec, at, l.net, l.rows, l.rows.total().max(l.revives));
                let entries = if l.net == Net::Base { spec.positions() - self.dropped } else { l.rows.of };
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
            Op::Rank { layer, of } => {
                if at < self.prompt.len() {
                    self.ranked = self.ranked.max(*of);
                }
                if layer.is_some() {
                    uses = self.uses[at - 1];
                    [uses.cache, uses.gathered].into_iter().flatten().for_each(|c| self.caches[c].last = at);
                }
            }
            Op::Choose { .. } | Op::Narrow { .. } => {}
            Op::Head { net, .. } => {
                let slot =
                    self.streams.iter_mut().find(|slot| slot.shape.net == *net).expect("a pass begins by embedding");
                slot.last = at;
                slot.shape.all_logits |= *net == Net::Auxiliary;
            }
        }
        uses
    }

    fn stream(&mut self, spec: &RunSpec, at: usize, net: Net, rows: Rows, most: usize) {
        let slot = match self.streams.iter().position(|slot| slot.shape.net == net) {
            Some(slot) => slot,
            None => {
                let positions = if net == Net::Base { spec.positions() } else { rows.of };
                let shape = Stream { net, rows: 0, positions, all_logits: false };
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
        Net::Auxiliary => {
            s.prediction.as_ref().and_then(|p| p.aux.as_ref()).expect("only pairs have steps of an auxiliary")
        }
    }
}

/// Tokens of the prompt without an entry in any cache of the base.
fn dropped(s: &CostSystem, spec: &RunSpec) -> usize {
    match s.pruning {
        Some(p @ (Pruning::Random(_) | Pruning::Static(_))) => {
            spec.prompt - p.tokens(0, s.base.layers.len(), spec.prompt)
        }
        _ => 0,
    }
}

/// The steps of the first token.
fn prompt(s: &CostSystem, spec: &RunSpec) -> Vec<Step> {
    let (n, extent, c) = (spec.prompt, spec.extent, &s.base);
    let mut out = Vec::new();
    match (&s.prediction, s.pruning) {
        (Some(p), _) => predicted(c, p, n, extent, &mut out),
        (None, None) => pass(Phase::Prefill, Tokens::Prompt, c, Rows::all(n), extent, &mut out),
        (None, Some(p @ Pruning::Lazy { .. })) => lazy(Phase::Prefill, c, p, n, None, extent, &mut out),
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
            pass(phase, Tokens::Last, c, rows, extent, out);
        }
    }
}

/// A pass of the base: all of its layers, then its head.
fn pass(phase: Phase, tokens: Tokens, c: &NetworkConfig, rows: Rows, extent: Extent, out: &mut Vec<Step>) {
    out.push(Step { phase, op: Op::Embed { net: Net::Base, rows, tokens } });
    rest(phase, 0, c, rows, extent, out);
}

/// The layers of the base from `first` on, then its head.
fn rest(phase: Phase, first: usize, c: &NetworkConfig, rows: Rows, extent: Extent, out: &mut Vec<Step>) {
    for layer in first..c.layers.len() {
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
    let (last, first) = (p.own.last, p.own.first);
    if last.saturating_add(first) >= n {
        return pass(Phase::BaseStep, Tokens::Prompt, base, Rows::all(n), extent, out);
    }
    let own = Rows { first, count: last, of: n };
    match (p.layout.shared, &p.aux) {
        (Some(k), _) => shared(base, k, p, own, extent, out),
        (None, aux) => {
            auxiliary(aux.as_ref().expect("an auxiliary, where no layers are shared"), p, own.past(), extent, out);
            pass(Phase::BaseStep, Tokens::Prompt, base, own, extent, out);
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
        let source = Keeps { kv: if from_kv { n } else { 0 }, hidden, own: 0 };
        let op = LayerStep { net, layer, rows, revives: 0, entries, source, out: Out::Rows(goes_on) };
        out.push(Step { phase, op: Op::Layer(op) });
    }
    if whole {
        out.push(Step { phase, op: Op::Head { net, rows: n } });
    }
    maps(net, p.layout.predicted(), n, out);
}

fn maps(net: Net, from: impl Iterator<Item = (usize, Origin)>, rows: usize, out: &mut Vec<Step>) {
    let map = |(layer, Origin { layer: source, input })| Map { layer, net, source, input };
    let maps: Vec<Map> = from.map(map).collect();
    if !maps.is_empty() {
        out.push(Step { phase: Phase::Prediction, op: Op::Map { rows, maps } });
    }
}

/// The first `k` layers of the base on the whole prompt, maps, and the layers above on `own`. If layer k projects what layer
/// k-1 left, its keys and values are those of full prefill, of all rows, and made in its own step.
fn shared(base: &NetworkConfig, k: usize, p: &kv_prediction::Shape, own: Rows, extent: Extent, out: &mut Vec<Step>) {
    let (net, phase, all, n) = (Net::Base, Phase::SharedLayers, Rows::all(own.of), own.past());
    let exact = p.layout.layers[k] == Some(Origin { layer: k - 1, input: Input::Own });
    let predicted = || p.layout.predicted().filter(|(i, _)| !(exact && *i == k));
    out.push(Step { phase, op: Op::Embed { net, rows: all, tokens: Tokens::Prompt } });
    let mut narrow = false;
    for layer in 0..k {
        let kept = |input| if predicted().any(|(_, o)| (o.layer, o.input) == (layer, input)) { n } else { 0 };
        let source = Keeps { kv: kept(Input::KeysAndValues), hidden: kept(Input::Hidden), own: kept(Input::Own) };
        // Of the other rows nothing is read but keys and values.
        narrow = layer + 1 == k && !exact && source.hidden + source.own == 0 && extent == Extent::FirstToken;
        let goes_on = if narrow { ends(own) } else { Out::Rows(own.of) };
        let entries = Entries::Kept;
        let op = LayerStep { net, layer, rows: all, revives: 0, entries, source, out: goes_on };
        out.push(Step { phase, op: Op::Layer(op) });
    }
    maps(net, predicted(), n, out);
    let phase = Phase::BaseStep;
    if exact {
        out.push(Step { phase, op: kept(k, all, goes_on(k, base, own, extent)) });
    } else if !narrow {
        out.push(Step { phase, op: Op::Ends { net, rows: own } });
    }
    rest(phase, k + usize::from(exact), base, own, extent, out);
}

/// Random and static pruning: the base on tokens that are chosen before it runs, by chance or by its first layers.
fn subset(c: &NetworkConfig, p: Pruning, n: usize, extent: Extent, out: &mut Vec<Step>) {
    let (net, layers) = (Net::Base, p.selection_layers(c.layers.len()));
    let (keep, rows) = (p.tokens(0, c.layers.len(), n), Rows::all(n));
    let phase = if layers > 0 { Phase::Selection } else { Phase::Prefill };
    if layers > 0 {
        out.push(Step { phase, op: Op::Embed { net, rows, tokens: Tokens::Prompt } });
    } else {
        out.push(Step { phase, op: Op::Rank { layer: None, of: n } });
    }
    for layer in 0..layers {
        let ends = layer + 1 == layers && extent == Extent::FirstToken;
        let goes_on = if ends { Out::Query } else { Out::Rows(n) };
        let (entries, source) = (Entries::Passing, Keeps::default());
        let op = LayerStep { net, layer, rows, revives: 0, entries, source, out: goes_on };
        out.push(Step { phase, op: Op::Layer(op) });
        out.push(Step { phase, op: Op::Rank { layer: Some(layer), of: n } });
    }
    out.push(Step { phase, op: Op::Choose { of: n, keep } });
    pass(Phase::Prefill, Tokens::Kept, c, Rows::all(keep), extent, out);
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
            out.push(Step { phase, op: Op::Rank { layer: Some(layer), of } });
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
        let own = [
            "OE1.1B-KVP-C-270M-m16-s1",
            "OE1.1B-KVP-C-270M-pipelined",
            "OE3B-KVP-C-450M-m2-s3-pipelined",
            "OE1.1B-KVP-S19own-m15",
            "OE3B-KVP-S1-m2-s3",
        ];
        let own = own.into_iter().chain(zoo::SHARED).map(String::from);
        let names = zoo::names().map(String::from).chain(pruned).chain(own);
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
                let steps: Vec<&Step> = schedule.prompt.iter().chain(&schedule.next).collect();
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
                        // The next token reads it.
                        assert!(slot.last >= schedule.prompt.len());
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
}
