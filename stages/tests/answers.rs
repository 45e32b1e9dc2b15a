//! Answers that are written otherwise than they should be: what their text determines gives the rows of the original, the
//! rest is refused. `FLOW_SOAK_SECONDS` looks for a panic for longer.

use std::time::{Duration, Instant};

use flow_stages::teacher::hosted::rows_of;
use flow_stages::teacher::http::shape::{Answer, Call, Draw, Expect, Manner, Refused, call, read};
use flow_stages::teacher::http::spec::Spec;
use flow_stages::traces::RawRow;
use serde_json::{Value, json};

/// Splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

fn spec(provider: &str) -> Spec {
    serde_json::from_value(json!({"teacher": "http", "provider": provider, "base_url": "http://h/v1", "model": "m", "endpoint": "chat",
        "system": null, "body": {}, "headers": {}, "ask_top_k": 8, "memory_bytes": null}))
    .expect("spec")
}

fn question(provider: &str) -> Call {
    let draw = Draw { max_tokens: 64, temperature: 1.0, top_p: 1.0, seed: None, stop: Vec::new(), logprobs: true };
    call(&spec(provider), "Say it", 0, &draw)
}

/// A token as the model drew it: its bytes, and the alternatives to it with their logprobs.
#[derive(Clone)]
struct Drawn {
    bytes: Vec<u8>,
    top: Vec<(Vec<u8>, f64)>,
}

const WORDS: [&str; 14] =
    [" the", " of", " people", "work", ",", ".", "\n", " {", "}", " \u{e9}t\u{e9}", "\u{4f60}", " 3", "\u{c3}\u{a9}", "  "];
/// Characters that take several tokens.
const SPLIT: [&str; 4] = ["\u{e9}", "\u{20ac}", "\u{1f600}", "\u{4f60}"];

fn original(dice: &mut Dice) -> Vec<Drawn> {
    let mut all = Vec::new();
    while all.len() < 3 + dice.below(12) {
        let drawn: Vec<Vec<u8>> = if dice.chance(30) {
            let bytes = dice.of(&SPLIT).as_bytes();
            let at = 1 + dice.below(bytes.len() - 1);
            // Two such characters side by side can be read in several ways where only U+FFFD is shown of them.
            vec![bytes[..at].to_vec(), bytes[at..].to_vec(), b" and".to_vec()]
        } else {
            vec![dice.of(&WORDS).as_bytes().to_vec()]
        };
        for bytes in drawn {
            let mut top = vec![(bytes.clone(), -0.25)];
            for n in 0..dice.below(4) {
                let other: Vec<u8> =
                    if dice.chance(15) { dice.of(&SPLIT).as_bytes()[..1].to_vec() } else { dice.of(&WORDS).as_bytes().to_vec() };
                if top.iter().all(|t| t.0 != other) {
                    top.push((other, -2.0 - n as f64));
                }
            }
            all.push(Drawn { bytes, top });
        }
    }
    // An end of white space would be nobody's once the text is trimmed after reasoning.
    all.insert(0, Drawn { bytes: b" We".to_vec(), top: vec![(b" We".to_vec(), -0.5), (b" I".to_vec(), -1.5)] });
    all.push(Drawn { bytes: b"end".to_vec(), top: vec![(b"end".to_vec(), -0.5)] });
    all
}

/// How tokens are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Written {
    Bytes,
    NullBytes,
    BytesOfText,
    ByteLevel,
    ByteLevelBytes,
    Pieces,
    Ids,
    AdjacentIds,
}

const WRITTEN: [Written; 8] = [
    Written::Bytes,
    Written::NullBytes,
    Written::BytesOfText,
    Written::ByteLevel,
    Written::ByteLevelBytes,
    Written::Pieces,
    Written::Ids,
    Written::AdjacentIds,
];

/// GPT-2's `bytes_to_unicode`.
fn byte_level(bytes: &[u8]) -> String {
    let shown = |b: u8| (33..=126).contains(&b) || (161..=172).contains(&b) || b >= 174;
    let beyond = |b: u8| (0..b).filter(|x| !shown(*x)).count() as u32;
    bytes.iter().map(|b| if shown(*b) { char::from(*b) } else { char::from_u32(256 + beyond(*b)).expect("a character") }).collect()
}

fn pieces(bytes: &[u8]) -> Option<String> {
    match (std::str::from_utf8(bytes), bytes) {
        (Ok("\n"), _) => Some("<0x0A>".into()),
        (Ok(text), _) => Some(text.replace(' ', "\u{2581}")),
        (Err(_), [byte]) => Some(format!("<0x{byte:02X}>")),
        _ => None,
    }
}

