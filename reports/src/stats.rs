//! Statistics of small samples of times.
//!
//! Every function says what it does with 0, 1 and 2 samples; none invents a figure that the samples cannot carry.
//! Randomness is seeded: the same record always gives the same report.
//!
//! Intervals ask for a confidence of [`LEVEL`]. The range of n samples covers the median of their distribution with
//! probability 1 - 2^(1-n) only (each side is missed if all n lie beyond it), so below 6 samples the interval *is* that
//! range, and [`Interval::level`] says how little it promises: 75% for 3 samples. Below 3 there is none.
//!
//! A plain percentile bootstrap of few samples is too narrow: its 95% cover the median of 7 samples 88 times in 100. So
//! its tails are shortened to those of Student's t (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015,
//! expanded percentile interval); with many samples the two are the same.

pub mod simulate;
pub mod student;

pub use student::t_estimate;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Confidence asked for.
pub const LEVEL: f64 = 0.95;
/// Resamples of a bootstrap.
pub const RESAMPLES: usize = 2000;
/// From here on, intervals come from ranks directly: the bootstrap would give the same, slowly.
const MANY: usize = 2000;
const SEED: u64 = 0x7474_6674;

/// A confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Confidence it carries, at most [`LEVEL`].
    pub level: f64,
}

impl Interval {
    /// Whether `value` lies inside, ends included.
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }

    /// Both ends multiplied by a positive factor.
    pub fn scaled(&self, factor: f64) -> Interval {
        Interval { low: self.low * factor, high: self.high * factor, level: self.level }
    }
}

/// A figure with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The figure itself.
    pub value: f64,
    /// Its interval; `None` if there are too few samples.
    pub interval: Option<Interval>,
    /// Samples, or pairs of samples, behind it.
    pub samples: usize,
}

impl Estimate {
    /// Width of the interval relative to the figure.
    pub fn spread(&self) -> Option<f64> {
        self.interval.map(|i| (i.high - i.low) / self.value)
    }

    /// Figure and interval multiplied by a positive factor.
    pub fn scaled(&self, factor: f64) -> Estimate {
        Estimate { value: self.value * factor, interval: self.interval.map(|i| i.scaled(factor)), ..*self }
    }

    /// `dividend` over this figure; both are positive.
    pub fn over(&self, dividend: f64) -> Estimate {
        let inverse = |i: Interval| Interval { low: dividend / i.high, high: dividend / i.low, level: i.level };
        Estimate { value: dividend / self.value, interval: self.interval.map(inverse), ..*self }
    }
}

/// The median; `None` of no samples. Of an even number, the mean of the two in the middle.
pub fn median(samples: &[f64]) -> Option<f64> {
    (!samples.is_empty()).then(|| median_of(&mut samples.to_vec()))
}

fn median_of(samples: &mut [f64]) -> f64 {
    let middle = samples.len() / 2;
    let even = samples.len().is_multiple_of(2);
    let (below, &mut upper, _) = samples.select_nth_unstable_by(middle, f64::total_cmp);
    if even { (below.iter().copied().fold(f64::NEG_INFINITY, f64::max) + upper) / 2.0 } else { upper }
}

/// Median absolute deviation from the median, unscaled; `None` below 2 samples.
pub fn mad(samples: &[f64]) -> Option<f64> {
    if samples.len() < 2 {
        return None;
    }
    let centre = median(samples)?;
    median(&samples.iter().map(|x| (x - centre).abs()).collect::<Vec<_>>())
}

/// The quantile at `q` in 0..=1, linear between ranks; `None` if no sample would be expected beyond it, that is below
/// 1/q and 1/(1-q) samples: the 90th percentile needs 10, a quartile 4. The median needs 1; 0 and 1, the ends of the
/// sample itself, need 1.
pub fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let tail = q.min(1.0 - q);
    let end = tail == 0.0;
    let median = q == 0.5;
    // A hair of slack: 10 x (1 - 0.9) is just below 1.
    let carried = end || median || samples.len() as f64 * tail >= 1.0 - 1e-9;
    if samples.is_empty() || !(0.0..=1.0).contains(&q) || !carried {
        return None;
    }
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Some(interpolate(&sorted, q))
}

