//! Descriptions that no recorded network has: projections that lie apart in the file, biases, and any mix of them.

use std::{collections::HashMap, sync::Arc};

use safetensors::{Dtype, tensor::TensorView};
use ttft_models::{
    DType, Extent, Network, NetworkConfig, Precision, RunSpec, System,
    arch::openelm,
    config::{Biases, Family, Names, Part},
    plan, synth,
    weights::Tensors,
};
use ttft_tests::{
    models::{FIXTURES, Tensor, assert_close, describe, engines, fixture, load, read},
    pruning::{Oracle, Sequence},
};

/// OpenELM with queries, keys and values, and gate and up projections, in tensors of their own.
static APART: Family = Family {
    name: "apart",
    calls_itself: &[("Apart", "apart")],
    parse: |_, _| unreachable!("loaded from tensors"),
    write: |c| (openelm::FAMILY.write)(c),
    names: Names {
        prefix: "transformer.",
        head: "lm_head",
        parts: &[
            (Part::Embedding, "token_embeddings"),
            (Part::AttnNorm, "layers.{i}.attn_norm"),
            (Part::Query, "layers.{i}.q"),
            (Part::Key, "layers.{i}.k"),
            (Part::Value, "layers.{i}.v"),
            (Part::QueryNorm, "layers.{i}.attn.q_norm"),
            (Part::KeyNorm, "layers.{i}.attn.k_norm"),
            (Part::Out, "layers.{i}.attn.out_proj"),
            (Part::FfnNorm, "layers.{i}.ffn_norm"),
            (Part::Gate, "layers.{i}.gate"),
            (Part::Up, "layers.{i}.up"),
            (Part::Down, "layers.{i}.ffn.proj_2"),
            (Part::Norm, "norm"),
        ],
    },
};

/// The tensors of a network of [`openelm::FAMILY`] as [`APART`] has them.
fn split(c: &NetworkConfig, tensors: HashMap<String, Tensor>) -> HashMap<String, Tensor> {
    let mut out = HashMap::new();
    for (name, t) in tensors {
        let layer = name.split('.').nth(2).and_then(|i| i.parse().ok());
        let parts: &[(&str, usize)] = match layer {
            Some(i) if name.contains("qkv_proj") => &[("q", c.q_dim(i)), ("k", c.kv_dim(i)), ("v", c.kv_dim(i))],
            Some(i) if name.contains("proj_1") => &[("gate", c.layers[i].ffn), ("up", c.layers[i].ffn)],
            _ => &[],
        };
        if parts.is_empty() {
            out.insert(name, t);
            continue;
        }
        let (i, suffix) = (layer.unwrap(), name.rsplit_once('.').unwrap().1);
        let (width, mut at) = (t.f32s.len() / t.shape[0], 0);
        for &(part, rows) in parts {
            let f32s = t.f32s[at * width..][..rows * width].to_vec();
            let shape = [&[rows], &t.shape[1..]].concat();
            out.insert(format!("transformer.layers.{i}.{part}.{suffix}"), Tensor { shape, f32s, i64s: vec![] });
            at += rows;
        }
        assert_eq!(at, t.shape[0], "{name}");
    }
    out
}

/// The network of `tensors` under the names of [`APART`].
fn apart(c: &NetworkConfig, tensors: HashMap<String, Tensor>) -> Network {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    let tensors = split(c, tensors);
    let views = tensors
        .iter()
        .map(|(name, t)| (name, TensorView::new(Dtype::F32, t.shape.clone(), bytemuck::cast_slice(&t.f32s)).unwrap()));
    safetensors::serialize_to_file(views, None, &file).unwrap();
    let config = NetworkConfig { family: &APART, ..c.clone() };
    let mut wanted: Vec<String> = config.tensors().into_iter().map(|t| t.name).collect();
    let mut there: Vec<String> = tensors.into_keys().collect();
    wanted.sort();
    there.sort();
    assert_eq!(wanted, there);
    Network::from_tensors(&Tensors::file(&file).unwrap(), config, APART.names).unwrap()
}

#[test]
fn projections_may_lie_apart() {
    for name in FIXTURES {
        let expected = read(&fixture(name).join("expected.safetensors"));
        let ids: Vec<u32> = expected["input_ids"].i64s.iter().map(|i| *i as u32).collect();
        let batch = expected["input_ids"].shape[0];
        let config = load(name).base.config().clone();
        let net = Arc::new(apart(&config, read(&fixture(name).join("base/model.safetensors"))));
        assert_eq!(net.mapped_bytes(), load(name).base.mapped_bytes());
        for e in engines() {
            let found = net.logits::<f32>(&e, &ids, batch).unwrap();
            assert_close(&format!("{name} {}", describe(&e)), &expected["base_logits"].f32s, &found);
            // Keys and values of all rows, queries of the last.
            let spec = RunSpec {
                batch,
                prompt: ids.len() / batch,
                generate: 1,
                precision: Precision::F32,
                extent: Extent::FirstToken,
            };
            let mut run = plan(&System::Network(Arc::clone(&net)), &spec).unwrap();
            run.first_token(&e, &ids).unwrap();
            let found: Vec<f32> = (0..batch).flat_map(|b| run.logits().row(b).to_vec()).collect();
            assert_close(&format!("{name} {}", describe(&e)), &expected["base_logits_last"].f32s, &found);
        }
    }
}

#[test]
fn biases_are_added() {
    let [yes, no] = [true, false];
    for (qkv, out, ffn) in [(yes, no, no), (no, yes, no), (no, no, yes), (yes, yes, yes)] {
        let config = NetworkConfig {
            biases: Biases { qkv, out, ffn },
            tied: false,
            eps: 1e-2,
            ..load("A").base.config().clone()
        };
        let dir = tempfile::tempdir().unwrap();
        synth::Spec::custom("biased", config.clone(), DType::F32, 5).make(dir.path(), &|_, _| ()).unwrap();
        let file = dir.path().join("model.safetensors");
        let stacked = Network::from_tensors(&Tensors::file(&file).unwrap(), config.clone(), config.family.names);
        let nets = [stacked.unwrap(), apart(&config, read(&file))].map(Arc::new);
        let oracle = Oracle::new(config.clone(), dir.path());
        let ids: Vec<u32> = (0..7).map(|i| i * 31 % 300).collect();
        let all: Vec<usize> = (0..ids.len()).collect();
        let expected: Vec<f32> =
            oracle.subset(&mut Sequence::default(), &ids, &all).into_iter().map(|x| x as f32).collect();
        for e in engines() {
            for net in &nets {
                let logits = net.logits::<f32>(&e, &ids, 1).unwrap();
                let what = format!("{:?} {} {}", config.biases, net.config().family.name, describe(&e));
                assert_close(&what, &expected, &logits[logits.len() - config.vocab..]);
            }
        }
    }
}
