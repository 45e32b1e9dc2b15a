//! Jinja as transformers sets it up for chat templates.

use std::borrow::Cow;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};

/// Its filters and functions, for a template.
pub(super) fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut jinja = Environment::new();
    jinja.set_undefined_behavior(UndefinedBehavior::Lenient);
    jinja.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    jinja.set_unknown_method_callback(python_method);
    jinja.add_filter("tojson", to_json);
    jinja.add_function("raise_exception", |message: String| -> Result<String, Error> { Err(refusal(message)) });
    // Without a clock the same messages stay the same text. Templates that ask whether there is one have a date of their own.
    if !source.contains("strftime_now is") {
        jinja.add_function("strftime_now", |format: String| fixed_date(&format));
    }
    Ok(jinja)
}

/// A template without the tags of transformers that mark what the assistant said: they print nothing, and like `with` hold
/// their variables.
pub(super) fn without_marks(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let inner = &rest[start + 2..start + length];
        out.push_str(&rest[..start + 2]);
        out.push_str(&match inner.trim_matches(['-', '+']).trim() {
            word @ "generation" => inner.replace(word, "with"),
            word @ "endgeneration" => inner.replace(word, "endwith"),
            _ => inner.to_owned(),
        });
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// Methods of Python's strings: those that the crate has, and a few more.
fn python_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let ours = match (value.as_str(), args.first().and_then(|by| by.as_str())) {
        (Some(own), Some(by)) => of_text(own, method, by, args.get(1).and_then(|most| most.as_i64())),
        _ => None,
    };
    match ours {
        Some(value) => Ok(value),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn of_text(own: &str, method: &str, by: &str, most: Option<i64>) -> Option<Value> {
    Some(match method {
        "rsplit" if !by.is_empty() => {
            let parts = most.and_then(|n| usize::try_from(n).ok()).map_or(usize::MAX, |n| n.saturating_add(1));
            let mut parts: Vec<Value> = own.rsplitn(parts, by).map(Value::from).collect();
            parts.reverse();
            Value::from(parts)
        }
        "removeprefix" => Value::from(own.strip_prefix(by).unwrap_or(own)),
        "removesuffix" => Value::from(own.strip_suffix(by).unwrap_or(own)),
        "partition" => {
            let (before, by, after) = own.split_once(by).map_or((own, "", ""), |(before, after)| (before, by, after));
            Value::from([before, by, after].map(Value::from).to_vec())
        }
        _ => return None,
    })
}

fn refusal(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `json.dumps` without ASCII escapes, as transformers has it instead of Jinja's filter for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let between: Option<(String, String)> =
        options.get::<Option<Vec<String>>>("separators")?.and_then(|s| <[String; 2]>::try_from(s).ok()).map(Into::into);
    let ascii = options.get::<Option<bool>>("ensure_ascii")? == Some(true);
    let sorted = options.get::<Option<bool>>("sort_keys")? == Some(true);
    options.assert_all_used()?;
    let (item, key) = between.unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.into(), ": ".into()));
    let json = serde_json::to_value(value).map_err(|e| refusal("not JSON").with_source(e))?;
    let mut out = String::new();
    Dump { indent, item: &item, key: &key, ascii, sorted }.put(&json, 0, &mut out);
    Ok(out)
}

struct Dump<'a> {
    indent: Option<usize>,
    item: &'a str,
    key: &'a str,
    ascii: bool,
    sorted: bool,
}

impl Dump<'_> {
    fn put(&self, value: &serde_json::Value, depth: usize, out: &mut String) {
        match value {
            serde_json::Value::Array(items) if !items.is_empty() => {
                let put = |item: &serde_json::Value, out: &mut String| self.put(item, depth + 1, out);
                self.all(['[', ']'], items, put, depth, out);
            }
            serde_json::Value::Object(fields) if !fields.is_empty() => {
                let put = |(name, value): (&String, &serde_json::Value), out: &mut String| {
                    self.text(name, out);
                    out.push_str(self.key);
                    self.put(value, depth + 1, out);
                };
                let mut fields: Vec<_> = fields.iter().collect();
                if self.sorted {
                    fields.sort_by_key(|(name, _)| *name);
                }
                self.all(['{', '}'], fields, put, depth, out);
            }
            serde_json::Value::String(text) => self.text(text, out),
            serde_json::Value::Number(number) => out.push_str(&as_python_writes(&number.to_string())),
            other => out.push_str(&other.to_string()),
        }
    }

    fn text(&self, text: &str, out: &mut String) {
        let json = serde_json::Value::from(text).to_string();
        if !self.ascii {
            return out.push_str(&json);
        }
        for c in json.chars() {
            match c {
                c if c.is_ascii() => out.push(c),
                c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
            }
        }
    }

    fn all<T>(&self, ends: [char; 2], items: impl IntoIterator<Item = T>, put: impl Fn(T, &mut String), depth: usize, out: &mut String) {
        out.push(ends[0]);
        for (n, item) in items.into_iter().enumerate() {
            if n > 0 {
                out.push_str(self.item);
            }
            self.line(depth + 1, out);
            put(item, out);
        }
        self.line(depth, out);
        out.push(ends[1]);
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = self.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }
}

/// A number as JSON with Python's exponents: a sign, and two digits at least.
fn as_python_writes(number: &str) -> String {
    let Some((mantissa, exponent)) = number.split_once('e') else { return number.to_owned() };
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent.trim_start_matches('+')),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// `strftime` of midnight on 26 July 2024, the date that Llama's templates fall back on.
fn fixed_date(format: &str) -> Result<String, Error> {
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let code = match chars.next() {
            Some('-') => chars.next().map(|c| (c, true)),
            other => other.map(|c| (c, false)),
        };
        out.push_str(match code {
            Some(('d' | 'e', _)) => "26",
            Some(('B', _)) => "July",
            Some(('b' | 'h', _)) => "Jul",
            Some(('m', short)) => ["07", "7"][usize::from(short)],
            Some(('Y', _)) => "2024",
            Some(('y', _)) => "24",
            Some(('A', _)) => "Friday",
            Some(('a', _)) => "Fri",
            Some(('j', _)) => "208",
            Some(('H' | 'M' | 'S', short)) => ["00", "0"][usize::from(short)],
            Some(('I', _)) => "12",
            Some(('p', _)) => "AM",
            Some(('F', _)) => "2024-07-26",
            Some(('T', _)) => "00:00:00",
            Some(('%', _)) => "%",
            _ => return Err(refusal(format!("`strftime_now` cannot write `{format}`"))),
        });
    }
    Ok(out)
}
