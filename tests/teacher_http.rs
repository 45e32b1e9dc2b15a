//! A teacher behind an API that fails in every way: nothing that was paid for is asked for again, the traces are those
//! of an undisturbed run, and the key is in nothing that a run leaves.
//!
//! Faults and kills are seeded and few here; `FLOW_CAMPAIGN=ROUNDS FLOW_SEED=N` asks for more.

mod support {
    pub mod http;
    pub mod teacher;
}

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use flow_stages::teacher::http::shape::{Call, Expect};
use flow_stages::teacher::http::spec::Spec;
use flow_stages::teacher::journal::Journal;
use flow_stages::traces::{RawRow, SequenceRow, TraceReader};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use support::http::reply;
use support::teacher::{Proxy, Teacher};

const KEY: &str = "sk-never-to-be-written-0123456789";
const PROMPTS: usize = 40;

const PIPELINE: &str = r#"
flow: 1
vars: { base_url: "http://127.0.0.1:1" }
stages:
  prompts: { use: data.prompts, with: { path: prompts.jsonl, eval: 4 } }
  teacher:
    use: teacher.http
    with: { provider: openai, model: test, base_url: "${base_url}", api_key_env: TEACHER_TEST_KEY, ask_top_k: 8,
            timeout: 1, attempts: 20, backoff: 0.02, backoff_max: 0.2, concurrency: 4 }
  baseline: { use: teacher.baseline, in: { teacher: teacher, prompts: prompts.eval }, with: { template: "{prompt}", max_tokens: 10 } }
  traces:
    use: kd.collect
    in: { teacher: teacher, prompts: prompts.train }
    with: { top_k: 6, template: "{prompt}", max_tokens: 12, max_prompts: 40, max_failed: 0 }
targets: [traces]
publish: { out/traces: traces }
"#;

struct Project {
    dir: tempfile::TempDir,
    url: String,
}

impl Project {
    fn new(url: &str) -> Self {
        let project = Self { dir: tempfile::tempdir().unwrap(), url: url.into() };
        fs::create_dir(project.path(".git")).unwrap();
        fs::write(project.path("p.yaml"), PIPELINE).unwrap();
        project.prompts();
        project
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    /// More than are asked for.
    fn prompts(&self) {
        let line = |i: usize| json!({"id": i, "kind": "prose", "prompt": format!("Say {i} things")}).to_string();
        fs::write(self.path("prompts.jsonl"), (0..PROMPTS + 9).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    }
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command.args(["run", "p.yaml", "--var"]).arg(format!("base_url={}", self.url)).args(args).current_dir(self.dir.path());
        command.env("TEACHER_TEST_KEY", KEY).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR").env_remove("FLOW_REMOTE");
        command
    }
    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }
    /// Every file of the traces with its bytes.
    fn traces(&self) -> BTreeMap<String, Vec<u8>> {
        let all = fs::read_dir(self.path("out/traces")).unwrap().map(|e| e.unwrap().path());
        all.map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(p).unwrap())).collect()
    }
    fn sequences(&self) -> Vec<(SequenceRow, Vec<RawRow>)> {
        let reader = TraceReader::<RawRow>::open(&self.path("out/traces")).unwrap();
        reader.sequences().unwrap().collect::<Result<_, _>>().unwrap()
    }
    /// Which of the requests have their answers on disk.
    fn stored(&self, cache: &str, asked: &[Value]) -> BTreeSet<String> {
        let journal = Journal::open(&self.path(cache).join("answers")).unwrap();
        let spec: Spec = serde_json::from_value(json!({"teacher": "http", "provider": "openai", "base_url": format!("{}/v1", self.url),
            "model": "test", "endpoint": "chat", "system": null, "body": {}, "headers": {}, "ask_top_k": 8, "memory_bytes": null}))
        .unwrap();
        let key = |body: &Value| {
            let call = Call { path: "/chat/completions".into(), body: body.clone(), sample: 0, expect: Expect::Logprobs, most: (0, 0) };
            call.key(&spec)
        };
        asked.iter().filter(|b| journal.holds(&key(b))).map(Value::to_string).collect()
    }
}

