use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use safetensors::{Dtype, View, serialize};
use serde_json::Value;
use ttft_models::{
    Extent, NamedTensor, Precision, Pruning, RunSpec, cost::CostSystem, kv_prediction::layout::Order, memory, plan,
};
use ttft_reports::{
    format::bytes,
    text::{stand_in, without_mark},
};

use super::{
    prompt::{self, Prompt},
    system::{self, Choice},
};
use crate::{
    catalog::Asked,
    console,
    knobs::EngineKnobs,
    machine,
    output::{self, Pending},
    scenario::Named,
    text::Text,
    trace::Trace,
};

/// Longest tokens file that is read.
const MAX_TOKENS_BYTES: u64 = 256 << 20;

/// Run a network or a KV prediction on token ids or a text and write its logits
#[derive(Args, Debug)]
#[command(group = clap::ArgGroup::new("text").required(true))]
#[command(after_help = "Example:\n  ttft synth OE1.1B-KVP-C-450M --out pair && echo '[[1, 2, 3]]' > tokens.json\n  \
                        ttft logits --base pair/base --aux pair/aux --predictor pair/predictor --tokens tokens.json \
                        --out logits.safetensors\n  \
                        ttft logits --base smollm2 --out logits.safetensors \"The capital of France is\"")]
pub struct Logits {
    /// The base network: a folder as the Hub has it (config.json, model.safetensors or shards), a folder or file with only a
    /// config.json (weights of its shape are then made), or a network of the zoo
    #[arg(long, value_name = "DIR|NAME")]
    base: String,
    /// The auxiliary network, likewise; without it the base runs alone, or with a predictor its first layers read the prompt
    #[arg(long, value_name = "DIR|NAME")]
    aux: Option<String>,
    /// Folder of the predictor (default with an auxiliary: one of the right shape with random values, which predicts nothing)
    #[arg(long, value_name = "DIR")]
    predictor: Option<PathBuf>,
    /// Last tokens of each prompt that the base of a KV prediction reads itself [default: 1]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    base_tokens: Option<u32>,
    /// First tokens of each prompt that the base of a KV prediction reads itself [default: 0]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(0..=1 << 24))]
    sink_tokens: Option<u32>,
    /// The base's layers run beside the auxiliary's instead of after them, with the same results
    #[arg(long, requires = "aux", conflicts_with = "prune")]
    pipelined: bool,
    /// Keep the keys and values of the first tokens, which depend on these alone, as of an earlier call: the time to the first token is
    /// then without them
    #[arg(long, requires = "sink_tokens")]
    keep_sinks: bool,
    /// Folder in which synthetic weights are kept (default: ttft-weights in the target folder)
    #[arg(long, env = "TTFT_WEIGHTS", value_name = "DIR")]
    weights: Option<PathBuf>,
    /// Token pruning of the base: RP-0.50 (random), SP-0.25 (static), L0.75-0.10 (LazyLLM), SpecPrefill-0.40 (by --aux) or
    /// GemFilter-LAYER-COUNT
    #[arg(long, value_name = "PRUNING", conflicts_with = "predictor")]
    prune: Option<Pruning>,
    /// Queries by which SpecPrefill scores tokens: the prompt's last, and one for each token decoded ahead [default: 8]
    #[arg(long, value_name = "A", requires = "prune")]
    look_ahead: Option<usize>,
    /// Tokens that SpecPrefill keeps or drops together [default: 32]
    #[arg(long, value_name = "C", requires = "prune")]
    chunk: Option<usize>,
    /// Width of the window over which scores of neighbours are averaged, an odd number [default: SpecPrefill 13, GemFilter 5]
    #[arg(long, value_name = "W", requires = "prune")]
    pool: Option<usize>,
    /// JSON file with the prompts: an array of equal-length arrays of token ids
    #[arg(long, value_name = "FILE", group = "text")]
    tokens: Option<PathBuf>,
    #[command(flatten)]
    prompt: Prompt,
    /// Number of tokens to generate greedily, including the first
    #[arg(long, value_name = "T", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    generate: u32,
    /// Type of activations and caches: f32 or bf16 (default: bf16 for BF16 weights, else f32)
    #[arg(long, value_name = "TYPE", value_parser = Precision::from_name)]
    dtype: Option<Precision>,
    /// File for the tensors: logits_last [B,V], greedy_ids [B,T], greedy_logits [B,T,V]; of a text its ids, input_ids [1,N]; where
    /// tokens of the prompt are dropped before the base runs, kept [B,count] and scores [B,N]
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// Also write what each phase, step and thread did and when, for chrome://tracing or ui.perfetto.dev; the first token is then
    /// made twice, so that the weights are in memory
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// Also write the caches after the first token
    #[arg(long)]
    dump_cache: bool,
    /// Compute every layer and the head at every position
    #[arg(long)]
    full_network: bool,
    #[command(flatten)]
    engine: EngineKnobs,
}

