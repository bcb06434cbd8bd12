//! How far one next-token distribution is from another, from logits.

/// Distributions of the base at some positions, one row of `vocab` each.
#[derive(Clone, Debug, Default)]
pub struct Distributions {
    vocab: usize,
    /// Natural logarithms of the probabilities.
    logs: Vec<f32>,
    probabilities: Vec<f32>,
    likeliest: Vec<u32>,
}

/// What is left of a distribution at one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Apart {
    /// Kullback-Leibler divergence from the base's distribution to the other, in nats.
    pub kl: f64,
    /// Whether the likeliest token is the base's.
    pub top1: bool,
    /// Cross-entropy of the token that follows minus the base's, in nats.
    pub loss_gap: f64,
}

impl Distributions {
    /// Of rows of logits.
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a [f32]>) -> Distributions {
        let mut out = Distributions::default();
        for row in rows {
            let total = log_sum(row);
            out.vocab = row.len();
            out.likeliest.push(likeliest(row));
            out.logs.extend(row.iter().map(|x| (f64::from(*x) - total) as f32));
        }
        out.probabilities = out.logs.iter().map(|log| log.exp()).collect();
        out
    }

    /// The likeliest token at a position.
    pub fn likeliest(&self, at: usize) -> u32 {
        self.likeliest[at]
    }

    /// How far `logits` are from the base's at position `at`, where token `next` follows. An embedding table that is padded to
    /// another size counts up to the smaller of the two.
    pub fn apart(&self, at: usize, logits: &[f32], next: u32) -> Apart {
        let row = |of: &'_ [f32]| -> std::ops::Range<usize> {
            let start = at * self.vocab;
            debug_assert!(start + self.vocab <= of.len());
            start..start + self.vocab.min(logits.len())
        };
        let (logs, p) = (&self.logs[row(&self.logs)], &self.probabilities[row(&self.probabilities)]);
        let logits = &logits[..logs.len()];
        let total = log_sum(logits);
        // What is cut off of the base's own distribution is next to nothing; still both must sum to 1.
        let kept: f64 = if logs.len() < self.vocab { p.iter().map(|p| f64::from(*p)).sum() } else { 1.0 };
        let mut kl = 0.0;
        for ((log, p), x) in logs.iter().zip(p).zip(logits) {
            kl += f64::from(*p) * (f64::from(*log) - (f64::from(*x) - total));
        }
        let kl = kl / kept - kept.ln();
        // Rounding takes it below 0; what is no number stays none.
        let kl = if kl < 0.0 { 0.0 } else { kl };
        let next = next as usize;
        // A token that only one of the two tables has cannot be compared.
        let loss_gap = match (logs.get(next), logits.get(next)) {
            (Some(own), Some(other)) => (f64::from(*own) - kept.ln()) - (f64::from(*other) - total),
            _ => 0.0,
        };
        Apart { kl, top1: likeliest(logits) == self.likeliest[at], loss_gap }
    }
}

/// The logarithm of the sum of exponentials.
fn log_sum(row: &[f32]) -> f64 {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Differences from the largest are within 0 and -inf, where f32 is exact enough; their sum is not.
    let sum: f64 = row.iter().map(|x| f64::from((x - most).exp())).sum();
    f64::from(most) + sum.ln()
}

/// The likeliest token; of several that are, the first.
pub fn likeliest(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits of less than 8 are rounded by up to 2.4e-7, of which a difference has two.
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
    }

    #[test]
    fn distances_are_what_they_are_by_hand() {
        // 1/2, 1/4, 1/4 against 1/4, 1/4, 1/2: KL = 1/2 ln 2 - 1/4 ln 2.
        let ln = |p: &[f64]| p.iter().map(|p| p.ln() as f32 + 3.0).collect::<Vec<_>>();
        let (base, other) = (ln(&[0.5, 0.25, 0.25]), ln(&[0.25, 0.25, 0.5]));
        let of = Distributions::of([&base[..], &other[..]]);
        let apart = of.apart(0, &other, 0);
        close(apart.kl, 0.25 * 2f64.ln());
        close(apart.loss_gap, 2f64.ln());
        assert!(!apart.top1);
        // The second position, where they are alike but for a constant, which changes nothing.
        let shifted: Vec<f32> = other.iter().map(|x| x + 4.0).collect();
        let apart = of.apart(1, &shifted, 2);
        close(apart.kl, 0.0);
        close(apart.loss_gap, 0.0);
        assert!(apart.kl >= 0.0 && apart.top1);
        assert_eq!((of.likeliest(0), of.likeliest(1)), (0, 2));
    }

    #[test]
    fn padded_tables_are_compared_as_far_as_both_go() {
        let base = [1.0, 2.0, 3.0, -90.0];
        let of = Distributions::of([&base[..]]);
        for other in [&[1.0, 2.0, 3.0][..], &base, &[1.0, 2.0, 3.0, -90.0, 7.0]] {
            let apart = of.apart(0, other, 1);
            assert!(apart.kl < 1e-6 && apart.top1 && apart.loss_gap.abs() < 1e-6, "{apart:?}");
        }
        // Half of what the base expects is not in the other's table.
        let of = Distributions::of([&[0.0, 0.0, 0.0, 0.0][..]]);
        close(of.apart(0, &[5.0, 5.0], 0).kl, 0.0);
        close(of.apart(0, &[5.0, 5.0], 3).loss_gap, 0.0);
    }

    #[test]
    fn large_logits_are_no_trouble() {
        let of = Distributions::of([&[3e4, -3e4][..]]);
        close(of.apart(0, &[3e4, -3e4], 0).kl, 0.0);
        let far = of.apart(0, &[-3e4, 3e4], 0);
        close(far.kl / 6e4, 1.0);
        assert!(far.kl.is_finite());
        assert_eq!(likeliest(&[1.0, 2.0, 2.0]), 1);
    }
}
