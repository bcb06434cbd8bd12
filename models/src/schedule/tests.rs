use ttft_kernels::DType;

use super::{methods::kept, *};
use crate::{
    kv_prediction::layout::{Layout, Order, Origin},
    spec::Precision,
    zoo,
};

fn spec(prompt: usize, extent: Extent) -> RunSpec {
    RunSpec { batch: 2, prompt, generate: 3, precision: Precision::F32, extent }
}

fn all() -> impl Iterator<Item = CostSystem> {
    let pruned = zoo::PRUNINGS.map(|p| format!("OE270M-{p}"));
    let rivals = zoo::RIVALS.into_iter().map(String::from);
    let own = [
        "OE1.1B-KVP-C-270M-m16-s1",
        "OE1.1B-KVP-C-270M-pipelined",
        "OE3B-KVP-C-450M-m2-s3-pipelined",
        "OE1.1B-KVP-S19own-m15",
        "OE3B-KVP-S1-m2-s3kept",
        "OE1.1B-KVP-C-270M-s1kept",
        "OE1.1B-KVP-C-270M-s1kept-pipelined",
    ];
    let own = own.into_iter().chain(zoo::SHARED).map(String::from);
    let names = zoo::names().map(String::from).chain(pruned).chain(rivals).chain(own);
    names.map(|name| CostSystem::named(&name, DType::BF16).unwrap())
}

#[test]
fn a_trace_names_what_is_done() {
    let mut s = CostSystem::named("OE1.1B-KVP-C-270M", DType::BF16).unwrap();
    s.base.layers.truncate(2);
    s.prediction.as_mut().unwrap().layout = Layout::auxiliary(&[0, 1]);
    let steps: Vec<String> =
        Schedule::new(&s, &spec(9, Extent::FirstToken)).prompt.iter().map(Step::to_string).collect();
    assert_eq!(
        steps,
        [
            "auxiliary: Auxiliary embeds 8 of Prompt",
            "auxiliary: Auxiliary layer 0 on 8 of 8",
            "auxiliary: Auxiliary layer 1 on 8 of 8",
            "prediction: maps of 2 layers on 8",
            "base_step: Base embeds 1 of Prompt",
            "base_step: Base layer 0 on 1 of 9",
            "base_step: Base layer 1 on 1 of 9",
            "base_step: Base head on 1",
        ]
    );
}

/// Copies of keys and values take memory and traffic: none are made that no map reads, but where the whole network runs.
#[test]
fn of_the_auxiliary_what_maps_read_is_kept() {
    let mut s = CostSystem::named("OE1.1B-KVP-C-270M", DType::BF16).unwrap();
    s.base.layers.truncate(3);
    s.prediction.as_mut().unwrap().layout = Layout::auxiliary(&[2, 0, 2]);
    let aux = s.aux().unwrap().layers.len();
    for (extent, kept) in [(Extent::FirstToken, vec![0, 2]), (Extent::FullNetwork, (0..aux).collect())] {
        let (spec, schedule) = (spec(9, extent), Schedule::new(&s, &spec(9, extent)));
        let layers: Vec<usize> = schedule.sources.iter().map(|slot| slot.shape.layer).collect();
        assert_eq!(layers, kept, "{extent:?}");
        // Memory and traffic follow: with layer 1 read as well, they are those of one copy more.
        let mut all = s.clone();
        all.prediction.as_mut().unwrap().layout = Layout::auxiliary(&[2, 0, 1]);
        let copy = (2 * 2 * 8 * s.aux().unwrap().kv_dim(1) * 4) as u64;
        let copies = if kept.contains(&1) { 0 } else { copy };
        let caches = |s: &CostSystem| crate::memory_of(s, &spec).caches;
        assert_eq!(caches(&all) - caches(&s), copies, "{extent:?}");
        let traffic = |s: &CostSystem| s.first_token(&spec)[0].cache_bytes;
        assert!((traffic(&all) > traffic(&s)) == (copies > 0), "{extent:?}");
    }
}

fn steps(name: &str, n: usize, extent: Extent) -> Vec<String> {
    let mut s = CostSystem::named(name, DType::BF16).unwrap();
    s.base.layers.truncate(4);
    let p = s.prediction.as_mut().unwrap();
    p.layout.layers.truncate(4);
    Schedule::new(&s, &spec(n, extent)).prompt.iter().map(Step::to_string).collect()
}

