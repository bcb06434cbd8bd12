use std::{collections::HashSet, path::Path, slice};

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::{
    calibration::Calibration,
    compare,
    fidelity::{self, Fidelity},
    paper, samples,
    schema::{Cell, Kind, Line, Record, scenario_hash},
    terminal,
};

fn render(name: &str, sides: &[(&str, &Record)]) -> String {
    let sides: Vec<Run> = sides.iter().map(|(name, record)| Run { name, record, fidelity: &[] }).collect();
    (super::format(name).unwrap().render)(&sides, &[]).unwrap()
}

/// One group of the sample run, at the paper's size.
fn table5_here() -> Record {
    let mut record = samples::run();
    record.cells = ["OE1.1B", "OE450M", "OE1.1B-KVP-C-450M"].map(|s| samples::cell(s, 64, 59, 6)).into();
    record
}

#[test]
fn markdown_of_a_run() {
    insta::assert_snapshot!(render("md", &[("sample", &samples::run())]));
}

#[test]
fn csv_of_a_run_and_the_paper() {
    let mut paper = paper::table5();
    paper.cells.truncate(2);
    insta::assert_snapshot!(render("csv", &[("here", &table5_here()), ("apple-m2-pro", &paper)]));
}

#[test]
fn page_of_a_small_run_without_its_style() {
    let page = render("html", &[("here", &table5_here())]);
    let (head, rest) = page.split_once("<style>").unwrap();
    let (_, rest) = rest.split_once("</style>").unwrap();
    insta::assert_snapshot!(format!("{head}{rest}"));
}

/// The picture of the README is the one that the program draws of its record.
#[test]
fn the_picture_in_docs_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let record = Record::read(&root.join("reports/data/amd-epyc-zen5-2c/quick.jsonl")).unwrap();
    let (drawn, path) = (render("svg", &[("quick", &record)]), root.join("docs/ttft.svg"));
    if std::env::var_os("UPDATE_PICTURE").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap_or_default() == drawn, "docs/ttft.svg: run with UPDATE_PICTURE=1");
    assert!(drawn.len() < 8000, "{}", drawn.len());
}

/// The picture of the worked example, likewise.
#[test]
fn the_picture_of_the_example_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let data = root.join("reports/data/amd-epyc-zen4-2c/smollm2");
    let record = Record::read(&data.join("ttft.jsonl")).unwrap();
    let answers = [12, 15, 16, 17, 18, 20, 24].map(|k| Fidelity::read(&data.join(format!("k{k}.json"))).unwrap());
    let run = Run { name: "ttft", record: &record, fidelity: &answers };
    let (drawn, path) = (picture::render(&[run], &[]).unwrap(), root.join("docs/example.svg"));
    if std::env::var_os("UPDATE_PICTURE").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap_or_default() == drawn, "docs/example.svg: run with UPDATE_PICTURE=1");
}

#[test]
fn a_picture_is_well_formed_and_shows_the_base_first() {
    let (run, paper) = (samples::run(), paper::table5());
    let picture = render("svg", &[("here", &run), ("<paper>", &paper)]);
    let tree = roxmltree::Document::parse(&picture).unwrap();
    let texts: Vec<&str> = tree.descendants().filter(|n| n.has_tag_name("text")).filter_map(|n| n.text()).collect();
    let at =
        |words: &str| texts.iter().position(|t| t.starts_with(words)).unwrap_or_else(|| panic!("{words}: {texts:?}"));
    assert!(at("OE1.1B, alone") < at("OE1.1B-KVP-C-450M") && texts[at("OE1.1B-KVP-C-450M") + 1].ends_with("as fast"));
    assert!(at("<paper>: no KV prediction") > at("if all operations"), "published figures have no phases");
    for other in ["<script", "url(", "href", "var("] {
        assert!(!picture.contains(other), "{other}");
    }
}

