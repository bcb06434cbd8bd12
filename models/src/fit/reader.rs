//! The forward pass over windows: what a source leaves, and what the base makes of it in the layers that are fitted.

use std::time::{Duration, Instant};

use half::bf16;
use ttft_kernels::{Element, RopeTable};

use super::{Feature, Kind, Spec};
use crate::{
    activations::{Activations, Rows},
    cache::{LayerCache, RawKv},
    config::NetworkConfig,
    engine::Engine,
    error::Result,
    kv_prediction::layout::Input,
    network::{Cache, Kv, Network, Out},
    sizes::{mul, sum},
    spec::Precision,
};

/// Takes what windows show, `[windows * window, width]` each: a source layer before the base layers that are fitted to it.
pub(super) trait Sink {
    /// What maps may read.
    fn feature<T: Element>(&mut self, e: &Engine, of: Feature, x: &[T]) -> Result<()>;
    /// What a map should give.
    fn output<T: Element>(&mut self, e: &Engine, layer: usize, kind: Kind, y: &[T]) -> Result<()>;
}

/// Looks at nothing.
pub(super) struct Nothing;

impl Sink for Nothing {
    fn feature<T: Element>(&mut self, _: &Engine, _: Feature, _: &[T]) -> Result<()> {
        Ok(())
    }

    fn output<T: Element>(&mut self, _: &Engine, _: usize, _: Kind, _: &[T]) -> Result<()> {
        Ok(())
    }
}

/// What reading takes besides the networks.
#[derive(Debug)]
pub(super) enum Reader {
    F32(Lanes<f32>),
    Bf16(Lanes<bf16>),
}

#[derive(Debug)]
pub(super) struct Lanes<A> {
    base: Lane<A>,
    aux: Option<Lane<A>>,
}

/// A network's activations, and what is read of each of its layers.
#[derive(Debug)]
struct Lane<A> {
    act: Activations<A>,
    rope: RopeTable,
    wants: Vec<Wants>,
    /// The residual stream behind a layer.
    hidden: Vec<f32>,
}

/// What is read of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wants {
    /// Keys and values, as a source.
    raw: bool,
    /// The residual stream behind it, as a source.
    hidden: bool,
    /// Keys and values, as what is fitted.
    fitted: bool,
}

/// By layer of a network, as far up as anything is read.
fn wants(spec: &Spec, layers: usize, is_base: bool) -> Vec<Wants> {
    let mut wants = vec![Wants::default(); layers];
    let is_source = spec.layout.shared.is_some() == is_base;
    for (i, origin) in spec.layout.predicted().filter(|(_, o)| o.input != Input::Own) {
        if is_base {
            wants[i].fitted = true;
        }
        if is_source {
            wants[origin.layer].raw |= origin.input == Input::KeysAndValues;
            wants[origin.layer].hidden |= origin.input == Input::Hidden;
        }
    }
    let last = wants.iter().rposition(|w| *w != Wants::default()).map_or(0, |last| last + 1);
    wants.truncate(last);
    wants
}

impl<A: Element> Lane<A> {
    fn new(net: &Network, spec: &Spec, is_base: bool) -> Result<Lane<A>> {
        let act = Activations::new(net.config(), spec.windows() * spec.window)?;
        let wants = wants(spec, net.config().layers.len(), is_base);
        Ok(Lane { act, rope: net.rope(spec.window), wants, hidden: Vec::new() })
    }

