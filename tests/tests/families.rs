//! The families of the Hub: what they compute, and which configurations they read and refuse.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use ttft_kernels::{Engine, Mat, MatMut, Output, Weight};
use ttft_models::{DType, Extent, KvPrediction, Network, NetworkConfig, Precision, RunSpec, System, arch, plan};
use ttft_tests::models::{Tensor, assert_close, describe, engines, fixture, load, read};

/// Fixtures, each with the family of its base.
const FAMILIES: [(&str, &str); 3] = [("G", "llama"), ("H", "qwen3"), ("L", "qwen2")];

/// Tokens that are recorded.
const STEPS: usize = 6;

fn base(name: &str) -> Arc<Network> {
    Arc::new(Network::load(&fixture(name).join("base")).unwrap())
}

/// Greedy tokens against what is recorded under `prefix`, and what the run recorded of its caches.
fn check(e: &Engine, name: &str, system: &System, prefix: &str, extent: Extent) {
    let expected = read(&fixture(name).join("expected.safetensors"));
    let ids: Vec<u32> = expected["input_ids"].i64s.iter().map(|i| *i as u32).collect();
    let batch = expected["input_ids"].shape[0];
    let (prompt, vocab) = (ids.len() / batch, system.base().config().vocab);
    let spec = RunSpec { batch, prompt, generate: STEPS, precision: Precision::F32, extent };
    let mut run = plan(system, &spec).unwrap();
    run.record(true);
    run.first_token(e, &ids).unwrap();
    let what = format!("{name} {} {prefix} {extent:?}", describe(e));
    for t in run.cache_dump() {
        if let Some(recorded) = expected.get(&t.name) {
            assert_close(&format!("{what} {}", t.name), &recorded.f32s, &t.data);
        }
    }
    let steps = &expected[&format!("{prefix}_greedy_logits")].f32s;
    for t in 0..STEPS {
        if t > 0 {
            run.next_token(e).unwrap();
        }
        for b in 0..batch {
            let at = b * STEPS + t;
            assert_close(&format!("{what} token {t}"), &steps[at * vocab..][..vocab], run.logits().row(b));
            let id = expected[&format!("{prefix}_greedy_ids")].i64s[at];
            assert_eq!(i64::from(run.token_ids()[b]), id, "{what} token {t}");
        }
    }
    assert_eq!(&expected[&format!("{prefix}_logits_last")].f32s[..vocab], &steps[..vocab]);
}

#[test]
fn recorded_networks_on_every_engine() {
    for (name, family) in FAMILIES {
        let net = base(name);
        assert_eq!(net.config().family.name, family);
        assert_eq!(net.copied_bytes(), 0, "{name} is used as it lies");
        for e in &engines() {
            for extent in [Extent::FirstToken, Extent::FullNetwork] {
                check(e, name, &System::Network(Arc::clone(&net)), "base", extent);
            }
        }
    }
}

#[test]
fn a_recorded_pair_on_every_engine() {
    let pair = load("G");
    for e in &engines() {
        for extent in [Extent::FirstToken, Extent::FullNetwork] {
            check(e, "G", &System::KvPrediction(pair.clone()), "kvp_m1_s0", extent);
        }
    }
}

