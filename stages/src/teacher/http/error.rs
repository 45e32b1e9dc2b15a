//! Why a teacher is not asked any more.

use std::fmt::Display;

/// What ends every question to a teacher, with what to do about it. What a server said has been cleared of the key.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A name in `headers` that is none.
    #[error("`{0}` is no name of a header")]
    HeaderName(String),
    /// A value in `headers` that cannot be sent.
    #[error("`{0}` holds characters that no header may hold")]
    HeaderValue(String),
    /// A key that cannot be sent; its variable.
    #[error("the value of {0} holds characters that no header may hold")]
    Key(String),
    /// A proxy that is no address.
    #[error("`proxy` is no URL of a proxy")]
    Proxy,
    /// The library cannot begin.
    #[error("cannot set up HTTP: {0}")]
    Setup(String),
    /// The key is not accepted, or there is none.
    #[error("{host} refused access{}: {said}", variable.as_ref().map(|v| format!(" (key from {v})")).unwrap_or_default())]
    Refused {
        /// Who said so.
        host: String,
        /// The variable that held the key.
        variable: Option<String>,
        /// What it said.
        said: String,
    },
    /// It is not paid.
    #[error("{host} wants money: {said}")]
    Money {
        /// Who said so.
        host: String,
        /// What it said.
        said: String,
    },
    /// The quota is spent.
    #[error("{host}: the account's quota is spent: {said}")]
    Quota {
        /// Who said so.
        host: String,
        /// What it said.
        said: String,
    },
    /// There is no such model or endpoint.
    #[error("{host} has no model `{model}` or no such endpoint: {said}")]
    Missing {
        /// Who said so.
        host: String,
        /// What was asked for.
        model: String,
        /// What it said.
        said: String,
    },
    /// It asks to come back later than is worth waiting for.
    #[error("{host} asks to wait {minutes} minutes: {said}")]
    Later {
        /// Who said so.
        host: String,
        /// How long.
        minutes: u64,
        /// What it said.
        said: String,
    },
    /// It is somewhere else.
    #[error("{host} sends requests elsewhere: {said}")]
    Elsewhere {
        /// Who said so.
        host: String,
        /// What it said.
        said: String,
    },
}

impl miette::Diagnostic for HttpError {
    fn help<'a>(&'a self) -> Option<Box<dyn Display + 'a>> {
        Some(match self {
            Self::HeaderName(_) | Self::HeaderValue(_) | Self::Setup(_) => return None,
            Self::Key(variable) => Box::new(format!("export {variable} again, without line ends")),
            Self::Proxy => Box::new("such as http://proxy.example:3128"),
            Self::Refused { variable: Some(name), .. } => Box::new(format!(
                "the key in the environment variable {name} is not accepted there: export another one, or correct `base_url`"
            )),
            Self::Refused { variable: None, .. } => Box::new("the server wants a key: export it and name its variable in `api_key_env`"),
            Self::Money { .. } => Box::new("top up the account and run again: what was answered is kept"),
            Self::Quota { .. } => Box::new("top it up and run again: what was answered is kept"),
            Self::Missing { .. } => {
                Box::new("correct `model`, `base_url` (it usually ends in /v1) or `endpoint`; `flow teacher probe` lists the models")
            }
            Self::Later { .. } => Box::new("run again then: what was answered is kept"),
            Self::Elsewhere { .. } => Box::new("give the address that it names as `base_url`"),
        })
    }
}
