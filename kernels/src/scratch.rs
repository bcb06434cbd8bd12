//! Working memory of a team, kept between calls.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Zeroable;

use crate::lines::Line;

/// A growing byte buffer that begins on a cache line, as packed operands must.
#[derive(Default)]
pub(crate) struct Words(Vec<Line>);

impl Words {
    /// At least `bytes` bytes, contents unspecified (but initialised).
    pub fn get(&mut self, bytes: usize) -> &mut [u8] {
        let lines = bytes.div_ceil(64);
        if self.0.len() < lines {
            self.0.resize(lines, Line::zeroed());
        }
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Words({} bytes)", self.0.len() * 64)
    }
}

/// One shared buffer (packed activations) and one for each thread (packed weights, accumulators), which that thread makes and
/// touches first.
#[derive(Debug)]
pub(crate) struct Scratch {
    shared: Mutex<Words>,
    threads: Vec<Mutex<Words>>,
}

impl Scratch {
    /// For so many threads.
    pub fn new(threads: usize) -> Scratch {
        Scratch { shared: Mutex::default(), threads: (0..threads).map(|_| Mutex::default()).collect() }
    }

    pub fn shared(&self) -> MutexGuard<'_, Words> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The buffer of thread `t`.
    pub fn thread(&self, t: usize) -> MutexGuard<'_, Words> {
        self.threads[t].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
