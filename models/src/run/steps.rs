//! What each kind of step does to the state of a run.

use ttft_kernels::{Element, Mat};

use super::{Lanes, State};
use crate::{
    cache::{LayerCache, Source},
    engine::Engine,
    error::Result,
    kv_prediction::{layout::Input, predictor::Prediction},
    network::{Cache, Kv},
    pipeline::Queue,
    schedule::{LayerStep, Map, Net, Op, Schedule, Tokens, Uses},
};

impl<A: Element> State<A> {
    /// Runs a step, or puts it off if it `may_wait`; how many rows of all sequences it works on.
    pub(super) fn step(
        &mut self,
        e: &Engine,
        schedule: &Schedule,
        op: &Op,
        uses: Uses,
        ids: &[u32],
        may_wait: bool,
    ) -> Result<usize> {
        let (b, prompt) = (self.spec.batch, self.spec.prompt);
        match op {
            &Op::Embed { net, rows, tokens } => {
                self.input.clear();
                match tokens {
                    Tokens::Prompt if rows.count == prompt => {}
                    Tokens::Prompt => {
                        for run in [0..rows.first, rows.past()..rows.of] {
                            self.input.extend(ids.chunks_exact(prompt).flat_map(|row| &row[run.clone()]));
                        }
                    }
                    Tokens::Kept | Tokens::Renumbered => {
                        let rows = ids.chunks_exact(prompt).zip(self.kept.chunks_exact(rows.count));
                        self.input.extend(rows.flat_map(|(ids, kept)| kept.iter().map(|&p| ids[p as usize])));
                    }
                    Tokens::Last => self.input.extend(match (net, &self.ahead) {
                        (Net::Auxiliary, Some((_, ids))) => ids,
                        _ => &self.ids,
                    }),
                    Tokens::Given => {}
                }
                // A whole prompt and given tokens are read where they are.
                let ids = if self.input.is_empty() { ids } else { &self.input };
                let lane = self.lanes.of_mut(net);
                lane.net.embed(e, ids, b, rows, &mut lane.act)?;
                match tokens {
                    Tokens::Kept => lane.act.place(&self.kept),
                    Tokens::Last | Tokens::Given if net == Net::Base && !self.renumbered => {
                        lane.act.shift(self.dropped)
                    }
                    Tokens::Prompt | Tokens::Renumbered | Tokens::Last | Tokens::Given => {}
                }
                if net == Net::Base
                    && matches!(tokens, Tokens::Last)
                    && let Some(lazy) = &mut self.lazy
                {
                    lazy.begin(rows.past());
                }
                Ok(ids.len())
            }
            Op::Layer(l) => self.layer(e, l, uses, may_wait),
            &Op::Ends { net, rows } => {
                let act = &mut self.lanes.of_mut(net).act;
                act.keep_ends(rows.first, rows.count);
                act.past = rows.past();
                Ok(act.rows())
            }
            Op::Map { rows, maps } => self.map(e, schedule, *rows, maps),
            &Op::Sinks { rows, back, ref layers } => {
                let sinks = schedule.sinks.iter().zip(&mut self.sinks);
                for (shape, kept) in sinks.filter(|(shape, _)| layers.contains(&shape.layer)) {
                    let cache = &mut self.caches[schedule.cache_of(shape.layer)];
                    let (from, to) = if back { (&*kept, cache) } else { (&*cache, kept) };
                    to.copy_first(from, rows);
                }
                Ok(b * rows)
            }
            Op::Fill { rows, layers } => self.fill(e, schedule, *rows, layers),
            &Op::Rank { layer, of } => {
                let Some(scores) = self.scores.as_mut().filter(|_| of > 0) else { return Ok(0) };
                let Some((net, layer)) = layer else {
                    scores.add_seeded(of, |_, p| p as u32);
                    return Ok(b * of);
                };
                let read = uses.gathered.or(uses.cache).expect("a layer that is ranked by has entries");
                let (lane, lazy) = (self.lanes.of(net), &self.lazy);
                let position = |b: usize, p: usize| lazy.as_ref().map_or(p as u32, |lazy| lazy.position(layer, b, p));
                scores.add(e, (&lane.net, layer), &lane.act, (&self.caches[read], of), position)?;
                Ok(b * of)
            }
            &Op::Choose { of, keep, chunk } => {
                let scores = self.scores.as_mut().expect("tokens are scored before they are chosen");
                scores.choose(chunk, keep, &mut self.kept);
                Ok(b * of)
            }
            &Op::Narrow { layer, of, keep, revives } => {
                let (Some(lazy), Some(scores)) = (&mut self.lazy, &mut self.scores) else {
                    unreachable!("only LazyLLM narrows")
                };
                lazy.take(layer, of, keep, scores);
                let act = &mut self.lanes.base.act;
                if revives {
                    lazy.revive(layer, act)
                } else {
                    lazy.stop(layer, act)
                }
                Ok(act.rows())
            }
            &Op::Head { net, rows } => self.head(e, net, rows),
        }
    }

