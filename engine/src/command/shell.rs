//! `shell`: a command line with declared inputs, files, environment and outputs.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Arc, OnceLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command::run::{Ended, MARK, run};
use crate::command::{sandbox, workdir};
use crate::kind::{Checked, Kind, Refused};
use crate::plugin::{InputPort, OutputPort, Purity, SourceGlob, StageError, TaskContext};
use crate::registry::{Registry, typed};
use crate::schema;

/// Name of the kind.
pub const KIND: &str = "shell";
const REVISION: u32 = 1;
/// Where commands are looked for, unless the stage says otherwise; part of the recipe.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the command sees beside its ports; a port cannot take these names.
const RESERVED: [&str; 8] = ["PATH", "HOME", "TMPDIR", "LANG", "IFS", "PWD", "SHELL", MARK];
/// The type of an output that says none.
const ANY_FILE: &str = "File";

/// Parameters of `shell`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Params {
    /// What `/bin/sh -eu` runs. `$PORT` is the path of an input, `$out` (or `$NAME` of each output) the path to create.
    run: String,
    /// Files that it reads: paths, directories and globs in the pipeline's folder. They count by content and are
    /// present at the same paths in the stage's private working directory.
    #[serde(default)]
    files: Vec<SourceGlob>,
    /// Environment. A text is a value; `{inherit: true}` takes the value of the caller, and counts by it;
    /// `{secret: true}` takes it and does not count. Everything else is cleared but PATH, HOME, TMPDIR and LANG.
    #[serde(default)]
    env: BTreeMap<String, EnvValue>,
    /// Names of the outputs, or names with their artifact types.
    #[serde(default)]
    outputs: Outputs,
    /// Whether the result differs from run to run (speed, memory, time): the key then holds the machine, and pure
    /// stages cannot read it.
    #[serde(default)]
    measured: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum EnvValue {
    Text(String),
    Inherited(Inherited),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("x-flow" = "env"))]
struct Inherited {
    /// Take the value of the caller; it is part of the key.
    #[serde(default)]
    inherit: bool,
    /// Take the value of the caller; it is not part of the key, and never stored.
    #[serde(default)]
    secret: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Outputs {
    Names(Vec<String>),
    Typed(BTreeMap<String, String>),
}

impl Default for Outputs {
    fn default() -> Self {
        Self::Names(vec!["out".into()])
    }
}

impl Outputs {
    fn list(&self) -> Vec<(&str, &str)> {
        match self {
            Self::Names(names) => names.iter().map(|n| (n.as_str(), ANY_FILE)).collect(),
            Self::Typed(typed) => typed.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect(),
        }
    }
}

/// The kind, with the ports of one stage where it is shaped.
#[derive(Default)]
struct Shell {
    inputs: Vec<InputPort>,
    outputs: Vec<OutputPort>,
}

/// Adds `shell`.
pub fn register(registry: &mut Registry) {
    registry.register_kind(Arc::new(Shell::default()));
}

fn schema_value() -> &'static Value {
    static SCHEMA: OnceLock<Value> = OnceLock::new();
    SCHEMA.get_or_init(|| schemars::schema_for!(Params).to_value())
}

fn refuse(path: &[&str], at_key: bool, message: String, help: &str) -> Refused {
    Refused { path: path.iter().map(ToString::to_string).collect(), at_key, message, help: Some(help.into()) }
}

fn check_name(name: &str, what: &str) -> Result<(), String> {
    let mut chars = name.chars();
    let plain = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !plain {
        return Err(format!("`{name}` cannot name {what}: the command reads it as ${name}"));
    }
    if RESERVED.contains(&name) {
        return Err(format!("`{name}` cannot name {what}: the command's own environment has that name"));
    }
    Ok(())
}

impl Kind for Shell {
    fn name(&self) -> &str {
        KIND
    }
    fn revision(&self) -> u32 {
        REVISION
    }
    fn summary(&self) -> &str {
        "Runs a command line with declared inputs, files, environment and outputs."
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
        Vec::new()
    }
    fn schema(&self) -> &Value {
        schema_value()
    }

    fn takes_any_input(&self) -> bool {
        true
    }

