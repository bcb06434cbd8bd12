//! The predictor: for each base layer, one linear map with bias for keys and one for values, from the merged heads of
//! one auxiliary layer.

use std::path::Path;

use ttft_kernels::{DType, Element, HeadProjection, Mat, RopeTable};

use crate::{
    cache::{LayerCache, RawKv},
    config::{NetworkConfig, Role, TensorSpec},
    engine::Engine,
    error::{Error, Result},
    json,
    network::Network,
    weights::{Matrix, Tensors},
};

/// Before the predictor's names inside a checkpoint of the reference, which spells it so.
pub const CORENET_PREFIX: &str = "predicter.auxkv_to_basekv.";

/// A loaded predictor.
#[derive(Debug)]
pub struct Predictor {
    layer_map: Vec<usize>,
    layers: Vec<LayerMap>,
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
    /// A folder with `predictor.safetensors` and `config.json`, whose `aux_layer_for_base_layer`, or
    /// `source_layer_for_base_layer`, is the layer map.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Pair`]: the map does not fit the networks; and those of [`Predictor::from_tensors`].
    pub fn load(dir: &Path, base: &Network, aux: &Network) -> Result<Predictor> {
        let path = dir.join("config.json");
        let (base, aux) = (base.config(), aux.config());
        let layer_map = Predictor::map_of(&path, json::load(&path)?, base, aux)?;
        let file = dir.join("predictor.safetensors");
        Predictor::from_tensors(&Tensors::file(&file)?, "", base, aux, &layer_map)
    }

    /// The layer map in the content of a predictor's `config.json`, checked against its networks; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Pair`].
    pub fn parse_map(path: &Path, text: &[u8], base: &NetworkConfig, aux: &NetworkConfig) -> Result<Vec<usize>> {
        Predictor::map_of(path, json::parse(path, text)?, base, aux)
    }

    fn map_of(path: &Path, value: serde_json::Value, base: &NetworkConfig, aux: &NetworkConfig) -> Result<Vec<usize>> {
        #[derive(serde::Deserialize)]
        struct Config {
            #[serde(alias = "source_layer_for_base_layer")]
            aux_layer_for_base_layer: Vec<usize>,
            source: Option<String>,
            input: Option<String>,
            base_num_layers: Option<usize>,
            aux_num_layers: Option<usize>,
        }
        let c: Config = json::fields(path, value)?;
        for (what, found, expected) in [("source", c.source, "auxiliary"), ("input", c.input, "kv")] {
            if let Some(found) = found.filter(|found| found != expected) {
                return Err(Error::Pair {
                    path: path.to_owned(),
                    what: what.into(),
                    expected: format!("'{expected}'"),
                    found: format!("'{found}'"),
                });
            }
        }
        for (what, stated, network) in [
            ("base_num_layers", c.base_num_layers, base.layers.len()),
            ("aux_num_layers", c.aux_num_layers, aux.layers.len()),
        ] {
            if let Some(stated) = stated
                && stated != network
            {
                return Err(Error::Pair {
                    path: path.to_owned(),
                    what: what.into(),
                    expected: format!("{network}, the layers of the network"),
                    found: stated.to_string(),
                });
            }
        }
        check_map(path, &c.aux_layer_for_base_layer, base, aux)?;
        Ok(c.aux_layer_for_base_layer)
    }

    /// A predictor out of named tensors: `{prefix}{key|value}_transforms.{i}.{weight|bias}`.
    ///
    /// # Errors
    /// [`Error::Pair`], [`Error::MissingTensor`], [`Error::Dtype`], [`Error::Shape`], [`Error::Misaligned`].
    pub fn from_tensors(
        t: &Tensors,
        prefix: &str,
        base: &NetworkConfig,
        aux: &NetworkConfig,
        layer_map: &[usize],
    ) -> Result<Predictor> {
        check_map(t.origin(), layer_map, base, aux)?;
        let linear = |kind: &str, i: usize| -> Result<Linear> {
            let (n, k) = (base.kv_dim(i), aux.kv_dim(layer_map[i]));
            let name = format!("{prefix}{kind}_transforms.{i}");
            Ok(Linear {
                weight: t.matrix(&format!("{name}.weight"), n, k)?,
                bias: t.vector(&format!("{name}.bias"), n)?,
            })
        };
        let layers = (0..base.layers.len())
            .map(|i| Ok(LayerMap { k: linear("key", i)?, v: linear("value", i)? }))
            .collect::<Result<_>>()?;
        Ok(Predictor { layer_map: layer_map.to_vec(), layers })
    }

