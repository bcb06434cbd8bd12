//! OpenELM (arXiv 2404.14619; reference: apple/corenet `general_gpt.py`): embed, layer and head as separate steps over
//! one set of activations, so that a schedule can order the steps of several networks.

use std::{path::Path, sync::Arc};

use ttft_kernels::{
    AttnShape, Buffer, DType, Element, Engine, HeadsOut, Mat, MatMut, Output, Positions, Query, RopeTable, Weight,
};

use crate::{
    Error, Result,
    cache::{LayerCache, RawKv},
    config::{LayerShape, OpenElmConfig},
    weights::{Matrix, Tensors},
};

/// Added to the mean square by every RMSNorm. Fixed in the reference, absent from `config.json`.
pub const EPS: f32 = 1e-6;

/// Rows that pass through norm, projections and feed-forward network at once. Bounds the memory of activations; at this
/// many rows a projection is far beyond the point where reading its weights again costs time.
const CHUNK: usize = 1024;

/// Rows of logits held at once where every position needs them.
const HEAD_CHUNK: usize = 256;

/// A loaded OpenELM: matrices stay in their mapped file, norm weights are f32 copies.
#[derive(Debug)]
pub struct Network {
    config: OpenElmConfig,
    embedding: Matrix,
    classifier: Option<Matrix>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    shape: LayerShape,
    attn_norm: Vec<f32>,
    qkv: Matrix,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    out: Matrix,
    ffn_norm: Vec<f32>,
    proj_1: Matrix,
    proj_2: Matrix,
}

/// How a checkpoint names the tensors of a network.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Before every name: `transformer.` (Hugging Face), `base.` or `auxiliary.` (the reference).
    pub prefix: &'static str,
    /// The separate output head, where there is one.
    pub classifier: &'static str,
}

impl Names {
    /// Hugging Face's.
    pub const HUGGING_FACE: Names = Names { prefix: "transformer.", classifier: "lm_head.weight" };
    /// The base inside a checkpoint of the reference.
    pub const CORENET_BASE: Names = Names { prefix: "base.", classifier: "base.classifier.weight" };
    /// The auxiliary inside a checkpoint of the reference.
    pub const CORENET_AUXILIARY: Names = Names { prefix: "auxiliary.", classifier: "auxiliary.classifier.weight" };

    /// The full name of a [`crate::config::TensorSpec`].
    pub fn full(&self, name: &str) -> String {
        if name == "classifier.weight" { self.classifier.to_owned() } else { format!("{}{name}", self.prefix) }
    }
}

impl Network {
    /// A folder with `config.json` and weights.
    ///
    /// # Errors
    /// Those of [`OpenElmConfig::load`] and [`Network::from_tensors`].
    pub fn load(dir: &Path) -> Result<Network> {
        let config = OpenElmConfig::load(&dir.join("config.json"))?;
        Network::from_tensors(&Tensors::folder(dir)?, config, Names::HUGGING_FACE)
    }

    /// A network out of named tensors; every shape is checked.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Dtype`], [`Error::Shape`], [`Error::Misaligned`].
    pub fn from_tensors(t: &Tensors, config: OpenElmConfig, names: Names) -> Result<Network> {
        let (dim, d) = (config.dim, config.head_dim);
        let matrix = |name: &str, n, k| t.matrix(&names.full(name), n, k);
        let vector = |name: &str, n| t.vector(&names.full(name), n);
        let embedding = matrix("token_embeddings.weight", config.vocab, dim)?;
        let classifier = if config.tied { None } else { Some(matrix("classifier.weight", config.vocab, dim)?) };
        let mut layers = Vec::with_capacity(config.layers.len());
        for (i, &shape) in config.layers.iter().enumerate() {
            let name = |part: &str| format!("layers.{i}.{part}.weight");
            let (q, kv, f) = (config.q_dim(i), config.kv_dim(i), shape.ffn);
            let head_norm = |part: &str| config.qk_norm.then(|| vector(&name(part), d)).transpose();
            layers.push(Layer {
                shape,
                attn_norm: vector(&name("attn_norm"), dim)?,
                qkv: matrix(&name("attn.qkv_proj"), q + 2 * kv, dim)?,
                q_norm: head_norm("attn.q_norm")?,
                k_norm: head_norm("attn.k_norm")?,
                out: matrix(&name("attn.out_proj"), dim, q)?,
                ffn_norm: vector(&name("ffn_norm"), dim)?,
                proj_1: matrix(&name("ffn.proj_1"), 2 * f, dim)?,
                proj_2: matrix(&name("ffn.proj_2"), dim, f)?,
            });
        }
        let norm = vector("norm.weight", dim)?;
        Ok(Network { config, embedding, classifier, layers, norm })
    }

