//! Token pruning: the base network on part of the prompt. The baselines that arXiv 2410.08391 times beside KV
//! prediction, and two rivals that promise the same.
//!
//! In all of them the last token of the prompt is kept, every sequence of a batch keeps tokens of its own but as many as the
//! others, and where two tokens rank alike the earlier one is kept. But for GemFilter, tokens keep their own positions (RoPE).
//! Fractions are whole percents, so that counts are exact: `ceil(fraction * N)` tokens, of SpecPrefill chunks.
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
//!
//! **`SpecPrefill-r`** (arXiv 2502.02789). An auxiliary network reads the prompt and decodes `look_ahead - 1` tokens greedily.
//! That gives every layer `look_ahead` queries: the last position's and these tokens'. A query's attention to the N keys of the
//! prompt alone is pooled (a mean over `pool` neighbours, zeros beyond the ends), and of all layers and heads the largest counts;
//! the mean over the queries is a token's score. Chunks of `chunk` consecutive tokens, of which the last may be short, are kept
//! or dropped whole, by the mean of their tokens: the last chunk, and of the others those that score highest, in all the
//! fraction r. The base runs on their tokens.
//!
//! **`GemFilter-LAYER-COUNT`** (arXiv 2409.17422). The layers 0 to LAYER of the base run on the whole prompt, the last of them as
//! far as its keys and the last token's query. A token's score is the sum over heads of the product of query and key (after
//! RoPE, neither scaled nor through a softmax), pooled as above. The COUNT tokens that score highest, or all if there are no
//! more, are a new prompt, at positions 0, 1, ..., which the whole base reads.

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

/// More tokens than any prompt has, and more queries than anyone decodes ahead.
const MOST: usize = 1 << 24;
const MOST_AHEAD: usize = 1 << 10;

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

/// The numbers of SpecPrefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpecPrefill {
    /// Of the chunks.
    pub keep: Fraction,
    /// Queries that score a token: the prompt's last, and one for each token that is decoded ahead.
    pub look_ahead: usize,
    /// Tokens of a chunk.
    pub chunk: usize,
    /// Width of the window of means.
    pub pool: usize,
}

impl SpecPrefill {
    /// With look-ahead and chunk as its authors have them; the width of the window, of which they name none for all, is ours.
    pub const fn new(keep: Fraction) -> SpecPrefill {
        SpecPrefill { keep, look_ahead: 8, chunk: 32, pool: 13 }
    }

    /// Tokens that are kept of `n`: those of whole chunks, and the last, which may be short.
    fn tokens(self, n: usize) -> usize {
        let chunks = n.div_ceil(self.chunk);
        // The last chunk is kept, and all others are full.
        n - (chunks - self.keep.of(chunks)) * self.chunk
    }
}

/// The numbers of GemFilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemFilter {
    /// The layer that chooses, counted from 0.
    pub layer: usize,
    /// Tokens that it chooses.
    pub count: usize,
    /// Width of the window of means.
    pub pool: usize,
}

impl GemFilter {
    /// With its authors' window.
    pub const fn new(layer: usize, count: usize) -> GemFilter {
        GemFilter { layer, count, pool: 5 }
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
    /// Chunks of the prompt that an auxiliary network attends to.
    Spec(SpecPrefill),
    /// The part of the prompt that one of its layers chooses, read as a prompt of its own.
    Gem(GemFilter),
}

impl Pruning {
    /// Tokens that layer `i` of `layers` works on, of `n`.
    pub fn tokens(self, i: usize, layers: usize, n: usize) -> usize {
        match self {
            Pruning::Random(keep) | Pruning::Static(keep) => keep.of(n),
            Pruning::Spec(p) => p.tokens(n),
            Pruning::Gem(p) => p.count.min(n),
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
            Pruning::Random(_) | Pruning::Static(_) | Pruning::Spec(_) | Pruning::Gem(_) => layers,
            Pruning::Lazy { .. } => (0..layers).find(|&i| self.tokens(i, layers, n) < n).unwrap_or(layers),
        }
    }

