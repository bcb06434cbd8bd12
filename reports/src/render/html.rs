//! The document as one HTML page that needs nothing else.

use minijinja::{
    AutoEscape, Environment, Output, State, Value, context, escape_formatter, syntax::SyntaxConfig, value::Serde,
};

use super::{RenderError, Run, document};
use crate::text::steers;

const TEMPLATE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");

/// The report as a page.
pub fn render(sides: &[Run], parts: &[&str]) -> Result<String, RenderError> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.set_formatter(shown);
    env.add_template("report", TEMPLATE)?;
    Ok(env.get_template("report")?.render(context! { doc => Serde(document(sides, true, parts)?), style => STYLE })?)
}

/// Writes a value so that a record neither changes the page's structure nor the direction of its text.
fn shown(out: &mut Output, state: &mut State, value: &Value) -> Result<(), minijinja::Error> {
    let steering = |c: char| steers(c) && !matches!(c, '\n' | '\t');
    match value.as_str().filter(|text| !value.is_safe() && text.contains(steering)) {
        Some(text) => {
            let text = text.replace(steering, "\u{fffd}");
            escape_formatter(out, state, &Value::from(text))
        }
        None => escape_formatter(out, state, value),
    }
}
