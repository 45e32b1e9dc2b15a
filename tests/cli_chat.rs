//! `flow chat`: turns and commands on standard input, answers on standard output, everything else on standard error.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

#[path = "support/mod.rs"]
mod support;
use support::Ran;

const TEMPLATE: &str =
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";

/// The golden model with a template of its own.
fn model(dir: &Path) -> PathBuf {
    let to = dir.join("model");
    fs::create_dir(&to).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/tiny-llama");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"] {
        fs::copy(golden.join(name), to.join(name)).unwrap();
    }
    fs::write(to.join("chat_template.jinja"), TEMPLATE).unwrap();
    to
}

fn flow(dir: &Path, args: &[&str], input: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flow"));
    command.args(args).current_dir(dir).env("FLOW_DEVICE", "cpu");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Ran::of(&child.wait_with_output().unwrap())
}

/// Answers are those to the text that the template makes of the turns before, which `flow generate` is given here.
#[test]
fn turns_are_put_to_the_model_by_its_template() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let chat =
        |more: &[&str], input: &str| flow(dir.path(), &[&["chat", "model", "-n", "9", "--context", "128"], more].concat(), input).expect(0);
    let answer = |text: &str| flow(dir.path(), &["generate", "model", "-n", "9", "--context", "128", "-p", text], "").expect(0).out;
    let first = answer("<user>one\n<assistant>");
    let second = answer(&format!("<user>one\n<assistant>{first}\n<user>two\n<assistant>"));
    assert_eq!(chat(&[], "one\n").out, format!("{first}\n"));
    assert_eq!(chat(&[], "one\ntwo\n").out, format!("{first}\n{second}\n"));
    assert_eq!(chat(&[], "one\nother\n/undo\ntwo\n/quit\nnever\n").out.lines().last(), format!("{second}\n").lines().last());
    assert_eq!(chat(&[], "one\n\n/regenerate\n").out, format!("{first}\n{first}\n"), "the most likely answer again");
    let told = answer("<system>be\n<user>one\n<assistant>");
    assert_eq!(chat(&["--system", "be"], "one\n").out, format!("{told}\n"));
    assert_eq!(chat(&[], "/system be\none\n").out, format!("{told}\n"));
    let lines = answer("<user>a\nb\n<assistant>");
    assert_eq!(chat(&[], "a\\\nb\n").out, format!("{lines}\n"));
    assert_eq!(chat(&[], "\"\"\"\na\nb\n\"\"\"\n").out, format!("{lines}\n"));
    // Draws differ from answer to answer, and repeat with the seed.
    let drawn = || chat(&["--temperature", "9", "--seed", "3"], "one\n/regenerate\n").out;
    assert_eq!(drawn(), drawn());
    assert_eq!(chat(&[], "/set temperature 9\n/set seed 3\none\n/regenerate\n").out, drawn());
    assert_ne!(drawn(), chat(&["--temperature", "9", "--seed", "4"], "one\n/regenerate\n").out);
}

#[test]
fn a_conversation_is_kept_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let chat = |input: &str| flow(dir.path(), &["chat", "model", "-n", "5", "--context", "128"], input).expect(0);
    let whole = chat("/system be\none\n/system\ntwo\n");
    chat("/system be\none\n/save talk.json\n/save talk.json\n");
    let kept: Value = serde_json::from_str(&fs::read_to_string(dir.path().join("talk.json")).unwrap()).unwrap();
    assert_eq!((&kept["system"], &kept["turns"][0]["user"]), (&Value::from("be"), &Value::from("one")));
    let on = chat("/load talk.json\n/system\ntwo\n");
    assert!(whole.out.ends_with(&on.out), "{} {}", whole.out, on.out);
    // What is somebody's stays.
    fs::write(dir.path().join("mine.txt"), "mine").unwrap();
    let ran = chat("one\n/save mine.txt\n/load mine.txt\n/load none\n/nonsense\n/set heat 3\n/set top_p 2\n/set top_k x\n/undo\n/undo\n");
    assert_eq!(fs::read_to_string(dir.path().join("mine.txt")).unwrap(), "mine");
    for said in [
        "mine.txt exists and is no conversation",
        "mine.txt: no conversation",
        "none: cannot read it",
        "there is no /nonsense",
        "nothing is called `heat`",
        "top_p: 2 is not a share",
        "`x` is no value of `top_k`",
        "there is no turn to forget",
    ] {
        assert!(ran.err.contains(said), "{said}: {}", ran.err);
    }
}

#[test]
fn a_full_context_is_told() {
    let dir = tempfile::tempdir().unwrap();
    model(dir.path());
    let long = "word ".repeat(9);
    let input = format!("{long}\n{long}\n{long}\n{long}\n");
    let chat = |how: &str| flow(dir.path(), &["chat", "model", "-n", "9", "--context", "64", "--when-full", how], &input).expect(0);
    let (forgets, refuses) = (chat("forget"), chat("refuse"));
    assert!(forgets.err.contains("turns are forgotten") && forgets.out.lines().count() >= 4, "{} {}", forgets.out, forgets.err);
    assert!(refuses.err.contains("the context 64") && refuses.err.contains("--context"), "{}", refuses.err);
    assert!(refuses.out.len() < forgets.out.len());
}

#[test]
fn a_model_without_a_template_continues_text() {
    let dir = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/tiny-llama").display().to_string();
    let ran = flow(dir.path(), &["chat", &model, "-n", "6"], "Once\n").expect(0);
    assert!(ran.err.contains("no chat template"), "{}", ran.err);
    let text = flow(dir.path(), &["generate", &model, "-n", "6", "-p", "Once"], "").expect(0);
    assert_eq!(ran.out, format!("{}\n", text.out));
}
