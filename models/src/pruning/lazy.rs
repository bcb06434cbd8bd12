//! LazyLLM: [`Pruning::Lazy`].

use std::time::{Duration, Instant};

use ttft_kernels::{Element, Engine, Mat, Positions, Query};

use super::{Pruned, Pruning, select::Scores};
use crate::{
    activations::Activations,
    cache::{LayerCache, NamedTensor, distinct_heads, kv_bytes},
    config::{NetworkConfig, Part},
    decoder::Decoder,
    error::Result,
    inference::{Inference, PhaseTime, PhaseTimes},
    network::{Kv, Network, Want},
    prompts,
    sizes::{mul, sum, zeroed},
    spec::{Extent, Phase, RunSpec},
};

/// No entry.
const NONE: u32 = u32::MAX;

/// The cache of a layer that drops tokens: its entries stand in the order in which they were made.
struct Sparse {
    /// Where the entry of a position is, `[batch, positions]`; [`NONE`] where there is none.
    slots: Vec<u32>,
    /// Entries of each sequence.
    len: Vec<u32>,
}

/// How far the tokens of the prompt have come.
struct Kept {
    /// Layers that each token has passed, `[batch, prompt + 1]`: the prompt's, then the one that is under way.
    depth: Vec<u32>,
    /// What the last of these layers put out, `[batch, prompt + 1, D]`.
    hidden: Vec<f32>,
    /// Tokens of a sequence.
    tokens: usize,
    dim: usize,
}

impl Kept {
    /// Where the token of sequence `b` at `position` is. After the prompt there is one place only: later tokens pass every
    /// layer at once, and are looked for no more.
    fn at(&self, b: usize, position: u32) -> usize {
        b * self.tokens + (position as usize).min(self.tokens - 1)
    }

    fn save(&mut self, at: usize, row: &[f32]) {
        self.hidden[at * self.dim..][..self.dim].copy_from_slice(row);
    }
}

/// A LazyLLM run.
pub(crate) struct LazyRun<A> {
    base: Decoder<A>,
    pruning: Pruning,
    /// The first layer that may take fewer tokens than there are.
    first: usize,
    /// From layer `first` on.
    sparse: Vec<Sparse>,
    kept: Kept,
    /// Entries that later tokens attend to, side by side: one cache for each distinct count of heads.
    gathered: Vec<LayerCache<A>>,
    scores: Scores,
    /// Positions of the tokens that each layer took last, ascending, `[batch, tokens]` for each layer from `first` on.
    taken: Vec<Vec<u32>>,
    /// Places of the next layer's tokens among this one's.
    places: Vec<u32>,
    /// Entries of these tokens.
    slots: Vec<u32>,
    /// Rows of a later token's pass: (sequence, position), the new tokens first.
    rows: Vec<(u32, u32)>,
    queries: Vec<Query>,
}

/// The first layer that may drop tokens; never layer 0, since nothing ranks them before it.
fn first_pruned(c: &NetworkConfig, pruning: Pruning) -> usize {
    // A length at which every fraction below 1 drops something.
    let n = 1 << 20;
    (0..c.layers.len()).find(|&i| pruning.tokens(i, c.layers.len(), n) < n).unwrap_or(c.layers.len())
}

impl<A: Element> LazyRun<A> {
    pub fn new(s: &Pruned, spec: RunSpec) -> Result<Self> {
        let c = s.base.config();
        let (b, positions, layers) = (spec.batch, spec.positions(), c.layers.len());
        let first = first_pruned(c, s.pruning);
        let (pruned, tokens) = (layers - first, spec.prompt + 1);
        let cache = |&i: &usize| LayerCache::new(b, c.layers[i].kv_heads, positions, c.head_dim);
        let sparse = |_| Ok(Sparse { slots: zeroed((b * positions) as u64)?, len: vec![0; b] });
        Ok(LazyRun {
            base: Decoder::new(&s.base, spec, spec.prompt, positions)?,
            pruning: s.pruning,
            first,
            sparse: (0..pruned).map(sparse).collect::<Result<_>>()?,
            kept: Kept {
                depth: zeroed((b * tokens) as u64)?,
                hidden: zeroed(mul(&[b, tokens, c.dim]))?,
                tokens,
                dim: c.dim,
            },
            gathered: distinct_heads(c, first..layers).iter().map(cache).collect(),
            scores: Scores::new(c, s.ranking, b, positions)?,
            taken: (0..pruned).map(|_| Vec::with_capacity(b * positions)).collect(),
            places: Vec::with_capacity(b * positions),
            slots: Vec::with_capacity(b * positions),
            rows: Vec::with_capacity(b * spec.prompt),
            queries: Vec::with_capacity(b * spec.prompt),
        })
    }

