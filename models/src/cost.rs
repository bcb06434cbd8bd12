//! What a run computes and moves, counted from shapes alone.
//!
//! A multiply-add is two FLOPs. Counted exactly: every projection (2 M N K), attention over the positions that a query
//! sees (causal, 2 d for its product with a key and 2 d for the sum over values), the output head, the prediction. Not
//! counted: norms, RoPE, softmax, SiLU, additions, look-ups; below 1% of the total for any network of the paper. Sums and
//! products end at the largest number, which no run that fits a machine comes near.

use ttft_kernels::DType;

use crate::{
    config::NetworkConfig,
    kv_prediction::layout::Input,
    loan,
    pruning::Pruning,
    schedule::{Entries, Net, Op, Out, Schedule, Step, next, shapes},
    sizes::{product, sum},
    spec::{Phase, RunSpec},
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
        sum([self.projections, self.attention, self.head, self.prediction])
    }
}

impl std::ops::Add for Flops {
    type Output = Flops;
    fn add(self, o: Flops) -> Flops {
        Flops {
            projections: self.projections.saturating_add(o.projections),
            attention: self.attention.saturating_add(o.attention),
            head: self.head.saturating_add(o.head),
            prediction: self.prediction.saturating_add(o.prediction),
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
    /// What of it is multiplied in F32; the rest is in BF16.
    pub f32_flops: u64,
    /// Bytes of weights, each tensor that a pass of the phase uses streamed once; of an embedding table the rows looked up, or the
    /// whole where it is also the head.
    pub weight_bytes: u64,
    /// Bytes of keys and values written, and read back, each entry once per layer that uses it; and of the outputs of layers that
    /// maps read.
    pub cache_bytes: u64,
}

/// The type of the factors in a matrix product, whatever kernels make of them.
pub fn compute_dtype(activations: DType, weights: DType) -> DType {
    if (activations, weights) == (DType::BF16, DType::BF16) { DType::BF16 } else { DType::F32 }
}

impl CostSystem {
    /// Costs of the first token, phase by phase, in the order of [`crate::PhaseTimes::phases`]. Of every phase its arithmetic or its
    /// traffic, whichever takes longer, is what it takes at least: in the pipelined order what runs behind the auxiliary is of one
    /// phase with it, and what is left when that is done, the tail, is the base step.
    pub fn first_token(&self, spec: &RunSpec) -> Vec<PhaseCost> {
        self.phases(spec, &Schedule::new(self, spec).prompt)
    }

    /// Cost of the token after `past` positions, by the base alone. Of LazyLLM without the tokens that it revives, which
    /// depend on what the tokens attend to.
    pub fn next_token(&self, spec: &RunSpec, past: usize) -> PhaseCost {
        let mut steps = Vec::new();
        next(self, spec, past, &mut steps);
        self.phases(spec, &steps)[0]
    }

    /// What of [`CostSystem::first_token`] the output head of the network that answers costs.
    pub fn head(&self, spec: &RunSpec) -> PhaseCost {
        let mut steps = Schedule::new(self, spec).prompt;
        steps.retain(|step| step.op.answers());
        self.phases(spec, &steps)[0]
    }

    /// Operations of the steps that this need not run after another system, planned to lend to it ([`crate::plan_lending`]), has
    /// read the same prompts.
    pub fn borrowed(&self, spec: &RunSpec, from: &CostSystem) -> u64 {
        let [own, from] = [Schedule::new(self, spec), loan::lending(from, spec, 0, &[self])];
        let steps = &own.prompt[..loan::steps(&from.prompt, &own.prompt)];
        sum(steps.iter().map(|step| self.step(spec, step).flops.total()))
    }

    /// The costs of `steps`, summed by phase.
    fn phases(&self, spec: &RunSpec, steps: &[Step]) -> Vec<PhaseCost> {
        let mut out: Vec<PhaseCost> = Vec::new();
        for (at, step) in steps.iter().enumerate() {
            let mut cost = self.step(spec, step);
            // A table that is also the head is streamed whole by a pass that ends in it, the rows looked up with it.
            let streamed = |net: Net| {
                let begins = |s: &&Step| matches!(s.op, Op::Embed { net: n, .. } if n == net);
                let heads = |s: &Step| s.phase == step.phase && matches!(s.op, Op::Head { net: n, .. } if n == net);
                shapes(self, net).tied && steps[at + 1..].iter().take_while(|s| !begins(s)).any(heads)
            };
            if matches!(step.op, Op::Embed { net, .. } if streamed(net)) {
                cost.weight_bytes = 0;
            }
            match out.iter_mut().find(|sum| sum.phase == step.phase) {
                Some(sum) => {
                    sum.flops = sum.flops + cost.flops;
                    sum.f32_flops = sum.f32_flops.saturating_add(cost.f32_flops);
                    sum.weight_bytes = sum.weight_bytes.saturating_add(cost.weight_bytes);
                    sum.cache_bytes = sum.cache_bytes.saturating_add(cost.cache_bytes);
                }
                None => out.push(cost),
            }
        }
        out
    }

    /// What one step costs.
    pub fn step(&self, spec: &RunSpec, step: &Step) -> PhaseCost {
        let b = spec.batch as u64;
        let activations = spec.precision.dtype();
        let [weight, map, cache] = [self.weights, self.maps, activations].map(|t| t.size() as u64);
        let (mut flops, mut weights, mut entries) = (Flops::default(), 0, Vec::new());
        let (mut map_weights, mut f32_maps) = (0, 0);
        // Outputs of layers, in f32 whatever the precision.
        let mut outputs = Vec::new();
        match &step.op {
            Op::Embed { net, rows, .. } => {
                let c = shapes(self, *net);
                weights = b.saturating_mul(rows.total() as u64).min(c.vocab as u64) * c.dim as u64;
            }
            Op::Layer(l) => {
                let (c, i) = (shapes(self, l.net), l.layer);
                let [dim, q_dim, kv_dim, f] = [c.dim, c.q_dim(i), c.kv_dim(i), c.layers[i].ffn].map(|n| n as u64);
                let n = l.rows.total() as u64;
                let bias = |has: bool, n: u64| if has { n } else { 0 };
                let head_norms = if c.qk_norm { 2 * c.head_dim as u64 } else { 0 };
                // Keys and values of all rows.
                flops.projections = product([2, b, n, dim, 2 * kv_dim]);
                weights = 2 * kv_dim * dim + dim + bias(c.biases.qkv, 2 * kv_dim);
                if l.entries != Entries::None {
                    entries.push(product([2, kv_dim, b, n]));
                }
                entries.push(product([2, kv_dim, b, l.source.kv as u64]));
                outputs.push(product([(l.source.hidden + l.source.own) as u64, b, dim]));
                // Queries, and all that follows, of those that go on.
                let (first, last) = l.out.ends();
                let rows = l.rows.ends(first, last);
                let q = rows.total() as u64;
                if q > 0 {
                    flops.projections = sum([flops.projections, product([2, b, q, dim, q_dim])]);
                    weights += q_dim * dim + head_norms + bias(c.biases.qkv, q_dim);
                }
                if l.out != Out::Query && q > 0 {
                    let after = product([2, b, q, q_dim * dim + dim * 2 * f + f * dim]);
                    flops.projections = sum([flops.projections, after]);
                    flops.attention = product([4, q_dim, b, rows.seen()]);
                    weights += (q_dim + 3 * f) * dim + dim;
                    weights += bias(c.biases.out, dim) + bias(c.biases.ffn, 2 * f + dim);
                    entries.push(product([2, kv_dim, b, rows.of as u64]));
                }
            }
            Op::Map { rows, maps } => {
                for m in maps {
                    let (c, source, rows) = (&self.base, shapes(self, m.net), product([b, *rows as u64]));
                    let [n, k] = [c.kv_dim(m.layer), m.input.width(source, m.source)].map(|n| n as u64);
                    let arithmetic = product([2, 2, rows, n, k]);
                    entries.push(product([2, n, rows]));
                    let read = match m.input {
                        Input::KeysAndValues => {
                            entries.push(product([2, k, rows]));
                            activations
                        }
                        Input::Hidden | Input::Own => {
                            outputs.push(product([k, rows]));
                            DType::F32
                        }
                    };
                    if m.input == Input::Own {
                        flops.projections = sum([flops.projections, arithmetic]);
                        weights += 2 * n * k + k + if c.biases.qkv { 2 * n } else { 0 };
                    } else {
                        flops.prediction = sum([flops.prediction, arithmetic]);
                        map_weights += 2 * n * k + 2 * n;
                        if compute_dtype(read, self.maps) == DType::F32 {
                            f32_maps = sum([f32_maps, arithmetic]);
                        }
                    }
                }
            }
            Op::Fill { rows, layers } => {
                let written = |i: &usize| product([2, self.base.kv_dim(*i) as u64, b, *rows as u64]);
                entries.extend(layers.iter().map(written));
            }
            Op::Rank { layer: Some((net, i)), of } => {
                // A product of the last query with the keys, which are read again.
                let c = shapes(self, *net);
                flops.attention = product([2, c.q_dim(*i) as u64, b, *of as u64]);
                entries.push(product([c.kv_dim(*i) as u64, b, *of as u64]));
            }
            Op::Sinks { rows, layers, .. } => {
                // Read here and written there.
                let moved = |i: &usize| product([2, 2, self.base.kv_dim(*i) as u64, b, *rows as u64]);
                entries.extend(layers.iter().map(moved));
            }
            Op::Rank { layer: None, .. } | Op::Choose { .. } | Op::Narrow { .. } | Op::Ends { .. } => {}
            Op::Head { net, rows } => {
                let c = shapes(self, *net);
                let (v, dim) = (c.vocab as u64, c.dim as u64);
                flops.head = product([2, b, *rows as u64, v, dim]);
                weights = v * dim + dim;
            }
        }
        let cache_bytes = sum([sum(entries).saturating_mul(cache), sum(outputs).saturating_mul(4)]);
        let in_f32 = |weights, flops| if compute_dtype(activations, weights) == DType::F32 { flops } else { 0 };
        let by_weights = in_f32(self.weights, sum([flops.projections, flops.head]));
        // Queries meet keys, and probabilities values, in the type of the cache.
        let f32_flops = sum([by_weights, in_f32(activations, flops.attention), f32_maps]);
        let weight_bytes = weights * weight + map_weights * map;
        PhaseCost { phase: step.phase, flops, f32_flops, weight_bytes, cache_bytes }
    }

    /// The paper's approximation, 2 FLOPs per parameter and token: `t_base(N)`, or `t_aux(N-m) + t_predictor(N-m) +
    /// t_base(m + s)`, or `t_base(m)` where the first s are kept; parameters with the tied embedding once. With shared layers these stand in for the auxiliary, on all N
    /// tokens, and the base step is the layers above them. Of token pruning [`Pruning::paper_share`] of `t_base(N)`; of what the
    /// paper does not time, what chooses the tokens, on all that it reads, and the base on what is kept.
    ///
    /// [`Pruning::paper_share`]: crate::Pruning::paper_share
    pub fn paper_flops(&self, batch: usize, prompt: usize) -> u64 {
        let (b, n) = (batch as u64, prompt as u64);
        let base = self.base.params();
        let all = product([2, b, n, base]);
        let Some(p) = &self.prediction else {
            let Some(pruning) = self.pruning else { return all };
            if let Some(share) = pruning.paper_share() {
                return (all as f64 * share).round() as u64;
            }
            let kept = product([pruning.tokens(0, self.base.layers.len(), prompt) as u64, base]);
            let reads = if let Pruning::Spec(p) = pruning { sum([n, p.look_ahead as u64 - 1]) } else { n };
            return product([2, b, sum([kept, product([reads, self.chooser_params()])])]);
        };
        let Some(own) = p.own.of(prompt).map(|rows| rows.total() as u64) else { return all };
        let read = n - p.own.last as u64;
        let maps = product([read, self.predictor_params()]);
        let networks = match (p.layout.shared, &p.aux) {
            (None, Some(aux)) => sum([product([read, aux.params()]), product([own, base])]),
            (k, _) => {
                let lower = self.base.layer_params(k.unwrap_or(0));
                sum([product([n, lower]), product([own, base - lower])])
            }
        };
        product([2, b, sum([maps, networks])])
    }

    /// Parameters of what chooses tokens: another network, or first layers of the base.
    fn chooser_params(&self) -> u64 {
        let layers = self.pruning.map_or(0, |p| p.selection_layers(self.base.layers.len()));
        self.chooser.as_ref().map_or_else(|| self.base.layer_params(layers), NetworkConfig::params)
    }

    /// The paper's headline figure: `params(base) / params(auxiliary)`, with shared layers their parameters; the inverse of
    /// [`Pruning::paper_share`], or 1. Of what the paper does not time, the limit of [`CostSystem::paper_flops`] for long prompts.
    ///
    /// [`Pruning::paper_share`]: crate::Pruning::paper_share
    pub fn paper_reduction(&self) -> f64 {
        let base = self.base.params() as f64;
        match (&self.prediction, self.pruning) {
            (Some(p), _) => {
                let k = p.layout.shared.unwrap_or(0);
                let source = p.aux.as_ref().map_or_else(|| self.base.layer_params(k), NetworkConfig::params);
                base / source as f64
            }
            (None, Some(pruning)) => {
                let kept = if let Pruning::Spec(p) = pruning { p.keep.value() } else { 0.0 };
                let chosen = || self.chooser_params() as f64 / base + kept;
                1.0 / pruning.paper_share().unwrap_or_else(chosen)
            }
            (None, None) => 1.0,
        }
    }
}
