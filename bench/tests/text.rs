//! Text through the command and its library: token ids as Hugging Face's, and answers of small networks.

mod program;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use program::{fail, fixture, succeed, ttft};
use serde_json::Value;
use tempfile::TempDir;
use ttft_bench::text::Text;

const MODELS: [&str; 4] = ["llama3", "smollm", "qwen2", "qwen3"];

fn gguf(name: &str) -> PathBuf {
    fixture("gguf").join(format!("{name}.gguf"))
}

/// A model folder that `ttft convert` made.
fn converted(name: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join(name);
    let (said, _) = succeed(ttft().arg("convert").arg(gguf(name)).arg(&to));
    assert!(said.starts_with("wrote "), "{said}");
    (dir, to)
}

fn generate(base: &Path) -> Command {
    let mut c = ttft();
    c.arg("generate").arg("--base").arg(base);
    c
}

/// Ids, and texts of ids, against a fixture's pairs.
fn compare(text: &Text, pairs: &Value, name: &str) {
    let pairs = pairs.as_array().unwrap();
    assert!(pairs.len() > 10, "{name}");
    for pair in pairs {
        let (prompt, ids): (&str, Vec<u32>) = (
            pair[0].as_str().unwrap(),
            pair[1].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        );
        assert_eq!(text.ids(prompt, false).unwrap(), ids, "{name}: {prompt:?}");
        // What comes in parts is what comes at once.
        let mut stream = text.stream(&[]).unwrap();
        let parts: String = ids.iter().filter_map(|id| stream(*id).unwrap()).collect();
        assert_eq!(parts, text.text(&ids).unwrap(), "{name}: {prompt:?}");
    }
}

#[test]
fn converted_tokenizers_give_hugging_faces_ids() {
    let all: Value = serde_json::from_slice(&fs::read(fixture("gguf").join("ids.json")).unwrap()).unwrap();
    for name in MODELS {
        let (_dir, folder) = converted(name);
        compare(&Text::load(&folder).unwrap(), &all[name], name);
    }
}

/// Run by tests/smollm2.sh, which makes the folder.
#[test]
#[ignore = "needs the model that tests/smollm2.sh fetches"]
fn smollm2_is_tokenized_as_by_hugging_face() {
    let folder = PathBuf::from(std::env::var_os("TTFT_SMOLLM2").expect("TTFT_SMOLLM2 is the converted folder"));
    let all = fs::read(fixture("gguf").join("smollm2_ids.json")).unwrap();
    compare(&Text::load(&folder).unwrap(), &serde_json::from_slice(&all).unwrap(), "SmolLM2");
}

/// What a template makes has its beginning already.
#[test]
fn complete_texts_get_no_beginning() {
    let (_dir, folder) = converted("llama3");
    let text = Text::load(&folder).unwrap();
    let ids = text.ids("<|begin|>hello", true).unwrap();
    assert_eq!(ids, [285, 268]);
    assert_eq!(text.ids("hello", false).unwrap(), ids);
}

#[test]
fn answers_stream_and_times_are_told_apart() {
    let (dir, folder) = converted("smollm");
    let (whole, said) = succeed(generate(&folder).args(["--tokens", "6", "hello 123"]));
    for word in [
        "TTFT ",
        "for a prompt of 5 tokens",
        "not in it: tokenization",
        "opening the weights",
        "time per token:",
        "generated 6 tokens",
    ] {
        assert!(said.contains(word), "no '{word}' in: {said}");
    }
    // The same from a file, whose line end is none of its text, and from standard input.
    let file = dir.path().join("prompt.txt");
    fs::write(&file, "\u{feff}hello 123\r\n").unwrap();
    let (from_file, _) = succeed(generate(&folder).args(["--tokens", "6", "--prompt-file"]).arg(&file));
    assert_eq!(from_file, whole);
    for dash in [&["--prompt-file", "-"][..], &["-"]] {
        let mut c = generate(&folder);
        let mut child = c
            .args(["--tokens", "6"])
            .args(dash)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"hello 123\n").unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!((out.status.success(), String::from_utf8(out.stdout).unwrap()), (true, whole.clone()));
    }
    // A beginning of it.
    let (one, said) = succeed(generate(&folder).args(["--tokens", "1", "hello 123"]));
    assert!(whole.starts_with(one.trim_end_matches('\n')), "{whole:?} {one:?}");
    assert!(said.contains("generated 1 token ") && !said.contains("time per token"), "{said}");
    // As BF16 and with other threads it is at least an answer.
    succeed(generate(&folder).args(["--dtype", "bf16", "--threads", "1", "hello"]));
}

