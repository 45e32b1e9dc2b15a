//! Models that were cut into several files, by the names that llama.cpp and Hugging Face give them:
//! `NAME-00001-of-00003.gguf`.

use std::path::{Path, PathBuf};

/// Digits of a number in such a name.
const DIGITS: usize = 5;

/// A name, which of how many it is (from 1), and what comes after.
struct Numbered<'a> {
    name: &'a str,
    number: usize,
    of: usize,
    after: &'a str,
}

impl<'a> Numbered<'a> {
    fn parse(file: &'a str) -> Option<Self> {
        let at = file.rfind("-of-")?;
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let (before, of) = (&file[..at], file.get(at + 4..at + 4 + DIGITS)?);
        let (name, number) = before.rsplit_once('-').filter(|(_, number)| number.len() == DIGITS)?;
        let numbered = Self { name, number: digits(number)?, of: digits(of)?, after: &file[at + 4 + DIGITS..] };
        (numbered.number >= 1 && numbered.number <= numbered.of).then_some(numbered)
    }
}

/// Which part a file is, from 1, and all parts in order; nothing where its name says no such thing.
pub fn parts(path: &Path) -> Option<(usize, Vec<PathBuf>)> {
    let Numbered { name, number, of, after } = Numbered::parse(path.file_name()?.to_str()?)?;
    Some((number, (1..=of).map(|n| path.with_file_name(format!("{name}-{n:05}-of-{of:05}{after}"))).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_their_number() {
        let (number, all) = parts(Path::new("d/a-of-b-00002-of-00003.gguf")).expect("a part");
        let all: Vec<&str> = all.iter().filter_map(|p| p.to_str()).collect();
        assert_eq!(number, 2);
        assert_eq!(all, ["d/a-of-b-00001-of-00003.gguf", "d/a-of-b-00002-of-00003.gguf", "d/a-of-b-00003-of-00003.gguf"]);
        for other in ["a.gguf", "a-1-of-3.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-0000x-of-00003.gguf", "-of-"] {
            assert!(parts(Path::new(other)).is_none(), "{other}");
        }
    }
}
