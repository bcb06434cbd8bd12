//! Token pruning in f64, token by token, from its definition: what the real paths are compared with.

use std::{collections::HashMap, path::Path};

use ttft_kernels::reference;
use ttft_models::{NetworkConfig, pruning::Pruning};

use crate::models::read;

/// A network, widened.
pub struct Oracle {
    /// Its shapes.
    pub config: NetworkConfig,
    tensors: HashMap<String, Vec<f64>>,
}

/// One sequence: what every token has left behind in every layer it passed.
#[derive(Default)]
pub struct Sequence {
    ids: Vec<u32>,
    /// Input of (layer, position): the output of the layer before.
    inputs: HashMap<(usize, usize), Vec<f64>>,
    /// Keys after k_norm without RoPE, and values, of (layer, position), heads merged.
    pub caches: HashMap<(usize, usize), [Vec<f64>; 2]>,
    /// Positions that each layer took in the last pass.
    pub taken: Vec<Vec<usize>>,
    /// Passes of tokens that were not new.
    pub revived: usize,
}

impl Oracle {
    /// The network of a folder.
    pub fn load(dir: &Path) -> Oracle {
        Oracle::new(NetworkConfig::load(&dir.join("config.json")).expect("a configuration"), dir)
    }

    /// The network of a folder, whose shapes are these.
    pub fn new(config: NetworkConfig, dir: &Path) -> Oracle {
        let tensors = read(&dir.join("model.safetensors"));
        let widen = |(name, t): (String, crate::models::Tensor)| {
            (name.trim_start_matches("transformer.").to_owned(), reference::widen(&t.f32s))
        };
        Oracle { config, tensors: tensors.into_iter().map(widen).collect() }
    }

    /// The network without the layers that are not `kept`.
    pub fn keep_layers(&mut self, kept: &[usize]) {
        self.config.layers = kept.iter().map(|&i| self.config.layers[i]).collect();
        self.tensors = only_layers(std::mem::take(&mut self.tensors), kept);
    }

    fn of(&self, i: usize, name: &str) -> &[f64] {
        &self.tensors[&format!("layers.{i}.{name}.weight")]
    }

    /// `x W^T`, and the bias if there is one.
    fn linear(&self, x: &[f64], i: usize, name: &str) -> Vec<f64> {
        let y = reference::linear(x, self.of(i, name), x.len());
        match self.tensors.get(&format!("layers.{i}.{name}.bias")) {
            Some(bias) => y.iter().zip(bias).map(|(y, b)| y + b).collect(),
            None => y,
        }
    }

    /// Queries, keys and values of the token at `p` before layer `i`: queries and keys normed, without RoPE.
    fn qkv(&self, s: &Sequence, i: usize, p: usize) -> [Vec<f64>; 3] {
        let (q, kv) = (self.config.q_dim(i), self.config.kv_dim(i));
        let x = reference::rms_norm(&s.inputs[&(i, p)], self.of(i, "attn_norm"), self.config.eps.into());
        let y = self.linear(&x, i, "attn.qkv_proj");
        let norm = |x: &[f64], name: &str| match self.config.qk_norm {
            true => reference::rms_norm(x, self.of(i, name), self.config.eps.into()),
            false => x.to_vec(),
        };
        [norm(&y[..q], "attn.q_norm"), norm(&y[q..q + kv], "attn.k_norm"), y[q + kv..].to_vec()]
    }

    fn rotated(&self, head: &[f64], p: usize) -> Vec<f64> {
        let mut head = head.to_vec();
        reference::rope(&mut head, p, self.config.rope.theta);
        head
    }

    /// The token at `p` through layer `i`, attending to `seen`, which have keys and values there; its attention to each,
    /// averaged over heads.
    fn attend(&self, s: &mut Sequence, i: usize, p: usize, seen: &[usize]) -> Vec<f64> {
        let (d, heads) = (self.config.head_dim, self.config.layers[i].query_heads);
        let group = heads / self.config.layers[i].kv_heads;
        let [q, ..] = self.qkv(s, i, p);
        let mut mean = vec![0.0; seen.len()];
        let mut merged = Vec::new();
        for h in 0..heads {
            let q = self.rotated(&q[h * d..][..d], p);
            let part = |t: &usize, kv: usize| &s.caches[&(i, *t)][kv][h / group * d..][..d];
            let score = |t: &usize| {
                let k = self.rotated(part(t, 0), *t);
                q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt()
            };
            let weights = reference::softmax(&seen.iter().map(score).collect::<Vec<_>>(), seen.len());
            merged.extend((0..d).map(|c| seen.iter().zip(&weights).map(|(t, w)| w * part(t, 1)[c]).sum::<f64>()));
            mean.iter_mut().zip(weights).for_each(|(m, w)| *m += w / heads as f64);
        }
        let add = |x: &[f64], y: Vec<f64>| x.iter().zip(y).map(|(x, y)| x + y).collect::<Vec<_>>();
        let f = self.config.layers[i].ffn;
        let x = add(&s.inputs[&(i, p)], self.linear(&merged, i, "attn.out_proj"));
        let h = reference::rms_norm(&x, self.of(i, "ffn_norm"), self.config.eps.into());
        let y = self.linear(&reference::silu_mul(&self.linear(&h, i, "ffn.proj_1"), f), i, "ffn.proj_2");
        s.inputs.insert((i + 1, p), add(&x, y));
        mean
    }

