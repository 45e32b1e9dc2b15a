//! A project directory in which the fixture `flow` is run.
#![allow(dead_code, unused_imports)]

mod skipped;

pub use skipped::skipped;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

/// `flow` over the fixture kinds: the example `flow-fixture`, built where `cargo test --test NAME` left it out.
pub fn fixture() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_BIN_EXE_flow")).parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--locked", "--example", "flow-fixture"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        // What a test is told of its own package would reach build scripts: ring's runs again when they change, and all
        // above it is compiled again.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
                cargo.env_remove(name);
            }
        }
        assert!(cargo.status().unwrap().success(), "the fixture does not build");
        folder.join("examples/flow-fixture")
    });
    built.clone()
}

pub struct Project {
    dir: tempfile::TempDir,
}

/// What a command printed and how it ended.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
    /// Fails unless the exit code is `code`.
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "\nstdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }
    /// The last JSON line.
    pub fn last(&self) -> serde_json::Value {
        let line = self.out.lines().last().unwrap_or_else(|| panic!("no output; stderr:\n{}", self.err));
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }
    /// The names in a list of the last JSON line, sorted.
    pub fn names(&self, list: &str) -> Vec<String> {
        let mut names: Vec<_> = self.last()[list].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }
}

impl Project {
    /// A project with `p.yaml`, a text, and nothing made yet.
    pub fn new(pipeline: &str) -> Self {
        let project = Self { dir: tempfile::tempdir().unwrap() };
        project.write("a.txt", "hello world of text\nsecond line here\n");
        project.write("p.yaml", pipeline);
        fs::create_dir(project.path(".git")).unwrap();
        project
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(fixture());
        command.args(args).current_dir(self.dir.path());
        command.env("FLOW_FIXTURE_LOG", self.path("executions")).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR");
        command
    }
    /// Runs `flow` with these arguments.
    pub fn flow(&self, args: &[&str]) -> Ran {
        Ran::of(&self.command(args).output().unwrap())
    }
    /// The same from a folder of the project.
    pub fn flow_from(&self, dir: &str, args: &[&str]) -> Ran {
        Ran::of(&self.command(args).current_dir(self.path(dir)).output().unwrap())
    }
    /// The same with additional environment.
    pub fn flow_with(&self, args: &[&str], vars: &[(&str, &str)]) -> Ran {
        Ran::of(&self.command(args).envs(vars.iter().copied()).output().unwrap())
    }
    /// The same with one variable set to any bytes, or not set.
    pub fn flow_in(&self, args: &[&str], name: &str, value: Option<&std::ffi::OsStr>) -> Ran {
        let mut command = self.command(args);
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
        Ran::of(&command.output().unwrap())
    }
    /// `flow run p.yaml --json` and more.
    pub fn run(&self, more: &[&str]) -> Ran {
        self.flow(&[&["run", "p.yaml", "--json"], more].concat())
    }
    /// Starts `flow run p.yaml --json` and leaves it running.
    pub fn start(&self) -> Child {
        self.command(&["run", "p.yaml", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
    /// The same with more arguments and environment.
    pub fn start_with(&self, more: &[&str], vars: &[(&str, &str)]) -> Child {
        let mut command = self.command(&[&["run", "p.yaml", "--json"], more].concat());
        command.envs(vars.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
    /// How a started run ended.
    pub fn wait(child: Child) -> Ran {
        Ran::of(&child.wait_with_output().unwrap())
    }
    /// Names of the stages that were executed since the last call, in order.
    pub fn executed(&self) -> Vec<String> {
        let path = self.path("executions");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(&path);
        text.lines().map(str::to_owned).collect()
    }
    /// All files below a directory of the project.
    pub fn files(&self, dir: &str) -> Vec<PathBuf> {
        fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { walk(&path, out) } else { out.push(path) }
            }
        }
        let mut out = Vec::new();
        walk(&self.path(dir), &mut out);
        out.sort();
        out
    }
}

/// Waits until `ready` holds; fails after a minute.
pub fn until(what: &str, mut ready: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if ready() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("waited in vain until {what}");
}
