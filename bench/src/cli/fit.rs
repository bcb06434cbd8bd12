use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use ttft_kernels::{DType, Engine};
use ttft_models::{
    Error, Network, Precision,
    fit::{self, Explained, LayerScore, Spec},
    kv_prediction::{
        layer_map,
        layout::{Input, Layout, Origin},
    },
    weights::MappedFile,
};
use ttft_reports::{
    format::{bytes, seconds},
    text::printable,
};

use crate::{
    cleanup, console,
    corpus::Corpus,
    identity,
    knobs::EngineKnobs,
    machine, output,
    scenario::Named,
    text::Text,
    vocabulary::{self, Vocabulary},
};

/// One window of so many is kept back, and at least one, to see how well the maps predict what they were not fitted to.
const HELD_OUT: usize = 20;

/// Tokens for each feature below which more text makes better maps.
const ENOUGH: usize = 50;

/// Time between two states of the sums on disk, so that little is lost however the program ends.
const SAVE_EACH: Duration = Duration::from_secs(60);

/// Fit the maps of a KV prediction to a text, and write its predictor
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("source").required(true))]
#[command(
    after_help = "Example:\n  ttft fit --base smollm2 --shared-layers 20 --input hidden --text my-text.txt --tokens 100000 \
                        --out maps\n  ttft generate --base smollm2 --predictor maps --sink-tokens 1 \"Once upon a time\""
)]
pub struct Fit {
    /// Folder of the base network (config.json, model.safetensors, tokenizer.json)
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// Folder of the auxiliary network that reads the prompt
    #[arg(long, value_name = "DIR", group = "source")]
    aux: Option<PathBuf>,
    /// Number of the base's own first layers that read the prompt, in place of an auxiliary
    #[arg(long, value_name = "K", group = "source")]
    shared_layers: Option<usize>,
    /// What maps read of a source layer: kv (keys and values) or hidden (the hidden state behind it)
    #[arg(long, value_name = "INPUT")]
    input: MapInput,
    /// UTF-8 files with the text, of at most 64 MiB each
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    text: Vec<PathBuf>,
    /// Tokens to read, in windows that are spread evenly over the text (default: all of it)
    #[arg(long, value_name = "T")]
    tokens: Option<NonZeroUsize>,
    /// The predictor's folder; it is not there yet, or empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Weight of the ridge, for standardised features
    #[arg(long, value_name = "L", default_value_t = 1e-5, value_parser = ridge)]
    lambda: f64,
    /// Tokens of a window; each token sees those of its window before it
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    window: u32,
    /// What keys are fitted to: raw, or head-rms (each head divided by its root mean square, for bases that norm their keys)
    #[arg(long, value_name = "TARGET", default_value = "raw")]
    target: KeyTarget,
    /// Type of activations: f32 or bf16 (default: bf16 for BF16 weights, else f32)
    #[arg(long, value_name = "TYPE", value_parser = Precision::from_name)]
    dtype: Option<Precision>,
    /// Type of the maps' weights in the predictor: f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = stored)]
    store: DType,
    /// Print what the fit would take, and stop
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    engine: EngineKnobs,
}

/// What maps read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MapInput {
    Kv,
    Hidden,
}

/// What keys are fitted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KeyTarget {
    Raw,
    HeadRms,
}

fn ridge(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(l) if l >= 0.0 && l.is_finite() => Ok(l),
        _ => Err("expected a number of at least 0".into()),
    }
}

fn stored(name: &str) -> Result<DType, String> {
    match DType::from_name(name)? {
        DType::F16 => Err("expected f32 or bf16".into()),
        dtype => Ok(dtype),
    }
}

/// Windows to fit to, and windows to judge by.
struct Windows {
    fit: Vec<Vec<u32>>,
    held_out: Vec<Vec<u32>>,
}

