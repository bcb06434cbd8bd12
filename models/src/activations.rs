//! The residual stream of a network, and the scratch of one layer.

use ttft_kernels::{Buffer, Element, Mat, MatMut, Positions};

use crate::{
    cache::RawKv,
    config::NetworkConfig,
    engine::Engine,
    error::Result,
    sizes::{buffer, sum, zeroed},
};

/// Rows that pass through norm, projections and feed-forward network at once. Bounds the memory of activations; at this
/// many rows a projection is far beyond the point where reading its weights again costs time.
pub(crate) const CHUNK: usize = 1024;

/// The residual stream of `batch * n` rows and the scratch of one layer.
#[derive(Debug)]
pub struct Activations<A> {
    pub(crate) dim: usize,
    pub(crate) batch: usize,
    pub(crate) n: usize,
    /// Entries of the caches before the first of these rows.
    pub(crate) past: usize,
    /// Where each row stands in its sequence, for RoPE.
    pub(crate) positions: Vec<u32>,
    /// Residual stream, `[rows, D]`.
    pub(crate) x: Buffer<f32>,
    /// Normalised chunk, `[CHUNK, D]`.
    pub(crate) h: Buffer<A>,
    /// Output of the last projection, `[rows, y_cols]`.
    pub(crate) y: Buffer<f32>,
    pub(crate) y_cols: usize,
    /// Queries, `[rows, H d]`.
    pub(crate) q: Buffer<A>,
    /// Attention's output, `[rows, H d]`.
    pub(crate) o: Buffer<A>,
    /// Gate and up projections of a chunk, `[CHUNK, 2 F]`, where they have biases.
    pub(crate) u: Buffer<f32>,
    /// Gated chunk, `[CHUNK, F]`.
    pub(crate) g: Buffer<A>,
}

impl<A: Element> Activations<A> {
    /// For at most `rows = batch * n` rows.
    ///
    /// # Errors
    /// [`crate::Error::Memory`].
    pub fn new(c: &NetworkConfig, rows: usize) -> Result<Self> {
        let s = Sizes::new(c, rows);
        Ok(Activations {
            dim: c.dim,
            batch: 0,
            n: 0,
            past: 0,
            positions: zeroed(rows as u64)?,
            x: buffer(s.x)?,
            h: buffer(s.h)?,
            y: buffer(s.y)?,
            y_cols: 0,
            q: buffer(s.q)?,
            o: buffer(s.q)?,
            u: buffer(s.u)?,
            g: buffer(s.g)?,
        })
    }

    /// Bytes that [`Activations::new`] allocates.
    pub fn bytes(c: &NetworkConfig, rows: usize) -> u64 {
        let s = Sizes::new(c, rows);
        let [f32s, own] = [&[s.x, s.y, s.u, rows as u64][..], &[s.h, s.q, s.q, s.g]].map(|e| sum(e.iter().copied()));
        sum([f32s.saturating_mul(4), own.saturating_mul(size_of::<A>() as u64)])
    }

    pub(crate) fn start(&mut self, batch: usize, n: usize, past: usize) {
        (self.batch, self.n, self.past) = (batch, n, past);
        self.place(Positions::From(past));
    }