/// A base that reads the last four tokens of nine and the first, of which only the last goes on from its last layer.
#[test]
fn the_base_may_read_more_tokens() {
    let all = steps("OE1.1B-KVP-C-270M-m4-s1", 9, Extent::FirstToken);
    assert_eq!(
        all[3..],
        [
            "prediction: maps of 4 layers on 5",
            "base_step: Base embeds 5 of Prompt",
            "base_step: Base layer 0 on 5 of 9",
            "base_step: Base layer 1 on 5 of 9",
            "base_step: Base layer 2 on 5 of 9",
            "base_step: Base layer 3 on 5 of 9",
            "base_step: Base head on 1",
        ]
    );
    // At positions 0 and 5 to 8 they see 1 + 6 + 7 + 8 + 9.
    let rows = Rows { first: 1, count: 4, of: 9 };
    assert_eq!((rows.past(), rows.seen(), rows.total()), (5, 31, 5));
    // All nine: nothing is left to predict, and every row passes every layer once.
    for name in ["OE1.1B-KVP-C-270M-m8-s1", "OE1.1B-KVP-C-270M-m9", "OE1.1B-KVP-S2-m2-s7"] {
        let all = steps(name, 9, Extent::FirstToken);
        assert_eq!((all.len(), all[1].as_str()), (6, "base_step: Base layer 0 on 9 of 9"), "{name}");
    }
}

/// Of first tokens that are kept the base runs none, and their entries stand in place of predicted ones.
#[test]
fn kept_sinks_are_put_back() {
    let all = steps("OE1.1B-KVP-C-270M-m4-s1kept", 9, Extent::FirstToken);
    let base = ["puts 1 back", "Base embeds 4 of Prompt", "Base layer 0 on 4 of 9"].map(|s| format!("base_step: {s}"));
    assert_eq!(all[4..7], base);
    let shared = steps("OE1.1B-KVP-S2-m4-s2kept", 9, Extent::FirstToken);
    let base = ["base_step: puts 2 back", "base_step: Base layer 2 on 9 of 9", "base_step: Base layer 3 on 4 of 9"];
    assert_eq!(shared[4..7], base);
    let mut s = CostSystem::named("OE1.1B-KVP-S2-m4-s2kept", DType::BF16).unwrap();
    s.base.layers.truncate(4);
    s.prediction.as_mut().unwrap().layout.layers.truncate(4);
    let schedule = Schedule::new(&s, &spec(9, Extent::FirstToken));
    let earlier: Vec<String> = schedule.earlier.iter().map(Step::to_string).collect();
    assert_eq!(earlier[0], "base_step: Base embeds 2 of Prompt");
    assert_eq!(
        earlier[3..],
        ["base_step: Base layer 2 on 2 of 2", "base_step: Base layer 3 on 2 of 2", "base_step: keeps 2"]
    );
    // Layer 2 makes its own of all tokens.
    assert_eq!(schedule.sinks, [KvShape { net: Net::Base, layer: 3, entries: 2, kept: true }]);
    // Full prefill has nothing to put back.
    for name in ["OE1.1B-KVP-C-270M-m8-s1kept", "OE1.1B-KVP-S2-m2-s7kept"] {
        assert_eq!(steps(name, 9, Extent::FirstToken).len(), 6, "{name}");
    }
}

#[test]
fn shared_layers_read_the_prompt_and_the_rest_a_few_tokens() {
    // Layer 2 projects the state behind layer 1 itself, on all rows; layer 3 has a map.
    let first = [
        "shared_layers: Base embeds 9 of Prompt",
        "shared_layers: Base layer 0 on 9 of 9",
        "shared_layers: Base layer 1 on 9 of 9",
        "prediction: maps of 1 layers on 5",
    ];
    let last = ["base_step: Base layer 3 on 5 of 9", "base_step: Base head on 1"];
    for name in ["OE1.1B-KVP-S2-m4-s1", "OE1.1B-KVP-S2own-m4-s1"] {
        let exact = ["base_step: Base layer 2 on 9 of 9"];
        assert_eq!(steps(name, 9, Extent::FirstToken), [&first[..], &exact, &last].concat(), "{name}");
    }
    let mut s = CostSystem::named("OE1.1B-KVP-S2-m4-s1", DType::BF16).unwrap();
    s.base.layers.truncate(4);
    let p = s.prediction.as_mut().unwrap();
    let with = |input, source| {
        let origin = |i| (i >= 2).then_some(Origin { layer: source, input });
        Layout { shared: Some(2), layers: (0..4).map(origin).collect() }
    };
    // From keys and values: nobody reads more of layer 1 than these, but for the rows that go on.
    p.layout = with(Input::KeysAndValues, 1);
    let prompt = Schedule::new(&s, &spec(9, Extent::FirstToken)).prompt;
    let Op::Layer(LayerStep { out, .. }) = prompt[2].op else { panic!("{}", prompt[2]) };
    assert_eq!((out, prompt.len()), (Out::Ends(1, 4), 7));
    // From the hidden state the layer is run whole, and rows are left out after it.
    s.prediction.as_mut().unwrap().layout = with(Input::Hidden, 1);
    let prompt = Schedule::new(&s, &spec(9, Extent::FirstToken)).prompt;
    assert_eq!(prompt[4].to_string(), "base_step: Base goes on with 5 of 9");
    let own = Rows { first: 1, count: 4, of: 9 };
    assert_eq!(prompt[5].op, kept(2, own, Out::Ends(1, 4)));
}

