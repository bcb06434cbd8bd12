//! A loaded network and its forward pass: embed, layer and head as separate steps over one set of activations, so that a
//! schedule can order the steps of several networks. Semantics: apple/corenet `general_gpt.py`.

use std::{ops::Range, path::Path, sync::Arc};

use ttft_kernels::{DType, Element, HeadsOut, Mat, MatMut, Output, Positions, Product, Query, RopeTable, Weight};

use crate::{
    activations::{Activations, CHUNK, Rows, Run, chunks},
    cache::{LayerCache, RawKv},
    config::{LayerShape, Names, NetworkConfig, Part},
    engine::Engine,
    error::{Error, Result},
    prompts,
    weights::{Matrix, Tensors},
};

/// Rows of logits held at once where every position needs them.
const HEAD_CHUNK: usize = 256;

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

impl Stack {
    /// Columns `cols` of `y = x W^T + bias`; `y` has those alone.
    fn apply<A: Element>(
        &self,
        by: &mut impl Multiply<A>,
        x: Mat<'_, A>,
        cols: Range<usize>,
        y: &mut MatMut<'_, f32>,
    ) -> Result<()> {
        for j in 0..self.matrices.len() {
            if let Some(product) = self.product(j, x, cols.clone(), y.reborrow()) {
                by.linear(product)?;
            }
        }
        Ok(())
    }

    /// What the `j`-th matrix makes of that, if anything.
    fn product<'a, A>(
        &'a self,
        j: usize,
        x: Mat<'a, A>,
        cols: Range<usize>,
        y: MatMut<'a, f32>,
    ) -> Option<Product<'a, A>> {
        let at: usize = self.matrices[..j].iter().map(|w| w.view().n()).sum();
        let w = self.matrices[j].view();
        let (from, to) = (cols.start.max(at), cols.end.min(at + w.n()));
        if from >= to {
            return None;
        }
        let y = y.cols_at(from - cols.start, to - from);
        let out = match &self.bias {
            Some(bias) => Output::Bias(y, &bias[from..to]),
            None => Output::Store(y),
        };
        Some(Product { x, w: w.rows_at(from - at, to - from), out })
    }

    /// The upper and the lower half, in a tensor each or in one, if there is no bias.
    fn halves(&self) -> Option<(Weight<'_>, Weight<'_>)> {
        match (&self.bias, &self.matrices[..]) {
            (None, [both]) => {
                let (both, half) = (both.view(), both.view().n() / 2);
                Some((both.rows_at(0, half), both.rows_at(half, half)))
            }
            (None, [upper, lower]) => Some((upper.view(), lower.view())),
            _ => None,
        }
    }
}

/// Who computes the products of a layer.
pub(crate) trait Multiply<A> {
    /// Computes one.
    fn linear(&mut self, product: Product<'_, A>) -> Result<()>;
}

/// The engine, which does nothing besides.
impl<A: Element> Multiply<A> for &Engine {
    fn linear(&mut self, Product { x, w, out }: Product<'_, A>) -> Result<()> {
        Ok(Engine::linear(self, x, w, out)?)
    }
}

/// A product of a layer.
#[derive(Clone, Copy)]
enum Piece {
    /// Queries, keys and values, by one of the matrices.
    Project(usize),
    /// Attention's output.
    Out,
    /// Gate and up projection, by one of the matrices or by both at once.
    Up(usize),
    /// Back into the residual stream.
    Down,
}

/// Adds a bias to every row of `x`.
fn add(x: &mut [f32], bias: Option<&Vec<f32>>) {
    if let Some(bias) = bias {
        x.chunks_exact_mut(bias.len()).for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
    }
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
    /// [`Error::MissingTensor`], [`Error::Dtype`], [`Error::Shape`], [`Error::Misaligned`].
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

    /// Storage type of the weights; of most bytes, where a file mixes types.
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
    /// [`Error::Kernel`]: an id outside the vocabulary.
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

    /// Layer `i`: `x += attention(norm(x))`, then `x += ffn(norm(x))`, as far as `out` and `kv` ask for it.
    ///
    /// # Errors
    /// [`Error::Kernel`]: `act`, `rope` or the cache are too small for this layer.
    pub fn layer<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &mut Activations<A>,
        rope: &RopeTable,
        kv: Kv<'_, A>,
        out: Out,
    ) -> Result<()> {
        self.layer_by(e, &mut { e }, i, act, rope, kv, out)
    }

