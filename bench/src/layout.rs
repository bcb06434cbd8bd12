//! What differs from process to process on purpose: where the stack begins, and the moment of the start.
//!
//! A program's speed can hang on the size of its environment, because that moves its stack (Mytkowicz et al., "Producing
//! Wrong Data Without Doing Anything Obviously Wrong!", 2009). Processes that all have the same one would repeat the same
//! accident, so each gets padding of its own; addresses of code and heap are moved by the operating system.

use std::{process::Command, thread, time::Duration};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// Most bytes of padding: the stack then begins anywhere in two pages.
const MOST_PADDING: u32 = 8192;
/// Longest wait before a process starts: it meets the periodic work of the machine at another moment.
const LONGEST_WAIT_MS: u32 = 50;
/// The variable that is as long as the padding.
const VARIABLE: &str = "TTFT_PADDING";

/// Draws the layout of each process.
#[derive(Clone, Debug)]
pub struct Layout(ChaCha8Rng);

impl Layout {
    /// Equal seeds give equal layouts.
    pub fn new(seed: u64) -> Layout {
        Layout(ChaCha8Rng::seed_from_u64(seed))
    }

    /// A number below `most`.
    pub fn below(&mut self, most: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(most)) >> 32) as u32
    }

    /// Gives a command an environment of random size, after a wait of random length.
    pub fn vary<'a>(&mut self, command: &'a mut Command) -> &'a mut Command {
        let padding = self.below(MOST_PADDING);
        thread::sleep(Duration::from_millis(self.below(LONGEST_WAIT_MS).into()));
        command.env(VARIABLE, "x".repeat(padding as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_differ_and_can_be_repeated() {
        let draw = |seed| {
            let mut layout = Layout::new(seed);
            (0..20).map(|_| layout.below(MOST_PADDING)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut distinct = draw(1);
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() > 15 && distinct.iter().all(|n| *n < MOST_PADDING), "{distinct:?}");
    }
}
