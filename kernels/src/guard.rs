//! Buffers between inaccessible pages, for tests: a kernel that reads or writes past either end of an operand faults.

use std::marker::PhantomData;

/// `len` elements flush against an inaccessible page, at the end or at the start, with another such page on the far side.
pub struct Guarded<T> {
    memory: region::Allocation,
    offset: usize,
    len: usize,
    _element: PhantomData<T>,
}

/// Which side of the elements has no slack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// The first element starts a page.
    Start,
    /// The last element ends a page.
    End,
}

impl<T: bytemuck::Pod> Guarded<T> {
    /// A copy of `data`.
    ///
    /// # Panics
    /// If the operating system gives no pages, or T does not tile a page.
    pub fn new(data: &[T], flush: Flush) -> Self {
        let page = region::page::size();
        assert!(page.is_multiple_of(size_of::<T>().max(1)), "elements tile a page");
        let bytes = size_of_val(data);
        let body = bytes.next_multiple_of(page).max(page);
        let mut memory = region::alloc(body + 2 * page, region::Protection::READ_WRITE).expect("pages");
        let base = memory.as_mut_ptr::<u8>();
        // SAFETY: the first and the last page belong to this allocation, which nothing else uses, and hold no elements.
        unsafe {
            region::protect(base, page, region::Protection::NONE).expect("protect");
            region::protect(base.add(page + body), page, region::Protection::NONE).expect("protect");
        }
        let offset = page + if flush == Flush::End { body - bytes } else { 0 };
        let mut new = Guarded { memory, offset, len: data.len(), _element: PhantomData };
        new.as_mut_slice().copy_from_slice(data);
        new
    }

    /// The elements.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `offset..offset + len` elements are the readable body of the allocation; pages are zeroed or copied from
        // T, any bytes are a T (Pod), and the offset is a multiple of T's size, so aligned.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr::<u8>().add(self.offset).cast(), self.len) }
    }

    /// The elements, mutable.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: the same elements as of `as_slice`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr::<u8>().add(self.offset).cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_touch_the_guard() {
        let page = region::page::size();
        for n in [1, 3, page / 4, page / 4 + 1] {
            let data: Vec<u32> = (0..n as u32).collect();
            let end = Guarded::new(&data, Flush::End);
            assert_eq!(end.as_slice(), data);
            assert_eq!(end.as_slice().as_ptr_range().end as usize % page, 0);
            let start = Guarded::new(&data, Flush::Start);
            assert_eq!(start.as_slice(), data);
            assert_eq!(start.as_slice().as_ptr() as usize % page, 0);
        }
    }
}
