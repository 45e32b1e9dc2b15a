//! External plugins: an executable that describes its kinds and runs tasks.
//!
//! `COMMAND describe` prints JSON: `{"kinds": [{"kind", "revision", "summary", "inputs": [{"name", "types", "required",
//! "list", "doc"}], "outputs": [{"name", "type", "measured", "doc"}], "params": JSON Schema}]}`. `COMMAND run DIR`
//! executes the task directory `DIR`: it reads `task.json`, creates the outputs, may append to `events.jsonl`, and
//! ends with `result.json`. Both run in a private directory that holds the plugin's declared files.

use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flow_cache::{Cache, Digest};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::command::run::{Ended, MARK, confined, run};
use crate::command::{sandbox, workdir};
use crate::kind::{Checked, Kind, Refused};
use crate::pipeline::{Pipeline, PluginDecl};
use crate::plan::{Origin, ParamSource};
use crate::plugin::{InputPort, OutputPort, Purity, StageError, TaskContext};
use crate::problem::{Problem, Problems};
use crate::registry::Registry;
use crate::schema;
use crate::worker::result::TaskResult;
use crate::worker::tail::Tail;

/// How long a plugin may take to describe itself, and how much it may print then.
const PATIENCE: Duration = Duration::from_secs(20);
const LONGEST: u64 = 4 << 20;
/// What it sees of the environment then: nothing that could be a secret.
const SEEN: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH"];

