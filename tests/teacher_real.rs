//! The same against a real server: llama.cpp's own, over SmolLM2-135M-Instruct, alone and behind a proxy that breaks a
//! third of the exchanges. Skipped, visibly, where `teacher_server.sh` cannot set it up.

mod support {
    pub mod http;
    pub mod skipped;
    pub mod teacher;
}

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use flow_stages::traces::{Origin, RawRow, SequenceRow, TraceReader, settle};
use serde_json::Value;
use support::teacher::Proxy;

/// The server; it ends with the value.
struct Real {
    child: Child,
    address: SocketAddr,
}

impl Real {
    fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/teacher_server.sh");
        let mut command = Command::new("bash");
        command.arg(script).args(["serve", &port.to_string()]).stdout(Stdio::piped()).stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().ok()?;
        let (tell, ready) = channel();
        let out = child.stdout.take()?;
        std::thread::spawn(move || {
            let mut lines = BufReader::new(out).lines().map_while(Result::ok);
            let _ = tell.send(lines.any(|line| line.starts_with("ready")));
            lines.for_each(drop);
        });
        let real = Self { child, address: ([127, 0, 0, 1], port).into() };
        matches!(ready.recv_timeout(Duration::from_secs(240)), Ok(true)).then_some(real)
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::KILL);
        let _ = self.child.wait();
    }
}

const PIPELINE: &str = r#"
flow: 1
vars: { base_url: "http://127.0.0.1:1", endpoint: chat }
stages:
  corpus: { use: data.text, with: { path: corpus.txt, holdout: 0.1 } }
  prompts: { use: data.prompts, with: { path: prompts.jsonl, eval: 2 } }
  teacher:
    use: teacher.http
    with: { provider: llama.cpp, model: smollm2, base_url: "${base_url}", endpoint: "${endpoint}", timeout: 20, backoff: 0.05, backoff_max: 0.5, concurrency: 2 }
  baseline: { use: teacher.baseline, in: { teacher: teacher, prompts: prompts.eval }, with: { template: "{prompt}", max_tokens: 6 } }
  traces:
    use: kd.collect
    in: { teacher: teacher, prompts: prompts.train }
    with: { top_k: 20, template: "{prompt}", max_tokens: 8 }
  text:
    use: kd.collect
    in: { teacher: teacher, text: corpus.train }
    with: { top_k: 10, template: "{prompt}", text_tokens: 50 }
  tokenizer: { use: tokenizer.bpe, in: { text: corpus.train }, with: { vocab_size: 512 } }
  projected: { use: kd.project, in: { traces: traces, tokenizer: tokenizer } }
  projected_text: { use: kd.project, in: { traces: text, tokenizer: tokenizer } }
publish: { out/traces: traces, out/text: text, out/stats.json: projected.stats, out/baseline.json: baseline }
"#;

struct Project(tempfile::TempDir);

impl Project {
    fn new() -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        fs::create_dir(project.path(".git")).unwrap();
        fs::write(project.path("p.yaml"), PIPELINE).unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny");
        for file in ["corpus.txt", "prompts.jsonl"] {
            fs::copy(data.join(file), project.path(file)).unwrap();
        }
        let prompts = fs::read_to_string(project.path("prompts.jsonl")).unwrap();
        fs::write(project.path("prompts.jsonl"), prompts.lines().take(10).collect::<Vec<_>>().join("\n")).unwrap();
        project
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    /// Runs `flow` and gives what it printed.
    fn flow(&self, words: &[&str], address: SocketAddr, more: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command.args(words).args(more).arg("--var").arg(format!("base_url=http://{address}"));
        command.current_dir(self.0.path()).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR").env_remove("FLOW_REMOTE");
        let output = command.output().unwrap();
        let all = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
        assert_eq!(output.status.code(), Some(0), "{all}");
        all
    }
    fn sequences(&self, name: &str) -> Vec<(SequenceRow, Vec<RawRow>)> {
        TraceReader::<RawRow>::open(&self.path(name)).unwrap().sequences().unwrap().collect::<Result<_, _>>().unwrap()
    }
}

fn check(all: &[(SequenceRow, Vec<RawRow>)], source: Origin) {
    for (sequence, rows) in all {
        assert_eq!(sequence.source, source);
        assert!(!rows.is_empty());
        for row in rows.iter().filter(|r| !r.sample_bytes.is_empty()) {
            assert!(settle(&row.topk_ids, &row.topk_logprobs).is_ok(), "{row:?}");
            assert!(row.sample_id >= 0 && row.topk_ids.iter().all(|id| *id >= 0), "llama.cpp tells ids");
        }
    }
}

#[test]
fn a_real_server_is_collected_from() {
    let Some(real) = Real::start() else {
        support::skipped::skipped("tests/teacher_server.sh cannot start a server here");
        return;
    };
    let project = Project::new();
    let probe = project.flow(&["teacher", "probe", "p.yaml"], real.address, &[]);
    assert!(probe.contains("come, before temperature") && probe.contains("20 of 20 asked for, with token ids"), "{probe}");
    let proxy = Proxy::start(real.address, 5);
    proxy.breaks(33);
    for endpoint in ["chat", "completions"] {
        project.flow(&["run", "p.yaml", "projected", "baseline"], proxy.server.address, &["--var", &format!("endpoint={endpoint}")]);
        let all = project.sequences("out/traces");
        assert_eq!(all.iter().map(|s| s.0.prompt_idx).collect::<Vec<_>>(), (0..8).collect::<Vec<_>>());
        check(&all, Origin::Sample);
        let stats: Value = serde_json::from_slice(&fs::read(project.path("out/stats.json")).unwrap()).unwrap();
        assert_eq!(stats["invalid_share"], 0.0, "{stats}");
        assert!(stats["coverage"].as_f64().unwrap() > 0.5, "{stats}");
        let baseline: Value = serde_json::from_slice(&fs::read(project.path("out/baseline.json")).unwrap()).unwrap();
        assert!(baseline["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    }
    // Given text, one request a token; every byte of it is in the traces once.
    project.flow(&["run", "p.yaml", "projected_text"], real.address, &[]);
    let all = project.sequences("out/text");
    check(&all, Origin::Text);
    let text: Vec<u8> =
        all.iter().flat_map(|(s, rows)| [s.context.clone(), rows.iter().flat_map(|r| r.sample_bytes.clone()).collect()].concat()).collect();
    let corpus = fs::read(project.path("corpus.txt")).unwrap();
    assert!(text.len() > 150 && corpus.windows(text.len()).any(|w| w == text), "{}", String::from_utf8_lossy(&text));
    let drawn = all.iter().flat_map(|s| &s.1).filter(|r| r.topk_ids.contains(&r.sample_id)).count();
    assert!(drawn * 2 > all.iter().map(|s| s.1.len()).sum::<usize>(), "most of the text's tokens are among ten alternatives");
}
