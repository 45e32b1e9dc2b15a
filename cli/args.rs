//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use flow_lm::config::Bits;

/// From a YAML file to a trained, evaluated, exportable ternary language model.
///
/// Exit codes: 0 done, 1 a stage failed, 2 the pipeline or the command line is wrong, 3 a gate refused,
/// 4 the cache or the environment is broken, 130 interrupted.
#[derive(Parser)]
#[command(name = "flow", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make what a pipeline's targets need, reusing everything that is made already
    Run(RunArgs),
    /// Show what a run would execute, and why (the same as `run --dry-run`)
    Plan(PlanArgs),
    /// Say exactly why a stage would run, or what made its result
    Explain(ExplainArgs),
    /// Show for every stage whether its result is up to date
    Status(StatusArgs),
    /// Draw the pipeline
    Graph(GraphArgs),
    /// List the kinds of stages, or describe one
    Kinds(KindsArgs),
    /// List the devices that can compute
    Devices(DevicesArgs),
    /// Copy an artifact out of the cache
    Get(GetArgs),
    /// Print the JSON Schema of pipeline files, for editors
    Schema,
    /// List the last runs
    Log(LogArgs),
    /// Compare two runs: parameters, metrics, artifacts and times side by side
    Compare(CompareArgs),
    /// Write what is made now into flow.lock, for `run --locked`
    Lock(LockArgs),
    /// Take outputs that were made elsewhere as a stage's result
    Adopt(AdoptArgs),
    /// Run, and run again whenever a file changes
    Watch(RunArgs),
    /// Remove from the cache what no pin, recent run or running process needs
    Gc(GcArgs),
    /// Read everything in the cache again, and say what has to be made anew
    Verify(VerifyArgs),
    /// Pins, and what takes how much room
    #[command(subcommand)]
    Cache(CacheCommand),
    /// What a directory of traces holds
    #[command(subcommand)]
    Traces(TracesCommand),
    /// Talk to a model
    Chat(ChatArgs),
    /// Serve a model behind the OpenAI API
    Serve(ServeArgs),
    /// Continue a text with a model
    Generate(GenerateArgs),
    /// Teachers behind an API
    #[command(subcommand)]
    Teacher(TeacherCommand),
    /// Measure training, inference and single kernels on a device, beside what the device could do
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Write a commented starter pipeline
    Init(InitArgs),
    /// Print shell completions
    Completions { shell: clap_complete::Shell },
    /// Run one task directory (started by the engine)
    #[command(name = "__task", hide = true)]
    Task { dir: PathBuf },
}

#[derive(Args)]
pub struct PipelineArgs {
    /// Pipeline file
    pub pipeline: PathBuf,
    #[command(flatten)]
    pub overrides: OverrideArgs,
}

#[derive(Args, Clone)]
pub struct OverrideArgs {
    /// Give a variable of the pipeline another value
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = assignment)]
    pub vars: Vec<(String, String)>,
    /// Set a field of a stage, such as stages.student.with.tau=1.0
    #[arg(long = "set", value_name = "PATH=VALUE", value_parser = assignment)]
    pub sets: Vec<(String, String)>,
    /// Cache directory (default: .flow in the project)
    #[arg(long, env = "FLOW_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Device: auto, gpu, cpu or an adapter's name
    #[arg(long, env = "FLOW_DEVICE", default_value = "auto", value_name = "DEVICE")]
    pub device: String,
    /// Remote cache, such as s3://bucket/prefix or file:///folder (default: the file's `remote:`; `none` for none)
    #[arg(long, env = "FLOW_REMOTE", value_name = "URL")]
    pub remote: Option<String>,
    /// CPU threads (default: all cores)
    #[arg(long, env = "FLOW_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// Take --var and --set of the pipeline's last run, before those that are given here
    #[arg(long)]
    pub last: bool,
}

