use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use ttft_models::{
    DType,
    gguf::{Container, Conversion},
    synth::Made,
    weights::MappedFile,
};
use ttft_reports::format::bytes;

use crate::{console, output, scenario::Named};

/// Convert a GGUF file (llama.cpp) to a folder as on the Hub: configuration, weights and tokenizer
#[derive(Args, Debug)]
pub struct Convert {
    /// The GGUF file of a network of architecture llama, qwen2 or qwen3
    #[arg(value_name = "FILE.gguf")]
    file: PathBuf,
    /// The folder to make; it is not there yet, or empty
    dir: PathBuf,
    /// Type of the weights to write: f32 or bf16
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = wide)]
    dtype: DType,
    /// Leave the tokenizer out, where it cannot be rebuilt
    #[arg(long)]
    no_tokenizer: bool,
}

/// What weights are widened to: F16 would lose the range of many.
fn wide(name: &str) -> Result<DType, String> {
    match DType::from_name(name)? {
        DType::F16 => Err("expected f32 or bf16".into()),
        dtype => Ok(dtype),
    }
}

impl Convert {
    pub fn run(self) -> Result<()> {
        let file = MappedFile::open(&self.file)?;
        let container = Container::parse(&self.file, file.bytes())?;
        let conversion = Conversion::new(&container, self.dtype, !self.no_tokenizer)?;
        let out = output::shown(&self.dir);
        let there = std::path::absolute(&self.dir)?;
        let free = there.ancestors().find(|dir| dir.exists()).and_then(|dir| fs4::available_space(dir).ok());
        let free = free.map(|free| format!("; {} are free there", bytes(free))).unwrap_or_default();
        console::note(format_args!(
            "{}: {} tensors, {:.1} million parameters, {}; {out} will hold {} of weights in {}{free}",
            output::shown(&self.file),
            container.tensors().count(),
            conversion.params() as f64 / 1e6,
            bytes(file.bytes().len() as u64),
            bytes(conversion.bytes()),
            self.dtype.name(),
        ));
        let bar = ProgressBar::new(conversion.bytes());
        let style = "[{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} (left: {eta})";
        bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
        let made = conversion.write(&self.dir, &|done, _| bar.set_position(done));
        bar.finish_and_clear();
        match made.with_context(|| format!("{}: cannot make the folder", self.dir.display()))? {
            Made::WrittenUnlocked => console::print(format_args!("wrote {out}, on a file system without locks")),
            _ => console::print(format_args!("wrote {out}")),
        }
    }
}