    /// Bytes that [`LazyRun::new`] allocates: caches and kept outputs, and the rest.
    pub fn bytes(c: &NetworkConfig, pruning: Pruning, spec: &RunSpec) -> [u64; 2] {
        let (b, n, positions, layers) = (spec.batch, spec.prompt, spec.positions(), c.layers.len());
        let first = first_pruned(c, pruning);
        let [caches, own] = Decoder::<A>::bytes(c, spec, n, positions);
        let gathered = distinct_heads(c, first..layers).into_iter().map(|i| kv_bytes::<A>(c, i, b, positions));
        let hidden = mul(&[b, n.saturating_add(1), c.dim, 4]);
        // Slots and tokens of the layers that drop some, places and slots of the moment; depths; rows and queries.
        let sets = mul(&[2 * (layers - first) + 2, b, positions, 4]);
        let rows = mul(&[b, n, size_of::<(u32, u32)>() + size_of::<Query>()]);
        let tables = sum([sets, mul(&[layers - first, b, 4]), mul(&[b, n.saturating_add(1), 4]), rows]);
        [sum([caches, sum(gathered), hidden]), sum([own, Scores::bytes(c, b, positions), tables])]
    }

    fn batch(&self) -> usize {
        self.base.spec.batch
    }

    /// Tokens that layer `i` takes when there are `n`.
    fn count(&self, i: usize, n: usize) -> usize {
        self.pruning.tokens(i, self.base.caches.len(), n)
    }

    /// Sets which tokens layer `i` takes, of those that the layer before it took: by the scores, or all of them.
    /// `n`: tokens so far.
    fn take(&mut self, i: usize, n: usize) {
        let (j, count) = (i - self.first, self.count(i, n));
        let before = self.count(i - 1, n);
        if count < before {
            self.scores.choose(count, &mut self.places);
        } else {
            self.places.clear();
            self.places.extend((0..self.base.spec.batch).flat_map(|_| 0..count as u32));
        }
        let (earlier, here) = self.taken.split_at_mut(j);
        here[0].clear();
        // The layers before the first that drops tokens take all: place and position are the same.
        let position = |(at, &place): (usize, &u32)| match earlier.last() {
            Some(taken) => taken[at / count * before + place as usize],
            None => place,
        };
        here[0].extend(self.places.iter().enumerate().map(position));
    }

    /// Scores the tokens of layer `i`, which has just run, if the next one takes fewer of them. Their keys are the first
    /// entries of `cache`.
    fn score(
        (scores, taken, first): (&mut Scores, &[Vec<u32>], usize),
        e: &Engine,
        (base, act): (&Network, &Activations<A>),
        i: usize,
        cache: &LayerCache<A>,
        (count, next): (usize, usize),
    ) -> Result<()> {
        if next == count {
            return Ok(());
        }
        scores.start(count);
        let position = |b: usize, p: usize| if i < first { p as u32 } else { taken[i - first][b * count + p] };
        scores.add(e, (base, i), act, cache, position)
    }

    /// The prompt.
    fn prefill(&mut self, e: &Engine, ids: &[u32]) -> Result<()> {
        let RunSpec { batch, prompt, extent, .. } = self.base.spec;
        let layers = self.base.caches.len();
        self.base.reset(0);
        self.scores.prompts(ids);
        self.kept.depth.fill(layers as u32);
        for s in &mut self.sparse {
            s.slots.fill(NONE);
        }
        self.base.net.embed(e, ids, batch, 0, &mut self.base.act)?;
        for i in 0..layers {
            let count = self.count(i, prompt);
            if i >= self.first {
                self.take(i, prompt);
                self.stop(i, prompt);
                self.enter(i, count);
            }
            let d = &mut self.base;
            let want = if i + 1 == layers && extent == Extent::FirstToken { Want::Last(1) } else { Want::All };
            d.net.layer(e, i, &mut d.act, &d.rope, Kv::Append(&mut d.caches[i]), want)?;
            if i + 1 < layers {
                let next = self.pruning.tokens(i + 1, layers, prompt);
                let of = (&mut self.scores, &self.taken[..], self.first);
                Self::score(of, e, (&d.net, &d.act), i, &d.caches[i], (count, next))?;
            }
        }
        self.base.filled(prompt);
        self.base.choose(e, extent)
    }

