//! Several directories of traces as one.

use std::path::Path;

use flow_engine::plugin::StageError;

use super::meta::MetaFile;
use super::meta::{Layout, TraceCounts};
use super::reader::TraceReader;
use super::rows::{ProjectedRow, RawRow};
use super::schema::TraceRow;
use super::writer::TraceWriter;

/// Layout of a directory.
pub fn layout(dir: &Path) -> Result<Layout, StageError> {
    MetaFile::read(dir).map(|file| file.meta.layout)
}

/// Writes the sequences of several directories into one; prompts are numbered on.
pub fn merge(dirs: &[&Path], to: &Path) -> Result<TraceCounts, StageError> {
    match dirs.first() {
        None => Err(StageError::new("nothing to merge").help("give at least two directories of traces")),
        Some(first) => match layout(first)? {
            Layout::Raw => merge_of::<RawRow>(dirs, to),
            Layout::Projected => merge_of::<ProjectedRow>(dirs, to),
        },
    }
}

fn merge_of<R: TraceRow>(dirs: &[&Path], to: &Path) -> Result<TraceCounts, StageError> {
    let readers: Vec<TraceReader<R>> = dirs.iter().map(|d| TraceReader::open(d)).collect::<Result<_, _>>()?;
    let mut meta = readers[0].meta().clone();
    for (dir, reader) in dirs.iter().zip(&readers).skip(1) {
        let other = reader.meta();
        let differs = |what: &str| {
            StageError::new(format!("{}: another {what} than {}", dir.display(), dirs[0].display()))
                .help("only rows over one vocabulary can stand in one directory")
        };
        if other.tokenizer_hash != meta.tokenizer_hash {
            return Err(differs("tokenizer"));
        }
        if other.taus != meta.taus {
            return Err(differs("set of temperatures (taus)"));
        }
        if other.method != meta.method {
            return Err(differs("method"));
        }
        meta.top_k = meta.top_k.max(other.top_k);
        if other.teacher_digest != meta.teacher_digest {
            meta.teacher = format!("{}; {}", meta.teacher, other.teacher);
            meta.teacher_digest = blake3::hash(format!("{} {}", meta.teacher_digest, other.teacher_digest).as_bytes()).to_hex().to_string();
        }
    }
    let mut writer = TraceWriter::<R>::create(to, &meta)?;
    let mut offset = 0;
    for reader in &readers {
        let mut next = offset;
        for item in reader.sequences()? {
            let (mut sequence, rows) = item?;
            sequence.prompt_idx += offset;
            next = next.max(sequence.prompt_idx + 1);
            writer.push(sequence, rows)?;
        }
        offset = next;
    }
    writer.finish()
}