impl Logits {
    pub fn run(self) -> Result<()> {
        let (base_path, aux_path) = (Path::new(&self.base), self.aux.as_ref().map(Path::new));
        let inputs = [self.tokens.as_deref(), self.prompt.file(), Some(base_path), aux_path, self.predictor.as_deref()];
        output::spare(&self.out, inputs.into_iter().flatten())?;
        if let Some(trace) = &self.trace {
            output::spare(trace, inputs.into_iter().flatten().chain([&*self.out]))?;
        }
        let out = Pending::claim(&self.out)?;
        let trace_out = self.trace.as_deref().map(Pending::claim).transpose()?;
        let (text, (ids, batch, prompt)) = match &self.tokens {
            Some(tokens) => {
                ensure!(!self.prompt.chat, "--chat puts a text into a chat: give a prompt in place of --tokens");
                (None, read_tokens(tokens)?)
            }
            None => {
                let text = Text::load(base_path)?;
                let (ids, _) = self.prompt.ids(&text, base_path)?;
                let n = ids.len();
                (Some(text), (ids, 1, n))
            }
        };
        let engine = self.engine.engine()?;
        let prune =
            self.prune.map(|p| p.with(self.look_ahead, self.chunk, self.pool)).transpose().context("--prune")?;
        let prediction = prune.is_none() && (self.aux.is_some() || self.predictor.is_some());
        ensure!(
            prediction || (self.base_tokens.is_none() && self.sink_tokens.is_none()),
            "--base-tokens and --sink-tokens say what the base of a KV prediction reads itself: give its --predictor, or an \
             --aux, too"
        );
        let count = |n: Option<u32>| n.map(|n| n as usize);
        let asked = Asked {
            name: None,
            base: self.base.clone(),
            aux: self.aux.clone(),
            predictor: self.predictor.clone(),
            base_tokens: count(self.base_tokens),
            sink_tokens: count(self.sink_tokens),
            keep_sinks: self.keep_sinks.then_some(true),
            prune,
        };
        let order = if self.pipelined { Order::Pipelined } else { Order::InTurn };
        let choice = Choice::new(asked)?.ordered(order);
        choice.stand_ins().iter().for_each(console::note);
        let system = choice.load(self.weights.clone())?;
        let from = text.as_ref().map(Text::path).or(self.tokens.as_deref()).unwrap_or(base_path);
        prompt::check_ids(&ids, prompt, &system, from)?;
        let (vocab, weights) = (system.base().config().vocab, system.base().weight_dtype());
        let copied = system::copied_bytes(&system);
        let generate = self.generate as usize;
        let extent = if self.full_network { Extent::FullNetwork } else { Extent::FirstToken };
        let precision = self.dtype.unwrap_or(Precision::natural(weights));
        let spec = RunSpec { batch, prompt, generate, precision, extent };
        let need = memory(&system, &spec).total() + (batch as u64) * (generate as u64) * (vocab as u64) * 4;
        if let Some(free) = machine::available_memory() {
            ensure!(
                need <= free,
                "{batch} prompts of {prompt} tokens with {generate} generated need {} of memory, and {} are available: take \
                 fewer or shorter prompts",
                bytes(need),
                bytes(free)
            );
        }

        let mut inference = plan(&system, &spec)?;
        if self.trace.is_some() {
            // What is traced has its weights in memory, as what is timed has.
            inference.first_token(&engine, &ids)?;
        }
        inference.record(self.dump_cache);
        engine.pool().log(self.trace.is_some());
        let mut trace = Trace::new(CostSystem::of(&system), spec);
        let mut tensors = Vec::new();
        if text.is_some() {
            // As --tokens takes them.
            console::print(serde_json::to_string(&[&ids])?)?;
            let data = Data::I64(ids.iter().map(|&id| id.into()).collect());
            tensors.push(Tensor { name: "input_ids".into(), shape: vec![1, prompt], data });
        }
        let mut greedy_ids = vec![0i64; batch * generate];
        let mut greedy_logits = vec![0f32; batch * generate * vocab];
        for t in 0..generate {
            let began = Instant::now();
            if t == 0 {
                let times = inference.first_token(&engine, &ids)?;
                trace.call("first token", (began, times.total), &*inference, &engine.pool().take_log());
                if self.dump_cache {
                    tensors.extend(inference.cache_dump().into_iter().map(Tensor::from));
                }
                if let Some(chosen) = inference.chosen() {
                    // The dump has it as numbers of its own type.
                    tensors.retain(|t: &Tensor| t.name != "kept");
                    let kept: Vec<i64> = chosen.kept.iter().map(|&p| p.into()).collect();
                    let shape = vec![batch, kept.len() / batch];
                    tensors.push(Tensor { name: "kept".into(), shape, data: Data::I64(kept) });
                    tensors.push(Tensor::f32("scores", vec![batch, prompt], chosen.scores.to_vec()));
                }
            } else {
                let took = inference.next_token(&engine)?;
                trace.call(&format!("token {}", t + 1), (began, took), &*inference, &engine.pool().take_log());
            }
            let logits = inference.logits();
            prompt::check_logits(logits)?;
            for b in 0..batch {
                greedy_ids[b * generate + t] = inference.token_ids()[b].into();
                greedy_logits[(b * generate + t) * vocab..][..vocab].copy_from_slice(logits.row(b));
            }
        }
        let last = greedy_logits.chunks_exact(generate * vocab).flat_map(|b| &b[..vocab]).copied().collect();
        tensors.push(Tensor::f32("logits_last", vec![batch, vocab], last));
        tensors.push(Tensor { name: "greedy_ids".into(), shape: vec![batch, generate], data: Data::I64(greedy_ids) });
        tensors.push(Tensor::f32("greedy_logits", vec![batch, generate, vocab], greedy_logits));
        let about = (copied > 0).then(|| HashMap::from([("ttft_copied_weight_bytes".to_owned(), copied.to_string())]));
        let contents = serialize(tensors.iter().map(|t| (&t.name, t)), about)?;
        out.write(|w| Ok(w.write_all(&contents)?))?;
        if let Some(out) = trace_out {
            let about = serde_json::json!({
                "program": concat!("ttft ", env!("CARGO_PKG_VERSION")),
                "system": choice.name(),
                "order": order.name(),
                "cpu": machine::fingerprint().cpu_model,
                "batch": batch,
                "prompt": prompt,
                "precision": precision.name(),
                "extent": extent.name(),
                "threads": engine.threads(),
                "isa": engine.isa().name(),
                "backend": engine.backend().name(),
            });
            out.write(|w| Ok(serde_json::to_writer(w, &trace.json(about))?))?;
        }
        Ok(())
    }
}

