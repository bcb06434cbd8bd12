//! The document as one HTML page that needs nothing else.

use minijinja::{AutoEscape, Environment, context, syntax::SyntaxConfig, value::Serde};

use super::{RenderError, Run, document};

const TEMPLATE: &str = include_str!("report.html");
const STYLE: &str = include_str!("report.css");

/// The report as a page.
pub fn render(sides: &[Run], parts: &[&str]) -> Result<String, RenderError> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::Html);
    env.add_template("report", TEMPLATE)?;
    Ok(env.get_template("report")?.render(context! { doc => Serde(document(sides, true, parts)?), style => STYLE })?)
}
