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

/// The word on an estimate that should be `expected`; `None` if it has no interval. Its interval is Student's t over
/// `processes`, or within one process if they are fewer than 2.
pub fn of_estimate(estimate: &Estimate, expected: f64, processes: usize) -> Option<Judged> {
    let i = estimate.interval?;
    let (value, low, high) = ((estimate.value / expected).ln(), (i.low / expected).ln(), (i.high / expected).ln());
    let half = (high - low) / 2.0;
    if processes > 1 {
        let freedom = processes as f64 - 1.0;
        let error = half / student::t_quantile(0.5 + LEVEL / 2.0, freedom);
        return Some(of(&Mean { value, error, freedom }, processes));
    }
    // The bootstrap has no degrees of freedom to speak of: normal theory, in effect.
    const MANY: f64 = 1e6;
    let error = half / student::t_quantile(0.5 + LEVEL / 2.0, MANY);
    let resolution = student::detectable(error, MANY).exp() - 1.0;
    Some(within(value, (low, high), resolution, None))
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
    use crate::stats::simulate::Normal;

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
