//! Counts: parameters, FLOPs and bytes, against figures worked out by hand and the paper's.

use ttft_kernels::DType;
use ttft_models::{
    Extent, NetworkConfig, Phase, Precision, RunSpec,
    arch::openelm,
    config::{Biases, LayerShape, Rope, TensorSpec},
    cost::{CostSystem, Flops, PhaseCost},
    kv_prediction::{
        Shape,
        layout::{Input, Layout, Order, Origin, OwnTokens},
    },
    zoo,
};
use ttft_tests::models::{FIXTURES, load, systems};

fn spec(batch: usize, prompt: usize, extent: Extent) -> RunSpec {
    RunSpec { batch, prompt, generate: 1, precision: Precision::F32, extent }
}

/// Query heads as (layers, heads of each) and widths of the feed-forward networks in units of 256, as the configurations of
/// the published checkpoints list them.
#[test]
fn shapes_of_the_published_checkpoints() {
    type Published = (&'static str, &'static [(usize, usize)], &'static [usize]);
    const NETWORKS: [Published; 4] = [
        ("OE270M", &[(5, 12), (7, 16), (4, 20)], &[3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20]),
        (
            "OE450M",
            &[(3, 12), (7, 16), (6, 20), (4, 24)],
            &[3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 23, 24],
        ),
        (
            "OE1.1B",
            &[(3, 16), (7, 20), (8, 24), (6, 28), (4, 32)],
            &[4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32],
        ),
        (
            "OE3B",
            &[(4, 12), (14, 16), (12, 20), (6, 24)],
            &[
                6, 7, 8, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 28, 29, 30, 31, 32, 34, 35, 36,
                37, 38, 40, 41, 42, 43, 44, 46, 47, 48,
            ],
        ),
    ];
    for (name, heads, widths) in NETWORKS {
        let heads = heads.iter().flat_map(|&(layers, heads)| std::iter::repeat_n(heads, layers));
        let expected: Vec<_> = heads.zip(widths).map(|(heads, width)| (heads, heads / 4, 256 * width)).collect();
        let layers = zoo::network(name).unwrap().layers;
        assert_eq!(layers.iter().map(|l| (l.query_heads, l.kv_heads, l.ffn)).collect::<Vec<_>>(), expected, "{name}");
    }
}

/// Table 4: the layers that are kept, and nothing else, are those of the base.
#[test]
fn layer_pruned_networks_are_the_kept_layers_of_their_base() {
    let kept = [("0.75", vec![0, 1, 2]), ("0.50", vec![0, 2]), ("0.25", vec![0])];
    for (base, (fraction, of_four)) in ["OE1.1B", "OE3B"].into_iter().flat_map(|b| kept.iter().map(move |k| (b, k))) {
        let name = format!("{base}-LP-{fraction}");
        let whole = zoo::network(base).unwrap();
        let layers = whole.layers.iter().enumerate().filter(|(i, _)| of_four.contains(&(i % 4))).map(|(_, l)| *l);
        let expected = NetworkConfig { layers: layers.collect(), ..whole.clone() };
        assert_eq!(zoo::network(&name).unwrap(), expected, "{name}");
        assert_eq!(zoo::pruned_from(&name), Some(base));
    }
}

#[test]
fn parameters_of_the_paper() {
    for (name, params) in [
        ("OE270M", 271_527_168),
        ("OE450M", 457_179_136),
        ("OE1.1B", 1_079_891_456),
        ("OE3B", 3_036_647_424),
        ("OE1.1B-LP-0.75", 806_707_840),
        ("OE1.1B-LP-0.50", 559_476_480),
        ("OE1.1B-LP-0.25", 300_186_496),
        ("OE3B-LP-0.75", 2_260_381_440),
        ("OE3B-LP-0.50", 1_541_524_992),
        ("OE3B-LP-0.25", 791_211_264),
    ] {
        assert_eq!(zoo::network(name).unwrap().params(), params, "{name}");
    }
    for (name, params) in [
        ("OE1.1B-KVP-C-450M", 6_206_592),
        ("OE1.1B-KVP-C-270M", 5_436_544),
        ("OE1.1B-KVP-LP-0.75", 8_672_384),
        ("OE1.1B-KVP-LP-0.50", 8_672_384),
        ("OE1.1B-KVP-LP-0.25", 8_459_392),
        ("OE3B-KVP-C-1.1B", 16_032_768),
        ("OE3B-KVP-C-450M", 12_264_448),
        ("OE3B-KVP-C-270M", 10_691_584),
        ("OE3B-KVP-LP-0.75", 25_469_952),
        ("OE3B-KVP-LP-0.50", 25_469_952),
        ("OE3B-KVP-LP-0.25", 24_749_056),
    ] {
        assert_eq!(CostSystem::named(name, DType::F32).unwrap().predictor_params(), params, "{name}");
    }
}

#[test]
fn headline_reductions_of_the_paper() {
    // Tables 5 and 6, to their two decimals; 2.362 and 3.977 to three.
    for (name, reduction) in [
        ("OE1.1B-KVP-C-450M", 2.36),
        ("OE1.1B-KVP-C-270M", 3.98),
        ("OE1.1B-KVP-LP-0.75", 1.34),
        ("OE1.1B-KVP-LP-0.50", 1.93),
        ("OE1.1B-KVP-LP-0.25", 3.60),
        ("OE3B-KVP-C-1.1B", 2.81),
        ("OE3B-KVP-C-450M", 6.64),
        ("OE3B-KVP-C-270M", 11.18),
        ("OE3B-KVP-LP-0.75", 1.34),
        ("OE3B-KVP-LP-0.50", 1.97),
        ("OE3B-KVP-LP-0.25", 3.84),
    ] {
        let r = CostSystem::named(name, DType::F32).unwrap().paper_reduction();
        assert!((r - reduction).abs() < 0.0051, "{name}: {r}");
    }
    for (name, reduction) in [("OE1.1B-KVP-C-450M", 2.362), ("OE1.1B-KVP-C-270M", 3.977)] {
        let r = CostSystem::named(name, DType::F32).unwrap().paper_reduction();
        assert!((r - reduction).abs() < 0.00051, "{name}: {r}");
    }
}

/// FLOPs of the phases for 64 prompts of 59 tokens. For [`Extent::FullNetwork`], each pass with whole layers but one head
/// per sequence, as a plain call of both networks that asks for the last logits.
fn at_the_papers_point(name: &str, extent: Extent) -> Vec<u64> {
    let s = CostSystem::named(name, DType::F32).unwrap();
    let head = |c: &NetworkConfig| 2 * 64 * (c.vocab * c.dim) as u64;
    let flops = |p: &PhaseCost| match (extent, p.phase, &s.prediction) {
        (Extent::FirstToken, ..) | (_, Phase::Prediction, _) => p.flops.total(),
        (_, Phase::Auxiliary, Some(Shape { aux: Some(aux), .. })) => p.flops.total() - p.flops.head + head(aux),
        _ => p.flops.total() - p.flops.head + head(&s.base),
    };
    s.first_token(&spec(64, 59, extent)).iter().map(flops).collect()
}

#[test]
fn exact_reductions_at_the_papers_point() {
    for (name, whole, needed) in [
        ("OE1.1B-KVP-C-450M", 2.38, 2.43),
        ("OE1.1B-KVP-C-270M", 4.04, 4.20),
        ("OE1.1B-KVP-LP-0.75", 1.34, 1.37),
        ("OE1.1B-KVP-LP-0.50", 1.98, 2.10),
        ("OE1.1B-KVP-LP-0.25", 3.93, 4.69),
    ] {
        for (extent, expected) in [(Extent::FullNetwork, whole), (Extent::FirstToken, needed)] {
            let total = |name| at_the_papers_point(name, extent).iter().sum::<u64>() as f64;
            let r = total("OE1.1B") / total(name);
            assert!((r - expected).abs() < 0.0051, "{name} {extent:?}: {r}");
        }
    }
}

#[test]
fn shares_of_prediction_and_base_step() {
    for (name, predictor) in [("OE1.1B-KVP-C-450M", 0.015), ("OE1.1B-KVP-C-270M", 0.023)] {
        let p = at_the_papers_point(name, Extent::FullNetwork);
        let share = p[1] as f64 / p[0] as f64;
        assert!((share - predictor).abs() < 0.0006, "{name}: {share}");
    }
    let p = at_the_papers_point("OE1.1B-KVP-C-450M", Extent::FullNetwork);
    let share = p[2] as f64 / p.iter().sum::<u64>() as f64;
    assert!((share - 0.042).abs() < 0.0015, "{share}");
}

/// One layer by hand: D 8, d 2, H 4, K 2, F 6, V 10.
fn tiny(layers: usize) -> NetworkConfig {
    let l = LayerShape { query_heads: 4, kv_heads: 2, ffn: 6, ffn_multiplier: 0.75 };
    NetworkConfig {
        family: &openelm::FAMILY,
        vocab: 10,
        dim: 8,
        head_dim: 2,
        layers: vec![l; layers],
        ffn_dim_divisor: 2,
        eps: openelm::EPS,
        qk_norm: true,
        biases: Biases::default(),
        tied: true,
        rope: Rope::new(10000.0),
        max_context: 16,
    }
}

#[test]
fn a_small_prefill_by_hand() {
    let s = CostSystem::network(tiny(2), DType::BF16);
    // A layer's weights: qkv [16, 8], out [8, 8], proj_1 [12, 8], proj_2 [8, 6] = 128 + 64 + 96 + 48 = 336.
    let whole = s.first_token(&spec(3, 5, Extent::FullNetwork));
    assert_eq!(whole.len(), 1);
    assert_eq!(whole[0].phase, Phase::Prefill);
    assert_eq!(
        whole[0].flops,
        Flops {
            projections: 2 * (2 * 15 * 336),
            // Per layer, sequence and head: 1+2+3+4+5 = 15 pairs, 2 FLOPs for each of d = 2 features, twice.
            attention: 2 * (3 * 4 * 15 * 2 * 2 * 2),
            head: 2 * 15 * 10 * 8,
            prediction: 0,
        }
    );
    // Per layer 336 weights and norms of 8 + 8 + 2 + 2; final norm 8; table 80; two bytes each.
    assert_eq!(whole[0].weight_bytes, 2 * (2 * (336 + 20) + 8 + 80));
    // Per layer keys and values of 4 features for 15 positions, written and read, in f32.
    assert_eq!(whole[0].cache_bytes, 2 * (2 * 4 * 15 * 2) * 4);

    let needed = s.first_token(&spec(3, 5, Extent::FirstToken));
    assert_eq!(
        needed[0].flops,
        Flops {
            // The last layer: keys and values [8, 8] for 15 rows, the other 272 weights for 3.
            projections: 2 * 15 * 336 + 2 * 15 * 64 + 2 * 3 * 272,
            attention: 3 * 4 * 15 * 8 + 3 * 4 * 5 * 8,
            head: 2 * 3 * 10 * 8,
            prediction: 0,
        }
    );
    assert_eq!(needed[0].weight_bytes, whole[0].weight_bytes);
    assert_eq!(s.paper_flops(3, 5), 2 * 15 * s.base.params());
    assert_eq!(s.base.params(), 2 * 356 + 8 + 80);
    assert_eq!(s.next_token(&spec(3, 5, Extent::FirstToken), 5).flops.attention, 2 * (3 * 4 * 6 * 8));
}

fn with(aux: Option<NetworkConfig>, layout: Layout, own: OwnTokens, base: NetworkConfig) -> CostSystem {
    let prediction = Some(Shape { aux, layout, own, order: Order::InTurn, filling: None });
    CostSystem { prediction, ..CostSystem::network(base, DType::F32) }
}

/// Two last tokens and a first of six are the base's own; its two layers are predicted from layer 1 of the auxiliary's three.
#[test]
fn more_tokens_of_the_base_by_hand() {
    let own = OwnTokens { last: 2, first: 1, kept: false };
    let s = with(Some(tiny(3)), Layout::auxiliary(&[1, 1]), own, tiny(2));
    let [aux, prediction, step]: [_; 3] = s.first_token(&spec(1, 6, Extent::FirstToken)).try_into().unwrap();
    // The auxiliary and the maps on four tokens, as with one token of the base and five in all.
    let paper = with(Some(tiny(3)), Layout::auxiliary(&[1, 1]), OwnTokens::PAPER, tiny(2));
    assert_eq!([aux, prediction], paper.first_token(&spec(1, 5, Extent::FirstToken))[..2]);
    // Layer 0 on three rows, which see 1, 5 and 6 entries; of layer 1 keys and values [8, 8] for all, the other 272 weights
    // for the last.
    assert_eq!(step.flops.projections, 2 * 3 * 336 + 2 * 3 * 64 + 2 * 272);
    assert_eq!(step.flops.attention, 4 * 8 * (1 + 5 + 6) + 4 * 8 * 6);
    assert_eq!(step.flops.head, 2 * 80);
    // Each layer streams once, however many rows there are: the table, which is the head, and all norms.
    assert_eq!(step.weight_bytes, 4 * (2 * 356 + 80 + 8));
    assert_eq!(step.cache_bytes, 4 * 2 * 8 * (3 + 6));
    assert_eq!(s.paper_flops(1, 6), 2 * (4 * (tiny(3).params() + 80) + 3 * tiny(2).params()));
    // What an earlier call kept of the first costs no products: of both layers, four features are read and written twice.
    let kept = with(Some(tiny(3)), Layout::auxiliary(&[1, 1]), OwnTokens { kept: true, ..own }, tiny(2));
    let [same, maps, step]: [_; 3] = kept.first_token(&spec(1, 6, Extent::FirstToken)).try_into().unwrap();
    assert_eq!([same, maps], [aux, prediction]);
    assert_eq!(step.flops.projections, 2 * 2 * 336 + 2 * 2 * 64 + 2 * 272);
    assert_eq!(step.flops.attention, 4 * 8 * (5 + 6) + 4 * 8 * 6);
    assert_eq!(step.weight_bytes, 4 * (2 * 356 + 80 + 8));
    assert_eq!(step.cache_bytes, 4 * 2 * 8 * (2 + 6) + 4 * 2 * (2 * 2 * 4));
    assert_eq!(kept.paper_flops(1, 6), 2 * (4 * (tiny(3).params() + 80) + 2 * tiny(2).params()));
    // All of them: full prefill.
    let all = OwnTokens { last: 5, first: 1, kept: false };
    let [whole]: [_; 1] = with(Some(tiny(3)), Layout::auxiliary(&[1, 1]), all, tiny(2))
        .first_token(&spec(1, 6, Extent::FirstToken))
        .try_into()
        .unwrap();
    let [alone]: [_; 1] =
        CostSystem::network(tiny(2), DType::F32).first_token(&spec(1, 6, Extent::FirstToken)).try_into().unwrap();
    assert_eq!(
        (whole.flops, whole.weight_bytes, whole.cache_bytes),
        (alone.flops, alone.weight_bytes, alone.cache_bytes)
    );
}

/// Of Qwen's vocabulary of 151,936 tokens, whose table is the head: 2 N K operations for each sequence, N K weights and a norm.
#[test]
fn the_head_of_the_network_that_answers_is_counted_apart() {
    for name in ["Qwen3-1.7B", "Qwen3-1.7B-KVP-0.6B"] {
        let s = CostSystem::named(name, DType::BF16).unwrap();
        let spec = RunSpec { precision: Precision::Bf16, ..spec(3, 64, Extent::FirstToken) };
        let (head, last) = (s.head(&spec), *s.first_token(&spec).last().unwrap());
        let table = s.base.vocab as u64 * s.base.dim as u64;
        assert_eq!(s.base.vocab, 151_936);
        assert_eq!((head.flops, head.f32_flops), (Flops { head: 3 * 2 * table, ..Flops::default() }, 0));
        assert_eq!((head.weight_bytes, head.cache_bytes), (2 * (table + s.base.dim as u64), 0));
        assert_eq!((head.phase, head.flops.head), (last.phase, last.flops.head));
        // Everywhere, if the whole network is asked for and the base reads the whole prompt.
        let whole = s.head(&RunSpec { extent: Extent::FullNetwork, ..spec });
        let rows = if s.prediction.is_none() { 64 } else { 1 };
        assert_eq!(whole.flops.head, rows * head.flops.head);
    }
}

/// The maps of a pair in F32 beside networks in BF16.
#[test]
fn maps_of_a_wider_type_count_by_themselves() {
    let in_type = |maps: DType, precision| {
        let pair = with(Some(tiny(3)), Layout::auxiliary(&[1, 1]), OwnTokens::PAPER, tiny(2));
        let s = CostSystem { weights: DType::BF16, maps, ..pair };
        let spec = RunSpec { precision, ..spec(1, 6, Extent::FirstToken) };
        (s.first_token(&spec), ttft_models::memory_of(&s, &spec).weights)
    };
    let (narrow, narrow_memory) = in_type(DType::BF16, Precision::Bf16);
    let (wide, wide_memory) = in_type(DType::F32, Precision::Bf16);
    assert!(narrow.iter().all(|p| p.f32_flops == 0));
    let [aux, maps, step]: [_; 3] = wide.try_into().unwrap();
    assert_eq!([aux, step], [narrow[0], narrow[2]]);
    // Four maps [4, 4] with a bias, for five tokens.
    assert_eq!((maps.f32_flops, maps.flops), (2 * 4 * 5 * 4 * 4, narrow[1].flops));
    assert_eq!([maps, narrow[1]].map(|p| p.weight_bytes), [4, 2].map(|size| size * 4 * (4 * 4 + 4)));
    assert_eq!(wide_memory - narrow_memory, 2 * 4 * 4 * 4);
    // With F32 activations everything is in F32.
    let (all, _) = in_type(DType::BF16, Precision::F32);
    assert!(all.iter().all(|p| p.f32_flops == p.flops.total()));
}

/// The first two of four layers read six tokens, of which the base reads two last and one first; layer 2 projects the state
/// behind layer 1 itself, layer 3 has maps from it.
#[test]
fn small_shared_layers_by_hand() {
    let own = OwnTokens { last: 2, first: 1, kept: false };
    let s = with(None, Layout::shared(4, 2, Input::Hidden), own, tiny(4));
    let [shared, prediction, step]: [_; 3] = s.first_token(&spec(1, 6, Extent::FirstToken)).try_into().unwrap();
    assert_eq!([shared.phase, prediction.phase, step.phase], [Phase::SharedLayers, Phase::Prediction, Phase::BaseStep]);
    let seen = 1 + 2 + 3 + 4 + 5 + 6;
    assert_eq!(
        shared.flops,
        Flops { projections: 2 * 2 * 6 * 336, attention: 2 * 4 * 8 * seen, head: 0, prediction: 0 }
    );
    // The state of four tokens, [4, 8], is kept for the maps.
    assert_eq!(shared.cache_bytes, 4 * (2 * 2 * 8 * 6 + 4 * 8));
    assert_eq!(shared.weight_bytes, 4 * (2 * 356 + 6 * 8));
    // Keys and values of one layer: two maps [4, 8] with a bias, for four tokens.
    assert_eq!(prediction.flops.total(), 2 * 2 * 4 * 4 * 8);
    assert_eq!(prediction.weight_bytes, 4 * 2 * (4 * 8 + 4));
    assert_eq!(prediction.cache_bytes, 4 * 4 * (2 * 4 + 8));
    assert_eq!(s.predictor_params(), 2 * (4 * 8 + 4));
    // Keys and values of layer 2 for all tokens, the rest of it for three; layer 3 as in a pair.
    assert_eq!(step.flops.projections, 2 * 6 * 64 + 2 * 3 * 272 + 2 * 3 * 64 + 2 * 272);
    assert_eq!(step.flops.attention, 4 * 8 * (1 + 5 + 6) + 4 * 8 * 6);
    assert_eq!(step.weight_bytes, 4 * (2 * 356 + 80 + 8));
    assert_eq!(step.cache_bytes, 4 * 8 * (6 + 6 + 3 + 6));
    // By the paper's formula, the table counts with the lower layers.
    let (all, lower) = (tiny(4).params(), 2 * 356 + 80);
    assert_eq!(s.paper_flops(1, 6), 2 * (6 * lower + 4 * 72 + 3 * (all - lower)));

    // Without maps, layer 3 projects the state itself: its own norm and key and value projections.
    let s = with(None, Layout::shared(4, 2, Input::Own), own, tiny(4));
    let [_, prediction, _]: [_; 3] = s.first_token(&spec(1, 6, Extent::FirstToken)).try_into().unwrap();
    assert_eq!(prediction.flops, Flops { projections: 2 * 4 * 64, ..Flops::default() });
    assert_eq!((prediction.weight_bytes, s.predictor_params()), (4 * (64 + 8), 0));

    // Maps from keys and values: of layer 1 nothing else is made but for the three rows that go on.
    let kv = |i: usize| (i >= 2).then(|| Origin { layer: i - 2, input: Input::KeysAndValues });
    let s = with(None, Layout { shared: Some(2), layers: (0..4).map(kv).collect() }, own, tiny(4));
    let [shared, _, step]: [_; 3] = s.first_token(&spec(1, 6, Extent::FirstToken)).try_into().unwrap();
    assert_eq!(shared.flops.projections, 2 * 6 * 336 + 2 * 6 * 64 + 2 * 3 * 272);
    assert_eq!(shared.flops.attention, 4 * 8 * (seen + 1 + 5 + 6));
    assert_eq!(step.flops.projections, 2 * 3 * 336 + 2 * 3 * 64 + 2 * 272);
}

/// The shares of the base's bytes that the maps of shared layers add, which bound what they may cost where memory does.
#[test]
fn the_preset_of_shared_layers_adds_little() {
    for (name, share) in zoo::SHARED.into_iter().zip([2.8, 2.2, 1.5]) {
        let s = CostSystem::named(name, DType::BF16).unwrap();
        let found = 100.0 * s.predictor_params() as f64 / s.base.params() as f64;
        assert!((found - share).abs() < 0.06, "{name}: {found}");
        let own = CostSystem::named(&name.replace("-m15", "own-m15"), DType::BF16).unwrap();
        assert_eq!(own.predictor_params(), 0);
    }
}

#[test]
fn a_small_prediction_by_hand() {
    let s = with(Some(tiny(3)), Layout::auxiliary(&[1, 1]), OwnTokens::PAPER, tiny(2));
    let [aux, prediction, step]: [_; 3] = s.first_token(&spec(1, 4, Extent::FirstToken)).try_into().unwrap();
    assert_eq!([aux.phase, prediction.phase, step.phase], [Phase::Auxiliary, Phase::Prediction, Phase::BaseStep]);
    // Three tokens; layer 0 whole, of layer 1 keys and values alone, layer 2 is read by nobody.
    assert_eq!(
        aux.flops,
        Flops { projections: 2 * 3 * 336 + 2 * 3 * 64, attention: 4 * 6 * 8, head: 0, prediction: 0 }
    );
    assert_eq!(aux.weight_bytes, 4 * (356 + 64 + 8 + 3 * 8));
    // Layer 0: 8 features for 3 positions written and read, but not copied, as no map reads them; layer 1: copied.
    assert_eq!(aux.cache_bytes, 4 * (8 * 3 * 2 + 8 * 3));
    // Per base layer, keys and values: [4, 4] and a bias of 4.
    assert_eq!(prediction.flops.total(), 2 * (2 * 2 * 3 * 16));
    assert_eq!(prediction.weight_bytes, 4 * 2 * 2 * 20);
    assert_eq!(prediction.cache_bytes, 4 * 2 * 2 * 3 * (4 + 4));
    assert_eq!(s.predictor_params(), 2 * 2 * 20);
    // One row, four positions seen.
    assert_eq!(step.flops, Flops { projections: 2 * 2 * 336, attention: 2 * (4 * 4 * 8), head: 2 * 80, prediction: 0 });
    assert_eq!(step.cache_bytes, 4 * 2 * 8 * (1 + 4));

    let [aux, ..]: [_; 3] = s.first_token(&spec(1, 4, Extent::FullNetwork)).try_into().unwrap();
    assert_eq!(aux.flops.projections, 3 * 2 * 3 * 336);
    assert_eq!(aux.flops.head, 2 * 3 * 80);
    assert_eq!(s.paper_flops(1, 4), 2 * (3 * (tiny(3).params() + 80) + tiny(2).params()));
    assert_eq!(s.first_token(&spec(1, 1, Extent::FirstToken)).len(), 1);
}

#[test]
fn pruned_reductions_of_the_paper() {
    // Table 5's column, with the two rows that it exchanges put right (Table 7).
    let printed = [1.33, 2.00, 4.00, 1.33, 2.00, 1.21, 1.38, 1.60, 1.77, 1.83, 1.89, 1.54, 1.82, 2.04, 2.13, 2.20];
    for (name, reduction) in zoo::PRUNINGS.into_iter().zip(printed) {
        let s = CostSystem::named(&format!("OE1.1B-{name}"), DType::BF16).unwrap();
        // 1 / 0.825 and 1 / 0.725 are printed cut, not rounded.
        assert!((s.paper_reduction() - reduction).abs() < 0.0101, "{name}: {}", s.paper_reduction());
        let (all, left) =
            (CostSystem::named("OE1.1B", DType::BF16).unwrap().paper_flops(64, 59), s.paper_flops(64, 59));
        assert!((all as f64 / left as f64 - s.paper_reduction()).abs() < 1e-6, "{name}");
    }
}

#[test]
fn the_formula_of_token_pruning_holds_for_equal_layers() {
    // It takes layers for equal, but OpenELM's grow with depth: the quarter that static pruning runs twice is its narrowest,
    // and what LazyLLM leaves out its widest. Random pruning leaves out all alike, and more than its share of attention.
    let total = |name: &str| {
        let s = CostSystem::named(name, DType::BF16).unwrap();
        s.first_token(&spec(8, 1024, Extent::FirstToken)).iter().map(|p| p.flops.total()).sum::<u64>() as f64
    };
    for name in zoo::PRUNINGS {
        let name = format!("OE1.1B-{name}");
        let (exact, formula) =
            (total("OE1.1B") / total(&name), CostSystem::named(&name, DType::BF16).unwrap().paper_reduction());
        let most = if name.contains("RP") { 1.1 } else { 1.5 };
        assert!((1.0..most).contains(&(exact / formula)), "{name}: {exact} {formula}");
    }
}

#[test]
fn a_small_static_pruning_by_hand() {
    let pruning = Some("SP-0.50".parse().unwrap());
    let s = CostSystem { pruning, ..CostSystem::network(tiny(5), DType::F32) };
    let [selection, prefill]: [_; 2] = s.first_token(&spec(3, 5, Extent::FirstToken)).try_into().unwrap();
    assert_eq!([selection.phase, prefill.phase], [Phase::Selection, Phase::Prefill]);
    // Two layers: the first whole, of the second keys and values [8, 8] and the last query [8, 8]; in each the last query's
    // product with 5 keys, 4 heads of 2.
    assert_eq!(
        selection.flops,
        Flops {
            projections: 2 * 15 * 336 + 2 * 15 * 64 + 2 * 3 * 64,
            attention: 3 * 4 * 15 * 8 + 2 * (3 * 4 * 5 * 4),
            head: 0,
            prediction: 0,
        }
    );
    // ceil(5 / 2) = 3 tokens are left.
    let alone = CostSystem::network(tiny(5), DType::F32).first_token(&spec(3, 3, Extent::FirstToken));
    assert_eq!(vec![prefill], alone);
    assert_eq!(s.next_token(&spec(3, 5, Extent::FirstToken), 5).flops.attention, 5 * (3 * 4 * 4 * 8));
}

/// Three queries: the prompt's last and two tokens decoded ahead, of the second of which nothing is read behind the last query.
#[test]
fn a_small_spec_prefill_by_hand() {
    let pruning = Some("SpecPrefill-0.50-a3-c2".parse().unwrap());
    let s = CostSystem { pruning, chooser: Some(tiny(2)), ..CostSystem::network(tiny(5), DType::F32) };
    let phases: [_; 4] = s.first_token(&spec(3, 5, Extent::FirstToken)).try_into().unwrap();
    let [auxiliary, selection, ahead, prefill] = phases;
    assert_eq!([auxiliary, selection, ahead].map(|p| p.phase), [Phase::Auxiliary, Phase::Selection, Phase::LookAhead]);
    let [alone]: [_; 1] =
        CostSystem::network(tiny(2), DType::F32).first_token(&spec(3, 5, Extent::FirstToken)).try_into().unwrap();
    assert_eq!(auxiliary, PhaseCost { phase: Phase::Auxiliary, ..alone });
    // Of each query, in each layer, a product with 5 keys; these are read again.
    assert_eq!(selection.flops, Flops { attention: 3 * 2 * (3 * 4 * 5 * 4), ..Flops::default() });
    assert_eq!((selection.weight_bytes, selection.cache_bytes), (0, 3 * 2 * (4 * 15) * 4));
    assert_eq!(
        ahead.flops,
        Flops {
            // Three layers whole, and of the last keys, values and query.
            projections: 2 * 3 * (3 * 336 + 128),
            attention: 2 * (3 * 4 * 6 * 8) + 3 * 4 * 7 * 8,
            head: 2 * 3 * 80,
            prediction: 0,
        }
    );
    // The second pass has no head, and so reads three rows of its table.
    let [first, second] = [2 * (336 + 20) + 8 + 80, 336 + 20 + 128 + 8 + 4 + 3 * 8];
    assert_eq!(ahead.weight_bytes, (first + second) * 4);
    // Of three chunks two are kept, the last of one token.
    let alone = CostSystem::network(tiny(5), DType::F32).first_token(&spec(3, 3, Extent::FirstToken));
    assert_eq!(vec![prefill], alone);
    assert_eq!(s.next_token(&spec(3, 5, Extent::FirstToken), 5).flops.attention, 5 * (3 * 4 * 4 * 8));
    assert_eq!(s.paper_flops(3, 5), 2 * 3 * (7 * tiny(2).params() + 3 * tiny(5).params()));
    let share = tiny(2).params() as f64 / tiny(5).params() as f64 + 0.5;
    assert!((s.paper_reduction() * share - 1.0).abs() < 1e-12);
    // All passes whole, with a head at every position.
    let whole = s.first_token(&spec(3, 5, Extent::FullNetwork));
    assert_eq!(whole[2].flops.projections, 2 * 3 * (4 * 336));
    assert_eq!([whole[0].flops.head, whole[2].flops.head], [2 * 15 * 80, 2 * (2 * 3 * 80)]);
}

/// Layer 1 of five chooses three of five tokens.
#[test]
fn a_small_gem_filter_by_hand() {
    let pruning = Some("GemFilter-1-3".parse().unwrap());
    let s = CostSystem { pruning, ..CostSystem::network(tiny(5), DType::F32) };
    let [selection, prefill]: [_; 2] = s.first_token(&spec(3, 5, Extent::FirstToken)).try_into().unwrap();
    assert_eq!([selection.phase, prefill.phase], [Phase::Selection, Phase::Prefill]);
    assert_eq!(
        selection.flops,
        Flops {
            projections: 2 * 15 * 336 + 2 * 15 * 64 + 2 * 3 * 64,
            attention: 3 * 4 * 15 * 8 + 3 * 4 * 5 * 4,
            head: 0,
            prediction: 0,
        }
    );
    let alone = CostSystem::network(tiny(5), DType::F32).first_token(&spec(3, 3, Extent::FirstToken));
    assert_eq!(vec![prefill], alone);
    assert_eq!(s.next_token(&spec(3, 5, Extent::FirstToken), 5).flops.attention, 5 * (3 * 4 * 4 * 8));
    assert_eq!(s.paper_flops(3, 5), 2 * 3 * (5 * tiny(5).layer_params(2) + 3 * tiny(5).params()));
    let share = tiny(5).layer_params(2) as f64 / tiny(5).params() as f64;
    assert!((s.paper_reduction() * share - 1.0).abs() < 1e-12);
}

#[test]
fn a_small_lazy_pruning_by_hand() {
    let s = CostSystem { pruning: Some("L0.80-0.20".parse().unwrap()), ..CostSystem::network(tiny(5), DType::F32) };
    let [prefill]: [_; 1] = s.first_token(&spec(1, 10, Extent::FullNetwork)).try_into().unwrap();
    // Depths 0.1, 0.3, 0.5, 0.7, 0.9: 10, 8, 6, 4 and 2 tokens; ranked after all layers but the last.
    assert_eq!(prefill.flops.projections, 2 * (10 + 8 + 6 + 4 + 2) * 336);
    let pairs = 55 + 36 + 21 + 10 + 3;
    assert_eq!(prefill.flops.attention, 4 * pairs * 8 + (10 + 8 + 6 + 4) * 4 * 4);
    assert_eq!(prefill.flops.head, 2 * 2 * 80);
    let next = s.next_token(&spec(1, 10, Extent::FirstToken), 10);
    // Of 11 tokens 11, 9, 7, 5 and 3.
    assert_eq!(next.flops.attention, (11 + 9 + 7 + 5 + 3) * 4 * 8 + (11 + 9 + 7 + 5) * 4 * 4);
    assert_eq!(next.flops.projections, 5 * 2 * 336);
}

#[test]
fn loaded_systems_count_as_their_configurations() {
    for name in FIXTURES {
        let models = load(name);
        for system in systems(&models) {
            let s = CostSystem::of(&system);
            assert_eq!(s.weights, DType::F32);
            let matrices = |t: &TensorSpec| t.shape.len() == 2;
            let bytes: u64 = s.base.tensors().iter().filter(|t| matrices(t)).map(|t| t.elements() * 4).sum();
            assert_eq!(system.base().mapped_bytes(), bytes, "{name}");
        }
    }
}

#[test]
fn the_zoo_is_complete_and_consistent() {
    for name in zoo::NETWORKS {
        let c = zoo::network(name).unwrap();
        let text = serde_json::to_vec(&c.to_json("bfloat16")).unwrap();
        assert_eq!(NetworkConfig::parse("config.json".as_ref(), &text).unwrap(), c, "{name}");
    }
    for name in zoo::PAIRS {
        let p = zoo::pair(name).unwrap();
        let (base, aux) = (zoo::network(p.base).unwrap(), zoo::network(p.aux).unwrap());
        assert_eq!(p.layer_map.len(), base.layers.len(), "{name}");
        // Every map is monotonic and uses every auxiliary layer, or of a deeper auxiliary as many as the base has.
        assert!(p.layer_map.is_sorted() && p.layer_map.last() == Some(&(aux.layers.len() - 1)), "{name}");
        let mut used = p.layer_map.clone();
        used.dedup();
        assert_eq!(used.len(), aux.layers.len().min(base.layers.len()), "{name}");
    }
    // Table 1, verbatim.
    let table = [
        ("OE1.1B-KVP-C-450M", "0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 9 10 11 12 13 14 15 16 17 18 19"),
        ("OE1.1B-KVP-C-270M", "0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8 9 9 10 10 11 11 12 13 14 15"),
        ("OE1.1B-KVP-LP-0.75", "0 1 2 2 3 4 5 5 6 7 8 8 9 10 11 11 12 13 14 14 15 16 17 17 18 19 20 20"),
        ("OE1.1B-KVP-LP-0.50", "0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8 9 9 10 10 11 11 12 12 13 13"),
        ("OE1.1B-KVP-LP-0.25", "0 0 0 0 1 1 1 1 2 2 2 2 3 3 3 3 4 4 4 4 5 5 5 5 6 6 6 6"),
        (
            "OE3B-KVP-C-1.1B",
            "0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27",
        ),
        ("OE3B-KVP-C-450M", "0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8 9 9 10 10 11 11 12 12 13 13 14 14 15 15 16 17 18 19"),
        ("OE3B-KVP-C-270M", "0 0 0 1 1 1 2 2 2 3 3 3 4 4 5 5 6 6 7 7 8 8 9 9 10 10 11 11 12 12 13 13 14 14 15 15"),
        (
            "OE3B-KVP-LP-0.75",
            "0 1 2 2 3 4 5 5 6 7 8 8 9 10 11 11 12 13 14 14 15 16 17 17 18 19 20 20 21 22 23 23 24 25 26 26",
        ),
        ("OE3B-KVP-LP-0.50", "0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8 9 9 10 10 11 11 12 12 13 13 14 14 15 15 16 16 17 17"),
        ("OE3B-KVP-LP-0.25", "0 0 0 0 1 1 1 1 2 2 2 2 3 3 3 3 4 4 4 4 5 5 5 5 6 6 6 6 7 7 7 7 8 8 8 8"),
    ];
    assert_eq!(table.map(|(name, _)| name), zoo::PAIRS[..table.len()]);
    for (name, map) in table {
        let expected: Vec<usize> = map.split(' ').map(|j| j.parse().unwrap()).collect();
        assert_eq!(zoo::pair(name).unwrap().layer_map, expected, "{name}");
    }
}

/// The networks of the Hub against a count written out: the head is a large part where the vocabulary is.
#[test]
fn vocabularies_of_the_hub() {
    for (name, layers, dim, ffn, heads, kv_heads, d, vocab, biases) in [
        ("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151_936, true),
        ("Qwen3-0.6B", 28, 1024, 3072, 16, 8, 128, 151_936, false),
        ("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, 128_256, false),
    ] {
        let s = CostSystem::named(name, DType::BF16).unwrap();
        let (q, kv) = (heads * d, kv_heads * d);
        let matrices = dim * (q + 2 * kv) + q * dim + 3 * dim * ffn;
        for n in [1u64, 64] {
            let spec = RunSpec { precision: Precision::Bf16, ..spec(1, n as usize, Extent::FullNetwork) };
            let [cost] = s.first_token(&spec)[..] else { panic!("one phase") };
            assert_eq!(cost.flops.projections, 2 * n * layers * matrices, "{name}");
            assert_eq!(cost.flops.attention, layers * q * 4 * n * (n + 1) / 2, "{name}");
            assert_eq!(cost.flops.head, 2 * n * dim * vocab, "{name}");
            let spec = RunSpec { extent: Extent::FirstToken, ..spec };
            assert_eq!(s.first_token(&spec)[0].flops.head, 2 * dim * vocab, "{name}: the last position alone");
        }
        // The table is the head, so it is streamed once; norms are vectors, and so are biases.
        let head_norms = if name.starts_with("Qwen3") { 2 * d } else { 0 };
        let vectors = 2 * dim + head_norms + if biases { q + 2 * kv } else { 0 };
        let params = layers * (matrices + vectors) + dim + vocab * dim;
        assert_eq!(s.base.params(), params, "{name}");
        assert_eq!(s.first_token(&spec(1, 1, Extent::FirstToken))[0].weight_bytes, 2 * params, "{name}");
        let plan = ttft_models::memory_of(&s, &spec(1, 1, Extent::FirstToken));
        assert_eq!(plan.weights, 2 * (layers * matrices + vocab * dim), "{name}");
        assert!(plan.activations >= 4 * vocab && plan.activations < 4 * vocab + (1 << 20), "{name}: {plan:?}");
    }
}

/// Sizes that no machine holds: the largest number, no panic and no small one.
#[test]
fn absurd_sizes_end_at_the_largest_number() {
    for name in ["Qwen3-4B-KVP-0.6B", "OE3B-LP-0.50", "OE1.1B-RP-0.50", "OE1.1B-L0.75-0.10"] {
        let s = CostSystem::named(name, DType::BF16).unwrap();
        let counted = |batch, prompt| {
            let spec = spec(batch, prompt, Extent::FullNetwork);
            let all = |costs: &[PhaseCost]| costs.iter().map(|c| c.flops.total()).fold(0, u64::saturating_add);
            let plan = ttft_models::memory_of(&s, &spec).total();
            [all(&s.first_token(&spec)), s.paper_flops(batch, prompt), plan]
        };
        let largest = counted(1 << 20, 1 << 24);
        let sensible = counted(64, 1 << 13);
        assert!(sensible.iter().zip(&largest).all(|(a, b)| a < b), "{name}: {sensible:?} {largest:?}");
        for (batch, prompt) in [(1 << 40, 1 << 40), (usize::MAX, 1 << 30), (1 << 30, usize::MAX >> 8)] {
            assert!(counted(batch, prompt).iter().zip(&largest).all(|(a, b)| a >= b), "{name} {batch} {prompt}");
        }
    }
}

/// Seconds below which the first token cannot come: of every phase its arithmetic or its traffic.
fn bound(phases: &[PhaseCost], flops_per_s: f64, bytes_per_s: f64) -> f64 {
    let times =
        |p: &PhaseCost| (p.flops.total() as f64 / flops_per_s, (p.weight_bytes + p.cache_bytes) as f64 / bytes_per_s);
    phases.iter().map(times).map(|(arithmetic, traffic)| arithmetic.max(traffic)).sum()
}

/// Bounds of KV prediction in turn and pipelined. Where memory takes no time, both are the arithmetic; where arithmetic takes none,
/// the traffic; else the pipelined one is shorter, but not than either alone.
#[test]
fn the_pipelined_bound_is_the_longer_of_both_and_a_tail() {
    let spec = RunSpec { batch: 1, prompt: 64, generate: 1, precision: Precision::Bf16, extent: Extent::FirstToken };
    for pair in ["OE1.1B-KVP-C-450M", "OE1.1B-KVP-C-270M"] {
        let [turn, pipelined] =
            ["", "-pipelined"].map(|order| CostSystem::named(&format!("{pair}{order}"), DType::BF16).unwrap());
        let [turn, pipelined] = [turn, pipelined].map(|s| s.first_token(&spec));
        let names = |phases: &[PhaseCost]| phases.iter().map(|p| p.phase).collect::<Vec<_>>();
        assert_eq!(names(&turn), [Phase::Auxiliary, Phase::Prediction, Phase::BaseStep]);
        assert_eq!(names(&pipelined), [Phase::Pipelined, Phase::Prediction, Phase::BaseStep]);
        // It is the same work, otherwise divided: most of the base is behind the auxiliary.
        let sum = |phases: &[PhaseCost]| {
            let flops = phases.iter().fold(Flops::default(), |sum, p| sum + p.flops);
            (
                flops,
                phases.iter().map(|p| p.weight_bytes).sum::<u64>(),
                phases.iter().map(|p| p.cache_bytes).sum::<u64>(),
            )
        };
        let (flops, weights, caches) = sum(&turn);
        assert_eq!(sum(&pipelined), (flops, weights, caches));
        assert!(pipelined[2].weight_bytes < turn[2].weight_bytes / 4, "{pipelined:?}");
        let (flops, bytes) = (flops.total() as f64, (weights + caches) as f64);
        for (flops_per_s, bytes_per_s, least) in [(4e11, 1e30, flops / 4e11), (1e30, 4e10, bytes / 4e10)] {
            for phases in [&turn, &pipelined] {
                let found = bound(phases, flops_per_s, bytes_per_s);
                assert!((found / least - 1.0).abs() < 0.01, "{pair}: {found} {least}");
            }
        }
        // Zen 4: its peak and what it reads.
        let [turn, pipelined] = [turn, pipelined].map(|phases| bound(&phases, 468e9, 45e9));
        assert!(pipelined < turn && pipelined > (flops / 468e9).max(bytes / 45e9), "{pair}: {pipelined} {turn}");
    }
}
