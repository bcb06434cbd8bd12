//! Sides beside one another: means, figures, and what limits them.

use super::{
    blocks::{Block, Table, lead, push_table, size, table, text, with_interval},
    verdict::headline,
};
use crate::{
    compare::{self, Side, Verdict, Versus},
    format::{self, or_unknown},
    summary::{self, Row},
    validate,
};

/// The title of a normalised ratio, and the ratio.
type Normalised = (&'static str, fn(&compare::Versus) -> Option<f64>);
const NORMALISED: [Normalised; 2] = [("at equal peak", |v| v.by_peak), ("at equal bandwidth", |v| v.by_bandwidth)];

/// Means, figures and limits of a comparison.
pub(crate) fn blocks(comparison: &compare::Comparison) -> Vec<Block> {
    let mut blocks = Vec::new();
    let Some((first, others)) = comparison.sides.split_first() else { return blocks };
    let first = first.name;
    for (side, means) in others.iter().zip(&comparison.means) {
        blocks.push(lead(means_text(first, side.name, means)));
    }
    for (i, side) in others.iter().enumerate() {
        blocks.push(text(verdicts_text(first, side.name, comparison, i)));
    }
    // What the machines are compared for: each run's own answer.
    let answer = |side: &Side| {
        let validation = validate::validate(side.records[0]);
        (!validation.claims.is_empty()).then(|| format!("{}: {}", side.name, headline(&validation).0))
    };
    let answers: Vec<String> = comparison.sides.iter().filter_map(answer).collect();
    if !answers.is_empty() {
        blocks.push(Block::List { items: answers });
    }
    // Normalised figures only where both sides have the limits that it takes.
    let known = |of: fn(&compare::Versus) -> Option<f64>, i: usize| {
        comparison.lines.iter().filter_map(|l| l.versus[i]).any(|v| of(&v).is_some())
    };
    let normalised: Vec<Vec<Normalised>> =
        (0..others.len()).map(|i| NORMALISED.into_iter().filter(|(_, of)| known(*of, i)).collect()).collect();
    let of = |name: &str| [format!("TTFT, {name}"), format!("TTFT red., {name}")];
    let mut head = vec!["system".to_string(), "b x p".into()];
    let mut words = vec![0];
    for (side, normalised) in others.iter().zip(&normalised) {
        head.push(format!("{first} / {}", side.name));
        head.extend(normalised.iter().map(|(name, _)| name.to_string()));
        words.push(head.len());
        head.push(format!("{} is", side.name));
    }
    head.extend(comparison.sides.iter().flat_map(|side| of(side.name)));
    let mut single = false;
    let mut doubted = Vec::new();
    let mut rows = Vec::new();
    for line in &comparison.lines {
        let of = |(row, seconds): (&Option<Row>, &Option<f64>)| {
            let own = row.as_ref().filter(|r| r.cell.system != r.cell.base).and_then(|r| r.speedup);
            [or_unknown(seconds.map(format::seconds)), or_unknown(own.map(|s| format::ratio(s.estimate.value)))]
        };
        let mut fields = vec![line.cell().system.clone(), size(line.cell())];
        for (versus, normalised) in line.versus.iter().zip(&normalised) {
            let ratio = versus.map(|v| with_interval(format::ratio(v.ratio.value), format::ratio_interval(&v.ratio)));
            fields.push(or_unknown(ratio));
            fields.extend(normalised.iter().map(|(_, of)| or_unknown(versus.and_then(|v| of(&v)).map(format::ratio))));
            single |= versus.is_some_and(|v| v.single && v.p.is_some());
            fields.push(or_unknown(versus.as_ref().map(word)));
        }
        fields.extend(line.rows.iter().zip(&line.seconds).flat_map(of));
        if line.rows.iter().flatten().any(|r| !r.doubts.is_empty() || r.cell.has_faults()) {
            doubted.push(rows.len());
        }
        rows.push(fields);
    }
    blocks.push(Block::Table(Table { title: String::new(), head, rows, words, marked: Vec::new() }.mark(doubted)));
    let star = match single {
        true => {
            " A star marks a word against a single published figure, which rests on the spread of the other side alone."
        }
        false => "",
    };
    let equal = match normalised.iter().any(|n| !n.is_empty()) {
        true => " The columns at equal peak and at equal bandwidth show the ratio if both machines had the same.",
        false => "",
    };
    blocks.push(text(format!(
        "Only equal work is compared: the same kind, system, base, auxiliary, batch and prompt. A ratio above 1 means that the \
         other run is faster than {first}.{equal} Every record gives one value for a workload. A row is called faster or slower \
         if Student's t on these values gives p < {:.2}. The test includes how much occasions differ, as the records of a side \
         or the machine's calibration show it; where neither shows it, the row is not decided. If nothing differed, {} such tests \
         would raise an alarm somewhere in {} of tables; (F) marks words that hold for all rows together, by Holm's rule.{star}",
        compare::ALPHA,
        comparison.tests,
        format::percent(comparison.family_rate),
    )));
    push_table(&mut blocks, energy(comparison));
    let explained = explained(comparison);
    if !explained.is_empty() {
        blocks.push(text("How much of the difference the machine's speed beside the cells explains:"));
        blocks.push(Block::List { items: explained });
    }
    if !comparison.commands.is_empty() {
        blocks.push(text("What would decide:"));
        blocks.push(Block::List { items: comparison.commands.clone() });
    }
    if !comparison.warnings.is_empty() {
        blocks.push(text("What limits this comparison:"));
        blocks.push(Block::List { items: comparison.warnings.clone() });
    }
    blocks
}

/// One side's means in a sentence.
fn means_text(first: &str, name: &str, means: &compare::Means) -> String {
    let Some(ratio) = means.ratio else { return format!("{name} has no mean, because none of its figures is sound.") };
    let than = if ratio >= 1.0 {
        format!("is {} as fast as {first}", format::ratio(ratio))
    } else {
        format!("takes {} the time of {first}", format::ratio(1.0 / ratio))
    };
    let normalised = |value: Option<f64>, what: &str| {
        value.map(|v| format!("; {what}, {name} would be {} as fast", format::ratio(v))).unwrap_or_default()
    };
    format!(
        "{name} {than} (geometric mean of {} workload{}){}{}.",
        means.workloads,
        if means.workloads == 1 { "" } else { "s" },
        normalised(means.by_peak, "with equal peaks"),
        normalised(means.by_bandwidth, "with equal read bandwidth"),
    )
}

/// What the rows of one side come to.
fn verdicts_text(first: &str, name: &str, comparison: &compare::Comparison, side: usize) -> String {
    let all: Vec<Verdict> = comparison.lines.iter().filter_map(|l| Some(l.versus[side]?.verdict)).collect();
    let count = |verdict: Verdict| all.iter().filter(|v| **v == verdict).count();
    let parts = [
        (count(Verdict::Faster), format!("{name} is faster than {first}")),
        (count(Verdict::Slower), format!("{name} is slower than {first}")),
        (count(Verdict::WithinNoise), "no difference is found beyond noise".into()),
        (count(Verdict::NoSpread), "neither side has a spread to judge by".into()),
        (count(Verdict::Unknown), "nothing is decided, because it is unknown how much occasions differ".into()),
    ];
    let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("in {n}, {what}")).collect();
    let s = if all.len() == 1 { "" } else { "s" };
    format!("Of {} workload{s} that {name} and {first} have in common: {}.", all.len(), parts.join("; "))
}