/// A network in one file or in shards, whose tensors are of these types in turn.
fn saved(tensors: &[(String, Tensor)], types: &[Dtype], shards: usize, dir: &Path) {
    let bytes: Vec<(&String, &Vec<usize>, Dtype, Vec<u8>)> = tensors
        .iter()
        .zip(types.iter().cycle())
        .map(|((name, t), dtype)| {
            let data = match dtype {
                Dtype::BF16 => t.f32s.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
                Dtype::F16 => t.f32s.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                _ => bytemuck::cast_slice(&t.f32s).to_vec(),
            };
            (name, &t.shape, *dtype, data)
        })
        .collect();
    let mut map = serde_json::Map::new();
    for shard in 0..shards {
        let file = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
        };
        let own = bytes.iter().skip(shard).step_by(shards);
        let views = own.map(|(name, shape, dtype, data)| {
            map.insert((*name).clone(), file.clone().into());
            (*name, TensorView::new(*dtype, (*shape).clone(), data).unwrap())
        });
        let views: Vec<_> = views.collect();
        safetensors::serialize_to_file(views, None, &dir.join(&file)).unwrap();
    }
    if shards > 1 {
        let index = json!({ "metadata": {}, "weight_map": map });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

/// The tensors of a fixture's base, in the order of their names, each value exact in BF16 and F16.
fn tensors(name: &str) -> Vec<(String, Tensor)> {
    let mut all: Vec<(String, Tensor)> = Vec::new();
    for entry in fs::read_dir(fixture(name).join("base")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            all.extend(read(&path));
        }
    }
    for (_, t) in &mut all {
        t.f32s.iter_mut().for_each(|x| *x = f16::from_f32(bf16::from_f32(*x).to_f32()).to_f32());
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Any type of weights, in any mix, in one file and in shards, gives what the same values give in F32.
#[test]
fn weights_of_any_type_lie_as_they_are() {
    let mixed = [Dtype::BF16, Dtype::F32, Dtype::F16, Dtype::F32];
    for (name, _) in FAMILIES {
        let tensors = tensors(name);
        let ids: Vec<u32> = (0..20).map(|i| i * 19 % 270).collect();
        let saved_as = |types: &[Dtype], shards| {
            let dir = tempfile::tempdir().unwrap();
            saved(&tensors, types, shards, dir.path());
            fs::copy(fixture(name).join("base/config.json"), dir.path().join("config.json")).unwrap();
            let net = Arc::new(Network::load(dir.path()).unwrap());
            (net, dir)
        };
        let (wide, _dir) = saved_as(&[Dtype::F32], 1);
        for (types, shards, dtype) in [
            (&mixed[..1], 1, Some(DType::BF16)),
            (&mixed[..1], 4, Some(DType::BF16)),
            (&mixed[2..3], 3, Some(DType::F16)),
            (&mixed[..], 2, None),
        ] {
            let (net, _dir) = saved_as(types, shards);
            assert!(dtype.is_none_or(|t| t == net.weight_dtype()));
            for e in &engines() {
                let [a, b] = [&wide, &net].map(|n| n.logits::<f32>(e, &ids, 2).unwrap());
                assert_close(&format!("{name} {types:?} {}", describe(e)), &a, &b);
            }
        }
    }
}

/// What Hugging Face writes beside the network: a head that a tied one does not use, buffers, a whole other network.
#[test]
fn tensors_that_nobody_reads_do_not_matter() {
    let mut all = tensors("L");
    let wanted = all.len();
    let embedding = all.iter().find(|t| t.0 == "model.embed_tokens.weight").unwrap().1.clone();
    let junk =
        |shape: &[usize]| Tensor { shape: shape.to_vec(), f32s: vec![f32::NAN; shape.iter().product()], i64s: vec![] };
    all.push(("lm_head.weight".into(), junk(&embedding.shape)));
    all.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), junk(&[4])));
    all.push(("model.layers.99.mlp.up_proj.weight".into(), junk(&[3, 5])));
    let dir = tempfile::tempdir().unwrap();
    saved(&all, &[Dtype::F32], 1, dir.path());
    fs::copy(fixture("L").join("base/config.json"), dir.path().join("config.json")).unwrap();
    let net = Arc::new(Network::load(dir.path()).unwrap());
    let plain = base("L");
    assert_eq!(net.config().tensors().len(), wanted);
    assert_eq!(net.mapped_bytes(), plain.mapped_bytes());
    let e = &engines()[0];
    let logits = net.logits::<f32>(e, &[1, 2, 3], 1).unwrap();
    assert!(logits.iter().all(|x| x.is_finite()));
}

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/configs")
}

fn config(name: &str) -> NetworkConfig {
    NetworkConfig::load(&configs().join(format!("{name}.json"))).unwrap_or_else(|e| panic!("{e}"))
}

