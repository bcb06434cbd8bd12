//! Fidelity files: read, checked, and put into text.

use std::{
    collections::HashSet,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::types::*;
use crate::{
    schema::{
        Kind,
        check::{Fault, check_identity, check_prediction, check_sha256, check_time, fault, parse_json, printable},
    },
    text,
};

/// Longest file that is read, in bytes.
pub const MAX_BYTES: u64 = 256 << 20;
/// Most windows of a text, and most items of a task.
pub const MAX_VALUES: u32 = 1_000_000;
/// Most texts, tasks, systems or controls.
const MAX_LIST: usize = 1000;

/// Why a fidelity file could not be read or made.
#[derive(Debug, thiserror::Error)]
pub enum FidelityError {
    /// The file system refused.
    #[error("{}: cannot read it", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Something is not what the schema says.
    #[error("{}, field `{field}`: {message}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Such as `systems[0].results.texts[1].first.kl.values`; `.` of the whole.
        field: String,
        /// What was expected, and what was found.
        message: String,
    },
    /// Another version of the format, or another format.
    #[error("{}: the file's schema is `{found}`, this program reads `{SCHEMA}`: give a file of `ttft fidelity`", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: String,
    },
}

type Result<T, E = FidelityError> = std::result::Result<T, E>;

impl Fidelity {
    /// Reads and checks a fidelity file.
    ///
    /// # Errors
    /// The first field that is not as the schema says; another schema; a file of more than [`MAX_BYTES`].
    pub fn read(path: &Path) -> Result<Fidelity> {
        let failed = |source| FidelityError::Io { path: path.into(), source };
        let mut bytes = Vec::new();
        File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
        Fidelity::parse(&bytes, path)
    }

    /// As [`Fidelity::read`], of a file's bytes; `name` stands in errors.
    ///
    /// # Errors
    /// As [`Fidelity::read`].
    pub fn parse(bytes: &[u8], name: &Path) -> Result<Fidelity> {
        let field = |(field, message): Fault| FidelityError::Field {
            path: name.into(),
            field: printable(&field),
            message: printable(&message),
        };
        let whole = |message: String| field((".".into(), message));
        if bytes.len() as u64 > MAX_BYTES {
            return Err(whole(format!("longer than {MAX_BYTES} bytes: this is no fidelity file")));
        }
        if let Some(what) = text::stand_in(bytes) {
            return Err(whole(what.into()));
        }
        let text = std::str::from_utf8(text::without_mark(bytes)).map_err(|e| whole(format!("not UTF-8: {e}")))?;
        if text.trim().is_empty() {
            return Err(whole("empty file: expected the JSON object that `ttft fidelity` writes".into()));
        }
        if let Some(found) = other_schema(text) {
            return Err(FidelityError::Version { path: name.into(), found });
        }
        let file: Fidelity = parse_json(text).map_err(field)?;
        check(&file).map_err(field)?;
        Ok(file)
    }

    /// The file's text: one line for each text, task, system and control. [`Fidelity::schema`] is set to [`SCHEMA`].
    ///
    /// # Errors
    /// The field that the reader would refuse, such as a figure that is not finite; `name` stands in errors.
    pub fn to_text(&self, name: &Path) -> Result<String> {
        let file = Fidelity { schema: SCHEMA.into(), ..self.clone() };
        let refuse = |e: serde_json::Error| FidelityError::Field {
            path: name.into(),
            field: ".".into(),
            message: e.to_string(),
        };
        let fields = [
            ("schema", one(&file.schema)),
            ("started_at", one(&file.started_at)),
            ("command", one(&file.command)),
            ("ttft_version", one(&file.ttft_version)),
            ("git", one(&file.git)),
            ("machine", one(&file.machine)),
            ("settings", one(&file.settings)),
            ("base", one(&file.base)),
            ("texts", lines(&file.texts)),
            ("tasks", lines(&file.tasks)),
            ("systems", lines(&file.systems)),
            ("controls", lines(&file.controls)),
            ("notes", lines(&file.notes)),
        ];
        let mut out = Vec::new();
        for (name, value) in fields {
            out.push(format!("\"{name}\": {}", value.map_err(refuse)?));
        }
        let text = format!("{{\n{}\n}}\n", out.join(",\n"));
        Fidelity::parse(text.as_bytes(), name)?;
        Ok(text)
    }
}

fn one(value: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(value)
}

fn lines<T: Serialize>(list: &[T]) -> serde_json::Result<String> {
    let items = list.iter().map(|item| Ok(format!("\n{}", serde_json::to_string(item)?)));
    Ok(format!("[{}]", items.collect::<serde_json::Result<Vec<_>>>()?.join(",")))
}

