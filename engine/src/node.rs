//! YAML values whose scalars are still the text that was typed.
//!
//! What a scalar means is decided where it is used ([`crate::typed::read`]): `3.10` is a text in a command line and a number where
//! a number is wanted. A value that nobody gives a type is read by the core schema of YAML 1.2 (section 10.3.2).

use indexmap::IndexMap;
use serde_json::{Map, Number, Value};

/// A mapping, in the order of the file.
pub type Fields = IndexMap<String, Node>;

/// A value of a pipeline file or of the command line.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// Anything that is no list and no mapping.
    Scalar(Scalar),
    /// A list.
    List(Vec<Node>),
    /// A mapping.
    Map(Fields),
}

/// A scalar as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scalar {
    /// Its characters, quotes and escapes undone.
    pub text: String,
    /// Whether it stands without quotes, so that it may mean something else than a text.
    pub plain: bool,
}

/// What a plain scalar means by the core schema.
#[derive(Clone, Debug, PartialEq)]
pub enum Meaning {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Whole(Number),
    /// A whole number beyond 64 bits.
    Huge,
    /// Any other finite number.
    Real(f64),
    /// `.inf`, `.nan`, or beyond what a float64 holds.
    NotFinite,
    /// Anything else.
    Text,
}

impl Scalar {
    /// A text that is nothing but a text.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), plain: false }
    }

    /// What it means where no type is asked for.
    pub fn meaning(&self) -> Meaning {
        if self.plain { core_schema(&self.text) } else { Meaning::Text }
    }

    /// The whole number that it means where a count is wanted: `1000000`, `1_000_000`, `1e6`, `1M`.
    pub fn count(&self) -> Option<Number> {
        match self.meaning() {
            Meaning::Whole(n) => Some(n),
            Meaning::Real(x) => whole(x),
            Meaning::Text if self.plain => grouped(&self.text).or_else(|| scaled(&self.text)),
            _ => None,
        }
    }
}

/// `1_000_000`: digits, with `_` between digits only.
fn grouped(text: &str) -> Option<Number> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let fits = digits.split('_').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()));
    match core_schema(&text.replace('_', "")) {
        Meaning::Whole(n) if fits => Some(n),
        _ => None,
    }
}

/// `1M`, `2.5k`, `3G`: decimal units.
fn scaled(text: &str) -> Option<Number> {
    let (number, unit) = text.split_at(text.len().checked_sub(1).filter(|at| text.is_char_boundary(*at))?);
    let zeros = match unit {
        "k" | "K" => 3,
        "M" => 6,
        "G" => 9,
        "T" => 12,
        _ => return None,
    };
    // Read as one decimal number: 16.1 times 1000 is not 16,100 in floats.
    let decimal = matches!(core_schema(number), Meaning::Whole(_) | Meaning::Real(_));
    format!("{number}e{zeros}").parse().ok().filter(|_| decimal).and_then(whole)
}

/// A float that is a whole number which float64 holds exactly.
fn whole(x: f64) -> Option<Number> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (x.fract() == 0.0 && x.abs() <= EXACT).then(|| if x < 0.0 { Number::from(x as i64) } else { Number::from(x as u64) })
}

fn core_schema(text: &str) -> Meaning {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Meaning::Null,
        "true" | "True" | "TRUE" => return Meaning::Bool(true),
        "false" | "False" | "FALSE" => return Meaning::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Meaning::NotFinite,
        _ => {}
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Meaning::NotFinite;
    }
    for (prefix, radix) in [("0o", 8), ("0x", 16)] {
        if let Some(digits) = text.strip_prefix(prefix).filter(|d| !d.is_empty() && d.chars().all(|c| c.is_digit(radix))) {
            return u64::from_str_radix(digits, radix).map_or(Meaning::Huge, |n| Meaning::Whole(n.into()));
        }
    }
    if !unsigned.is_empty() && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        let unplussed = text.strip_prefix('+').unwrap_or(text);
        let number = unplussed.parse::<u64>().map(Number::from).or_else(|_| unplussed.parse::<i64>().map(Number::from));
        return number.map_or(Meaning::Huge, Meaning::Whole);
    }
    if is_float(unsigned) {
        return text.parse::<f64>().ok().filter(|x| x.is_finite()).map_or(Meaning::NotFinite, Meaning::Real);
    }
    Meaning::Text
}

