use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use ttft_kernels::DType;
use ttft_models::{
    NetworkConfig,
    kv_prediction::layout::{Input, Layout, OwnTokens},
    synth::{self, Made, Spec},
    zoo,
};

use crate::{console, output, scenario::Named};

/// Write synthetic weights, with the shapes of a network or pair and random values
#[derive(Args, Debug)]
pub struct Synth {
    /// Network (such as OE1.1B), pair (such as OE1.1B-KVP-C-450M), shared layers (such as OE1.1B-KVP-S19), or path of a config.json
    name: String,
    /// Type of the weights: f32, f16 or bf16
    #[arg(long, value_name = "TYPE", default_value = "bf16", value_parser = DType::from_name)]
    dtype: DType,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of the values
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Maps of shared layers: random values, or `own` for no maps, so that each layer projects the hidden state itself
    #[arg(long, value_name = "INIT", default_value = "random")]
    init: Init,
    /// With the path of a config.json: write the predictor for this many shared layers, and no network
    #[arg(long, value_name = "K")]
    shared_layers: Option<usize>,
}

/// What the maps of a predictor begin as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Init {
    Random,
    Own,
}

impl Synth {
    pub fn run(self) -> Result<()> {
        let bar = ProgressBar::new(0);
        let style = "[{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} (left: {eta})";
        bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
        let progress = |done: u64, total: u64| {
            bar.set_length(total);
            bar.set_position(done);
        };
        let config = Path::new(&self.name);
        let made = if let (true, Some(k)) = (config.is_file(), self.shared_layers) {
            let base = NetworkConfig::load(config)?;
            let layers = base.layers.len();
            ensure!(
                (1..layers).contains(&k),
                "--shared-layers: expected 1 to {} of the {layers} layers of {}, found {k}",
                layers.saturating_sub(1),
                self.name
            );
            let input = if self.init == Init::Own { Input::Own } else { Input::Hidden };
            let layout = Layout::shared(layers, k, input);
            Spec::custom_predictor("config.json", base, None, layout, self.dtype, self.seed).make(&self.out, &progress)
        } else if config.is_file() {
            ensure!(
                self.init == Init::Random,
                "--init own is for a predictor: --shared-layers says of how many layers"
            );
            let config = NetworkConfig::load(config)?;
            // The values do not depend on where the file lies.
            Spec::custom("config.json", config, self.dtype, self.seed).make(&self.out, &progress)
        } else if config.is_dir() {
            bail!("{} is a folder: give a name, or the path of a config.json", self.name)
        } else {
            ensure!(
                self.shared_layers.is_none(),
                "--shared-layers goes with the path of a config.json; a name says it itself"
            );
            let name = match self.init {
                Init::Random => self.name.clone(),
                Init::Own => own(&self.name)?,
            };
            synth::named(&name, self.dtype, self.seed, &self.out, &progress)
        };
        bar.finish_and_clear();
        let out = output::shown(&self.out);
        match made
            .with_context(|| format!("{}: cannot make the weights (--out names the folder)", self.out.display()))?
        {
            Made::Written => console::print(format_args!("wrote {out}")),
            Made::WrittenUnlocked => console::print(format_args!("wrote {out}, on a file system without locks")),
            Made::Reused => console::print(format_args!("{out} is there already, and is what was asked for")),
        }
    }
}

/// The name of the KV prediction that has the shared layers of this one, and no maps.
fn own(name: &str) -> Result<String> {
    let plain = OwnTokens::strip(name).0;
    let plain = plain.strip_suffix("own").unwrap_or(plain);
    let shared = zoo::prediction(plain).is_ok_and(|p| p.layout.shared.is_some());
    ensure!(shared, "--init own is for shared layers, such as {}; '{name}' has none", zoo::SHARED[0]);
    Ok(format!("{plain}own"))
}
