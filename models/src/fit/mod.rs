//! Maps of a predictor in closed form: ridge regression of a base's keys and values on what its source leaves, from sums over
//! windows of a text that is read once.
//!
//! Let `x` be what a map reads at a token, and `y` what it should give: keys before k_norm and RoPE, or values. With
//! `x` standardised (`z = (x - mean) / deviation`), a map's weights solve `(Z'Z / T + lambda I) w = Z'(y - mean) / T`; its bias is
//! free. All that it takes of T tokens are `X'X`, `X'Y` and sums, so memory does not grow with the text. Products of a block of
//! tokens are taken in F32 by the engine and added in float64. Features and targets are shifted by their means over the first
//! block before, so that what is lost in F32 is small against their deviations and not against their means. The first position
//! of each window is left out: it is an attention sink, unlike all others, and can be kept exact when a prompt is read.

mod maps;
mod reader;
mod solve;
mod state;
mod sums;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use ttft_kernels::{DType, Element};

pub use self::maps::{Explained, LayerScore, Maps};
use self::{maps::Scores, reader::Reader, solve::Equations, sums::Sums};
use crate::{
    activations::CHUNK,
    config::NetworkConfig,
    engine::Engine,
    error::{Error, Result},
    kv_prediction::layout::{Input, Layout},
    network::Network,
    prompts,
    sizes::{mul, sum},
    spec::Precision,
};

/// What keys are fitted to. Values are always fitted as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// As they are before k_norm.
    #[default]
    Raw,
    /// Each head divided by its root mean square at that token, as k_norm does: errors of long keys weigh no more than others.
    HeadRms,
}

impl Target {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Target::Raw => "raw",
            Target::HeadRms => "head-rms",
        }
    }
}

/// Keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Keys.
    Key,
    /// Values.
    Value,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Key, Kind::Value];

    /// As tensors of a predictor are called.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Key => "key",
            Kind::Value => "value",
        }
    }
}

/// What maps read of a source layer. Those that read the same share a Gram matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feature {
    /// Its keys or its values, before k_norm and RoPE.
    Raw(usize, Kind),
    /// The residual stream behind it, divided by its root mean square.
    Hidden(usize),
}

impl Feature {
    fn of(layout: &Layout, layer: usize, kind: Kind) -> Option<Feature> {
        let origin = layout.layers[layer]?;
        match origin.input {
            Input::KeysAndValues => Some(Feature::Raw(origin.layer, kind)),
            Input::Hidden => Some(Feature::Hidden(origin.layer)),
            Input::Own => None,
        }
    }

    fn width(self, source: &NetworkConfig) -> usize {
        match self {
            Feature::Raw(layer, _) => source.kv_dim(layer),
            Feature::Hidden(_) => source.dim,
        }
    }
}

/// What is fitted, and how the text is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// Where each base layer's keys and values come from. A layer that projects its source's hidden state itself gets no map.
    pub layout: Layout,
    /// What keys are fitted to.
    pub target: Target,
    /// Tokens that are read together, each seeing those before it.
    pub window: usize,
    /// Type of the networks' activations. Sums do not depend on it.
    pub precision: Precision,
}

impl Spec {
    /// Windows of a block: those that are read, multiplied and added at once.
    pub fn windows(&self) -> usize {
        (CHUNK / self.window.max(1)).max(1)
    }

    /// Tokens of a window that count.
    pub fn rows(&self) -> usize {
        self.window.saturating_sub(1)
    }

    /// The largest number of features of a map: fewer tokens than that determine nothing.
    pub fn features(&self, base: &NetworkConfig, aux: Option<&NetworkConfig>) -> usize {
        let source = self.layout.source(base, aux);
        self.layout.predicted().map(|(_, o)| o.input.width(source, o.layer)).max().unwrap_or(0)
    }

