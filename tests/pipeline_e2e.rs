//! The main job with its real kinds, small: what runs, what is reused, what comes out, byte by byte.
//!
//! All tests share one cold run on the CPU; each works in a copy of the project, with that run's cache or one of its own.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::Ran;

const TINY: &str = include_str!("data/tiny/tiny.yaml");
const ALL: [&str; 14] = [
    "baseline",
    "corpus",
    "dryrun",
    "eval",
    "export",
    "gate",
    "projected",
    "prompts",
    "report",
    "student",
    "teacher",
    "teacher_tokenizer",
    "tokenizer",
    "traces",
];
/// Pure ports, and where a copy of each goes.
const PURE: [&str; 13] = [
    "corpus.train",
    "corpus.holdout",
    "prompts.train",
    "prompts.eval",
    "teacher_tokenizer",
    "tokenizer",
    "teacher.teacher",
    "teacher.log",
    "traces",
    "projected.traces",
    "projected.stats",
    "student.student",
    "export",
];

/// A directory with the tiny pipeline, and the cache that its commands use.
struct Project {
    dir: PathBuf,
    cache: PathBuf,
}

impl Project {
    /// A fresh copy of the project with an empty cache.
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e").join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join(".git")).unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
        for file in ["tiny.yaml", "corpus.txt", "prompts.jsonl"] {
            fs::copy(data.join(file), dir.join(file)).unwrap();
        }
        let cache = dir.join(".flow");
        Self { dir, cache }
    }
    /// A fresh copy that reads and fills the shared cache.
    fn shared(name: &str) -> Self {
        Self { cache: cold().0.cache.clone(), ..Self::new(name) }
    }
    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.dir.join(name), text).unwrap();
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command.args(args).current_dir(&self.dir).env("FLOW_CACHE_DIR", &self.cache).env("FLOW_DEVICE", "cpu").env_remove("FLOW_THREADS");
        command
    }
    fn flow(&self, args: &[&str]) -> Ran {
        Ran::of(&self.command(args).output().unwrap())
    }
    /// `flow run tiny.yaml --json` and more.
    fn run(&self, more: &[&str]) -> Ran {
        self.flow(&[&["run", "tiny.yaml", "--json"], more].concat())
    }
    /// The bytes of all files of an artifact, by path.
    fn bytes(&self, artifact: &str) -> BTreeMap<String, Vec<u8>> {
        let to = self.dir.join("got").join(artifact);
        let _ = fs::remove_dir_all(&to);
        self.flow(&["get", "tiny.yaml", artifact, "--to", to.to_str().unwrap()]).expect(0);
        let mut files = BTreeMap::new();
        let mut open = vec![to.clone()];
        while let Some(path) = open.pop() {
            if path.is_dir() {
                open.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            } else {
                files.insert(path.strip_prefix(&to).unwrap().display().to_string(), fs::read(&path).unwrap());
            }
        }
        assert!(!files.is_empty(), "{artifact} is empty");
        files
    }
    /// Where the named file of an artifact lies in the cache.
    fn object(&self, artifact: &str, file: &str) -> PathBuf {
        let bytes = &self.bytes(artifact)[file];
        let mut found = Vec::new();
        for folder in fs::read_dir(self.cache.join("objects")).unwrap() {
            for object in fs::read_dir(folder.unwrap().path()).unwrap() {
                let path = object.unwrap().path();
                if path.metadata().unwrap().len() == bytes.len() as u64 && fs::read(&path).unwrap() == *bytes {
                    found.push(path);
                }
            }
        }
        assert_eq!(found.len(), 1, "{artifact} {file}");
        found.remove(0)
    }
}

/// The one undisturbed cold run that the tests share.
fn cold() -> &'static (Project, Ran) {
    static COLD: OnceLock<(Project, Ran)> = OnceLock::new();
    COLD.get_or_init(|| {
        let project = Project::new("cold");
        let ran = project.run(&[]);
        (project, ran.expect(0))
    })
}

/// What a dry run says would be executed, sorted; `run` must then execute the same.
fn executes(project: &Project, file: &str, args: &[&str], stages: &[&str]) -> Ran {
    let plan = project.flow(&[&["run", file, "--json", "--dry-run"], args].concat()).expect(0).last();
    assert_eq!(plan["event"], "planned");
    let mut planned: Vec<_> = plan["execute"].as_array().unwrap().iter().map(|e| e["stage"].as_str().unwrap().to_owned()).collect();
    planned.sort();
    assert_eq!(planned, stages, "plan of {file} {args:?}");
    let ran = project.flow(&[&["run", file, "--json"], args].concat()).expect(0);
    assert_eq!(ran.names("executed"), stages, "run of {file} {args:?}");
    ran
}

