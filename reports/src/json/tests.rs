use std::path::Path;

use super::*;
use crate::{calibration::Calibration, compare::Side, fidelity::Fidelity, samples};

/// `UPDATE_SCHEMA=1 cargo test -p ttft-reports` writes the files anew.
#[test]
fn the_schema_files_of_the_answers_are_up_to_date() {
    fn check<T: JsonSchema>(name: &str) {
        let schema = schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schema/{name}.schema.json"));
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let file = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(file == text, "{} is not what the types say: run with UPDATE_SCHEMA=1", path.display());
    }
    check::<ValidationAnswer>("ttft-validate-1");
    check::<ComparisonAnswer>("ttft-compare-1");
    check::<JudgementAnswer>("ttft-pairs-1");
    check::<Calibration>("ttft-calibration-1");
    check::<Fidelity>("ttft-fidelity-1");
}

#[test]
fn answers_name_their_schema_and_say_what_the_tables_say() {
    let (a, b) = (samples::run(), samples::run());
    let answer = validation(&a);
    assert_eq!(answer["schema"], "ttft-validate/1");
    assert_eq!(answer["systems"].as_array().unwrap().len(), 16);
    assert!(answer["systems"][0]["indicative"].as_bool().unwrap());
    assert!(answer["command"].as_str().unwrap().contains("--processes 5"));
    let sides = [Side { name: "a", records: vec![&a] }, Side { name: "b", records: vec![&b] }];
    let answer = comparison(&compare::compare(&sides, &[]).unwrap());
    assert_eq!((&answer["schema"], &answer["rows"][0]["word"]), (&"ttft-compare/1".into(), &"not decided".into()));
    assert!(!answer["commands"].as_array().unwrap().is_empty());
}
