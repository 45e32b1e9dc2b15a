//! Texts of the command line as values.

use flow_lm::config::Bits;
use flow_lm::infer::Takes;

pub fn above_zero(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a whole number above 0".into())
}

pub fn activation_bits(text: &str) -> Result<Bits, String> {
    text.parse().ok().and_then(Bits::of).ok_or_else(|| "expected 8 or 4".into())
}

pub fn activations(text: &str) -> Result<Takes, String> {
    Takes::of(text).ok_or_else(|| format!("expected {}", Takes::NAMES))
}

pub fn size(text: &str) -> Result<u64, String> {
    flow_engine::units::size_of(text).ok_or_else(|| "expected a size with its unit, such as 500MiB or 20GiB".into())
}

pub fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("expected NAME=VALUE".into()),
    }
}
