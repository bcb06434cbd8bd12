//! Memory that threads of one region write in disjoint places.

use std::marker::PhantomData;

/// An exclusive borrow that threads of one region share to write disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T>(*mut T, usize, PhantomData<&'a mut [T]>);

// SAFETY: the pointer stands for an exclusive borrow for 'a, of elements that may be sent; nothing else is in it.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: a shared one gives out slices only to callers of `slice` that promise them disjoint, and pointers whose use is as
// unsafe: so threads never have the same element.
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
        let span =
            || Some((row.checked_mul(stride)?.checked_add(col)?, (rows - 1).checked_mul(stride)?.checked_add(cols)?));
        let (at, len) = span().expect("SharedMut: a block that memory holds");
        self.ptr(at, len)
    }
}
