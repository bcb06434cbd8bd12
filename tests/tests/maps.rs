//! Maps in closed form against ridge regression by plain loops in float64, on keys, values and hidden states that the schedule
//! of a KV prediction dumps.

use std::{fs, path::Path, sync::Arc};

use serde_json::json;
use tempfile::TempDir;
use ttft_kernels::{Backend, DType, Engine, Isa};
use ttft_models::{
    Error, Extent, KvPrediction, NamedTensor, Network, NetworkConfig, Precision, RunSpec, System,
    fit::{Explained, Fit, Kind, Maps, Spec, Target},
    kv_prediction::{
        layer_map,
        layout::{Input, Layout, Origin, OwnTokens},
    },
    plan, synth,
};
use ttft_tests::{
    EPS,
    models::{describe, engines, fixture},
    values,
};

/// Tokens of a window, the first of which does not count.
const WINDOW: usize = 17;

/// Windows that are added at once.
const BLOCK: usize = 6;

/// Windows in all: three blocks and a part, and several times as many tokens as any map has features.
const WINDOWS: usize = 21;

fn network(name: &str, part: &str) -> Option<Arc<Network>> {
    let dir = fixture(name).join(part);
    dir.exists().then(|| Arc::new(Network::load(&dir).expect("the fixture loads")))
}

/// Pseudo-random ids of a vocabulary.
fn ids(seed: u64, windows: usize, vocab: usize) -> Vec<u32> {
    values(seed, windows * WINDOW, DType::F32).iter().map(|x| ((x + 1.0) / 2.0 * vocab as f32) as u32).collect()
}

struct Case {
    name: &'static str,
    base: Arc<Network>,
    aux: Option<Arc<Network>>,
    spec: Spec,
}

impl Case {
    fn new(name: &'static str, shared: Option<usize>, input: Input, target: Target) -> Case {
        let base = network(name, "base").unwrap();
        let aux = network(name, "aux").filter(|_| shared.is_none());
        let layers = base.config().layers.len();
        let layout = match (shared, &aux) {
            (Some(k), _) if input == Input::Hidden => Layout::shared(layers, k, input),
            (Some(k), _) => {
                let origin = |i| (i >= k).then_some(Origin { layer: k - 1, input });
                Layout { shared, layers: (0..layers).map(origin).collect() }
            }
            (None, Some(aux)) => {
                let map = layer_map(layers, aux.config().layers.len());
                Layout { shared, layers: map.iter().map(|&layer| Some(Origin { layer, input })).collect() }
            }
            (None, None) => panic!("{name} has no auxiliary"),
        };
        Case { name, base, aux, spec: Spec { layout, target, window: WINDOW, precision: Precision::F32 } }
    }

    fn all() -> Vec<Case> {
        let (kv, hidden) = (Input::KeysAndValues, Input::Hidden);
        vec![
            Case::new("A", None, kv, Target::Raw),
            Case::new("A", Some(2), kv, Target::Raw),
            Case::new("G", None, hidden, Target::Raw),
            Case::new("G", Some(1), hidden, Target::Raw),
            Case::new("H", Some(2), hidden, Target::Raw),
            Case::new("H", Some(2), hidden, Target::HeadRms),
            Case::new("H", Some(3), kv, Target::HeadRms),
        ]
    }

    fn ids(&self, seed: u64, windows: usize) -> Vec<u32> {
        let vocab = |n: &Arc<Network>| n.config().vocab;
        ids(seed, windows, self.aux.as_ref().map_or(usize::MAX, vocab).min(vocab(&self.base)))
    }

    fn begin(&self) -> Fit {
        Fit::new(Arc::clone(&self.base), self.aux.clone(), self.spec.clone()).unwrap()
    }

    fn fitted(&self, e: &Engine, ids: &[u32]) -> Fit {
        let mut fit = self.begin();
        ids.chunks(BLOCK * WINDOW).for_each(|block| fit.add(e, block).unwrap());
        fit
    }

    fn source(&self) -> &Arc<Network> {
        self.aux.as_ref().unwrap_or(&self.base)
    }

    fn what(&self, e: &Engine) -> String {
        format!("{} {:?} {}", self.name, self.spec.layout, describe(e))
    }
}

