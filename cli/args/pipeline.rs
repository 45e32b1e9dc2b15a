//! What names a pipeline and changes it.

use std::path::PathBuf;

use clap::Args;

use super::values::assignment;

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
