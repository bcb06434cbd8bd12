//! The likelihood path: how the reference scores given text, and trains. The base sees predicted keys and values at
//! every position, its own at none.

use ttft_kernels::Element;

use super::{KvPrediction, layout::Input, predictor::Prediction};
use crate::{
    activations::{Activations, Rows},
    cache::{LayerCache, RawKv},
    engine::Engine,
    error::{Error, Result},
    network::{Cache, Kv, Out},
    prompts,
};

/// Logits at every position.
#[derive(Clone, Debug)]
pub struct Likelihood {
    /// The base's, `[batch, n, V]`.
    pub logits: Vec<f32>,
    /// The auxiliary's, `[batch, n, V_aux]`.
    pub aux_logits: Vec<f32>,
}

/// Runs the auxiliary on all of `ids` (`[batch * n]`), predicts the base's cache for all of them, and runs the base on
/// all of them against the prediction alone.
///
/// # Errors
/// Those of [`prompts::check`], [`Error::Memory`], [`Error::Kernel`]; [`Error::NoAuxiliary`].
pub fn likelihood<A: Element>(s: &KvPrediction, e: &Engine, ids: &[u32], batch: usize) -> Result<Likelihood> {
    let aux = s.aux.as_ref().ok_or(Error::NoAuxiliary)?;
    let (b, a) = (s.base.config(), aux.config());
    let n = prompts::check_batch(ids, batch, b.vocab.min(a.vocab))?;
    let rows = batch * n;

    let rope = aux.rope(n);
    let mut act = Activations::<A>::new(a, rows)?;
    aux.embed(e, ids, batch, Rows::all(n), &mut act)?;
    let mut raw: Vec<RawKv<A>> = (0..a.layers.len()).map(|j| RawKv::new(rows, a.kv_dim(j))).collect();
    let mut hidden = vec![Vec::new(); a.layers.len()];
    let from_hidden = s.predictor.layout().predicted().any(|(_, o)| o.input == Input::Hidden);
    for (j, (raw, hidden)) in raw.iter_mut().zip(&mut hidden).enumerate() {
        let mut cache = LayerCache::new(batch, a.layers[j].kv_heads, n, a.head_dim);
        let kv = Kv { cache: Cache::Own(&mut cache), source: Some(raw) };
        aux.layer(e, j, &mut act, &rope, kv, Out::Rows(n))?;
        if from_hidden {
            hidden.resize(rows * a.dim, 0.0);
            aux.keep_hidden(e, &act, true, hidden)?;
        }
    }
    let aux_logits = aux.all_logits(e, &mut act)?;

    let rope = s.base.rope(n);
    let mut act = Activations::<A>::new(b, rows)?;
    s.base.embed(e, ids, batch, Rows::all(n), &mut act)?;
    for i in 0..b.layers.len() {
        let mut cache = LayerCache::new(batch, b.layers[i].kv_heads, n, b.head_dim);
        let origin = s.predictor.layout().layers[i].expect("every layer is predicted from an auxiliary");
        let (raw, unit) = (&raw[origin.layer], &hidden[origin.layer]);
        if origin.input == Input::Hidden {
            let layer = Prediction { layer: i, k: unit, v: unit, cache: &mut cache, keep: None };
            s.predictor.predict(e, &s.base, (batch, n), &rope, [layer])?;
        } else {
            let layer = Prediction { layer: i, k: &raw.k, v: &raw.v, cache: &mut cache, keep: None };
            s.predictor.predict(e, &s.base, (batch, n), &rope, [layer])?;
        }
        let kv = Kv { cache: Cache::Given(&cache), source: None };
        s.base.layer(e, i, &mut act, &rope, kv, Out::Rows(n))?;
    }
    Ok(Likelihood { logits: s.base.all_logits(e, &mut act)?, aux_logits })
}
