//! What the systems of a run are called: the zoo's networks and pairs, and the user's own, out of folders of the Hub or out of
//! configurations alone.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use ttft_kernels::DType;
use ttft_models::{
    Network, NetworkConfig, Predictor, Pruning,
    kv_prediction::{
        layer_map,
        layout::{Layout, Order, OwnTokens},
    },
    zoo,
};
use ttft_reports::text::printable;

use crate::{
    identity, output,
    vocabulary::{self, Vocabulary},
};

/// Characters of a configuration's hash that stand for it.
const HASH: usize = 12;

const SYNTHETIC: &str = "synthetic weights of its shape";
const NO_PREDICTOR: &str = "no predictor is given, so one of the right shape with random values stands in: it takes a predictor's \
                            time and predicts nothing";

/// A pair, or a network alone, as a user asks for it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Its name in records; by default those of its networks, with `KVP` between them.
    pub name: Option<String>,
    /// A folder of the Hub, a folder or file with a configuration alone, or a name of the zoo.
    pub base: String,
    /// The auxiliary, likewise.
    pub aux: Option<String>,
    /// The folder of the predictor; without an auxiliary, one of shared layers of the base.
    pub predictor: Option<PathBuf>,
    /// Last tokens of a prompt that the base reads itself; 1 if it is not said.
    pub base_tokens: Option<usize>,
    /// First tokens that it reads itself; none if it is not said.
    pub sink_tokens: Option<usize>,
    /// Whether the keys and values of these are kept from an earlier call; not so if it is not said.
    pub keep_sinks: Option<bool>,
    /// Token pruning in place of KV prediction; the auxiliary then chooses the tokens.
    #[serde(default, deserialize_with = "pruning")]
    pub prune: Option<Pruning>,
}

fn pruning<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Pruning>, D::Error> {
    String::deserialize(d)?.parse().map(Some).map_err(serde::de::Error::custom)
}

/// A network that is not of the zoo.
#[derive(Clone, Debug)]
struct Own {
    config: NetworkConfig,
    /// SHA-256 of the configuration, as this program writes it.
    hash: String,
    /// Where it was found, without the folders above.
    from: String,
    /// The folder and the type of its weights, if it has any.
    weights: Option<(PathBuf, DType)>,
    tokenizer: Option<PathBuf>,
}

/// A KV prediction: a base, what reads the prompt in its place, and what is predicted from that.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The name of its base.
    pub base: String,
    /// The name of its auxiliary; none where layers of the base read the prompt.
    pub aux: Option<String>,
    /// What is predicted from where.
    pub layout: Layout,
    /// What the base reads itself,
    pub own: OwnTokens,
    /// and when.
    pub order: Order,
    /// The folder of its predictor, and the type of the maps in it; none for random values, which have the type of the run.
    pub predictor: Option<(PathBuf, DType)>,
}

/// A network on part of its tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenPruned {
    /// The name of the network.
    pub base: String,
    /// The name of the network that chooses the tokens, if that is another.
    pub aux: Option<String>,
    /// On which tokens.
    pub pruning: Pruning,
}

/// The networks and pairs that a run can name.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    networks: BTreeMap<String, Own>,
    pairs: BTreeMap<String, Pair>,
    /// Networks and those that choose their tokens, which predict nothing.
    choosers: BTreeMap<String, (String, String)>,
}

impl Catalog {
    /// The user's own, and what to call them. Relative paths are meant from where the user is.
    ///
    /// # Errors
    /// What is no network, networks of unlike vocabularies, a predictor of others, a name that is taken.
    pub fn new(asked: &[Asked]) -> Result<(Catalog, Vec<String>)> {
        let mut catalog = Catalog::default();
        let mut names = Vec::new();
        for a in asked {
            let base = catalog.add(&a.base).context("base")?;
            if let Some(pruning) = a.prune {
                names.push(catalog.prune(a, base, pruning)?);
                continue;
            }
            if a.aux.is_none() && a.predictor.is_none() {
                ensure!(
                    a.name.is_none(),
                    "name: a network alone is named after its folder: leave the name out, or give an auxiliary network or a predictor too"
                );
                ensure!(
                    a.base_tokens.is_none() && a.sink_tokens.is_none() && a.keep_sinks.is_none(),
                    "base_tokens, sink_tokens, keep_sinks: a network alone reads every token: give an auxiliary network or a predictor too"
                );
                names.push(base);
                continue;
            }
            let aux = a.aux.as_ref().map(|aux| catalog.add(aux).context("aux")).transpose()?;
            names.push(catalog.pair_up(a, base, aux)?);
        }
        Ok((catalog, names))
    }

