//! Synthetic weights: made once, kept, and verified before they are trusted; and weights that lie in a folder already.
//!
//! A network is kept by name, type and seed, and shared by every pair it is part of; one that is not of the zoo by a hash of
//! its configuration.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use ttft_kernels::DType;
use ttft_models::{
    Network, NetworkConfig,
    cost::CostSystem,
    kv_prediction::{
        Shape,
        layout::{Input, Layout, Order, OwnTokens},
    },
    synth::{Made, Spec},
};
use ttft_reports::{
    format::bytes,
    schema::{self, Identity, Kind, Named, Prediction, Source},
};

use crate::{
    catalog::{Catalog, Pair},
    console,
    gate::Depth,
    identity, output,
    scenario::Arm,
};

/// Whether the zoo's real networks are used, or tiny ones of the same structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// As in the zoo.
    Real,
    /// The zoo's layers and layer maps, at a fraction of the width: for smoke runs.
    Tiny,
}

/// The cache of weights.
#[derive(Clone, Debug)]
pub struct Weights {
    root: PathBuf,
    dtype: DType,
    seed: u64,
    size: Size,
    catalog: Catalog,
}

impl Weights {
    /// The cache in `root`, or in the target folder.
    ///
    /// # Errors
    /// There is no place for it.
    pub fn new(root: Option<PathBuf>, dtype: DType, seed: u64, size: Size) -> Result<Weights> {
        let root = match root {
            Some(root) => root,
            None => output::target_dir()?.join("ttft-weights"),
        };
        Ok(Weights { root, dtype, seed, size, catalog: Catalog::default() })
    }

    /// The same place, for the networks of a catalog.
    pub fn of(self, catalog: Catalog) -> Weights {
        Weights { catalog, ..self }
    }

    /// The folder that holds all of them.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether the networks are the real ones.
    pub fn size(&self) -> Size {
        self.size
    }

    /// A message without the place that the weights lie in, for records, which are shared.
    pub fn without_root(&self, message: &str) -> String {
        if !self.root.is_absolute() {
            return message.to_owned();
        }
        let [inside, root] = [self.root.join(""), self.root.clone()].map(|p| p.display().to_string());
        message.replace(&inside, "").replace(&root, "the folder of the weights")
    }

    fn config(&self, name: &str) -> Result<NetworkConfig> {
        let mut c = self.catalog.network(name)?;
        if self.size == Size::Tiny {
            c.vocab = 512;
            c.dim /= 32;
            c.head_dim = 8;
            for layer in &mut c.layers {
                let groups = layer.query_heads / layer.kv_heads;
                layer.kv_heads = layer.kv_heads.div_ceil(4);
                layer.query_heads = layer.kv_heads * groups;
                layer.ffn = (layer.ffn / 32).next_multiple_of(8);
                layer.ffn_multiplier = layer.ffn as f64 / c.dim as f64;
            }
            c.ffn_dim_divisor = 8;
        }
        Ok(c)
    }

    /// What a network's folder should hold, and where it is.
    fn network(&self, name: &str) -> Result<Folder> {
        let key = self.catalog.key(name);
        let spec = Spec::custom(&key, self.config(name)?, self.dtype, self.seed);
        Ok(match self.catalog.weights(name).filter(|_| self.size == Size::Real) {
            Some(own) => Folder { dir: own.to_owned(), spec, own: true },
            None => Folder { dir: self.folder(&key), spec, own: false },
        })
    }

    /// As [`Weights::network`], of a predictor.
    fn predictor(&self, name: &str) -> Result<Folder> {
        let (p, key) = (self.catalog.pair(name)?, self.catalog.predictor_key(name)?);
        let (base, aux) = (self.config(&p.base)?, p.aux.map(|aux| self.config(&aux)).transpose()?);
        let spec = Spec::custom_predictor(&key, base, aux, p.layout, self.dtype, self.seed);
        Ok(match p.predictor.filter(|_| self.size == Size::Real) {
            Some((dir, _)) => Folder { dir, spec, own: true },
            None => Folder { dir: self.folder(&format!("{key}-predictor")), spec, own: false },
        })
    }

    fn folder(&self, name: &str) -> PathBuf {
        let size = if self.size == Size::Tiny { "tiny-" } else { "" };
        self.root.join(format!("{size}{name}-{}-seed{}", self.dtype, self.seed))
    }

