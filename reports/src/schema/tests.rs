use std::{io, io::Write, path::Path};

use proptest::prelude::*;

use super::*;

fn header() -> RunHeader {
    RunHeader {
        schema: SCHEMA.into(),
        run_id: "r1".into(),
        started_at: Some("2026-11-23T05:27:00Z".into()),
        command: vec!["ttft".into(), "bench".into()],
        limits: Limits {
            peaks: vec![Peak { dtype: Dtype::Bf16, isa: Some("avx512".into()), gflops: 468.0, in_use: None }],
            read_gb_per_s: Some(41.5),
            threads: Some(2),
            region_us: Some(1.25),
            out_of_reach: None,
        },
        ..RunHeader::default()
    }
}

fn cell() -> Cell {
    Cell {
        samples_ns: vec![300, 310],
        rounds: Some(vec![0, 1]),
        round_positions: Some(vec![2, 0]),
        phases: vec![
            PhaseRecord {
                name: "auxiliary".into(),
                samples_ns: vec![200, 205],
                cost: Some(Cost {
                    flops: Flops { projections: 10, attention: 2, head: 0, prediction: 0 },
                    f32_flops: Some(3),
                    weight_bytes: 7,
                    cache_bytes: 1,
                }),
                parallel_regions: Some(9),
            },
            PhaseRecord {
                name: "base_step".into(),
                samples_ns: vec![90, 100],
                cost: Some(Cost {
                    flops: Flops { head: 5, ..Flops::default() },
                    f32_flops: Some(0),
                    weight_bytes: 1,
                    cache_bytes: 1,
                }),
                parallel_regions: None,
            },
        ],
        head: Some(PhaseRecord {
            name: "head".into(),
            samples_ns: vec![30, 40],
            cost: Some(Cost { flops: Flops { head: 5, ..Flops::default() }, f32_flops: Some(0), ..Cost::default() }),
            parallel_regions: None,
        }),
        gate: Some(Gate { max_abs_err: 1e-5, tolerance: 1e-4, passed: true, longest: None, longest_skipped: None }),
        drift: Some(Drift { before_gflops: Some(100.0), after_gflops: Some(95.0), ..Drift::default() }),
        ..Cell::new(Kind::Kvp, "OE1.1B-KVP-C-450M", "OE1.1B", Some("OE450M"), 4, 256)
    }
}

fn read(text: &str) -> Result<Record, RecordError> {
    Record::from_reader(text.as_bytes(), Path::new("a.jsonl"))
}

fn line(line: Line) -> String {
    serde_json::to_string(&line).unwrap() + "\n"
}

fn record_of(cell: &Cell) -> String {
    line(Line::Run(Box::new(header()))) + &line(Line::Cell(Box::new(cell.clone())))
}

/// The error of a record that holds `cell` alone.
fn refusal(change: impl FnOnce(&mut Cell)) -> String {
    let mut cell = cell();
    change(&mut cell);
    read(&record_of(&cell)).unwrap_err().to_string()
}

#[test]
fn written_records_read_back_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/run.jsonl");
    let mut writer = Writer::create(&path, header()).unwrap();
    let skipped =
        Skipped { id: "ttft/x".into(), reason: "too slow".into(), estimate_s: Some(900.0), ..Skipped::default() };
    writer.cell(&cell()).unwrap();
    writer.skipped(&skipped).unwrap();
    let record = Record::read(&path).unwrap();
    assert_eq!(record, Record { run: header(), cells: vec![cell()], superseded: vec![], skipped: vec![skipped] });
}

