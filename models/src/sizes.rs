//! Sizes that saturate, and buffers that report when there is no memory for them.

use ttft_kernels::{Buffer, Element};

use crate::error::{Error, Result};

/// The product, or the largest number.
pub(crate) fn product(factors: impl IntoIterator<Item = u64>) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

/// The same, of sizes.
pub(crate) fn mul(factors: &[usize]) -> u64 {
    product(factors.iter().map(|n| *n as u64))
}

/// The sum, or the largest number.
pub(crate) fn sum(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// A zeroed vector, or [`Error::Memory`].
pub(crate) fn zeroed<T: Clone + Default>(n: u64) -> Result<Vec<T>> {
    let bytes = n.saturating_mul(size_of::<T>() as u64);
    let n = usize::try_from(n).map_err(|_| Error::Memory { bytes })?;
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|_| Error::Memory { bytes })?;
    v.resize(n, T::default());
    Ok(v)
}

/// A zeroed buffer that begins on a cache line, or [`Error::Memory`].
pub(crate) fn buffer<T: Element>(n: u64) -> Result<Buffer<T>> {
    let full = |_| Error::Memory { bytes: n.saturating_mul(size_of::<T>() as u64) };
    Buffer::zeroed(usize::try_from(n).unwrap_or(usize::MAX)).map_err(full)
}
