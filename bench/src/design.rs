//! How a group is sampled: how many processes, how many rounds in each, and what of it a budget holds.

/// Fewest rounds of a single process: below it there is no median to speak of.
const FEWEST_ROUNDS: u32 = 3;
/// Fewest processes: below it there is no spread between them to speak of.
pub(crate) const FEWEST_PROCESSES: u32 = ttft_reports::levels::FEWEST_PROCESSES as u32;
/// Processes that the planner takes at most where none are asked for.
const MOST_PROCESSES: u32 = 10;
/// Steps of the search between the fewest and all rounds of a single process.
const STEPS: u32 = 16;

/// How a group is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Design {
    /// Processes.
    pub processes: u32,
    /// Rounds of each process, the warm-up not counted.
    pub rounds: u32,
}

impl Design {
    /// Samples of each system.
    pub fn samples(self) -> u32 {
        self.processes.saturating_mul(self.rounds)
    }

    /// Estimated seconds.
    pub fn seconds(self, cost: &Costs) -> f64 {
        cost.once + f64::from(self.processes) * (cost.start + cost.warmup + f64::from(self.rounds) * cost.round)
    }
}

/// What one group costs, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Of the whole group, once: what the first process measures after its rounds.
    pub once: f64,
    /// Of a process before its first round.
    pub start: f64,
    /// Of what warms a process up.
    pub warmup: f64,
    /// Of a round.
    pub round: f64,
}

/// The designs to choose from, from the least to what is asked for: `rounds` samples of each system, in `processes`
/// processes if they are asked for, else in up to ten.
pub fn ladder(rounds: u32, processes: Option<u32>) -> Vec<Design> {
    let most = processes.unwrap_or(MOST_PROCESSES.min(rounds)).max(1);
    if most == 1 {
        let fewest = FEWEST_ROUNDS.min(rounds);
        let step = (rounds - fewest).div_ceil(STEPS).max(1) as usize;
        let some = (fewest..rounds).step_by(step).chain([rounds]);
        return some.map(|rounds| Design { processes: 1, rounds }).collect();
    }
    let fewest = FEWEST_PROCESSES.min(most);
    // Rounds within a process say the least about the next process, so processes come first.
    let mut counts = vec![fewest];
    counts.extend([5, most].into_iter().filter(|n| (fewest + 1..=most).contains(n)));
    counts.dedup();
    let mut designs = vec![Design { processes: fewest, rounds: 1 }];
    designs.extend(counts.iter().map(|&processes| Design { processes, rounds: 1 }));
    designs.extend(
        counts
            .into_iter()
            .skip_while(|n| *n < most.min(5))
            .map(|processes| Design { processes, rounds: rounds.div_ceil(processes).max(1) }),
    );
    designs.sort_by_key(|d| (d.processes.saturating_mul(d.rounds + 1), d.processes));
    designs.dedup();
    // A design that costs more must not have fewer processes.
    let mut kept: Vec<Design> = Vec::new();
    for design in designs {
        if kept.last().is_none_or(|last| design.processes >= last.processes) {
            kept.push(design);
        }
    }
    kept
}

/// A design for each of several groups that are measured one after another in `left` seconds: at first the least for
/// as many as possible, in order; then a step more for each in turn, as long as all of it fits.
pub fn within(left: f64, groups: &[Costs], ladder: &[Design]) -> Vec<Option<Design>> {
    let seconds = |at: usize, cost: &Costs| ladder[at].seconds(cost);
    let mut rest = left;
    let mut chosen: Vec<Option<usize>> = groups
        .iter()
        .map(|cost| {
            let need = seconds(0, cost);
            (need <= rest).then(|| {
                rest -= need;
                0
            })
        })
        .collect();
    let mut grown = true;
    while grown {
        grown = false;
        for (at, cost) in chosen.iter_mut().zip(groups) {
            let Some(at) = at.as_mut().filter(|at| **at + 1 < ladder.len()) else { continue };
            let more = seconds(*at + 1, cost) - seconds(*at, cost);
            if more <= rest {
                rest -= more;
                *at += 1;
                grown = true;
            }
        }
    }
    chosen.into_iter().map(|at| at.map(|at| ladder[at])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn designs(rounds: u32, processes: Option<u32>) -> Vec<(u32, u32)> {
        ladder(rounds, processes).into_iter().map(|d| (d.processes, d.rounds)).collect()
    }

    #[test]
    fn processes_come_before_rounds() {
        assert_eq!(designs(10, None), [(3, 1), (5, 1), (5, 2), (10, 1)]);
        assert_eq!(designs(30, None), [(3, 1), (5, 1), (10, 1), (10, 3)]);
        assert_eq!(designs(3, None), [(3, 1)]);
        assert_eq!(designs(1, None), [(1, 1)]);
        assert_eq!(designs(2, None), [(2, 1)]);
        assert_eq!(designs(10, Some(5)), [(3, 1), (5, 1), (5, 2)]);
        assert_eq!(designs(10, Some(20)), [(3, 1), (5, 1), (5, 2), (20, 1)]);
        assert_eq!(designs(7, Some(2)), [(2, 1), (2, 4)]);
        assert_eq!(designs(5, Some(1)), [(1, 3), (1, 4), (1, 5)]);
        assert_eq!(designs(2, Some(1)), [(1, 2)]);
        let many = designs(1_000_000, Some(1));
        assert!(many.len() < 20 && many.last() == Some(&(1, 1_000_000)), "{many:?}");
    }

    #[test]
    fn what_the_budget_holds_is_shared_and_the_rest_goes() {
        let ladder = ladder(10, None);
        let costs = [1.0, 4.0].map(|round| Costs { once: 0.0, start: 1.0, warmup: round, round });
        let chosen = |left: f64| within(left, &costs, &ladder).into_iter().map(|d| d.map(|d| (d.processes, d.rounds)));
        let chosen = |left: f64| chosen(left).collect::<Vec<_>>();
        // The whole costs 10 (1 + 2) and 10 (1 + 8).
        assert_eq!(chosen(120.0), [Some((10, 1)), Some((10, 1))]);
        // The least costs 3 (1 + 2) and 3 (1 + 8).
        assert_eq!(chosen(36.0), [Some((3, 1)), Some((3, 1))]);
        assert_eq!(chosen(70.0), [Some((5, 2)), Some((5, 1))]);
        assert_eq!(chosen(20.0), [Some((5, 2)), None]);
        assert_eq!(chosen(8.0), [None, None]);
        let once = Costs { once: 5.0, ..costs[0] };
        assert_eq!(Design { processes: 3, rounds: 1 }.seconds(&once), 5.0 + 9.0);
    }
}
