//! Chat templates: messages as the text that a model reads.

mod jinja;

use std::path::{Path, PathBuf};

use minijinja::value::Serde;
use minijinja::{Environment, context};
use serde_json::Value;

use crate::error::{Error, FormatError, Result, TemplateError};
use crate::format::gguf::GgufFile;
use crate::format::json_or_none;
use crate::tokenizer::Tokenizer;

/// File of a model's directory that holds its chat template (Jinja).
pub const CHAT_TEMPLATE: &str = "chat_template.jinja";

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    place: PathBuf,
    source: String,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// A template that was found at `place`, with the texts of the tokenizer's BOS and EOS.
    pub fn new(place: &Path, source: String, tokenizer: &Tokenizer) -> Self {
        let name = |id| tokenizer.name_of(id).unwrap_or_default();
        Self { place: place.to_owned(), source, bos: name(tokenizer.bos()), eos: name(tokenizer.eos()) }
    }

    /// The template of a model: a GGUF file's, or that of a directory; none where it has none.
    pub fn of(model: &Path, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let found = if model.is_file() {
            GgufFile::read(model)?.text("tokenizer.chat_template")?.map(|t| (model.to_owned(), t.to_owned()))
        } else {
            in_directory(model)?
        };
        Ok(found.map(|(place, source)| Self::new(&place, source, tokenizer)))
    }

    /// Its Jinja.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it has a place for tools.
    pub fn takes_tools(&self) -> bool {
        let (source, jinja) = (jinja::without_marks(&self.source), Environment::new());
        jinja.template_from_str(&source).is_ok_and(|t| t.undeclared_variables(false).contains("tools"))
    }

    /// Messages (objects with `role` and `content`), and the beginning of the answer. White space is that of Hugging Face's
    /// `apply_chat_template`, and as there `tools` and `documents` are `none` where there are none. The clock (`strftime_now`) stands
    /// still or is not given, so that the same messages stay the same text.
    pub fn render(&self, messages: &[Value], tools: Option<&[Value]>) -> Result<String> {
        self.fill(messages, tools).map_err(|e| {
            let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), |inner| format!("{e}: {inner}"));
            TemplateError { place: self.place.clone(), why }.into()
        })
    }

    fn fill(&self, messages: &[Value], tools: Option<&[Value]>) -> Result<String, minijinja::Error> {
        let source = jinja::without_marks(&self.source);
        let jinja = jinja::environment(&source)?;
        let (messages, tools) = (Serde(messages), tools.map(Serde));
        let documents = ();
        let values = context! {
            messages, tools, documents, add_generation_prompt => true, bos_token => self.bos.as_str(), eos_token => self.eos.as_str()
        };
        jinja.template_from_str(&source)?.render(values)
    }
}

/// `chat_template.jinja`, or the field of `tokenizer_config.json` (a text, or a list of named ones), and where it stands.
pub fn in_directory(dir: &Path) -> Result<Option<(PathBuf, String)>> {
    let path = dir.join(CHAT_TEMPLATE);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let text = String::from_utf8(bytes).map_err(|e| FormatError::Unreadable {
                file: path.clone(),
                format: "UTF-8 text".into(),
                why: e.to_string(),
            })?;
            return Ok(Some((path, text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("cannot read", &path, e)),
    }
    let path = dir.join("tokenizer_config.json");
    let settings = json_or_none(&path)?.unwrap_or_default();
    let named = |t: &&Value| t["name"] == "default";
    let field = &settings["chat_template"];
    let of = field.as_array().and_then(|all| all.iter().find(named)).map_or(field, |t| &t["template"]);
    Ok(of.as_str().map(|t| (path, t.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate { place: "chat_template.jinja".into(), source: source.into(), bos: "<s>".into(), eos: "</s>".into() }
    }

    #[test]
    fn templates_with_python_methods_blocks_and_refusals() {
        let hi = [json!({"role": "user", "content": " hi "})];
        let source = "{{ bos_token }}{% for m in messages %}\n  {%- if m['role'].upper() == 'USER' %}\n[{{ m.content | trim }}]\n  {%- endif %}\n{% endfor %}\n{% if add_generation_prompt %}>{% endif %}";
        assert_eq!(template(source).render(&hi, None).expect("renders"), "<s>[hi]>");
        let refusing = template("{{ raise_exception('no system role') }}").render(&hi, None).expect_err("raises");
        assert!(refusing.to_string().contains("no system role"), "{refusing}");
        assert!(template("{% for %}").render(&hi, None).is_err());
    }

    #[test]
    fn tools_are_none_or_a_list() {
        let t = template("{%- if tools is not none %}{{ tools | length }}{% endif %}{{ messages[0].content }}");
        let hi = [json!({"role": "user", "content": "hi"})];
        assert!(t.takes_tools() && !template("{{ messages }}").takes_tools());
        assert_eq!(t.render(&hi, None).expect("renders"), "hi");
        assert_eq!(t.render(&hi, Some(&[json!({"type": "function"})])).expect("renders"), "1hi");
    }
}
