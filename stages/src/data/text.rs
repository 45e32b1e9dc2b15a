//! Texts: read, and split at document boundaries.

use std::path::Path;

use flow_engine::plugin::StageError;

/// Reads a text, or says at which byte and line it is not one.
pub fn read_text(path: &Path) -> Result<String, StageError> {
    let bytes = std::fs::read(path).map_err(|e| StageError::io("cannot read the text", path, &e))?;
    let text = flow_engine::text::utf8(bytes).map_err(|e| StageError::new(format!("{} {e}", path.display())).help(e.help()))?;
    if text.trim().is_empty() {
        return Err(
            StageError::new(format!("{}: the text is empty ({} bytes)", path.display(), text.len())).help("give a file that holds text")
        );
    }
    Ok(text)
}

/// Byte offset at which a text's last `share` bytes begin, about.
pub(crate) fn split_at(text: &str, share: f64) -> Option<usize> {
    let wanted = (text.len() as f64 - share).round();
    let mut best: Option<usize> = None;
    let documents = line_starts(text).filter(|i| text[*i..].starts_with("# "));
    let paragraphs = line_starts(text).filter(|i| text[..*i].ends_with("\n\n"));
    for level in [&mut documents.into_iter() as &mut dyn Iterator<Item = usize>, &mut paragraphs.into_iter(), &mut line_starts(text)] {
        let near = level.min_by(|a, b| (*a as f64 - wanted).abs().total_cmp(&(*b as f64 - wanted).abs()));
        let Some(near) = near else { continue };
        if (near as f64 - wanted).abs() <= share * 0.25 {
            return Some(near);
        }
        best = Some(near);
    }
    best
}

/// Starts of all lines but the first.
fn line_starts(text: &str) -> impl Iterator<Item = usize> + '_ {
    text.bytes().enumerate().filter(|(i, b)| *b == b'\n' && i + 1 < text.len()).map(|(i, _)| i + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_text_holds_out_its_last_three_documents() {
        let text = include_str!("../../../pipelines/data/corpus.txt");
        let share = 0.05 * text.len() as f64;
        let cut = split_at(text, share).expect("many documents");
        assert_eq!(text.len() - cut, 121_322);
        assert!(text[cut..].starts_with("# Donald J. Trump, 2019"));
        let before = split_at(&text[..cut], share).expect("many documents");
        assert_eq!(cut - before, 103_602);
        assert!(text[before..].starts_with("# Barack Obama, 2016"));
    }

    #[test]
    fn a_text_without_documents_is_cut_at_a_paragraph_or_a_line() {
        let paragraphs = "one two three\nfour\n\n".repeat(50);
        let cut = split_at(&paragraphs, 100.0).expect("paragraphs");
        assert!(paragraphs[..cut].ends_with("\n\n") && cut == 900, "{cut}");
        assert_eq!(split_at("a single line", 1.0), None);
    }

    #[test]
    fn bytes_that_are_no_text_are_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("bad.txt");
        std::fs::write(&file, b"good\nbad \xff here\n").expect("write");
        let error = read_text(&file).expect_err("must refuse").message;
        assert!(error.contains("bad.txt") && error.contains("byte 9") && error.contains("line 2"), "{error}");
        std::fs::write(&file, b" \n").expect("write");
        assert!(read_text(&file).expect_err("must refuse").message.contains("empty"));
    }
}
