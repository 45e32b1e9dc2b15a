//! What a person reads when a pipeline is wrong: each message with its place and its advice.

use std::path::Path;

use flow_engine::pipeline::{Overrides, Pipeline};
use flow_engine::plan::Plan;
use flow_engine::problem::Problems;
use miette::{GraphicalReportHandler, GraphicalTheme};

#[path = "../../tests/fixture/kinds.rs"]
mod kinds;

fn link_with(text: &str, overrides: &Overrides) -> Result<Plan, Problems> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    Pipeline::parse("p.yaml", text, &dir.join("p.yaml"), overrides).and_then(|p| Plan::link(p, &kinds::registry()))
}

fn link(text: &str) -> Result<Plan, Problems> {
    link_with(text, &Overrides::default())
}

fn shown(problems: Problems) -> String {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(120);
    let mut out = String::new();
    for problem in &problems.list {
        handler.render_report(&mut out, problem).unwrap();
    }
    out.replace(env!("CARGO_MANIFEST_DIR"), "ENGINE")
}

/// The messages for a pipeline whose stages are `stages`, after a good one named `corpus`.
fn wrong(stages: &str) -> String {
    let text = format!("flow: 1\nvars: {{ tau: 1.3 }}\nstages:\n  corpus: {{ use: fix.text, with: {{ path: errors.rs }} }}\n{stages}");
    match link(&text) {
        Err(problems) => shown(problems),
        Ok(_) => panic!("accepted:\n{text}"),
    }
}

#[test]
fn the_base_of_these_tests_is_right() {
    let plan = link(
        "flow: 1\nstages:\n  corpus: { use: fix.text, with: { path: errors.rs } }\n  loud: { use: fix.upper, in: { text: corpus.train } }\n",
    );
    assert_eq!(plan.map_err(shown).map(|p| p.order().len()), Ok(2));
}

#[test]
fn syntax() {
    insta::assert_snapshot!("syntax_flow", wrong("  a: { use: fix.upper, in: [ }\n"));
    insta::assert_snapshot!("syntax_indent", wrong("  a:\n    use: fix.upper\n   in: { text: corpus }\n"));
    insta::assert_snapshot!("syntax_tab", wrong("  a:\n\t\tuse: fix.upper\n"));
    insta::assert_snapshot!("syntax_duplicate", wrong("  a: { use: fix.upper, in: { text: corpus.train } }\n  a: { use: fix.gate }\n"));
    insta::assert_snapshot!("syntax_inside_character", shown(link("a\n#\né").err().unwrap()));
    insta::assert_snapshot!("syntax_top", shown(link("just a text").err().unwrap()));
    insta::assert_snapshot!("syntax_version", shown(link("flow: 2\nstages: { a: { use: fix.text } }\n").err().unwrap()));
}

#[test]
fn unknown_names() {
    insta::assert_snapshot!("unknown_kind", wrong("  a: { use: fix.uper, in: { text: corpus.train } }\n"));
    insta::assert_snapshot!("unknown_port", wrong("  a: { use: fix.upper, in: { txt: corpus.train, text: corpus.train } }\n"));
    insta::assert_snapshot!("unknown_output", wrong("  a: { use: fix.upper, in: { text: corpus.trian } }\n"));
    insta::assert_snapshot!("unknown_stage", wrong("  a: { use: fix.upper, in: { text: corpsu.train } }\n"));
    insta::assert_snapshot!("unknown_param", wrong("  a: { use: fix.upper, in: { text: corpus.train }, with: { sufix: x } }\n"));
    insta::assert_snapshot!("unknown_key", wrong("  a: { uses: fix.upper }\n"));
    insta::assert_snapshot!("unknown_var", wrong("  a: { use: fix.upper, in: { text: corpus.train }, with: { tau: \"${tua}\" } }\n"));
    insta::assert_snapshot!("unknown_target", wrong("targets: [corpse]\n"));
    insta::assert_snapshot!(
        "once_for_a_matrix",
        wrong("  a: { use: fix.upper, in: { text: corpus.train }, matrix: { n: [a, b, c] }, with: { suffix: '${n}', sufix: 1 } }\n")
    );
    insta::assert_snapshot!("unused_axis", wrong("  a: { use: fix.upper, matrix: { bits: [8, 4] } }\n"));
}

#[test]
fn wrong_parameters() {
    insta::assert_snapshot!("param_type", wrong("  a: { use: fix.upper, in: { text: corpus.train }, with: { tau: warm } }\n"));
    insta::assert_snapshot!("param_missing", wrong("  a: { use: fix.gate, in: { text: corpus.train } }\n"));
    insta::assert_snapshot!("param_negative", wrong("  a: { use: fix.gate, in: { text: corpus.train }, with: { at_least: -1 } }\n"));
    insta::assert_snapshot!("param_range", wrong("  a:\n    use: fix.text\n    with:\n      path: errors.rs\n      holdout: 1.5\n"));
    insta::assert_snapshot!("param_choice", wrong("  a: { use: fix.misbehave, in: { text: corpus.train }, with: { how: wildly } }\n"));
    insta::assert_snapshot!("missing_file", wrong("  a: { use: fix.text, with: { path: nowhere.txt } }\n"));
}