    /// Says where the rows stand in their sequences, if not right after what the caches hold.
    ///
    /// # Panics
    /// If there is not one position for each row.
    pub fn place(&mut self, at: Positions<'_>) {
        let (rows, n) = (self.rows(), self.n.max(1));
        match at {
            Positions::From(start) => {
                self.positions[..rows].iter_mut().enumerate().for_each(|(r, p)| *p = (start + r % n) as u32);
            }
            Positions::Each(each) => self.positions[..rows].copy_from_slice(each),
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch * self.n
    }

    /// Rows of each sequence.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Row `r` of the residual stream, `[D]`.
    pub fn row(&self, r: usize) -> &[f32] {
        &self.x[r * self.dim..][..self.dim]
    }

    /// Starts from rows of other passes, each of a sequence of its own: its residual stream `[D]` and its position.
    ///
    /// # Panics
    /// If there are more of them than rows were planned, or one is not `[D]`.
    pub fn load<'a>(&mut self, rows: impl Iterator<Item = (&'a [f32], u32)>) {
        (self.batch, self.n, self.past) = (0, 1, 0);
        for (row, position) in rows {
            self.x[self.batch * self.dim..][..self.dim].copy_from_slice(row);
            self.positions[self.batch] = position;
            self.batch += 1;
        }
    }

    /// Drops all rows from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        debug_assert!(self.n == 1 && rows <= self.batch);
        self.batch = rows;
    }

    /// Keeps `keep.len() / batch` rows of each sequence: `keep` are their places within it, ascending, `[batch * m]`.
    ///
    /// # Panics
    /// If a sequence has no such row.
    pub fn retain(&mut self, keep: &[u32]) {
        self.compact(keep.len() / self.batch, |to| keep[to] as usize);
    }

    /// Drops all but the last `m` positions of each sequence.
    pub(crate) fn keep_last(&mut self, m: usize) {
        let dropped = self.n - m;
        self.past += dropped;
        self.compact(m, |to| dropped + to % m);
    }

    /// Keeps `m` rows of each sequence; `at` gives the place, within its sequence, of what becomes a row. Ascending.
    fn compact(&mut self, m: usize, at: impl Fn(usize) -> usize) {
        let (n, dim) = (self.n, self.dim);
        if m == n {
            return;
        }
        for to in 0..self.batch * m {
            assert!(at(to) < n, "row {} of a sequence of {n}", at(to));
            let from = to / m * n + at(to);
            self.x.copy_within(from * dim..(from + 1) * dim, to * dim);
            self.positions[to] = self.positions[from];
        }
        self.n = m;
    }

    /// Queries, and where attention's output goes.
    pub(crate) fn attention(&mut self, q_dim: usize) -> (Mat<'_, A>, MatMut<'_, A>) {
        let rows = self.rows();
        let out = MatMut::new(&mut self.o[..rows * q_dim], rows, q_dim);
        (Mat::new(&self.q[..rows * q_dim], rows, q_dim), out)
    }

    /// Columns of the last projection.
    pub(crate) fn y_at(&self, start: usize, cols: usize) -> Mat<'_, f32> {
        Mat::new(&self.y[..self.rows() * self.y_cols], self.rows(), self.y_cols).cols_at(start, cols)
    }

    /// A copy of the keys and values of the last projection, which begin at column `keys_at`.
    pub(crate) fn keep(&self, e: &Engine, keys_at: usize, kv_dim: usize, raw: &mut RawKv<A>) -> Result<()> {
        let rows = self.rows();
        for (at, to) in [(keys_at, &mut raw.k), (keys_at + kv_dim, &mut raw.v)] {
            e.convert(self.y_at(at, kv_dim), MatMut::new(&mut to[..rows * kv_dim], rows, kv_dim))?;
        }
        Ok(())
    }
}

/// Elements of each buffer of [`Activations`].
struct Sizes {
    x: u64,
    h: u64,
    y: u64,
    q: u64,
    u: u64,
    g: u64,
}

impl Sizes {
    fn new(c: &NetworkConfig, rows: usize) -> Sizes {
        let max = |f: &dyn Fn(usize) -> usize| (0..c.layers.len()).map(f).max().unwrap_or(0) as u64;
        let (rows, chunk) = (rows as u64, rows.min(CHUNK) as u64);
        let ffn = max(&|i| c.layers[i].ffn);
        Sizes {
            x: rows.saturating_mul(c.dim as u64),
            h: chunk * c.dim as u64,
            y: rows.saturating_mul(max(&|i| c.q_dim(i) + 2 * c.kv_dim(i))),
            q: rows.saturating_mul(max(&|i| c.q_dim(i))),
            u: if c.biases.ffn { 2 * chunk * ffn } else { 0 },
            g: chunk * ffn,
        }
    }
}

/// `(first row, rows)` of chunks of at most `size` rows.
pub(crate) fn chunks(rows: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(size).map(move |r| (r, size.min(rows - r)))
}
