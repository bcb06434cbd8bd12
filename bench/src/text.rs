//! Text to token ids and back, by the files of a model folder: `tokenizer.json`, and the chat template of
//! `chat_template.jinja` or `tokenizer_config.json`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use minijinja::{
    Environment, Error as TemplateError, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig, value::Kwargs,
};
use serde::Serialize;
use serde_json::Value as Json;
use tokenizers::Tokenizer;
use ttft_models::json;
use ttft_reports::text::{stand_in, without_mark};

use crate::console;

/// Longest text file that is read: prompts, templates, tokenizers.
pub const MAX_BYTES: u64 = 64 << 20;

/// Instructions that a template may take: some hundred times what those of the Hub take for one message.
const FUEL: u64 = 10_000_000;

/// Bytes of the longest chat template, some ten times the longest of the Hub, and the stack that one of them may need.
const TEMPLATE: usize = 256 << 10;
const STACK: usize = 512 << 20;

/// Ids before a stream of new ones that its text is decoded with: whether a space is spelled depends on what stands before.
const CONTEXT: usize = 16;

/// The tokenizer of a model folder.
pub struct Text {
    path: PathBuf,
    tokenizer: Tokenizer,
}

impl Text {
    /// The file that [`Text::load`] reads.
    ///
    /// # Errors
    /// It is not there: text is no matter of this folder.
    pub fn file(dir: &Path) -> Result<PathBuf> {
        ensure!(dir.is_dir(), "{}: there is no such folder", dir.display());
        let path = dir.join("tokenizer.json");
        if !path.exists() {
            let other = ["tokenizer.model", "vocab.json"].into_iter().find(|name| dir.join(name).exists());
            let other = other.map(|name| format!(" ({name} is there, and is not read)")).unwrap_or_default();
            bail!(
                "{}: missing{other}: text needs the tokenizer.json of the model's repository, or of a GGUF file by `ttft \
                 convert`; token ids can be given to `ttft logits` without it",
                path.display()
            );
        }
        Ok(path)
    }

    /// Reads `tokenizer.json` of a folder.
    ///
    /// # Errors
    /// It is missing, or is no tokenizer; what to do about it.
    pub fn load(dir: &Path) -> Result<Text> {
        let path = Text::file(dir)?;
        let content = read_text(&path)?;
        let mut tokenizer: Tokenizer = guarded(&path, || content.parse())?
            .map_err(|e| anyhow!("{}: not the tokenizer expected: {e}", path.display()))?;
        // Lengths that somebody had in mind when the file was saved.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| anyhow!("{}: {e}", path.display()))?;
        Ok(Text { path, tokenizer })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ids of a text. What begins and ends every text is added, unless the text has it already, as one has that a chat
    /// template made.
    ///
    /// # Errors
    /// The tokenizer refuses it.
    pub fn ids(&self, text: &str, complete: bool) -> Result<Vec<u32>> {
        let encoded = guarded(&self.path, || self.tokenizer.encode_fast(text, !complete))?;
        let encoded = encoded.map_err(|e| anyhow!("{}: cannot tokenize the text: {e}", self.path.display()))?;
        Ok(encoded.get_ids().to_vec())
    }

    /// The text of ids, without what only steers the model.
    ///
    /// # Errors
    /// The tokenizer refuses them.
    pub fn text(&self, ids: &[u32]) -> Result<String> {
        let decoded = guarded(&self.path, || self.tokenizer.decode(ids, true))?;
        decoded.map_err(|e| anyhow!("{}: cannot decode: {e}", self.path.display()))
    }

    /// What makes text of ids that come one by one after those of a prompt. A character that is spread over several ids
    /// comes with the last of them.
    ///
    /// # Errors
    /// The tokenizer refuses the prompt's ids.
    pub fn stream(&self, prompt: &[u32]) -> Result<impl FnMut(u32) -> Result<Option<String>> + use<'_>> {
        let mut stream = self.tokenizer.decode_stream(true);
        let mut step = move |id| {
            guarded(&self.path, || stream.step(id))?
                .map_err(|e| anyhow!("{}: cannot decode token {id}: {e}", self.path.display()))
        };
        for id in &prompt[prompt.len().saturating_sub(CONTEXT)..] {
            step(*id)?;
        }
        Ok(step)
    }

