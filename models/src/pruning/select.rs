//! Scores of tokens, and the choice by them.

use ttft_kernels::{Element, Join};

use super::{Pruned, Pruning, Ranking};
use crate::{
    activations::Activations,
    cache::LayerCache,
    config::NetworkConfig,
    engine::Engine,
    error::Result,
    network::Network,
    sizes::{mul, sum, zeroed},
};

/// What makes a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A pseudo-random number.
    Seeded,
    /// The mean of the attention of all heads, summed over layers.
    Mean,
    /// The products of queries and keys, pooled and summed over heads.
    Products { pool: usize },
    /// The attention, pooled, of the head and layer where it is largest; the mean of that over so many queries.
    Largest { pool: usize, queries: usize },
}

impl Rule {
    /// Of a system.
    pub fn of(p: &Pruned) -> Rule {
        match (p.ranking, p.pruning) {
            (Ranking::Seeded, _) | (_, Pruning::Random(_)) => Rule::Seeded,
            (Ranking::Attention, Pruning::Static(_) | Pruning::Lazy { .. }) => Rule::Mean,
            (Ranking::Attention, Pruning::Gem(p)) => Rule::Products { pool: p.pool },
            (Ranking::Attention, Pruning::Spec(p)) => Rule::Largest { pool: p.pool, queries: p.look_ahead },
        }
    }
}

/// Scores of the tokens of a batch, and the buffers that making and reading them takes.
pub(crate) struct Scores {
    rule: Rule,
    batch: usize,
    /// Of each sequence, for scores that are not attention.
    seeds: Vec<u64>,
    /// Tokens of each sequence that are scored.
    len: usize,
    /// Whether the scores wait for a choice by them.
    open: bool,
    /// `[batch, len]`.
    scores: Vec<f32>,
    /// Attention by head, `[batch, H, len]`.
    weights: Vec<f32>,
    /// What one query attends to most, of [`Rule::Largest`], `[batch, len]`.
    largest: Vec<f32>,
    /// Scores of the chunks of one sequence, where there are any.
    chunks: Vec<f32>,
    /// Places of one sequence, while they are sorted.
    order: Vec<u32>,
}

impl Scores {
    /// For at most `len` tokens of each sequence, by the layers of `c`.
    pub fn new(c: &NetworkConfig, pruning: Pruning, rule: Rule, batch: usize, len: usize) -> Result<Scores> {
        let [largest, chunks] = extra(pruning, batch, len);
        Ok(Scores {
            rule,
            batch,
            seeds: zeroed(batch as u64)?,
            len: 0,
            open: false,
            scores: zeroed((batch * len) as u64)?,
            weights: zeroed(mul(&[batch, heads(c), len]))?,
            largest: zeroed(largest)?,
            chunks: Vec::with_capacity(chunks as usize),
            order: Vec::with_capacity(len),
        })
    }

    /// Bytes that [`Scores::new`] allocates.
    pub fn bytes(c: &NetworkConfig, pruning: Pruning, batch: usize, len: usize) -> u64 {
        let extra = sum(extra(pruning, batch, len)).saturating_mul(4);
        sum([mul(&[batch, 8]), mul(&[batch, len, 4]), mul(&[batch, heads(c), len, 4]), mul(&[len, 4]), extra])
    }

    /// Takes new prompts, `[batch * prompt]`: what is ranked by a seed is ranked alike in equal prompts.
    pub fn prompts(&mut self, ids: &[u32]) {
        self.open = false;
        if self.rule == Rule::Seeded {
            let seed = |prompt: &[u32]| prompt.iter().fold(0, |seed, id| mix(seed ^ u64::from(*id)));
            let seeds = ids.chunks_exact(ids.len() / self.batch).map(seed);
            self.seeds.iter_mut().zip(seeds).for_each(|(to, seed)| *to = seed);
        }
    }

    /// Scores `len` tokens of each sequence: starts over after a choice.
    fn begin(&mut self, len: usize) {
        if !std::mem::replace(&mut self.open, true) {
            self.len = len;
            self.scores[..self.batch * len].fill(0.0);
            self.largest.fill(0.0);
        }
    }

