//! What a run will take, told before it starts and before any weights are made: time, memory, disk.

use std::fmt;

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use ttft_reports::{
    format::{bytes, or_unknown, seconds},
    schema::{Kind, Start},
};

use crate::{
    design::{self, Costs, Design},
    machine,
    rig::{self, Group},
    scenario::Arm,
    session::Session,
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
    /// Estimated seconds of one sample of each system, in the order of the headings; none of one that is what another is here.
    samples_s: Vec<Option<f64>>,
    /// Memory of all systems that are there at once.
    memory_bytes: u64,
    /// Parts in which it is measured; none if memory holds none of its systems.
    parts: usize,
    /// The systems that memory does not hold even alone, or beside their base where that is needed.
    too_large: Vec<String>,
    /// Bytes that every round has read from disk; 0 if starts are warm.
    round_bytes: u64,
    /// How it is sampled, of several parts the one that gets the fewest samples; none if the budget holds nothing.
    design: Option<Design>,
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
        let mut needed = Vec::new();
        let sized = |(batch, prompt)| {
            let (apart, same) = distinct(session, arms, batch, prompt)?;
            let memory = |arms: &[Arm]| session.memory(arms.iter(), batch, prompt);
            let estimate = |a: &Arm| (!same.contains(a)).then(|| session.estimate(a, batch, prompt)).transpose();
            let samples_s = arms.iter().map(estimate).collect::<Result<_>>()?;
            let arms = &apart[..];
            let (parts, too_large, memory_bytes) = match residence {
                Residence::Together => {
                    let (parts, too_large) = parts(session, arms, batch, prompt)?;
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
            let planned = PlannedGroup {
                batch,
                prompt,
                samples_s,
                memory_bytes,
                round_bytes: match session.rig.scenario.start() {
                    Start::Warm => 0,
                    Start::Cold => arms.iter().map(|arm| session.rig.weights.bytes([arm])).sum::<Result<u64>>()?,
                },
                parts: parts.len(),
                too_large: too_large.into_iter().map(|a| a.system).collect(),
                design: (!parts.is_empty()).then_some(Design { processes: 1, rounds: samples }),
                seconds: 0.0,
            };
            Ok((planned, parts))
        };
        let sized = session.rig.scenario.groups().into_iter().map(sized).collect::<Result<Vec<_>>>()?;
        let to_come: Vec<&Group> = sized.iter().flat_map(|(_, parts)| parts).filter(|p| !session.finished(p)).collect();
        let mut designs = match residence {
            Residence::Together => designs(session, &to_come)?,
            Residence::Alone => one_after_another(session, &to_come, samples)?,
        }
        .into_iter();
        let mut groups = Vec::new();
        for (mut planned, parts) in sized {
            for part in parts.iter().filter(|p| !session.finished(p)) {
                let cost = session.costs(part)?;
                let design = designs.next().flatten();
                if let Some(design) = design {
                    needed.extend(part.arms.iter().cloned());
                    planned.seconds += design.seconds(&match residence {
                        Residence::Together => cost,
                        Residence::Alone => Costs { start: 0.0, ..cost },
                    });
                }
                // Of parts that are sampled unlike, the least says what can be expected.
                let samples = |d: Option<Design>| d.map_or(0, Design::samples);
                if samples(design) <= samples(planned.design) || planned.design.is_some_and(|d| d.processes == 1) {
                    planned.design = design;
                }
            }
            groups.push(planned);
        }
        Ok(Plan {
            groups,
            samples,
            budget_s: session.rig.scenario.budget_s,
            available_bytes: machine::available_memory(),
            disk: session.rig.weights.disk(&needed)?,
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
            table.add_row(fields(heading, &|g| or_unknown(g.samples_s[i].map(seconds))));
        }
        table.add_row(fields("samples of each", &PlannedGroup::samples));
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

    /// Samples of each system: of one process their number, of several processes the rounds of each.
    fn samples(&self) -> String {
        match self.design {
            None => "0".into(),
            Some(Design { processes: 1, rounds }) => rounds.to_string(),
            Some(Design { processes, rounds }) => format!("{processes} processes x {rounds}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Planned, by estimate (one sample of each system):\n{}", self.table().trim_fmt())?;
        if self.groups.iter().any(|g| g.samples_s.contains(&None)) {
            writeln!(
                f,
                "  a system without a time is not measured at that size: the pipelined order does not pay there, and without that order \
                 it would be the same run as another system of this table"
            )?;
        }
        let total: f64 = self.groups.iter().map(|g| g.seconds).sum();
        let (total, budget) = (seconds(total), seconds(self.budget_s));
        writeln!(f, "time: about {total} of a budget of {budget}, and what making weights and checking results takes")?;
        let fewer = self.sizes(|g| g.design.is_some_and(|d| d.samples() < self.samples));
        let none = self.sizes(|g| g.design.is_none() && g.parts > 0);
        for (sizes, what) in [(fewer, "has fewer samples of"), (none, "skips all of these sizes, or a part")] {
            if !sizes.is_empty() {
                writeln!(f, "  because of the budget, the run {what}: {sizes}")?;
            }
        }
        writeln!(f, "memory: {} available", self.available_bytes.map_or("unknown".into(), bytes))?;
        let in_parts = self.sizes(|g| g.parts > 1);
        if !in_parts.is_empty() {
            writeln!(f, "  in parts, each beside its own copy of the base: {in_parts}")?;
        }
        for group in self.groups.iter().filter(|g| !g.too_large.is_empty()) {
            writeln!(f, "  memory is too small, so the run skips: {} at {}", group.too_large.join(", "), group.size())?;
        }
        let round = self.groups.iter().map(|g| g.round_bytes).max().unwrap_or(0);
        if round > 0 {
            let rounds = |g: &PlannedGroup| u64::from(g.design.map_or(0, Design::samples));
            let all = self.groups.iter().map(|g| g.round_bytes.saturating_mul(rounds(g))).sum();
            let (round, all) = (bytes(round), bytes(all));
            writeln!(
                f,
                "reading: starts are cold, so every round of all systems reads about {round} from disk, and the run {all}, beside \
                 at most 1 GiB for each process that finds out how fast the disk is"
            )?;
        }
        write!(f, "disk: {}", self.disk)
    }
}

/// The arms that are worth measuring at one size, and those that are there what another one is: of the pipelined order, where it
/// does not pay and the same system in turn stands beside it.
pub fn distinct(session: &Session, arms: &[Arm], batch: usize, prompt: usize) -> Result<(Vec<Arm>, Vec<Arm>)> {
    let (mut apart, mut same) = (Vec::new(), Vec::new());
    for arm in arms {
        let falls_back = session.rig.falls_back(arm, batch, prompt)?;
        if falls_back && rig::beside_in_turn(arms, arm) { &mut same } else { &mut apart }.push(arm.clone());
    }
    Ok((apart, same))
}

/// All arms at one size, in as few groups as memory allows, and those that do not fit at all.
pub(crate) fn parts(session: &Session, arms: &[Arm], batch: usize, prompt: usize) -> Result<(Vec<Group>, Vec<Arm>)> {
    let (parts, left) = split(arms, |part| Ok(session.over_memory(part.iter(), batch, prompt)?.is_none()))?;
    Ok((parts.into_iter().zip(1..).map(|(arms, part)| Group { batch, prompt, part, arms }).collect(), left))
}

/// Arms in as few parts as possible that all fit, and those that do not fit at all. Every part after the first has its own
/// copy of the bases it needs, so that speedups come from common rounds.
fn split(arms: &[Arm], fits: impl Fn(&[Arm]) -> Result<bool>) -> Result<(Vec<Vec<Arm>>, Vec<Arm>)> {
    let (mut parts, mut left) = (Vec::new(), Vec::new());
    let mut part: Vec<Arm> = Vec::new();
    for arm in arms {
        let mut beside = vec![arm.clone()];
        if !parts.is_empty() && !part.iter().any(|a| a.system == arm.base) {
            beside.splice(..0, base_copy(arms, arm, parts.len()));
        }
        if fits(&[&part[..], &beside].concat())? {
            part.extend(beside);
            continue;
        }
        let whole: Vec<Arm> = base_copy(arms, arm, parts.len() + 1).into_iter().chain([arm.clone()]).collect();
        if part.is_empty() || !fits(&whole)? {
            left.push(arm.clone());
        } else {
            parts.push(std::mem::replace(&mut part, whole));
        }
    }
    parts.extend((!part.is_empty()).then_some(part));
    Ok((parts, left))
}

/// The base of an arm for a part after the first.
fn base_copy(arms: &[Arm], arm: &Arm, part: usize) -> Option<Arm> {
    let base = arms.iter().find(|a| a.kind == Kind::Base && a.system == arm.base && arm.kind != Kind::Base)?;
    // The scenario's own copies come first in the count.
    let own = arms.iter().filter(|a| a.system == base.system).count();
    Some(Arm { copy: (own + part) as u32, ..base.clone() })
}

/// How each of these groups is sampled, so that the rest of the budget holds all of them; none where it does not.
///
/// # Errors
/// A system that is not in the zoo.
pub(crate) fn designs(session: &Session, groups: &[&Group]) -> Result<Vec<Option<Design>>> {
    let costs = groups.iter().map(|group| session.costs(group)).collect::<Result<Vec<_>>>()?;
    let ladder = design::ladder(session.rig.scenario.rounds, session.processes);
    Ok(design::within(session.budget_left(), &costs, &ladder))
}

/// As [`designs`] for criterion, which takes all samples or none.
fn one_after_another(session: &Session, groups: &[&Group], samples: u32) -> Result<Vec<Option<Design>>> {
    let mut left = session.budget_left();
    let design = Design { processes: 1, rounds: samples };
    let fit = |group: &&Group| {
        let need = design.seconds(&Costs { start: 0.0, ..session.costs(group)? });
        let fits = need <= left;
        left -= if fits { need } else { 0.0 };
        Ok(fits.then_some(design))
    };
    groups.iter().map(fit).collect()
}

#[cfg(test)]
mod tests {
    use ttft_reports::schema::Sampler;

    use super::*;
    use crate::{knobs::RunKnobs, scenario::PRESETS, session::Asked, weights::Size};

    /// A session of a scenario file, or of a preset, that has not begun.
    fn session(dir: &std::path::Path, scenario: &str, size: Size) -> Session {
        let mut knobs = RunKnobs::from_env().unwrap();
        knobs.scenario = Some(scenario.to_owned());
        knobs.weights = Some(dir.join("w"));
        knobs.out = Some(tempfile::Builder::new().tempfile_in(dir).unwrap().path().with_extension("jsonl"));
        Session::start(&knobs, Sampler::Rounds, Asked::default(), size).unwrap()
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
        let arms = session.rig.arms.clone();
        for residence in [Residence::Together, Residence::Alone] {
            session.grant(1e12);
            let plan = Plan::new(&session, &arms, 5, residence).unwrap();
            let samples =
                |plan: &Plan| -> Vec<u32> { plan.groups.iter().map(|g| g.design.map_or(0, Design::samples)).collect() };
            let sizes: Vec<_> = plan.groups.iter().map(PlannedGroup::size).collect();
            assert_eq!(sizes, ["2 x 4", "4096 x 4", "2 x 131072", "4096 x 131072"]);
            assert_eq!(samples(&plan), [5, 5, 5, 0], "{residence:?}");
            let text = plan.to_string();
            assert!(text.contains("memory is too small, so the run skips: OE270M at 4096 x 131072"), "{text}");
            assert!(!text.contains("because of the budget"), "{text}");

            // Time for the first two groups and for the fewest samples of the third, which takes by far the longest.
            let [first, second, third] = [0, 1, 2].map(|i| plan.groups[i].seconds);
            session.grant(first + second + 0.9 * third);
            let plan = Plan::new(&session, &arms, 5, residence).unwrap();
            let expected = if residence == Residence::Together { [5, 5, 3, 0] } else { [5, 5, 0, 0] };
            assert_eq!(samples(&plan), expected, "{residence:?}");
            session.grant(1e-9);
            let text = Plan::new(&session, &arms, 5, residence).unwrap().to_string();
            assert!(text.contains("skips all of these sizes, or a part: 2 x 4, 4096 x 4, 2 x 131072\n"), "{text}");
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
                let plan = Plan::new(&session, &session.rig.arms, session.rig.scenario.rounds, residence).unwrap();
                assert_eq!(plan.groups.len(), session.rig.scenario.groups().len(), "{name}");
                for g in &plan.groups {
                    assert!(g.samples_s.iter().flatten().all(|s| *s > 0.0) && g.memory_bytes > 0, "{name}: {g:?}");
                    for (arm, seconds) in session.rig.arms.iter().zip(&g.samples_s) {
                        // 64 tokens, of which the auxiliary reads 63.
                        let pays = g.batch * (g.prompt - 1) <= 64;
                        let measured = pays || !arm.system.ends_with("-pipelined");
                        assert_eq!(seconds.is_some(), measured, "{name}: {} {g:?}", arm.system);
                    }
                }
                let pipelined = session.rig.arms.iter().any(|arm| arm.system.ends_with("-pipelined"));
                assert_eq!(pipelined, ["quick", "grid", "table5", "fig5b"].contains(name));
                assert_eq!(pipelined, plan.to_string().contains("the pipelined order does not pay"), "{name}: {plan}");
            }
        }
        assert!(!dir.path().join("w").exists(), "planning makes no weights");
    }

    #[test]
    fn what_memory_does_not_hold_is_split_beside_its_base() {
        let systems = ["OE1.1B-KVP-C-450M", "OE1.1B-KVP-C-270M", "OE3B"];
        let arms = crate::scenario::arms(&crate::catalog::Catalog::default(), None, &systems).unwrap();
        // The base weighs 3, the 3B network never fits, everything else 1.
        let weight = |a: &Arm| match a.system.as_str() {
            "OE1.1B" => 3,
            "OE3B" => 100,
            _ => 1,
        };
        let split = |most: u32| {
            let (parts, left) = split(&arms, |part| Ok(part.iter().map(weight).sum::<u32>() <= most)).unwrap();
            let name = |a: &Arm| format!("{} {}", a.system, a.copy);
            let parts: Vec<Vec<_>> = parts.iter().map(|p| p.iter().map(name).collect()).collect();
            (parts, left.iter().map(name).collect::<Vec<_>>())
        };
        let (aux, kvp) = (["OE450M 1", "OE270M 1"], ["OE1.1B-KVP-C-450M 1", "OE1.1B-KVP-C-270M 1"]);
        let part = |base: &'static str, rest: [&'static str; 2]| [base, rest[0], rest[1]];
        let (parts, left) = split(5);
        assert_eq!(parts, [part("OE1.1B 1", aux), part("OE1.1B 2", kvp)]);
        assert_eq!(left, ["OE3B 1"]);
        assert_eq!(split(7).0, [[&part("OE1.1B 1", aux)[..], &kvp].concat()]);
        assert_eq!((split(203).0.len(), split(203).1.len()), (1, 0));
        assert_eq!(split(2).0, [aux]);
    }
}
