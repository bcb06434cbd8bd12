//! Bad input ends in an error that names the file, the tensor or key, what was expected and what was found; never in a
//! panic, a crash or an enormous allocation.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use ttft_kernels::{Backend, Isa};
use ttft_models::{
    DType, Error, Extent, KvPrediction, Network, Precision, Predictor, Prompts, RunSpec, System,
    kv_prediction::layout::OwnTokens, memory, plan, synth, weights::Tensors, zoo,
};
use ttft_tests::{
    engine,
    models::{aux, fixture, load, systems},
};

/// A copy of part of fixture A, to be damaged.
struct Copy {
    dir: TempDir,
}

impl Copy {
    fn of(part: &str) -> Copy {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(fixture("A").join(part)).unwrap() {
            let from = entry.unwrap().path();
            fs::copy(&from, dir.path().join(from.file_name().unwrap())).unwrap();
        }
        Copy { dir }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let mut v: Value = serde_json::from_slice(&fs::read(self.path(file)).unwrap()).unwrap();
        edit(&mut v);
        fs::write(self.path(file), v.to_string()).unwrap();
    }

    /// Rewrites the header of a safetensors file; the data stays.
    fn edit_header(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let bytes = fs::read(self.path(file)).unwrap();
        let (mut header, data) = split(&bytes);
        edit(&mut header);
        fs::write(self.path(file), join(&header, data)).unwrap();
    }

    fn network(&self) -> String {
        message(Network::load(self.dir.path()))
    }
}

fn split(bytes: &[u8]) -> (Value, &[u8]) {
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    (serde_json::from_slice(&bytes[8..8 + n]).unwrap(), &bytes[8 + n..])
}

fn join(header: &Value, data: &[u8]) -> Vec<u8> {
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes(), text.as_slice(), data].concat()
}

fn message<T>(r: Result<T, Error>) -> String {
    r.err().expect("bad input was accepted").to_string()
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for p in parts {
        assert!(message.contains(p), "'{p}' is not in: {message}");
    }
}

const WEIGHTS: &str = "model.safetensors";
const QKV: &str = "transformer.layers.2.attn.qkv_proj.weight";

#[test]
fn truncated_files() {
    let whole = fs::read(fixture("A").join("base").join(WEIGHTS)).unwrap();
    for (keep, expected) in
        [(0, "regular file with content"), (5, "at least 8 bytes, found 5"), (100, "4352"), (5000, "bytes of tensors")]
    {
        let c = Copy::of("base");
        fs::write(c.path(WEIGHTS), &whole[..keep]).unwrap();
        says(&c.network(), &[WEIGHTS, expected]);
    }
    let c = Copy::of("base");
    fs::write(c.path(WEIGHTS), &whole[..whole.len() - 4]).unwrap();
    let data = whole.len() - 8 - 4352;
    says(&c.network(), &[WEIGHTS, &data.to_string(), &(data - 4).to_string()]);
}

