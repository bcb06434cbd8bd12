//! What runs: loaded networks, or their shapes alone.

use std::sync::Arc;

use ttft_kernels::DType;

use crate::{
    config::{NetworkConfig, TensorSpec},
    error::Result,
    kv_prediction::{KvPrediction, predictor::Predictor},
    network::Network,
    pruning::{Pruned, Pruning},
    zoo,
};

/// What runs.
#[derive(Clone, Debug)]
pub enum System {
    /// One network: full prefill.
    Network(Arc<Network>),
    /// KV prediction.
    KvPrediction(KvPrediction),
    /// One network on part of its tokens.
    Pruned(Pruned),
}

impl System {
    /// The network that decodes.
    pub fn base(&self) -> &Arc<Network> {
        match self {
            System::Network(n) => n,
            System::KvPrediction(s) => &s.base,
            System::Pruned(s) => &s.base,
        }
    }
}

/// A system as its shapes.
#[derive(Clone, Debug)]
pub struct CostSystem {
    /// The network that answers.
    pub base: NetworkConfig,
    /// The auxiliary and the layer map, of KV prediction.
    pub pair: Option<(NetworkConfig, Vec<usize>)>,
    /// On which tokens it works, if not on all.
    pub pruning: Option<Pruning>,
    /// Storage type of the weights.
    pub weights: DType,
}

impl CostSystem {
    /// The shapes of a loaded system.
    pub fn of(system: &System) -> CostSystem {
        let base = system.base();
        let (pair, pruning) = match system {
            System::Network(_) => (None, None),
            System::KvPrediction(s) => (Some((s.aux.config().clone(), s.predictor.layer_map().to_vec())), None),
            System::Pruned(s) => (None, Some(s.pruning)),
        };
        CostSystem { base: base.config().clone(), pair, pruning, weights: base.weight_dtype() }
    }

    /// The shapes of one network on its own.
    pub fn network(base: NetworkConfig, weights: DType) -> CostSystem {
        CostSystem { base, pair: None, pruning: None, weights }
    }

    /// The shapes of a network, pair or pruned network of the zoo.
    ///
    /// # Errors
    /// [`crate::Error::UnknownName`].
    pub fn named(name: &str, weights: DType) -> Result<CostSystem> {
        if let Ok(p) = zoo::pair(name) {
            let pair = Some((zoo::network(p.aux)?, p.layer_map));
            return Ok(CostSystem { pair, ..Self::network(zoo::network(p.base)?, weights) });
        }
        if let Ok((base, pruning)) = zoo::token_pruned(name) {
            return Ok(CostSystem { pruning: Some(pruning), ..Self::network(zoo::network(base)?, weights) });
        }
        Ok(Self::network(zoo::network(name)?, weights))
    }

    /// Parameters of the predictor; 0 without one.
    pub fn predictor_params(&self) -> u64 {
        let Some((aux, map)) = &self.pair else { return 0 };
        Predictor::tensors(&self.base, aux, map).iter().map(TensorSpec::elements).sum()
    }
}