    /// Shows `sink` what it wants; the time that the network took.
    fn read(&mut self, e: &Engine, net: &Network, ids: &[u32], batch: usize, sink: &mut impl Sink) -> Result<Duration> {
        let (c, rows, n) = (net.config(), ids.len(), ids.len() / batch);
        let (mut began, mut took) = (Instant::now(), Duration::ZERO);
        net.embed(e, ids, batch, Rows::all(n), &mut self.act)?;
        for (i, wants) in self.wants.iter().enumerate() {
            let mut raw = (wants.raw || wants.fitted).then(|| RawKv::<A>::new(rows, c.kv_dim(i)));
            if i + 1 == self.wants.len() && !wants.hidden {
                // Nothing that comes after its keys and values is looked at.
                let kv = Kv { cache: Cache::None, source: raw.as_mut() };
                net.layer(e, i, &mut self.act, &self.rope, kv, Out::Rows(0))?;
            } else {
                let mut cache = LayerCache::new(batch, c.layers[i].kv_heads, n, c.head_dim);
                let kv = Kv { cache: Cache::Own(&mut cache), source: raw.as_mut() };
                net.layer(e, i, &mut self.act, &self.rope, kv, Out::Rows(n))?;
            }
            if wants.hidden {
                self.hidden.resize(rows * c.dim, 0.0);
                net.keep_hidden(e, &self.act, true, &mut self.hidden)?;
            }
            took += began.elapsed();
            if let Some(raw) = &raw {
                for (kind, part) in Kind::ALL.into_iter().zip([&raw.k, &raw.v]) {
                    if wants.raw {
                        sink.feature(e, Feature::Raw(i, kind), part)?;
                    }
                    if wants.fitted {
                        sink.output(e, i, kind, part)?;
                    }
                }
            }
            if wants.hidden {
                sink.feature(e, Feature::Hidden(i), &self.hidden)?;
            }
            began = Instant::now();
        }
        Ok(took)
    }
}

impl<A: Element> Lanes<A> {
    fn new(base: &Network, aux: Option<&Network>, spec: &Spec) -> Result<Lanes<A>> {
        let aux = aux.filter(|_| spec.layout.shared.is_none());
        Ok(Lanes { base: Lane::new(base, spec, true)?, aux: aux.map(|aux| Lane::new(aux, spec, false)).transpose()? })
    }

    fn read(
        &mut self,
        e: &Engine,
        (base, aux): (&Network, Option<&Network>),
        (ids, batch): (&[u32], usize),
        sink: &mut impl Sink,
    ) -> Result<Duration> {
        let mut took = Duration::ZERO;
        if let (Some(lane), Some(aux)) = (&mut self.aux, aux) {
            took += lane.read(e, aux, ids, batch, sink)?;
        }
        Ok(took + self.base.read(e, base, ids, batch, sink)?)
    }
}

impl Reader {
    pub fn new(base: &Network, aux: Option<&Network>, spec: &Spec) -> Result<Reader> {
        Ok(match spec.precision {
            Precision::F32 => Reader::F32(Lanes::new(base, aux, spec)?),
            Precision::Bf16 => Reader::Bf16(Lanes::new(base, aux, spec)?),
        })
    }

    /// Runs both networks on `ids`, `[batch * window]`; the time that they took.
    pub fn read(
        &mut self,
        e: &Engine,
        networks: (&Network, Option<&Network>),
        ids: (&[u32], usize),
        sink: &mut impl Sink,
    ) -> Result<Duration> {
        match self {
            Reader::F32(lanes) => lanes.read(e, networks, ids, sink),
            Reader::Bf16(lanes) => lanes.read(e, networks, ids, sink),
        }
    }
}

/// Bytes that a [`Reader`] holds, and those that reading takes besides for a moment.
pub(super) fn bytes(spec: &Spec, base: &NetworkConfig, aux: Option<&NetworkConfig>) -> [u64; 2] {
    let aux = aux.filter(|_| spec.layout.shared.is_none());
    let rows = spec.windows() * spec.window;
    let of = |c: &NetworkConfig| {
        let (act, size) = match spec.precision {
            Precision::F32 => (Activations::<f32>::bytes(c, rows), 4),
            Precision::Bf16 => (Activations::<bf16>::bytes(c, rows), 2),
        };
        let widest = (0..c.layers.len()).map(|i| c.kv_dim(i)).max().unwrap_or(0);
        // The residual stream and RoPE are held; a cache and a raw copy of its keys and values are a layer's.
        let held = sum([act, mul(&[4, rows, c.dim]), mul(&[4, spec.window, c.head_dim])]);
        [held, mul(&[4, rows, widest, size])]
    };
    let ([base, base_layer], [aux, aux_layer]) = (of(base), aux.map_or([0; 2], of));
    [sum([base, aux]), base_layer.max(aux_layer)]
}
