//! A run as a table in the terminal.

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, Table, presets};

use crate::{
    calibration::Calibration,
    compare::Comparison,
    facts,
    format::{self, or_unknown},
    pairs::Judgement,
    render::{self, Block, RenderError, Run, cold, content, energy, verdict},
    schema::Record,
    summary::{self, Doubt, Pairing, Row},
    validate,
};

/// The whole run: machine, limits and drift, the table of its cells, doubts, and what was skipped. Lines are at most
/// `width` characters long where that is possible; `None` does not limit them.
pub fn render(record: &Record, width: Option<u16>) -> String {
    let rows = summary::rows(record);
    let mut text = head(record);
    if !rows.is_empty() {
        text.push_str(&format!(
            "\n{}\n",
            grid(&TITLES, &rows.iter().map(fields).collect::<Vec<_>>(), &[0, 1], width).trim_fmt()
        ));
        text.push_str(&footnotes(&rows));
        let generation = content::generation(&rows);
        if !generation.rows.is_empty() {
            text.push_str(&format!("\n{}", words(&[Block::Table(generation)], width)));
        }
        let cold = cold::blocks(&rows);
        if !cold.is_empty() {
            text.push_str(&format!("\n{}", words(&cold, width)));
        }
        let energy = energy::blocks(&rows);
        if !energy.is_empty() {
            text.push_str(&format!("\n{}", words(&energy, width)));
        }
    }
    let doubted: Vec<&Row> = rows.iter().filter(|r| !r.doubts.is_empty()).collect();
    if !doubted.is_empty() {
        text.push_str("\n(!) These cells are not to be trusted:\n");
        for row in doubted {
            text.push_str(&format!("  {}: {}\n", row.cell.id, doubts(row)));
        }
    }
    if !record.skipped.is_empty() {
        text.push_str("\nThese cells were skipped:\n");
        for (cells, reason) in facts::skipped(record) {
            text.push_str(&format!("  {}\n", wrapped(&format!("{cells}: {reason}"), "    ")));
        }
    }
    text
}