    /// Adds what the last row of each sequence says of the first `len` entries of `cache` in layer `i`, which has just run; or, if
    /// so ranked, what [`seeded`] says of `position(b, entry)`.
    pub fn add<A: Element>(
        &mut self,
        e: &Engine,
        (net, i): (&Network, usize),
        act: &Activations<A>,
        (cache, len): (&LayerCache<A>, usize),
        position: impl Fn(usize, usize) -> u32,
    ) -> Result<()> {
        if self.rule == Rule::Seeded {
            self.add_seeded(len, position);
            return Ok(());
        }
        self.begin(len);
        let heads = net.config().layers[i].query_heads;
        let scores = &mut self.scores[..self.batch * len];
        let weights = &mut self.weights[..self.batch * heads * len];
        match self.rule {
            Rule::Seeded => unreachable!("done above"),
            Rule::Mean => {
                net.last_weights(e, i, act, cache, len, weights)?;
                let scale = 1.0 / heads as f32;
                for (scores, weights) in scores.chunks_exact_mut(len).zip(weights.chunks_exact(heads * len)) {
                    for head in weights.chunks_exact(len) {
                        scores.iter_mut().zip(head).for_each(|(s, w)| *s += w * scale);
                    }
                }
            }
            Rule::Products { pool } => {
                net.last_scores(e, i, act, cache, len, weights)?;
                e.pooled(weights, len, pool, Join::Sum, scores)?;
            }
            Rule::Largest { pool, queries } => {
                net.last_weights(e, i, act, cache, len, weights)?;
                let largest = &mut self.largest[..self.batch * len];
                e.pooled(weights, len, pool, Join::Largest, largest)?;
                // The last layer ends a query.
                if i + 1 == net.config().layers.len() {
                    let share = 1.0 / queries as f32;
                    scores.iter_mut().zip(&mut *largest).for_each(|(s, w)| *s += *w * share);
                    largest.fill(0.0);
                }
            }
        }
        Ok(())
    }

    /// Adds what [`seeded`] says.
    pub fn add_seeded(&mut self, len: usize, position: impl Fn(usize, usize) -> u32) {
        self.begin(len);
        for (b, scores) in self.scores[..self.batch * self.len].chunks_exact_mut(self.len).enumerate() {
            scores.iter_mut().enumerate().for_each(|(i, s)| *s += seeded(self.seeds[b], position(b, i)));
        }
    }

    /// The places of the `count` tokens of each sequence that score highest, ascending, `[batch * count]`: the last one
    /// always, then the highest, of equals the earlier. Chunks of `chunk` tokens, of which the last may be short, are one by the
    /// mean of their scores; `count` is so many whole chunks.
    pub fn choose(&mut self, chunk: usize, count: usize, places: &mut Vec<u32>) {
        let len = self.len;
        self.open = false;
        places.clear();
        let all = len.div_ceil(chunk);
        // Chunks besides the last.
        let others = (count - (len - (all - 1) * chunk)) / chunk;
        for scores in self.scores[..self.batch * len].chunks_exact(len) {
            let scores = if chunk == 1 {
                scores
            } else {
                let mean = |s: &[f32]| s.iter().sum::<f32>() / s.len() as f32;
                self.chunks.clear();
                self.chunks.extend(scores.chunks(chunk).map(mean));
                &self.chunks
            };
            self.order.clear();
            self.order.extend(0..all as u32 - 1);
            if others < self.order.len() {
                let score = |i: &u32| scores[*i as usize];
                self.order.select_nth_unstable_by(others, |a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
                self.order.truncate(others);
                self.order.sort_unstable();
            }
            let kept = self.order.iter().copied().chain([all as u32 - 1]);
            places.extend(kept.flat_map(|c| c * chunk as u32..((c as usize + 1) * chunk).min(len) as u32));
        }
    }

    /// The scores of the last choice, `[batch, len]`.
    pub fn last(&self) -> &[f32] {
        &self.scores[..self.batch * self.len]
    }
}

/// Elements of the buffers that a pruning needs beside the common ones: what a query attends to most, and scores of chunks.
fn extra(pruning: Pruning, batch: usize, len: usize) -> [u64; 2] {
    match pruning {
        Pruning::Spec(p) => [mul(&[batch, len]), len.div_ceil(p.chunk) as u64],
        _ => [0, 0],
    }
}

fn heads(c: &NetworkConfig) -> usize {
    c.layers.iter().map(|l| l.query_heads).max().unwrap_or(0)
}

/// A score in [0, 1) for a position, the same everywhere.
fn seeded(seed: u64, position: u32) -> f32 {
    (mix(seed ^ u64::from(position)) >> 40) as f32 / (1u64 << 24) as f32
}

/// SplitMix64's step.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_and_the_highest_are_chosen_and_of_equals_the_earlier() {
        let scores = vec![0.1, 0.5, 0.5, 0.2, 0.0, 0.9, 0.3, 0.3, 0.3, 0.0];
        let mut s = Scores {
            rule: Rule::Mean,
            batch: 2,
            seeds: Vec::new(),
            len: 5,
            open: true,
            scores,
            weights: Vec::new(),
            largest: Vec::new(),
            chunks: Vec::new(),
            order: Vec::new(),
        };
        let mut places = Vec::new();
        for (chunk, count, expected) in [
            (1, 1, vec![4, 4]),
            (1, 2, vec![1, 4, 0, 4]),
            (1, 3, vec![1, 2, 4, 0, 1, 4]),
            (1, 4, vec![1, 2, 3, 4, 0, 1, 2, 4]),
            (1, 5, vec![0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
            // Pairs and what is left; a chunk longer than the sequence.
            (2, 1, vec![4, 4]),
            (2, 3, vec![2, 3, 4, 0, 1, 4]),
            (2, 5, vec![0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
            (3, 2, vec![3, 4, 3, 4]),
            (9, 5, vec![0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
        ] {
            s.choose(chunk, count, &mut places);
            assert_eq!(places, expected, "{chunk} {count}");
        }
    }
}
