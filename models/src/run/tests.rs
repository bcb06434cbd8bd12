use std::{sync::Arc, time::Duration};

use half::bf16;
use ttft_kernels::DType;

use super::Run;
use crate::{
    cache::NamedTensor,
    config::NetworkConfig,
    cost::Flops,
    engine::Engine,
    inference::Inference,
    kv_prediction::{
        KvPrediction,
        control::{Control, Entries, Mean},
        layout::{Input, Layout, Order, Origin, OwnTokens},
    },
    network::Network,
    pruning::Pruned,
    schedule::Op,
    spec::{Extent, Phase, Precision, RunSpec},
    synth,
    system::System,
    zoo,
};

/// A network of the zoo, so narrow that it runs in no time.
fn tiny(name: &str, layers: usize) -> NetworkConfig {
    let mut c = zoo::network(name).unwrap();
    (c.vocab, c.dim, c.head_dim) = (99, 24, 4);
    c.layers.truncate(layers);
    for (i, l) in c.layers.iter_mut().enumerate() {
        (l.kv_heads, l.query_heads, l.ffn) = (1 + i % 2, 4, 8 * (i + 1));
        l.ffn_multiplier = l.ffn as f64 / 24.0;
    }
    c.ffn_dim_divisor = 8;
    c
}

/// Weights of networks and of maps in these types.
fn systems(networks: DType, maps: DType) -> Vec<System> {
    let dir = tempfile::tempdir().unwrap();
    let (base, aux) = (tiny("OE1.1B", 7), tiny("OE270M", 4));
    let map = vec![2, 0, 0, 1, 2, 2, 1];
    let make = |name: &str, spec: synth::Spec| {
        spec.make(&dir.path().join(name), &|_, _| ()).unwrap();
    };
    make("base", synth::Spec::custom("base", base.clone(), networks, 1));
    make("aux", synth::Spec::custom("aux", aux.clone(), networks, 1));
    let predictor = |name: &str, aux: Option<&NetworkConfig>, layout: Layout| {
        make(name, synth::Spec::custom_predictor("p", base.clone(), aux.cloned(), layout, maps, 1));
    };
    predictor("predictor", Some(&aux), Layout::auxiliary(&map));
    let hidden = Origin { layer: 2, input: Input::Hidden };
    predictor("hidden", Some(&aux), Layout { shared: None, layers: vec![Some(hidden); 7] });
    // Every layer from another one, or in another way.
    let mut mixed = Layout::shared(7, 3, Input::Own);
    mixed.layers[5] = Some(Origin { layer: 0, input: Input::Hidden });
    mixed.layers[6] = Some(Origin { layer: 2, input: Input::Hidden });
    predictor("mixed", None, mixed.clone());
    mixed.layers[3] = Some(Origin { layer: 1, input: Input::Hidden });
    predictor("inexact", None, mixed);
    predictor("S6", None, Layout::shared(7, 6, Input::Hidden));
    predictor("own", None, Layout::shared(7, 2, Input::Own));
    let kv = |i: usize| (i >= 3).then_some(Origin { layer: i % 3, input: Input::KeysAndValues });
    predictor("kv", None, Layout { shared: Some(3), layers: (0..7).map(kv).collect() });
    let part = |part: &str| dir.path().join(part);
    let pair = KvPrediction::load(&part("base"), &part("aux"), &part("predictor")).unwrap();
    let load = |aux, name| KvPrediction::new(Arc::clone(&pair.base), aux, &part(name)).unwrap();
    let shared = ["mixed", "inexact", "S6", "own", "kv"].map(|name| load(None, name));
    let reads = [(1, 0), (3, 2), (1, 4), (15, 1), (16, 1)];
    let reads: Vec<_> = reads.into_iter().flat_map(|own| [false, true].map(|kept| (own, kept))).collect();
    let read = |s: &KvPrediction| {
        let own = |&((last, first), kept): &_| s.clone().reading(OwnTokens { last, first, kept });
        reads.iter().map(own).collect::<Vec<_>>()
    };
    let variants = [pair.clone(), load(pair.aux.clone(), "hidden")].into_iter().chain(shared);
    let variants: Vec<KvPrediction> = variants.flat_map(|s| read(&s)).collect();
    let controls = variants.iter().flat_map(|s| {
        let entries = Control::Entries(Arc::new(zeros(&s.base)));
        [Control::Nothing, entries].map(|control| s.clone().control(control))
    });
    let variants: Vec<System> = variants.iter().cloned().chain(controls).map(System::KvPrediction).collect();
    let pruned = |name: &str| System::Pruned(Pruned::new(Arc::clone(&pair.base), name.parse().unwrap()));
    let pipelined = [pair.clone(), load(pair.aux.clone(), "hidden")].map(|s| s.ordered(Order::Pipelined));
    let mut all = vec![System::Network(Arc::clone(&pair.base)), System::KvPrediction(pair.clone())];
    all.extend(pipelined.iter().flat_map(read).map(System::KvPrediction));
    all.extend(variants);
    all.extend(["RP-0.40", "SP-0.30", "SP-1.00", "L0.70-0.20", "L1.00-1.00"].map(pruned));
    all.extend(["GemFilter-0-3", "GemFilter-3-5-p3", "GemFilter-6-99"].map(pruned));
    let rivals = ["SpecPrefill-0.40-a3-c4-p3", "SpecPrefill-1.00-a1-p1", "SpecPrefill-0.01-c1"];
    all.extend(rivals.map(|name| {
        System::Pruned(Pruned { aux: pair.aux.clone(), ..Pruned::new(Arc::clone(&pair.base), name.parse().unwrap()) })
    }));
    all
}