    fn layer(&mut self, e: &Engine, l: &LayerStep, uses: Uses, may_wait: bool) -> Result<usize> {
        let lane = self.lanes.of(l.net);
        let rows = lane.act.rows();
        if l.net == Net::Base {
            match uses.cache {
                Some(cache) if may_wait && Queue::takes(e, &lane.net, &lane.act, (l.rows, l.out)) => {
                    self.queue.push(l.layer, cache);
                    return Ok(rows);
                }
                _ => self.finish_queue(e)?,
            }
        }
        if let (Some(gathered), Some(cache)) = (uses.gathered, uses.cache) {
            let lane = &mut self.lanes.base;
            let [cache, gathered] = self.caches.get_disjoint_mut([cache, gathered]).expect("slots of their own");
            let lazy = self.lazy.as_mut().expect("only LazyLLM revives tokens");
            lazy.layer(e, (&lane.net, l.layer), &mut lane.act, &lane.rope, cache, gathered)?;
            return Ok(rows);
        }
        let [kv_source, hidden, own] = uses.sources;
        // Taken out from among the others, to which layers of the base that run behind this one append.
        let mut taken = uses.cache.map(|i| std::mem::replace(&mut self.caches[i], LayerCache::new(0, 0, 0, 0)));
        let kv = Kv {
            cache: taken.as_mut().map_or(Cache::None, Cache::Own),
            source: kv_source.map(|i| match &mut self.sources[i] {
                Source::KeysAndValues(raw) => raw,
                Source::Hidden(_) => unreachable!("a source is what its shape says"),
            }),
        };
        let done = match (l.net, &mut self.lanes) {
            (Net::Auxiliary, Lanes { base, auxiliary: Some(lane) }) if !self.queue.is_empty() => {
                let mut behind = base.behind(e, &mut self.caches, &mut self.queue);
                lane.net.layer_by(e, &mut behind, l.layer, &mut lane.act, &lane.rope, kv, l.out)
            }
            (net, lanes) => {
                let lane = lanes.of_mut(net);
                lane.net.layer(e, l.layer, &mut lane.act, &lane.rope, kv, l.out)
            }
        };
        if let (Some(i), Some(cache)) = (uses.cache, taken) {
            self.caches[i] = cache;
        }
        done?;
        for (slot, unit) in [(hidden, true), (own, false)] {
            if let Some(Source::Hidden(to)) = slot.map(|i| &mut self.sources[i]) {
                let lane = self.lanes.of(l.net);
                lane.net.keep_hidden(e, &lane.act, unit, to)?;
            }
        }
        Ok(rows)
    }

    /// Runs what was put off and is not done.
    fn finish_queue(&mut self, e: &Engine) -> Result<()> {
        self.lanes.base.behind(e, &mut self.caches, &mut self.queue).finish()
    }

