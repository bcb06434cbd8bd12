//! The networks and pairs of the paper (Tables 1 and 4) and the token prunings it times (Table 5), and those of the families
//! that fill the Hub, as data.

use crate::{
    arch::{llama, openelm, qwen2, qwen3},
    config::{Biases, Family, LayerShape, NetworkConfig, Rope, RopeScaling, make_divisible},
    error::{Error, Result},
    kv_prediction::{
        self,
        layout::{Input, Layout, Order, OwnTokens},
    },
    pruning::Pruning,
};

/// A canonical OpenELM, whose layers follow from ranges of multipliers.
struct Canonical {
    name: &'static str,
    layers: usize,
    dim: usize,
    head_dim: usize,
}

const CANONICAL: [Canonical; 4] = [
    Canonical { name: "OE270M", layers: 16, dim: 1280, head_dim: 64 },
    Canonical { name: "OE450M", layers: 20, dim: 1536, head_dim: 64 },
    Canonical { name: "OE1.1B", layers: 28, dim: 2048, head_dim: 64 },
    Canonical { name: "OE3B", layers: 36, dim: 3072, head_dim: 128 },
];

/// Shared by all of them.
const GQA_GROUPS: usize = 4;
const QKV: (f64, f64) = (0.5, 1.0);
const FFN: (f64, f64) = (0.5, 4.0);
const FFN_DIVISOR: usize = 256;
/// The tokenizer's vocabulary; one embedding table, which is also the output head.
pub const VOCAB: usize = 32000;

/// A network of the Hub, all of whose layers are alike and whose head is its embedding table.
struct Hub {
    name: &'static str,
    family: &'static Family,
    vocab: usize,
    layers: usize,
    dim: usize,
    ffn: usize,
    /// Of queries, and of keys and values.
    heads: (usize, usize),
    head_dim: usize,
    eps: f32,
    rope: Rope,
    max_context: usize,
}

/// Of Llama 3.2.
const LLAMA_ROPE: Rope =
    Rope { theta: 500_000.0, scaling: Some(RopeScaling { factor: 32.0, low: 1.0, high: 4.0, original: 8192.0 }) };

const fn rope(theta: f64) -> Rope {
    Rope { theta, scaling: None }
}

const fn llama(name: &'static str, layers: usize, dim: usize, heads: (usize, usize), head_dim: usize) -> Hub {
    let (ffn, max_context) = (8192, 131_072);
    let (family, vocab, eps, rope) = (&llama::FAMILY, 128_256, 1e-5, LLAMA_ROPE);
    Hub { name, family, vocab, layers, dim, ffn, heads, head_dim, eps, rope, max_context }
}

const fn smollm(name: &'static str, layers: usize, dim: usize, ffn: usize, heads: (usize, usize), theta: f64) -> Hub {
    let (family, vocab, eps, rope) = (&llama::FAMILY, 49152, 1e-5, rope(theta));
    Hub { name, family, vocab, layers, dim, ffn, heads, head_dim: 64, eps, rope, max_context: 8192 }
}

const fn qwen(
    name: &'static str,
    family: &'static Family,
    (layers, dim, ffn): (usize, usize, usize),
    heads: (usize, usize),
    head_dim: usize,
    max_context: usize,
) -> Hub {
    let (vocab, eps, rope) = (151_936, 1e-6, rope(1e6));
    Hub { name, family, vocab, layers, dim, ffn, heads, head_dim, eps, rope, max_context }
}

