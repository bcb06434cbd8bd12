//! The predictor: for each base layer, one linear map with bias for keys and one for values, from what one layer of its source
//! left.

use std::path::Path;

use ttft_kernels::{DType, Element, HeadProjection, Mat, RopeTable};

use super::layout::{Input, Layout, refuse};
use crate::{
    cache::LayerCache,
    config::NetworkConfig,
    engine::Engine,
    error::Result,
    json,
    network::Network,
    weights::{Matrix, Tensors},
};

/// Before the predictor's names inside a checkpoint of the reference, which spells it so.
pub const CORENET_PREFIX: &str = "predicter.auxkv_to_basekv.";

/// A loaded predictor.
#[derive(Debug)]
pub struct Predictor {
    layout: Layout,
    /// By base layer; none of those that have no map.
    layers: Vec<Option<LayerMap>>,
}

#[derive(Debug)]
struct LayerMap {
    k: Linear,
    v: Linear,
}

#[derive(Debug)]
struct Linear {
    weight: Matrix,
    bias: Vec<f32>,
}

impl Predictor {
    /// A folder with `predictor.safetensors` and `config.json`, as [`Layout::parse`] reads it.
    ///
    /// # Errors
    /// Those of [`Layout::parse`] and [`Predictor::from_tensors`].
    pub fn load(dir: &Path, base: &Network, aux: Option<&Network>) -> Result<Predictor> {
        Predictor::open(dir, base.config(), aux.map(Network::config))
    }

    /// The same, for networks that are not loaded.
    ///
    /// # Errors
    /// As [`Predictor::load`].
    pub fn open(dir: &Path, base: &NetworkConfig, aux: Option<&NetworkConfig>) -> Result<Predictor> {
        let path = dir.join("config.json");
        let layout = Layout::of(&path, json::load(&path)?, base, aux)?;
        Predictor::from_tensors(&Tensors::file(&dir.join("predictor.safetensors"))?, "", base, aux, layout)
    }

    /// A predictor out of named tensors: `{prefix}{key|value}_transforms.{i}.{weight|bias}`, with weights of one type, as what
    /// maps cost is counted by it. With shared layers, a layer that has none of them projects the source's hidden state itself.
    ///
    /// # Errors
    /// [`Error::Pair`], [`Error::MissingTensor`], [`Error::Dtype`], [`Error::Shape`], [`Error::Misaligned`].
    ///
    /// [`Error::Pair`]: crate::Error::Pair
    /// [`Error::MissingTensor`]: crate::Error::MissingTensor
    /// [`Error::Dtype`]: crate::Error::Dtype
    /// [`Error::Shape`]: crate::Error::Shape
    /// [`Error::Misaligned`]: crate::Error::Misaligned
    pub fn from_tensors(
        t: &Tensors,
        prefix: &str,
        base: &NetworkConfig,
        aux: Option<&NetworkConfig>,
        mut layout: Layout,
    ) -> Result<Predictor> {
        layout.check(t.origin(), "aux_layer_for_base_layer", base, aux)?;
        let source = layout.source(base, aux);
        let name = |kind: &str, i: usize| format!("{prefix}{kind}_transforms.{i}");
        let has = |i: usize| {
            let any = |kind| ["weight", "bias"].iter().any(|part| t.has(&format!("{}.{part}", name(kind, i))));
            any("key") || any("value")
        };
        let (mut layers, mut dtype) = (Vec::with_capacity(layout.layers.len()), None);
        for (i, origin) in layout.layers.iter_mut().enumerate() {
            let Some(origin) = origin else {
                if has(i) {
                    let expected = "no tensors, as this layer reads the prompt itself";
                    return refuse(t.origin(), name("key", i), expected.into(), "some");
                }
                layers.push(None);
                continue;
            };
            if layout.shared.is_some() && !has(i) {
                origin.input = Input::Own;
                layers.push(None);
                continue;
            }
            let (n, k) = (base.kv_dim(i), origin.input.width(source, origin.layer));
            let mut linear = |kind: &str| -> Result<Linear> {
                let name = name(kind, i);
                let weight = t.matrix(&format!("{name}.weight"), n, k)?;
                let first = *dtype.get_or_insert(weight.dtype());
                if weight.dtype() != first {
                    let expected = format!("dtype {first}, that of the maps before it");
                    return refuse(t.origin(), format!("{name}.weight"), expected, weight.dtype());
                }
                Ok(Linear { weight, bias: t.vector(&format!("{name}.bias"), n)? })
            };
            layers.push(Some(LayerMap { k: linear("key")?, v: linear("value")? }));
        }
        Ok(Predictor { layout, layers })
    }

    /// What is predicted from where.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.layers.iter().flatten().flat_map(|l| [&l.k.weight, &l.v.weight])
    }

    /// Bytes of the matrices, which stay in their mapped file.
    pub fn mapped_bytes(&self) -> u64 {
        self.matrices().map(|m| m.bytes().len() as u64).sum()
    }

    /// Storage type of all matrices, if there are any.
    pub fn weight_dtype(&self) -> Option<DType> {
        self.matrices().next().map(Matrix::dtype)
    }

    /// Bytes of those matrices that had to be copied, for they lie at odd places of their file.
    pub fn copied_bytes(&self) -> u64 {
        self.matrices().map(Matrix::copied_bytes).sum()
    }

    /// Reads every page of the matrices.
    pub fn warm(&self) {
        self.matrices().for_each(Matrix::warm);
    }

    /// Predicts positions `0..len` of base layers that have a map, at once; keys pass through the base's k_norm and RoPE.
    ///
    /// # Errors
    /// [`Error::Kernel`]: a buffer is too small.
    ///
    /// # Panics
    /// If a layer has no map.
    ///
    /// [`Error::Kernel`]: crate::Error::Kernel
    pub fn predict<'a, A: Element, X: Element>(
        &'a self,
        e: &Engine,
        base: &'a Network,
        (batch, len): (usize, usize),
        rope: &'a RopeTable,
        layers: impl IntoIterator<Item = Prediction<'a, A, X>>,
    ) -> Result<()> {
        let rows = batch * len;
        let mut products = Vec::new();
        for Prediction { layer, k, v, cache, keep } in layers {
            let l = self.layers[layer].as_ref().expect("a layer that is predicted has a map");
            let keep = keep.map(|k| {
                k.resize(rows * l.k.bias.len(), 0.0);
                k.as_mut_slice()
            });
            let project = |x: &'a [X], w: &'a Linear, cache| HeadProjection {
                x: Mat::new(&x[..rows * w.weight.view().k()], rows, w.weight.view().k()),
                w: w.weight.view(),
                bias: &w.bias,
                norm: None,
                rope: None,
                cache,
                keep: None,
            };
            let keys = project(k, &l.k, &mut cache.k);
            products.push(HeadProjection { norm: base.k_norm(layer), rope: Some(rope), keep, ..keys });
            products.push(project(v, &l.v, &mut cache.v));
        }
        if products.is_empty() {
            return Ok(());
        }
        Ok(e.project_heads(batch, base.config().eps, &mut products)?)
    }
}

/// One base layer of [`Predictor::predict`].
#[derive(Debug)]
pub struct Prediction<'a, A, X> {
    /// Of the base.
    pub layer: usize,
    /// What its keys are mapped from, `[batch * len, features]`.
    pub k: &'a [X],
    /// What its values are mapped from, in the same shape.
    pub v: &'a [X],
    /// Receives the prediction.
    pub cache: &'a mut LayerCache<A>,
    /// Receives the keys before k_norm, `[batch * len, kv_dim]`.
    pub keep: Option<&'a mut Vec<f32>>,
}
