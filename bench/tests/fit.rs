//! `ttft fit` on small networks: what it writes, what takes it, what it refuses, and that an interruption costs nothing.

mod program;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use program::{fail, stderr, succeed, ttft};
use serde_json::Value;
use tempfile::TempDir;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// Networks of a fixture with a small tokenizer, and texts.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new(fixture: &str) -> Place {
        let place = Place { dir: TempDir::new().unwrap() };
        let made = place.path("made");
        succeed(ttft().arg("convert").arg(fixtures().join("gguf/smollm.gguf")).arg(&made));
        for part in ["base", "aux"] {
            let from = fixtures().join(fixture).join(part);
            if from.exists() {
                fs::create_dir(place.path(part)).unwrap();
                for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
                    fs::copy(entry.path(), place.path(part).join(entry.file_name())).unwrap();
                }
                fs::copy(made.join("tokenizer.json"), place.path(part).join("tokenizer.json")).unwrap();
            }
        }
        fs::remove_dir_all(made).unwrap();
        place.write("a.txt", &words(1, 700));
        place.write("b.txt", &words(2, 300));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// A fit to both texts, by windows of 32 tokens.
    fn fit(&self, out: &str) -> Command {
        self.fit_by("32", out)
    }

    fn fit_by(&self, window: &str, out: &str) -> Command {
        let mut c = ttft();
        c.arg("fit").arg("--base").arg(self.path("base")).arg("--out").arg(self.path(out)).args(["--window", window]);
        c.arg("--text").arg(self.path("a.txt")).arg(self.path("b.txt"));
        c
    }

    fn config(&self, out: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(out).join("config.json")).unwrap()).unwrap()
    }

    /// Names in a folder, hidden ones too.
    fn names(&self, of: &str) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(self.path(of)).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn predictor(&self, out: &str) -> Vec<u8> {
        fs::read(self.path(out).join("predictor.safetensors")).unwrap()
    }
}

/// Lines of pseudo-random words.
fn words(seed: u64, lines: usize) -> String {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |n: u64| {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 33) % n
    };
    let mut text = String::new();
    for _ in 0..lines {
        for _ in 0..2 + next(6) {
            (0..1 + next(7)).for_each(|_| text.push((b'a' + next(26) as u8) as char));
            text.push(' ');
        }
        text.push('\n');
    }
    text
}

#[test]
fn predictors_of_both_sources_and_inputs_are_taken_by_the_other_commands() {
    for fixture in ["A", "G"] {
        let place = Place::new(fixture);
        let aux = place.path("aux");
        for (source, input) in [("aux", "kv"), ("aux", "hidden"), ("shared", "kv"), ("shared", "hidden")] {
            let out = format!("{source}-{input}");
            let mut c = place.fit(&out);
            c.args(["--input", input]);
            match source {
                "aux" => c.arg("--aux").arg(&aux),
                _ => c.args(["--shared-layers", "2"]),
            };
            let (said, remarks) = succeed(&mut c);
            assert!(said.contains("wrote ") && said.contains("layer   keys  values"), "{said}");
            for word in ["maps: ", "text: ", "memory: ", "time: about ", "tokens in a second can be read", "in 2 files"]
            {
                assert!(remarks.contains(word), "no '{word}' in: {remarks}");
            }
            assert_eq!(place.names(&out), ["config.json", "predictor.safetensors"]);
            let made = &place.config(&out)["fit"];
            assert_eq!((&made["input"], &made["window"]), (&Value::from(input), &Value::from(32)));
            assert_eq!(made["text"][1]["file"], "b.txt");
            assert_eq!(made["text"][1]["sha256"], ttft_bench::identity::file_sha256(&place.path("b.txt")).unwrap());
            assert_eq!(made["base"]["weights_sha256"].as_str().map(str::len), Some(64));
            assert_eq!(made["aux"].is_object(), source == "aux");
            let windows = made["windows"].as_u64().unwrap();
            assert_eq!((made["tokens"].as_u64(), made["rows"].as_u64()), (Some(windows * 32), Some(windows * 31)));
            assert_eq!(
                made["held_out_windows"].as_u64(),
                Some((windows + made["held_out_windows"].as_u64().unwrap()) / 20)
            );
            let explained = made["explained"].as_array().unwrap();
            let fitted = place.config(&out)["base_num_layers"].as_u64().unwrap() as usize
                - match (source, input) {
                    ("aux", _) => 0,
                    (_, "kv") => 2,
                    _ => 3,
                };
            assert_eq!(explained.len(), fitted, "{out}");
            assert!(explained.iter().all(|l| l["keys"].as_f64().unwrap() > 0.0 && l["values"].as_f64().unwrap() < 1.0));
            let mut c = ttft();
            c.args(["generate", "--tokens", "3", "--sink-tokens", "1", "--predictor"]).arg(place.path(&out));
            c.arg("--base").arg(place.path("base"));
            if source == "aux" {
                c.arg("--aux").arg(&aux);
            }
            succeed(c.arg("some words"));
        }
        // Nothing is left beside.
        let left = place.names(".");
        assert!(left.iter().all(|name| !name.starts_with('.')), "{left:?}");
    }
}