/// A text is the same as its ids, which are printed as a tokens file and stand beside the logits.
#[test]
fn logits_take_texts() {
    let (dir, folder) = converted("smollm");
    let [by_text, by_ids, file, tokens] =
        ["text.safetensors", "ids.safetensors", "prompt.txt", "tokens.json"].map(|name| dir.path().join(name));
    let logits = |out: &Path| {
        let mut c = ttft();
        c.arg("logits").arg("--base").arg(&folder).arg("--out").arg(out).args(["--generate", "3"]);
        c
    };
    let ids = Text::load(&folder).unwrap().ids("hello 123", false).unwrap();
    let (printed, _) = succeed(logits(&by_text).arg("hello 123"));
    assert_eq!(serde_json::from_str::<Vec<Vec<u32>>>(&printed).unwrap(), std::slice::from_ref(&ids));
    fs::write(&tokens, &printed).unwrap();
    let (printed_of_ids, _) = succeed(logits(&by_ids).arg("--tokens").arg(&tokens));
    assert_eq!(printed_of_ids, "");
    let bytes = [&by_text, &by_ids].map(|file| fs::read(file).unwrap());
    let [of_text, of_ids] = [0, 1].map(|i| safetensors::SafeTensors::deserialize(&bytes[i]).unwrap());
    for name in ["greedy_ids", "greedy_logits", "logits_last"] {
        assert_eq!(of_text.tensor(name).unwrap().data(), of_ids.tensor(name).unwrap().data(), "{name}");
    }
    let found = of_text.tensor("input_ids").unwrap();
    let there: Vec<u32> = found.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    assert_eq!((found.shape(), there), (&[1, ids.len()][..], ids));
    assert!(of_ids.tensor("input_ids").is_err());
    // From a file, and as a chat.
    fs::write(&file, "hello 123\n").unwrap();
    let (again, _) = succeed(logits(&by_ids).arg("--prompt-file").arg(&file));
    assert_eq!(again, printed);
    let (chat, _) = succeed(logits(&by_ids).args(["--chat", "hello"]));
    let (by_hand, _) = succeed(logits(&by_ids).arg("<|user|>user: hello<|end|><|user|>"));
    assert_eq!(chat, by_hand);

    fail(&mut logits(&by_text), &["--tokens", "--prompt-file"]);
    fail(logits(&by_text).arg("hello").arg("--tokens").arg(&tokens), &["cannot be used with"]);
    fail(logits(&by_text).arg("--chat").arg("--tokens").arg(&tokens), &["--chat", "in place of --tokens"]);
    fail(logits(&by_text).arg(""), &["the prompt is empty"]);
    fail(logits(&file).arg("--prompt-file").arg(&file), &["prompt.txt is read, so it is not written"]);
    fail(generate(&fixture("A").join("base")).arg("x"), &["tokenizer.json: missing"]);
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    fail(generate(&folder).arg("x"), &["has no weights", "give folders with weights"]);
}

/// A network whose first token is one that ends an answer says nothing more.
#[test]
fn answers_end_where_the_network_ends_them() {
    let (_dir, folder) = converted("smollm");
    let out = folder.join("../ids.safetensors");
    let tokens = folder.join("../tokens.json");
    let ids = Text::load(&folder).unwrap().ids("hello", false).unwrap();
    fs::write(&tokens, serde_json::to_string(&[ids]).unwrap()).unwrap();
    succeed(ttft().arg("logits").arg("--base").arg(&folder).arg("--tokens").arg(&tokens).arg("--out").arg(&out));
    let bytes = fs::read(&out).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let first = i64::from_le_bytes(*tensors.tensor("greedy_ids").unwrap().data().first_chunk().unwrap());
    for eos in [first.to_string(), format!("[288, {first}]")] {
        fs::write(folder.join("generation_config.json"), format!("{{\"eos_token_id\": {eos}}}")).unwrap();
        let (said, remarks) = succeed(generate(&folder).arg("hello"));
        assert_eq!(said, "\n");
        assert!(remarks.contains("the network ended"), "{remarks}");
    }
}

#[test]
fn chats_are_rendered_by_the_template() {
    let (_dir, folder) = converted("smollm");
    // The template of the fixture: "<|user|>user: hello<|end|><|user|>".
    let (chat, said) = succeed(generate(&folder).args(["--chat", "--tokens", "3", "hello"]));
    let by_hand = "<|user|>user: hello<|end|><|user|>";
    let (same, _) = succeed(generate(&folder).args(["--tokens", "3", by_hand]));
    assert_eq!(chat, same);
    let count = Text::load(&folder).unwrap().ids(by_hand, true).unwrap().len();
    assert!(said.contains(&format!("for a prompt of {count} tokens")), "{said}");
    // A file of its own comes first.
    fs::write(folder.join("chat_template.jinja"), "{{ raise_exception('no ' ~ messages[0].content) }}").unwrap();
    fail(generate(&folder).args(["--chat", "hello"]), &["chat_template.jinja", "no hello"]);
    fs::write(folder.join("chat_template.jinja"), "").unwrap();
    fail(generate(&folder).args(["--chat", "hello"]), &["the prompt is empty"]);
    let (_dir, folder) = converted("qwen2");
    fail(
        generate(&folder).args(["--chat", "hello"]),
        &["tokenizer_config.json", "no chat_template", "leave --chat out"],
    );
}

