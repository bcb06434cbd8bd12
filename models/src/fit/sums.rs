//! Sums over tokens: of features, of targets, and of their products.

use std::sync::{Mutex, PoisonError};

use ttft_kernels::{Buffer, Element, Mat, MatMut, Output, Weight};

use crate::{
    engine::Engine,
    error::Result,
    sizes::{buffer, mul, sum, zeroed},
};

/// Features that are transposed together: those of a cache line.
const GROUP: usize = 16;

/// Numbers that a thread adds at once: as many as stay in a first-level cache.
const ADDED: usize = 4096;

/// Columns of a block are filled up with zeros to a multiple of this, so that products take whole vectors of any level.
const WHOLE: usize = 32;

/// Lists of numbers with their names.
type Named<'a, T> = Vec<(String, &'a mut [T])>;

/// A series of numbers at each token, and their sums.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// What is subtracted of each before anything is summed: its mean over the first block.
    pub shift: Vec<f32>,
    /// Sums over tokens of what is left.
    pub sum: Vec<f64>,
}

impl Series {
    fn new(width: usize) -> Result<Series> {
        Ok(Series { shift: zeroed(width as u64)?, sum: zeroed(width as u64)? })
    }

    /// The means over `rows` tokens, of what is left.
    pub fn means(&self, rows: usize) -> Vec<f64> {
        self.sum.iter().map(|s| s / rows as f64).collect()
    }
}

/// What maps read: `X'X`.
#[derive(Clone, Debug)]
pub(super) struct Gram {
    pub x: Series,
    /// `[F, F]`.
    pub products: Vec<f64>,
}

/// What a map should give: `Y'X`.
#[derive(Clone, Debug)]
pub(super) struct Cross {
    /// What it reads, as a place among the features.
    pub feature: usize,
    pub y: Series,
    /// `[N, F]`.
    pub products: Vec<f64>,
}

/// All sums, and the block that is being added.
#[derive(Debug)]
pub(super) struct Sums {
    grams: Vec<Gram>,
    crosses: Vec<Cross>,
    rows: usize,
    /// Tokens of the block.
    block: usize,
    /// Each feature of the block.
    features: Vec<Columns>,
    output: Columns,
    products: Buffer<f32>,
}

impl Sums {
    /// Zeros, for features of these widths and outputs of width and feature.
    pub fn new(widths: &[usize], outputs: impl Iterator<Item = (usize, usize)>) -> Result<Sums> {
        let gram = |&f: &usize| Ok(Gram { x: Series::new(f)?, products: zeroed(mul(&[f, f]))? });
        let cross = |(n, feature): (usize, usize)| {
            Ok(Cross { feature, y: Series::new(n)?, products: zeroed(mul(&[n, widths[feature]]))? })
        };
        Ok(Sums {
            grams: widths.iter().map(gram).collect::<Result<_>>()?,
            crosses: outputs.map(cross).collect::<Result<_>>()?,
            rows: 0,
            block: 0,
            features: vec![Columns::default(); widths.len()],
            output: Columns::default(),
            products: buffer(0)?,
        })
    }

    pub fn grams(&self) -> &[Gram] {
        &self.grams
    }

    pub fn crosses(&self) -> &[Cross] {
        &self.crosses
    }

    /// Tokens that were added.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The most features of any.
    pub fn widest(&self) -> usize {
        self.grams.iter().map(|g| g.x.sum.len()).max().unwrap_or(0)
    }

    /// Every list of numbers that a state is made of, with its name.
    pub fn parts(&mut self) -> (Named<'_, f32>, Named<'_, f64>) {
        let (mut shifts, mut sums) = (Vec::new(), Vec::new());
        let grams = self.grams.iter_mut().map(|g| (&mut g.x, &mut g.products));
        let crosses = self.crosses.iter_mut().map(|c| (&mut c.y, &mut c.products));
        let named = |of: &'static str| move |i: usize| format!("{of}.{i}");
        let grams = (0..).map(named("features")).zip(grams);
        let crosses = (0..).map(named("outputs")).zip(crosses);
        for (name, (series, products)) in grams.chain(crosses) {
            shifts.push((format!("{name}.shift"), &mut series.shift[..]));
            sums.push((format!("{name}.sum"), &mut series.sum[..]));
            sums.push((format!("{name}.products"), &mut products[..]));
        }
        (shifts, sums)
    }

    /// Says how many tokens the numbers hold that were put into [`Sums::parts`].
    pub fn hold(&mut self, rows: usize) {
        self.rows = rows;
    }

    /// Begins a block of so many tokens.
    pub fn begin(&mut self, rows: usize) {
        self.block = rows;
    }

    /// Ends it.
    pub fn end(&mut self) {
        self.rows += std::mem::take(&mut self.block);
    }

    /// Feature `i` of the block, of all rows of its windows, `[windows * window, F]`.
    pub fn feature<T: Element>(&mut self, e: &Engine, i: usize, x: &[T], window: usize) -> Result<()> {
        let (gram, columns, first) = (&mut self.grams[i], &mut self.features[i], self.rows == 0);
        columns.fill(e, x, window, self.block, &mut gram.x, first)?;
        accumulate(e, columns, columns, &mut self.products, &mut gram.products)
    }

