//! Token pruning: the base network on part of the prompt. The baselines that arXiv 2410.08391 times beside KV
//! prediction.
//!
//! In all of them the last token of the prompt is kept, tokens keep their own positions (RoPE), every sequence of a batch
//! keeps tokens of its own but as many as the others, `ceil(fraction * N)`, and where two tokens rank alike the earlier
//! one is kept. Fractions are whole percents, so that counts are exact.
//!
//! **`RP-r`, random.** A pseudo-random score for each position, seeded by the ids of the prompt and so the same in every
//! run, ranks the tokens; the base runs on the fraction r that ranks highest, and later tokens attend to those alone.
//!
//! **`SP-r`, static.** The first `ceil(L / 4)` of the L layers run on the whole prompt. A token's score is the last token's
//! attention to it, averaged over the heads of a layer and summed over these layers. The base then runs from layer 0 on
//! the fraction r that scores highest.
//!
//! **`La-b`, lazy** (LazyLLM, arXiv 2407.14057). With `x = (i + 1/2) / L` the depth of layer i, the layer works on the
//! fraction `rho(x)` of all T tokens so far, `n_i = ceil(rho(x) T)`: all of them below `x = 0.3`, then a fraction that falls
//! linearly from a at 0.3 to b at 0.9, and b from there on; layer 0 always takes all. The paper's formula for its share of
//! the base's FLOPs, `0.3 + 0.6 (a + b) / 2 + 0.1 b`, is the integral of `rho`.
//!
//! * *Ranking.* Layer i's tokens A_i are, of A_{i-1}, the `n_i` to which the last token attended most in layer i-1,
//!   averaged over heads. The last token is always among them. Where `n_i = n_{i-1}`, nothing is ranked.
//! * *First token.* The tokens of A_i pass layer i and attend to one another, causally. The output of layer i-1 is kept of
//!   a token that stops there (LazyLLM's Aux Cache).
//! * *Later tokens.* The new token passes every layer. A_i is chosen anew, out of all tokens so far: the prompt's, the
//!   generated ones, the new one. Those of A_i that have passed layer i before are read from its cache. Those that stopped
//!   right before it are revived: they pass layer i from the output that was kept, attend to the tokens of A_i up to their
//!   own position, and are in its cache from then on. No token passes a layer twice.

pub(crate) mod lazy;
pub(crate) mod select;

use std::{fmt, str::FromStr, sync::Arc};

use crate::{
    error::{Error, Result},
    network::Network,
};

/// Depth, in percent, where LazyLLM starts to drop tokens, and where it stops to drop more.
const START: usize = 30;
const STOP: usize = 90;

/// A fraction of 0.01 to 1.00.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fraction(u8);

impl Fraction {
    /// Of whole percents, 1 to 100.
    pub const fn percent(p: u8) -> Option<Fraction> {
        if p >= 1 && p <= 100 { Some(Fraction(p)) } else { None }
    }

    /// Its value.
    pub fn value(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// This fraction of `n`, rounded up.
    pub fn of(self, n: usize) -> usize {
        n.saturating_mul(self.0.into()).div_ceil(100)
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 / 100, self.0 % 100)
    }
}

/// Which tokens a network works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pruning {
    /// A random part of the prompt.
    Random(Fraction),
    /// The part of the prompt that its end attends to in the first quarter of the layers.
    Static(Fraction),
    /// LazyLLM: fewer from layer to layer.
    Lazy {
        /// Kept at 30% of depth.
        first: Fraction,
        /// Kept from 90% of depth on; at most `first`.
        last: Fraction,
    },
}