fn doubts(row: &Row) -> String {
    row.doubts.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What a run says about FLOPs and latency: `ttft validate`.
pub fn validation(record: &Record, width: Option<u16>) -> String {
    let validation = validate::validate(record);
    let nothing = "Nothing to validate: no system was measured beside its base.\n";
    let nothing = if validation.claims.is_empty() { nothing } else { "" };
    let mut blocks = verdict::verdict(&validation);
    blocks.extend(cold::blocks(&summary::rows(record)));
    let answer = if blocks.is_empty() { String::new() } else { words(&blocks, width) };
    format!("{}\n{nothing}{answer}", head(record))
}

/// Whether the reduction of operations was a reduction of time in this run, and what stood in the way, in a few sentences;
/// `None` if no system was measured beside its base. `command` decides, where words are indicative.
pub fn answer(record: &Record, command: &str) -> Option<String> {
    let mut validation = validate::validate(record);
    validation.command = validation.command.map(|_| command.to_owned());
    let blocks = verdict::verdict(&validation);
    (!validation.claims.is_empty()).then(|| words(&blocks[..verdict::ANSWER], None))
}

/// Runs side by side: `ttft compare`.
pub fn comparison(comparison: &Comparison, width: Option<u16>) -> String {
    words(&render::side_by_side::blocks(comparison), width)
}

/// A run's times beside the answers of its fidelity file: `ttft report --fidelity`.
///
/// # Errors
/// No system of the file is one of the record, with what differs.
pub fn tradeoff(run: &Run) -> Result<String, RenderError> {
    Ok(words(&render::tradeoff::blocks(run, "", false)?, None))
}

/// What pairs of processes come to: `ttft compare --binaries`.
pub fn judgement(judgement: &Judgement, old: &str, new: &str) -> String {
    words(&render::judgement::blocks(judgement, old, new), None)
}

/// A machine's calibration: `ttft calibrate`.
pub fn calibration(calibration: &Calibration) -> String {
    words(&render::calibration::blocks(calibration), None)
}

/// Paragraphs, points and tables as text; charts are left out.
fn words(blocks: &[Block], width: Option<u16>) -> String {
    let mut text = String::new();
    for block in blocks {
        match block {
            Block::Text { text: paragraph, .. } => text.push_str(&format!("{}\n\n", wrapped(paragraph, ""))),
            Block::List { items } => {
                items.iter().for_each(|item| text.push_str(&format!("  - {}\n", wrapped(item, "    "))));
                text.push('\n');
            }
            Block::Table(table) => {
                if !table.title.is_empty() {
                    text.push_str(&format!("{}:\n", table.title));
                }
                text.push_str(&format!("{}\n\n", grid(&table.head, &table.rows, &table.words, width).trim_fmt()));
            }
            Block::Charts { .. } => {}
        }
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// Longest line of a paragraph, in characters.
const LINE: usize = 100;

/// Words on lines of at most [`LINE`] characters, all but the first behind `indent`, which stands before the first already.
fn wrapped(text: &str, indent: &str) -> String {
    let mut out = String::new();
    let mut line = indent.len();
    for word in text.split(' ') {
        let length = word.chars().count();
        if !out.is_empty() && line + 1 + length > LINE {
            out.push('\n');
            out.push_str(indent);
            line = indent.len();
        } else if !out.is_empty() {
            out.push(' ');
            line += 1;
        }
        out.push_str(word);
        line += length;
    }
    out
}

/// Machine, limits, run and drift, one line each.
pub fn head(record: &Record) -> String {
    let drift = match summary::largest_drift(record) {
        Some((change, cell)) => format!("at most {} over a cell ({})", format::change(change), cell.id),
        None => "unknown".into(),
    };
    let mut lines = vec![
        ("machine", facts::machine(&record.run)),
        ("limits", facts::limits(&record.run)),
        ("run", facts::settings(&record.run)),
        ("drift", drift),
    ];
    lines.extend(facts::units(record).into_iter().map(|said| ("peak", said)));
    lines.extend(facts::reading(record).map(|said| ("read", said)));
    lines.extend(record.run.notes.iter().map(|note| ("note", note.clone())));
    lines.into_iter().map(|(name, text)| format!("{name:<8} {text}\n")).collect()
}

/// Column titles of a run's table.
const TITLES: [&str; 11] =
    ["system", "kind", "b x p", "TTFT", "interval", "tokens/s", "GFLOP/s", "% peak", "speedup", "FLOPs red.", "ratio"];

fn grid<T: ToString>(head: &[T], rows: &[Vec<String>], words: &[usize], width: Option<u16>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING.header_separator(LineStyle::new('─', '─', '─', '─')))
        .set_header(head.iter().map(ToString::to_string));
    match width {
        Some(width) => table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width),
        None => table.set_content_arrangement(ContentArrangement::Disabled),
    };
    for (i, column) in table.column_iter_mut().enumerate() {
        if !words.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.add_rows(rows);
    table
}

fn fields(row: &Row) -> Vec<String> {
    let mark = if row.doubts.is_empty() { "" } else { " (!)" };
    let speedup = row.speedup.filter(|_| row.cell.system != row.cell.base);
    let reduction = row.flops_reduction.or(row.paper_flops_reduction).filter(|_| row.cell.system != row.cell.base);
    let paper = if row.flops_reduction.is_none() && reduction.is_some() { "*" } else { "" };
    vec![
        format!("{}{mark}", row.cell.system),
        row.cell.kind.name().into(),
        format!("{} x {}", row.cell.batch, row.cell.prompt),
        or_unknown(row.ttft.map(|t| format::seconds(t.value))),
        or_unknown(row.ttft.as_ref().and_then(format::seconds_interval)),
        or_unknown(row.tokens_per_s.map(format::figure)),
        or_unknown(row.gflops.map(format::figure)),
        or_unknown(row.peak_share.map(format::percent)),
        or_unknown(speedup.map(|s| format::ratio(s.estimate.value))),
        or_unknown(reduction.map(|r| format!("{}{paper}", format::ratio(r)))),
        or_unknown(ratio(row).map(|r| format!("{r:.2}"))),
    ]
}

/// Speedup over FLOPs reduction: exact, or the published figures' own.
fn ratio(row: &Row) -> Option<f64> {
    let speedup = row.speedup.filter(|_| row.cell.system != row.cell.base)?;
    let own = || Some(speedup.estimate.value / row.paper_flops_reduction?);
    row.efficiency.map(|e| e.value).or_else(own)
}

fn footnotes(rows: &[Row]) -> String {
    let processes = rows.iter().map(|r| r.processes).max().unwrap_or(0);
    let centre = match processes {
        0 | 1 => "median of one process".to_string(),
        n => format!("geometric mean of the medians of {n} processes"),
    };
    let from = match rows.iter().any(|r| r.cell.cold.is_some()) {
        true => {
            "from opening the folders of the weights, of which nothing is in memory, to the first token of the whole batch"
        }
        false => "from token ids in memory to the first token of the whole batch, with warm weights",
    };
    let mut notes = vec![format!("TTFT is the {centre}, {from}. The ratio is the speedup over the FLOPs reduction.")];
    let low = rows.iter().filter_map(|r| r.ttft?.interval).map(|i| i.level).reduce(f64::min);
    if let Some(level) = low {
        let exception = if level < crate::stats::LEVEL { ", or less where it says so (few samples)" } else { "" };
        let within = if processes > 1 { "" } else { ", within one process" };
        notes.push(format!("The interval has {:.0}% confidence{exception}{within}.", 100.0 * crate::stats::LEVEL));
    }
    if rows.iter().any(|r| r.speedup.is_some_and(|s| s.pairing == Pairing::Unpaired) && r.cell.system != r.cell.base) {
        notes.push("The speedup is a ratio of medians, because the samples were not taken in common rounds.".into());
    }
    if rows.iter().any(|r| r.flops_reduction.is_none() && r.paper_flops_reduction.is_some()) {
        notes.push("A star marks FLOPs by the paper's approximation, where there is no exact count.".into());
    }
    notes.extend(rows.iter().filter_map(content::modes).map(|modes| modes + "."));
    if rows.iter().any(|r| r.doubts.iter().any(|d| matches!(d, Doubt::NoRatio(_)))) {
        notes.push(
            "A speedup is missing where the machine's speed differed between a system and its base, and they were not measured in common \
             rounds."
                .into(),
        );
    }
    let again = rows.iter().map(|r| r.cell).filter(|c| c.attempt > 1);
    let again: Vec<String> = again.map(|c| format!("{} ({} attempts)", c.id, c.attempt)).collect();
    if !again.is_empty() {
        notes.push(format!("These cells were measured again, and the last attempt counts: {}.", again.join(", ")));
    }
    notes.into_iter().map(|n| n + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compare::{Side, compare},
        paper, samples,
        schema::{RunHeader, Skipped},
    };

    #[test]
    fn a_run_as_a_table() {
        insta::assert_snapshot!(render(&samples::run(), None));
    }

    #[test]
    fn repeated_cells_are_told() {
        let mut record = samples::run();
        assert!(!render(&record, None).contains("again"));
        record.cells[1].attempt = 3;
        assert!(render(&record, None).contains("counts: ttft/OE450M/aux/b1/p64 (3 attempts)."));
    }

    #[test]
    fn the_answer_of_a_run() {
        let mut record = samples::run();
        record.cells.truncate(3);
        insta::assert_snapshot!(validation(&record, None));
        record.cells.truncate(1);
        assert!(validation(&record, None).ends_with("Nothing to validate: no system was measured beside its base.\n"));
        record.cells = vec![samples::cell("OE1.1B", 1, 64, 12)];
        assert!(validation(&record, None).contains("A/A: odd against even samples of ttft/OE1.1B/base/b1/p64"));
    }

    #[test]
    fn the_answer_in_a_few_sentences() {
        let mut record = samples::run();
        let text = answer(&record, "ttft bench --preset quick").unwrap();
        insta::assert_snapshot!(text);
        assert!(text.replace('\n', " ").contains("The following command decides: ttft bench --preset quick."));
        let decided = samples::occasions(1, 5, 5, [0.0, 0.01, 0.01], 4).remove(0);
        assert!(!answer(&decided, "ttft bench").unwrap().contains("ttft bench"));
        let two = answer(&samples::occasions(1, 2, 5, [0.0, 0.01, 0.01], 4).remove(0), "ttft bench").unwrap();
        let two = two.replace('\n', " ");
        assert!(
            two.contains("fewer than 3 processes took the samples. The following command decides: ttft bench."),
            "{two}"
        );
        record.cells.truncate(1);
        assert_eq!(answer(&record, "ttft bench"), None);
    }

    #[test]
    fn two_runs_side_by_side() {
        let paper = paper::table5();
        let mut here = samples::run();
        here.cells = ["OE1.1B", "OE450M", "OE1.1B-KVP-C-450M"].map(|s| samples::cell(s, 64, 59, 6)).into();
        let sides = [Side { name: "here", records: vec![&here] }, Side { name: "apple-m2-pro", records: vec![&paper] }];
        insta::assert_snapshot!(comparison(&compare(&sides, &[]).unwrap(), None));
    }

    #[test]
    fn paragraphs_are_wrapped_between_words() {
        let text = vec!["word"; 60].join(" ");
        let wrapped = wrapped(&text, "    ");
        assert!(wrapped.lines().count() == 4 && wrapped.lines().all(|l| l.len() <= LINE), "{wrapped}");
        assert_eq!(wrapped.split_whitespace().collect::<Vec<_>>().join(" "), text);
        let long = "x".repeat(3 * LINE);
        assert_eq!(super::wrapped(&format!("a {long} b"), ""), format!("a\n{long}\nb"));
    }

    #[test]
    fn a_narrow_terminal_keeps_its_width() {
        let text = render(&samples::run(), Some(100));
        let table = text.lines().skip_while(|l| !l.contains("system")).take_while(|l| !l.starts_with("TTFT is"));
        assert!(table.clone().count() > 5);
        for line in table {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    #[test]
    fn a_run_without_cells_still_tells_what_was_skipped() {
        let mut record = samples::run();
        record.cells.clear();
        let skipped = |id: &str, reason: &str| Skipped { id: id.into(), reason: reason.into(), ..Skipped::default() };
        let long = "would be the same run as another one, and nobody has to read that more often than once";
        record.skipped = vec![
            skipped("ttft/b", long),
            skipped("ttft/a", "needs 30 GiB"),
            skipped("ttft/c", long),
            skipped("ttft/d", long),
        ];
        record.run = RunHeader::default();
        insta::assert_snapshot!(render(&record, None), @r"
        machine  unknown CPU
        limits   unknown
        run      
        drift    unknown

        These cells were skipped:
          ttft/b, ttft/c, ttft/d: would be the same run as another one, and nobody has to read that more
            often than once
          ttft/a: needs 30 GiB
        ");
    }
}
