//! What a run will take, told before it starts and before any weights are made: time, memory, disk.

use std::fmt;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};

use ttft_reports::format::{bytes, seconds};

use crate::{
    machine, rounds,
    scenario::Arm,
    session::{Group, Session},
};

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
    /// Memory of all systems that are there at once.
    memory_bytes: u64,
    /// Parts in which it is measured; none if memory holds none of its systems.
    parts: usize,
    /// The systems that memory does not hold even alone, or beside their base where that is needed.
    too_large: Vec<String>,
    /// Samples of each system that the budget holds, of the part that gets the fewest.
    samples: u32,
    /// Estimated seconds of all samples that the budget holds, warm-up included.
    seconds: f64,
}

/// What a run will take.
#[derive(Clone, Debug)]
pub struct Plan {
    groups: Vec<PlannedGroup>,
    /// Samples of each system that were asked for.
    samples: u32,
    budget_s: f64,
    available_bytes: Option<u64>,
    disk: String,
    headings: Vec<String>,
    /// What runs: the systems of which some size is to be measured and fits.
    needed: Vec<Arm>,
}

impl Plan {
    /// Plans `samples` samples of each of `arms` in every group, and one more to warm up, from shapes alone. What the
    /// record holds already takes no time.
    ///
    /// # Errors
    /// A system that is not in the zoo.
    pub fn new(session: &Session, arms: &[Arm], samples: u32, residence: Residence) -> Result<Plan> {
        let mut left = session.budget_left();
        let mut needed = Vec::new();
        let mut group = |(batch, prompt)| {
            let memory = |arms: &[Arm]| session.memory(arms.iter(), batch, prompt);
            let (parts, too_large, memory_bytes) = match residence {
                Residence::Together => {
                    let (parts, too_large) = rounds::parts(session, arms, batch, prompt)?;
                    (parts, too_large, memory(arms)?)
                }
                Residence::Alone => {
                    let fits = |arm: &Arm| anyhow::Ok(session.over_memory([arm].into_iter(), batch, prompt)?.is_none());
                    let fit = arms.iter().map(fits).collect::<Result<Vec<_>>>()?;
                    let those = |that| arms.iter().zip(&fit).filter(move |(_, f)| **f == that).map(|(a, _)| a.clone());
                    let alone = Group { batch, prompt, part: 1, arms: those(true).collect() };
                    let most = arms.chunks(1).map(memory).try_fold(0, |most, m| anyhow::Ok(m?.max(most)))?;
                    let parts = if alone.arms.is_empty() { Vec::new() } else { vec![alone] };
                    (parts, those(false).collect(), most)
                }
            };
            let mut planned = PlannedGroup {
                batch,
                prompt,
                samples_s: arms.iter().map(|a| session.estimate(a, batch, prompt)).collect::<Result<_>>()?,
                memory_bytes,
                parts: parts.len(),
                too_large: too_large.into_iter().map(|a| a.system).collect(),
                samples: if parts.is_empty() { 0 } else { samples },
                seconds: 0.0,
            };
            for part in parts.iter().filter(|p| !session.finished(p)) {
                let round = rounds::round_seconds(session, part)?;
                let fit = match residence {
                    Residence::Together => rounds::rounds_within(left, round, samples).unwrap_or(0),
                    Residence::Alone if round * f64::from(samples + 1) <= left => samples,
                    Residence::Alone => 0,
                };
                let seconds = if fit > 0 { round * f64::from(fit + 1) } else { 0.0 };
                if fit > 0 {
                    needed.extend(part.arms.iter().cloned());
                }
                left -= seconds;
                planned.samples = planned.samples.min(fit);
                planned.seconds += seconds;
            }
            Ok(planned)
        };
        let groups = session.scenario.groups().into_iter().map(&mut group).collect::<Result<_>>()?;
        Ok(Plan {
            groups,
            samples,
            budget_s: session.scenario.budget_s,
            available_bytes: machine::available_memory(),
            disk: session.weights.disk(&needed)?,
            headings: arms.iter().map(|a| format!("{} {}", a.system, a.kind.name())).collect(),
            needed,
        })
    }

    /// The systems whose weights the run needs; some may stand here more than once.
    pub fn needed(&self) -> &[Arm] {
        &self.needed
    }

    /// One line for each system, one column for each group: there are more systems than a line holds.
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let fields = |name: &str, field: &dyn Fn(&PlannedGroup) -> String| {
            [name.to_owned()].into_iter().chain(self.groups.iter().map(field)).collect::<Vec<_>>()
        };
        table.set_header(fields("batch x prompt", &PlannedGroup::size));
        for (i, heading) in self.headings.iter().enumerate() {
            table.add_row(fields(heading, &|g| seconds(g.samples_s[i])));
        }
        table.add_row(fields("samples of each", &|g| g.samples.to_string()));
        table.add_row(fields("all samples", &|g| seconds(g.seconds)));
        table.add_row(fields("memory", &|g| bytes(g.memory_bytes)));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// The sizes of the groups that `which` picks.
    fn sizes(&self, which: impl Fn(&PlannedGroup) -> bool) -> String {
        self.groups.iter().filter(|g| which(g)).map(PlannedGroup::size).collect::<Vec<_>>().join(", ")
    }
}

