//! What a run does, step by step: which network works on which rows in which layer, and what becomes of its keys and values.
//!
//! One list, made of shapes alone by one function for each method, is run ([`crate::plan`]), counted ([`crate::cost`]), sized
//! ([`crate::memory_of`]) and traced ([`crate::Inference::trace`]). A step is no kernel call: it lowers to several, and those
//! of two steps may be interleaved. A phase is a label; its steps need not be neighbours.

mod methods;
mod slots;

use std::fmt;

pub use self::methods::{given, next};
pub use crate::{activations::Rows, network::Out};

pub(crate) use self::methods::{Gap, first_token};

use self::methods::{dropped, earlier, kept_sinks, predicted_layers};
use crate::{
    config::NetworkConfig,
    kv_prediction::layout::Input,
    pruning::Pruning,
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
    /// One for each network, in the order in which they begin to work.
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

#[cfg(test)]
mod tests;
