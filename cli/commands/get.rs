//! `flow get PIPELINE STAGE[.PORT] --to PATH`.

use std::path::{Path, PathBuf};

use flow_cache::{Artifact, Cache};
use flow_engine::Registry;
use flow_engine::problem::Problem;
use flow_engine::publish::guard::{Guard, resolved};
use flow_engine::publish::{self, PutError, Wanted};

use crate::args::GetArgs;
use crate::context::{Context, say_assumed};
use crate::failure::Failure;
use crate::print::print;

pub fn get(registry: &Registry, args: &GetArgs) -> Result<u8, Failure> {
    say_assumed(&args.pipeline)?;
    let context = Context::load(registry, &args.pipeline)?;
    let (name, artifact) = context.made(&args.artifact)?;
    let cache = context.cache()?;
    put(&context, &cache, (&artifact, &name), &args.to, &args.overwrite)?;
    print(&format!("{name} → {} ({} bytes, {})", args.to.display(), artifact.size, artifact.digest.short()));
    Ok(0)
}

/// Copies an artifact to where a person wants it, and replaces only what an earlier copy put there.
pub fn put(context: &Context, cache: &Cache, (artifact, from): (&Artifact, &str), to: &Path, overwrite: &[PathBuf]) -> Result<(), Failure> {
    let place = std::path::absolute(to).map_err(|e| Failure::Broken(format!("{}: {e}", to.display())))?;
    let place = resolved(&place);
    let guard = Guard::of(&context.plan, cache, overwrite);
    let shown = to.display().to_string();
    let wanted = Wanted { artifact, from: from.to_owned(), run: "get" };
    match publish::put(&context.plan, cache, &guard, &shown, &place, &wanted) {
        Ok(_) => Ok(()),
        Err(PutError::Failed(e)) => Err(e.into()),
        Err(PutError::Refused(refusal)) => {
            let help = refusal.help("the same command with");
            Err(Problem::new(refusal.message()).help(help).into())
        }
    }
}
