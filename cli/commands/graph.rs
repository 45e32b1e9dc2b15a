//! `flow graph PIPELINE`.

use crate::args::{GraphArgs, GraphFormat};
use crate::context::Context;
use crate::failure::Failure;
use crate::print::print;
use flow_engine::Registry;

pub fn graph(registry: &Registry, args: &GraphArgs) -> Result<u8, Failure> {
    let context = Context::load(registry, &args.pipeline)?;
    let selected = context.plan.select(&args.targets)?;
    let text = match args.format {
        GraphFormat::Dot => flow_engine::graph::dot(&context.plan, &selected),
        GraphFormat::Mermaid => flow_engine::graph::mermaid(&context.plan, &selected),
    };
    print(text.trim_end());
    Ok(0)
}
