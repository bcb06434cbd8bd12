//! `tokenizer.json` and `tokenizer_config.json`, rebuilt from the tokens and merges in a file.
//!
//! A file names the rules by which text is split before merges apply, and does not hold them: they are written down here as
//! the tokenizer.json files of the Hub have them, and what has another name is refused. Token ids would be wrong otherwise,
//! and nothing would tell.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::container::{Container, List, Value};
use crate::Result;

/// What goes into a folder beside the weights.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// `tokenizer.json`.
    pub tokenizer: Json,
    /// `tokenizer_config.json`.
    pub config: Json,
}

/// The rules behind a name in `tokenizer.ggml.pre`.
struct Rules {
    names: &'static [&'static str],
    /// Unicode normalisation before everything else.
    normalizer: Option<&'static str>,
    /// Splits before bytes are spelled as letters; None: by GPT-2's own expression.
    split: Split,
    /// Whole words that are tokens are taken as they are.
    ignore_merges: bool,
    /// Whether texts begin with BOS where the file does not say.
    bos: bool,
}

enum Split {
    /// Digits alone, then GPT-2's expression.
    Digits,
    /// GPT-2's expression.
    Gpt2,
    /// This expression.
    Regex(&'static str),
}

/// Every name that is known.
const RULES: [Rules; 4] = [
    Rules { names: &["smollm"], normalizer: None, split: Split::Digits, ignore_merges: false, bos: false },
    Rules { names: &["gpt-2"], normalizer: None, split: Split::Gpt2, ignore_merges: false, bos: false },
    Rules {
        names: &["llama-bpe", "llama3", "llama-v3"],
        normalizer: None,
        split: Split::Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: true,
        bos: true,
    },
    Rules {
        names: &["qwen2"],
        normalizer: Some("NFC"),
        split: Split::Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        ignore_merges: false,
        bos: false,
    },
];

impl Rules {
    fn pre_tokenizer(&self) -> Json {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let sequence = |first: Json, second: Json| json!({"type": "Sequence", "pretokenizers": [first, second]});
        match self.split {
            Split::Digits => sequence(json!({"type": "Digits", "individual_digits": true}), bytes(true)),
            Split::Gpt2 => bytes(true),
            Split::Regex(regex) => sequence(
                json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
                bytes(false),
            ),
        }
    }
}

/// Kinds of tokens, as `tokenizer.ggml.token_type` numbers them.
mod kind {
    pub const NORMAL: i64 = 1;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    /// Fills up the embedding table.
    pub const UNUSED: i64 = 5;
}

/// What to do where a tokenizer cannot be rebuilt.
const ELSEWHERE: &str = "convert the weights alone with --no-tokenizer, and put the tokenizer.json of the original model into \
                         the folder";

/// The tokenizer of a network whose embedding table has `vocab` rows.
///
/// # Errors
/// [`crate::Error::Gguf`]: its kind or rules are unknown, or it is broken.
pub(super) fn rebuild(c: &Container<'_>, vocab: usize) -> Result<Files> {
    match c.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        found => {
            let found = found.map_or("missing".to_owned(), |f| format!("'{f}'"));
            return c.refuse(format!(
                "tokenizer.ggml.model is {found}, and only 'gpt2' (byte-level BPE) can be rebuilt: {ELSEWHERE}"
            ));
        }
    }
    let pre = c.text("tokenizer.ggml.pre")?;
    let Some(rules) = RULES.iter().find(|r| pre.is_some_and(|pre| r.names.contains(&pre))) else {
        let found = pre.map_or("missing".to_owned(), |f| format!("'{f}'"));
        return c.refuse(format!(
            "tokenizer.ggml.pre is {found}, and its rules for splitting text are not known here (known: {}): {ELSEWHERE}",
            RULES.iter().flat_map(|r| r.names).copied().collect::<Vec<_>>().join(", ")
        ));
    };