#[test]
fn kv_predictions_continue_texts_too() {
    let dir = tempfile::tempdir().unwrap();
    let pair = fixture("A");
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    for entry in fs::read_dir(pair.join("base")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    let mut c = generate(&base);
    c.args(["--tokens", "4", "hello 123"]).arg("--aux").arg(pair.join("aux"));
    c.arg("--predictor").arg(pair.join("predictor"));
    fail(&mut c, &["tokenizer.json: missing", "ttft convert", "ttft logits"]);
    let (_dir, folder) = converted("smollm");
    fs::copy(folder.join("tokenizer.json"), base.join("tokenizer.json")).unwrap();
    let (_, said) = succeed(&mut c);
    assert!(said.contains("for a prompt of 5 tokens") && said.contains("generated 4 tokens"), "{said}");
}

#[test]
fn prompts_and_folders_that_do_not_fit_are_refused() {
    let (dir, folder) = converted("smollm");
    let file = dir.path().join("prompt.txt");
    fail(&mut generate(&folder), &["--prompt-file"]);
    fail(generate(&folder).arg("x").arg("--prompt-file").arg(&file), &["cannot be used with"]);
    fail(generate(&folder).arg("--prompt-file").arg(&file), &["prompt.txt", "cannot read it"]);
    for (content, word) in [(&b"\xff\xfex\0"[..], "UTF-16"), (b"a\xff", "byte 1"), (b"\n", "the prompt is empty")] {
        fs::write(&file, content).unwrap();
        fail(generate(&folder).arg("--prompt-file").arg(&file), &[word]);
    }
    fail(generate(&folder).args(["--tokens", "0", "x"]), &["--tokens"]);
    let (_, said) = succeed(generate(&folder).args(["--tokens", "200", "x"]));
    assert!(said.contains("more than the 128"), "{said}");

    let tokenizer = folder.join("tokenizer.json");
    let good = fs::read_to_string(&tokenizer).unwrap();
    for (content, word) in [
        ("{}", "not the tokenizer expected"),
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (&good.replace("\"type\": \"BPE\"", "\"type\": \"XYZ\""), "not the tokenizer expected"),
    ] {
        fs::write(&tokenizer, content).unwrap();
        fail(generate(&folder).arg("x"), &["tokenizer.json", word]);
    }
    fs::remove_file(&tokenizer).unwrap();
    fs::write(folder.join("tokenizer.model"), "").unwrap();
    fail(generate(&folder).arg("x"), &["tokenizer.json: missing", "tokenizer.model is there"]);
    // A tokenizer of another network.
    let more = good.replacen("\"a\": 97", "\"a\": 9700", 1);
    assert_ne!(more, good);
    fs::write(&tokenizer, more).unwrap();
    fail(generate(&folder).arg("a"), &["tokenizer.json", "token id 9700", "do not belong together"]);
}

#[test]
fn conversions_say_what_they_write_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let to = dir.path().join("to");
    let convert = |file: &Path, to: &Path| {
        let mut c = ttft();
        c.arg("convert").arg(file).arg(to);
        c
    };
    let good = fs::read(gguf("smollm")).unwrap();
    let file = dir.path().join("x.gguf");
    fs::write(&file, &good[..good.len() - 1]).unwrap();
    fail(&mut convert(&file, &to), &["x.gguf", "the file ends after", "fetch the file again"]);
    fs::write(&file, b"GGUF").unwrap();
    fail(&mut convert(&file, &to), &["x.gguf", "it ends after 4 bytes", "version"]);
    fs::write(&file, b"").unwrap();
    fail(&mut convert(&file, &to), &["x.gguf"]);
    fail(&mut convert(dir.path(), &to), &["not a regular file"]);
    fail(convert(&file, &to).args(["--dtype", "f16"]), &["expected f32 or bf16"]);
    let mut unknown = good.clone();
    let at = unknown.windows(6).position(|w| w == b"smollm").expect("the name of its rules");
    unknown[at..at + 6].copy_from_slice(b"strang");
    fs::write(&file, &unknown).unwrap();
    fail(&mut convert(&file, &to), &["tokenizer.ggml.pre is 'strang'", "--no-tokenizer"]);
    assert_eq!(names(), ["x.gguf"]);

    let (_, said) = succeed(convert(&file, &to).arg("--no-tokenizer"));
    assert!(said.contains("tensors") && said.contains("of weights in f32"), "{said}");
    let mut inside: Vec<_> =
        fs::read_dir(&to).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    inside.sort();
    assert_eq!(inside, ["config.json", "model.safetensors"]);
    assert_eq!(names(), ["to", "x.gguf"]);
    fail(&mut convert(&gguf("smollm"), &to), &["to: exists and is not empty", "another folder"]);
    // Half the bytes.
    let half = dir.path().join("half");
    succeed(convert(&file, &half).args(["--no-tokenizer", "--dtype", "bf16"]));
    let size = |dir: &Path| fs::metadata(dir.join("model.safetensors")).unwrap().len();
    assert!(size(&half) < size(&to) * 3 / 4);
}