/// A row of zeros for every layer.
fn zeros(base: &Network) -> Entries {
    let c = base.config();
    let mut mean = Mean::default();
    for i in 0..c.layers.len() {
        let shape = vec![1, c.layers[i].kv_heads, 1, c.head_dim];
        let zero = |part: &str| NamedTensor {
            name: format!("predicted.{i}.{part}"),
            shape: shape.clone(),
            data: vec![0.0; c.kv_dim(i)],
        };
        mean.add(&[zero("k"), zero("v")], c.layers.len(), 0).unwrap();
    }
    mean.entries()
}

fn counts(f: Flops) -> [u64; 4] {
    [f.projections, f.attention, f.head, f.prediction]
}

/// A pass asks the engine for the multiplications that its cost says, and its layers work on the rows that they name.
#[test]
fn costs_are_what_the_engine_is_asked_for() {
    let e = Engine::new(99);
    let mut all_extra = 0;
    for system in systems(DType::F32, DType::F32) {
        for extent in [Extent::FirstToken, Extent::FullNetwork] {
            for (batch, prompt) in [(1, 1), (1, 2), (2, 17), (1, 60)] {
                let spec = RunSpec { batch, prompt, generate: 6, precision: Precision::F32, extent };
                let mut run = Run::<f32>::new(&system, spec, 5, &[]).unwrap();
                let ids: Vec<u32> = (0..batch * prompt).map(|i| (i * 31 % 99) as u32).collect();
                let what = format!(
                    "{:?} {:?} {spec:?}",
                    run.shapes.pruning,
                    run.shapes.prediction.as_ref().map(|p| (p.own, p.filling, &p.layout))
                );
                // What an earlier call leaves costs nothing in this one.
                run.sinks(&e, &ids).unwrap();
                e.take();
                run.first_token(&e, &ids).unwrap();
                let asked = e.take();
                let phases = run.shapes.first_token(&spec);
                let sum = phases.iter().fold(Flops::default(), |sum, p| sum + p.flops);
                assert_eq!(asked, counts(sum), "{what}");
                let times = run.first_token(&e, &ids).unwrap();
                let named: Vec<Phase> = times.phases.iter().map(|p| p.phase).collect();
                assert_eq!(named, phases.iter().map(|p| p.phase).collect::<Vec<_>>(), "{what}");
                let (steps, ran) = run.trace();
                assert_eq!(steps.len(), ran.len());
                assert_eq!(ran.iter().map(|r| r.time).sum::<Duration>(), times.phases.iter().map(|p| p.time).sum());
                for (step, ran) in steps.iter().zip(ran) {
                    if let Op::Layer(l) = &step.op {
                        assert_eq!(ran.rows, batch * l.rows.total(), "{what}: {step}");
                    }
                }
                e.take();
                for past in prompt..prompt + 5 {
                    run.next_token(&e).unwrap();
                    let (asked, cost) = (e.take(), run.shapes.next_token(&spec, past));
                    let (steps, ran) = run.trace();
                    let revived = steps.iter().zip(ran).filter_map(|(step, ran)| match &step.op {
                        Op::Layer(l) if l.revives > 0 => {
                            assert!(ran.rows <= batch * (1 + l.revives), "{what}: {step}");
                            Some((l.layer, ran.rows - batch))
                        }
                        _ => None,
                    });
                    // A row that is revived passes a layer, and goes on to no head.
                    let c = &run.shapes.base;
                    let extra: u64 = revived
                        .map(|(i, rows)| {
                            let (q, kv, f) = (c.q_dim(i), c.kv_dim(i), c.layers[i].ffn);
                            (2 * rows * c.dim * (2 * q + 2 * kv + 3 * f)) as u64
                        })
                        .sum();
                    all_extra += extra;
                    assert_eq!(asked[0], cost.flops.projections + extra, "{what} after {past}");
                    assert_eq!(asked[2], cost.flops.head, "{what} after {past}");
                    if extra == 0 {
                        assert_eq!(asked, counts(cost.flops), "{what} after {past}");
                    }
                }
            }
        }
    }
    assert!(all_extra > 0, "nothing was revived");
}

/// Of networks and activations in BF16: maps whose weights, or what they read, are not.
#[test]
fn costs_say_what_is_multiplied_in_f32() {
    let e = Engine::new(99);
    let (batch, prompt) = (2, 17);
    let spec = RunSpec { batch, prompt, generate: 1, precision: Precision::Bf16, extent: Extent::FirstToken };
    let ids: Vec<u32> = (0..batch * prompt).map(|i| (i * 31 % 99) as u32).collect();
    for (maps, by_keys) in [(DType::BF16, false), (DType::F16, true), (DType::F32, true)] {
        let (mut some, mut all) = (0, 0);
        for system in systems(DType::BF16, maps) {
            let mut run = Run::<bf16>::new(&system, spec, 0, &[]).unwrap();
            run.sinks(&e, &ids).unwrap();
            e.take();
            e.take_f32();
            run.first_token(&e, &ids).unwrap();
            let phases = run.shapes.first_token(&spec);
            let f32_flops: u64 = phases.iter().map(|p| p.f32_flops).sum();
            assert_eq!(e.take_f32(), f32_flops, "{maps}: {:?}", run.shapes.prediction);
            let maps: u64 = phases.iter().map(|p| p.flops.prediction).sum();
            assert!(f32_flops == 0 || f32_flops == maps);
            some += u64::from(f32_flops > 0);
            all += u64::from(maps > 0);
        }
        assert!(some > 0 && (some == all) == by_keys, "{maps}: {some} of {all}");
    }
}
