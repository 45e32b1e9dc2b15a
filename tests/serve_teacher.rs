//! A served student teaches: what is collected over HTTP are the rows that its file gives.

mod support {
    #[allow(dead_code)]
    pub mod served;
}

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use flow_stages::traces::{RawRow, SequenceRow, TraceReader};
use serde_json::Value;
use support::served::Served;

const PIPELINE: &str = r#"
flow: 1
vars: { base_url: "http://127.0.0.1:1/v1", model: "m.gguf" }
stages:
  corpus: { use: data.text, with: { path: corpus.txt, holdout: 0.1 } }
  prompts: { use: data.prompts, with: { path: prompts.jsonl, eval: 2 } }
  file: { use: teacher.file, with: { path: "${model}" } }
  server: { use: teacher.http, with: { provider: flow, model: served, base_url: "${base_url}", backoff: 0.05, concurrency: 3 } }
  near: &near
    use: kd.collect
    in: { teacher: file, text: corpus.train, prompts: prompts.train }
    with: { top_k: 9, taus: [1.3, 2.0], text_tokens: 900, template: "Q: {prompt}\nA:", samples: 2, max_tokens: 12, temperature: 0.9, top_p: 0.9, seed: 7 }
  far: { <<: *near, in: { teacher: server, text: corpus.train, prompts: prompts.train } }
  tokenizer: { use: tokenizer.bpe, in: { text: corpus.train }, with: { vocab_size: 512 } }
  student:
    use: train.bitnet
    in: { text: corpus.train, tokenizer: tokenizer }
    with: { preset: poc, layers: 1, seq: 64, budget_tokens: 256, recipe: { batch: 1 } }
  ours: &ours
    use: kd.collect
    in: { teacher: file, prompts: prompts.train, student: student }
    with: { top_k: 4, taus: [], max_tokens: 6, template: "{prompt}" }
  theirs: { <<: *ours, in: { teacher: server, prompts: prompts.train, student: student } }
publish: { out/near: near, out/far: far, out/ours: ours, out/theirs: theirs }
"#;

struct Project(tempfile::TempDir);

impl Project {
    fn new() -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::create_dir(project.path(".git")).unwrap();
        fs::write(project.path("p.yaml"), PIPELINE).unwrap();
        fs::copy(root.join("tests/golden/gguf/student-tq2_0.gguf"), project.path("m.gguf")).unwrap();
        for file in ["corpus.txt", "prompts.jsonl"] {
            fs::copy(root.join("tests/data/tiny").join(file), project.path(file)).unwrap();
        }
        let prompts = fs::read_to_string(project.path("prompts.jsonl")).unwrap();
        fs::write(project.path("prompts.jsonl"), prompts.lines().take(10).collect::<Vec<_>>().join("\n")).unwrap();
        project
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, url: &str, targets: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command.args(["run", "p.yaml"]).args(targets).args(["--var", &format!("base_url={url}")]);
        command.current_dir(self.0.path()).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR").env_remove("FLOW_REMOTE");
        let output = command.output().unwrap();
        (output.status.code(), [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat())
    }

    fn sequences(&self, name: &str) -> Vec<(SequenceRow, Vec<RawRow>)> {
        TraceReader::<RawRow>::open(&self.path(name)).unwrap().sequences().unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// The metadata, but for whose rows they are.
    fn meta(&self, name: &str) -> Value {
        let mut meta: Value = serde_json::from_slice(&fs::read(self.path(name).join("meta.json")).unwrap()).unwrap();
        let of = meta.pointer_mut("/meta").unwrap();
        for identity in ["teacher", "teacher_digest"] {
            assert!(of[identity].take().is_string(), "{identity}");
        }
        of.take()
    }
}

#[test]
fn rows_over_http_are_those_of_the_file() {
    let project = Project::new();
    let server = Served::start(project.path("m.gguf").to_str().unwrap(), &["--score", "--slots", "3", "--name", "served"]);
    let url = format!("http://{}/v1", server.address);
    let (code, said) = project.run(&url, &[]);
    assert_eq!(code, Some(0), "{said}");
    for (near, far) in [("out/near", "out/far"), ("out/ours", "out/theirs")] {
        let (near_rows, far_rows) = (project.sequences(near), project.sequences(far));
        assert!(near_rows.len() >= 8 && near_rows.iter().map(|(_, rows)| rows.len()).sum::<usize>() > 40);
        assert_eq!(far_rows.len(), near_rows.len());
        for (a, b) in near_rows.iter().zip(&far_rows) {
            assert_eq!(format!("{a:?}"), format!("{b:?}"));
        }
        assert_eq!(project.meta(near), project.meta(far));
    }
    // What was answered is kept: rows with fewer prompts ask nothing that was asked, though nobody is there any more.
    assert!(server.metric("flow_requests_total") > 20.0);
    drop(server);
    let text = fs::read_to_string(project.path("p.yaml")).unwrap();
    fs::write(project.path("p.yaml"), text.replace("samples: 2, max", "samples: 2, max_failed: 0.5, logprob_precision: 10bit, max"))
        .unwrap();
    let (code, said) = project.run(&url, &["far"]);
    assert!(code == Some(0) && said.contains("far"), "{said}");
    assert_eq!(project.sequences("out/far").len(), project.sequences("out/near").len());
}

#[test]
fn a_server_that_does_not_score_is_named() {
    let project = Project::new();
    let server = Served::start(project.path("m.gguf").to_str().unwrap(), &["--name", "served"]);
    let (code, said) = project.run(&format!("http://{}/v1", server.address), &["far"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("does not score given text") && said.contains("flow serve --score"), "{said}");
}
