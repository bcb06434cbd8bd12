//! Answers as JSON, each with the name of its schema; the schemas stand in `reports/schema/`.

use serde_json::Value;

use crate::{compare::Comparison, pairs::Judgement, schema::Record};

/// `ttft validate --json`: schema `ttft-validate/1`.
pub fn validation(record: &Record) -> Value {
    let _ = record;
    todo!("follows")
}

/// `ttft compare --json`: schema `ttft-compare/1`.
pub fn comparison(comparison: &Comparison) -> Value {
    let _ = comparison;
    todo!("follows")
}

/// `ttft compare --binaries --json`: schema `ttft-pairs/1`.
pub fn judgement(judgement: &Judgement) -> Value {
    let _ = judgement;
    todo!("follows")
}