    /// Keeps the outputs of the tokens that stop before layer `i`, and goes on with the others.
    fn stop(&mut self, i: usize, prompt: usize) {
        let (n, act) = (self.base.act.n(), &mut self.base.act);
        let count = self.places.len() / self.base.spec.batch;
        if count == n {
            return;
        }
        for (b, places) in self.places.chunks_exact(count).enumerate() {
            let mut goes_on = places.iter().peekable();
            for place in 0..n as u32 {
                if goes_on.next_if_eq(&&place).is_none() {
                    let position = match i.checked_sub(self.first + 1) {
                        Some(j) => self.taken[j][b * n + place as usize],
                        None => place,
                    };
                    debug_assert!((position as usize) < prompt);
                    let at = self.kept.at(b, position);
                    self.kept.depth[at] = i as u32;
                    self.kept.save(at, act.row(b * n + place as usize));
                }
            }
        }
        act.retain(&self.places);
    }

    /// Notes the entries that the prompt's tokens will have in layer `i`.
    fn enter(&mut self, i: usize, count: usize) {
        let (s, positions) = (&mut self.sparse[i - self.first], self.base.spec.positions());
        for (b, taken) in self.taken[i - self.first].chunks_exact(count).enumerate() {
            for (slot, &p) in taken.iter().enumerate() {
                s.slots[b * positions + p as usize] = slot as u32;
            }
        }
        s.len.fill(count as u32);
    }

    /// A later token.
    fn step(&mut self, e: &Engine) -> Result<()> {
        let chosen = self.base.chosen()?;
        let (batch, layers) = (self.batch(), self.base.caches.len());
        let new = self.base.len() as u32;
        let n = self.base.len() + 1;
        let d = &mut self.base;
        d.net.embed(e, &chosen, batch, n - 1, &mut d.act)?;
        d.act.place(Positions::From(n - 1));
        for i in 0..self.first {
            d.net.layer(e, i, &mut d.act, &d.rope, Kv::Append(&mut d.caches[i]), Want::All)?;
        }
        if self.first < layers {
            let (i, counts) = (self.first - 1, (n, self.pruning.tokens(self.first, layers, n)));
            let of = (&mut self.scores, &self.taken[..], self.first);
            Self::score(of, e, (&d.net, &d.act), i, &d.caches[i], counts)?;
        }
        self.rows.clear();
        self.rows.extend((0..batch as u32).map(|b| (b, new)));
        for i in self.first..layers {
            self.take(i, n);
            self.revive(i);
            self.layer(e, i, n)?;
        }
        for &(b, p) in &self.rows {
            let at = self.kept.at(b as usize, p);
            self.kept.depth[at] = layers as u32;
        }
        // The new tokens come first.
        self.base.act.truncate(batch);
        self.base.filled(1);
        self.base.choose(e, Extent::FirstToken)
    }

    /// Loads the rows that pass layer `i`: of the tokens it takes, those that have passed the layer before it and not yet
    /// itself.
    fn revive(&mut self, i: usize) {
        let (batch, new) = (self.base.spec.batch, self.base.len() as u32);
        for (r, &(b, p)) in self.rows.iter().enumerate() {
            let at = self.kept.at(b as usize, p);
            self.kept.depth[at] = i as u32;
            self.kept.save(at, self.base.act.row(r));
        }
        let taken = &self.taken[i - self.first];
        let count = taken.len() / batch;
        self.rows.truncate(batch);
        self.queries.clear();
        self.queries.extend((0..batch).map(|sequence| Query { sequence, sees: count }));
        for (b, taken) in taken.chunks_exact(count).enumerate() {
            for (place, &p) in taken.iter().enumerate().filter(|(_, p)| **p < new) {
                if self.kept.depth[self.kept.at(b, p)] == i as u32 && (p as usize) < self.kept.tokens - 1 {
                    self.rows.push((b as u32, p));
                    self.queries.push(Query { sequence: b, sees: place + 1 });
                }
            }
        }
        let (kept, rows) = (&self.kept, &self.rows);
        let row = |&(b, p): &(u32, u32)| (&kept.hidden[kept.at(b as usize, p) * kept.dim..][..kept.dim], p);
        self.base.act.load(rows.iter().map(row));
    }

