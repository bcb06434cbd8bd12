use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{console, doctor};

/// Exit code of `--strict` where something is amiss.
const AMISS: u8 = 3;

/// Say what would spoil a measurement on this machine, and what to do about it
///
/// It looks at the machine for half a second, changes nothing, and needs no rights. `unknown` means that the system does not
/// tell.
#[derive(Args, Debug)]
pub struct Doctor {
    /// Answer in JSON; its schema is in reports/schema
    #[arg(long)]
    json: bool,
    /// End with exit code 3 if there is a warning
    #[arg(long)]
    strict: bool,
}

impl Doctor {
    pub fn run(self) -> Result<ExitCode> {
        let answer = doctor::examine();
        if self.json {
            console::print(serde_json::to_string_pretty(&answer)?)?;
        } else {
            console::print(words(&answer))?;
        }
        Ok(if self.strict && answer.warnings > 0 { ExitCode::from(AMISS) } else { ExitCode::SUCCESS })
    }
}

fn words(answer: &doctor::Answer) -> String {
    let mut table = super::machine::columns();
    table.set_header(["check", "state", "what was found"]);
    for check in &answer.checks {
        table.add_row([check.name, check.state.name(), &check.found]);
    }
    let mut text = table.trim_fmt();
    let of = |state| answer.checks.iter().filter(move |c| c.state == state);
    if answer.warnings == 0 {
        text.push_str("\n\nNothing was found that would spoil a measurement here.");
    } else {
        text.push_str("\n\nWhat to do about the warnings:");
        for check in of(doctor::State::Warning) {
            text.push_str(&format!("\n  {}: {}", check.name, check.advice.as_deref().unwrap_or_default()));
        }
    }
    let hints: Vec<_> = of(doctor::State::Unknown).filter_map(|c| Some((c.name, c.advice.as_deref()?))).collect();
    if !hints.is_empty() {
        text.push_str("\n\nWhat the system does not tell:");
        hints.iter().for_each(|(name, advice)| text.push_str(&format!("\n  {name}: {advice}")));
    }
    text
}
