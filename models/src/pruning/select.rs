//! Scores of tokens, and the choice by them.

use ttft_kernels::Element;

use super::Ranking;
use crate::{
    activations::Activations,
    cache::LayerCache,
    config::NetworkConfig,
    engine::Engine,
    error::Result,
    network::Network,
    sizes::{mul, sum, zeroed},
};

/// Scores of the tokens of a batch, and the buffers that making and reading them takes.
pub(crate) struct Scores {
    ranking: Ranking,
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
    /// Places of one sequence, while they are sorted.
    order: Vec<u32>,
}

impl Scores {
    /// For at most `len` tokens of each sequence.
    pub fn new(c: &NetworkConfig, ranking: Ranking, batch: usize, len: usize) -> Result<Scores> {
        Ok(Scores {
            ranking,
            batch,
            seeds: zeroed(batch as u64)?,
            len: 0,
            open: false,
            scores: zeroed((batch * len) as u64)?,
            weights: zeroed(mul(&[batch, heads(c), len]))?,
            order: Vec::with_capacity(len),
        })
    }

    /// Bytes that [`Scores::new`] allocates.
    pub fn bytes(c: &NetworkConfig, batch: usize, len: usize) -> u64 {
        sum([mul(&[batch, 8]), mul(&[batch, len, 4]), mul(&[batch, heads(c), len, 4]), mul(&[len, 4])])
    }

    /// Takes new prompts, `[batch * prompt]`: what is ranked by a seed is ranked alike in equal prompts.
    pub fn prompts(&mut self, ids: &[u32]) {
        self.open = false;
        if self.ranking == Ranking::Seeded {
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
        }
    }

    /// Adds how much the last row of each sequence attended to the first `len` entries of `cache` in layer `i`, which has just
    /// run, averaged over heads; or, if so ranked, what [`seeded`] says of `position(b, entry)`.
    pub fn add<A: Element>(
        &mut self,
        e: &Engine,
        (net, i): (&Network, usize),
        act: &Activations<A>,
        (cache, len): (&LayerCache<A>, usize),
        position: impl Fn(usize, usize) -> u32,
    ) -> Result<()> {
        if self.ranking == Ranking::Seeded {
            self.add_seeded(len, position);
            return Ok(());
        }
        self.begin(len);
        let heads = net.config().layers[i].query_heads;
        let weights = &mut self.weights[..self.batch * heads * len];
        net.last_weights(e, i, act, cache, len, weights)?;
        let scale = 1.0 / heads as f32;
        for (scores, weights) in self.scores.chunks_exact_mut(len).zip(weights.chunks_exact(heads * len)) {
            for head in weights.chunks_exact(len) {
                scores.iter_mut().zip(head).for_each(|(s, w)| *s += w * scale);
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
    /// always, then the highest, of equals the earlier.
    pub fn choose(&mut self, count: usize, places: &mut Vec<u32>) {
        let (len, others) = (self.len, count - 1);
        self.open = false;
        places.clear();
        for scores in self.scores[..self.batch * len].chunks_exact(len) {
            self.order.clear();
            self.order.extend(0..len as u32 - 1);
            if others < self.order.len() {
                let score = |i: &u32| scores[*i as usize];
                self.order.select_nth_unstable_by(others, |a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
                self.order.truncate(others);
                self.order.sort_unstable();
            }
            places.extend(self.order.iter().copied().chain([len as u32 - 1]));
        }
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
            ranking: Ranking::Attention,
            batch: 2,
            seeds: Vec::new(),
            len: 5,
            open: true,
            scores,
            weights: Vec::new(),
            order: Vec::new(),
        };
        let mut places = Vec::new();
        for (count, expected) in [
            (1, vec![4, 4]),
            (2, vec![1, 4, 0, 4]),
            (3, vec![1, 2, 4, 0, 1, 4]),
            (4, vec![1, 2, 3, 4, 0, 1, 2, 4]),
            (5, vec![0, 1, 2, 3, 4, 0, 1, 2, 3, 4]),
        ] {
            s.choose(count, &mut places);
            assert_eq!(places, expected, "{count}");
        }
    }
}