fn interpolate(sorted: &[f64], q: f64) -> f64 {
    let rank = q * (sorted.len() - 1) as f64;
    let (low, part) = (rank.floor() as usize, rank.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + part * (sorted[high] - sorted[low])
}

/// Confidence with which the range of `n` samples covers their distribution's median.
fn range_level(n: usize) -> f64 {
    1.0 - 2f64.powi(1 - n.min(1000) as i32)
}

/// The median with an expanded percentile bootstrap interval. `None` of no samples; no interval of 1 or 2.
pub fn median_estimate(samples: &[f64]) -> Option<Estimate> {
    let value = median(samples)?;
    let n = samples.len();
    let interval = match n {
        ..3 => None,
        3..6 => Some(range(samples, range_level(n))),
        6..MANY => {
            let mut rng = ChaCha8Rng::seed_from_u64(SEED);
            let mut resample = vec![0.0; n];
            let draws = (0..RESAMPLES).map(|_| draw_median(samples, &mut resample, &mut rng)).collect();
            Some(percentile(draws, n))
        }
        MANY.. => {
            // Normal approximation of the binomial ranks.
            let half = 1.96 * (n as f64).sqrt() / 2.0;
            let mut sorted = samples.to_vec();
            sorted.sort_unstable_by(f64::total_cmp);
            let (low, high) = ((n as f64 / 2.0 - half) as usize, (n as f64 / 2.0 + half).ceil() as usize);
            Some(Interval { low: sorted[low], high: sorted[high], level: LEVEL })
        }
    };
    Some(Estimate { value, interval, samples: n })
}

fn range(samples: &[f64], level: f64) -> Interval {
    let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
    let high = samples.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Interval { low, high, level }
}

fn draw_median(samples: &[f64], resample: &mut [f64], rng: &mut ChaCha8Rng) -> f64 {
    for slot in resample.iter_mut() {
        // Fixed-point multiply: the bias is below n / 2^32.
        *slot = samples[((u64::from(rng.next_u32()) * samples.len() as u64) >> 32) as usize];
    }
    median_of(resample)
}

/// The interval of the draws of a bootstrap over `samples` samples.
fn percentile(mut draws: Vec<f64>, samples: usize) -> Interval {
    draws.sort_unstable_by(f64::total_cmp);
    let tail = tail(samples);
    Interval { low: interpolate(&draws, tail), high: interpolate(&draws, 1.0 - tail), level: LEVEL }
}

/// Share of the draws left out at either end: the normal tail beyond `t sqrt(n/(n-1))`, where t is Student's quantile
/// of n - 1 degrees of freedom.
fn tail(n: usize) -> f64 {
    let (z, freedom) = (1.959_964f64, (n.max(2) - 1) as f64);
    // Cornish-Fisher expansion: from 5 degrees of freedom on, within 0.3%.
    let t = z
        + (z.powi(3) + z) / (4.0 * freedom)
        + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * freedom.powi(2))
        + (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / (384.0 * freedom.powi(3));
    libm::erfc(t * ((freedom + 1.0) / freedom / 2.0).sqrt()) / 2.0
}

/// How many times `slow` takes the time of `fast`, from pairs taken in the same rounds: the median of the rounds'
/// ratios, so that what slows a whole round cancels. `None` of no pairs; no interval of 1 or 2.
pub fn paired_ratio(pairs: &[(f64, f64)]) -> Option<Estimate> {
    median_estimate(&pairs.iter().map(|(slow, fast)| slow / fast).collect::<Vec<_>>())
}

/// How many times `slow` takes the time of `fast`, from independent samples: the ratio of medians, both resampled.
/// `None` if either is empty; no interval if either has 1 or 2. Below 6 the interval spans the extremes, at the
/// confidence that both ranges carry together.
pub fn unpaired_ratio(slow: &[f64], fast: &[f64]) -> Option<Estimate> {
    let value = median(slow)? / median(fast)?;
    let fewest = slow.len().min(fast.len());
    let interval = match fewest {
        ..3 => None,
        3..6 => {
            let level = range_level(slow.len()) + range_level(fast.len()) - 1.0;
            let (slow, fast) = (range(slow, 0.0), range(fast, 0.0));
            Some(Interval { low: slow.low / fast.high, high: slow.high / fast.low, level })
        }
        _ => {
            let (slow, fast) = (thinned(slow), thinned(fast));
            let mut rng = ChaCha8Rng::seed_from_u64(SEED);
            let (mut a, mut b) = (vec![0.0; slow.len()], vec![0.0; fast.len()]);
            let draw = |_| draw_median(&slow, &mut a, &mut rng) / draw_median(&fast, &mut b, &mut rng);
            Some(percentile((0..RESAMPLES).map(draw).collect(), slow.len().min(fast.len())))
        }
    };
    Some(Estimate { value, interval, samples: fewest })
}

/// At most [`MANY`] samples, evenly taken: the interval is then wider than it could be, never narrower.
fn thinned(samples: &[f64]) -> Vec<f64> {
    samples.iter().copied().step_by(samples.len().div_ceil(MANY)).collect()
}

/// Mann-Whitney U test of two independent samples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MannWhitney {
    /// Pairs (a, b) with a > b; ties count half.
    pub u: f64,
    /// Two-sided p-value: exact for small samples without ties, else normal with ties and continuity corrected.
    pub p: f64,
    /// u / (number of pairs): the chance that a sample of the first exceeds one of the second.
    pub superiority: f64,
}

