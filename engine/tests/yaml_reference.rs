//! The values of a document, where no type is asked of them, are those that `serde_yaml` reads from the same text.

use flow_engine::document::Document;
use serde_json::{Map, Value};

const SHIPPED: [&str; 5] = [
    include_str!("../../pipelines/poc.yaml"),
    include_str!("../../pipelines/poc-full.yaml"),
    include_str!("../../pipelines/smollm2.yaml"),
    include_str!("../../pipelines/http.yaml"),
    include_str!("../../examples/plugins/pipeline.yaml"),
];

/// Every style of scalar, list and mapping.
const STYLES: &str = r#"
plain: two words
single: 'it''s  # no comment'
double: "a\tb\n\u00e9 \x41 \
  continued"
literal: |
  one
    two

  three
folded: >-
  one
  two

  three
kept: |+
  text

numbers: [0, -7, +3, 1.5, -2.5e3, .5, 0x1F, 0o17, 18446744073709551615]
words: [true, False, null, ~, yes, on, 12:30, 2026-11-27, 1_000]
nested:
  - a: 1
    b: [x, {y: z}]
  -
    - deep
"quoted key": 1
? explicit
: value
anchored: &a { x: 1, list: [1, 2] }
alias: *a
empty: {}
none: []
"#;

fn json(yaml: serde_yaml::Value) -> Value {
    use serde_yaml::Value as Y;
    match yaml {
        Y::Null => Value::Null,
        Y::Bool(b) => b.into(),
        Y::String(s) => s.into(),
        Y::Number(n) => n.as_u64().map_or_else(|| n.as_i64().map_or_else(|| n.as_f64().unwrap().into(), Value::from), Value::from),
        Y::Sequence(items) => items.into_iter().map(json).collect(),
        Y::Mapping(map) => Value::Object(map.into_iter().map(|(k, v)| (k.as_str().unwrap().to_owned(), json(v))).collect::<Map<_, _>>()),
        Y::Tagged(_) => panic!("a tag"),
    }
}

#[test]
fn values_are_those_of_serde_yaml() {
    for text in SHIPPED.into_iter().chain([STYLES]) {
        let ours = Document::parse("p.yaml", text).unwrap().root.shown();
        let mut theirs: serde_yaml::Value = serde_yaml::from_str(text).unwrap();
        theirs.apply_merge().unwrap();
        let theirs = json(theirs);
        assert_eq!(ours, theirs);
    }
}