#[test]
fn tokens_dtypes_and_targets_are_as_asked_for() {
    let place = Place::new("A");
    let fit = |out: &str, more: &[&str]| {
        succeed(place.fit(out).args(["--shared-layers", "1", "--input", "hidden"]).args(more));
        place.config(out)["fit"].clone()
    };
    let all = fit("all", &[]);
    let some = fit("some", &["--tokens", "2000"]);
    // 62 windows, of which three are held out.
    assert_eq!((&some["windows"], &some["held_out_windows"]), (&Value::from(59), &Value::from(3)));
    assert!(all["windows"].as_u64() > Some(100), "{all}");
    let bf16 = fit("bf16", &["--store", "bf16", "--dtype", "bf16", "--lambda", "0.5", "--target", "head-rms"]);
    for (key, value) in [("stored_as", "bf16"), ("activations", "bf16"), ("target", "head-rms")] {
        assert_eq!(bf16[key], value);
    }
    assert_eq!(bf16["lambda"], 0.5);
    assert!(place.predictor("bf16").len() < place.predictor("all").len() * 2 / 3);
    // The same again, to the bit, on one thread as well.
    fit("again", &["--threads", "1"]);
    assert!(place.predictor("again") == place.predictor("all"));
    let (_, said) = succeed(place.fit("plan").args(["--shared-layers", "1", "--input", "kv", "--plan"]));
    assert!(said.contains("time: about") && !place.path("plan").exists(), "{said}");
    assert!(!place.names(".").iter().any(|name| name.starts_with('.')));
}

