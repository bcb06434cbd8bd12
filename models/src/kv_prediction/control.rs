//! Controls of a KV prediction: the same tokens read by the same networks, with something else where predictions would be. What
//! a predictor is worth is told by what it adds to them.

use std::sync::Arc;

use crate::{
    cache::NamedTensor,
    error::{Error, Result},
};

/// What stands where predictions would be, as its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filling {
    /// Nothing: these positions are dropped, and all others stay where they are. The caches hold fewer entries than tokens.
    Nothing,
    /// Entries that were made elsewhere.
    Entries,
}

/// What stands where predictions would be.
#[derive(Clone, Debug)]
pub enum Control {
    /// As [`Filling::Nothing`].
    Nothing,
    /// As [`Filling::Entries`].
    Entries(Arc<Entries>),
}

impl Control {
    /// Its shape.
    pub fn filling(&self) -> Filling {
        match self {
            Control::Nothing => Filling::Nothing,
            Control::Entries(_) => Filling::Entries,
        }
    }
}

/// Keys and values, by base layer: `[rows, kv_heads * head_dim]` each, sequence by sequence, or one row for all positions.
/// Keys are without RoPE.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entries {
    layers: Vec<Option<[Vec<f32>; 2]>>,
    /// Whether keys have passed the layer's k_norm.
    pub(crate) normed: bool,
}

impl Entries {
    /// The first `n` entries of every sequence of the `base_cache.{i}.k|v` that [`crate::Inference::cache_dump`] gives of a
    /// network alone: what full prefill makes.
    ///
    /// # Errors
    /// [`Error::Spec`]: there are fewer.
    pub fn of_base(dump: &[NamedTensor], layers: usize, n: usize) -> Result<Entries> {
        let layer = |i: usize| -> Result<Option<[Vec<f32>; 2]>> {
            let part = |part: &str| {
                let name = format!("base_cache.{i}.{part}");
                dump.iter().find(|t| t.name == name).map(|t| rows(t, 0, n)).transpose()
            };
            Ok(part("k")?.zip(part("v")?).map(<[Vec<f32>; 2]>::from))
        };
        Ok(Entries { layers: (0..layers).map(layer).collect::<Result<_>>()?, normed: true })
    }

    /// What stands in a layer that has `width` features: of all rows, or a row for all of them.
    pub(crate) fn layer(&self, i: usize, rows: usize, width: usize) -> Result<[&[f32]; 2]> {
        let found = self.layers.get(i).and_then(Option::as_ref);
        let fits = |part: &Vec<f32>| part.len() == width || part.len() == rows * width;
        match found {
            Some([k, v]) if fits(k) && fits(v) => Ok([k, v]),
            _ => Err(Error::Spec {
                what: "elements of the entries of a layer",
                expected: format!("{width} or {rows} x {width} in layer {i}"),
                found: found.map_or(0, |[k, _]| k.len() as u64),
            }),
        }
    }
}

/// Entries `from..to` of each sequence of `[batch, heads, len, d]`, as `[batch * (to - from), heads * d]`.
fn rows(t: &NamedTensor, from: usize, to: usize) -> Result<Vec<f32>> {
    let [batch, heads, len, d] = t.shape[..] else { unreachable!("caches have four dimensions") };
    if to > len {
        return Err(Error::Spec { what: "entries", expected: format!("{to} or more"), found: len as u64 });
    }
    let mut out = Vec::with_capacity(batch * (to - from) * heads * d);
    for b in 0..batch {
        for p in from..to {
            for h in 0..heads {
                out.extend_from_slice(&t.data[((b * heads + h) * len + p) * d..][..d]);
            }
        }
    }
    Ok(out)
}

/// The mean of what a predictor predicts, over positions of some text: the bias of each map, and its weight times the mean of
/// its features. A cache of it says nothing about the prompt.
#[derive(Clone, Debug, Default)]
pub struct Mean {
    layers: Vec<Option<[Vec<f64>; 2]>>,
    rows: usize,
}