impl Fit {
    pub fn run(self) -> Result<()> {
        let folder = fs::read_dir(&self.out).map(|mut there| there.next().is_some());
        ensure!(
            !folder.unwrap_or(self.out.exists()),
            "{}: exists and is not empty; choose another folder with --out, or remove it",
            self.out.display()
        );
        let tokenizer = Text::load(&self.base)?;
        let base = Arc::new(Network::load(&self.base)?);
        let aux = self.aux(&base)?;
        let layout = self.layout(&base, aux.as_deref())?;
        let precision = self.dtype.unwrap_or(Precision::natural(base.weight_dtype()));
        let target = match self.target {
            KeyTarget::Raw => fit::Target::Raw,
            KeyTarget::HeadRms => fit::Target::HeadRms,
        };
        ensure!(
            target == fit::Target::Raw || base.config().qk_norm,
            "--target head-rms is for bases that norm the heads of their keys, and {} has no k_norm: take raw",
            self.base.display()
        );
        let spec = Spec { layout, target, window: self.window as usize, precision };
        let text = Corpus::load(&tokenizer, &self.text, base.config().vocab, &self.base)?;
        let features = spec.features(base.config(), aux.as_ref().map(|a| a.config()));
        let windows = self.windows(&text, &spec, features)?;
        let needs = spec.needs(base.config(), aux.as_ref().map(|a| a.config()));
        self.say(&base, aux.as_deref(), (&spec, features), &text, &windows, needs);
        let free = machine::available_memory();
        ensure!(
            free.is_none_or(|free| needs.memory <= free),
            "{} of memory are needed and {} are available: take a shorter --window, or fewer layers to fit",
            bytes(needs.memory),
            bytes(free.unwrap_or_default())
        );

        let engine = self.engine.engine()?;
        let mut work = fit::Fit::new(Arc::clone(&base), aux.clone(), spec.clone())?;
        [Some(&base), aux.as_ref()].into_iter().flatten().for_each(|n| n.warm());
        // Once for what is touched the first time, once for the clock.
        let block = windows.fit[..spec.windows().min(windows.fit.len())].concat();
        work.rehearse(&engine, &block)?;
        let each = work.rehearse(&engine, &block)?.as_secs_f64() / (block.len() as f64);
        let tokens = (windows.fit.len() + windows.held_out.len()) * spec.window;
        let about = seconds(each * tokens as f64 * 1.1);
        console::note(format_args!("time: about {about}, as {:.0} tokens in a second can be read here", 1.0 / each));
        if self.plan {
            return Ok(());
        }

        let made_of = self.made_of(&tokenizer, &base, aux.as_deref(), &spec, &text, &windows)?;
        // From here on there is something to keep.
        cleanup::wait_when_asked();
        let state = State::claim(&self.out, needs.sums)?;
        let mut settings = made_of.clone();
        // What the sums do not depend on.
        ["lambda", "stored_as", "program"]
            .iter()
            .for_each(|name| drop(settings.as_object_mut().map(|s| s.remove(*name))));
        if state.file.exists() {
            work.restore(&state.file, MappedFile::open(&state.file)?.bytes(), &settings)?;
            ensure!(work.windows() <= windows.fit.len(), "{}: more windows than there are", state.file.display());
            console::note(format_args!(
                "going on after {} of {} windows, which an interrupted fit had read",
                work.windows(),
                windows.fit.len()
            ));
        }
        let began = Instant::now();
        let before = work.windows();
        self.read(&mut work, &engine, &windows, &state, &settings)?;
        let kept = || format!("the sums are kept in {}", state.folder.display());
        let maps = work.solve(self.lambda, self.store).with_context(kept)?;
        let mut explained = Explained::default();
        for block in windows.held_out.chunks(spec.windows()) {
            work.score(&engine, &maps, &mut explained, &block.concat())?;
            stop_if_asked(&state);
        }
        let layers = explained.layers(&maps);
        let rounded = |share: Option<f64>| share.map(|s| (s * 1e6).round() / 1e6);
        let mut about = made_of;
        about["explained"] = layers
            .iter()
            .map(|l| json!({"layer": l.layer, "keys": rounded(l.keys), "values": rounded(l.values)}))
            .collect();
        work.publish(&maps, &self.out, about).with_context(|| {
            format!(
                "{}: cannot write the predictor; the sums are kept in {}",
                self.out.display(),
                state.folder.display()
            )
        })?;
        state.remove();
        if let Some(note) = speed(&work, (work.windows() - before) * spec.window, began.elapsed()) {
            console::note(note);
        }
        console::print(table(&layers))?;
        console::print(format_args!("wrote {}", output::shown(&self.out)))
    }

