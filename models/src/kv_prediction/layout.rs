//! What a predictor maps from where, and which tokens the base runs itself: shapes and numbers, no weights.

use std::{fmt, path::Path};

use crate::{
    activations::Rows,
    config::{NetworkConfig, Role, TensorSpec},
    error::{Error, Result},
    json,
};

/// What is read of a source layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// Its keys, before k_norm and RoPE, for keys, and its values for values.
    KeysAndValues,
    /// The residual stream behind it, divided by its root mean square.
    Hidden,
    /// The residual stream behind it, for the norm and the projections of the predicted layer itself.
    Own,
}

impl Input {
    /// All of them.
    pub const ALL: [Input; 3] = [Input::KeysAndValues, Input::Hidden, Input::Own];

    /// Features that a map reads.
    pub fn width(self, source: &NetworkConfig, layer: usize) -> usize {
        match self {
            Input::KeysAndValues => source.kv_dim(layer),
            Input::Hidden | Input::Own => source.dim,
        }
    }
}

/// Where the keys and values of a base layer come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The layer of the source.
    pub layer: usize,
    /// What is read of it.
    pub input: Input,
}

/// Where the keys and values of every base layer come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Layers of the base itself that read the prompt; none where an auxiliary reads it.
    pub shared: Option<usize>,
    /// By base layer; none of the layers that read the prompt themselves.
    pub layers: Vec<Option<Origin>>,
}

impl Layout {
    /// Maps from keys and values of an auxiliary, as the paper's: for each base layer, its layer.
    pub fn auxiliary(map: &[usize]) -> Layout {
        let origin = |&layer| Some(Origin { layer, input: Input::KeysAndValues });
        Layout { shared: None, layers: map.iter().map(origin).collect() }
    }

    /// `k` of `layers` layers read the prompt, and the others are predicted from the last of them: the first of these by its
    /// own projections, which is exact, the rest from `input`.
    pub fn shared(layers: usize, k: usize, input: Input) -> Layout {
        let origin = |i: usize| Origin { layer: k - 1, input: if i == k { Input::Own } else { input } };
        Layout { shared: Some(k), layers: (0..layers).map(|i| (i >= k).then(|| origin(i))).collect() }
    }

    /// The network that the maps read from.
    pub fn source<'a>(&self, base: &'a NetworkConfig, aux: Option<&'a NetworkConfig>) -> &'a NetworkConfig {
        aux.filter(|_| self.shared.is_none()).unwrap_or(base)
    }

