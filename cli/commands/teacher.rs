//! `flow teacher probe`: what a hosted teacher really gives, before anything is paid for.

use flow_engine::Registry;
use flow_engine::plugin::Stage as _;
use flow_engine::problem::Problem;
use flow_stages::teacher::http::HttpTeacherStage;
use flow_stages::teacher::http::probe::{Work, standalone};

use crate::args::ProbeArgs;
use crate::commands::{print, say};
use crate::context::Context;
use crate::failure::Failure;

pub fn probe(registry: &Registry, args: &ProbeArgs) -> Result<u8, Failure> {
    let context = Context::load(registry, &args.pipeline)?;
    let plan = &context.plan;
    let hosted = |id: &flow_engine::plan::StageId| plan.stage(*id).kind.name() == HttpTeacherStage::KIND;
    let teachers: Vec<_> = match &args.stage {
        Some(name) => plan.matching(name)?,
        None => plan.order().to_vec(),
    };
    let teachers: Vec<_> = teachers.into_iter().filter(hosted).collect();
    if teachers.is_empty() {
        let of = args.stage.as_ref().map_or("the pipeline has no stage of that kind".into(), |s| format!("`{s}` is no stage of that kind"));
        return Err(Problem::new(format!("only a teacher of kind {} can be probed: {of}", HttpTeacherStage::KIND)).into());
    }
    for id in teachers {
        let work: Vec<Work> = plan
            .dependants(id)
            .map(|reader| plan.stage(reader))
            .filter(|s| matches!(s.kind.name(), "kd.collect" | "teacher.baseline"))
            .map(|s| Work { stage: s.name.clone(), params: s.params.clone() })
            .collect();
        let scratch = tempfile::tempdir().map_err(|e| Failure::Broken(format!("cannot make a temporary directory: {e}")))?;
        let stage = plan.stage(id);
        print(&format!("{}:", stage.name));
        match standalone(&stage.params, &work, scratch.path()) {
            Ok(lines) => lines.iter().for_each(|line| print(&format!("  {line}"))),
            Err(e) => {
                say(&format!("{}: {e}{}", stage.name, e.help.as_ref().map_or(String::new(), |h| format!("\n  help: {h}"))));
                return Ok(1);
            }
        }
    }
    Ok(0)
}
