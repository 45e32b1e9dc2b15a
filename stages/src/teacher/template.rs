//! How a prompt is put to a teacher: a text with `{prompt}`, or the chat template that the teacher came with.

use std::path::Path;

use flow_engine::plugin::{ParamError, StageError};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, context};

use flow_lm::tokenizer::Tokenizer;

/// File of a teacher's directory that holds its chat template (Jinja).
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// The value of a `template` parameter that means the teacher's own chat template.
const CHAT: &str = "chat";

/// How a prompt is put to a teacher.
pub enum Template {
    /// A text with `{prompt}`.
    Text(String),
    /// A Jinja chat template with the texts of BOS and EOS.
    Chat {
        /// Where it came from, for messages.
        path: std::path::PathBuf,
        /// Jinja.
        source: String,
        /// `bos_token`.
        bos: String,
        /// `eos_token`.
        eos: String,
    },
}

/// Refuses a `template` parameter into which no prompt would go.
pub fn check(template: &str) -> Result<(), ParamError> {
    if template == CHAT || template.contains("{prompt}") {
        return Ok(());
    }
    Err(ParamError {
        path: "template".into(),
        message: "no `{prompt}` in it".into(),
        help: Some("write `{prompt}` where the prompt goes, or `chat` for the teacher's own chat template".into()),
    })
}

/// What the parameter means for a teacher whose server renders its own chat template: the text that the student reads.
pub fn of_hosted(parameter: &str) -> Result<&str, StageError> {
    match parameter {
        CHAT => Err(StageError::new("`template: chat`: a hosted teacher keeps its chat template to itself")
            .help("write out the text that the student shall read, with `{prompt}` where the prompt goes")),
        text => Ok(text),
    }
}

impl Template {
    /// What the parameter means for the teacher in `dir`.
    pub fn of(parameter: &str, dir: &Path, tokenizer: &Tokenizer) -> Result<Self, StageError> {
        if parameter != CHAT {
            return Ok(Template::Text(parameter.into()));
        }
        let path = dir.join(CHAT_TEMPLATE);
        let source = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => StageError::new("`template: chat`: this teacher came without a chat template")
                .help("write the template out, with `{prompt}` where the prompt goes"),
            _ => StageError::io("cannot read", &path, &e),
        })?;
        let name = |id| tokenizer.name_of(id).unwrap_or_default();
        Ok(Template::Chat { path, source, bos: name(tokenizer.bos()), eos: name(tokenizer.eos()) })
    }

    /// The prompt as the teacher reads it.
    pub fn render(&self, prompt: &str) -> Result<String, StageError> {
        match self {
            Template::Text(text) => Ok(super::render(text, prompt)),
            Template::Chat { path, source, bos, eos } => chat(source, bos, eos, prompt).map_err(|e| {
                StageError::new(format!("{}: the chat template fails: {e}", path.display()))
                    .help("write the template out, with `{prompt}` where the prompt goes")
            }),
        }
    }

    /// Text that stands for the template in traces.
    pub fn source(&self) -> &str {
        match self {
            Template::Text(text) => text,
            Template::Chat { source, .. } => source,
        }
    }
}

/// One user message and the beginning of the answer. White space as in Hugging Face's `apply_chat_template`. The clock
/// (`strftime_now`) is not given: templates that know it fall back on a fixed date, and the same prompt stays the same.
fn chat(source: &str, bos: &str, eos: &str, prompt: &str) -> Result<String, Error> {
    let mut jinja = Environment::new();
    jinja.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    jinja.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    let messages = [context! { role => "user", content => prompt }];
    let values = context! { messages, add_generation_prompt => true, bos_token => bos, eos_token => eos };
    jinja.template_from_str(source)?.render(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_with_python_methods_blocks_and_refusals() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {%- if m['role'].upper() == 'USER' %}\n[{{ m.content | trim }}]\n  {%- endif %}\n{% endfor %}\n{% if add_generation_prompt %}>{% endif %}";
        assert_eq!(chat(source, "<s>", "</s>", " hi ").expect("renders"), "<s>[hi]>");
        let refusing = chat("{{ raise_exception('no system role') }}", "", "", "hi").expect_err("raises");
        assert!(refusing.to_string().contains("no system role"), "{refusing}");
        assert!(chat("{% for %}", "", "", "hi").is_err());
    }

    #[test]
    fn a_template_needs_a_place_for_the_prompt() {
        assert!(check("{prompt}").is_ok() && check("chat").is_ok() && check("<|user|>").is_err());
    }
}
