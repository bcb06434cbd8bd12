//! The systems that are judged, and what they are.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use ttft_kernels::DType;
use ttft_models::{Network, Precision, System};
use ttft_reports::schema::{Identity, Kind, Prediction};

use crate::{
    catalog::{Asked, Catalog},
    console,
    scenario::{self, Arm, Scenario},
    text::Text,
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
    /// Another network than the base that chooses tokens, if one does.
    pub aux: Option<Identity>,
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
    /// The type of activations and caches that the scenario says.
    pub precision: Option<Precision>,
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
        let precision = s.precision;
        let systems = Systems::load(s.catalog.clone(), arms, Weights::new(weights, s.dtype, s.seed, Size::Real)?)?;
        Ok(Systems { precision, ..systems })
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
        let weights = weights.of(catalog);
        // Before minutes are spent on weights.
        Text::file(&weights.network_at(&base_name)?)?;
        weights.make(&arms)?;
        let (identities, predictions) = weights.identities(&arms)?;
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
            let predictor = weights.prediction(arm)?;
            let dir = predictor.as_ref().map(|(dir, ..)| dir.clone());
            let system = arm.assemble(of_arm, predictor).with_context(|| arm.system.clone())?;
            let prediction = predictions.iter().find(|p| p.system == arm.system).map(|p| p.prediction.clone());
            let chooses = arm.aux.as_ref().filter(|_| prediction.is_none());
            let aux = chooses.and_then(|aux| identities.iter().find(|i| i.name == *aux)).cloned();
            judged.push(Judged { name: arm.system.clone(), kind: arm.kind, system, prediction, aux, predictor: dir });
        }
        let identity = identities.into_iter().find(|i| i.name == base_name).context("a base has an identity")?;
        Ok(Systems { base, dir, identity, judged, precision: None })
    }
}