struct Ran {
    code: Option<i32>,
    all: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let all = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
        Self { code: output.status.code(), all }
    }
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.all);
        assert!(!self.all.contains(KEY));
        self
    }
    fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.all.contains(word), "no `{word}` in: {}", self.all);
        }
        self
    }
}

fn rounds(default: usize) -> usize {
    std::env::var("FLOW_CAMPAIGN").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn seed() -> u64 {
    std::env::var("FLOW_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Every prompt stands once in the traces, with rows.
fn every_prompt_once(project: &Project, n: usize) {
    let all = project.sequences();
    let prompts: Vec<i64> = all.iter().map(|s| s.0.prompt_idx).collect();
    assert_eq!(prompts, (0..n as i64).collect::<Vec<_>>());
    assert!(all.iter().all(|s| !s.1.is_empty() && matches!(s.0.finish_reason.as_str(), "stop" | "length")));
}

/// All files below a directory.
fn files(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { files(&path, out) } else { out.push(path) }
    }
}

#[test]
fn only_what_is_missing_is_asked_for_and_the_key_is_nowhere() {
    let teacher = Teacher::start(Duration::ZERO);
    let project = Project::new(&teacher.server.url());
    project.run(&[]).expect(0);
    every_prompt_once(&project, PROMPTS);
    assert_eq!(teacher.count(), PROMPTS);
    let first = project.traces();
    for (what, args, asked) in [
        ("nothing to do", &[][..], 0),
        ("the same once more", &["--force", "traces"], 0),
        ("fewer alternatives", &["--set", "stages.traces.with.top_k=3"], 0),
        ("concurrency and prices", &["--set", "stages.teacher.with.concurrency=1", "--set", "stages.teacher.with.price_prompt=1"], 0),
        ("memory of the teacher", &["--set", "stages.teacher.with.memory_bytes=5"], 0),
        ("three more prompts", &["--set", "stages.traces.with.max_prompts=43"], 3),
        ("a second sample", &["--set", "stages.traces.with.samples=2"], PROMPTS),
    ] {
        let before = teacher.count();
        project.run(args).expect(0);
        assert_eq!(teacher.count() - before, asked, "{what}");
    }
    project.run(&[]).expect(0);
    assert_eq!(project.traces(), first);
    project.run(&["baseline"]).expect(0);
    let mut all = Vec::new();
    files(project.dir.path(), &mut all);
    assert!(all.iter().any(|f| f.extension().is_some_and(|e| e == "journal")) && all.len() > 20);
    for file in all {
        let bytes = fs::read(&file).unwrap();
        assert!(!bytes.windows(KEY.len()).any(|w| w == KEY.as_bytes()), "{}", file.display());
    }
}

#[test]
fn a_teacher_that_fails_in_every_way_gives_the_traces_of_one_that_does_not() {
    let teacher = Teacher::start(Duration::from_millis(2));
    let mut proxy = Proxy::start(teacher.server.address, seed() * 1_000_003);
    let project = Project::new(&proxy.server.url());
    project.run(&["--cache-dir", "calm"]).expect(0);
    let calm = project.traces();
    every_prompt_once(&project, PROMPTS);
    for round in 0..rounds(2) {
        let cache = format!("rough{round}");
        proxy.breaks(40);
        let before = proxy.broken.load(std::sync::atomic::Ordering::Relaxed);
        let child = project.command(&["--cache-dir", &cache]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        for _ in 0..2 {
            // The server goes away in the middle and comes back.
            std::thread::sleep(Duration::from_millis(400));
            proxy.server.down();
            std::thread::sleep(Duration::from_millis(300));
            proxy.server.up();
        }
        Ran::of(child.wait_with_output().unwrap()).expect(0);
        proxy.breaks(0);
        assert_eq!(project.traces(), calm, "round {round}, seed {}", seed());
        assert!(proxy.broken.load(std::sync::atomic::Ordering::Relaxed) > before + 5);
    }
}

#[test]
fn killed_at_any_moment_no_stored_answer_is_asked_for_again() {
    let teacher = Teacher::start(Duration::from_millis(15));
    let project = Project::new(&teacher.server.url());
    project.run(&["--cache-dir", "calm"]).expect(0);
    let calm = project.traces();
    let mut moment = seed();
    let mut next = |below: u64| {
        moment = moment.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (moment >> 33) % below
    };
    for round in 0..rounds(3) {
        let cache = format!("killed{round}");
        teacher.asked.lock().unwrap().clear();
        let mut kills = 0;
        loop {
            let from = teacher.asked.lock().unwrap().len();
            let stored = project.stored(&cache, &teacher.asked.lock().unwrap());
            let mut command = project.command(&["--cache-dir", &cache]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            let child = command.spawn().unwrap();
            let group = Pid::from_child(&child);
            if kills < 8 {
                std::thread::sleep(Duration::from_millis(40 + next(160)));
                // Sometimes flow alone, sometimes the collecting process, which has a group of its own.
                let _ = kill_process_group(group, Signal::KILL);
                if next(2) == 0 {
                    kill_tasks(&project.path(&cache));
                }
                kills += 1;
            }
            let ran = Ran::of(child.wait_with_output().unwrap());
            let again: Vec<String> =
                teacher.asked.lock().unwrap()[from..].iter().map(Value::to_string).filter(|b| stored.contains(b)).collect();
            assert_eq!(again, [""; 0], "asked for again, round {round}, seed {}", seed());
            if ran.code == Some(0) {
                break;
            }
            if next(3) == 0 {
                tear(&project.path(&cache).join("answers"), next(30) as usize);
            }
        }
        assert!(kills > 0);
        assert_eq!(project.traces(), calm, "round {round}, seed {}", seed());
    }
}

/// Kills the processes that hold a task's lock in this cache.
fn kill_tasks(cache: &Path) {
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains("__task")
            && line.windows(cache.as_os_str().len()).any(|w| w == cache.as_os_str().as_encoded_bytes())
        {
            let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

/// A frame that was being written when the power went: some bytes of nothing at the end.
fn tear(answers: &Path, bytes: usize) {
    for segment in fs::read_dir(answers).into_iter().flatten().flatten() {
        let mut file = fs::OpenOptions::new().append(true).open(segment.path()).unwrap();
        file.write_all(&vec![0x66; bytes]).unwrap();
    }
}

#[test]
fn a_refused_key_ends_it_at_once_and_is_called_by_its_variable() {
    let teacher = Teacher::with(Duration::ZERO, |request, _, stream| {
        // A careless server repeats what it was given.
        let said = request.header("authorization").to_owned();
        Some(reply(stream, "401 Unauthorized", "", &json!({"error": {"message": format!("wrong key: {said}")}}).to_string()))
    });
    let project = Project::new(&teacher.server.url());
    let began = Instant::now();
    project.run(&[]).expect(1).says(&["401", "TEACHER_TEST_KEY", "export"]);
    assert!(began.elapsed() < Duration::from_secs(10) && teacher.asked.lock().unwrap().len() <= 2);
    let mut command = project.command(&[]);
    Ran::of(command.env_remove("TEACHER_TEST_KEY").output().unwrap()).expect(1).says(&["TEACHER_TEST_KEY", "is not set"]);
    let mut all = Vec::new();
    files(project.dir.path(), &mut all);
    assert!(all.iter().all(|f| !fs::read(f).unwrap().windows(KEY.len()).any(|w| w == KEY.as_bytes())));
}

#[test]
fn a_budget_stops_before_it_is_passed_and_a_larger_one_asks_for_the_rest() {
    let teacher = Teacher::start(Duration::ZERO);
    let project = Project::new(&teacher.server.url());
    let prices = ["--set", "stages.teacher.with.price_prompt=1000", "--set", "stages.teacher.with.price_completion=1000"];
    let money = [&prices[..], &["--set", "stages.teacher.with.budget_cost=0.4"]].concat();
    project.run(&money).expect(1).says(&["budget_cost 0.4", "are answered and kept", "raise the budget"]);
    let asked = teacher.count();
    assert!((4..PROMPTS).contains(&asked), "{asked}");
    // What is kept counts: the same budget buys nothing more.
    project.run(&money).expect(1);
    assert_eq!(teacher.count(), asked);
    project.run(&["--set", "stages.teacher.with.budget_tokens=500"]).expect(1).says(&["budget_tokens 500"]);
    let used: u64 = teacher.asked.lock().unwrap().len() as u64 * 10;
    assert!(used <= 500);
    project.run(&["--set", "stages.teacher.with.budget_tokens=100000"]).expect(0);
    assert_eq!(teacher.count(), PROMPTS);
    every_prompt_once(&project, PROMPTS);
}

#[test]
fn failures_of_single_prompts_are_recorded_up_to_max_failed() {
    let teacher = Teacher::with(Duration::ZERO, |_, body, stream| {
        let prompt = body["messages"][0]["content"].as_str().unwrap_or_default();
        if prompt == "Say 7 things" {
            return Some(reply(stream, "400 Bad Request", "", r#"{"error": {"message": "seven is too many"}}"#));
        }
        let filtered = r#"{"id": "f", "choices": [{"message": {"content": null}, "finish_reason": "content_filter"}], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}"#;
        (prompt == "Say 9 things").then(|| reply(stream, "200 OK", "", filtered))
    });
    let project = Project::new(&teacher.server.url());
    project.run(&[]).expect(1).says(&["seven is too many", "max_failed", "prompt "]);
    project.run(&["--set", "stages.traces.with.max_failed=0.05"]).expect(0).says(&["1 of 40 prompts failed"]);
    let all = project.sequences();
    assert_eq!(all.len(), PROMPTS);
    let odd: Vec<_> = all.iter().filter(|s| s.1.is_empty()).map(|s| s.0.finish_reason.as_str()).collect();
    assert_eq!(odd.len(), 2);
    assert!(odd.contains(&"content_filter") && odd.iter().any(|r| r.starts_with("error: 400 Bad Request: seven is too many")), "{odd:?}");
}

#[test]
fn other_processes_do_not_see_the_key() {
    let teacher = Teacher::start(Duration::ZERO);
    let project = Project::new(&teacher.server.url());
    let plugin = r#"
case "$1" in
describe) echo '{"kinds": [{"kind": "spy.env", "revision": 1, "summary": "Lists the environment.", "inputs": [], "outputs": [{"name": "out", "type": "File"}], "params": {"type": "object", "properties": {}}}]}' ;;
run) env > "$2/out/out"; echo '{"ok": true}' > "$2/result.json" ;;
esac
"#;
    fs::write(project.path("spy.sh"), plugin).unwrap();
    let more = "plugins: { spy: { command: [sh, spy.sh], files: [spy.sh] } }\n";
    let text = PIPELINE
        .replace("stages:", &format!("{more}stages:\n  spy: {{ use: spy.env }}"))
        .replace("targets: [traces]", "")
        .replace("publish: {", "publish: { out/env: spy,");
    fs::write(project.path("p.yaml"), text).unwrap();
    project.run(&["spy", "traces"]).expect(0);
    let seen = fs::read_to_string(project.path("out/env")).unwrap();
    assert!(seen.contains("PATH=") && !seen.contains("TEACHER_TEST_KEY"), "{seen}");
}
