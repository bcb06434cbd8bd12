//! The residual stream of a network, and the scratch of one layer.

use std::ops::Range;

use ttft_kernels::{AttnShape, Buffer, Element, Mat, MatMut};

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

/// Rows of each sequence: the last `count` of the first `of` entries that it has, or will have, in the cache, and before
/// them the `first` of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rows {
    /// So many at the start of the sequence, none of which is among the last.
    pub first: usize,
    /// So many last.
    pub count: usize,
    /// Where these end.
    pub of: usize,
}

impl Rows {
    /// All of `n`.
    pub fn all(n: usize) -> Rows {
        Rows { first: 0, count: n, of: n }
    }

    /// The last `count` of `of`.
    pub fn last_of(count: usize, of: usize) -> Rows {
        Rows { first: 0, count, of }
    }

    /// All of them.
    pub fn total(self) -> usize {
        self.first + self.count
    }

    /// Entries before the last ones.
    pub fn past(self) -> usize {
        self.of - self.count
    }

    /// Entries that they see in all, each those up to itself.
    pub fn seen(self) -> u64 {
        // The most positions that a u64 counts the pairs of.
        let [first, n, past] = [self.first, self.count, self.past()].map(|n| (n as u64).min(1 << 30));
        first * (first + 1) / 2 + n * past + n * (n + 1) / 2
    }

    /// The first and the last of them.
    pub fn ends(self, first: usize, last: usize) -> Rows {
        Rows { first, count: last, ..self }
    }
}

