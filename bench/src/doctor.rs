//! What would spoil a measurement on this machine, and what to do about it.
//!
//! Every check reads what the system tells without rights. What it does not tell is unknown and never taken for good.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(test, target_os = "macos"))]
mod macos;

use serde::Serialize;

#[cfg(test)]
use schemars::JsonSchema;

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It spoils nothing.
    Ok,
    /// It may spoil a measurement.
    Warning,
    /// The system does not tell.
    Unknown,
}

impl State {
    /// Its name in tables and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Unknown => "unknown",
        }
    }
}

/// One thing that can spoil a measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// What it came to.
    pub state: State,
    /// What was found, in words.
    pub found: String,
    /// What to do about it; null where there is nothing to do.
    pub advice: Option<String>,
}

impl Check {
    fn new(name: &'static str, state: State, found: impl Into<String>, advice: Option<&str>) -> Check {
        Check { name, state, found: found.into(), advice: advice.map(Into::into) }
    }

    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check::new(name, State::Ok, found, None)
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: &str) -> Check {
        Check::new(name, State::Warning, found, Some(advice))
    }

    fn unknown(name: &'static str, found: impl Into<String>, advice: &str) -> Check {
        Check::new(name, State::Unknown, found, Some(advice))
    }
}

/// What all checks came to: the answer of `ttft doctor --json`.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(JsonSchema))]
pub struct Answer {
    /// `ttft-doctor/1`.
    pub schema: &'static str,
    /// How many checks are warnings.
    pub warnings: usize,
    /// How many checks the system says nothing about.
    pub unknown: usize,
    /// The checks.
    pub checks: Vec<Check>,
}

/// Looks at this machine, for half a second.
pub fn examine() -> Answer {
    let checks = checks();
    let count = |state| checks.iter().filter(|c| c.state == state).count();
    Answer { schema: "ttft-doctor/1", warnings: count(State::Warning), unknown: count(State::Unknown), checks }
}

#[cfg(target_os = "linux")]
fn checks() -> Vec<Check> {
    linux::Tree::of_this_machine().checks(std::time::Duration::from_millis(500))
}

#[cfg(target_os = "macos")]
fn checks() -> Vec<Check> {
    macos::Told::by_this_machine().checks()
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn checks() -> Vec<Check> {
    vec![Check::unknown(
        "system",
        format!("ttft doctor knows Linux and macOS, and this is {}", std::env::consts::OS),
        "Close other programs, connect the mains, and choose the power plan for the highest performance.",
    )]
}

/// A count with its noun.
fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_SCHEMA=1 cargo test -p ttft-bench --lib doctor` writes the file anew.
    #[test]
    fn the_schema_file_of_the_answer_is_up_to_date() {
        let schema =
            schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Answer>();
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../reports/schema/ttft-doctor-1.schema.json");
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(file == text, "{path} is not what the types say: run with UPDATE_SCHEMA=1");
    }

    #[test]
    fn this_machine_is_examined() {
        let answer = examine();
        assert!(!answer.checks.is_empty());
        let of = |state| answer.checks.iter().filter(|c| c.state == state).count();
        assert_eq!((answer.warnings, answer.unknown), (of(State::Warning), of(State::Unknown)));
        for c in &answer.checks {
            assert!(!c.found.is_empty());
            assert!(c.state != State::Warning || c.advice.is_some(), "{} warns without a way out", c.name);
        }
    }
}
