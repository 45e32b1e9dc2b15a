//! Chat templates with the constructs of those that the families publish, against jinja2 (`tests/golden/chat`).

use std::path::{Path, PathBuf};

use flow_lm::chat::ChatTemplate;
use flow_lm::tokenizer::Tokenizer;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

#[test]
fn templates_render_as_transformers_renders_them() {
    let expected: Value = serde_json::from_slice(&std::fs::read(golden("chat/expected.json")).expect("golden")).expect("JSON");
    let tokenizer = Tokenizer::load(&golden("models/student-tokenizer-4096.json")).expect("loads");
    let mut wrong = Vec::new();
    for (name, texts) in expected["templates"].as_object().expect("templates") {
        let path = golden(&format!("chat/{name}.jinja"));
        let template = ChatTemplate::new(&path, std::fs::read_to_string(&path).expect("template"), &tokenizer);
        for (n, (conversation, wanted)) in
            expected["conversations"].as_array().into_iter().flatten().zip(texts.as_array().expect("texts")).enumerate()
        {
            let messages = conversation["messages"].as_array().expect("messages");
            let got = template.render(messages, conversation["tools"].as_array().map(Vec::as_slice));
            match (got, wanted.as_str()) {
                (Ok(got), Some(wanted)) if got == wanted => {}
                (Err(error), None) if error.to_string().contains(wanted["error"].as_str().expect("an error")) => {}
                (Ok(got), _) => wrong.push(format!("{name} {n}\n--- got\n{got}\n--- expected\n{}", wanted.as_str().unwrap_or("an error"))),
                (Err(error), _) => wrong.push(format!("{name} {n}: {error}\n--- expected {wanted}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ\n{}", wrong.len(), wrong.join("\n"));
}