    /// Fills the caches of base layers.
    fn map(&mut self, e: &Engine, schedule: &Schedule, rows: usize, maps: &[Map]) -> Result<usize> {
        let (lane, b) = (&mut self.lanes.base, self.spec.batch);
        let (mut from_kv, mut from_hidden) = (Vec::new(), Vec::new());
        // All maps of a step are computed at once, so their caches are borrowed at once.
        let mut caches: Vec<_> = self.caches.iter_mut().map(Some).collect();
        let mut predicted: Vec<_> = self.predicted.iter_mut().flatten().map(Some).collect();
        for m in maps {
            let layer = m.layer;
            let cache = caches[schedule.cache_of(layer)].take().expect("a layer has one map");
            let keep = predicted.get_mut(layer).and_then(Option::take);
            match (&self.sources[schedule.source_of(m)], m.input) {
                (Source::KeysAndValues(raw), _) => {
                    from_kv.push(Prediction { layer, k: &raw.k, v: &raw.v, cache, keep });
                }
                (Source::Hidden(x), Input::Own) => {
                    lane.net.keys_and_values_of(e, layer, (x, b), &mut lane.act, &lane.rope, cache, keep)?;
                }
                (Source::Hidden(x), _) => from_hidden.push(Prediction { layer, k: x, v: x, cache, keep }),
            }
        }
        let predictor = self.predictor.as_ref().expect("only KV prediction maps");
        predictor.predict(e, &lane.net, (b, rows), &lane.rope, from_kv)?;
        predictor.predict(e, &lane.net, (b, rows), &lane.rope, from_hidden)?;
        Ok(b * rows)
    }

    /// Puts entries that were made elsewhere into the caches of base layers.
    fn fill(&mut self, e: &Engine, schedule: &Schedule, rows: usize, layers: &[usize]) -> Result<usize> {
        let (lane, rows) = (&mut self.lanes.base, self.spec.batch * rows);
        let entries = self.entries.as_ref().expect("a control that fills has entries");
        for &layer in layers {
            let width = lane.net.config().kv_dim(layer);
            let [keys, values] = entries.layer(layer, rows, width)?.map(|part| part.repeat(rows * width / part.len()));
            let [keys, values] = [&keys, &values].map(|part| Mat::new(part, rows, width));
            let k_norm = if entries.normed { None } else { lane.net.k_norm(layer) };
            let cache = &mut self.caches[schedule.cache_of(layer)];
            lane.net.put(e, (keys, values, self.spec.batch), k_norm, &lane.rope, cache)?;
        }
        Ok(rows)
    }

    /// Computes logits. The base, and a network that decodes ahead, choose a token by the last row of each sequence.
    fn head(&mut self, e: &Engine, net: Net, rows: usize) -> Result<usize> {
        if net == Net::Base {
            self.finish_queue(e)?;
        }
        let lane = self.lanes.of_mut(net);
        let (logits, ids) = match (net, &mut self.ahead) {
            (Net::Base, _) => (&mut self.logits, &mut self.ids),
            (Net::Auxiliary, Some((logits, ids))) => (logits, ids),
            (Net::Auxiliary, None) => {
                lane.net.head_all(e, &mut lane.act, &mut lane.all, |_, _| ())?;
                return Ok(lane.act.rows());
            }
        };
        if let Some(lazy) = &mut self.lazy {
            lazy.finish(&mut lane.act);
        }
        let (b, n, v) = (self.spec.batch, lane.act.n(), lane.net.config().vocab);
        if self.scoring {
            lane.net.head_rows(e, &mut lane.act, &mut self.scored[..b * n * v])?;
            return Ok(b * n);
        }
        let firsts = lane.act.rows() - b * n;
        if rows > 1 {
            lane.net.head_all(e, &mut lane.act, &mut lane.all, |row, m| {
                // The extent asks for the logits of all positions; a token is chosen by those of the last.
                for r in 0..m.rows() {
                    if let Some(at) = (row + r).checked_sub(firsts)
                        && at % n == n - 1
                    {
                        logits[at / n * v..][..v].copy_from_slice(m.row(r));
                    }
                }
            })?;
        } else {
            lane.net.head(e, &mut lane.act, logits)?;
        }
        e.argmax(Mat::new(logits, b, v), ids)?;
        Ok(b * rows)
    }
}