    /// The name of a network, which is added if it is not of the zoo.
    fn add(&mut self, what: &str) -> Result<String> {
        let path = here(Path::new(what));
        if !path.exists() {
            ensure!(
                zoo::network(what).is_ok(),
                "'{}' is no folder with a config.json, no configuration file and no network of the zoo ({})",
                printable(what),
                zoo::NETWORKS.join(", ")
            );
            return Ok(what.to_owned());
        }
        let own = Own::open(&path)?;
        let plain = name_of(&path);
        let same = |other: &Own| other.hash == own.hash && other.weights == own.weights;
        // The zoo's names are its own; two networks of one name get parts of their hashes behind it.
        let taken = |n: &String| Catalog::of_zoo(n) || self.networks.get(n).is_some_and(|other| !same(other));
        let hashed = format!("{plain}-{}", &own.hash[..HASH]);
        let numbered = (2..).map(|i| format!("{hashed}-{i}"));
        let name = [plain, hashed.clone()].into_iter().chain(numbered).find(|n| !taken(n)).expect("a number is free");
        self.networks.insert(name.clone(), own);
        Ok(name)
    }

    fn prune(&mut self, asked: &Asked, base: String, pruning: Pruning) -> Result<String> {
        ensure!(
            [asked.base_tokens, asked.sink_tokens] == [None; 2]
                && asked.predictor.is_none()
                && asked.keep_sinks.is_none(),
            "prune: {pruning} cannot be used with a predictor, base_tokens, sink_tokens or keep_sinks, which are KV prediction's"
        );
        let aux = asked.aux.as_ref().map(|aux| self.add(aux).context("aux")).transpose()?;
        pruning.check(self.network(&base)?.layers.len(), aux.is_some()).context("prune")?;
        let Some(aux) = aux else {
            ensure!(asked.name.is_none(), "name: a pruned network is named after the network: leave the name out");
            return Ok(format!("{base}-{pruning}"));
        };
        vocabulary::check(&self.vocabulary(&base)?, &self.vocabulary(&aux)?)?;
        let of = asked.name.clone().unwrap_or_else(|| format!("{base}-{aux}"));
        self.check_name(&of)?;
        self.choosers.insert(of.clone(), (base, aux));
        Ok(format!("{of}-{pruning}"))
    }

    /// Refuses what cannot name a system of one's own.
    fn check_name(&self, name: &str) -> Result<()> {
        ensure!(
            output::is_file_name(name) && !name.contains(char::is_whitespace),
            "name: expected a word that can name a file (no '/', '\\' or ':', no '.' at its start), found '{}'",
            printable(name)
        );
        let taken = self.pairs.contains_key(name) || self.networks.contains_key(name);
        ensure!(
            !Catalog::of_zoo(name) && !taken && !self.choosers.contains_key(name),
            "name: '{name}' is the name of another system: choose one for this pair (name, or another folder's)"
        );
        Ok(())
    }

    fn pair_up(&mut self, asked: &Asked, base: String, aux: Option<String>) -> Result<String> {
        let (last, first) = (asked.base_tokens.unwrap_or(1), asked.sink_tokens.unwrap_or(0));
        let own = OwnTokens { last, first, kept: asked.keep_sinks == Some(true) };
        ensure!(own.last > 0, "base_tokens: expected 1 or more, found 0");
        ensure!(
            !own.kept || own.first > 0,
            "keep_sinks: there is nothing to keep: sink_tokens says how many first tokens"
        );
        let by_default = || format!("{base}-KVP-{}{}", aux.as_deref().unwrap_or("shared"), own.suffix());
        let name = asked.name.clone().unwrap_or_else(by_default);
        self.check_name(&name)?;
        if let Some(aux) = &aux {
            vocabulary::check(&self.vocabulary(&base)?, &self.vocabulary(aux)?)?;
        }
        let base_config = self.network(&base)?;
        let aux_config = aux.as_ref().map(|aux| self.network(aux)).transpose()?;
        let (layout, predictor) = match (&asked.predictor, &aux_config) {
            (Some(dir), aux_config) => {
                let dir = here(dir);
                let predictor = Predictor::open(&dir, &base_config, aux_config.as_ref()).context("predictor")?;
                // A predictor without maps, of layers that project by themselves, has no type.
                let dtype = predictor.weight_dtype().unwrap_or(DType::F32);
                (predictor.layout().clone(), Some((dir, dtype)))
            }
            (None, Some(aux)) => (Layout::auxiliary(&layer_map(base_config.layers.len(), aux.layers.len())), None),
            (None, None) => unreachable!("a network alone is no pair"),
        };
        let order = Order::InTurn;
        self.pairs.insert(name.clone(), Pair { base, aux, layout, own, order, predictor });
        Ok(name)
    }

