use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use ttft_kernels::DType;
use ttft_models::{
    NetworkConfig,
    synth::{self, Made, Spec},
};

use crate::{console, output, scenario::Named};

/// Write synthetic weights, with the shapes of a network or pair and random values
#[derive(Args, Debug)]
pub struct Synth {
    /// Network (such as OE1.1B), pair (such as OE1.1B-KVP-C-450M), or path of a config.json
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
        let made = if config.is_file() {
            let config = NetworkConfig::load(config)?;
            // The values do not depend on where the file lies.
            Spec::custom("config.json", config, self.dtype, self.seed).make(&self.out, &progress)
        } else if config.is_dir() {
            bail!("{} is a folder: give a name, or the path of a config.json", self.name)
        } else {
            synth::named(&self.name, self.dtype, self.seed, &self.out, &progress)
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
