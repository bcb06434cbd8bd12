//! What is asked and how an answer is judged; tasks from local files.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use ttft_reports::{fidelity::TaskKind, text::printable};

use crate::{
    identity,
    text::{self, Text},
};

/// A prompt, and what is wanted behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// What is wanted.
    pub answer: Answer,
}

/// What is wanted behind a prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// These tokens.
    Tokens(Vec<u32>),
    /// One of these, once both are normalised.
    OneOf(Vec<String>),
    /// Whatever is written, for others to judge, under this name.
    Written(String),
}

/// A task out of a file.
#[derive(Debug)]
pub struct FileTask {
    /// The file's name.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// What its items are.
    pub kind: TaskKind,
    /// The items.
    pub items: Vec<Item>,
}

/// A line of a file of tasks. What else stands there is for others.
#[derive(Deserialize)]
struct Record {
    question: Option<String>,
    answers: Option<Vec<String>>,
    task_id: Option<String>,
    prompt: Option<String>,
}

impl FileTask {
    /// Reads a file with one JSON object on each line: all with `question` and `answers`, of which the first is the example that
    /// the others are shown; or all with `task_id` and `prompt`. With `chat`, each prompt is what a user says to the network of
    /// this folder.
    ///
    /// # Errors
    /// What is wrong, and in which line.
    pub fn read(file: &Path, tokenizer: &Text, chat: Option<&Path>) -> Result<FileTask> {
        let (bytes, content) = text::read_bytes(file)?;
        let mut records = Vec::new();
        for (i, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = || format!("{}, line {}", file.display(), i + 1);
            records.push(record(line).with_context(at)?);
        }
        let prompts = with_prompts(&records).with_context(|| file.display().to_string())?;
        let kind = if matches!(records[0], Task::Code { .. }) { TaskKind::Code } else { TaskKind::Questions };
        let mut items = Vec::new();
        for (prompt, answer) in prompts {
            let ids = match chat {
                Some(dir) => tokenizer.ids(&Text::chat(dir, &prompt)?, true)?,
                None => tokenizer.ids(&prompt, false)?,
            };
            ensure!(!ids.is_empty(), "{}: a prompt without a token", file.display());
            items.push(Item { prompt: ids, answer });
        }
        let name = file.file_name().map_or_else(String::new, |n| printable(&n.to_string_lossy()));
        Ok(FileTask { name, sha256: identity::sha256(&bytes), kind, items })
    }
}

enum Task {
    Question { question: String, answers: Vec<String> },
    Code { id: String, prompt: String },
}

fn record(line: &str) -> Result<Task> {
    const FORMS: &str = "expected an object with question and answers, or one with task_id and prompt";
    let value: Value = serde_json::from_str(line).context(FORMS)?;
    ensure!(value.is_object(), "{FORMS}; found none");
    let Record { question, answers, task_id, prompt } = serde_json::from_value(value).context(FORMS)?;
    match (question, answers, task_id, prompt) {
        (Some(question), Some(answers), ..) => {
            ensure!(!question.trim().is_empty(), "question: it is empty");
            ensure!(
                answers.iter().any(|a| !normal(a).is_empty()),
                "answers: expected at least one that is not empty once it is normalised"
            );
            Ok(Task::Question { question, answers })
        }
        (None, None, Some(id), Some(prompt)) => Ok(Task::Code { id, prompt }),
        (question, _, id, _) => {
            let lacks = match (question, id) {
                (Some(_), _) => "answers is missing",
                (None, Some(_)) => "prompt is missing",
                (None, None) => "both question and task_id are missing",
            };
            bail!("{FORMS}; {lacks}")
        }
    }
}

/// What is said, and what is wanted.
fn with_prompts(records: &[Task]) -> Result<Vec<(String, Answer)>> {
    let Some(first) = records.first() else { bail!("no line with a task: expected one JSON object on each line") };
    let code = matches!(first, Task::Code { .. });
    if let Some(i) = records.iter().position(|r| matches!(r, Task::Code { .. }) != code) {
        bail!("task {} is of another kind than the first: give questions and code in files of their own", i + 1);
    }
    let shot = match first {
        Task::Question { question, answers } => format!("Question: {question}\nAnswer: {}\n\n", answers[0]),
        Task::Code { .. } => String::new(),
    };
    if !code && records.len() < 2 {
        bail!("one question: the first is the example that the others are shown, so two or more are needed");
    }
    let made = records.iter().skip(usize::from(!code)).map(|record| match record {
        Task::Question { question, answers } => {
            (format!("{shot}Question: {question}\nAnswer:"), Answer::OneOf(answers.clone()))
        }
        Task::Code { id, prompt } => (prompt.clone(), Answer::Written(id.clone())),
    });
    Ok(made.collect())
}