    /// Renders what a user says, as the folder's chat template has it, up to where the answer begins.
    ///
    /// # Errors
    /// There is no template, or it fails.
    pub fn chat(dir: &Path, prompt: &str) -> Result<String> {
        let config = dir.join("tokenizer_config.json");
        let settings: Json = if config.exists() { json::load(&config)? } else { Json::Null };
        let file = dir.join("chat_template.jinja");
        let (path, template) = if file.exists() {
            let template = read_text(&file)?;
            (file, template)
        } else {
            let template = template(&settings).with_context(|| {
                format!(
                    "{}: no chat_template, and no chat_template.jinja beside it: the model knows no chats; leave --chat out",
                    config.display()
                )
            })?;
            (config, template.to_owned())
        };
        let messages = [Message { role: "user", content: prompt }];
        ensure!(
            template.len() <= TEMPLATE,
            "{}: a chat template of {} bytes, where at most {TEMPLATE} are read",
            path.display(),
            template.len()
        );
        // An expression may be nested as deeply as the template is long.
        let rendered = std::thread::scope(|s| {
            let deep = std::thread::Builder::new().stack_size(STACK);
            Ok::<_, std::io::Error>(deep.spawn_scoped(s, || render(&template, &messages, &settings))?.join())
        });
        rendered
            .context("no thread for the chat template")?
            .map_err(|_| anyhow!("{}: the chat template cannot be rendered", path.display()))?
            .map_err(|e| anyhow!("{}: the chat template fails: {e}", path.display()))
    }
}

/// What the tokenizer's library does with a file, which it may panic about.
fn guarded<T>(path: &Path, work: impl FnOnce() -> T) -> Result<T> {
    console::caught(work).with_context(|| {
        format!(
            "{}: the tokenizer's library fails on this file: take the one of the model's repository",
            path.display()
        )
    })
}

/// The template in `tokenizer_config.json`, or of several the one called default.
fn template(settings: &Json) -> Option<&str> {
    match &settings["chat_template"] {
        Json::String(template) => Some(template),
        Json::Array(all) => all.iter().find(|t| t["name"] == "default")?["template"].as_str(),
        _ => None,
    }
}

struct Message<'a> {
    role: &'a str,
    content: &'a str,
}

/// Renders a template in the environment that transformers makes for it.
fn render(template: &str, messages: &[Message<'_>], settings: &Json) -> Result<String, TemplateError> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_fuel(Some(FUEL));
    env.add_function("raise_exception", |message: String| -> Result<Value, TemplateError> {
        Err(TemplateError::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: String| -> Result<String, TemplateError> {
        jiff::fmt::strtime::format(format, &jiff::Zoned::now())
            .map_err(|e| TemplateError::new(ErrorKind::InvalidOperation, e.to_string()))
    });
    env.add_filter("tojson", to_json);
    let special = |name: &str| {
        let token = &settings[format!("{name}_token")];
        token.as_str().or(token["content"].as_str()).map(str::to_owned)
    };
    let message = |m: &Message<'_>| Value::from_pairs([("role", m.role), ("content", m.content)]);
    let mut given = std::collections::BTreeMap::from([
        ("messages", Value::from(messages.iter().map(message).collect::<Vec<_>>())),
        ("add_generation_prompt", Value::from(true)),
        ("tools", Value::from(())),
        ("documents", Value::from(())),
    ]);
    for (key, name) in [
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("unk_token", "unk"),
        ("pad_token", "pad"),
        ("sep_token", "sep"),
        ("cls_token", "cls"),
        ("mask_token", "mask"),
    ] {
        given.extend(special(name).map(|token| (key, Value::from(token))));
    }
    env.render_str(template, given)
}

/// As Python writes JSON: spaces after commas and colons, nothing escaped for HTML.
fn to_json(value: Value, options: Kwargs) -> Result<Value, TemplateError> {
    let failed = |e: serde_json::Error| TemplateError::new(ErrorKind::BadSerialization, e.to_string());
    let indent = options.get::<Option<usize>>("indent")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter)).map_err(failed)?;
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Spaced)).map_err(failed)?,
    }
    Ok(Value::from_safe_string(String::from_utf8(out).expect("JSON is UTF-8")))
}

