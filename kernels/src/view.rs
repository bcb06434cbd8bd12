//! Views of row-major matrices, and the head-major cache that attention reads.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::lines::Buffer;

/// Storage type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    BF16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// Lower-case name, as in kernel names and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a weight matrix is stored, whatever it is multiplied in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Each element for itself.
    Elements(DType),
}

impl Format {
    /// F32 elements.
    pub const F32: Format = Format::Elements(DType::F32);
    /// F16 elements.
    pub const F16: Format = Format::Elements(DType::F16);
    /// BF16 elements.
    pub const BF16: Format = Format::Elements(DType::BF16);

    /// Bytes of the first `n` elements of a row. A format that stores elements in blocks answers for whole blocks.
    pub const fn bytes(self, n: usize) -> usize {
        match self {
            Format::Elements(dtype) => n * dtype.size(),
        }
    }
}

impl From<DType> for Format {
    fn from(dtype: DType) -> Format {
        Format::Elements(dtype)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// Element type of activations and caches: `f32` or `bf16`.
pub trait Element:
    sealed::Sealed + bytemuck::Pod + Default + Send + Sync + std::fmt::Debug + PartialEq + 'static
{
    /// The storage type.
    const DTYPE: DType;
    /// Rounds to nearest, ties to even.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        bf16::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
}

/// Whether `len` elements from `start` lie inside `whole`.
fn inside(start: usize, len: usize, whole: usize) -> bool {
    start.checked_add(len).is_some_and(|end| end <= whole)
}

/// A row-major matrix `[rows, cols]` whose rows start `stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A dense matrix.
    ///
    /// # Panics
    /// If `data` is not exactly `rows * cols` long.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(cols), "Mat::new: data does not fill [{rows}, {cols}]");
        Mat { data, rows, cols, stride: cols }
    }

    /// Columns `start..start + cols` of every row.
    ///
    /// # Panics
    /// If the columns lie outside the matrix.
    pub fn cols_at(self, start: usize, cols: usize) -> Self {
        assert!(inside(start, cols, self.cols), "Mat::cols_at: {start}+{cols} > {}", self.cols);
        let data = if self.rows == 0 { self.data } else { &self.data[start..] };
        Mat { data, rows: self.rows, cols, stride: self.stride }
    }

    /// Every `step`-th row from `start`, `rows` of them.
    ///
    /// # Panics
    /// If the rows lie outside the matrix, or are one row several times.
    pub fn rows_step(self, start: usize, rows: usize, step: usize) -> Self {
        let last = |beyond: usize| beyond.checked_mul(step)?.checked_add(start);
        // Rows that are the same one would make a view of more elements than memory holds.
        let fits = match rows {
            0 => true,
            _ => (rows == 1 || step > 0) && last(rows - 1).is_some_and(|last| last < self.rows),
        };
        assert!(fits, "Mat::rows_step: {rows} rows by {step} from {start} are outside {} rows", self.rows);
        let data = if rows == 0 { &self.data[..0] } else { &self.data[start * self.stride..] };
        // The distance of one row to itself does not matter.
        Mat { data, rows, cols: self.cols, stride: if rows > 1 { self.stride * step } else { self.stride } }
    }

    /// Rows `start..start + rows`.
    pub fn rows_at(self, start: usize, rows: usize) -> Self {
        self.rows_step(start, rows, 1)
    }

    /// Row `i`.
    #[inline]
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows);
        &self.data[i * self.stride..][..self.cols]
    }

    /// Number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row's start to the next's.
    #[inline]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The elements from the first of row 0 on.
    #[inline]
    pub(crate) fn data(&self) -> &'a [T] {
        self.data
    }
}

impl<'a, A: Element> Mat<'a, A> {
    /// The same matrix, if its elements are f32.
    pub(crate) fn cast_f32(self) -> Option<Mat<'a, f32>> {
        let data = (A::DTYPE == DType::F32).then(|| bytemuck::cast_slice(self.data))?;
        Some(Mat { data, rows: self.rows, cols: self.cols, stride: self.stride })
    }
}