static HUB: [Hub; 11] = [
    llama("Llama-3.2-1B", 16, 2048, (32, 8), 64),
    llama("Llama-3.2-3B", 28, 3072, (24, 8), 128),
    smollm("SmolLM2-135M", 30, 576, 1536, (9, 3), 100_000.0),
    smollm("SmolLM2-360M", 32, 960, 2560, (15, 5), 100_000.0),
    smollm("SmolLM2-1.7B", 24, 2048, 8192, (32, 32), 130_000.0),
    qwen("Qwen2.5-0.5B", &qwen2::FAMILY, (24, 896, 4864), (14, 2), 64, 32768),
    qwen("Qwen2.5-1.5B", &qwen2::FAMILY, (28, 1536, 8960), (12, 2), 128, 131_072),
    qwen("Qwen2.5-3B", &qwen2::FAMILY, (36, 2048, 11008), (16, 2), 128, 32768),
    qwen("Qwen3-0.6B", &qwen3::FAMILY, (28, 1024, 3072), (16, 8), 128, 40960),
    qwen("Qwen3-1.7B", &qwen3::FAMILY, (28, 2048, 6144), (16, 8), 128, 40960),
    qwen("Qwen3-4B", &qwen3::FAMILY, (36, 2560, 9728), (32, 8), 128, 40960),
];

impl Hub {
    fn config(&self) -> NetworkConfig {
        let Hub { family, vocab, dim, ffn, heads: (query_heads, kv_heads), head_dim, eps, rope, max_context, .. } =
            *self;
        let layer = LayerShape { query_heads, kv_heads, ffn, ffn_multiplier: ffn as f64 / dim as f64 };
        NetworkConfig {
            family,
            vocab,
            dim,
            head_dim,
            layers: vec![layer; self.layers],
            ffn_dim_divisor: 1,
            eps,
            qk_norm: *family == qwen3::FAMILY,
            biases: Biases { qkv: *family == qwen2::FAMILY, ..Biases::default() },
            tied: true,
            rope,
            max_context,
        }
    }
}

/// Names of the networks: of OpenELM the canonical four and the layer-pruned six, then those of the Hub.
pub const NETWORKS: [&str; 21] = [
    "OE270M",
    "OE450M",
    "OE1.1B",
    "OE3B",
    "OE1.1B-LP-0.75",
    "OE1.1B-LP-0.50",
    "OE1.1B-LP-0.25",
    "OE3B-LP-0.75",
    "OE3B-LP-0.50",
    "OE3B-LP-0.25",
    "Llama-3.2-1B",
    "Llama-3.2-3B",
    "SmolLM2-135M",
    "SmolLM2-360M",
    "SmolLM2-1.7B",
    "Qwen2.5-0.5B",
    "Qwen2.5-1.5B",
    "Qwen2.5-3B",
    "Qwen3-0.6B",
    "Qwen3-1.7B",
    "Qwen3-4B",
];

/// Pairs of the Hub's networks: name, base and auxiliary.
const HUB_PAIRS: [(&str, &str, &str); 7] = [
    ("Llama-3.2-3B-KVP-1B", "Llama-3.2-3B", "Llama-3.2-1B"),
    ("SmolLM2-1.7B-KVP-360M", "SmolLM2-1.7B", "SmolLM2-360M"),
    ("SmolLM2-1.7B-KVP-135M", "SmolLM2-1.7B", "SmolLM2-135M"),
    ("Qwen2.5-1.5B-KVP-0.5B", "Qwen2.5-1.5B", "Qwen2.5-0.5B"),
    ("Qwen2.5-3B-KVP-0.5B", "Qwen2.5-3B", "Qwen2.5-0.5B"),
    ("Qwen3-1.7B-KVP-0.6B", "Qwen3-1.7B", "Qwen3-0.6B"),
    ("Qwen3-4B-KVP-0.6B", "Qwen3-4B", "Qwen3-0.6B"),
];

/// Names of the pairs: those of the paper, then those of the Hub's networks.
pub const PAIRS: [&str; 18] = [
    "OE1.1B-KVP-C-450M",
    "OE1.1B-KVP-C-270M",
    "OE1.1B-KVP-LP-0.75",
    "OE1.1B-KVP-LP-0.50",
    "OE1.1B-KVP-LP-0.25",
    "OE3B-KVP-C-1.1B",
    "OE3B-KVP-C-450M",
    "OE3B-KVP-C-270M",
    "OE3B-KVP-LP-0.75",
    "OE3B-KVP-LP-0.50",
    "OE3B-KVP-LP-0.25",
    "Llama-3.2-3B-KVP-1B",
    "SmolLM2-1.7B-KVP-360M",
    "SmolLM2-1.7B-KVP-135M",
    "Qwen2.5-1.5B-KVP-0.5B",
    "Qwen2.5-3B-KVP-0.5B",
    "Qwen3-1.7B-KVP-0.6B",
    "Qwen3-4B-KVP-0.6B",
];

