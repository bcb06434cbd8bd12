use super::*;
use crate::{samples, stats::simulate::Normal};

const TRUE: [f64; 3] = [0.03, 0.015, 0.02];

#[test]
fn components_of_simulated_records_are_recovered() {
    let calibration = Calibration::of(&samples::occasions(200, 5, 7, TRUE, 17)).unwrap();
    assert_eq!((calibration.occasions, calibration.processes, calibration.rounds), (200, 1000, 7));
    let mut inside = 0;
    for cell in &calibration.cells {
        let found = [cell.time.occasions, cell.time.processes, cell.time.rounds];
        for (found, truth) in found.iter().zip(TRUE) {
            assert!((found.value / truth - 1.0).abs() < 0.15, "{}: {found:?} is not {truth}", cell.system);
            inside += u32::from((found.low..=found.high).contains(&truth));
        }
    }
    assert!(inside >= 7, "{inside} of 9 intervals cover the truth");
    // Occasions are independent here: no distance in time is nearer than another, and there is no trend.
    let cell = &calibration.cells[0];
    assert!(cell.time.lags.iter().any(|l| l.name == "neighbouring" && l.pairs == 199), "{:?}", cell.time.lags);
    assert!(cell.time.lags.iter().all(|l| (0.7..1.3).contains(&(l.deviation / 0.031))), "{:?}", cell.time.lags);
    assert!(cell.time.trend_per_hour.unwrap().abs() < 0.02);
    // The ratio to the base has no part between occasions.
    let ratio = calibration.cells[1].ratio.as_ref().unwrap();
    assert!(ratio.occasions.value < 0.008, "{ratio:?}");
}

#[test]
fn designs_raise_no_more_alarms_than_they_say_and_find_what_is_there() {
    let calibration = Calibration::of(&samples::occasions(240, 5, 5, TRUE, 23)).unwrap();
    assert_eq!(calibration.designs.len(), 4);
    for design in &calibration.designs {
        assert!(design.different.comparisons >= 40, "{design:?}");
        assert!(design.different.value <= 0.08 && design.different.low <= 0.05, "{design:?}");
        let all = design.different.value + design.no_difference.value + design.undecided.value;
        assert!((all - 1.0).abs() < 1e-9, "{design:?}");
        let coverage = design.coverage_simulated.unwrap();
        assert!((0.93..=1.0).contains(&coverage), "{design:?}");
        assert!(design.finds_10_percent.value >= design.finds_5_percent.value);
    }
    // Processes of 1.8% within an occasion: ten pairs find a true 10%.
    assert!(calibration.designs[0].finds_10_percent.value > 0.9, "{:?}", calibration.designs[0]);
    let (measured, simulated) =
        (calibration.designs[0].least_found.unwrap(), calibration.designs[0].least_found_simulated.unwrap());
    assert!(simulated < 0.06 && measured < 0.08, "{measured} {simulated}");
}

#[test]
fn a_drift_shows_in_the_trend_and_in_the_lags() {
    let mut normal = Normal::new(2);
    let starts: Vec<i64> = (0..30).map(|i| i * 60).collect();
    let drift = |i: usize| 0.5 / 60.0 * i as f64;
    let values: Vec<Vec<f64>> = (0..30).map(|i| (0..4).map(|_| drift(i) + 0.005 * normal.draw()).collect()).collect();
    let found = components::of(&values, &[0.01; 120], 5, &starts).unwrap();
    assert!((found.trend_per_hour.unwrap() - 0.5).abs() < 0.02, "{found:?}");
    let of = |name: &str| found.lags.iter().find(|l| l.name == name).unwrap().deviation;
    assert!(of("neighbouring") < of("about 5 min") && of("about 5 min") < of("about 20 min"), "{:?}", found.lags);
}

#[test]
fn a_calibration_is_written_read_and_fits_its_machine_only() {
    let records = samples::occasions(6, 3, 5, TRUE, 5);
    let calibration = Calibration::of(&records).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("calibration.json");
    std::fs::write(&path, calibration.write()).unwrap();
    assert_eq!(Calibration::read(&path).unwrap(), calibration);
    assert!(calibration.write().len() < 12_000, "{}", calibration.write().len());
    let mut machine = records[0].run.machine.clone();
    machine.load_1m = Some(9.0);
    machine.isa_features.reverse();
    assert!(calibration.fits(&machine));
    machine.memory_total_bytes = Some(12 << 30);
    assert!(!calibration.fits(&machine));
    let text = crate::terminal::calibration(&calibration);
    assert!(text.contains("6 occasions of 18 processes") && text.contains("ten ABBA pairs") == (18 >= 20), "{text}");
    assert!(crate::render::calibration(&calibration).unwrap().starts_with("# How much this machine"));
    std::fs::write(&path, calibration.write().replace("calibration/1", "calibration/9")).unwrap();
    assert!(Calibration::read(&path).unwrap_err().to_string().contains("this program reads `ttft-calibration/1`"));
    std::fs::write(&path, "{}").unwrap();
    assert!(Calibration::read(&path).unwrap_err().to_string().contains("is no calibration of ttft"));
}

#[test]
fn records_that_cannot_calibrate_are_refused_with_what_to_do() {
    let error = |records: &[Record]| Calibration::of(records).unwrap_err().to_string();
    let mut records = samples::occasions(4, 3, 5, TRUE, 5);
    assert!(error(&records[..2]).contains("at least 3 occasions, and 2 are given"));
    records[1].run.machine.cpu_model = Some("Another CPU".into());
    assert!(error(&records).contains("another machine"));
    let single = vec![samples::run(); 3];
    assert!(error(&single).contains("--processes 5"));
}