/// Compact JSON with spaces, as Python's.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { w.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

/// The ids that end an answer: of `generation_config.json`, else of `config.json`, where each may give one or a list.
///
/// # Errors
/// A file that cannot be read, or holds something else in `eos_token_id`.
pub fn ends(dir: &Path) -> Result<Vec<u32>> {
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        if !path.exists() {
            continue;
        }
        let config: Json = json::load(&path)?;
        let ids = match &config["eos_token_id"] {
            Json::Null => continue,
            Json::Array(ids) => ids.clone(),
            id => vec![id.clone()],
        };
        let id = |id: &Json| {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            id.with_context(|| {
                format!(
                    "{}: eos_token_id: expected a token id or a list of them, found {}",
                    path.display(),
                    config["eos_token_id"]
                )
            })
        };
        return ids.iter().map(id).collect();
    }
    Ok(Vec::new())
}

/// The content of a text file, without a byte order mark.
///
/// # Errors
/// It cannot be read, is too long, or is no UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    Ok(read_bytes(path)?.1)
}

/// As [`read_text`], with the bytes that it was read from, which a pipe gives once.
///
/// # Errors
/// As [`read_text`].
pub fn read_bytes(path: &Path) -> Result<(Vec<u8>, String)> {
    let file = std::fs::File::open(path).with_context(|| format!("{}: cannot read it", path.display()))?;
    bytes_of(file).with_context(|| path.display().to_string())
}

/// As [`read_text`], of whatever can be read.
///
/// # Errors
/// As [`read_text`].
pub fn read_all(from: impl std::io::Read) -> Result<String> {
    Ok(bytes_of(from)?.1)
}

