//! KV prediction: an auxiliary network reads the prompt, or the first layers of the base itself do; a predictor maps what they
//! leave to the base's cache; and the base reads a few tokens alone: the last, and maybe the first.

pub mod control;
pub mod layout;
pub mod likelihood;
pub mod predictor;

use std::{path::Path, sync::Arc};

use control::{Control, Filling};
use layout::{Layout, Order, OwnTokens};
use predictor::Predictor;

use crate::{
    arch::openelm::{CORENET_AUXILIARY, CORENET_BASE},
    config::NetworkConfig,
    error::Result,
    network::Network,
    weights::Tensors,
};

/// Base, auxiliary and predictor that belong together.
#[derive(Clone, Debug)]
pub struct KvPrediction {
    /// The network that answers.
    pub base: Arc<Network>,
    /// The network that reads the prompt, unless the base's own layers do.
    pub aux: Option<Arc<Network>>,
    /// From the one's cache to the other's.
    pub predictor: Arc<Predictor>,
    /// What the base reads itself.
    pub own: OwnTokens,
    /// When the base's layers run.
    pub order: Order,
    /// What stands where predictions would be, if this is a control.
    pub control: Option<Control>,
}

/// A KV prediction as its shapes.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// The auxiliary, if there is one.
    pub aux: Option<NetworkConfig>,
    /// What is predicted from where.
    pub layout: Layout,
    /// What the base reads itself.
    pub own: OwnTokens,
    /// When the base's layers run.
    pub order: Order,
    /// What stands where predictions would be, if this is a control.
    pub filling: Option<Filling>,
}

/// For each of `base` layers the one of `aux` that it is predicted from, by the rule of the paper's pairs: in order, each
/// auxiliary layer serves as many base layers as the others, the first `base mod aux` of them one more. Of a deeper auxiliary
/// the layers that are as far up as the base's.
pub fn layer_map(base: usize, aux: usize) -> Vec<usize> {
    if aux > base {
        return (1..=base).map(|i| (i * aux).div_ceil(base) - 1).collect();
    }
    (0..aux).flat_map(|j| std::iter::repeat_n(j, base / aux + usize::from(j < base % aux))).collect()
}

impl KvPrediction {
    /// Three folders.
    ///
    /// # Errors
    /// Those of [`Network::load`] and [`Predictor::load`].
    pub fn load(base: &Path, aux: &Path, predictor: &Path) -> Result<KvPrediction> {
        let (base, aux) = (Network::load(base)?, Network::load(aux)?);
        KvPrediction::new(Arc::new(base), Some(Arc::new(aux)), predictor)
    }

    /// Loaded networks, and the folder of their predictor. The base reads one token itself.
    ///
    /// # Errors
    /// Those of [`Predictor::load`].
    pub fn new(base: Arc<Network>, aux: Option<Arc<Network>>, predictor: &Path) -> Result<KvPrediction> {
        let predictor = Arc::new(Predictor::load(predictor, &base, aux.as_deref())?);
        Ok(KvPrediction { base, aux, predictor, own: OwnTokens::PAPER, order: Order::InTurn, control: None })
    }

    /// The same, its base reading these tokens itself.
    pub fn reading(self, own: OwnTokens) -> KvPrediction {
        KvPrediction { own, ..self }
    }

    /// The same, in this order.
    pub fn ordered(self, order: Order) -> KvPrediction {
        KvPrediction { order, ..self }
    }

    /// The same with something else where predictions would be.
    pub fn control(self, control: Control) -> KvPrediction {
        KvPrediction { control: Some(control), ..self }
    }

    /// Its networks.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        [&self.base].into_iter().chain(&self.aux)
    }

    /// One file under the reference's own names: `base.`, `auxiliary.`, `predicter.auxkv_to_basekv.`. `layer_map[i]` is the
    /// auxiliary layer that base layer i is predicted from.
    ///
    /// # Errors
    /// Those of [`Network::from_tensors`] and [`Predictor::from_tensors`].
    pub fn load_corenet(
        file: &Path,
        base: NetworkConfig,
        aux: NetworkConfig,
        layer_map: &[usize],
    ) -> Result<KvPrediction> {
        let t = Tensors::file(file)?;
        let predictor = {
            let layout = Layout::auxiliary(layer_map);
            Predictor::from_tensors(&t, predictor::CORENET_PREFIX, &base, Some(&aux), layout)?
        };
        let base = Network::from_tensors(&t, base, CORENET_BASE)?;
        let aux = Network::from_tensors(&t, aux, CORENET_AUXILIARY)?;
        let (base, aux, predictor) = (Arc::new(base), Some(Arc::new(aux)), Arc::new(predictor));
        Ok(KvPrediction { base, aux, predictor, own: OwnTokens::PAPER, order: Order::InTurn, control: None })
    }
}