/// A mutable row-major matrix.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, T> MatMut<'a, T> {
    /// A dense matrix.
    ///
    /// # Panics
    /// If `data` is not exactly `rows * cols` long.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert_eq!(Some(data.len()), rows.checked_mul(cols), "MatMut::new: data does not fill [{rows}, {cols}]");
        MatMut { data, rows, cols, stride: cols }
    }

    /// Columns `start..start + cols` of every row.
    ///
    /// # Panics
    /// If the columns lie outside the matrix.
    pub fn cols_at(self, start: usize, cols: usize) -> Self {
        assert!(inside(start, cols, self.cols), "MatMut::cols_at: {start}+{cols} > {}", self.cols);
        let data = if self.rows == 0 { self.data } else { &mut self.data[start..] };
        MatMut { data, rows: self.rows, cols, stride: self.stride }
    }

    /// The same matrix, read-only.
    pub fn as_ref(&self) -> Mat<'_, T> {
        Mat { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// A shorter borrow.
    pub fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// Row `i`.
    #[inline]
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows);
        &mut self.data[i * self.stride..][..self.cols]
    }

    /// Number of rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements from one row's start to the next's.
    #[inline]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// The elements from the first of row 0 on.
    #[inline]
    pub(crate) fn data_mut(&mut self) -> &mut [T] {
        self.data
    }
}

/// A weight matrix `[N, K]`, row-major and dense, in the type of its file: `y = x W^T`.
///
/// It may lie in a mapped file, of which nothing is copied: whoever maps it promises that the file stays as it is for as long as
/// the view is used. A file that is overwritten meanwhile gives other results; one that is cut short ends the process.
#[derive(Clone, Copy, Debug)]
pub enum Weight<'a> {
    /// F32 elements.
    F32(Mat<'a, f32>),
    /// F16 elements.
    F16(Mat<'a, f16>),
    /// BF16 elements.
    BF16(Mat<'a, bf16>),
}

/// Runs `$e` with `$m` bound to the typed matrix inside a [`Weight`].
macro_rules! with_weight {
    ($w:expr, $m:ident => $e:expr) => {
        match $w {
            $crate::view::Weight::F32($m) => $e,
            $crate::view::Weight::F16($m) => $e,
            $crate::view::Weight::BF16($m) => $e,
        }
    };
}

impl<'a> Weight<'a> {
    /// Output features N.
    pub fn n(&self) -> usize {
        with_weight!(self, m => m.rows())
    }

    /// Input features K.
    pub fn k(&self) -> usize {
        with_weight!(self, m => m.cols())
    }

    /// Elements from one row's start to the next's.
    pub(crate) fn stride(&self) -> usize {
        with_weight!(self, m => m.stride())
    }

    /// How it is stored.
    pub fn format(&self) -> Format {
        match self {
            Weight::F32(_) => Format::F32,
            Weight::F16(_) => Format::F16,
            Weight::BF16(_) => Format::BF16,
        }
    }

    /// The matrix, if it is stored in F32.
    pub(crate) fn as_f32(self) -> Option<Mat<'a, f32>> {
        match self {
            Weight::F32(m) => Some(m),
            _ => None,
        }
    }

    /// Row `r` as f32, exactly.
    pub(crate) fn widen_row(&self, r: usize, y: &mut [f32]) {
        match self {
            Weight::F32(m) => y.copy_from_slice(m.row(r)),
            Weight::F16(m) => m.row(r).convert_to_f32_slice(y),
            Weight::BF16(m) => m.row(r).convert_to_f32_slice(y),
        }
    }

    /// Output features `start..start + n`.
    pub fn rows_at(self, start: usize, n: usize) -> Weight<'a> {
        match self {
            Weight::F32(m) => Weight::F32(m.rows_at(start, n)),
            Weight::F16(m) => Weight::F16(m.rows_at(start, n)),
            Weight::BF16(m) => Weight::BF16(m.rows_at(start, n)),
        }
    }
}

/// The rows of a [`Weight`] as they lie in memory, whatever their format.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored<'a> {
    bytes: &'a [u8],
    format: Format,
    /// Rows.
    pub n: usize,
    /// Elements of a row.
    pub k: usize,
    /// Bytes between two rows.
    pub stride: usize,
}

impl<'a> Weight<'a> {
    pub(crate) fn stored(self) -> Stored<'a> {
        let format = self.format();
        let (n, k, stride) = with_weight!(self, m => (m.rows(), m.cols(), format.bytes(m.stride())));
        Stored { bytes: with_weight!(self, m => bytemuck::cast_slice(m.data())), format, n, k, stride }
    }
}

