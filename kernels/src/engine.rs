//! The safe front of the crate: shapes are checked here, kernels are called behind it.

use crate::{
    cpu, driver,
    error::{Error, Result, at_least, expect},
    isa::Isa,
    levels,
    operands::{AttnShape, HeadNorm, HeadProjection, HeadsOut, Join, Output, Positions, Product, Query},
    pool::Pool,
    rope::RopeTable,
    team::{Backend, Kernels, Team},
    view::{DType, Element, Format, HeadCache, Mat, MatMut, Weight},
};

/// How to build an [`Engine`].
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The ISA to use; `None` is the strongest of this CPU.
    pub isa: Option<Isa>,
    /// Threads; `None` is one for each physical performance core.
    pub threads: Option<usize>,
    /// Who computes the projections.
    pub backend: Backend,
    /// A GEMM or few-row kernel by name, for every shape that it can serve; `None` lets the dispatcher choose.
    pub gemm_kernel: Option<String>,
}

/// Kernels of one ISA, and the threads that run them.
///
/// Threads may share an engine: its operations take turns. Inside a region of its pool they are refused with a panic, as they
/// would wait for themselves.
#[derive(Debug)]
pub struct Engine(Team);

impl Engine {
    /// Builds an engine.
    ///
    /// # Errors
    /// An ISA that this CPU lacks, an unknown kernel name, a thread count of 0 or above 1024, or one that the system does not
    /// give. (Where none is asked for, there are as many threads as it gives.)
    pub fn new(o: &Options) -> Result<Engine> {
        let isa = o.isa.unwrap_or_else(Isa::best).check()?;
        let threads = o.threads.unwrap_or_else(cpu::topology::performance_cores);
        if !(1..=1024).contains(&threads) {
            return Err(Error::Threads(threads));
        }
        let (gemm, dot) = o.gemm_kernel.as_deref().map(|name| levels::find(isa, name)).transpose()?.unwrap_or_default();
        let pool = Pool::new(threads);
        if let Some(asked) = o.threads.filter(|asked| *asked > pool.threads()) {
            return Err(Error::ThreadsUnavailable { asked, given: pool.threads() });
        }
        Ok(Engine(Team::new(levels::of(isa), Kernels { backend: o.backend, gemm, dot }, pool)))
    }

    /// The ISA in force.
    pub fn isa(&self) -> Isa {
        self.0.isa()
    }

    /// The GEMM backend.
    pub fn backend(&self) -> Backend {
        self.0.kernels.backend
    }

    /// Threads.
    pub fn threads(&self) -> usize {
        self.0.threads()
    }

    /// The pool, for other data-parallel work.
    pub fn pool(&self) -> &Pool {
        self.0.pool()
    }