    /// Layers of `layers` that run on the whole prompt only to choose tokens.
    pub fn selection_layers(self, layers: usize) -> usize {
        match self {
            Pruning::Static(_) => layers.div_ceil(4),
            Pruning::Gem(p) => (p.layer + 1).min(layers),
            Pruning::Random(_) | Pruning::Lazy { .. } | Pruning::Spec(_) => 0,
        }
    }

    /// Whether another network chooses the tokens.
    pub fn needs_auxiliary(self) -> bool {
        matches!(self, Pruning::Spec(_))
    }

    /// Whether the tokens that are kept stand at new positions, as a prompt of their own.
    pub fn renumbers(self) -> bool {
        matches!(self, Pruning::Gem(_))
    }

    /// Tokens that are kept or dropped together.
    pub fn chunk(self) -> usize {
        if let Pruning::Spec(p) = self { p.chunk } else { 1 }
    }

    /// What the paper of KV prediction takes for the share of the base's FLOPs that are left; none of what it does not time.
    pub fn paper_share(self) -> Option<f64> {
        match self {
            Pruning::Random(keep) => Some(keep.value()),
            Pruning::Static(keep) => Some(0.25 + keep.value()),
            Pruning::Lazy { first: a, last: b } => Some(0.3 + 0.6 * (a.value() + b.value()) / 2.0 + 0.1 * b.value()),
            Pruning::Spec(_) | Pruning::Gem(_) => None,
        }
    }

    /// Checks that it can be done to a network of so many layers, with an auxiliary or without.
    ///
    /// # Errors
    /// [`Error::PruningLayer`], [`Error::PruningNetworks`].
    pub fn check(self, layers: usize, auxiliary: bool) -> Result<()> {
        if let Pruning::Gem(p) = self
            && p.layer >= layers
        {
            return Err(Error::PruningLayer { pruning: self.to_string(), layer: p.layer, layers });
        }
        let problem = match (self.needs_auxiliary(), auxiliary) {
            (true, false) => "an auxiliary network chooses the tokens, and there is none: give one",
            (false, true) => "no auxiliary network has a part in it: leave it out, or take SpecPrefill",
            _ => return Ok(()),
        };
        Err(Error::PruningNetworks { pruning: self.to_string(), problem })
    }

    /// The same with other numbers, where they are given.
    ///
    /// # Errors
    /// [`Error::PruningNumber`]: it has no such number, or not of this size.
    pub fn with(mut self, look_ahead: Option<usize>, chunk: Option<usize>, pool: Option<usize>) -> Result<Pruning> {
        let name = self.to_string();
        let set = |what: &'static str, given: Option<usize>, to: Option<&mut usize>, valid: fn(usize) -> bool| {
            let Some(given) = given else { return Ok(()) };
            match to.filter(|_| valid(given)) {
                Some(to) => *to = given,
                None => return Err(Error::PruningNumber { pruning: name.clone(), what, found: given }),
            }
            Ok(())
        };
        let [a, c, p] = match &mut self {
            Pruning::Spec(s) => [Some(&mut s.look_ahead), Some(&mut s.chunk), Some(&mut s.pool)],
            Pruning::Gem(g) => [None, None, Some(&mut g.pool)],
            Pruning::Random(_) | Pruning::Static(_) | Pruning::Lazy { .. } => [None, None, None],
        };
        set("look-ahead", look_ahead, a, |n| (1..=MOST_AHEAD).contains(&n))?;
        set("chunk", chunk, c, |n| (1..=MOST).contains(&n))?;
        set("pool", pool, p, |n| n <= MOST && n % 2 == 1)?;
        Ok(self)
    }

    /// The name of a system and the pruning behind it: `OE1.1B-L0.75-0.50`.
    pub fn behind(name: &str) -> Option<(&str, Pruning)> {
        name.match_indices('-').find_map(|(at, _)| Some((&name[..at], name[at + 1..].parse().ok()?)))
    }
}