/// Names of the pairs that are controls, not systems of the paper: a network as its own auxiliary, which must take its own
/// time, the predictor's, and one step more.
pub const CONTROLS: [&str; 1] = ["OE1.1B-KVP-SELF"];

/// Names of the token prunings that the paper times; behind the name of a network, `OE1.1B-RP-0.75`, that of a system.
pub const PRUNINGS: [&str; 16] = [
    "RP-0.75",
    "RP-0.50",
    "RP-0.25",
    "SP-0.50",
    "SP-0.25",
    "L0.75-0.75",
    "L0.75-0.50",
    "L0.75-0.25",
    "L0.75-0.10",
    "L0.75-0.05",
    "L0.75-0.01",
    "L0.50-0.50",
    "L0.50-0.25",
    "L0.50-0.10",
    "L0.50-0.05",
    "L0.50-0.01",
];

/// Names of rivals of KV prediction that promise the same and have no weights of their own: SpecPrefill behind the name of a
/// pair, whose predictor it does not use, and GemFilter behind that of a network.
pub const RIVALS: [&str; 3] =
    ["OE1.1B-KVP-C-450M-SpecPrefill-0.40", "OE1.1B-KVP-C-270M-SpecPrefill-0.40", "OE1.1B-GemFilter-11-128"];

/// Every network and pair, which have weights of their own, but for the controls.
pub fn names() -> impl Iterator<Item = &'static str> {
    NETWORKS.into_iter().chain(PAIRS)
}

/// Base, auxiliary and layer map of a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Its name.
    pub name: &'static str,
    /// Name of the base network.
    pub base: &'static str,
    /// Name of the auxiliary network.
    pub aux: &'static str,
    /// For each base layer, the auxiliary layer that it is predicted from.
    pub layer_map: Vec<usize>,
}

fn canonical(c: &Canonical) -> NetworkConfig {
    // Rounded to two decimals, as the reference does, so that the heads and widths come out the same.
    let multiplier = |(lo, hi): (f64, f64), i: usize| {
        let step = (hi - lo) / (c.layers - 1) as f64;
        let v = if i == c.layers - 1 { hi } else { lo + i as f64 * step };
        format!("{v:.2}").parse::<f64>().expect("a number just printed")
    };
    let layers = (0..c.layers)
        .map(|i| {
            let q_dim = make_divisible(c.dim as f64 * multiplier(QKV, i), c.head_dim * GQA_GROUPS);
            let query_heads = q_dim / c.head_dim;
            let ffn_multiplier = multiplier(FFN, i);
            let ffn = make_divisible(ffn_multiplier * c.dim as f64, FFN_DIVISOR);
            LayerShape { query_heads, kv_heads: query_heads / GQA_GROUPS, ffn, ffn_multiplier }
        })
        .collect();
    NetworkConfig {
        family: &openelm::FAMILY,
        vocab: VOCAB,
        dim: c.dim,
        head_dim: c.head_dim,
        layers,
        ffn_dim_divisor: FFN_DIVISOR,
        eps: openelm::EPS,
        qk_norm: true,
        biases: Biases::default(),
        tied: true,
        rope: Rope::new(10000.0),
        max_context: 2048,
    }
}

/// Whether a layer-pruned network keeps layer `i` of its base.
fn kept(fraction: &str, i: usize) -> bool {
    match fraction {
        "0.75" => i % 4 != 3,
        "0.50" => i.is_multiple_of(2),
        _ => i.is_multiple_of(4),
    }
}

