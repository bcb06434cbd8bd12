//! Words that fit the interval of a figure whose expected value is 1: holds, falls short, exceeds, or undecided.

use crate::stats::{
    Estimate, LEVEL,
    student::{self, Mean},
};

/// A figure within this of 1 holds.
pub const BAND: f64 = 0.05;
/// A run whose resolution is coarser than this lets nothing hold.
pub const MOST_RESOLUTION: f64 = 0.25;
/// Most processes that are proposed.
const MOST_PROCESSES: usize = 200;

/// What an interval says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Word {
    /// The interval lies within [`BAND`] of 1, or within the resolution where that is coarser.
    Holds,
    /// It lies below: by this share.
    FallsShort(f64),
    /// It lies above: by this share.
    Exceeds(f64),
    /// It straddles the border: how many processes would decide in 80% of cases, if a sensible number would.
    Straddles(Option<usize>),
}

impl Word {
    /// Whether both are decided and differ.
    pub fn contradicts(&self, other: &Word) -> bool {
        let kind = |w: &Word| match w {
            Word::Holds => Some(0),
            Word::FallsShort(_) => Some(1),
            Word::Exceeds(_) => Some(2),
            Word::Straddles(_) => None,
        };
        matches!((kind(self), kind(other)), (Some(a), Some(b)) if a != b)
    }
}

/// A word with what it rests on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// The word.
    pub word: Word,
    /// The smallest deviation from 1 that this design finds in 80% of cases, as a share.
    pub resolution: f64,
}

/// The word on the mean logarithm of a figure over `n` independent values.
pub fn of(mean: &Mean, n: usize) -> Judged {
    let resolution = student::detectable(mean.error, mean.freedom).exp() - 1.0;
    let half = mean.half_width(LEVEL);
    within(mean.value, (mean.value - half, mean.value + half), resolution, processes(mean, n))
}

/// The word on an estimate that should be `expected`; `None` if it has no interval. With several `processes` the interval is Student's
/// t over these. Within one process it is one of the median, and is taken for Student's t over the samples: it is widened to
/// [`LEVEL`] by the quantiles of that if its own confidence is less, as that of the range of a few samples is.
pub fn of_estimate(estimate: &Estimate, expected: f64, processes: usize) -> Option<Judged> {
    let i = estimate.interval?;
    let [value, low, high] = [estimate.value, i.low, i.high].map(|figure| (figure / expected).ln());
    let independent = if processes > 1 { processes } else { estimate.samples };
    let freedom = independent as f64 - 1.0;
    let quantile = |level: f64| student::t_quantile(0.5 + level / 2.0, freedom);
    let error = (high - low) / 2.0 / quantile(i.level);
    if processes > 1 {
        return Some(of(&Mean { value, error, freedom }, processes));
    }
    let wider = quantile(LEVEL) / quantile(i.level);
    let interval = (value - (value - low) * wider, value + (high - value) * wider);
    Some(within(value, interval, student::detectable(error, freedom).exp() - 1.0, None))
}

fn within(value: f64, (low, high): (f64, f64), resolution: f64, needed: Option<usize>) -> Judged {
    // A coarse run may find that nothing speaks against 1; a very coarse one finds nothing.
    let coarse = if resolution <= MOST_RESOLUTION { (1.0 + resolution).ln() } else { 0.0 };
    let (below, above) = borders();
    let word = if below.min(-coarse) <= low && high <= above.max(coarse) {
        Word::Holds
    } else if high < below {
        Word::FallsShort(1.0 - value.exp())
    } else if low > above {
        Word::Exceeds(value.exp() - 1.0)
    } else {
        Word::Straddles(needed)
    };
    Judged { word, resolution }
}

/// Logarithms of the ends of [`BAND`].
fn borders() -> (f64, f64) {
    ((1.0 - BAND).ln(), (1.0 + BAND).ln())
}

/// Processes that would tell the value seen from the nearer border in 80% of cases.
fn processes(mean: &Mean, n: usize) -> Option<usize> {
    let spread = mean.error * (n as f64).sqrt();
    let (below, above) = borders();
    let distance = (mean.value - below).abs().min((mean.value - above).abs());
    let enough = |m: &usize| student::detectable(spread / (*m as f64).sqrt(), *m as f64 - 1.0) <= distance;
    (n + 1..=MOST_PROCESSES).find(enough)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{self, simulate::Normal};

    fn judged(value: f64, error: f64) -> Judged {
        of(&Mean { value: f64::ln(value), error, freedom: 4.0 }, 5)
    }

    #[test]
    fn words_follow_the_interval_and_the_resolution() {
        assert_eq!(judged(1.01, 0.005).word, Word::Holds);
        assert!(matches!(judged(0.8, 0.02).word, Word::FallsShort(s) if (s - 0.2).abs() < 1e-9));
        assert!(matches!(judged(1.3, 0.02).word, Word::Exceeds(s) if (s - 0.3).abs() < 1e-9));
        // Half-width 5.6%, resolution 7.7%: nothing speaks against 1.
        let coarse = judged(1.0, 0.02);
        assert!(coarse.word == Word::Holds && (coarse.resolution - 0.0774).abs() < 0.002, "{coarse:?}");
        assert!(matches!(judged(0.94, 0.02).word, Word::Straddles(Some(n)) if n > 5), "{:?}", judged(0.94, 0.02));
        assert!(matches!(judged(1.0, 0.1).word, Word::Straddles(_)), "too coarse to hold");
        assert!(judged(0.8, 0.01).word.contradicts(&judged(1.0, 0.01).word));
        assert!(!judged(0.8, 0.01).word.contradicts(&judged(0.94, 0.02).word));
    }

    #[test]
    fn few_samples_find_no_more_than_they_can() {
        let mut normal = Normal::new(7);
        for n in [3, 5, 8] {
            let (mut resolution, mut wrong, spread, times) = (0.0, 0, 0.01, 1000);
            for _ in 0..times {
                let samples: Vec<f64> = (0..n).map(|_| (spread * normal.draw()).exp()).collect();
                let judged = of_estimate(&stats::median_estimate(&samples).unwrap(), 1.0, 1).unwrap();
                resolution += judged.resolution / f64::from(times);
                wrong += u32::from(matches!(judged.word, Word::FallsShort(_) | Word::Exceeds(_)));
            }
            // What Student's t finds of the mean, which the median is somewhat worse than.
            let t = student::detectable(spread / f64::from(n).sqrt(), f64::from(n) - 1.0);
            assert!((0.85..1.6).contains(&(resolution / t)), "{n}: {resolution} against {t}");
            assert_eq!(wrong, 0, "{n}");
        }
        // The range of three samples has a confidence of 75%: that it lies outside of the band proves nothing yet.
        let three = stats::median_estimate(&[1.06, 1.07, 1.08]).unwrap();
        assert!(matches!(of_estimate(&three, 1.0, 1).unwrap().word, Word::Straddles(None) | Word::Holds));
    }

    #[test]
    fn two_runs_of_one_system_contradict_each_other_in_at_most_one_of_20_cases() {
        let mut normal = Normal::new(5);
        for truth in [1.0, 0.97, 0.95, 0.93, 0.9] {
            let mut contradictions = 0;
            for _ in 0..1000 {
                let mut run = || {
                    let logs: Vec<f64> = (0..5).map(|_| f64::ln(truth) + 0.015 * normal.draw()).collect();
                    of(&student::mean(&logs).unwrap(), 5).word
                };
                contradictions += u32::from(run().contradicts(&run()));
            }
            assert!(contradictions <= 50, "{truth}: {contradictions} of 1000");
        }
    }
}
