//! The products of a layer: what of, by which weights, and where they go.

use std::ops::Range;

use ttft_kernels::{Element, Mat, MatMut, Output, Product, Weight};

use super::{Network, Stack};
use crate::{activations::Activations, engine::Engine, error::Result};

/// Who computes the products of a layer.
pub(crate) trait Multiply<A> {
    /// Computes one.
    fn linear(&mut self, product: Product<'_, A>) -> Result<()>;
}

/// The engine computes a product and nothing else meanwhile.
impl<A: Element> Multiply<A> for &Engine {
    fn linear(&mut self, Product { x, w, out }: Product<'_, A>) -> Result<()> {
        Ok(Engine::linear(self, x, w, out)?)
    }
}

/// A product of a layer.
#[derive(Clone, Copy)]
pub(super) enum Piece {
    /// Queries, keys and values, by one of the matrices.
    Project(usize),
    /// The output projection of attention, added to the residual stream.
    Out,
    /// Gate and up projection, by one of the matrices or by both at once.
    Up(usize),
    /// The down projection, added to the residual stream.
    Down,
}

impl Stack {
    /// Columns `cols` of `y = x W^T + bias`; `y` has those alone.
    pub(super) fn apply<A: Element>(
        &self,
        by: &mut impl Multiply<A>,
        x: Mat<'_, A>,
        cols: Range<usize>,
        y: &mut MatMut<'_, f32>,
    ) -> Result<()> {
        for j in 0..self.matrices.len() {
            if let Some(product) = self.product(j, x, cols.clone(), y.reborrow()) {
                by.linear(product)?;
            }
        }
        Ok(())
    }

    /// The part of that product which the `j`-th matrix makes; none if none of the columns are its own.
    fn product<'a, A>(
        &'a self,
        j: usize,
        x: Mat<'a, A>,
        cols: Range<usize>,
        y: MatMut<'a, f32>,
    ) -> Option<Product<'a, A>> {
        let at: usize = self.matrices[..j].iter().map(|w| w.view().n()).sum();
        let w = self.matrices[j].view();
        let (from, to) = (cols.start.max(at), cols.end.min(at + w.n()));
        if from >= to {
            return None;
        }
        let y = y.cols_at(from - cols.start, to - from);
        let out = match &self.bias {
            Some(bias) => Output::Bias(y, &bias[from..to]),
            None => Output::Store(y),
        };
        Some(Product { x, w: w.rows_at(from - at, to - from), out })
    }

    /// The upper and the lower half of the rows, stored in a tensor each or in one. None if there is a bias, which
    /// [`Output::SwiGlu`] does not add.
    pub(super) fn halves(&self) -> Option<(Weight<'_>, Weight<'_>)> {
        match (&self.bias, &self.matrices[..]) {
            (None, [both]) => {
                let (both, half) = (both.view(), both.view().n() / 2);
                Some((both.rows_at(0, half), both.rows_at(half, half)))
            }
            (None, [upper, lower]) => Some((upper.view(), lower.view())),
            _ => None,
        }
    }
}

impl Network {
    /// How many products layer `i` takes if all rows pass all of it. To run it, call [`Network::before`] and compute
    /// [`Network::product`] for one after another.
    pub(crate) fn products(&self, i: usize) -> usize {
        self.layers[i].qkv.matrices.len() + self.ups(i) + 2
    }

    /// The `p`-th product of layer `i`.
    pub(crate) fn product<'a, A: Element>(
        &'a self,
        (i, p): (usize, usize),
        act: &'a mut Activations<A>,
    ) -> Product<'a, A> {
        let rows = act.rows();
        self.product_of(i, self.part(i, p), act, (0, rows))
    }

    /// Which one the `p`-th product of layer `i` is.
    pub(super) fn part(&self, i: usize, p: usize) -> Piece {
        let (projections, ups) = (self.layers[i].qkv.matrices.len(), self.ups(i));
        match p.checked_sub(projections) {
            None => Piece::Project(p),
            Some(0) => Piece::Out,
            Some(p) if p <= ups => Piece::Up(p - 1),
            Some(_) => Piece::Down,
        }
    }

    /// How many products the gate and up projections of layer `i` take.
    pub(super) fn ups(&self, i: usize) -> usize {
        let stack = &self.layers[i].gate_up;
        if stack.halves().is_some() { 1 } else { stack.matrices.len() }
    }

    /// A product of layer `i` on rows `r..r + m`, whose input has been made. Of a projection, all columns of queries, keys and
    /// values.
    pub(super) fn product_of<'a, A: Element>(
        &'a self,
        i: usize,
        part: Piece,
        act: &'a mut Activations<A>,
        (r, m): (usize, usize),
    ) -> Product<'a, A> {
        let (l, dim, q_dim, f) = (&self.layers[i], act.dim, self.config.q_dim(i), self.layers[i].shape.ffn);
        match part {
            Piece::Project(j) => {
                let n = act.y_cols;
                let h = Mat::new(&act.h[..m * dim], m, dim);
                let y = MatMut::new(&mut act.y[r * n..][..m * n], m, n);
                l.qkv.product(j, h, 0..n, y).expect("every matrix makes some of the columns")
            }
            Piece::Out => {
                let o = Mat::new(&act.o[r * q_dim..][..m * q_dim], m, q_dim);
                let x = MatMut::new(&mut act.x[r * dim..][..m * dim], m, dim);
                Product { x: o, w: l.out.view(), out: Output::Add(x) }
            }
            Piece::Up(j) => {
                let h = Mat::new(&act.h[..m * dim], m, dim);
                match l.gate_up.halves() {
                    Some((gate, up)) => {
                        let g = MatMut::new(&mut act.g[..m * f], m, f);
                        Product { x: h, w: gate, out: Output::SwiGlu(g, up) }
                    }
                    None => {
                        let u = MatMut::new(&mut act.u[..m * 2 * f], m, 2 * f);
                        l.gate_up.product(j, h, 0..2 * f, u).expect("every matrix makes some of the columns")
                    }
                }
            }
            Piece::Down => {
                let x = MatMut::new(&mut act.x[r * dim..][..m * dim], m, dim);
                Product { x: Mat::new(&act.g[..m * f], m, f), w: l.down.view(), out: Output::Add(x) }
            }
        }
    }
}
