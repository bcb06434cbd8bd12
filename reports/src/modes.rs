//! Two modes of a cell's times, as shared or split caches make them: shown as two, not averaged away.

use std::fmt;

use crate::{format, levels, schema::Cell, stats};

/// Two modes of the same figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Modes {
    /// Centres of the two, in seconds, the lower first.
    pub seconds: [f64; 2],
    /// How many values each has.
    pub counts: [usize; 2],
    /// Whether the values are processes' medians; else they are samples.
    pub of_processes: bool,
}

impl fmt::Display for Modes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([low, high], [few, many]) = (self.seconds.map(format::seconds), self.counts);
        let of = if self.of_processes { "processes" } else { "samples" };
        write!(f, "two modes: {low} in {few} {of}, {high} in {many}")
    }
}

/// Fewest values that can show two modes.
const FEWEST: usize = 5;
/// Modes nearer than this, relatively, are not worth two words.
const LEAST_GAP: f64 = 0.04;

/// The distance of the two means, in standard deviations within the modes, that normal values exceed in 1.5% of cases at
/// the best split: from 20,000 simulated sets of each size.
fn threshold(n: usize) -> f64 {
    const TABLE: [(usize, f64); 10] =
        [(5, 10.5), (6, 8.1), (7, 7.2), (8, 6.5), (10, 5.7), (12, 5.2), (15, 4.8), (20, 4.4), (30, 3.95), (60, 3.6)];
    // The next smaller size: its threshold is never too low.
    TABLE.iter().rev().find(|(size, _)| *size <= n).map_or(f64::INFINITY, |t| t.1)
}

/// Two modes of the processes' medians if there are enough processes, or else of the samples.
pub fn of(cell: &Cell) -> Option<Modes> {
    let processes = levels::process_logs(cell);
    let samples: Vec<f64> = cell.samples_ns.iter().map(|&ns| (ns as f64 * 1e-9).ln()).collect();
    find(&processes, true).or_else(|| find(&samples, false))
}

fn find(logs: &[f64], of_processes: bool) -> Option<Modes> {
    let n = logs.len();
    if n < FEWEST {
        return None;
    }
    let mut sorted = logs.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let total: f64 = sorted.iter().sum();
    let centre = total / n as f64;
    let mut best: Option<(f64, usize)> = None;
    let (mut sum, squares): (f64, f64) = (0.0, sorted.iter().map(|v| (v - centre).powi(2)).sum());
    for k in 1..n - 1 {
        sum += sorted[k - 1] - centre;
        let (low, high) = (sum / k as f64, -sum / (n - k) as f64);
        let within = squares - k as f64 * low * low - (n - k) as f64 * high * high;
        let distance = (high - low) / (within.max(1e-18) / (n - 2) as f64).sqrt();
        // One value alone is an outlier, no mode.
        if k >= 2 && best.is_none_or(|(most, _)| distance > most) {
            best = Some((distance, k));
        }
    }
    let (distance, k) = best?;
    let [low, high] = [&sorted[..k], &sorted[k..]].map(|part| stats::median(part).map_or(f64::NAN, f64::exp));
    let two = distance > threshold(n) && high / low > 1.0 + LEAST_GAP;
    two.then_some(Modes { seconds: [low, high], counts: [k, n - k], of_processes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::simulate::Normal;

    #[test]
    fn normal_samples_show_two_modes_in_at_most_2_of_100_sets() {
        for n in [5, 7, 10, 25, 60] {
            let mut normal = Normal::new(n as u64);
            let sets = 2000;
            let found = (0..sets)
                .filter(|_| find(&(0..n).map(|_| 0.05 * normal.draw()).collect::<Vec<_>>(), false).is_some())
                .count();
            assert!(found as f64 / f64::from(sets) <= 0.022, "{n}: {found} of {sets}");
        }
    }

    #[test]
    fn two_modes_ten_percent_apart_are_found_with_their_shares() {
        let mut normal = Normal::new(7);
        let mut found = 0;
        for _ in 0..200 {
            let logs: Vec<f64> =
                (0..30).map(|i| 0.02 * normal.draw() + if i % 5 < 3 { 0.0 } else { 1.1f64.ln() }).collect();
            if let Some(modes) = find(&logs, false) {
                found += 1;
                assert!(modes.counts[0].abs_diff(18) <= 4 && (modes.seconds[1] / modes.seconds[0] - 1.1).abs() < 0.04);
            }
        }
        assert!(found >= 170, "{found} of 200");
        let of_five = find(&[0.0, 0.112, 0.001, 0.113, 0.002], true).unwrap();
        assert_eq!((of_five.counts, of_five.of_processes), ([3, 2], true));
        assert_eq!(find(&[0.0, 0.01, 0.02, 0.03], true), None, "too few");
    }
}
