//! Arguments of `flow convert`.

use std::path::PathBuf;

use clap::Args;
use flow_lm::format::gguf::export::Storage;
use flow_lm::format::hf_export::FloatType;

/// A type of either format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Gguf(Storage),
    Float(FloatType),
}

#[derive(Args)]
pub struct ConvertArgs {
    /// GGUF file or model directory (Hugging Face or flow)
    #[arg(value_name = "IN")]
    pub from: PathBuf,
    /// What to write: a GGUF file where it ends in .gguf, else a Hugging Face directory
    #[arg(value_name = "OUT")]
    pub to: PathBuf,
    /// Storage of the linears: q2_0, tq2_0 or tq1_0 of a ternary model, q8_0, f16, f32; of a directory bfloat16 or float32
    /// (default: what holds the model as it is; bfloat16)
    #[arg(long = "type", value_name = "TYPE", value_parser = any)]
    pub ty: Option<Type>,
    /// Storage of the embedding (default: as the linears where it is ternary too, else f16)
    #[arg(long, value_name = "TYPE", value_parser = storage)]
    pub embedding: Option<Storage>,
    /// Storage of the head, where it is not the embedding (default: as the linears where it is ternary too, else f16)
    #[arg(long, value_name = "TYPE", value_parser = storage)]
    pub head: Option<Storage>,
    /// What the model is called (default: its name in IN, else that of IN)
    #[arg(long)]
    pub name: Option<String>,
    /// Who made it (default: as a GGUF file says)
    #[arg(long)]
    pub author: Option<String>,
    /// Its licence, such as apache-2.0 (default: as a GGUF file says)
    #[arg(long)]
    pub licence: Option<String>,
    /// Replace OUT if it is there
    #[arg(long)]
    pub force: bool,
}

fn storage(text: &str) -> Result<Storage, String> {
    Storage::of(text).ok_or_else(|| format!("expected one of {}", Storage::ALL.map(Storage::name).join(", ")))
}

fn any(text: &str) -> Result<Type, String> {
    let float = FloatType::of(text).map(Type::Float);
    float.map_or_else(|| storage(text).map(Type::Gguf).map_err(|e| format!("{e}, bfloat16, float32")), Ok)
}