/// Text and bytes of a token; nothing where that way of writing has none.
fn written(bytes: &[u8], how: Written) -> Option<(String, Value)> {
    let lossy = String::from_utf8_lossy(bytes).into_owned();
    Some(match how {
        Written::Bytes => (lossy, json!(bytes)),
        Written::NullBytes | Written::Ids | Written::AdjacentIds => (lossy, Value::Null),
        Written::BytesOfText => (lossy.clone(), json!(lossy.as_bytes())),
        Written::ByteLevel => (byte_level(bytes), Value::Null),
        Written::ByteLevelBytes => (byte_level(bytes), json!(byte_level(bytes).as_bytes())),
        Written::Pieces => (pieces(bytes)?, Value::Null),
    })
}

/// Whether bytes can be told from what is written of them without the answer's text.
fn legible(bytes: &[u8], how: Written) -> bool {
    matches!(how, Written::Bytes | Written::ByteLevel | Written::ByteLevelBytes | Written::Pieces) || std::str::from_utf8(bytes).is_ok()
}

/// An answer as some server might send it, and the rows that it must give; none where it must be refused.
struct Mutant {
    body: Vec<u8>,
    rows: Option<Vec<RawRow>>,
    what: String,
}

fn rows(answer: &Answer) -> Vec<RawRow> {
    rows_of(answer, 20, true)
}

fn body(content: &str, tokens: &[Value], finish: &str, more: &Value) -> Value {
    let mut message = json!({"role": "assistant", "content": content});
    message.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
    json!({"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": {"content": tokens}}],
           "usage": {"prompt_tokens": 3, "completion_tokens": tokens.len()}})
}

