//! What runs: loaded networks, or their shapes alone.

use std::sync::Arc;

use ttft_kernels::DType;

use crate::{
    config::{NetworkConfig, TensorSpec},
    error::Result,
    kv_prediction::{self, KvPrediction},
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
    /// What reads the prompt in its place and what is predicted from that, of KV prediction.
    pub prediction: Option<kv_prediction::Shape>,
    /// On which tokens it works, if not on all.
    pub pruning: Option<Pruning>,
    /// Storage type of the weights.
    pub weights: DType,
}

impl CostSystem {
    /// The shapes of a loaded system.
    pub fn of(system: &System) -> CostSystem {
        let base = system.base();
        let (prediction, pruning) = match system {
            System::Network(_) => (None, None),
            System::KvPrediction(s) => {
                let aux = s.aux.as_ref().map(|aux| aux.config().clone());
                (
                    Some(kv_prediction::Shape {
                        aux,
                        layout: s.predictor.layout().clone(),
                        own: s.own,
                        order: s.order,
                    }),
                    None,
                )
            }
            System::Pruned(s) => (None, Some(s.pruning)),
        };
        CostSystem { base: base.config().clone(), prediction, pruning, weights: base.weight_dtype() }
    }

    /// The shapes of one network on its own.
    pub fn network(base: NetworkConfig, weights: DType) -> CostSystem {
        CostSystem { base, prediction: None, pruning: None, weights }
    }

    /// The shapes of a network, pair or pruned network of the zoo.
    ///
    /// # Errors
    /// [`crate::Error::UnknownName`].
    pub fn named(name: &str, weights: DType) -> Result<CostSystem> {
        if let Ok(p) = zoo::prediction(name) {
            let aux = p.aux.map(zoo::network).transpose()?;
            let prediction = Some(kv_prediction::Shape { aux, layout: p.layout, own: p.own, order: p.order });
            return Ok(CostSystem { prediction, ..Self::network(zoo::network(p.base)?, weights) });
        }
        if let Ok((base, pruning)) = zoo::token_pruned(name) {
            return Ok(CostSystem { pruning: Some(pruning), ..Self::network(zoo::network(base)?, weights) });
        }
        Ok(Self::network(zoo::network(name)?, weights))
    }

    /// Parameters of the predictor; 0 without one.
    pub fn predictor_params(&self) -> u64 {
        self.predictor_tensors().iter().map(TensorSpec::elements).sum()
    }

    pub(crate) fn predictor_tensors(&self) -> Vec<TensorSpec> {
        let Some(p) = &self.prediction else { return Vec::new() };
        p.layout.tensors(&self.base, p.layout.source(&self.base, p.aux.as_ref()))
    }
}