impl<'a> Stored<'a> {
    /// The bytes from element `at` of row `n` to the end of the last of `rows` rows.
    ///
    /// # Panics
    /// If there are none, or W ends before.
    pub fn rows(&self, n: usize, rows: usize, at: usize) -> &'a [u8] {
        assert!(rows > 0 && inside(n, rows, self.n) && at < self.k, "rows {n}+{rows} of {}, element {at}", self.n);
        let (first, end) = (self.format.bytes(at), self.format.bytes(self.k));
        &self.bytes[n * self.stride + first..(n + rows - 1) * self.stride + end]
    }
}

/// Keys or values of one layer: `[batch, heads, capacity, head_dim]`, the positions of one head contiguous.
#[derive(Clone, Debug)]
pub struct HeadCache<A> {
    data: Buffer<A>,
    batch: usize,
    heads: usize,
    capacity: usize,
    head_dim: usize,
}

impl<A: Element> HeadCache<A> {
    /// A zeroed cache.
    ///
    /// # Panics
    /// Without memory for it.
    pub fn new(batch: usize, heads: usize, capacity: usize, head_dim: usize) -> Self {
        let len = [heads, capacity, head_dim].into_iter().try_fold(batch, usize::checked_mul);
        // More than can be counted is more than there is.
        let data = Buffer::zeroed(len.unwrap_or(usize::MAX))
            .unwrap_or_else(|e| panic!("a cache of {batch} x {heads} x {capacity} x {head_dim}: {e}"));
        HeadCache { data, batch, heads, capacity, head_dim }
    }

    /// Sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Key/value heads.
    pub fn heads(&self) -> usize {
        self.heads
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Features of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.len() * size_of::<A>()
    }

    /// All positions of one head: `[capacity, head_dim]`.
    pub fn head(&self, b: usize, h: usize) -> Mat<'_, A> {
        assert!(b < self.batch && h < self.heads);
        let n = self.capacity * self.head_dim;
        Mat::new(&self.data[(b * self.heads + h) * n..][..n], self.capacity, self.head_dim)
    }

    /// All positions of one head, mutable.
    pub fn head_mut(&mut self, b: usize, h: usize) -> MatMut<'_, A> {
        assert!(b < self.batch && h < self.heads);
        let n = self.capacity * self.head_dim;
        MatMut::new(&mut self.data[(b * self.heads + h) * n..][..n], self.capacity, self.head_dim)
    }

    /// Every element, in `[batch, heads, capacity, head_dim]` order.
    pub(crate) fn data_mut(&mut self) -> &mut [A] {
        &mut self.data
    }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn views_outside_their_matrix_are_refused_however_large() {
        let x: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let m = || Mat::new(&x, 4, 3);
        let huge = usize::MAX;
        for (start, cols) in [(1, 3), (3, 1), (1, huge), (huge, 1), (2, huge - 1)] {
            assert!(catch_unwind(|| m().cols_at(start, cols)).is_err(), "columns {start}, {cols}");
            let mut y = x.clone();
            assert!(catch_unwind(move || MatMut::new(&mut y, 4, 3).cols_at(start, cols).rows()).is_err());
        }
        // Products and sums that wrap around to a row inside.
        let wrapped = [(0, 3, huge / 2 + 1), (1, 2, huge), (huge, 2, 2), (3, 5, huge / 4 + 1)];
        for (start, rows, step) in [(0, 5, 1), (4, 1, 1), (1, 3, 2), (0, 2, 0)].into_iter().chain(wrapped) {
            assert!(catch_unwind(|| m().rows_step(start, rows, step)).is_err(), "{rows} rows by {step} from {start}");
        }
        assert_eq!(m().rows_step(3, 1, huge).row(0), [9.0, 10.0, 11.0], "one row has no distance to the next");
        assert_eq!(m().rows_step(huge, 0, huge).rows(), 0);
        assert_eq!(m().rows_step(1, 2, 2).cols_at(1, 2).row(1), [10.0, 11.0]);
        assert!(catch_unwind(|| Mat::new(&x, huge / 2 + 1, 2)).is_err());
        assert!(catch_unwind(|| HeadCache::<f32>::new(huge / 2 + 1, 2, 2, 2)).is_err(), "wraps to a small cache");
    }
}
