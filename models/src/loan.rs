//! Runs that begin alike. A network alone, and KV predictions whose source is its own first layers, read a prompt by the same steps
//! as far as some layer; so do KV predictions from one auxiliary. One of them can be planned to keep what others need to go on from
//! there, and these then begin behind the steps that are the same ([`crate::Inference::first_token_after`]).

use crate::{
    schedule::{Keeps, LayerStep, Net, Op, Rows, Schedule, Step, Tokens, first_token},
    spec::{Phase, RunSpec},
    system::CostSystem,
};

/// How many first steps of the one run are those of the other too, but for what is kept: the embeddings of a prompt and layers on
/// all of its rows. None of token pruning, and none of the pipelined order, where layers of the base may still wait behind them.
fn alike(a: &[Step], b: &[Step]) -> usize {
    let apart = |s: &Step| {
        s.phase == Phase::Pipelined || matches!(s.op, Op::Rank { .. } | Op::Choose { .. } | Op::Narrow { .. })
    };
    if a.iter().chain(b).any(apart) {
        return 0;
    }
    let all = |rows: Rows| rows == Rows::all(rows.of);
    let same = |(at, (a, b)): &(usize, (&Step, &Step))| match (&a.op, &b.op) {
        (Op::Embed { rows, tokens: Tokens::Prompt, .. }, _) => *at == 0 && all(*rows) && a.op == b.op,
        (Op::Layer(a), Op::Layer(b)) => *at > 0 && all(a.rows) && LayerStep { source: b.source, ..*a } == *b,
        _ => false,
    };
    a.iter().zip(b).enumerate().take_while(same).count()
}

/// What must have been kept of each of the first `n` steps of a run for it to begin behind them; none if it cannot, for some of
/// the rows have gone.
fn needs(steps: &[Step], n: usize) -> Option<Vec<Keeps>> {
    let kept = |step: &Step| if let Op::Layer(l) = &step.op { l.source } else { Keeps::default() };
    let mut out: Vec<Keeps> = steps[..n].iter().map(kept).collect();
    let Op::Layer(last) = &steps[n - 1].op else { return None };
    if goes_on(last.net, &steps[n..]) {
        let rows = last.rows.of;
        if last.out.ends() != (0, rows) {
            return None;
        }
        out[n - 1].own = rows;
    }
    Some(out)
}

/// Whether later steps work on the residual stream of a network as it is.
fn goes_on(of: Net, later: &[Step]) -> bool {
    let begins = |s: &&Step| matches!(s.op, Op::Embed { net, .. } if net == of);
    later.iter().take_while(|s| !begins(s)).any(|s| match &s.op {
        Op::Layer(l) => l.net == of,
        Op::Ends { net, .. } | Op::Head { net, .. } => *net == of,
        _ => false,
    })
}

/// The schedule of a run that scores up to `scored` tokens and keeps what runs of other systems need to go on from where both have
/// done the same.
pub(crate) fn lending(s: &CostSystem, spec: &RunSpec, scored: usize, to: &[&CostSystem]) -> Schedule {
    Schedule::keeping(s, spec, scored, |steps| {
        let own = steps.to_vec();
        to.iter().for_each(|other| lend(steps, &own, &first_token(other, spec).0));
    })
}

/// Has a run keep what another needs to begin behind as many of its steps as can be; `own` are the steps of the one that lends as
/// they are without. What its own maps read stays as it is.
fn lend(from: &mut [Step], own: &[Step], to: &[Step]) {
    let can = |(has, needs): (usize, usize)| has == 0 || has >= needs;
    for n in (2..=alike(own, to)).rev() {
        let Some(needs) = needs(to, n) else { continue };
        let fits = own.iter().zip(&needs).all(|(step, needs)| match &step.op {
            Op::Layer(l) => l.source.beside(*needs).into_iter().all(can),
            _ => true,
        });
        if fits {
            for (step, needs) in from.iter_mut().zip(needs) {
                if let Op::Layer(l) = &mut step.op {
                    let [kv, hidden, own] = l.source.beside(needs).map(|(has, needs)| has.max(needs));
                    l.source = Keeps { kv, hidden, own };
                }
            }
            return;
        }
    }
}

/// Steps of `to` that need not be run after those of `from` have been run on the same prompts.
pub(crate) fn steps(from: &[Step], to: &[Step]) -> usize {
    let held = |n: &usize| {
        needs(to, *n).is_some_and(|needs| {
            from.iter().zip(needs).all(|(step, needs)| match &step.op {
                Op::Layer(l) => l.source.beside(needs).into_iter().all(|(has, needs)| has >= needs),
                _ => true,
            })
        })
    };
    (2..=alike(from, to)).rev().find(held).unwrap_or(0)
}