enum Data {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

/// A tensor of the output.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    data: Data,
}

impl Tensor {
    fn f32(name: &str, shape: Vec<usize>, data: Vec<f32>) -> Tensor {
        Tensor { name: name.into(), shape, data: Data::F32(data) }
    }
}

impl From<NamedTensor> for Tensor {
    fn from(t: NamedTensor) -> Tensor {
        Tensor { name: t.name, shape: t.shape, data: Data::F32(t.data) }
    }
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        match self.data {
            Data::F32(_) => Dtype::F32,
            Data::I64(_) => Dtype::I64,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        // Little-endian by the format's definition.
        match &self.data {
            Data::F32(d) => d.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>().into(),
            Data::I64(d) => d.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>().into(),
        }
    }

    fn data_len(&self) -> usize {
        match &self.data {
            Data::F32(d) => size_of_val(&d[..]),
            Data::I64(d) => size_of_val(&d[..]),
        }
    }
}

/// The ids `[batch * prompt]`, batch and prompt length.
fn read_tokens(path: &Path) -> Result<(Vec<u32>, usize, usize)> {
    let file = File::open(path).with_context(|| format!("{}: cannot read the tokens", path.display()))?;
    let mut text = Vec::new();
    file.take(MAX_TOKENS_BYTES + 1).read_to_end(&mut text).with_context(|| format!("{}", path.display()))?;
    ensure!(text.len() as u64 <= MAX_TOKENS_BYTES, "{}: it is longer than {}", path.display(), bytes(MAX_TOKENS_BYTES));
    parse_tokens(&text).with_context(|| format!("{}", path.display()))
}

