//! JSON as servers really send it: strict first, and where that fails with what Python, JavaScript and C++ write instead
//! of it. What has no value becomes `null` or U+FFFD, so that it costs its own place and not the answer.

use std::borrow::Cow;

use serde_json::Value;

/// The value in a body, or what the strict reader says against it.
pub fn parse(body: &[u8]) -> Result<Value, serde_json::Error> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    serde_json::from_slice(body).or_else(|error| serde_json::from_slice(&mended(&String::from_utf8_lossy(body))).map_err(|_| error))
}

/// The text with `NaN`, infinities and numbers beyond float64 as `null`, halves of surrogate pairs as `\ufffd`, and
/// control characters inside strings escaped.
fn mended(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let taken = match c {
            '"' => string(rest, &mut out),
            '+' | '-' | '.' | '0'..='9' | 'a'..='z' | 'A'..='Z' => {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))).unwrap_or(rest.len());
                out.extend_from_slice(word(&rest[..end]).as_bytes());
                end
            }
            _ => {
                out.extend_from_slice(&rest.as_bytes()[..c.len_utf8()]);
                c.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    out
}

/// A number or a literal.
fn word(text: &str) -> Cow<'_, str> {
    let none = |t: &str| matches!(t.trim_start_matches(['+', '-']).to_ascii_lowercase().as_str(), "nan" | "inf" | "infinity" | "none");
    match text {
        "true" | "false" | "null" => text.into(),
        t if none(t) || t.parse::<f64>().is_ok_and(f64::is_infinite) => "null".into(),
        t => t.into(),
    }
}

/// A string from its opening quote on; how much of the text it is.
fn string(text: &str, out: &mut Vec<u8>) -> usize {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                out.push(b'"');
                return at + 1;
            }
            b'\\' => at += escape(&text[at..], out),
            control @ 0..0x20 => {
                out.extend_from_slice(format!("\\u{control:04x}").as_bytes());
                at += 1;
            }
            other => {
                out.push(other);
                at += 1;
            }
        }
    }
    at
}

/// An escape from its backslash on; how much of the text it is.
fn escape(text: &str, out: &mut Vec<u8>) -> usize {
    let unit = |from: usize| {
        let hex = text.get(from..from + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(hex, 16).ok()
    };
    match (unit(0), unit(6)) {
        (Some(0xd800..=0xdbff), Some(0xdc00..=0xdfff)) => {
            out.extend_from_slice(&text.as_bytes()[..12]);
            12
        }
        (Some(0xd800..=0xdfff), _) => {
            out.extend_from_slice(b"\\ufffd");
            6
        }
        _ => {
            // Whatever follows a backslash belongs to it; a quote does not end the string then.
            let length = 1 + text[1..].chars().next().map_or(0, char::len_utf8);
            out.extend_from_slice(&text.as_bytes()[..length]);
            length
        }
    }
}

/// What came where JSON was expected; the client adds status, type and beginning.
pub fn what_else(body: &[u8], error: &serde_json::Error) -> String {
    let start = String::from_utf8_lossy(&body[..body.len().min(200)]).trim_start().to_lowercase();
    if start.starts_with('<') {
        return "HTML came instead of JSON".into();
    }
    match error.classify() {
        _ if start.is_empty() => "an empty body came".into(),
        serde_json::error::Category::Eof => format!("the JSON ends after {} bytes", body.len()),
        _ => format!("no JSON came: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_no_json_costs_its_own_place() {
        let body = br#"{"a": -Infinity, "b": [NaN, 1e999, -2.5, true], "c": "\ud83d|\ud83d\ude00|\ude00|\\u|\"", "d": nan}"#;
        let wanted = json!({"a": null, "b": [null, null, -2.5, true], "c": "\u{fffd}|\u{1f600}|\u{fffd}|\\u|\"", "d": null});
        assert_eq!(parse(body).expect("mended"), wanted);
        assert_eq!(parse(b"\xef\xbb\xbf{\"a\": \"x\ny\"}").expect("mended"), json!({"a": "x\ny"}));
        assert_eq!(parse(b"{\"a\": \"\xf0\x9f\"}").expect("mended"), json!({"a": "\u{fffd}"}));
        assert_eq!(parse(br#"{"a": "NaN, -Infinity"}"#).expect("strict"), json!({"a": "NaN, -Infinity"}));
    }

    #[test]
    fn what_is_none_at_all_is_told() {
        let told = |body: &[u8]| what_else(body, &parse(body).expect_err("no JSON"));
        assert_eq!(told(b" <!DOCTYPE html>"), "HTML came instead of JSON");
        assert_eq!(told(b"{\"a\": \"\\ud8"), "the JSON ends after 11 bytes");
        assert_eq!(told(b""), "an empty body came");
        assert!(told(b"Gateway says no").starts_with("no JSON came"));
    }
}
