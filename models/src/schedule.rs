//! What a run does, step by step: which network works on which rows in which layer, and what becomes of its keys and values.
//!
//! One list, made of shapes alone by one function for each method, is run ([`crate::plan`]), counted ([`crate::cost`]), sized
//! ([`crate::memory_of`]) and traced ([`crate::Inference::trace`]). A step is no kernel call: it lowers to several, and those
//! of two steps may be interleaved. A phase is a label; its steps need not be neighbours.

use std::fmt;

pub use crate::network::Out;

use crate::{
    config::NetworkConfig,
    pruning::Pruning,
    spec::{Extent, Phase, RunSpec},
    system::CostSystem,
};

/// Tokens of the prompt that the base of a KV prediction runs itself: the paper's 1.
const BASE_TOKENS: usize = 1;

/// A network of a system, by what it does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Net {
    /// The one that answers.
    Base,
    /// The one that reads the prompt for it.
    Auxiliary,
}

/// Rows of each sequence: the last `count` of the first `of` entries that it has, or will have, in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rows {
    /// So many.
    pub count: usize,
    /// Where they end.
    pub of: usize,
}

impl Rows {
    /// All of `n`.
    pub fn all(n: usize) -> Rows {
        Rows { count: n, of: n }
    }

    /// Entries before them.
    pub fn past(self) -> usize {
        self.of - self.count
    }

    /// Entries that they see in all, each those up to itself.
    pub fn seen(self) -> u64 {
        // The most positions that a u64 counts the pairs of.
        let [n, past] = [self.count, self.past()].map(|n| (n as u64).min(1 << 31));
        n * past + n * (n + 1) / 2
    }

    /// The last `n` of them.
    pub fn last(self, n: usize) -> Rows {
        Rows { count: n, ..self }
    }
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
    /// Whether a copy of keys and values as they were before k_norm and RoPE is kept, as a source of maps.
    pub source: bool,
    /// What goes on.
    pub out: Out,
}

/// Where the keys and values of a base layer come from that it does not make itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Map {
    /// The base layer.
    pub layer: usize,
    /// The network whose keys and values they are mapped from,
    pub net: Net,
    /// and the layer.
    pub source: usize,
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
            Op::Embed { net, rows, tokens } => write!(f, "{net:?} embeds {} of {tokens:?}", rows.count),
            Op::Layer(l) => write!(f, "{:?} layer {} on {} of {}", l.net, l.layer, l.rows.count, l.rows.of),
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

/// Keys and values of a layer: its cache, or the copy that maps read. A cache that is not kept serves layers of the same
/// shape one after another.
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

