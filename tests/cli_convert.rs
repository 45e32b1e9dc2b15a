//! `flow convert`: what is written, what is carried over, and what is refused.

use std::path::Path;
use std::process::Command;

use flow_lm::format::gguf::{GgufFile, Value};

#[path = "support/mod.rs"]
mod support;
use support::Ran;

fn golden(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).display().to_string()
}

fn convert(dir: &Path, args: &[&str]) -> Ran {
    Ran::of(&Command::new(env!("CARGO_BIN_EXE_flow")).arg("convert").args(args).current_dir(dir).output().unwrap())
}

/// Types of a file's tensors by name.
fn id(file: &GgufFile, name: &str) -> u32 {
    file.tensors.iter().find(|t| t.name == name).unwrap().ty
}

#[test]
fn models_go_from_format_to_format() {
    let dir = tempfile::tempdir().unwrap();
    let (at, names) = (dir.path(), || {
        let mut all: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        all.sort();
        all
    });
    let ternary = golden("families/tiny-qwen3-ternary-g128/model.gguf");
    // As it is: groups of 128 in blocks of 64, embedding too.
    convert(at, &[&ternary, "a.gguf", "--author", "me", "--licence", "mit"]).expect(0);
    let a = GgufFile::read(&at.join("a.gguf")).unwrap();
    assert_eq!((id(&a, "token_embd.weight"), id(&a, "blk.1.ffn_down.weight"), id(&a, "output_norm.weight")), (42, 42, 0));
    assert_eq!(a.keys.get("general.file_type"), Some(&Value::U32(41)));
    // What the file says of itself goes along, unless it is said anew.
    convert(at, &["a.gguf", "b.gguf", "--type", "q8_0", "--name", "other"]).expect(0);
    let b = GgufFile::read(&at.join("b.gguf")).unwrap();
    let text = |key: &str| b.text(key).unwrap().map(str::to_owned);
    assert_eq!(
        (text("general.name"), text("general.author"), text("general.license")),
        (Some("other".into()), Some("me".into()), Some("mit".into()))
    );
    assert_eq!((id(&b, "token_embd.weight"), id(&b, "blk.1.ffn_down.weight")), (1, 8));
    // Into a directory and back, with its tokenizer.
    convert(at, &["a.gguf", "model", "--type", "float32"]).expect(0);
    convert(at, &["model", "c.gguf", "--type", "f32"]).expect(0);
    let c = GgufFile::read(&at.join("c.gguf")).unwrap();
    assert_eq!(c.floats("blk.0.attn_q.weight").unwrap(), a.floats("blk.0.attn_q.weight").unwrap());
    assert_eq!(c.keys.get("tokenizer.ggml.tokens"), a.keys.get("tokenizer.ggml.tokens"));
    let card = std::fs::read_to_string(at.join("model/README.md")).unwrap();
    assert!(card.contains("license: \"mit\"") && card.contains("`flow convert a.gguf model --type float32`"), "{card}");
    assert_eq!(names(), ["a.gguf", "b.gguf", "c.gguf", "model"], "nothing else is left");
}

#[test]
fn nothing_is_replaced_or_rounded_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    let refused = |args: &[&str], wanted: &str| {
        let ran = convert(at, args).expect(2);
        assert!(ran.err.contains(wanted), "{args:?}: {}", ran.err);
    };
    let model = golden("families/tiny-qwen2/model.gguf");
    std::fs::write(at.join("there.gguf"), "mine").unwrap();
    refused(&[&model, "there.gguf"], "is there already");
    assert_eq!(std::fs::read(at.join("there.gguf")).unwrap(), b"mine");
    std::fs::create_dir(at.join("folder")).unwrap();
    std::fs::write(at.join("folder/file"), "mine").unwrap();
    refused(&[&model, "folder", "--force"], "something else than a model");
    refused(&[&model, "x.gguf", "--type", "q2_0"], "`layers.0.q` is to be q2_0");
    refused(&[&model, "x.gguf", "--type", "bfloat16"], "is a GGUF file");
    refused(&[&model, "x", "--type", "q8_0"], "is a directory");
    refused(&[&model, "x", "--embedding", "f16"], "--embedding");
    refused(&[&model, "x.gguf", "--type", "q3"], "expected one of q2_0");
    refused(&["nowhere.gguf", "x.gguf"], "nowhere.gguf");
    let mut left: Vec<_> = std::fs::read_dir(at).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["folder", "there.gguf"], "nothing is left of what failed");
    convert(at, &[&model, "there.gguf", "--force"]).expect(0);
    assert!(GgufFile::read(&at.join("there.gguf")).is_ok());
    convert(at, &[&model, "model"]).expect(0);
    convert(at, &[&model, "model", "--force", "--type", "float32"]).expect(0);
    assert!(std::fs::read_to_string(at.join("model/config.json")).unwrap().contains("float32"));
    // What a conversion did not write is nobody's to delete, and neither is what is read.
    std::fs::write(at.join("model/notes.txt"), "mine").unwrap();
    refused(&[&model, "model", "--force"], "notes.txt");
    std::fs::remove_file(at.join("model/notes.txt")).unwrap();
    convert(at, &[&model, "model/model.gguf"]).expect(0);
    refused(&["model/model.gguf", "model", "--force"], "lies in model");
    assert!(at.join("model/model.gguf").is_file() && at.join("model/model.safetensors").is_file());
}
