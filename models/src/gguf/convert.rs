//! A folder as on the Hub from a GGUF file: the plan, and its writing.

use std::{collections::BTreeSet, fs::File, io::Write, path::Path};

use half::{bf16, slice::HalfFloatSliceExt};
use serde_json::Value as Json;

use super::{
    config::{self, Architecture},
    container::{Container, Tensor},
    tokenizer::{self, Files},
};
use crate::{
    DType, Error, NetworkConfig, Result,
    publish::{self, Made, Replaces, flushed, write_json},
    weights,
};

/// Values that are widened at a time.
const CHUNK: usize = 1 << 20;

/// A conversion that can be carried out: everything is checked but the disk.
#[derive(Clone, Debug)]
pub struct Conversion<'a> {
    dtype: DType,
    config: Json,
    text: Option<Files>,
    tensors: Vec<Planned<'a>>,
    header: Vec<u8>,
}

/// A tensor of the folder, and what it is made from.
#[derive(Clone, Debug)]
struct Planned<'a> {
    from: &'a Tensor<'a>,
    /// Heads whose rows are put back into the Hub's order.
    permuted: Option<usize>,
}

impl<'a> Conversion<'a> {
    /// Plans the conversion to F32 or BF16, with the tokenizer or without.
    ///
    /// # Errors
    /// [`Error::Gguf`]: what cannot be converted, and why; [`Error::Shape`], [`Error::MissingTensor`], by the names in the
    /// file; [`Error::Config`]: the network is none that this crate runs.
    pub fn new(c: &'a Container<'a>, dtype: DType, with_tokenizer: bool) -> Result<Conversion<'a>> {
        let architecture = config::architecture(c)?;
        let json = config::config(c, dtype)?;
        let network = NetworkConfig::parse(c.path(), json.to_string().as_bytes())?;
        let specs = network.tensors();
        let mut unused: BTreeSet<&str> = c.tensors().map(|(name, _)| name).collect();
        // Read as numbers of the configuration.
        unused.remove("rope_freqs.weight");
        let mut tensors = Vec::with_capacity(specs.len());
        for spec in &specs {
            let name = name_in_file(&spec.name);
            let from = name.as_deref().and_then(|name| c.tensor(name));
            let (Some(name), Some(from)) = (name, from) else {
                return c.refuse(format!("the tensor that '{}' is made from is missing", spec.name));
            };
            unused.remove(&*name);
            if from.shape != spec.shape {
                return Err(Error::Shape {
                    path: c.path().to_owned(),
                    tensor: name,
                    expected: spec.shape.clone(),
                    found: from.shape.clone(),
                });
            }
            if from.format.widen.is_none() {
                return c.refuse(format!(
                    "the tensor '{name}' is stored as {}, which cannot be converted yet: take a file in one of {}",
                    from.format.name,
                    super::format::widened().collect::<Vec<_>>().join(", ")
                ));
            }
            let permuted = permuted(architecture, &network, &name);
            if permuted.is_some() && from.shape.len() == 1 && from.format.block != 1 {
                return c.refuse(format!(
                    "the tensor '{name}' is stored as {}, whose values cannot change places",
                    from.format.name
                ));
            }
            tensors.push(Planned { from, permuted });
        }
        if let Some(name) = unused.first() {
            return c.refuse(format!(
                "the tensor '{name}' has no place in a network of architecture {}",
                architecture.name
            ));
        }
        let text = with_tokenizer.then(|| tokenizer::rebuild(c, network.vocab)).transpose()?;
        let (header, _) = weights::header(dtype, specs.iter().map(|s| (&*s.name, &*s.shape)));
        Ok(Conversion { dtype, config: json, text, tensors, header })
    }

    /// Parameters.
    pub fn params(&self) -> u64 {
        self.tensors.iter().map(|t| elements(t.from)).sum()
    }

    /// Bytes of the weights to be written.
    pub fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.params() * self.dtype.size() as u64
    }

    /// The `config.json` to be written.
    pub fn config(&self) -> &Json {
        &self.config
    }

    /// The `tokenizer.json` to be written, if any.
    pub fn tokenizer(&self) -> Option<&Json> {
        self.text.as_ref().map(|t| &t.tokenizer)
    }

    /// Writes the folder, which is not there yet or empty. It appears complete or not at all; `progress` is told the bytes
    /// that are written, and of how many.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::DiskSpace`], [`Error::Io`].
    pub fn write(&self, dir: &Path, progress: &dyn Fn(u64, u64)) -> Result<Made> {
        // What is there is never taken for the outcome.
        let never = |dir: &Path| Err(Error::NotEmpty { path: dir.to_owned() });
        publish::folder(dir, self.bytes(), Replaces::Nothing, never, |temp| {
            self.weights(&temp.join("model.safetensors"), progress)?;
            if let Some(text) = &self.text {
                write_json(&temp.join("tokenizer.json"), &text.tokenizer)?;
                write_json(&temp.join("tokenizer_config.json"), &text.config)?;
            }
            write_json(&temp.join("config.json"), &self.config)
        })
    }

    fn weights(&self, path: &Path, progress: &dyn Fn(u64, u64)) -> Result<()> {
        let mut file = File::create(path).map_err(Error::io(path, "create"))?;
        let (total, mut done) = (self.bytes(), 0);
        let mut put = |bytes: &[u8]| -> Result<()> {
            file.write_all(bytes).map_err(Error::io(path, "write"))?;
            done += bytes.len() as u64;
            progress(done, total);
            Ok(())
        };
        put(&self.header)?;
        let mut halves = Vec::new();
        for tensor in &self.tensors {
            tensor.widen(&mut |values| match self.dtype {
                DType::BF16 => {
                    halves.resize(values.len(), bf16::ZERO);
                    halves.convert_from_f32_slice(values);
                    put(bytemuck::cast_slice(&halves))
                }
                _ => put(bytemuck::cast_slice(values)),
            })?;
        }
        flushed(&file).map_err(Error::io(path, "flush"))
    }
}