#[test]
fn a_cold_run_makes_everything_and_a_second_nothing() {
    let (project, ran) = cold();
    let last = ran.last();
    assert_eq!((last["event"].as_str(), last["ok"].as_bool()), (Some("run_finished"), Some(true)));
    assert_eq!(ran.names("executed"), ALL);
    assert!(fs::read(project.dir.join("out/model.gguf")).unwrap().starts_with(b"GGUF"));
    let page = fs::read_to_string(project.dir.join("out/report.html")).unwrap();
    assert!(page.contains("bits per byte") && !page.contains("http://") && !page.contains("src=\"http"), "the page is self-contained");
    let eval: serde_json::Value = serde_json::from_slice(&project.bytes("eval")[""]).unwrap();
    for figure in ["/bits_per_byte/student", "/bits_per_byte/teacher", "/qei_metrics/qei", "/qei_metrics/student_tokens_per_second"] {
        assert!(eval.pointer(figure).unwrap().as_f64().unwrap() > 0.0, "{figure}");
    }
    // Untrained models need log2(vocabulary) bits a token: more than 4.2 bits a byte here.
    assert!(eval["bits_per_byte"]["student"].as_f64().unwrap() < 4.2, "{}", eval["bits_per_byte"]);

    let again = Project::shared("again").run(&[]).expect(0);
    assert!(again.names("executed").is_empty(), "{:?}", again.names("executed"));
    assert_eq!(again.names("reused"), ALL);
    assert!(again.last()["seconds"].as_f64().unwrap() < 1.0);
}

#[test]
fn text_without_meaning_executes_nothing() {
    let project = Project::shared("edited");
    let edited = TINY
        .replace("name: tiny", "# another comment\nname: tiny")
        .replace("{ path: corpus.txt, holdout: 0.1 }", "{ holdout: 0.10, path: ./corpus.txt }")
        .replace(
            "with: { vocab_size: 512 }",
            "with: { min_frequency: 2, vocab_size: 512 }, retries: 1, timeout: 1h, labels: { size: tiny }",
        )
        .replace("  student:\n", "  pupil:\n")
        .replace("student: student,", "student: pupil,")
        .replace("student.log", "pupil.log");
    assert!(edited.contains("pupil.log") && !edited.contains("student.log") && edited.contains("./corpus.txt"));
    project.write("edited.yaml", &edited);
    let ran = executes(&project, "edited.yaml", &[], &[]);
    assert!(ran.names("reused").contains(&"pupil".to_owned()));
}

#[test]
fn tau_executes_the_student_and_what_follows() {
    let project = Project::shared("tau");
    project.run(&[]).expect(0);
    let explained = project.flow(&["explain", "tiny.yaml", "student", "--var", "tau=1.7"]).expect(0).out;
    assert!(explained.contains("`with.tau` 1 → 1.7"), "{explained}");
    executes(&project, "tiny.yaml", &["--var", "tau=1.7"], &["eval", "export", "gate", "report", "student"]);
    executes(&project, "tiny.yaml", &["--var", "tau=1.7"], &[]);
}

/// The task directory of the student, once it has made a checkpoint.
fn student_checkpoint(cache: &Path) -> Option<PathBuf> {
    for task in fs::read_dir(cache.join("tasks")).ok()?.flatten().map(|e| e.path()) {
        let about: serde_json::Value = serde_json::from_slice(&fs::read(task.join("task.json")).ok()?).ok()?;
        let saved = task.join("state/training.safetensors").exists();
        if about["stage"] == "student" && saved {
            return Some(task);
        }
    }
    None
}

/// Kills a process and its children, without warning, parents first.
fn kill_tree(pid: Pid) {
    let children: Vec<Pid> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent: i32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            Pid::from_raw(entry.file_name().to_str()?.parse().ok()?).filter(|_| parent == pid.as_raw_nonzero().get())
        })
        .collect();
    kill_process(pid, Signal::KILL).unwrap();
    for child in children {
        // It may have ended by itself: its standard input has.
        let _ = kill_process(child, Signal::KILL);
    }
}

