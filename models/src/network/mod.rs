//! A loaded network and its forward pass: embed, layer and head as separate steps over one set of activations, so that a
//! schedule can order the steps of several networks. Semantics: apple/corenet `general_gpt.py`.

mod head;
mod layer;
mod partial;
mod products;

use std::path::Path;

pub use self::{
    head::head_buffer,
    layer::{Cache, Kv, Out},
};

pub(crate) use self::products::Multiply;

use ttft_kernels::{DType, Element, Mat, MatMut, RopeTable};

use crate::{
    activations::{Activations, Rows},
    config::{LayerShape, Names, NetworkConfig, Part},
    engine::Engine,
    error::Result,
    weights::{Matrix, Tensors},
};

/// A loaded network: matrices stay in their mapped file, norm weights and biases are f32 copies.
#[derive(Debug)]
pub struct Network {
    config: NetworkConfig,
    embedding: Matrix,
    head: Option<Matrix>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// The weight of a norm that only divides by the root mean square, `[D]`.
    ones: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    shape: LayerShape,
    attn_norm: Vec<f32>,
    qkv: Stack,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    out: Matrix,
    out_bias: Option<Vec<f32>>,
    ffn_norm: Vec<f32>,
    gate_up: Stack,
    down: Matrix,
    down_bias: Option<Vec<f32>>,
}

/// Projections of the same input, one below the other: in one tensor of the file, or in several.
#[derive(Debug)]
struct Stack {
    matrices: Vec<Matrix>,
    bias: Option<Vec<f32>>,
}

impl Network {
    /// A folder with `config.json` and weights.
    ///
    /// # Errors
    /// Those of [`NetworkConfig::load`] and [`Network::from_tensors`].
    pub fn load(dir: &Path) -> Result<Network> {
        let config = NetworkConfig::load(&dir.join("config.json"))?;
        let names = config.family.names;
        Network::from_tensors(&Tensors::folder(dir)?, config, names)
    }

    /// A network out of named tensors; every shape is checked.
    ///
    /// # Errors
    /// [`crate::Error::MissingTensor`], [`crate::Error::Dtype`], [`crate::Error::Shape`], [`crate::Error::Misaligned`].
    pub fn from_tensors(t: &Tensors, config: NetworkConfig, names: Names) -> Result<Network> {
        let load = |parts: &[Part], i: usize| -> Result<(Vec<Matrix>, Vec<f32>)> {
            let (mut matrices, mut vectors) = (Vec::new(), Vec::new());
            for spec in parts.iter().flat_map(|part| config.part(&names, *part, i)) {
                match spec.shape[..] {
                    [n, k] => matrices.push(t.matrix(&spec.name, n, k)?),
                    _ => vectors.extend(t.vector(&spec.name, spec.elements() as usize)?),
                }
            }
            Ok((matrices, vectors))
        };
        let some = |v: Vec<f32>| Some(v).filter(|v| !v.is_empty());
        let vector = |part, i| load(&[part], i).map(|(_, vector)| vector);
        let stack = |parts: &[Part], i| load(parts, i).map(|(matrices, bias)| Stack { matrices, bias: some(bias) });
        let matrix = |part, i| -> Result<(Matrix, Option<Vec<f32>>)> {
            let (mut m, bias) = load(&[part], i)?;
            Ok((m.pop().expect("every family has an embedding and projections"), some(bias)))
        };
        let embedding = matrix(Part::Embedding, 0)?.0;
        let head = load(&[Part::Head], 0)?.0.pop();
        let mut layers = Vec::with_capacity(config.layers.len());
        for (i, &shape) in config.layers.iter().enumerate() {
            let attn_norm = vector(Part::AttnNorm, i)?;
            let qkv = stack(&[Part::Qkv, Part::Query, Part::Key, Part::Value], i)?;
            let (q_norm, k_norm) = (some(vector(Part::QueryNorm, i)?), some(vector(Part::KeyNorm, i)?));
            let (out, out_bias) = matrix(Part::Out, i)?;
            let ffn_norm = vector(Part::FfnNorm, i)?;
            let gate_up = stack(&[Part::GateUp, Part::Gate, Part::Up], i)?;
            let (down, down_bias) = matrix(Part::Down, i)?;
            layers.push(Layer {
                shape,
                attn_norm,
                qkv,
                q_norm,
                k_norm,
                out,
                out_bias,
                ffn_norm,
                gate_up,
                down,
                down_bias,
            });
        }
        let norm = vector(Part::Norm, 0)?;
        let ones = vec![1.0; config.dim];
        Ok(Network { config, embedding, head, layers, norm, ones })
    }

    /// Its description.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let layers = self
            .layers
            .iter()
            .flat_map(|l| l.qkv.matrices.iter().chain([&l.out]).chain(&l.gate_up.matrices).chain([&l.down]));
        [&self.embedding].into_iter().chain(&self.head).chain(layers)
    }

    /// Storage type of the weights: the one with most bytes, where a file mixes types.
    pub fn weight_dtype(&self) -> DType {
        let bytes = |t: DType| self.matrices().filter(|m| m.dtype() == t).map(|m| m.bytes().len()).sum::<usize>();
        [DType::BF16, DType::F16, DType::F32].into_iter().max_by_key(|t| bytes(*t)).expect("three types")
    }

    /// Bytes of the matrices, which stay in mapped files.
    pub fn mapped_bytes(&self) -> u64 {
        self.matrices().map(|m| m.bytes().len() as u64).sum()
    }

    /// Bytes of those matrices that had to be copied, for they lie at odd places of their file.
    pub fn copied_bytes(&self) -> u64 {
        self.matrices().map(Matrix::copied_bytes).sum()
    }

    /// Reads every page of the matrices, so that a later run finds them in memory and in the page tables.
    pub fn warm(&self) {
        self.matrices().for_each(Matrix::warm);
    }

    /// The k_norm of layer `i`, `[head_dim]`, if the network has one.
    pub fn k_norm(&self, i: usize) -> Option<&[f32]> {
        self.layers[i].k_norm.as_deref()
    }

    /// cos/sin for `positions` positions.
    pub fn rope(&self, positions: usize) -> RopeTable {
        RopeTable::of(&self.config.rope.frequencies(self.config.head_dim), positions)
    }

    /// Starts a pass: the embeddings of `ids`, those of `rows` of every sequence, in the order of [`Activations`].
    ///
    /// # Errors
    /// [`crate::Error::Kernel`]: an id outside the vocabulary.
    pub fn embed<A: Element>(
        &self,
        e: &Engine,
        ids: &[u32],
        batch: usize,
        rows: Rows,
        act: &mut Activations<A>,
    ) -> Result<()> {
        act.start(batch, rows);
        Ok(e.embed(self.embedding.view(), ids, MatMut::new(&mut act.x[..ids.len() * act.dim], ids.len(), act.dim))?)
    }

    /// `norm(x)`, `[rows, D]`, in `h`.
    fn normed<'a, A: Element>(&self, e: &Engine, norm: &[f32], x: &[f32], h: &'a mut [A]) -> Result<Mat<'a, A>> {
        let (dim, h) = (self.config.dim, &mut h[..x.len()]);
        let rows = x.len() / dim;
        e.rms_norm(Mat::new(x, rows, dim), norm, self.config.eps, MatMut::new(h, rows, dim))?;
        Ok(Mat::new(h, rows, dim))
    }
}
