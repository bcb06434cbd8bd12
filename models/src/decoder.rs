//! A network with its cache, choosing tokens greedily: what every way to a first token ends in; and the plainest of
//! them, full prefill.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ttft_kernels::{Element, Engine, Mat, Positions, RopeTable};

use crate::{
    activations::Activations,
    cache::{LayerCache, NamedTensor, kv_bytes},
    config::NetworkConfig,
    error::{Error, Result},
    inference::{Inference, PhaseTime, PhaseTimes},
    network::{Kv, Network, Want, head_buffer},
    prompts,
    sizes::{mul, sum, zeroed},
    spec::{Extent, Phase, RunSpec},
};

/// A network, its cache, and the tokens last chosen.
pub(crate) struct Decoder<A> {
    pub net: Arc<Network>,
    pub spec: RunSpec,
    pub rope: RopeTable,
    pub caches: Vec<LayerCache<A>>,
    pub act: Activations<A>,
    /// Entries of the cache that are filled.
    len: usize,
    /// Tokens of the prompt that have no entry: the next token stands at position `len + dropped`.
    dropped: usize,
    logits: Vec<f32>,
    ids: Vec<u32>,
    /// For logits of all positions, where the extent asks for them.
    all: Vec<f32>,
}

impl<A: Element> Decoder<A> {
    /// `rows`: the most tokens of a sequence in one pass; `capacity`: entries of the cache.
    pub fn new(net: &Arc<Network>, spec: RunSpec, rows: usize, capacity: usize) -> Result<Self> {
        let c = net.config();
        let b = spec.batch;
        Ok(Decoder {
            net: Arc::clone(net),
            spec,
            rope: net.rope(spec.positions()),
            caches: net.caches(b, capacity),
            act: Activations::new(c, b * rows)?,
            len: 0,
            dropped: 0,
            logits: zeroed((b * c.vocab) as u64)?,
            ids: zeroed(b as u64)?,
            all: zeroed(all_logits(c, &spec, rows) as u64)?,
        })
    }

    /// Bytes that [`Decoder::new`] allocates: caches, and the rest.
    pub fn bytes(c: &NetworkConfig, spec: &RunSpec, rows: usize, capacity: usize) -> [u64; 2] {
        let b = spec.batch;
        let caches = sum((0..c.layers.len()).map(|i| kv_bytes::<A>(c, i, b, capacity)));
        let own = [
            rope_bytes(c, spec.positions()),
            mul(&[b, c.vocab, 4]),
            mul(&[b, 4]),
            Activations::<A>::bytes(c, b.saturating_mul(rows)),
            mul(&[all_logits(c, spec, rows), 4]),
        ];
        [caches, sum(own)]
    }

    /// Empties the cache, in which `dropped` tokens of the prompt will have no entry.
    pub fn reset(&mut self, dropped: usize) {
        (self.len, self.dropped) = (0, dropped);
    }

    /// Says that `n` entries more are filled, of every layer.
    pub fn filled(&mut self, n: usize) {
        self.len += n;
    }

    /// Entries of the cache that are filled.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The tokens last chosen, `[batch]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Appends `ids` (`[batch * n]`), which follow what came before, and chooses the next token of each sequence.
    pub fn append(&mut self, e: &Engine, ids: &[u32], extent: Extent) -> Result<()> {
        self.forward(e, ids, Positions::From(self.len + self.dropped), extent)
    }

    /// As [`Decoder::append`], at any positions.
    pub fn forward(&mut self, e: &Engine, ids: &[u32], at: Positions<'_>, extent: Extent) -> Result<()> {
        let last = self.caches.len() - 1;
        self.net.embed(e, ids, self.spec.batch, self.len, &mut self.act)?;
        self.act.place(at);
        for (i, cache) in self.caches.iter_mut().enumerate() {
            let want = if i == last && extent == Extent::FirstToken { Want::Last(1) } else { Want::All };
            self.net.layer(e, i, &mut self.act, &self.rope, Kv::Append(cache), want)?;
        }
        self.len += ids.len() / self.spec.batch;
        self.choose(e, extent)
    }