    /// What a fit takes, from shapes alone.
    pub fn needs(&self, base: &NetworkConfig, aux: Option<&NetworkConfig>) -> Needs {
        let source = self.layout.source(base, aux);
        let (features, outputs) = shapes(&self.layout, base, source);
        let widths: Vec<usize> = features.iter().map(|f| f.width(source)).collect();
        let maps = sum(outputs.iter().map(|o| mul(&[o.width, widths[o.feature] + 1])));
        let grams = sum(widths.iter().map(|f| mul(&[*f, *f + 1])));
        let sums = sum([grams, maps]).saturating_mul(8);
        let (rows, most) = (self.windows() * self.window, self.features(base, aux));
        let widest = outputs.iter().map(|o| o.width).max().unwrap_or(0);
        let [reader, layer] = reader::bytes(self, base, aux);
        // What is subtracted from features and outputs.
        let shifts = sum(widths.iter().copied().chain(outputs.iter().map(|o| o.width)).map(|n| mul(&[4, n])));
        let held = sum([sums, shifts, reader, sums::block_bytes(&widths, widest, self.windows() * self.rows())]);
        // Keys divided by head, and the places of a block's rows.
        let adding = sum([layer, mul(&[4, rows, widest]), mul(&[8, rows])]);
        // A Gram matrix, its factor and one layer's sides of the equations; the maps themselves.
        let stored = maps.saturating_mul(4);
        let solving = sum([mul(&[16, most, most]), mul(&[16, most, widest]), stored]);
        // The maps, all features in F32, what a layer should give and what is predicted.
        let features = sum(widths.iter().map(|f| mul(&[4, rows, *f])));
        let scoring = sum([stored, layer, features, mul(&[8, rows, widest])]);
        Needs { memory: sum([held, adding.max(solving).max(scoring)]), sums, maps }
    }
}

/// What a fit takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of memory beside the weights.
    pub memory: u64,
    /// Bytes of the sums, which a file holds while a fit is interrupted.
    pub sums: u64,
    /// Numbers of all maps.
    pub maps: u64,
}

/// What a map gives: one for keys and one for values of each fitted layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Output {
    layer: usize,
    kind: Kind,
    width: usize,
    /// What it reads, as a place in a list.
    feature: usize,
}

/// What is read, and what is fitted to it.
fn shapes(layout: &Layout, base: &NetworkConfig, source: &NetworkConfig) -> (Vec<Feature>, Vec<Output>) {
    debug_assert!(layout.predicted().all(|(_, o)| o.layer < source.layers.len()));
    let (mut features, mut outputs) = (Vec::new(), Vec::new());
    for layer in 0..layout.layers.len() {
        for kind in Kind::ALL {
            let Some(feature) = Feature::of(layout, layer, kind) else { continue };
            let at = features.iter().position(|f| *f == feature).unwrap_or_else(|| {
                features.push(feature);
                features.len() - 1
            });
            outputs.push(Output { layer, kind, width: base.kv_dim(layer), feature: at });
        }
    }
    (features, outputs)
}

/// A fit under way: networks that read windows, and the sums so far.
#[derive(Debug)]
pub struct Fit {
    base: Arc<Network>,
    aux: Option<Arc<Network>>,
    spec: Spec,
    reader: Reader,
    features: Vec<Feature>,
    outputs: Vec<Output>,
    sums: Sums,
    windows: usize,
    reading: Duration,
    adding: Duration,
}