    fn of_zoo(name: &str) -> bool {
        zoo::network(name).is_ok() || zoo::prediction(name).is_ok() || zoo::token_pruned(name).is_ok()
    }

    fn vocabulary(&self, name: &str) -> Result<Vocabulary> {
        let tokenizer = self.networks.get(name).and_then(|own| own.tokenizer.clone());
        Ok(Vocabulary { of: name.to_owned(), size: self.network(name)?.vocab, tokenizer })
    }

    /// The configuration of a network.
    ///
    /// # Errors
    /// No such network.
    pub fn network(&self, name: &str) -> Result<NetworkConfig> {
        Ok(match self.networks.get(name) {
            Some(own) => own.config.clone(),
            None => zoo::network(name)?,
        })
    }

    /// A pair, or shared layers: the user's own, with other tokens of the base (`-m16-s1`) or another order (`-pipelined`) behind
    /// its name or without; of any network `NAME-KVP-S19`; or the zoo's.
    ///
    /// # Errors
    /// No such pair.
    pub fn pair(&self, name: &str) -> Result<Pair> {
        if let Some(pair) = self.pairs.get(name) {
            return Ok(pair.clone());
        }
        let (rest, order) = Order::strip(name);
        let (plain, own) = OwnTokens::strip(rest);
        if let Some(pair) = self.pairs.get(rest).filter(|pair| pair.aux.is_some()) {
            return Ok(Pair { order, ..pair.clone() });
        }
        if let Some(pair) = self.pairs.get(plain).filter(|pair| pair.aux.is_some() || order == Order::InTurn) {
            return Ok(Pair { own, order, ..pair.clone() });
        }
        if let Some((base, ..)) = zoo::shared_layers(plain)
            && let Some(network) = self.networks.get(base)
            && order == Order::InTurn
            && let Some(layout) = zoo::shared(plain, &network.config)
        {
            return Ok(Pair { base: base.into(), aux: None, layout, own, order, predictor: None });
        }
        let zoo::Prediction { base, aux, layout, own, order, .. } = zoo::prediction(name)?;
        Ok(Pair { base: base.into(), aux: aux.map(str::to_owned), layout, own, order, predictor: None })
    }

    /// Whether this is the whole name of a pair of the user's own.
    pub fn holds(&self, name: &str) -> bool {
        self.pairs.contains_key(name)
    }

    /// A network on part of its tokens: the token pruning behind the name of a network; or behind that of a pair, whose auxiliary
    /// then chooses.
    ///
    /// # Errors
    /// No such network, no such pruning, or one that cannot be done to it.
    pub fn pruned(&self, name: &str) -> Result<TokenPruned> {
        let Some((of, pruning)) = Pruning::behind(name) else { bail!(zoo::token_pruned(name).unwrap_err()) };
        let (base, aux) = match (self.choosers.get(of), self.pair(of)) {
            (Some((base, aux)), _) => (base.clone(), Some(aux.clone())),
            (None, Ok(Pair { base, aux: Some(aux), .. })) => (base, Some(aux)),
            _ => (of.to_owned(), None),
        };
        pruning.check(self.network(&base)?.layers.len(), aux.is_some())?;
        Ok(TokenPruned { base, aux, pruning })
    }

    /// The folder of a network's own weights, if it has any.
    pub fn weights(&self, name: &str) -> Option<&Path> {
        self.networks.get(name)?.weights.as_ref().map(|(dir, _)| dir.as_path())
    }