/// A text as answers are compared: lower case, no punctuation, no articles, single spaces.
pub fn normal(text: &str) -> String {
    let plain: String = text.to_lowercase().chars().map(|c| if is_punctuation(c) { ' ' } else { c }).collect();
    plain.split_whitespace().filter(|w| !["a", "an", "the"].contains(w)).collect::<Vec<_>>().join(" ")
}

/// ASCII punctuation, and the quotation marks and dashes of print.
fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || "‘’“”´–—…".contains(c)
}

/// Whether a written answer, as far as its first line, is one of those wanted.
pub fn is_one_of(written: &str, answers: &[String]) -> bool {
    let line = written.trim_start().lines().next().unwrap_or_default();
    let found = normal(line);
    !found.is_empty() && answers.iter().any(|a| normal(a) == found)
}

/// What begins a line that is no part of the function that is to be completed: where the harness of HumanEval stops.
const BEYOND: [&str; 5] = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"];

/// Where an answer of this kind ends, if it does, in bytes.
pub fn end_of(kind: TaskKind, written: &str) -> Option<usize> {
    match kind {
        // A line end before the first word is not yet the end.
        TaskKind::Questions => {
            let start = written.len() - written.trim_start().len();
            written[start..].find('\n').map(|at| start + at)
        }
        TaskKind::Code => BEYOND.iter().filter_map(|mark| written.find(mark)).min(),
        TaskKind::Copy | TaskKind::KeyValue | TaskKind::Needle => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_compared_without_what_does_not_matter() {
        for (text, expected) in [
            ("The  Beatles!", "beatles"),
            (" an Apple a day\t", "apple day"),
            ("O'Brien's", "o brien s"),
            ("“Théâtre”", "théâtre"),
            ("A", ""),
            ("1,000", "1 000"),
        ] {
            assert_eq!(normal(text), expected, "{text}");
        }
        let answers = ["The Beatles".to_owned(), "Paris".into()];
        for (written, right) in [
            (" paris.\nQuestion: who", true),
            ("\n\nBeatles", true),
            (" Paris, France", false),
            ("", false),
            (" the", false),
        ] {
            assert_eq!(is_one_of(written, &answers), right, "{written:?}");
        }
    }

    #[test]
    fn answers_end_where_others_would_end_them() {
        assert_eq!(end_of(TaskKind::Questions, "\n Paris\nQ"), Some(7));
        assert_eq!(end_of(TaskKind::Questions, " Paris"), None);
        assert_eq!(end_of(TaskKind::Code, "    return 1\n\n\ndef f():\nprint"), Some(14));
        assert_eq!(end_of(TaskKind::Code, "    if x:\n        print(x)\n"), None);
    }

    #[test]
    fn the_first_question_is_the_example_of_the_others() {
        let question =
            |q: &str, a: &str| record(&format!("{{\"question\": \"{q}\", \"answers\": [\"{a}\"]}}")).unwrap();
        let made = with_prompts(&[question("one?", "1"), question("two?", "2")]).unwrap();
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].0, "Question: one?\nAnswer: 1\n\nQuestion: two?\nAnswer:");
        assert_eq!(made[0].1, Answer::OneOf(vec!["2".into()]));
        let code = record("{\"task_id\": \"x/0\", \"prompt\": \"def f():\\n\", \"test\": 1}").unwrap();
        assert_eq!(with_prompts(&[code]).unwrap()[0], ("def f():\n".to_owned(), Answer::Written("x/0".into())));
    }

    #[test]
    fn what_is_no_task_is_named() {
        for (line, word) in [
            ("{", "expected an object"),
            ("[]", "found none"),
            ("{}", "both question and task_id are missing"),
            ("{\"question\": \"x\"}", "answers is missing"),
            ("{\"question\": \"x\", \"answers\": []}", "at least one"),
            ("{\"question\": \"x\", \"answers\": [\"the\"]}", "at least one"),
            ("{\"question\": \"x\", \"answers\": \"y\"}", "expected an object"),
            ("{\"task_id\": \"x\"}", "prompt is missing"),
        ] {
            let error = format!("{:#}", record(line).err().unwrap());
            assert!(error.contains(word), "{line}: {error}");
        }
        let one = |line: &str| record(line).unwrap();
        let (q, c) = ("{\"question\": \"x\", \"answers\": [\"y\"]}", "{\"task_id\": \"x\", \"prompt\": \"y\"}");
        for (records, word) in
            [(vec![], "no line"), (vec![one(q)], "two or more"), (vec![one(q), one(c)], "task 2 is of another kind")]
        {
            assert!(with_prompts(&records).err().unwrap().to_string().contains(word), "{word}");
        }
    }
}