fn word(versus: &Versus) -> String {
    let star = if versus.single && versus.p.is_some() { "*" } else { "" };
    let family = if versus.in_family() { " (F)" } else { "" };
    format!("{}{star}{family}", versus.verdict)
}

/// Energy to the first token, of the workloads of which the first side and another one know it.
fn energy(comparison: &compare::Comparison) -> Table {
    let fields = |line: &compare::Line| {
        let joules: Vec<Option<f64>> =
            line.rows.iter().map(|row| row.as_ref().and_then(|row| summary::joules(row.cell))).collect();
        let (first, others) = joules.split_first()?;
        let first = first.filter(|_| others.iter().any(Option::is_some))?;
        let shown = joules.iter().map(|j| or_unknown(j.map(format::joules)));
        let ratios = others.iter().map(|other| or_unknown(other.map(|other| format::ratio(first / other))));
        Some([line.cell().system.clone(), size(line.cell())].into_iter().chain(shown).chain(ratios).collect())
    };
    let names = || comparison.sides.iter().map(|side| side.name);
    let ratios = names().skip(1).map(|name| format!("{} / {name}", comparison.sides[0].name));
    let head: Vec<String> = ["system".into(), "b x p".into()]
        .into_iter()
        .chain(names().map(|name| format!("energy, {name}")))
        .chain(ratios)
        .collect();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let rows = comparison.lines.iter().filter_map(fields).collect();
    table("Energy of the packages to the first token, of each side's first record that has it", &head, &[0], rows)
}