/// `\. [0-9]+ | [0-9]+ ( \. [0-9]* )?`, then `( [eE] [-+]? [0-9]+ )?`.
fn is_float(unsigned: &str) -> bool {
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).map_or((unsigned, None), |(m, e)| (m, Some(e)));
    let mantissa = match mantissa.split_once('.') {
        Some(("", after)) => !after.is_empty() && digits(after),
        Some((before, after)) => digits(before) && digits(after),
        None => !mantissa.is_empty() && digits(mantissa),
    };
    let exponent = exponent.is_none_or(|e| {
        let e = e.strip_prefix(['+', '-']).unwrap_or(e);
        !e.is_empty() && digits(e)
    });
    mantissa && exponent
}

impl Node {
    /// Nothing, as an empty value in the file.
    pub fn null() -> Self {
        Self::Scalar(Scalar { text: String::new(), plain: true })
    }

    /// Whether it is nothing: `null`, `~`, or no text at all.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Scalar(s) if s.meaning() == Meaning::Null)
    }

    /// The characters of a scalar that is not nothing.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Scalar(s) if !self.is_null() => Some(&s.text),
            _ => None,
        }
    }

    /// The entries of a mapping.
    pub fn fields(&self) -> Option<&Fields> {
        match self {
            Self::Map(fields) => Some(fields),
            _ => None,
        }
    }

    /// The entry of a mapping.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.fields()?.get(key)
    }

    /// Whether a scalar anywhere in it holds these characters.
    pub fn mentions(&self, part: &str) -> bool {
        match self {
            Self::Scalar(s) => s.text.contains(part),
            Self::List(items) => items.iter().any(|n| n.mentions(part)),
            Self::Map(fields) => fields.values().any(|n| n.mentions(part)),
        }
    }

    /// How many values it holds, itself included.
    pub fn size(&self) -> usize {
        1 + match self {
            Self::Scalar(_) => 0,
            Self::List(items) => items.iter().map(Self::size).sum(),
            Self::Map(fields) => fields.values().map(Self::size).sum(),
        }
    }

    /// The JSON value of a node that no type is asked of, by the core schema: for looks only, as what JSON cannot hold stays a text.
    pub fn shown(&self) -> Value {
        match self {
            Self::Scalar(s) => match s.meaning() {
                Meaning::Null => Value::Null,
                Meaning::Bool(b) => b.into(),
                Meaning::Whole(n) => Value::Number(n),
                Meaning::Real(x) => x.into(),
                Meaning::Text | Meaning::Huge | Meaning::NotFinite => s.text.clone().into(),
            },
            Self::List(items) => items.iter().map(Self::shown).collect(),
            Self::Map(fields) => Value::Object(fields.iter().map(|(k, v)| (k.clone(), v.shown())).collect::<Map<_, _>>()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Scalar {
        Scalar { text: text.into(), plain: true }
    }

    #[test]
    fn the_core_schema_of_yaml_1_2() {
        for (text, wanted) in [("0o17", 15), ("0x1F", 31), ("12", 12), ("+12", 12), ("007", 7)] {
            assert_eq!(plain(text).meaning(), Meaning::Whole(Number::from(wanted)), "{text}");
        }
        for (text, wanted) in [("3.10", 3.1), ("1e3", 1e3), ("-.5", -0.5), ("1.", 1.0), ("7123e4", 7123e4)] {
            assert_eq!(plain(text).meaning(), Meaning::Real(wanted), "{text}");
        }
        for text in ["0b1", "yes", "off", "1_000", "1M", "e3", "1e", "-", "+", ".", "0x", "0o8", "- 1", "1 2", "tRue", "-0x1"] {
            assert_eq!(plain(text).meaning(), Meaning::Text, "{text}");
        }
        assert_eq!(plain("1234567890123456789012").meaning(), Meaning::Huge);
        assert_eq!(plain("1e999").meaning(), Meaning::NotFinite);
        assert_eq!(plain("-.inf").meaning(), Meaning::NotFinite);
        assert_eq!(Scalar::text("12").meaning(), Meaning::Text);
    }

    #[test]
    fn counts_as_people_write_them() {
        for text in ["1000000", "1_000_000", "1M", "1e6", "0.001G", "1000k", "1.0e6", "0.000001T"] {
            assert_eq!(plain(text).count(), Some(Number::from(1_000_000)), "{text}");
        }
        for text in ["1.5", "2B", "1e3k", "0x1k", "1__0", "_1", "1_", "M", "1.0000001k", "1e300", "1 M", "1x", "é"] {
            assert_eq!(plain(text).count(), None, "{text}");
        }
        assert_eq!(plain("16.1k").count(), Some(Number::from(16_100)));
        assert_eq!(plain("-1_0").count(), Some(Number::from(-10)));
        assert_eq!(Scalar::text("1M").count(), None);
    }
}