/// Name; parameters, a tied embedding once, as the models' cards and files have them; layers, width, feed-forward width, heads of
/// queries and of keys, their width.
const CHECKPOINTS: [(&str, u64, [usize; 6]); 23] = [
    ("Llama-3.2-1B", 1_235_814_400, [16, 2048, 8192, 32, 8, 64]),
    ("Llama-3.2-1B-Instruct", 1_235_814_400, [16, 2048, 8192, 32, 8, 64]),
    ("Llama-3.2-1B-transformers-5", 1_235_814_400, [16, 2048, 8192, 32, 8, 64]),
    ("Llama-3.2-3B", 3_212_749_824, [28, 3072, 8192, 24, 8, 128]),
    ("Llama-3.2-3B-Instruct", 3_212_749_824, [28, 3072, 8192, 24, 8, 128]),
    ("Llama-3.1-8B", 8_030_261_248, [32, 4096, 14336, 32, 8, 128]),
    ("Llama-2-7b", 6_738_415_616, [32, 4096, 11008, 32, 32, 128]),
    ("llama-7b", 6_738_415_616, [32, 4096, 11008, 32, 32, 128]),
    ("TinyLlama-1.1B-Chat-v1.0", 1_100_048_384, [22, 2048, 5632, 32, 4, 64]),
    ("SmolLM2-135M", 134_515_008, [30, 576, 1536, 9, 3, 64]),
    ("SmolLM2-135M-Instruct", 134_515_008, [30, 576, 1536, 9, 3, 64]),
    ("SmolLM2-360M", 361_821_120, [32, 960, 2560, 15, 5, 64]),
    ("SmolLM2-1.7B", 1_711_376_384, [24, 2048, 8192, 32, 32, 64]),
    ("Mistral-7B-v0.3", 7_248_023_552, [32, 4096, 14336, 32, 8, 128]),
    ("Qwen2.5-0.5B", 494_032_768, [24, 896, 4864, 14, 2, 64]),
    ("Qwen2.5-0.5B-Instruct", 494_032_768, [24, 896, 4864, 14, 2, 64]),
    ("Qwen2.5-1.5B", 1_543_714_304, [28, 1536, 8960, 12, 2, 128]),
    ("Qwen2.5-1.5B-Instruct", 1_543_714_304, [28, 1536, 8960, 12, 2, 128]),
    ("Qwen2.5-1.5B-Instruct-transformers-5", 1_543_714_304, [28, 1536, 8960, 12, 2, 128]),
    ("Qwen2.5-3B", 3_085_938_688, [36, 2048, 11008, 16, 2, 128]),
    ("Qwen3-0.6B", 596_049_920, [28, 1024, 3072, 16, 8, 128]),
    ("Qwen3-1.7B", 1_720_574_976, [28, 2048, 6144, 16, 8, 128]),
    ("Qwen3-4B", 4_022_468_096, [36, 2560, 9728, 32, 8, 128]),
];

#[test]
fn configurations_of_the_hub() {
    let mut read: Vec<String> = Vec::new();
    for (name, params, shape) in CHECKPOINTS {
        let c = config(name);
        let l = c.layers[0];
        let found = [c.layers.len(), c.dim, l.ffn, l.query_heads, l.kv_heads, c.head_dim];
        assert_eq!(found, shape, "{name}");
        assert_eq!(c.params(), params, "{name}");
        let again = NetworkConfig::parse(Path::new(name), c.to_json("bfloat16").to_string().as_bytes()).unwrap();
        assert_eq!(again, c, "{name}");
        read.push(format!("{name}.json"));
    }
    for entry in fs::read_dir(configs()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(read.contains(&name), "{name} is not in the list");
    }
    // Both forms say the same.
    for (old, new) in [
        ("Llama-3.2-1B", "Llama-3.2-1B-transformers-5"),
        ("Qwen2.5-1.5B-Instruct", "Qwen2.5-1.5B-Instruct-transformers-5"),
    ] {
        assert_eq!(config(old), config(new));
    }
    assert_eq!(config("Llama-3.2-1B").rope.theta, 500_000.0);
    assert_eq!(config("Llama-3.2-1B").rope.scaling.unwrap().factor, 32.0);
    assert_eq!(config("SmolLM2-1.7B").rope.theta, 130_000.0);
    assert_eq!(config("llama-7b").rope.theta, 10_000.0);
    assert_eq!(config("llama-7b").eps, 1e-6);
    assert_eq!(config("Llama-2-7b").eps, 1e-5);
    assert!(!config("Mistral-7B-v0.3").tied && config("SmolLM2-360M").tied);
    assert!(config("Qwen3-4B").qk_norm && !config("Qwen2.5-3B").qk_norm);
}