impl PlannedGroup {
    fn size(&self) -> String {
        format!("{} x {}", self.batch, self.prompt)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Planned, by estimate (one sample of each system):\n{}", self.table().trim_fmt())?;
        let total: f64 = self.groups.iter().map(|g| g.seconds).sum();
        let (total, budget) = (seconds(total), seconds(self.budget_s));
        writeln!(f, "time: about {total} of a budget of {budget}, and what making weights and checking results takes")?;
        let fewer = self.sizes(|g| (1..self.samples).contains(&g.samples));
        let none = self.sizes(|g| g.samples == 0 && g.parts > 0);
        for (sizes, what) in [(fewer, "fewer samples"), (none, "skipped, all of it or in part")] {
            if !sizes.is_empty() {
                writeln!(f, "  {what}, for the budget holds no more: {sizes}")?;
            }
        }
        writeln!(f, "memory: {} available", self.available_bytes.map_or("unknown".into(), bytes))?;
        let in_parts = self.sizes(|g| g.parts > 1);
        if !in_parts.is_empty() {
            writeln!(f, "  in parts, each beside its own copy of the base: {in_parts}")?;
        }
        for group in self.groups.iter().filter(|g| !g.too_large.is_empty()) {
            writeln!(f, "  skipped, for memory does not hold it: {} at {}", group.too_large.join(", "), group.size())?;
        }
        write!(f, "disk: {}", self.disk)
    }
}

#[cfg(test)]
mod tests {
    use ttft_reports::schema::Sampler;

    use super::*;
    use crate::{knobs::RunKnobs, scenario::PRESETS, weights::Size};

    /// A session of a scenario file, or of a preset, that has not begun.
    fn session(dir: &std::path::Path, scenario: &str, size: Size) -> Session {
        let mut knobs = RunKnobs::from_env().unwrap();
        knobs.scenario = Some(scenario.to_owned());
        knobs.weights = Some(dir.join("w"));
        knobs.out = Some(tempfile::Builder::new().tempfile_in(dir).unwrap().path().with_extension("jsonl"));
        Session::start(&knobs, Sampler::Rounds, None, size).unwrap()
    }

    /// A size that no memory holds is skipped, and what the budget does not hold: beforehand, and in words.
    #[test]
    fn what_will_be_skipped_is_told_before_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("s.toml");
        let text = r#"
            name = "s"
            description = "d"
            systems = ["OE270M"]
            dtype = "f32"
            lengths = [4, 131072]
            batches = [2, 4096]
            rounds = 5
            budget_s = 1e12
        "#;
        std::fs::write(&file, text).unwrap();
        let mut session = session(dir.path(), &file.to_string_lossy(), Size::Tiny);
        let arms = session.arms.clone();
        for residence in [Residence::Together, Residence::Alone] {
            session.grant(1e12);
            let plan = Plan::new(&session, &arms, 5, residence).unwrap();
            let samples: Vec<_> = plan.groups.iter().map(|g| (g.size(), g.samples)).collect();
            let sizes = ["2 x 4", "4096 x 4", "2 x 131072", "4096 x 131072"].map(str::to_owned);
            assert_eq!(samples, sizes.into_iter().zip([5, 5, 5, 0]).collect::<Vec<_>>(), "{residence:?}");
            let text = plan.to_string();
            assert!(text.contains("skipped, for memory does not hold it: OE270M at 4096 x 131072"), "{text}");
            assert!(!text.contains("budget holds no more"), "{text}");

            // Time for the first two groups and for three samples of the third, which takes by far the longest.
            let [first, second, third] = [0, 1, 2].map(|i| plan.groups[i].samples_s[0]);
            session.grant(6.0 * (first + second) + 4.5 * third);
            let plan = Plan::new(&session, &arms, 5, residence).unwrap();
            let expected = if residence == Residence::Together { [5, 5, 3] } else { [5, 5, 0] };
            assert_eq!([0, 1, 2].map(|i| plan.groups[i].samples), expected, "{residence:?}");
            session.grant(1e-9);
            let text = Plan::new(&session, &arms, 5, residence).unwrap().to_string();
            assert!(text.contains("for the budget holds no more: 2 x 4, 4096 x 4, 2 x 131072\n"), "{text}");
            assert!(text.contains("disk: no weights needed"), "{text}");
        }
    }

    /// Every preset can be planned for both samplers, without any weights.
    #[test]
    fn presets_are_planned_without_weights() {
        let dir = tempfile::tempdir().unwrap();
        for (name, _) in PRESETS {
            let session = session(dir.path(), name, Size::Tiny);
            for residence in [Residence::Together, Residence::Alone] {
                let plan = Plan::new(&session, &session.arms, session.scenario.rounds, residence).unwrap();
                assert_eq!(plan.groups.len(), session.scenario.groups().len(), "{name}");
                for g in &plan.groups {
                    assert!(g.samples_s.iter().all(|s| *s > 0.0) && g.memory_bytes > 0, "{name}: {g:?}");
                }
            }
        }
        assert!(!dir.path().join("w").exists(), "planning makes no weights");
    }
}