    /// What the synthetic values of a network are drawn from, and its folder is called by: the name of one of the zoo, the hash
    /// of any other, wherever it lies.
    pub fn key(&self, network: &str) -> String {
        match self.networks.get(network) {
            Some(own) => format!("config-{}", &own.hash[..HASH]),
            None => network.to_owned(),
        }
    }

    /// As [`Catalog::key`], of the synthetic predictor of a pair.
    ///
    /// # Errors
    /// No such pair.
    pub fn predictor_key(&self, name: &str) -> Result<String> {
        let name = if self.pairs.contains_key(name) { name } else { Order::strip(name).0 };
        let plain = OwnTokens::strip(name).0;
        let Pair { base, aux, layout, .. } = self.pair(name)?;
        let of_zoo = |name: &String| !self.networks.contains_key(name);
        if !self.pairs.contains_key(name) && !self.pairs.contains_key(plain) && of_zoo(&base) {
            return Ok(plain.to_owned());
        }
        let aux = aux.map(|aux| self.key(&aux));
        let text = format!("{} {aux:?} {layout:?}", self.key(&base));
        Ok(format!("config-{}", &identity::sha256(&text)[..HASH]))
    }

    /// The type of the weights that lie in folders.
    ///
    /// # Errors
    /// They are of different types.
    pub fn dtype(&self) -> Result<Option<DType>> {
        let mut found: Option<(&String, DType)> = None;
        for (name, own) in &self.networks {
            let Some((_, dtype)) = own.weights else { continue };
            if let Some((other, first)) = found.filter(|(_, first)| *first != dtype) {
                bail!("the weights of {other} are {first} and those of {name} are {dtype}: convert one of them");
            }
            found = Some((name, dtype));
        }
        Ok(found.map(|(_, dtype)| dtype))
    }

    /// What a record says of the user's own networks and pairs; `real` unless all weights are synthetic anyway.
    pub fn notes(&self, real: bool) -> Vec<String> {
        let network = |(name, own): (&String, &Own)| {
            let weights = match own.weights {
                Some((_, dtype)) if real => format!("its own weights ({dtype})"),
                _ => SYNTHETIC.to_owned(),
            };
            let family = own.config.family.name;
            format!("{name}: {} ({family}), configuration sha256 {}, {weights}", own.from, own.hash)
        };
        let pair = |(name, pair): (&String, &Pair)| match &pair.predictor {
            Some((dir, dtype)) if real => format!("{name}: predictor {} ({dtype})", name_of(dir)),
            _ => format!("{name}: {NO_PREDICTOR}"),
        };
        self.networks.iter().map(network).chain(self.pairs.iter().map(pair)).collect()
    }

    /// What stands in for weights and predictors that are not there, in words.
    pub fn stand_ins(&self) -> Vec<String> {
        let networks = self.networks.iter().filter(|(_, own)| own.weights.is_none());
        let pairs = self.pairs.iter().filter(|(_, pair)| pair.predictor.is_none());
        let networks = networks.map(|(name, own)| format!("{name}: {} has no weights: {SYNTHETIC} are used", own.from));
        networks.chain(pairs.map(|(name, _)| format!("{name}: {NO_PREDICTOR}"))).collect()
    }
}

impl Own {
    fn open(path: &Path) -> Result<Own> {
        let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
        let config = NetworkConfig::load(&file)?;
        let folder = path.is_dir().then_some(path);
        // Weights that cannot be read are a mistake, no reason to make others.
        let weights = match folder.filter(|dir| holds_weights(dir)) {
            Some(dir) => Some((dir.to_owned(), Network::load(dir)?.weight_dtype())),
            None => None,
        };
        let tokenizer = folder.map(|dir| dir.join("tokenizer.json")).filter(|file| file.exists());
        let hash = identity::sha256(config.to_json("").to_string());
        Ok(Own { config, hash, from: name_of(path), weights, tokenizer })
    }
}

/// Whether a folder holds weights of any kind, readable or not.
fn holds_weights(dir: &Path) -> bool {
    let ends = ["safetensors", "safetensors.index.json", "bin", "pth", "pt", "gguf"];
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|f| f.file_name().to_string_lossy().into_owned());
    names.into_iter().any(|name| ends.iter().any(|end| name.ends_with(&format!(".{end}"))))
}

