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
    assert_eq!(paired_ratio(&[(4.0, 2.0), (9.0, 3.0)]), Some(Estimate { value: 2.5, interval: None, samples: 2 }));
    assert_eq!((quantile(&[3.0, 4.0], 0.5), quantile(&[3.0, 4.0], 0.25)), (Some(3.5), None));
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

/// Skewed, as times are; its median is ln 2.
fn exponential(rng: &mut ChaCha8Rng) -> f64 {
    -(1.0 - uniform(rng)).ln()
}

/// How often of 300 times an interval holds `truth`: the share has a deviation of about 1.3%.
fn coverage(truth: f64, mut interval: impl FnMut() -> Estimate) -> f64 {
    (0..300).filter(|_| interval().interval.unwrap().contains(truth)).count() as f64 / 300.0
}

#[test]
fn intervals_cover_the_true_median_as_often_as_they_say() {
    for n in [3usize, 4, 5, 6, 7, 8, 9, 10, 12, 13, 40, 2500] {
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        let level = if n < 6 { range_level(n) } else { LEVEL };
        let share = coverage(2f64.ln(), || {
            median_estimate(&(0..n).map(|_| exponential(&mut rng)).collect::<Vec<_>>()).unwrap()
        });
        assert!((level - 0.04..level + 0.05).contains(&share), "{n} samples at {level}: {share}");
    }
}

#[test]
fn intervals_of_ratios_cover_the_true_ratio() {
    for n in [6usize, 7, 10, 20] {
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        // A slow round slows both by a factor far larger than the noise between them.
        let paired = coverage(2.0, || {
            let pair = |rng: &mut ChaCha8Rng| {
                let round = 1.0 + exponential(rng);
                (2.0 * round * (0.98 + 0.04 * uniform(rng)), round)
            };
            let estimate = paired_ratio(&(0..n).map(|_| pair(&mut rng)).collect::<Vec<_>>()).unwrap();
            assert!(estimate.spread().unwrap() < 0.05, "{estimate:?}");
            estimate
        });
        let unpaired = coverage(2.0, || {
            let mut draw = |scale: f64| (0..n).map(|_| scale * (1.0 + exponential(&mut rng))).collect::<Vec<_>>();
            unpaired_ratio(&draw(2.0), &draw(1.0)).unwrap()
        });
        assert!(paired > 0.91 && unpaired > 0.91, "{n} samples: paired {paired}, unpaired {unpaired}");
    }
}

#[test]
fn tails_are_students_for_few_samples_and_normal_for_many() {
    // 2.5% two-sided quantiles of Student's t from tables, times sqrt(n/(n-1)), through the normal distribution.
    for (n, t) in [(6usize, 2.5706), (10, 2.2622), (21, 2.0860), (101, 1.9840)] {
        let exact = libm::erfc(t * (n as f64 / (n as f64 - 1.0) / 2.0).sqrt()) / 2.0;
        assert!((tail(n) / exact - 1.0).abs() < 0.03, "{n}: {} {exact}", tail(n));
    }
    assert!((tail(1_000_000) - 0.025).abs() < 1e-5);
    assert!((1..50).all(|n| tail(n) <= tail(n + 1)));
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

    #[test]
    fn a_quantile_is_given_only_if_a_sample_is_expected_beyond_it(
        samples in prop::collection::vec(1e-6f64..1e6, 1..60), q in 0.001f64..0.999
    ) {
        let beyond = samples.len() as f64 * q.min(1.0 - q);
        prop_assume!((beyond - 1.0).abs() > 1e-6);
        match quantile(&samples, q) {
            Some(value) => {
                prop_assert!(beyond > 1.0);
                let below = samples.iter().filter(|s| **s <= value).count() as f64;
                prop_assert!((below / samples.len() as f64 - q).abs() <= 1.0 / samples.len() as f64 + 1e-9);
            }
            None => prop_assert!(beyond < 1.0),
        }
    }

    #[test]
    fn deviations_ignore_where_and_follow_how_wide(
        samples in prop::collection::vec(-1e3f64..1e3, 2..40), shift in -1e3f64..1e3, factor in 0.1f64..10.0
    ) {
        let moved: Vec<f64> = samples.iter().map(|x| factor * x + shift).collect();
        prop_assert!((mad(&moved).unwrap() - factor * mad(&samples).unwrap()).abs() < 1e-9);
        prop_assert!((median(&moved).unwrap() - (factor * median(&samples).unwrap() + shift)).abs() < 1e-9);
        // One wild sample of many moves neither beyond its neighbours.
        let mut wild = samples.clone();
        wild.push(f64::MAX);
        prop_assert!(median(&wild).unwrap() <= quantile(&samples, 1.0).unwrap());
    }

    #[test]
    fn ratios_of_a_run_with_itself_are_one_and_reverse(
        samples in prop::collection::vec((1e-3f64..1e3, 1e-3f64..1e3), 1..30)
    ) {
        let (a, b): (Vec<f64>, Vec<f64>) = samples.iter().copied().unzip();
        let twice: Vec<(f64, f64)> = a.iter().map(|x| (*x, *x)).collect();
        let same = paired_ratio(&twice).unwrap();
        prop_assert!(same.value == 1.0 && same.interval.is_none_or(|i| (i.low, i.high) == (1.0, 1.0)));
        prop_assert_eq!(unpaired_ratio(&a, &a).unwrap().value, 1.0);
        let (there, back) = (unpaired_ratio(&a, &b).unwrap(), unpaired_ratio(&b, &a).unwrap());
        prop_assert!((there.value * back.value - 1.0).abs() < 1e-12);
        prop_assert_eq!(there.interval.is_some(), a.len() > 2);
    }

    #[test]
    fn exact_p_values_count_the_orders_of_small_samples(order in Just((0..7u8).collect::<Vec<_>>()).prop_shuffle(), m in 1usize..7) {
        let ranks: Vec<f64> = order.into_iter().map(f64::from).collect();
        let (a, b) = ranks.split_at(m);
        let distance = |u: f64| (u - (m * (7 - m)) as f64 / 2.0).abs();
        let found = mann_whitney(a, b).unwrap();
        // Every choice of m of the 7 ranks is as likely as any other.
        let of = |set: u32| {
            let (a, b): (Vec<f64>, Vec<f64>) = (0..7).map(f64::from).partition(|r| set >> *r as u32 & 1 == 1);
            a.iter().map(|x| b.iter().filter(|y| x > y).count()).sum::<usize>() as f64
        };
        let all: Vec<f64> = (0..1 << 7).filter(|set: &u32| set.count_ones() as usize == m).map(of).collect();
        let extreme = all.iter().filter(|u| distance(**u) >= distance(found.u)).count();
        prop_assert!((found.p - extreme as f64 / all.len() as f64).abs() < 1e-12, "{} {extreme} of {}", found.p, all.len());
    }

    #[test]
    fn geometric_means_lie_between_their_ends_and_scale(
        values in prop::collection::vec(1e-3f64..1e3, 1..20), factor in 0.1f64..10.0
    ) {
        let mean = geometric_mean(&values).unwrap();
        let (low, high) = (quantile(&values, 0.0).unwrap(), quantile(&values, 1.0).unwrap());
        prop_assert!(low * (1.0 - 1e-12) <= mean && mean <= high * (1.0 + 1e-12));
        let scaled = geometric_mean(&values.iter().map(|v| v * factor).collect::<Vec<_>>()).unwrap();
        prop_assert!((scaled / (mean * factor) - 1.0).abs() < 1e-12);
    }
}
