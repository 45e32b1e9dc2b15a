//! Answers held to a schema or a grammar, by a model that knows nothing: whatever is drawn, a finished answer validates.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flow_lm::infer::{Constraint, Finish, Generator, Grammar, Request, Sampling, Session, Uses, Vocabulary};
use flow_lm::rng::Rng;
use flow_lm::{Model, TokenId};
use flow_shaders::device::open;
use serde_json::{Value, json};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name)
}

fn model() -> Model {
    Model::open(&golden("tiny-llama")).expect("the golden model")
}

/// Text of one answer under a constraint, and why it ended.
fn answer(session: &mut Session, model: &Model, constraint: Constraint, seed: u64, max_tokens: usize) -> (String, Finish) {
    let mut generator = Generator::new(session);
    let request = Request {
        prompt: model.tokenizer.context("{"),
        max_tokens,
        sampling: Sampling { temperature: 1.0, seed, ..Sampling::default() },
        constraint: Some(constraint),
        ends: model.tokenizer.ends().to_vec(),
        ..Request::default()
    };
    generator.join(request).expect("joins");
    let (mut bytes, mut finish) = (Vec::new(), Finish::Stuck);
    while !generator.is_idle() {
        for event in generator.step().expect("steps") {
            event.token.iter().for_each(|t| bytes.extend_from_slice(model.tokenizer.token_bytes(*t)));
            finish = event.finish.unwrap_or(finish);
        }
    }
    (String::from_utf8_lossy(&bytes).into_owned(), finish)
}

fn session(model: &Model, room: usize) -> Session {
    let uses = Uses { decode: Some((1, room)), draws: true, prefill: 32, ..Uses::default() };
    Session::new(&open("cpu", 1).expect("the CPU"), model.checkpoint.config.clone(), &model.checkpoint.tensors, uses).expect("fits")
}

fn one_of<'a>(rng: &mut Rng, all: &[&'a str]) -> &'a str {
    all[rng.below(all.len())]
}

/// A schema of many kinds; deeper ones hold shallower ones.
fn schema(rng: &mut Rng, depth: usize) -> Value {
    let leaf = |rng: &mut Rng| match rng.below(9) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => json!({"type": "integer", "minimum": rng.below(9), "maximum": 9 + rng.below(90)}),
        3 => json!({"type": "number", "minimum": -1, "maximum": 1}),
        4 => json!({"type": "string", "maxLength": rng.below(6)}),
        5 => json!({"type": "string", "pattern": one_of(rng, &["^[a-c]{2,4}$", "^(yes|no)$", "^\\d{4}-\\d{2}$"])}),
        6 => {
            let values = json!(["red", 7, null, ["a"], {"b": 1}]);
            let some: Vec<&Value> = values.as_array().into_iter().flatten().take(1 + rng.below(5)).collect();
            json!({"enum": some})
        }
        7 => json!({"const": one_of(rng, &["x", "y z", "é"])}),
        _ => json!({"type": "string", "format": one_of(rng, &["date", "time", "uuid", "ipv4"])}),
    };
    if depth == 0 {
        return leaf(rng);
    }
    match rng.below(6) {
        0 => {
            let least = rng.below(3);
            json!({"type": "array", "items": schema(rng, depth - 1), "minItems": least, "maxItems": least + rng.below(3)})
        }
        1 => json!({"anyOf": [schema(rng, depth - 1), schema(rng, depth - 1)]}),
        2 => json!({"allOf": [schema(rng, depth - 1)]}),
        3 => json!({"type": "array", "prefixItems": [schema(rng, depth - 1), leaf(rng)], "items": false, "minItems": 2}),
        _ => {
            let names = &["a", "b c", "ключ", "d\"e"][..1 + rng.below(4)];
            let properties: serde_json::Map<String, Value> = names.iter().map(|n| ((*n).to_owned(), schema(rng, depth - 1))).collect();
            let required = &names[..rng.below(names.len() + 1)];
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        }
    }
}