/// What transformers fills in where a file says nothing but what it is.
#[test]
fn missing_fields_take_the_family_s_values() {
    let of = |v: Value| NetworkConfig::parse(Path::new("config.json"), v.to_string().as_bytes()).unwrap();
    let shape = |c: &NetworkConfig| {
        let l = c.layers[0];
        [c.vocab, c.dim, c.layers.len(), l.ffn, l.query_heads, l.kv_heads, c.head_dim, c.max_context]
    };
    let llama = of(json!({"model_type": "llama"}));
    assert_eq!(shape(&llama), [32000, 4096, 32, 11008, 32, 32, 128, 2048]);
    let mistral = of(json!({"architectures": ["MistralForCausalLM"], "sliding_window": null}));
    assert_eq!(shape(&mistral), [32000, 4096, 32, 14336, 32, 8, 128, 131_072]);
    let qwen2 = of(json!({"model_type": "qwen2", "num_attention_heads": 64}));
    assert_eq!(shape(&qwen2), [151_936, 4096, 32, 22016, 64, 32, 64, 32768]);
    let qwen3 = of(json!({"model_type": "qwen3", "num_key_value_heads": null}));
    assert_eq!(shape(&qwen3), [151_936, 4096, 32, 22016, 32, 32, 128, 32768]);
    for c in [&llama, &mistral, &qwen2, &qwen3] {
        assert_eq!((c.eps, c.rope.theta, c.rope.scaling, c.tied), (1e-6, 10000.0, None, false));
    }
    assert!(qwen2.biases.qkv && !qwen2.biases.out && !llama.biases.qkv && !mistral.biases.qkv && !qwen3.biases.qkv);
    // As many key heads as query heads, where the family does not say otherwise.
    assert_eq!(of(json!({"model_type": "llama", "num_attention_heads": 16})).layers[0].kv_heads, 16);
    // Other names that the same network may come under.
    assert_eq!(of(json!({"model_type": "mistral", "sliding_window": null})), mistral);
}

fn edited(name: &str, edits: &Value) -> Result<NetworkConfig, String> {
    let mut v: Value = serde_json::from_slice(&fs::read(configs().join(format!("{name}.json"))).unwrap()).unwrap();
    v.as_object_mut().unwrap().extend(edits.as_object().unwrap().clone());
    NetworkConfig::parse(Path::new("dir/config.json"), v.to_string().as_bytes()).map_err(|e| e.to_string())
}

