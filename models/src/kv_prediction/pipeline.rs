//! The two ways to a first token: full prefill ([`NetworkRun`]) and KV prediction ([`KvRun`]).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ttft_kernels::{Element, Engine, Mat, RopeTable};

use super::{KvPrediction, Predictor, auxiliary_cache_layers, auxiliary_layers};
use crate::{
    Error, Extent, Inference, NamedTensor, Network, Phase, PhaseTimes, Result, RunSpec,
    arch::openelm::{Activations, Kv, Want, head_buffer, zeroed},
    cache::{LayerCache, RawKv, heads_first},
    prompts,
};

/// A network with its cache, choosing tokens greedily.
struct Decoder<A> {
    net: Arc<Network>,
    spec: RunSpec,
    rope: RopeTable,
    caches: Vec<LayerCache<A>>,
    /// Positions filled.
    len: usize,
    act: Activations<A>,
    logits: Vec<f32>,
    ids: Vec<u32>,
    /// For logits of all positions, where the extent asks for them.
    all: Vec<f32>,
}

impl<A: Element> Decoder<A> {
    /// `rows`: the most tokens of a sequence in one pass.
    fn new(net: &Arc<Network>, spec: RunSpec, rows: usize) -> Result<Self> {
        let c = net.config();
        let b = spec.batch;
        let all = if spec.extent == Extent::FullNetwork && rows > 1 { head_buffer(c, b * rows) } else { 0 };
        Ok(Decoder {
            net: Arc::clone(net),
            spec,
            rope: net.rope(spec.positions()),
            caches: net.caches(b, spec.positions()),
            len: 0,
            act: Activations::new(c, b * rows)?,
            logits: zeroed((b * c.vocab) as u64)?,
            ids: zeroed(b as u64)?,
            all: zeroed(all as u64)?,
        })
    }

    /// Appends `ids` (`[batch * n]`) and chooses the next token of each sequence.
    fn forward(&mut self, e: &Engine, ids: &[u32], extent: Extent) -> Result<()> {
        let b = self.spec.batch;
        let n = ids.len() / b;
        let last = self.caches.len() - 1;
        self.net.embed(e, ids, b, self.len, &mut self.act)?;
        for (i, cache) in self.caches.iter_mut().enumerate() {
            let want = if i == last && extent == Extent::FirstToken { Want::Last } else { Want::All };
            self.net.layer(e, i, &mut self.act, &self.rope, Kv::Append(cache), want)?;
        }
        self.len += n;
        let v = self.net.config().vocab;
        if extent == Extent::FullNetwork && n > 1 {
            let logits = &mut self.logits;
            self.net.head_all(e, &mut self.act, &mut self.all, |row, m| {
                // Of all these logits, only those of the last positions are looked at.
                for r in 0..m.rows() {
                    if (row + r) % n == n - 1 {
                        logits[(row + r) / n * v..][..v].copy_from_slice(m.row(r));
                    }
                }
            })?;
        } else {
            self.net.head(e, &mut self.act, &mut self.logits)?;
        }
        Ok(e.argmax(Mat::new(&self.logits, b, v), &mut self.ids)?)
    }

    fn next(&mut self, e: &Engine) -> Result<Duration> {
        let t = Instant::now();
        if self.len == 0 {
            return Err(Error::NotStarted);
        }
        if self.len >= self.spec.positions() {
            let RunSpec { prompt, generate, .. } = self.spec;
            return Err(Error::CacheFull { planned: self.spec.positions(), prompt, generate });
        }
        let chosen = self.ids.clone();
        self.forward(e, &chosen, Extent::FirstToken)?;
        Ok(t.elapsed())
    }

    fn logits(&self) -> Mat<'_, f32> {
        Mat::new(&self.logits, self.spec.batch, self.net.config().vocab)
    }

    fn dump(&self, name: &str) -> Vec<NamedTensor> {
        let dump = |(i, c): (usize, &LayerCache<A>)| c.dump(&format!("{name}.{i}"), self.len, &self.rope);
        self.caches.iter().enumerate().flat_map(dump).collect()
    }
}

/// Full prefill of one network.
pub(crate) struct NetworkRun<A>(Decoder<A>);

impl<A: Element> NetworkRun<A> {
    pub(crate) fn new(net: &Arc<Network>, spec: RunSpec) -> Result<Self> {
        Ok(NetworkRun(Decoder::new(net, spec, spec.prompt)?))
    }
}