/// The schema that a file names, if it names one and it is not ours; a record's is one of these.
fn other_schema(text: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Probe {
        schema: Option<String>,
        run: Option<Header>,
    }
    #[derive(Deserialize)]
    struct Header {
        schema: String,
    }
    // A record has further lines.
    let probe = serde_json::Deserializer::from_str(text).into_iter::<Probe>().next()?.ok()?;
    let found = probe.schema.or_else(|| Some(probe.run?.schema))?;
    (found != SCHEMA).then(|| printable(&found))
}

type Checked = std::result::Result<(), Fault>;

fn check(file: &Fidelity) -> Checked {
    check_time(file.started_at.as_deref(), "started_at")?;
    let s = &file.settings;
    for (name, found, least) in [
        ("prompt", s.prompt, 1),
        ("continuation", s.continuation, 2),
        ("answer", s.answer, u32::from(!file.tasks.is_empty())),
    ] {
        if found < least {
            return fault(format!("settings.{name}"), format!("expected {least} or more, found {found}"));
        }
    }
    check_identity(&file.base.network, || "base.network".into())?;
    check_times(&file.base.ttft_ns, || "base.ttft_ns".into())?;
    let lists = [
        ("texts", file.texts.len()),
        ("tasks", file.tasks.len()),
        ("systems", file.systems.len()),
        ("controls", file.controls.len()),
    ];
    if let Some((name, found)) = lists.into_iter().find(|(_, found)| *found > MAX_LIST) {
        return fault(name, format!("{found} entries, at most {MAX_LIST} are read"));
    }
    check_names(file.texts.iter().map(|t| &t.name), "texts")?;
    check_names(file.tasks.iter().map(|t| &t.name), "tasks")?;
    check_names(file.systems.iter().map(|s| &s.name), "systems")?;
    for (i, text) in file.texts.iter().enumerate() {
        check_sha256(Some(&text.sha256), || format!("texts[{i}].sha256"))?;
        check_count(text.windows, || format!("texts[{i}].windows"))?;
    }
    for (i, task) in file.tasks.iter().enumerate() {
        let at = |field: &str| format!("tasks[{i}].{field}");
        check_sha256(task.sha256.as_deref(), || at("sha256"))?;
        check_count(task.items, || at("items"))?;
        check_share(task.chance, || at("chance"))?;
        check_finite(task.prompt_tokens, || at("prompt_tokens"))?;
        if let Some(base) = &task.base {
            check_outcomes(base, task.items, || at("base"))?;
        }
    }
    for (i, system) in file.systems.iter().enumerate() {
        let at = |field: &str| format!("systems[{i}].{field}");
        if (system.kind == Kind::Kvp) != system.prediction.is_some() {
            return fault(at("prediction"), "expected one of a kvp and null of any other kind");
        }
        if let Some(prediction) = &system.prediction {
            check_prediction(prediction, || at("prediction"))?;
        }
        if let Some(aux) = &system.aux {
            check_identity(aux, || at("aux"))?;
        }
        check_positive(system.operations_share, || at("operations_share"))?;
        check_times(&system.ttft_ns, || at("ttft_ns"))?;
        check_results(file, &system.results, || at("results"))?;
    }
    let mut seen = HashSet::new();
    for (i, control) in file.controls.iter().enumerate() {
        let at = |field: &str| format!("controls[{i}].{field}");
        if let Some(name) = &control.system
            && !file.systems.iter().any(|s| s.name == *name)
        {
            return fault(at("system"), format!("expected the name of one of the systems, found `{name}`"));
        }
        if !seen.insert((control.kind, &control.system, control.sink_tokens)) {
            return fault(format!("controls[{i}]"), "the same control of the same system, with the same sink, again");
        }
        if let Some(share) = control.operations_share {
            check_positive(share, || at("operations_share"))?;
        }
        check_times(&control.ttft_ns, || at("ttft_ns"))?;
        check_results(file, &control.results, || at("results"))?;
    }
    Ok(())
}

fn check_results(file: &Fidelity, results: &Results, at: impl Fn() -> String) -> Checked {
    let same = |found: Vec<&String>, expected: Vec<&String>, list: &str| {
        let names = |names: &[&String]| names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
        let (found, expected) = ((names(&found), found == expected), names(&expected));
        if found.1 {
            return Ok(());
        }
        fault(format!("{}.{list}", at()), format!("expected one entry each for [{expected}], found [{}]", found.0))
    };
    let (texts, tasks) = (&results.texts, &results.tasks);
    same(texts.iter().map(|t| &t.text).collect(), file.texts.iter().map(|t| &t.name).collect(), "texts")?;
    same(tasks.iter().map(|t| &t.task).collect(), file.tasks.iter().map(|t| &t.name).collect(), "tasks")?;
    for (i, (on, text)) in texts.iter().zip(&file.texts).enumerate() {
        for (part, distance) in [("first", &on.first), ("continuation", &on.continuation)] {
            let measures = [
                ("kl", &distance.kl, 0.0, f64::MAX),
                ("top1", &distance.top1, 0.0, 1.0),
                ("loss_gap", &distance.loss_gap, f64::MIN, f64::MAX),
            ];
            for (name, measure, low, high) in measures {
                let field = || format!("{}.texts[{i}].{part}.{name}", at());
                check_measure(measure, text.windows, (low, high), field)?;
            }
        }
        if let Some(greedy) = &on.greedy {
            check_measure(greedy, text.windows, (0.0, 1.0), || format!("{}.texts[{i}].greedy", at()))?;
        }
    }
    for (i, (on, task)) in tasks.iter().zip(&file.tasks).enumerate() {
        let field = |name: &str| format!("{}.tasks[{i}].{name}", at());
        if on.exact.is_some() != task.base.is_some() {
            return fault(
                field("exact"),
                "expected outcomes if the base has some on this task, and null if it has none",
            );
        }
        if let Some(exact) = &on.exact {
            check_outcomes(exact, task.items, || field("exact"))?;
        }
        check_outcomes(&on.first_token, task.items, || field("first_token"))?;
    }
    Ok(())
}

