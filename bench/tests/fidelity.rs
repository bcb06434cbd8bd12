//! `ttft fidelity` with small networks: what must be called identical and useless, what is refused, what is written.

mod program;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use program::{fail, succeed, ttft};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value;
use tempfile::TempDir;
use ttft_bench::{
    fidelity::{
        Asked, CutText, Session,
        distance::{Apart, Distributions, likeliest},
        items::{Answer, Item},
        readers::{Reader, Row},
        systems::Judged,
    },
    text::Text,
};
use ttft_kernels::{DType, Engine, Options};
use ttft_models::{
    KvPrediction, Network, Precision, System,
    kv_prediction::layout::{Input, Layout, Origin, OwnTokens},
    synth,
};
use ttft_reports::{
    fidelity::{ControlKind, Fidelity, Measure, Outcomes, TaskKind, Verdict, judge},
    schema::Kind,
};

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A small network with a tokenizer, whose context is long enough for everything here; and folders of predictors.
struct Place {
    dir: TempDir,
    base: PathBuf,
    layers: usize,
    kv_dim: usize,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        succeed(ttft().arg("convert").arg(here().join("tests/fixtures/gguf/smollm.gguf")).arg(&base));
        let config = base.join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        json["max_position_embeddings"] = 4096.into();
        fs::write(&config, json.to_string()).unwrap();
        let number = |key: &str| json[key].as_u64().unwrap() as usize;
        let kv_dim = number("num_key_value_heads") * number("head_dim");
        Place { base, layers: number("num_hidden_layers"), kv_dim, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A predictor of keys from keys and values from values of an auxiliary that is the base itself, layer by layer.
    fn predictor(&self, name: &str, weight: impl Fn(usize, usize) -> f32, more: Value) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        let n = self.kv_dim;
        let bytes = |v: Vec<f32>| v.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        let matrix = bytes((0..n * n).map(|i| weight(i / n, i % n)).collect());
        let bias = bytes(vec![0.0; n]);
        let mut tensors = HashMap::new();
        for i in 0..self.layers {
            for kind in ["key", "value"] {
                let of = |shape, data| TensorView::new(Dtype::F32, shape, data).unwrap();
                tensors.insert(format!("{kind}_transforms.{i}.weight"), of(vec![n, n], &matrix));
                tensors.insert(format!("{kind}_transforms.{i}.bias"), of(vec![n], &bias));
            }
        }
        fs::write(dir.join("predictor.safetensors"), safetensors::serialize(&tensors, None).unwrap()).unwrap();
        let mut config = serde_json::json!({
            "base_num_layers": self.layers,
            "aux_num_layers": self.layers,
            "aux_layer_for_base_layer": (0..self.layers).collect::<Vec<_>>(),
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fs::write(dir.join("config.json"), config.to_string()).unwrap();
        dir
    }

    /// Small, on two texts of this repository.
    fn command(&self, predictors: &[&Path], out: &Path) -> Command {
        self.sized(predictors, out, ["24", "48", "0"])
    }

    /// With so many windows, tokens of a prompt, and look-ups.
    fn sized(&self, predictors: &[&Path], out: &Path, [windows, prompt, lookups]: [&str; 3]) -> Command {
        let mut c = ttft();
        c.arg("fidelity").arg("--base").arg(&self.base).arg("--aux").arg(&self.base);
        for p in predictors {
            c.arg("--predictor").arg(p);
        }
        c.arg("--text").arg(here().join("docs/guide.md")).arg("--text2").arg(here().join("kernels/src/engine.rs"));
        c.args(["--windows", windows, "--prompt-tokens", prompt, "--lookups", lookups]);
        c.args(["--continuation", "8", "--sink-tokens", "1", "--threads", "1"]).arg("--out").arg(out);
        c
    }
}

fn identity(i: usize, j: usize) -> f32 {
    f32::from(u8::from(i == j))
}

/// Values of no meaning, of the size of a map's.
fn random(i: usize, j: usize) -> f32 {
    let hash = (i as u32 * 7919 + j as u32 * 104_729 + 17).wrapping_mul(2_654_435_761);
    ((hash >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.6
}

fn prompt_of(question: &str) -> String {
    format!("Question: zero\nAnswer: one\n\nQuestion: {question}\nAnswer:")
}

/// Questions whose answers are what the base says: the network knows nothing, so these are all that it can be asked.
fn questions(place: &Place) -> PathBuf {
    let said = place.path("said");
    let prompts: Vec<String> =
        (0..60).map(|i| format!("what is {} of {i}", ["q", "the x", "Zed", "no"][i % 4])).collect();
    let code: Vec<String> =
        prompts.iter().map(|q| serde_json::json!({"task_id": q, "prompt": prompt_of(q)}).to_string()).collect();
    let tasks = place.path("code.jsonl");
    fs::write(&tasks, code.join("\n")).unwrap();
    let exact = place.predictor("for-questions", identity, serde_json::json!({}));
    let out = place.path("code.json");
    let mut c = place.command(&[&exact], &out);
    c.arg("--tasks").arg(&tasks).args(["--answer-tokens", "8"]).arg("--completions").arg(&said);
    succeed(&mut c);
    let file = Fidelity::read(&out).unwrap();
    assert_eq!((file.tasks[0].kind, file.tasks[0].base.is_none(), file.tasks[0].items), (TaskKind::Code, true, 60));
    let lines = fs::read_to_string(said.join("base.jsonl")).unwrap();
    // The system has true caches, so it writes the same.
    let name = format!("{}.jsonl", file.systems[0].name);
    assert_eq!(fs::read_to_string(said.join(name)).unwrap(), lines);
    let mut out = vec![serde_json::json!({"question": "zero", "answers": ["one"]}).to_string()];
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let completion = line["completion"].as_str().unwrap();
        let first = completion.trim_start().lines().next().unwrap_or_default().to_owned();
        if !ttft_bench::fidelity::items::normal(&first).is_empty() {
            out.push(serde_json::json!({"question": line["task_id"], "answers": ["nothing", first]}).to_string());
        }
    }
    let tasks = place.path("questions.jsonl");
    fs::write(&tasks, out.join("\n") + "\n").unwrap();
    tasks
}

#[test]
fn true_caches_are_identical_and_random_maps_useless() {
    let place = Place::new();
    let tasks = questions(&place);
    let exact = place.predictor("exact", identity, serde_json::json!({}));
    let useless = place.predictor("random", random, serde_json::json!({}));
    let out = place.path("fidelity.json");
    let mut c = place.command(&[&exact, &useless], &out);
    c.arg("--tasks").arg(&tasks).args(["--answer-tokens", "8"]);
    let (said, remarks) = succeed(&mut c);
    let file = Fidelity::read(&out).unwrap();
    let task = &file.tasks[0];
    assert!(task.items >= 20 && task.base.as_ref().unwrap().share == 1.0, "{task:?}");
    let judged = judge(&file);
    let words: Vec<(&str, Verdict)> = judged.iter().map(|j| (&*j.system, j.verdict)).collect();
    assert_eq!(words, [("exact", Verdict::Identical), ("random", Verdict::Useless)], "{said}");
    for word in ["exact: Identical", "random: Useless", "full prefill", "mean cache (random)", "wrote "] {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
    assert!(remarks.contains("readers (full prefill, 2 systems") && remarks.contains("of memory"), "{remarks}");

    // Every control stands beside each system, and what is the same is the same.
    use ControlKind::*;
    let of = |kind: ControlKind, system: &str| {
        file.controls.iter().filter(|c| c.kind == kind && c.is_of(system)).collect::<Vec<_>>()
    };
    for system in ["exact", "random"] {
        for (kind, count) in [
            (NoContext, 1),
            (TruncationEqualOperations, 2),
            (TruncationEqualTtft, 2),
            (NothingPredicted, 1),
            (MeanCache, 1),
            (AuxiliaryAlone, 1),
            (TrueCaches, 1),
        ] {
            assert_eq!(of(kind, system).len(), count, "{kind:?} of {system}");
        }
        let alone = of(AuxiliaryAlone, system)[0];
        assert!(alone.results.texts.iter().all(|t| t.continuation.kl.mean < 1e-6), "the auxiliary is the base");
        let truth = of(TrueCaches, system)[0];
        for text in &truth.results.texts {
            assert!(text.first.kl.mean < 1e-6 && text.continuation.top1.mean == 1.0, "{text:?}");
            assert_eq!(text.greedy.as_ref().unwrap().mean, 1.0);
        }
        let nothing = of(NothingPredicted, system)[0];
        let cut = of(NoContext, system)[0];
        assert!(nothing.results.texts[0].continuation.kl.mean > 1e-4);
        assert!(cut.results.texts[0].continuation.kl.mean > 1e-4 && cut.base_tokens == Some(1));
    }
    let random = &file.systems[1];
    assert!(random.results.texts.iter().all(|t| t.continuation.kl.mean > 1e-4 && t.first.kl.values.len() == 24));
    assert_eq!(random.prediction.as_ref().unwrap().sink_tokens, 1);
    assert!(random.ttft_ns.len() >= 3 && file.base.ttft_ns.len() >= 3);
    // The auxiliary is the base itself, and the maps come on top.
    assert!(random.operations_share > 1.0, "{}", random.operations_share);
    // The same again gives the same figures.
    let again = place.path("again.json");
    let mut c = place.command(&[&exact, &useless], &again);
    c.arg("--tasks").arg(&tasks).args(["--answer-tokens", "8"]);
    succeed(&mut c);
    let again = Fidelity::read(&again).unwrap();
    for (a, b) in file.systems.iter().zip(&again.systems) {
        assert_eq!(a.results, b.results);
    }
}

#[test]
fn look_ups_are_drawn_for_any_tokenizer() {
    let place = Place::new();
    let exact = place.predictor("exact", identity, serde_json::json!({}));
    let out = place.path("fidelity.json");
    // A tokenizer of single letters: needles take more than 48 tokens.
    fail(
        &mut place.sized(&[&exact], &out, ["2", "48", "3"]),
        &["needles and the question take", "--prompt-tokens", "--lookups 0"],
    );
    assert!(!out.exists());
    let (said, _) = succeed(&mut place.sized(&[&exact], &out, ["2", "400", "3"]));
    let file = Fidelity::read(&out).unwrap();
    let kinds: Vec<(TaskKind, u32)> = file.tasks.iter().map(|t| (t.kind, t.items)).collect();
    assert_eq!(kinds, [(TaskKind::Copy, 3), (TaskKind::KeyValue, 3), (TaskKind::Needle, 3)]);
    assert!(file.tasks.iter().all(|t| (0.01..=0.25).contains(&t.chance)), "{:?}", file.tasks);
    assert_eq!(file.tasks[2].prompt_tokens, 256.0);
    assert!(file.command.iter().all(|arg| !arg.contains('/')), "folders are nobody's business: {:?}", file.command);
    // A network that knows nothing solves none of them, so that nothing follows.
    assert_eq!(judge(&file)[0].verdict, Verdict::None);
    assert!(said.contains("No verdict"), "{said}");
}

#[test]
fn plans_say_what_it_costs_and_write_nothing() {
    let place = Place::new();
    let exact = place.predictor("exact", identity, serde_json::json!({}));
    let out = place.path("fidelity.json");
    let (said, remarks) = succeed(place.command(&[&exact], &out).arg("--plan"));
    assert!(said.is_empty() && remarks.contains("48 windows of text and 0 items"), "{said}{remarks}");
    assert!(!out.exists() && fs::read_dir(place.dir.path()).unwrap().count() == 2, "nothing is left");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let place = Place::new();
    let exact = place.predictor("exact", identity, serde_json::json!({}));
    let out = place.path("fidelity.json");
    let guide = here().join("docs/guide.md");
    // A text of the fit.
    let digest = {
        use sha2::Digest;
        sha2::Sha256::digest(fs::read(&guide).unwrap()).iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let fitted = serde_json::json!({"fit": {"texts": [{"name": "guide.md", "sha256": digest}]}});
    let fitted = place.predictor("fitted", identity, fitted);
    fail(&mut place.command(&[&fitted], &out), &["guide.md", "was fitted on this very text", "held out"]);
    // No second text.
    let mut c = place.command(&[&exact], &out);
    fail(c.arg("--text2").arg(&guide), &["--text2 holds a file of --text"]);
    fail(&mut place.sized(&[&exact], &out, ["90000", "48", "0"]), &["guide.md", "windows of 56", "fewer --windows"]);
    fail(&mut place.sized(&[&exact], &out, ["1", "4090", "0"]), &["4096", "fewer --prompt-tokens"]);
    // Tasks.
    let tasks = place.path("tasks.jsonl");
    for (content, words) in [
        ("{\"question\": \"x\"}\n", &["tasks.jsonl, line 1", "answers is missing"][..]),
        ("\n\n{\"task_id\": 1}\n", &["line 3"]),
        ("", &["tasks.jsonl", "no line with a task"]),
        ("{\"task_id\": \"a\", \"prompt\": \"b\"}\n", &["--completions"]),
    ] {
        fs::write(&tasks, content).unwrap();
        fail(place.command(&[&exact], &out).arg("--tasks").arg(&tasks), words);
    }
    fs::write(&tasks, "{\"question\": \"x\", \"answers\": [\"y\"]}\n".repeat(2)).unwrap();
    let mut c = place.command(&[&exact], &out);
    c.arg("--tasks").arg(&tasks).arg("--completions").arg(place.path("c"));
    fail(&mut c, &["--completions", "no file of --tasks has code"]);
    // What is read is not written.
    let mut c = place.command(&[&exact], &tasks);
    fail(c.arg("--tasks").arg(&tasks), &["is read, so it is not written"]);
    let mut c = ttft();
    c.arg("fidelity").arg("--base").arg(&place.base).arg("--text").arg(&guide).arg("--text2").arg(&tasks);
    fail(c.arg("--out").arg(&out), &["nothing to judge", "--predictor"]);
    fs::remove_file(place.base.join("tokenizer.json")).unwrap();
    fail(&mut place.command(&[&exact], &out), &["tokenizer.json: missing"]);
    assert!(!out.exists());
}

/// Nothing that is read is written, nor a file of somebody's own, by whatever name; nor is an answer written twice to one place.
#[test]
fn files_of_others_stay_as_they_are() {
    let place = Place::new();
    let maps = place.predictor("maps", identity, serde_json::json!({}));
    let out = place.path("fidelity.json");
    let own = place.path("notes.txt");
    fs::write(&own, "mine").unwrap();
    for read in [place.base.join("model.safetensors"), place.base.join("tokenizer.json"), maps.join("config.json")] {
        let before = fs::read(&read).unwrap();
        fail(&mut place.command(&[&maps], &read), &["is read, so it is not written"]);
        assert_eq!(fs::read(&read).unwrap(), before);
    }
    fail(&mut place.command(&[&maps], &own), &["notes.txt exists and is no fidelity file of ttft"]);
    assert_eq!(fs::read_to_string(&own).unwrap(), "mine");
    #[cfg(unix)]
    {
        let other = place.path("other-name");
        fs::hard_link(maps.join("predictor.safetensors"), &other).unwrap();
        fail(&mut place.command(&[&maps], &other), &["is read, so it is not written"]);
    }

    // Completions.
    let (said, code) = (place.path("said"), place.path("code.jsonl"));
    fs::write(&code, "{\"task_id\": \"a\", \"prompt\": \"def f(x):\\n\"}\n").unwrap();
    let asked = |out: &Path, predictor: &Path| {
        let mut c = place.sized(&[predictor], out, ["2", "48", "0"]);
        c.arg("--tasks").arg(&code).args(["--answer-tokens", "2"]).arg("--completions").arg(&said);
        c
    };
    succeed(asked(&out, &maps).arg("--plan"));
    assert!(!said.exists(), "a plan leaves nothing");
    fs::create_dir(&said).unwrap();
    fail(&mut asked(&said.join("base.jsonl"), &maps), &["base.jsonl is read, so it is not written"]);
    fs::write(said.join("base.jsonl"), "mine").unwrap();
    fail(&mut asked(&out, &maps), &["base.jsonl exists and is no file of completions"]);
    fs::remove_file(said.join("base.jsonl")).unwrap();
    // A newer file takes the place of an older one.
    for _ in 0..2 {
        succeed(&mut asked(&out, &maps));
    }
    assert_eq!(fs::read_dir(&said).unwrap().count(), 2, "of the base and of the system");
    fs::create_dir(place.path("more")).unwrap();
    let base = place.predictor("more/base", identity, serde_json::json!({}));
    let renamed = Place { base: place.path("network"), ..place };
    fs::rename(renamed.path("base"), &renamed.base).unwrap();
    let mut c = renamed.sized(&[&maps, &base], &out, ["2", "48", "0"]);
    c.arg("--tasks").arg(&code).args(["--answer-tokens", "2"]).arg("--completions").arg(&said);
    fail(&mut c, &["a system is called base"]);
}

/// A text that comes through a pipe is known by its bytes, as a file is.
#[cfg(unix)]
#[test]
fn text_from_a_pipe_is_that_of_its_file() {
    use sha2::Digest;
    let place = Place::new();
    let text = fs::read(here().join("docs/guide.md")).unwrap();
    let digest = sha2::Sha256::digest(&text).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let fitted = serde_json::json!({"fit": {"texts": [{"name": "guide.md", "sha256": digest}]}});
    let fitted = place.predictor("fitted", identity, fitted);
    let (from, mut to) = std::io::pipe().unwrap();
    let feeder = std::thread::spawn(move || std::io::Write::write_all(&mut to, &text));
    let mut c = ttft();
    c.arg("fidelity").arg("--base").arg(&place.base).arg("--aux").arg(&place.base).arg("--predictor").arg(&fitted);
    c.args(["--text", "/dev/stdin", "--text2"]).arg(here().join("kernels/src/engine.rs"));
    c.args(["--windows", "2", "--prompt-tokens", "48", "--lookups", "0", "--threads", "1"]);
    fail(c.arg("--out").arg(place.path("x.json")).stdin(from), &["was fitted on this very text"]);
    feeder.join().unwrap().unwrap();
}

#[test]
fn a_predictor_that_gives_no_numbers_is_named() {
    let place = Place::new();
    let nan = place.predictor("broken", |i, j| if i + j == 3 { f32::NAN } else { 0.0 }, serde_json::json!({}));
    let exact = place.predictor("exact", identity, serde_json::json!({}));
    let out = place.path("fidelity.json");
    fail(&mut place.command(&[&exact, &nan], &out), &["broken: what it gives behind window 1 is no numbers"]);
    assert!(!out.exists());
}

/// `--chat` puts the template around the prompts of tasks, as in `ttft generate`.
#[test]
fn tasks_may_be_what_a_user_says() {
    let place = Place::new();
    let exact = place.predictor("exact", identity, serde_json::json!({}));
    let out = place.path("fidelity.json");
    let tasks = here().join("bench/tests/tasks.jsonl");
    let tokens = |chat: bool| {
        let mut c = place.command(&[&exact], &out);
        c.arg("--tasks").arg(&tasks).args(["--answer-tokens", "2"]);
        if chat {
            c.arg("--chat");
        }
        succeed(&mut c);
        Fidelity::read(&out).unwrap().tasks[0].prompt_tokens
    };
    let (plain, chat) = (tokens(false), tokens(true));
    // <|user|>user: ...<|end|><|user|>
    assert!(chat > plain + 3.0, "{plain} {chat}");
    let file = Fidelity::read(&out).unwrap();
    assert_eq!((file.tasks[0].kind, file.tasks[0].items, file.tasks[0].chance), (TaskKind::Questions, 3, 0.0));
}

/// Tokens that are compared behind a prompt, the first included.
const CONTINUATION: usize = 5;

/// Logits of a reader by itself, behind a prompt and behind each token that follows.
fn alone(s: &Session<'_>, row: &Row, prompt: &[u32], given: &[u32]) -> Vec<Vec<f32>> {
    let n = prompt.len();
    let truth = {
        let base = Row { reader: Reader::System(System::Network(Arc::clone(&s.base))), ..row.clone() };
        let mut run = base.plan(&s.base, s.precision, (n, n), &[], (1, 0), &[]).unwrap();
        run.first_token(s.engine, prompt).unwrap();
        run.cache_dump()
    };
    let ids = row.ids(&s.base, s.precision, prompt);
    let mut run = row.plan(&s.base, s.precision, (n, ids.len()), &truth, (1, given.len()), &[]).unwrap();
    run.first_token(s.engine, &ids).unwrap();
    let mut logits = vec![run.logits().row(0).to_vec()];
    if !given.is_empty() {
        let scored = run.score(s.engine, given).unwrap();
        logits.extend((0..scored.rows()).map(|r| scored.row(r).to_vec()));
    }
    logits
}

/// What a reader writes greedily by itself.
fn writes(s: &Session<'_>, row: &Row, prompt: &[u32]) -> Vec<u32> {
    let n = prompt.len();
    let base = Row { reader: Reader::System(System::Network(Arc::clone(&s.base))), ..row.clone() };
    let mut run = base.plan(&s.base, s.precision, (n, n), &[], (1, 0), &[]).unwrap();
    run.first_token(s.engine, prompt).unwrap();
    let truth = run.cache_dump();
    let ids = row.ids(&s.base, s.precision, prompt);
    let mut run = row.plan(&s.base, s.precision, (n, ids.len()), &truth, (CONTINUATION, 0), &[]).unwrap();
    run.first_token(s.engine, &ids).unwrap();
    let mut written = vec![run.token_ids()[0]];
    while written.len() < CONTINUATION {
        run.next_token(s.engine).unwrap();
        written.push(run.token_ids()[0]);
    }
    written
}

/// What readers share changes no bit of what they answer: of systems from the same layers and from others, of any input and any
/// tokens of the base, and of an auxiliary.
#[test]
fn what_readers_share_changes_nothing() {
    let place = Place::new();
    // Networks of its kind, but deeper.
    let network = |name: &str, layers: usize| {
        let mut config = Network::load(&place.base).unwrap().config().clone();
        config.layers = vec![config.layers[0]; layers];
        let to = place.path(name);
        synth::Spec::custom(name, config, DType::F32, layers as u64).make(&to, &|_, _| ()).unwrap();
        Arc::new(Network::load(&to).unwrap())
    };
    let layers = 4;
    let (base, aux) = (network("deep", layers), network("less-deep", 2));
    let predictor = |name: &str, aux: Option<&Arc<Network>>, layout: Layout| {
        let (to, config) = (place.path(name), base.config().clone());
        let of = aux.map(|aux| aux.config().clone());
        synth::Spec::custom_predictor("p", config, of, layout, DType::F32, 3).make(&to, &|_, _| ()).unwrap();
        KvPrediction::new(Arc::clone(&base), aux.cloned(), &to).unwrap()
    };
    let kv = |i: usize| (i >= 2).then_some(Origin { layer: 1, input: Input::KeysAndValues });
    let pairs = [
        predictor("hidden2", None, Layout::shared(layers, 2, Input::Hidden)),
        predictor("kv2", None, Layout { shared: Some(2), layers: (0..layers).map(kv).collect() }),
        predictor("hidden1", None, Layout::shared(layers, 1, Input::Hidden)),
        predictor("aux", Some(&aux), Layout::auxiliary(&[0, 0, 1, 1])),
    ];
    let mut judged = Vec::new();
    for (i, pair) in pairs.iter().enumerate() {
        for (last, first) in [(1, 0), (1, 1), (6, 1)] {
            let pair = pair.clone().reading(OwnTokens { last, first, kept: false });
            let (name, system) = (format!("{i}-{last}-{first}"), System::KvPrediction(pair));
            judged.push(Judged { name, kind: Kind::Kvp, system, prediction: None, aux: None, predictor: None });
        }
    }
    let engine = Engine::new(&Options { threads: Some(1), ..Options::default() }).unwrap();
    let tokenizer = Text::load(&place.base).unwrap();
    let ids = |n: usize, seed: usize| (0..n).map(|i| ((i * i * 7 + i * 3 + seed) % 60) as u32).collect::<Vec<u32>>();
    let prompt = 24;
    let window = |seed| ids(prompt + CONTINUATION, seed);
    let item = |n: usize, seed: usize| Item { prompt: ids(n, seed), answer: Answer::Tokens(Vec::new()) };
    let mut items = vec![item(20, 5), item(31, 6), item(20, 7), item(5, 8)];
    let mut s = Session {
        engine: &engine,
        base: Arc::clone(&base),
        precision: Precision::F32,
        prompt,
        continuation: CONTINUATION,
        judged,
        texts: vec![CutText { name: "text".into(), windows: vec![window(1), window(2), window(3)], spare: Vec::new() }],
        tasks: Vec::new(),
        tokenizer: &tokenizer,
        ends: Vec::new(),
        answer: [4, 4],
    };
    // The answers of the first item that the base would write, so that some are right.
    let rows = s.rows(&vec![0.5; s.judged.len()]).unwrap();
    for item in &mut items {
        let mut wanted = Vec::new();
        for _ in 0..3 {
            let given: Vec<u32> = [&item.prompt[..], &wanted].concat();
            wanted.push(likeliest(&alone(&s, &rows[0], &given, &[])[0]));
        }
        item.answer = Answer::Tokens(wanted);
    }
    s.tasks = vec![Asked { name: "task".into(), kind: TaskKind::Copy, items }];
    let pace = s.pace(&rows).unwrap();
    let answered = s.measure(&rows, &pace).unwrap();
    for (row, answered) in rows.iter().zip(&answered) {
        let (mut first, mut rest) = (Vec::new(), Vec::new());
        for window in &s.texts[0].windows {
            let (prompt, later) = window.split_at(prompt);
            let given = &later[..CONTINUATION - 1];
            let of = |row: &Row| alone(&s, row, prompt, given);
            let base = Distributions::of(of(&rows[0]).iter().map(Vec::as_slice));
            let apart: Vec<Apart> =
                of(row).iter().zip(later).enumerate().map(|(at, (row, next))| base.apart(at, row, *next)).collect();
            first.push(apart[0].kl);
            rest.push(apart[1..].iter().map(|a| a.kl / (CONTINUATION - 1) as f64).sum::<f64>());
        }
        let of_text = &answered.texts[0];
        assert_eq!(of_text.first.kl, Measure::of(first), "{}", row.name);
        assert_eq!(of_text.continuation.kl, Measure::of(rest), "{}", row.name);
        let agrees = s.texts[0].windows.iter().map(|window| {
            let [base, own] = [&rows[0], row].map(|row| writes(&s, row, &window[..prompt]));
            base.iter().zip(&own).take_while(|(a, b)| a == b).count() as f64 / CONTINUATION as f64
        });
        assert_eq!(of_text.greedy, Some(Measure::of(agrees)), "{}", row.name);
        let exact = s.tasks[0].items.iter().map(|item| {
            let Answer::Tokens(wanted) = &item.answer else { unreachable!("all of them are tokens") };
            let logits = alone(&s, row, &item.prompt, &wanted[..2]);
            logits.iter().zip(wanted).all(|(logits, wanted)| likeliest(logits) == *wanted)
        });
        let found = answered.tasks[0].exact.as_ref().unwrap();
        assert_eq!(*found, Outcomes::of(exact), "{}", row.name);
    }
    let greedy = answered.iter().flat_map(|a| &a.texts[0].greedy.as_ref().unwrap().values);
    assert!(
        greedy.clone().any(|v| *v == 0.0) && greedy.clone().any(|v| *v > 0.0 && *v < 1.0),
        "they part at some token"
    );
    // Without sharing, each of them would read all of the prompt.
    let work = |rows: &[Row]| s.work(rows, &pace).unwrap().operations;
    let (one_by_one, shared): (u64, u64) = (rows.iter().map(|row| work(std::slice::from_ref(row))).sum(), work(&rows));
    assert!(shared < one_by_one * 4 / 5, "{shared} of {one_by_one}");
}
