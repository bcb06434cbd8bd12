//! Troubles that strangers have on strange machines: outputs that are no plain files, limits on the process, text from
//! elsewhere, names that are places. One test for each kind, from outside.

#![cfg(unix)]

mod program;

use std::{
    fs::{self, File},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use program::{fixture, program, stderr, ttft, words};
use tempfile::TempDir;
use ttft_reports::schema::Record;

/// A scenario of seconds.
const SMALL: &str = r#"
    name = "small"
    description = "a test"
    systems = ["OE270M"]
    dtype = "bf16"
    lengths = [4]
    batches = [1]
    rounds = 3
    budget_s = 600
"#;

/// The command under limits of the shell (`ulimit`), or with its outputs sent elsewhere; `$@` is the program. None in an
/// emulator, whose own needs the limits would meet.
fn in_shell(script: &str) -> Option<Command> {
    let words = words();
    let mut all = ["sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    all.extend(words.iter().cloned());
    (words.len() == 1).then(|| program(&all))
}

fn tiny(scenario: &Path, dir: &Path) -> Vec<std::ffi::OsString> {
    let mut args: Vec<std::ffi::OsString> =
        ["bench", "--tiny", "--threads", "1", "--scenario"].map(Into::into).to_vec();
    args.extend([scenario.into(), "--weights".into(), dir.join("w").into()]);
    args
}

fn scenario(dir: &Path) -> PathBuf {
    let path = dir.join("small.toml");
    fs::write(&path, SMALL).unwrap();
    path
}

fn tokens(dir: &Path) -> PathBuf {
    let path = dir.join("tokens.json");
    fs::write(&path, "[[1, 2, 3]]").unwrap();
    path
}

/// Runs it: no panic, no signal. The exit code and standard error.
#[track_caller]
fn ends(c: &mut Command) -> (i32, String) {
    let out = c.output().expect("the command starts");
    let err = stderr(&out);
    let code = out.status.code().unwrap_or_else(|| panic!("{c:?} was killed: {} {err}", out.status));
    assert!(code < 100 && !err.contains("panicked"), "{c:?}: {code}: {err}");
    (code, err)
}

#[track_caller]
fn succeeds(c: &mut Command) -> String {
    let out = c.output().expect("the command starts");
    assert!(out.status.success(), "{c:?}: {}", stderr(&out));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Runs it; it must fail as run-time errors do, with these words.
#[track_caller]
fn fails(c: &mut Command, words: &[&str]) {
    let (code, err) = ends(c);
    assert_eq!(code, 1, "{c:?}: {err}");
    words.iter().for_each(|word| assert!(err.contains(word), "{c:?}: no '{word}' in: {err}"));
}

/// Every command that prints, ready to run in `dir`.
fn printing(dir: &Path) -> Vec<Vec<std::ffi::OsString>> {
    let words = |line: &str| line.split(' ').map(Into::into).collect::<Vec<_>>();
    let mut all: Vec<Vec<_>> = [
        "--help",
        "bench --help",
        "zoo",
        "validate paper",
        "compare paper paper",
        "machine --json --threads 1",
        "report paper --csv r.csv",
        "synth OE7B --out none",
    ]
    .map(words)
    .into();
    let mut synth = vec!["synth".into(), fixture("A").join("base/config.json").into()];
    synth.extend(words("--out w"));
    let mut plan = tiny(&scenario(dir), dir);
    plan.push("--plan".into());
    all.extend([synth, plan]);
    all
}

#[test]
fn a_reader_that_has_gone_is_no_error_and_a_full_device_is_one() {
    let dir = TempDir::new().unwrap();
    for args in printing(dir.path()) {
        let name = format!("{args:?}");
        let mut child = ttft()
            .args(&args)
            .current_dir(dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        drop(child.stdout.take());
        let out = child.wait_with_output().unwrap();
        let expected = if name.contains("OE7B") { 1 } else { 0 };
        assert_eq!(out.status.code(), Some(expected), "{name}: {}", stderr(&out));
        if cfg!(target_os = "linux") && expected == 0 {
            let mut c = ttft();
            c.args(&args).current_dir(dir.path()).stdout(File::options().write(true).open("/dev/full").unwrap());
            fails(&mut c, &["cannot print the answer"]);
        }
        // Nobody hears a remark: nothing else changes.
        if cfg!(target_os = "linux") {
            let full = File::options().write(true).open("/dev/full").unwrap();
            let status =
                ttft().args(&args).current_dir(dir.path()).stdout(Stdio::null()).stderr(full).status().unwrap();
            assert_eq!(status.code(), Some(expected), "{name}");
        }
    }
}

#[test]
fn usage_is_2_and_errors_are_1() {
    for args in [&["bench", "--nonsense"][..], &["nonsense"], &[], &["zoo", "--batch", "0"]] {
        assert_eq!(ends(ttft().args(args)).0, 2, "{args:?}");
    }
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reports/data/amd-epyc-zen4-2c/quick.jsonl");
    assert_eq!(ends(ttft().arg("report").arg(record)).0, 2);
    assert_eq!(ends(ttft().args(["compare", "--binaries", "one"])).0, 2);
    assert_eq!(ends(ttft().args(["bench", "--plan"]).env("TTFT_SCENARIO", "nosuch")).0, 2);
    assert_eq!(ends(ttft().args(["validate", "none.jsonl"])).0, 1);
    assert_eq!(ends(ttft().arg("--version")).0, 0);
}

#[test]
fn arguments_may_be_any_bytes() {
    let dir = TempDir::new().unwrap();
    let odd = |name: &[u8]| dir.path().join(std::ffi::OsStr::from_bytes(name));
    let mut c = ttft();
    c.args(tiny(&scenario(dir.path()), &odd(b"w\xff"))).arg("--out").arg(odd(b"r\xff.jsonl"));
    succeeds(&mut c);
    let record = Record::read(&odd(b"r\xff.jsonl")).unwrap();
    assert_eq!((record.run.run_id.as_str(), record.cells.len()), ("r\u{fffd}", 1));
    // Nothing steers a terminal, whatever files are called.
    let (_, err) = ends(ttft().arg("validate").arg(odd(b"\x1b[31m\xff")));
    assert!(!err.contains('\x1b') && err.contains("no file is called"), "{err}");
    assert_eq!(ends(ttft().arg("bench").arg(odd(b"\x1b]0;x\xff"))).0, 2);
}

#[test]
fn a_variable_set_to_nothing_is_not_set() {
    let dir = TempDir::new().unwrap();
    let mut plan = tiny(&scenario(dir.path()), dir.path());
    plan.push("--plan".into());
    for (name, _) in ttft_bench::knobs::RunKnobs::variables() {
        succeeds(ttft().args(&plan).env(&name, ""));
    }
}

#[test]
fn outputs_may_be_links_devices_and_standard_output() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let report = |out: &Path| {
        let mut c = ttft();
        c.args(["report", "paper", "--csv"]).arg(out);
        c
    };
    succeeds(&mut report(&path("plain.csv")));
    let expected = fs::read_to_string(path("plain.csv")).unwrap();
    // A link stays one.
    fs::create_dir(path("real")).unwrap();
    std::os::unix::fs::symlink("real/r.csv", path("link.csv")).unwrap();
    succeeds(&mut report(&path("link.csv")));
    assert!(path("link.csv").is_symlink() && fs::read_to_string(path("real/r.csv")).unwrap() == expected);
    // Standard output, as a pipe and as a file, holds the report and nothing else.
    assert_eq!(succeeds(&mut report(Path::new("/dev/stdout"))), expected);
    succeeds(report(Path::new("/dev/stdout")).stdout(File::create(path("out.csv")).unwrap()));
    assert_eq!(fs::read_to_string(path("out.csv")).unwrap(), expected);
    // The same for a record.
    let bench = |out: &Path| {
        let mut c = ttft();
        c.args(tiny(&scenario(dir.path()), dir.path())).arg("--out").arg(out);
        c
    };
    let lines = succeeds(&mut bench(Path::new("/dev/stdout")));
    assert_eq!(Record::from_reader(lines.as_bytes(), Path::new("stdout")).unwrap().cells.len(), 1, "{lines}");
    // Devices stay devices.
    let device = |p: &str| fs::symlink_metadata(p).unwrap().rdev();
    let before = device("/dev/null");
    succeeds(&mut report(Path::new("/dev/null")));
    let table = succeeds(&mut bench(Path::new("/dev/null")));
    assert!(table.contains("OE270M") && device("/dev/null") == before, "{table}");
    if cfg!(target_os = "linux") {
        fails(&mut report(Path::new("/dev/full")), &["/dev/full: cannot write it"]);
        fails(&mut bench(Path::new("/dev/full")), &["/dev/full", "--out"]);
    }
    // An empty file was made for the record; a full one was not.
    fs::write(path("empty.jsonl"), "").unwrap();
    succeeds(&mut bench(&path("empty.jsonl")));
    fails(&mut bench(&path("empty.jsonl")), &["exists"]);
    fails(&mut bench(dir.path()), &["a folder", "--out"]);
}

#[test]
fn a_signal_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let prompts: Vec<Vec<u32>> = (0..4).map(|b| (0..100).map(|i| (b + i) % 300).collect()).collect();
    let tokens = dir.path().join("many.json");
    fs::write(&tokens, serde_json::to_string(&prompts).unwrap()).unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let left = || fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
    for (number, signal) in [(2, "INT"), (15, "TERM"), (1, "HUP")] {
        if ignored(number) {
            eprintln!("skipped: whoever started this test has programs ignore SIG{signal}");
            continue;
        }
        let mut logits = ttft();
        logits.arg("logits").arg("--base").arg(fixture("A").join("base")).arg("--tokens").arg(&tokens);
        logits.args(["--generate", "100000", "--threads", "1", "--out"]).arg(out.join("x.safetensors"));
        let mut child = logits.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        for _ in 0..3000 {
            if !left().is_empty() || child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(left().len(), 1, "the temporary file, while the program works");
        let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", child.id())).status().unwrap();
        assert!(sent.success());
        let status = child.wait().unwrap();
        assert!(!status.success());
        assert!(left().is_empty(), "{signal}: {status}: {:?}", left());
    }
}

/// A signal ends the process that measures too, whoever started it, and no temporary file or folder stays.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_ends_the_processes_that_measure() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (temporary, weights, scenario) = (path("temporary"), path("w"), scenario(dir.path()));
    fs::create_dir(&temporary).unwrap();
    // Pairs of processes write into a temporary folder; a process of several is called with the folder of its weights.
    let pairs = || {
        let flags = "--tiny --threads 1";
        let mut c = ttft();
        c.args(["compare", "--settings", flags, flags, "--pairs", "10000", "--rounds", "1000", "--scenario"]);
        c.arg(&scenario).arg("--weights").arg(&weights).env("TMPDIR", &temporary);
        (c, temporary.clone(), "bench")
    };
    let several = |record: &str| {
        let mut c = ttft();
        c.args(tiny(&scenario, dir.path())).args([
            "--processes",
            "3",
            "--rounds",
            "100000",
            "--budget",
            "1e9",
            "--out",
        ]);
        c.arg(path(record)).env("TMPDIR", &temporary);
        (c, weights.clone(), "worker")
    };
    for (number, signal) in [(2, "INT"), (15, "TERM"), (1, "HUP")] {
        if ignored(number) {
            eprintln!("skipped: whoever started this test has programs ignore SIG{signal}");
            continue;
        }
        let record = format!("{signal}.jsonl");
        for (mut command, place, measures) in [pairs(), several(&record)] {
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let measuring = || -> Vec<PathBuf> {
                let all = fs::read_dir("/proc").unwrap().flatten().map(|process| process.path());
                all.filter(|process| runs(process, &[place.as_os_str().as_bytes(), measures.as_bytes()])).collect()
            };
            let mut seen = measuring();
            for _ in 0..3000 {
                if !seen.is_empty() || child.try_wait().unwrap().is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
                seen = measuring();
            }
            assert!(!seen.is_empty(), "{measures}: a process that measures");
            let sent = Command::new("sh").arg("-c").arg(format!("kill -{signal} {}", child.id())).status().unwrap();
            assert!(sent.success() && !child.wait().unwrap().success());
            let left: Vec<_> =
                seen.iter().chain(&measuring()).filter(|p| runs(p, &[measures.as_bytes()])).cloned().collect();
            assert!(left.is_empty(), "{signal}: {measures} still runs: {left:?}");
            assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "{signal}: {measures}");
        }
        // The record can be gone on with, and weights are whole or not there.
        assert!(Record::read(&path(&record)).unwrap().cells.is_empty());
        assert!(names(&weights).iter().all(|name| weights.join(name).join("synth.json").exists()), "{signal}");
        let known = ["HUP.jsonl", "INT.jsonl", "TERM.jsonl", "small.toml", "temporary", "w"];
        let there = names(dir.path());
        assert!(there.iter().all(|name| known.iter().any(|known| name == known)), "{signal}: {there:?}");
    }
}

#[cfg(target_os = "linux")]
fn names(folder: &Path) -> Vec<std::ffi::OsString> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

/// Whether a process, by its folder in `/proc`, has words with each of these parts on its command line; one that has ended has
/// none.
#[cfg(target_os = "linux")]
fn runs(process: &Path, parts: &[&[u8]]) -> bool {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    parts.iter().all(|part| line.windows(part.len()).any(|words| words == *part))
}

/// Whether this process ignores a signal, as a job of `nohup` or in the background of a script does; its children do too, and
/// the program leaves it so.
fn ignored(signal: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[test]
fn limits_of_the_process_end_in_words() {
    let dir = TempDir::new().unwrap();
    let config = fixture("A").join("base/config.json");
    let left = |out: &str| fs::read_dir(dir.path().join(out)).unwrap().count();
    fs::create_dir(dir.path().join("f")).unwrap();
    // File sizes, in blocks of 512 bytes or of 1024: the first file of weights is larger, and the report.
    let limited =
        |script: &str| in_shell(script).map(|mut c| std::mem::replace(c.current_dir(dir.path()), Command::new("true")));
    if let Some(mut c) = limited("ulimit -f 100; exec \"$@\"") {
        fails(c.arg("synth").arg(&config).args(["--out", "f/w"]), &["f/w", "too large"]);
        assert_eq!(left("f"), 0, "nothing is left half-written");
    }
    if let Some(mut c) = limited("ulimit -f 2; exec \"$@\"") {
        fails(c.args(["report", "paper", "--csv", "f/r.csv"]), &["f/r.csv: cannot write it"]);
        assert_eq!(left("f"), 0);
    }
    // Address space: it works, or the error says what is missing.
    if cfg!(target_os = "linux") {
        for mib in [64, 128, 256, 1024] {
            let Some(mut c) = limited(&format!("ulimit -v {}; exec \"$@\"", mib << 10)) else { break };
            let (_, err) = ends(c.args(["machine", "--json", "--threads", "1"]));
            assert!(!err.contains("memory allocation of"), "{mib} MiB: {err}");
            let Some(mut c) = limited(&format!("ulimit -v {}; exec \"$@\"", mib << 10)) else { break };
            c.arg("logits").arg("--base").arg(fixture("A").join("base")).arg("--tokens").arg(tokens(dir.path()));
            let (_, err) = ends(c.args(["--threads", "1", "--out", "l.safetensors"]));
            assert!(!err.contains("memory allocation of"), "{mib} MiB: {err}");
        }
    }
}

/// A calibration that does not fit on the disk is named, and the earlier one stays whole.
#[test]
fn a_calibration_that_cannot_be_written_leaves_the_earlier_one() {
    let dir = TempDir::new().unwrap();
    let (folder, file) = (dir.path().join("c"), dir.path().join("c/calibration.json"));
    fs::create_dir(&folder).unwrap();
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reports/data/amd-epyc-zen4-2c/quick-processes.jsonl");
    for i in 1..=3 {
        fs::copy(&record, folder.join(format!("occasion-000{i}.jsonl"))).unwrap();
    }
    let arguments = ["calibrate", "--minutes", "0", "--folder", "c"];
    succeeds(ttft().args(arguments).current_dir(dir.path()));
    let earlier = fs::read(&file).unwrap();
    assert!(earlier.len() > 4096, "more than what the limit holds");
    if let Some(mut c) = in_shell("ulimit -f 2; exec \"$@\"") {
        fails(c.args(arguments).current_dir(dir.path()), &["c/calibration.json: cannot write it", "too large"]);
        assert!(fs::read(&file).unwrap() == earlier);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 4, "nothing is left half-written");
    }
    if cfg!(target_os = "linux") {
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/full", &file).unwrap();
        fails(
            ttft().args(arguments).current_dir(dir.path()),
            &["c/calibration.json: cannot write it", "No space left on device"],
        );
        assert!(file.is_symlink());
    }
}

#[test]
fn a_plan_needs_no_place_of_its_own() {
    let dir = TempDir::new().unwrap();
    let mut plan = tiny(&scenario(dir.path()), dir.path());
    plan.push("--plan".into());
    succeeds(ttft().args(&plan).env("TMPDIR", "/nonexistent").env_remove("HOME").env_remove("XDG_CACHE_HOME"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only the scenario");
}

#[test]
fn too_many_samples_are_refused_before_the_work() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("many.toml");
    fs::write(&path, SMALL.replace("rounds = 3", "rounds = 100001\ndecode = 10")).unwrap();
    let out = dir.path().join("r.jsonl");
    fails(ttft().args(tiny(&path, dir.path())).arg("--out").arg(&out), &["at most 100000 rounds"]);
    assert!(!out.exists() && !dir.path().join("w").exists());
}

#[test]
fn text_from_windows_and_python_is_read() {
    let dir = TempDir::new().unwrap();
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("A").join("base").join(name), base.join(name)).unwrap();
    }
    let config = fs::read_to_string(base.join("config.json")).unwrap();
    let tokens = dir.path().join("t.json");
    let out = dir.path().join("o.safetensors");
    let logits = || {
        let mut c = ttft();
        c.arg("logits").arg("--base").arg(&base).arg("--tokens").arg(&tokens).arg("--out").arg(&out);
        c
    };
    fs::write(&tokens, "\u{feff}[[1, 2, 3]]\r\n").unwrap();
    fs::write(
        base.join("config.json"),
        format!("\u{feff}{}", config.replacen('{', "{\"x\": NaN, \"y\": [-Infinity],", 1)),
    )
    .unwrap();
    succeeds(&mut logits());
    fs::write(base.join("config.json"), config.replace("\"rope_freq_constant\": 10000", "\"rope_freq_constant\": NaN"))
        .unwrap();
    fails(&mut logits(), &["config.json", "rope_freq_constant", "NaN"]);
    fs::write(base.join("config.json"), &config).unwrap();
    fs::write(base.join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        .unwrap();
    fails(&mut logits(), &["model.safetensors", "Git LFS", "git lfs pull"]);
    let wide: Vec<u8> = [0xfeff].into_iter().chain("[[1]]".encode_utf16()).flat_map(u16::to_le_bytes).collect();
    fs::write(&tokens, wide).unwrap();
    fails(&mut logits(), &["t.json", "UTF-16"]);
    let marked = dir.path().join("marked.toml");
    fs::write(&marked, format!("\u{feff}{}", SMALL.replace('\n', "\r\n"))).unwrap();
    succeeds(ttft().args(tiny(&marked, dir.path())).arg("--plan"));
}

#[test]
fn an_output_is_never_an_input() {
    let dir = TempDir::new().unwrap();
    let tokens = tokens(dir.path());
    let mut c = ttft();
    c.arg("logits").arg("--base").arg(fixture("A").join("base")).arg("--tokens").arg(&tokens).arg("--out").arg(&tokens);
    fails(&mut c, &["tokens.json is read"]);
    assert_eq!(fs::read_to_string(&tokens).unwrap(), "[[1, 2, 3]]");
}

#[test]
fn runs_of_one_second_get_names_of_their_own() {
    let dir = TempDir::new().unwrap();
    let scenario = scenario(dir.path());
    // An installed program: its records go to the home folder.
    let program_file = dir.path().join("ttft");
    fs::copy(env!("CARGO_BIN_EXE_ttft"), &program_file).unwrap();
    let mut words = words();
    *words.last_mut().unwrap() = program_file.to_string_lossy().into_owned();
    let run = || {
        let mut c = program(&words);
        c.args(tiny(&scenario, dir.path())).env("HOME", dir.path()).env_remove("XDG_CACHE_HOME");
        c
    };
    succeeds(&mut run());
    let children: Vec<_> =
        (0..4).map(|_| run().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()).collect();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
    }
    let records = || fs::read_dir(dir.path().join(".cache/ttft/ttft-records")).unwrap().map(|e| e.unwrap().path());
    assert_eq!(records().count(), 5);
    assert!(records().all(|path| Record::read(&path).unwrap().cells.len() == 1));
    // A home that cannot be written: the error names the way out.
    let mut lost = run();
    fails(lost.env("HOME", "/proc/nowhere").current_dir(dir.path()), &["--out", "TTFT_OUT"]);
}

#[test]
fn a_record_may_come_through_a_pipe() {
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("../reports/data/apple-m2-pro/table5.jsonl");
    let mut cat = Command::new("cat").arg(record).stdout(Stdio::piped()).spawn().unwrap();
    let mut c = ttft();
    c.args(["validate", "/dev/stdin"]).stdin(cat.stdout.take().unwrap());
    assert!(succeeds(&mut c).contains("OE1.1B"));
    cat.wait().unwrap();
}
