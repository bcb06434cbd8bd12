//! What a product writes, as threads share it, and activations as f32.

use half::{bf16, slice::HalfFloatSliceExt};

use super::rowwise::SiluMulRow;
use crate::{
    contract::Lines,
    isa::Isa,
    levels::dispatch,
    operands::Output,
    shared::SharedMut,
    view::{DType, Element, Mat, Weight},
};

/// The matrices that a product reads: W, and for SwiGLU a second one, each row of which belongs to that of W.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a> {
    w: Weight<'a>,
    second: Option<Weight<'a>>,
}

impl<'a> Factors<'a> {
    pub fn of<A>(w: Weight<'a>, out: &Output<'a, A>) -> Factors<'a> {
        let second = match out {
            Output::SwiGlu(_, second) => Some(*second),
            _ => None,
        };
        Factors { w, second }
    }

    /// The first matrix, or the one that there is.
    pub fn half(&self, h: usize) -> Weight<'a> {
        if h == 0 { self.w } else { self.second.expect("a second half only of two") }
    }

    pub fn halves(&self) -> usize {
        1 + usize::from(self.second.is_some())
    }

    /// Whether both are stored alike, as our kernels want it.
    pub fn alike(&self) -> bool {
        self.second.is_none_or(|w| w.format() == self.w.format())
    }
}

/// `y`, shared by the threads of a region: each writes other columns.
#[derive(Clone, Copy)]
pub(super) enum Target<'a> {
    Store(SharedMut<'a, f32>, Option<&'a [f32]>),
    Add(SharedMut<'a, f32>),
    SwiGluF32(SharedMut<'a, f32>),
    SwiGluBf16(SharedMut<'a, u16>),
}

impl<'a> Target<'a> {
    /// The target and its row stride.
    pub fn of<A: Element>(out: &'a mut Output<'_, A>) -> (Target<'a>, usize) {
        let stride = match out {
            Output::Store(y) | Output::Bias(y, _) | Output::Add(y) => y.stride(),
            Output::SwiGlu(y, _) => y.stride(),
        };
        let target = match out {
            Output::Store(y) => Target::Store(SharedMut::new(y.data_mut()), None),
            Output::Bias(y, b) => Target::Store(SharedMut::new(y.data_mut()), Some(b)),
            Output::Add(y) => Target::Add(SharedMut::new(y.data_mut())),
            Output::SwiGlu(y, _) => match A::DTYPE {
                DType::BF16 => Target::SwiGluBf16(SharedMut::new(bytemuck::cast_slice_mut(y.data_mut()))),
                _ => Target::SwiGluF32(SharedMut::new(bytemuck::cast_slice_mut(y.data_mut()))),
            },
        };
        (target, stride)
    }
}

impl Target<'_> {
    /// The lines of `y[m0..m0 + cols][n0..n0 + rows]`, to be fetched within so many looks.
    pub fn lines(&self, m0: usize, n0: usize, cols: usize, rows: usize, stride: usize, looks: usize) -> Lines {
        let (at, of) = ((m0, n0), (cols, rows));
        let (y, size): (*const u8, usize) = match self {
            Target::Store(y, _) | Target::Add(y) | Target::SwiGluF32(y) => (y.block(stride, at, of).cast(), 4),
            Target::SwiGluBf16(y) => (y.block(stride, at, of).cast(), 2),
        };
        Lines::new(y, rows * size, cols, stride * size, looks)
    }

    /// Puts sums `a` of features `n0..n0 + a.len()`, and for SwiGLU those of the second matrix, `b`, into the row of y that begins at
    /// element `row`.
    ///
    /// # Safety
    /// No other thread touches these elements of y.
    pub unsafe fn put(&self, isa: Isa, row: usize, n0: usize, a: &[f32], b: &[f32]) {
        let (at, n) = (row + n0, a.len());
        // SAFETY: the caller's promise; `slice` checks that they are inside.
        unsafe {
            match *self {
                Target::Store(y, None) => y.slice(at, n).copy_from_slice(a),
                Target::Store(y, Some(bias)) => {
                    for ((y, a), b) in y.slice(at, n).iter_mut().zip(a).zip(&bias[n0..]) {
                        *y = a + b;
                    }
                }
                Target::Add(y) => y.slice(at, n).iter_mut().zip(a).for_each(|(y, a)| *y += a),
                Target::SwiGluF32(y) => dispatch(isa, SiluMulRow { a, b, y: y.slice(at, n) }),
                Target::SwiGluBf16(y) => {
                    let y: &mut [bf16] = bytemuck::cast_slice_mut(y.slice(at, n));
                    dispatch(isa, SiluMulRow { a, b, y });
                }
            }
        }
    }
}

/// The rows of x as f32, in `buffer` if they are not already.
pub(super) fn widen<'a, A: Element>(x: Mat<'a, A>, buffer: &'a mut [u8]) -> Mat<'a, f32> {
    if let Some(x) = x.cast_f32() {
        return x;
    }
    let buffer: &mut [f32] = &mut bytemuck::cast_slice_mut(buffer)[..x.rows() * x.cols()];
    for (r, y) in buffer.chunks_exact_mut(x.cols().max(1)).enumerate() {
        widen_row(x.row(r), y);
    }
    Mat::new(buffer, x.rows(), x.cols())
}

/// One row as f32.
pub(super) fn widen_row<A: Element>(x: &[A], y: &mut [f32]) {
    match A::DTYPE {
        DType::BF16 => HalfFloatSliceExt::convert_to_f32_slice(bytemuck::cast_slice::<A, bf16>(x), y),
        _ => y.copy_from_slice(bytemuck::cast_slice(x)),
    }
}