    let tokens = texts(c, "tokenizer.ggml.tokens")?;
    if tokens.len() > vocab {
        return c.refuse(format!(
            "tokenizer.ggml.tokens has {} tokens, and the embedding table only {vocab} rows",
            tokens.len()
        ));
    }
    let kinds = kinds(c, tokens.len())?;
    let mut ids = BTreeMap::new();
    let mut added = Vec::new();
    for (id, (&token, kind)) in tokens.iter().zip(kinds).enumerate() {
        match kind {
            kind::NORMAL => {}
            kind::CONTROL | kind::USER_DEFINED => added.push(json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": kind == kind::CONTROL,
            })),
            kind::UNUSED => continue,
            _ => {
                return c.refuse(format!(
                    "tokenizer.ggml.token_type: token {id} is of kind {kind}, which byte-level BPE does not have: {ELSEWHERE}"
                ));
            }
        }
        if let Some(first) = ids.insert(token, id) {
            return c.refuse(format!("tokenizer.ggml.tokens: {first} and {id} are the same token '{token}'"));
        }
    }
    let mut merges = Vec::new();
    for (i, merge) in texts(c, "tokenizer.ggml.merges")?.into_iter().enumerate() {
        let parts = merge.split_once(' ').filter(|(a, b)| {
            [*a, *b].iter().all(|part| ids.contains_key(part)) && ids.contains_key(format!("{a}{b}").as_str())
        });
        match parts {
            Some((a, b)) => merges.push(json!([a, b])),
            None => {
                return c.refuse(format!(
                    "tokenizer.ggml.merges: expected two tokens that make a third, found '{merge}' in place {i}"
                ));
            }
        }
    }

    let special = |name: &str| -> Result<Option<(u64, &str)>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = c.number(&key)? else { return Ok(None) };
        match usize::try_from(id).ok().and_then(|id| tokens.get(id)) {
            Some(token) => Ok(Some((id, *token))),
            None => c.refuse(format!("{key}: expected an id below {}, found {id}", tokens.len())),
        }
    };
    let (bos, eos) = (special("bos")?, special("eos")?);
    let adds = |name: &str, default: bool| -> Result<bool> {
        Ok(c.flag(&format!("tokenizer.ggml.add_{name}_token"))?.unwrap_or(default))
    };
    let (begins, ends) = (adds("bos", rules.bos)?, adds("eos", false)?);
    let post_processor = {
        let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
        let mut pair = vec![single[0].clone(), json!({"Sequence": {"id": "B", "type_id": 0}})];
        let mut specials = Map::new();
        for (wanted, name, token, first) in [(begins, "bos", bos, true), (ends, "eos", eos, false)] {
            if !wanted {
                continue;
            }
            let Some((id, token)) = token else {
                return c.refuse(format!(
                    "tokenizer.ggml.add_{name}_token asks for a token that tokenizer.ggml.{name}_token_id does not give"
                ));
            };
            let piece = json!({"SpecialToken": {"id": token, "type_id": 0}});
            for list in [&mut single, &mut pair] {
                list.insert(if first { 0 } else { list.len() }, piece.clone());
            }
            specials.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        }
        if specials.is_empty() {
            Json::Null
        } else {
            json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials})
        }
    };

    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
    for (name, token) in [("bos", bos), ("eos", eos), ("unk", special("unknown")?), ("pad", special("padding")?)] {
        if let Some((_, token)) = token {
            config[format!("{name}_token")] = token.into();
        }
    }
    if let Some(template) = c.text("tokenizer.chat_template")? {
        config["chat_template"] = template.into();
    }
    let normalizer = rules.normalizer.map_or(Json::Null, |n| json!({ "type": n }));
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": rules.pre_tokenizer(),
        "post_processor": post_processor,
        "decoder": bytes,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": rules.ignore_merges,
            "vocab": ids,
            "merges": merges,
        },
    });
    Ok(Files { tokenizer, config })
}

/// The ids that end a text, by the keys that llama.cpp has for them.
pub(super) fn ends(c: &Container<'_>) -> Result<Vec<u64>> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        let id = c.number(&format!("tokenizer.ggml.{name}_token_id"))?;
        ids.extend(id.filter(|id| !ids.contains(id)));
    }
    Ok(ids)
}

fn list<'a>(c: &Container<'a>, key: &str) -> Result<List<'a>> {
    match c.list(key)? {
        Some(list) => Ok(list),
        None => c.refuse(format!("{key} is missing: {ELSEWHERE}")),
    }
}

/// A list of texts.
fn texts<'a>(c: &Container<'a>, key: &str) -> Result<Vec<&'a str>> {
    let text = |(i, value)| match value {
        Value::Text(text) if let Ok(text) = std::str::from_utf8(text) => Ok(text),
        value => c.refuse(format!("{key}: expected UTF-8 text in place {i}, found {value}")),
    };
    list(c, key)?.iter().enumerate().map(text).collect()
}

/// The kinds of all tokens.
fn kinds(c: &Container<'_>, tokens: usize) -> Result<Vec<i64>> {
    let key = "tokenizer.ggml.token_type";
    let kinds = list(c, key)?;
    if kinds.len() != tokens {
        return c.refuse(format!("{key}: expected {tokens} values, one for each token, found {}", kinds.len()));
    }
    let kind = |(i, value)| match value {
        Value::Signed(kind) => Ok(kind),
        Value::Unsigned(kind) if let Ok(kind) = i64::try_from(kind) => Ok(kind),
        value => c.refuse(format!("{key}: expected a whole number in place {i}, found {value}")),
    };
    kinds.iter().enumerate().map(kind).collect()
}
