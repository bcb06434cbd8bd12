//! KV prediction: an auxiliary network reads the prompt, a predictor maps its cache to the base's, and the base reads
//! the last token alone.

pub mod likelihood;
pub mod predictor;

use std::{path::Path, sync::Arc};

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
    /// The network that reads the prompt.
    pub aux: Arc<Network>,
    /// From the one's cache to the other's.
    pub predictor: Arc<Predictor>,
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
        let predictor = Predictor::load(predictor, &base, &aux)?;
        Ok(KvPrediction { base: Arc::new(base), aux: Arc::new(aux), predictor: Arc::new(predictor) })
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
        let predictor = Predictor::from_tensors(&t, predictor::CORENET_PREFIX, &base, &aux, layer_map)?;
        let base = Network::from_tensors(&t, base, CORENET_BASE)?;
        let aux = Network::from_tensors(&t, aux, CORENET_AUXILIARY)?;
        Ok(KvPrediction { base: Arc::new(base), aux: Arc::new(aux), predictor: Arc::new(predictor) })
    }
}