impl fmt::Display for Pruning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = |f: &mut fmt::Formatter<'_>, mark, n: usize, usual| {
            if n == usual { Ok(()) } else { write!(f, "-{mark}{n}") }
        };
        match self {
            Pruning::Random(keep) => write!(f, "RP-{keep}"),
            Pruning::Static(keep) => write!(f, "SP-{keep}"),
            Pruning::Lazy { first, last } => write!(f, "L{first}-{last}"),
            Pruning::Spec(p) => {
                let usual = SpecPrefill::new(p.keep);
                write!(f, "SpecPrefill-{}", p.keep)?;
                other(f, 'a', p.look_ahead, usual.look_ahead)?;
                other(f, 'c', p.chunk, usual.chunk)?;
                other(f, 'p', p.pool, usual.pool)
            }
            Pruning::Gem(p) => {
                write!(f, "GemFilter-{}-{}", p.layer, p.count)?;
                other(f, 'p', p.pool, GemFilter::new(p.layer, p.count).pool)
            }
        }
    }
}

/// A number as it is written, without zeros before it.
fn number(digits: &str) -> Option<usize> {
    let plain = digits == "0" || (!digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit()));
    digits.parse().ok().filter(|n| plain && *n <= MOST)
}

/// Takes numbers off the end of a name, such as `-a4-c16-p5`: those of `marks`, in this order, each of which may be missing.
fn numbers<const N: usize>(mut name: &str, marks: [char; N]) -> (&str, [Option<usize>; N]) {
    let mut found = [None; N];
    for (mark, found) in marks.into_iter().zip(&mut found).rev() {
        if let Some((rest, last)) = name.rsplit_once('-')
            && let Some(n) = last.strip_prefix(mark).and_then(number)
        {
            (name, *found) = (rest, Some(n));
        }
    }
    (name, found)
}

impl FromStr for Pruning {
    type Err = Error;

    /// `RP-0.75`, `SP-0.50`, `L0.75-0.10`, `SpecPrefill-0.40`: fractions with two decimals; `GemFilter-11-1024`. Behind
    /// SpecPrefill `-a4`, `-c16` and `-p5` for other numbers than the usual, behind GemFilter `-p3`.
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
        } else if let Some(rest) = name.strip_prefix("SpecPrefill-") {
            let (keep, [a, c, p]) = numbers(rest, ['a', 'c', 'p']);
            fraction(keep).and_then(|keep| Pruning::Spec(SpecPrefill::new(keep)).with(a, c, p).ok())
        } else if let Some(rest) = name.strip_prefix("GemFilter-") {
            let (rest, [pool]) = numbers(rest, ['p']);
            let both = rest.split_once('-').and_then(|(layer, count)| number(layer).zip(number(count)));
            let both = both.filter(|(_, count)| *count > 0);
            both.and_then(|(layer, count)| Pruning::Gem(GemFilter::new(layer, count)).with(None, None, pool).ok())
        } else {
            let parts = name.strip_prefix('L').and_then(|s| s.split_once('-'));
            let both = parts.and_then(|(a, b)| fraction(a).zip(fraction(b)));
            both.filter(|(a, b)| a >= b).map(|(first, last)| Pruning::Lazy { first, last })
        };
        parsed.ok_or_else(|| Error::Pruning { name: name.to_owned() })
    }
}

/// What ranks the tokens, but those of [`Pruning::Random`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranking {
    /// Attention, in the way of the pruning.
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
    /// The network that chooses them, of [`Pruning::Spec`].
    pub aux: Option<Arc<Network>>,
    /// On which tokens.
    pub pruning: Pruning,
    /// Who chooses them.
    pub ranking: Ranking,
}

impl Pruned {
    /// Ranked by attention, without an auxiliary.
    pub fn new(base: Arc<Network>, pruning: Pruning) -> Pruned {
        Pruned { base, aux: None, pruning, ranking: Ranking::Attention }
    }
}
