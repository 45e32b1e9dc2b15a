//! Whatever stands in a file that somebody else wrote: the readers answer or refuse, and never panic, hang or eat memory.
//!
//! Seeds are real files; each case cuts, doubles, swaps and overwrites parts of one. `.ci/soak` runs many more cases.

use std::path::Path;
use std::time::{Duration, Instant};

use flow_engine::document::Document;
use flow_engine::pipeline::{Overrides, Pipeline};
use flow_engine::plan::Plan;
use flow_engine::plugin::{Task, TaskEvent};
use flow_engine::worker::result::TaskResult;
use miette::{GraphicalReportHandler, GraphicalTheme};
use proptest::prelude::*;

#[path = "../../tests/fixture/kinds.rs"]
mod kinds;

const PIPELINES: [&str; 4] = [
    include_str!("../../pipelines/poc.yaml"),
    include_str!("../../examples/plugins/pipeline.yaml"),
    "flow: 1\nvars: { tau: 1.3, n: [1, 2], list: &l [a, b] }\nstages:\n  corpus: { use: fix.text, with: { path: errors.rs, holdout: 0.1 } }\n  loud: { use: fix.upper, in: { text: corpus.train }, after: [corpus], resources: { cpu: 1, memory: 2GiB }, retries: 2, timeout: 5m }\n  words: { use: fix.words, matrix: { k: \"${n}\" }, in: { text: loud } }\ntargets: [words, loud]\npublish: { out: loud }\n",
    "flow: 1\nbase: &b { use: fix.text, with: { path: errors.rs } }\nstages:\n  a: { <<: *b }\n  \"b c\": !tag\n    use: >-\n      fix.text\n    with: { path: 'e\\x00' }\n# ünï\n",
];

/// Pieces that parsers stumble over.
const PIECES: [&str; 24] = [
    "&a ",
    "*a",
    "<<: *a",
    "${",
    "${tau}",
    "}",
    "{",
    "[",
    "]",
    ": ",
    "- ",
    "\t",
    "\n\n",
    "\u{feff}",
    "\r\n",
    "!!binary ",
    "|\n  ",
    "? ",
    "1e999",
    "-0",
    "\"",
    "'",
    "\u{0}",
    "é€𝄞",
];

#[derive(Clone, Debug)]
enum Edit {
    Cut(usize, usize),
    Double(usize, usize),
    Put(usize, usize),
    Byte(usize, u8),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let place = any::<prop::sample::Index>().prop_map(|i| i.index(1 << 16));
    let one = prop_oneof![
        (place.clone(), 0usize..40).prop_map(|(at, n)| Edit::Cut(at, n)),
        (place.clone(), 0usize..200).prop_map(|(at, n)| Edit::Double(at, n)),
        (place.clone(), 0..PIECES.len()).prop_map(|(at, p)| Edit::Put(at, p)),
        (place, any::<u8>()).prop_map(|(at, b)| Edit::Byte(at, b)),
    ];
    prop::collection::vec(one, 1..6)
}

fn edited(seed: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for edit in edits {
        let len = bytes.len().max(1);
        match *edit {
            Edit::Cut(at, n) => drop(bytes.drain((at % len).min(bytes.len())..(at % len + n).min(bytes.len()))),
            Edit::Double(at, n) => {
                let part = bytes[(at % len).min(bytes.len())..(at % len + n).min(bytes.len())].to_vec();
                let at = (at % len).min(bytes.len());
                bytes.splice(at..at, part);
            }
            Edit::Put(at, piece) => {
                let at = (at % len).min(bytes.len());
                bytes.splice(at..at, PIECES[piece].bytes());
            }
            Edit::Byte(at, b) => {
                if let Some(slot) = bytes.get_mut(at % len) {
                    *slot = b;
                }
            }
        }
    }
    bytes
}

/// Parses, links, and where something is wrong writes what a person would read.
fn read(text: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let linked =
        Pipeline::parse("p.yaml", text, &dir.join("p.yaml"), &Overrides::default()).and_then(|p| Plan::link(p, &kinds::registry()));
    if let Err(problems) = linked {
        assert!(!problems.list.is_empty(), "refused without a word:\n{text}");
        let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
        for problem in &problems.list {
            let mut out = String::new();
            handler.render_report(&mut out, problem).unwrap();
            assert!(out.len() < 20_000, "a message of {} bytes for\n{text}", out.len());
        }
    }
}

proptest! {
    #[test]
    fn pipelines(seed in 0..PIPELINES.len(), edits in edits()) {
        let text = String::from_utf8_lossy(&edited(PIPELINES[seed].as_bytes(), &edits)).into_owned();
        let began = Instant::now();
        read(&text);
        prop_assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
    }

    #[test]
    fn pipelines_of_anything(text in "[ -~\n\t{}\\[\\]:&*!|>%@`'\"#,?$é-]{0,300}") {
        let _ = Document::parse("p.yaml", &text);
        read(&text);
    }

    /// A task's result, its events and its description: refused as JSON that does not fit, or taken.
    #[test]
    fn task_files(edits in edits()) {
        let result = br#"{"ok": false, "message": "it broke", "help": "mend it", "interrupted": false}"#;
        let _ = serde_json::from_slice::<TaskResult>(&edited(result, &edits));
        for event in [
            &br#"{"event":"progress","done":3,"total":9,"unit":"rows"}"#[..],
            br#"{"event":"metric","name":"loss","value":1.5e300}"#,
            br#"{"event":"log","message":"\ud83d\ude00"}"#,
        ] {
            let _ = serde_json::from_slice::<TaskEvent>(&edited(event, &edits));
        }
        let task = br#"{"flow":1,"stage":"s","kind":"a.b","key":"00","params":{"x":[1,2]},"inputs":[{"port":"t","path":"/p","type":"Text"}],"outputs":{"out":"/o"},"state":"/s","device":"cpu","threads":2,"provenance":[]}"#;
        let _ = serde_json::from_slice::<Task>(&edited(task, &edits));
    }
}