/// A path as the user meant it.
fn here(path: &Path) -> PathBuf {
    output::called_from().map_or_else(|| path.to_owned(), |from| from.join(path))
}

/// What to call what lies there: the folder, or the file if it is not just any config.json; of a snapshot in the Hub's cache the
/// repository.
fn name_of(path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let parts: Vec<String> = path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let name = match &parts[..] {
        [.., repository, snapshots, _] if snapshots == "snapshots" => {
            repository.rsplit("--").next().unwrap_or(repository).to_owned()
        }
        [.., folder, file] if file == "config.json" => folder.clone(),
        [.., name] => name.strip_suffix(".json").unwrap_or(name).to_owned(),
        [] => String::new(),
    };
    let plain = |c: char| if c.is_alphanumeric() || "._-+".contains(c) { c } else { '-' };
    let name: String = name.trim_start_matches('.').chars().map(plain).take(48).collect();
    if name.is_empty() { "network".into() } else { name }
}

#[cfg(test)]
mod tests {
    use ttft_models::{kv_prediction::layout::Input, synth::Spec};

    use super::*;

    fn asked(base: &Path, aux: Option<&Path>) -> Asked {
        let text = |p: &Path| p.to_str().unwrap().to_owned();
        Asked { base: text(base), aux: aux.map(text), ..Asked::default() }
    }

    /// A folder with nothing but the configuration of a network of the zoo.
    fn folder(dir: &Path, name: &str, like: &str) -> PathBuf {
        let path = dir.join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.json"), zoo::network(like).unwrap().to_json("bfloat16").to_string()).unwrap();
        path
    }

    #[test]
    fn names_are_single_safe_words() {
        for (path, name) in [
            ("/m/Llama-3.2-1B", "Llama-3.2-1B"),
            ("/m/Llama-3.2-1B/", "Llama-3.2-1B"),
            ("/m/My Model (new)", "My-Model--new-"),
            ("/m/.hidden", "hidden"),
            ("/m/Qwen/config.json", "Qwen"),
            ("/m/Qwen.json", "Qwen"),
            ("/h/models--meta-llama--Llama-3.2-1B/snapshots/0123abc", "Llama-3.2-1B"),
            ("/m/..", "network"),
            ("/", "-"),
        ] {
            assert_eq!(name_of(Path::new(path)), name, "{path}");
        }
        assert!(name_of(Path::new(&"x".repeat(200))).len() <= 48);
    }