    /// The auxiliary, if there is one, with the base's vocabulary.
    fn aux(&self, base: &Network) -> Result<Option<Arc<Network>>> {
        let Some(dir) = &self.aux else { return Ok(None) };
        let aux = Network::load(dir)?;
        let of = |dir: &Path, network: &Network| Vocabulary {
            of: dir.display().to_string(),
            size: network.config().vocab,
            tokenizer: Some(dir.join("tokenizer.json")).filter(|file| file.exists()),
        };
        vocabulary::check(&of(&self.base, base), &of(dir, &aux))?;
        Ok(Some(Arc::new(aux)))
    }

    /// What is predicted from where: by the paper's rule from an auxiliary; else from the last layer that reads the prompt, the
    /// first of the others by its own projections where the hidden state is there.
    fn layout(&self, base: &Network, aux: Option<&Network>) -> Result<Layout> {
        let layers = base.config().layers.len();
        let input = match self.input {
            MapInput::Kv => Input::KeysAndValues,
            MapInput::Hidden => Input::Hidden,
        };
        if let Some(aux) = aux {
            let map = layer_map(layers, aux.config().layers.len());
            return Ok(Layout {
                shared: None,
                layers: map.iter().map(|&layer| Some(Origin { layer, input })).collect(),
            });
        }
        let k = self.shared_layers.unwrap_or_default();
        // Of the hidden state the first layer that is predicted makes its own, so that another one must follow.
        let most = if self.input == MapInput::Hidden { layers.saturating_sub(2) } else { layers.saturating_sub(1) };
        if !(1..=most).contains(&k) {
            let own = if k + 1 == layers && self.input == MapInput::Hidden {
                ": the last layer projects the hidden state itself, which `ttft synth --init own` writes"
            } else {
                ""
            };
            bail!(
                "--shared-layers: expected 1 to {most} of the {layers} layers of {}, found {k}{own}",
                self.base.display()
            );
        }
        if self.input == MapInput::Hidden {
            return Ok(Layout::shared(layers, k, input));
        }
        let origin = Origin { layer: k - 1, input };
        Ok(Layout { shared: Some(k), layers: (0..layers).map(|i| (i >= k).then_some(origin)).collect() })
    }

    fn windows(&self, text: &Corpus, spec: &Spec, features: usize) -> Result<Windows> {
        let all = text.windows(spec.window, self.tokens.map(NonZeroUsize::get));
        let files =
            if let [one] = &self.text[..] { one.display().to_string() } else { format!("{} files", self.text.len()) };
        let asked = self.tokens.map(|t| format!(", of which --tokens takes {t}")).unwrap_or_default();
        ensure!(
            all.len() >= 2,
            "{files}: {} tokens{asked} make {} windows of {}, and at least 2 are needed, one of them to judge the maps by: give more \
             text, or a shorter --window",
            text.tokens(),
            all.len(),
            spec.window
        );
        let n = all.len();
        let held = (n / HELD_OUT).max(1);
        let mut windows = Windows { fit: Vec::with_capacity(n), held_out: Vec::with_capacity(held) };
        for (i, window) in all.into_iter().enumerate() {
            let held_out = (i + 1) * held / n > i * held / n;
            if held_out { &mut windows.held_out } else { &mut windows.fit }.push(window);
        }
        let rows = windows.fit.len() * spec.rows();
        if rows < features {
            return Err(anyhow::Error::from(Error::FewTokens { rows, features }).context(files));
        }
        Ok(windows)
    }