#[test]
fn wrong_wiring() {
    insta::assert_snapshot!(
        "wire_type",
        wrong("  w: { use: fix.words, in: { text: corpus.train } }\n  a: { use: fix.upper, in: { text: w } }\n")
    );
    insta::assert_snapshot!("wire_ambiguous", wrong("  a: { use: fix.upper, in: { text: corpus } }\n"));
    insta::assert_snapshot!("wire_missing", wrong("  a: { use: fix.upper }\n"));
    insta::assert_snapshot!("wire_list", wrong("  a: { use: fix.upper, in: { text: [corpus.train] } }\n"));
}

#[test]
fn a_pure_kind_cannot_read_a_measurement() {
    use flow_engine::plugin::{InputPort, OutputPort, Stage, StageError, TaskContext};
    struct Reader;
    #[derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    struct Nothing {}
    impl Stage for Reader {
        type Params = Nothing;
        const KIND: &'static str = "fix.reader";
        const REVISION: u32 = 1;
        const SUMMARY: &'static str = "Reads figures.";
        fn inputs(&self) -> Vec<InputPort> {
            vec![InputPort::required("figures", &["Figures"], "Figures.")]
        }
        fn outputs(&self) -> Vec<OutputPort> {
            vec![OutputPort::pure("text", "Text", "Text.")]
        }
        fn run(&self, _: Nothing, _: &TaskContext) -> Result<(), StageError> {
            Ok(())
        }
    }
    let text = "flow: 1\nstages:\n  corpus: { use: fix.text, with: { path: errors.rs } }\n  m: { use: fix.measure, in: { text: corpus.train } }\n  r: { use: fix.reader, in: { figures: m } }\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/p.yaml");
    let pipeline = Pipeline::parse("p.yaml", text, &file, &Overrides::default()).unwrap();
    let problems = Plan::link(pipeline, &kinds::registry().with(Reader)).err().unwrap();
    insta::assert_snapshot!("pure_reads_measured", shown(problems));
}

#[test]
fn a_cycle_is_named_in_order() {
    insta::assert_snapshot!(
        "cycle",
        wrong(
            "  a: { use: fix.upper, in: { text: c } }\n  b: { use: fix.upper, in: { text: a } }\n  c: { use: fix.upper, in: { text: b } }\n  d: { use: fix.upper, in: { text: c } }\n"
        )
    );
    insta::assert_snapshot!("cycle_self", wrong("  a: { use: fix.upper, in: { text: a } }\n"));
}

#[test]
fn several_problems_are_told_at_once() {
    let text = wrong("  a: { use: fix.uper }\n  b: { use: fix.upper, in: { text: corpsu } }\n");
    assert!(text.contains("fix.uper") && text.contains("corpsu"), "{text}");
}

#[test]
fn the_command_line_is_named_when_it_is_wrong() {
    let text = "flow: 1\nvars: { tau: 1.3 }\nstages:\n  corpus: { use: fix.text, with: { path: errors.rs } }\n  a: { use: fix.upper, in: { text: corpus.train }, with: { tau: \"${tau}\" } }\n";
    let with = |vars: &[(&str, &str)], sets: &[(&str, &str)]| {
        let own = |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        link_with(text, &Overrides { vars: own(vars), sets: own(sets) }).map(|_| ()).map_err(shown)
    };
    assert_eq!(with(&[("tau", "2")], &[("stages.a.with.suffix", "x")]), Ok(()));
    insta::assert_snapshot!("override_var", with(&[("tao", "2")], &[]).unwrap_err());
    insta::assert_snapshot!("override_stage", with(&[], &[("stages.b.with.tau", "2")]).unwrap_err());
    insta::assert_snapshot!("override_type", with(&[], &[("stages.a.with.tau", "hot")]).unwrap_err());
    insta::assert_snapshot!("override_path", with(&[], &[("a.tau", "1")]).unwrap_err());
}

#[test]
fn variables_keep_their_type_alone_and_are_text_inside_text() {
    let text = "flow: 1\nvars: { tau: 1.5, word: loud }\nstages:\n  corpus: { use: fix.text, with: { path: errors.rs } }\n  a: { use: fix.upper, in: { text: corpus.train }, with: { tau: \"${tau}\", suffix: \"${word} at ${tau}, $${tau}\" } }\n";
    let plan = link(text).map_err(shown).unwrap();
    let params = &plan.stage(plan.find("a").unwrap()).params;
    assert_eq!(params["tau"], 1.5);
    assert_eq!(params["suffix"], "loud at 1.5, ${tau}");
}

