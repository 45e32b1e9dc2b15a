//! From a model to a ternary one, small: the teacher in the loop, every phase of a soft schedule, killed in each of them.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use support::Ran;

const PIPELINE: &str = r#"
flow: 1
stages:
  corpus: { use: data.text, with: { path: corpus.txt, holdout: 0.1, validation: 0.05 } }
  tokenizer: { use: tokenizer.bpe, in: { text: corpus.train }, with: { vocab_size: 512 } }
  teacher:
    use: teacher.train
    in: { text: corpus.train, tokenizer: tokenizer }
    with: { preset: poc, layers: 2, seq: 64, shape: { sub_norm: false }, tokens: 6000, recipe: { batch: 4 } }
  student:
    use: train.bitnet
    in: { text: corpus.train, teacher: teacher, validation: corpus.validation }
    with:
      preset: init
      init: { from: teacher, sub_norm: insert, calibration_tokens: 256 }
      group: 64
      ternary_embedding: true
      activations: float
      ternary_schedule: { soft: { pressure: 0.3, cold: 0.6, calibrate: 256 } }
      token_weight: teacher_ce
      relation_layer: 1
      ce_weight: 0.1
      budget_tokens: 10000
      eval: { every: 10 }
      recipe: { batch: 4, schedule: cosine, lr: 0.01, muon_lr: 0.01, checkpoint_every: 1 }
  gguf: { use: export.gguf, in: { student: student }, with: { type: q2_0, embedding: q2_0 } }
targets: [gguf]
"#;

struct Project {
    dir: PathBuf,
}

impl Project {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ternarise").join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join(".git")).unwrap();
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/corpus.txt"), dir.join("corpus.txt")).unwrap();
        fs::write(dir.join("p.yaml"), PIPELINE).unwrap();
        Self { dir }
    }
    fn command(&self, args: &[&str], threads: u32) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command.args(args).current_dir(&self.dir).env("FLOW_CACHE_DIR", self.dir.join(".flow")).env("FLOW_DEVICE", "cpu");
        command.env("FLOW_THREADS", threads.to_string()).env_remove("FLOW_REMOTE");
        command
    }
    fn run(&self, threads: u32) -> Ran {
        Ran::of(&self.command(&["run", "p.yaml", "--json"], threads).output().unwrap()).expect(0)
    }
    fn get(&self, artifact: &str) -> BTreeMap<String, Vec<u8>> {
        let to = self.dir.join("got").join(artifact);
        let _ = fs::remove_dir_all(&to);
        let _ = fs::remove_file(&to);
        Ran::of(&self.command(&["get", "p.yaml", artifact, "--to", to.to_str().unwrap()], 1).output().unwrap()).expect(0);
        if to.is_file() {
            return BTreeMap::from([(String::new(), fs::read(&to).unwrap())]);
        }
        let files = fs::read_dir(&to).unwrap().map(|e| e.unwrap().path());
        files.map(|p| (p.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&p).unwrap())).collect()
    }
}

/// One undisturbed run.
fn whole() -> &'static Project {
    static WHOLE: OnceLock<Project> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let project = Project::new("whole");
        project.run(2);
        project
    })
}

fn log(project: &Project) -> serde_json::Value {
    serde_json::from_slice(&project.get("student.log")[""]).unwrap()
}

#[test]
fn the_log_says_what_taught_it_and_how_it_became_ternary() {
    let project = whole();
    let log = log(project);
    assert_eq!(log["teacher_in_loop"]["token_weight"], "teacher_ce");
    assert!(log["ternary_schedule"]["soft"]["calibrate"] == 256 && log["kd_rows"] == 0, "{log}");
    assert!(log["curve"].as_array().unwrap().iter().all(|p| p["kl"].as_f64().unwrap() > 0.0 && p["relation"].as_f64().unwrap() > 0.0));
    // Soft and hard while it is soft, hard alone at the end.
    let evaluations = log["validation"]["curve"].as_array().unwrap();
    let soft: Vec<bool> = evaluations.iter().map(|e| e["soft"].is_object()).collect();
    assert!(soft[0] && !soft[soft.len() - 1] && soft.is_sorted_by(|a, b| a >= b), "{evaluations:?}");
    assert!(evaluations.iter().all(|e| e["bits_per_byte"].as_f64().unwrap() > 0.0));
    // Nothing was stored of what the teacher said.
    let kept = Command::new("find").args([project.dir.join(".flow").to_str().unwrap(), "-name", "*.parquet"]).output().unwrap();
    assert!(kept.stdout.is_empty());
    assert!(project.get("gguf")[""].starts_with(b"GGUF"));
}

/// Tokens seen by the checkpoint of a running student.
fn seen(cache: &Path) -> Option<u64> {
    let tasks = fs::read_dir(cache.join("tasks")).ok()?.flatten();
    let states = tasks.filter_map(|t| fs::read(t.path().join("state/training.safetensors")).ok());
    // The teacher trains with other names of buffers.
    let ours = states.filter_map(|bytes| {
        let header = bytes.get(8..8 + usize::try_from(u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?)).ok()?)?;
        let header: serde_json::Value = serde_json::from_slice(header).ok()?;
        header.get("param.layers.0.attn_sub_norm")?;
        let progress: serde_json::Value = serde_json::from_str(header["__metadata__"]["progress"].as_str()?).ok()?;
        progress["seen_tokens"].as_u64()
    });
    ours.max()
}

fn children(pid: Pid) -> Vec<Pid> {
    let parent_of = |entry: &fs::DirEntry| -> Option<i32> {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = all.filter(|e| parent_of(e) == Some(pid.as_raw_nonzero().get()));
    ours.filter_map(|e| Pid::from_raw(e.file_name().to_str()?.parse().ok()?)).collect()
}

/// Killed while the pressure rises, while the temperature falls, and when weights are hard, each time continued with another
/// number of threads: the bytes of the undisturbed run.
#[test]
fn killed_in_every_phase_it_ends_with_the_same_bytes() {
    let killed = Project::new("killed");
    for (share, threads) in [(0.1, 1), (0.4, 3), (0.75, 2)] {
        let mut child = killed.command(&["run", "p.yaml", "--json"], threads).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        let wanted = (share * 10_000.0) as u64;
        loop {
            if seen(&killed.dir.join(".flow")).is_some_and(|seen| seen >= wanted) {
                break;
            }
            assert!(child.try_wait().unwrap().is_none(), "the run ended before {share} of the budget was seen");
            assert!(started.elapsed() < Duration::from_secs(300), "{share} of the budget was never seen");
            std::thread::sleep(Duration::from_millis(2));
        }
        let pid = Pid::from_child(&child);
        let below = children(pid);
        kill_process(pid, Signal::KILL).unwrap();
        below.iter().for_each(|c| {
            let _ = kill_process(*c, Signal::KILL);
        });
        child.wait().unwrap();
        support::until("the task is gone", || below.iter().all(|c| test_kill_process(*c).is_err()));
    }
    let ran = killed.run(1);
    assert_eq!(ran.names("executed"), ["gguf", "student"]);
    assert!(ran.out.contains("continues from step"), "{}", ran.out);
    for artifact in ["student.student", "student.log", "gguf"] {
        let (a, b) = (whole().get(artifact), killed.get(artifact));
        assert!(a == b, "{artifact} differs: {:?}", a.keys().filter(|k| a.get(*k) != b.get(*k)).collect::<Vec<_>>());
    }
}