/// The residual stream of the rows of a batch and the scratch of one layer. Rows lie in at most two runs, each of
/// neighbours in every sequence: the first rows of all sequences, sequence by sequence, then the last ones of all.
#[derive(Debug)]
pub struct Activations<A> {
    pub(crate) dim: usize,
    pub(crate) batch: usize,
    /// Rows of each sequence in the first run.
    pub(crate) first: usize,
    /// Rows of each sequence in the last run.
    pub(crate) n: usize,
    /// Entries of the caches before the last run.
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
    /// For at most so many rows of all sequences.
    ///
    /// # Errors
    /// [`crate::Error::Memory`].
    pub fn new(c: &NetworkConfig, rows: usize) -> Result<Self> {
        let s = Sizes::new(c, rows);
        Ok(Activations {
            dim: c.dim,
            batch: 0,
            first: 0,
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

    pub(crate) fn start(&mut self, batch: usize, rows: Rows) {
        (self.batch, self.first, self.n, self.past) = (batch, rows.first, rows.count, rows.past());
        let runs = self.runs();
        for Run { rows, shape } in runs.into_iter().flatten() {
            let places = self.positions[rows].iter_mut().enumerate();
            places.for_each(|(r, p)| *p = (shape.past + r % shape.n) as u32);
        }
    }

    /// Says where the rows stand in their sequences, if not where their entries are in the caches.
    ///
    /// # Panics
    /// If there is not one position for each row.
    pub fn place(&mut self, at: &[u32]) {
        let rows = self.rows();
        self.positions[..rows].copy_from_slice(at);
    }

    /// Says that so many tokens before the rows have no entries in the caches.
    pub(crate) fn shift(&mut self, dropped: usize) {
        let rows = self.rows();
        self.positions[..rows].iter_mut().for_each(|p| *p += dropped as u32);
    }

    /// The runs of rows that are not empty.
    pub(crate) fn runs(&self) -> [Option<Run>; 2] {
        let run = |at: usize, n: usize, past: usize| {
            let shape = AttnShape { batch: self.batch, n, past };
            (n > 0).then(|| Run { rows: at..at + self.batch * n, shape })
        };
        [run(0, self.first, 0), run(self.batch * self.first, self.n, self.past)]
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch * (self.first + self.n)
    }

    /// Rows of each sequence in the last run.
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
        (self.batch, self.first, self.n, self.past) = (0, 0, 1, 0);
        for (row, position) in rows {
            self.x[self.batch * self.dim..][..self.dim].copy_from_slice(row);
            self.positions[self.batch] = position;
            self.batch += 1;
        }
    }

    /// Drops all rows from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        debug_assert!((self.first, self.n) == (0, 1) && rows <= self.batch);
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
        self.compact(m, |to| dropped + to % m.max(1));
    }

    /// Drops all but the first `first` and the last `last` positions of each sequence.
    pub(crate) fn keep_ends(&mut self, first: usize, last: usize) {
        if (first, last) == (self.first, self.n) {
            return;
        }
        if first == 0 {
            return self.keep_last(last);
        }
        if first == self.first {
            // What there is of first rows stays where it is.
            let (batch, dropped) = (self.batch, self.n - last);
            let at = batch * first;
            for to in 0..batch * last {
                self.copy_row(at + to / last * self.n + dropped + to % last, at + to);
            }
            (self.n, self.past) = (last, self.past + dropped);
            return;
        }
        assert!(self.first == 0 && self.past == 0 && first + last <= self.n, "{first} and {last} of {}", self.n);
        let (n, each, dropped) = (self.n, first + last, self.n - last);
        self.compact(each, |to| if to % each < first { to % each } else { n - each + to % each });
        // Sequence by sequence so far: the first rows of all of them go to the front.
        let (dim, firsts) = (self.dim, self.batch * first);
        let from = |to: usize| match to.checked_sub(firsts) {
            None => to / first * each + to % first,
            Some(to) => to / last * each + first + to % last,
        };
        for to in 0..self.batch * each {
            let mut at = from(to);
            // What stood there has been moved already: to where the row that took its place came from.
            while at < to {
                at = from(at);
            }
            if at > to {
                let (low, high) = self.x.split_at_mut(at * dim);
                low[to * dim..][..dim].swap_with_slice(&mut high[..dim]);
                self.positions.swap(to, at);
            }
        }
        (self.first, self.n, self.past) = (first, last, dropped);
    }

    fn copy_row(&mut self, from: usize, to: usize) {
        let dim = self.dim;
        self.x.copy_within(from * dim..(from + 1) * dim, to * dim);
        self.positions[to] = self.positions[from];
    }

    /// Keeps `m` rows of each sequence, all of the last run; `at` gives the place, within that, of what becomes a row.
    /// Ascending.
    fn compact(&mut self, m: usize, at: impl Fn(usize) -> usize) {
        let (start, n) = (self.batch * self.first, self.n);
        self.first = 0;
        if m == n && start == 0 {
            return;
        }
        for to in 0..self.batch * m {
            assert!(at(to) < n, "row {} of a sequence of {n}", at(to));
            self.copy_row(start + to / m * n + at(to), to);
        }
        self.n = m;
    }

    /// Queries of some rows, and where attention's output goes.
    pub(crate) fn attention(&mut self, q_dim: usize, rows: Range<usize>) -> (Mat<'_, A>, MatMut<'_, A>) {
        let (n, elements) = (rows.len(), rows.start * q_dim..rows.end * q_dim);
        (Mat::new(&self.q[elements.clone()], n, q_dim), MatMut::new(&mut self.o[elements], n, q_dim))
    }

    /// Columns of the last projection.
    pub(crate) fn y_at(&self, start: usize, cols: usize) -> Mat<'_, f32> {
        Mat::new(&self.y[..self.rows() * self.y_cols], self.rows(), self.y_cols).cols_at(start, cols)
    }