#[test]
fn what_would_change_the_arithmetic_is_refused_by_name_and_value() {
    let all = ["Llama-3.2-1B", "Mistral-7B-v0.3", "Qwen2.5-0.5B", "Qwen3-0.6B"];
    let yarn = json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}});
    for (names, edits, words) in [
        (&all[..], json!({"hidden_act": "gelu"}), &["hidden_act", "silu", "gelu"][..]),
        (&all[..], json!({"partial_rotary_factor": 0.5}), &["partial_rotary_factor", "0.5"]),
        (&all[..], yarn, &["rope_scaling.type", "'yarn' of factor 4", "llama3"]),
        (
            &all[..],
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2}}),
            &["rope_type", "'linear' of factor 2"],
        ),
        (&all[..], json!({"rope_scaling": {"rope_type": "llama3", "factor": 2}}), &["low_freq_factor", "nothing"]),
        (
            &all[..],
            json!({"rope_scaling": null, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}),
            &["rope_parameters.rope_type", "'dynamic'"],
        ),
        (
            &all[..],
            json!({"rope_scaling": null, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}),
            &["rope_parameters.partial_rotary_factor", "0.25"],
        ),
        (
            &all[..],
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
            &["quantization_config", "gptq"],
        ),
        (&all[..], json!({"rms_norm_eps": -1.0}), &["rms_norm_eps", "-1"]),
        (&all[..], json!({"num_key_value_heads": 3}), &["num_key_value_heads", "3"]),
        (&all[..], json!({"head_dim": 63}), &["head_dim", "63", "even"]),
        (&all[..], json!({"rope_theta": 0}), &["rope_theta", "positive", "0"]),
        (&all[..], json!({"hidden_size": 1e9 as u64}), &["hidden_size", "1000000000"]),
        (&all[..2], json!({"sliding_window": 4096}), &["sliding_window", "null", "4096"]),
        (
            &all[2..],
            json!({"use_sliding_window": true, "sliding_window": 99, "max_window_layers": 3}),
            &["sliding_window", "99"],
        ),
        (
            &all[2..],
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            &["layer_types[1]", "sliding_attention"],
        ),
    ] {
        for name in names {
            // Theta stands in the new form's own place where that is there.
            let error = edited(name, &edits).expect_err(&format!("{name}: {edits}"));
            for w in [&["dir/config.json"][..], words].concat() {
                assert!(error.contains(w), "{name}: no '{w}' in: {error}");
            }
        }
    }
    let mut mistral: Value =
        serde_json::from_slice(&fs::read(configs().join("Mistral-7B-v0.3.json")).unwrap()).unwrap();
    mistral.as_object_mut().unwrap().remove("sliding_window");
    let error = NetworkConfig::parse(Path::new("c"), mistral.to_string().as_bytes()).unwrap_err().to_string();
    assert!(error.contains("sliding_window") && error.contains("4096, as the file does not say"), "{error}");
    let error =
        edited("Llama-3.2-1B", &json!({"architectures": ["GemmaForCausalLM"], "model_type": "gemma"})).unwrap_err();
    for known in ["GemmaForCausalLM", "OpenELM", "Llama", "Mistral", "Qwen2", "Qwen3"] {
        assert!(error.contains(known), "{error}");
    }
    assert!(edited("Llama-3.2-1B", &json!({"model_type": "qwen2"})).is_err(), "two families at once");
}

#[test]
fn what_changes_nothing_is_accepted() {
    for name in ["Llama-3.2-1B", "Mistral-7B-v0.3", "Qwen2.5-0.5B", "Qwen3-0.6B"] {
        let same = edited(name, &json!({})).unwrap();
        for edits in [
            json!({"attention_dropout": 0.1, "pretraining_tp": 4, "use_cache": false, "bos_token_id": [1, 2]}),
            json!({"quantization_config": null, "layer_types": null, "partial_rotary_factor": 1.0}),
            json!({"hidden_act": "swish", "torch_dtype": "float32", "dtype": null, "rope_interleaved": false}),
        ] {
            assert_eq!(edited(name, &edits).unwrap(), same, "{name}: {edits}");
        }
    }
    for (name, edits) in [
        ("Llama-3.2-1B", json!({"sliding_window": 4096, "use_sliding_window": false})),
        ("Qwen2.5-0.5B", json!({"use_sliding_window": true, "max_window_layers": 24})),
        ("Qwen3-0.6B", json!({"use_sliding_window": true, "sliding_window": null})),
        ("Qwen3-0.6B", json!({"rope_scaling": {"type": "linear", "factor": 1.0}})),
        ("Qwen3-0.6B", json!({"rope_scaling": {"type": "default"}})),
    ] {
        assert_eq!(edited(name, &edits).unwrap(), edited(name, &json!({})).unwrap(), "{name}: {edits}");
    }
    let biased = edited("Llama-3.2-1B", &json!({"attention_bias": true, "mlp_bias": true})).unwrap();
    assert!(biased.biases.qkv && biased.biases.out && biased.biases.ffn);
    // Qwen2 and Mistral do not read these.
    for name in ["Mistral-7B-v0.3", "Qwen2.5-0.5B"] {
        let edits = json!({"attention_bias": true, "mlp_bias": true});
        assert_eq!(edited(name, &edits).unwrap(), edited(name, &json!({})).unwrap());
    }
}