/// Mann-Whitney U test; `None` if either sample is empty. With 1 or 2 samples it is defined, and cannot reach p < 0.1.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> Option<MannWhitney> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let mut all: Vec<(f64, bool)> = a.iter().map(|&x| (x, true)).chain(b.iter().map(|&x| (x, false))).collect();
    all.sort_unstable_by(|x, y| x.0.total_cmp(&y.0));
    let (mut rank_sum, mut ties, mut start) = (0.0, 0.0, 0);
    for run in all.chunk_by(|x, y| x.0 == y.0) {
        let t = run.len() as f64;
        let rank = start as f64 + (t + 1.0) / 2.0;
        rank_sum += rank * run.iter().filter(|x| x.1).count() as f64;
        ties += t * t * t - t;
        start += run.len();
    }
    let (m, n) = (a.len() as f64, b.len() as f64);
    let u = rank_sum - m * (m + 1.0) / 2.0;
    let p = if ties == 0.0 && a.len() <= 20 && b.len() <= 20 {
        exact_p(a.len(), b.len(), u.min(m * n - u).round() as usize)
    } else {
        let total = m + n;
        let variance = m * n / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)));
        let distance = ((u - m * n / 2.0).abs() - 0.5).max(0.0);
        if variance > 0.0 { libm::erfc(distance / (2.0 * variance).sqrt()) } else { 1.0 }
    };
    Some(MannWhitney { u, p, superiority: u / (m * n) })
}

/// Two-sided exact p-value: the share of all orders whose U is at most `u` or at least m n - u.
fn exact_p(m: usize, n: usize, u: usize) -> f64 {
    // counts[k] is the number of ways to reach U = k: the Gaussian binomial coefficient, factor by factor.
    let mut counts = vec![0.0f64; m * n + 1];
    counts[0] = 1.0;
    for i in 1..=m {
        for k in (n + i..counts.len()).rev() {
            counts[k] -= counts[k - n - i];
        }
        for k in i..counts.len() {
            counts[k] += counts[k - i];
        }
    }
    let total: f64 = counts.iter().sum();
    (2.0 * counts[..=u].iter().sum::<f64>() / total).min(1.0)
}

/// The geometric mean; `None` of no values or if one is not positive.
pub fn geometric_mean(values: &[f64]) -> Option<f64> {
    let positive = !values.is_empty() && values.iter().all(|v| *v > 0.0 && v.is_finite());
    positive.then(|| (values.iter().map(|v| v.ln()).sum::<f64>() / values.len() as f64).exp())
}

#[cfg(test)]
mod tests;
