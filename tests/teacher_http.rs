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
use flow_stages::teacher::journal::{AnswerKey, Journal};
use flow_stages::traces::{RawRow, SequenceRow, TraceReader};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};
use support::http::{reply, response};
use support::teacher::{Proxy, Teacher, answer};

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
    /// Under which key the answer to a request lies.
    fn key(&self, asked: &Value) -> AnswerKey {
        let spec: Spec = serde_json::from_value(json!({"teacher": "http", "provider": "openai", "base_url": format!("{}/v1", self.url),
            "model": "test", "endpoint": "chat", "system": null, "body": {}, "headers": {}, "ask_top_k": 8, "memory_bytes": null}))
        .unwrap();
        let mut body = asked.clone();
        // How an answer travels is in no key.
        assert_eq!(body.as_object_mut().unwrap().remove("stream"), Some(json!(false)));
        Call { path: "/chat/completions".into(), body, sample: 0, expect: Expect::Logprobs, most: (0, 0) }.key(&spec)
    }
    /// Which of the requests have their answers on disk.
    fn stored(&self, cache: &str, asked: &[Value]) -> BTreeSet<String> {
        let journal = Journal::open(&self.path(cache).join("answers")).unwrap();
        asked.iter().filter(|b| journal.holds(&self.key(b))).map(Value::to_string).collect()
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
    // Numbered by their places in the file, of which a budget takes some.
    assert_eq!(prompts.len(), n);
    assert!(prompts.windows(2).all(|w| w[0] < w[1]) && prompts.iter().all(|i| (0..PROMPTS as i64 + 9).contains(i)), "{prompts:?}");
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
                let all = teacher.asked.lock().unwrap().clone();
                assert_eq!(project.stored(&cache, &all).len(), PROMPTS + 2, "the probe's two answers and one for each prompt");
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
        if prompt == "Say 2 things" {
            return Some(reply(stream, "400 Bad Request", "", r#"{"error": {"message": "two is too many"}}"#));
        }
        let filtered = r#"{"id": "f", "choices": [{"message": {"content": null}, "finish_reason": "content_filter"}], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}"#;
        (prompt == "Say 4 things").then(|| reply(stream, "200 OK", "", filtered))
    });
    let project = Project::new(&teacher.server.url());
    project.run(&[]).expect(1).says(&["two is too many", "max_failed", "prompt "]);
    project.run(&["--set", "stages.traces.with.max_failed=0.05"]).expect(0).says(&["1 of 40 prompts failed"]);
    let all = project.sequences();
    assert_eq!(all.len(), PROMPTS);
    let odd: Vec<_> = all.iter().filter(|s| s.1.is_empty()).map(|s| s.0.finish_reason.as_str()).collect();
    assert_eq!(odd.len(), 2);
    assert!(odd.contains(&"content_filter") && odd.iter().any(|r| r.starts_with("error: 400 Bad Request: two is too many")), "{odd:?}");
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

/// What the stranger's server of `refused_answers_are_kept_counted_and_asked_again_on_demand` says to a prompt.
fn strange(body: &Value, healed: bool) -> Option<String> {
    let prompt = body["messages"][0]["content"].as_str().unwrap_or_default();
    let one = |text: &str, bytes: Value, logprob: f64| json!({"token": text, "bytes": bytes, "logprob": logprob});
    let token = |text: &str| {
        let mut token = one(text, json!(text.as_bytes()), -0.25);
        token["top_logprobs"] = json!([one(text, json!(text.as_bytes()), -0.25), one("", json!([]), -2.0), one("", Value::Null, -3.0)]);
        token
    };
    let answer = |content: Value, tokens: &[&str], finish: Value, more: Value| {
        let mut message = json!({"role": "assistant", "content": content});
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let logprobs = json!({"content": tokens.iter().map(|t| token(t)).collect::<Vec<_>>()});
        let choice = json!({"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs});
        json!({"id": prompt, "choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": tokens.len()}}).to_string()
    };
    Some(match prompt {
        // Nothing of a text, all of a plan.
        "Say 1 things" if !healed => answer(json!(""), &["plan", " more"], json!("length"), json!({"reasoning_content": "plan more"})),
        "Say 2 things" if !healed => answer(json!("Other"), &["Hi", " there"], json!("stop"), json!({})),
        "Say 3 things" => {
            answer(json!("Hi there"), &["<think>", "plan", "</think>", "Hi", " there"], json!("stop"), json!({"reasoning": "plan"}))
        }
        "Say 4 things" => answer(json!("Hi"), &["Hi"], Value::Null, json!({})),
        _ if prompt.starts_with("Say") => answer(json!("Hi there"), &["Hi", " there", "<|im_end|>"], json!("stop"), json!({})),
        _ => return None,
    })
}

#[test]
fn refused_answers_are_kept_counted_and_asked_again_on_demand() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static HEALED: AtomicBool = AtomicBool::new(false);
    let teacher = Teacher::with(Duration::ZERO, |_, body, stream| {
        assert_eq!(body["stream"], false);
        strange(body, HEALED.load(Ordering::Relaxed)).map(|text| reply(stream, "200 OK", "", &text))
    });
    let project = Project::new(&teacher.server.url());
    let few = ["--set", "stages.traces.with.max_refused=0.04"];
    project.run(&few).expect(1).says(&[
        "2 of 40 answers are refused",
        "max_refused 0.04",
        "went into reasoning",
        "its tokens are not its text",
        "--reask",
    ]);
    // What is refused is kept, whatever the limit: nothing that was answered is asked for again.
    let ran = project.run(&[]).expect(0);
    ran.says(&["2 of 40 answers are refused", "1 spent on reasoning", "1 not readable"]);
    assert_eq!(teacher.count(), PROMPTS);
    let rows = |prompt: usize| {
        let (sequence, rows) = project.sequences().swap_remove(prompt);
        (sequence.finish_reason, rows.iter().map(|r| String::from_utf8_lossy(&r.sample_bytes).into_owned()).collect::<Vec<_>>())
    };
    assert!(rows(1).0.starts_with("refused: it is empty: its 2 tokens went into reasoning") && rows(1).1.is_empty());
    assert!(rows(2).0.starts_with("refused: its tokens are not its text: from byte 0") && rows(2).1.is_empty());
    assert_eq!(rows(3), ("stop".into(), vec!["Hi".into(), " there".into(), String::new()]), "reasoning is not the answer");
    assert_eq!(rows(4), ("unknown".into(), vec!["Hi".into()]), "nobody said that it ended");
    let (_, plain) = project.sequences().swap_remove(5);
    let candidates: Vec<usize> = plain.iter().map(|r| r.topk_ids.len()).collect();
    assert_eq!(candidates, [1, 1, 1], "an alternative without a text is no end");
    assert!((f64::from(plain[0].other_logprob).exp() - (1.0 - (-0.25f64).exp())).abs() < 1e-6, "its mass is Other's");
    assert_eq!((plain[2].sample_bytes.len(), f64::from(plain[2].topk_logprobs[0])), (0, -0.25), "the end that the server tells");
    HEALED.store(true, Ordering::Relaxed);
    project.run(&["--dry-run", "--reask"]).expect(0).says(&["would execute 1 of 3 stages", "asks again for what was refused (--reask)"]);
    project.run(&["--force", "traces"]).expect(0);
    assert_eq!(teacher.count(), PROMPTS, "asked again unasked");
    project.run(&["--reask"]).expect(0);
    assert_eq!(teacher.count(), PROMPTS + 2);
    every_prompt_once_or_unknown(&project);
    let healed = project.traces();
    project.run(&["--force", "traces"]).expect(0);
    project.run(&["--reask"]).expect(0);
    assert_eq!((teacher.count(), project.traces()), (PROMPTS + 2, healed), "what was asked for again counts from then on");
}

fn every_prompt_once_or_unknown(project: &Project) {
    let all = project.sequences();
    assert_eq!(all.len(), PROMPTS);
    assert!(all.iter().all(|s| !s.1.is_empty() && matches!(s.0.finish_reason.as_str(), "stop" | "unknown")));
}

#[test]
fn failures_inside_a_success_are_failures() {
    for (sent, wanted) in [
        (
            r#"{"id": "x", "choices": [{"finish_reason": "error", "error": {"code": 502, "message": "upstream gone"}, "message": {"content": ""}}]}"#,
            "upstream gone",
        ),
        (
            r#"{"error": {"code": 401, "message": "who are you"}}"#,
            "refused access (key from TEACHER_TEST_KEY): 401 Unauthorized, sent as 200 OK: who are you",
        ),
        ("<html>a gateway</html>", "HTML came instead of JSON (200 OK, application/json, 22 bytes): `<html>a gateway</html>`"),
        ("data: {\"choices\": [{\"delta\": {\"content\": \"Hi\"}}]}\n\n", "the stream ends before its answer does"),
    ] {
        static SENT: std::sync::Mutex<&str> = std::sync::Mutex::new("");
        *SENT.lock().unwrap() = sent;
        let teacher = Teacher::with(Duration::ZERO, |_, body, stream| {
            (body["max_tokens"] != 1).then(|| reply(stream, "200 OK", "", *SENT.lock().unwrap()))
        });
        let project = Project::new(&teacher.server.url());
        project.run(&["--set", "stages.teacher.with.attempts=2"]).expect(1).says(&[wanted]);
        assert!(Journal::open(&project.path(".flow/answers")).unwrap().len() <= 2, "a failure was kept as an answer: {sent}");
    }
}

#[test]
fn a_server_that_is_down_is_told_at_once() {
    let project = Project::new("http://127.0.0.1:1");
    let words = ["http://127.0.0.1:1/v1 does not answer", "trying again in", "for 2 s (`outage`) in all"];
    project.run(&["--set", "stages.teacher.with.outage=2"]).expect(1).says(&words).says(&["has not answered for"]);
    fs::write(project.path("p.yaml"), PIPELINE.replace("concurrency: 4", "concurrency: 4, outage: 30")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
    command.args(["teacher", "probe", "p.yaml"]).current_dir(project.dir.path()).env("TEACHER_TEST_KEY", KEY).env_remove("FLOW_CACHE_DIR");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // While it goes on trying.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap())).map_while(Result::ok);
    let first = lines.find(|line| line.contains("does not answer")).unwrap_or_default();
    let waits = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(waits && first.contains("for 30 s (`outage`)"), "{first}");
}

#[test]
fn compressed_bodies_streams_and_what_is_no_json_are_read() {
    let calm = Teacher::start(Duration::ZERO);
    let project = Project::new(&calm.server.url());
    project.run(&["--cache-dir", "calm"]).expect(0);
    let wanted = project.sequences();
    let teacher = Teacher::with(Duration::ZERO, |_, body, stream| {
        let whole = answer(body, body["messages"].to_string().len() as u64 + body["seed"].as_u64().unwrap_or(0));
        let prompt = body["messages"][0]["content"].as_str().unwrap_or_default();
        let text = whole.to_string();
        Some(match prompt.len() % 2 + usize::from(prompt.contains('3')) {
            0 => {
                let packed = zstd::bulk::compress(text.as_bytes(), 1).unwrap();
                stream.write_all(&response("200 OK", "content-encoding: zstd\r\n", &packed)).is_ok()
            }
            1 => {
                let mut chunk = whole.clone();
                chunk["choices"][0]["delta"] = chunk["choices"][0]["message"].take();
                chunk["choices"][0].as_object_mut().unwrap().remove("message");
                reply(stream, "200 OK", "", &format!("data: {chunk}\n\ndata: [DONE]\n\n"))
            }
            _ => reply(stream, "200 OK", "", &text.replace("\"index\":0", "\"index\":0,\"score\":-Infinity,\"half\":\"\\ud83d\"")),
        })
    });
    let project = Project { url: teacher.server.url(), ..project };
    project.run(&["--cache-dir", "strange"]).expect(0);
    // The teacher's address is in the files, so that they are not the same.
    assert_eq!(project.sequences(), wanted);
}

#[test]
fn answers_that_an_earlier_version_kept_pass_the_same_checks() {
    let teacher = Teacher::start(Duration::ZERO);
    let project = Project::new(&teacher.server.url());
    project.run(&["--cache-dir", "calm"]).expect(0);
    let asked = teacher.asked.lock().unwrap().clone();
    let questions: Vec<&Value> = asked.iter().filter(|b| b["max_tokens"] != 1).collect();
    let (failed, endless) = (questions[0], questions[1]);
    // Kept as they came, without a word about any: one is a provider's failure, one says nothing of an end.
    let journal = Journal::open(&project.path("kept").join("answers")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (n, body) in asked.iter().enumerate() {
        let mut kept = answer(body, n as u64);
        if body == failed {
            kept["choices"][0] = json!({"finish_reason": "error", "message": {"content": "", "error": {"message": "gone"}}});
        } else if body == endless {
            kept["choices"][0]["finish_reason"] = Value::Null;
        }
        runtime.block_on(journal.append(project.key(body), kept.to_string().as_bytes(), 1)).unwrap();
    }
    drop(journal);
    let before = teacher.asked.lock().unwrap().len();
    project.run(&["--cache-dir", "kept"]).expect(0).says(&["1 of 40 answers are refused (1 no answers)", ": gone"]);
    let finish = |body: &Value| {
        let context = body["messages"][0]["content"].as_str().unwrap().as_bytes();
        project.sequences().into_iter().find(|s| s.0.context == context).unwrap().0.finish_reason
    };
    assert_eq!((finish(failed), finish(endless)), ("refused: gone".into(), "unknown".into()));
    let journal = Journal::open(&project.path("kept").join("answers")).unwrap();
    assert_eq!(journal.get(&project.key(failed).refusal()).unwrap().unwrap().body, b"gone", "marked with its reason");
    assert_eq!(teacher.asked.lock().unwrap().len(), before, "asked for unasked");
    project.run(&["--cache-dir", "kept", "--reask"]).expect(0);
    assert_eq!((teacher.asked.lock().unwrap().len(), finish(failed) != "refused: gone"), (before + 1, true));
}