/// A page and a picture have the same colours.
#[test]
fn series_have_the_colours_of_the_style_sheet() {
    let css = include_str!("report.css");
    for (name, light, dark) in picture::INKS.iter().filter(|(name, ..)| name.starts_with('s') && name.len() == 2) {
        for color in [light, dark] {
            assert!(css.contains(&format!("--{name}: {color};")), "{name} {color}");
        }
    }
}

/// All `<svg>` elements of a page.
fn svgs(page: &str) -> Vec<&str> {
    let ends = page.match_indices("</svg>").map(|(i, _)| i + 6);
    page.match_indices("<svg").map(|(i, _)| i).zip(ends).map(|(start, end)| &page[start..end]).collect()
}

#[test]
fn pages_need_nothing_else_and_their_charts_are_well_formed() {
    let (run, paper, here) = (samples::run(), paper::table5(), table5_here());
    for sides in [vec![("sample", &run)], vec![("apple-m2-pro", &paper)], vec![("paper", &paper), ("here", &here)]] {
        let page = render("html", &sides);
        for outside in ["http://", "https://", "<script", "<link", "@import", "url(", " src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        let mut ids = HashSet::new();
        for id in page.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(ids.insert(id), "{id} occurs twice");
        }
        for link in page.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(ids.contains(link), "#{link} leads nowhere");
        }
        let charts = svgs(&page);
        assert!(charts.len() > 1);
        for svg in charts {
            let tree = roxmltree::Document::parse(svg).unwrap_or_else(|e| panic!("{e}: {svg}"));
            if tree.root_element().attribute("role") == Some("img") {
                let title = tree.root_element().first_element_child().unwrap();
                assert!(title.has_tag_name("title") && !title.text().unwrap().is_empty());
            }
            assert!(!svg.contains("=\"#0102"), "a stand-in colour is left");
        }
    }
}

#[test]
fn a_full_run_has_every_chart() {
    let page = render("html", &[("sample", &samples::run())]);
    for chart in ["headline", "length-1", "batch-64", "heat-0", "heat-1", "overhead", "roofline", "phases", "samples-0"]
    {
        assert!(page.contains(&format!("id=\"r0-{chart}\"")), "{chart}");
    }
    let dots = svgs(&page).into_iter().filter(|s| s.contains("id=\"r0-samples-")).map(|s| s.matches("<title>").count());
    assert_eq!(dots.sum::<usize>(), 20 * 6, "one hover text for each sample of each cell");
}

#[test]
fn the_answer_and_its_reason_come_before_charts_and_tables() {
    let page = render("html", &[("sample", &samples::run())]);
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text}"));
    let order = [
        at("With KV prediction, TTFT falls as much as FLOPs in "),
        at("Where TTFT falls less, most of the missing time went into "),
        at("id=\"r0-headline\""),
        at("id=\"r0-phases\""),
        at("<table"),
    ];
    assert!(order.is_sorted(), "{order:?}");
    // At one size, what KV prediction adds is a row for each cell; a heat map or lines would have one point.
    let page = render("html", &[("here", &table5_here())]);
    assert!(page.contains("id=\"r0-overhead\"") && !page.contains("id=\"r0-heat-0\"") && !page.contains("r0-length"));
}

#[test]
fn a_run_of_many_cells_has_its_maps_beside_the_scatter_and_its_samples_in_parts() {
    let mut record = samples::run();
    record.cells.clear();
    for (batch, prompt) in [(1, 64), (1, 128), (2, 64), (2, 128), (4, 64), (4, 128), (8, 128)] {
        record
            .cells
            .extend(["OE1.1B", "OE1.1B-KVP-C-450M", "OE1.1B-KVP-C-270M"].map(|s| samples::cell(s, batch, prompt, 6)));
    }
    let page = render("html", &[("many", &record)]);
    let at = |id: &str| page.find(&format!("id=\"r0-{id}\"")).unwrap_or_else(|| panic!("{id}"));
    let order = ["headline", "heat-0", "heat-1", "length-1", "phases", "samples-0", "samples-1"].map(at);
    assert!(order.is_sorted() && order[2] < page.find("<table").unwrap(), "{order:?}");
}

