//! A value is the text that was typed, on every way from the file or the command line into a stage.

mod support;

use support::Project;

/// A project whose stage `s` writes what a text became.
fn shell(vars: &str, stage: &str) -> Project {
    Project::new(&format!("flow: 1\nvars: {vars}\nstages:\n  s: {{ use: shell, {stage} }}\n"))
}

fn made(project: &Project, more: &[&str]) -> String {
    project.flow(&[&["run", "p.yaml"], more].concat()).expect(0);
    let artifact = ["get", "p.yaml", "s", "--to", "got"];
    project.flow(&[&artifact, more].concat()).expect(0);
    project.read("got")
}

const TEXTS: [&str; 20] = [
    "7123e45",
    "3.10",
    "1.0",
    "0o17",
    "0x1F",
    "1e3",
    "58467965",
    "1234567890123456789012",
    "007",
    "+5",
    "-0",
    ".5",
    "1_000",
    "on",
    "no",
    "True",
    "null",
    "2026-11-26",
    "12:30:45",
    "1.",
];

#[test]
fn texts_from_the_file_stand_as_they_were_typed() {
    for text in TEXTS {
        let line = format!("{text}\n");
        let project = shell(&format!("{{ x: {text} }}"), "with: { run: 'echo \"${x}\" > \"$out\"' }");
        assert_eq!(made(&project, &[]), line, "vars");
        let project = shell(&format!("{{ x: {text} }}"), "with: { run: 'echo \"$A\" > \"$out\"', env: { A: \"${x}\" } }");
        assert_eq!(made(&project, &[]), line, "a variable in env");
        let project = shell("{}", &format!("with: {{ run: 'echo \"$A\" > \"$out\"', env: {{ A: {text} }} }}"));
        assert_eq!(made(&project, &[]), line, "env");
        let project = shell("{}", &format!("matrix: {{ x: [{text}] }}, with: {{ run: 'echo \"${{x}}\" > \"$out\"' }}"));
        assert_eq!(project.run(&[]).expect(0).names("executed"), [format!("s[x={text}]")], "a stage's name");
    }
}

#[test]
fn texts_from_the_command_line_stand_as_they_were_typed() {
    let project = shell("{ x: none }", "with: { run: 'printf \"%s\" \"${x}\" > \"$out\"' }");
    let env = shell("{}", "with: { run: 'printf \"%s\" \"$A\" > \"$out\"', env: { A: none } }");
    for text in TEXTS.into_iter().chain(["a: b", "# no comment", "[not, a, list", "[x]", "{y: 1}", "*z", " blank ", "'q'", ""]) {
        assert_eq!(made(&project, &["--var", &format!("x={text}")]), text);
    }
    for text in TEXTS.into_iter().chain(["a: b", "# no comment", "*z", " blank "]) {
        assert_eq!(made(&env, &["--set", &format!("stages.s.with.env.A={text}")]), text);
    }
    assert_eq!(made(&env, &["--set", "stages.s.with.env={A: 3.10}"]), "3.10");
}

#[test]
fn a_variable_that_fills_a_typed_parameter_is_read_by_its_type() {
    let project = Project::new(
        "flow: 1\nvars: { tau: 1.5, n: 2, list: [1.0, 2.50] }\nstages:\n  corpus: { use: fix.text, with: { path: a.txt } }\n  loud: { use: fix.upper, in: { text: corpus.train }, with: { tau: \"${tau}\" }, retries: \"${n}\" }\n  cell: { use: fix.upper, in: { text: corpus.train }, matrix: { t: \"${list}\" }, with: { tau: \"${t}\" } }\n",
    );
    for (text, code) in [("0x10", 0), ("1e1", 0), ("16", 0), ("warm", 2), ("'16'", 2), ("", 2), (".inf", 2)] {
        project.run(&["--var", &format!("tau={text}")]).expect(code);
    }
    let plan = project.flow(&["plan", "p.yaml", "--json", "--var", "list=[3.10, 1e1]", "cell"]).expect(0);
    assert!(plan.out.contains("cell[t=3.10]") && plan.out.contains("cell[t=1e1]"), "{}", plan.out);
    // The same number written in two ways is the same parameter.
    project.run(&["--var", "tau=16", "loud"]).expect(0);
    assert_eq!(project.run(&["--var", "tau=0x10", "loud"]).expect(0).names("executed"), [""; 0]);
}

#[test]
fn cells_and_stages_of_one_name_are_refused() {
    for axes in ["x: [1, '1']", "x: [a, a]", "x: ['1,y=2', '1'], y: ['2', '2,y=2']"] {
        let stage = format!(
            "matrix: {{ {axes} }}, with: {{ run: 'echo \"${{x}} {}\" > \"$out\"' }}",
            if axes.contains("], y") { "${y}" } else { "" }
        );
        let ran = shell("{}", &stage).run(&[]).expect(2);
        assert!(ran.err.contains("two cells of the matrix are called"), "{axes}: {}", ran.err);
    }
}

