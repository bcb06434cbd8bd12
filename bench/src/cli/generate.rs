use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use clap::Args;
use ttft_models::{Extent, Precision, RunSpec, System, memory, plan};
use ttft_reports::format::{bytes, seconds};

use super::{
    prompt::{self, Prompt},
    system::Choice,
};
use crate::{
    catalog::Asked,
    console,
    knobs::EngineKnobs,
    machine,
    scenario::Named,
    text::{self, Text},
};

/// Continue a text with a network or a KV prediction, and print the time to the first token and for each later one
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("text").required(true))]
#[command(after_help = "Example:\n  ttft convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2\n  \
                        ttft generate --base smollm2 --tokens 12 \"The capital of France is\"")]
pub struct Generate {
    #[command(flatten)]
    prompt: Prompt,
    /// Folder of the base network (config.json, model.safetensors, tokenizer.json)
    #[arg(long, value_name = "DIR")]
    base: String,
    /// Folder of the auxiliary network; without it and without a predictor the base runs alone
    #[arg(long, value_name = "DIR", requires = "predictor")]
    aux: Option<String>,
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
        let folder = Path::new(&self.base);
        let text = Text::load(folder)?;
        let ends = text::ends(folder)?;
        let (ids, tokenized) = self.prompt.ids(&text, folder)?;

        let engine = self.engine.engine()?;
        let (system, opened) = self.system()?;
        prompt::check_ids(&ids, ids.len(), &system, text.path())?;
        let base = system.base();
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
            prompt::check_logits(inference.logits())?;
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
        console::note(report(ids.len(), first, &later, [tokenized, opened], ended));
        Ok(())
    }

    /// What answers, and how long opening its folders took.
    fn system(&self) -> Result<(System, Duration)> {
        let own = |n: u32| self.predictor.is_some().then_some(n as usize);
        let choice = Choice::new(Asked {
            base: self.base.clone(),
            aux: self.aux.clone(),
            predictor: self.predictor.clone(),
            base_tokens: own(self.base_tokens),
            sink_tokens: own(self.sink_tokens),
            ..Asked::default()
        })?;
        if let Some(what) = choice.stand_ins().first() {
            bail!("{what}: what they say means nothing, so give folders with weights");
        }
        let began = Instant::now();
        Ok((choice.load(None)?, began.elapsed()))
    }
}

/// What it took, in words.
fn report(prompt: usize, first: Duration, later: &[Duration], before: [Duration; 2], ended: &str) -> String {
    let show = |d: Duration| seconds(d.as_secs_f64());
    let tokens = |n: usize| format!("{n} token{}", if n == 1 { "" } else { "s" });
    let [tokenized, opened] = before.map(show);
    let mut text = format!(
        "TTFT {} for a prompt of {}; not in it: tokenization {tokenized}, opening the weights {opened}\n",
        show(first),
        tokens(prompt)
    );
    if !later.is_empty() {
        let each = later.iter().sum::<Duration>() / later.len() as u32;
        text += &format!("time per token: {} (mean of {} after the first)\n", show(each), later.len());
    }
    text + &format!("generated {} ({ended}); measured once: `ttft bench` measures well", tokens(later.len() + 1))
}
