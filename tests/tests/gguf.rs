//! GGUF files: what Python's `gguf` package wrote is read and converted exactly, and whatever is wrong with a file is told.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::SafeTensors;
use ttft_models::{
    DType, Network,
    gguf::{
        Container, Conversion,
        container::Value,
        format::{FORMATS, numbered},
    },
    weights::MappedFile,
};

const MODELS: [&str; 4] = ["llama3", "smollm", "qwen2", "qwen3"];

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf").join(name)).unwrap()
}

fn model(name: &str) -> Vec<u8> {
    fixture(&format!("{name}.gguf"))
}

fn parse(bytes: &[u8]) -> ttft_models::Result<Container<'_>> {
    Container::parse(Path::new("x.gguf"), bytes)
}

/// Bit for bit as the reference of the `gguf` package.
#[test]
fn formats_are_widened_as_the_reference_does() {
    let (file, expected) = (fixture("formats.gguf"), fixture("formats.safetensors"));
    let (file, expected) = (parse(&file).unwrap(), SafeTensors::deserialize(&expected).unwrap());
    for format in FORMATS.iter().filter(|f| f.widen.is_some()) {
        let tensor = file.tensor(format.name).unwrap_or_else(|| panic!("no fixture for {}", format.name));
        assert_eq!(tensor.format.name, format.name);
        let mut found = vec![0f32; tensor.shape.iter().product()];
        format.widen.unwrap()(tensor.bytes, &mut found);
        let expected = expected.tensor(format.name).unwrap();
        assert_eq!(expected.shape(), tensor.shape);
        let expected: Vec<u32> = expected.data().as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let found: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
        assert_eq!(found, expected, "{}", format.name);
    }
}

/// What make.py puts into a tensor, in the Hub's order.
fn value(name: &str, i: usize) -> f32 {
    let sum: usize = name.bytes().map(usize::from).sum();
    ((i * 31 + sum) % 251) as f32 - 125.0
}

/// The name in a file of a tensor of the Hub.
fn in_file(hub: &str) -> String {
    let pairs = [
        ("model.layers.", "blk."),
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ];
    pairs.iter().fold(hub.to_owned(), |name, (from, to)| name.replace(from, to))
}

#[test]
fn models_become_folders_in_the_hubs_order() {
    for name in MODELS {
        let bytes = model(name);
        let container = parse(&bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for dtype in [DType::F32, DType::BF16] {
            let to = dir.path().join(dtype.name());
            let conversion = Conversion::new(&container, dtype, true).unwrap();
            let seen = std::cell::Cell::new((0, 0));
            conversion.write(&to, &|done, total| seen.set((done, total))).unwrap();
            let weights = fs::read(to.join("model.safetensors")).unwrap();
            assert_eq!(seen.get(), (weights.len() as u64, weights.len() as u64), "{name}");
            assert_eq!(conversion.bytes(), weights.len() as u64);
            let tensors = SafeTensors::deserialize(&weights).unwrap();
            let mut elements = 0;
            for (hub, tensor) in tensors.iter() {
                let values: Vec<f32> = match dtype {
                    DType::F32 => tensor.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                    // The values are whole numbers below 128, which BF16 holds.
                    _ => tensor
                        .data()
                        .as_chunks()
                        .0
                        .iter()
                        .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16))
                        .collect(),
                };
                elements += values.len() as u64;
                let expected: Vec<f32> = (0..values.len()).map(|i| value(&in_file(hub), i)).collect();
                assert_eq!(values, expected, "{name}: {hub}");
            }
            assert_eq!(conversion.params(), elements);
            let network = Network::load(&to).unwrap();
            assert_eq!((network.weight_dtype(), network.config().params()), (dtype, elements), "{name}");
            let mut files: Vec<_> = fs::read_dir(&to).unwrap().map(|f| f.unwrap().file_name()).collect();
            files.sort();
            assert_eq!(files, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]);
        }
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["bf16", "f32"]);
    }
}

