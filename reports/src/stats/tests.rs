use proptest::prelude::*;

use super::*;

fn uniform(rng: &mut ChaCha8Rng) -> f64 {
    f64::from(rng.next_u32()) / 2f64.powi(32)
}

#[test]
fn no_samples_give_nothing() {
    assert_eq!(median(&[]), None);
    assert_eq!(mad(&[]), None);
    assert_eq!(quantile(&[], 0.5), None);
    assert_eq!(median_estimate(&[]), None);
    assert_eq!(paired_ratio(&[]), None);
    assert_eq!(unpaired_ratio(&[], &[1.0]), None);
    assert_eq!(mann_whitney(&[1.0], &[]), None);
    assert_eq!(geometric_mean(&[]), None);
}

#[test]
fn one_and_two_samples_give_no_spread() {
    assert_eq!(median_estimate(&[3.0]), Some(Estimate { value: 3.0, interval: None, samples: 1 }));
    assert_eq!(median_estimate(&[3.0, 4.0]), Some(Estimate { value: 3.5, interval: None, samples: 2 }));
    assert_eq!((mad(&[3.0]), mad(&[3.0, 4.0])), (None, Some(0.5)));
    assert_eq!(paired_ratio(&[(4.0, 2.0)]), Some(Estimate { value: 2.0, interval: None, samples: 1 }));
    assert_eq!(unpaired_ratio(&[4.0; 9], &[2.0; 2]), Some(Estimate { value: 2.0, interval: None, samples: 2 }));
    assert_eq!(mann_whitney(&[1.0], &[2.0]).unwrap().p, 1.0);
    assert!((mann_whitney(&[1.0, 2.0], &[3.0, 4.0]).unwrap().p - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!(geometric_mean(&[8.0]).map(f64::round), Some(8.0));
}

#[test]
fn few_samples_give_their_range_at_the_level_it_carries() {
    let three = median_estimate(&[5.0, 1.0, 3.0]).unwrap().interval.unwrap();
    assert_eq!(three, Interval { low: 1.0, high: 5.0, level: 0.75 });
    assert_eq!(median_estimate(&[5.0, 1.0, 3.0, 2.0, 4.0]).unwrap().interval.unwrap().level, 0.9375);
    let ratio = unpaired_ratio(&[4.0, 6.0, 8.0], &[1.0, 2.0, 4.0]).unwrap();
    assert_eq!((ratio.value, ratio.interval.unwrap()), (3.0, Interval { low: 1.0, high: 8.0, level: 0.5 }));
}

#[test]
fn quantiles_are_given_only_where_the_samples_reach() {
    let samples: Vec<f64> = (1..=10).map(f64::from).collect();
    assert_eq!(quantile(&samples, 0.9), Some(9.1));
    assert_eq!(quantile(&samples, 0.1), Some(1.9));
    assert_eq!(quantile(&samples[..9], 0.9), None);
    assert_eq!(quantile(&samples, 0.99), None);
    assert_eq!(quantile(&samples[..3], 0.25), None);
    assert_eq!(quantile(&samples[..4], 0.25), Some(1.75));
    assert_eq!((quantile(&samples[..1], 0.5), quantile(&samples, 1.0)), (Some(1.0), Some(10.0)));
    assert_eq!((quantile(&samples, -0.1), quantile(&samples, f64::NAN)), (None, None));
}

#[test]
fn medians_and_deviations_of_known_samples() {
    assert_eq!(median(&[1.0, 1.0, 2.0, 2.0, 4.0, 6.0, 9.0]), Some(2.0));
    assert_eq!(mad(&[1.0, 1.0, 2.0, 2.0, 4.0, 6.0, 9.0]), Some(1.0));
    assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    assert!((geometric_mean(&[1.0, 4.0, 16.0]).unwrap() - 4.0).abs() < 1e-12);
    assert_eq!((geometric_mean(&[1.0, 0.0]), geometric_mean(&[1.0, f64::NAN])), (None, None));
}

#[test]
fn intervals_cover_the_true_median_as_often_as_they_say() {
    // Exponential: skewed, as times are. Median ln 2. Coverage of 300 intervals has a deviation of about 1.3%.
    for (n, least, most) in [(3usize, 0.68, 0.82), (12, 0.90, 0.99), (40, 0.90, 0.99), (2500, 0.90, 0.99)] {
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        let covered = (0..300)
            .filter(|_| {
                let samples: Vec<f64> = (0..n).map(|_| -(1.0 - uniform(&mut rng)).ln()).collect();
                median_estimate(&samples).unwrap().interval.unwrap().contains(2f64.ln())
            })
            .count();
        let share = covered as f64 / 300.0;
        assert!((least..most).contains(&share), "{n} samples: {share}");
    }
}

#[test]
fn pairing_cancels_what_slows_a_whole_round() {
    // Rounds differ tenfold, the ratio within a round by 1%.
    let pairs: Vec<(f64, f64)> = (0..12)
        .map(|i| (1.0 + f64::from(i), f64::from(i % 2)))
        .map(|(r, odd)| (2.0 * r * (1.0 + 0.01 * odd), r))
        .collect();
    let paired = paired_ratio(&pairs).unwrap();
    let (slow, fast): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
    let unpaired = unpaired_ratio(&slow, &fast).unwrap();
    assert!((paired.value - 2.01).abs() < 1e-9 && paired.spread().unwrap() < 0.011, "{paired:?}");
    assert!(unpaired.spread().unwrap() > 0.3, "{unpaired:?}");
}

#[test]
fn mann_whitney_of_known_samples() {
    // Exact values of U's distribution: 2 x 1/C(10,5) for complete separation; U = 4 of (5, 5) has p = 0.0952.
    let a = [1.0, 2.0, 3.0, 4.0, 5.0];
    let apart = mann_whitney(&a, &[6.0, 7.0, 8.0, 9.0, 10.0]).unwrap();
    assert_eq!((apart.u, apart.superiority), (0.0, 0.0));
    assert!((apart.p - 2.0 / 252.0).abs() < 1e-12);
    let mixed = mann_whitney(&[1.0, 2.0, 3.0, 5.0, 8.0], &[4.0, 6.0, 7.0, 9.0, 10.0]).unwrap();
    assert_eq!(mixed.u, 4.0);
    assert!((mixed.p - 24.0 / 252.0).abs() < 1e-12, "{}", mixed.p);
    // Large samples: the normal approximation stays near the exact value at the border between the two.
    let left: Vec<f64> = (0..20).map(|i| f64::from(i) * 1.01).collect();
    let right: Vec<f64> = (0..20).map(|i| f64::from(i) + 4.5).collect();
    let exact = mann_whitney(&left, &right).unwrap().p;
    let more: Vec<f64> = left.iter().copied().chain([9.77]).collect();
    assert!((exact - mann_whitney(&more, &right).unwrap().p).abs() < 0.02, "{exact}");
    // All equal: no evidence of anything.
    assert_eq!(mann_whitney(&[1.0; 30], &[1.0; 30]).unwrap().p, 1.0);
}

#[test]
fn mann_whitney_rejects_equal_distributions_as_often_as_it_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let rejected = (0..1000)
        .filter(|_| {
            let a: Vec<f64> = (0..8).map(|_| uniform(&mut rng)).collect();
            let b: Vec<f64> = (0..8).map(|_| uniform(&mut rng)).collect();
            mann_whitney(&a, &b).unwrap().p < 0.05
        })
        .count();
    assert!((25..70).contains(&rejected), "{rejected} of 1000");
}

proptest! {
    #[test]
    fn estimates_are_ordered_scale_and_repeat(samples in prop::collection::vec(1e-6f64..1e6, 1..40), factor in 0.1f64..10.0) {
        let estimate = median_estimate(&samples).unwrap();
        prop_assert_eq!(Some(estimate), median_estimate(&samples));
        let (low, high) = (quantile(&samples, 0.0).unwrap(), quantile(&samples, 1.0).unwrap());
        prop_assert!(low <= estimate.value && estimate.value <= high);
        if let Some(i) = estimate.interval {
            prop_assert!(low <= i.low && i.low <= i.high && i.high <= high && i.level <= LEVEL);
        }
        let scaled = median_estimate(&samples.iter().map(|x| x * factor).collect::<Vec<_>>()).unwrap();
        prop_assert!((scaled.value / (estimate.value * factor) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn u_of_both_directions_adds_up(
        a in prop::collection::vec(0u8..20, 1..15), b in prop::collection::vec(0u8..20, 1..15)
    ) {
        let (a, b): (Vec<f64>, Vec<f64>) = (a.into_iter().map(f64::from).collect(), b.into_iter().map(f64::from).collect());
        let direct = a.iter().flat_map(|x| b.iter().map(move |y| if x > y { 1.0 } else if x == y { 0.5 } else { 0.0 })).sum::<f64>();
        let (ab, ba) = (mann_whitney(&a, &b).unwrap(), mann_whitney(&b, &a).unwrap());
        prop_assert_eq!(ab.u, direct);
        prop_assert_eq!(ab.u + ba.u, (a.len() * b.len()) as f64);
        prop_assert!((ab.p - ba.p).abs() < 1e-9 && (0.0..=1.0).contains(&ab.p));
    }

    #[test]
    fn geometric_means_of_inverse_ratios_are_inverse(values in prop::collection::vec(1e-3f64..1e3, 1..20)) {
        let inverse: Vec<f64> = values.iter().map(|v| 1.0 / v).collect();
        let product = geometric_mean(&values).unwrap() * geometric_mean(&inverse).unwrap();
        prop_assert!((product - 1.0).abs() < 1e-9);
    }
}
