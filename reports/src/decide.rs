//! Whether two sides of one workload differ: Student's t on the values of records, with what a machine's calibration knows of
//! the part between occasions. Records of one machine vary alike on both sides, so their variance is pooled; of two machines
//! each has its own (Welch).

use crate::stats::student::{self, Mean};

/// Standard deviations of the logarithm that a calibration measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Of processes' medians within an occasion.
    pub processes: f64,
    /// Of occasions, beyond what their processes explain.
    pub occasions: f64,
    /// Degrees of freedom of the part between occasions.
    pub freedom: f64,
}

/// One workload on one side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// One value a record, logarithms.
    pub values: Vec<f64>,
    /// Variance of a record's value by its processes, with its degrees of freedom; `None` if it came from one process.
    pub processes: Option<(f64, f64)>,
    /// What the machine's calibration knows.
    pub spread: Option<Spread>,
}

impl Sample {
    /// The sample of records, each with the values of its processes.
    pub fn of(records: &[Vec<f64>], spread: Option<Spread>) -> Self {
        let mean = |logs: &Vec<f64>| logs.iter().sum::<f64>() / logs.len() as f64;
        let parts: Vec<(f64, f64)> = records
            .iter()
            .filter_map(|logs| Some((student::variance(logs)? / logs.len() as f64, logs.len() as f64 - 1.0)))
            .collect();
        let freedom: f64 = parts.iter().map(|p| p.1).sum();
        let pooled = parts.iter().map(|p| p.0 * p.1).sum::<f64>() / freedom;
        Self {
            values: records.iter().map(mean).collect(),
            processes: (freedom > 0.0).then_some((pooled, freedom)),
            spread,
        }
    }

    fn mean(&self) -> f64 {
        self.values.iter().sum::<f64>() / self.values.len() as f64
    }

    /// Variance of a record's value as these records show it, with its degrees of freedom.
    fn own(&self) -> Option<(f64, f64)> {
        student::variance(&self.values).map(|v| (v, self.values.len() as f64 - 1.0))
    }

    /// The same as the machine's calibration knows it.
    fn calibrated(&self) -> Option<(f64, f64)> {
        let s = self.spread?;
        let processes = self.processes.unwrap_or((s.processes.powi(2), s.freedom));
        Some(student::sum_of_variances(processes, (s.occasions.powi(2), s.freedom)))
    }

    /// Variance of the mean, and its degrees of freedom, if a record's value varies by `own`.
    fn error(&self, own: Option<(f64, f64)>, apart: bool) -> Option<(f64, f64)> {
        let k = self.values.len() as f64;
        // A few records may lie together by chance, so the larger counts.
        let (variance, freedom) =
            own.into_iter().chain(self.calibrated()).reduce(|a, b| if b.0 > a.0 { b } else { a })?;
        let error = (variance / k, freedom);
        match (apart && self.values.len() > 1, self.spread) {
            (false, _) => Some(error),
            // The minutes of a side are one occasion of their own.
            (true, Some(s)) => Some(student::sum_of_variances(error, (s.occasions.powi(2), s.freedom))),
            (true, None) => None,
        }
    }
}

/// How two sides were taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// On one machine, whose occasions vary alike on both sides.
    pub same_machine: bool,
    /// All records of one side before all of the other.
    pub apart: bool,
}

/// The difference of two sides, `a` - `b`, with its error; `None` if the part between occasions is unknown on a side.
pub fn difference(a: &Sample, b: &Sample, taken: Taken) -> Option<Mean> {
    let pooled = match (a.own(), b.own()) {
        (Some(a), Some(b)) if taken.same_machine => {
            let freedom = a.1 + b.1;
            Some(((a.0 * a.1 + b.0 * b.1) / freedom, freedom))
        }
        _ => None,
    };
    let error = |s: &Sample| s.error(pooled.or(s.own()), taken.apart);
    let (one, other) = (error(a)?, error(b)?);
    let (variance, freedom) = match pooled {
        // One estimate stands behind both, so its degrees of freedom are not added up.
        Some(pooled) if one.1 == pooled.1 && other.1 == pooled.1 => (one.0 + other.0, pooled.1),
        _ => student::sum_of_variances(one, other),
    };
    Some(Mean { value: a.mean() - b.mean(), error: variance.sqrt(), freedom })
}

/// The difference by one side's error alone: the other is a published figure.
pub fn against_figure(a: &Sample, figure: f64) -> Option<Mean> {
    let (variance, freedom) = a.error(a.own(), false)?;
    Some(Mean { value: a.mean() - figure, error: variance.sqrt(), freedom })
}