    /// The layers that are predicted, and from where.
    pub fn predicted(&self) -> impl Iterator<Item = (usize, Origin)> + '_ {
        self.layers.iter().enumerate().filter_map(|(i, origin)| Some((i, (*origin)?)))
    }

    /// The first layer above shared ones, if it projects what the layer below it left: its keys and values are those of full prefill.
    pub fn exact(&self) -> Option<usize> {
        self.shared.filter(|&k| self.layers[k] == Some(Origin { layer: k - 1, input: Input::Own }))
    }

    /// Every tensor of a predictor.
    pub fn tensors(&self, base: &NetworkConfig, source: &NetworkConfig) -> Vec<TensorSpec> {
        let mut t = Vec::new();
        for (i, origin) in self.predicted().filter(|(_, o)| o.input != Input::Own) {
            let (n, k) = (base.kv_dim(i), origin.input.width(source, origin.layer));
            for kind in ["key", "value"] {
                let name = format!("{kind}_transforms.{i}");
                t.push(TensorSpec::new(format!("{name}.weight"), vec![n, k], Role::Predictor(k)));
                t.push(TensorSpec::new(format!("{name}.bias"), vec![n], Role::Predictor(k)));
            }
        }
        t
    }

    /// The content of a `config.json` that [`Layout::parse`] reads.
    pub fn to_json(&self, base: &NetworkConfig, source: &NetworkConfig) -> serde_json::Value {
        let map: Vec<usize> = self.layers.iter().enumerate().map(|(i, o)| o.map_or(i, |o| o.layer)).collect();
        let Some(k) = self.shared else {
            let mut json = serde_json::json!({
                "aux_layer_for_base_layer": map,
                "base_num_layers": base.layers.len(),
                "aux_num_layers": source.layers.len(),
            });
            if self.predicted().any(|(_, o)| o.input == Input::Hidden) {
                json["input"] = "hidden".into();
            }
            return json;
        };
        let kv = self.predicted().any(|(_, o)| o.input == Input::KeysAndValues);
        serde_json::json!({
            "base_num_layers": base.layers.len(),
            "source": "shared_layers",
            "shared_layers": k,
            "input": if kv { "kv" } else { "hidden" },
            "source_layer_for_base_layer": map,
        })
    }

    /// Reads a predictor's `config.json`, as if every layer that is predicted had a map, and checks it against its networks;
    /// `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Json`]; [`Error::Pair`]: it contradicts itself or the networks.
    pub fn parse(path: &Path, text: &[u8], base: &NetworkConfig, aux: Option<&NetworkConfig>) -> Result<Layout> {
        Layout::of(path, json::parse(path, text)?, base, aux)
    }

    pub(super) fn of(
        path: &Path,
        value: serde_json::Value,
        base: &NetworkConfig,
        aux: Option<&NetworkConfig>,
    ) -> Result<Layout> {
        #[derive(serde::Deserialize)]
        struct Config {
            source: Option<String>,
            shared_layers: Option<usize>,
            input: Option<String>,
            source_layer_for_base_layer: Option<Vec<usize>>,
            aux_layer_for_base_layer: Option<Vec<usize>>,
            base_num_layers: Option<usize>,
            aux_num_layers: Option<usize>,
        }
        const MAP: &str = "source_layer_for_base_layer";
        const PAPERS: &str = "aux_layer_for_base_layer";
        let c: Config = json::fields(path, value)?;
        let layers = base.layers.len();
        for (what, stated, network) in [
            ("base_num_layers", c.base_num_layers, Some(layers)),
            ("aux_num_layers", c.aux_num_layers, aux.map(|aux| aux.layers.len())),
        ] {
            if let (Some(stated), Some(network)) = (stated, network)
                && stated != network
            {
                return refuse(path, what, format!("{network}, the layers of the network"), stated);
            }
        }
        let shared = match c.source.as_deref() {
            None | Some("auxiliary") => None,
            Some("shared_layers") => Some(c.shared_layers),
            Some(other) => return refuse(path, "source", "auxiliary or shared_layers".into(), other),
        };
        let shared = match (shared, c.shared_layers) {
            (None, None) => None,
            (None, Some(k)) => return refuse(path, "shared_layers", "none, as the source is an auxiliary".into(), k),
            (Some(Some(k)), _) if (1..layers).contains(&k) => Some(k),
            (Some(k), _) => {
                let found = k.map_or("none".into(), |k| k.to_string());
                return refuse(
                    path,
                    "shared_layers",
                    format!("1 to {} of the base's {layers} layers", layers - 1),
                    found,
                );
            }
        };
        match (shared, aux) {
            (None, None) => {
                return refuse(path, "source", "shared_layers, as no auxiliary was given".into(), "auxiliary");
            }
            (Some(_), Some(_)) => {
                return refuse(path, "source", "auxiliary, as one was given".into(), "shared_layers, which needs none");
            }
            _ => {}
        }
        let input = match c.input.as_deref() {
            None | Some("kv") => Input::KeysAndValues,
            Some("hidden") => Input::Hidden,
            Some(other) => return refuse(path, "input", "kv or hidden".into(), other),
        };
        let (name, map) = match (c.source_layer_for_base_layer, c.aux_layer_for_base_layer) {
            (Some(a), Some(b)) if a != b => {
                return refuse(path, PAPERS, format!("what {MAP} says, {a:?}"), format!("{b:?}"));
            }
            (Some(map), _) => (MAP, map),
            (None, Some(map)) => (PAPERS, map),
            (None, None) => return refuse(path, MAP, "a list".into(), "none"),
        };
        let layout = Layout {
            shared,
            layers: map
                .iter()
                .enumerate()
                .map(|(i, &layer)| (i >= shared.unwrap_or(0)).then_some(Origin { layer, input }))
                .collect(),
        };
        for (i, &j) in map.iter().enumerate().take(shared.unwrap_or(0).min(layers)) {
            if i != j {
                return refuse(path, format!("{name}[{i}]"), format!("{i}, as this layer reads the prompt itself"), j);
            }
        }
        layout.check(path, name, base, aux)?;
        Ok(layout)
    }

    /// Checks that there is an origin for every base layer, and a layer for every origin; `name` is for messages.
    pub(super) fn check(
        &self,
        path: &Path,
        name: &str,
        base: &NetworkConfig,
        aux: Option<&NetworkConfig>,
    ) -> Result<()> {
        if self.layers.len() != base.layers.len() {
            let expected = format!("one entry for each of {} base layers", base.layers.len());
            return refuse(path, name, expected, format!("{} entries", self.layers.len()));
        }
        let (what, layers) = match self.shared {
            Some(k) => ("a layer that reads the prompt", k),
            None => ("an auxiliary layer", aux.map_or(0, |aux| aux.layers.len())),
        };
        match self.predicted().find(|(_, origin)| origin.layer >= layers) {
            Some((i, origin)) => {
                let expected = format!("{what}, 0 to {}", layers.saturating_sub(1));
                refuse(path, format!("{name}[{i}]"), expected, origin.layer)
            }
            None => Ok(()),
        }
    }
}

pub(super) fn refuse<T>(path: &Path, what: impl Into<String>, expected: String, found: impl fmt::Display) -> Result<T> {
    Err(Error::Pair { path: path.to_owned(), what: what.into(), expected, found: found.to_string() })
}

