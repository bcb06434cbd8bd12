//! Allocates what the steps of a schedule work on.

use std::sync::Arc;

use ttft_kernels::Element;

use super::{Lane, Lanes, State};
use crate::{
    activations::Activations,
    cache::{LayerCache, RawKv, Source},
    config::NetworkConfig,
    error::Result,
    kv_prediction::{KvPrediction, control::Control, layout::Input},
    network::head_buffer,
    pipeline::Queue,
    pruning::{
        Pruning,
        lazy::Lazy,
        select::{Rule, Scores},
    },
    schedule::{Net, Op, Schedule, Slot, SourceShape, Stream, Tokens, shapes},
    sizes::zeroed,
    spec::RunSpec,
    system::{CostSystem, System},
};

impl<A: Element> State<A> {
    /// For a schedule of these shapes, with room for `scored` tokens and, if it lends, for the prompts that it has read.
    pub(super) fn new(
        system: &System,
        spec: RunSpec,
        (of, schedule): (&CostSystem, &Schedule),
        scored: usize,
        lends: bool,
    ) -> Result<Self> {
        let (b, c) = (spec.batch, &of.base);
        let net = |net| match net {
            Net::Base => system.base(),
            Net::Auxiliary => system.networks().nth(1).expect("only pairs have steps of an auxiliary"),
        };
        let lane = |&Slot { shape: s, .. }: &Slot<Stream>| -> Result<_> {
            let (net, c) = (net(s.net), shapes(of, s.net));
            let all = if s.all_logits { head_buffer(c, b * s.rows) } else { 0 };
            let act = Activations::new(c, b * s.rows)?;
            Ok(Lane { net: Arc::clone(net), rope: net.rope(s.positions), act, all: zeroed(all as u64)? })
        };
        let (mut base, mut auxiliary) = (None, None);
        for slot in &schedule.streams {
            let to = if slot.shape.net == Net::Base { &mut base } else { &mut auxiliary };
            *to = Some(lane(slot)?);
        }
        let lanes = Lanes { base: base.expect("later tokens are the base's"), auxiliary };
        let cache = |net, layer: usize, entries| {
            let c = shapes(of, net);
            LayerCache::new(b, c.layers[layer].kv_heads, entries, c.head_dim)
        };
        let source = |Slot { shape: s, .. }: &Slot<SourceShape>| {
            let (c, rows) = (shapes(of, s.net), b * s.entries);
            Ok(match s.input {
                Input::KeysAndValues => Source::KeysAndValues(RawKv::new(rows, c.kv_dim(s.layer))),
                Input::Hidden | Input::Own => Source::Hidden(zeroed((rows * c.dim) as u64)?),
            })
        };
        let sinks = schedule.sinks.first().map_or(0, |s| s.entries);
        let (mut kept, mut input) = (0, sinks.max(1));
        for step in &schedule.prompt {
            match step.op {
                Op::Choose { keep, .. } => (kept, input) = (keep, keep),
                Op::Embed { tokens: Tokens::Prompt, rows, .. } if rows.count < spec.prompt => {
                    input = input.max(rows.total())
                }
                _ => {}
            }
        }
        let (mut lazy, mut scores) = (None, None);
        if let System::Pruned(s) = system {
            if let Pruning::Lazy { .. } = s.pruning {
                lazy = Some(Lazy::new(c, s.pruning, &spec)?);
            }
            if schedule.ranked > 0 {
                let by = of.chooser.as_ref().unwrap_or(c);
                scores = Some(Scores::new(by, s.pruning, Rule::of(s), b, schedule.ranked)?);
            }
        }
        let ahead = |aux: &NetworkConfig| -> Result<_> { Ok((zeroed((b * aux.vocab) as u64)?, zeroed(b as u64)?)) };
        Ok(State {
            spec,
            dropped: schedule.dropped,
            lanes,
            caches: schedule.caches.iter().map(|s| cache(s.shape.net, s.shape.layer, s.shape.entries)).collect(),
            sources: schedule.sources.iter().map(source).collect::<Result<_>>()?,
            sinks: schedule.sinks.iter().map(|s| cache(s.net, s.layer, s.entries)).collect(),
            sink_ids: Vec::with_capacity(b * sinks),
            predictor: match system {
                System::KvPrediction(s) => Some(Arc::clone(&s.predictor)),
                _ => None,
            },
            entries: match system {
                System::KvPrediction(KvPrediction { control: Some(Control::Entries(entries)), .. }) => {
                    Some(Arc::clone(entries))
                }
                _ => None,
            },
            predicted: None,
            scores,
            lazy,
            queue: Queue::default(),
            ahead: of.chooser.as_ref().map(ahead).transpose()?,
            renumbered: of.pruning.is_some_and(Pruning::renumbers),
            kept: Vec::with_capacity(b * kept),
            input: Vec::with_capacity(b * input),
            read: Vec::with_capacity(if lends { b * spec.prompt } else { 0 }),
            lends,
            len: 0,
            logits: zeroed((b * c.vocab) as u64)?,
            scored: zeroed((b * scored * c.vocab) as u64)?,
            scoring: false,
            ids: zeroed(b as u64)?,
        })
    }
}