/// Llama 3's scaling at its three kinds of wavelength.
#[test]
fn frequencies_of_llama_3() {
    let c = config("Llama-3.2-1B");
    let (scaled, plain) = (c.rope.frequencies(64), ttft_models::config::Rope::new(c.rope.theta).frequencies(64));
    assert_eq!(scaled.len(), 32);
    let turns = |f: f64| 8192.0 * f / (2.0 * std::f64::consts::PI);
    let (mut kept, mut divided, mut between) = (0, 0, 0);
    for (s, p) in scaled.iter().zip(&plain) {
        match turns(*p) {
            t if t > 4.0 => {
                assert_eq!(s, p);
                kept += 1;
            }
            t if t < 1.0 => {
                assert_eq!(*s, p / 32.0);
                divided += 1;
            }
            t => {
                let share = (t - 1.0) / 3.0;
                assert!((s - p * (share + (1.0 - share) / 32.0)).abs() < 1e-15);
                between += 1;
            }
        }
    }
    assert!(kept > 5 && divided > 5 && between > 0, "{kept} {divided} {between}");
}

#[test]
fn every_family_has_a_recorded_network() {
    let mut recorded: Vec<&str> = FAMILIES.iter().map(|f| f.1).collect();
    recorded.push(load("A").base.config().family.name);
    let mut known: Vec<&str> = arch::KNOWN.iter().map(|k| k.name).collect();
    recorded.sort();
    known.sort();
    assert_eq!(recorded, known);
}

/// Sources and inputs that this build does not compute are named.
#[test]
fn predictors_of_another_kind_are_refused() {
    let pair = fixture("G");
    for (key, value) in [("source", "elsewhere"), ("input", "queries")] {
        let dir = tempfile::tempdir().unwrap();
        let mut v: Value = serde_json::from_slice(&fs::read(pair.join("predictor/config.json")).unwrap()).unwrap();
        v[key] = value.into();
        fs::write(dir.path().join("config.json"), v.to_string()).unwrap();
        let error = KvPrediction::load(&pair.join("base"), &pair.join("aux"), dir.path()).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(value), "{error}");
    }
}

/// The head of the largest vocabularies, one row at a time and a few, against a sum in f64.
#[test]
fn heads_of_large_vocabularies() {
    const N: usize = 151_936;
    for (m, k, dtype) in [(1, 72, DType::BF16), (3, 40, DType::F32)] {
        let (x, w) = (ttft_tests::values(1, m * k, DType::BF16), ttft_tests::values(2, N * k, dtype));
        let narrow: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
        for e in engines() {
            let mut y = vec![f32::NAN; m * N];
            let w16 = match dtype {
                DType::BF16 => Weight::BF16(Mat::new(&narrow, N, k)),
                _ => Weight::F32(Mat::new(&w, N, k)),
            };
            e.linear(Mat::new(&x, m, k), w16, Output::Store(MatMut::new(&mut y, m, N))).unwrap();
            for (at, found) in y.iter().enumerate() {
                let (x, w) = (&x[at / N * k..][..k], &w[at % N * k..][..k]);
                let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let (sum, size) = products.fold((0.0, 0.0), |(s, a), p| (s + p, a + p.abs()));
                let bound = ttft_tests::dot_bound(k, size);
                assert!((f64::from(*found) - sum).abs() <= bound, "{} {dtype} [{at}]: {found} {sum}", describe(&e));
            }
        }
    }
}

/// Bytes of a file that this process has in memory through its mappings.
#[cfg(target_os = "linux")]
fn resident(file: &Path) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut inside, mut sum) = (false, 0);
    for line in maps.lines() {
        match line.split_once("Rss:") {
            Some((_, kb)) if inside => sum += kb.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10,
            Some(_) => {}
            // The line of a mapping ends in its file; those of its numbers have a colon after one word.
            None if !line.split(' ').next().unwrap().ends_with(':') => inside = line.ends_with(file.to_str().unwrap()),
            None => {}
        }
    }
    sum
}