impl Pruning {
    /// Tokens that layer `i` of `layers` works on, of `n`.
    pub fn tokens(self, i: usize, layers: usize, n: usize) -> usize {
        match self {
            Pruning::Random(keep) | Pruning::Static(keep) => keep.of(n),
            Pruning::Lazy { first, last } => {
                // Depth in 1/(2 L), and its place between start and stop, both in percent.
                let (depth, whole) = ((2 * i + 1) * 100, 2 * layers);
                if i == 0 || depth < START * whole {
                    return n;
                }
                let span = (STOP - START) * whole;
                let past = (depth - START * whole).min(span);
                let parts = usize::from(first.0) * (span - past) + usize::from(last.0) * past;
                n.saturating_mul(parts).div_ceil(100 * span)
            }
        }
    }

    /// The first of `layers` layers that may work on fewer tokens than the one before it, or their number: never layer 0,
    /// since nothing ranks tokens before it.
    pub fn first_narrowed(self, layers: usize) -> usize {
        // A length at which every fraction below 1 drops something.
        let n = 1 << 20;
        match self {
            Pruning::Random(_) | Pruning::Static(_) => layers,
            Pruning::Lazy { .. } => (0..layers).find(|&i| self.tokens(i, layers, n) < n).unwrap_or(layers),
        }
    }

    /// Layers of `layers` that run on the whole prompt only to choose tokens.
    pub fn selection_layers(self, layers: usize) -> usize {
        match self {
            Pruning::Static(_) => layers.div_ceil(4),
            Pruning::Random(_) | Pruning::Lazy { .. } => 0,
        }
    }

    /// The paper's formula for the share of the base's FLOPs that are left.
    pub fn paper_share(self) -> f64 {
        match self {
            Pruning::Random(keep) => keep.value(),
            Pruning::Static(keep) => 0.25 + keep.value(),
            Pruning::Lazy { first: a, last: b } => 0.3 + 0.6 * (a.value() + b.value()) / 2.0 + 0.1 * b.value(),
        }
    }
}

impl fmt::Display for Pruning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pruning::Random(keep) => write!(f, "RP-{keep}"),
            Pruning::Static(keep) => write!(f, "SP-{keep}"),
            Pruning::Lazy { first, last } => write!(f, "L{first}-{last}"),
        }
    }
}

impl FromStr for Pruning {
    type Err = Error;

    /// `RP-0.75`, `SP-0.50`, `L0.75-0.10`: fractions with two decimals.
    fn from_str(name: &str) -> Result<Pruning> {
        let fraction = |s: &str| {
            let percent = s.split_once('.').filter(|(whole, cents)| whole.len() == 1 && cents.len() == 2)?;
            let digits = [percent.0, percent.1].concat();
            let all = digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|_| all).and_then(Fraction::percent)
        };
        let parsed = if let Some(keep) = name.strip_prefix("RP-") {
            fraction(keep).map(Pruning::Random)
        } else if let Some(keep) = name.strip_prefix("SP-") {
            fraction(keep).map(Pruning::Static)
        } else {
            let parts = name.strip_prefix('L').and_then(|s| s.split_once('-'));
            let both = parts.and_then(|(a, b)| fraction(a).zip(fraction(b)));
            both.filter(|(a, b)| a >= b).map(|(first, last)| Pruning::Lazy { first, last })
        };
        parsed.ok_or_else(|| Error::Pruning { name: name.to_owned() })
    }
}

/// What ranks the tokens of [`Pruning::Static`] and [`Pruning::Lazy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranking {
    /// The attention of the last token.
    Attention,
    /// The scores of [`Pruning::Random`]: the same in every precision and on every machine, so that results can be
    /// compared where rounding could exchange two tokens that rank almost alike.
    Seeded,
}

/// A network that works on part of its tokens.
#[derive(Clone, Debug)]
pub struct Pruned {
    /// The network.
    pub base: Arc<Network>,
    /// On which tokens.
    pub pruning: Pruning,
    /// Who chooses them.
    pub ranking: Ranking,
}

impl Pruned {
    /// Ranked by attention.
    pub fn new(base: Arc<Network>, pruning: Pruning) -> Pruned {
        Pruned { base, pruning, ranking: Ranking::Attention }
    }
}