    /// Says what is fitted and what it takes, and what could be better; before anything long is done.
    fn say(
        &self,
        base: &Network,
        aux: Option<&Network>,
        (spec, features): (&Spec, usize),
        text: &Corpus,
        windows: &Windows,
        needs: fit::Needs,
    ) {
        let fitted: Vec<usize> =
            spec.layout.predicted().filter(|(_, o)| o.input != Input::Own).map(|(i, _)| i).collect();
        let source = match (&spec.layout.shared, self.input) {
            (None, MapInput::Kv) => "keys and values of the auxiliary".into(),
            (None, MapInput::Hidden) => "hidden states of the auxiliary".into(),
            (Some(k), MapInput::Kv) => format!("keys and values of its layer {}", k - 1),
            (Some(k), MapInput::Hidden) => format!("the hidden state behind its layer {}", k - 1),
        };
        console::note(format_args!(
            "maps: keys and values of {} of {} layers of the base, {} million numbers, from {source} ({features} features)",
            fitted.len(),
            base.config().layers.len(),
            (needs.maps as f64 / 1e5).round() / 10.0,
        ));
        let length: u64 = text.files.iter().map(|f| f.bytes).sum();
        let (n, w) = (windows.fit.len(), spec.window);
        console::note(format_args!(
            "text: {}, {} tokens in {} file{}; {} windows of {w} are read: {} tokens to fit to, {} to judge the maps by",
            bytes(length),
            text.tokens(),
            text.files.len(),
            if text.files.len() == 1 { "" } else { "s" },
            n + windows.held_out.len(),
            n * spec.rows(),
            windows.held_out.len() * spec.rows(),
        ));
        let weights = base.mapped_bytes() + aux.map_or(0, Network::mapped_bytes);
        let there = std::path::absolute(&self.out).unwrap_or_default();
        let free = there.ancestors().find(|dir| dir.exists()).and_then(|dir| fs4::available_space(dir).ok());
        console::note(format_args!(
            "memory: {} beside {} of weights; disk: {} for the predictor, and {} for the sums until it is done{}",
            bytes(needs.memory),
            bytes(weights),
            bytes(needs.maps * self.store.size() as u64),
            bytes(2 * needs.sums),
            free.map(|free| format!("; {} are free there", bytes(free))).unwrap_or_default()
        ));
        if n * spec.rows() < ENOUGH * features {
            console::note(format_args!(
                "remark: {} tokens for each feature; more text, up to {ENOUGH} tokens for each, makes better maps",
                n * spec.rows() / features.max(1)
            ));
        }
        if w > base.config().max_context {
            console::note(format_args!(
                "remark: windows of {w} tokens are longer than the {} that the base was trained on",
                base.config().max_context
            ));
        }
    }

    /// What the maps are made of, as their configuration says.
    fn made_of(
        &self,
        tokenizer: &Text,
        base: &Network,
        aux: Option<&Network>,
        spec: &Spec,
        text: &Corpus,
        windows: &Windows,
    ) -> Result<Value> {
        let network = |dir: &Path, network: &Network| -> Result<Value> {
            let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
            let name = printable(&dir.file_name().unwrap_or_default().to_string_lossy());
            let config = network.config().to_json("").to_string();
            Ok(json!({
                "name": name,
                "layers": network.config().layers.len(),
                "weights": network.weight_dtype().name(),
                "config_sha256": identity::sha256(&*config),
                "weights_sha256": identity::weights_sha256(&dir)?,
            }))
        };
        let mut made = json!({
            "program": concat!("ttft ", env!("CARGO_PKG_VERSION")),
            "method": "ridge",
            "base": network(&self.base, base)?,
            "tokenizer_sha256": identity::file_sha256(tokenizer.path())?,
            "text": text.files,
            "window": spec.window,
            "windows": windows.fit.len(),
            "tokens": windows.fit.len() * spec.window,
            "rows": windows.fit.len() * spec.rows(),
            "held_out_windows": windows.held_out.len(),
            "lambda": self.lambda,
            "target": spec.target.name(),
            "activations": spec.precision.name(),
            "stored_as": self.store.name(),
            "shared_layers": spec.layout.shared,
            "input": if self.input == MapInput::Kv { "kv" } else { "hidden" },
        });
        if let (Some(dir), Some(aux)) = (&self.aux, aux) {
            made["aux"] = network(dir, aux)?;
        }
        Ok(made)
    }