/// What one window after another holds, `[rows, width]` in float64, without first positions.
struct Rows {
    width: usize,
    data: Vec<f64>,
}

impl Rows {
    fn row(&self, r: usize) -> &[f64] {
        &self.data[r * self.width..][..self.width]
    }

    fn rows(&self) -> usize {
        self.data.len() / self.width
    }

    /// A tensor `[B, K, n, d]` or `[B, n, D]` of a dump.
    fn of(t: &NamedTensor) -> Rows {
        let (batch, heads, n, d) = match t.shape[..] {
            [b, k, n, d] => (b, k, n, d),
            [b, n, d] => (b, 1, n, d),
            _ => panic!("{:?}", t.shape),
        };
        let mut data = Vec::new();
        for (b, p) in (0..batch).flat_map(|b| (1..n).map(move |p| (b, p))) {
            for h in 0..heads {
                data.extend(t.data[((b * heads + h) * n + p) * d..][..d].iter().map(|x| f64::from(*x)));
            }
        }
        Rows { width: heads * d, data }
    }

    fn by_head(mut self, head: usize, eps: f32) -> Rows {
        for head in self.data.chunks_exact_mut(head) {
            let square: f64 = head.iter().map(|y| y * y).sum::<f64>() / head.len() as f64;
            head.iter_mut().for_each(|y| *y /= (square + f64::from(eps)).sqrt());
        }
        self
    }

    fn means(&self) -> Vec<f64> {
        let mut means = vec![0.0; self.width];
        for r in 0..self.rows() {
            means.iter_mut().zip(self.row(r)).for_each(|(m, x)| *m += x);
        }
        means.iter().map(|m| m / self.rows() as f64).collect()
    }

    /// Less their means.
    fn centred(&self) -> Rows {
        let means = self.means();
        let data = self.data.chunks_exact(self.width).flat_map(|row| row.iter().zip(&means).map(|(x, m)| x - m));
        Rows { width: self.width, data: data.collect() }
    }

    fn deviations(&self) -> Vec<f64> {
        let centred = self.centred();
        let square = |i: usize| (0..self.rows()).map(|r| centred.row(r)[i].powi(2)).sum::<f64>();
        (0..self.width).map(|i| (square(i) / self.rows() as f64).sqrt()).collect()
    }
}

/// Keys, values and hidden states of every layer of a network, as the schedule of a KV prediction keeps them whose auxiliary it is.
struct Seen {
    dump: Vec<NamedTensor>,
}

impl Seen {
    fn of(net: &Arc<Network>, e: &Engine, ids: &[u32]) -> Seen {
        let dir = tempfile::tempdir().unwrap();
        let layers = net.config().layers.len();
        let mut dump = Vec::new();
        for input in [Input::KeysAndValues, Input::Hidden] {
            let layout =
                Layout { shared: None, layers: (0..layers).map(|layer| Some(Origin { layer, input })).collect() };
            let to = dir.path().join(format!("{input:?}"));
            let c = net.config().clone();
            let spec = synth::Spec::custom_predictor("p", c.clone(), Some(c), layout, DType::F32, 0);
            spec.make(&to, &|_, _| ()).unwrap();
            let pair = KvPrediction::new(Arc::clone(net), Some(Arc::clone(net)), &to).unwrap();
            // A token after each window, which the base reads alone.
            let longer: Vec<u32> = ids.chunks(WINDOW).flat_map(|w| w.iter().copied().chain([0])).collect();
            let spec = RunSpec {
                batch: ids.len() / WINDOW,
                prompt: WINDOW + 1,
                generate: 1,
                precision: Precision::F32,
                extent: Extent::FirstToken,
            };
            let mut run = plan(&System::KvPrediction(pair), &spec).unwrap();
            run.first_token(e, &longer).unwrap();
            dump.extend(run.cache_dump());
        }
        Seen { dump }
    }

