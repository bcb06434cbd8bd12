//! The steps of each method, from shapes alone: of a prompt, of a later token, of tokens that are given.

use std::collections::VecDeque;

use super::{Entries, Keeps, LayerStep, Map, Net, Op, Out, Rows, Step, Tokens, shapes};
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

/// First tokens whose entries a first token finds kept.
pub(super) fn kept_sinks(prompt: &[Step]) -> Option<usize> {
    prompt.iter().find_map(|step| if let Op::Sinks { rows, .. } = step.op { Some(rows) } else { None })
}

/// Base layers whose entries are predicted, but for one that makes its own of all tokens.
pub(super) fn predicted_layers(s: &CostSystem) -> impl Iterator<Item = usize> + '_ {
    let layout = s.prediction.iter().map(|p| &p.layout);
    layout.flat_map(|l| l.predicted().filter(move |(i, _)| Some(*i) != l.exact()).map(|(i, _)| i))
}

/// The base on the first tokens alone, as far as their keys and values.
pub(super) fn earlier(s: &CostSystem, rows: usize, out: &mut Vec<Step>) {
    let (c, phase, rows) = (&s.base, Phase::BaseStep, Rows::all(rows));
    out.push(Step { phase, op: Op::Embed { net: Net::Base, rows, tokens: Tokens::Prompt } });
    for layer in 0..c.layers.len() {
        let goes_on = if layer + 1 < c.layers.len() { rows.count } else { 0 };
        out.push(Step { phase, op: kept(layer, rows, Out::Rows(goes_on)) });
    }
    out.push(Step { phase, op: Op::Sinks { rows: rows.count, back: false, layers: predicted_layers(s).collect() } });
}

/// Tokens of the prompt without an entry in any cache of the base.
pub(super) fn dropped(s: &CostSystem, spec: &RunSpec) -> usize {
    match s.pruning {
        None | Some(Pruning::Lazy { .. }) => 0,
        Some(p) => spec.prompt - p.tokens(0, s.base.layers.len(), spec.prompt),
    }
}

/// The steps of the first token, in the order in which they run, and [`super::Schedule::behind`].
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
pub(super) fn kept(layer: usize, rows: Rows, out: Out) -> Op {
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