    #[test]
    fn networks_of_one_name_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (folder(dir.path(), "a/model", "SmolLM2-135M"), folder(dir.path(), "b/model", "SmolLM2-360M"));
        let (catalog, names) = Catalog::new(&[asked(&b, Some(&a)), asked(&b, None)]).unwrap();
        assert_eq!(names[1], "model");
        assert!(names[0].starts_with("model-KVP-model-"), "{names:?}");
        let pair = catalog.pair(&names[0]).unwrap();
        assert_eq!((pair.base.as_str(), pair.layout.layers.len()), ("model", 32));
        assert_eq!(catalog.network(&pair.aux.unwrap()).unwrap(), zoo::network("SmolLM2-135M").unwrap());
        // A name of the zoo means the zoo's.
        let (_, names) = Catalog::new(&[asked(&folder(dir.path(), "OE270M", "SmolLM2-135M"), None)]).unwrap();
        assert!(names[0].starts_with("OE270M-") && names[0].len() == 7 + HASH, "{names:?}");
        let (_, names) = Catalog::new(&[asked(Path::new("OE1.1B"), Some(Path::new("OE270M")))]).unwrap();
        assert_eq!(names, ["OE1.1B-KVP-OE270M"]);
        for notes in [catalog.notes(true), catalog.notes(false)] {
            assert_eq!(notes.len(), 3, "{notes:?}");
            assert!(notes[0].contains("configuration sha256") && notes[0].contains("synthetic weights"), "{notes:?}");
            assert!(notes[2].contains("predicts nothing"), "{notes:?}");
        }
    }

    /// Shared layers of any network, by a name or by a predictor; tokens of the base behind any name.
    #[test]
    fn variants_of_ones_own_networks() {
        let dir = tempfile::tempdir().unwrap();
        let (large, small) = (folder(dir.path(), "large", "SmolLM2-1.7B"), folder(dir.path(), "small", "SmolLM2-360M"));
        let with = Asked { base_tokens: Some(4), sink_tokens: Some(1), ..asked(&large, Some(&small)) };
        let (catalog, names) = Catalog::new(&[with]).unwrap();
        assert_eq!(names, ["large-KVP-small-m4-s1"]);
        let own = |name: &str| catalog.pair(name).unwrap().own;
        assert_eq!(own(&names[0]), OwnTokens { last: 4, first: 1, kept: false });
        let kept = OwnTokens { last: 4, first: 1, kept: true };
        assert_eq!(own("large-KVP-small-m4-s1-m4-s1kept"), kept);
        let with =
            Asked { base_tokens: Some(4), sink_tokens: Some(1), keep_sinks: Some(true), ..asked(&large, Some(&small)) };
        let (catalog_kept, names) = Catalog::new(&[with]).unwrap();
        assert_eq!(names, ["large-KVP-small-m4-s1kept"]);
        assert_eq!(catalog_kept.pair(&names[0]).unwrap().own, kept);
        let shared = catalog.pair("large-KVP-S9-m7").unwrap();
        assert_eq!((shared.base.as_str(), shared.aux, shared.layout.shared), ("large", None, Some(9)));
        assert_eq!(shared.own, OwnTokens { last: 7, first: 0, kept: false });
        // Of one network and one depth, whatever the base reads itself, there is one predictor; others have others.
        let key = |name: &str| catalog.predictor_key(name).unwrap();
        assert_eq!(key("large-KVP-S9-m7"), key("large-KVP-S9-s1"));
        assert_ne!(key("large-KVP-S9"), key("large-KVP-S8"));
        assert_ne!(key("large-KVP-S9"), key("large-KVP-S9own"));
        assert_eq!(key("OE1.1B-KVP-S19own-m15-s1"), "OE1.1B-KVP-S19own");
        assert!(catalog.pair("large-KVP-S24").is_err() && catalog.pair("other-KVP-S2").is_err());

        // A predictor without an auxiliary, as `ttft synth --init own` writes it.
        let to = dir.path().join("predictor");
        let config = catalog.network("large").unwrap();
        let layout = Layout::shared(config.layers.len(), 5, Input::Own);
        let spec = Spec::custom_predictor("p", config, None, layout.clone(), DType::F32, 0);
        spec.make(&to, &|_, _| ()).unwrap();
        let (catalog, names) = Catalog::new(&[Asked { predictor: Some(to), ..asked(&large, None) }]).unwrap();
        assert_eq!(names, ["large-KVP-shared"]);
        assert_eq!(catalog.pair(&names[0]).unwrap().layout, layout);
        assert_eq!(catalog.pair("large-KVP-shared-m3").unwrap().own.last, 3);
    }

    /// Token pruning of any network, of one's own pairs by their auxiliary, and asked for in place of KV prediction.
    #[test]
    fn prunings_of_ones_own_networks() {
        let dir = tempfile::tempdir().unwrap();
        let (large, small) = (folder(dir.path(), "large", "SmolLM2-1.7B"), folder(dir.path(), "small", "SmolLM2-360M"));
        let (catalog, _) = Catalog::new(&[asked(&large, Some(&small))]).unwrap();
        let of = |name: &str| catalog.pruned(name).map(|p| (p.base, p.aux, p.pruning.to_string()));
        let (base, aux) = ("large".to_owned(), Some("small".to_owned()));
        for plain in ["RP-0.50", "L0.75-0.10", "GemFilter-23-64"] {
            assert_eq!(of(&format!("large-{plain}")).unwrap(), (base.clone(), None, plain.into()));
        }
        let spec = "SpecPrefill-0.30-a4-c16-p5";
        assert_eq!(of(&format!("large-KVP-small-{spec}")).unwrap(), (base.clone(), aux.clone(), spec.into()));
        for (bad, word) in [
            ("large-GemFilter-24-64", "0 to 23"),
            ("large-SpecPrefill-0.40", "auxiliary"),
            ("large-KVP-small-RP-0.50", "auxiliary"),
            ("other-RP-0.50", "other"),
            ("large", "large"),
        ] {
            let e = format!("{:#}", of(bad).unwrap_err());
            assert!(e.contains(word), "{bad}: {e}");
        }
        // What chooses tokens predicts nothing, so that nothing stands in for a predictor.
        let prune = |base, aux, pruning: &str| Asked { prune: Some(pruning.parse().unwrap()), ..asked(base, aux) };
        let all = [prune(&large, Some(&small), spec), prune(&large, None, "SP-0.50")];
        let (catalog, names) = Catalog::new(&all).unwrap();
        assert_eq!(names, [format!("large-small-{spec}"), "large-SP-0.50".into()]);
        let p = catalog.pruned(&names[0]).unwrap();
        assert_eq!((p.base, p.aux, catalog.notes(true).len(), catalog.stand_ins().len()), (base, aux, 2, 2));
        assert_eq!(catalog.pruned(&names[1]).unwrap().aux, None);
        let error = |a: Asked| format!("{:#}", Catalog::new(&[a]).unwrap_err());
        let qwen = folder(dir.path(), "qwen", "Qwen3-0.6B");
        for (a, word) in [
            (prune(&large, Some(&qwen), spec), "vocabularies differ"),
            (prune(&large, None, spec), "give one"),
            (prune(&large, Some(&small), "SP-0.50"), "no auxiliary"),
            (Asked { base_tokens: Some(2), ..prune(&large, Some(&small), spec) }, "base_tokens"),
            (Asked { name: Some("x".into()), ..prune(&large, None, "SP-0.50") }, "name"),
            (Asked { name: Some("OE1.1B".into()), ..prune(&large, Some(&small), spec) }, "another system"),
        ] {
            let e = error(a);
            assert!(e.contains(word), "no '{word}' in: {e}");
        }
    }

    #[test]
    fn equal_configurations_share_their_weights_wherever_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        let key = |name: &str, like: &str| {
            let (catalog, names) = Catalog::new(&[asked(&folder(dir.path(), name, like), None)]).unwrap();
            catalog.key(&names[0])
        };
        assert_eq!(key("x", "SmolLM2-135M"), key("y", "SmolLM2-135M"));
        assert_ne!(key("x", "SmolLM2-135M"), key("z", "SmolLM2-360M"));
        assert_eq!(Catalog::default().key("OE270M"), "OE270M");
    }

    #[test]
    fn what_is_no_pair_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (small, large) = (folder(dir.path(), "small", "SmolLM2-135M"), folder(dir.path(), "large", "SmolLM2-1.7B"));
        let error = |a: Asked| format!("{:#}", Catalog::new(&[a]).unwrap_err());
        let says = |error: String, words: &[&str]| {
            words.iter().for_each(|w| assert!(error.contains(w), "no '{w}' in: {error}"));
        };
        let qwen = folder(dir.path(), "qwen", "Qwen3-0.6B");
        says(error(asked(&large, Some(&qwen))), &["vocabularies differ", "large has 49152", "qwen has 151936"]);
        says(error(asked(Path::new("OE7B"), None)), &["base", "OE7B", "no folder", "OE1.1B"]);
        says(error(asked(dir.path(), None)), &["config.json"]);
        says(error(Asked { name: Some("a b".into()), ..asked(&large, Some(&small)) }), &["name", "a b"]);
        says(error(Asked { name: Some("OE270M".into()), ..asked(&large, Some(&small)) }), &["name", "OE270M"]);
        says(error(Asked { predictor: Some("x".into()), ..asked(&large, None) }), &["predictor", "x/config.json"]);
        says(error(Asked { base_tokens: Some(2), ..asked(&large, None) }), &["base_tokens", "a network alone"]);
        says(error(Asked { keep_sinks: Some(true), ..asked(&large, Some(&small)) }), &["keep_sinks", "sink_tokens"]);
        says(error(Asked { base_tokens: Some(0), ..asked(&large, Some(&small)) }), &["base_tokens", "1 or more"]);
        let nowhere = Asked { predictor: Some(dir.path().join("x")), ..asked(&large, Some(&small)) };
        says(error(nowhere), &["x/config.json", "predictor"]);
        // Half of a download is no configuration alone.
        fs::write(small.join("model-00001-of-00002.safetensors"), "x").unwrap();
        says(error(asked(&large, Some(&small))), &["aux", "model.safetensors"]);
    }
}