fn check_measure(m: &Measure, windows: u32, (low, high): (f64, f64), at: impl Fn() -> String) -> Checked {
    check_length(m.values.len(), windows, "window", || format!("{}.values", at()))?;
    if let Some((i, v)) = m.values.iter().enumerate().find(|(_, v)| !v.is_finite() || !(low..=high).contains(*v)) {
        let expected = match (low > f64::MIN, high < f64::MAX) {
            (true, true) => format!("{low} to {high}"),
            (true, false) => format!("{low} or more"),
            (false, _) => "a finite number".into(),
        };
        return fault(format!("{}.values[{i}]", at()), format!("expected {expected}, found {v}"));
    }
    let (mean, error) = Measure::summary(&m.values);
    check_same(m.mean, mean, || format!("{}.mean", at()))?;
    if m.standard_error.is_some() != error.is_some() {
        return fault(format!("{}.standard_error", at()), format!("expected that of the values, {error:?}"));
    }
    check_same(m.standard_error.unwrap_or(0.0), error.unwrap_or(0.0), || format!("{}.standard_error", at()))
}

fn check_outcomes(o: &Outcomes, items: u32, at: impl Fn() -> String) -> Checked {
    check_length(o.each.len(), items, "item", || format!("{}.each", at()))?;
    if let Some((i, found)) = o.each.iter().enumerate().find(|(_, o)| **o > 1) {
        return fault(format!("{}.each[{i}]", at()), format!("expected 0 or 1, found {found}"));
    }
    let (share, error) = Outcomes::summary(&o.each);
    check_same(o.share, share, || format!("{}.share", at()))?;
    check_same(o.standard_error, error, || format!("{}.standard_error", at()))
}

/// Sums in another order differ by less.
const SAME: f64 = 1e-9;

fn check_same(found: f64, expected: f64, at: impl Fn() -> String) -> Checked {
    if (found - expected).abs() <= SAME * expected.abs().max(1e-3) {
        return Ok(());
    }
    fault(at(), format!("expected that of the values, {expected}, found {found}"))
}

fn check_length(found: usize, expected: u32, each: &str, at: impl Fn() -> String) -> Checked {
    if found == expected as usize {
        return Ok(());
    }
    fault(at(), format!("expected {expected} entries, one for each {each}, found {found}"))
}

fn check_count(count: u32, at: impl Fn() -> String) -> Checked {
    if (1..=MAX_VALUES).contains(&count) {
        return Ok(());
    }
    fault(at(), format!("expected 1 to {MAX_VALUES}, found {count}"))
}

fn check_share(share: f64, at: impl Fn() -> String) -> Checked {
    if (0.0..=1.0).contains(&share) { Ok(()) } else { fault(at(), format!("expected 0 to 1, found {share}")) }
}

fn check_finite(value: f64, at: impl Fn() -> String) -> Checked {
    if value >= 0.0 && value.is_finite() { Ok(()) } else { fault(at(), format!("expected 0 or more, found {value}")) }
}

fn check_positive(value: f64, at: impl Fn() -> String) -> Checked {
    if value > 0.0 && value.is_finite() { Ok(()) } else { fault(at(), format!("expected more than 0, found {value}")) }
}

fn check_times(times: &[u64], at: impl Fn() -> String) -> Checked {
    if times.len() > MAX_VALUES as usize {
        return fault(at(), format!("{} times, at most {MAX_VALUES} are read", times.len()));
    }
    match times.iter().position(|&t| t == 0) {
        Some(i) => fault(format!("{}[{i}]", at()), "expected a positive time, found 0"),
        None => Ok(()),
    }
}

fn check_names<'a>(names: impl Iterator<Item = &'a String>, list: &str) -> Checked {
    let mut seen = HashSet::new();
    for (i, name) in names.enumerate() {
        if name.is_empty() || !seen.insert(name) {
            return fault(format!("{list}[{i}].name"), format!("expected a name that no other has, found `{name}`"));
        }
    }
    Ok(())
}