/// Seeded schemas; `FLOW_SCHEMAS` says how many.
#[test]
fn every_finished_answer_validates() {
    let wanted: usize = std::env::var("FLOW_SCHEMAS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let model = model();
    let vocabulary = Vocabulary::new(&model.tokenizer, model.checkpoint.config.vocab).expect("a vocabulary");
    let mut lm = session(&model, 600);
    let (mut rng, mut finished, mut refused) = (Rng::new(4, "schemas"), 0, 0);
    for i in 0..wanted {
        let depth = rng.below(4);
        let mut schema = schema(&mut rng, depth);
        if rng.below(4) == 0 {
            schema = json!({"type": "array", "items": {"$ref": "#/$defs/a"}, "maxItems": 2, "$defs": {"a": schema}});
        }
        let validator = jsonschema::validator_for(&schema);
        let constraint = match vocabulary.compile(&Grammar::Schema(schema.clone())) {
            Ok(constraint) if validator.is_ok() => constraint,
            _ => {
                refused += 1;
                continue;
            }
        };
        let (text, finish) = answer(&mut lm, &model, constraint, i as u64, 500);
        assert_ne!(finish, Finish::Stuck, "{schema}: {text}");
        if finish == Finish::Stop {
            finished += 1;
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{schema}: {text}: {e}"));
            let errors: Vec<String> = validator.expect("compiled").iter_errors(&value).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{schema}: {text}: {errors:?}");
        }
    }
    assert!(finished * 10 >= wanted * 7, "{finished} of {wanted} finished, {refused} refused");
    eprintln!("{finished} of {wanted} answers finished and validate, {refused} schemas were refused");
}

#[test]
fn objects_and_grammars() {
    let model = model();
    let vocabulary = Vocabulary::new(&model.tokenizer, model.checkpoint.config.vocab).expect("a vocabulary");
    let mut lm = session(&model, 300);
    for seed in 0..6 {
        let (text, finish) = answer(&mut lm, &model, vocabulary.compile(&Grammar::Object).expect("compiles"), seed, 200);
        assert!(finish == Finish::Length || serde_json::from_str::<Value>(&text).is_ok_and(|v| v.is_object()), "{text}");
        // The longest terminal is not always the right one: `bc` begins as `b` and `c` do.
        let grammar = Grammar::Gbnf("root ::= ([a-c]{3} | \"bcd\") \"-\" [0-9]+ \".\"\n".into());
        let (text, finish) = answer(&mut lm, &model, vocabulary.compile(&grammar).expect("compiles"), seed, 60);
        let (letters, number) = text.split_once('-').unwrap_or_else(|| panic!("{text}"));
        assert!(letters == "bcd" || letters.len() == 3 && letters.bytes().all(|b| (b'a'..=b'c').contains(&b)), "{text}");
        assert!(number.trim_end_matches('.').bytes().all(|b| b.is_ascii_digit()), "{text}");
        assert!(finish == Finish::Length || number.ends_with('.'), "{text} {finish:?}");
    }
}

#[test]
fn a_grammar_takes_exactly_its_texts() {
    let model = model();
    let vocabulary = Vocabulary::new(&model.tokenizer, model.checkpoint.config.vocab).expect("a vocabulary");
    let grammar = Grammar::Gbnf("root ::= [a-z]+ | \"bc\" \"9\" | \"é\"?".into());
    let compiled = vocabulary.compile(&grammar).expect("compiles");
    let takes = |text: &str| {
        let mut c = compiled.clone();
        let mut all = model.tokenizer.encode(text).into_iter();
        all.all(|t: TokenId| c.mask().is_ok_and(|m| m[t.index() / 32] >> (t.0 % 32) & 1 == 1) && c.take(t).is_ok()) && c.may_end()
    };
    for (text, wanted) in
        [("bcx", true), ("bc9", true), ("bx", true), ("b9", false), ("é", true), ("e9", false), ("bc99", false), ("abc", true)]
    {
        assert_eq!(takes(text), wanted, "{text}");
    }
}

/// What would take for ever or all memory is refused, soon.
#[test]
fn what_is_too_large_is_refused_within_a_second() {
    let model = model();
    let vocabulary = Vocabulary::new(&model.tokenizer, model.checkpoint.config.vocab).expect("a vocabulary");
    let mut deep = json!({"type": "string"});
    for _ in 0..100 {
        deep = json!({"type": "array", "items": deep});
    }
    let wide: Vec<Value> = (0..40_000).map(|i| json!(format!("value {i}"))).collect();
    for grammar in [
        Grammar::Schema(deep),
        Grammar::Schema(json!({"enum": wide})),
        Grammar::Schema(json!({"type": "string", "pattern": "(?=x)y"})),
        Grammar::Schema(json!({"$ref": "https://example.com/schema"})),
        Grammar::Schema(json!({"allOf": [{"type": "string"}, {"type": "number"}]})),
        Grammar::Schema(json!({"type": "text"})),
        Grammar::Gbnf("root ::= root".into()),
        Grammar::Gbnf(format!("root ::= {}", "(\"a\"? ".repeat(70))),
    ] {
        let began = Instant::now();
        let refused = vocabulary.compile(&grammar).is_err();
        let shown: String = format!("{grammar:?}").chars().take(100).collect();
        assert!(began.elapsed() < Duration::from_secs(1), "{shown} took {:?}", began.elapsed());
        assert!(refused, "{shown}");
    }
    // What is large and can be followed is taken, as soon.
    let (grammar, began) = (Grammar::Schema(json!({"type": "string", "pattern": "^(a?){2000}(b*c*){900}$"})), Instant::now());
    let mut large = vocabulary.compile(&grammar).expect("compiles");
    assert!(large.mask().is_ok() && began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}