    /// Adds all windows that are left, and keeps what there is when the program is asked to end.
    fn read(&self, work: &mut fit::Fit, e: &Engine, windows: &Windows, state: &State, settings: &Value) -> Result<()> {
        let (window, all) = (work.spec().window, windows.fit.len());
        let bar = ProgressBar::new((all * window) as u64);
        let style = "[{bar:30}] {human_pos} of {human_len} tokens, {per_sec} (left: {eta})";
        bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
        bar.set_position((work.windows() * window) as u64);
        bar.reset_eta();
        let mut saved = Instant::now();
        while work.windows() < all {
            let next = &windows.fit[work.windows()..];
            work.add(e, &next[..next.len().min(work.spec().windows())].concat())?;
            bar.set_position((work.windows() * window) as u64);
            let asked = cleanup::asked();
            if asked || work.windows() == all || saved.elapsed() >= SAVE_EACH {
                work.save(&state.file, settings)?;
                saved = Instant::now();
            }
            if asked {
                bar.abandon();
                console::note(format_args!("{} of {all} windows were read", work.windows()));
                stop_if_asked(state);
            }
        }
        bar.finish_and_clear();
        Ok(())
    }
}

/// Ends the program if it is asked to; what was read is in the state's file.
fn stop_if_asked(state: &State) {
    if cleanup::asked() {
        console::note(format_args!(
            "interrupted; the sums are kept in {}: the same command goes on from there",
            state.folder.display()
        ));
        cleanup::end_as_asked();
    }
}

/// Where an interrupted fit leaves its sums: in a folder beside the one to be made, of which one process at a time has hold.
struct State {
    folder: PathBuf,
    file: PathBuf,
    /// Locked as long as this is open.
    _lock: fs::File,
}

impl State {
    fn claim(out: &Path, needed: u64) -> Result<State> {
        let out = std::path::absolute(out).with_context(|| out.display().to_string())?;
        let name =
            out.file_name().with_context(|| format!("{}: it has no name: choose another --out", out.display()))?;
        let folder = out.with_file_name(format!(".{}.ttft-fit", name.to_string_lossy()));
        let cannot = || format!("{}: cannot keep the sums there; --out names the folder beside it", folder.display());
        fs::create_dir_all(&folder).with_context(cannot)?;
        let path = folder.join("lock");
        let lock = fs::File::options().create(true).truncate(false).write(true).open(&path).with_context(cannot)?;
        if let Err(fs::TryLockError::WouldBlock) = lock.try_lock() {
            bail!(
                "{}: another ttft fit is making this predictor: wait for it, or choose another --out",
                path.display()
            );
        }
        if let Ok(free) = fs4::available_space(&folder) {
            // A new state is written beside the old one.
            let needed = 2 * needed;
            ensure!(
                free >= needed,
                "{}: {} are needed for the sums, and {} are free: free some space or choose another --out",
                folder.display(),
                bytes(needed),
                bytes(free)
            );
        }
        Ok(State { file: folder.join("sums.safetensors"), folder, _lock: lock })
    }

    /// Removes it all; what cannot be removed hurts nobody.
    fn remove(self) {
        ["sums.safetensors", "sums.new", "lock"].iter().for_each(|name| drop(fs::remove_file(self.folder.join(name))));
        let _ = fs::remove_dir(&self.folder);
    }
}

/// How fast the text was read.
fn speed(work: &fit::Fit, tokens: usize, took: Duration) -> Option<String> {
    let (reading, adding) = work.times();
    let share = reading.as_secs_f64() / (reading + adding).as_secs_f64();
    (tokens > 0).then(|| {
        format!(
            "{tokens} tokens in {}; reading them went at {:.0} tokens in a second, {:.0}% of the network's own speed",
            seconds(took.as_secs_f64()),
            tokens as f64 / (reading + adding).as_secs_f64(),
            100.0 * share
        )
    })
}

/// What the maps explain, layer by layer.
fn table(layers: &[LayerScore]) -> String {
    let mut text = "share of the variance that the maps explain, on windows that they were not fitted to:\n  layer   keys  values\n".to_owned();
    let share = |s: Option<f64>| s.map_or("-".into(), |s| format!("{s:.3}"));
    for l in layers {
        text += &format!("  {:>5}  {:>5}   {:>5}\n", l.layer, share(l.keys), share(l.values));
    }
    text.trim_end().to_owned()
}