/// A slot is in use from its first step to its last, and a cache that layers share by one of them at a time.
#[test]
fn slots_are_used_while_they_live_and_shared_one_after_another() {
    for s in all() {
        for extent in [Extent::FirstToken, Extent::FullNetwork] {
            let schedule = Schedule::new(&s, &spec(59, extent));
            let all = [&schedule.prompt, &schedule.next, &schedule.earlier];
            let steps: Vec<&Step> = all.into_iter().flatten().collect();
            assert_eq!(schedule.uses.len(), steps.len());
            // Which layers a shared cache serves, in order.
            let mut serves = vec![Vec::new(); schedule.caches.len()];
            for (at, (step, uses)) in steps.iter().zip(&schedule.uses).enumerate() {
                let sources = uses.sources.into_iter().flatten().map(|i| schedule.sources[i]);
                let caches = [uses.cache, uses.gathered].into_iter().flatten().map(|i| schedule.caches[i]);
                let lives = caches.map(|slot| slot.first..=slot.last);
                for lives in lives.chain(sources.map(|slot| slot.first..=slot.last)) {
                    assert!(lives.contains(&at), "{step}");
                }
                if let Op::Layer(l) = &step.op {
                    let heads = |layer: usize| shapes(&s, l.net).layers[layer].kv_heads;
                    for i in [uses.cache, uses.gathered].into_iter().flatten() {
                        let c = schedule.caches[i].shape;
                        assert_eq!((c.net, heads(c.layer)), (l.net, heads(l.layer)), "{step}");
                        assert!(c.entries >= l.rows.of, "{step}");
                        serves[i].push(l.layer);
                    }
                }
            }
            for (slot, serves) in schedule.caches.iter().zip(serves) {
                if slot.shape.kept {
                    assert!(serves.iter().all(|l| *l == slot.shape.layer));
                    // The next token reads what is the base's.
                    assert!(slot.shape.net == Net::Auxiliary || slot.last >= schedule.prompt.len());
                } else {
                    assert!(serves.is_sorted_by(|a, b| a < b), "{serves:?}");
                }
            }
            for slot in &schedule.sources {
                let reads =
                    |step: &&Step| matches!(&step.op, Op::Map { maps, .. } if maps.iter().any(|m| slot.shape.feeds(m)));
                assert_eq!(slot.last, steps.iter().position(reads).unwrap_or(slot.first));
            }
        }
    }
}

/// An auxiliary that chooses in chunks of four of nine tokens, by three queries; a layer of the base that chooses three.
#[test]
fn rivals_choose_before_the_base_runs() {
    let steps = |pruning: &str, chooser: bool, extent| {
        let mut s = CostSystem::named("OE1.1B", DType::BF16).unwrap();
        s.base.layers.truncate(2);
        s.pruning = Some(pruning.parse().unwrap());
        s.chooser = chooser.then(|| s.base.clone());
        Schedule::new(&s, &spec(9, extent)).prompt.iter().map(Step::to_string).collect::<Vec<_>>()
    };
    let passed = |phase: &str, rows: &str| {
        let layer = |i| {
            let ranks = format!("selection: ranks 9 by Auxiliary layer {i}");
            [format!("{phase}: Auxiliary layer {i} on {rows}"), ranks]
        };
        [layer(0), layer(1)].concat()
    };
    let pass = |phase: &str, embeds: &str, rows: &str, head: Option<usize>| {
        let embeds = vec![format!("{phase}: Auxiliary embeds {embeds}")];
        let head: Vec<String> = head.iter().map(|n| format!("{phase}: Auxiliary head on {n}")).collect();
        [embeds, passed(phase, rows), head].concat()
    };
    let base = |embeds: &str, rows: &str| {
        let names = [
            format!("prefill: Base embeds {embeds}"),
            format!("prefill: Base layer 0 on {rows}"),
            format!("prefill: Base layer 1 on {rows}"),
            "prefill: Base head on 1".into(),
        ];
        names.to_vec()
    };
    let chooses = |n: usize| vec![format!("selection: chooses {n} of 9")];
    assert_eq!(
        steps("SpecPrefill-0.50-a3-c4-p3", true, Extent::FirstToken),
        [
            pass("auxiliary", "9 of Prompt", "9 of 9", Some(1)),
            pass("look_ahead", "1 of Last", "1 of 10", Some(1)),
            pass("look_ahead", "1 of Last", "1 of 11", None),
            chooses(5),
            base("5 of Kept", "5 of 5"),
        ]
        .concat()
    );
    // Nothing is decoded for one query.
    let all = steps("SpecPrefill-0.50-a1-c4", true, Extent::FirstToken);
    assert_eq!(all[..6], [pass("auxiliary", "9 of Prompt", "9 of 9", None), chooses(5)].concat());
    let all = steps("SpecPrefill-0.50-a1-c4", true, Extent::FullNetwork);
    assert_eq!(all[..7], [pass("auxiliary", "9 of Prompt", "9 of 9", Some(9)), chooses(5)].concat());
    let first: Vec<String> = ["selection: Base embeds 9 of Prompt", "selection: Base layer 0 on 9 of 9"]
        .into_iter()
        .chain(["selection: Base layer 1 on 9 of 9", "selection: ranks 9 by layer 1", "selection: chooses 3 of 9"])
        .map(String::from)
        .collect();
    let all = steps("GemFilter-1-3", false, Extent::FirstToken);
    assert_eq!(all, [first, base("3 of Renumbered", "3 of 3")].concat());
}