impl Fit {
    /// One that has read nothing.
    ///
    /// # Errors
    /// [`Error::Spec`]: no layer has a map, a window has fewer than two tokens, or head-rms is asked for and the base has no
    /// k_norm; [`Error::Memory`].
    pub fn new(base: Arc<Network>, aux: Option<Arc<Network>>, spec: Spec) -> Result<Fit> {
        let refuse = |what, expected: &str, found: usize| {
            Err(Error::Spec { what, expected: expected.into(), found: found as u64 })
        };
        let (b, a) = (base.config(), aux.as_ref().map(|a| a.config()));
        if spec.window < 2 {
            return refuse("tokens of a window", "2 or more, as the first is left out", spec.window);
        }
        if spec.target == Target::HeadRms && !b.qk_norm {
            return refuse("norms of keys in the base", "some, for targets by head", 0);
        }
        if spec.layout.layers.len() != b.layers.len() {
            return refuse("layers of the layout", &format!("the base's {}", b.layers.len()), spec.layout.layers.len());
        }
        let source = spec.layout.source(b, a);
        if let Some((_, o)) = spec.layout.predicted().find(|(_, o)| o.layer >= source.layers.len()) {
            return refuse("source layer", &format!("one of {}", source.layers.len()), o.layer);
        }
        let (features, outputs) = shapes(&spec.layout, b, source);
        if outputs.is_empty() {
            return refuse("layers to fit", "1 or more: with fewer shared layers some are left", 0);
        }
        let widths: Vec<usize> = features.iter().map(|f| f.width(source)).collect();
        let sums = Sums::new(&widths, outputs.iter().map(|o| (o.width, o.feature)))?;
        let reader = Reader::new(&base, aux.as_deref(), &spec)?;
        let (reading, adding) = Default::default();
        Ok(Fit { base, aux, spec, reader, features, outputs, sums, windows: 0, reading, adding })
    }

    /// What is fitted.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Windows that have been added.
    pub fn windows(&self) -> usize {
        self.windows
    }

    /// Time in the networks and in sums, of this process.
    pub fn times(&self) -> (Duration, Duration) {
        (self.reading, self.adding)
    }

    /// Reads windows and leaves it at that: what it takes, before anything is added.
    ///
    /// # Errors
    /// As [`Fit::add`].
    pub fn rehearse(&mut self, e: &Engine, ids: &[u32]) -> Result<Duration> {
        let batch = self.batch(ids)?;
        self.reader.read(e, (&self.base, self.aux.as_deref()), (ids, batch), &mut reader::Nothing)
    }

    /// Reads windows, `ids` `[n, window]` of at most [`Spec::windows`], and adds their products.
    ///
    /// # Errors
    /// [`Error::Spec`], [`Error::TokenId`]: not so many ids, or one outside the vocabulary; [`Error::Kernel`].
    pub fn add(&mut self, e: &Engine, ids: &[u32]) -> Result<()> {
        let batch = self.batch(ids)?;
        let (began, norm) = (Instant::now(), self.norm());
        let mut adder = Adder {
            window: self.spec.window,
            features: &self.features,
            outputs: &self.outputs,
            sums: &mut self.sums,
            norm,
        };
        adder.sums.begin(batch * self.spec.rows());
        let reading = self.reader.read(e, (&self.base, self.aux.as_deref()), (ids, batch), &mut adder)?;
        self.sums.end();
        self.windows += batch;
        self.reading += reading;
        self.adding += began.elapsed().saturating_sub(reading);
        Ok(())
    }

    /// How heads of keys are divided, if they are: their width, and what is added to their mean square.
    fn norm(&self) -> Option<(usize, f32)> {
        let c = self.base.config();
        (self.spec.target == Target::HeadRms).then_some((c.head_dim, c.eps))
    }

    fn batch(&self, ids: &[u32]) -> Result<usize> {
        let (window, most) = (self.spec.window, self.spec.windows());
        let batch = ids.len() / window;
        if !ids.len().is_multiple_of(window) || !(1..=most).contains(&batch) {
            let expected = format!("1 to {most} windows of {window}");
            return Err(Error::Spec { what: "tokens of a block", expected, found: ids.len() as u64 });
        }
        let vocab = |n: &Network| n.config().vocab;
        let vocab = self.aux.as_deref().map_or(usize::MAX, vocab).min(vocab(&self.base));
        prompts::check(ids, batch, window, vocab)?;
        Ok(batch)
    }