    /// As [`Network::layer`], its products computed `by` another.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn layer_by<A: Element>(
        &self,
        e: &Engine,
        by: &mut impl Multiply<A>,
        i: usize,
        act: &mut Activations<A>,
        rope: &RopeTable,
        kv: Kv<'_, A>,
        out: Out,
    ) -> Result<()> {
        let (q_dim, kv_dim) = (self.config.q_dim(i), self.config.kv_dim(i));
        let (first, last) = out.ends();
        // Queries, keys and values come out of one product where all rows need all three.
        let whole = matches!(kv.cache, Cache::Own(_)) && (first, last) == (act.first, act.n);
        let keys_at = if whole { q_dim } else { 0 };
        if !matches!(kv.cache, Cache::Given(_)) {
            self.project(e, by, i, act, q_dim - keys_at..q_dim + 2 * kv_dim)?;
            if let Some(source) = kv.source {
                act.keep(e, keys_at, kv_dim, source)?;
            }
        }
        let cache = match kv.cache {
            Cache::None => return Ok(()),
            Cache::Given(cache) => cache,
            Cache::Own(cache) => {
                self.append(e, i, act, keys_at, rope, cache)?;
                cache
            }
        };
        if last == 0 {
            return Ok(());
        }
        act.keep_ends(first, last);
        if !whole {
            self.project(e, by, i, act, 0..q_dim)?;
        }
        self.queries(e, i, act, rope)?;
        if out == Out::Query {
            return Ok(());
        }
        self.attend(e, i, act, cache)?;
        self.finish(e, by, i, act)
    }

    /// Attention of all rows to `cache`.
    fn attend<A: Element>(&self, e: &Engine, i: usize, act: &mut Activations<A>, cache: &LayerCache<A>) -> Result<()> {
        for Run { rows, shape } in act.runs().into_iter().flatten() {
            let (q, out) = act.attention(self.config.q_dim(i), rows);
            e.attention(q, &cache.k, &cache.v, shape, out)?;
        }
        Ok(())
    }

    /// Products of layer `i`, where all rows pass all of it: [`Network::before`] and [`Network::product`] in turn are the layer.
    pub(crate) fn products(&self, i: usize) -> usize {
        self.layers[i].qkv.matrices.len() + self.ups(i) + 2
    }

    /// What comes before the `p`-th product of layer `i`, of at most [`CHUNK`] rows.
    ///
    /// # Errors
    /// [`Error::Kernel`]: `act`, `rope` or the cache are too small for this layer.
    pub(crate) fn before<A: Element>(
        &self,
        e: &Engine,
        (i, p): (usize, usize),
        act: &mut Activations<A>,
        rope: &RopeTable,
        cache: &mut LayerCache<A>,
    ) -> Result<()> {
        let (l, q_dim) = (&self.layers[i], self.config.q_dim(i));
        let all = act.rows() * act.dim;
        match self.part(i, p) {
            Piece::Project(0) => {
                self.normed(e, &l.attn_norm, &act.x[..all], &mut act.h)?;
                act.y_cols = q_dim + 2 * self.config.kv_dim(i);
            }
            Piece::Out => {
                self.append(e, i, act, q_dim, rope, cache)?;
                self.queries(e, i, act, rope)?;
                self.attend(e, i, act, cache)?;
                add(&mut act.x[..all], l.out_bias.as_ref());
            }
            Piece::Up(0) => {
                self.normed(e, &l.ffn_norm, &act.x[..all], &mut act.h)?;
            }
            Piece::Down => self.gate(e, i, act, (0, act.rows()))?,
            Piece::Project(_) | Piece::Up(_) => {}
        }
        Ok(())
    }

    /// The `p`-th product of layer `i`.
    pub(crate) fn product<'a, A: Element>(
        &'a self,
        (i, p): (usize, usize),
        act: &'a mut Activations<A>,
    ) -> Product<'a, A> {
        let rows = act.rows();
        self.product_of(i, self.part(i, p), act, (0, rows))
    }

    fn part(&self, i: usize, p: usize) -> Piece {
        let (projections, ups) = (self.layers[i].qkv.matrices.len(), self.ups(i));
        match p.checked_sub(projections) {
            None => Piece::Project(p),
            Some(0) => Piece::Out,
            Some(p) if p <= ups => Piece::Up(p - 1),
            Some(_) => Piece::Down,
        }
    }

    /// Products that make the input of the last one.
    fn ups(&self, i: usize) -> usize {
        let stack = &self.layers[i].gate_up;
        if stack.halves().is_some() { 1 } else { stack.matrices.len() }
    }

    /// A product of layer `i` on rows `r..r + m`, the inputs of which are there; queries, keys and values at once.
    fn product_of<'a, A: Element>(
        &'a self,
        i: usize,
        part: Piece,
        act: &'a mut Activations<A>,
        (r, m): (usize, usize),
    ) -> Product<'a, A> {
        let (l, dim, q_dim, f) = (&self.layers[i], act.dim, self.config.q_dim(i), self.layers[i].shape.ffn);
        match part {
            Piece::Project(j) => {
                let n = act.y_cols;
                let h = Mat::new(&act.h[..m * dim], m, dim);
                let y = MatMut::new(&mut act.y[r * n..][..m * n], m, n);
                l.qkv.product(j, h, 0..n, y).expect("every matrix makes some of the columns")
            }
            Piece::Out => {
                let o = Mat::new(&act.o[r * q_dim..][..m * q_dim], m, q_dim);
                let x = MatMut::new(&mut act.x[r * dim..][..m * dim], m, dim);
                Product { x: o, w: l.out.view(), out: Output::Add(x) }
            }
            Piece::Up(j) => {
                let h = Mat::new(&act.h[..m * dim], m, dim);
                match l.gate_up.halves() {
                    Some((gate, up)) => {
                        let g = MatMut::new(&mut act.g[..m * f], m, f);
                        Product { x: h, w: gate, out: Output::SwiGlu(g, up) }
                    }
                    None => {
                        let u = MatMut::new(&mut act.u[..m * 2 * f], m, 2 * f);
                        l.gate_up.product(j, h, 0..2 * f, u).expect("every matrix makes some of the columns")
                    }
                }
            }
            Piece::Down => {
                let x = MatMut::new(&mut act.x[r * dim..][..m * dim], m, dim);
                Product { x: Mat::new(&act.g[..m * f], m, f), w: l.down.view(), out: Output::Add(x) }
            }
        }
    }

    /// What comes between up and down projection, of rows `r..r + m`.
    fn gate<A: Element>(&self, e: &Engine, i: usize, act: &mut Activations<A>, (r, m): (usize, usize)) -> Result<()> {
        let (l, dim, f) = (&self.layers[i], act.dim, self.layers[i].shape.ffn);
        if l.gate_up.halves().is_none() {
            e.silu_mul(Mat::new(&act.u[..m * 2 * f], m, 2 * f), MatMut::new(&mut act.g[..m * f], m, f))?;
        }
        add(&mut act.x[r * dim..][..m * dim], l.down_bias.as_ref());
        Ok(())
    }

    /// Layer `i` for rows that stand anywhere in their sequences ([`Activations::load`]), up to their keys and values:
    /// `store` takes the keys (RoPE applied) of all rows, then their values, `[rows, kv_heads * head_dim]` each.
    /// [`Network::attend_each`] does the rest.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn keys_and_values<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &mut Activations<A>,
        rope: &RopeTable,
        mut store: impl FnMut(Part, Mat<'_, A>),
    ) -> Result<()> {
        let (d, q_dim, kv_dim) = (self.config.head_dim, self.config.q_dim(i), self.config.kv_dim(i));
        self.project(e, &mut { e }, i, act, 0..q_dim + 2 * kv_dim)?;
        let rows = act.rows();
        for (part, at) in [(Part::Key, q_dim), (Part::Value, q_dim + kv_dim)] {
            let src = Mat::new(&act.y[..rows * act.y_cols], rows, act.y_cols).cols_at(at, kv_dim);
            let (norm, rope) = match part {
                Part::Key => (self.k_norm(i), Some((rope, Positions::Each(&act.positions[..rows])))),
                _ => (None, None),
            };
            // Attention's output is not there yet: its place is free.
            let to = &mut act.o[..rows * kv_dim];
            e.heads(src, rows, d, norm, self.config.eps, rope, HeadsOut::Rows(MatMut::new(to, rows, kv_dim)))?;
            store(part, Mat::new(to, rows, kv_dim));
        }
        Ok(())
    }

    /// The rest of layer `i` after [`Network::keys_and_values`]: every row attends to what its query says.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn attend_each<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &mut Activations<A>,
        rope: &RopeTable,
        cache: &LayerCache<A>,
        queries: &[Query],
    ) -> Result<()> {
        self.queries(e, i, act, rope)?;
        let (q, out) = act.attention(self.config.q_dim(i), 0..act.rows());
        e.attention_each(q, &cache.k, &cache.v, queries, out)?;
        self.finish(e, &mut { e }, i, act)
    }

    /// Copies the residual stream of the first rows of each sequence, as many as fit into `to`; divided by its root mean
    /// square, if `unit`.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn keep_hidden<A: Element>(&self, e: &Engine, act: &Activations<A>, unit: bool, to: &mut [f32]) -> Result<()> {
        let dim = self.config.dim;
        for part in act.leading(to.len() / dim) {
            let x = &act.x[part.from * dim..][..part.rows * dim];
            let to = &mut to[part.to * dim..][..part.rows * dim];
            if unit {
                let x = Mat::new(x, part.rows, dim);
                e.rms_norm(x, &self.ones, self.config.eps, MatMut::new(to, part.rows, dim))?;
            } else {
                to.copy_from_slice(x);
            }
        }
        Ok(())
    }

    /// Appends to an empty cache the keys and values that layer `i` makes of a residual stream `x`, `[batch * n, D]`. What
    /// `act` holds besides its residual stream is overwritten. `keep` receives the keys before k_norm and RoPE.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    #[allow(clippy::too_many_arguments)]
    pub fn keys_and_values_of<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        (x, batch): (&[f32], usize),
        act: &mut Activations<A>,
        rope: &RopeTable,
        c: &mut LayerCache<A>,
        keep: Option<&mut Vec<f32>>,
    ) -> Result<()> {
        let (dim, q_dim, kv_dim) = (self.config.dim, self.config.q_dim(i), self.config.kv_dim(i));
        let (l, n, rows) = (&self.layers[i], 2 * kv_dim, x.len() / dim);
        for (r, m) in chunks(rows, CHUNK) {
            let h = self.normed(e, &l.attn_norm, &x[r * dim..][..m * dim], &mut act.h)?;
            l.qkv.apply(&mut { e }, h, q_dim..q_dim + n, &mut MatMut::new(&mut act.y[r * n..][..m * n], m, n))?;
        }
        let y = Mat::new(&act.y[..rows * n], rows, n);
        let (keys, values) = (y.cols_at(0, kv_dim), y.cols_at(kv_dim, kv_dim));
        if let Some(keep) = keep {
            keep.clear();
            (0..rows).for_each(|r| keep.extend(keys.row(r)));
        }
        self.put(e, (keys, values, batch), self.k_norm(i), rope, c)
    }

    /// Makes the keys and values of some positions from the first on, `[batch * n, kv_heads * head_dim]` each, the first entries
    /// of a cache; keys by this norm and RoPE.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub(crate) fn put<A: Element>(
        &self,
        e: &Engine,
        (keys, values, batch): (Mat<'_, f32>, Mat<'_, f32>, usize),
        k_norm: Option<&[f32]>,
        rope: &RopeTable,
        c: &mut LayerCache<A>,
    ) -> Result<()> {
        let (d, eps, rope) = (self.config.head_dim, self.config.eps, Some((rope, Positions::From(0))));
        e.heads(keys, batch, d, k_norm, eps, rope, HeadsOut::Cache(&mut c.k, 0))?;
        Ok(e.heads(values, batch, d, None, eps, None, HeadsOut::Cache(&mut c.v, 0))?)
    }

    /// Columns `cols` of layer `i`'s queries, keys and values, out of the normalised residual stream.
    fn project<A: Element>(
        &self,
        e: &Engine,
        by: &mut impl Multiply<A>,
        i: usize,
        act: &mut Activations<A>,
        cols: Range<usize>,
    ) -> Result<()> {
        let (l, dim, n) = (&self.layers[i], act.dim, cols.len());
        for (r, m) in chunks(act.rows(), CHUNK) {
            let h = self.normed(e, &l.attn_norm, &act.x[r * dim..][..m * dim], &mut act.h)?;
            l.qkv.apply(by, h, cols.clone(), &mut MatMut::new(&mut act.y[r * n..][..m * n], m, n))?;
        }
        act.y_cols = n;
        Ok(())
    }

    /// `norm(x)`, `[rows, D]`, in `h`.
    fn normed<'a, A: Element>(&self, e: &Engine, norm: &[f32], x: &[f32], h: &'a mut [A]) -> Result<Mat<'a, A>> {
        let (dim, h) = (self.config.dim, &mut h[..x.len()]);
        let rows = x.len() / dim;
        e.rms_norm(Mat::new(x, rows, dim), norm, self.config.eps, MatMut::new(h, rows, dim))?;
        Ok(Mat::new(h, rows, dim))
    }

    /// Appends the keys and values of the last projection, which begin at column `at`.
    fn append<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &Activations<A>,
        at: usize,
        rope: &RopeTable,
        c: &mut LayerCache<A>,
    ) -> Result<()> {
        let (b, d, kv_dim, eps) = (act.batch, self.config.head_dim, self.config.kv_dim(i), self.config.eps);
        for Run { rows, shape } in act.runs().into_iter().flatten() {
            let y = |at| act.y_at(at, kv_dim).rows_at(rows.start, rows.len());
            let rope = Some((rope, Positions::Each(&act.positions[rows.clone()])));
            e.heads(y(at), b, d, self.k_norm(i), eps, rope, HeadsOut::Cache(&mut c.k, shape.past))?;
            e.heads(y(at + kv_dim), b, d, None, eps, None, HeadsOut::Cache(&mut c.v, shape.past))?;
        }
        Ok(())
    }

    /// The heads of the queries, out of the last projection.
    fn queries<A: Element>(&self, e: &Engine, i: usize, act: &mut Activations<A>, rope: &RopeTable) -> Result<()> {
        let (rows, q_dim, c) = (act.rows(), self.config.q_dim(i), &self.config);
        let q = Mat::new(&act.y[..rows * act.y_cols], rows, act.y_cols).cols_at(0, q_dim);
        let to = HeadsOut::Rows(MatMut::new(&mut act.q[..rows * q_dim], rows, q_dim));
        let rope = Some((rope, Positions::Each(&act.positions[..rows])));
        Ok(e.heads(q, act.batch, c.head_dim, self.layers[i].q_norm.as_deref(), c.eps, rope, to)?)
    }

    /// How much the last row of each sequence attended to entries `0..len` of `cache` in layer `i`, the last to run, for
    /// every query head: `[batch, H, len]`. Of rows that were loaded one by one, the first of all count as the last of
    /// their sequences.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn last_weights<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &Activations<A>,
        cache: &LayerCache<A>,
        len: usize,
        out: &mut [f32],
    ) -> Result<()> {
        Ok(e.attention_weights(self.last_queries(i, act, cache), &cache.k, len, out)?)
    }

    /// As [`Network::last_weights`], the products of queries and keys alone.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn last_scores<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &Activations<A>,
        cache: &LayerCache<A>,
        len: usize,
        out: &mut [f32],
    ) -> Result<()> {
        Ok(e.attention_scores(self.last_queries(i, act, cache), &cache.k, len, out)?)
    }

    fn last_queries<'a, A: Element>(&self, i: usize, act: &'a Activations<A>, cache: &LayerCache<A>) -> Mat<'a, A> {
        let (rows, q_dim) = (act.rows(), self.config.q_dim(i));
        Mat::new(&act.q[..rows * q_dim], rows, q_dim).rows_step(act.n - 1, cache.k.batch(), act.n)
    }

    /// A layer after its attention: output projection and feed-forward network.
    fn finish<A: Element>(
        &self,
        e: &Engine,
        by: &mut impl Multiply<A>,
        i: usize,
        act: &mut Activations<A>,
    ) -> Result<()> {
        let (l, rows, dim) = (&self.layers[i], act.rows(), act.dim);
        add(&mut act.x[..rows * dim], l.out_bias.as_ref());
        by.linear(self.product_of(i, Piece::Out, act, (0, rows)))?;
        for chunk in chunks(rows, CHUNK) {
            self.normed(e, &l.ffn_norm, &act.x[chunk.0 * dim..][..chunk.1 * dim], &mut act.h)?;
            for j in 0..self.ups(i) {
                by.linear(self.product_of(i, Piece::Up(j), act, chunk))?;
            }
            self.gate(e, i, act, chunk)?;
            by.linear(self.product_of(i, Piece::Down, act, chunk))?;
        }
        Ok(())
    }

    /// Logits `[batch, V]` of the last position of each sequence.
    ///
    /// # Errors
    /// [`Error::Spec`]: `logits` has another length.
    pub fn head<A: Element>(&self, e: &Engine, act: &mut Activations<A>, logits: &mut [f32]) -> Result<()> {
        act.keep_last(1);
        self.head_rows(e, act, logits)
    }

    /// Logits `[rows, V]` of every row.
    ///
    /// # Errors
    /// As [`Network::head`].
    pub fn head_rows<A: Element>(&self, e: &Engine, act: &mut Activations<A>, logits: &mut [f32]) -> Result<()> {
        let v = self.config.vocab;
        if logits.len() != act.rows() * v {
            return Err(Error::Spec {
                what: "length of the logits",
                expected: format!("{} x {v}", act.rows()),
                found: logits.len() as u64,
            });
        }
        for (r, m) in chunks(act.rows(), CHUNK) {
            self.logits_of(e, act, r, &mut logits[r * v..][..m * v])?;
        }
        Ok(())
    }

    /// Logits of every position, a bounded number of rows at a time: `sink(first row, [rows, V])`. `buffer` holds
    /// [`head_buffer`] elements or more.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn head_all<A: Element>(
        &self,
        e: &Engine,
        act: &mut Activations<A>,
        buffer: &mut [f32],
        mut sink: impl FnMut(usize, Mat<'_, f32>),
    ) -> Result<()> {
        let v = self.config.vocab;
        for (r, m) in chunks(act.rows(), HEAD_CHUNK) {
            let out = &mut buffer[..m * v];
            self.logits_of(e, act, r, out)?;
            sink(r, Mat::new(out, m, v));
        }
        Ok(())
    }

    /// Final norm and output head of the rows from `row` on, of which `out` holds at most [`CHUNK`].
    fn logits_of<A: Element>(&self, e: &Engine, act: &mut Activations<A>, row: usize, out: &mut [f32]) -> Result<()> {
        let (dim, v) = (act.dim, self.config.vocab);
        let m = out.len() / v;
        let h = self.normed(e, &self.norm, &act.x[row * dim..][..m * dim], &mut act.h)?;
        let w = self.head.as_ref().unwrap_or(&self.embedding).view();
        Ok(e.linear(h, w, Output::Store(MatMut::new(out, m, v)))?)
    }

    /// Logits `[batch, n, V]` of all positions of fresh sequences: for evaluation, not for timing.
    ///
    /// # Errors
    /// Those of [`crate::prompts::check`], [`Error::Memory`], [`Error::Kernel`].
    pub fn logits<A: Element>(self: &Arc<Self>, e: &Engine, ids: &[u32], batch: usize) -> Result<Vec<f32>> {
        let n = prompts::check_batch(ids, batch, self.config.vocab)?;
        let rope = self.rope(n);
        let mut act = Activations::<A>::new(&self.config, batch * n)?;
        self.embed(e, ids, batch, Rows::all(n), &mut act)?;
        for (i, l) in self.config.layers.iter().enumerate() {
            let mut cache = LayerCache::new(batch, l.kv_heads, n, self.config.head_dim);
            let kv = Kv { cache: Cache::Own(&mut cache), source: None };
            self.layer(e, i, &mut act, &rope, kv, Out::Rows(n))?;
        }
        self.all_logits(e, &mut act)
    }

    /// Logits of every row of `act`.
    pub(crate) fn all_logits<A: Element>(&self, e: &Engine, act: &mut Activations<A>) -> Result<Vec<f32>> {
        let v = self.config.vocab;
        let mut out = vec![0.0; act.rows() * v];
        let mut buffer = vec![0.0; head_buffer(&self.config, act.rows())];
        self.head_all(e, act, &mut buffer, |row, m| {
            for r in 0..m.rows() {
                out[(row + r) * v..][..v].copy_from_slice(m.row(r));
            }
        })?;
        Ok(out)
    }
}