#[test]
fn configurations_say_what_the_file_says() {
    let config = |name: &str| {
        let bytes = model(name);
        let container = parse(&bytes).unwrap();
        Conversion::new(&container, DType::BF16, true).unwrap().config().clone()
    };
    let llama = config("llama3");
    for (key, expected) in [
        ("architectures", serde_json::json!(["LlamaForCausalLM"])),
        ("model_type", "llama".into()),
        ("hidden_size", 8.into()),
        ("head_dim", 16.into()),
        ("num_attention_heads", 2.into()),
        ("num_key_value_heads", 1.into()),
        ("intermediate_size", 16.into()),
        ("num_hidden_layers", 1.into()),
        ("vocab_size", 289.into()),
        ("max_position_embeddings", 128.into()),
        ("rms_norm_eps", 1e-5.into()),
        ("rope_theta", 500000.0.into()),
        ("tie_word_embeddings", false.into()),
        ("attention_bias", false.into()),
        ("torch_dtype", "bfloat16".into()),
        ("bos_token_id", 285.into()),
        // What ends a text and what ends a turn.
        ("eos_token_id", serde_json::json!([286, 287])),
        (
            "rope_scaling",
            serde_json::json!({
                "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192
            }),
        ),
    ] {
        assert_eq!(llama[key], expected, "{key}");
    }
    let smol = config("smollm");
    assert_eq!((&smol["rope_scaling"], &smol["eos_token_id"]), (&serde_json::Value::Null, &286.into()));
    assert_eq!(smol["tie_word_embeddings"], true);
    // Rows that fill up the embedding table are tokens of nobody.
    let qwen = config("qwen2");
    assert_eq!((&qwen["model_type"], &qwen["vocab_size"]), (&"qwen2".into(), &293.into()));
    assert_eq!(config("qwen3")["architectures"][0], "Qwen3ForCausalLM");
}

/// A file to be written: metadata values with their types, and tensors.
#[derive(Clone)]
struct File {
    version: u32,
    values: Vec<(String, Vec<u8>)>,
    tensors: Vec<Tensor>,
    alignment: usize,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dimensions: Vec<u64>,
    format: u32,
    at: Option<u64>,
    bytes: Vec<u8>,
}

fn text(s: &[u8]) -> Vec<u8> {
    [&(s.len() as u64).to_le_bytes(), s].concat()
}

fn string(s: &str) -> Vec<u8> {
    [&8u32.to_le_bytes()[..], &text(s.as_bytes())].concat()
}

fn u32(n: u32) -> Vec<u8> {
    [4u32.to_le_bytes(), n.to_le_bytes()].concat()
}

fn f32(x: f32) -> Vec<u8> {
    [6u32.to_le_bytes(), x.to_le_bytes()].concat()
}

fn boolean(b: u8) -> Vec<u8> {
    [&7u32.to_le_bytes()[..], &[b]].concat()
}

fn list(kind: u32, count: u64, items: &[u8]) -> Vec<u8> {
    [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), items].concat()
}

fn strings(items: &[&str]) -> Vec<u8> {
    list(8, items.len() as u64, &items.iter().flat_map(|s| text(s.as_bytes())).collect::<Vec<_>>())
}

