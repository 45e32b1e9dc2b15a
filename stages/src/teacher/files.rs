//! What becoming a teacher's directory shares, whatever the model's layout.

use std::path::Path;

use flow_engine::plugin::StageError;

/// Window of a teacher that was made for longer ones.
pub(crate) const WINDOW: usize = 512;

/// The window to use of a model that was made for `context`.
pub(super) fn window(path: &Path, asked: Option<usize>, context: usize) -> Result<usize, StageError> {
    match asked {
        Some(seq) if seq > context => {
            Err(StageError::new(format!("{}: `seq: {seq}` is beyond the model's context of {context} tokens", path.display()))
                .help(format!("set `seq: {context}` or less")))
        }
        Some(seq) => Ok(seq),
        None => Ok(context.min(WINDOW)),
    }
}

/// Writes a text.
pub(super) fn write(path: &Path, text: &str) -> Result<(), StageError> {
    std::fs::write(path, text).map_err(|e| StageError::io("cannot write", path, &e))
}

/// Copies a file (shared blocks where the file system can), writable whatever the source is.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), StageError> {
    let failed = |e: std::io::Error| StageError::io("cannot copy", from, &e);
    let mut source = std::fs::File::open(from).map_err(failed)?;
    let mut target = std::fs::File::create(to).map_err(failed)?;
    std::io::copy(&mut source, &mut target).map(drop).map_err(failed)
}
