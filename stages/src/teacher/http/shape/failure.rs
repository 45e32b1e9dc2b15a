//! Failures that come as answers: an `error` beside or instead of what was asked for, in a 200.

use serde_json::Value;

use super::answer::{Failed, Failure, shortened};

/// The failure in an object, if it is one.
pub fn of(value: &Value) -> Option<Failure> {
    let value = if value.is_array() { &value[0] } else { value };
    let choice = &value["choices"][0];
    for holder in [value, choice, &choice["message"]] {
        if is_told(&holder["error"]) {
            return Some(told(&holder["error"], holder));
        }
    }
    let kind = value["object"].as_str().or(value["type"].as_str());
    if kind == Some("error") || (value["choices"].is_null() && value["detail"].is_string()) {
        return Some(told(value, value));
    }
    ended(choice)
}

fn is_told(error: &Value) -> bool {
    match error {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(all) => !all.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

fn told(error: &Value, holder: &Value) -> Failure {
    let words = [&error["message"], error, &error["detail"], &holder["message"], &error["type"]];
    let message = words.iter().find_map(|w| w.as_str()).map_or_else(|| error.to_string(), str::to_owned);
    let places = [&error["code"], &error["status"], &error["status_code"], &error["type"], &holder["code"], &holder["status"]];
    Failure { status: places.iter().find_map(|p| status(p)), why: shortened(&message), kind: Failed::Said }
}

/// A choice that says that it failed, without an `error`.
fn ended(choice: &Value) -> Option<Failure> {
    let reason = &choice["finish_reason"];
    let word = reason.as_str().or(reason["type"].as_str())?;
    let status = match word.to_ascii_lowercase().as_str() {
        "error" | "failed" | "abort" | "aborted" | "cancelled" | "canceled" => None,
        "insufficient_system_resource" => Some(503),
        "timeout" => Some(504),
        _ => return None,
    };
    let message = reason["message"].as_str().map_or_else(String::new, |m| format!(": {}", shortened(m)));
    Some(Failure { status, why: format!("it ended with `{word}`{message}"), kind: Failed::Said })
}

/// The status that a code stands for: a number, or a word.
fn status(code: &Value) -> Option<u16> {
    let number = code.as_u64().or_else(|| code.as_str().and_then(|c| c.parse().ok()));
    if let Some(number) = number {
        return u16::try_from(number).ok().filter(|n| (400..600).contains(n));
    }
    let word = code.as_str()?.to_ascii_lowercase();
    let means = |parts: &[&str]| parts.iter().any(|p| word.contains(p));
    [
        (&["insufficient_quota", "rate_limit", "ratelimit", "resource_exhausted", "too_many"][..], 429),
        (&["overload", "unavailable", "capacity"], 503),
        (&["timeout", "deadline"], 504),
        (&["authentication", "unauthenticated", "api_key"], 401),
        (&["permission", "forbidden"], 403),
        (&["billing", "payment", "balance"], 402),
        (&["not_found"], 404),
        (&["invalid", "context_length", "bad_request", "badrequest"], 400),
        (&["internal", "server_error", "api_error"], 500),
    ]
    .into_iter()
    .find_map(|(parts, status)| means(parts).then_some(status))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_are_found_wherever_they_stand() {
        for (value, wanted, words) in [
            (
                json!({"choices": [{"finish_reason": "error", "error": {"code": 502, "message": "upstream gone"}, "message": {"content": ""}}]}),
                Some(502),
                "upstream gone",
            ),
            (json!({"error": {"message": "slow down", "type": "rate_limit_error"}}), Some(429), "slow down"),
            (json!({"error": "model is loading", "choices": []}), None, "model is loading"),
            (json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}), Some(503), "Overloaded"),
            (json!({"object": "error", "message": "too long", "code": "400"}), Some(400), "too long"),
            (json!([{"error": {"code": 401, "message": "no key", "status": "UNAUTHENTICATED"}}]), Some(401), "no key"),
            (json!({"detail": "Internal Server Error"}), None, "Internal"),
            (json!({"choices": [{"finish_reason": "error", "message": {"content": "Hal"}}]}), None, "`error`"),
            (json!({"choices": [{"finish_reason": {"type": "abort", "message": "out of memory"}, "text": ""}]}), None, "out of memory"),
            (json!({"choices": [{"finish_reason": "insufficient_system_resource"}]}), Some(503), "insufficient"),
            (json!({"error": {"code": 1302, "message": "x"}}), None, "x"),
        ] {
            let failure = of(&value).expect("a failure");
            assert_eq!(failure.status, wanted, "{value}");
            assert!(failure.why.contains(words), "{}", failure.why);
        }
        let fine = json!({"error": null, "choices": [{"error": {}, "message": {"content": "Hi", "error": ""}, "finish_reason": "stop"}]});
        assert_eq!(of(&fine), None);
    }
}