/// In a cache of its own: the same bytes as the shared run, although the student was killed and resumed.
#[test]
fn a_killed_run_ends_with_the_bytes_of_an_undisturbed_one() {
    let killed = Project::new("killed");
    let mut child = killed.command(&["run", "tiny.yaml", "--json", "export"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    let task = loop {
        if let Some(task) = student_checkpoint(&killed.cache) {
            break task;
        }
        assert!(child.try_wait().unwrap().is_none(), "the run ended before a checkpoint was seen");
        assert!(started.elapsed() < Duration::from_secs(300), "no checkpoint of the student");
        std::thread::sleep(Duration::from_millis(2));
    };
    kill_tree(Pid::from_child(&child));
    child.wait().unwrap();
    assert!(task.exists() && !killed.dir.join("out/model.gguf").exists(), "the student had ended already");

    let ran = killed.run(&["export"]).expect(0);
    assert_eq!(ran.names("executed"), ["export", "student"]);
    assert!(ran.out.contains("continues from step"), "{}", ran.out);
    for artifact in PURE {
        let (a, b) = (cold().0.bytes(artifact), killed.bytes(artifact));
        assert!(a == b, "{artifact} differs: {:?}", a.keys().filter(|k| a.get(*k) != b.get(*k)).collect::<Vec<_>>());
    }
}

/// A damaged object is noticed when a stage needs it, and its stage runs again.
#[test]
fn bad_objects_are_made_again() {
    let project = Project::new("damaged");
    let copied = Command::new("cp").arg("-r").arg(&cold().0.cache).arg(&project.cache).status().unwrap();
    assert!(copied.success());
    for (artifact, file, change, executed) in [
        ("student.student", "model.safetensors", "stages.export.with.name=again", ["export", "student"]),
        ("projected.traces", "rows-00000.parquet", "stages.student.with.ce_weight=0.75", ["projected", "student"]),
    ] {
        let whole = project.bytes(artifact);
        let object = project.object(artifact, file);
        let mut bytes = fs::read(&object).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::remove_file(&object).unwrap();
        fs::write(&object, &bytes[..bytes.len() - usize::from(executed[0] == "projected")]).unwrap();
        let target = if executed[0] == "export" { "export" } else { "student" };
        let ran = project.run(&["--set", change, target]).expect(0);
        assert_eq!(ran.names("executed"), executed, "{artifact}");
        assert!(project.bytes(artifact) == whole, "{artifact} came out with other bytes");
    }
}

/// Memory is planned before it is taken.
#[test]
fn bad_sizes_are_predicted_not_met() {
    let project = Project::shared("memory");
    let large = ["--set", "stages.student.with.preset=7b", "--set", "stages.student.with.layers=128", "student"];
    let ran = project.run(&large).expect(1);
    assert_eq!(ran.names("failed"), ["student"]);
    let all = ran.out + &ran.err;
    assert!(all.contains("out of memory on cpu") && all.contains("MiB needed") && all.contains("choose a smaller preset"), "{all}");
}

#[test]
fn bad_devices_are_named_with_what_exists() {
    let project = Project::shared("device");
    let ran = project.run(&["--device", "no-such-adapter", "--set", "stages.student.with.seed=5", "student"]).expect(4);
    let all = ran.out + &ran.err;
    assert!(all.contains("no-such-adapter") && all.contains("`cpu`"), "{all}");
}

/// On an adapter, then on the CPU: the second finds the first's student, for a device is not part of a pure key.
#[test]
fn an_adapter_makes_what_the_cpu_reuses() {
    let project = Project::new("adapter");
    let devices = project.flow(&["devices"]).expect(0).out;
    if !devices.contains("(vulkan") && !devices.contains("(metal") && !devices.contains("(dx12") {
        support::skipped("no adapter here");
        return;
    }
    let small = [
        "--set",
        "stages.teacher.with.tokens=300",
        "--set",
        "stages.teacher.with.layers=1",
        "--set",
        "stages.traces.with.text_tokens=300",
        "--set",
        "stages.traces.with.max_prompts=2",
        "--set",
        "stages.student.with.budget_tokens=300",
        "export",
    ];
    let ran = project.run(&[&["--device", "gpu"], &small[..]].concat()).expect(0);
    assert!(ran.names("executed").contains(&"student".to_owned()));
    let status = project.flow(&[&["explain", "tiny.yaml", "student"], &small[..10]].concat()).expect(0).out;
    assert!(!status.contains("on cpu"), "{status}");
    let again = project.run(&small).expect(0);
    assert!(again.names("executed").is_empty(), "{:?}", again.names("executed"));
}
