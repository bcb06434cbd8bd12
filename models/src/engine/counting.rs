//! An engine that does the work and counts its multiplications, one by one product, by what is asked for and nothing else.

use std::cell::Cell;

use ttft_kernels::{
    AttnShape, DType, Element, Format, HeadCache, HeadProjection, HeadsOut, Join, Mat, MatMut, Options, Output, Pool,
    Positions, Product, Query, Result, RopeTable, Weight,
};

/// Floating-point operations, two for each multiplication: of projections, attention, output heads and maps.
pub type Counts = [u64; 4];

/// The type that weights are stored in.
fn stored(w: Weight<'_>) -> DType {
    let Format::Elements(dtype) = w.format();
    dtype
}

/// Counts in front of an engine.
pub struct Engine {
    engine: ttft_kernels::Engine,
    /// Rows of the embedding table: a product with so many outputs is an output head.
    vocab: usize,
    flops: Cell<Counts>,
    /// Those of all kinds whose factors are not both BF16.
    f32_flops: Cell<u64>,
}

impl Engine {
    pub fn new(vocab: usize) -> Engine {
        let engine = ttft_kernels::Engine::new(&Options { threads: Some(1), ..Options::default() }).unwrap();
        Engine { engine, vocab, flops: Cell::default(), f32_flops: Cell::default() }
    }

    /// What was asked for since the last call.
    pub fn take(&self) -> Counts {
        self.flops.take()
    }

    /// What of it was in F32.
    pub fn take_f32(&self) -> u64 {
        self.f32_flops.take()
    }

    fn count(&self, kind: usize, factors: [DType; 2], flops: usize) {
        if factors != [DType::BF16; 2] {
            self.f32_flops.set(self.f32_flops.get() + flops as u64);
        }
        let mut counts = self.flops.get();
        counts[kind] += flops as u64;
        self.flops.set(counts);
    }

    pub fn pool(&self) -> &Pool {
        self.engine.pool()
    }

    pub fn linear<A: Element>(&self, x: Mat<'_, A>, w: Weight<'_>, out: Output<'_, A>) -> Result<()> {
        let product = Product { x, w, out };
        self.product(&product);
        self.engine.linear(product.x, product.w, product.out)
    }

    pub fn linear_beside<A: Element>(&self, many: Product<'_, A>, few: Product<'_, A>) -> Result<()> {
        [&many, &few].iter().for_each(|p| self.product(p));
        self.engine.linear_beside(many, few)
    }

    fn product<A: Element>(&self, Product { x, w, out }: &Product<'_, A>) {
        let matrices = if let Output::SwiGlu(..) = out { 2 } else { 1 };
        let kind = if w.n() == self.vocab { 2 } else { 0 };
        self.count(kind, [A::DTYPE, stored(*w)], matrices * 2 * x.rows() * w.n() * w.k());
    }

    pub fn streams(&self, rows: usize, x: DType, w: Format) -> bool {
        self.engine.streams(rows, x, w)
    }

    pub fn project_heads<A: Element, X: Element>(
        &self,
        batch: usize,
        eps: f32,
        products: &mut [HeadProjection<'_, A, X>],
    ) -> Result<()> {
        products.iter().for_each(|p| self.count(3, [X::DTYPE, stored(p.w)], 2 * p.x.rows() * p.w.n() * p.w.k()));
        self.engine.project_heads(batch, eps, products)
    }

    pub fn attention<A: Element>(
        &self,
        q: Mat<'_, A>,
        k: &HeadCache<A>,
        v: &HeadCache<A>,
        shape: AttnShape,
        out: MatMut<'_, A>,
    ) -> Result<()> {
        // A query of each head at position p: d for its product with each of p + 1 keys, and d for each value.
        let positions = (0..shape.batch).flat_map(|_| shape.past..shape.past + shape.n);
        self.count(1, [A::DTYPE; 2], positions.map(|p| 2 * q.cols() * 2 * (p + 1)).sum());
        self.engine.attention(q, k, v, shape, out)
    }

    pub fn attention_each<A: Element>(
        &self,
        q: Mat<'_, A>,
        k: &HeadCache<A>,
        v: &HeadCache<A>,
        queries: &[Query],
        out: MatMut<'_, A>,
    ) -> Result<()> {
        self.count(1, [A::DTYPE; 2], queries.iter().map(|query| 2 * q.cols() * 2 * query.sees).sum());
        self.engine.attention_each(q, k, v, queries, out)
    }

    pub fn attention_weights<A: Element>(
        &self,
        q: Mat<'_, A>,
        k: &HeadCache<A>,
        len: usize,
        out: &mut [f32],
    ) -> Result<()> {
        self.count(1, [A::DTYPE; 2], q.rows() * q.cols() * 2 * len);
        self.engine.attention_weights(q, k, len, out)
    }

    pub fn attention_scores<A: Element>(
        &self,
        q: Mat<'_, A>,
        k: &HeadCache<A>,
        len: usize,
        out: &mut [f32],
    ) -> Result<()> {
        self.count(1, [A::DTYPE; 2], q.rows() * q.cols() * 2 * len);
        self.engine.attention_scores(q, k, len, out)
    }

    pub fn pooled(&self, x: &[f32], len: usize, width: usize, join: Join, out: &mut [f32]) -> Result<()> {
        self.engine.pooled(x, len, width, join, out)
    }

    pub fn embed(&self, table: Weight<'_>, ids: &[u32], out: MatMut<'_, f32>) -> Result<()> {
        self.engine.embed(table, ids, out)
    }

    pub fn rms_norm<A: Element>(&self, x: Mat<'_, f32>, w: &[f32], eps: f32, out: MatMut<'_, A>) -> Result<()> {
        self.engine.rms_norm(x, w, eps, out)
    }

    #[allow(clippy::too_many_arguments)]
    pub fn heads<A: Element>(
        &self,
        src: Mat<'_, f32>,
        batch: usize,
        head_dim: usize,
        norm: Option<&[f32]>,
        eps: f32,
        rope: Option<(&RopeTable, Positions<'_>)>,
        out: HeadsOut<'_, A>,
    ) -> Result<()> {
        self.engine.heads(src, batch, head_dim, norm, eps, rope, out)
    }

    pub fn gather<A: Element>(&self, from: &HeadCache<A>, slots: &[u32], to: &mut HeadCache<A>) -> Result<()> {
        self.engine.gather(from, slots, to)
    }

    pub fn silu_mul<A: Element>(&self, ab: Mat<'_, f32>, out: MatMut<'_, A>) -> Result<()> {
        self.engine.silu_mul(ab, out)
    }

    pub fn argmax(&self, x: Mat<'_, f32>, out: &mut [u32]) -> Result<()> {
        self.engine.argmax(x, out)
    }

    pub fn convert<A: Element>(&self, x: Mat<'_, f32>, out: MatMut<'_, A>) -> Result<()> {
        self.engine.convert(x, out)
    }
}
