//! Buffers that begin on a cache line: a vector that does not cross lines is loaded and stored at full speed, and rows whose
//! length is a multiple of a line share none.

use std::{
    collections::TryReserveError,
    marker::PhantomData,
    ops::{Deref, DerefMut},
};

use bytemuck::{Pod, Zeroable};

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

// SAFETY: 64 bytes, for which zero is a value.
unsafe impl Zeroable for Line {}
// SAFETY: 64 bytes of any content, without padding: the alignment is the size.
unsafe impl Pod for Line {}

/// A fixed number of elements, the first at the start of a cache line.
#[derive(Clone, Debug)]
pub struct Buffer<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// The allocator's, when there is no memory.
    pub fn zeroed(len: usize) -> Result<Buffer<T>, TryReserveError> {
        let mut lines = Vec::new();
        // A length that no memory holds is refused by the allocator.
        let n = len.checked_mul(size_of::<T>()).map_or(usize::MAX, |bytes| bytes.div_ceil(64));
        lines.try_reserve_exact(n)?;
        lines.resize(n, Line::zeroed());
        Ok(Buffer { lines, len, of: PhantomData })
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn buffers_begin_on_a_line_and_hold_what_they_were_asked_for() {
        fn holds<T: Pod + PartialEq + std::fmt::Debug>(len: usize) {
            let mut b = Buffer::<T>::zeroed(len).unwrap();
            assert_eq!((b.len(), b.as_ptr().addr() % 64), (len, 0));
            assert!(b.iter().all(|x| *x == T::zeroed()));
            b.iter_mut().for_each(|x| bytemuck::bytes_of_mut(x).fill(1));
            assert!(bytemuck::cast_slice::<T, u8>(&b).iter().all(|byte| *byte == 1), "what is written is read");
        }
        for len in [0, 1, 15, 16, 17, 1000] {
            holds::<f32>(len);
            holds::<bf16>(len);
        }
        assert!(Buffer::<f32>::zeroed(usize::MAX).is_err());
        assert!(Buffer::<f32>::zeroed(usize::MAX / 8).is_err());
    }
}
