//! Fitted maps: rounded to their type of storage, judged on other text, written as a predictor.

use std::{borrow::Cow, path::Path};

use half::bf16;
use safetensors::{Dtype, View, serialize_to_file};
use serde_json::Value;
use ttft_kernels::{DType, Element, Mat, MatMut, Output as To, Weight};

use super::{Feature, Kind, Output, by_head, reader, solve::Solved};
use crate::{
    config::NetworkConfig,
    engine::Engine,
    error::{Error, Result},
    publish::{self, Replaces, flushed, write_json},
};

/// The maps of a predictor, keys and values of each fitted layer.
#[derive(Clone, Debug)]
pub struct Maps {
    outputs: Vec<Output>,
    features: Vec<Feature>,
    maps: Vec<Map>,
    dtype: DType,
}

/// One of them, with the weights that are stored.
#[derive(Clone, Debug, Default)]
struct Map {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Map {
    /// The nearest that a type can store; its bias gives the means of the text for the weights as they are then.
    fn of(solved: &Solved, dtype: DType) -> Map {
        let round = |w: f64| if dtype == DType::BF16 { bf16::from_f64(w).to_f32() } else { w as f32 };
        let weight: Vec<f32> = solved.weight.iter().map(|w| round(*w)).collect();
        let bias = weight.chunks_exact(solved.x.len()).zip(&solved.y).map(|(row, y)| {
            let at_mean: f64 = row.iter().zip(&solved.x).map(|(w, x)| f64::from(*w) * x).sum();
            (y - at_mean) as f32
        });
        Map { bias: bias.collect(), weight }
    }
}

impl Maps {
    /// Maps that are yet to be set.
    pub(super) fn empty(outputs: &[Output], features: &[Feature], dtype: DType) -> Maps {
        let maps = vec![Map::default(); outputs.len()];
        Maps { outputs: outputs.to_vec(), features: features.to_vec(), maps, dtype }
    }

    pub(super) fn set(&mut self, output: usize, solved: &Solved) {
        self.maps[output] = Map::of(solved, self.dtype);
    }

    /// The map of a layer's keys or values, if there is one: weights `[N, F]` row-major, bias `[N]`.
    pub fn of(&self, layer: usize, kind: Kind) -> Option<(&[f32], &[f32])> {
        let at = self.outputs.iter().position(|o| (o.layer, o.kind) == (layer, kind))?;
        Some((&self.maps[at].weight, &self.maps[at].bias))
    }

    fn place(&self, layer: usize, kind: Kind) -> usize {
        self.outputs.iter().position(|o| (o.layer, o.kind) == (layer, kind)).expect("only what is fitted is read")
    }

    /// Bytes of the file that holds them, about.
    pub fn bytes(&self) -> u64 {
        let numbers = self.maps.iter().map(|m| m.weight.len() * self.dtype.size() + m.bias.len() * 4).sum::<usize>();
        numbers as u64 + (64 << 10)
    }

    /// Makes `dir` a predictor's folder, with this configuration.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::DiskSpace`], [`Error::Io`].
    pub(super) fn write(&self, dir: &Path, config: &Value, source: &NetworkConfig) -> Result<()> {
        let never = |dir: &Path| Err(Error::NotEmpty { path: dir.to_owned() });
        publish::folder(dir, self.bytes(), Replaces::Nothing, never, |temp| {
            let path = temp.join("predictor.safetensors");
            let tensors = self.outputs.iter().zip(&self.maps).flat_map(|(o, m)| {
                let name = |part: &str| format!("{}_transforms.{}.{part}", o.kind.name(), o.layer);
                let shape = vec![o.width, self.features[o.feature].width(source)];
                let weight = Stored { dtype: self.dtype, shape, values: &m.weight };
                let bias = Stored { dtype: DType::F32, shape: vec![o.width], values: &m.bias };
                [(name("weight"), weight), (name("bias"), bias)]
            });
            serialize_to_file(tensors, None, &path).map_err(|e| Error::io(&path, "write")(std::io::Error::other(e)))?;
            let file = std::fs::File::options().write(true).open(&path);
            file.and_then(|f| flushed(&f)).map_err(Error::io(&path, "write"))?;
            let config_path = temp.join("config.json");
            write_json(&config_path, config)?;
            // The library that writes tensors lets nobody else read them.
            let rights = std::fs::metadata(&config_path).and_then(|m| std::fs::set_permissions(&path, m.permissions()));
            rights.map_err(Error::io(&path, "set the permissions of"))
        })?;
        Ok(())
    }
}

/// A tensor on its way into the file.
struct Stored<'a> {
    dtype: DType,
    shape: Vec<usize>,
    values: &'a [f32],
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        if self.dtype == DType::BF16 { Dtype::BF16 } else { Dtype::F32 }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.dtype == DType::BF16 {
            return self.values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect::<Vec<_>>().into();
        }
        bytemuck::cast_slice(self.values).into()
    }

    fn data_len(&self) -> usize {
        self.values.len() * self.dtype.size()
    }
}

