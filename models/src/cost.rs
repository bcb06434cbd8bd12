//! What a run computes and moves, counted from shapes alone.
//!
//! A multiply-add is two FLOPs. Counted exactly: every projection (2 M N K), attention over the positions that a query
//! sees (causal, 2 d for its product with a key and 2 d for the sum over values), the output head, the prediction. Not
//! counted: norms, RoPE, softmax, SiLU, additions, look-ups; below 1% of the total for any network of the paper.

use crate::{
    config::NetworkConfig,
    kv_prediction::auxiliary_layers,
    pruning::Pruning,
    spec::{Extent, Phase, RunSpec},
};

pub use crate::system::CostSystem;

/// Floating-point operations by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flops {
    /// Projections of the layers.
    pub projections: u64,
    /// Products with keys and with values.
    pub attention: u64,
    /// Output head.
    pub head: u64,
    /// The predictor's maps.
    pub prediction: u64,
}

impl Flops {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.projections + self.attention + self.head + self.prediction
    }
}

impl std::ops::Add for Flops {
    type Output = Flops;
    fn add(self, o: Flops) -> Flops {
        Flops {
            projections: self.projections + o.projections,
            attention: self.attention + o.attention,
            head: self.head + o.head,
            prediction: self.prediction + o.prediction,
        }
    }
}

/// What one phase costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhaseCost {
    /// The phase.
    pub phase: Phase,
    /// Arithmetic.
    pub flops: Flops,
    /// Bytes of weights, each tensor that the phase uses streamed once; of an embedding table the rows looked up, or the
    /// whole where it is also the head.
    pub weight_bytes: u64,
    /// Bytes of keys and values written, and read back, each entry once per layer that uses it.
    pub cache_bytes: u64,
}

impl CostSystem {
    /// Costs of the first token, phase by phase, in the order of [`crate::PhaseTimes::phases`].
    pub fn first_token(&self, spec: &RunSpec) -> Vec<PhaseCost> {
        let n = spec.prompt as u64;
        let c = self.counter(spec);
        if let Some(pruning) = self.pruning {
            return c.pruned(&self.base, pruning, spec);
        }
        let Some((aux, map)) = &self.pair else {
            return vec![c.network(Phase::Prefill, &self.base, n, 0, spec.extent)];
        };
        let step = c.network(Phase::BaseStep, &self.base, 1, n - 1, spec.extent);
        if n == 1 {
            return vec![step];
        }
        vec![c.auxiliary(aux, map, n - 1, spec.extent), c.prediction(&self.base, aux, map, n - 1), step]
    }

    /// Cost of the token after `past` positions, by the base alone. Of LazyLLM without the tokens that it revives, which
    /// depend on what the tokens attend to.
    pub fn next_token(&self, spec: &RunSpec, past: usize) -> PhaseCost {
        let c = self.counter(spec);
        match self.pruning {
            Some(p @ Pruning::Lazy { .. }) => {
                let layers = self.base.layers.len();
                c.layers(Phase::BaseStep, &self.base, Extent::FirstToken, |i| {
                    let [here, next] = lazy_tokens(p, i, layers, past + 1);
                    (1, here - 1, if next < here { here } else { 0 })
                })
            }
            Some(p) => {
                let dropped = spec.prompt - p.tokens(0, self.base.layers.len(), spec.prompt);
                c.network(Phase::BaseStep, &self.base, 1, (past - dropped) as u64, Extent::FirstToken)
            }
            None => c.network(Phase::BaseStep, &self.base, 1, past as u64, Extent::FirstToken),
        }
    }

    fn counter(&self, spec: &RunSpec) -> Counter {
        Counter {
            batch: spec.batch as u64,
            weights: self.weights.size() as u64,
            cache: spec.precision.dtype().size() as u64,
        }
    }

    /// The paper's approximation, 2 FLOPs per parameter and token: `t_base(N)`, or `t_aux(N-1) + t_predictor(N-1) +
    /// t_base(1)`; parameters with the tied embedding once. Of token pruning [`Pruning::paper_share`] of `t_base(N)`.
    pub fn paper_flops(&self, batch: usize, prompt: usize) -> u64 {
        let (b, n) = (batch as u64, prompt as u64);
        let base = self.base.params();
        match &self.pair {
            None => {
                let all = 2 * b * n * base;
                self.pruning.map_or(all, |p| (all as f64 * p.paper_share()).round() as u64)
            }
            Some((aux, _)) => 2 * b * ((n - 1) * (aux.params() + self.predictor_params()) + base),
        }
    }

