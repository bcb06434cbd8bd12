//! The document as Markdown, without the charts.

use std::fmt::Write as _;

use minijinja::{AutoEscape, Environment, Output, State, Value, context, syntax::SyntaxConfig, value::Serde};

use super::{Document, RenderError, Run, document};
use crate::text::steers;

const TEMPLATE: &str = include_str!("report.md");

/// The report as Markdown.
pub fn render(runs: &[Run], parts: &[&str]) -> Result<String, RenderError> {
    write(&document(runs, false, parts)?)
}

/// A document as Markdown.
pub fn write(document: &Document) -> Result<String, RenderError> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::Custom("markdown".into()));
    env.set_formatter(escaped);
    env.add_template("report", TEMPLATE)?;
    Ok(env.get_template("report")?.render(context! { doc => Serde(document) })?)
}

/// Writes a value so that a record cannot change the document's structure.
fn escaped(out: &mut Output, _: &mut State, value: &Value) -> Result<(), minijinja::Error> {
    let text = value.to_string();
    if value.is_safe() {
        return Ok(out.write_str(&text)?);
    }
    for c in text.chars() {
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => out.write_str(&format!("\\{c}"))?,
            '<' => out.write_str("&lt;")?,
            '&' => out.write_str("&amp;")?,
            '\n' | '\r' => out.write_char(' ')?,
            steering if steers(steering) => out.write_char(char::REPLACEMENT_CHARACTER)?,
            other => out.write_char(other)?,
        }
    }
    Ok(())
}
