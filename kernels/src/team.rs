//! Who computes: threads, their working memory, their level of instructions and its kernels. What drivers are given.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::{
    contract::{DotKernel, GemmKernel},
    cpu::{self, cache::Caches},
    isa::Isa,
    level::Level,
    pool::{Pool, Turn},
    scratch::{Scratch, Words},
};

/// Who computes `y = x W^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Backend {
    /// The kernels of this crate.
    #[default]
    Ours,
    /// The `gemm` crate, on f32 (16-bit weights are widened slab by slab).
    Gemm,
    /// Apple's Accelerate, on f32 as well, with its own threads (macOS, feature `accelerate`).
    #[cfg(all(target_os = "macos", feature = "accelerate"))]
    Accelerate,
}

impl Backend {
    /// The name that `--backend` takes.
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Ours => "ttft",
            Backend::Gemm => "gemm",
            #[cfg(all(target_os = "macos", feature = "accelerate"))]
            Backend::Accelerate => "accelerate",
        }
    }
}

/// What computes products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels {
    pub backend: Backend,
    /// The kernels to take for every shape that they can serve, if the choice is not left to the drivers.
    pub gemm: Option<&'static GemmKernel>,
    pub dot: Option<&'static DotKernel>,
}

/// Threads of one level.
#[derive(Debug)]
pub(crate) struct Team {
    pub level: &'static Level,
    pub kernels: Kernels,
    /// The caches that blocks are cut for.
    pub caches: Caches,
    pub used: Used,
    pool: Pool,
    scratch: Scratch,
    singles: OnceLock<Vec<Team>>,
}

impl Team {
    pub fn new(level: &'static Level, kernels: Kernels, pool: Pool) -> Team {
        Team {
            level,
            kernels,
            caches: cpu::cache::caches(),
            used: Used::default(),
            scratch: Scratch::new(pool.threads()),
            pool,
            singles: OnceLock::new(),
        }
    }

    /// A team of one for each thread, for tasks that are whole products: they may work side by side inside a region of this one. Their
    /// working memory is made on first use and kept.
    pub fn singles(&self) -> &[Team] {
        let single = |_| Team {
            level: self.level,
            kernels: self.kernels,
            caches: self.caches,
            used: Used::default(),
            scratch: Scratch::new(1),
            pool: self.pool.single(),
            singles: OnceLock::new(),
        };
        self.singles.get_or_init(|| (0..self.threads()).map(single).collect())
    }

    pub fn isa(&self) -> Isa {
        self.level.isa
    }

    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Waits until no other thread has the team, and takes it: threads and scratch are the holder's until it is dropped, and one task
    /// alone, which starts no worker, is as safe as a region. `what` names the operation in a log.
    ///
    /// # Panics
    /// Inside a region, unless it is one of the team that this one is a part of.
    pub fn take(&self, what: &'static str) -> Taken<'_> {
        Taken { turn: self.pool.turn_with(self.level.around, what), scratch: &self.scratch }
    }
}

/// A team that no other thread can use meanwhile.
pub(crate) struct Taken<'a> {
    turn: Turn<'a>,
    scratch: &'a Scratch,
}

impl<'a> std::ops::Deref for Taken<'a> {
    type Target = Turn<'a>;
    fn deref(&self) -> &Turn<'a> {
        &self.turn
    }
}

impl Taken<'_> {
    /// The buffer that threads share.
    pub fn shared(&self) -> MutexGuard<'_, Words> {
        self.scratch.shared()
    }

    /// The buffer of thread `t`. Once it has let go of it, other threads of the region may still read what it left there: nobody
    /// else takes it before the team is given back, or the next region begins.
    pub fn thread(&self, t: usize) -> MutexGuard<'_, Words> {
        self.scratch.thread(t)
    }
}

/// Names of the kernels that have run.
#[derive(Debug, Default)]
pub(crate) struct Used(Mutex<std::collections::BTreeSet<&'static str>>);

impl Used {
    pub fn note(&self, name: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
    }

    pub fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::{level::Around, levels};

    #[test]
    fn singles_work_side_by_side_and_each_thread_enters_and_leaves() {
        static ENTERED: AtomicUsize = AtomicUsize::new(0);
        static INSIDE: AtomicUsize = AtomicUsize::new(0);
        fn enter() {
            ENTERED.fetch_add(1, SeqCst);
            INSIDE.fetch_add(1, SeqCst);
        }
        fn leave() {
            INSIDE.fetch_sub(1, SeqCst);
        }
        static LEVEL: Level = Level { around: Some(Around { enter, leave }), ..levels::portable::LEVEL };
        let kernels = Kernels { backend: Backend::Ours, gemm: None, dot: None };
        let team = Team::new(&LEVEL, kernels, Pool::new(3));
        let singles = team.singles();
        let done = AtomicUsize::new(0);
        team.take("test").run(|thread| {
            singles[thread].take("test").run(|inner| {
                assert!(inner == 0 && singles[thread].threads() == 1 && INSIDE.load(SeqCst) >= 2);
                done.fetch_add(1, SeqCst);
            });
        });
        // Three threads of the team, and each of them as its team of one.
        assert_eq!((done.into_inner(), ENTERED.swap(0, SeqCst), INSIDE.load(SeqCst)), (3, 6, 0));
        // One task alone, and one that panics.
        team.take("test").for_each(1, |_, _| assert_eq!(INSIDE.load(SeqCst), 1));
        let panic =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| team.take("test").run(|_| panic!("on purpose"))));
        assert_eq!((panic.is_err(), ENTERED.load(SeqCst), INSIDE.load(SeqCst)), (true, 4, 0));
        // What is no operation of the level does not enter it.
        team.pool().run(|_| assert_eq!(INSIDE.load(SeqCst), 0));
    }
}