    /// Every folder that these arms need, once.
    fn folders<'a>(&self, arms: impl IntoIterator<Item = &'a Arm>) -> Result<Vec<Folder>> {
        let mut out = BTreeMap::new();
        for arm in arms {
            let networks = arm.networks().into_iter().map(|network| self.network(network));
            let predictor = (arm.kind == Kind::Kvp).then(|| self.predictor(&arm.system));
            for folder in networks.chain(predictor) {
                let folder = folder?;
                out.insert(folder.dir.clone(), folder);
            }
        }
        Ok(out.into_values().collect())
    }

    /// Bytes of the weights of these arms, each network once.
    ///
    /// # Errors
    /// A name that is not in the zoo.
    pub fn bytes<'a>(&self, arms: impl IntoIterator<Item = &'a Arm>) -> Result<u64> {
        Ok(self.folders(arms)?.iter().map(|f| f.spec.bytes()).fold(0, u64::saturating_add))
    }

    /// What these arms need and is not there or not right.
    fn missing(&self, arms: &[Arm]) -> Result<Vec<Folder>> {
        let mut missing = self.folders(arms)?;
        missing.retain(|f| !f.own && f.spec.verify(&f.dir).is_err());
        Ok(missing)
    }

    /// What making the weights of these arms takes of the disk, in words.
    ///
    /// # Errors
    /// A name that is not in the zoo.
    pub fn disk(&self, arms: &[Arm]) -> Result<String> {
        if arms.is_empty() {
            return Ok("no weights needed".into());
        }
        let need: u64 = self.missing(arms)?.iter().map(|f| f.spec.bytes()).sum();
        let all = bytes(self.bytes(arms)?);
        if need == 0 {
            return Ok(format!("{all} of weights, all there"));
        }
        let root = std::path::absolute(&self.root)?;
        let there = root.ancestors().find(|d| d.exists()).unwrap_or(&root);
        let free = fs4::available_space(there).ok();
        let advice = match free.is_some_and(|free| need > free) {
            true => ": too little, so the run will fail; make room, or name another place (TTFT_WEIGHTS or --weights)",
            false => "",
        };
        let (need, free) = (bytes(need), free.map_or("unknown".into(), bytes));
        Ok(format!("{need} of {all} of weights to be made in {} ({free} free){advice}", output::shown(&self.root)))
    }

    /// Makes what these arms need and is not there or not right.
    ///
    /// # Errors
    /// Too little disk space, a folder that is not ours, what the file system says.
    pub fn make(&self, arms: &[Arm]) -> Result<()> {
        self.missing(arms)?.iter().try_for_each(Folder::make)
    }

    /// The verified folder of a network.
    ///
    /// # Errors
    /// As [`Weights::make`].
    pub fn network_dir(&self, name: &str) -> Result<PathBuf> {
        let folder = self.network(name)?;
        folder.make()?;
        Ok(folder.dir)
    }

    /// Where a network's folder is, or will be.
    ///
    /// # Errors
    /// An unknown name.
    pub fn network_at(&self, name: &str) -> Result<PathBuf> {
        Ok(self.network(name)?.dir)
    }

    /// The verified folder of a pair's predictor.
    ///
    /// # Errors
    /// As [`Weights::make`].
    pub fn predictor_dir(&self, pair: &str) -> Result<PathBuf> {
        let folder = self.predictor(pair)?;
        folder.make()?;
        Ok(folder.dir)
    }

    /// The verified folder of an arm's predictor, what its base reads itself, and the order of its layers, if it is a KV prediction.
    ///
    /// # Errors
    /// As [`Weights::make`].
    pub fn prediction(&self, arm: &Arm) -> Result<Option<(PathBuf, OwnTokens, Order)>> {
        let of = || {
            let pair = self.catalog.pair(&arm.system)?;
            Ok((self.predictor_dir(&arm.system)?, pair.own, pair.order))
        };
        (arm.kind == Kind::Kvp).then(of).transpose()
    }

    /// Which networks and KV predictions these arms are, each once: by the bytes of weights that lie in a folder, which are
    /// read for it, and of synthetic ones by what they are drawn from.
    ///
    /// # Errors
    /// A name that is not in the zoo; a file that cannot be read.
    pub fn identities(&self, arms: &[Arm]) -> Result<(Vec<Identity>, Vec<Named>)> {
        let (mut networks, mut named): (BTreeMap<String, Identity>, Vec<Named>) = Default::default();
        for arm in arms {
            for name in arm.networks() {
                if !networks.contains_key(name) {
                    networks.insert(name.to_owned(), self.network(name)?.identity(name)?);
                }
            }
            if arm.kind != Kind::Kvp || named.iter().any(|n| n.system == arm.system) {
                continue;
            }
            let Pair { aux, layout, own, .. } = self.catalog.pair(&arm.system)?;
            let input = record_input(&layout);
            let folder = self.predictor(&arm.system)?;
            let predictor = match input {
                schema::Input::Own => None,
                _ => Some(folder.identity(&folder.dir.file_name().unwrap_or_default().to_string_lossy())?),
            };
            let prediction = Prediction {
                source: if layout.shared.is_some() { Source::SharedLayers } else { Source::Auxiliary },
                aux: aux.and_then(|aux| networks.get(&aux).cloned()),
                shared_layers: layout.shared.and_then(|k| k.try_into().ok()),
                input: Some(input),
                predictor,
                base_tokens: own.last.try_into()?,
                sink_tokens: own.first.try_into()?,
            };
            named.push(Named { system: arm.system.clone(), prediction });
        }
        Ok((networks.into_values().collect(), named))
    }

    /// The shapes of an arm, for counting.
    ///
    /// # Errors
    /// A name that is not in the zoo.
    pub fn cost(&self, arm: &Arm) -> Result<CostSystem> {
        let mut maps = self.dtype;
        let prediction = match arm.kind {
            Kind::Kvp => {
                let p = self.catalog.pair(&arm.system)?;
                if let Some((_, dtype)) = p.predictor.filter(|_| self.size == Size::Real) {
                    maps = dtype;
                }
                let aux = p.aux.map(|aux| self.config(&aux)).transpose()?;
                Some(Shape { aux, layout: p.layout, own: p.own, order: p.order, filling: None })
            }
            _ => None,
        };
        let base = self.config(arm.networks()[0])?;
        let pruning = arm.pruning();
        let chooser = arm.aux.as_ref().filter(|_| pruning.is_some()).map(|aux| self.config(aux)).transpose()?;
        Ok(CostSystem { base, prediction, pruning, chooser, weights: self.dtype, maps })
    }

    /// How deep a prompt goes in an arm.
    ///
    /// # Errors
    /// A name that is not in the zoo.
    pub fn depth(&self, arm: &Arm) -> Result<Depth> {
        let networks = arm.networks().into_iter().map(|n| self.config(n)).collect::<Result<Vec<_>>>()?;
        let widest = |c: &NetworkConfig| c.layers.iter().map(|l| l.ffn).max().unwrap_or(0).max(c.dim);
        Ok(Depth {
            // A prompt passes the layers of both networks of a pair, and those of a base once if some of them are shared.
            layers: networks.iter().map(|c| c.layers.len()).sum(),
            k: networks.iter().map(widest).max().unwrap_or(0),
        })
    }
}