    /// Every tensor of a predictor.
    pub fn tensors(base: &NetworkConfig, aux: &NetworkConfig, layer_map: &[usize]) -> Vec<TensorSpec> {
        let mut t = Vec::new();
        for (i, &j) in layer_map.iter().enumerate() {
            let (n, k) = (base.kv_dim(i), aux.kv_dim(j));
            for kind in ["key", "value"] {
                let name = format!("{kind}_transforms.{i}");
                t.push(TensorSpec::new(format!("{name}.weight"), vec![n, k], Role::Predictor(k)));
                t.push(TensorSpec::new(format!("{name}.bias"), vec![n], Role::Predictor(k)));
            }
        }
        t
    }

    /// For each base layer, the auxiliary layer that it is predicted from.
    pub fn layer_map(&self) -> &[usize] {
        &self.layer_map
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.layers.iter().flat_map(|l| [&l.k.weight, &l.v.weight])
    }

    /// Bytes of the matrices, which stay in their mapped file.
    pub fn mapped_bytes(&self) -> u64 {
        self.matrices().map(|m| m.bytes().len() as u64).sum()
    }

    /// Storage type of the matrices.
    pub fn weight_dtype(&self) -> DType {
        self.layers[0].k.weight.dtype()
    }

    /// Bytes of those matrices that had to be copied, for they lie at odd places of their file.
    pub fn copied_bytes(&self) -> u64 {
        self.matrices().map(Matrix::copied_bytes).sum()
    }

    /// Reads every page of the matrices.
    pub fn warm(&self) {
        self.matrices().for_each(Matrix::warm);
    }

    /// Predicts positions `0..len` of base layers, at once; keys pass through the base's k_norm and RoPE.
    ///
    /// # Errors
    /// [`Error::Kernel`]: a buffer is too small.
    pub fn predict<'a, A: Element>(
        &'a self,
        e: &Engine,
        base: &'a Network,
        (batch, len): (usize, usize),
        rope: &'a RopeTable,
        layers: impl IntoIterator<Item = Prediction<'a, A>>,
    ) -> Result<()> {
        let rows = batch * len;
        let mut products = Vec::new();
        for Prediction { layer, raw, cache, keep } in layers {
            let l = &self.layers[layer];
            let keep = keep.map(|k| {
                k.resize(rows * l.k.bias.len(), 0.0);
                k.as_mut_slice()
            });
            let project = |x: &'a [A], w: &'a Linear, cache| HeadProjection {
                x: Mat::new(&x[..rows * raw.width], rows, raw.width),
                w: w.weight.view(),
                bias: &w.bias,
                norm: None,
                rope: None,
                cache,
                keep: None,
            };
            let keys = project(&raw.k, &l.k, &mut cache.k);
            products.push(HeadProjection { norm: base.k_norm(layer), rope: Some(rope), keep, ..keys });
            products.push(project(&raw.v, &l.v, &mut cache.v));
        }
        Ok(e.project_heads(batch, base.config().eps, &mut products)?)
    }
}

/// One base layer of [`Predictor::predict`].
#[derive(Debug)]
pub struct Prediction<'a, A> {
    /// Of the base.
    pub layer: usize,
    /// The auxiliary layer of [`Predictor::layer_map`].
    pub raw: &'a RawKv<A>,
    /// Receives the prediction.
    pub cache: &'a mut LayerCache<A>,
    /// Receives the keys before k_norm, `[batch * len, kv_dim]`.
    pub keep: Option<&'a mut Vec<f32>>,
}

fn check_map(path: &Path, map: &[usize], base: &NetworkConfig, aux: &NetworkConfig) -> Result<()> {
    let pair = |what: String, expected: String, found: String| {
        Err(Error::Pair { path: path.to_owned(), what, expected, found })
    };
    if map.len() != base.layers.len() {
        return pair(
            "aux_layer_for_base_layer".into(),
            format!("one entry for each of {} base layers", base.layers.len()),
            format!("{} entries", map.len()),
        );
    }
    match map.iter().position(|j| *j >= aux.layers.len()) {
        Some(i) => pair(
            format!("aux_layer_for_base_layer[{i}]"),
            format!("an auxiliary layer, 0 to {}", aux.layers.len() - 1),
            map[i].to_string(),
        ),
        None => Ok(()),
    }
}