#[test]
fn an_existing_file_is_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    std::fs::write(&path, "mine").unwrap();
    let error = Writer::create(&path, header()).unwrap_err();
    assert!(matches!(error, RecordError::Exists(_)), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_torn_line_is_named_and_resume_cuts_it_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    Writer::create(&path, header()).unwrap().cell(&cell()).unwrap();
    let whole = std::fs::read_to_string(&path).unwrap();
    let torn = format!("{whole}{{\"cell\":{{\"id\":\"tt");
    std::fs::write(&path, &torn).unwrap();
    assert!(Record::read(&path).unwrap_err().to_string().contains("line 3: the file ends inside this line"));

    // One who only looks, or is refused later, changes nothing.
    assert_eq!(Writer::resume(&path).unwrap().1.cells.len(), 1);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), torn);

    let (mut writer, record) = Writer::resume(&path).unwrap();
    assert_eq!(record.cells.len(), 1);
    assert!(matches!(Writer::resume(&path), Err(RecordError::Busy(_))), "one record, one writer");
    writer.cell(&Cell { attempt: 2, ..cell() }).unwrap();
    let record = Record::read(&path).unwrap();
    assert_eq!((record.cells[0].attempt, record.superseded.len()), (2, 1));
}

/// What a full disk leaves of a line does not spoil the next one.
#[test]
fn a_line_that_was_not_written_whole_is_cut_off_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let mut writer = Writer::create(&path, header()).unwrap();
    writer.file.as_mut().unwrap().write_all(b"{\"cell\":{\"id\":\"half a line").unwrap();
    writer.torn = true;
    writer.cell(&cell()).unwrap();
    writer.cell(&Cell { attempt: 2, ..cell() }).unwrap();
    assert_eq!(Record::read(&path).unwrap().cells, [Cell { attempt: 2, ..cell() }]);
}

