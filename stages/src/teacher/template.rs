//! How a prompt is put to a teacher: a text with `{prompt}`, or the chat template that the teacher came with.

use std::path::Path;

use flow_engine::plugin::{ParamError, StageError};
use flow_lm::chat::{CHAT_TEMPLATE, ChatTemplate};
use flow_lm::tokenizer::Tokenizer;
use serde_json::json;

/// The value of a `template` parameter that means the teacher's own chat template.
const CHAT: &str = "chat";

/// How a prompt is put to a teacher.
pub enum Template {
    /// A text with `{prompt}`.
    Text(String),
    /// The teacher's own.
    Chat(ChatTemplate),
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

fn without() -> StageError {
    StageError::new("`template: chat`: this teacher came without a chat template")
        .help("write the template out, with `{prompt}` where the prompt goes")
}

impl Template {
    /// What the parameter means for the teacher in `dir`.
    pub fn of(parameter: &str, dir: &Path, tokenizer: &Tokenizer) -> Result<Self, StageError> {
        if parameter != CHAT {
            return Ok(Template::Text(parameter.into()));
        }
        let path = dir.join(CHAT_TEMPLATE);
        let source = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => without(),
            _ => StageError::io("cannot read", &path, &e),
        })?;
        Ok(Template::Chat(ChatTemplate::new(&path, source, tokenizer)))
    }

    /// What the parameter means for a teacher that tells its chat template.
    pub fn served(parameter: &str, chat: Option<String>, tokenizer: &Tokenizer) -> Result<Self, StageError> {
        if parameter != CHAT {
            return Ok(Template::Text(parameter.into()));
        }
        let source = chat.ok_or_else(without)?;
        Ok(Template::Chat(ChatTemplate::new(Path::new("the server's chat template"), source, tokenizer)))
    }

    /// The prompt as the teacher reads it.
    pub fn render(&self, prompt: &str) -> Result<String, StageError> {
        match self {
            Template::Text(text) => Ok(super::render(text, prompt)),
            Template::Chat(chat) => chat
                .render(&[json!({"role": "user", "content": prompt})], None)
                .map_err(|e| StageError::new(e.to_string()).help("write the template out, with `{prompt}` where the prompt goes")),
        }
    }

    /// Text that stands for the template in traces.
    pub fn source(&self) -> &str {
        match self {
            Template::Text(text) => text,
            Template::Chat(chat) => chat.source(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_needs_a_place_for_the_prompt() {
        assert!(check("{prompt}").is_ok() && check("chat").is_ok() && check("<|user|>").is_err());
    }
}
