//! The card of a model that goes out into the world: what it is, how it came to be, what was measured. What nobody said and
//! nothing measured is left out.

use flow_lm::config::{Activation, Activations, Group, ModelConfig, Weights};
use flow_lm::format::Checkpoint;
use flow_lm::format::hf_config::rounds;
use flow_lm::format::hf_export::FloatType;
use serde_json::Value;

use crate::measurements::Report;

/// Its file.
pub const CARD: &str = "README.md";

/// What a person says of a model.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// How it is called.
    pub name: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// Its licence.
    pub licence: Option<String>,
    /// The model that it was made of or learned from.
    pub teacher: Option<String>,
    /// What it was trained on.
    pub text: Option<String>,
}

/// How the directory was made.
pub enum Made<'a> {
    /// By a stage.
    Stages {
        /// Its name.
        stage: &'a str,
        /// Port, `stage.port` that made it, digest.
        inputs: Vec<(&'a str, &'a str, &'a str)>,
        /// All stages before it with their kinds, in order.
        ancestors: Vec<(&'a str, &'a str)>,
    },
    /// By a command over a file.
    Command(String),
}

/// Everything that a card is made of.
pub struct Card<'a> {
    /// What a person says.
    pub said: Said,
    /// The model.
    pub model: &'a Checkpoint,
    /// Storage and bytes of the weights.
    pub storage: (FloatType, u64),
    /// Whether it has a chat template.
    pub chat: bool,
    /// How it was made.
    pub made: Made<'a>,
    /// What was measured of it.
    pub report: Option<&'a Report>,
}