    /// Its configuration.
    pub fn config(&self) -> &OpenElmConfig {
        &self.config
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let of_layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.out, &l.proj_1, &l.proj_2]);
        [&self.embedding].into_iter().chain(self.classifier.as_ref()).chain(of_layers)
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
        RopeTable::new(self.config.head_dim, self.config.rope_theta, positions)
    }

    /// Zeroed caches for every layer.
    pub fn caches<A: Element>(&self, batch: usize, capacity: usize) -> Vec<LayerCache<A>> {
        let d = self.config.head_dim;
        self.config.layers.iter().map(|l| LayerCache::new(batch, l.kv_heads, capacity, d)).collect()
    }

    fn head_matrix(&self) -> Weight<'_> {
        self.classifier.as_ref().unwrap_or(&self.embedding).view()
    }

    /// Starts a pass: the embeddings of `ids` (`[batch * n]`), which stand at positions `past..past + n`.
    ///
    /// # Errors
    /// [`Error::Kernel`]: an id outside the vocabulary.
    pub fn embed<A: Element>(
        &self,
        e: &Engine,
        ids: &[u32],
        batch: usize,
        past: usize,
        act: &mut Activations<A>,
    ) -> Result<()> {
        act.start(batch, ids.len() / batch, past);
        Ok(e.embed(self.embedding.view(), ids, MatMut::new(&mut act.x[..ids.len() * act.dim], ids.len(), act.dim))?)
    }

    /// Layer `i`: `x += attention(norm(x))`, then `x += ffn(norm(x))`, as far as `want` and `kv` ask for it.
    ///
    /// # Errors
    /// [`Error::Kernel`]: `act`, `rope` or the cache are too small for this layer.
    #[allow(clippy::too_many_arguments)]
    pub fn layer<A: Element>(
        &self,
        e: &Engine,
        i: usize,
        act: &mut Activations<A>,
        rope: &RopeTable,
        kv: Kv<'_, A>,
        want: Want,
    ) -> Result<()> {
        let l = &self.layers[i];
        let d = self.config.head_dim;
        let (q_dim, kv_dim) = (self.config.q_dim(i), self.config.kv_dim(i));
        let qkv = l.qkv.view();

        // Queries, keys and values come out of one product where all rows need all three.
        let whole = matches!(kv, Kv::Append(..) | Kv::AppendAndKeep(..)) && (want == Want::All || act.n == 1);
        let own = |act: &mut Activations<A>| -> Result<usize> {
            let (w, keys_at) = if whole { (qkv, q_dim) } else { (qkv.rows_at(q_dim, 2 * kv_dim), 0) };
            act.project(e, &l.attn_norm, w)?;
            Ok(keys_at)
        };
        let cache: &LayerCache<A> = match kv {
            Kv::Given(c) => c,
            Kv::Keep(raw) => {
                let keys_at = own(act)?;
                return act.keep(e, keys_at, kv_dim, raw);
            }
            Kv::Append(c) => {
                let keys_at = own(act)?;
                act.append(e, keys_at, kv_dim, d, l.k_norm.as_deref(), rope, c)?;
                c
            }
            Kv::AppendAndKeep(c, raw) => {
                let keys_at = own(act)?;
                act.keep(e, keys_at, kv_dim, raw)?;
                act.append(e, keys_at, kv_dim, d, l.k_norm.as_deref(), rope, c)?;
                c
            }
        };

        if want != Want::All {
            act.keep_last();
        }
        if !whole {
            act.project(e, &l.attn_norm, qkv.rows_at(0, q_dim))?;
        }
        self.queries(e, i, act, rope)?;
        if want == Want::LastQuery {
            return Ok(());
        }
        let shape = AttnShape { batch: act.batch, n: act.n, past: act.past };
        let (q, out) = act.attention(q_dim);
        e.attention(q, &cache.k, &cache.v, shape, out)?;
        self.finish(e, i, act)
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
        let l = &self.layers[i];
        let (d, q_dim, kv_dim) = (self.config.head_dim, self.config.q_dim(i), self.config.kv_dim(i));
        act.project(e, &l.attn_norm, l.qkv.view())?;
        let rows = act.rows();
        for (part, at) in [(Part::Keys, q_dim), (Part::Values, q_dim + kv_dim)] {
            let src = Mat::new(&act.y[..rows * act.y_cols], rows, act.y_cols).cols_at(at, kv_dim);
            let (norm, rope) = match part {
                Part::Keys => (l.k_norm.as_deref(), Some((rope, Positions::Each(&act.positions[..rows])))),
                Part::Values => (None, None),
            };
            // Attention's output is not there yet: its place is free.
            let to = &mut act.o[..rows * kv_dim];
            e.heads(src, rows, d, norm, EPS, rope, HeadsOut::Rows(MatMut::new(to, rows, kv_dim)))?;
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
        let (q, out) = act.attention(self.config.q_dim(i));
        e.attention_each(q, &cache.k, &cache.v, queries, out)?;
        self.finish(e, i, act)
    }

    /// The heads of the queries, out of the last projection.
    fn queries<A: Element>(&self, e: &Engine, i: usize, act: &mut Activations<A>, rope: &RopeTable) -> Result<()> {
        let (rows, q_dim) = (act.rows(), self.config.q_dim(i));
        let q = Mat::new(&act.y[..rows * act.y_cols], rows, act.y_cols).cols_at(0, q_dim);
        let to = HeadsOut::Rows(MatMut::new(&mut act.q[..rows * q_dim], rows, q_dim));
        let rope = Some((rope, Positions::Each(&act.positions[..rows])));
        Ok(e.heads(q, act.batch, self.config.head_dim, self.layers[i].q_norm.as_deref(), EPS, rope, to)?)
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
        let (rows, q_dim) = (act.rows(), self.config.q_dim(i));
        let q = Mat::new(&act.q[..rows * q_dim], rows, q_dim).rows_step(act.n - 1, cache.k.batch(), act.n);
        Ok(e.attention_weights(q, &cache.k, len, out)?)
    }

    /// A layer after its attention: output projection and feed-forward network.
    fn finish<A: Element>(&self, e: &Engine, i: usize, act: &mut Activations<A>) -> Result<()> {
        let l = &self.layers[i];
        let (rows, dim, q_dim, f) = (act.rows(), act.dim, self.config.q_dim(i), l.shape.ffn);
        let o = Mat::new(&act.o[..rows * q_dim], rows, q_dim);
        e.linear(o, l.out.view(), Output::Add(MatMut::new(&mut act.x[..rows * dim], rows, dim)))?;
        for (r, m) in chunks(rows, CHUNK) {
            let x = &mut act.x[r * dim..][..m * dim];
            let h = &mut act.h[..m * dim];
            let g = &mut act.g[..m * f];
            e.rms_norm(Mat::new(x, m, dim), &l.ffn_norm, EPS, MatMut::new(h, m, dim))?;
            e.linear(Mat::new(h, m, dim), l.proj_1.view(), Output::SwiGlu(MatMut::new(g, m, f)))?;
            e.linear(Mat::new(g, m, f), l.proj_2.view(), Output::Add(MatMut::new(x, m, dim)))?;
        }
        Ok(())
    }

    /// Logits `[batch, V]` of the last position of each sequence.
    ///
    /// # Errors
    /// [`Error::Spec`]: `logits` has another length.
    pub fn head<A: Element>(&self, e: &Engine, act: &mut Activations<A>, logits: &mut [f32]) -> Result<()> {
        act.keep_last();
        let v = self.config.vocab;
        if logits.len() != act.rows() * v {
            return Err(Error::Spec {
                what: "length of the logits",
                expected: format!("{} x {v}", act.rows()),
                found: logits.len() as u64,
            });
        }
        for (r, m) in chunks(act.rows(), CHUNK) {
            self.logits_of(e, act, r, m, &mut logits[r * v..][..m * v])?;
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
            self.logits_of(e, act, r, m, out)?;
            sink(r, Mat::new(out, m, v));
        }
        Ok(())
    }

    /// Final norm and output head of rows `row..row + m`, `m <= CHUNK`.
    fn logits_of<A: Element>(
        &self,
        e: &Engine,
        act: &mut Activations<A>,
        row: usize,
        m: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let (dim, v) = (act.dim, self.config.vocab);
        let h = &mut act.h[..m * dim];
        e.rms_norm(Mat::new(&act.x[row * dim..][..m * dim], m, dim), &self.norm, EPS, MatMut::new(h, m, dim))?;
        Ok(e.linear(Mat::new(h, m, dim), self.head_matrix(), Output::Store(MatMut::new(out, m, v)))?)
    }

    /// Logits `[batch, n, V]` of all positions of fresh sequences: for evaluation, not for timing.
    ///
    /// # Errors
    /// Those of [`crate::prompts::check`], [`Error::Memory`], [`Error::Kernel`].
    pub fn logits<A: Element>(self: &Arc<Self>, e: &Engine, ids: &[u32], batch: usize) -> Result<Vec<f32>> {
        let n = crate::prompts::check_batch(ids, batch, self.config.vocab)?;
        let rope = self.rope(n);
        let mut act = Activations::<A>::new(&self.config, batch * n)?;
        self.embed(e, ids, batch, 0, &mut act)?;
        for (i, l) in self.config.layers.iter().enumerate() {
            let mut cache = LayerCache::new(batch, l.kv_heads, n, self.config.head_dim);
            self.layer(e, i, &mut act, &rope, Kv::Append(&mut cache), Want::All)?;
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
pub fn head_buffer(c: &OpenElmConfig, rows: usize) -> usize {
    rows.min(HEAD_CHUNK) * c.vocab
}

/// Where a layer's keys and values come from and go to.
#[derive(Debug)]
pub enum Kv<'a, A> {
    /// Its own, appended to the cache.
    Append(&'a mut LayerCache<A>),
    /// As [`Kv::Append`], and a copy as they were before k_norm and RoPE (an auxiliary network).
    AppendAndKeep(&'a mut LayerCache<A>, &'a mut RawKv<A>),
    /// Only the copy: the layer ends after its keys and values (the auxiliary's last layer).
    Keep(&'a mut RawKv<A>),
    /// The cache already holds all positions, these included; the layer's own are not computed.
    Given(&'a LayerCache<A>),
}

/// For which positions a layer computes its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// All of them.
    All,
    /// The last one of each sequence; keys and values are still made for all.
    Last,
    /// None: the layer ends after keys and values of all and the query of the last one of each sequence.
    LastQuery,
}

/// What [`Network::keys_and_values`] hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Keys, after k_norm and RoPE.
    Keys,
    /// Values.
    Values,
}

/// The residual stream of `batch * n` rows and the scratch of one layer.
#[derive(Debug)]
pub struct Activations<A> {
    dim: usize,
    batch: usize,
    n: usize,
    /// Entries of the caches before the first of these rows.
    past: usize,
    /// Where each row stands in its sequence, for RoPE.
    positions: Vec<u32>,
    /// Residual stream, `[rows, D]`.
    x: Buffer<f32>,
    /// Normalised chunk, `[CHUNK, D]`.
    h: Buffer<A>,
    /// Output of the last projection, `[rows, y_cols]`.
    y: Buffer<f32>,
    y_cols: usize,
    /// Queries, `[rows, H d]`.
    q: Buffer<A>,
    /// Attention's output, `[rows, H d]`.
    o: Buffer<A>,
    /// Gated chunk, `[CHUNK, F]`.
    g: Buffer<A>,
}

impl<A: Element> Activations<A> {
    /// For at most `rows = batch * n` rows.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(c: &OpenElmConfig, rows: usize) -> Result<Self> {
        let s = Sizes::new(c, rows);
        Ok(Activations {
            dim: c.dim,
            batch: 0,
            n: 0,
            past: 0,
            positions: zeroed(rows as u64)?,
            x: buffer(s.x)?,
            h: buffer(s.h)?,
            y: buffer(s.y)?,
            y_cols: 0,
            q: buffer(s.q)?,
            o: buffer(s.q)?,
            g: buffer(s.g)?,
        })
    }

    /// Bytes that [`Activations::new`] allocates.
    pub fn bytes(c: &OpenElmConfig, rows: usize) -> u64 {
        let s = Sizes::new(c, rows);
        let f32s = s.x.saturating_add(s.y).saturating_add(rows as u64).saturating_mul(4);
        let own = s.h.saturating_add(s.q).saturating_add(s.q).saturating_add(s.g).saturating_mul(size_of::<A>() as u64);
        f32s.saturating_add(own)
    }

    fn start(&mut self, batch: usize, n: usize, past: usize) {
        (self.batch, self.n, self.past) = (batch, n, past);
        self.place(Positions::From(past));
    }

    /// Says where the rows stand in their sequences, if not right after what the caches hold.
    ///
    /// # Panics
    /// If there is not one position for each row.
    pub fn place(&mut self, at: Positions<'_>) {
        let (rows, n) = (self.rows(), self.n.max(1));
        match at {
            Positions::From(start) => {
                self.positions[..rows].iter_mut().enumerate().for_each(|(r, p)| *p = (start + r % n) as u32);
            }
            Positions::Each(each) => self.positions[..rows].copy_from_slice(each),
        }
    }

    fn rows(&self) -> usize {
        self.batch * self.n
    }

    /// Rows of each sequence.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Row `r` of the residual stream, `[D]`.
    pub fn row(&self, r: usize) -> &[f32] {
        &self.x[r * self.dim..][..self.dim]
    }

    /// Starts from rows of other passes, each of a sequence of its own: its residual stream `[D]` and its position.
    ///
    /// # Panics
    /// If there are more of them than rows were planned, or one is not `[D]`.
    pub fn load<'a>(&mut self, rows: impl Iterator<Item = (&'a [f32], u32)>) {
        (self.batch, self.n, self.past) = (0, 1, 0);
        for (row, position) in rows {
            self.x[self.batch * self.dim..][..self.dim].copy_from_slice(row);
            self.positions[self.batch] = position;
            self.batch += 1;
        }
    }

    /// Drops all rows from `rows` on.
    pub fn truncate(&mut self, rows: usize) {
        debug_assert!(self.n == 1 && rows <= self.batch);
        self.batch = rows;
    }

    /// Keeps `keep.len() / batch` rows of each sequence: `keep` are their places within it, ascending, `[batch * m]`.
    ///
    /// # Panics
    /// If a sequence has no such row.
    pub fn retain(&mut self, keep: &[u32]) {
        self.compact(keep.len() / self.batch, |to| keep[to] as usize);
    }

    /// Drops all but the last position of each sequence.
    fn keep_last(&mut self) {
        let last = self.n - 1;
        self.past += last;
        self.compact(1, |_| last);
    }

    /// Keeps `m` rows of each sequence; `at` gives the place, within its sequence, of what becomes a row. Ascending.
    fn compact(&mut self, m: usize, at: impl Fn(usize) -> usize) {
        let (n, dim) = (self.n, self.dim);
        if m == n {
            return;
        }
        for to in 0..self.batch * m {
            assert!(at(to) < n, "row {} of a sequence of {n}", at(to));
            let from = to / m * n + at(to);
            self.x.copy_within(from * dim..(from + 1) * dim, to * dim);
            self.positions[to] = self.positions[from];
        }
        self.n = m;
    }

    /// Queries, and where attention's output goes.
    fn attention(&mut self, q_dim: usize) -> (Mat<'_, A>, MatMut<'_, A>) {
        let rows = self.rows();
        let out = MatMut::new(&mut self.o[..rows * q_dim], rows, q_dim);
        (Mat::new(&self.q[..rows * q_dim], rows, q_dim), out)
    }

    /// `y = norm(x) W^T`.
    fn project(&mut self, e: &Engine, norm: &[f32], w: Weight<'_>) -> Result<()> {
        let (dim, n) = (self.dim, w.n());
        for (r, m) in chunks(self.rows(), CHUNK) {
            let h = &mut self.h[..m * dim];
            e.rms_norm(Mat::new(&self.x[r * dim..][..m * dim], m, dim), norm, EPS, MatMut::new(h, m, dim))?;
            let y = &mut self.y[r * n..][..m * n];
            e.linear(Mat::new(h, m, dim), w, Output::Store(MatMut::new(y, m, n)))?;
        }
        self.y_cols = n;
        Ok(())
    }

    /// Columns of the last projection.
    fn y_at(&self, start: usize, cols: usize) -> Mat<'_, f32> {
        Mat::new(&self.y[..self.rows() * self.y_cols], self.rows(), self.y_cols).cols_at(start, cols)
    }

    fn keep(&self, e: &Engine, keys_at: usize, kv_dim: usize, raw: &mut RawKv<A>) -> Result<()> {
        let rows = self.rows();
        for (at, to) in [(keys_at, &mut raw.k), (keys_at + kv_dim, &mut raw.v)] {
            e.convert(self.y_at(at, kv_dim), MatMut::new(&mut to[..rows * kv_dim], rows, kv_dim))?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn append(
        &self,
        e: &Engine,
        keys_at: usize,
        kv_dim: usize,
        d: usize,
        k_norm: Option<&[f32]>,
        rope: &RopeTable,
        c: &mut LayerCache<A>,
    ) -> Result<()> {
        let (k, v) = (self.y_at(keys_at, kv_dim), self.y_at(keys_at + kv_dim, kv_dim));
        let at = self.past;
        let rope = Some((rope, Positions::Each(&self.positions[..self.rows()])));
        e.heads(k, self.batch, d, k_norm, EPS, rope, HeadsOut::Cache(&mut c.k, at))?;
        Ok(e.heads(v, self.batch, d, None, EPS, None, HeadsOut::Cache(&mut c.v, at))?)
    }
}

/// Elements of each buffer of [`Activations`].
struct Sizes {
    x: u64,
    h: u64,
    y: u64,
    q: u64,
    g: u64,
}

impl Sizes {
    fn new(c: &OpenElmConfig, rows: usize) -> Sizes {
        let max = |f: &dyn Fn(usize) -> usize| (0..c.layers.len()).map(f).max().unwrap_or(0) as u64;
        let (rows, chunk) = (rows as u64, rows.min(CHUNK) as u64);
        Sizes {
            x: rows.saturating_mul(c.dim as u64),
            h: chunk * c.dim as u64,
            y: rows.saturating_mul(max(&|i| c.q_dim(i) + 2 * c.kv_dim(i))),
            q: rows.saturating_mul(max(&|i| c.q_dim(i))),
            g: chunk * max(&|i| c.layers[i].ffn),
        }
    }
}

/// A zeroed vector, or [`Error::Memory`].
pub(crate) fn zeroed<T: Clone + Default>(n: u64) -> Result<Vec<T>> {
    let bytes = n.saturating_mul(size_of::<T>() as u64);
    let n = usize::try_from(n).map_err(|_| Error::Memory { bytes })?;
    let mut v = Vec::new();
    v.try_reserve_exact(n).map_err(|_| Error::Memory { bytes })?;
    v.resize(n, T::default());
    Ok(v)
}

/// A zeroed buffer that begins on a cache line, or [`Error::Memory`].
fn buffer<T: Element>(n: u64) -> Result<Buffer<T>> {
    let full = |_| Error::Memory { bytes: n.saturating_mul(size_of::<T>() as u64) };
    Buffer::zeroed(usize::try_from(n).unwrap_or(usize::MAX)).map_err(full)
}

/// `(first row, rows)` of chunks of at most `size` rows.
fn chunks(rows: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(size).map(move |r| (r, size.min(rows - r)))
}