/// Elements that [`Network::head_all`] needs for `rows` rows.
pub fn head_buffer(c: &NetworkConfig, rows: usize) -> usize {
    rows.min(HEAD_CHUNK) * c.vocab
}

/// What becomes of a layer's keys and values.
#[derive(Debug)]
pub struct Kv<'a, A> {
    /// What its attention reads.
    pub cache: Cache<'a, A>,
    /// Receives a copy as they were before k_norm and RoPE.
    pub source: Option<&'a mut RawKv<A>>,
}

/// What a layer's attention reads.
#[derive(Debug)]
pub enum Cache<'a, A> {
    /// Nothing: the layer ends before.
    None,
    /// The cache, to which the layer's own are appended.
    Own(&'a mut LayerCache<A>),
    /// The cache, which already holds all positions, these included; the layer's own are not computed.
    Given(&'a LayerCache<A>),
}

/// What a layer puts out; keys and values are made for all rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Out {
    /// The residual stream of so many last rows of each sequence; 0 where the layer ends after its keys and values.
    Rows(usize),
    /// The residual stream of so many first and so many last rows of each sequence.
    Ends(usize, usize),
    /// The last row's query.
    Query,
}

impl Out {
    /// First and last rows of each sequence whose queries are made.
    pub fn ends(self) -> (usize, usize) {
        match self {
            Out::Rows(last) => (0, last),
            Out::Ends(first, last) => (first, last),
            Out::Query => (0, 1),
        }
    }
}
