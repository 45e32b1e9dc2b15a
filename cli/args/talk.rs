//! Arguments of the commands that talk to a model.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use flow_lm::infer::Takes;

use super::bench::KvForm;
use super::pipeline::OverrideArgs;
use super::values::{above_zero, activations};

/// How the next token is chosen.
#[derive(Args)]
pub struct SamplingArgs {
    /// Draw at this temperature (default: the most likely token)
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Only the so many most likely tokens (default: all)
    #[arg(long, value_name = "K", default_value_t = 0, hide_default_value = true)]
    pub top_k: usize,
    /// Only the most likely tokens whose mass together is this share
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Only tokens at least this share as likely as the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub min_p: f32,
    /// What the logits of tokens that were read or said are divided by (negative ones multiplied)
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// What happens to a conversation that no longer fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WhenFull {
    /// The oldest turns are forgotten
    Forget,
    /// The turn is refused
    Refuse,
}

#[derive(Args)]
pub struct ChatArgs {
    /// GGUF file, model directory (Hugging Face or flow), or PIPELINE.yaml:STAGE
    pub model: String,
    /// What the model is told first
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Tokens of an answer, at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 512, value_parser = above_zero)]
    pub max_tokens: usize,
    /// Tokens that a conversation may have (default: the length that the model was trained on, at most 4096)
    #[arg(long, value_name = "N", value_parser = above_zero)]
    pub context: Option<usize>,
    /// What happens when they are full
    #[arg(long, value_name = "HOW", default_value = "forget")]
    pub when_full: WhenFull,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// What linears take: 8 or 4 (bits) where they were trained to take codes, else float or block8 (int8 in blocks of 64,
    /// faster); by default 8 or float
    #[arg(long, value_name = "HOW", value_parser = activations)]
    pub activations: Option<Takes>,
    #[command(flatten)]
    pub overrides: OverrideArgs,
}

#[derive(Args)]
pub struct EvalArgs {
    /// GGUF file, model directory (Hugging Face or flow), or PIPELINE.yaml:STAGE
    pub model: String,
    /// Model that it is compared with, named in the same ways
    #[arg(long, value_name = "MODEL")]
    pub against: Option<String>,
    /// Text that neither was trained on
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Tokens of a window, at most; the second half of each is scored
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = above_zero)]
    pub context: usize,
    /// Print one line of JSON
    #[arg(long)]
    pub json: bool,
    /// What the linears of the other take (default: as --activations where that is 8 or 4 and fits, else 8 or float)
    #[arg(long, value_name = "HOW", requires = "against", value_parser = activations)]
    pub against_activations: Option<Takes>,
    /// What linears take: 8 or 4 (bits) where they were trained to take codes, else float or block8 (int8 in blocks of 64,
    /// faster); by default 8 or float
    #[arg(long, value_name = "HOW", value_parser = activations)]
    pub activations: Option<Takes>,
    #[command(flatten)]
    pub overrides: OverrideArgs,
}

#[derive(Args)]
pub struct ServeArgs {
    /// GGUF file, model directory (Hugging Face or flow), or PIPELINE.yaml:STAGE
    pub model: String,
    /// Address to listen on; others than loopback need a key
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Port to listen on (0: any free one)
    #[arg(long, value_name = "N", default_value_t = 8080)]
    pub port: u16,
    /// How clients call the model (default: its file, directory or stage)
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Sequences that are answered at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = above_zero)]
    pub slots: usize,
    /// Tokens that a prompt and its answer may have (default: the length that the model was trained on, at most 4096)
    #[arg(long, value_name = "N", value_parser = above_zero)]
    pub context: Option<usize>,
    /// Requests that wait for a slot, at most; more are told to come again
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = above_zero)]
    pub queue: usize,
    /// Environment variable with the key that every request must bring
    #[arg(long, value_name = "VARIABLE")]
    pub api_key_env: Option<String>,
    /// Ask for no key on an address that other machines reach
    #[arg(long, conflicts_with = "api_key_env")]
    pub no_key: bool,
    /// How keys and values are held
    #[arg(long, value_name = "FORM", default_value = "f16")]
    pub kv: KvForm,
    /// Score given text too (`echo` with `logprobs`, and for students of this model), so many tokens at a time (without a
    /// number: as many as a teacher's window has, 512 or the model's length), in memory of its own
    #[arg(long, value_name = "TOKENS", num_args = 0..=1, require_equals = true, default_missing_value = "512", value_parser = above_zero)]
    pub score: Option<usize>,
    /// Seconds that running answers have after SIGTERM or Ctrl-C
    #[arg(long, value_name = "S", default_value_t = 8)]
    pub grace: u64,
    /// What linears take: 8 or 4 (bits) where they were trained to take codes, else float or block8 (int8 in blocks of 64,
    /// faster); by default 8 or float
    #[arg(long, value_name = "HOW", value_parser = activations)]
    pub activations: Option<Takes>,
    #[command(flatten)]
    pub overrides: OverrideArgs,
}

#[derive(Args)]
pub struct GenerateArgs {
    /// GGUF file, model directory (Hugging Face or flow), or PIPELINE.yaml:STAGE
    pub model: String,
    /// Text to continue
    #[arg(short, long, value_name = "TEXT", conflicts_with = "file")]
    pub prompt: Option<String>,
    /// File with the text to continue (`-` or no prompt at all: standard input)
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Tokens of the continuation, at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256)]
    pub max_tokens: usize,
    /// Tokens that prompt and continuation may have together (default: the length that the model was trained on)
    #[arg(long, value_name = "N", value_parser = above_zero)]
    pub context: Option<usize>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// End before this text (several times: any of them)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// File with a JSON Schema that the continuation must satisfy
    #[arg(long, value_name = "FILE", conflicts_with = "grammar")]
    pub json_schema: Option<PathBuf>,
    /// File with a grammar (GBNF, as llama.cpp reads it) that the continuation must follow
    #[arg(long, value_name = "FILE")]
    pub grammar: Option<PathBuf>,
    /// What linears take: 8 or 4 (bits) where they were trained to take codes, else float or block8 (int8 in blocks of 64,
    /// faster); by default 8 or float
    #[arg(long, value_name = "HOW", value_parser = activations)]
    pub activations: Option<Takes>,
    #[command(flatten)]
    pub overrides: OverrideArgs,
}
