//! Beginning a run behind the first steps of another that reads the same prompts by them.

use std::sync::Arc;

use ttft_kernels::Element;

use super::Run;
use crate::{
    cache::Source,
    error::{Error, Result},
    loan,
    schedule::{Entries, Op, Step},
};

impl<A: Element> Run<A> {
    /// Takes over what another run keeps of its first steps, and returns how many of this run's own it need not do itself.
    pub(super) fn borrow(&mut self, from: &Run<A>, ids: &[u32]) -> Result<usize> {
        let refuse = |reason| Err(Error::Loan { reason });
        if from.state.spec.batch != self.state.spec.batch || from.state.read != ids {
            return refuse(
                "it has not read these prompts, or was not planned to lend; plan it so, and have it read them",
            );
        }
        let steps = &self.schedule.prompt[..loan::steps(&from.schedule.prompt, &self.schedule.prompt)];
        let Some(Step { op: Op::Embed { net, rows, .. }, .. }) = steps.first() else {
            return refuse("it keeps nothing of steps that are this run's too; plan it to lend to this system");
        };
        let (own, other) = (&mut self.state, &from.state);
        let lane = own.lanes.of_mut(*net);
        if !Arc::ptr_eq(&other.lanes.of(*net).net, &lane.net) {
            return refuse(
                "their networks are not the same loaded ones; load them once, and make both systems of them",
            );
        }
        let b = own.spec.batch;
        lane.act.start(b, *rows);
        for ((step, uses), others) in steps.iter().zip(&self.schedule.uses).zip(&from.schedule.uses) {
            let Op::Layer(l) = &step.op else { continue };
            if let (Entries::Kept, Some(to), Some(from)) = (l.entries, uses.cache, others.cache) {
                own.caches[to].copy_first(&other.caches[from], rows.of);
            }
            for (to, from) in uses.sources.iter().zip(&others.sources) {
                if let (Some(to), Some(from)) = (to, from) {
                    own.sources[*to].copy_first(&other.sources[*from], b);
                }
            }
        }
        // If this run's next steps go on from the residual stream behind the last of these layers, the other has kept it.
        let [.., stream] = from.schedule.uses[steps.len() - 1].sources;
        if let Some(Source::Hidden(x)) = stream.map(|at| &other.sources[at]) {
            lane.act.x[..x.len()].copy_from_slice(x);
        }
        Ok(steps.len())
    }
}
