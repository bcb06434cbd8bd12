//! Key/value caches.

use ttft_kernels::{Element, HeadCache, RopeTable};

use crate::{config::NetworkConfig, sizes::mul};

/// Keys and values of one layer, as its attention reads them: keys after k_norm and RoPE, values as projected; each
/// `[batch, kv_heads, capacity, head_dim]`.
#[derive(Clone, Debug)]
pub struct LayerCache<A> {
    /// Keys.
    pub k: HeadCache<A>,
    /// Values.
    pub v: HeadCache<A>,
}

impl<A: Element> LayerCache<A> {
    /// A zeroed cache.
    pub fn new(batch: usize, kv_heads: usize, capacity: usize, head_dim: usize) -> Self {
        let zero = HeadCache::new(batch, kv_heads, capacity, head_dim);
        LayerCache { k: zero.clone(), v: zero }
    }

    /// Takes over the first `n` entries of each sequence from a cache of the same heads.
    pub(crate) fn copy_first(&mut self, from: &LayerCache<A>, n: usize) {
        for (to, from) in [(&mut self.k, &from.k), (&mut self.v, &from.v)] {
            for (b, h) in (0..to.batch()).flat_map(|b| (0..from.heads()).map(move |h| (b, h))) {
                let (mut to, from) = (to.head_mut(b, h), from.head(b, h));
                (0..n).for_each(|i| to.row_mut(i).copy_from_slice(from.row(i)));
            }
        }
    }

    /// `len` entries of each sequence as `{name}.k` and `{name}.v`, `[batch, kv_heads, len, head_dim]` in f32, keys with
    /// RoPE undone. `at(b, i)` says of the i-th of sequence b where in the cache it is and at which position it stands.
    pub fn dump(
        &self,
        name: &str,
        len: usize,
        at: impl Fn(usize, usize) -> (usize, usize),
        rope: &RopeTable,
    ) -> [NamedTensor; 2] {
        let mut k = gather(format!("{name}.k"), &self.k, len, &at);
        for (i, head) in k.data.chunks_exact_mut(self.k.head_dim()).enumerate() {
            rope.unrotate(at(i / (self.k.heads() * len), i % len).1, head);
        }
        [k, gather(format!("{name}.v"), &self.v, len, &at)]
    }
}

/// Keys and values of layer `i`, for `positions` of each sequence.
pub(crate) fn kv_bytes<A>(c: &NetworkConfig, i: usize, batch: usize, positions: usize) -> u64 {
    mul(&[2, batch, positions, c.kv_dim(i), size_of::<A>()])
}

/// A tensor on its way out: a cache, or logits.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Such as `kvp_cache.0.k`.
    pub name: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Row-major elements.
    pub data: Vec<f32>,
}

fn gather<A: Element>(
    name: String,
    c: &HeadCache<A>,
    len: usize,
    at: impl Fn(usize, usize) -> (usize, usize),
) -> NamedTensor {
    let mut data = Vec::with_capacity(c.batch() * c.heads() * len * c.head_dim());
    for b in 0..c.batch() {
        for h in 0..c.heads() {
            let head = c.head(b, h);
            for i in 0..len {
                data.extend(head.row(at(b, i).0).iter().map(|x| x.to_f32()));
            }
        }
    }
    NamedTensor { name, shape: vec![c.batch(), c.heads(), len, c.head_dim()], data }
}

/// Keys and values of one source layer as the predictor reads them: before k_norm, without RoPE, heads merged;
/// `[batch * len, kv_heads * head_dim]` each.
#[derive(Clone, Debug)]
pub struct RawKv<A> {
    /// Keys.
    pub k: Vec<A>,
    /// Values.
    pub v: Vec<A>,
    /// `kv_heads * head_dim`.
    pub width: usize,
}

impl<A: Element> RawKv<A> {
    /// Zeroed, for `rows = batch * len`.
    pub fn new(rows: usize, width: usize) -> Self {
        RawKv { k: vec![A::default(); rows * width], v: vec![A::default(); rows * width], width }
    }
}

/// Rows `[batch * len, heads * d]` as `[batch, heads, len, d]`.
pub(crate) fn heads_first<A: Element>(name: String, rows: &[A], batch: usize, heads: usize, d: usize) -> NamedTensor {
    let len = rows.len() / (batch * heads * d);
    let mut data = Vec::with_capacity(rows.len());
    for b in 0..batch {
        for h in 0..heads {
            for p in 0..len {
                let at = ((b * len + p) * heads + h) * d;
                data.extend(rows[at..at + d].iter().map(|x| x.to_f32()));
            }
        }
    }
    NamedTensor { name, shape: vec![batch, heads, len, d], data }
}

/// What maps read of a layer, of the first rows of each sequence.
#[derive(Clone, Debug)]
pub enum Source<A> {
    /// Its keys and values.
    KeysAndValues(RawKv<A>),
    /// Its output, as it is or normalised, `[batch * len, D]`.
    Hidden(Vec<f32>),
}

impl<A: Copy> Source<A> {
    /// Takes over the first rows of each of so many sequences, as many as there is room for.
    ///
    /// # Panics
    /// If the other is of another kind.
    pub(crate) fn copy_first(&mut self, from: &Source<A>, batch: usize) {
        match (self, from) {
            (Source::KeysAndValues(to), Source::KeysAndValues(from)) => {
                copy_first(&mut to.k, &from.k, batch);
                copy_first(&mut to.v, &from.v, batch);
            }
            (Source::Hidden(to), Source::Hidden(from)) => copy_first(to, from, batch),
            _ => unreachable!("sources of one kind"),
        }
    }
}

fn copy_first<T: Copy>(to: &mut [T], from: &[T], batch: usize) {
    let (to, from) = (to.chunks_exact_mut(to.len() / batch), from.chunks_exact(from.len() / batch));
    to.zip(from).for_each(|(to, from)| to.copy_from_slice(&from[..to.len()]));
}
