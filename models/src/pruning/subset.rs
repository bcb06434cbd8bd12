//! The base on a part of the prompt that is chosen before it runs: [`Pruning::Random`] and [`Pruning::Static`].

use std::time::{Duration, Instant};

use ttft_kernels::{Element, Engine, Mat, Positions};

use super::{Pruned, Pruning, Ranking, select::Scores};
use crate::{
    cache::{LayerCache, NamedTensor, distinct_heads, kv_bytes},
    config::NetworkConfig,
    decoder::Decoder,
    error::Result,
    inference::{Inference, PhaseTime, PhaseTimes},
    network::{Kv, Want},
    prompts,
    sizes::{mul, sum},
    spec::{Extent, Phase, RunSpec},
};

/// A run on a chosen part of the prompt.
pub(crate) struct SubsetRun<A> {
    base: Decoder<A>,
    /// Layers that run on the whole prompt to choose by, with caches of their own: one for each distinct count of heads,
    /// as only one layer runs at a time.
    layers: usize,
    caches: Vec<LayerCache<A>>,
    scores: Scores,
    /// Tokens of each sequence that are kept.
    count: usize,
    /// Their positions and ids, `[batch * count]`.
    kept: Vec<u32>,
    ids: Vec<u32>,
}

/// What a run allocates besides a decoder.
struct Sizes {
    count: usize,
    /// Tokens of a sequence in one pass of the network.
    rows: usize,
    /// Entries of the cache.
    capacity: usize,
    /// Layers whose shapes the caches of the selection have.
    caches: Vec<usize>,
    layers: usize,
}

impl Sizes {
    fn new(c: &NetworkConfig, pruning: Pruning, spec: &RunSpec) -> Sizes {
        let count = pruning.tokens(0, c.layers.len(), spec.prompt);
        let layers = pruning.selection_layers(c.layers.len());
        Sizes {
            count,
            rows: if layers > 0 { spec.prompt } else { count },
            capacity: spec.positions() - (spec.prompt - count),
            caches: distinct_heads(c, 0..layers),
            layers,
        }
    }
}

impl<A: Element> SubsetRun<A> {
    pub fn new(s: &Pruned, spec: RunSpec) -> Result<Self> {
        let c = s.base.config();
        let (b, n) = (spec.batch, spec.prompt);
        let z = Sizes::new(c, s.pruning, &spec);
        let ranking = if z.layers == 0 { Ranking::Seeded } else { s.ranking };
        Ok(SubsetRun {
            base: Decoder::new(&s.base, spec, z.rows, z.capacity)?,
            layers: z.layers,
            caches: z.caches.iter().map(|&i| LayerCache::new(b, c.layers[i].kv_heads, n, c.head_dim)).collect(),
            scores: Scores::new(c, ranking, b, n)?,
            count: z.count,
            kept: Vec::with_capacity(b * z.count),
            ids: Vec::with_capacity(b * z.count),
        })
    }

    /// Bytes that [`SubsetRun::new`] allocates: caches, and the rest.
    pub fn bytes(c: &NetworkConfig, pruning: Pruning, spec: &RunSpec) -> [u64; 2] {
        let (b, n) = (spec.batch, spec.prompt);
        let z = Sizes::new(c, pruning, spec);
        let [caches, own] = Decoder::<A>::bytes(c, spec, z.rows, z.capacity);
        let selection = sum(z.caches.iter().map(|&i| kv_bytes::<A>(c, i, b, n)));
        [sum([caches, selection]), sum([own, Scores::bytes(c, b, n), mul(&[2, b, z.count, 4])])]
    }

    /// Scores the tokens of the prompt by the first layers.
    fn score(&mut self, e: &Engine, ids: &[u32]) -> Result<()> {
        let d = &mut self.base;
        let RunSpec { batch, extent, .. } = d.spec;
        d.net.embed(e, ids, batch, 0, &mut d.act)?;
        for i in 0..self.layers {
            let heads = d.net.config().layers[i].kv_heads;
            let cache = self.caches.iter_mut().find(|c| c.k.heads() == heads).expect("one per count of heads");
            let ends = i + 1 == self.layers && extent == Extent::FirstToken;
            let want = if ends { Want::LastQuery } else { Want::All };
            d.net.layer(e, i, &mut d.act, &d.rope, Kv::Append(cache), want)?;
            self.scores.add(e, (&d.net, i), &d.act, cache, |_, p| p as u32)?;
        }
        Ok(())
    }

    /// Chooses the tokens that are kept: `self.kept` and their ids.
    fn select(&mut self, e: &Engine, ids: &[u32]) -> Result<()> {
        let prompt = self.base.spec.prompt;
        self.scores.prompts(ids);
        self.scores.start(prompt);
        if self.layers > 0 {
            self.score(e, ids)?;
        } else {
            self.scores.add_seeded(|_, p| p as u32);
        }
        self.scores.choose(self.count, &mut self.kept);
        self.ids.clear();
        for (ids, kept) in ids.chunks_exact(prompt).zip(self.kept.chunks_exact(self.count)) {
            self.ids.extend(kept.iter().map(|&p| ids[p as usize]));
        }
        Ok(())
    }
}

impl<A: Element> Inference for SubsetRun<A> {
    fn first_token(&mut self, e: &Engine, ids: &[u32]) -> Result<PhaseTimes> {
        let start = Instant::now();
        let RunSpec { batch, prompt, extent, .. } = self.base.spec;
        prompts::check(ids, batch, prompt, self.base.net.config().vocab)?;
        self.base.reset(prompt - self.count);
        let mut phases = Vec::with_capacity(2);
        let selection = PhaseTime::of(e, Phase::Selection, || self.select(e, ids))?;
        if self.layers > 0 {
            phases.push(selection);
        }
        let prefill = || self.base.forward(e, &self.ids, Positions::Each(&self.kept), extent);
        phases.push(PhaseTime::of(e, Phase::Prefill, prefill)?);
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

    fn record(&mut self, _on: bool) {}

    fn cache_dump(&self) -> Vec<NamedTensor> {
        let (n, prompt) = (self.count, self.base.spec.prompt);
        let position = |b: usize, i: usize| if i < n { self.kept[b * n + i] as usize } else { prompt + i - n };
        let mut out = self.base.dump("base_cache", position);
        let data = (0..self.base.spec.batch).flat_map(|b| (0..self.base.len()).map(move |i| position(b, i) as f32));
        let shape = vec![self.base.spec.batch, self.base.len()];
        out.push(NamedTensor { name: "kept".into(), shape, data: data.collect() });
        out
    }
}
