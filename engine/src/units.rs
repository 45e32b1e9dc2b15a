//! Amounts and durations as people write them.

use std::time::Duration;

use crate::node::Node;

/// A count, or bytes with a unit: `4`, `1_000`, `4GiB`, `1.5 GB`.
pub fn amount(value: &Node) -> Option<u64> {
    match value {
        // A letter at the end is a unit of bytes; without one it is a count.
        Node::Scalar(scalar) if scalar.text.ends_with(|c: char| c.is_ascii_alphabetic()) => amount_of(&scalar.text),
        Node::Scalar(scalar) => scalar.count().map_or_else(|| amount_of(&scalar.text), |n| n.as_u64()),
        _ => None,
    }
}

/// [`amount`] of a text.
pub fn amount_of(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    scaled(number, if unit.is_empty() { 1 } else { unit_bytes(unit)? })
}

/// Bytes with a unit: `500MiB`, `20 GB`; a number alone says nothing of what it counts.
pub fn size_of(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    scaled(number, if unit == "B" { 1 } else { unit_bytes(unit)? })
}

fn unit_bytes(unit: &str) -> Option<u64> {
    Some(match unit {
        "kB" | "KB" | "k" => 1000,
        "MB" | "M" => 1_000_000,
        "GB" | "G" => 1_000_000_000,
        "TB" | "T" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    })
}

fn scaled(number: f64, unit: u64) -> Option<u64> {
    let amount = number * unit as f64;
    (amount < u64::MAX as f64 && (unit > 1 || amount.fract() == 0.0)).then_some(amount as u64)
}

/// A number of seconds, or such as `90s`, `10m`, `2h`, `1d`.
pub fn duration(value: &Node) -> Option<Duration> {
    let Node::Scalar(scalar) = value else { return None };
    let lettered = scalar.text.ends_with(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = match scalar.count().filter(|_| !lettered) {
        Some(n) => (n.as_f64()?, ""),
        None => split(&scalar.text)?,
    };
    let unit = match unit {
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    let seconds = number * unit;
    (seconds > 0.0).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
}

fn split(text: &str) -> Option<(f64, &str)> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    Some((text[..at].parse().ok()?, text[at..].trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::typed_text;

    #[test]
    fn sizes_need_a_unit_and_amounts_do_not() {
        assert_eq!((amount_of("20"), size_of("20")), (Some(20), None));
        assert_eq!((size_of("20 B"), size_of("1.5GiB"), size_of("2k")), (Some(20), Some(3 << 29), Some(2000)));
        assert_eq!((size_of("99999999TiB"), size_of("GiB"), size_of("-1GiB"), size_of("1 GiBs")), (None, None, None, None));
        let of = |text: &str| amount(&typed_text(text));
        assert_eq!((of("1.5"), of("2B"), of("2GB"), of("0x10"), of("1.5k")), (None, None, Some(2_000_000_000), Some(16), Some(1500)));
        assert_eq!((amount(&typed_text("1_000")), amount(&typed_text("1e3")), amount(&typed_text("-1"))), (Some(1000), Some(1000), None));
    }

    #[test]
    fn durations() {
        let seconds = |text: &str| duration(&typed_text(text)).map(|d| d.as_secs_f64());
        assert_eq!((seconds("90s"), seconds("1.5"), seconds("2h"), seconds("1_000")), (Some(90.0), Some(1.5), Some(7200.0), Some(1000.0)));
        assert_eq!((seconds("0"), seconds("-1s"), seconds("1w"), seconds("1M")), (None, None, None, None));
    }
}