#[test]
fn a_run_says_what_its_controls_are_worth() {
    let mut record = samples::run();
    record.cells.truncate(3);
    assert!(!render("md", &[("sample", &record)]).contains("the run proves little"));
    record.cells[2].decode.as_mut().unwrap().samples_ns.iter_mut().for_each(|ns| *ns = *ns * 12 / 10);
    assert!(render("md", &[("sample", &record)]).contains("1 of 1 controls did not come out as they must"));
    record.cells[2].decode = None;
    assert!(render("md", &[("sample", &record)]).contains("Controls: none in this run"));
    let paper = render("md", &[("paper", &paper::table5())]);
    assert!(paper.contains("The record has no phases") && !paper.contains("Controls"), "{paper}");
}

#[test]
fn the_break_even_line_is_drawn_where_it_is() {
    let mut record = samples::run();
    let page = render("html", &[("sample", &record)]);
    assert!(page.contains("KV prediction pays at every size measured"));
    // At 1 x 64, the base becomes faster than anything.
    let base = &mut record.cells[0];
    base.samples_ns.iter_mut().for_each(|ns| *ns /= 10);
    base.phases[0].samples_ns = base.samples_ns.clone();
    let page = render("html", &[("sample", &record)]);
    assert!(page.contains("The thick line is the break-even"));
    assert!(page.contains("pays from about"));
}

/// The paper's Figure 1, made up: one network alone.
fn figure_1() -> Record {
    let mut record = samples::run();
    record.skipped.clear();
    record.cells = [(1, 64), (1, 1024), (8, 64), (8, 1024)].map(|(b, n)| samples::cell("OE1.1B", b, n, 6)).into();
    for cell in &mut record.cells {
        let large = Cell::new(Kind::Base, "OE3B", "OE3B", None, cell.batch, cell.prompt);
        let Cell { id, group, scenario_hash, system, base, .. } = large;
        *cell = Cell { id, group, scenario_hash, system, base, ..cell.clone() };
    }
    record
}

/// The paper's Figure 5b, made up.
fn figure_5b() -> Record {
    let mut record = samples::run();
    let systems = ["OE1.1B", "OE450M", "OE1.1B-KVP-C-450M"];
    record.cells = [128, 1024].iter().flat_map(|n| systems.map(|s| samples::cell(s, 8, *n, 6))).collect();
    record
}

#[test]
fn the_papers_figures_stand_beside_the_same_points() {
    assert!(!render("md", &[("sample", &samples::run())]).contains("Figure"));
    let (one, five) = (figure_1(), figure_5b());
    let sides =
        [Run { name: "fig1", record: &one, fidelity: &[] }, Run { name: "fig5b", record: &five, fidelity: &[] }];
    insta::assert_snapshot!(markdown::render(&sides, &["paper"]).unwrap());
}

#[test]
fn a_run_of_one_network_says_how_long_it_takes_and_in_how_many_steps() {
    let page = render("html", &[("fig1", &figure_1())]);
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text}"));
    let order = ["How long does the first token take?", "id=\"r0-length\"", "id=\"r0-steps-length\"", "<table"].map(at);
    assert!(order.is_sorted(), "{order:?}");
    assert!(page.contains("generation steps.</p>") && page.contains("says nothing of FLOPs reductions"));
    // A line for each batch, in one chart.
    let chart = svgs(&page).into_iter().find(|s| s.contains("id=\"r0-steps-length\"")).unwrap();
    assert_eq!(chart.matches("<title>OE3B, ").count(), 4);
    let legend = page[order[1] - 1000..order[1]].matches("batch ").count();
    assert!(legend >= 2, "{legend}");
}