    /// Chooses a token by the last row of each sequence that went through the layers.
    pub fn choose(&mut self, e: &Engine, extent: Extent) -> Result<()> {
        let (b, n, v) = (self.spec.batch, self.act.n(), self.net.config().vocab);
        if extent == Extent::FullNetwork && n > 1 {
            let logits = &mut self.logits;
            self.net.head_all(e, &mut self.act, &mut self.all, |row, m| {
                // Of all these logits, only those of the last positions are looked at.
                for r in 0..m.rows() {
                    if (row + r) % n == n - 1 {
                        logits[(row + r) / n * v..][..v].copy_from_slice(m.row(r));
                    }
                }
            })?;
        } else {
            self.net.head(e, &mut self.act, &mut self.logits)?;
        }
        Ok(e.argmax(Mat::new(&self.logits, b, v), &mut self.ids)?)
    }

    /// The tokens last chosen, if there are any and one more fits the plan.
    pub fn chosen(&self) -> Result<Vec<u32>> {
        if self.len == 0 {
            return Err(Error::NotStarted);
        }
        if self.len + self.dropped >= self.spec.positions() {
            let RunSpec { prompt, generate, .. } = self.spec;
            return Err(Error::CacheFull { planned: self.spec.positions(), prompt, generate });
        }
        Ok(self.ids.clone())
    }

    pub fn next(&mut self, e: &Engine) -> Result<Duration> {
        let t = Instant::now();
        let chosen = self.chosen()?;
        self.append(e, &chosen, Extent::FirstToken)?;
        Ok(t.elapsed())
    }

    pub fn logits(&self) -> Mat<'_, f32> {
        Mat::new(&self.logits, self.spec.batch, self.net.config().vocab)
    }

    /// The filled part of the caches; `position(b, i)` is where entry `i` of sequence `b` stands.
    pub fn dump(&self, name: &str, position: impl Fn(usize, usize) -> usize) -> Vec<NamedTensor> {
        let at = |b, i| (i, position(b, i));
        let dump = |(i, c): (usize, &LayerCache<A>)| c.dump(&format!("{name}.{i}"), self.len, at, &self.rope);
        self.caches.iter().enumerate().flat_map(dump).collect()
    }
}

/// Elements of the buffer for logits of all positions; 0 where nobody asks for them.
fn all_logits(c: &NetworkConfig, spec: &RunSpec, rows: usize) -> usize {
    let wanted = spec.extent == Extent::FullNetwork && rows > 1;
    if wanted { head_buffer(c, spec.batch.saturating_mul(rows)) } else { 0 }
}

/// Bytes of cosines and sines.
pub(crate) fn rope_bytes(c: &NetworkConfig, positions: usize) -> u64 {
    mul(&[c.head_dim, positions, 4])
}

/// Full prefill of one network.
pub(crate) struct NetworkRun<A>(Decoder<A>);

impl<A: Element> NetworkRun<A> {
    pub fn new(net: &Arc<Network>, spec: RunSpec) -> Result<Self> {
        Ok(NetworkRun(Decoder::new(net, spec, spec.prompt, spec.positions())?))
    }
}

impl<A: Element> Inference for NetworkRun<A> {
    fn first_token(&mut self, e: &Engine, ids: &[u32]) -> Result<PhaseTimes> {
        let start = Instant::now();
        let d = &mut self.0;
        prompts::check(ids, d.spec.batch, d.spec.prompt, d.net.config().vocab)?;
        d.reset(0);
        let prefill = PhaseTime::of(e, Phase::Prefill, || d.append(e, ids, d.spec.extent))?;
        Ok(PhaseTimes { total: start.elapsed(), phases: vec![prefill] })
    }

    fn next_token(&mut self, e: &Engine) -> Result<Duration> {
        self.0.next(e)
    }

    fn token_ids(&self) -> &[u32] {
        self.0.ids()
    }

    fn logits(&self) -> Mat<'_, f32> {
        self.0.logits()
    }

    fn record(&mut self, _on: bool) {}

    fn cache_dump(&self) -> Vec<NamedTensor> {
        self.0.dump("base_cache", |_, p| p)
    }
}