#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Stages to make (default: the file's targets, else all)
    pub targets: Vec<String>,
    /// Only show what would be executed, and why
    #[arg(long)]
    pub dry_run: bool,
    /// Print events as JSON lines
    #[arg(long)]
    pub json: bool,
    /// After a failure, finish what does not depend on it
    #[arg(long)]
    pub keep_going: bool,
    /// Execute this stage (a name, a pattern) whatever is in the cache
    #[arg(long, value_name = "STAGE")]
    pub force: Vec<String>,
    /// Ask hosted teachers again for the answers that were refused
    #[arg(long, conflicts_with = "check")]
    pub reask: bool,
    /// Execute again what is in the cache, and name the first byte that differs
    #[arg(long, conflicts_with = "force")]
    pub check: bool,
    /// Refuse to differ from flow.lock
    #[arg(long)]
    pub locked: bool,
    /// Replace this published place whatever is there now
    #[arg(long, value_name = "PATH")]
    pub overwrite: Vec<PathBuf>,
    /// Write a Chrome trace of the run, and print its critical path
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Print failures and the last line only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Args)]
pub struct CacheArgs {
    /// Cache directory (default: .flow in the project of the current directory)
    #[arg(long, env = "FLOW_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct GcArgs {
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Evict results of recent runs too, the least recently used first, until the objects fit, such as 20GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_size: Option<u64>,
    /// Recent runs of each pipeline whose results stay
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub keep_runs: usize,
    /// Only say what would go
    #[arg(long)]
    pub dry_run: bool,
    /// Remove without asking, for scripts
    #[arg(long, short)]
    pub yes: bool,
}

#[derive(Args)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Threads that read (default: all cores)
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Remote cache that damaged and missing objects are brought back from
    #[arg(long, env = "FLOW_REMOTE", value_name = "URL")]
    pub remote: Option<String>,
}

#[derive(Subcommand)]
pub enum CacheCommand {
    /// Keep a stage's present result whatever is collected
    Pin {
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// Stage
        stage: String,
        /// Name of the pin (default: the stage)
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove a pin
    Unpin {
        /// Name of the pin
        name: String,
        #[command(flatten)]
        cache: CacheArgs,
    },
    /// List the pins
    Pins(CacheArgs),
    /// Show what takes how much room
    Du(CacheArgs),
}

#[derive(Subcommand)]
pub enum TracesCommand {
    /// Rows, coverage, entropy, the mass of Other, invalid rows by reason
    Stats {
        /// Directory of traces, such as `flow get PIPELINE traces --to DIR` writes
        dir: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The first rows
    Head {
        /// Directory of traces
        dir: PathBuf,
        /// Lines to print
        #[arg(long, short = 'n', default_value_t = 20)]
        rows: usize,
    },
    /// Look at every row: which are invalid, where, and why; exit code 1 where there are too many
    Check {
        /// Directory of traces
        dir: PathBuf,
        /// Share of invalid rows that is tolerated
        #[arg(long, default_value_t = 0.02)]
        max_invalid: f64,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write several directories into one; prompts are numbered on
    Merge {
        /// Directory to write
        to: PathBuf,
        /// Directories to read, in this order
        #[arg(required = true)]
        dirs: Vec<PathBuf>,
    },
}

#[derive(Subcommand)]
pub enum TeacherCommand {
    /// Ask a hosted teacher for a token or two: does the model exist, do logprobs come, how many, of what, at what price
    Probe(ProbeArgs),
}

#[derive(Args)]
pub struct ProbeArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Stage of kind teacher.http (default: all of them)
    pub stage: Option<String>,
}

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
    /// Activation bits of ternary linears
    #[arg(long, default_value = "8", value_parser = activation_bits)]
    pub bits: Bits,
    /// How keys and values are cached
    #[arg(long, value_name = "FORM", default_value = "f16")]
    pub kv: KvForm,
    /// Score the prompt (logits and Top-K at every position) instead of decoding
    #[arg(long)]
    pub score: bool,
    #[command(flatten)]
    pub on: BenchDeviceArgs,
}

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
    /// Activation bits of ternary linears
    #[arg(long, value_name = "BITS", default_value = "8", value_parser = activation_bits)]
    pub activations: Bits,
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
    #[arg(long, value_name = "N", default_value_t = 64)]
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
    /// Seconds that running answers have after SIGTERM or Ctrl-C
    #[arg(long, value_name = "S", default_value_t = 8)]
    pub grace: u64,
    /// Activation bits of ternary linears
    #[arg(long, value_name = "BITS", default_value = "8", value_parser = activation_bits)]
    pub activations: Bits,
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
    /// Activation bits of ternary linears
    #[arg(long, value_name = "BITS", default_value = "8", value_parser = activation_bits)]
    pub activations: Bits,
    #[command(flatten)]
    pub overrides: OverrideArgs,
}