/// The sample run at one size, and the made-up answers of its systems.
fn with_answers() -> (Record, Fidelity) {
    let mut record = samples::with_identities(samples::run());
    record.cells.retain(|c| c.prompt == 256);
    (record, fidelity::samples::file())
}

#[test]
fn the_trade_off_in_words_and_tables() {
    let (record, file) = with_answers();
    let run = Run { name: "sample", record: &record, fidelity: slice::from_ref(&file) };
    insta::assert_snapshot!(markdown::render(&[run], &["tradeoff"]).unwrap());
    let text = terminal::tradeoff(&run).unwrap();
    for words in
        ["2 systems have a time and an answer at 1 x 256: loses 1, useless 1.", "OE1.1B-KVP-C-270M: Useless: on needle"]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_picture_of_answers_has_the_tasks_that_decide_and_the_divergence_on_each_text() {
    let (record, file) = with_answers();
    let run = Run { name: "sample", record: &record, fidelity: slice::from_ref(&file) };
    let picture = picture::render(&[run], &[]).unwrap();
    let tree = roxmltree::Document::parse(&picture).unwrap();
    let texts: Vec<&str> = tree.descendants().filter(|n| n.has_tag_name("text")).filter_map(|n| n.text()).collect();
    let charts: Vec<&&str> = texts.iter().filter(|t| t.ends_with("against speed")).collect();
    let decide = file.tasks.iter().filter(|t| t.base.as_ref().is_some_and(|b| b.share >= 0.5)).count();
    assert_eq!(charts.len(), decide + file.texts.len(), "{charts:?}");
    assert!(texts[0].ends_with("answers against speed, 1 x 256"), "{texts:?}");
    for words in ["full prefill", "truncation", "mean cache"] {
        assert_eq!(texts.iter().filter(|t| **t == words).count(), 1, "{words} stands in the legend, once");
    }
    for other in ["<script", "url(", "href", "var("] {
        assert!(!picture.contains(other), "{other}");
    }
    let other = Run { name: "apart", record: &samples::run(), fidelity: slice::from_ref(&file) };
    assert!(matches!(picture::render(&[other], &[]), Err(RenderError::NotJoined(..))));
}

#[test]
fn the_trade_off_is_drawn_with_full_prefill_and_the_controls() {
    let (record, file) = with_answers();
    let run = Run { name: "sample", record: &record, fidelity: slice::from_ref(&file) };
    let page = html::render(&[run], &["tradeoff"]).unwrap();
    let drawn: Vec<&str> = svgs(&page).into_iter().filter(|s| s.contains("-tradeoff-")).collect();
    assert_eq!(drawn.len(), 2 * 6, "two texts, twice, and two tasks, at two batches");
    for svg in &drawn {
        roxmltree::Document::parse(svg).unwrap();
        // Of a batch of four, controls that were timed alone have no time.
        let marks = if svg.contains("-b1-") { 1 + 2 + 8 } else { 1 + 2 + 4 };
        assert_eq!(svg.matches("class=\"target\"").count(), marks, "{svg}");
        assert!(svg.contains("<title>full prefill: 1.00x") && svg.contains("mean cache, beside OE1.1B-KVP-C-450M"));
    }
    let needle = drawn.iter().find(|s| s.contains("Right answers on needle")).unwrap();
    assert!(needle.contains("chance") && needle.contains(", on the front</title>"));
    // Published figures have a chart of their own, and no other has them.
    let published: Vec<&str> = svgs(&page).into_iter().filter(|s| s.contains("TriviaQA")).collect();
    assert_eq!(published.len(), 1);
    assert!(published[0].contains("r0-published") && drawn.iter().all(|s| !s.contains("OE1.1B-LP")));
    let tables = page.matches("<table").count();
    assert_eq!(tables, 3, "one for each batch, and first tokens");
    insta::assert_snapshot!(needle);
}

#[test]
fn the_csv_of_a_trade_off_has_a_line_for_each_mark_and_figure() {
    let (mut record, file) = with_answers();
    record.cells.retain(|c| c.batch == 1);
    let run = Run { name: "=sample", record: &record, fidelity: slice::from_ref(&file) };
    let csv = csv::render(&[run], &[]).unwrap();
    let (header, lines) = csv.split_once('\n').unwrap();
    assert!(header.starts_with(super::format("csv").unwrap().begins), "a newer report takes its place");
    // Two texts by KL, top-1 of both positions, loss gap and greedy text; two tasks by exact matches and first tokens.
    assert_eq!(lines.lines().count(), 11 * (2 * 6 + 2 * 2));
    let of = |words: &str| lines.lines().filter(|l| l.contains(words)).collect::<Vec<_>>();
    assert!(
        of("full prefill")
            .iter()
            .all(|l| l.starts_with("'=sample,ttft/OE1.1B/base/b1/p256,base,full prefill,1,256,,record"))
    );
    assert!(of("KVP-C-270M,1,256,useless").iter().any(|l| l.contains(",exact,needle,answer,0.27,")));
    insta::assert_snapshot!(format!("{header}\n{}", of(",exact,needle,").join("\n")));
}

#[test]
fn a_report_of_other_systems_than_the_files_is_refused() {
    let (record, file) = with_answers();
    let other = samples::run();
    let run = |record| Run { name: "sample", record, fidelity: slice::from_ref(&file) };
    for format in FORMATS.iter().filter(|f| f.name != "svg") {
        let error = (format.render)(&[run(&other)], &[]).unwrap_err().to_string();
        assert!(
            error.starts_with("sample and the fidelity file are not joined. OE1.1B-KVP-C-450M: not ttft/"),
            "{error}"
        );
        assert!(error.contains("does not say which weights it ran"), "{error}");
        // Beside a run that is joined, it says so and no more.
        let both = (format.render)(&[run(&record), run(&other)], &[]).unwrap();
        assert_eq!(both.contains("This run and the fidelity file are not joined."), format.name != "csv");
    }
    assert!(terminal::tradeoff(&run(&other)).is_err());
}

#[test]
fn names_of_a_fidelity_file_stay_text() {
    let (record, mut file) = with_answers();
    let name = "<script>x</script>|`y`";
    file.texts[0].name = name.into();
    let of_systems = file.systems.iter_mut().map(|s| &mut s.results);
    of_systems.chain(file.controls.iter_mut().map(|c| &mut c.results)).for_each(|r| r.texts[0].text = name.into());
    let run = Run { name: "sample", record: &record, fidelity: slice::from_ref(&file) };
    let page = html::render(&[run], &[]).unwrap();
    assert!(!page.contains("<script"));
    svgs(&page).into_iter().for_each(|svg| assert!(roxmltree::Document::parse(svg).is_ok()));
    assert!(markdown::render(&[run], &[]).unwrap().contains("\\|\\`y\\`"));
}

#[test]
fn a_set_of_machines_is_drawn_with_the_fastest_first() {
    let (slow, paper) = (samples::run(), paper::table5());
    let mut fast = samples::run();
    fast.cells.iter_mut().flat_map(|c| &mut c.samples_ns).for_each(|ns| *ns = *ns / 2 + 1);
    fast.cells.iter_mut().flat_map(|c| &mut c.phases).flat_map(|p| &mut p.samples_ns).for_each(|ns| *ns /= 2);
    let sides: Vec<Run> = [("slow", &slow), ("paper", &paper), ("fast", &fast)]
        .map(|(name, record)| Run { name, record, fidelity: &[] })
        .into();
    let page = html::render(&sides, &["machines"]).unwrap();
    for chart in ["gain", "ttft", "peak", "read"] {
        let id = format!("id=\"machines-{chart}\"");
        let svg = svgs(&page).into_iter().find(|s| s.contains(&id)).unwrap_or_else(|| panic!("{chart}"));
        roxmltree::Document::parse(svg).unwrap();
        assert!(svg.find("fast").unwrap() < svg.find("slow").unwrap(), "{chart}");
    }
    assert!(page.contains("2 of 3 runs measured OE1.1B with 4 x 256 prompt tokens"), "{page}");
    let words = markdown::render(&sides, &["machines"]).unwrap();
    assert!(words.find("| fast |").unwrap() < words.find("| slow |").unwrap());
    let alone = document(&sides[..1], true, &["machines"]).unwrap_err().to_string();
    assert_eq!(alone, "these runs have nothing to say in: machines");
}

#[test]
fn parts_of_a_report_can_be_had_alone() {
    let record = samples::run();
    let sides = [Run { name: "sample", record: &record, fidelity: &[] }];
    let titles = |parts: &[&str]| {
        let document = document(&sides, true, parts).unwrap();
        document.sections.into_iter().map(|s| s.id).collect::<Vec<_>>()
    };
    assert_eq!(titles(&["run", "paper"]), ["paper-0", "run-0"], "in the order of a report");
    let of_several = ["machines", "comparison", "tradeoff"];
    let all: Vec<&str> = PARTS.iter().map(|p| p.0).filter(|p| !of_several.contains(p)).collect();
    let whole: Vec<String> = titles(&[]).iter().map(|id| id.trim_end_matches("-0").to_string()).collect();
    assert_eq!(whole, all, "every part has its name in the list");
    let nothing = document(&sides, true, &["comparison"]).unwrap_err().to_string();
    assert_eq!(nothing, "these runs have nothing to say in: comparison");
}

/// Every document that reports/README.md names with its command is what that command writes of the committed records.
#[test]
fn documents_are_what_their_commands_write() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |path: &str| std::fs::read_to_string(folder.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut documents = 0;
    for line in text("README.md").lines().filter_map(|l| l.strip_prefix("    ttft report data/")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |flag: &str| words.iter().position(|w| *w == flag).map(|at| words[at + 1]);
        let (parts, file) = (after("--section").unwrap(), after("--md").unwrap());
        let records = words.iter().filter(|w| w.ends_with(".jsonl")).enumerate();
        let paths: Vec<String> =
            records.map(|(i, path)| if i == 0 { format!("data/{path}") } else { (*path).into() }).collect();
        let runs: Vec<Record> = paths.iter().map(|p| Record::read(&folder.join(p)).unwrap()).collect();
        let stem = |path: &String| Path::new(path).file_stem().unwrap().to_string_lossy().into_owned();
        let names: Vec<String> = paths.iter().map(stem).collect();
        let sides: Vec<Run> =
            names.iter().zip(&runs).map(|(name, record)| Run { name, record, fidelity: &[] }).collect();
        let expected = markdown::render(&sides, &parts.split(',').collect::<Vec<_>>()).unwrap();
        // Above the first section, a document may say more.
        let (_, body) = expected.split_once("\n## ").unwrap();
        assert!(text(file).contains(body.trim_end()), "{file} is not what this writes: ttft report data/{line}");
        documents += 1;
    }
    assert!(documents > 0, "README.md names no document");
    let mut calibrations = 0;
    for line in text("README.md").lines().filter_map(|l| l.strip_prefix("    ttft calibrate --show ")) {
        let (from, file) = line.split_once(" --md ").expect("a file to write");
        let expected = super::calibration(&Calibration::read(&folder.join(from)).unwrap()).unwrap();
        let (_, body) = expected.split_once("\n\n").unwrap();
        assert!(text(file).contains(body.trim_end()), "{file} is not what this writes: ttft calibrate --show {line}");
        calibrations += 1;
    }
    assert!(calibrations > 0, "README.md names no calibration");
}

#[test]
fn hostile_names_stay_text() {
    let mut record = table5_here();
    let name = "<script>alert(1)</script>|`x`\"'&";
    let cell = &mut record.cells[2];
    cell.system = name.into();
    cell.scenario_hash = scenario_hash(cell.kind, name, &cell.base, cell.aux.as_deref(), 64, 59);
    record.run.notes.push("](javascript:alert(1)) \\ <img src=x>".into());
    record.run.command = vec!["--x={{ doc }}{% raw %}".into()];
    record.run.notes.push("a name that turns\u{202e} the text".into());
    let sides = [(name, &record)];
    let page = render("html", &sides);
    assert!(!page.contains("<script") && !page.contains("<img"));
    assert!(!page.contains('\u{202e}') && page.contains("turns\u{fffd} the text"));
    svgs(&page).into_iter().for_each(|svg| assert!(roxmltree::Document::parse(svg).is_ok()));
    let markdown = render("md", &sides);
    assert!(!markdown.contains("<script") && !markdown.contains("<img") && markdown.contains("\\|\\`x\\`"));
    let csv = render("csv", &sides);
    assert!(csv.contains("\"<script>alert(1)</script>|`x`\"\"'&\""));
}

#[test]
fn runs_without_figures_still_make_a_report() {
    let empty = Record::default();
    for format in FORMATS {
        assert!(
            (format.render)(&[Run { name: "empty", record: &empty, fidelity: &[] }], &[]).is_ok(),
            "{}",
            format.name
        );
        let mut bare = samples::run();
        for cell in &mut bare.cells {
            cell.samples_ns.clear();
            cell.phases.iter_mut().for_each(|p| p.samples_ns.clear());
            cell.rounds = None;
        }
        assert!((format.render)(&[Run { name: "bare", record: &bare, fidelity: &[] }], &[]).is_ok(), "{}", format.name);
    }
    assert!(matches!(html::render(&[], &[]), Err(RenderError::NoRuns)));
    let (a, b) = (samples::run(), paper::table5());
    let page = render("html", &[("a", &a), ("b", &b)]);
    assert!(page.contains("have no comparable workload in common"));
}

#[test]
fn axes_end_whatever_they_hold() {
    let label = |v: f64| v.to_string();
    let extremes = [f64::NAN, f64::INFINITY, f64::MIN, -1.0, 0.0, 5e-324, 1e-99, 1.0, 1e99, f64::MAX];
    for a in extremes {
        for b in extremes {
            for axis in [plot::Axis::log("", [a, b], label), plot::Axis::log_at("", [a, b], label)] {
                assert!(axis.ticks.len() < 500 && 0.0 < axis.range.0 && axis.range.0 < axis.range.1, "{axis:?}");
                assert!(axis.range.1.is_finite());
            }
            assert!(plot::Axis::linear("", [a, b], label).ticks.len() <= 50);
        }
    }
    let ticks =
        |low, high| plot::Axis::log("", [low, high], label).ticks.iter().map(|t| t.1.clone()).collect::<Vec<_>>();
    assert_eq!(ticks(1.0, 100.0), ["1", "2", "5", "10", "20", "50", "100"]);
    assert_eq!(ticks(200.0, 470.0), ["200", "300", "400", "500"]);
    assert_eq!(ticks(1.0, 1e5), ["1", "10", "100", "1000", "10000", "100000"]);
    let lengths = plot::Axis::log_at("", [59.0, 64.0, 1024.0], label).ticks;
    assert_eq!(lengths.iter().map(|t| t.1.as_str()).collect::<Vec<_>>(), ["59", "", "1024"]);
}

/// All numbers of a line but its times, which must fit one another, and its size, which its hash covers.
fn numbers<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Number(_) => found.push(value),
        Value::Array(items) => items.iter_mut().for_each(|item| numbers(item, found)),
        Value::Object(fields) => fields
            .iter_mut()
            .filter(|(name, _)| !matches!(name.as_str(), "samples_ns" | "rounds" | "batch" | "prompt" | "steps"))
            .for_each(|(_, field)| numbers(field, found)),
        _ => {}
    }
}