fn mutant(seed: u64) -> Mutant {
    let mut dice = Dice(seed.wrapping_mul(0x1234_5678_9abc_def1));
    let drawn = original(&mut dice);
    let mut how = *dice.of(&WRITTEN);
    let all = || drawn.iter().flat_map(|d| d.top.iter().map(|t| &t.0));
    if all().any(|b| written(b, how).is_none()) {
        how = Written::Bytes;
    }
    let text: String = String::from_utf8(drawn.iter().flat_map(|d| d.bytes.clone()).collect()).expect("whole characters");
    // What the right reading gives: alternatives that nobody can read are in Other.
    let mut wanted = {
        let one = |d: &Drawn| {
            let kept = d.top.iter().filter(|t| t.0 == d.bytes || legible(&t.0, how));
            let tokens = kept.map(|(b, l)| json!({"token": String::from_utf8_lossy(b), "bytes": b, "logprob": l}));
            json!({"token": String::from_utf8_lossy(&d.bytes), "bytes": d.bytes, "logprob": d.top[0].1, "top_logprobs": tokens.collect::<Vec<_>>()})
        };
        body(&text, &drawn.iter().map(one).collect::<Vec<_>>(), "stop", &json!({}))
    };
    let token = |b: &[u8], l: f64| {
        let (text, bytes) = written(b, how).expect("checked above");
        json!({"token": text, "bytes": bytes, "logprob": l})
    };
    let mut tokens: Vec<Value> = drawn
        .iter()
        .map(|d| {
            let mut t = token(&d.bytes, d.top[0].1);
            t["top_logprobs"] = d.top.iter().map(|(b, l)| token(b, *l)).collect();
            t
        })
        .collect();
    let mut determined = true;
    let mut named = Vec::new();
    if matches!(how, Written::Ids | Written::AdjacentIds) {
        // Neither first nor last, where white space may be at stake.
        let at = 1 + dice.below(drawn.len() - 3);
        named = if how == Written::Ids { vec![at] } else { vec![at, at + 1] };
        for n in &named {
            let name = json!(format!("token_id:{}", 100 + n));
            (tokens[*n]["token"], tokens[*n]["top_logprobs"][0]["token"]) = (name.clone(), name);
        }
        let parts = |n: usize| std::str::from_utf8(&drawn[n].bytes).is_err();
        determined = how == Written::Ids || named.iter().map(|n| drawn[*n].bytes.len()).sum::<usize>() == 2;
        // Beside a part of a character it depends on the character where one of them ends: left out here.
        if parts(at - 1) || parts(named[named.len() - 1] + 1) {
            (tokens, determined, named) =
                (wanted["choices"][0]["logprobs"]["content"].as_array().expect("tokens").clone(), true, Vec::new());
        }
    }
    for n in &named {
        // Such a name tells the id.
        let of = &mut wanted["choices"][0]["logprobs"]["content"][*n];
        (of["id"], of["top_logprobs"][0]["id"]) = (json!(100 + n), json!(100 + n));
    }
    let content = match dice.below(5) {
        0 => text.trim().to_owned(),
        1 => text.trim_start().to_owned(),
        2 => format!("\n{text} \n"),
        _ => text.clone(),
    };
    let mut more = json!({});
    if dice.chance(35) {
        let plan = ["<think>", "SECRET", " PLAN", "\n", "</think>"];
        let before = plan.map(|t| json!({"token": t, "bytes": if dice.chance(50) { json!(t.as_bytes()) } else { Value::Null }, "logprob": -0.1, "top_logprobs": []}));
        tokens.splice(0..0, before);
        if dice.chance(50) {
            more = json!({"reasoning_content": "SECRET PLAN\n"});
        }
    }
    let mut changed = body(&content, &tokens, "stop", &more);
    let mut noise = Vec::new();
    for (what, extra) in [
        ("an alternative at -Infinity", r#"{"token": "Q", "bytes": [81], "logprob": -Infinity}"#),
        ("an alternative that is NaN", r#"{"token": "R", "bytes": [82], "logprob": NaN}"#),
        ("an alternative without a text", r#"{"token": "", "bytes": [], "logprob": -3.5}"#),
        ("half a surrogate pair", r#"{"token": "\ud83d", "bytes": null, "logprob": -6.5}"#),
    ] {
        if dice.chance(20) {
            noise.push((what, extra));
        }
    }
    let wrong = dice.chance(8);
    if wrong {
        changed["choices"][0]["message"]["content"] = json!(content.replacen("We", "You", 1));
        determined = false;
    }
    if let Some(top) = changed["choices"][0]["logprobs"]["content"].as_array_mut().and_then(|t| t.last_mut()) {
        let list = top["top_logprobs"].as_array_mut().expect("list");
        list.extend((0..noise.len()).map(|n| json!(format!("NOISE{n}"))));
    }
    let mut sent = changed.to_string();
    if dice.chance(25) {
        sent = streamed(&changed, &mut dice);
    }
    for (n, (_, extra)) in noise.iter().enumerate() {
        sent = sent.replace(&format!("\"NOISE{n}\""), extra);
    }
    let what = format!("seed {seed}: {how:?} {named:?}, {content:?} of {text:?}, {noise:?}, {more}, wrong {wrong}\n{sent}");
    let rows = determined.then(|| {
        let reply = read(&spec("vllm"), &Manner::default(), &question("vllm"), wanted.to_string().as_bytes()).expect("an answer");
        rows(&reply.answer.expect("the original is read"))
    });
    Mutant { body: sent.into_bytes(), rows, what }
}

/// The same as events of a stream, some tokens each.
fn streamed(whole: &Value, dice: &mut Dice) -> String {
    let choice = &whole["choices"][0];
    let tokens = choice["logprobs"]["content"].as_array().expect("tokens");
    let mut out = String::from(": keep alive\n\n");
    let mut event = |value: Value| out.push_str(&format!("data: {value}\n\n"));
    event(json!({"id": "c", "choices": [{"index": 0, "delta": choice["message"], "finish_reason": null, "logprobs": null}]}));
    for some in tokens.chunks(1 + dice.below(4)) {
        event(json!({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": null, "logprobs": {"content": some}}]}));
    }
    event(json!({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}], "usage": null}));
    event(json!({"id": "c", "choices": [], "usage": whole["usage"]}));
    out + "data: [DONE]\n\n"
}

#[test]
fn what_the_text_determines_gives_the_rows_of_the_original() {
    let (mut read_right, mut refused) = (0, 0);
    for seed in 0..200 {
        let mutant = mutant(seed);
        let reply =
            read(&spec("vllm"), &Manner::default(), &question("vllm"), &mutant.body).unwrap_or_else(|e| panic!("{e:?}, {}", mutant.what));
        match (reply.answer, mutant.rows) {
            (Ok(answer), Some(wanted)) => {
                assert_eq!(rows(&answer), wanted, "{}", mutant.what);
                read_right += 1;
            }
            (Err(refusal), None) => {
                assert_eq!(refusal.kind, Refused::Unreadable, "{}", mutant.what);
                assert!(!refusal.why.is_empty());
                refused += 1;
            }
            (Ok(answer), None) => panic!("read as {answer:?}, {}", mutant.what),
            (Err(refusal), Some(_)) => panic!("refused: {}, {}", refusal.why, mutant.what),
        }
        assert_eq!(reply.usage, Some((3, reply.usage.map_or(0, |u| u.1))));
    }
    assert!(read_right > 120 && refused > 20, "{read_right} read, {refused} refused");
}

/// Changes something, anything.
fn damaged(mut body: Vec<u8>, dice: &mut Dice) -> Vec<u8> {
    const PIECES: [&str; 14] = [
        "null",
        "NaN",
        "{}",
        "[]",
        "\"\"",
        "-1e999",
        "\\ud83d",
        "\u{120}",
        "<|im_end|>",
        "token_id:7",
        "\u{fffd}",
        "\"error\":1,",
        "data: ",
        "\n\n",
    ];
    for _ in 0..1 + dice.below(6) {
        let at = dice.below(body.len());
        let end = (at + dice.below(12)).min(body.len());
        match dice.below(5) {
            0 => body.truncate(at),
            1 => drop(body.drain(at..end)),
            2 => drop(body.splice(at..end, dice.of(&PIECES).bytes())),
            3 => {
                let piece = body[at..end].to_vec();
                let to = dice.below(body.len());
                drop(body.splice(to..to, piece));
            }
            _ => {
                if let Some(byte) = body.get_mut(at) {
                    *byte ^= 1 << dice.below(8);
                }
            }
        }
    }
    body
}

/// White space, and parts of a character that was not finished, are nobody's loss.
fn core(text: &str) -> String {
    text.trim().trim_end_matches('\u{fffd}').trim().to_owned()
}

#[test]
fn damaged_answers_are_read_refused_or_failures_but_never_a_panic() {
    let seconds = std::env::var("FLOW_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).map(Duration::from_secs);
    let began = Instant::now();
    let seed = std::env::var("FLOW_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1u64);
    let window = std::sync::Arc::<str>::from(" We people end");
    let calls = ["openai", "anthropic", "gemini"].map(|p| (spec(p), question(p)));
    let (mut read_some, mut n) = (0, 0u64);
    while seconds.map_or(n < 3_000, |s| began.elapsed() < s) {
        let mut dice = Dice(seed.wrapping_add(n));
        let body = damaged(mutant(n % 997).body, &mut dice);
        for (spec, question) in &calls {
            let Ok(reply) = read(spec, &Manner::default(), question, &body) else { continue };
            let Ok(answer) = reply.answer else { continue };
            let joined: Vec<u8> = answer.steps.iter().flat_map(|s| s.bytes.clone()).collect();
            if !answer.steps.is_empty() {
                read_some += 1;
                assert_eq!(core(&String::from_utf8_lossy(&joined)), core(&answer.text), "seed {seed}, round {n}");
            }
            for row in rows(&answer) {
                assert!(
                    row.other_logprob.is_finite() && row.topk_logprobs.iter().all(|l| l.is_finite() && *l <= 0.0),
                    "seed {seed}, round {n}"
                );
            }
        }
        for scoring in [
            flow_stages::teacher::http::preset::Scoring::PromptLogprobs,
            flow_stages::teacher::http::preset::Scoring::Echo,
            flow_stages::teacher::http::preset::Scoring::Generate,
        ] {
            let scored = Call { expect: Expect::Scored(scoring, window.clone()), ..calls[0].1.clone() };
            let _ = read(&calls[0].0, &Manner::default(), &scored, &body);
        }
        n += 1;
    }
    assert!(n == 0 || read_some > 0 || n < 100);
}

fn said(text: &str) -> Value {
    json!({"token": text, "logprob": -0.25, "bytes": text.as_bytes(), "top_logprobs": [{"token": text, "logprob": -0.25, "bytes": text.as_bytes()}]})
}

#[test]
fn an_answer_ends_where_a_stop_text_ends_it() {
    let mut call = question("openai");
    call.body["stop"] = json!(["END", "\n\n"]);
    for (content, tokens) in
        [("Hi there", &["Hi", " there", "END"][..]), ("Hi there", &["Hi", " there", " E", "ND"]), ("Hi there.", &["Hi", " there", ".\n\n"])]
    {
        let tokens: Vec<Value> = tokens.iter().map(|t| said(t)).collect();
        let sent = body(content, &tokens, "stop", &json!({})).to_string();
        let reply = read(&spec("openai"), &Manner::default(), &call, sent.as_bytes()).expect("no failure");
        let answer = reply.answer.unwrap_or_else(|refusal| panic!("{content:?}: {}", refusal.why));
        let bytes: Vec<u8> = rows(&answer).iter().flat_map(|row| row.sample_bytes.clone()).collect();
        assert_eq!(core(&String::from_utf8(bytes).expect("text")), content);
    }
    // Without such a text the same tokens say more than a person read.
    let sent = body("Hi there", &[said("Hi"), said(" there"), said("END")], "stop", &json!({})).to_string();
    let reply = read(&spec("openai"), &Manner::default(), &question("openai"), sent.as_bytes()).expect("no failure");
    assert_eq!(reply.answer.expect_err("refused").kind, Refused::Unreadable);
}

#[test]
fn a_token_of_reasoning_serves_a_probe_and_no_answer() {
    let sent = body("", &[said("Two")], "length", &json!({"reasoning_content": "Two"})).to_string();
    let asked = |expect| {
        let call = Call { expect, ..question("openai") };
        read(&spec("openai"), &Manner::default(), &call, sent.as_bytes()).expect("no failure").answer
    };
    assert_eq!(asked(Expect::Probe).expect("a token").steps.len(), 1);
    assert_eq!(asked(Expect::Logprobs).expect_err("no text").kind, Refused::Reasoning);
}