/// delta and beta of d = delta + s beta by least squares, with s = 1 where the old side ran first and else -1. If one side
/// always ran first, beta is part of delta and unknown. `None` of fewer than 3 pairs.
pub fn fit(differences: &[f64], old_first: &[bool]) -> Option<(Mean, Option<Mean>)> {
    let n = differences.len() as f64;
    let signs: Vec<f64> = old_first.iter().map(|first| if *first { 1.0 } else { -1.0 }).collect();
    let sum = signs.iter().sum::<f64>();
    let determinant = n * n - sum * sum;
    if differences.len() < 3 {
        return None;
    }
    if determinant == 0.0 {
        return Some((student::mean(differences)?, None));
    }
    let total: f64 = differences.iter().sum();
    let signed: f64 = differences.iter().zip(&signs).map(|(d, s)| d * s).sum();
    let (delta, beta) = ((n * total - sum * signed) / determinant, (n * signed - sum * total) / determinant);
    let squares: f64 = differences.iter().zip(&signs).map(|(d, s)| (d - delta - s * beta).powi(2)).sum();
    let freedom = n - 2.0;
    let error = (squares / freedom * n / determinant).sqrt();
    Some((Mean { value: delta, error, freedom }, Some(Mean { value: beta, error, freedom })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{LEVEL, simulate::Normal};

    const ONE: Taken = Taken { same_machine: true, apart: false };
    const APART: Taken = Taken { apart: true, ..ONE };

    /// Records of `m` processes each.
    fn records(normal: &mut Normal, k: usize, m: usize, occasions: f64, processes: f64) -> Vec<Vec<f64>> {
        (0..k)
            .map(|_| {
                let occasion = occasions * normal.draw();
                (0..m).map(|_| occasion + processes * normal.draw()).collect()
            })
            .collect()
    }

    #[test]
    fn sets_of_the_same_machine_are_called_different_in_about_5_of_100_cases() {
        let mut normal = Normal::new(3);
        let spread = Spread { processes: 0.02, occasions: 0.03, freedom: 40.0 };
        for (k, spread, most) in
            [(1, Some(spread), 0.06), (2, Some(spread), 0.05), (2, None, 0.065), (3, None, 0.065), (5, None, 0.065)]
        {
            let trials = 3000;
            let mut alarms = 0;
            for _ in 0..trials {
                let [a, b] = [(), ()].map(|()| Sample::of(&records(&mut normal, k, 5, 0.03, 0.02), spread));
                alarms += u32::from(difference(&a, &b, ONE).unwrap().p(0.0) < 1.0 - LEVEL);
            }
            let rate = f64::from(alarms) / f64::from(trials);
            assert!((0.0005..most).contains(&rate), "{k} records a side: {rate}");
        }
    }

    /// Two records a side have two degrees of freedom together on one machine, and of two machines one at worst.
    #[test]
    fn records_of_one_machine_are_pooled() {
        let (a, b) = (Sample::of(&[vec![0.0], vec![0.02]], None), Sample::of(&[vec![0.1], vec![0.16]], None));
        let pooled = difference(&a, &b, ONE).unwrap();
        let variance: f64 = (0.0002 + 0.0018) / 2.0;
        assert!((pooled.error - variance.sqrt()).abs() < 1e-12 && pooled.freedom == 2.0, "{pooled:?}");
        let welch = difference(&a, &b, Taken::default()).unwrap();
        assert!((welch.error - pooled.error).abs() < 1e-12 && welch.freedom < 1.3, "{welch:?}");
    }

    #[test]
    fn without_the_part_between_occasions_nothing_is_said() {
        let one = Sample::of(&[vec![0.0, 0.01, 0.02]], None);
        assert_eq!(difference(&one, &one, ONE), None);
        let two = Sample::of(&[vec![0.0, 0.01], vec![0.02, 0.03]], None);
        assert!(difference(&two, &two, ONE).is_some());
        assert_eq!(difference(&two, &two, APART), None, "one side after the other");
        let spread = Some(Spread { processes: 0.01, occasions: 0.03, freedom: 20.0 });
        let known = Sample { spread, ..two.clone() };
        let apart = difference(&known, &known, APART).unwrap();
        assert!(apart.error > difference(&known, &known, ONE).unwrap().error && apart.error > 0.03 * 2f64.sqrt());
    }
}