#[test]
fn what_does_not_fit_is_refused_with_what_to_do() {
    let place = Place::new("G");
    let shared = |k: &str, input: &str, out: &str| {
        let mut c = place.fit(out);
        c.args(["--shared-layers", k, "--input", input]);
        c
    };
    fail(&mut place.fit("x"), &["--aux", "--shared-layers"]);
    fail(place.fit("x").args(["--shared-layers", "2"]), &["--input"]);
    fail(&mut shared("0", "kv", "x"), &["--shared-layers", "1 to 3 of the 4 layers", "found 0"]);
    fail(&mut shared("4", "kv", "x"), &["1 to 3 of the 4 layers", "found 4"]);
    fail(&mut shared("3", "hidden", "x"), &["1 to 2 of the 4 layers", "--init own"]);
    fail(shared("2", "hidden", "x").args(["--target", "head-rms"]), &["has no k_norm", "take raw"]);
    fail(shared("2", "hidden", "x").args(["--tokens", "60"]), &["2 files", "make 1 windows of 32", "give more text"]);
    fail(shared("2", "hidden", "x").args(["--tokens", "70"]), &["31 tokens to fit to", "64 features", "better 50"]);
    fail(shared("2", "hidden", "x").arg("--lambda=-1"), &["--lambda"]);
    fail(shared("2", "hidden", "x").args(["--dtype", "f16"]), &["--dtype"]);
    fail(shared("2", "hidden", "base").args(["--tokens", "7000"]), &["base: exists and is not empty"]);
    assert!(!place.path("x").exists());

    let text = |content: &[u8], words: &[&str]| {
        fs::write(place.path("bad.txt"), content).unwrap();
        fail(shared("2", "kv", "x").arg("--text").arg(place.path("bad.txt")), words);
    };
    text(b"", &["bad.txt", "no text"]);
    text(b"ab\xff", &["bad.txt", "byte 2"]);
    fs::write(place.path("bad.txt"), "few words").unwrap();
    let mut c = ttft();
    c.arg("fit").arg("--base").arg(place.path("base")).args(["--shared-layers", "2", "--input", "kv", "--out", "x"]);
    fail(c.arg("--text").arg(place.path("bad.txt")), &["bad.txt", "make 0 windows of 512", "give more text"]);
    fail(shared("2", "kv", "x").arg("--text").arg(place.path("none.txt")), &["none.txt", "cannot read"]);
    // Networks that read other tokens.
    let tokenizer = place.path("aux/tokenizer.json");
    let good = fs::read_to_string(&tokenizer).unwrap();
    let with_aux = || {
        let mut c = place.fit("x");
        c.args(["--input", "kv", "--aux"]).arg(place.path("aux"));
        c
    };
    fs::write(&tokenizer, good.replacen("\"a\": 97", "\"a\": 98", 1).replacen("\"b\": 98", "\"b\": 97", 1)).unwrap();
    fail(&mut with_aux(), &["the vocabularies differ", "'a'"]);
    let tokenizer = place.path("base/tokenizer.json");
    fs::write(&tokenizer, good.replacen("\"a\": 97", "\"a\": 9700", 1)).unwrap();
    fail(&mut shared("2", "kv", "x"), &["base/tokenizer.json", "token 9700", "do not belong together"]);
    fs::remove_file(&tokenizer).unwrap();
    fail(&mut shared("2", "kv", "x"), &["tokenizer.json: missing"]);
    fs::remove_file(place.path("base/config.json")).unwrap();
    fail(&mut shared("2", "kv", "x"), &["base"]);
    assert!(!place.names(".").iter().any(|name| name.starts_with('.')), "{:?}", place.names("."));
}

/// A fit that is interrupted, by either signal, and once more after that; the same command goes on, and the predictor is the
/// one of a fit that nobody interrupted, to the bit.
#[cfg(unix)]
#[test]
fn an_interruption_costs_nothing() {
    use std::{os::unix::process::ExitStatusExt, thread::sleep, time::Duration};

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    let place = Place::new("G");
    place.write("a.txt", &words(3, 12_000));
    let fit = |out: &str| {
        let mut c = place.fit_by("512", out);
        c.args(["--shared-layers", "1", "--input", "hidden", "--threads", "1"]);
        c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        c
    };
    succeed(&mut fit("whole"));
    let side = place.path(".out.ttft-fit");
    // SIGINT and SIGHUP are ignored where whoever started the tests ignores them.
    for signal in [Signal::SIGXCPU, Signal::SIGTERM] {
        // Once there is a lock, there is something to keep.
        let _ = fs::remove_file(side.join("lock"));
        let child = fit("out").spawn().unwrap();
        for _ in 0..6000 {
            if side.join("lock").exists() {
                break;
            }
            sleep(Duration::from_millis(10));
        }
        if signal == Signal::SIGTERM {
            fail(&mut fit("out"), &["another ttft fit", "another --out"]);
        }
        sleep(Duration::from_millis(50));
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let out = child.wait_with_output().unwrap();
        let said = stderr(&out);
        assert_eq!(out.status.signal(), Some(signal as i32), "{said}");
        assert!(said.contains("the same command goes on"), "{said}");
        assert!(side.join("sums.safetensors").exists() && !place.path("out").exists());
    }
    // Of another fit.
    fail(fit("out").args(["--tokens", "20000"]), &["sums.safetensors", "another", "windows", "remove it"]);
    // The lambda is no part of the sums.
    let (_, said) = succeed(&mut fit("out"));
    assert!(said.contains("going on after "), "{said}");
    assert!(place.predictor("out") == place.predictor("whole"), "other bytes");
    assert_eq!(place.config("out"), place.config("whole"));
    assert!(!side.exists());
}
