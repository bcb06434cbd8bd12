//! What runs: loaded networks, or their shapes alone.

use std::sync::Arc;

use ttft_kernels::DType;

use crate::{
    config::{NetworkConfig, TensorSpec},
    error::Result,
    kv_prediction::{
        self, KvPrediction,
        layout::{Order, OwnTokens},
    },
    network::Network,
    pipeline,
    pruning::{Pruned, Pruning},
    spec::RunSpec,
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

    /// Its networks, the base first.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        let aux = match self {
            System::Network(_) => None,
            System::KvPrediction(s) => s.aux.as_ref(),
            System::Pruned(s) => s.aux.as_ref(),
        };
        [self.base()].into_iter().chain(aux)
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
    /// The network that chooses these tokens, if that is another.
    pub chooser: Option<NetworkConfig>,
    /// Storage type of the networks' weights.
    pub weights: DType,
    /// Storage type of the predictor's maps.
    pub maps: DType,
}

impl CostSystem {
    /// The shapes of a loaded system.
    pub fn of(system: &System) -> CostSystem {
        let base = system.base();
        let alone = CostSystem::network(base.config().clone(), base.weight_dtype());
        let config = |network: &Arc<Network>| network.config().clone();
        match system {
            System::Network(_) => alone,
            System::KvPrediction(s) => {
                let (aux, layout) = (s.aux.as_ref().map(config), s.predictor.layout().clone());
                let filling = s.control.as_ref().map(|c| c.filling());
                // Entries of first tokens are kept in the place of predicted ones, of which a control has none.
                let own = OwnTokens { kept: s.own.kept && filling.is_none(), ..s.own };
                let prediction = kv_prediction::Shape { aux, layout, own, order: s.order, filling };
                let maps = s.predictor.weight_dtype().unwrap_or(alone.weights);
                CostSystem { prediction: Some(prediction), maps, ..alone }
            }
            System::Pruned(s) => CostSystem { pruning: Some(s.pruning), chooser: s.aux.as_ref().map(config), ..alone },
        }
    }

    /// The shapes of one network on its own.
    pub fn network(base: NetworkConfig, weights: DType) -> CostSystem {
        CostSystem { base, prediction: None, pruning: None, chooser: None, weights, maps: weights }
    }

    /// The shapes of a network, pair or pruned network of the zoo.
    ///
    /// # Errors
    /// [`crate::Error::UnknownName`].
    pub fn named(name: &str, weights: DType) -> Result<CostSystem> {
        if let Ok(p) = zoo::prediction(name) {
            let aux = p.aux.map(zoo::network).transpose()?;
            let prediction =
                Some(kv_prediction::Shape { aux, layout: p.layout, own: p.own, order: p.order, filling: None });
            return Ok(CostSystem { prediction, ..Self::network(zoo::network(p.base)?, weights) });
        }
        if let Ok(p) = zoo::token_pruned(name) {
            let (pruning, chooser) = (Some(p.pruning), p.aux.map(zoo::network).transpose()?);
            return Ok(CostSystem { pruning, chooser, ..Self::network(zoo::network(p.base)?, weights) });
        }
        Ok(Self::network(zoo::network(name)?, weights))
    }

    /// Whether the base's layers run in turn after the auxiliary's in this run, though the pipelined order was asked for: at this
    /// size it would not pay.
    pub fn falls_back(&self, spec: &RunSpec) -> bool {
        self.prediction.as_ref().is_some_and(|p| p.order == Order::Pipelined && !pipeline::pays(p, spec))
    }

    /// The network besides the base, if there is one.
    pub fn aux(&self) -> Option<&NetworkConfig> {
        self.prediction.as_ref().and_then(|p| p.aux.as_ref()).or(self.chooser.as_ref())
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
