//! The pipelined order of KV prediction: the base's layers run behind the auxiliary's.
//!
//! A base layer needs its own predicted cache and the base layer before it, not the whole auxiliary. The base reads so few tokens
//! that its layers are bound by memory, and the auxiliary's products are bound by arithmetic; so each of these takes some rows
//! of the base's next product along ([`Engine::linear_beside`]). What is computed is the same, number by number, as in turn.

use std::collections::VecDeque;

use ttft_kernels::{Element, Product, RopeTable};

use crate::{
    activations::{Activations, CHUNK},
    cache::LayerCache,
    engine::Engine,
    error::Result,
    network::{Multiply, Network},
    schedule::{LayerStep, Net, Op, Out, Step},
};

/// Steps of the auxiliary, maps and base in turn, in the order in which each first can run: maps behind the layer that they read,
/// and a base layer behind its map. What has no auxiliary stays as it is.
pub fn order(steps: Vec<Step>) -> Vec<Step> {
    let (mut auxiliary, mut base, mut maps) = (Vec::new(), VecDeque::new(), Vec::new());
    for step in &steps {
        match &step.op {
            Op::Embed { net: Net::Auxiliary, .. } | Op::Head { net: Net::Auxiliary, .. } => auxiliary.push(step),
            Op::Layer(l) if l.net == Net::Auxiliary => auxiliary.push(step),
            Op::Map { rows, maps: all } => maps.extend(all.iter().map(|m| (step.phase, *rows, *m))),
            _ => base.push_back(step),
        }
    }
    if auxiliary.is_empty() {
        return steps;
    }
    let mut out = Vec::with_capacity(steps.len() + auxiliary.len());
    for step in auxiliary {
        out.push(step.clone());
        let Op::Layer(LayerStep { layer: source, .. }) = step.op else { continue };
        let ready: Vec<_> = maps.extract_if(.., |(.., m)| m.source == source).collect();
        if let Some(&(phase, rows, _)) = ready.first() {
            let maps = ready.into_iter().map(|(.., m)| m).collect();
            out.push(Step { phase, op: Op::Map { rows, maps } });
        }
        let waits = |step: &Step| match &step.op {
            Op::Layer(l) => maps.iter().any(|(.., m)| m.layer == l.layer),
            // It follows all layers.
            Op::Head { .. } => !maps.is_empty(),
            _ => maps.iter().any(|(.., m)| m.layer == 0),
        };
        while let Some(step) = base.pop_front_if(|step| !waits(step)) {
            out.push(step.clone());
        }
    }
    out.extend(base.into_iter().cloned());
    out
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
    pub fn takes<A: Element>(e: &Engine, net: &Network, act: &Activations<A>, l: &LayerStep) -> bool {
        let all = match l.out {
            Out::Rows(last) => l.rows.first == 0 && last == l.rows.count,
            Out::Ends(first, last) => (first, last) == (l.rows.first, l.rows.count),
            Out::Query => false,
        };
        all && act.rows() <= CHUNK && e.streams(act.rows(), A::DTYPE, net.weight_dtype())
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

#[cfg(test)]
mod tests {
    use ttft_kernels::DType;

    use crate::{
        kv_prediction::layout::{Layout, Order},
        schedule::Schedule,
        spec::{Extent, Precision, RunSpec},
        system::CostSystem,
    };

    fn steps(name: &str, map: &[usize], extent: Extent) -> Vec<String> {
        let mut s = CostSystem::named(name, DType::BF16).unwrap();
        s.base.layers.truncate(map.len());
        let p = s.prediction.as_mut().unwrap();
        assert_eq!(p.order, Order::Pipelined);
        p.layout = Layout::auxiliary(map);
        let spec = RunSpec { batch: 1, prompt: 9, generate: 1, precision: Precision::F32, extent };
        let steps = Schedule::new(&s, &spec).prompt;
        steps.iter().map(|s| s.to_string().split(": ").nth(1).unwrap().to_owned()).collect()
    }

    #[test]
    fn a_base_layer_follows_its_map_and_the_layer_before_it() {
        let steps = steps("OE1.1B-KVP-C-270M-pipelined", &[1, 0, 0, 2], Extent::FirstToken);
        assert_eq!(
            steps,
            [
                "Auxiliary embeds 8 of Prompt",
                "Auxiliary layer 0 on 8 of 8",
                "maps of 2 layers on 8",
                "Auxiliary layer 1 on 8 of 8",
                "maps of 1 layers on 8",
                "Base embeds 1 of Prompt",
                "Base layer 0 on 1 of 9",
                "Base layer 1 on 1 of 9",
                "Base layer 2 on 1 of 9",
                "Auxiliary layer 2 on 8 of 8",
                "maps of 1 layers on 8",
                "Base layer 3 on 1 of 9",
                "Base head on 1",
            ]
        );
    }

    #[test]
    fn the_whole_auxiliary_may_run() {
        let steps = steps("OE1.1B-KVP-C-270M-m2-pipelined", &[0, 0], Extent::FullNetwork);
        let head = steps.iter().position(|s| s == "Auxiliary head on 7").unwrap();
        assert_eq!((steps[5].as_str(), head), ("Base layer 1 on 2 of 9", 22));
        assert_eq!(steps[6], "Base head on 2");
    }
}