    /// Names of the kernels that have run since the last call, sorted.
    pub fn take_used(&self) -> Vec<&'static str> {
        self.0.used.take()
    }

    /// `x[M,K] W[N,K]^T` into `out`.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn linear<A: Element>(&self, x: Mat<'_, A>, w: Weight<'_>, out: Output<'_, A>) -> Result<()> {
        let product = Product { x, w, out };
        if check_product("linear", &product)? {
            driver::linear::linear(&self.0, product);
        }
        Ok(())
    }

    /// Two products, with the results of [`Engine::linear`] bit for bit. If `many` is one of many rows, which arithmetic bounds,
    /// and `few` one of few, which memory bounds, they run in one region: the weights of `few` are fetched in the shadow of the
    /// multiply-adds of `many`, and each thread computes some of their rows now and then. Else one runs after the other.
    ///
    /// # Errors
    /// [`Error::Shape`], before anything is computed.
    pub fn linear_beside<A: Element>(&self, many: Product<'_, A>, few: Product<'_, A>) -> Result<()> {
        const OP: &str = "linear_beside";
        match (check_product(OP, &many)?, check_product(OP, &few)?) {
            (true, true) => driver::linear::beside(&self.0, many, few),
            (true, false) => driver::linear::linear(&self.0, many),
            (false, true) => driver::linear::linear(&self.0, few),
            (false, false) => {}
        }
        Ok(())
    }

    /// Whether a product of `rows` rows of these types only streams its weights: [`Engine::linear_beside`] can then compute it
    /// besides another, as many rows of W at a time as one likes.
    pub fn streams(&self, rows: usize, x: DType, w: Format) -> bool {
        driver::linear::streams(&self.0, rows, x, w)
    }

    /// Rows `ids` of an embedding table `[V, D]`, as f32 `[ids.len(), D]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::TokenId`].
    pub fn embed(&self, table: Weight<'_>, ids: &[u32], out: MatMut<'_, f32>) -> Result<()> {
        expect("embed", "rows of the output", ids.len(), out.rows())?;
        expect("embed", "columns of the output (D)", table.k(), out.cols())?;
        if let Some((row, &id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= table.n()) {
            return Err(Error::TokenId { id, row, vocab: table.n() });
        }
        driver::rowwise::embed(&self.0, table, ids, out);
        Ok(())
    }

    /// `x / sqrt(mean(x^2) + eps) * w` for each row.
    ///
    /// ```
    /// # use ttft_kernels::*;
    /// # let engine = Engine::new(&Options { threads: Some(1), ..Options::default() })?;
    /// let mut y = [0.0f32; 2];
    /// engine.rms_norm(Mat::new(&[3.0, 4.0], 1, 2), &[1.0, 2.0], 0.0, MatMut::new(&mut y, 1, 2))?;
    /// let rms = 12.5f32.sqrt();
    /// assert!((y[0] - 3.0 / rms).abs() < 1e-6 && (y[1] - 8.0 / rms).abs() < 1e-6);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn rms_norm<A: Element>(&self, x: Mat<'_, f32>, w: &[f32], eps: f32, out: MatMut<'_, A>) -> Result<()> {
        expect("rms_norm", "length of the weight", x.cols(), w.len())?;
        expect("rms_norm", "rows of the output", x.rows(), out.rows())?;
        expect("rms_norm", "columns of the output", x.cols(), out.cols())?;
        driver::rowwise::rms_norm(&self.0, x, w, eps, out);
        Ok(())
    }

    /// Heads of `batch` sequences, `src` = `[batch*n, heads*d]`: an optional RMSNorm over each head (weight `[d]`), then
    /// optional RoPE (half-split) at the rows' positions, then the conversion to `A`.
    ///
    /// # Errors
    /// [`Error::Shape`].
    #[allow(clippy::too_many_arguments)]
    pub fn heads<A: Element>(
        &self,
        src: Mat<'_, f32>,
        batch: usize,
        head_dim: usize,
        norm: HeadNorm<'_>,
        eps: f32,
        rope: Option<(&RopeTable, Positions<'_>)>,
        out: HeadsOut<'_, A>,
    ) -> Result<()> {
        const OP: &str = "heads";
        if batch == 0 || head_dim == 0 {
            return expect(OP, "batch and head_dim of at least", 1, 0);
        }
        expect(OP, "rows modulo batch", 0, src.rows() % batch)?;
        expect(OP, "columns modulo head_dim", 0, src.cols() % head_dim)?;
        let n = src.rows() / batch;
        if let Some(w) = norm {
            expect(OP, "length of the norm weight", head_dim, w.len())?;
        }
        if let Some((t, positions)) = rope {
            expect(OP, "head_dim of the RoPE table", head_dim, t.head_dim())?;
            let needed = match positions {
                Positions::From(start) => start.saturating_add(n),
                Positions::Each(each) => {
                    expect(OP, "positions, one for each row", src.rows(), each.len())?;
                    each.iter().max().map_or(0, |p| (*p as usize).saturating_add(1))
                }
            };
            at_least(OP, "positions of the RoPE table", needed, t.positions())?;
        }
        match &out {
            HeadsOut::Rows(y) => {
                expect(OP, "rows of the output", src.rows(), y.rows())?;
                expect(OP, "columns of the output", src.cols(), y.cols())?;
            }
            HeadsOut::Cache(c, start) => {
                expect(OP, "batch of the cache", batch, c.batch())?;
                expect(OP, "heads of the cache", src.cols() / head_dim, c.heads())?;
                expect(OP, "head_dim of the cache", head_dim, c.head_dim())?;
                at_least(OP, "capacity of the cache", start.saturating_add(n), c.capacity())?;
            }
        }
        driver::rowwise::heads(&self.0, src, batch, head_dim, norm, eps, rope, out);
        Ok(())
    }

    /// Many products of `batch` sequences at once, each followed by what [`Engine::heads`] does: `x W^T + bias`, norm, RoPE and
    /// conversion, into a cache. Threads take whole products, or as many rows of one as stay in their cache.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn project_heads<A: Element, X: Element>(
        &self,
        batch: usize,
        eps: f32,
        products: &mut [HeadProjection<'_, A, X>],
    ) -> Result<()> {
        const OP: &str = "project_heads";
        if batch == 0 {
            return expect(OP, "batch of at least", 1, 0);
        }
        for p in products.iter() {
            let (n, d) = (p.x.rows() / batch, p.cache.head_dim());
            if d == 0 {
                return expect(OP, "head_dim of at least", 1, 0);
            }
            expect(OP, "rows modulo batch", 0, p.x.rows() % batch)?;
            expect(OP, "columns of x (K)", p.w.k(), p.x.cols())?;
            expect(OP, "length of the bias (N)", p.w.n(), p.bias.len())?;
            expect(OP, "heads of the cache times head_dim (N)", p.w.n(), p.cache.heads().saturating_mul(d))?;
            expect(OP, "batch of the cache", batch, p.cache.batch())?;
            if let Some(w) = p.norm {
                expect(OP, "length of the norm weight", d, w.len())?;
            }
            if let Some(t) = p.rope {
                expect(OP, "head_dim of the RoPE table", d, t.head_dim())?;
                at_least(OP, "positions of the RoPE table", n, t.positions())?;
            }
            at_least(OP, "capacity of the cache", n, p.cache.capacity())?;
            if let Some(keep) = &p.keep {
                expect(OP, "elements to keep", p.x.rows().saturating_mul(p.w.n()), keep.len())?;
            }
        }
        driver::projections::project_heads(&self.0, batch, eps, products);
        Ok(())
    }

    /// Causal attention with grouped heads: `softmax(q k^T / sqrt(d)) v`. Query head h reads KV head `h / (H / K)`; the
    /// query at position p sees positions `0..=p`. q and out are `[batch*n, H*d]`.
    ///
    /// ```
    /// # use ttft_kernels::*;
    /// # let engine = Engine::new(&Options { threads: Some(1), ..Options::default() })?;
    /// // One head of one feature, two positions: the first sees itself alone, the second both, here with equal scores.
    /// let mut keys = HeadCache::<f32>::new(1, 1, 2, 1);
    /// let mut values = HeadCache::<f32>::new(1, 1, 2, 1);
    /// keys.head_mut(0, 0).row_mut(0)[0] = 1.0;
    /// keys.head_mut(0, 0).row_mut(1)[0] = 1.0;
    /// values.head_mut(0, 0).row_mut(0)[0] = 10.0;
    /// values.head_mut(0, 0).row_mut(1)[0] = 20.0;
    /// let (q, mut out) = ([1.0f32, 1.0], [0.0f32; 2]);
    /// let shape = AttnShape { batch: 1, n: 2, past: 0 };
    /// engine.attention(Mat::new(&q, 2, 1), &keys, &values, shape, MatMut::new(&mut out, 2, 1))?;
    /// assert!((out[0] - 10.0).abs() < 1e-5 && (out[1] - 15.0).abs() < 1e-5);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn attention<A: Element>(
        &self,
        q: Mat<'_, A>,
        k: &HeadCache<A>,
        v: &HeadCache<A>,
        shape: AttnShape,
        out: MatMut<'_, A>,
    ) -> Result<()> {
        const OP: &str = "attention";
        expect(OP, "rows of q", shape.batch.saturating_mul(shape.n), q.rows())?;
        expect(OP, "batch of the cache", shape.batch, k.batch())?;
        check_attention(OP, q, k, v, shape.past.saturating_add(shape.n), &out)?;
        if q.rows() > 0 && q.cols() > 0 {
            driver::attention::attention(&self.0, q, k, v, shape, out);
        }
        Ok(())
    }

    /// As [`Engine::attention`], for queries that each say whose cache they read and how much of it they see: row r of q
    /// and out (`[queries, H*d]`) is `queries[r]`. For few of them: the cache is read for each.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn attention_each<A: Element>(
        &self,
        q: Mat<'_, A>,
        k: &HeadCache<A>,
        v: &HeadCache<A>,
        queries: &[Query],
        out: MatMut<'_, A>,
    ) -> Result<()> {
        const OP: &str = "attention_each";
        expect(OP, "rows of q", queries.len(), q.rows())?;
        if queries.iter().any(|q| q.sees == 0) {
            return expect(OP, "positions that a query sees, at least", 1, 0);
        }
        if let Some(q) = queries.iter().find(|q| q.sequence >= k.batch()) {
            return expect(OP, "batch of the cache, at least", q.sequence.saturating_add(1), k.batch());
        }
        let most = queries.iter().map(|q| q.sees).max().unwrap_or(0);
        check_attention(OP, q, k, v, most, &out)?;
        if q.rows() > 0 && q.cols() > 0 {
            driver::attention::attention_each(&self.0, q, k, v, queries, out);
        }
        Ok(())
    }

    /// How much one query of each sequence attends to positions `0..len`: `softmax(q k^T / sqrt(d))` of every query head,
    /// q `[B, H*d]`, out `[B, H, len]`. Query head h reads KV head `h / (H / K)`.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn attention_weights<A: Element>(
        &self,
        q: Mat<'_, A>,
        k: &HeadCache<A>,
        len: usize,
        out: &mut [f32],
    ) -> Result<()> {
        check_scores("attention_weights", q, k, len, out)?;
        driver::selection::attention_weights(&self.0, q, k, len, out);
        Ok(())
    }

    /// As [`Engine::attention_weights`], the products alone: `q k^T`, neither scaled nor through a softmax.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn attention_scores<A: Element>(
        &self,
        q: Mat<'_, A>,
        k: &HeadCache<A>,
        len: usize,
        out: &mut [f32],
    ) -> Result<()> {
        check_scores("attention_scores", q, k, len, out)?;
        driver::selection::attention_scores(&self.0, q, k, len, out);
        Ok(())
    }

    /// Joins to each row of `out` (`[B, len]`) the rows of its sequence in `x` (`[B, H, len]`), each pooled first: the mean over a
    /// window of odd `width` around every column, zeros standing beyond the ends and the divisor being always the width.
    ///
    /// ```
    /// # use ttft_kernels::*;
    /// # let engine = Engine::new(&Options { threads: Some(1), ..Options::default() })?;
    /// let mut best = [2.5, 0.0, 0.0];
    /// engine.pooled(&[3.0, 3.0, 0.0, 0.0, 0.0, 6.0], 3, 3, Join::Largest, &mut best)?;
    /// assert_eq!(best, [2.5, 2.0, 2.0]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn pooled(&self, x: &[f32], len: usize, width: usize, join: Join, out: &mut [f32]) -> Result<()> {
        const OP: &str = "pooled";
        if len == 0 || out.is_empty() {
            return expect(OP, "columns and rows of at least", 1, 0);
        }
        expect(OP, "width modulo 2", 1, width % 2)?;
        expect(OP, "length of the output modulo columns", 0, out.len() % len)?;
        expect(OP, "length of the input modulo that of the output", 0, x.len() % out.len())?;
        driver::selection::pooled(&self.0, x, len, width, join, out);
        Ok(())
    }

    /// Copies positions `slots` (`[batch * n]`) of every head of `from` to positions `0..n` of `to`.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn gather<A: Element>(&self, from: &HeadCache<A>, slots: &[u32], to: &mut HeadCache<A>) -> Result<()> {
        const OP: &str = "gather";
        expect(OP, "batch of the cache", from.batch(), to.batch())?;
        expect(OP, "heads of the cache", from.heads(), to.heads())?;
        expect(OP, "head_dim of the cache", from.head_dim(), to.head_dim())?;
        let n = slots.len() / from.batch().max(1);
        expect(OP, "slots", from.batch() * n, slots.len())?;
        at_least(OP, "capacity of the cache", n, to.capacity())?;
        if let Some(slot) = slots.iter().max().map(|s| *s as usize).filter(|s| *s >= from.capacity()) {
            return expect(OP, "capacity of the source", slot + 1, from.capacity());
        }
        driver::selection::gather(&self.0, from, slots, n, to);
        Ok(())
    }

    /// `silu(a) * b` for rows `[a, b]`: `[M, 2F]` to `[M, F]`.
    ///
    /// ```
    /// # use ttft_kernels::*;
    /// # let engine = Engine::new(&Options { threads: Some(1), ..Options::default() })?;
    /// let mut y = [0.0f32; 1];
    /// engine.silu_mul(Mat::new(&[2.0, 3.0], 1, 2), MatMut::new(&mut y, 1, 1))?;
    /// assert!((y[0] - 2.0 / (1.0 + (-2.0f32).exp()) * 3.0).abs() < 1e-5);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn silu_mul<A: Element>(&self, ab: Mat<'_, f32>, out: MatMut<'_, A>) -> Result<()> {
        expect("silu_mul", "columns of the input", out.cols().saturating_mul(2), ab.cols())?;
        expect("silu_mul", "rows of the output", ab.rows(), out.rows())?;
        driver::rowwise::silu_mul(&self.0, ab, out);
        Ok(())
    }

    /// Softmax of each row, in place.
    ///
    /// ```
    /// # use ttft_kernels::*;
    /// # let engine = Engine::new(&Options { threads: Some(1), ..Options::default() })?;
    /// let mut x = [0.0, 3.0f32.ln()];
    /// engine.softmax(MatMut::new(&mut x, 1, 2));
    /// assert!((x[0] - 0.25).abs() < 1e-6 && (x[1] - 0.75).abs() < 1e-6);
    /// # Ok::<(), Error>(())
    /// ```
    pub fn softmax(&self, x: MatMut<'_, f32>) {
        driver::rowwise::softmax(&self.0, x);
    }

    /// Index of the largest value of each row; the first of equals. NaN counts as smaller than anything.
    ///
    /// ```
    /// # use ttft_kernels::*;
    /// # let engine = Engine::new(&Options { threads: Some(1), ..Options::default() })?;
    /// let mut best = [0; 2];
    /// engine.argmax(Mat::new(&[1.0, 5.0, 5.0, f32::NAN, -2.0, -1.0], 2, 3), &mut best)?;
    /// assert_eq!(best, [1, 2]);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`]: a row has no columns, or `out` is not one per row.
    pub fn argmax(&self, x: Mat<'_, f32>, out: &mut [u32]) -> Result<()> {
        expect("argmax", "length of the output", x.rows(), out.len())?;
        if x.cols() == 0 && x.rows() > 0 {
            return expect("argmax", "columns of at least", 1, 0);
        }
        driver::rowwise::argmax(&self.0, x, out);
        Ok(())
    }

    /// Converts rows to the activation type.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn convert<A: Element>(&self, x: Mat<'_, f32>, out: MatMut<'_, A>) -> Result<()> {
        expect("convert", "rows of the output", x.rows(), out.rows())?;
        expect("convert", "columns of the output", x.cols(), out.cols())?;
        driver::rowwise::convert(&self.0, x, out);
        Ok(())
    }
}

