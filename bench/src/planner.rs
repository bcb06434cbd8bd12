//! What a run will take, told before it starts: time, memory, disk.

use std::fmt;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};

use ttft_reports::format::{bytes, seconds};

use crate::{machine, scenario::Arm, session::Session};

/// One (batch, prompt) group.
#[derive(Clone, Debug)]
pub struct PlannedGroup {
    /// Sequences.
    pub batch: usize,
    /// Prompt tokens of each.
    pub prompt: usize,
    /// Estimated seconds of one sample of each system, in the order of the session's arms.
    pub samples_s: Vec<f64>,
    /// Most memory that one of its systems needs: weights mapped, caches and activations.
    pub memory_bytes: u64,
}

impl PlannedGroup {
    /// Estimated seconds of one sample of all systems.
    pub fn round_s(&self) -> f64 {
        self.samples_s.iter().sum()
    }
}

/// What a run will take.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its groups, in the order they run.
    pub groups: Vec<PlannedGroup>,
    /// Samples of each system, warm-up included.
    pub samples: u32,
    budget_s: f64,
    available_bytes: Option<u64>,
    headings: Vec<String>,
}

impl Plan {
    /// Makes the weights of `arms` (what that costs is said first), maps them, and plans `samples` runs of each in
    /// every group.
    ///
    /// # Errors
    /// As [`Weights::make`](crate::weights::Weights::make).
    pub fn new(session: &mut Session, arms: &[Arm], samples: u32) -> Result<Plan> {
        session.weights.make(arms)?;
        let mut groups = Vec::new();
        for (batch, prompt) in session.scenario.groups() {
            let mut group = PlannedGroup { batch, prompt, samples_s: Vec::new(), memory_bytes: 0 };
            for arm in arms {
                group.samples_s.push(session.estimate(arm, batch, prompt)?);
                group.memory_bytes = group.memory_bytes.max(session.memory(arm, batch, prompt)?);
            }
            groups.push(group);
        }
        Ok(Plan {
            groups,
            samples,
            budget_s: session.scenario.budget_s,
            available_bytes: machine::available_memory(),
            headings: arms.iter().map(|a| format!("{} {}", a.system, a.kind.name())).collect(),
        })
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let mut header = vec!["batch x prompt".to_owned()];
        header.extend(self.headings.iter().cloned());
        header.extend(["all samples".to_owned(), "memory".to_owned()]);
        let columns = header.len();
        table.set_header(header);
        let mut total = 0.0;
        for g in &self.groups {
            let all = g.round_s() * f64::from(self.samples);
            total += all;
            let mut row = vec![format!("{} x {}", g.batch, g.prompt)];
            row.extend(g.samples_s.iter().map(|&s| seconds(s)));
            row.extend([seconds(all), bytes(g.memory_bytes)]);
            table.add_row(row);
        }
        for column in 1..columns {
            if let Some(c) = table.column_mut(column) {
                c.set_cell_alignment(CellAlignment::Right);
            }
        }
        writeln!(f, "Planned, by estimate (one sample of each system):\n{table}")?;
        let memory = self.available_bytes.map_or("unknown".into(), bytes);
        writeln!(f, "time: about {} of a budget of {}", seconds(total), seconds(self.budget_s))?;
        write!(f, "memory: {memory} available")
    }
}