/// A folder of weights.
#[derive(Debug)]
struct Folder {
    dir: PathBuf,
    /// Its shapes; and its values, unless it is the user's own.
    spec: Spec,
    /// It is only read.
    own: bool,
}

/// What the maps of a layout read, in the words of records.
fn record_input(layout: &Layout) -> schema::Input {
    let reads = |input| layout.predicted().any(|(_, origin)| origin.input == input);
    match (reads(Input::KeysAndValues), reads(Input::Hidden)) {
        (true, _) => schema::Input::Kv,
        (false, true) => schema::Input::Hidden,
        (false, false) => schema::Input::Own,
    }
}

impl Folder {
    /// What it holds, or is to hold.
    fn identity(&self, name: &str) -> Result<Identity> {
        if self.own {
            return match self.spec.network_config().is_some() {
                true => identity::of_network(name, &Network::load(&self.dir)?, &self.dir, false),
                false => identity::of_predictor(&self.dir, false),
            };
        }
        let [config, manifest] = self.spec.papers()?;
        let config = self.spec.network_config().map_or(config, |c| c.to_json("").to_string());
        Ok(Identity {
            name: name.to_owned(),
            config_sha256: Some(identity::sha256(config)),
            weights_sha256: Some(identity::sha256(manifest)),
            synthetic: true,
        })
    }

