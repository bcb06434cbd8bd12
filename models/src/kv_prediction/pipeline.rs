//! KV prediction ([`KvRun`]).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ttft_kernels::{Element, Engine, Mat, RopeTable};

use super::{KvPrediction, Predictor, auxiliary_cache_layers, auxiliary_layers, predictor::Prediction};
use crate::{
    activations::Activations,
    cache::{LayerCache, NamedTensor, RawKv, heads_first},
    decoder::Decoder,
    error::Result,
    inference::{Inference, PhaseTime, PhaseTimes},
    network::{Kv, Network, Want, head_buffer},
    prompts,
    sizes::zeroed,
    spec::{Extent, Phase, RunSpec},
};

/// The auxiliary network on the prompt, and what the predictor reads of it.
struct Auxiliary<A> {
    net: Arc<Network>,
    extent: Extent,
    rope: RopeTable,
    act: Activations<A>,
    /// One entry per layer that runs.
    raw: Vec<RawKv<A>>,
    /// For its own attention: one per distinct count of heads.
    caches: Vec<LayerCache<A>>,
    all: Vec<f32>,
}

impl<A: Element> Auxiliary<A> {
    fn new(s: &KvPrediction, batch: usize, len: usize, extent: Extent) -> Result<Self> {
        let c = s.aux.config();
        let all = if extent == Extent::FullNetwork { head_buffer(c, batch * len) } else { 0 };
        let layers = auxiliary_layers(s.predictor.layer_map(), c.layers.len(), extent);
        let cache = |j: usize| LayerCache::new(batch, c.layers[j].kv_heads, len, c.head_dim);
        Ok(Auxiliary {
            net: Arc::clone(&s.aux),
            extent,
            rope: s.aux.rope(len),
            act: Activations::new(c, batch * len)?,
            raw: (0..layers).map(|j| RawKv::new(batch * len, c.kv_dim(j))).collect(),
            caches: auxiliary_cache_layers(c, layers, extent).into_iter().map(cache).collect(),
            all: zeroed(all as u64)?,
        })
    }

    fn forward(&mut self, e: &Engine, ids: &[u32], batch: usize) -> Result<()> {
        self.net.embed(e, ids, batch, 0, &mut self.act)?;
        let last = self.raw.len() - 1;
        for (j, raw) in self.raw.iter_mut().enumerate() {
            let kv = if j == last && self.extent == Extent::FirstToken {
                Kv::Keep(raw)
            } else {
                let heads = self.net.config().layers[j].kv_heads;
                let cache = self.caches.iter_mut().find(|c| c.k.heads() == heads).expect("one per count of heads");
                Kv::AppendAndKeep(cache, raw)
            };
            self.net.layer(e, j, &mut self.act, &self.rope, kv, Want::All)?;
        }
        if self.extent == Extent::FullNetwork {
            self.net.head_all(e, &mut self.act, &mut self.all, |_, _| ())?;
        }
        Ok(())
    }
}

/// KV prediction.
pub(crate) struct KvRun<A> {
    base: Decoder<A>,
    /// Absent where the prompt is one token: the base runs alone.
    aux: Option<Auxiliary<A>>,
    predictor: Arc<Predictor>,
    /// Ids of all but the last token, and of the last.
    head: Vec<u32>,
    tail: Vec<u32>,
    /// Predicted keys before k_norm, per base layer, if recorded.
    kept: Option<Vec<Vec<f32>>>,
}

impl<A: Element> KvRun<A> {
    pub(crate) fn new(s: &KvPrediction, spec: RunSpec) -> Result<Self> {
        let (b, m) = (spec.batch, spec.prompt - 1);
        Ok(KvRun {
            base: Decoder::new(&s.base, spec, 1, spec.positions())?,
            aux: (m > 0).then(|| Auxiliary::new(s, b, m, spec.extent)).transpose()?,
            predictor: Arc::clone(&s.predictor),
            head: Vec::with_capacity(b * m),
            tail: Vec::with_capacity(b),
            kept: None,
        })
    }

    /// Predicts all base layers, each from the auxiliary layer that its map names.
    fn predict(&mut self, e: &Engine, aux: &Auxiliary<A>) -> Result<()> {
        let base = &mut self.base;
        let shape = (base.spec.batch, base.spec.prompt - 1);
        let mut kept = self.kept.iter_mut().flatten();
        let map = self.predictor.layer_map().iter().zip(&mut base.caches).enumerate();
        let layers = map.map(|(layer, (&j, cache))| Prediction { layer, raw: &aux.raw[j], cache, keep: kept.next() });
        self.predictor.predict(e, &base.net, shape, &base.rope, layers)
    }
}

impl<A: Element> Inference for KvRun<A> {
    fn first_token(&mut self, e: &Engine, ids: &[u32]) -> Result<PhaseTimes> {
        let start = Instant::now();
        let RunSpec { batch, prompt, extent, .. } = self.base.spec;
        let mut vocab = self.base.net.config().vocab;
        if let Some(aux) = &self.aux {
            vocab = vocab.min(aux.net.config().vocab);
        }
        prompts::check(ids, batch, prompt, vocab)?;
        self.head.clear();
        self.tail.clear();
        for row in ids.chunks_exact(prompt) {
            self.head.extend_from_slice(&row[..prompt - 1]);
            self.tail.push(row[prompt - 1]);
        }
        self.base.reset(0);
        let mut phases = Vec::with_capacity(3);
        if let Some(mut aux) = self.aux.take() {
            let ran = PhaseTime::of(e, Phase::Auxiliary, || aux.forward(e, &self.head, batch))
                .and_then(|auxiliary| Ok([auxiliary, PhaseTime::of(e, Phase::Prediction, || self.predict(e, &aux))?]));
            self.aux = Some(aux);
            phases.extend(ran?);
            self.base.filled(prompt - 1);
        }
        phases.push(PhaseTime::of(e, Phase::BaseStep, || self.base.append(e, &self.tail, extent))?);
        Ok(PhaseTimes { total: start.elapsed(), phases })
    }

    fn next_token(&mut self, e: &Engine) -> Result<Duration> {
        self.base.next(e)
    }

    fn token_ids(&self) -> &[u32] {
        self.base.ids()
    }

    fn logits(&self) -> Mat<'_, f32> {
        self.base.logits()
    }

    fn record(&mut self, on: bool) {
        self.kept = on.then(|| vec![Vec::new(); self.base.caches.len()]);
    }

    fn cache_dump(&self) -> Vec<NamedTensor> {
        let b = self.base.spec.batch;
        let mut out = self.base.dump("kvp_cache", |_, p| p);
        let Some(aux) = &self.aux else { return out };
        let len = self.base.spec.prompt - 1;
        let c = self.base.net.config();
        for (i, cache) in self.base.caches.iter().enumerate() {
            let [mut k, v] = cache.dump(&format!("predicted.{i}"), len, |_, p| (p, p), &self.base.rope);
            k.name = format!("predicted.{i}.k_normed");
            out.extend([k, v]);
            if let Some(kept) = &self.kept {
                out.push(heads_first(format!("predicted.{i}.k"), &kept[i], b, c.layers[i].kv_heads, c.head_dim));
            }
        }
        let c = aux.net.config();
        for (j, raw) in aux.raw.iter().enumerate() {
            for (part, rows) in [("k", &raw.k), ("v", &raw.v)] {
                let heads = c.layers[j].kv_heads;
                out.push(heads_first(format!("aux_cache.{j}.{part}"), rows, b, heads, c.head_dim));
            }
        }
        out
    }
}