    fn get(&self, name: &str) -> Rows {
        Rows::of(self.dump.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no {name}")))
    }

    fn raw(&self, layer: usize, kind: Kind) -> Rows {
        self.get(&format!("aux_cache.{layer}.{}", if kind == Kind::Key { "k" } else { "v" }))
    }
}

/// What a map reads, and what it should give.
fn problem(case: &Case, seen: &(Seen, Seen), layer: usize, kind: Kind) -> (Rows, Rows) {
    let (base, source) = seen;
    let origin = case.spec.layout.layers[layer].unwrap();
    let x = match origin.input {
        Input::Hidden => source.get(&format!("source.{}.unit", origin.layer)),
        _ => source.raw(origin.layer, kind),
    };
    let y = base.raw(layer, kind);
    let c = case.base.config();
    let by_head = case.spec.target == Target::HeadRms && kind == Kind::Key;
    (x, if by_head { y.by_head(c.head_dim, c.eps) } else { y })
}

/// The equations of a map by plain loops: the Gram matrix of standardised features over T, and its right sides.
struct Direct {
    gram: Vec<Vec<f64>>,
    sides: Vec<Vec<f64>>,
    x: (Vec<f64>, Vec<f64>),
    y: Vec<f64>,
    /// Bounds of what F32 does to the Gram matrix and to each right side, as norms.
    off: (f64, Vec<f64>),
}

impl Direct {
    fn new(x: &Rows, y: &Rows) -> Direct {
        let (t, f) = (x.rows() as f64, x.width);
        let (means, deviations, y_means, y_deviations) = (x.means(), x.deviations(), y.means(), y.deviations());
        let (cx, cy) = (x.centred(), y.centred());
        let mut gram = vec![vec![0.0; f]; f];
        let mut sides = vec![vec![0.0; f]; y.width];
        for r in 0..x.rows() {
            let z: Vec<f64> = cx.row(r).iter().zip(&deviations).map(|(x, d)| x / d).collect();
            for (i, row) in gram.iter_mut().enumerate() {
                row.iter_mut().zip(&z).for_each(|(g, z_j)| *g += z[i] * z_j / t);
            }
            for (side, y) in sides.iter_mut().zip(cy.row(r)) {
                side.iter_mut().zip(&z).for_each(|(s, z)| *s += y * z / t);
            }
        }
        // A block's sum of products errs by gamma of its length, of the products' absolute values, of which the mean is at most the
        // product of both root mean squares. These are of values less the means of the first block. Three roundings more: the
        // shift, and what the subtraction of it makes of either factor.
        let gamma = {
            let ku = (BLOCK * (WINDOW - 1) + 5) as f64 * EPS;
            ku / (1.0 - ku)
        };
        let first = |rows: &Rows| {
            let n = BLOCK * (WINDOW - 1);
            Rows { width: rows.width, data: rows.data[..n * rows.width].to_vec() }.means()
        };
        let inflation = |rows: &Rows, means: &[f64], deviations: &[f64]| -> f64 {
            let each = means.iter().zip(first(rows)).zip(deviations);
            each.map(|((m, s), d)| (1.0 + ((m - s) / d).powi(2)).sqrt()).fold(1.0, f64::max)
        };
        let (kx, ky) = (inflation(x, &means, &deviations), inflation(y, &y_means, &y_deviations));
        // F times the largest element bounds the norm of a matrix, its root times that of a vector. Twice: variances scale too.
        let off = (
            2.0 * gamma * f as f64 * kx * kx,
            y_deviations.iter().map(|d| 2.0 * gamma * (f as f64).sqrt() * kx * ky * d).collect(),
        );
        Direct { gram, sides, x: (means, deviations), y: y_means, off }
    }