    /// Layer `i` on the rows loaded, when there are `n` tokens.
    fn layer(&mut self, e: &Engine, i: usize, n: usize) -> Result<()> {
        let (j, layers, positions) = (i - self.first, self.base.caches.len(), self.base.spec.positions());
        let d = &mut self.base;
        let (sparse, cache) = (&mut self.sparse[j], &mut d.caches[i]);
        for &(b, p) in &self.rows {
            let b = b as usize;
            sparse.slots[b * positions + p as usize] = sparse.len[b];
            sparse.len[b] += 1;
        }
        let head_dim = cache.k.head_dim();
        d.net.keys_and_values(e, i, &mut d.act, &d.rope, |part, rows| {
            let to = if part == Part::Key { &mut cache.k } else { &mut cache.v };
            for (r, &(b, p)) in self.rows.iter().enumerate() {
                let slot = sparse.slots[b as usize * positions + p as usize] as usize;
                for (h, head) in rows.row(r).chunks_exact(head_dim).enumerate() {
                    to.head_mut(b as usize, h).row_mut(slot).copy_from_slice(head);
                }
            }
        })?;
        let taken = &self.taken[j];
        let count = taken.len() / d.spec.batch;
        let slot = |(at, &p): (usize, &u32)| sparse.slots[at / count * positions + p as usize];
        self.slots.clear();
        self.slots.extend(taken.iter().enumerate().map(slot));
        let heads = cache.k.heads();
        let gathered = self.gathered.iter_mut().find(|c| c.k.heads() == heads).expect("one per count of heads");
        e.gather(&cache.k, &self.slots, &mut gathered.k)?;
        e.gather(&cache.v, &self.slots, &mut gathered.v)?;
        d.net.attend_each(e, i, &mut d.act, &d.rope, gathered, &self.queries)?;
        if i + 1 < layers {
            let next = self.pruning.tokens(i + 1, layers, n);
            let of = (&mut self.scores, &self.taken[..], self.first);
            Self::score(of, e, (&d.net, &d.act), i, gathered, (count, next))?;
        }
        Ok(())
    }
}

impl<A: Element> Inference for LazyRun<A> {
    fn first_token(&mut self, e: &Engine, ids: &[u32]) -> Result<PhaseTimes> {
        let start = Instant::now();
        let RunSpec { batch, prompt, .. } = self.base.spec;
        prompts::check(ids, batch, prompt, self.base.net.config().vocab)?;
        let prefill = PhaseTime::of(e, Phase::Prefill, || self.prefill(e, ids))?;
        Ok(PhaseTimes { total: start.elapsed(), phases: vec![prefill] })
    }

    fn next_token(&mut self, e: &Engine) -> Result<Duration> {
        let t = Instant::now();
        self.step(e)?;
        Ok(t.elapsed())
    }

    fn token_ids(&self) -> &[u32] {
        self.base.ids()
    }

    fn logits(&self) -> Mat<'_, f32> {
        self.base.logits()
    }

    fn record(&mut self, _on: bool) {}

    fn cache_dump(&self) -> Vec<NamedTensor> {
        let (batch, n, positions) = (self.batch(), self.base.len(), self.base.spec.positions());
        let mut out = Vec::new();
        for (i, cache) in self.base.caches.iter().enumerate() {
            let name = format!("base_cache.{i}");
            let Some(j) = i.checked_sub(self.first) else {
                out.extend(cache.dump(&name, n, |_, p| (p, p), &self.base.rope));
                continue;
            };
            let (taken, slots) = (&self.taken[j], &self.sparse[j].slots);
            let count = taken.len() / batch;
            let at = |b: usize, k: usize| {
                let p = taken[b * count + k] as usize;
                (slots[b * positions + p] as usize, p)
            };
            out.extend(cache.dump(&name, count, at, &self.base.rope));
            let data = taken.iter().map(|p| *p as f32).collect();
            out.push(NamedTensor { name: format!("kept.{i}"), shape: vec![batch, count], data });
        }
        out
    }
}
