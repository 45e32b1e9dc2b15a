//! `flow teacher probe`: what a hosted teacher really gives, before anything is paid for.

use std::collections::BTreeSet;
use std::sync::Arc;

use flow_engine::Registry;
use flow_engine::plan::{Plan, StageId};
use flow_engine::plugin::{EventSink, Stage as _, TaskEvent};
use flow_engine::problem::Problem;
use flow_stages::kinds::kd_collect::CollectStage;
use flow_stages::kinds::teacher_baseline::BaselineStage;
use flow_stages::kinds::teacher_http::HttpTeacherStage;
use flow_stages::teacher::http::probe::{Work, standalone};

use crate::args::ProbeArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::print::{print, say};

fn is_hosted(plan: &Plan, id: StageId) -> bool {
    plan.stage(id).kind.name() == HttpTeacherStage::KIND
}

/// Stages that ask this teacher.
fn readers(plan: &Plan, teacher: StageId) -> impl Iterator<Item = StageId> {
    plan.dependants(teacher).filter(|id| matches!(plan.stage(*id).kind.name(), CollectStage::KIND | BaselineStage::KIND))
}

/// Stages that ask a hosted teacher.
pub fn askers(plan: &Plan) -> BTreeSet<StageId> {
    plan.order().iter().filter(|id| is_hosted(plan, **id)).flat_map(|id| readers(plan, *id)).collect()
}

/// Says on the terminal at once what a probe waits for.
struct Tell;

impl EventSink for Tell {
    fn emit(&self, event: TaskEvent) {
        if let TaskEvent::Log { message } | TaskEvent::Warning { message } = event {
            say(&format!("  {message}"));
        }
    }
}

pub fn probe(registry: &Registry, args: &ProbeArgs) -> Result<u8, Failure> {
    let context = Context::load(registry, &args.pipeline)?;
    let plan = &context.plan;
    let teachers: Vec<_> = match &args.stage {
        Some(name) => plan.matching(name)?,
        None => plan.order().to_vec(),
    };
    let teachers: Vec<_> = teachers.into_iter().filter(|id| is_hosted(plan, *id)).collect();
    if teachers.is_empty() {
        let of = args.stage.as_ref().map_or("the pipeline has no stage of that kind".into(), |s| format!("`{s}` is no stage of that kind"));
        return Err(Problem::new(format!("only a teacher of kind {} can be probed: {of}", HttpTeacherStage::KIND)).into());
    }
    for id in teachers {
        let work: Vec<Work> =
            readers(plan, id).map(|reader| plan.stage(reader)).map(|s| Work { stage: s.name.clone(), params: s.params.clone() }).collect();
        let scratch = tempfile::tempdir().map_err(|e| Failure::Broken(format!("cannot make a temporary directory: {e}")))?;
        let stage = plan.stage(id);
        print(&format!("{}:", stage.name));
        match standalone(&stage.params, &work, scratch.path(), Arc::new(Tell)) {
            Ok(lines) => lines.iter().for_each(|line| print(&format!("  {line}"))),
            Err(e) => {
                say(&format!("{}: {e}{}", stage.name, e.help.as_ref().map_or(String::new(), |h| format!("\n  help: {h}"))));
                return Ok(1);
            }
        }
    }
    Ok(0)
}