/// The configuration of a network of [`NETWORKS`].
///
/// # Errors
/// [`Error::UnknownName`].
pub fn network(name: &str) -> Result<NetworkConfig> {
    let unknown = || Error::UnknownName { what: "network", name: name.to_owned(), known: NETWORKS.to_vec() };
    let name = NETWORKS.into_iter().find(|n| *n == name).ok_or_else(unknown)?;
    if let Some(hub) = HUB.iter().find(|h| h.name == name) {
        return Ok(hub.config());
    }
    let (base, fraction) = name.split_once("-LP-").unwrap_or((name, ""));
    let mut c = canonical(CANONICAL.iter().find(|c| c.name == base).ok_or_else(unknown)?);
    if !fraction.is_empty() {
        let all = std::mem::take(&mut c.layers);
        c.layers = all.into_iter().enumerate().filter(|(i, _)| kept(fraction, *i)).map(|(_, l)| l).collect();
    }
    Ok(c)
}

/// The network that a layer-pruned one was made from; none for a canonical network or an unknown name.
pub fn pruned_from(name: &str) -> Option<&'static str> {
    let (base, _) = name.split_once("-LP-")?;
    NETWORKS.into_iter().find(|n| *n == base)
}

/// A pair of [`PAIRS`] or [`CONTROLS`].
///
/// # Errors
/// [`Error::UnknownName`].
pub fn pair(name: &str) -> Result<Pair> {
    let unknown = || Error::UnknownName { what: "pair", name: name.to_owned(), known: PAIRS.to_vec() };
    let name = PAIRS.into_iter().chain(CONTROLS).find(|n| *n == name).ok_or_else(unknown)?;
    if let Some((name, base, aux)) = HUB_PAIRS.into_iter().find(|(n, ..)| *n == name) {
        let layer_map = kv_prediction::layer_map(network(base)?.layers.len(), network(aux)?.layers.len());
        return Ok(Pair { name, base, aux, layer_map });
    }
    // Runs of (auxiliary layers, base layers that each of them serves).
    let runs = |runs: &[(usize, usize)]| {
        let counts = runs.iter().flat_map(|&(layers, each)| std::iter::repeat_n(each, layers));
        counts.enumerate().flat_map(|(j, each)| std::iter::repeat_n(j, each)).collect::<Vec<_>>()
    };
    let (base, layer_map, aux) = match name {
        "OE1.1B-KVP-C-450M" => ("OE1.1B", runs(&[(8, 2), (12, 1)]), "OE450M"),
        "OE1.1B-KVP-C-270M" => ("OE1.1B", runs(&[(12, 2), (4, 1)]), "OE270M"),
        "OE1.1B-KVP-SELF" => ("OE1.1B", runs(&[(28, 1)]), "OE1.1B"),
        "OE3B-KVP-C-1.1B" => ("OE3B", runs(&[(8, 2), (20, 1)]), "OE1.1B"),
        "OE3B-KVP-C-450M" => ("OE3B", runs(&[(16, 2), (4, 1)]), "OE450M"),
        "OE3B-KVP-C-270M" => ("OE3B", runs(&[(4, 3), (12, 2)]), "OE270M"),
        _ => {
            let (base, fraction) = name.split_once("-KVP-LP-").ok_or_else(unknown)?;
            let aux_name = format!("{base}-LP-{fraction}");
            let aux = NETWORKS.into_iter().find(|n| *n == aux_name).ok_or_else(unknown)?;
            let base = NETWORKS.into_iter().find(|n| *n == base).ok_or_else(unknown)?;
            let blocks = network(base)?.layers.len() / 4;
            let map = match fraction {
                "0.75" => [(1, 1), (1, 1), (1, 2)].repeat(blocks),
                "0.50" => vec![(2 * blocks, 2)],
                _ => vec![(blocks, 4)],
            };
            (base, runs(&map), aux)
        }
    };
    Ok(Pair { name, base, aux, layer_map })
}

/// A network on part of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenPruned {
    /// Name of the network.
    pub base: &'static str,
    /// Name of the network that chooses the tokens, if that is another.
    pub aux: Option<&'static str>,
    /// On which tokens.
    pub pruning: Pruning,
}

