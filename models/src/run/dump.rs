//! The caches of a run as named tensors, for tests, fits and measures of fidelity.

use ttft_kernels::Element;

use super::{Run, State};
use crate::{
    cache::{NamedTensor, Source, heads_first},
    kv_prediction::layout::Input,
    schedule::{Gap, Net, Op, Slot, shapes},
};

impl<A: Element> Run<A> {
    /// What [`crate::Inference::cache_dump`] gives.
    pub(super) fn dump(&self) -> Vec<NamedTensor> {
        let (s, b) = (&self.state, self.state.spec.batch);
        let (rope, layers) = (&s.lanes.base.rope, 0..self.shapes.base.layers.len());
        let cache = |i: usize| &s.caches[self.schedule.cache_of(i)];
        if let Some(lazy) = &s.lazy {
            return layers.flat_map(|i| lazy.dump(i, cache(i), s.len, rope)).collect();
        }
        let name = if s.predictor.is_some() { "kvp_cache" } else { "base_cache" };
        let gap = Gap::of(&self.shapes, &s.spec);
        let dump = |i: usize| {
            let at = |b, entry| (entry, s.position(b, gap.place(i, entry)));
            cache(i).dump(&format!("{name}.{i}"), s.len.saturating_sub(gap.in_layer(i)), at, rope)
        };
        let mut out: Vec<NamedTensor> = layers.flat_map(dump).collect();
        if !s.kept.is_empty() {
            let data = (0..b).flat_map(|b| (0..s.len).map(move |i| s.token(b, i) as f32)).collect();
            out.push(NamedTensor { name: "kept".into(), shape: vec![b, s.len], data });
        }
        for step in &self.schedule.prompt {
            let Op::Map { rows, maps } = &step.op else { continue };
            let c = &self.shapes.base;
            for m in maps {
                let [mut k, v] = cache(m.layer).dump(&format!("predicted.{}", m.layer), *rows, |_, p| (p, p), rope);
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

impl<A> State<A> {
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