/// How much of what they should give is explained by maps, on text that they were not fitted to.
#[derive(Clone, Debug, Default)]
pub struct Explained {
    by_output: Vec<Spread>,
}

/// Of one map.
#[derive(Clone, Debug, Default)]
struct Spread {
    rows: usize,
    /// Of each number: its sum and that of its squares.
    sum: Vec<f64>,
    squares: Vec<f64>,
    /// Squares of what is left unexplained, of all numbers.
    missed: f64,
}

impl Spread {
    fn add(&mut self, y: &[f32], predicted: &[f32]) {
        self.rows += 1;
        self.sum.resize(y.len(), 0.0);
        self.squares.resize(y.len(), 0.0);
        for (((y, p), sum), squares) in y.iter().zip(predicted).zip(&mut self.sum).zip(&mut self.squares) {
            let (y, p) = (f64::from(*y), f64::from(*p));
            *sum += y;
            *squares += y * y;
            self.missed += (y - p) * (y - p);
        }
    }

    /// 1 less the share of the variance, of all numbers together, that is missed; none where nothing varies.
    fn share(&self) -> Option<f64> {
        let n = self.rows as f64;
        let varied: f64 = self.sum.iter().zip(&self.squares).map(|(sum, squares)| squares - sum * sum / n).sum();
        (self.rows > 1 && varied > 0.0).then(|| 1.0 - self.missed / varied)
    }
}

/// Of a layer, the shares of the variance that its maps explain; none where nothing varies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerScore {
    /// Of the base.
    pub layer: usize,
    /// Of its keys.
    pub keys: Option<f64>,
    /// Of its values.
    pub values: Option<f64>,
}

impl Explained {
    /// Of every fitted layer.
    pub fn layers(&self, maps: &Maps) -> Vec<LayerScore> {
        let share = |layer, kind| self.by_output.get(maps.place(layer, kind)).and_then(Spread::share);
        let layers = maps.outputs.iter().filter(|o| o.kind == Kind::Key).map(|o| o.layer);
        layers
            .map(|layer| LayerScore { layer, keys: share(layer, Kind::Key), values: share(layer, Kind::Value) })
            .collect()
    }

    /// Tokens that were looked at.
    pub fn rows(&self) -> usize {
        self.by_output.first().map_or(0, |s| s.rows)
    }
}

/// Compares what is read with what maps predict.
pub(super) struct Scores<'a> {
    maps: &'a Maps,
    scores: &'a mut Explained,
    window: usize,
    norm: Option<(usize, f32)>,
    /// By feature, in F32.
    features: Vec<Vec<f32>>,
}

impl<'a> Scores<'a> {
    pub fn new(maps: &'a Maps, scores: &'a mut Explained, window: usize, norm: Option<(usize, f32)>) -> Scores<'a> {
        scores.by_output.resize_with(maps.outputs.len(), Spread::default);
        let features = vec![Vec::new(); maps.features.len()];
        Scores { maps, scores, window, norm, features }
    }
}

impl reader::Sink for Scores<'_> {
    fn feature<T: Element>(&mut self, _: &Engine, of: Feature, x: &[T]) -> Result<()> {
        if let Some(at) = self.maps.features.iter().position(|f| *f == of) {
            self.features[at] = x.iter().map(|x| x.to_f32()).collect();
        }
        Ok(())
    }

    fn output<T: Element>(&mut self, e: &Engine, layer: usize, kind: Kind, y: &[T]) -> Result<()> {
        let at = self.maps.place(layer, kind);
        let (map, output) = (&self.maps.maps[at], &self.maps.outputs[at]);
        let x = &self.features[output.feature];
        let y = match self.norm.filter(|_| kind == Kind::Key) {
            Some((head, eps)) => by_head(y, head, eps),
            None => y.iter().map(|y| y.to_f32()).collect(),
        };
        let (n, rows) = (output.width, y.len() / output.width);
        let f = x.len() / rows;
        let mut predicted = vec![0.0; rows * n];
        let to = To::Bias(MatMut::new(&mut predicted, rows, n), &map.bias);
        e.linear(Mat::new(x, rows, f), Weight::F32(Mat::new(&map.weight, n, f)), to)?;
        for (r, (y, p)) in y.chunks_exact(n).zip(predicted.chunks_exact(n)).enumerate() {
            if r % self.window != 0 {
                self.scores.by_output[at].add(y, p);
            }
        }
        Ok(())
    }
}