    /// The paper's headline figure: `params(base) / params(auxiliary)`, the inverse of [`Pruning::paper_share`], or 1.
    pub fn paper_reduction(&self) -> f64 {
        match (&self.pair, self.pruning) {
            (Some((aux, _)), _) => self.base.params() as f64 / aux.params() as f64,
            (None, Some(pruning)) => 1.0 / pruning.paper_share(),
            (None, None) => 1.0,
        }
    }
}

/// What does not change within a run.
struct Counter {
    batch: u64,
    /// Bytes of an element of weights.
    weights: u64,
    /// Bytes of an element of caches.
    cache: u64,
}

/// Tokens that LazyLLM's layer `i` takes of `n`, and the next one; after the last layer as many.
fn lazy_tokens(p: Pruning, i: usize, layers: usize, n: usize) -> [u64; 2] {
    [i, (i + 1).min(layers - 1)].map(|i| p.tokens(i, layers, n) as u64)
}

/// Positions that queries at `past..past + n` see in all.
fn seen(past: u64, n: u64) -> u64 {
    n * past + n * (n + 1) / 2
}

impl Counter {
    /// One layer over `n` new positions of each sequence: keys and values of all of them, queries and all that follows of
    /// the last `q`. With `q == 0` the layer ends after its keys and values.
    fn layer(&self, c: &NetworkConfig, i: usize, n: u64, q: u64, past: u64, out: &mut PhaseCost) {
        let (dim, d, b) = (c.dim as u64, c.head_dim as u64, self.batch);
        let (q_dim, kv_dim, f) = (c.q_dim(i) as u64, c.kv_dim(i) as u64, c.layers[i].ffn as u64);
        let heads = c.layers[i].query_heads as u64;
        out.flops.projections += 2 * b * n * dim * 2 * kv_dim;
        out.weight_bytes += (2 * kv_dim * dim + dim) * self.weights;
        if q > 0 {
            let head_norms = if c.qk_norm { 2 * d } else { 0 };
            out.flops.projections += 2 * b * q * (dim * q_dim + q_dim * dim + dim * 2 * f + f * dim);
            out.flops.attention += 4 * d * heads * b * seen(past + n - q, q);
            out.weight_bytes += ((2 * q_dim + 3 * f) * dim + dim + head_norms) * self.weights;
            // Written for the new positions, read for all.
            out.cache_bytes += 2 * kv_dim * b * (n + past + n) * self.cache;
        }
    }

    /// Embeddings, layers and head of a network over `n` new positions.
    fn network(&self, phase: Phase, c: &NetworkConfig, n: u64, past: u64, extent: Extent) -> PhaseCost {
        self.layers(phase, c, extent, |_| (n, past, 0))
    }

    /// As [`Counter::network`], where layers differ: `of(layer)` gives its new positions, those in its cache before them,
    /// and how many the tokens are ranked by the last one's attention to.
    fn layers(
        &self,
        phase: Phase,
        c: &NetworkConfig,
        extent: Extent,
        of: impl Fn(usize) -> (u64, u64, u64),
    ) -> PhaseCost {
        let mut out = PhaseCost { phase, flops: Flops::default(), weight_bytes: 0, cache_bytes: 0 };
        let last = c.layers.len() - 1;
        let needed = |n: u64| if extent == Extent::FirstToken { 1 } else { n };
        for i in 0..=last {
            let (n, past, ranked) = of(i);
            self.layer(c, i, n, if i == last { needed(n) } else { n }, past, &mut out);
            self.ranking(c, i, ranked, &mut out);
        }
        self.ends(c, of(0).0, needed(of(last).0), &mut out);
        out
    }

