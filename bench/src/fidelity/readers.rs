//! Who reads a prompt: the base, the systems that are judged, and the controls that they are judged by.

use std::sync::Arc;

use anyhow::Result;
use ttft_models::{
    Extent, Inference, KvPrediction, NamedTensor, Network, Precision, RunSpec, System,
    cost::CostSystem,
    kv_prediction::control::{Control, Entries},
    plan_lending,
};
use ttft_reports::fidelity::ControlKind;

/// Who reads.
#[derive(Clone, Debug)]
pub enum Reader {
    /// A system, all of the prompt.
    System(System),
    /// The base, some of the last tokens and some of the first, as if these were the prompt.
    Short {
        /// How many last ones.
        last: Length,
        /// How many first ones, at most.
        first: usize,
    },
    /// A KV prediction with the base's own entries where predictions would be.
    True(KvPrediction),
}

/// Tokens that the base reads of a prompt: the first ones among them.
#[derive(Clone, Debug)]
pub enum Length {
    /// So many.
    Tokens(usize),
    /// As many as take no more operations than this system.
    Operations(Box<CostSystem>),
    /// A share of the prompt's.
    Share(f64),
}

/// A reader, and what it is for.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is called.
    pub name: String,
    /// Who reads.
    pub reader: Reader,
    /// What it is.
    pub role: Role,
}

/// What a reader is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything is compared with it.
    Base,
    /// It is judged: the so-manieth system.
    Judged(usize),
    /// The so-manieth system is judged by it, or all are.
    Control(ControlKind, Option<usize>),
}

/// Truncated prompts have a whole number of such parts of the prompt: what systems of like cost are compared with is then run once
/// for all of them.
const PARTS: usize = 32;

impl Length {
    /// Tokens of a prompt of `n`.
    pub fn of(&self, base: &Arc<Network>, precision: Precision, n: usize) -> usize {
        let part = (n / PARTS).max(1);
        let up = |tokens: usize| (tokens.div_ceil(part) * part).clamp(1, n);
        match self {
            Length::Tokens(tokens) => (*tokens).min(n),
            Length::Share(share) => up((share * n as f64).round() as usize),
            Length::Operations(system) => {
                let allowed = operations(system, precision, n);
                let whole = CostSystem::of(&System::Network(Arc::clone(base)));
                // More tokens take more operations.
                let (mut fits, mut beyond) = (1, n + 1);
                while beyond - fits > 1 {
                    let middle = usize::midpoint(fits, beyond);
                    if operations(&whole, precision, middle) <= allowed { fits = middle } else { beyond = middle }
                }
                up(fits)
            }
        }
    }
}

/// A run of one prompt.
pub fn spec(precision: Precision, prompt: usize, generate: usize) -> RunSpec {
    RunSpec { batch: 1, prompt, generate, precision, extent: Extent::FirstToken }
}

/// Operations to the first token of a prompt of `n`.
pub fn operations(system: &CostSystem, precision: Precision, n: usize) -> u64 {
    let phases = system.first_token(&spec(precision, n, 1));
    phases.iter().map(|phase| phase.flops.total()).fold(0, u64::saturating_add)
}

impl Row {
    /// The tokens that the base reads of a prompt as if they were all: last and first ones; none of a system.
    pub fn short(&self, base: &Arc<Network>, precision: Precision, n: usize) -> Option<(usize, usize)> {
        let Reader::Short { last, first } = &self.reader else { return None };
        // The prompt's last token is read in any case.
        let tokens = last.of(base, precision, n).max(first + 1).min(n);
        let first = (*first).min(tokens - 1);
        Some((tokens - first, first))
    }

    /// What it runs, of a prompt.
    pub fn system(&self, base: &Arc<Network>, truth: &[NamedTensor], n: usize) -> Result<System> {
        Ok(match &self.reader {
            Reader::System(system) => system.clone(),
            Reader::Short { .. } => System::Network(Arc::clone(base)),
            Reader::True(pair) => {
                let entries = Entries::of_base(truth, base.config().layers.len(), n.saturating_sub(pair.own.last))?;
                System::KvPrediction(pair.clone().control(Control::Entries(Arc::new(entries))))
            }
        })
    }

    /// The shapes of what it runs, and the tokens that it is given of a prompt of `n`.
    pub fn shapes(&self, base: &Arc<Network>, precision: Precision, n: usize) -> (CostSystem, usize) {
        match &self.reader {
            Reader::System(system) => (CostSystem::of(system), n),
            Reader::True(pair) => {
                let nothing = pair.clone().control(Control::Entries(Arc::default()));
                (CostSystem::of(&System::KvPrediction(nothing)), n)
            }
            Reader::Short { .. } => {
                let (last, first) = self.short(base, precision, n).expect("a short prompt");
                (CostSystem::of(&System::Network(Arc::clone(base))), last + first)
            }
        }
    }

    /// The ids that it is given of a prompt.
    pub fn ids(&self, base: &Arc<Network>, precision: Precision, prompt: &[u32]) -> Vec<u32> {
        match self.short(base, precision, prompt.len()) {
            Some((last, first)) => [&prompt[..first], &prompt[prompt.len() - last..]].concat(),
            None => prompt.to_vec(),
        }
    }

    /// A run of it, for a prompt of `n` tokens of which it is given some; so many tokens can be generated, or scored. It keeps what
    /// others need to begin where it is.
    ///
    /// # Errors
    /// What planning says.
    pub fn plan(
        &self,
        base: &Arc<Network>,
        precision: Precision,
        (n, given): (usize, usize),
        truth: &[NamedTensor],
        (generate, scored): (usize, usize),
        to: &[&CostSystem],
    ) -> Result<Box<dyn Inference>> {
        let system = self.system(base, truth, n)?;
        Ok(plan_lending(&system, &spec(precision, given, generate.max(scored + 1)), scored, to)?)
    }
}

/// The length at which a time is reached, by straight lines between measured lengths, shortest first; from no tokens in no time.
pub fn length_at(time: f64, measured: &[(usize, f64)]) -> f64 {
    let (mut n, mut t) = (0.0, 0.0);
    for &(next, at) in measured {
        // A longer prompt that took less time took as much as the shorter one.
        let at = at.max(t);
        if time < at {
            return n + (next as f64 - n) * (time - t) / (at - t);
        }
        (n, t) = (next as f64, at);
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_between_measured_ones() {
        let measured = [(10, 1.0), (20, 3.0), (30, 2.9), (40, 5.0)];
        for (time, expected) in
            [(0.0, 0.0), (0.5, 5.0), (1.0, 10.0), (2.0, 15.0), (3.0, 30.0), (4.0, 35.0), (9.0, 40.0)]
        {
            let found = length_at(time, &measured);
            assert!((found - expected).abs() < 1e-9, "{time}: {found}");
        }
        assert_eq!(length_at(1.0, &[]), 0.0);
    }
}