impl File {
    fn of(container: &Container<'_>) -> File {
        let payload = |v: Value<'_>| match v {
            Value::Text(t) => text(t),
            Value::Unsigned(n) => (n as u32).to_le_bytes().to_vec(),
            Value::Signed(n) => (n as i32).to_le_bytes().to_vec(),
            other => panic!("{other}"),
        };
        let value = |v| match v {
            Value::Text(t) => string(std::str::from_utf8(t).unwrap()),
            Value::Unsigned(n) => u32(n as u32),
            Value::Float(x) => f32(x),
            Value::Bool(b) => boolean(b.into()),
            Value::List(l) => {
                let kind = match l.iter().next() {
                    Some(Value::Text(_)) => 8,
                    Some(Value::Signed(_)) => 5,
                    _ => 4,
                };
                list(kind, l.len() as u64, &l.iter().flat_map(payload).collect::<Vec<_>>())
            }
            other => panic!("{other}"),
        };
        File {
            version: 3,
            values: container.values().map(|(k, v)| (k.to_owned(), value(v))).collect(),
            tensors: container
                .tensors()
                .map(|(name, t)| Tensor {
                    name: name.to_owned(),
                    dimensions: t.shape.iter().rev().map(|d| *d as u64).collect(),
                    format: t.format.number,
                    at: None,
                    bytes: t.bytes.to_vec(),
                })
                .collect(),
            alignment: 32,
        }
    }

    fn model(name: &str) -> File {
        File::of(&parse(&model(name)).unwrap())
    }

    fn small() -> File {
        let tensor = |name: &str, format: u32, n: u64| Tensor {
            name: name.into(),
            dimensions: vec![n],
            format,
            at: None,
            bytes: vec![1; (n / numbered(format).unwrap().block * numbered(format).unwrap().bytes) as usize],
        };
        let values = vec![("a.text".to_owned(), string("x")), ("a.number".to_owned(), u32(7))];
        File { version: 3, values, tensors: vec![tensor("t", 0, 5), tensor("u", 8, 64)], alignment: 32 }
    }

    fn set(mut self, key: &str, value: Option<Vec<u8>>) -> File {
        self.values.retain(|(k, _)| k != key);
        self.values.extend(value.map(|v| (key.to_owned(), v)));
        self
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.values.len() as u64).to_le_bytes());
        for (key, value) in &self.values {
            out.extend(text(key.as_bytes()));
            out.extend(value);
        }
        let mut at = 0;
        for t in &self.tensors {
            out.extend(text(t.name.as_bytes()));
            out.extend((t.dimensions.len() as u32).to_le_bytes());
            out.extend(t.dimensions.iter().flat_map(|d| d.to_le_bytes()));
            out.extend(t.format.to_le_bytes());
            out.extend(t.at.unwrap_or(at).to_le_bytes());
            at = (at + t.bytes.len() as u64).next_multiple_of(self.alignment as u64);
        }
        for t in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&t.bytes);
        }
        out
    }
}

#[track_caller]
fn refused(bytes: &[u8], words: &[&str]) {
    let error = parse(bytes).expect_err("it is broken").to_string();
    for word in ["x.gguf"].iter().chain(words) {
        assert!(error.contains(word), "no '{word}' in: {error}");
    }
}

#[test]
fn containers_hold_what_was_put_in() {
    for version in [2, 3] {
        for alignment in [32, 8, 4096] {
            let file =
                File { version, alignment, ..File::small() }.set("general.alignment", Some(u32(alignment as u32)));
            let bytes = file.bytes();
            let c = parse(&bytes).unwrap();
            assert_eq!((c.text("a.text").unwrap(), c.number("a.number").unwrap()), (Some("x"), Some(7)));
            let t = c.tensor("u").unwrap();
            assert_eq!((t.format.name, &t.shape[..], t.bytes), ("Q8_0", &[64][..], &[1; 68][..]));
            for (key, word) in [("a.text", "a whole number"), ("a.number", "UTF-8 text")] {
                let error = if key == "a.text" { c.number(key).map(drop) } else { c.text(key).map(drop) };
                assert!(error.unwrap_err().to_string().contains(word));
            }
        }
    }
    // No tensors, no data, no alignment of it.
    assert!(parse(&File { tensors: vec![], ..File::small() }.bytes()).is_ok());
}

/// Every shortening of a file is refused, and says that the file ends.
#[test]
fn truncated_files_are_refused() {
    let file = File::small().set("a.list", Some(strings(&["p", "q"]))).bytes();
    for len in 0..file.len() {
        refused(&file[..len], &["it ends after", "fetch the file again"][usize::from(len > 150)..]);
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("x.gguf"), "").unwrap();
    assert!(MappedFile::open(&dir.path().join("x.gguf")).unwrap_err().to_string().contains("x.gguf"));
}

