//! A student that begins as a model file: the file counts by its content.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::Ran;

const PIPELINE: &str = "
flow: 1
stages:
  corpus: { use: data.text, with: { path: corpus.txt } }
  student:
    use: train.bitnet
    in: { text: corpus.train }
    with:
      preset: init
      init: { from: file, path: PATH, layers: [0], width: { mlp: 256 }, calibration_tokens: 200 }
      seq: 32
      budget_tokens: 60
      recipe: { batch: 2 }
targets: [student]
";

#[test]
fn the_file_that_a_student_begins_as_counts_by_its_content() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at(".git")).unwrap();
    fs::copy(here.join("data/tiny/corpus.txt"), at("corpus.txt")).unwrap();
    fs::copy(here.join("golden/gguf/student-tq2_0.gguf"), at("a.gguf")).unwrap();
    let run = |model: &str| {
        fs::write(at("p.yaml"), PIPELINE.replace("PATH", model)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
        command.args(["run", "p.yaml", "--json"]).current_dir(dir.path()).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR");
        Ran::of(&command.output().unwrap())
    };
    assert_eq!(run("a.gguf").expect(0).names("executed"), ["corpus", "student"]);
    fs::rename(at("a.gguf"), at("b.gguf")).unwrap();
    assert!(run("b.gguf").expect(0).names("executed").is_empty(), "another name is the same content");
    let mut bytes = fs::read(at("b.gguf")).unwrap();
    // A weight of the last tensor.
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(at("b.gguf"), bytes).unwrap();
    assert_eq!(run("b.gguf").expect(0).names("executed"), ["student"]);
    let missing = run("c.gguf");
    assert!(missing.code == Some(2) && missing.err.contains("no such file") && missing.err.contains("p.yaml:10"), "{}", missing.err);
}