/// When the layers of a base run that has an auxiliary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// After the auxiliary and all maps.
    #[default]
    InTurn,
    /// Each as soon as it can, behind the auxiliary's: [`crate::pipeline`].
    Pipelined,
}

impl Order {
    /// As it is named in words.
    pub const fn name(self) -> &'static str {
        match self {
            Order::InTurn => "in turn",
            Order::Pipelined => "pipelined",
        }
    }

    /// What [`Order::strip`] takes off a name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Order::InTurn => "",
            Order::Pipelined => "-pipelined",
        }
    }

    /// Takes the order off a name, at the end of which it stands.
    pub fn strip(name: &str) -> (&str, Order) {
        match name.strip_suffix(Order::Pipelined.suffix()) {
            Some(rest) => (rest, Order::Pipelined),
            None => (name, Order::InTurn),
        }
    }
}

/// Tokens of a prompt that the base of a KV prediction runs itself. If these are all, it is full prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnTokens {
    /// The last ones, m: at least 1.
    pub last: usize,
    /// The first ones, s, of which attention sinks are made.
    pub first: usize,
    /// Whether the keys and values of the first ones, which depend on these tokens alone, are kept from an earlier call that began
    /// with the same: the base then reads the last ones alone.
    pub kept: bool,
}

impl OwnTokens {
    /// The paper's: the last one.
    pub const PAPER: OwnTokens = OwnTokens { last: 1, first: 0, kept: false };

    /// Of `n` tokens, those that the base reads in every call; none if it reads all of them.
    pub fn of(self, n: usize) -> Option<Rows> {
        let rows = Rows { first: self.first, count: self.last, of: n };
        let some = self.last.saturating_add(self.first) < n;
        some.then_some(if self.kept { Rows { first: 0, ..rows } } else { rows })
    }

    /// What [`OwnTokens::strip`] takes off a name; nothing of the paper's.
    pub fn suffix(self) -> String {
        let part = |mark: &str, n: usize, usual: usize| if n == usual { String::new() } else { format!("-{mark}{n}") };
        let kept = if self.kept && self.first > 0 { KEPT } else { "" };
        part("m", self.last, 1) + &part("s", self.first, 0) + kept
    }

    /// Takes the numbers off a name: `-m16-s1`, or one of the two; `-s1kept` where the first ones are kept.
    pub fn strip(name: &str) -> (&str, OwnTokens) {
        let number = |name: &'_ str, mark: &str| -> Option<(usize, usize)> {
            let (rest, digits) = name.rsplit_once(mark)?;
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
            Some((rest.len(), digits.parse().ok().filter(|n| plain && *n <= MOST)?))
        };
        let (mut name, mut own) = (name, OwnTokens::PAPER);
        let (numbers, kept) = name.strip_suffix(KEPT).map_or((name, false), |rest| (rest, true));
        if let Some((rest, s)) = number(numbers, "-s") {
            (name, own.first, own.kept) = (&name[..rest], s, kept);
        }
        if let Some((rest, m)) = number(name, "-m") {
            (name, own.last) = (&name[..rest], m);
        }
        (name, own)
    }
}

impl Default for OwnTokens {
    fn default() -> OwnTokens {
        OwnTokens::PAPER
    }
}

/// Behind the number of first tokens, where these are kept.
const KEPT: &str = "kept";

/// More tokens of either kind than any prompt has.
const MOST: usize = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_tokens_are_the_end_of_a_name() {
        let own = |last, first| OwnTokens { last, first, kept: false };
        let kept = |last, first| OwnTokens { kept: true, ..own(last, first) };
        for (name, rest, expected) in [
            ("OE1.1B-KVP-C-450M", "OE1.1B-KVP-C-450M", own(1, 0)),
            ("OE1.1B-KVP-C-450M-m16", "OE1.1B-KVP-C-450M", own(16, 0)),
            ("OE1.1B-KVP-C-450M-s2", "OE1.1B-KVP-C-450M", own(1, 2)),
            ("OE1.1B-KVP-S19-m15-s1", "OE1.1B-KVP-S19", own(15, 1)),
            ("OE1.1B-KVP-S19-m15-s1kept", "OE1.1B-KVP-S19", kept(15, 1)),
            ("x-s12kept", "x", kept(1, 12)),
            ("x-kept", "x-kept", own(1, 0)),
            ("x-m3kept", "x-m3kept", own(1, 0)),
            // Anything else is no number of tokens, and so no name of the zoo.
            ("x-m0", "x-m0", own(1, 0)),
            ("x-m01", "x-m01", own(1, 0)),
            ("x-m+1", "x-m+1", own(1, 0)),
            ("x-m", "x-m", own(1, 0)),
            ("x-s1-m2", "x-s1", own(2, 0)),
            ("x-m99999999999999999999", "x-m99999999999999999999", own(1, 0)),
        ] {
            assert_eq!(OwnTokens::strip(name), (rest, expected), "{name}");
            if rest != name {
                assert_eq!(format!("{rest}{}", expected.suffix()), name);
            }
        }
    }
}
