//! Working memory of the drivers, kept between calls.

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

/// One shared buffer (packed activations) and one for each thread (packed weights, accumulators).
#[derive(Debug)]
pub struct Scratch {
    shared: Mutex<Words>,
    threads: Vec<Mutex<Words>>,
}

impl Scratch {
    /// For a pool of `threads`.
    pub fn new(threads: usize) -> Scratch {
        Scratch { shared: Mutex::default(), threads: (0..threads).map(|_| Mutex::default()).collect() }
    }

    pub(crate) fn shared(&self) -> MutexGuard<'_, Words> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The buffer of thread `t`; uncontended, since a thread runs one region at a time.
    pub(crate) fn thread(&self, t: usize) -> MutexGuard<'_, Words> {
        self.threads[t].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pointer that threads of one region share to write disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(*mut T, usize);

// SAFETY: the pointer came from an exclusive borrow that outlives the region; every use says why its place is disjoint.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub fn new(data: &mut [T]) -> Self {
        SharedMut(data.as_mut_ptr(), data.len())
    }

    /// `len` elements from `start`.
    ///
    /// # Safety
    /// No other thread holds a slice that overlaps this one while it lives, and the exclusive borrow given to `new` is
    /// still in force.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.1), "SharedMut: out of bounds");
        // SAFETY: in bounds by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// A pointer to element `start`, of which `len` elements follow.
    pub fn ptr(&self, start: usize, len: usize) -> *mut T {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.1), "SharedMut: out of bounds");
        // SAFETY: in bounds by the assertion.
        unsafe { self.0.add(start) }
    }
}