impl<A: Element> Inference for NetworkRun<A> {
    fn first_token(&mut self, e: &Engine, ids: &[u32]) -> Result<PhaseTimes> {
        let start = Instant::now();
        let d = &mut self.0;
        prompts::check(ids, d.spec.batch, d.spec.prompt, d.net.config().vocab)?;
        d.len = 0;
        let prefill = Instant::now();
        d.forward(e, ids, d.spec.extent)?;
        let prefill = prefill.elapsed();
        Ok(PhaseTimes { total: start.elapsed(), phases: vec![(Phase::Prefill, prefill)] })
    }

    fn next_token(&mut self, e: &Engine) -> Result<Duration> {
        self.0.next(e)
    }

    fn token_ids(&self) -> &[u32] {
        &self.0.ids
    }

    fn logits(&self) -> Mat<'_, f32> {
        self.0.logits()
    }

    fn record(&mut self, _on: bool) {}

    fn cache_dump(&self) -> Vec<NamedTensor> {
        self.0.dump("base_cache")
    }
}

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
    predicted: Vec<f32>,
    /// Predicted keys before k_norm, per base layer, if recorded.
    kept: Option<Vec<Vec<f32>>>,
}

impl<A: Element> KvRun<A> {
    pub(crate) fn new(s: &KvPrediction, spec: RunSpec) -> Result<Self> {
        let (b, m) = (spec.batch, spec.prompt - 1);
        let c = s.base.config();
        let widest = (0..c.layers.len()).map(|i| c.kv_dim(i)).max().unwrap_or(0);
        Ok(KvRun {
            base: Decoder::new(&s.base, spec, 1)?,
            aux: (m > 0).then(|| Auxiliary::new(s, b, m, spec.extent)).transpose()?,
            predictor: Arc::clone(&s.predictor),
            head: Vec::with_capacity(b * m),
            tail: Vec::with_capacity(b),
            predicted: zeroed((b * m * widest) as u64)?,
            kept: None,
        })
    }

    /// Predicts base layer `i` from the auxiliary layer that its map names.
    fn predict(&mut self, e: &Engine, i: usize, aux: &Auxiliary<A>) -> Result<()> {
        let raw = &aux.raw[self.predictor.layer_map()[i]];
        let base = &mut self.base;
        let shape = (base.spec.batch, base.spec.prompt - 1);
        let keep = self.kept.as_mut().map(|k| &mut k[i]);
        let cache = &mut base.caches[i];
        self.predictor.predict(e, i, &base.net, raw, shape, &mut self.predicted, &base.rope, cache, keep)
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
        self.base.len = 0;
        let mut phases = Vec::with_capacity(3);
        if let Some(mut aux) = self.aux.take() {
            let t = Instant::now();
            let ran = aux.forward(e, &self.head, batch);
            phases.push((Phase::Auxiliary, t.elapsed()));
            let t = Instant::now();
            let layers = self.base.caches.len();
            let predicted = ran.and_then(|()| (0..layers).try_for_each(|i| self.predict(e, i, &aux)));
            phases.push((Phase::Prediction, t.elapsed()));
            self.aux = Some(aux);
            predicted?;
            self.base.len = prompt - 1;
        }
        let t = Instant::now();
        self.base.forward(e, &self.tail, extent)?;
        phases.push((Phase::BaseStep, t.elapsed()));
        Ok(PhaseTimes { total: start.elapsed(), phases })
    }

    fn next_token(&mut self, e: &Engine) -> Result<Duration> {
        self.base.next(e)
    }

    fn token_ids(&self) -> &[u32] {
        &self.base.ids
    }

    fn logits(&self) -> Mat<'_, f32> {
        self.base.logits()
    }

    fn record(&mut self, on: bool) {
        self.kept = on.then(|| vec![Vec::new(); self.base.caches.len()]);
    }

    fn cache_dump(&self) -> Vec<NamedTensor> {
        let b = self.base.spec.batch;
        let mut out = self.base.dump("kvp_cache");
        let Some(aux) = &self.aux else { return out };
        let len = self.base.spec.prompt - 1;
        let c = self.base.net.config();
        for (i, cache) in self.base.caches.iter().enumerate() {
            let [mut k, v] = cache.dump(&format!("predicted.{i}"), len, &self.base.rope);
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