/// For each side on the same machine, the mean ratio and what the probes alone would give.
fn explained(comparison: &compare::Comparison) -> Vec<String> {
    let others = comparison.sides.iter().skip(1).enumerate();
    let of = |(i, side): (usize, &Side)| {
        let known: Vec<(f64, f64)> = comparison
            .lines
            .iter()
            .filter_map(|l| l.versus[i])
            .filter_map(|v| Some((v.ratio.value.ln(), v.by_probes?.ln())))
            .collect();
        let n = known.len() as f64;
        let (seen, probes) = known.iter().fold((0.0, 0.0), |sum, k| (sum.0 + k.0 / n, sum.1 + k.1 / n));
        (!known.is_empty()).then(|| {
            format!(
                "{}: the ratio is {:.3} in the mean of {} rows; the speed probes alone would give {:.3}, which leaves {:.3}",
                side.name,
                seen.exp(),
                known.len(),
                probes.exp(),
                (seen - probes).exp()
            )
        })
    };
    others.filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compare::compare,
        json, samples,
        schema::{Energy, Record},
        terminal,
    };

    fn with_energy(joules: f64) -> Record {
        let mut record = samples::run();
        record.cells[1].energy = Some(Energy { joules: Some(joules), repetitions: 3, ..Energy::default() });
        record
    }

    #[test]
    fn each_count_of_verdicts_says_whose_it_is() {
        let run = samples::run();
        let sides = ["a", "b", "c"].map(|name| Side { name, records: vec![&run] });
        let text = terminal::comparison(&compare(&sides, &[]).unwrap(), None);
        let counts: Vec<&str> = text.lines().filter(|l| l.starts_with("Of ")).collect();
        assert_eq!(counts.len(), 2, "{text}");
        for (count, name) in counts.iter().zip(["b", "c"]) {
            assert!(count.contains(&format!(" workloads that {name} and a have in common: in ")), "{count}");
        }
    }

    #[test]
    fn energy_is_compared_where_both_sides_know_it() {
        let (a, b) = (with_energy(6.0), with_energy(4.0));
        let mut without = samples::run();
        without.cells[0].energy = b.cells[1].energy.clone();
        let side = |name, record| Side { name, records: vec![record] };
        let comparison = compare(&[side("a", &a), side("b", &b)], &[]).unwrap();
        let text = terminal::comparison(&comparison, None);
        let lines: Vec<_> = text.lines().filter(|l| l.contains(" J")).collect();
        assert_eq!(lines.len(), 1, "{text}");
        let fields: Vec<_> = lines[0].split_whitespace().collect();
        assert_eq!(fields, ["OE450M", "1", "x", "64", "6.00", "J", "4.00", "J", "1.50x"]);
        let answer = json::comparison(&comparison);
        assert_eq!(answer["rows"][1]["joules"], serde_json::json!([6.0, 4.0]));
        let comparison = compare(&[side("a", &a), side("b", &without)], &[]).unwrap();
        assert!(!terminal::comparison(&comparison, None).contains("Energy of the packages"));
    }
}
