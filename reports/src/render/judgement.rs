//! What pairs of processes come to, as paragraphs and a table.

use super::blocks::{Block, Table, lead, push_table, table, text, with_interval};
use crate::{
    format::{self, or_unknown},
    pairs::{self, Judgement, Outcome, Row},
    stats::{Estimate, LEVEL},
};

/// Answer, rows, and what they mean.
pub(crate) fn blocks(judgement: &Judgement, old: &str, new: &str) -> Vec<Block> {
    let mut blocks = vec![lead(pairs::answer(judgement, old, new))];
    let head = ["system", "b x p", old, new, "new / old", "p", "p, Holm", "by probes", "finds", "outcome"];
    let rows: Table = table("", &head, &[0, 9], judgement.rows.iter().map(fields).collect());
    push_table(&mut blocks, rows);
    let orders: Vec<String> = judgement.rows.iter().filter_map(order).collect();
    if !orders.is_empty() {
        blocks.push(text("The order of the two processes matters by itself; its effect is taken out of the ratios:"));
        blocks.push(Block::List { items: orders });
    }
    blocks.push(text(format!(
        "{} pairs of processes ran, adjacent in time, in blocks of ABBA or BAAB. The column new / old is the time of {new} over \
         the time of {old} with its {:.0}% interval (Student's t over the pairs, without the effect of the order). The column p, \
         Holm is adjusted so that the chance of any false alarm among the rows stays below it. The column by probes is the ratio \
         that the machine's speed beside the processes would give by itself, and the column finds is the slowdown that this number \
         of pairs finds in 80% of cases. A row is slower if it is slower by more than {}, one-sided, with Holm's rule over all rows \
         at 5%; it is no slower if its interval lies wholly below that limit. If nothing differed, {} {} a false alarm somewhere in \
         {} of tables, each judged by its own p at 5%.",
        judgement.pairs,
        100.0 * LEVEL,
        format::percent(judgement.fail_slower_percent / 100.0),
        judgement.rows.len(),
        if judgement.rows.len() == 1 { "row would raise" } else { "rows would raise" },
        format::percent(judgement.family_rate),
    )));
    if !judgement.warnings.is_empty() {
        blocks.push(text("What limits this judgement:"));
        blocks.push(Block::List { items: judgement.warnings.clone() });
    }
    blocks
}

fn fields(row: &Row) -> Vec<String> {
    let ratio = with_interval(format!("{:.3}", row.ratio.value), three(&row.ratio));
    let outcome = match (row.outcome, row.pairs_to_decide) {
        (Outcome::Undecided, Some(n)) => format!("undecided, {n} pairs would decide"),
        (outcome, _) => outcome.name().into(),
    };
    vec![
        row.system.clone(),
        format!("{} x {}", row.batch, row.prompt),
        format::seconds(row.seconds[0]),
        format::seconds(row.seconds[1]),
        ratio,
        or_unknown(row.p.map(format::p)),
        or_unknown(row.p_holm.map(format::p)),
        or_unknown(row.by_probes.map(|r| format!("{r:.3}"))),
        or_unknown(row.detectable.map(format::percent)),
        outcome,
    ]
}

fn three(estimate: &Estimate) -> Option<String> {
    format::interval_of(estimate, |v| format!("{v:.3}"))
}

/// The effect of the order, if it is beyond chance.
fn order(row: &Row) -> Option<String> {
    let effect = row.order_effect?;
    let beyond = !effect.interval?.contains(1.0);
    beyond.then(|| {
        format!(
            "{}, {} x {}: the second process takes {:.3} {} the time of the first",
            row.system,
            row.batch,
            row.prompt,
            effect.value,
            three(&effect).unwrap_or_default()
        )
    })
}