/// A network in a file of holes: every tensor of its configuration, and a head that it does not use. The bytes of the head.
#[cfg(target_os = "linux")]
fn hollow(dir: &Path, config: &NetworkConfig) -> u64 {
    let mut at = 0;
    let mut header = serde_json::Map::new();
    let mut add = |name: &str, shape: &[usize]| {
        let end = at + 2 * shape.iter().product::<usize>();
        header.insert(name.to_owned(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}));
        at = end;
    };
    // In the middle of the others, so that reading on from one of them would reach it.
    let head = [config.vocab, config.dim];
    let tensors = config.tensors();
    for (i, t) in tensors.iter().enumerate() {
        add(&t.name, &t.shape);
        if i == tensors.len() / 2 {
            add("lm_head.weight", &head);
        }
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(64) - 8, b' ');
    let bytes = [&(text.len() as u64).to_le_bytes()[..], &text].concat();
    let path = dir.join("model.safetensors");
    fs::write(&path, &bytes).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len((bytes.len() + at) as u64).unwrap();
    fs::write(dir.join("config.json"), config.to_json("bfloat16").to_string()).unwrap();
    2 * head.iter().product::<usize>() as u64
}

/// Opening 7 GB reads the header and the vectors; warming reads what is used, and not the head that is stored all the same.
#[cfg(target_os = "linux")]
#[test]
fn what_is_not_needed_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let large = config("Llama-3.2-3B");
    let head = hollow(dir.path(), &large);
    let net = Network::load(dir.path()).unwrap();
    assert!(fs::metadata(&file).unwrap().len() > 7_000_000_000);
    assert_eq!((fs::metadata(&file).unwrap().len() - net.mapped_bytes()) >> 20, head >> 20);
    // A fault brings in up to 64 KiB around it; there are two norms in a layer.
    let most = (2 * large.layers.len() as u64 + 4) * (128 << 10);
    let read = resident(&file);
    assert!(read > 0 && read <= most, "{read} bytes were read, at most {most}");
    drop(net);

    let small =
        NetworkConfig { vocab: 60_000, layers: vec![base("G").config().layers[0]; 3], ..base("G").config().clone() };
    let small = NetworkConfig { tied: true, ..small };
    let head = hollow(dir.path(), &small);
    let net = Network::load(dir.path()).unwrap();
    net.warm();
    let (read, used) = (resident(&file), net.mapped_bytes());
    assert!(read >= used && read < used + head / 4, "{read} bytes were read of {used} used and {head} unused");
}

proptest! {
    /// The first `base mod aux` auxiliary layers serve one base layer more than the others; of a deeper auxiliary those at the
    /// same height are used.
    #[test]
    fn layers_are_mapped_by_the_papers_rule(base in 1usize..200, aux in 1usize..200) {
        let map = ttft_models::kv_prediction::layer_map(base, aux);
        prop_assert_eq!(map.len(), base);
        prop_assert!(map.is_sorted() && map.iter().all(|j| *j < aux));
        prop_assert_eq!(map[base - 1], aux - 1);
        if aux <= base {
            for j in 0..aux {
                let serves = map.iter().filter(|m| **m == j).count();
                prop_assert_eq!(serves, base / aux + usize::from(j < base % aux));
            }
        } else {
            for (i, j) in map.iter().enumerate() {
                prop_assert_eq!(*j, ((i + 1) as f64 * aux as f64 / base as f64).ceil() as usize - 1);
            }
        }
    }
}

/// The zoo's networks of the Hub are those of the Hub's configurations.
#[test]
fn the_zoo_has_the_networks_of_the_hub() {
    for (name, ..) in CHECKPOINTS {
        if let Ok(of_zoo) = ttft_models::zoo::network(name) {
            assert_eq!(of_zoo, config(name), "{name}");
        }
    }
    let of_hub = ttft_models::zoo::NETWORKS.iter().filter(|n| !n.starts_with("OE"));
    assert_eq!(of_hub.filter(|n| CHECKPOINTS.iter().any(|c| c.0 == **n)).count(), 11);
    // Canonical pairs of the paper follow the rule too.
    for name in ttft_models::zoo::PAIRS.iter().filter(|n| !n.contains("-LP-0.75")) {
        let p = ttft_models::zoo::pair(name).unwrap();
        let layers = |n| ttft_models::zoo::network(n).unwrap().layers.len();
        assert_eq!(p.layer_map, ttft_models::kv_prediction::layer_map(layers(p.base), layers(p.aux)), "{name}");
    }
}