/// A record of one group in which some numbers are extreme and all times of a cell may be.
fn extreme_record() -> impl Strategy<Value = String> {
    let number =
        prop::sample::select(vec!["0", "1", "4294967295", "18446744073709551615", "1e308", "5e-324", "-1", "null"]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), number), 0..12);
    let times = prop::collection::vec(prop::sample::select(vec![None, Some(1), Some(u64::MAX)]), 5);
    (changes, times, 0usize..8).prop_map(|(changes, times, samples)| {
        let mut record = samples::run();
        record.cells.truncate(5);
        for (cell, time) in record.cells.iter_mut().zip(times) {
            *cell = samples::cell(&cell.system, cell.batch, cell.prompt, samples as u32);
            let Some(time) = time else { continue };
            cell.samples_ns.fill(time);
            cell.phases.iter_mut().for_each(|p| p.samples_ns.fill(time / 4));
        }
        let cells = record.cells.into_iter().map(|cell| Line::Cell(Box::new(cell)));
        let lines = [Line::Run(Box::new(record.run))].into_iter().chain(cells);
        let mut lines: Vec<Value> = lines.map(|line| serde_json::to_value(line).unwrap()).collect();
        let mut found = Vec::new();
        lines.iter_mut().for_each(|line| numbers(line, &mut found));
        for (at, number) in changes {
            let at = at.index(found.len());
            *found[at] = serde_json::from_str(number).unwrap();
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn extreme_records_are_refused_or_reported(text in extreme_record()) {
        let Ok(record) = Record::from_reader(text.as_bytes(), Path::new("a.jsonl")) else { return Ok(()) };
        let sound = samples::run();
        let sides = [Run { name: "extreme", record: &record, fidelity: &[] }, Run { name: "sound", record: &sound, fidelity: &[] }];
        for format in FORMATS {
            let text = (format.render)(&sides, &[]).unwrap();
            if format.name == "html" {
                svgs(&text).into_iter().for_each(|svg| drop(roxmltree::Document::parse(svg).unwrap()));
            }
        }
        terminal::validation(&record, None);
        let sides = sides.map(|run| compare::Side { name: run.name, records: vec![run.record] });
        if let Ok(comparison) = compare::compare(&sides, &[]) {
            terminal::comparison(&comparison, None);
        }
    }
}

/// It takes no calibration, which may be what decides.
#[test]
fn a_report_of_several_runs_points_to_the_command_that_compares() {
    let run = samples::run();
    let again = run.clone();
    let sides = [("a", &run), ("b", &again)].map(|(name, record)| Run { name, record, fidelity: &[] });
    let text = (super::format("md").unwrap().render)(&sides, &["comparison"]).unwrap();
    assert!(text.contains("ttft compare on these records") && !text.contains("ttft calibrate"), "{text}");
}

/// A page on a server whose policy forbids styles inside pages (`style-src 'self'`) is as good as this one: every colour has
/// one to fall back to, nothing that only the style makes invisible covers a chart, and pictures have a size.
#[test]
fn the_page_can_do_without_its_style() {
    let run = samples::run();
    let page =
        (super::format("html").unwrap().render)(&[Run { name: "here", record: &run, fidelity: &[] }], &[]).unwrap();
    let body = &page[page.find("<body>").unwrap()..];
    assert!(!body.contains("style=") && !page.contains("<script") && !page.contains(" onclick"));
    let variables: Vec<_> = body.split("var(").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
    assert!(variables.len() > 20 && variables.iter().all(|v| v.contains(',')), "{variables:?}");
    for svg in body.split("<svg").skip(1) {
        let root = svg.split('>').next().unwrap();
        assert!(root.contains(" width=") && root.contains(" height="), "{root}");
    }
    for target in body.split("class=\"target\"").skip(1) {
        assert!(target.starts_with(" fill=\"transparent\""), "{}", &target[..60]);
    }
}