#[test]
fn lying_headers() {
    let huge = |n: u64| [&n.to_le_bytes(), &b"{}      "[..]].concat();
    for n in [9, 100_000_001, u64::MAX - 7, u64::MAX] {
        let c = Copy::of("base");
        fs::write(c.path(WEIGHTS), huge(n)).unwrap();
        says(&c.network(), &[WEIGHTS, "header", &n.to_string()]);
    }
    // Offsets beyond the file, backwards, overlapping; shapes whose product overflows.
    for (offsets, shape) in [
        (json!([0, u64::MAX]), json!([384, 64])),
        (json!([98304, 0]), json!([384, 64])),
        (json!([4, 98308]), json!([384, 64])),
        (json!([0, 98304]), json!([u64::MAX, u64::MAX])),
        (json!([0, 98304]), json!([384, 65])),
    ] {
        let c = Copy::of("base");
        c.edit_header(WEIGHTS, |h| {
            h[QKV]["data_offsets"] = offsets;
            h[QKV]["shape"] = shape;
        });
        says(&c.network(), &[WEIGHTS, "header"]);
    }
    // Lengths that add up to more than a machine can address.
    let eighth = 1u64 << 61;
    let mut h = json!({});
    for i in 0..7 {
        h[format!("t{i}")] =
            json!({"dtype": "U8", "shape": [eighth - 1], "data_offsets": [i * (eighth - 1), (i + 1) * (eighth - 1)]});
    }
    let c = Copy::of("base");
    fs::write(c.path(WEIGHTS), join(&h, b"")).unwrap();
    says(&c.network(), &[WEIGHTS, "header", "found 0"]);
    for text in ["", "[]", "{", "null", "{\"a\":1}", "\u{0}\u{1}"] {
        let c = Copy::of("base");
        fs::write(c.path(WEIGHTS), [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()).unwrap();
        says(&c.network(), &[WEIGHTS, "header"]);
    }
}

#[test]
fn wrong_shapes_and_missing_tensors() {
    let c = Copy::of("base");
    c.edit_header(WEIGHTS, |h| {
        let shape = &mut h[QKV]["shape"];
        *shape = json!([shape[1], shape[0]]);
    });
    says(&c.network(), &[WEIGHTS, QKV, "[384, 64]", "[64, 384]"]);

    let c = Copy::of("base");
    c.edit_json("config.json", |v| v["vocab_size"] = json!(385));
    says(&c.network(), &["token_embeddings.weight", "[385, 64]", "[384, 64]"]);

    let c = Copy::of("base");
    c.edit_header(WEIGHTS, |h| {
        let t = h.as_object_mut().unwrap().remove(QKV).unwrap();
        h["transformer.layers.2.attn.qkv.weight"] = t;
    });
    says(&c.network(), &[WEIGHTS, QKV, "missing"]);

    let c = Copy::of("base");
    c.edit_json("config.json", |v| v["share_input_output_layers"] = json!(false));
    says(&c.network(), &["lm_head.weight", "missing"]);
}

#[test]
fn unknown_dtypes() {
    for (dtype, shape) in [("I32", None), ("F64", Some(json!([384, 32]))), ("F99", None), ("", None)] {
        let c = Copy::of("base");
        c.edit_header(WEIGHTS, |h| {
            h[QKV]["dtype"] = json!(dtype);
            if let Some(s) = shape {
                h[QKV]["shape"] = s;
            }
        });
        says(&c.network(), &[WEIGHTS, QKV, "F32, F16 or BF16", dtype]);
    }
}

/// A file whose tensors lie at odd places gives the same tokens as one whose tensors do not.
#[test]
fn misaligned_data_is_copied() {
    let bytes = fs::read(fixture("A").join("base").join(WEIGHTS)).unwrap();
    let (header, data) = split(&bytes);
    let text = header.to_string();
    // One byte too few: everything after the header is odd.
    let odd = text.len() + 1 - text.len() % 2;
    let text = format!("{text:<odd$}");
    let c = Copy::of("base");
    fs::write(c.path(WEIGHTS), [&(odd as u64).to_le_bytes(), text.as_bytes(), data].concat()).unwrap();
    let odd = Network::load(c.dir.path()).unwrap();
    let even = Network::load(&fixture("A").join("base")).unwrap();
    assert_eq!((odd.copied_bytes(), even.copied_bytes()), (odd.mapped_bytes(), 0));
    let engine = engine(Isa::best(), 1, Backend::Ours);
    let logits = |network: Network| {
        let spec = RunSpec { batch: 1, prompt: 3, generate: 1, precision: Precision::F32, extent: Extent::FirstToken };
        let mut inference = plan(&System::Network(Arc::new(network)), &spec).unwrap();
        inference.first_token(&engine, &[1, 2, 3]).unwrap();
        inference.logits().row(0).to_vec()
    };
    assert_eq!(logits(odd), logits(even));
}

#[test]
fn pointers_and_pipes_are_no_weights() {
    let c = Copy::of("base");
    fs::write(c.path(WEIGHTS), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 543000000\n").unwrap();
    says(&c.network(), &[WEIGHTS, "Git LFS pointer", "git lfs pull"]);
    #[cfg(unix)]
    {
        fs::remove_file(c.path(WEIGHTS)).unwrap();
        let made = std::process::Command::new("mkfifo").arg(c.path(WEIGHTS)).status().unwrap();
        assert!(made.success());
        says(&c.network(), &[WEIGHTS, "not a regular file"]);
    }
}

#[test]
fn unknown_architectures() {
    for (architectures, model_type, named) in [
        (json!(["GemmaForCausalLM"]), json!("gemma"), "GemmaForCausalLM (gemma)"),
        (json!(["OpenELMForCausalLM"]), json!("llama"), "llama"),
        (json!(["LlamaForCausalLM"]), json!("openelm"), "LlamaForCausalLM"),
        (Value::Null, Value::Null, "none"),
        (json!(7), json!([]), "none"),
    ] {
        let c = Copy::of("base");
        c.edit_json("config.json", |v| {
            v["architectures"] = architectures;
            v["model_type"] = model_type;
        });
        says(&c.network(), &["config.json", "unknown architecture", named, "OpenELMForCausalLM"]);
    }
}

#[test]
fn bad_configurations() {
    type Edit = fn(&mut Value);
    let cases: [(Edit, &[&str]); 19] = [
        (|v| v["num_query_heads"] = json!([4, 4]), &["num_query_heads", "5 layers", "2 entries"]),
        (|v| v["num_kv_heads"][1] = json!(3), &["num_kv_heads[1]", "divisor of the 4", "3"]),
        (|v| v["num_kv_heads"][1] = json!(0), &["num_kv_heads[1]", "1 to", "0"]),
        (|v| v["ffn_multipliers"] = json!([1.0]), &["ffn_multipliers", "1 entries"]),
        (|v| v["ffn_multipliers"][0] = json!(-1.0), &["ffn_multipliers[0]", "-1"]),
        (|v| v["ffn_multipliers"][0] = json!(1e300), &["ffn_multipliers[0]"]),
        (|v| v["head_dim"] = json!(33), &["head_dim", "even", "33"]),
        (|v| v["head_dim"] = json!(0), &["head_dim", "0"]),
        (|v| v["model_dim"] = json!(u64::MAX), &["model_dim", "18446744073709551615"]),
        (|v| v["model_dim"] = json!(-64), &["config.json"]),
        (|v| v["vocab_size"] = json!(1e12 as u64), &["vocab_size", "1000000000000"]),
        (|v| v["num_transformer_layers"] = json!(0), &["num_transformer_layers", "0"]),
        (|v| v["num_transformer_layers"] = json!(1u64 << 40), &["num_transformer_layers"]),
        (|v| v["ffn_dim_divisor"] = json!(0), &["ffn_dim_divisor", "0"]),
        (|v| v["rope_freq_constant"] = json!(0.0), &["rope_freq_constant", "positive"]),
        (|v| v["activation_fn_name"] = json!("gelu"), &["activation_fn_name", "swish", "gelu"]),
        (|v| v["normalization_layer_name"] = json!("layer_norm"), &["rms_norm", "layer_norm"]),
        (|v| v["ffn_with_glu"] = json!(false), &["ffn_with_glu"]),
        (|v| drop(v.as_object_mut().unwrap().remove("num_kv_heads")), &["num_kv_heads"]),
    ];
    for (edit, parts) in cases {
        let c = Copy::of("base");
        c.edit_json("config.json", edit);
        let m = c.network();
        says(&m, &["config.json"]);
        says(&m, parts);
    }
    let c = Copy::of("base");
    fs::write(c.path("config.json"), "{\"model_dim\": ").unwrap();
    says(&c.network(), &["config.json", "JSON"]);
    fs::remove_file(c.path("config.json")).unwrap();
    says(&c.network(), &["config.json", "read"]);
}

/// Splits a file in two shards with an index.
fn sharded() -> Copy {
    let c = Copy::of("base");
    let bytes = fs::read(c.path(WEIGHTS)).unwrap();
    let (header, data) = split(&bytes);
    let mut shards = [(json!({}), Vec::new()), (json!({}), Vec::new())];
    let mut map = json!({});
    for (i, (name, t)) in header.as_object().unwrap().iter().filter(|(n, _)| *n != "__metadata__").enumerate() {
        let at = |k: usize| t["data_offsets"][k].as_u64().unwrap() as usize;
        let (h, d) = &mut shards[i % 2];
        let start = d.len();
        d.extend_from_slice(&data[at(0)..at(1)]);
        h[name] = json!({"dtype": t["dtype"], "shape": t["shape"], "data_offsets": [start, d.len()]});
        map[name] = json!(shard(i % 2));
    }
    for (i, (h, d)) in shards.iter().enumerate() {
        fs::write(c.path(&shard(i)), join(h, d)).unwrap();
    }
    fs::remove_file(c.path(WEIGHTS)).unwrap();
    fs::write(c.path(INDEX), json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    c
}

const INDEX: &str = "model.safetensors.index.json";

fn shard(i: usize) -> String {
    format!("model-0000{}-of-00002.safetensors", i + 1)
}

#[test]
fn shards() {
    let e = engine(Isa::Portable, 1, Backend::Ours);
    let c = sharded();
    let (whole, parts) = (load("A").base, Arc::new(Network::load(c.dir.path()).unwrap()));
    assert_eq!(whole.logits::<f32>(&e, &[1, 2, 3], 1).unwrap(), parts.logits::<f32>(&e, &[1, 2, 3], 1).unwrap());

    fs::remove_file(c.path(&shard(1))).unwrap();
    says(&c.network(), &[&shard(1), "missing", INDEX]);

    let c = sharded();
    c.edit_json(INDEX, |v| v["weight_map"]["transformer.nothing"] = json!(shard(0)));
    says(&c.network(), &[&shard(0), "transformer.nothing", "missing"]);

    let c = sharded();
    c.edit_json(INDEX, |v| drop(v["weight_map"].as_object_mut().unwrap().remove(QKV)));
    says(&c.network(), &[QKV, "missing"]);

    for name in ["../model.safetensors", "/etc/passwd", "", "sub/model.safetensors", ".."] {
        let c = sharded();
        c.edit_json(INDEX, |v| v["weight_map"][QKV] = json!(name));
        says(&c.network(), &[INDEX, "weight_map", &format!("'{name}'")]);
    }
    for text in ["", "[]", "{\"weight_map\": 3}", "{\"weight_map\": {\"a\": 1}}"] {
        let c = sharded();
        fs::write(c.path(INDEX), text).unwrap();
        says(&c.network(), &[INDEX, "JSON"]);
    }
    fs::remove_file(c.path(INDEX)).unwrap();
    says(&c.network(), &[WEIGHTS, "missing", INDEX]);
}

#[test]
fn predictors_that_do_not_fit() {
    let a = load("A");
    let fails = |edit: &dyn Fn(&mut Value)| {
        let c = Copy::of("predictor");
        c.edit_json("config.json", edit);
        message(Predictor::load(c.dir.path(), &a.base, a.aux.as_deref()))
    };
    let map = "aux_layer_for_base_layer";
    says(&fails(&|v| v[map] = json!([0, 0, 1])), &["config.json", map, "5 base layers", "3 entries"]);
    says(&fails(&|v| v[map][3] = json!(3)), &["config.json", "[3]", "0 to 2", "3"]);
    says(&fails(&|v| v[map][3] = json!(-1)), &["config.json", "JSON"]);
    says(&fails(&|v| v["aux_num_layers"] = json!(4)), &["aux_num_layers", "3", "4"]);
    let sources = "source_layer_for_base_layer";
    says(&fails(&|v| v[sources] = json!([0, 0, 0, 0, 0])), &[map, sources, "[0, 0, 0, 0, 0]"]);
    says(&fails(&|v| drop(v.as_object_mut().unwrap().remove(map))), &[sources, "a list", "none"]);
    says(&fails(&|v| v["shared_layers"] = json!(2)), &["shared_layers", "auxiliary", "2"]);
    says(&fails(&|v| v["source"] = json!("shared_layers")), &["shared_layers", "1 to 4", "none"]);
    says(&fails(&|v| v["source"] = json!("nobody")), &["source", "auxiliary or shared_layers", "nobody"]);
    says(&fails(&|v| v["input"] = json!("logits")), &["input", "kv or hidden", "logits"]);
    // From the hidden state, maps are as wide as that.
    let width = a.aux.as_ref().unwrap().config().dim;
    says(&fails(&|v| v["input"] = json!("hidden")), &["key_transforms.0.weight", &format!("{width}]"), "[32, 16]"]);
    // Another map asks for other widths.
    says(&fails(&|v| v[map] = json!([2, 0, 1, 1, 2])), &["key_transforms.0.weight", "[32, 48]", "[32, 16]"]);

    let c = Copy::of("predictor");
    c.edit_header("predictor.safetensors", |h| {
        let t = h.as_object_mut().unwrap().remove("value_transforms.1.bias").unwrap();
        h["other"] = t;
    });
    says(&message(Predictor::load(c.dir.path(), &a.base, a.aux.as_deref())), &["value_transforms.1.bias", "missing"]);
    // Maps of two types: the last one in half as many bytes as its shape takes in F32.
    let c = Copy::of("predictor");
    c.edit_header("predictor.safetensors", |h| {
        let t = &mut h["value_transforms.4.weight"];
        assert_eq!(t["dtype"], "F32");
        let [from, to] = [0, 1].map(|i| t["data_offsets"][i].as_u64().unwrap());
        // What is left over belongs to nobody's map.
        let middle = (from + to) / 2;
        let shape: Vec<u64> = t["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        (t["dtype"], t["data_offsets"]) = (json!("BF16"), json!([from, middle]));
        h["other"] = json!({"dtype": "BF16", "shape": shape, "data_offsets": [middle, to]});
    });
    let mixed = message(Predictor::load(c.dir.path(), &a.base, a.aux.as_deref()));
    says(&mixed, &["predictor.safetensors", "value_transforms.4.weight", "f32", "bf16"]);
    // A predictor of other networks.
    says(&message(Predictor::load(&fixture("B").join("predictor"), &a.base, a.aux.as_deref())), &["5", "6"]);
    says(&message(Predictor::load(Path::new("nowhere"), &a.base, a.aux.as_deref())), &["nowhere", "read"]);
}

#[test]
fn predictors_of_shared_layers_that_do_not_fit() {
    let a = load("A");
    let fails = |aux: Option<&Network>, edit: &dyn Fn(&mut Value)| {
        let c = Copy::of("../A2/predictor");
        c.edit_json("config.json", edit);
        message(Predictor::load(c.dir.path(), &a.base, aux))
    };
    let (k, map) = ("shared_layers", "source_layer_for_base_layer");
    says(&fails(a.aux.as_deref(), &|_| ()), &["config.json", "source", "auxiliary", "shared_layers"]);
    says(&fails(None, &|v| v["source"] = json!("auxiliary")), &[k, "auxiliary", "3"]);
    for (bad, found) in [(json!(0), "0"), (json!(5), "5"), (json!(null), "none")] {
        says(&fails(None, &|v| v[k] = bad.clone()), &[k, "1 to 4", "5 layers", found]);
    }
    says(&fails(None, &|v| v[map][4] = json!(3)), &["[4]", "reads the prompt", "0 to 2", "3"]);
    says(&fails(None, &|v| v[map][1] = json!(0)), &["[1]", "1, as this layer reads the prompt itself", "0"]);
    says(&fails(None, &|v| v[map] = json!([0, 1])), &[map, "5 base layers", "2 entries"]);
    // A layer that reads the prompt and has a map; one whose map is half there.
    says(&fails(None, &|v| (v[k], v[map][3]) = (json!(4), json!(3))), &["key_transforms.3", "no tensors"]);
    let c = Copy::of("../A2/predictor");
    c.edit_header("predictor.safetensors", |h| {
        let t = h.as_object_mut().unwrap().remove("value_transforms.4.bias").unwrap();
        h["other"] = t;
    });
    says(&message(Predictor::load(c.dir.path(), &a.base, None)), &["value_transforms.4.bias", "missing"]);
    // An auxiliary that was not given.
    let alone = message(Predictor::load(&fixture("A").join("predictor"), &a.base, None));
    says(&alone, &["source", "no auxiliary was given"]);
}

#[test]
fn the_references_own_names_in_one_file() {
    let a = load("A");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("checkpoint.safetensors");
    let (mut header, mut data) = (json!({}), Vec::new());
    for (part, weights, from, to) in [
        ("base", WEIGHTS, "transformer.", "base."),
        ("aux", WEIGHTS, "transformer.", "auxiliary."),
        ("predictor", "predictor.safetensors", "", "predicter.auxkv_to_basekv."),
    ] {
        let bytes = fs::read(fixture("A").join(part).join(weights)).unwrap();
        let (h, d) = split(&bytes);
        for (name, t) in h.as_object().unwrap().iter().filter(|(n, _)| *n != "__metadata__") {
            let at = |k: usize| t["data_offsets"][k].as_u64().unwrap() as usize;
            let start = data.len();
            data.extend_from_slice(&d[at(0)..at(1)]);
            let name = format!("{to}{}", name.strip_prefix(from).unwrap());
            header[name] = json!({"dtype": t["dtype"], "shape": t["shape"], "data_offsets": [start, data.len()]});
        }
    }
    fs::write(&file, join(&header, &data)).unwrap();
    let (base, aux) = (a.base.config().clone(), aux(&a).config().clone());
    let map: Vec<usize> = a.predictor.layout().predicted().map(|(_, origin)| origin.layer).collect();
    let one = KvPrediction::load_corenet(&file, base.clone(), aux.clone(), &map).unwrap();
    let e = engine(Isa::Portable, 1, Backend::Ours);
    let ids: Vec<u32> = (0..22).collect();
    let first = |s: &KvPrediction| {
        let mut run = plan(&System::KvPrediction(s.clone()), &spec(2, 11, 1)).unwrap();
        run.first_token(&e, &ids).unwrap();
        run.logits().row(1).to_vec()
    };
    assert_eq!(first(&one), first(&a));

    says(
        &message(KvPrediction::load_corenet(&file, base.clone(), aux.clone(), &map[1..])),
        &["checkpoint", "4 entries"],
    );
    let swapped = message(KvPrediction::load_corenet(&file, aux, base, &[0, 0, 1]));
    says(&swapped, &["checkpoint", "predicter.auxkv_to_basekv.key_transforms.0.weight"]);
}

fn spec(batch: usize, prompt: usize, generate: usize) -> RunSpec {
    RunSpec { batch, prompt, generate, precision: Precision::F32, extent: Extent::FirstToken }
}

#[test]
fn bad_tokens_and_calls() {
    let e = engine(Isa::Portable, 1, Backend::Ours);
    for system in systems(&load("A")) {
        let mut run = plan(&system, &spec(2, 3, 3)).unwrap();
        says(&message(run.next_token(&e)), &["before first_token"]);
        says(&message(run.first_token(&e, &[1, 2, 3, 4, 5])), &["2 x 3 = 6", "5"]);
        says(&message(run.first_token(&e, &[])), &["6", "found 0"]);
        says(&message(run.first_token(&e, &[1, 2, 3, 4, 384, 6])), &["384", "sequence 1", "position 1"]);
        says(&message(run.first_token(&e, &[1, 2, 3, 4, 5, u32::MAX])), &["4294967295", "position 2"]);
        // The planned tokens, and one more; twice, as a refusal changes nothing.
        for _ in 0..2 {
            run.first_token(&e, &[1, 2, 3, 4, 5, 6]).unwrap();
            run.next_token(&e).unwrap();
            run.next_token(&e).unwrap();
            let last = run.token_ids().to_vec();
            says(&message(run.next_token(&e)), &["5 positions", "prompt 3", "generate 3"]);
            assert_eq!(run.token_ids(), last);
        }
    }
    says(&message(Prompts::new(&[])), &["batch is empty"]);
    says(&message(Prompts::new(&[vec![1], vec![]])), &["prompt 1 is empty"]);
    says(&message(Prompts::new(&[vec![], vec![1]])), &["prompt 0 is empty"]);
    says(&message(Prompts::new(&[vec![1, 2], vec![1]])), &["prompt 1 has 1", "prompt 0 has 2"]);
    let p = Prompts::new(&[vec![1, 2], vec![3, 4]]).unwrap();
    assert_eq!((p.batch, p.len, p.ids), (2, 2, vec![1, 2, 3, 4]));
    let base = load("A").base;
    says(&message(base.logits::<f32>(&e, &[1, 2, 3], 2)), &["2 x 1 = 2", "3"]);
    says(&message(base.logits::<f32>(&e, &[], 0)), &["batch is empty"]);
    says(&message(base.logits::<f32>(&e, &[], 1)), &["empty"]);
}

#[test]
fn absurd_runs_are_refused() {
    for system in systems(&load("A")) {
        for (s, what) in [
            (spec(0, 1, 1), "batch"),
            (spec(1, 0, 1), "prompt"),
            (spec(1, 1, 0), "generate"),
            (spec(usize::MAX, 1, 1), "batch"),
            (spec(1, usize::MAX, 1), "prompt"),
            (spec(1, 1, usize::MAX), "generate"),
            // More memory than any machine has.
            (spec(1 << 20, 1 << 24, 1 << 24), "cannot allocate"),
            (spec(1 << 20, 1 << 20, 1), "cannot allocate"),
        ] {
            for extent in [Extent::FirstToken, Extent::FullNetwork] {
                let s = RunSpec { extent, ..s };
                says(&message(plan(&system, &s).map(drop)), &[what]);
                // Saturates where it cannot count: what is planned is never less than the base's keys and values.
                let c = system.base().config();
                let entries = s.batch as u128 * s.positions() as u128;
                let kept = (0..c.layers.len()).map(|i| 2 * 4 * c.kv_dim(i) as u128 * entries).sum::<u128>();
                let planned = memory(&system, &s);
                assert!(u128::from(planned.caches) >= kept.min(u64::MAX.into()), "{s:?}: {planned:?}");
                assert!(planned.total() >= planned.weights.max(planned.allocated()), "{s:?}: {planned:?}");
            }
        }
    }
    for first in [0, 1] {
        let none = load("A").reading(OwnTokens { last: 0, first, kept: false });
        says(&message(plan(&System::KvPrediction(none), &spec(1, 3, 1)).map(drop)), &["last tokens", "1 or more", "0"]);
    }
}

#[test]
fn unknown_names() {
    says(&message(zoo::network("OE2B")), &["network", "OE2B", "OE1.1B"]);
    says(&message(zoo::pair("OE1.1B")), &["pair", "OE1.1B-KVP-C-450M"]);
    let dir = tempfile::tempdir().unwrap();
    let made = synth::named("OE2B", DType::F32, 0, &dir.path().join("x"), &|_, _| ());
    says(&message(made), &["network or pair", "OE2B", "OE3B", "OE3B-KVP-LP-0.25"]);
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
}

/// Synthetic weights load, run, are reproducible, and any damage to them is noticed.
#[test]
fn synthetic_weights() {
    let config = load("A").base.config().clone();
    let parent = tempfile::tempdir().unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let spec = synth::Spec::custom("small", config.clone(), dtype, 3);
        let dir = parent.path().join(dtype.name());
        let seen = std::sync::atomic::AtomicU64::new(0);
        let progress = |done: u64, total: u64| {
            assert!(done <= total && total == spec.bytes());
            seen.fetch_max(done, std::sync::atomic::Ordering::Relaxed);
        };
        assert_eq!(spec.make(&dir, &progress).unwrap(), synth::Made::Written);
        assert_eq!(seen.into_inner(), spec.bytes());
        assert_eq!(spec.make(&dir, &|_, _| panic!("written again")).unwrap(), synth::Made::Reused);
        let n = Arc::new(Network::load(&dir).unwrap());
        assert_eq!(n.weight_dtype(), dtype);
        assert_eq!(n.config(), &config);
        let logits = n.logits::<f32>(&engine(Isa::Portable, 1, Backend::Ours), &[1, 2, 3, 4], 1).unwrap();
        let rms = (logits.iter().map(|x| x * x).sum::<f32>() / logits.len() as f32).sqrt();
        assert!((0.05..5.0).contains(&rms), "{dtype}: {rms}");
        drop(n);

        let file = dir.join(WEIGHTS);
        let good = fs::read(&file).unwrap();
        let again = parent.path().join("again");
        spec.make(&again, &|_, _| ()).unwrap();
        assert_eq!(fs::read(again.join(WEIGHTS)).unwrap(), good);
        fs::remove_dir_all(&again).unwrap();

        // A mapped file is never written in place, here either: damage a copy and move it in.
        let damage = |bytes: &[u8]| {
            fs::write(parent.path().join("damaged"), bytes).unwrap();
            fs::rename(parent.path().join("damaged"), &file).unwrap();
            message(spec.verify(&dir))
        };
        says(&damage(&good[..good.len() - 1]), &[WEIGHTS, "bytes"]);
        let mut b = good.clone();
        *b.last_mut().unwrap() ^= 1;
        says(&damage(&b), &[WEIGHTS, "transformer.norm.weight", "differs"]);
        let mut b = good.clone();
        b[20] ^= 1;
        says(&damage(&b), &[WEIGHTS, "header"]);
        let other = synth::Spec::custom("small", config.clone(), dtype, 4);
        says(&message(other.verify(&dir)), &["synth.json", "seed: 4", "seed: 3"]);
        // Asking for it repairs it.
        assert_eq!(spec.make(&dir, &|_, _| ()).unwrap(), synth::Made::Written);
        spec.verify(&dir).unwrap();
    }
}

/// Where synthetic weights cannot be written.
#[test]
fn unwritable_output() {
    let parent = tempfile::tempdir().unwrap();
    let spec = synth::Spec::custom("small", load("A").base.config().clone(), DType::F32, 0);
    let file = parent.path().join("file");
    fs::write(&file, "mine").unwrap();
    says(&message(spec.make(&file, &|_, _| ())), &["file", "choose another folder"]);
    says(&message(spec.make(&file.join("below"), &|_, _| ())), &["file", "cannot create"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Bytes of the header changed, inserted or removed at random: an error or a loaded network, never a panic.
    #[test]
    fn corrupted_headers(edits in prop::collection::vec((0usize..4400, any::<u8>(), 0u8..3), 1..4)) {
        let c = Copy::of("base");
        let mut bytes = fs::read(c.path(WEIGHTS)).unwrap();
        for (at, value, kind) in edits {
            match kind {
                0 => bytes[at] = value,
                1 => bytes.insert(at, value),
                _ => drop(bytes.remove(at)),
            }
        }
        fs::write(c.path(WEIGHTS), &bytes).unwrap();
        if let Err(e) = Network::load(c.dir.path()) {
            says(&e.to_string(), &[WEIGHTS]);
        }
    }

    /// Numbers of a header replaced by hostile ones.
    #[test]
    fn hostile_numbers(which in 0usize..200, value in prop_oneof![Just(0u64), Just(1), Just(u64::MAX), Just(1 << 63), Just(1 << 61), any::<u64>()]) {
        let c = Copy::of("base");
        c.edit_header(WEIGHTS, |h| {
            let mut numbers: Vec<&mut Value> = h
                .as_object_mut().unwrap().values_mut()
                .filter_map(Value::as_object_mut)
                .flat_map(|t| t.values_mut())
                .filter_map(Value::as_array_mut)
                .flatten()
                .collect();
            let n = numbers.len();
            *numbers[which % n] = json!(value);
        });
        if let Err(e) = Network::load(c.dir.path()) {
            says(&e.to_string(), &[WEIGHTS]);
        }
    }

    /// Any bytes at all.
    #[test]
    fn arbitrary_files(bytes in prop::collection::vec(any::<u8>(), 0..200), length in prop::option::of(0u64..300)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let bytes = match length {
            Some(n) => [&n.to_le_bytes(), bytes.as_slice()].concat(),
            None => bytes,
        };
        fs::write(&path, bytes).unwrap();
        if let Err(e) = Tensors::file(&path) {
            says(&e.to_string(), &["x.safetensors"]);
        }
    }

    /// Values of a configuration replaced by others of any kind.
    #[test]
    fn hostile_configurations(which in 0usize..100, value in prop_oneof![
        Just(Value::Null), Just(json!([])), Just(json!({})), Just(json!("x")), Just(json!(true)),
        any::<u64>().prop_map(|n| json!(n)), any::<i64>().prop_map(|n| json!(n)), any::<f64>().prop_map(|x| json!(x)),
        prop::collection::vec(any::<u64>(), 0..6).prop_map(|v| json!(v)),
    ]) {
        let c = Copy::of("base");
        c.edit_json("config.json", |v| {
            let o = v.as_object_mut().unwrap();
            let key = o.keys().nth(which % o.len()).unwrap().clone();
            o[&key] = value;
        });
        if let Err(e) = Network::load(c.dir.path()) {
            let m = e.to_string();
            prop_assert!(m.contains("config.json") || m.contains(WEIGHTS), "{m}");
        }
    }
}
