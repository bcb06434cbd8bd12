//! What a run will take, told before it starts and before any weights are made: time, memory, disk.

use std::fmt;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};

use ttft_reports::format::{bytes, seconds};

use crate::{machine, scenario::Arm, session::Session};

/// Which systems are in memory at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// All of a group, as rounds need them.
    Together,
    /// One after another, as criterion takes them.
    Alone,
}

/// One (batch, prompt) group.
#[derive(Clone, Debug)]
struct PlannedGroup {
    batch: usize,
    prompt: usize,
    /// Estimated seconds of one sample of each system, in the order of the headings.
    samples_s: Vec<f64>,
    /// Most memory taken at once.
    memory_bytes: u64,
}

/// What a run will take.
#[derive(Clone, Debug)]
pub struct Plan {
    groups: Vec<PlannedGroup>,
    /// Samples of each system, warm-up included.
    samples: u32,
    residence: Residence,
    budget_s: f64,
    available_bytes: Option<u64>,
    disk: String,
    headings: Vec<String>,
}

impl Plan {
    /// Plans `samples` runs of each of `arms` in every group, from shapes alone.
    ///
    /// # Errors
    /// A system that is not in the zoo.
    pub fn new(session: &Session, arms: &[Arm], samples: u32, residence: Residence) -> Result<Plan> {
        let group = |(batch, prompt)| {
            let memory = |arms: &[Arm]| session.memory(arms.iter(), batch, prompt);
            let alone = || arms.chunks(1).map(memory).try_fold(0, |most, m| anyhow::Ok(m?.max(most)));
            Ok(PlannedGroup {
                batch,
                prompt,
                samples_s: arms.iter().map(|a| session.estimate(a, batch, prompt)).collect::<Result<_>>()?,
                memory_bytes: if residence == Residence::Together { memory(arms) } else { alone() }?,
            })
        };
        Ok(Plan {
            groups: session.scenario.groups().into_iter().map(group).collect::<Result<_>>()?,
            samples,
            residence,
            budget_s: session.scenario.budget_s,
            available_bytes: machine::available_memory(),
            disk: session.weights.disk(arms)?,
            headings: arms.iter().map(|a| format!("{} {}", a.system, a.kind.name())).collect(),
        })
    }

    /// One line for each system, one column for each group: there are more systems than a line holds.
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let fields = |name: &str, field: &dyn Fn(&PlannedGroup) -> String| {
            [name.to_owned()].into_iter().chain(self.groups.iter().map(field)).collect::<Vec<_>>()
        };
        table.set_header(fields("batch x prompt", &|g| format!("{} x {}", g.batch, g.prompt)));
        for (i, heading) in self.headings.iter().enumerate() {
            table.add_row(fields(heading, &|g| seconds(g.samples_s[i])));
        }
        table.add_row(fields("all samples", &|g| seconds(self.group_s(g))));
        table.add_row(fields("memory", &|g| bytes(g.memory_bytes)));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn group_s(&self, group: &PlannedGroup) -> f64 {
        group.samples_s.iter().sum::<f64>() * f64::from(self.samples)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Planned, by estimate (one sample of each system):\n{}", self.table().trim_fmt())?;
        let total: f64 = self.groups.iter().map(|g| self.group_s(g)).sum();
        writeln!(f, "time: about {} of a budget of {}", seconds(total), seconds(self.budget_s))?;
        let short = |free: &u64| self.groups.iter().any(|g| g.memory_bytes > *free);
        let parts = match self.available_bytes.as_ref().is_some_and(short) {
            true if self.residence == Residence::Together => "; what does not fit at once is measured in parts",
            _ => "",
        };
        writeln!(f, "memory: {} available{parts}", self.available_bytes.map_or("unknown".into(), bytes))?;
        write!(f, "disk: {}", self.disk)
    }
}
