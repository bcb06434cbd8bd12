//! Memory on large pages, as a mapped weights file has where the system can: how fast memory can be read depends on them.

use std::marker::PhantomData;

use anyhow::{Context, Result};
use bytemuck::Pod;

/// A fixed number of elements, written once, on large pages if the system gives them.
#[derive(Debug)]
pub struct Pages<T> {
    map: Option<memmap2::MmapMut>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Pages<T> {
    /// `len` elements, element `i` being `value(i)`.
    ///
    /// # Errors
    /// The system has no such memory, or does not give it to this process.
    pub fn new(len: usize, value: impl Fn(usize) -> T) -> Result<Pages<T>> {
        let bytes = len.checked_mul(size_of::<T>()).context("too many elements")?;
        let map = if bytes == 0 {
            None
        } else {
            let mut map = memmap2::MmapMut::map_anon(bytes).with_context(|| format!("{bytes} bytes of memory"))?;
            // A wish: where it is not granted, pages stay small.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            for (i, x) in bytemuck::cast_slice_mut(&mut map).iter_mut().enumerate() {
                *x = value(i);
            }
            Some(map)
        };
        Ok(Pages { map, len, of: PhantomData })
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        self.map.as_ref().map_or(&[], |m| &bytemuck::cast_slice(m)[..self.len])
    }

    /// The elements, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        self.map.as_mut().map_or(&mut [], |m| &mut bytemuck::cast_slice_mut(m)[..self.len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_written() {
        for len in [0, 1, 1000, 3 << 20] {
            let p = Pages::new(len, |i| i as u32).unwrap();
            assert_eq!(p.as_slice().len(), len);
            assert!(p.as_slice().iter().enumerate().all(|(i, x)| *x == i as u32));
        }
        for too_much in [1 << 61, usize::MAX] {
            assert!(Pages::new(too_much, |i| i as u32).is_err());
        }
    }
}
