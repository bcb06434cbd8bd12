//! Which slots the steps of a schedule use: what a run allocates.

use super::{Entries, KvShape, LayerStep, Map, Net, Op, Schedule, Slot, SourceShape, Stream, Uses, shapes};
use crate::{kv_prediction::layout::Input, pruning::Pruning, spec::RunSpec, system::CostSystem};

impl Schedule {
    /// Finds the slots of a step, the `at`-th, or makes them.
    pub(super) fn place(&mut self, s: &CostSystem, spec: &RunSpec, at: usize, op: &Op) -> Uses {
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
                    let source = self.source_of(m);
                    self.sources[source].last = at;
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

    /// The slot of the cache that base layer `layer` has for itself, whether its own steps append to it or maps fill it.
    pub(crate) fn cache_of(&self, layer: usize) -> usize {
        let own = |slot: &Slot<KvShape>| slot.shape.kept && (slot.shape.net, slot.shape.layer) == (Net::Base, layer);
        self.caches.iter().position(own).expect("every layer of the base keeps entries")
    }

    /// The slot of what a map reads.
    pub(crate) fn source_of(&self, m: &Map) -> usize {
        self.sources.iter().position(|slot| slot.shape.feeds(m)).expect("a map reads what a layer has left")
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

/// Positions that a network of `s` comes to.
fn positions(s: &CostSystem, spec: &RunSpec, net: Net) -> usize {
    match (net, &s.prediction, s.pruning) {
        (Net::Base, ..) => spec.positions(),
        (Net::Auxiliary, Some(p), _) => spec.prompt.saturating_sub(p.own.last),
        (Net::Auxiliary, None, Some(Pruning::Spec(p))) => spec.prompt.saturating_add(p.look_ahead - 1),
        (Net::Auxiliary, None, _) => spec.prompt,
    }
}
