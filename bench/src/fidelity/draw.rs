//! What is drawn from a seed.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Draws numbers; equal seeds and names give equal ones.
#[derive(Clone, Debug)]
pub struct Draw(ChaCha8Rng);

impl Draw {
    /// For one purpose, called so, of a seed.
    pub fn new(seed: u64, purpose: &str) -> Draw {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..].iter_mut().zip(purpose.bytes()).for_each(|(k, b)| *k = b);
        Draw(ChaCha8Rng::from_seed(key))
    }

    /// A number below `most`, which is not 0.
    pub fn below(&mut self, most: usize) -> usize {
        ((u128::from(self.0.next_u64()) * most as u128) >> 64) as usize
    }

    /// `n` different ones of `all`, in random order; all of them if there are fewer.
    pub fn some<'a, T: ?Sized>(&mut self, all: &[&'a T], n: usize) -> Vec<&'a T> {
        let mut all = all.to_vec();
        let n = n.min(all.len());
        for i in 0..n {
            let j = i + self.below(all.len() - i);
            all.swap(i, j);
        }
        all.truncate(n);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_and_purposes_decide() {
        let of = |seed, purpose| {
            (0..20)
                .map({
                    let mut d = Draw::new(seed, purpose);
                    move |_| d.below(1000)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(of(1, "a"), of(1, "a"));
        assert_ne!(of(1, "a"), of(2, "a"));
        assert_ne!(of(1, "a"), of(1, "b"));
        let words = ["a", "b", "c", "d"];
        let mut some = Draw::new(1, "x").some(&words, 3);
        some.sort_unstable();
        some.dedup();
        assert_eq!((some.len(), Draw::new(1, "x").some(&words, 9).len()), (3, 4));
    }
}
