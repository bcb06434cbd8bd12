use std::{
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ttft_models::{
    Extent, KvPrediction, Network, Precision, RunSpec, System, kv_prediction::layout::OwnTokens, memory, plan,
};
use ttft_reports::format::{bytes, seconds};

use crate::{
    console,
    knobs::EngineKnobs,
    machine,
    scenario::Named,
    text::{self, Text},
    vocabulary::{self, Vocabulary},
};

/// Continue a text with a network or a KV prediction, and print the time to the first token and for each later one
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("text").required(true))]
#[command(after_help = "Example:\n  ttft convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2\n  \
                        ttft generate --base smollm2 --tokens 12 \"The capital of France is\"")]
pub struct Generate {
    /// What to continue, or `-` for standard input
    #[arg(group = "text")]
    prompt: Option<String>,
    /// UTF-8 file with what to continue, or `-` for standard input; a line end at its end is left out
    #[arg(long, value_name = "FILE", group = "text")]
    prompt_file: Option<PathBuf>,
    /// Folder of the base network (config.json, model.safetensors, tokenizer.json)
    #[arg(long, value_name = "DIR")]
    base: PathBuf,
    /// Folder of the auxiliary network; without it and without a predictor the base runs alone
    #[arg(long, value_name = "DIR", requires = "predictor")]
    aux: Option<PathBuf>,
    /// Folder of the predictor; without an auxiliary it is one for shared layers of the base
    #[arg(long, value_name = "DIR")]
    predictor: Option<PathBuf>,
    /// Last tokens of the prompt that the base of a KV prediction reads itself
    #[arg(long, value_name = "M", default_value_t = 1, requires = "predictor",
          value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    base_tokens: u32,
    /// First tokens of the prompt that the base of a KV prediction reads itself
    #[arg(long, value_name = "S", default_value_t = 0, requires = "predictor",
          value_parser = clap::value_parser!(u32).range(0..=1 << 24))]
    sink_tokens: u32,
    /// Take the text for what a user says, and answer it, by the chat template of the folder
    #[arg(long)]
    chat: bool,
    /// Most tokens to generate, including the first; the network may end earlier
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    tokens: u32,
    /// Type of activations and caches: f32 or bf16 (default: bf16 for BF16 weights, else f32)
    #[arg(long, value_name = "TYPE", value_parser = Precision::from_name)]
    dtype: Option<Precision>,
    #[command(flatten)]
    engine: EngineKnobs,
}

impl Generate {
    pub fn run(self) -> Result<()> {
        let text = Text::load(&self.base)?;
        let ends = text::ends(&self.base)?;
        let prompt = self.prompt()?;
        let began = Instant::now();
        let ids =
            if self.chat { text.ids(&Text::chat(&self.base, &prompt)?, true)? } else { text.ids(&prompt, false)? };
        let tokenized = began.elapsed();
        ensure!(!ids.is_empty(), "the prompt is empty: give at least one token");

        let engine = self.engine.engine()?;
        let system = self.system()?;
        let base = system.base();
        let vocab = base.config().vocab;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
            bail!(
                "{}: the prompt has token {id}, and the vocabulary of {} has {vocab}: the two do not belong together",
                text.path().display(),
                self.base.display()
            );
        }
        let spec = RunSpec {
            batch: 1,
            prompt: ids.len(),
            generate: self.tokens as usize,
            precision: self.dtype.unwrap_or(Precision::natural(base.weight_dtype())),
            extent: Extent::FirstToken,
        };
        let trained = base.config().max_context;
        if spec.positions() > trained {
            console::note(format_args!(
                "{} positions are more than the {trained} that the network was trained on: expect nonsense beyond",
                spec.positions()
            ));
        }
        let need = memory(&system, &spec).total();
        if let Some(free) = machine::available_memory() {
            ensure!(
                need <= free,
                "a prompt of {} tokens and {} more need {} of memory, {} are available: take a shorter prompt, or fewer \
                 --tokens",
                ids.len(),
                self.tokens,
                bytes(need),
                bytes(free)
            );
        }
        let mut inference = plan(&system, &spec)?;
        // Weights come from the disk here, and not within the first token's time.
        match &system {
            System::KvPrediction(s) => {
                s.networks().for_each(|n| n.warm());
                s.predictor.warm();
            }
            system => system.base().warm(),
        }

        let mut decode = text.stream(&ids)?;
        let mut later = Vec::new();
        let first = inference.first_token(&engine, &ids)?.total;
        let mut ended = "as many as --tokens allows";
        loop {
            let id = inference.token_ids()[0];
            if ends.contains(&id) {
                ended = "the network ended";
                break;
            }
            if let Some(piece) = decode(id)?
                && console::stream(&piece)?.is_break()
            {
                ended = "nobody reads on";
                break;
            }
            if later.len() + 1 == spec.generate {
                break;
            }
            later.push(inference.next_token(&engine)?);
        }
        let _ = console::stream("\n")?;
        console::note(report(ids.len(), first, &later, tokenized, ended));
        Ok(())
    }

    /// What to continue.
    fn prompt(&self) -> Result<String> {
        let file = match (&self.prompt, &self.prompt_file) {
            (Some(prompt), _) if prompt != "-" => return Ok(prompt.clone()),
            (_, Some(file)) if file != Path::new("-") => Some(file),
            _ => None,
        };
        let text = match file {
            Some(file) => text::read_text(file)?,
            None => {
                if io::stdin().is_terminal() {
                    console::note("reading the prompt from standard input; end it with Ctrl-D on a new line");
                }
                text::read_all(io::stdin().lock()).context("standard input")?
            }
        };
        let line = text.strip_suffix('\n').unwrap_or(&text);
        Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
    }

    fn system(&self) -> Result<System> {
        let base = Arc::new(Network::load(&self.base)?);
        let Some(predictor) = &self.predictor else { return Ok(System::Network(base)) };
        let of = |dir: &Path, network: &Network| Vocabulary {
            of: dir.display().to_string(),
            size: network.config().vocab,
            tokenizer: Some(dir.join("tokenizer.json")).filter(|file| file.exists()),
        };
        let aux = match &self.aux {
            Some(dir) => {
                let aux = Network::load(dir)?;
                vocabulary::check(&of(&self.base, &base), &of(dir, &aux))?;
                Some(Arc::new(aux))
            }
            None => None,
        };
        let own = OwnTokens { last: self.base_tokens as usize, first: self.sink_tokens as usize, kept: false };
        Ok(System::KvPrediction(KvPrediction::new(base, aux, predictor)?.reading(own)))
    }
}

/// What it took, in words.
fn report(prompt: usize, first: Duration, later: &[Duration], tokenized: Duration, ended: &str) -> String {
    let show = |d: Duration| seconds(d.as_secs_f64());
    let tokens = |n: usize| format!("{n} token{}", if n == 1 { "" } else { "s" });
    let mut text = format!(
        "TTFT {} for a prompt of {}; tokenization, not in it: {}\n",
        show(first),
        tokens(prompt),
        show(tokenized)
    );
    if !later.is_empty() {
        let each = later.iter().sum::<Duration>() / later.len() as u32;
        text += &format!("time per token: {} (mean of {} after the first)\n", show(each), later.len());
    }
    text + &format!("generated {} ({ended}); measured once: `ttft bench` measures well", tokens(later.len() + 1))
}