impl Card<'_> {
    /// The Markdown file.
    pub fn text(&self) -> String {
        let mut parts = vec![self.head(), format!("# {}\n", self.name()), self.summary(), self.shape(), self.rounding()];
        parts.extend(self.figures());
        parts.push(self.origin());
        parts.join("\n")
    }

    fn name(&self) -> &str {
        self.said.name.as_deref().unwrap_or("flow student")
    }

    /// What the Hub reads.
    fn head(&self) -> String {
        let mut lines = vec!["---".to_owned(), "library_name: transformers".into(), "pipeline_tag: text-generation".into()];
        lines.extend(self.said.licence.as_ref().map(|l| format!("license: {}", quoted(l))));
        // The name of a repository, not a description.
        let repository = |t: &&String| t.split('/').count() == 2 && !t.contains(char::is_whitespace);
        lines.extend(self.said.teacher.as_ref().filter(repository).map(|t| format!("base_model: {}", quoted(t))));
        if self.model.config.weights != Weights::Float {
            lines.push("tags: [ternary]".into());
        }
        lines.push("---\n".into());
        lines.join("\n")
    }

    fn summary(&self) -> String {
        let c = &self.model.config;
        let weights = if c.weights == Weights::Float { "full-precision" } else { "ternary" };
        let mut text = format!("A {weights} language model of {} parameters", c.parameters());
        text += &self.said.teacher.as_ref().map(|t| format!(", made of or taught by {t}")).unwrap_or_default();
        text += &self.said.author.as_ref().map(|a| format!(". Author: {a}")).unwrap_or_default();
        text += &self.said.text.as_ref().map(|t| format!(". Trained on: {t}")).unwrap_or_default();
        text.trim_end_matches('.').to_owned() + ".\n"
    }

    fn shape(&self) -> String {
        let c = &self.model.config;
        let (dtype, bytes) = self.storage;
        let mut rows = vec![
            ("layers", c.layers.to_string()),
            ("hidden size", c.dim.to_string()),
            ("heads", format!("{} of {}, {} for keys and values", c.heads, c.head_dim, c.kv_heads)),
            ("MLP", format!("{}, {}", c.mlp, if c.activation == Activation::Silu { "SwiGLU" } else { "ReLU²" })),
            ("vocabulary", c.vocab.to_string()),
            ("context", format!("{} tokens", c.seq)),
            ("weights in this directory", format!("{}, {bytes} bytes", dtype.name())),
        ];
        rows.extend(c.window.map(|w| ("window of attention", format!("{w} tokens"))));
        rows.push(("chat template", if self.chat { "yes" } else { "none" }.into()));
        table(("shape", ""), rows)
    }

    fn rounding(&self) -> String {
        let c = &self.model.config;
        if c.weights == Weights::Float {
            return "No matrix is ternary.\n".into();
        }
        let what = if c.ternary_embedding { "The linears of the blocks and the embedding" } else { "The linears of the blocks" };
        let what = what.to_owned() + if c.ternary_head { ", and the head," } else { "" };
        let text = format!("## Ternary weights\n\n{what} hold the values −s, 0 and +s, {}. {}", scale(c), self.activations());
        let stored = if rounds(c) {
            "The files hold masters: transformers' `AutoBitLinear` rounds them to these values, and activations with them."
        } else {
            "The files hold the values themselves."
        };
        let exact = match self.storage.0 {
            FloatType::Bfloat16 => "In bfloat16 a scale keeps 8 bits.",
            FloatType::Float32 => "In float32 they are exact.",
        };
        format!("{text} {stored} {exact}\n")
    }

    fn activations(&self) -> String {
        let c = &self.model.config;
        if c.activations == Activations::Float {
            return "Linears take unrounded activations.".into();
        }
        let bits = self.model.extra["activation_bits"].as_u64().unwrap_or(8);
        let here = if rounds(c) && bits == 8 { "" } else { "; these files alone do not round them so" };
        format!("Linears were trained on activations of {bits} bits, a step for each token{here}.")
    }

    fn figures(&self) -> Option<String> {
        let number = |v: Option<f64>| v.map(|x| format!("{x:.4}"));
        let count = |v: Option<u64>| v.map(|n| n.to_string());
        let own = "bits per byte of held-out text";
        let rows: Vec<(&str, Option<String>)> = match self.report? {
            Report::Text(r) => vec![(own, number(r.bits_per_byte))],
            Report::Eval(r) => vec![
                (own, number(r.bits_per_byte.student)),
                ("bits per byte, the teacher's", number(r.bits_per_byte.teacher)),
                ("KL from the teacher, nats a token", number(r.kl)),
                ("same most likely token as the teacher", r.top1_agreement.map(|x| format!("{:.2} %", 100.0 * x))),
                ("planned bytes in memory while it runs", count(r.qei_metrics.student_memory_planned_bytes)),
                ("bytes in memory, the teacher's", count(r.qei_metrics.teacher_memory())),
            ],
        };
        let rows: Vec<_> = rows.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        (!rows.is_empty()).then(|| "## Measured\n\n".to_owned() + &table(("figure", ""), rows))
    }

    fn origin(&self) -> String {
        let mut text = "## How it was made\n\n".to_owned();
        match &self.made {
            Made::Command(command) => text += &format!("`{command}`\n"),
            Made::Stages { stage, inputs, ancestors } => {
                text += &format!("By stage `{stage}` of a `flow` pipeline (`flow run PIPELINE {stage}`).\n\n");
                let input = |(port, from, digest): &(&str, &str, &str)| format!("| {port} | `{from}` | `{digest}` |\n");
                text += "| input | made by | blake3 |\n| --- | --- | --- |\n";
                text += &inputs.iter().map(input).collect::<String>();
                if !ancestors.is_empty() {
                    let all: Vec<String> = ancestors.iter().map(|(stage, kind)| format!("`{stage}` ({kind})")).collect();
                    text += &format!("\nStages before it: {}.\n", all.join(", "));
                }
            }
        }
        text
    }
}

fn scale(c: &ModelConfig) -> String {
    let shares = match c.group {
        Group::Tensor => "with one scale s for a matrix".to_owned(),
        Group::Row => "with a scale s for each row".into(),
        Group::Of(n) => format!("with a scale s for each {n} weights of a row"),
    };
    match c.weights {
        Weights::Threshold => "with a learned scale s for each row; what is below 0.7 of the mean magnitude is 0".into(),
        _ => format!("{shares}, the mean magnitude of what was trained (absmean)"),
    }
}

fn table((left, right): (&str, &str), rows: Vec<(&str, String)>) -> String {
    let lines = rows.into_iter().map(|(name, value)| format!("| {name} | {value} |\n")).collect::<String>();
    format!("| {left} | {right} |\n| --- | --- |\n{lines}")
}

/// A YAML scalar, whatever a person wrote.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