    /// The weights for standardised features, by elimination with pivots.
    fn solve(&self, lambda: f64) -> Vec<Vec<f64>> {
        let f = self.gram.len();
        let mut rows: Vec<Vec<f64>> = (0..f)
            .map(|i| {
                let mut row = self.gram[i].clone();
                row[i] += lambda;
                row.extend(self.sides.iter().map(|side| side[i]));
                row
            })
            .collect();
        for i in 0..f {
            let pivot = (i..f).max_by(|a, b| rows[*a][i].abs().total_cmp(&rows[*b][i].abs())).unwrap();
            rows.swap(i, pivot);
            let pivot = rows[i].clone();
            for row in rows.iter_mut().skip(i + 1) {
                let factor = row[i] / pivot[i];
                row.iter_mut().zip(&pivot).skip(i).for_each(|(a, p)| *a -= factor * p);
            }
        }
        let mut solved = vec![vec![0.0; f]; self.sides.len()];
        for (n, w) in solved.iter_mut().enumerate() {
            for i in (0..f).rev() {
                let known: f64 = (i + 1..f).map(|j| rows[i][j] * w[j]).sum();
                w[i] = (rows[i][f + n] - known) / rows[i][i];
            }
        }
        solved
    }
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

/// Compares maps with the equations: what they leave of them, and, where the ridge bounds the inverse, the weights themselves.
fn check(what: &str, maps: &Maps, direct: &Direct, lambda: f64, layer: usize, kind: Kind) {
    let what = format!("{what} {kind:?} {layer}, lambda {lambda}");
    let (weight, bias) = maps.of(layer, kind).unwrap_or_else(|| panic!("{what}: no map"));
    let (means, deviations) = &direct.x;
    let f = means.len();
    let exact = (lambda >= 1.0).then(|| direct.solve(lambda));
    for (n, row) in weight.chunks_exact(f).enumerate() {
        let w: Vec<f64> = row.iter().zip(deviations).map(|(w, d)| f64::from(*w) * d).collect();
        let size = norm(w.iter().copied());
        // What the sums err by, and the rounding of the weights, which the Gram matrix (of trace F) lengthens by F at most.
        let off = direct.off.0 * size + direct.off.1[n] + (f as f64 + lambda) * EPS * size;
        let left = norm((0..f).map(|i| {
            direct.gram[i].iter().zip(&w).map(|(g, w)| g * w).sum::<f64>() + lambda * w[i] - direct.sides[n][i]
        }));
        assert!(left <= off, "{what}: output {n} leaves {left:e} of its equations, {off:e} are explained");
        let whole = norm(direct.sides[n].iter().copied());
        assert!(off < 0.3 * whole, "{what}: the bound {off:e} says nothing, of {whole:e}");
        if let Some(exact) = &exact {
            let apart = norm(w.iter().zip(&exact[n]).map(|(a, b)| a - b));
            assert!(apart <= off / lambda, "{what}: output {n} is {apart:e} off, {:e} are explained", off / lambda);
        }
        // The mean of the text is met, to the rounding of the bias and of what the means of F32 numbers lose.
        let mean: f64 = row.iter().zip(means).map(|(w, m)| f64::from(*w) * m).sum::<f64>() + f64::from(bias[n]);
        let sizes: f64 = row.iter().zip(means).map(|(w, m)| (f64::from(*w) * m).abs()).sum::<f64>() + direct.y[n].abs();
        let within = 8.0 * EPS * (sizes + size * f as f64);
        assert!((mean - direct.y[n]).abs() <= within, "{what}: output {n}: mean {mean}, and {} is right", direct.y[n]);
    }
}

#[test]
fn maps_are_those_of_a_float64_regression() {
    for case in Case::all() {
        let ids = case.ids(3, WINDOWS);
        for e in &engines() {
            let seen = (Seen::of(&case.base, e, &ids), Seen::of(case.source(), e, &ids));
            let fitted: Vec<(usize, Kind, Direct)> = (0..case.base.config().layers.len())
                .filter(|i| case.spec.layout.layers[*i].is_some_and(|o| o.input != Input::Own))
                .flat_map(|i| Kind::ALL.map(|kind| (i, kind)))
                .map(|(i, kind)| {
                    let (x, y) = problem(&case, &seen, i, kind);
                    (i, kind, Direct::new(&x, &y))
                })
                .collect();
            assert!(!fitted.is_empty(), "{}", case.name);
            let fit = case.fitted(e, &ids);
            assert_eq!(fit.windows(), WINDOWS);
            for lambda in [1e-2, 1.0] {
                let maps = fit.solve(lambda, DType::F32).unwrap();
                for (i, kind, direct) in &fitted {
                    check(&case.what(e), &maps, direct, lambda, *i, *kind);
                }
                let own = (0..case.base.config().layers.len()).filter(|i| !fitted.iter().any(|(j, ..)| i == j));
                assert!(own.flat_map(|i| Kind::ALL.map(|k| maps.of(i, k))).all(|map| map.is_none()));
            }
        }
    }
}

fn best() -> Engine {
    ttft_tests::engine(Isa::best(), 2, Backend::Ours)
}

/// Keys and values of the first layer after the source are linear in its hidden state, so that maps explain all of them; what
/// comes later they explain in part. The ridge hides at most lambda / 4 times the squares of an output's weights (its share of the
/// missing variance along an eigenvector s is (lambda / (s + lambda))^2 s, at most lambda / 4), sums in F32 the same with the
/// bound of their error over lambda.
#[test]
fn linear_keys_and_values_are_found() {
    let e = best();
    for (name, k) in [("H", 2), ("G", 1)] {
        let mut case = Case::new(name, Some(k), Input::Hidden, Target::Raw);
        case.spec.layout.layers[k] = Some(Origin { layer: k - 1, input: Input::Hidden });
        let ids = case.ids(5, WINDOWS);
        let lambda = 1e-4;
        let mut fit = case.fitted(&e, &ids);
        let maps = fit.solve(lambda, DType::F32).unwrap();
        let seen = (Seen::of(&case.base, &e, &ids), Seen::of(&case.base, &e, &ids));
        let mut scores = Explained::default();
        ids.chunks(BLOCK * WINDOW).for_each(|block| fit.score(&e, &maps, &mut scores, block).unwrap());
        assert_eq!(scores.rows(), WINDOWS * (WINDOW - 1));
        let layers = scores.layers(&maps);
        assert_eq!(
            layers.iter().map(|l| l.layer).collect::<Vec<_>>(),
            (k..case.base.config().layers.len()).collect::<Vec<_>>()
        );
        for (kind, share) in [(Kind::Key, layers[0].keys), (Kind::Value, layers[0].values)] {
            let (x, y) = problem(&case, &seen, k, kind);
            let direct = Direct::new(&x, &y);
            let (weight, _) = maps.of(k, kind).unwrap();
            let mut bound = 0.0;
            for (row, off) in weight.chunks_exact(x.width).zip(&direct.off.1) {
                let size = norm(row.iter().zip(&direct.x.1).map(|(w, d)| f64::from(*w) * d));
                bound += lambda / 4.0 * size * size + (direct.off.0 * size + off).powi(2) / (4.0 * lambda);
            }
            bound /= y.deviations().iter().map(|d| d * d).sum::<f64>();
            let share = share.expect("they vary");
            assert!(bound < 0.05, "{name} {kind:?}: a bound of {bound} says nothing");
            assert!(share > 1.0 - bound && share <= 1.0, "{name} {kind:?}: {share} explained, bound {bound:e}");
        }
        for l in &layers[1..] {
            assert!(l.keys.unwrap() > 0.0 && l.keys.unwrap() < 0.9999, "{name}: {l:?}");
        }
    }
}

/// The same on tokens that were not fitted to, one by one, by the maps' own numbers.
#[test]
fn shares_are_of_the_variance_around_the_mean() {
    let e = best();
    for case in [
        Case::new("A", None, Input::KeysAndValues, Target::Raw),
        Case::new("H", Some(2), Input::Hidden, Target::HeadRms),
    ] {
        let mut fit = case.fitted(&e, &case.ids(7, WINDOWS));
        let maps = fit.solve(1e-3, DType::BF16).unwrap();
        let other = case.ids(8, 4);
        let mut scores = Explained::default();
        other.chunks(3 * WINDOW).for_each(|block| fit.score(&e, &maps, &mut scores, block).unwrap());
        let seen = (Seen::of(&case.base, &e, &other), Seen::of(case.source(), &e, &other));
        for l in scores.layers(&maps) {
            for (kind, share) in [(Kind::Key, l.keys), (Kind::Value, l.values)] {
                let (x, y) = problem(&case, &seen, l.layer, kind);
                let (weight, bias) = maps.of(l.layer, kind).unwrap();
                assert!(weight.iter().all(|w| half::bf16::from_f32(*w).to_f32() == *w), "stored as BF16");
                let (centred, mut missed) = (y.centred(), 0.0);
                for r in 0..x.rows() {
                    for ((row, b), y) in weight.chunks_exact(x.width).zip(bias).zip(y.row(r)) {
                        let p: f64 = row.iter().zip(x.row(r)).map(|(w, x)| f64::from(*w) * x).sum();
                        missed += (y - p - f64::from(*b)).powi(2);
                    }
                }
                let expected = 1.0 - missed / centred.data.iter().map(|y| y * y).sum::<f64>();
                // Products of F32: far below what is missed.
                assert!((share.unwrap() - expected).abs() < 1e-4, "{} {l:?} {kind:?}: {expected}", case.name);
            }
        }
    }
}

/// Files of a folder, by name.
fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|f| f.unwrap())
        .map(|f| (f.file_name().into_string().unwrap(), fs::read(f.path()).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn an_interrupted_fit_goes_on_without_loss() {
    let e = best();
    let dir = TempDir::new().unwrap();
    for (i, case) in Case::all().into_iter().enumerate() {
        let ids = case.ids(11, WINDOWS);
        let (of, path) = (json!({"case": case.name, "text": ["a", 1]}), dir.path().join("sums.safetensors"));
        let _ = fs::remove_file(&path);
        let publish = |fit: &Fit, name: &str| {
            let maps = fit.solve(1e-5, DType::F32).unwrap();
            let to = dir.path().join(format!("{i}-{name}"));
            fit.publish(&maps, &to, json!({"text": "here"})).unwrap();
            contents(&to)
        };
        let whole = publish(&case.fitted(&e, &ids), "whole");
        let blocks: Vec<&[u32]> = ids.chunks(BLOCK * WINDOW).collect();
        for stop in 1..blocks.len() {
            let mut fit = case.begin();
            blocks[..stop].iter().for_each(|block| fit.add(&e, block).unwrap());
            fit.save(&path, &of).unwrap();
            // What is done after the last save is lost, and done again.
            fit.add(&e, blocks[stop]).unwrap();
            let mut fit = case.begin();
            fit.restore(&path, &fs::read(&path).unwrap(), &of).unwrap();
            assert_eq!(fit.windows(), stop * BLOCK);
            ids[fit.windows() * WINDOW..].chunks(BLOCK * WINDOW).for_each(|block| fit.add(&e, block).unwrap());
            assert_eq!(publish(&fit, &format!("after-{stop}")), whole, "{} after {stop}", case.name);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().filter(|f| f.as_ref().unwrap().path().is_file()).count(), 1);
    }
}

#[test]
fn states_of_another_fit_and_broken_ones_are_refused() {
    let e = best();
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("sums.safetensors");
    let case = Case::new("H", Some(2), Input::Hidden, Target::Raw);
    let mut fit = case.fitted(&e, &case.ids(1, BLOCK));
    let of = json!({"text": [{"sha256": "ab"}], "window": 17, "input": "hidden"});
    fit.save(&path, &of).unwrap();
    let good = fs::read(&path).unwrap();
    let refused = |case: &Case, file: &[u8], of: &serde_json::Value, word: &str| {
        let error = case.begin().restore(&path, file, of).unwrap_err();
        assert!(matches!(error, Error::State { .. }), "{error:?}");
        let text = error.to_string();
        for word in ["sums.safetensors", word, "remove it to begin anew"] {
            assert!(text.contains(word), "no '{word}' in: {text}");
        }
    };
    for (of, word) in [
        (json!({"text": [{"sha256": "cd"}], "window": 17, "input": "hidden"}), "another text"),
        (json!({"text": [{"sha256": "ab"}], "window": 18, "input": "hidden"}), "another window: 17, where 18 is"),
        (json!({"text": [{"sha256": "ab"}], "input": "hidden"}), "another window"),
    ] {
        refused(&case, &good, &of, word);
    }
    // Of the same description, but other shapes.
    refused(&Case::new("H", Some(3), Input::KeysAndValues, Target::Raw), &good, &of, "the file is broken");
    for bad in [&good[..good.len() - 1], &good[..7], b"", b"x".repeat(100).as_slice()] {
        refused(&case, bad, &of, "the file is broken");
    }
    // Letters of the header, as many as before.
    for (from, to, word) in [
        ("\"form\":\"2\"", "\"form\":\"9\"", "another version"),
        ("\"windows\":\"6\"", "\"windows\":\"x\"", "number of windows is none: the file is broken"),
        ("\"windows\":\"6\"", "\"windows\":\"7\"", "not those that were written: the file is broken"),
        ("\"windows\"", "\"widows\" ", "it does not say windows"),
    ] {
        let at = good.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut changed = good.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        refused(&case, &changed, &of, word);
    }
    let mut changed = good.clone();
    *changed.last_mut().unwrap() ^= 1;
    refused(&case, &changed, &of, "not those that were written: the file is broken");
}

/// A folder is one that KV predictions load; what they predict from it is what its maps say; a layer without a map is exact.
#[test]
fn predictors_are_what_kv_predictions_load() {
    let e = best();
    let dir = TempDir::new().unwrap();
    for (i, case) in Case::all().into_iter().enumerate() {
        let to = dir.path().join(i.to_string());
        let fit = case.fitted(&e, &case.ids(13, WINDOWS));
        for dtype in [DType::F32, DType::BF16] {
            let maps = fit.solve(1e-4, dtype).unwrap();
            fit.publish(&maps, &to, json!({"lambda": 1e-4})).unwrap();
            assert!(matches!(fit.publish(&maps, &to, json!({})), Err(Error::NotEmpty { .. })));
            let config: serde_json::Value = serde_json::from_slice(&fs::read(to.join("config.json")).unwrap()).unwrap();
            assert_eq!(config["fit"]["lambda"], 1e-4);
            let loaded = KvPrediction::new(Arc::clone(&case.base), case.aux.clone(), &to).unwrap();
            assert_eq!(loaded.predictor.layout(), &case.spec.layout);
            assert_eq!(loaded.predictor.weight_dtype(), Some(dtype));
            predicts(&e, &case, &maps, loaded);
            fs::remove_dir_all(&to).unwrap();
        }
    }
}

fn predicts(e: &Engine, case: &Case, maps: &Maps, loaded: KvPrediction) {
    let ids = case.ids(17, 2);
    let spec = RunSpec { batch: 2, prompt: WINDOW, generate: 1, precision: Precision::F32, extent: Extent::FirstToken };
    let mut run =
        plan(&System::KvPrediction(loaded.reading(OwnTokens { last: 1, first: 0, kept: false })), &spec).unwrap();
    run.record(true);
    run.first_token(e, &ids).unwrap();
    let dump = run.cache_dump();
    let seen = (Seen::of(&case.base, e, &ids), Seen::of(case.source(), e, &ids));
    let get = |name: &str| Rows::of(dump.iter().find(|t| t.name == name).unwrap_or_else(|| panic!("no {name}")));
    for (layer, origin) in case.spec.layout.predicted() {
        if origin.input == Input::Own {
            // Exact, as the hidden state that it reads is.
            let (found, expected) = (get(&format!("kvp_cache.{layer}.v")), seen.0.raw(layer, Kind::Value));
            assert!(found.data.iter().zip(&expected.data).all(|(a, b)| (a - b).abs() <= 1e-4), "{} {layer}", case.name);
            continue;
        }
        for (kind, part) in [(Kind::Key, "k"), (Kind::Value, "v")] {
            let name = format!("predicted.{layer}.{part}");
            let (found, (x, _)) = (get(&name), problem(case, &seen, layer, kind));
            let (weight, bias) = maps.of(layer, kind).unwrap();
            let largest = weight.iter().fold(1.0, |m: f32, w| m.max(w.abs()));
            // The last token is the base's own, and not among the predicted.
            for r in 0..found.rows() {
                let x = x.row(r / (WINDOW - 2) * (WINDOW - 1) + r % (WINDOW - 2));
                for ((a, w), b) in found.row(r).iter().zip(weight.chunks_exact(x.len())).zip(bias) {
                    let b = w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>() + f64::from(*b);
                    assert!((a - b).abs() <= 1e-4 * f64::from(largest), "{} {name}: {a} and {b}", case.name);
                }
            }
        }
    }
}

/// Activations of BF16 change what is read by less than a percent, and so what is explained.
#[test]
fn bf16_activations_explain_about_as_much() {
    let e = best();
    let shares = |precision| {
        let mut case = Case::new("H", Some(2), Input::Hidden, Target::Raw);
        case.spec.precision = precision;
        let mut fit = case.fitted(&e, &case.ids(19, WINDOWS));
        let maps = fit.solve(1e-3, DType::F32).unwrap();
        let mut scores = Explained::default();
        fit.score(&e, &maps, &mut scores, &case.ids(20, 8)).unwrap();
        scores.layers(&maps).iter().flat_map(|l| [l.keys.unwrap(), l.values.unwrap()]).collect::<Vec<_>>()
    };
    let (exact, rounded) = (shares(Precision::F32), shares(Precision::Bf16));
    assert!(exact != rounded, "the same arithmetic");
    for (a, b) in exact.iter().zip(&rounded) {
        assert!((a - b).abs() < 0.02, "{exact:?} {rounded:?}");
    }
}

/// A network, half of whose weights are not numbers.
fn spoilt(config: &NetworkConfig) -> (TempDir, Arc<Network>) {
    let dir = TempDir::new().unwrap();
    let to = dir.path().join("base");
    synth::Spec::custom("spoilt", config.clone(), DType::F32, 0).make(&to, &|_, _| ()).unwrap();
    let file = to.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() / 8 * 4;
    bytes[at..].chunks_exact_mut(4).for_each(|x| x.copy_from_slice(&f32::NAN.to_le_bytes()));
    fs::write(&file, bytes).unwrap();
    let network = Arc::new(Network::load(&to).unwrap());
    (dir, network)
}

#[test]
fn what_cannot_be_fitted_is_refused() {
    let e = best();
    let case = Case::new("H", Some(2), Input::Hidden, Target::Raw);
    let error = case.fitted(&e, &case.ids(1, 3)).solve(1e-5, DType::F32).unwrap_err();
    assert!(matches!(error, Error::FewTokens { rows: 48, features: 64 }), "{error}");
    let mut fit = case.begin();
    let ids = case.ids(1, 1);
    for (bad, word) in [(&ids[1..], "windows of 17"), (&[], "windows of 17"), (&case.ids(1, 61)[..], "1 to 60")] {
        let error = fit.add(&e, bad).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let beyond: Vec<u32> = ids.iter().map(|_| 288).collect();
    assert!(matches!(fit.add(&e, &beyond), Err(Error::TokenId { id: 288, vocab: 288, .. })));
    assert_eq!(fit.windows(), 0);
    let new = |spec: Spec| Fit::new(Arc::clone(&case.base), None, spec).unwrap_err().to_string();
    let layers = case.base.config().layers.len();
    let own = Layout::shared(layers, layers - 1, Input::Hidden);
    assert!(new(Spec { layout: own, ..case.spec.clone() }).contains("layers to fit"));
    assert!(new(Spec { window: 1, ..case.spec.clone() }).contains("tokens of a window"));
    let endless = new(Spec { window: 1 << 50, ..case.spec.clone() });
    assert!(endless.contains("cannot allocate") && endless.contains("a fit with shorter windows"), "{endless}");
    let g = Case::new("G", Some(1), Input::Hidden, Target::HeadRms);
    let error = Fit::new(g.base, None, g.spec).unwrap_err().to_string();
    assert!(error.contains("norms of keys"), "{error}");
    // Numbers that are none.
    let (_dir, base) = spoilt(case.base.config());
    let mut fit = Fit::new(base, None, case.spec.clone()).unwrap();
    case.ids(1, WINDOWS).chunks(BLOCK * WINDOW).for_each(|block| fit.add(&e, block).unwrap());
    let error = fit.solve(1e-5, DType::F32).unwrap_err();
    assert!(matches!(error, Error::Unfit { .. }), "{error}");
}

/// A source whose hidden state has features that never vary, and some that are sums of others, is fitted all the same.
#[test]
fn features_that_tell_nothing_get_no_weight() {
    let e = best();
    let case = Case::new("G", Some(1), Input::Hidden, Target::Raw);
    // One id alone: at every token but the first of a window all features vary by position only, in few directions.
    let ids = vec![7u32; WINDOWS * WINDOW];
    let fit = case.fitted(&e, &ids);
    let maps = fit.solve(1e-5, DType::F32).unwrap();
    for layer in 2..case.base.config().layers.len() {
        for kind in Kind::ALL {
            let (weight, bias) = maps.of(layer, kind).unwrap();
            assert!(weight.iter().chain(bias).all(|w| w.is_finite() && w.abs() < 1e4), "{layer} {kind:?}");
        }
    }
}
