//! The command line: `bench`, `convert` and `talk` hold the arguments of their commands, `pipeline` what names and changes a pipeline,
//! `values` how texts become values.

mod bench;
mod convert;
mod pipeline;
mod talk;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use bench::{BenchCommand, BenchTrainArgs, KvForm};
pub use convert::{ConvertArgs, Type};
pub use pipeline::{OverrideArgs, PipelineArgs};
pub use talk::{ChatArgs, EvalArgs, GenerateArgs, SamplingArgs, ServeArgs, WhenFull};
use values::size;

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
    /// Measure a model on a text, alone or against another
    Eval(EvalArgs),
    /// Serve a model behind the OpenAI API
    Serve(ServeArgs),
    /// Continue a text with a model
    Generate(GenerateArgs),
    /// Write a model in another format: GGUF, or a Hugging Face directory
    Convert(ConvertArgs),
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