    /// The last token's attention to `n` positions: a product of its query with their keys, which are read again.
    fn ranking(&self, c: &NetworkConfig, i: usize, n: u64, out: &mut PhaseCost) {
        out.flops.attention += 2 * c.q_dim(i) as u64 * self.batch * n;
        out.cache_bytes += c.kv_dim(i) as u64 * self.batch * n * self.cache;
    }

    fn pruned(&self, c: &NetworkConfig, p: Pruning, spec: &RunSpec) -> Vec<PhaseCost> {
        let (n, layers) = (spec.prompt as u64, c.layers.len());
        if let Pruning::Lazy { .. } = p {
            return vec![self.layers(Phase::Prefill, c, spec.extent, |i| {
                let [here, next] = lazy_tokens(p, i, layers, spec.prompt);
                (here, 0, if next < here { here } else { 0 })
            })];
        }
        let kept = p.tokens(0, layers, spec.prompt) as u64;
        let prefill = self.network(Phase::Prefill, c, kept, 0, spec.extent);
        let selecting = p.selection_layers(layers);
        if selecting == 0 {
            return vec![prefill];
        }
        let mut out = PhaseCost { phase: Phase::Selection, flops: Flops::default(), weight_bytes: 0, cache_bytes: 0 };
        for i in 0..selecting {
            let ends = i + 1 == selecting && spec.extent == Extent::FirstToken;
            self.layer(c, i, n, if ends { 0 } else { n }, 0, &mut out);
            if ends {
                self.last_query(c, i, n, &mut out);
            }
            self.ranking(c, i, n, &mut out);
        }
        self.ends(c, n, 0, &mut out);
        vec![out, prefill]
    }

    /// The query of the last of `n` positions, in a layer that ends there.
    fn last_query(&self, c: &NetworkConfig, i: usize, n: u64, out: &mut PhaseCost) {
        let (dim, q_dim) = (c.dim as u64, c.q_dim(i) as u64);
        let head_norms = if c.qk_norm { 2 * c.head_dim as u64 } else { 0 };
        out.flops.projections += 2 * self.batch * dim * q_dim;
        out.weight_bytes += (dim * q_dim + head_norms) * self.weights;
        out.cache_bytes += 2 * c.kv_dim(i) as u64 * self.batch * n * self.cache;
    }

    /// Embedding look-up of `n` positions of each sequence; final norm and output head of `heads` of them.
    fn ends(&self, c: &NetworkConfig, n: u64, heads: u64, out: &mut PhaseCost) {
        let (v, dim) = (c.vocab as u64, c.dim as u64);
        if heads > 0 {
            out.flops.head += 2 * self.batch * heads * v * dim;
            out.weight_bytes += (v * dim + dim) * self.weights;
        }
        if heads == 0 || !c.tied {
            out.weight_bytes += (self.batch * n).min(v) * dim * self.weights;
        }
    }

    fn auxiliary(&self, c: &NetworkConfig, map: &[usize], m: u64, extent: Extent) -> PhaseCost {
        let mut out = PhaseCost { phase: Phase::Auxiliary, flops: Flops::default(), weight_bytes: 0, cache_bytes: 0 };
        let layers = auxiliary_layers(map, c.layers.len(), extent);
        for j in 0..layers {
            let q = if j == layers - 1 && extent == Extent::FirstToken { 0 } else { m };
            self.layer(c, j, m, q, 0, &mut out);
            // The copy that the predictor reads.
            out.cache_bytes += 2 * c.kv_dim(j) as u64 * self.batch * m * self.cache;
        }
        self.ends(c, m, if extent == Extent::FullNetwork { m } else { 0 }, &mut out);
        out
    }

    fn prediction(&self, base: &NetworkConfig, aux: &NetworkConfig, map: &[usize], m: u64) -> PhaseCost {
        let mut out = PhaseCost { phase: Phase::Prediction, flops: Flops::default(), weight_bytes: 0, cache_bytes: 0 };
        for (i, &j) in map.iter().enumerate() {
            let (n, k) = (base.kv_dim(i) as u64, aux.kv_dim(j) as u64);
            out.flops.prediction += 2 * 2 * self.batch * m * n * k;
            out.weight_bytes += 2 * (n * k + n) * self.weights;
            out.cache_bytes += 2 * (n + k) * self.batch * m * self.cache;
        }
        out
    }
}