/// What later tokens do changes in numbers, not in kind: the slots found once are those of every one of them.
#[test]
fn later_tokens_have_the_same_steps() {
    let kind = |s: &Step| (std::mem::discriminant(&s.op), s.phase);
    for s in all() {
        let (spec, mut steps) = (spec(7, Extent::FirstToken), Vec::new());
        let first = Schedule::new(&s, &spec).next;
        for past in [7, 8, 300] {
            next(&s, &spec, past, &mut steps);
            assert!(steps.iter().map(kind).eq(first.iter().map(kind)), "{:?} after {past}", s.pruning);
        }
    }
}

fn pipelined_steps(name: &str, map: &[usize], extent: Extent) -> Vec<String> {
    let mut s = CostSystem::named(name, DType::BF16).unwrap();
    s.base.layers.truncate(map.len());
    let p = s.prediction.as_mut().unwrap();
    assert_eq!(p.order, Order::Pipelined);
    p.layout = Layout::auxiliary(map);
    let spec = RunSpec { batch: 1, prompt: 9, generate: 1, precision: Precision::F32, extent };
    Schedule::new(&s, &spec).prompt.iter().map(Step::to_string).collect()
}

#[test]
fn a_base_layer_follows_its_map_and_the_layer_before_it() {
    let steps = pipelined_steps("OE1.1B-KVP-C-270M-pipelined", &[1, 0, 0, 2], Extent::FirstToken);
    assert_eq!(
        steps,
        [
            "pipelined: Auxiliary embeds 8 of Prompt",
            "pipelined: Auxiliary layer 0 on 8 of 8",
            "prediction: maps of 2 layers on 8",
            "pipelined: Auxiliary layer 1 on 8 of 8",
            "prediction: maps of 1 layers on 8",
            "base_step: Base embeds 1 of Prompt",
            "pipelined: Base layer 0 on 1 of 9",
            "pipelined: Base layer 1 on 1 of 9",
            "pipelined: Base layer 2 on 1 of 9",
            "pipelined: Auxiliary layer 2 on 8 of 8",
            "prediction: maps of 1 layers on 8",
            "base_step: Base layer 3 on 1 of 9",
            "base_step: Base head on 1",
        ]
    );
}

#[test]
fn the_whole_auxiliary_may_run() {
    let steps = pipelined_steps("OE1.1B-KVP-C-270M-m2-pipelined", &[0, 0], Extent::FullNetwork);
    let head = steps.iter().position(|s| s == "pipelined: Auxiliary head on 7").unwrap();
    assert_eq!((steps[5].as_str(), head), ("pipelined: Base layer 1 on 2 of 9", 22));
    assert_eq!(steps[6], "base_step: Base head on 2");
}

#[test]
fn where_it_does_not_pay_the_order_is_in_turn() {
    let steps = |name: &str, batch, prompt| {
        let spec = RunSpec { batch, ..spec(prompt, Extent::FirstToken) };
        Schedule::new(&CostSystem::named(name, DType::BF16).unwrap(), &spec)
    };
    let (turn, pipelined) = ("OE1.1B-KVP-C-270M", "OE1.1B-KVP-C-270M-pipelined");
    let asked = CostSystem::named(pipelined, DType::BF16).unwrap();
    for (batch, prompt, pays) in [(1, 64, true), (1, 65, true), (1, 66, false), (4, 64, false)] {
        let (turn, pipelined) = (steps(turn, batch, prompt), steps(pipelined, batch, prompt));
        assert_eq!((turn.prompt != pipelined.prompt, pipelined.behind > 0), (pays, pays), "{batch}x{prompt}");
        assert_eq!(asked.falls_back(&RunSpec { batch, ..spec(prompt, Extent::FirstToken) }), !pays);
    }
}