/// Windows, Python and editors: a byte order mark, other ends of lines, a blank line at the end or no end.
#[test]
fn text_from_elsewhere_is_the_same_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let plain = record_of(&cell());
    for text in [
        format!("\u{feff}{plain}"),
        plain.replace('\n', "\r\n"),
        format!("{plain}\n"),
        format!("{plain} \r\n\n"),
        plain.trim_end().to_owned(),
        plain.replace('\n', "\r\n").trim_end().to_owned(),
    ] {
        assert_eq!(read(&text).unwrap(), read(&plain).unwrap(), "{text:?}");
        std::fs::write(&path, &text).unwrap();
        let (mut writer, record) = Writer::resume(&path).unwrap();
        assert_eq!(record.cells.len(), 1);
        writer.cell(&Cell { attempt: 2, ..cell() }).unwrap();
        assert_eq!(writer.finish().unwrap().superseded.len(), 1, "{text:?}");
    }
    let refused = |bytes: &[u8]| Record::from_reader(bytes, Path::new("a.jsonl")).unwrap_err().to_string();
    let wide: Vec<u8> = [0xfeff].into_iter().chain(plain.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    assert!(refused(&wide).contains("a.jsonl, line 1, field `.`: the text is UTF-16"));
    assert!(refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n").contains("git lfs pull"));
    assert!(refused(b"").contains("empty file"));
    for python in ["NaN", "-Infinity", "Infinity", " NaN"] {
        let text = plain.replacen("\"load_before\":null", &format!("\"load_before\":{python}"), 1);
        assert!(text != plain && refused(text.as_bytes()).contains("NaN and Infinity are no JSON"), "{python}");
    }
    assert!(refused(b"\n").contains("starts with a whole `run` line"));
}

#[test]
fn records_that_cannot_be_read_back_are_kept() {
    let mut kept = Writer::nowhere(header()).unwrap();
    kept.cell(&cell()).unwrap();
    assert_eq!(kept.finish().unwrap().cells, [cell()]);
    #[cfg(unix)]
    {
        let mut device = Writer::create(Path::new("/dev/null"), header()).unwrap();
        device.cell(&cell()).unwrap();
        assert_eq!(device.finish().unwrap().cells, [cell()]);
        #[cfg(target_os = "linux")]
        assert!(Writer::create(Path::new("/dev/full"), header()).unwrap_err().to_string().contains("cannot write it"));
    }
}

#[test]
fn a_record_of_another_version_is_refused_by_name() {
    let text = line(Line::Run(Box::new(RunHeader { schema: "ttft-record/9".into(), ..header() })));
    let text = text.replace("\"notes\"", "\"remarks\"");
    let error = read(&text).unwrap_err().to_string();
    assert_eq!(
        error,
        "a.jsonl: the record's schema is `ttft-record/9`, this program reads `ttft-record/1` or `ttft-record/2` or \
         `ttft-record/3`: use the version of ttft that wrote it"
    );
}

#[test]
fn errors_name_line_and_field() {
    let good = record_of(&cell());
    let wrong_type = good.replace("\"samples_ns\":[200,205]", "\"samples_ns\":[200,-5]");
    let error = read(&wrong_type).unwrap_err().to_string();
    assert!(error.starts_with("a.jsonl, line 2, field `cell.phases[0].samples_ns[1]`: invalid value"), "{error}");

    let unknown = good.replace("\"batch\":4", "\"batch\":4,\"surprise\":1");
    let error = read(&unknown).unwrap_err().to_string();
    assert!(error.contains("line 2, field `cell.surprise`: unknown field `surprise`"), "{error}");

    let twice = good.replace("\"batch\":4", "\"batch\":4,\"batch\":8");
    assert!(read(&twice).unwrap_err().to_string().contains("duplicate field `batch`"));

    let escape = good.replace("\"group\":\"", "\"group\":\"\\u001b[2J");
    let error = read(&escape).unwrap_err().to_string();
    assert!(error.contains("field `cell.group`: control character 0x1b"), "{error}");

    let long = good.replace("\"group\":\"", &format!("\"group\":\"{}", "x".repeat(MAX_TEXT_BYTES)));
    assert!(read(&long).unwrap_err().to_string().contains("field `cell.group`: 8"));
}

/// Names of fields stand in errors before any check of their text.
#[test]
fn what_is_wrong_in_a_file_is_shown_in_short_and_steers_no_terminal() {
    let good = record_of(&cell());
    for name in ["\\u001b[2J\\u009b2J\u{7f}".to_string(), "x".repeat(1 << 20)] {
        for place in ["\"batch\":4", "\"run_id\":\"r1\""] {
            let error = read(&good.replace(place, &format!("{place},\"{name}\":1"))).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{error}");
            assert!(error.len() < 4096 && !error.chars().any(char::is_control), "{} bytes: {error}", error.len());
        }
        let version = format!("{{\"run\":{{\"schema\":\"{name}\"}}}}\n");
        let error = read(&version).unwrap_err().to_string();
        assert!(error.contains("the record's schema is") && error.len() < 4096, "{error}");
        assert!(!error.chars().any(char::is_control), "{error}");
    }
}

#[test]
fn files_that_are_not_records_are_refused() {
    for (text, expected) in [
        ("", "empty file: expected a `run` line"),
        ("\n", "line 1, field `.`"),
        ("null\n", "line 1"),
        ("[1,2]\n", "line 1"),
        ("{\"cell\":{}}\n", "missing field"),
        ("{\"run\":{}}\n", "missing field `schema`"),
        ("{\"run\":", "EOF while parsing"),
        ("system,ttft_s\n", "starts with a whole `run` line"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
    let error = Record::from_reader(&b"{\xff\xfe\n"[..], Path::new("a.jsonl")).unwrap_err().to_string();
    assert!(error.contains("not UTF-8"), "{error}");
    let deep = format!("{{\"run\":{}", "[".repeat(100_000));
    assert!(read(&deep).is_err());
    let endless = Record::from_reader(io::repeat(b'x'), Path::new("a.jsonl")).unwrap_err().to_string();
    assert!(endless.contains("longer than"), "{endless}");
    let two = line(Line::Run(Box::new(header()))).repeat(2);
    assert!(read(&two).unwrap_err().to_string().contains("a second `run` line"));
    let headless = line(Line::Cell(Box::new(cell())));
    assert!(read(&headless).unwrap_err().to_string().contains("expected the `run` line first"));
}

#[test]
fn cells_that_contradict_themselves_are_refused() {
    type Change = fn(&mut Cell);
    let cases: [(&str, Change); 15] = [
        ("`cell.attempt`", |c| c.attempt = 0),
        ("`cell.batch`", |c| c.batch = 0),
        ("`cell.scenario_hash`", |c| c.prompt = 257),
        ("`cell.aux`", |c| *c = Cell { kind: Kind::Kvp, ..Cell::new(Kind::Aux, "OE450M", "OE1.1B", None, 1, 2) }),
        ("`cell.aux`", |c| {
            // Its phase of an auxiliary is no one's.
            c.aux = None;
            c.scenario_hash = scenario_hash(c.kind, &c.system, &c.base, None, c.batch, c.prompt);
        }),
        ("`cell.samples_ns[0]`", |c| c.samples_ns[0] = 0),
        ("`cell.rounds`: expected 2 entries", |c| c.rounds = Some(vec![1])),
        ("`cell.rounds`: expected increasing", |c| c.rounds = Some(vec![1, 1])),
        ("`cell.phases[1].samples_ns`: expected 2 entries", |c| c.phases[1].samples_ns.push(1)),
        ("`cell.phases[1].name`", |c| c.phases[1].name = "auxiliary".into()),
        ("phases of sample 0 take 301 ns, the whole only 300 ns", |c| c.phases[1].samples_ns[0] = 101),
        ("`cell.decode.samples_ns`", |c| c.decode = Some(Decode { steps: 3, samples_ns: vec![1; 5] })),
        ("`cell.gate.passed`", |c| c.gate.as_mut().unwrap().passed = false),
        ("the correctness gate failed", |c| {
            c.gate =
                Some(Gate { max_abs_err: 2.0, tolerance: 1.0, passed: false, longest: None, longest_skipped: None });
        }),
        ("`cell.published`", |c| c.published = Some(Published { ttft_s: 1.0, ..Published::default() })),
    ];
    for (expected, change) in cases {
        // The hash is checked before what else a change of kind breaks.
        let error = refusal(|c| {
            change(c);
            if !expected.contains("hash") {
                c.scenario_hash = scenario_hash(c.kind, &c.system, &c.base, c.aux.as_deref(), c.batch, c.prompt);
            }
        });
        assert!(error.contains(expected), "{error}");
    }
    let again = record_of(&cell()) + &line(Line::Cell(Box::new(cell())));
    assert!(read(&again).unwrap_err().to_string().contains("expected more than 1, found 1"));
}

#[test]
fn a_value_json_cannot_carry_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let mut writer = Writer::create(&path, header()).unwrap();
    let gate = Gate { max_abs_err: f64::NAN, tolerance: 1.0, passed: false, longest: None, longest_skipped: None };
    let error = writer.cell(&Cell { gate: Some(gate), ..cell() }).unwrap_err().to_string();
    assert!(error.contains("field `cell.gate.max_abs_err`"), "{error}");
    assert_eq!(Record::read(&path).unwrap().cells.len(), 0);
}

#[test]
fn costs_and_times_add_up() {
    let cell = cell();
    let cost = cell.cost().unwrap();
    assert_eq!((cost.flops.total(), cost.bytes()), (17, 10));
    assert_eq!(cell.unattributed_ns(), [10, 5]);
    assert!((cell.drift.unwrap().change().unwrap() - 0.0526).abs() < 1e-4);
    assert_eq!(Cell { phases: vec![], ..self::cell() }.cost(), None);
}

#[test]
fn hashes_tell_workloads_apart_and_nothing_else() {
    let hash = |system, base, batch, prompt| scenario_hash(Kind::Aux, system, base, None, batch, prompt);
    // Pinned: records of different versions of this program must agree.
    assert_eq!(hash("OE450M", "OE1.1B", 1, 64), "ac7f3d7def5f9f93");
    assert_ne!(hash("OE450M", "OE1.1B", 1, 64), hash("OE450M", "OE1.1B", 64, 1));
    assert_ne!(hash("OE450M", "OE1.1B", 1, 64), hash("OE450MO", "E1.1B", 1, 64));
}

#[test]
fn the_base_of_a_cell_is_taken_from_its_own_group() {
    let base = |group: &str, id: &str| Cell {
        id: id.into(),
        group: group.into(),
        ..Cell::new(Kind::Base, "OE1.1B", "OE1.1B", None, 4, 256)
    };
    let mut record = Record { cells: vec![base("g1", "a"), base("g2", "b"), cell()], ..Record::default() };
    record.cells[2].group = "g2".into();
    assert_eq!(record.base_of(&record.cells[2]).unwrap().id, "b");
    record.cells[2].group = "g3".into();
    assert_eq!(record.base_of(&record.cells[2]).unwrap().id, "a");
    record.cells[2].precision = Some(Dtype::F32);
    assert_eq!(record.base_of(&record.cells[2]), None);
}

/// `UPDATE_SCHEMA=1 cargo test -p ttft-reports` writes the file anew.
#[test]
fn the_json_schema_file_is_up_to_date() {
    let schema = schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Line>();
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/ttft-record-3.schema.json");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let file = std::fs::read_to_string(&path).unwrap();
    assert!(file == text, "{} is not what the types say: run with UPDATE_SCHEMA=1", path.display());
}

proptest! {
    #[test]
    fn damaged_records_are_read_or_refused_by_file_and_line(
        cut in any::<prop::sample::Index>(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)
    ) {
        let mut bytes = record_of(&cell()).into_bytes();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(1 + cut.index(bytes.len()));
        if let Err(error) = Record::from_reader(&bytes[..], Path::new("a.jsonl")) {
            let text = error.to_string();
            let placed = text.starts_with("a.jsonl, line ") || text.starts_with("a.jsonl: the record's schema is ");
            prop_assert!(placed && !text.chars().any(char::is_control), "{}", text);
        }
    }
}

#[test]
fn percentiles_stand_where_there_are_samples_enough() {
    let of = |n: u64| Percentiles::of(&(1..=n).rev().collect::<Vec<_>>()).map(|p| (p.p50_ns, p.p90_ns, p.p99_ns));
    assert_eq!((of(0), of(1)), (None, None));
    assert_eq!(of(2), Some((Some(1), None, None)));
    assert_eq!(of(9), Some((Some(5), None, None)));
    assert_eq!(of(10), Some((Some(5), Some(9), None)));
    assert_eq!(of(99), Some((Some(50), Some(90), None)));
    assert_eq!(of(100), Some((Some(50), Some(90), Some(99))));
    assert_eq!(of(1000), Some((Some(500), Some(900), Some(990))));
}

#[test]
fn percentiles_and_clocks_fit_the_samples() {
    let with = |change: &dyn Fn(&mut Cell)| {
        let mut cell = cell();
        change(&mut cell);
        Record::from_reader(record_of(&cell).as_bytes(), Path::new("a.jsonl")).map_err(|e| e.to_string())
    };
    let n = cell().samples_ns.len();
    let clocks = |mhz: usize, throttled: Option<usize>, unknown: Option<&str>| Clocks {
        mhz: Some(vec![3000.5; mhz]),
        throttled: throttled.map(|n| vec![0; n]),
        unknown: unknown.map(Into::into),
    };
    let record = with(&|c| {
        c.percentiles = Percentiles::of(&c.samples_ns);
        c.clocks = Some(clocks(n, None, Some("this CPU does not count")));
    });
    assert!(record.unwrap().cells[0].clocks.is_some());
    let refused = |change: &dyn Fn(&mut Cell)| with(change).unwrap_err();
    let wrong = Percentiles { p50_ns: Some(1), ..Percentiles::default() };
    assert!(refused(&|c| c.percentiles = Some(wrong)).contains("cell.percentiles"));
    assert!(refused(&|c| c.clocks = Some(clocks(n + 1, Some(n), None))).contains("cell.clocks.mhz"));
    assert!(refused(&|c| c.clocks = Some(clocks(n, Some(n + 1), None))).contains("cell.clocks.throttled"));
    assert!(refused(&|c| c.clocks = Some(clocks(n, None, None))).contains("cell.clocks.unknown"));
    let zero = |c: &mut Cell| c.clocks = Some(Clocks { mhz: Some(vec![0.0; n]), ..clocks(n, Some(n), None) });
    assert!(refused(&zero).contains("cell.clocks.mhz[0]"));
}

/// A record of two processes of two rounds each, with probes.
#[test]
fn processes_and_probes_have_one_entry_for_each_sample() {
    let change = |c: &mut Cell| {
        c.processes = Some(vec![0, 1]);
        c.probes = Some(Probes { gflops: vec![900.0, 910.0], read_gb_per_s: vec![41.0, 40.0] });
        c.limits = Some(Limits { peaks: Vec::new(), read_gb_per_s: Some(42.0), ..Limits::default() });
    };
    let mut good = cell();
    assert_eq!((good.process_ranges().len(), good.process_ranges()[0].clone()), (1, 0..2));
    change(&mut good);
    assert_eq!(good.process_ranges(), [0..1, 1..2]);
    assert_eq!(read(&record_of(&good)).unwrap().cells, [good.clone()]);
    let refused = |spoil: fn(&mut Cell)| {
        refusal(|c| {
            change(c);
            spoil(c);
        })
    };
    assert!(refused(|c| c.processes = Some(vec![1, 0])).contains("cell.processes"));
    assert!(refused(|c| c.processes = Some(vec![0])).contains("expected 2 entries"));
    assert!(refused(|c| c.probes.as_mut().unwrap().gflops.truncate(1)).contains("cell.probes.gflops"));
    assert!(refused(|c| c.probes.as_mut().unwrap().read_gb_per_s[1] = 0.0).contains("cell.probes.read_gb_per_s[1]"));
    assert!(refused(|c| c.limits.as_mut().unwrap().read_gb_per_s = Some(-1.0)).contains("cell.limits.read_gb_per_s"));
}

#[test]
fn a_cold_cell_has_a_hash_of_its_own_and_a_warm_run_for_each_sample() {
    let cold = |c: &mut Cell| {
        c.scenario_hash = cold_hash(&c.scenario_hash);
        let warm_phases = vec![WarmPhase { name: "auxiliary".into(), samples_ns: vec![1, 2] }];
        c.cold = Some(Cold { warm_ns: vec![5, 6], warm_phases, read_bytes: Some(vec![7, 8]), ..Cold::default() });
    };
    let mut good = cell();
    cold(&mut good);
    assert_eq!(read(&record_of(&good)).unwrap().cells, [good]);
    let refused = |spoil: fn(&mut Cold)| {
        refusal(|c| {
            cold(c);
            spoil(c.cold.as_mut().unwrap());
        })
    };
    assert!(refused(|c| c.warm_ns.truncate(1)).contains("cell.cold.warm_ns"));
    assert!(refused(|c| c.warm_phases[0].samples_ns.truncate(1)).contains("cell.cold.warm_phases[0].samples_ns"));
    assert!(refused(|c| c.read_bytes = Some(vec![1])).contains("cell.cold.read_bytes"));
    assert!(refused(|c| c.disk_gb_per_s = Some(0.0)).contains("cell.cold.disk_gb_per_s"));
    assert!(refusal(|c| c.cold = Some(Cold::default())).contains("cell.scenario_hash"));
}

#[test]
fn energy_has_joules_or_a_reason() {
    let known = Energy { joules: Some(3.5), idle_watts: Some(0.0), repetitions: 4, ..Energy::default() };
    let good = Cell { energy: Some(known.clone()), ..cell() };
    assert_eq!(read(&record_of(&good)).unwrap().cells, [good]);
    let refused = |energy: Energy| refusal(|c| c.energy = Some(energy));
    assert!(refused(Energy { joules: Some(0.0), ..known.clone() }).contains("cell.energy.joules"));
    assert!(refused(Energy { idle_watts: Some(-1.0), ..known.clone() }).contains("cell.energy.idle_watts"));
    assert!(refused(Energy { repetitions: 0, ..known.clone() }).contains("cell.energy.repetitions"));
    assert!(refused(Energy { missing: Some("m".into()), ..known }).contains("cell.energy.missing"));
    assert!(refused(Energy::default()).contains("cell.energy.missing"));
}

#[test]
fn a_run_may_name_its_networks_and_predictions() {
    let hash = Some("0f".repeat(32));
    let network = Identity { name: "a".into(), weights_sha256: hash.clone(), config_sha256: hash, synthetic: true };
    let prediction = Prediction {
        source: Source::SharedLayers,
        aux: None,
        shared_layers: Some(15),
        input: Some(Input::Hidden),
        predictor: Some(network.clone()),
        base_tokens: 15,
        sink_tokens: 1,
    };
    let run = |change: fn(&mut Identity, &mut Prediction)| {
        let (mut network, mut prediction) = (network.clone(), prediction.clone());
        change(&mut network, &mut prediction);
        let predictions = Some(vec![Named { system: "a-KVP".into(), prediction }]);
        let run = RunHeader { networks: Some(vec![network]), predictions, ..header() };
        read(&line(Line::Run(Box::new(run))))
    };
    assert_eq!(run(|_, _| {}).unwrap().run.predictions.unwrap()[0].prediction, prediction);
    let refused = |change| run(change).unwrap_err().to_string();
    assert!(refused(|n, _| n.name.clear()).contains("`run.networks[0].name`: expected a name"));
    assert!(
        refused(|n, _| n.weights_sha256 = Some("0F".repeat(32)))
            .contains("`run.networks[0].weights_sha256`: expected a SHA")
    );
    assert!(
        refused(|_, p| p.base_tokens = 0).contains("`run.predictions[0].prediction.base_tokens`: expected 1 or more")
    );
    assert!(refused(|_, p| p.shared_layers = Some(0)).contains("prediction.shared_layers`"));
    assert!(refused(|_, p| p.source = Source::Auxiliary).contains("prediction.aux`: expected the network"));
    assert!(
        refused(|_, p| p.predictor.as_mut().unwrap().config_sha256 = Some("x".into()))
            .contains("predictor.config_sha256`")
    );
    // A record from before these were known says nothing of them.
    let text = line(Line::Run(Box::new(header()))).replace(",\"networks\":null,\"predictions\":null", "");
    assert!(!text.contains("networks"));
    assert_eq!(read(&text).unwrap().run.networks, None);
}

#[test]
fn records_of_earlier_versions_are_read() {
    let text = line(Line::Run(Box::new(RunHeader { schema: "ttft-record/1".into(), ..header() })));
    let text = text.replace(",\"processes\":null", "");
    let cell = serde_json::to_string(&Line::Cell(Box::new(cell()))).unwrap();
    let second = cell.replace(",\"percentiles\":null", "").replace(",\"clocks\":null", "");
    let first = second.replace(",\"processes\":null,\"probes\":null,\"limits\":null", "");
    assert!(!text.contains("processes") && !first.contains("probes") && second.contains("probes"));
    assert!(!second.contains("percentiles") && !second.contains("clocks"));
    let record = read(&format!("{text}{first}\n")).unwrap();
    assert_eq!((record.cells.len(), &record.cells[0].probes), (1, &None));
    let text = line(Line::Run(Box::new(RunHeader { schema: "ttft-record/2".into(), ..header() })));
    let record = read(&format!("{text}{second}\n")).unwrap();
    assert_eq!((record.cells.len(), &record.cells[0].percentiles), (1, &None));
}