    /// The maps that fit what has been added, to be stored as F32 or BF16.
    ///
    /// # Errors
    /// [`Error::FewTokens`]; [`Error::Unfit`]: sums that are no numbers, or equations without a single solution.
    pub fn solve(&self, lambda: f64, dtype: DType) -> Result<Maps> {
        let (rows, features) = (self.sums.rows(), self.sums.widest());
        if rows < features {
            return Err(Error::FewTokens { rows, features });
        }
        let mut maps = Maps::empty(&self.outputs, &self.features, dtype);
        for (feature, gram) in self.sums.grams().iter().enumerate() {
            let equations = Equations::new(gram, rows, lambda)?;
            for (i, cross) in self.sums.crosses().iter().enumerate().filter(|(_, c)| c.feature == feature) {
                maps.set(i, &equations.solve(cross)?);
            }
        }
        Ok(maps)
    }

    /// Reads windows that the maps were not fitted to, and adds to `scores` how they predict them.
    ///
    /// # Errors
    /// As [`Fit::add`].
    pub fn score(&mut self, e: &Engine, maps: &Maps, scores: &mut Explained, ids: &[u32]) -> Result<()> {
        let batch = self.batch(ids)?;
        let mut sink = Scores::new(maps, scores, self.spec.window, self.norm());
        self.reader.read(e, (&self.base, self.aux.as_deref()), (ids, batch), &mut sink)?;
        Ok(())
    }

    /// Writes the sums and how much text they hold, with what says which fit they belong to. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&mut self, path: &Path, of: &Value) -> Result<()> {
        state::save(path, of, self.windows, &mut self.sums)
    }

    /// Takes up what [`Fit::save`] left: a file's content. `path` stands in errors.
    ///
    /// # Errors
    /// [`Error::State`]: it is none, or of another fit.
    pub fn restore(&mut self, path: &Path, file: &[u8], of: &Value) -> Result<()> {
        self.windows = state::restore(path, file, of, &mut self.sums)? as usize;
        self.sums.hold(self.windows * self.spec.rows());
        Ok(())
    }

    /// Makes `dir`, which is not there yet or empty, a folder of this predictor. `extra` goes into its `config.json` as `fit`.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::DiskSpace`], [`Error::Io`].
    pub fn publish(&self, maps: &Maps, dir: &Path, extra: Value) -> Result<()> {
        let source = self.spec.layout.source(self.base.config(), self.aux.as_ref().map(|a| a.config()));
        let mut config = self.spec.layout.to_json(self.base.config(), source);
        config["fit"] = extra;
        maps.write(dir, &config, source)
    }
}

/// Adds what is read to sums.
struct Adder<'a> {
    window: usize,
    features: &'a [Feature],
    outputs: &'a [Output],
    sums: &'a mut Sums,
    norm: Option<(usize, f32)>,
}

impl reader::Sink for Adder<'_> {
    fn feature<T: Element>(&mut self, e: &Engine, of: Feature, x: &[T]) -> Result<()> {
        if let Some(at) = self.features.iter().position(|f| *f == of) {
            self.sums.feature(e, at, x, self.window)?;
        }
        Ok(())
    }

    fn output<T: Element>(&mut self, e: &Engine, layer: usize, kind: Kind, y: &[T]) -> Result<()> {
        let of = self.outputs.iter().position(|o| (o.layer, o.kind) == (layer, kind)).expect("only what is fitted");
        match self.norm.filter(|_| kind == Kind::Key) {
            Some((head, eps)) => self.sums.output(e, of, &by_head(y, head, eps), self.window),
            None => self.sums.output(e, of, y, self.window),
        }
    }
}

/// Each head divided by its root mean square.
fn by_head<T: Element>(y: &[T], head: usize, eps: f32) -> Vec<f32> {
    let mut out: Vec<f32> = y.iter().map(|y| y.to_f32()).collect();
    for head in out.chunks_exact_mut(head) {
        let square: f64 = head.iter().map(|y| f64::from(*y) * f64::from(*y)).sum();
        let scale = 1.0 / (square / head.len() as f64 + f64::from(eps)).sqrt();
        head.iter_mut().for_each(|y| *y = (f64::from(*y) * scale) as f32);
    }
    out
}