/// Whether there is anything to compute.
fn check_product<A: Element>(op: &'static str, Product { x, w, out }: &Product<'_, A>) -> Result<bool> {
    expect(op, "columns of x (K)", w.k(), x.cols())?;
    let (rows, cols) = match out {
        Output::Store(y) | Output::Add(y) => (y.rows(), y.cols()),
        Output::Bias(y, b) => {
            expect(op, "length of the bias (N)", w.n(), b.len())?;
            (y.rows(), y.cols())
        }
        Output::SwiGlu(y, v) => {
            expect(op, "rows of the second matrix (SwiGLU)", w.n(), v.n())?;
            expect(op, "columns of the second matrix (SwiGLU)", w.k(), v.k())?;
            expect(op, "row stride of the second matrix (SwiGLU)", w.stride(), v.stride())?;
            (y.rows(), y.cols())
        }
    };
    expect(op, "rows of y (M)", x.rows(), rows)?;
    expect(op, "columns of y (N)", w.n(), cols)?;
    Ok(x.rows() > 0 && w.n() > 0)
}

fn check_scores<A: Element>(op: &'static str, q: Mat<'_, A>, k: &HeadCache<A>, len: usize, out: &[f32]) -> Result<()> {
    if k.head_dim() == 0 || k.heads() == 0 || len == 0 {
        return expect(op, "heads, head_dim and positions of at least", 1, 0);
    }
    expect(op, "rows of q (batch of the cache)", k.batch(), q.rows())?;
    expect(op, "columns of q modulo kv_heads*head_dim", 0, q.cols() % k.heads().saturating_mul(k.head_dim()))?;
    let each = q.rows().saturating_mul(q.cols() / k.head_dim());
    expect(op, "length of the output", each.saturating_mul(len), out.len())?;
    at_least(op, "capacity of the cache", len, k.capacity())
}

fn check_attention<A: Element>(
    op: &'static str,
    q: Mat<'_, A>,
    k: &HeadCache<A>,
    v: &HeadCache<A>,
    positions: usize,
    out: &MatMut<'_, A>,
) -> Result<()> {
    let d = k.head_dim();
    if d == 0 || k.heads() == 0 {
        return expect(op, "heads and head_dim of at least", 1, 0);
    }
    expect(op, "columns of q modulo kv_heads*head_dim", 0, q.cols() % k.heads().saturating_mul(d))?;
    expect(op, "rows of the output", q.rows(), out.rows())?;
    expect(op, "columns of the output", q.cols(), out.cols())?;
    expect(op, "batch of the values", k.batch(), v.batch())?;
    expect(op, "heads of the values", k.heads(), v.heads())?;
    expect(op, "head_dim of the values", d, v.head_dim())?;
    for c in [k, v] {
        at_least(op, "capacity of the cache", positions, c.capacity())?;
    }
    Ok(())
}