#[test]
fn merges_follow_chains_and_lists() {
    let text = |env: &str| {
        format!(
            "flow: 1\nvars:\n  base: &base {{ A: base, B: base, N: {{ x: 1, y: 2 }} }}\n  mid: &mid {{ <<: *base, B: mid }}\n  other: &other {{ B: other, C: other }}\nstages:\n  s: {{ use: shell, with: {{ run: 'echo \"${{A-}} ${{B-}} ${{C-}}\" > \"$out\"', env: {env} }} }}\n"
        )
        .replace("${A-}", "$${A-}")
        .replace("${B-}", "$${B-}")
        .replace("${C-}", "$${C-}")
        .replace(", N: { x: 1, y: 2 }", "")
    };
    for (env, wanted) in [
        ("{ <<: *mid, C: own }", "base mid own\n"),
        ("{ <<: [*other, *mid] }", "base other other\n"),
        ("{ <<: [*mid, *other] }", "base mid other\n"),
        ("{ B: own, <<: *mid }", "base own \n"),
        ("{ <<: *other, <<: *mid }", "base other other\n"),
        ("{ '<<': text }", ""),
    ] {
        let project = Project::new(&text(env));
        if wanted.is_empty() {
            project.flow(&["run", "p.yaml"]).expect(0);
            continue;
        }
        assert_eq!(made(&project, &[]), wanted, "{env}");
    }
    let ran = Project::new(&text("{ <<: [*mid, 3] }")).run(&[]).expect(2);
    assert!(ran.err.contains("`<<` takes a mapping"), "{}", ran.err);
}

#[test]
fn files_are_text_in_utf8_with_or_without_a_mark() {
    use std::fs;
    let pipeline = "flow: 1\ninclude: more.yaml\nstages:\n  corpus: { use: fix.text, with: { path: a.txt } }\n";
    let more = "vars: { x: 1 }\n";
    let project = Project::new(pipeline);
    project.write("more.yaml", &format!("\u{feff}{more}"));
    project.write("p.yaml", &format!("\u{feff}{pipeline}"));
    project.run(&[]).expect(0);
    let utf16: Vec<u8> = more.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, wanted) in [(utf16, "UTF-16"), (vec![0x1f, 0x8b, 8, 0, 0, 0, 0xff], "gzip"), (vec![0x28, 0xb5, 0x2f, 0xfd, 0xff], "zstd")] {
        fs::write(project.path("more.yaml"), bytes).unwrap();
        let ran = project.run(&[]).expect(2);
        assert!(ran.err.contains(wanted) && ran.err.contains("more.yaml"), "{}", ran.err);
    }
}

#[test]
fn paths_that_are_no_utf8_are_refused() {
    use std::os::unix::ffi::OsStrExt;
    let project = Project::new("flow: 1\nstages:\n  s: { use: shell, with: { run: 'echo > \"$out\"' } }\n");
    let odd = project.path("").join(std::ffi::OsStr::from_bytes(b"odd\xff"));
    std::fs::create_dir(&odd).unwrap();
    std::fs::copy(project.path("p.yaml"), odd.join("p.yaml")).unwrap();
    for (name, value) in [("FLOW_CACHE_DIR", odd.join("cache")), ("UNUSED", odd.clone())] {
        let pipeline = if name == "UNUSED" { odd.join("p.yaml") } else { project.path("p.yaml") };
        let mut command = std::process::Command::new(support::fixture());
        command.arg("run").arg(pipeline).env("FLOW_DEVICE", "cpu").env_remove("FLOW_CACHE_DIR").env(name, value);
        let ran = support::Ran::of(&command.output().unwrap()).expect(2);
        assert!(ran.err.contains("not UTF-8"), "{}", ran.err);
    }
}

#[test]
fn values_of_the_environment_that_are_no_utf8_have_keys_of_their_own() {
    use std::os::unix::ffi::OsStrExt;
    let project =
        shell("{}", "with: { run: 'printf \"%s\" \"$${WORD-unset}\" | od -An -tx1 > \"$out\"', env: { WORD: { inherit: true } } }");
    let mut seen = std::collections::BTreeSet::new();
    for bytes in [Some(&b"\xff"[..]), Some(b"\xfe"), Some(b"ff"), None] {
        let word = bytes.map(std::ffi::OsStr::from_bytes);
        let ran = project.flow_in(&["run", "p.yaml", "--json"], "WORD", word).expect(0);
        assert_eq!(ran.names("executed"), ["s"], "{bytes:?}");
        project.flow_in(&["get", "p.yaml", "s", "--to", "got"], "WORD", word).expect(0);
        seen.insert(project.read("got"));
    }
    assert_eq!(seen.len(), 4);
}