    /// Layer `i` for the tokens of `taken` that have not passed it; the last one's attention to them all.
    fn layer(&self, s: &mut Sequence, i: usize, taken: &[usize], new: usize) -> Vec<f64> {
        let rows: Vec<usize> = taken.iter().copied().filter(|&p| !s.caches.contains_key(&(i, p))).collect();
        for &p in &rows {
            let [_, k, v] = self.qkv(s, i, p);
            s.caches.insert((i, p), [k, v]);
        }
        let mut weights = Vec::new();
        for &p in &rows {
            s.revived += usize::from(p < new);
            let seen: Vec<usize> = taken.iter().copied().filter(|&t| t <= p).collect();
            weights = self.attend(s, i, p, &seen);
        }
        weights
    }

    fn embed(&self, s: &mut Sequence, ids: &[u32]) {
        let (table, dim) = (&self.tensors["token_embeddings.weight"], self.config.dim);
        for &id in ids {
            s.inputs.insert((0, s.ids.len()), table[id as usize * dim..][..dim].to_vec());
            s.ids.push(id);
        }
    }

    fn logits(&self, s: &Sequence) -> Vec<f64> {
        let x = &s.inputs[&(self.config.layers.len(), s.ids.len() - 1)];
        let x = reference::rms_norm(x, &self.tensors["norm.weight"], self.config.eps.into());
        let name = if self.config.tied { "token_embeddings.weight" } else { "lm_head.weight" };
        reference::linear(&x, &self.tensors[name], self.config.dim)
    }

    /// Appends `ids` and runs LazyLLM's pass; logits of the last.
    pub fn lazy(&self, s: &mut Sequence, ids: &[u32], pruning: Pruning) -> Vec<f64> {
        let Pruning::Lazy { first, last } = pruning else { panic!("{pruning} is not lazy") };
        let new = s.ids.len();
        self.embed(s, ids);
        let layers = self.config.layers.len();
        let mut taken: Vec<usize> = (0..s.ids.len()).collect();
        let mut weights = Vec::new();
        s.taken.clear();
        for i in 0..layers {
            let depth = (i as f64 + 0.5) / layers as f64;
            let fall = ((depth - 0.3) / 0.6).clamp(0.0, 1.0);
            let share = first.value() + (last.value() - first.value()) * fall;
            // Exact but for rounding, which must not add a token.
            let count = (share * s.ids.len() as f64 - 1e-9).ceil() as usize;
            if depth > 0.3 - 1e-9 && i > 0 && count < taken.len() {
                taken = chosen(&weights, count).into_iter().map(|place| taken[place]).collect();
            }
            weights = self.layer(s, i, &taken, new);
            s.taken.push(taken.clone());
        }
        self.logits(s)
    }

    /// The tokens of a prompt that [`Pruning::Static`] keeps.
    pub fn kept(&self, ids: &[u32], keep: f64) -> Vec<usize> {
        let mut s = Sequence::default();
        self.embed(&mut s, ids);
        let all: Vec<usize> = (0..ids.len()).collect();
        let mut scores = vec![0.0; ids.len()];
        for i in 0..self.config.layers.len().div_ceil(4) {
            let weights = self.layer(&mut s, i, &all, 0);
            scores.iter_mut().zip(weights).for_each(|(s, w)| *s += w);
        }
        chosen(&scores, (keep * ids.len() as f64 - 1e-9).ceil() as usize)
    }

    /// Appends `ids`, of which only those at positions `kept` (and all that come later) pass the network; logits of the
    /// last.
    pub fn subset(&self, s: &mut Sequence, ids: &[u32], kept: &[usize]) -> Vec<f64> {
        let new = s.ids.len();
        self.embed(s, ids);
        let last = *kept.last().expect("the last token is always kept");
        let taken: Vec<usize> = kept.iter().copied().chain(last + 1..s.ids.len()).collect();
        for i in 0..self.config.layers.len() {
            self.layer(s, i, &taken, new);
        }
        s.taken = vec![taken; self.config.layers.len()];
        self.logits(s)
    }
}

/// The tensors of a network without the layers that are not `kept`: theirs are left out, the others take their numbers.
pub fn only_layers<T>(tensors: HashMap<String, T>, kept: &[usize]) -> HashMap<String, T> {
    let renamed = |name: String| {
        let Some((model, layer)) = name.split_once("layers.") else { return Some(name) };
        let (i, rest) = layer.split_once('.').expect("a layer's tensor has a name of its own");
        let place = kept.iter().position(|k| k.to_string() == i)?;
        Some(format!("{model}layers.{place}.{rest}"))
    };
    tensors.into_iter().filter_map(|(name, t)| Some((renamed(name)?, t))).collect()
}

/// The places of the last and of the `count - 1` others that score highest, ascending.
fn chosen(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len() - 1).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(count - 1);
    order.push(scores.len() - 1);
    order.sort();
    order
}