    /// A copy of the keys and values of the last projection, which begin at column `keys_at`: of as many of the first rows of
    /// each sequence as `raw` holds.
    pub(crate) fn keep(&self, e: &Engine, keys_at: usize, kv_dim: usize, raw: &mut RawKv<A>) -> Result<()> {
        for (at, to) in [(keys_at, &mut raw.k), (keys_at + kv_dim, &mut raw.v)] {
            let y = self.y_at(at, kv_dim);
            for Part { from, to: at, rows } in self.leading(to.len() / kv_dim) {
                let to = &mut to[at * kv_dim..][..rows * kv_dim];
                e.convert(y.rows_at(from, rows), MatMut::new(to, rows, kv_dim))?;
            }
        }
        Ok(())
    }

    /// Where the first rows of each sequence are, `rows` of all together: as few parts as possible.
    pub(crate) fn leading(&self, rows: usize) -> impl Iterator<Item = Part> + use<A> {
        debug_assert!(self.first == 0 && rows <= self.rows());
        let (n, each) = (self.n, rows / self.batch);
        let (parts, rows) = if each == n { (1, rows) } else { (self.batch, each) };
        (0..parts).map(move |b| Part { from: b * n, to: b * each, rows })
    }
}

/// Rows that are copied together.
pub(crate) struct Part {
    /// The first.
    pub from: usize,
    /// The place of its copy.
    pub to: usize,
    /// So many.
    pub rows: usize,
}

/// Rows that are neighbours in every sequence.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Which of all rows, sequence by sequence.
    pub rows: Range<usize>,
    /// How many of each sequence, and what is before them.
    pub shape: AttnShape,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zoo;

    /// Which rows are left, in which order, whatever was left out before: (sequence, position).
    #[test]
    fn first_and_last_rows_are_kept_in_two_runs() {
        let mut c = zoo::network("OE270M").unwrap();
        (c.dim, c.head_dim) = (2, 2);
        c.layers.truncate(1);
        let of = |keep: &[(usize, usize)], (batch, n): (usize, usize)| {
            let mut act = Activations::<f32>::new(&c, batch * n).unwrap();
            act.start(batch, Rows::all(n));
            act.x.iter_mut().enumerate().for_each(|(i, x)| *x = (i / 2 / n * 100 + i / 2 % n) as f32);
            keep.iter().for_each(|&(first, last)| act.keep_ends(first, last));
            let rows: Vec<usize> = (0..act.rows()).map(|r| act.row(r)[1] as usize).collect();
            assert!(rows.iter().zip(&act.positions).all(|(row, at)| row % 100 == *at as usize), "{rows:?}");
            let runs = act.runs().into_iter().flatten().map(|r| (r.rows, r.shape.n, r.shape.past)).collect::<Vec<_>>();
            (rows, runs)
        };
        let (rows, runs) = of(&[(2, 3)], (3, 9));
        assert_eq!(rows, [0, 1, 100, 101, 200, 201, 6, 7, 8, 106, 107, 108, 206, 207, 208]);
        assert_eq!(runs, [(0..6, 2, 0), (6..15, 3, 6)]);
        // Fewer of the last, then none of the first.
        let (rows, runs) = of(&[(2, 3), (2, 1)], (2, 9));
        assert_eq!((rows, runs), (vec![0, 1, 100, 101, 8, 108], vec![(0..4, 2, 0), (4..6, 1, 8)]));
        let (rows, runs) = of(&[(2, 3), (0, 2)], (2, 9));
        assert_eq!((rows, runs), (vec![7, 8, 107, 108], vec![(0..4, 2, 7)]));
        // Of any shape, as gathered one by one.
        for (batch, n, first, last) in [(1, 9, 3, 4), (5, 4, 1, 2), (4, 8, 5, 2), (2, 3, 1, 1), (7, 6, 2, 4)] {
            let at = |b: usize| move |p: usize| b * 100 + p;
            let firsts = (0..batch).flat_map(|b| (0..first).map(at(b)));
            let lasts = (0..batch).flat_map(|b| (n - last..n).map(at(b)));
            assert_eq!(of(&[(first, last)], (batch, n)).0, firsts.chain(lasts).collect::<Vec<_>>(), "{batch} {n}");
        }
    }
}