/// The network of [`NETWORKS`] and the token pruning in a name such as `OE1.1B-L0.75-0.50`; or, for an auxiliary that chooses, a
/// pair: `OE1.1B-KVP-C-450M-SpecPrefill-0.40`. Any numbers will do.
///
/// # Errors
/// [`Error::UnknownName`]: it begins with no network. [`Error::Pruning`]: what follows is no pruning. Those of
/// [`Pruning::check`].
pub fn token_pruned(name: &str) -> Result<TokenPruned> {
    let known = |of: &str| NETWORKS.into_iter().find(|n| *n == of);
    let unknown = || Error::UnknownName { what: "network", name: name.to_owned(), known: NETWORKS.to_vec() };
    let Some((of, pruning)) = Pruning::behind(name) else {
        let split = |n: &'static str| name.strip_prefix(n)?.strip_prefix('-');
        let rest = NETWORKS.into_iter().filter_map(split).min_by_key(|rest| rest.len()).ok_or_else(unknown)?;
        return Err(Error::Pruning { name: rest.to_owned() });
    };
    let (base, aux) = match pair(of) {
        Ok(p) => (p.base, Some(p.aux)),
        Err(_) => (known(of).ok_or_else(unknown)?, None),
    };
    pruning.check(network(base)?.layers.len(), aux.is_some())?;
    Ok(TokenPruned { base, aux, pruning })
}

/// Examples of names of KV predictions that have no row of their own.
pub const SHARED: [&str; 3] = ["OE1.1B-KVP-S10-m15-s1", "OE1.1B-KVP-S14-m15-s1", "OE1.1B-KVP-S19-m15-s1"];

/// A KV prediction.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Name of the base network.
    pub base: &'static str,
    /// Name of the auxiliary network; none where layers of the base read the prompt.
    pub aux: Option<&'static str>,
    /// What is predicted from where.
    pub layout: Layout,
    /// Tokens that the base reads itself, which are no matter of weights.
    pub own: OwnTokens,
    /// When it reads them.
    pub order: Order,
    /// The name without these.
    pub predictor: String,
}

/// A pair of [`PAIRS`] or [`CONTROLS`], or shared layers: `OE1.1B-KVP-S19` is a network whose first 19 layers read the prompt,
/// the others predicted from the hidden state behind them by maps, but for the first of them, which projects it itself;
/// `OE1.1B-KVP-S19own` has no maps: all layers project it themselves. Behind either, `-m15` and `-s1`: the base reads the last 15
/// tokens and the first one itself; and last `-pipelined`: its layers run behind the auxiliary's.
///
/// # Errors
/// [`Error::UnknownName`].
pub fn prediction(name: &str) -> Result<Prediction> {
    let (plain, order) = Order::strip(name);
    let (plain, own) = OwnTokens::strip(plain);
    let predictor = plain.to_owned();
    let base = shared_layers(plain).and_then(|(base, ..)| NETWORKS.into_iter().find(|n| *n == base));
    if let Some(base) = base
        && order == Order::InTurn
        && let Some(layout) = shared(plain, &network(base)?)
    {
        return Ok(Prediction { base, aux: None, layout, own, order, predictor });
    }
    let unknown = |_| Error::UnknownName {
        what: "KV prediction",
        name: name.to_owned(),
        known: PAIRS.into_iter().chain(SHARED).collect(),
    };
    let p = pair(plain).map_err(unknown)?;
    Ok(Prediction { base: p.base, aux: Some(p.aux), layout: Layout::auxiliary(&p.layer_map), own, order, predictor })
}

/// What is predicted from where by a name such as `OE1.1B-KVP-S19`, of this base; none of any other name, or if the base has no
/// more layers than that.
pub fn shared(name: &str, base: &NetworkConfig) -> Option<Layout> {
    let (_, k, input) = shared_layers(name)?;
    (1..base.layers.len()).contains(&k).then(|| Layout::shared(base.layers.len(), k, input))
}

/// The base, the number of layers and what the others are predicted from, of a name such as `OE1.1B-KVP-S19`.
pub fn shared_layers(name: &str) -> Option<(&str, usize, Input)> {
    let (base, rest) = name.rsplit_once("-KVP-S")?;
    let (digits, input) = match rest.strip_suffix("own") {
        Some(digits) => (digits, Input::Own),
        None => (rest, Input::Hidden),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    Some((base, digits.parse().ok().filter(|_| plain)?, input))
}
