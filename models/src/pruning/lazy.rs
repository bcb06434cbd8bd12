//! What LazyLLM ([`Pruning::Lazy`]) knows of the tokens: how far each has come, and where its entries are.

use ttft_kernels::{Element, Query, RopeTable};

use super::{Pruning, select::Scores};
use crate::{
    activations::Activations,
    cache::{LayerCache, NamedTensor},
    config::{NetworkConfig, Part},
    engine::Engine,
    error::Result,
    network::Network,
    sizes::{mul, sum, zeroed},
    spec::RunSpec,
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

/// The tokens of a LazyLLM run.
pub(crate) struct Lazy {
    batch: usize,
    positions: usize,
    layers: usize,
    /// The first layer that may take fewer tokens than there are.
    first: usize,
    /// From layer `first` on.
    sparse: Vec<Sparse>,
    kept: Kept,
    /// Positions of the tokens that each layer took last, ascending, `[batch, tokens]` for each layer from `first` on.
    taken: Vec<Vec<u32>>,
    /// Places of the next layer's tokens among this one's.
    places: Vec<u32>,
    /// Entries of these tokens.
    slots: Vec<u32>,
    /// Position of the token under way.
    new: u32,
    /// Rows of its pass: (sequence, position), the new tokens first.
    rows: Vec<(u32, u32)>,
    queries: Vec<Query>,
}

impl Lazy {
    pub fn new(c: &NetworkConfig, pruning: Pruning, spec: &RunSpec) -> Result<Lazy> {
        let (b, positions, layers) = (spec.batch, spec.positions(), c.layers.len());
        let first = pruning.first_narrowed(layers);
        let (narrowed, tokens) = (layers - first, spec.prompt + 1);
        let sparse = |_| Ok(Sparse { slots: zeroed(mul(&[b, positions]))?, len: vec![0; b] });
        Ok(Lazy {
            batch: b,
            positions,
            layers,
            first,
            sparse: (0..narrowed).map(sparse).collect::<Result<_>>()?,
            kept: Kept {
                depth: zeroed(mul(&[b, tokens]))?,
                hidden: zeroed(mul(&[b, tokens, c.dim]))?,
                tokens,
                dim: c.dim,
            },
            taken: (0..narrowed).map(|_| Vec::with_capacity(b * positions)).collect(),
            places: Vec::with_capacity(b * positions),
            slots: Vec::with_capacity(b * positions),
            new: 0,
            rows: Vec::with_capacity(b * spec.prompt),
            queries: Vec::with_capacity(b * spec.prompt),
        })
    }

    /// Bytes that [`Lazy::new`] allocates: outputs that are kept, and the rest.
    pub fn bytes(c: &NetworkConfig, pruning: Pruning, spec: &RunSpec) -> [u64; 2] {
        let (b, n, layers) = (spec.batch, spec.prompt, c.layers.len());
        let narrowed = layers - pruning.first_narrowed(layers);
        let hidden = mul(&[b, n.saturating_add(1), c.dim, 4]);
        // Slots and tokens of the layers that drop some, places and slots of the moment; depths; rows and queries.
        let sets = mul(&[2 * narrowed + 2, b, spec.positions(), 4]);
        let rows = mul(&[b, n, size_of::<(u32, u32)>() + size_of::<Query>()]);
        [hidden, sum([sets, mul(&[narrowed, b, 4]), mul(&[b, n.saturating_add(1), 4]), rows])]
    }

    /// Forgets all tokens.
    pub fn start(&mut self) {
        self.rows.clear();
        self.kept.depth.fill(self.layers as u32);
        for s in &mut self.sparse {
            s.slots.fill(NONE);
        }
    }

    /// A later token of each sequence sets out.
    pub fn begin(&mut self, position: usize) {
        self.new = position as u32;
        self.rows.clear();
        self.rows.extend((0..self.batch as u32).map(|b| (b, self.new)));
    }

    /// Where the token at a place among those that layer `i` took stands in its sequence.
    pub fn position(&self, i: usize, b: usize, place: usize) -> u32 {
        match i.checked_sub(self.first) {
            Some(j) => self.taken[j][b * self.taken[j].len() / self.batch + place],
            // The layers before the first that drops tokens take all: place and position are the same.
            None => place as u32,
        }
    }

    /// Sets which `keep` tokens layer `i` takes of the `of` that the layer before it took: by the scores, or all of them.
    pub fn take(&mut self, i: usize, of: usize, keep: usize, scores: &mut Scores) {
        if keep < of {
            scores.choose(1, keep, &mut self.places);
        } else {
            self.places.clear();
            self.places.extend((0..self.batch).flat_map(|_| 0..keep as u32));
        }
        let mut here = std::mem::take(&mut self.taken[i - self.first]);
        here.clear();
        let position = |(at, &place): (usize, &u32)| self.position(i - 1, at / keep, place as usize);
        here.extend(self.places.iter().enumerate().map(position));
        self.taken[i - self.first] = here;
    }

    /// Keeps the outputs of the tokens that stop before layer `i`, goes on with the others, and notes the entries that they
    /// will have in it.
    pub fn stop<A: Element>(&mut self, i: usize, act: &mut Activations<A>) {
        let (n, count) = (act.n(), self.places.len() / self.batch);
        if count < n {
            for (b, places) in self.places.chunks_exact(count).enumerate() {
                let mut goes_on = places.iter().peekable();
                for place in 0..n {
                    if goes_on.next_if_eq(&&(place as u32)).is_none() {
                        let at = self.kept.at(b, self.position(i - 1, b, place));
                        self.kept.depth[at] = i as u32;
                        self.kept.save(at, act.row(b * n + place));
                    }
                }
            }
            act.retain(&self.places);
        }
        let s = &mut self.sparse[i - self.first];
        for (b, taken) in self.taken[i - self.first].chunks_exact(count).enumerate() {
            for (slot, &p) in taken.iter().enumerate() {
                s.slots[b * self.positions + p as usize] = slot as u32;
            }
        }
        s.len.fill(count as u32);
    }

    /// Loads the rows that pass layer `i`: of the tokens it takes, those that have passed the layer before it and not yet
    /// itself.
    pub fn revive<A: Element>(&mut self, i: usize, act: &mut Activations<A>) {
        for (r, &(b, p)) in self.rows.iter().enumerate() {
            let at = self.kept.at(b as usize, p);
            self.kept.depth[at] = i as u32;
            self.kept.save(at, act.row(r));
        }
        let taken = &self.taken[i - self.first];
        let count = taken.len() / self.batch;
        self.rows.truncate(self.batch);
        self.queries.clear();
        self.queries.extend((0..self.batch).map(|sequence| Query { sequence, sees: count }));
        for (b, taken) in taken.chunks_exact(count).enumerate() {
            for (place, &p) in taken.iter().enumerate().filter(|(_, p)| **p < self.new) {
                if self.kept.depth[self.kept.at(b, p)] == i as u32 && (p as usize) < self.kept.tokens - 1 {
                    self.rows.push((b as u32, p));
                    self.queries.push(Query { sequence: b, sees: place + 1 });
                }
            }
        }
        let (kept, rows) = (&self.kept, &self.rows);
        let row = |&(b, p): &(u32, u32)| (&kept.hidden[kept.at(b as usize, p) * kept.dim..][..kept.dim], p);
        act.load(rows.iter().map(row));
    }

    /// Layer `i` on the rows loaded: `cache` takes their entries, `gathered` those of all tokens that the layer takes, side
    /// by side.
    #[allow(clippy::too_many_arguments)]
    pub fn layer<A: Element>(
        &mut self,
        e: &Engine,
        (net, i): (&Network, usize),
        act: &mut Activations<A>,
        rope: &RopeTable,
        cache: &mut LayerCache<A>,
        gathered: &mut LayerCache<A>,
    ) -> Result<()> {
        let (sparse, positions) = (&mut self.sparse[i - self.first], self.positions);
        for &(b, p) in &self.rows {
            let b = b as usize;
            sparse.slots[b * positions + p as usize] = sparse.len[b];
            sparse.len[b] += 1;
        }
        let head_dim = cache.k.head_dim();
        net.keys_and_values(e, i, act, rope, |part, rows| {
            let to = if part == Part::Key { &mut cache.k } else { &mut cache.v };
            for (r, &(b, p)) in self.rows.iter().enumerate() {
                let slot = sparse.slots[b as usize * positions + p as usize] as usize;
                for (h, head) in rows.row(r).chunks_exact(head_dim).enumerate() {
                    to.head_mut(b as usize, h).row_mut(slot).copy_from_slice(head);
                }
            }
        })?;
        let taken = &self.taken[i - self.first];
        let count = taken.len() / self.batch;
        let slot = |(at, &p): (usize, &u32)| sparse.slots[at / count * positions + p as usize];
        self.slots.clear();
        self.slots.extend(taken.iter().enumerate().map(slot));
        e.gather(&cache.k, &self.slots, &mut gathered.k)?;
        e.gather(&cache.v, &self.slots, &mut gathered.v)?;
        net.attend_each(e, i, act, rope, gathered, &self.queries)
    }

    /// A pass has gone through all layers: of a later one the new tokens go on, which come first.
    pub fn finish<A: Element>(&mut self, act: &mut Activations<A>) {
        if self.rows.is_empty() {
            return;
        }
        for &(b, p) in &self.rows {
            let at = self.kept.at(b as usize, p);
            self.kept.depth[at] = self.layers as u32;
        }
        act.truncate(self.batch);
    }

    /// The entries that layer `i` read last, of the `len` that there are.
    pub fn dump<A: Element>(&self, i: usize, cache: &LayerCache<A>, len: usize, rope: &RopeTable) -> Vec<NamedTensor> {
        let name = format!("base_cache.{i}");
        let Some(j) = i.checked_sub(self.first) else {
            return cache.dump(&name, len, |_, p| (p, p), rope).into();
        };
        let (taken, slots) = (&self.taken[j], &self.sparse[j].slots);
        let count = taken.len() / self.batch;
        let at = |b: usize, k: usize| {
            let p = taken[b * count + k] as usize;
            (slots[b * self.positions + p] as usize, p)
        };
        let data = taken.iter().map(|p| *p as f32).collect();
        let kept = NamedTensor { name: format!("kept.{i}"), shape: vec![self.batch, count], data };
        cache.dump(&name, count, at, rope).into_iter().chain([kept]).collect()
    }
}