/// The messages for the whole text `text`.
fn whole(text: &str) -> String {
    match link(text) {
        Err(problems) => shown(problems),
        Ok(_) => panic!("accepted:\n{}", &text[..text.len().min(1000)]),
    }
}

#[test]
fn yaml_that_is_more_than_a_pipeline_needs() {
    insta::assert_snapshot!("yaml_empty", whole(""));
    insta::assert_snapshot!("yaml_null_stages", whole("flow: 1\nstages:\n"));
    insta::assert_snapshot!("yaml_stage_list", whole("flow: 1\nstages:\n  - { use: fix.text }\n"));
    insta::assert_snapshot!("yaml_two_documents", whole("flow: 1\nstages: { a: { use: fix.text } }\n---\nflow: 1\n"));
    insta::assert_snapshot!("yaml_unknown_anchor", wrong("  a: *missing\n"));
    insta::assert_snapshot!("yaml_number_key", wrong("  7: { use: fix.text }\n"));
    insta::assert_snapshot!("yaml_tag", wrong("  a: !stage { use: fix.uper }\n"));
    insta::assert_snapshot!("yaml_unclosed", wrong("  a: { use: \"fix.text }\n"));
    insta::assert_snapshot!("yaml_control", wrong("  a: { use: \u{1} }\n"));
    let laughs: String = (1..12).map(|i| format!("l{i}: &l{i} [{}]\n", vec![format!("*l{}", i - 1); 10].join(", "))).collect();
    insta::assert_snapshot!("yaml_laughs", whole(&format!("flow: 1\nl0: &l0 [x]\n{laughs}stages: {{ a: {{ use: fix.text }} }}\n")));
    insta::assert_snapshot!("yaml_depth", whole(&format!("flow: 1\nstages: {}{}\n", "[".repeat(2000), "]".repeat(2000))));
    insta::assert_snapshot!(
        "yaml_large",
        whole(&format!("flow: 1\n# {}\nstages: {{ a: {{ use: fix.nothing }} }}\n", "x".repeat(10 << 20)))
    );
}

#[test]
fn anchors_and_merge_keys_mean_what_yaml_says() {
    let text = "flow: 1\nvars: { t: &t { path: errors.rs } }\nstages:\n  a: &a { use: fix.text, with: *t }\n  b: { <<: *a }\n";
    assert_eq!(link(text).map_err(shown).map(|p| p.order().len()), Ok(2));
    insta::assert_snapshot!(
        "merged_wrong",
        whole("flow: 1\nstages:\n  a: &a { use: fix.text, with: { pth: errors.rs } }\n  b: { <<: *a }\n")
    );
}

#[test]
fn the_newer_keys() {
    insta::assert_snapshot!(
        "matrix_empty",
        wrong("  a: { use: fix.upper, in: { text: corpus.train }, matrix: { n: [] }, with: { suffix: '${n}' } }\n")
    );
    insta::assert_snapshot!(
        "matrix_scalar",
        wrong("  a: { use: fix.upper, in: { text: corpus.train }, matrix: { n: 3 }, with: { suffix: '${n}' } }\n")
    );
    insta::assert_snapshot!("include_missing", wrong("include: other.yaml\n"));
    insta::assert_snapshot!("plugin_command", wrong("plugins: { p: { files: [x] } }\n"));
    insta::assert_snapshot!("pool_amount", wrong("pools: { licence: many }\n"));
    insta::assert_snapshot!(
        "resource_unknown",
        wrong("  a: { use: fix.upper, in: { text: corpus.train }, resources: { licences: 1 } }\npools: { licence: 2 }\n")
    );
    insta::assert_snapshot!("remote_key", wrong("remote: { url: 's3://b/p', readonly: true }\n"));
    insta::assert_snapshot!("remote_shape", wrong("remote: [s3]\n"));
    insta::assert_snapshot!("timeout", wrong("  a: { use: fix.upper, in: { text: corpus.train }, timeout: soon }\n"));
    insta::assert_snapshot!("retries", wrong("  a: { use: fix.upper, in: { text: corpus.train }, retries: -1 }\n"));
    insta::assert_snapshot!("requires_no_gate", wrong("  a: { use: fix.upper, in: { text: corpus.train }, requires: corpus.train }\n"));
    insta::assert_snapshot!("after_unknown", wrong("  a: { use: fix.upper, in: { text: corpus.train }, after: [corpse] }\n"));
    insta::assert_snapshot!("publish_outside", wrong("publish: { ../out: corpus.train }\n"));
    insta::assert_snapshot!("publish_unknown", wrong("publish: { out: corpus.held }\n"));
    insta::assert_snapshot!("stage_name", wrong("  'a b': { use: fix.upper }\n"));
    insta::assert_snapshot!(
        "var_cycle",
        whole("flow: 1\nvars: { a: '${b}', b: '${a}' }\nstages: { s: { use: fix.text, with: { path: '${a}' } } }\n")
    );
}
