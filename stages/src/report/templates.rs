//! The templates of the page, and how a value goes into them.

use flow_engine::plugin::StageError;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, Error, Output, State, UndefinedBehavior, Value, escape_formatter};
use serde::Serialize;

/// Every template by the name under which others include or import it.
const TEMPLATES: [(&str, &str); 13] = [
    ("page.html", include_str!("templates/page.html")),
    ("style.css", include_str!("templates/style.css")),
    ("quality.html", include_str!("templates/quality.html")),
    ("efficiency.html", include_str!("templates/efficiency.html")),
    ("gates.html", include_str!("templates/gates.html")),
    ("training.html", include_str!("templates/training.html")),
    ("traces.html", include_str!("templates/traces.html")),
    ("samples.html", include_str!("templates/samples.html")),
    ("dry_runs.html", include_str!("templates/dry_runs.html")),
    ("pipeline.html", include_str!("templates/pipeline.html")),
    ("parts.html", include_str!("templates/parts.html")),
    ("chart.html", include_str!("templates/chart.html")),
    ("dag.html", include_str!("templates/dag.html")),
];

/// The template `name` filled with `data`.
pub fn render(name: &str, data: impl Serialize) -> Result<String, StageError> {
    let page = environment().and_then(|jinja| jinja.get_template(name)?.render(Serde(data)));
    page.map_err(|e| {
        StageError::new(format!("the report's template {name}: {}", with_causes(&e)))
            .help("this is a mistake in flow's template, not in the pipeline")
    })
}

/// A name that the data lacks is an error, not an empty text: a misspelt figure must not vanish from the page.
fn environment() -> Result<Environment<'static>, Error> {
    let mut jinja = Environment::new();
    jinja.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    jinja.set_undefined_behavior(UndefinedBehavior::Strict);
    jinja.set_auto_escape_callback(|_| AutoEscape::Html);
    jinja.set_formatter(write_value);
    jinja.add_filter("fixed", |v: f64, digits: usize| format!("{v:.digits$}"));
    for (name, source) in TEMPLATES {
        jinja.add_template(name, source)?;
    }
    Ok(jinja)
}

/// Writes a value escaped. Control characters are not allowed in HTML, and a sampled text may hold any of them: U+FFFD
/// stands for each. A slash stays as it is: MiniJinja would escape it too, which no text or quoted attribute needs. What a
/// macro made is safe: it went through here piece by piece.
fn write_value(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let forbidden = |c: char| c.is_control() && c != '\n' && c != '\t';
    let Some(text) = value.as_str().filter(|_| !value.is_safe()) else {
        return escape_formatter(out, state, value);
    };
    for (i, piece) in text.replace(forbidden, "\u{fffd}").split('/').enumerate() {
        if i > 0 {
            out.write_str("/")?;
        }
        escape_formatter(out, state, &piece.into())?;
    }
    Ok(())
}

/// What went wrong in which template and line, from the page down to the template that it included.
fn with_causes(error: &Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_error_names_the_template_at_fault() {
        let error = render("pipeline.html", json!({"pipeline": {"dag": {}}})).expect_err("an empty DAG");
        assert!(error.message.contains("template pipeline.html: ") && error.message.contains("dag.html:"), "{error}");
    }

    #[test]
    fn no_template_lets_a_text_through_as_it_is() {
        for (name, source) in TEMPLATES {
            assert!(!source.contains("safe") && !source.contains("autoescape"), "{name}");
        }
    }
}
