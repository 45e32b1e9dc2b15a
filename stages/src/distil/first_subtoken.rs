//! The proof of concept's rule: each teacher token becomes the first token of its text under the student's tokenizer.

use super::buckets::{Buckets, Cut};
use super::first_token::FirstToken;

/// Projects candidates `(bytes, probability)`; empty bytes are EOS. Candidates whose bytes are no complete UTF-8 go to
/// Other; their indices come back beside the result.
pub fn first_subtoken<'b>(
    first: &FirstToken<'_>,
    candidates: impl Iterator<Item = (&'b [u8], f64)>,
    top_k: usize,
) -> (Cut, Vec<usize>, f64) {
    let mut buckets = Buckets::with_capacity(24);
    let (mut dropped, mut lost) = (Vec::new(), 0.0);
    for (i, (bytes, mass)) in candidates.enumerate() {
        let id = if bytes.is_empty() {
            Some(first.student().eos())
        } else if std::str::from_utf8(bytes).is_ok() {
            first.of(bytes)
        } else {
            None
        };
        match id {
            Some(id) => buckets.add(id, mass),
            None => {
                dropped.push(i);
                lost += mass;
            }
        }
    }
    (buckets.cut(top_k), dropped, lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow_lm::tokenizer::{TokenId, Tokenizer};
    use serde_json::Value;

    fn numbers(v: &Value) -> Vec<f64> {
        v.as_array().expect("list").iter().map(|x| x.as_f64().expect("number")).collect()
    }

    #[test]
    fn golden_projection() {
        let dir = crate::golden_dir().join("models");
        let golden: Value = serde_json::from_slice(&std::fs::read(dir.join("projection.json")).expect("golden")).expect("JSON");
        let load = |field: &str| Tokenizer::load(&dir.join(golden[field].as_str().expect("name"))).expect("tokenizer");
        let (student, teacher) = (load("student_tokenizer"), load("teacher_tokenizer"));
        let first = FirstToken::new(&student);
        let cases = golden["cases"].as_array().expect("cases");
        assert!(!cases.is_empty());
        for (n, case) in cases.iter().enumerate() {
            let ids: Vec<TokenId> = numbers(&case["teacher_ids"]).iter().map(|i| TokenId(*i as u32)).collect();
            let logprobs = numbers(&case["teacher_logprobs"]);
            let candidates = ids.iter().zip(&logprobs).map(|(id, l)| (teacher.token_bytes(*id), l.exp()));
            let (cut, dropped, _) = first_subtoken(&first, candidates, usize::MAX);
            let wanted: Vec<i32> = numbers(&case["student_ids"]).iter().map(|i| *i as i32).collect();
            assert_eq!(cut.ids, wanted, "case {n}");
            for (a, b) in cut.logprobs.iter().zip(numbers(&case["student_logprobs"])) {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-6), "case {n}: {a} {b}");
            }
            let other = case["other_logprob"].as_f64().expect("number");
            assert!((cut.other.ln() - other).abs() <= 1e-6 * other.abs().max(1e-6), "case {n}: {} {other}", cut.other.ln());
            let wanted = case["dropped"].as_array().expect("list");
            assert_eq!(dropped.len(), wanted.len(), "case {n}");
            for (i, w) in dropped.iter().zip(wanted) {
                assert_eq!(w[0].as_str(), Some(&*String::from_utf8_lossy(teacher.token_bytes(ids[*i]))), "case {n}");
                assert_eq!(w[1].as_f64(), Some(logprobs[*i]), "case {n}");
            }
        }
    }
}
