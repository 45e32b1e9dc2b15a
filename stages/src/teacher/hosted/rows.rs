//! Rows of traces from the tokens of an answer.

use crate::teacher::http::shape::{Answer, Finish, Step};
use crate::traces::{OTHER_FLOOR, OTHER_LEAST, RawRow};

/// The rows of an answer. One that ended by itself has a last row with empty bytes (EOS). Some servers tell how likely the
/// end was; where nobody does, the row has no distribution and trains by cross-entropy alone.
pub fn rows_of(answer: &Answer, top_k: usize, ends: bool) -> Vec<RawRow> {
    let mut rows: Vec<RawRow> = match answer.steps.as_slice() {
        [] => words(&answer.text).map(hard).collect(),
        steps => steps.iter().map(|s| row(s, top_k)).collect(),
    };
    match &answer.end {
        Some(end) => rows.push(row(end, top_k)),
        None if ends && answer.finish == Finish::Stop => rows.push(RawRow { sample_id: -1, other_logprob: 0.0, ..RawRow::default() }),
        None => {}
    }
    rows
}

/// The row of a step: alternatives with equal bytes are one, the drawn token is among them, at most `top_k` stay.
pub fn row(step: &Step, top_k: usize) -> RawRow {
    let mut merged: Vec<(&[u8], Option<i32>, f64)> = Vec::with_capacity(step.top.len() + 1);
    let drawn = step.logprob.map(|l| (&step.bytes, step.id, l));
    let alternatives = step.top.iter().map(|(b, id, l)| (b, *id, *l));
    let listed = |bytes: &[u8], id: Option<i32>| step.top.iter().any(|t| t.0 == bytes && (t.1 == id || id.is_none() || t.1.is_none()));
    let missing = drawn.filter(|d| !listed(d.0, d.1));
    for (bytes, id, logprob) in alternatives.chain(missing) {
        match merged.iter_mut().find(|m| m.0 == bytes.as_slice()) {
            Some(same) => {
                let (high, low) = (same.2.max(logprob), same.2.min(logprob));
                // The id of the likelier one stands for both.
                same.1 = if logprob > same.2 { id } else { same.1 };
                same.2 = (high + (low - high).exp().ln_1p()).min(0.0);
            }
            None => merged.push((bytes, id, logprob)),
        }
    }
    merged.sort_by(|a, b| b.2.total_cmp(&a.2).then_with(|| a.0.cmp(b.0)));
    if let Some(at) = merged.iter().position(|m| m.0 == step.bytes.as_slice()).filter(|at| *at >= top_k && top_k > 0) {
        merged.swap(at, top_k - 1);
    }
    merged.truncate(top_k);
    let mass: f64 = merged.iter().map(|m| m.2.exp()).sum();
    RawRow {
        sample_id: step.id.unwrap_or(-1),
        sample_bytes: step.bytes.clone(),
        topk_ids: merged.iter().map(|m| m.1.unwrap_or(-1)).collect(),
        topk_bytes: merged.iter().map(|m| m.0).collect(),
        topk_logprobs: merged.iter().map(|m| m.2 as f32).collect(),
        other_logprob: (1.0 - mass).max(OTHER_LEAST).ln() as f32,
        other_lse: None,
    }
}

/// A hard target: the KL to it is the cross-entropy.
fn hard(text: &str) -> RawRow {
    RawRow {
        sample_id: -1,
        sample_bytes: text.as_bytes().to_vec(),
        topk_ids: vec![-1],
        topk_bytes: [text.as_bytes()].into_iter().collect(),
        topk_logprobs: vec![(1.0 - OTHER_FLOOR).ln() as f32],
        other_logprob: OTHER_FLOOR.ln() as f32,
        other_lse: None,
    }
}

/// Words with the white space before them: no student's token reaches over their borders for long.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let body = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
        let end = rest[body..].find(char::is_whitespace).map_or(rest.len(), |n| body + n);
        let (word, after) = rest.split_at(end);
        rest = after;
        (!word.is_empty()).then_some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::settle;

    fn step(bytes: &str, logprob: Option<f64>, top: &[(&str, Option<i32>, f64)]) -> Step {
        let top = top.iter().map(|(b, id, l)| (b.as_bytes().to_vec(), *id, *l)).collect();
        Step { bytes: bytes.into(), id: None, logprob, top }
    }
    fn texts(row: &RawRow) -> Vec<String> {
        row.candidate_bytes().map(|b| String::from_utf8_lossy(b).into_owned()).collect()
    }

    #[test]
    fn alternatives_merge_and_the_drawn_token_is_added_once() {
        let r = row(&step("c", Some(-3.0), &[("a", Some(1), -1.0), ("b", Some(2), -1.5), ("a", Some(9), -2.0)]), 5);
        assert_eq!((texts(&r), &r.topk_ids), (vec!["a".into(), "b".into(), "c".into()], &vec![1, 2, -1]));
        assert!((f64::from(r.topk_logprobs[0]) - ((-1.0f64).exp() + (-2.0f64).exp()).ln()).abs() < 1e-6);
        let r = row(&step("a", Some(-1.0), &[("a", Some(1), -1.0), ("b", Some(2), -1.5)]), 5);
        assert_eq!(texts(&r), ["a", "b"]);
        let r = row(&step("z", Some(-9.0), &[("a", None, -1.0), ("b", None, -1.5), ("z", None, -9.0)]), 2);
        assert_eq!(texts(&r), ["a", "z"], "the drawn token stays where Top-K is cut");
        assert!(settle(&r.topk_ids, &r.topk_logprobs).is_ok());
    }

    #[test]
    fn rounding_and_missing_values_do_no_harm() {
        let r = row(&step("a", Some(0.0), &[("a", None, 0.0), ("d", None, -150.0)]), 9);
        assert_eq!(texts(&r), ["a", "d"]);
        assert!(r.other_logprob.is_finite() && settle(&r.topk_ids, &r.topk_logprobs).expect("valid").renormalised);
        assert_eq!(texts(&row(&step("a", None, &[("b", None, -0.5)]), 9)), ["b"]);
        let bare = row(&step("a", None, &[]), 9);
        assert_eq!((texts(&bare).len(), bare.other_logprob, bare.sample_bytes), (0, 0.0, b"a".to_vec()));
    }

    #[test]
    fn an_answer_without_logprobs_is_words() {
        let answer = Answer { text: "One  two\nthree ".into(), finish: Finish::Stop, ..Answer::default() };
        let rows = rows_of(&answer, 20, true);
        let words: Vec<_> = rows.iter().map(|r| String::from_utf8_lossy(&r.sample_bytes).into_owned()).collect();
        assert_eq!(words, ["One", "  two", "\nthree", " ", ""]);
        for finish in [Finish::Length, Finish::Unknown, Finish::Other("x".into())] {
            assert_eq!(rows_of(&Answer { finish, ..answer.clone() }, 20, true).len(), 4, "only an end makes a row of one");
        }
        let end = Some(step("", Some(-0.2), &[("", Some(2), -0.2), ("b", None, -2.0)]));
        let answer = Answer { text: "a".into(), steps: vec![step("a", Some(-0.1), &[])], end, finish: Finish::Stop, ..Answer::default() };
        let rows = rows_of(&answer, 20, true);
        assert_eq!((rows.len(), rows[1].topk_ids.len()), (2, 2), "an end that was told is a row like any other");
    }
}