    fn shape(&self, inputs: &[(String, bool)], with: &Value) -> Result<Option<Arc<dyn Kind>>, Refused> {
        const NAMES: &str = "use letters, digits and `_`, and no name such as PATH";
        let outputs: Outputs = match with.get("outputs") {
            None => Outputs::default(),
            Some(value) => serde_json::from_value(value.clone()).map_err(|_| {
                let message = "`with.outputs`: expected a list of names, or names with their types".into();
                refuse(&["outputs"], false, message, "such as `outputs: [model, log]` or `outputs: {model: Model}`")
            })?,
        };
        let purity = if with["measured"] == true { Purity::Measured } else { Purity::Pure };
        let list = outputs.list();
        if list.is_empty() {
            return Err(refuse(
                &["outputs"],
                false,
                "a stage needs at least one output".into(),
                "leave `outputs` out for the one output `$out`",
            ));
        }
        let mut shaped = Self::default();
        for (name, ty) in list {
            check_name(name, "an output").map_err(|m| refuse(&["outputs"], false, m, NAMES))?;
            if inputs.iter().any(|(input, _)| input == name) || shaped.outputs.iter().any(|o| o.name == name) {
                let message = format!("`{name}` names two ports");
                return Err(refuse(&["outputs"], false, message, "rename one of the two"));
            }
            let doc = "What the command creates at this path: a file or a directory.";
            shaped.outputs.push(OutputPort { name: name.to_owned().into(), ty: ty.to_owned().into(), purity, doc: doc.into() });
        }
        for (name, is_list) in inputs {
            check_name(name, "an input").map_err(|m| refuse(&[], false, m, NAMES))?;
            shaped.inputs.push(InputPort {
                name: name.clone().into(),
                types: vec!["*".into()],
                required: true,
                list: *is_list,
                doc: "The path of the artifact; of several, separated by spaces.".into(),
            });
        }
        Ok(Some(Arc::new(shaped)))
    }

    fn check(&self, raw: Value) -> Result<Checked, Refused> {
        schema::refuse_unknown(schema_value(), &raw)?;
        let params: Params = typed(raw)?;
        if params.run.trim().is_empty() {
            return Err(refuse(&["run"], false, "`with.run` is empty".into(), "write the command line"));
        }
        for (name, value) in &params.env {
            if name.contains(['=', '\0']) || name.is_empty() {
                return Err(refuse(
                    &["env", name],
                    true,
                    format!("`{name}` cannot name an environment variable"),
                    "use letters, digits and `_`",
                ));
            }
            if matches!(value, EnvValue::Inherited(i) if !i.inherit && !i.secret) {
                let message = format!("`with.env.{name}` says neither `inherit: true` nor `secret: true`");
                return Err(refuse(&["env", name], false, message, "a value of its own is written as plain text"));
            }
        }
        let mut notes = Vec::new();
        if !sandbox::is_enforced() {
            notes.push("this kernel has no Landlock: that the command writes into its own directory only is not enforced".into());
        }
        let params = serde_json::to_value(&params).map_err(|e| refuse(&[], false, e.to_string(), "this is a bug in flow"))?;
        Ok(Checked { params, notes })
    }

    fn run(&self, params: Value, ctx: &TaskContext) -> Result<(), StageError> {
        let params: Params = serde_json::from_value(params).map_err(|e| StageError::new(format!("parameters that do not fit: {e}")))?;
        let dir = ctx.task_dir();
        let work = dir.join("work");
        let patterns: Vec<String> = params.files.into_iter().map(|f| f.0).collect();
        workdir::fill(&work, ctx.dir(), &patterns)?;
        let mut command = Command::new("/bin/sh");
        command.arg("-euc").arg(&params.run).current_dir(&work).env_clear();
        command.envs([("PATH", PATH), ("LANG", "C.UTF-8")]).env(MARK, dir).env("HOME", &work).env("TMPDIR", dir);
        for (name, value) in &params.env {
            match value {
                EnvValue::Text(text) => command.env(name, text),
                EnvValue::Inherited(i) if i.secret => command.env(name, ctx.secret(name)?),
                EnvValue::Inherited(_) => match std::env::var_os(name) {
                    Some(value) => command.env(name, value),
                    None => &mut command,
                },
            };
        }
        for port in &self.inputs {
            let paths: Vec<_> = ctx.inputs(&port.name).map(|i| i.path.to_string_lossy().into_owned()).collect();
            if port.list && paths.iter().any(|p| p.contains(char::is_whitespace)) {
                return Err(StageError::new("the cache lies at a path with a space in it, so that a list of paths cannot be told apart")
                    .help("give another place with --cache-dir or FLOW_CACHE_DIR"));
            }
            command.env(&*port.name, paths.join(" "));
        }
        for port in &self.outputs {
            command.env(&*port.name, ctx.output(&port.name)?);
        }
        match run(command, dir, ctx, &mut || ())? {
            Ended::Exit(0) => Ok(()),
            Ended::Exit(code) => {
                let help = match code {
                    126 | 127 => "a command was not found: PATH is the system's own unless `env: {PATH: {inherit: true}}`",
                    _ => "the lines above are the last that it printed",
                };
                Err(StageError::new(format!("the command failed with exit code {code}")).help(help))
            }
            Ended::Stopped => Err(StageError::interrupted()),
        }
    }
}