    /// Output `i` of the block, of all rows of its windows, `[windows * window, N]`; after what it reads.
    pub fn output<T: Element>(&mut self, e: &Engine, i: usize, y: &[T], window: usize) -> Result<()> {
        let (cross, first) = (&mut self.crosses[i], self.rows == 0);
        self.output.fill(e, y, window, self.block, &mut cross.y, first)?;
        accumulate(e, &self.output, &self.features[cross.feature], &mut self.products, &mut cross.products)
    }
}

/// Bytes of a block of so many tokens, whose features have these widths and whose widest output has `output` numbers.
pub(super) fn block_bytes(widths: &[usize], output: usize, rows: usize) -> u64 {
    let most = widths.iter().copied().max().unwrap_or(0);
    let columns = widths.iter().chain([&output]).map(|width| mul(&[4 * WHOLE, *width, rows.div_ceil(WHOLE)]));
    sum(columns.chain([mul(&[4, most, most.max(output)])]))
}

/// A block transposed: each of `width` numbers at all its tokens, `[width, length]`, less its shift.
#[derive(Clone, Debug, Default)]
struct Columns {
    values: Option<Buffer<f32>>,
    width: usize,
    length: usize,
}

impl Columns {
    fn mat(&self) -> Mat<'_, f32> {
        let values = self.values.as_deref().unwrap_or_default();
        Mat::new(&values[..self.width * self.length], self.width, self.length)
    }

    /// Takes the rows of windows but the first of each, `rows` in all, and adds them to the sums of `series`; if this is the
    /// `first` block, their means become its shift.
    fn fill<T: Element>(
        &mut self,
        e: &Engine,
        from: &[T],
        window: usize,
        rows: usize,
        series: &mut Series,
        first: bool,
    ) -> Result<()> {
        let (width, length) = (series.sum.len(), rows.next_multiple_of(WHOLE));
        if self.values.as_ref().is_none_or(|v| v.len() < width * length) {
            self.values = Some(buffer(mul(&[width, length]))?);
        }
        (self.width, self.length) = (width, length);
        let values = &mut self.values.as_deref_mut().unwrap_or_default()[..width * length];
        let places: Vec<usize> =
            (0..rows).map(|r| (r / (window - 1) * window + 1 + r % (window - 1)) * width).collect();
        let shifts = series.shift.chunks_mut(GROUP).zip(series.sum.chunks_mut(GROUP));
        let groups: Vec<_> = values.chunks_mut(GROUP * length).zip(shifts).map(Mutex::new).collect();
        e.pool().for_each(groups.len(), |g, _| {
            // Each is locked once: a panic elsewhere leaves it as it is.
            let mut group = groups[g].lock().unwrap_or_else(PoisonError::into_inner);
            let (columns, (shift, sum)) = &mut *group;
            transpose(from, &places, g * GROUP, columns, length);
            for ((column, shift), sum) in columns.chunks_exact_mut(length).zip(shift.iter_mut()).zip(sum.iter_mut()) {
                column[rows..].fill(0.0);
                let column = &mut column[..rows];
                if first {
                    *shift = (total(column) / rows as f64) as f32;
                }
                column.iter_mut().for_each(|x| *x -= *shift);
                *sum += total(column);
            }
        });
        Ok(())
    }
}

/// Columns `at..` of the rows that begin at `places`, as many as `columns` has room for.
fn transpose<T: Element>(from: &[T], places: &[usize], at: usize, columns: &mut [f32], length: usize) {
    let width = columns.len() / length;
    for (block, places) in places.chunks(GROUP).enumerate() {
        let mut tile = [[0f32; GROUP]; GROUP];
        for (r, place) in places.iter().enumerate() {
            for (c, x) in from[place + at..][..width].iter().enumerate() {
                tile[c][r] = x.to_f32();
            }
        }
        for (column, tile) in columns.chunks_exact_mut(length).zip(&tile) {
            column[block * GROUP..][..places.len()].copy_from_slice(&tile[..places.len()]);
        }
    }
}

/// The sum in float64, by eight sums so that it need not wait for each addition.
fn total(x: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    let parts = x.chunks_exact(8);
    let rest: f64 = parts.remainder().iter().map(|x| f64::from(*x)).sum();
    parts.for_each(|part| sums.iter_mut().zip(part).for_each(|(s, x)| *s += f64::from(*x)));
    sums.iter().sum::<f64>() + rest
}

/// `to += y x'`, `[N, F]`: the product over the block in F32, the sum in float64.
fn accumulate(e: &Engine, y: &Columns, x: &Columns, product: &mut Buffer<f32>, to: &mut [f64]) -> Result<()> {
    if product.len() < to.len() {
        *product = buffer(to.len() as u64)?;
    }
    let product = &mut product[..to.len()];
    e.linear(y.mat(), Weight::F32(x.mat()), Output::Store(MatMut::new(product, y.width, x.width)))?;
    let parts: Vec<_> = to.chunks_mut(ADDED).zip(product.chunks(ADDED)).map(Mutex::new).collect();
    e.pool().for_each(parts.len(), |i, _| {
        let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
        let (to, product) = &mut *part;
        to.iter_mut().zip(product.iter()).for_each(|(to, p)| *to += f64::from(*p));
    });
    Ok(())
}