    /// Makes it what its specification says, unless it is the user's own.
    fn make(&self) -> Result<()> {
        if self.own { Ok(()) } else { make(&self.dir, &self.spec) }
    }
}

/// Makes one folder what its specification says, with progress.
fn make(dir: &Path, spec: &Spec) -> Result<()> {
    let bar = ProgressBar::new(spec.bytes());
    let style = "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} (left: {eta})";
    bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    bar.set_prefix(dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
    let made = spec.make(dir, &|done, _| bar.set_position(done));
    bar.finish_and_clear();
    let made = made.with_context(|| {
        format!("{}: cannot make the weights (TTFT_WEIGHTS or --weights names another place)", dir.display())
    })?;
    match made {
        Made::Reused => {}
        Made::Written => console::note(format_args!("weights: made {}", output::shown(dir))),
        Made::WrittenUnlocked => console::note(format_args!(
            "weights: made {}, on a file system without locks: start only one run at a time that makes weights there",
            output::shown(dir)
        )),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ttft_models::zoo;

    use super::*;

    #[test]
    fn pairs_share_their_networks_and_bad_folders_are_remade() {
        let dir = tempfile::tempdir().unwrap();
        let weights = Weights::new(Some(dir.path().to_owned()), DType::BF16, 3, Size::Tiny).unwrap();
        let kvp = |system: &str, aux: &str| Arm {
            kind: Kind::Kvp,
            system: system.into(),
            base: "OE1.1B".into(),
            aux: Some(aux.into()),
            copy: 1,
            start: Default::default(),
        };
        let arms = [kvp("OE1.1B-KVP-C-450M", "OE450M"), kvp("OE1.1B-KVP-C-270M", "OE270M")];
        // What they are is known before they are made, and is the same as what is read of their folders.
        let (networks, named) = weights.identities(&arms).unwrap();
        weights.make(&arms).unwrap();
        for identity in &networks {
            let dir = weights.network_dir(&identity.name).unwrap();
            let read = identity::of_network(&identity.name, &Network::load(&dir).unwrap(), &dir, true).unwrap();
            assert_eq!(*identity, read);
        }
        let prediction = &named[1].prediction;
        let predictor = identity::of_predictor(&weights.predictor_dir(&arms[1].system).unwrap(), true).unwrap();
        assert_eq!(prediction.predictor, Some(predictor));
        assert_eq!((networks.len(), named.len(), prediction.base_tokens, prediction.sink_tokens), (3, 2, 1, 0));
        assert_eq!(prediction.aux.as_ref().unwrap().name, "OE270M");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 5);
        let file = weights.network_dir("OE450M").unwrap().join("model.safetensors");
        let good = std::fs::read(&file).unwrap();
        std::fs::write(&file, &good[..good.len() - 1]).unwrap();
        weights.make(&arms).unwrap();
        assert!(std::fs::read(&file).unwrap() == good);
    }

    #[test]
    fn messages_can_do_without_the_folder() {
        let root = std::path::absolute("w").unwrap();
        let weights = Weights::new(Some(root.clone()), DType::F32, 0, Size::Real).unwrap();
        let message = format!("{}: b4/p59 in {}", weights.folder("OE270M").display(), root.display());
        assert_eq!(weights.without_root(&message), "OE270M-f32-seed0: b4/p59 in the folder of the weights");
        let relative = Weights::new(Some("w".into()), DType::F32, 0, Size::Real).unwrap();
        assert_eq!(relative.without_root("a new w/x"), "a new w/x");
    }

    #[test]
    fn tiny_networks_keep_their_structure() {
        let weights = Weights::new(Some("unused".into()), DType::F32, 0, Size::Tiny).unwrap();
        for name in zoo::NETWORKS {
            let (tiny, real) = (weights.config(name).unwrap(), zoo::network(name).unwrap());
            assert_eq!(tiny.layers.len(), real.layers.len());
            let groups = |c: &NetworkConfig| c.layers.iter().map(|l| l.query_heads / l.kv_heads).collect::<Vec<_>>();
            assert_eq!(groups(&tiny), groups(&real));
            assert!(tiny.params() < real.params() / 500, "{name}: {}", tiny.params());
        }
    }
}