impl Planned<'_> {
    /// Hands the values out in the Hub's order of rows, some rows at a time.
    fn widen(&self, out: &mut impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let t = self.from;
        let widen = t.format.widen.expect("checked when it was planned");
        let rows = t.shape[..t.shape.len() - 1].iter().product::<usize>();
        let row = *t.shape.last().expect("a tensor has a dimension");
        if let Some(heads) = self.permuted {
            let (rows, row) = if t.shape.len() == 1 { (row, 1) } else { (rows, row) };
            let bytes = t.bytes.len() / rows;
            let at_once = (CHUNK / row).max(1);
            let mut values = vec![0.0; at_once.min(rows) * row];
            for start in (0..rows).step_by(at_once) {
                let count = at_once.min(rows - start);
                for (i, values) in values.chunks_exact_mut(row).take(count).enumerate() {
                    let from = row_in_file(start + i, rows / heads);
                    widen(&t.bytes[from * bytes..][..bytes], values);
                }
                out(&values[..count * row])?;
            }
            return Ok(());
        }
        let block = t.format.block as usize;
        let at_once = CHUNK.next_multiple_of(block);
        let mut values = vec![0.0; at_once.min(rows * row)];
        for part in t.bytes.chunks(at_once / block * t.format.bytes as usize) {
            let values = &mut values[..part.len() / t.format.bytes as usize * block];
            widen(part, values);
            out(values)?;
        }
        Ok(())
    }
}

/// Where row `row` of the Hub's order lies in a file whose rows turn in neighbouring pairs: feature j of a head's first
/// half is its row 2j, of its second half 2j + 1.
fn row_in_file(row: usize, head_dim: usize) -> usize {
    let (head, feature, half) = (row / head_dim, row % head_dim, head_dim / 2);
    head * head_dim + feature % half * 2 + feature / half
}

fn permuted(a: &Architecture, network: &NetworkConfig, name: &str) -> Option<usize> {
    let layer = &network.layers[0];
    let part = name.split('.').nth(2).filter(|_| a.permuted && name.starts_with("blk."));
    match part {
        Some("attn_q") => Some(layer.query_heads),
        Some("attn_k") => Some(layer.kv_heads),
        _ => None,
    }
}

fn elements(t: &Tensor<'_>) -> u64 {
    t.shape.iter().map(|n| *n as u64).product()
}

/// Names of layers' parts, on the Hub and in a file.
const PARTS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.o_proj", "attn_output"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The name in a file of a tensor of the Hub.
fn name_in_file(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    let stem = match stem {
        "model.embed_tokens" => "token_embd".to_owned(),
        "model.norm" => "output_norm".to_owned(),
        "lm_head" => "output".to_owned(),
        _ => {
            let (layer, part) = stem.strip_prefix("model.layers.")?.split_once('.')?;
            let (_, part) = PARTS.iter().find(|(hub, _)| *hub == part)?;
            format!("blk.{layer}.{part}")
        }
    };
    Some(format!("{stem}.{kind}"))
}
