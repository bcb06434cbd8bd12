//! The pipelined order of KV prediction at work: the base's layers run behind the auxiliary's. [`crate::schedule`] says which.
//!
//! A base layer needs its own predicted cache and the base layer before it, not the whole auxiliary. The base reads so few tokens
//! that its layers are bound by memory, and the auxiliary's products are bound by arithmetic; so each of these takes some rows
//! of the base's next product along ([`Engine::linear_beside`]). What is computed is the same, number by number, as in turn.

use std::collections::VecDeque;

use ttft_kernels::{Element, Format, Product, RopeTable};

use crate::{
    activations::{Activations, CHUNK, Rows},
    cache::LayerCache,
    engine::Engine,
    error::Result,
    kv_prediction::Shape,
    network::{Multiply, Network, Out},
    spec::RunSpec,
};

/// Most rows of the auxiliary, of all sequences, for which the order pays; beyond, the base's layers run in turn. On two cores of
/// Zen 4 in BF16 it was 1.09 and 1.14 times as fast as in turn at 1x64, and 0.96 and 1.00 times at 1x128, where its times fall into
/// two groups 12% apart (OpenELM-1.1B with 450M and 270M, 2026-11-28).
pub const MOST_ROWS: usize = 64;

/// Whether the order pays in a run of this shape.
pub(crate) fn pays(p: &Shape, spec: &RunSpec) -> bool {
    spec.batch.saturating_mul(spec.prompt.saturating_sub(p.own.last)) <= MOST_ROWS
}

/// Layers of the base that may run, and how far the first of them has come.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    layers: VecDeque<Waiting>,
    /// The product that is next, and rows of its W that are done.
    product: usize,
    row: usize,
    /// Bytes of the base's weights, and operations of the auxiliary, that are still to come while both run.
    bytes: f64,
    flops: f64,
}

#[derive(Debug)]
struct Waiting {
    layer: usize,
    cache: usize,
}

impl Queue {
    /// For a run in which so many bytes of weights pass behind so many operations.
    pub fn start(&mut self, bytes: u64, flops: u64) {
        self.layers.clear();
        (self.product, self.row) = (0, 0);
        (self.bytes, self.flops) = (bytes as f64, flops as f64);
    }

    /// Whether a layer can wait: all of its rows pass all of it, few enough to be streamed past.
    pub fn takes<A: Element>(e: &Engine, net: &Network, act: &Activations<A>, (rows, out): (Rows, Out)) -> bool {
        let all = match out {
            Out::Rows(last) => rows.first == 0 && last == rows.count,
            Out::Ends(first, last) => (first, last) == (rows.first, rows.count),
            Out::Query => false,
        };
        all && act.rows() <= CHUNK && e.streams(act.rows(), A::DTYPE, Format::Elements(net.weight_dtype()))
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// A layer of the base may run, and appends to the cache of this number.
    pub fn push(&mut self, layer: usize, cache: usize) {
        self.layers.push_back(Waiting { layer, cache });
    }
}

/// The base at work behind other products.
pub(crate) struct Behind<'a, A> {
    /// Who computes.
    pub engine: &'a Engine,
    /// The base.
    pub net: &'a Network,
    /// Its rows.
    pub act: &'a mut Activations<A>,
    /// Its positions.
    pub rope: &'a RopeTable,
    /// Caches, by number.
    pub caches: &'a mut [LayerCache<A>],
    /// What may run.
    pub queue: &'a mut Queue,
}

/// Output features for each thread below which a product is not cut once more: as many as a thread packs its rows of x for.
const LEAST: usize = 256;

impl<A: Element> Behind<'_, A> {
    /// Runs all layers that wait.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn finish(&mut self) -> Result<()> {
        while let Some((rows, _)) = self.next()? {
            let Waiting { layer, .. } = self.queue.layers[0];
            let few = self.net.product((layer, self.queue.product), self.act).cols_at(self.queue.row, rows);
            self.engine.linear(few.x, few.w, few.out)?;
            self.done(rows);
        }
        Ok(())
    }

    /// Makes the next product ready: rows of W that are left of it, and bytes in each.
    fn next(&mut self) -> Result<Option<(usize, usize)>> {
        let Some(&Waiting { layer, cache }) = self.queue.layers.front() else { return Ok(None) };
        let at = (layer, self.queue.product);
        if self.queue.row == 0 {
            self.net.before(self.engine, at, self.act, self.rope, &mut self.caches[cache])?;
        }
        let product = self.net.product(at, self.act);
        Ok(Some((product.w.n() - self.queue.row, product.row_bytes())))
    }

    /// These are computed.
    fn done(&mut self, rows: usize) {
        let layer = self.queue.layers[0].layer;
        let q = &mut *self.queue;
        let product = self.net.product((layer, q.product), self.act);
        q.bytes -= (rows * product.row_bytes()) as f64;
        q.row += rows;
        if q.row == product.w.n() {
            (q.product, q.row) = (q.product + 1, 0);
        }
        if q.product == self.net.products(layer) {
            q.product = 0;
            q.layers.pop_front();
        }
    }
}

/// A product of the auxiliary, with its share of the base's bytes: as many for each operation as are left for all that follow.
impl<A: Element> Multiply<A> for Behind<'_, A> {
    fn linear(&mut self, mut many: Product<'_, A>) -> Result<()> {
        let (n, flops) = (many.w.n(), many.flops() as f64 / many.w.n().max(1) as f64);
        let least = LEAST * self.engine.pool().threads();
        let mut at = 0;
        while at < n {
            let left = n - at;
            let Some((rows, row_bytes)) = self.next()? else {
                self.queue.flops -= left as f64 * flops;
                let rest = many.cols_at(at, left);
                return Ok(self.engine.linear(rest.x, rest.w, rest.out)?);
            };
            // Features of this product for each row of the other's W.
            let each = row_bytes as f64 * self.queue.flops / self.queue.bytes.max(1.0) / flops;
            let cols = ((rows as f64 * each / least as f64).ceil() as usize).saturating_mul(least);
            let (cols, rows) = if cols.saturating_add(least) <= left {
                (cols, rows)
            } else {
                (left, rows.min((left as f64 / each).ceil() as usize).max(1))
            };
            let few = self.net.product((self.queue.layers[0].layer, self.queue.product), self.act);
            self.engine.linear_beside(many.reborrow().cols_at(at, cols), few.cols_at(self.queue.row, rows))?;
            self.queue.flops -= cols as f64 * flops;
            self.done(rows);
            at += cols;
        }
        Ok(())
    }
}