/// Which slots of [`Schedule`] a step uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    /// The cache that a layer appends to.
    pub cache: Option<usize>,
    /// Where the entries that it attends to are gathered, if not in `cache`.
    pub gathered: Option<usize>,
    /// Where it keeps a source.
    pub source: Option<usize>,
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
    pub sources: Vec<Slot<KvShape>>,
    /// Tokens of each sequence that are scored at once, at most; 0 where none are.
    pub ranked: usize,
    /// Tokens of the prompt that are dropped before the base runs.
    pub dropped: usize,
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
        };
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
            Op::Embed { net, rows, .. } => self.stream(spec, at, *net, *rows, rows.count),
            Op::Layer(l) => {
                self.stream(spec, at, l.net, l.rows, l.rows.count.max(l.revives));
                let entries = if l.net == Net::Base { spec.positions() - self.dropped } else { l.rows.of };
                match l.entries {
                    Entries::Kept => uses.cache = Some(self.cache(s, at, l, entries, true)),
                    Entries::Passing => uses.cache = Some(self.cache(s, at, l, l.rows.of, false)),
                    Entries::None => {}
                }
                if l.revives > 0 {
                    uses.gathered = Some(self.cache(s, at, l, entries, false));
                }
                if l.source {
                    let shape = KvShape { net: l.net, layer: l.layer, entries: l.rows.count, kept: true };
                    self.sources.push(Slot { shape, first: at, last: at });
                    uses.source = Some(self.sources.len() - 1);
                }
            }
            Op::Map { maps, .. } => {
                for m in maps {
                    let read = (m.net, m.source);
                    let source = self.sources.iter_mut().find(|slot| (slot.shape.net, slot.shape.layer) == read);
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
            let same = if kept { c.layer == l.layer } else { slot.last < at && heads(c.layer) == heads(l.layer) };
            same && (c.net, c.entries, c.kept) == (l.net, entries, kept)
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
    match (net, &s.pair) {
        (Net::Base, _) => &s.base,
        (Net::Auxiliary, pair) => &pair.as_ref().expect("only pairs have steps of an auxiliary").0,
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
    match (&s.pair, s.pruning) {
        (Some((aux, map)), _) => predicted(c, aux, map, BASE_TOKENS, n, extent, &mut out),
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
            let rows = Rows { count: 1, of: past.saturating_add(1) - dropped(s, spec) };
            pass(phase, Tokens::Last, c, rows, extent, out);
        }
    }
}

/// A pass of the base: all of its layers, then its head.
fn pass(phase: Phase, tokens: Tokens, c: &NetworkConfig, rows: Rows, extent: Extent, out: &mut Vec<Step>) {
    let net = Net::Base;
    let needed = needed(extent, rows.count);
    out.push(Step { phase, op: Op::Embed { net, rows, tokens } });
    for layer in 0..c.layers.len() {
        let goes_on = if layer + 1 == c.layers.len() { needed } else { rows.count };
        out.push(Step { phase, op: kept(layer, rows, goes_on) });
    }
    out.push(Step { phase, op: Op::Head { net, rows: needed } });
}

/// Rows of `n` whose logits an extent asks for.
fn needed(extent: Extent, n: usize) -> usize {
    if extent == Extent::FirstToken { 1 } else { n }
}

/// A layer of the base that keeps its entries.
fn kept(layer: usize, rows: Rows, goes_on: usize) -> Op {
    let out = Out::Rows(goes_on);
    Op::Layer(LayerStep { net: Net::Base, layer, rows, revives: 0, entries: Entries::Kept, source: false, out })
}

/// KV prediction: the auxiliary on all but the last `base_tokens` of `n` tokens, maps, and the base on these. The auxiliary
/// goes no further than the last layer that a map reads, unless the extent is all of it.
fn predicted(
    base: &NetworkConfig,
    aux: &NetworkConfig,
    map: &[usize],
    base_tokens: usize,
    n: usize,
    extent: Extent,
    out: &mut Vec<Step>,
) {
    let (net, phase, whole) = (Net::Auxiliary, Phase::Auxiliary, extent == Extent::FullNetwork);
    let m = base_tokens.min(n);
    let rows = Rows::all(n - m);
    if rows.count > 0 {
        out.push(Step { phase, op: Op::Embed { net, rows, tokens: Tokens::Prompt } });
        let layers = if whole { aux.layers.len() } else { map.iter().max().map_or(0, |j| j + 1) };
        for layer in 0..layers {
            let ends = layer + 1 == layers && !whole;
            let (entries, goes_on) = if ends { (Entries::None, 0) } else { (Entries::Passing, rows.count) };
            let out_rows = Out::Rows(goes_on);
            let op = LayerStep { net, layer, rows, revives: 0, entries, source: true, out: out_rows };
            out.push(Step { phase, op: Op::Layer(op) });
        }
        if whole {
            out.push(Step { phase, op: Op::Head { net, rows: rows.count } });
        }
        let maps = map.iter().enumerate().map(|(layer, &source)| Map { layer, net, source }).collect();
        out.push(Step { phase: Phase::Prediction, op: Op::Map { rows: rows.count, maps } });
    }
    pass(Phase::BaseStep, Tokens::Prompt, base, Rows { count: m, of: n }, extent, out);
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
        let entries = Entries::Passing;
        let op = LayerStep { net, layer, rows, revives: 0, entries, source: false, out: goes_on };
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
        Rows { count: if prompt.is_some() { 1 } else { of }, of }
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
        let mut op = kept(layer, rows, goes_on);
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
    use crate::{spec::Precision, zoo};

    fn spec(prompt: usize, extent: Extent) -> RunSpec {
        RunSpec { batch: 2, prompt, generate: 3, precision: Precision::F32, extent }
    }

    fn all() -> impl Iterator<Item = CostSystem> {
        let pruned = zoo::PRUNINGS.map(|p| format!("OE270M-{p}"));
        let names = zoo::names().map(String::from).chain(pruned);
        names.map(|name| CostSystem::named(&name, DType::BF16).unwrap())
    }

    #[test]
    fn a_trace_names_what_is_done() {
        let mut s = CostSystem::named("OE1.1B-KVP-C-270M", DType::BF16).unwrap();
        s.base.layers.truncate(2);
        s.pair.as_mut().unwrap().1 = vec![0, 1];
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

    /// A base that runs the last four tokens of nine, of which only the last goes on from its last layer.
    #[test]
    fn the_base_may_run_more_tokens() {
        let mut s = CostSystem::named("OE1.1B-KVP-C-270M", DType::BF16).unwrap();
        s.base.layers.truncate(1);
        let (aux, _) = s.pair.clone().unwrap();
        let mut steps = Vec::new();
        predicted(&s.base, &aux, &[0], 4, 9, Extent::FirstToken, &mut steps);
        let rows = Rows { count: 4, of: 9 };
        let base: Vec<Op> = steps.split_off(3).into_iter().map(|s| s.op).collect();
        let embed = Op::Embed { net: Net::Base, rows, tokens: Tokens::Prompt };
        assert_eq!(base, [embed, kept(0, rows, 1), Op::Head { net: Net::Base, rows: 1 }]);
        // At positions 5 to 8 they see 6 + 7 + 8 + 9.
        assert_eq!((rows.past(), rows.seen()), (5, 30));
        // All nine: nothing is left to predict.
        steps.clear();
        predicted(&s.base, &aux, &[0], 9, 9, Extent::FirstToken, &mut steps);
        assert_eq!(steps.len(), 3);
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
                    let sources = uses.source.map(|i| schedule.sources[i]);
                    let caches = [uses.cache, uses.gathered].into_iter().flatten().map(|i| schedule.caches[i]);
                    for slot in caches.chain(sources) {
                        assert!((slot.first..=slot.last).contains(&at), "{step}");
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
                let map = |step: &&Step| matches!(step.op, Op::Map { .. });
                if let Some(read) = steps.iter().position(map) {
                    let Op::Map { maps, .. } = &steps[read].op else { unreachable!() };
                    for slot in &schedule.sources {
                        let wanted = maps.iter().any(|m| m.source == slot.shape.layer);
                        assert_eq!(slot.last, if wanted { read } else { slot.first });
                    }
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