fn above_zero(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a whole number above 0".into())
}

fn activation_bits(text: &str) -> Result<Bits, String> {
    text.parse().ok().and_then(Bits::of).ok_or_else(|| "expected 8 or 4".into())
}

#[derive(Args)]
pub struct CompareArgs {
    /// Pipeline file (default: the one that ran last in this project), then two runs as `flow log` numbers them: an id,
    /// `last`, `last~1`, … (default: last~1 last)
    #[arg(value_name = "PIPELINE | RUN", num_args = 0..=3)]
    pub what: Vec<String>,
    /// Cache directory (default: .flow in the project)
    #[arg(long, env = "FLOW_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct LockArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Stages to lock, with what they need (default: the file's targets, else all)
    pub targets: Vec<String>,
    /// Also copy the first output of the one stage that is named, such as a teacher's baseline
    #[arg(long, value_name = "PATH")]
    pub to: Option<PathBuf>,
    /// Replace this path whatever is there now
    #[arg(long, value_name = "PATH")]
    pub overwrite: Vec<PathBuf>,
}

#[derive(Args)]
pub struct AdoptArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Stage
    pub stage: String,
    /// Its output, or a directory with one entry per output port
    pub path: PathBuf,
}

#[derive(Args)]
pub struct InitArgs {
    /// File to write
    #[arg(default_value = "pipeline.yaml")]
    pub path: PathBuf,
    /// What to start from
    #[arg(long, value_enum, default_value = "shell")]
    pub template: Template,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Template {
    /// Commands over files
    Shell,
    /// A text to a ternary model
    Model,
}

#[derive(Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Stages to make (default: the file's targets, else all)
    pub targets: Vec<String>,
    /// Print the plan as a JSON line
    #[arg(long)]
    pub json: bool,
    /// Execute this stage (a name, a pattern) whatever is in the cache
    #[arg(long, value_name = "STAGE")]
    pub force: Vec<String>,
}

#[derive(Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Stage
    pub stage: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum GraphFormat {
    /// Graphviz
    Dot,
    /// Mermaid
    Mermaid,
}

#[derive(Args)]
pub struct GraphArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Stages to draw with what they need (default: the file's targets, else all)
    pub targets: Vec<String>,
    /// Language
    #[arg(long, value_enum, default_value = "mermaid")]
    pub format: GraphFormat,
}

#[derive(Args)]
pub struct KindsArgs {
    /// A kind to describe
    pub kind: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct GetArgs {
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// `stage` (its first output) or `stage.port`
    pub artifact: String,
    /// Where to put the copy
    #[arg(long, value_name = "PATH")]
    pub to: PathBuf,
    /// Replace this path whatever is there now
    #[arg(long, value_name = "PATH")]
    pub overwrite: Vec<PathBuf>,
}

#[derive(Args)]
pub struct LogArgs {
    /// Pipeline file (default: all of this project)
    pub pipeline: Option<PathBuf>,
    /// How many of each pipeline
    #[arg(short, long, default_value_t = 20)]
    pub count: usize,
    /// Cache directory (default: .flow in the project)
    #[arg(long, env = "FLOW_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Print the records as JSON lines
    #[arg(long)]
    pub json: bool,
}

fn size(text: &str) -> Result<u64, String> {
    flow_engine::units::size_of(text).ok_or_else(|| "expected a size with its unit, such as 500MiB or 20GiB".into())
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("expected NAME=VALUE".into()),
    }
}
