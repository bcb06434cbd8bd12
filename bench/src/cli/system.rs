use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use ttft_kernels::DType;
use ttft_models::{Network, System, kv_prediction::layout::Order};
use ttft_reports::format::bytes;

use crate::{
    catalog::{Asked, Catalog},
    console, scenario,
    weights::{Size, Weights},
};

/// A system that a command line asks for, before it is loaded.
pub struct Choice {
    catalog: Catalog,
    name: String,
    order: Order,
}

impl Choice {
    /// What is asked for, its folders looked at.
    ///
    /// # Errors
    /// As [`Catalog::new`].
    pub fn new(asked: Asked) -> Result<Choice> {
        let (catalog, mut names) = Catalog::new(&[asked])?;
        let name = names.pop().context("a system that is asked for has a name")?;
        Ok(Choice { catalog, name, order: Order::InTurn })
    }

    /// The same with the layers of a KV prediction in this order.
    pub fn ordered(self, order: Order) -> Choice {
        Choice { order, ..self }
    }

    /// The system's name, without its order.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What stands in for weights and predictors that are not there, in words.
    pub fn stand_ins(&self) -> Vec<String> {
        self.catalog.stand_ins()
    }

    /// Loads it; what is not there is made in `weights`.
    ///
    /// # Errors
    /// As [`Weights::make`]; what loading says.
    pub fn load(&self, weights: Option<PathBuf>) -> Result<System> {
        let Choice { catalog, name, order } = self;
        // Weights of unlike types run side by side; what is made beside them has the usual one.
        let dtype = catalog.dtype().ok().flatten().unwrap_or(DType::BF16);
        let made = Weights::new(weights, dtype, 0, Size::Real)?.of(catalog.clone());
        let arms = scenario::arms(catalog, None, &[name])?;
        let arm = arms.iter().find(|arm| arm.system == *name).context("a system stands among its arms")?;
        let load = |name: &str| Ok(Arc::new(Network::load(&made.network_dir(name)?)?));
        let networks = arm.networks().into_iter().map(load).collect::<Result<Vec<_>>>()?;
        let predictor = made.prediction(arm)?.map(|(dir, own, _)| (dir, own, *order));
        let system = arm.assemble(networks, predictor)?;
        let copied = copied_bytes(&system);
        if copied > 0 {
            console::note(format_args!(
                "{} of the weights lie at odd places of their file and were copied: start-up takes longer and more memory; a \
                 file saved again with an aligned header is used in place",
                bytes(copied)
            ));
        }
        Ok(system)
    }
}

/// Bytes of weights that had to be copied, as they lie at odd places of their file.
pub fn copied_bytes(system: &System) -> u64 {
    let predictor = match system {
        System::KvPrediction(s) => s.predictor.copied_bytes(),
        System::Network(_) | System::Pruned(_) => 0,
    };
    system.networks().map(|n| n.copied_bytes()).sum::<u64>() + predictor
}