fn bytes_of(from: impl std::io::Read) -> Result<(Vec<u8>, String)> {
    use std::io::Read;
    let mut bytes = Vec::new();
    from.take(MAX_BYTES + 1).read_to_end(&mut bytes).context("cannot read it")?;
    ensure!(bytes.len() as u64 <= MAX_BYTES, "longer than {MAX_BYTES} bytes");
    if let Some(what) = stand_in(&bytes) {
        bail!(what);
    }
    let text = std::str::from_utf8(without_mark(&bytes));
    let text = text.map_err(|e| anyhow!("not UTF-8 text: byte {} is wrong", e.valid_up_to()))?.to_owned();
    Ok((bytes, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: [Message<'static>; 1] = [Message { role: "user", content: "Hi <b> & 'q'" }];

    fn rendered(template: &str) -> String {
        let settings = serde_json::json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}});
        render(template, &HELLO, &settings).unwrap()
    }

    /// Each pair is what transformers 5.24 makes of the template.
    #[test]
    fn templates_are_rendered_as_transformers_does() {
        for (template, expected) in [
            ("{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "<s>Hi <b> & 'q'</s>"),
            // A block's own line leaves nothing behind, nor does the template's last line end.
            ("{% for m in messages %}\n    {% if true %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}\n", "user\n"),
            ("{{ messages[0].content.strip().upper().split(' ')[0] }}", "HI"),
            ("{{ messages[0] | tojson }}", "{\"role\": \"user\", \"content\": \"Hi <b> & 'q'\"}"),
            (
                "{{ messages | tojson(indent=2) }}",
                "[\n  {\n    \"role\": \"user\",\n    \"content\": \"Hi <b> & 'q'\"\n  }\n]",
            ),
            ("{{ [1, 2.5, none, true, 'é'] | tojson }}", "[1, 2.5, null, true, \"é\"]"),
            ("{%- for m in messages -%}\n  {{- '<' + m['role'] + '>' }}\n{%- endfor %}\n\nend\n\n", "<user>\nend\n"),
            ("{{ messages[-1]['content'] if messages[-1]['role'] == 'user' else '' }}", "Hi <b> & 'q'"),
            ("{% if tools is none and documents is none %}none{% endif %}{{ undefined_thing }}", "none"),
            (
                "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}\
              {% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
                "3",
            ),
            ("{{ messages[0]['content'][:2] ~ messages|length }}{% if add_generation_prompt %}>{% endif %}", "Hi1>"),
        ] {
            assert_eq!(rendered(template), expected, "{template}");
        }
        let year = rendered("{{ strftime_now('%Y') }}");
        assert!(year.parse::<u32>().is_ok_and(|y| y > 2000), "{year}");
    }

    #[test]
    fn templates_that_fail_say_why() {
        for (template, word) in [
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{% if %}", "syntax"),
            ("{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}", "fuel"),
        ] {
            let error = format!("{:#}", render(template, &HELLO, &Json::Null).unwrap_err());
            assert!(error.contains(word), "{template}: {error}");
        }
    }

    #[test]
    fn the_default_of_several_templates_is_taken() {
        let of = |json: Json| template(&serde_json::json!({ "chat_template": json })).map(str::to_owned);
        assert_eq!(of("x".into()).as_deref(), Some("x"));
        let several = serde_json::json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
        assert_eq!(of(several).as_deref(), Some("d"));
        assert_eq!(of(Json::Null), None);
    }

    #[test]
    fn ends_are_one_or_several_ids() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(ends(dir.path()).unwrap(), [0; 0]);
        write("config.json", r#"{"eos_token_id": 2}"#);
        assert_eq!(ends(dir.path()).unwrap(), [2]);
        write("generation_config.json", r#"{"eos_token_id": [7, 8], "x": NaN}"#);
        assert_eq!(ends(dir.path()).unwrap(), [7, 8]);
        write("generation_config.json", "{}");
        assert_eq!(ends(dir.path()).unwrap(), [2]);
        write("config.json", r#"{"eos_token_id": "</s>"}"#);
        let error = ends(dir.path()).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("</s>"), "{error}");
    }

    #[test]
    fn what_the_library_panics_about_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tokenizer.json");
        let tokenizer = |more: &str| {
            format!("{{\"model\": {{\"type\": \"WordLevel\", \"vocab\": {{\"a\": 0}}, \"unk_token\": \"a\"}}{more}}}")
        };
        std::fs::write(&file, tokenizer("")).unwrap();
        assert_eq!(Text::load(dir.path()).unwrap().ids("a", false).unwrap(), [0]);
        // A text is one sequence, and this asks for a second.
        let second = r#", "post_processor": {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}], "special_tokens": {}}"#;
        std::fs::write(&file, tokenizer(second)).unwrap();
        let error = Text::load(dir.path()).and_then(|text| text.ids("a", false)).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: the tokenizer's library fails"), "{error}");
    }

    #[test]
    fn long_expressions_of_a_template_overflow_no_stack() {
        let dir = tempfile::tempdir().unwrap();
        let template = |text: &str| std::fs::write(dir.path().join("chat_template.jinja"), text).unwrap();
        template(&format!("{{{{ 1{} }}}}", "+1".repeat(60_000)));
        assert_eq!(Text::chat(dir.path(), "x").unwrap(), "60001");
        template(&" ".repeat(TEMPLATE + 1));
        assert!(Text::chat(dir.path(), "x").unwrap_err().to_string().contains("at most 262144 are read"));
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for (bytes, word) in [
            (&b"\xff\xfea\0"[..], "UTF-16"),
            (b"ab\xff", "byte 2"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ] {
            let error = format!("{:#}", read_all(bytes).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(read_all(&b"\xef\xbb\xbfa\n"[..]).unwrap(), "a\n");
        assert!(read_all(std::io::repeat(b'a')).unwrap_err().to_string().contains("longer than"));
    }
}