#[derive(Deserialize)]
struct Described {
    kinds: Vec<DescribedKind>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DescribedKind {
    kind: String,
    revision: u32,
    summary: String,
    #[serde(default)]
    inputs: Vec<DescribedInput>,
    outputs: Vec<DescribedOutput>,
    #[serde(default)]
    params: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DescribedInput {
    name: String,
    types: Vec<String>,
    #[serde(default = "yes")]
    required: bool,
    #[serde(default)]
    list: bool,
    #[serde(default)]
    doc: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DescribedOutput {
    name: String,
    #[serde(rename = "type")]
    ty: String,
    #[serde(default)]
    measured: bool,
    #[serde(default)]
    doc: String,
}

fn yes() -> bool {
    true
}

/// Adds the kinds of a pipeline's plugins. What a plugin says of itself is remembered by the contents of its files.
pub fn register(pipeline: &Pipeline, cache: &dyn Fn() -> Result<Arc<Cache>, Problem>, registry: &mut Registry) -> Result<(), Problems> {
    let mut problems = Vec::new();
    for decl in &pipeline.plugins {
        if let Err(problem) = cache().and_then(|cache| add(decl, &cache, registry)) {
            problems.push(problem);
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Problems { list: problems }) }
}

fn add(decl: &PluginDecl, cache: &Cache, registry: &mut Registry) -> Result<(), Problem> {
    let at = |message: String| decl.document.at_value(&decl.at, message);
    let mut files = Map::new();
    for (i, pattern) in decl.files.iter().enumerate() {
        let source = ParamSource { at: Vec::new(), of: Origin::Glob(decl.dir.clone(), pattern.clone()) };
        let place = [decl.at.as_slice(), &["files".into(), i.to_string()]].concat();
        let content = source.content(cache).map_err(|e| decl.document.at_value(&place, e.to_string()))?;
        files.insert(pattern.clone(), content.unwrap_or_default());
    }
    let identity = json!({ "command": decl.command, "files": files });
    let name = Digest::of(format!("plugin 1\n{identity}").as_bytes());
    let known = cache.memo(&name).map_err(|e| at(e.to_string()))?;
    let text = match known {
        Some(text) => text,
        None => describe(decl, &cache.layout().tmp()).map_err(|e| at(e.message).maybe_help(e.help))?,
    };
    let described: Described = serde_json::from_slice(&text).map_err(|e| {
        at(format!("plugin `{}` describes itself in JSON that does not fit: {e}", decl.name))
            .help("`COMMAND describe` prints {\"kinds\": […]}; docs/plugins.md has an example")
    })?;
    cache.set_memo(&name, &text).map_err(|e| at(e.to_string()))?;
    for kind in described.kinds {
        if registry.get(&kind.kind).is_some() {
            return Err(at(format!("plugin `{}` brings kind `{}`, which is there already", decl.name, kind.kind)));
        }
        if kind.outputs.is_empty() {
            return Err(at(format!("kind `{}` of plugin `{}` has no output", kind.kind, decl.name)));
        }
        registry.register_kind(Arc::new(External::new(decl, kind, Digest::of(identity.to_string().as_bytes()).hex())));
    }
    Ok(())
}

/// Asks a plugin for its kinds.
fn describe(decl: &PluginDecl, tmp: &Path) -> Result<Vec<u8>, StageError> {
    let dir = tempfile::tempdir_in(tmp).map_err(|e| StageError::io("create a directory in", tmp, &e))?;
    let work = dir.path().join("work");
    workdir::fill(&work, &decl.dir, &decl.files)?;
    let out = dir.path().join("describe.json");
    let file = std::fs::File::create(&out).map_err(|e| StageError::io("create", &out, &e))?;
    let errors = dir.path().join("errors");
    let error_file = std::fs::File::create(&errors).map_err(|e| StageError::io("create", &errors, &e))?;
    let mut command = command_of(&decl.command, &work);
    command.arg("describe").stdout(file).stderr(error_file).env_clear().env("TMPDIR", &work);
    command.envs(SEEN.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    let failed =
        |what: String| StageError::new(format!("plugin `{}` {what}", decl.name)).help(format!("try `{} describe`", decl.command.join(" ")));
    let mut child = confined(command, &work).map_err(|e| failed(format!("cannot be started: {e}")))?;
    let ended = describing(&mut child, [&out, &errors]);
    // Nothing that it started outlives it.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    let _ = child.wait();
    let status = ended.map_err(failed)?;
    if !status.success() {
        let said = std::fs::read(&errors).map(|b| String::from_utf8_lossy(&b).trim().to_owned()).unwrap_or_default();
        let last = said.lines().last().unwrap_or_default();
        return Err(failed(format!("failed to describe itself ({status}): {last}")));
    }
    std::fs::read(&out).map_err(|e| StageError::io("read", &out, &e))
}

/// Waits for a plugin that describes itself into two files; why it is not waited for any longer.
fn describing(child: &mut Child, files: [&Path; 2]) -> Result<ExitStatus, String> {
    let began = Instant::now();
    loop {
        let printed = files.iter().filter_map(|f| std::fs::metadata(f).ok()).map(|m| m.len()).max().unwrap_or(0);
        match child.try_wait() {
            _ if printed > LONGEST => return Err(format!("prints more than {} MiB to describe itself", LONGEST >> 20)),
            Ok(Some(status)) => return Ok(status),
            Ok(None) if began.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) => return Err(format!("did not describe itself within {} s", PATIENCE.as_secs())),
            Err(e) => return Err(format!("cannot be waited for: {e}")),
        }
    }
}

fn command_of(words: &[String], work: &Path) -> Command {
    let (program, args) = words.split_first().map_or(("", words), |(p, a)| (p.as_str(), a));
    // A program that is one of the plugin's own files is found in the private directory.
    let own = work.join(program);
    let mut command = if program.contains('/') && own.exists() { Command::new(own) } else { Command::new(program) };
    command.args(args).current_dir(work);
    command
}

struct External {
    command: Vec<String>,
    files: Vec<String>,
    dir: Arc<Path>,
    digest: String,
    kind: String,
    revision: u32,
    summary: String,
    inputs: Vec<InputPort>,
    outputs: Vec<OutputPort>,
    schema: Value,
}

impl External {
    fn new(decl: &PluginDecl, kind: DescribedKind, digest: String) -> Self {
        let inputs = kind.inputs.into_iter().map(|i| InputPort {
            name: i.name.into(),
            types: i.types.into_iter().map(Into::into).collect(),
            required: i.required,
            list: i.list,
            doc: i.doc.into(),
        });
        let outputs = kind.outputs.into_iter().map(|o| OutputPort {
            name: o.name.into(),
            ty: o.ty.into(),
            purity: if o.measured { Purity::Measured } else { Purity::Pure },
            doc: o.doc.into(),
        });
        let mut schema = kind.params;
        schema.entry("type").or_insert_with(|| json!("object"));
        schema.entry("additionalProperties").or_insert(json!(false));
        schema.entry("properties").or_insert_with(|| json!({}));
        Self {
            command: decl.command.clone(),
            files: decl.files.clone(),
            dir: decl.dir.clone(),
            digest,
            inputs: inputs.collect(),
            outputs: outputs.collect(),
            kind: kind.kind,
            revision: kind.revision,
            summary: kind.summary,
            schema: Value::Object(schema),
        }
    }
}

impl Kind for External {
    fn name(&self) -> &str {
        &self.kind
    }
    fn revision(&self) -> u32 {
        self.revision
    }
    fn summary(&self) -> &str {
        &self.summary
    }
    fn heavy(&self) -> bool {
        false
    }
    fn inputs(&self) -> &[InputPort] {
        &self.inputs
    }
    fn outputs(&self) -> &[OutputPort] {
        &self.outputs
    }
    fn fingerprints(&self, _params: &Value, _: &[&str]) -> Vec<(String, String)> {
        vec![("plugin".into(), self.digest.clone())]
    }
    fn schema(&self) -> &Value {
        &self.schema
    }

    fn check(&self, mut raw: Value) -> Result<Checked, Refused> {
        schema::refuse_unknown(&self.schema, &raw)?;
        schema::fill_defaults(&self.schema, &mut raw);
        schema::check(&self.schema, &raw)?;
        let mut notes = Vec::new();
        if !sandbox::is_enforced() {
            notes.push("this kernel has no Landlock: that the plugin writes into its own directory only is not enforced".into());
        }
        Ok(Checked { params: raw, notes })
    }

    fn run(&self, params: Value, ctx: &TaskContext) -> Result<(), StageError> {
        let dir = ctx.task_dir();
        let work = dir.join("work");
        workdir::fill(&work, &self.dir, &self.files)?;
        std::fs::create_dir_all(ctx.state_dir()).map_err(|e| StageError::io("create directory", ctx.state_dir(), &e))?;
        let mut task = ctx.task().clone();
        task.params = params;
        let file = dir.join("task.json");
        let text = serde_json::to_vec_pretty(&task).map_err(|e| StageError::new(format!("task.json: {e}")))?;
        std::fs::write(&file, text).map_err(|e| StageError::io("write", &file, &e))?;
        let mut command = command_of(&self.command, &work);
        command.arg("run").arg(dir).env(MARK, dir).env("TMPDIR", dir);
        for name in &task.withheld {
            command.env_remove(name);
        }
        let mut events = Tail::new(&dir.join("events.jsonl"));
        let ended = run(command, dir, ctx, &mut || events.read(&mut |e| ctx.tell(e)));
        events.read(&mut |e| ctx.tell(e));
        let result = dir.join("result.json");
        match (ended?, std::fs::read(&result)) {
            (Ended::Stopped, _) => Err(StageError::interrupted()),
            (Ended::Exit(code), Err(_)) => Err(StageError::new(format!("the plugin ended without result.json (exit code {code})"))
                .help("it ends with {\"ok\": true}, or with \"ok\": false and \"message\"")),
            (Ended::Exit(code), Ok(bytes)) => {
                let result: TaskResult = serde_json::from_slice(&bytes).map_err(|e| {
                    StageError::new(format!("the plugin's result.json does not fit: {e}"))
                        .help("it holds {\"ok\": true}, or \"ok\": false with \"message\" and perhaps \"help\"")
                })?;
                match (result.ok, code) {
                    (true, 0) => Ok(()),
                    (true, code) => Err(StageError::new(format!("the plugin says ok and ended with exit code {code}"))),
                    (false, _) => Err(result.error("the plugin failed without a message")),
                }
            }
        }
    }
}