impl Mean {
    /// Adds the `predicted.{i}.k|v` of a recorded run ([`crate::Inference::record`]) from position `from` on.
    ///
    /// # Errors
    /// [`Error::Spec`]: the run was not recorded.
    pub fn add(&mut self, dump: &[NamedTensor], layers: usize, from: usize) -> Result<()> {
        self.layers.resize(layers, None);
        let mut added = 0;
        for (i, sums) in self.layers.iter_mut().enumerate() {
            let part = |part: &str| dump.iter().find(|t| t.name == format!("predicted.{i}.{part}"));
            let Some(values) = part("v") else { continue };
            let keys = part("k").ok_or(Error::Spec {
                what: "recorded predictions",
                expected: "keys before k_norm".into(),
                found: 0,
            })?;
            let width = values.shape[1] * values.shape[3];
            let sums = sums.get_or_insert_with(|| [vec![0.0; width], vec![0.0; width]]);
            for (sums, t) in sums.iter_mut().zip([keys, values]) {
                let all = rows(t, from.min(t.shape[2]), t.shape[2])?;
                added = all.len() / width;
                for row in all.chunks_exact(width) {
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
                }
            }
        }
        self.rows += added;
        Ok(())
    }

    /// Positions that it is the mean of.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The mean, for all positions.
    pub fn entries(&self) -> Entries {
        let n = self.rows.max(1) as f64;
        let mean = |sums: &Vec<f64>| sums.iter().map(|sum| (sum / n) as f32).collect::<Vec<f32>>();
        let layer = |sums: &Option<[Vec<f64>; 2]>| sums.as_ref().map(|[k, v]| [mean(k), mean(v)]);
        Entries { layers: self.layers.iter().map(layer).collect(), normed: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: [usize; 4], data: impl Fn(usize) -> f32) -> NamedTensor {
        let data = (0..shape.iter().product()).map(data).collect();
        NamedTensor { name: name.into(), shape: shape.to_vec(), data }
    }

    #[test]
    fn heads_are_merged_and_positions_chosen() {
        // Two heads of two features at three positions.
        let k = tensor("base_cache.0.k", [1, 2, 3, 2], |i| i as f32);
        let v = NamedTensor { name: "base_cache.0.v".into(), ..k.clone() };
        let entries = Entries::of_base(&[k, v], 2, 2).unwrap();
        assert_eq!(entries.layer(0, 2, 4).unwrap()[0], [0.0, 1.0, 6.0, 7.0, 2.0, 3.0, 8.0, 9.0]);
        for (layer, rows, width) in [(1, 2, 4), (0, 3, 4), (0, 2, 5), (7, 1, 4)] {
            let error = entries.layer(layer, rows, width).unwrap_err().to_string();
            assert!(error.contains(&format!("layer {layer}")), "{error}");
        }
    }

    #[test]
    fn means_are_of_all_positions_from_the_first_one_on() {
        let mut mean = Mean::default();
        for scale in [1.0, 3.0] {
            let of = |name: &str, sign: f32| tensor(name, [1, 1, 3, 2], |i| sign * scale * i as f32);
            mean.add(&[of("predicted.1.k", 1.0), of("predicted.1.v", -1.0)], 3, 1).unwrap();
        }
        // Positions 1 and 2: (2, 3) and (4, 5), once as they are and once threefold.
        assert_eq!(mean.rows(), 4);
        assert_eq!(mean.entries().layer(1, 9, 2).unwrap(), [&[6.0, 8.0], &[-6.0, -8.0]]);
        assert!(mean.entries().layer(0, 9, 2).is_err());
        let unrecorded = tensor("predicted.0.v", [1, 1, 3, 2], |_| 0.0);
        assert!(mean.add(&[unrecorded], 3, 0).is_err());
    }
}
