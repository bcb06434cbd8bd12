//! Working memory of the drivers, kept between calls.

use std::{
    marker::PhantomData,
    sync::{Mutex, MutexGuard, PoisonError},
};

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
/// touches first. Used in a [`crate::pool::Turn`] alone: what one thread of a region has left in its buffer, others may read until
/// the turn is over.
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

    /// The buffer of thread `t`; uncontended in a turn.
    pub(crate) fn thread(&self, t: usize) -> MutexGuard<'_, Words> {
        self.threads[t].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An exclusive borrow that threads of one region share to write disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T>(*mut T, usize, PhantomData<&'a mut [T]>);

// SAFETY: the pointer stands for an exclusive borrow for 'a; every use says why its place is disjoint.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub fn new(data: &'a mut [T]) -> Self {
        SharedMut(data.as_mut_ptr(), data.len(), PhantomData)
    }

    /// `len` elements from `start`.
    ///
    /// # Safety
    /// No other slice that overlaps this one is used while this one is.
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: in bounds, as `ptr` checks, and borrowed for 'a; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(start, len), len) }
    }

    /// A pointer to element `start`, of which `len` elements follow.
    pub fn ptr(&self, start: usize, len: usize) -> *mut T {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.1), "SharedMut: out of bounds");
        // SAFETY: in bounds by the assertion.
        unsafe { self.0.add(start) }
    }

    /// A pointer to element `[row][col]` of a matrix with rows `stride` apart, after checking that `rows` rows of `cols` elements
    /// (at least one of each) from there lie inside.
    pub fn block(&self, stride: usize, (row, col): (usize, usize), (rows, cols): (usize, usize)) -> *mut T {
        let (at, len) = block(stride, (row, col), (rows, cols)).expect("SharedMut: a block that memory holds");
        self.ptr(at, len)
    }
}

/// Where a block of a row-major matrix begins and how far it reaches, in elements; `None` beyond what can be counted.
pub(crate) fn block(stride: usize, at: (usize, usize), size: (usize, usize)) -> Option<(usize, usize)> {
    let start = at.0.checked_mul(stride)?.checked_add(at.1)?;
    Some((start, size.0.checked_sub(1)?.checked_mul(stride)?.checked_add(size.1)?))
}
