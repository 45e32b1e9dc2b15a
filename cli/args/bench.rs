//! Arguments of `flow bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use flow_lm::config::Bits;
use flow_lm::infer::Takes;

use super::values::{above_zero, activation_bits, activations};

#[derive(Subcommand)]
pub enum BenchCommand {
    /// Steps of ternary knowledge distillation on random tokens
    Train(BenchTrainArgs),
    /// Read a prompt and decode after it, from a GGUF file
    Infer(BenchInferArgs),
    /// Single kernels: time, rate, share of the device's measured peak
    Kernels(BenchDeviceArgs),
}

#[derive(Args)]
pub struct BenchDeviceArgs {
    /// Device: auto, gpu, cpu or an adapter's name
    #[arg(long, env = "FLOW_DEVICE", default_value = "auto")]
    pub device: String,
    /// CPU threads (default: all cores)
    #[arg(long, value_name = "N", env = "FLOW_THREADS")]
    pub threads: Option<usize>,
    /// Print one line of JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct BenchTrainArgs {
    /// Shape of the model: poc, poc-teacher, mini, 2b4t or 7b
    #[arg(long, default_value = "poc")]
    pub preset: String,
    /// Sequences of a step
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = above_zero)]
    pub batch: usize,
    /// Tokens of a sequence (default: the preset's)
    #[arg(long, value_name = "N", value_parser = above_zero)]
    pub seq: Option<usize>,
    /// Activation bits
    #[arg(long, default_value = "8", value_parser = activation_bits)]
    pub bits: Bits,
    /// Steps that count
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = above_zero)]
    pub steps: usize,
    /// Muon for the hidden matrices instead of AdamW
    #[arg(long)]
    pub muon: bool,
    /// Newton–Schulz steps of Muon (default: the recipe's)
    #[arg(long, value_name = "N", value_parser = above_zero)]
    pub ns_steps: Option<usize>,
    /// Compute a block's activations again in the backward pass instead of keeping them
    #[arg(long)]
    pub recompute: bool,
    /// AdamW's moments in one byte each
    #[arg(long)]
    pub int8_moments: bool,
    /// Activations and gradients kept as float16, with a loss scale
    #[arg(long)]
    pub float16_storage: bool,
    #[command(flatten)]
    pub on: BenchDeviceArgs,
}

/// Forms of the KV cache.
#[derive(Clone, Copy, ValueEnum)]
pub enum KvForm {
    /// 32-bit floats
    F32,
    /// 16-bit floats
    F16,
    /// Bytes with a step for each position and head
    Int8,
}

#[derive(Args)]
pub struct BenchInferArgs {
    /// GGUF file
    pub model: PathBuf,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = above_zero)]
    pub prompt: usize,
    /// Tokens decoded after it
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = above_zero)]
    pub decode: usize,
    /// Sequences together
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = above_zero)]
    pub batch: usize,
    /// Rounds that count
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = above_zero)]
    pub repeat: usize,
    /// What linears take: 8 or 4 (bits), float or block8 (default: 8 or float, as the model was trained)
    #[arg(long = "activations", alias = "bits", value_name = "HOW", value_parser = activations)]
    pub takes: Option<Takes>,
    /// How keys and values are cached
    #[arg(long, value_name = "FORM", default_value = "f16")]
    pub kv: KvForm,
    /// Positions of the cache, all of them written (default: those that prompt and decoded tokens need)
    #[arg(long, value_name = "N", conflicts_with = "score", value_parser = above_zero)]
    pub context: Option<usize>,
    /// Score the prompt (logits and Top-K at every position) instead of decoding
    #[arg(long)]
    pub score: bool,
    #[command(flatten)]
    pub on: BenchDeviceArgs,
}
