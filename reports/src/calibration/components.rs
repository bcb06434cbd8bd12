//! Variance components of nested values: rounds in processes in occasions, by the method of moments.

use serde::{Deserialize, Serialize};

use crate::{
    decide::Spread,
    stats::{
        LEVEL,
        student::{chi_square_factors, variance},
    },
};

#[cfg(test)]
use schemars::JsonSchema;

/// A standard deviation of the logarithm with its 95% interval: 0.03 is 3%.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Deviation {
    /// The estimate; 0 if the level above it explains everything.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Degrees of freedom.
    pub freedom: f64,
}

/// How far occasions of some distance in time lie apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Lag {
    /// Such as `about 5 min`.
    pub name: String,
    /// Pairs of occasions at that distance.
    pub pairs: usize,
    /// Mean distance in seconds.
    pub seconds: f64,
    /// Standard deviation of one occasion's mean that their differences show: root of half the mean square.
    pub deviation: f64,
}

/// The levels of one logarithm.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Components {
    /// Rounds within a process.
    pub rounds: Deviation,
    /// Medians of the processes of one occasion, as they are seen: with what their few rounds leave.
    pub medians: Deviation,
    /// Processes within an occasion, without the part of their rounds.
    pub processes: Deviation,
    /// Occasions, without the part of their processes.
    pub occasions: Deviation,
    /// By distance in time; empty if the starts are unknown.
    pub lags: Vec<Lag>,
    /// Linear trend over the whole span, relative change in an hour; null if the starts are unknown.
    pub trend_per_hour: Option<f64>,
}

impl Components {
    /// What a comparison takes from it.
    pub fn spread(&self) -> Spread {
        Spread { processes: self.medians.value, occasions: self.occasions.value, freedom: self.occasions.freedom }
    }
}

/// The variance of a median of normal values over that of their mean, for many of them.
const MEDIAN: f64 = std::f64::consts::FRAC_PI_2;

/// Components of processes' values (`values`, one list an occasion), of the deviations of their rounds, of which each
/// process has `rounds`, and the occasions' starts. `None` of fewer than 2 occasions or no occasion of 2 processes.
pub fn of(values: &[Vec<f64>], round_deviations: &[f64], rounds: usize, starts_s: &[i64]) -> Option<Components> {
    let count = |v: &[Vec<f64>]| v.iter().map(Vec::len).sum::<usize>() as f64;
    let (n, occasions) = (count(values), values.len() as f64);
    let freedom = n - occasions;
    if values.len() < 2 || freedom < 1.0 {
        return None;
    }
    let means: Vec<f64> = values.iter().map(|v| v.iter().sum::<f64>() / v.len() as f64).collect();
    let within: f64 = values.iter().filter_map(|v| Some(variance(v)? * (v.len() - 1) as f64)).sum::<f64>() / freedom;
    let centre = values.iter().flatten().sum::<f64>() / n;
    let between: f64 =
        values.iter().zip(&means).map(|(v, m)| v.len() as f64 * (m - centre).powi(2)).sum::<f64>() / (occasions - 1.0);
    let size = (n - values.iter().map(|v| (v.len() * v.len()) as f64).sum::<f64>() / n) / (occasions - 1.0);
    let round_variance = round_deviations.iter().map(|d| d * d).sum::<f64>() / round_deviations.len().max(1) as f64;
    let round_freedom = n * (rounds.max(2) - 1) as f64;
    // Of one or two rounds the median is the mean.
    let of_median = round_variance / rounds.max(1) as f64 * if rounds > 2 { MEDIAN } else { 1.0 };
    Some(Components {
        rounds: deviation(round_variance, 0.0, 1.0, round_freedom),
        medians: deviation(within, 0.0, 1.0, freedom),
        processes: deviation(within, of_median, 1.0, freedom),
        occasions: deviation(between, within, size, occasions - 1.0),
        lags: if starts_s.len() == means.len() { lags(&means, starts_s) } else { Vec::new() },
        trend_per_hour: (starts_s.len() == means.len()).then(|| trend(&means, starts_s)).flatten(),
    })
}

/// The root of (square - below) / size, with the interval that the square's degrees of freedom give.
fn deviation(square: f64, below: f64, size: f64, freedom: f64) -> Deviation {
    let root = |square: f64| ((square - below) / size).max(0.0).sqrt();
    let (low, high) = chi_square_factors(freedom, LEVEL).unwrap_or((0.0, f64::MAX));
    Deviation { value: root(square), low: root(square * low), high: root(square * high), freedom }
}

fn lags(means: &[f64], starts_s: &[i64]) -> Vec<Lag> {
    let mut pairs = Vec::new();
    for i in 0..means.len() {
        for j in i + 1..means.len() {
            pairs.push((j - i, (starts_s[j] - starts_s[i]).abs() as f64, means[j] - means[i]));
        }
    }
    let span = pairs.iter().map(|p| p.1).fold(0.0, f64::max);
    let of = |name: &str, chosen: &dyn Fn(usize, f64) -> bool| {
        let found: Vec<(f64, f64)> = pairs.iter().filter(|p| chosen(p.0, p.1)).map(|p| (p.1, p.2)).collect();
        let n = found.len() as f64;
        (!found.is_empty()).then(|| Lag {
            name: name.into(),
            pairs: found.len(),
            seconds: found.iter().map(|f| f.0).sum::<f64>() / n,
            deviation: (found.iter().map(|f| f.1 * f.1).sum::<f64>() / n / 2.0).sqrt(),
        })
    };
    let within = |low: f64, high: f64| move |_: usize, seconds: f64| (low..high).contains(&seconds);
    let all = [
        of("neighbouring", &|step, _| step == 1),
        of("about 1 min", &within(30.0, 120.0)),
        of("about 5 min", &within(180.0, 480.0)),
        of("about 20 min", &within(720.0, 1800.0)),
        of("the whole span", &|_, seconds| span > 0.0 && seconds >= 2.0 / 3.0 * span),
    ];
    all.into_iter().flatten().collect()
}

/// Slope of the least-squares line, in an hour.
fn trend(means: &[f64], starts_s: &[i64]) -> Option<f64> {
    let hours: Vec<f64> = starts_s.iter().map(|s| *s as f64 / 3600.0).collect();
    let n = means.len() as f64;
    let (x, y) = (hours.iter().sum::<f64>() / n, means.iter().sum::<f64>() / n);
    let square: f64 = hours.iter().map(|h| (h - x).powi(2)).sum();
    (square > 0.0).then(|| hours.iter().zip(means).map(|(h, m)| (h - x) * (m - y)).sum::<f64>() / square)
}
