//! Whether two networks mean the same by a token id: a predictor carries keys and values from one to the other, token by token.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use ttft_reports::text::{printable, stand_in, without_mark};

/// Longest tokenizer.json that is read.
const MAX_BYTES: u64 = 256 << 20;

/// What the ids of a network stand for, as far as its folder tells.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// Of what, in messages.
    pub of: String,
    /// Rows of the embedding table, which may be more than there are tokens.
    pub size: usize,
    /// The folder's tokenizer.json, if there is one.
    pub tokenizer: Option<PathBuf>,
}

/// The part of a tokenizer.json that says which token has which id.
#[derive(Deserialize)]
struct Tokenizer {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    vocab: Table,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Table {
    /// Of BPE and WordPiece.
    Ids(HashMap<String, u32>),
    /// Of Unigram: each token with its score, in the order of the ids.
    Scores(Vec<(String, f64)>),
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// Every token with its id, the added ones included.
fn tokens(path: &Path) -> Result<HashMap<String, u32>> {
    let cannot = || format!("{}: cannot read the tokens", path.display());
    let mut text = Vec::new();
    File::open(path).and_then(|f| f.take(MAX_BYTES + 1).read_to_end(&mut text)).with_context(cannot)?;
    ensure!(text.len() as u64 <= MAX_BYTES, "{}: longer than {MAX_BYTES} bytes: this is no tokenizer", path.display());
    if let Some(what) = stand_in(&text) {
        anyhow::bail!("{}: {what}", path.display());
    }
    let t: Tokenizer = serde_json::from_slice(without_mark(&text)).with_context(cannot)?;
    let mut all = match t.model.vocab {
        Table::Ids(ids) => ids,
        Table::Scores(list) => list.into_iter().zip(0..).map(|((token, _), id)| (token, id)).collect(),
    };
    all.extend(t.added_tokens.into_iter().map(|a| (a.content, a.id)));
    Ok(all)
}

/// Checks that both networks read the same tokens: by their tables if both folders hold a tokenizer, else by the sizes of
/// their embedding tables.
///
/// # Errors
/// What differs; a tokenizer that cannot be read.
pub fn check(base: &Vocabulary, aux: &Vocabulary) -> Result<()> {
    let (Some(of_base), Some(of_aux)) = (&base.tokenizer, &aux.tokenizer) else {
        ensure!(
            base.size == aux.size,
            "the vocabularies differ: {} has {} tokens and {} has {}; KV prediction needs two networks of one vocabulary{}",
            base.of,
            base.size,
            aux.of,
            aux.size,
            " (a tokenizer.json in both folders would be compared token by token)"
        );
        return Ok(());
    };
    if of_base == of_aux {
        return Ok(());
    }
    let (a, b) = (tokens(of_base)?, tokens(of_aux)?);
    // The lowest id first, so that the answer is the same each time.
    let unlike = |a: &HashMap<String, u32>, b: &HashMap<String, u32>| {
        let differ = a.iter().filter(|(token, id)| b.get(*token) != Some(id));
        let (n, first) = differ.fold((0, None::<(u32, String)>), |(n, first), (token, id)| {
            let this = (*id, token.clone());
            (n + 1, Some(first.map_or(this.clone(), |f| f.min(this))))
        });
        first.map(|(id, token)| (n, id, token))
    };
    let (n, id, token, here, there, other) = match (unlike(&a, &b), unlike(&b, &a)) {
        (Some((n, id, token)), _) => (n, id, token, base, aux, &b),
        (None, Some((n, id, token))) => (n, id, token, aux, base, &a),
        (None, None) => return Ok(()),
    };
    let instead = match other.get(&token) {
        Some(id) => format!("as {id}"),
        None => "not at all".into(),
    };
    anyhow::bail!(
        "the vocabularies differ: {} has the token '{}' as {id}, {} has it {instead} ({n} tokens differ, of {} and {}); KV \
         prediction needs two networks of one vocabulary",
        here.of,
        printable(&token),
        there.of,
        a.len(),
        b.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_tokens_are_compared_and_sizes_where_there_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let vocabulary = |of: &str, size, text: Option<&str>| {
            let tokenizer = text.map(|text| {
                let path = dir.path().join(format!("{of}.json"));
                std::fs::write(&path, text).unwrap();
                path
            });
            Vocabulary { of: of.into(), size, tokenizer }
        };
        let with =
            |vocab: &str, added: &str| format!("{{\"model\": {{\"vocab\": {vocab}}}, \"added_tokens\": [{added}]}}");
        let plain = with("{\"a\": 0, \"b\": 1}", "{\"id\": 2, \"content\": \"<s>\", \"special\": true}");
        let base = vocabulary("base", 64, Some(&plain));
        // Padding of the table, the order, an added token that stands among the others, another kind of table.
        for same in [
            with("{\"b\": 1, \"a\": 0}", "{\"id\": 2, \"content\": \"<s>\"}"),
            with("{\"b\": 1, \"a\": 0, \"<s>\": 2}", ""),
            with("[[\"a\", -1.5], [\"b\", 0], [\"<s>\", -3]]", ""),
        ] {
            check(&base, &vocabulary("aux", 80, Some(&same))).unwrap();
        }
        for (other, words) in [
            (with("{\"a\": 1, \"b\": 0}", "{\"id\": 2, \"content\": \"<s>\"}"), ["'a' as 0", "aux has it as 1"]),
            (with("{\"a\": 0, \"b\": 1}", ""), ["'<s>' as 2", "aux has it not at all"]),
            (with("{\"a\": 0, \"b\": 1, \"c\": 3, \"<s>\": 2}", ""), ["aux has the token 'c' as 3", "base has it not"]),
            ("{\"model\": {}}".into(), ["aux.json", "vocab"]),
        ] {
            let error = format!("{:#}", check(&base, &vocabulary("aux", 64, Some(&other))).unwrap_err());
            words.iter().for_each(|w| assert!(error.contains(w), "no '{w}' in: {error}"));
        }
        check(&base, &vocabulary("aux", 64, None)).unwrap();
        let error = check(&base, &vocabulary("aux", 65, None)).unwrap_err().to_string();
        assert!(error.contains("base has 64 tokens and aux has 65"), "{error}");
    }
}