fn parse_tokens(text: &[u8]) -> Result<(Vec<u32>, usize, usize)> {
    let form = "expected a JSON array of equal-length arrays of token ids, such as [[1, 2, 3], [4, 5, 6]]";
    if let Some(what) = stand_in(text) {
        bail!(what);
    }
    let json: Value = serde_json::from_slice(without_mark(text)).context(form)?;
    let Value::Array(prompts) = json else { bail!("{form}; found no array") };
    ensure!(!prompts.is_empty(), "{form}; found no prompt");
    let mut ids = Vec::new();
    let mut length = 0;
    for (b, prompt) in prompts.iter().enumerate() {
        let Value::Array(tokens) = prompt else { bail!("{form}; prompt {b} is no array") };
        ensure!(!tokens.is_empty(), "prompt {b} is empty: a prompt has at least 1 token");
        if b == 0 {
            length = tokens.len();
        }
        ensure!(
            tokens.len() == length,
            "ragged batch: prompt 0 has {length} tokens, prompt {b} has {}; all prompts of a batch have the same length",
            tokens.len()
        );
        for (n, token) in tokens.iter().enumerate() {
            let id = token.as_u64().and_then(|t| u32::try_from(t).ok());
            ids.push(
                id.with_context(|| format!("prompt {b}, position {n}: {token} is no token id (0 to {})", u32::MAX))?,
            );
        }
    }
    Ok((ids, prompts.len(), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_parse() {
        assert_eq!(parse_tokens(b"[[1,2,3],[4,5,6]]").unwrap(), (vec![1, 2, 3, 4, 5, 6], 2, 3));
    }

    #[test]
    fn bad_tokens_are_named() {
        for (text, word) in [
            ("", "JSON"),
            ("[[1,2],[3", "JSON"),
            ("{}", "no array"),
            ("[]", "no prompt"),
            ("[1, 2]", "prompt 0 is no array"),
            ("[[]]", "prompt 0 is empty"),
            ("[[1,2],[3]]", "ragged"),
            ("[[1,-2]]", "position 1: -2"),
            ("[[1.5]]", "1.5"),
            ("[[\"a\"]]", "\"a\""),
            ("[[4294967296]]", "4294967296"),
            ("[[1e99]]", "is no token id"),
            ("[[null]]", "null"),
            ("\u{feff}[[1, -2]]", "position 1: -2"),
            ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ] {
            let e = format!("{:#}", parse_tokens(text.as_bytes()).unwrap_err());
            assert!(e.contains(word), "{text}: {e}");
        }
        assert!(parse_tokens(&[b'['; 100_000]).is_err());
    }
}
