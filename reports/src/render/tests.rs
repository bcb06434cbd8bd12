use std::collections::HashSet;

use super::*;
use crate::{
    paper, samples,
    schema::{Record, scenario_hash},
};

fn render(name: &str, sides: &[(&str, &Record)]) -> String {
    let sides: Vec<Side> = sides.iter().map(|(name, record)| Side { name, record }).collect();
    (super::format(name).unwrap().render)(&sides).unwrap()
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
    for chart in ["headline", "length-1", "batch-64", "heat-0", "heat-1", "overhead", "roofline", "phases", "samples"] {
        assert!(page.contains(&format!("id=\"r0-{chart}\"")), "{chart}");
    }
    let dots = svgs(&page).into_iter().find(|s| s.contains("id=\"r0-samples\"")).unwrap().matches("<title>").count();
    assert_eq!(dots, 20 * 6, "one hover text for each sample of each cell");
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

#[test]
fn the_papers_figures_stand_beside_the_same_points() {
    let mut record = samples::run();
    let plain = render("md", &[("sample", &record)]);
    assert!(!plain.contains("Figure 5b"));
    record.cells = ["OE1.1B", "OE450M", "OE1.1B-KVP-C-450M"].map(|s| samples::cell(s, 8, 256, 6)).into();
    let mut large = samples::cell("OE1.1B", 1, 1024, 6);
    (large.system, large.base) = ("OE3B".into(), "OE3B".into());
    record.cells.push(large);
    let page = render("md", &[("sample", &record)]);
    assert!(
        page.contains("batch 8, 256 tokens: 10 to 20% on the M2 Pro, ")
            && page.contains("4.80 s and 12 generation steps"),
        "{page}"
    );
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
    let sides = [(name, &record)];
    let page = render("html", &sides);
    assert!(!page.contains("<script") && !page.contains("<img"));
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
        assert!((format.render)(&[Side { name: "empty", record: &empty }]).is_ok(), "{}", format.name);
        let mut bare = samples::run();
        for cell in &mut bare.cells {
            cell.samples_ns.clear();
            cell.phases.iter_mut().for_each(|p| p.samples_ns.clear());
            cell.rounds = None;
        }
        assert!((format.render)(&[Side { name: "bare", record: &bare }]).is_ok(), "{}", format.name);
    }
    assert!(matches!(html::render(&[]), Err(RenderError::NoRuns)));
    let (a, b) = (samples::run(), paper::table5());
    let page = render("html", &[("a", &a), ("b", &b)]);
    assert!(page.contains("have no comparable workload in common"));
}
