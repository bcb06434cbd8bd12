//! Student's t, chi-square and Holm's rule: what independent values of one level (processes, records, pairs) allow.

use statrs::distribution::{ChiSquared, ContinuousCDF, StudentsT};

use super::{Estimate, Interval, LEVEL};

/// A mean of independent values with what is known of its error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
    /// Degrees of freedom of the standard error.
    pub freedom: f64,
}

impl Mean {
    /// Half the width of the two-sided interval of this confidence.
    pub fn half_width(&self, level: f64) -> f64 {
        t_quantile(0.5 + level / 2.0, self.freedom) * self.error
    }

    /// Two-sided p-value of the hypothesis that the mean is `expected`.
    pub fn p(&self, expected: f64) -> f64 {
        two_sided(self.value - expected, self.error, self.freedom)
    }

    /// One-sided p-value of the hypothesis that the mean is at most `bound`.
    pub fn p_above(&self, bound: f64) -> f64 {
        let p = self.p(bound) / 2.0;
        if self.value > bound { p } else { 1.0 - p }
    }

    /// The difference of two independent means (Welch).
    pub fn apart(a: &Mean, b: &Mean) -> Mean {
        let (variance, freedom) = sum_of_variances((a.error.powi(2), a.freedom), (b.error.powi(2), b.freedom));
        Mean { value: a.value - b.value, error: variance.sqrt(), freedom }
    }

    /// The exponential of a mean of logarithms, with its interval at [`LEVEL`]; `samples` values stand behind it.
    pub fn ratio(&self, samples: usize) -> Estimate {
        let half = self.half_width(LEVEL);
        let interval = Interval { low: (self.value - half).exp(), high: (self.value + half).exp(), level: LEVEL };
        Estimate { value: self.value.exp(), interval: Some(interval), samples }
    }
}

/// The sum of two variances, its degrees of freedom by Satterthwaite.
pub fn sum_of_variances(a: (f64, f64), b: (f64, f64)) -> (f64, f64) {
    let total = a.0 + b.0;
    let parts = a.0 * a.0 / a.1 + b.0 * b.0 / b.1;
    (total, if parts > 0.0 { total * total / parts } else { a.1 + b.1 })
}

/// The sum of squares about the mean over n - 1; `None` below 2 values.
pub fn variance(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.len() >= 2).then(|| values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0))
}

/// The mean of independent values; `None` below 2, which have no spread.
pub fn mean(values: &[f64]) -> Option<Mean> {
    let n = values.len() as f64;
    let error = (variance(values)? / n).sqrt();
    Some(Mean { value: values.iter().sum::<f64>() / n, error, freedom: n - 1.0 })
}

/// Geometric mean of independent values and its Student-t interval, from their logarithms. `None` of no values; no
/// interval of one.
pub fn t_estimate(logs: &[f64]) -> Option<Estimate> {
    match (mean(logs), logs) {
        (Some(mean), _) => Some(mean.ratio(logs.len())),
        (None, [only]) => Some(Estimate { value: only.exp(), interval: None, samples: 1 }),
        (None, _) => None,
    }
}

/// Student's quantile of probability `q` with `freedom` degrees of freedom (at least 1 is taken).
pub fn t_quantile(q: f64, freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom.max(1.0)).map_or(f64::INFINITY, |t| t.inverse_cdf(q))
}

/// Probability that Student's t of `freedom` degrees of freedom is at most `t`.
pub fn t_cdf(t: f64, freedom: f64) -> f64 {
    StudentsT::new(0.0, 1.0, freedom.max(1.0)).map_or(0.5, |d| d.cdf(t))
}

fn two_sided(distance: f64, error: f64, freedom: f64) -> f64 {
    match (distance.abs(), error) {
        (0.0, _) => 1.0,
        (_, 0.0) => 0.0,
        (distance, error) => (2.0 * t_cdf(-distance / error, freedom)).min(1.0),
    }
}

/// Interval of a variance of `freedom` degrees of freedom, as factors of its estimate.
pub fn chi_square_factors(freedom: f64, level: f64) -> Option<(f64, f64)> {
    let chi = ChiSquared::new(freedom).ok()?;
    let tail = (1.0 - level) / 2.0;
    Some((freedom / chi.inverse_cdf(1.0 - tail), freedom / chi.inverse_cdf(tail)))
}

/// p-values adjusted by Holm's rule: each is at most alpha if its hypothesis is rejected with the chance of any false
/// rejection in the family held below alpha, whatever the dependence.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut floor = 0.0f64;
    for (rank, &i) in order.iter().enumerate() {
        floor = floor.max((p[i] * (p.len() - rank) as f64).min(1.0));
        adjusted[i] = floor;
    }
    adjusted
}

/// The true difference of two means that is found in 80% of cases at [`LEVEL`], if the difference has this standard error.
pub fn detectable(error: f64, freedom: f64) -> f64 {
    (t_quantile(0.5 + LEVEL / 2.0, freedom) + t_quantile(0.8, freedom)) * error
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::simulate::Normal;

    #[test]
    fn quantiles_and_intervals_of_known_values() {
        for (freedom, expected) in [(1.0, 12.706), (4.0, 2.776), (9.0, 2.262), (30.0, 2.042)] {
            assert!((t_quantile(0.975, freedom) - expected).abs() < 1e-3, "{freedom}");
        }
        let (low, high) = chi_square_factors(10.0, 0.95).unwrap();
        assert!((low - 10.0 / 20.483).abs() < 1e-4 && (high - 10.0 / 3.247).abs() < 1e-3, "{low} {high}");
        let e = t_estimate(&[1.0f64.ln(), 2.0f64.ln(), 4.0f64.ln()]).unwrap();
        let half = 4.3027 * 2f64.ln() / 3f64.sqrt();
        assert!((e.value - 2.0).abs() < 1e-12 && (e.interval.unwrap().high / 2.0 / half.exp() - 1.0).abs() < 1e-3);
        assert_eq!(t_estimate(&[0.0]).unwrap().interval, None);
        assert_eq!(t_estimate(&[]), None);
        assert_eq!(t_estimate(&[0.5, 0.5]).unwrap().interval.map(|i| i.low == i.high), Some(true));
    }

    #[test]
    fn intervals_of_five_processes_cover_95_of_100_times() {
        let mut normal = Normal::new(1);
        let trials = 5000;
        for n in [3, 5, 10] {
            let covered = (0..trials).filter(|_| {
                let logs: Vec<f64> = (0..n).map(|_| 0.03 * normal.draw()).collect();
                t_estimate(&logs).unwrap().interval.unwrap().contains(1.0)
            });
            let share = covered.count() as f64 / f64::from(trials);
            assert!((0.94..0.96).contains(&share), "{n}: {share}");
        }
    }

    #[test]
    fn holm_holds_the_family() {
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(close(&holm(&[0.01, 0.04, 0.03]), &[0.03, 0.06, 0.06]));
        assert!(close(&holm(&[0.9, 0.001]), &[0.9, 0.002]));
        let mut normal = Normal::new(4);
        let alarms = (0..2000).filter(|_| {
            let p: Vec<f64> = (0..20).map(|_| libm::erfc(normal.draw().abs() / 2f64.sqrt())).collect();
            holm(&p).iter().any(|p| *p < 0.05)
        });
        let rate = alarms.count() as f64 / 2000.0;
        assert!((0.03..0.065).contains(&rate), "{rate}");
    }
}
