//! The systems that are judged, and what they are.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use ttft_kernels::DType;
use ttft_models::{KvPrediction, Network, System, kv_prediction::layout::Input};
use ttft_reports::schema::{self, Identity, Kind, Prediction, Source};

use crate::{
    catalog::{Asked, Catalog},
    console, identity,
    scenario::{self, Arm, Scenario},
    weights::{Size, Weights},
};

/// A system that is judged.
pub struct Judged {
    /// Its name, as in records.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// What runs.
    pub system: System,
    /// What it predicts, if it does.
    pub prediction: Option<Prediction>,
    /// The folder of its predictor, if it has one.
    pub predictor: Option<PathBuf>,
}

impl Judged {
    /// First tokens that its base reads itself.
    pub fn sinks(&self) -> usize {
        match &self.system {
            System::KvPrediction(s) => s.own.first,
            _ => 0,
        }
    }
}

/// Systems of one base.
pub struct Systems {
    /// The base.
    pub base: Arc<Network>,
    /// Its folder, with the tokenizer.
    pub dir: PathBuf,
    /// What it is.
    pub identity: Identity,
    /// The systems.
    pub judged: Vec<Judged>,
}

impl Systems {
    /// Those that are asked for one by one: a base, and each predictor.
    ///
    /// # Errors
    /// As [`Catalog::new`].
    pub fn asked(asked: &[Asked], weights: Option<PathBuf>) -> Result<Systems> {
        let (catalog, names) = Catalog::new(asked)?;
        let dtype = catalog.dtype()?.unwrap_or(DType::BF16);
        let arms = scenario::arms(&catalog, None, &names)?;
        Systems::load(catalog, arms, Weights::new(weights, dtype, 0, Size::Real)?)
    }

    /// Those of a scenario.
    ///
    /// # Errors
    /// As [`Scenario::load`].
    pub fn of_scenario(name: &str, weights: Option<PathBuf>) -> Result<Systems> {
        let s = Scenario::load(name)?;
        let arms = s.arms()?;
        Systems::load(s.catalog.clone(), arms, Weights::new(weights, s.dtype, s.seed, Size::Real)?)
    }

    fn load(catalog: Catalog, mut arms: Vec<Arm>, weights: Weights) -> Result<Systems> {
        catalog.stand_ins().iter().for_each(console::note);
        arms.retain(|arm| !matches!(arm.kind, Kind::Base | Kind::Aux) && arm.copy == 1);
        let Some(first) = arms.first() else {
            bail!("no system to judge: give a --predictor, or an --aux, or a scenario with a pair");
        };
        let base_name = first.base.clone();
        if let Some(other) = arms.iter().find(|arm| arm.base != base_name) {
            bail!(
                "{} has the base {}, and {} has {base_name}: what is compared must have one base; judge them one by one",
                other.system,
                other.base,
                first.system
            );
        }
        let weights = weights.of(catalog.clone());
        let mut networks: BTreeMap<String, (Arc<Network>, PathBuf)> = BTreeMap::new();
        let mut network = |name: &str| -> Result<(Arc<Network>, PathBuf)> {
            if let Some(known) = networks.get(name) {
                return Ok(known.clone());
            }
            let dir = weights.network_dir(name)?;
            let loaded = (Arc::new(Network::load(&dir)?), dir);
            networks.insert(name.to_owned(), loaded.clone());
            Ok(loaded)
        };
        let (base, dir) = network(&base_name)?;
        let mut judged = Vec::new();
        for arm in &arms {
            ensure!(
                arm.kind != Kind::LazyPruned,
                "{}: each token of LazyLLM chooses anew what it attends to, so its answers cannot be scored in one pass: leave it \
                 out",
                arm.system
            );
            let of_arm = arm.networks().into_iter().map(|name| Ok(network(name)?.0)).collect::<Result<Vec<_>>>()?;
            let predictor = match arm.kind {
                Kind::Kvp => Some((weights.predictor_dir(&arm.system)?, catalog.pair(&arm.system)?.own)),
                _ => None,
            };
            let dir = predictor.as_ref().map(|(dir, _)| dir.clone());
            let system = arm.assemble(of_arm, predictor).with_context(|| arm.system.clone())?;
            let prediction = match (&system, &dir) {
                (System::KvPrediction(s), Some(dir)) => {
                    let given = catalog.pair(&arm.system)?.predictor.is_some();
                    let aux = arm.aux.as_ref().map(|aux| {
                        let (network, dir) = network(aux)?;
                        identity::of_network(aux, &network, &dir, catalog.weights(aux).is_none())
                    });
                    let predictor = identity::of_predictor(dir, !given)?;
                    Some(prediction(s, aux.transpose()?, predictor))
                }
                _ => None,
            };
            judged.push(Judged { name: arm.system.clone(), kind: arm.kind, system, prediction, predictor: dir });
        }
        let identity = identity::of_network(&base_name, &base, &dir, catalog.weights(&base_name).is_none())?;
        Ok(Systems { base, dir, identity, judged })
    }
}

/// A KV prediction in the words of the records.
fn prediction(s: &KvPrediction, aux: Option<Identity>, predictor: Identity) -> Prediction {
    let layout = s.predictor.layout();
    let reads = |input| layout.predicted().any(|(_, o)| o.input == input);
    let input = if reads(Input::KeysAndValues) {
        schema::Input::Kv
    } else if reads(Input::Hidden) {
        schema::Input::Hidden
    } else {
        schema::Input::Own
    };
    Prediction {
        source: if layout.shared.is_some() { Source::SharedLayers } else { Source::Auxiliary },
        aux,
        shared_layers: layout.shared.map(|k| k as u32),
        input: Some(input),
        predictor: (input != schema::Input::Own).then_some(predictor),
        base_tokens: s.own.last as u32,
        sink_tokens: s.own.first as u32,
    }
}