#[test]
fn broken_files_are_refused() {
    let small = File::small;
    let with = |value: Vec<u8>| small().set("k", Some(value)).bytes();
    let change = |f: &dyn Fn(&mut File)| {
        let mut file = small();
        f(&mut file);
        file.bytes()
    };
    refused(b"GGML\x03\0\0\0", &["GGUF", "'GGML'"]);
    refused(b"version https://git-lfs.github.com/spec/v1\n", &["git lfs pull"]);
    refused(&File { version: 1, ..small() }.bytes(), &["version 2 or 3, found 1"]);
    refused(&File { version: 4, ..small() }.bytes(), &["found 4"]);
    refused(&File { version: 3u32.swap_bytes(), ..small() }.bytes(), &["big-endian"]);
    // Counts and lengths that promise more than there is.
    for at in [8, 16] {
        let mut bytes = small().bytes();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(parse(&bytes).is_err());
    }
    refused(&with(99u32.to_le_bytes().to_vec()), &["k: expected a type", "found 99"]);
    refused(&with(list(8, u64::MAX, &[])), &["k: value"]);
    refused(&with(list(0, 1 << 40, &[0; 64])), &["it ends after"]);
    refused(&with(list(9, 1, &[])), &["a list of lists"]);
    refused(&with([&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()), &["k: it ends after", "a text"]);
    refused(&with(boolean(2)), &["k: expected 0 or 1", "found 2"]);
    refused(&change(&|f| f.values.push(("a.text".into(), u32(1)))), &["'a.text' is there twice"]);
    refused(&change(&|f| f.values.push(("k".repeat(70_000), u32(1)))), &["at most 65535 bytes, found 70000"]);
    for (alignment, found) in [(u32(0), "found 0"), (u32(12), "found 12"), (string("x"), "found 'x'")] {
        refused(&small().set("general.alignment", Some(alignment)).bytes(), &["a power of two", found]);
    }
    refused(&small().set("split.count", Some(u32(3))).bytes(), &["split.count is 3", "--merge"]);

    refused(&change(&|f| f.tensors[1].name = "t".into()), &["'t' is there twice"]);
    refused(&change(&|f| f.tensors[1].dimensions = vec![]), &["'u'", "1 to 4 dimensions, found 0"]);
    refused(&change(&|f| f.tensors[1].dimensions = vec![1; 5]), &["1 to 4 dimensions, found 5"]);
    refused(&change(&|f| f.tensors[1].dimensions = vec![33]), &["a multiple of 32 values", "Q8_0", "found 33"]);
    refused(&change(&|f| f.tensors[1].dimensions = vec![0]), &["found 0"]);
    refused(&change(&|f| f.tensors[1].dimensions = vec![64, 0]), &["or 0"]);
    refused(&change(&|f| f.tensors[1].dimensions = vec![1 << 60, 1 << 60]), &["beyond any file"]);
    refused(&change(&|f| f.tensors[0].dimensions = vec![1 << 62]), &["'t'", "beyond any file"]);
    refused(&change(&|f| f.tensors[0].format = 77), &["'t'", "type 77"]);
    refused(&change(&|f| f.tensors[1].at = Some(33)), &["'u'", "a multiple of 32 bytes, found 33"]);
    refused(&change(&|f| f.tensors[1].at = Some(0)), &["'t' and 'u' lie over one another"]);
    refused(&change(&|f| f.tensors[1].at = Some(u64::MAX - 31)), &["'u'", "beyond any file"]);
    refused(&change(&|f| f.tensors[1].at = Some(1 << 20)), &["'u'", "the file ends after"]);
    refused(&change(&|f| f.tensors[1].dimensions = vec![64, 4]), &["'u'", "the file ends after"]);
}

#[track_caller]
fn not_converted(file: &File, with_tokenizer: bool, words: &[&str]) {
    let bytes = file.bytes();
    let container = parse(&bytes).expect("it can be read");
    let error = Conversion::new(&container, DType::F32, with_tokenizer).expect_err("it is refused").to_string();
    for word in ["x.gguf"].iter().chain(words) {
        assert!(error.contains(word), "no '{word}' in: {error}");
    }
}

#[test]
fn networks_that_are_not_run_are_refused_by_key_and_value() {
    let llama = || File::model("llama3");
    for (key, value, words) in [
        ("general.architecture", Some(string("gemma3")), &["'gemma3'", "llama, qwen2, qwen3"][..]),
        ("general.architecture", None, &["general.architecture is missing"]),
        ("llama.block_count", None, &["llama.block_count is missing"]),
        ("llama.block_count", Some(string("x")), &["llama.block_count: expected a whole number, found 'x'"]),
        ("llama.block_count", Some(u32(2)), &["model.layers.1.input_layernorm.weight"]),
        ("llama.block_count", Some(u32(0)), &["num_hidden_layers"]),
        ("llama.attention.head_count", Some(u32(0)), &["head_count: expected 1 or more"]),
        ("llama.attention.head_count", Some(u32(4)), &["blk.0.attn_q.weight", "[64, 8]", "[32, 8]"]),
        ("llama.attention.head_count", Some(list(4, 1, &[2, 0, 0, 0])), &["a list of 1 values"]),
        ("llama.attention.value_length", Some(u32(8)), &["value_length: expected 16", "found 8"]),
        ("llama.rope.dimension_count", Some(u32(8)), &["dimension_count: expected 16", "found 8"]),
        ("llama.attention.layer_norm_rms_epsilon", None, &["layer_norm_rms_epsilon is missing"]),
        ("llama.attention.layer_norm_rms_epsilon", Some(f32(f32::NAN)), &["a finite number, found NaN"]),
        ("llama.expert_count", Some(u32(8)), &["llama.expert_count is 8, which is not supported"]),
        ("llama.attention.sliding_window", Some(u32(64)), &["sliding_window is 64"]),
        ("llama.rope.scaling.type", Some(string("yarn")), &["rope.scaling.type is 'yarn'"]),
        ("llama.rope.scaling.factor", Some(f32(4.0)), &["rope.scaling.factor is 4"]),
        ("llama.logit_scale", Some(f32(2.0)), &["llama.logit_scale is 2"]),
        ("llama.rope.scaling.original_context_length", Some(u32(4096)), &["rope_freqs.weight", "Llama 3's formula"]),
        ("llama.rope.freq_base", Some(f32(10000.0)), &["rope_freqs.weight", "other formulas"]),
    ] {
        not_converted(&llama().set(key, value), false, words);
    }
    // What is switched off is no reason.
    let off = llama()
        .set("llama.attention.sliding_window", Some(u32(128)))
        .set("llama.expert_count", Some(u32(0)))
        .set("llama.rope.scaling.type", Some(string("none")))
        .set("llama.rope.scaling.factor", Some(f32(1.0)));
    let bytes = off.bytes();
    assert!(Conversion::new(&parse(&bytes).unwrap(), DType::F32, true).is_ok());

    let change = |f: &dyn Fn(&mut File)| {
        let mut file = llama();
        f(&mut file);
        file
    };
    let without = |name: &str| change(&|f| f.tensors.retain(|t| t.name != name));
    not_converted(&without("blk.0.ffn_up.weight"), false, &["model.layers.0.mlp.up_proj.weight", "missing"]);
    not_converted(&without("token_embd.weight"), false, &["'token_embd.weight' is missing"]);
    not_converted(
        &change(&|f| f.tensor("output.weight").name = "nose.weight".into()),
        false,
        &["'nose.weight'", "no place"],
    );
    let freqs = |n: usize, x: f32| {
        change(&|f| {
            let t = f.tensor("rope_freqs.weight");
            t.dimensions = vec![n as u64];
            t.bytes.resize(n * 4, 0);
            t.bytes[4 * n - 4..].copy_from_slice(&x.to_le_bytes());
        })
    };
    not_converted(&freqs(7, 1.0), false, &["rope_freqs.weight", "expected 8 values", "[7]"]);
    not_converted(&freqs(8, f32::NAN), false, &["rope_freqs.weight", "NaN"]);
    not_converted(&freqs(8, 31.0), false, &["rope_freqs.weight", "value 7 is 31"]);
    let stored = change(&|f| {
        let t = f.tensor("blk.0.attn_norm.weight");
        (t.format, t.bytes) = (24, vec![0; 8]);
    });
    not_converted(&stored, false, &["blk.0.attn_norm.weight", "I8", "Q6_K"]);
}

#[test]
fn tokenizers_that_are_not_known_are_refused_and_not_guessed() {
    let smol = || File::model("smollm");
    let wide = |id: u32| Some(u32(id));
    for (key, value, words) in [
        ("tokenizer.ggml.pre", Some(string("default")), &["tokenizer.ggml.pre is 'default'", "--no-tokenizer"][..]),
        ("tokenizer.ggml.pre", None, &["tokenizer.ggml.pre is missing", "smollm"]),
        ("tokenizer.ggml.pre", Some(u32(1)), &["tokenizer.ggml.pre: expected UTF-8 text, found 1"]),
        ("tokenizer.ggml.model", Some(string("t5")), &["tokenizer.ggml.model is 't5'", "--no-tokenizer"]),
        ("tokenizer.ggml.model", None, &["tokenizer.ggml.model is missing"]),
        ("tokenizer.ggml.tokens", None, &["tokenizer.ggml.tokens is missing"]),
        ("tokenizer.ggml.tokens", Some(strings(&["a", "b"])), &["expected 2 values, one for each token, found 289"]),
        ("tokenizer.ggml.tokens", Some(strings(&["a"; 289])), &["0 and 1 are the same token 'a'"]),
        ("tokenizer.ggml.tokens", Some(strings(&["a"; 290])), &["290 tokens", "only 289 rows"]),
        ("tokenizer.ggml.tokens", Some(list(4, 1, &[0; 4])), &["UTF-8 text in place 0, found 0"]),
        ("tokenizer.ggml.token_type", None, &["token_type is missing"]),
        ("tokenizer.ggml.token_type", Some(list(5, 289, &[6, 0, 0, 0].repeat(289))), &["token 0 is of kind 6"]),
        ("tokenizer.ggml.merges", Some(strings(&["a b", "q x"])), &["found 'q x' in place 1"]),
        ("tokenizer.ggml.merges", Some(strings(&["ab"])), &["found 'ab' in place 0"]),
        ("tokenizer.ggml.merges", None, &["merges is missing"]),
        ("tokenizer.ggml.eos_token_id", wide(289), &["eos_token_id: expected an id below 289, found 289"]),
    ] {
        let file = smol().set(key, value);
        not_converted(&file, true, words);
        // The weights can be had all the same.
        let bytes = file.bytes();
        let container = parse(&bytes).unwrap();
        assert!(Conversion::new(&container, DType::F32, false).unwrap().tokenizer().is_none());
    }
    let no_bos = smol().set("tokenizer.ggml.bos_token_id", None).set("tokenizer.ggml.add_bos_token", Some(boolean(1)));
    not_converted(&no_bos, true, &["add_bos_token", "bos_token_id"]);
}

/// The beginning that a file asks for, or that its rules have.
#[test]
fn texts_begin_as_the_file_says() {
    let processor = |file: File| {
        let bytes = file.bytes();
        let container = parse(&bytes).unwrap();
        let conversion = Conversion::new(&container, DType::F32, true).unwrap();
        conversion.tokenizer().unwrap()["post_processor"]["single"].clone()
    };
    let special = |id: &str| serde_json::json!({"SpecialToken": {"id": id, "type_id": 0}});
    let sequence = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
    let flag = |b| Some(boolean(b));
    assert_eq!(processor(File::model("llama3")), serde_json::json!([special("<|begin|>"), sequence]));
    assert_eq!(processor(File::model("llama3").set("tokenizer.ggml.add_bos_token", flag(0))), serde_json::Value::Null);
    assert_eq!(processor(File::model("smollm")), serde_json::Value::Null);
    let both =
        File::model("qwen2").set("tokenizer.ggml.add_bos_token", flag(1)).set("tokenizer.ggml.add_eos_token", flag(1));
    assert_eq!(processor(both), serde_json::json!([special("<|begin|>"), sequence, special("<|end|>")]));
}

/// A folder that holds something stays as it is.
#[test]
fn nothing_is_written_over() {
    let bytes = model("smollm");
    let container = parse(&bytes).unwrap();
    let conversion = Conversion::new(&container, DType::F32, true).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let error = conversion.write(dir.path(), &|_, _| {}).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    let names: BTreeMap<_, _> = fs::read_dir(dir.path()).unwrap().map(|f| (f.unwrap().file_name(), ())).collect();
    assert_eq!(names.len(), 1);
    // An empty one is filled, and a second conversion refused.
    fs::remove_file(dir.path().join("notes.txt")).unwrap();
    conversion.write(dir.path(), &|_, _| {}).unwrap();
    assert!(conversion.write(dir.path(), &|_, _| {}).is_err());
    assert!(Network::load(dir.path()).is_ok());
}
