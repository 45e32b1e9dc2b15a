//! The events of a task as they are added to its `events.jsonl`.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::plugin::TaskEvent;

/// Reads the lines that were added to a file.
pub(crate) struct Tail {
    path: PathBuf,
    offset: u64,
    rest: Vec<u8>,
}

impl Tail {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0, rest: Vec::new() }
    }

    /// Tells what came since the last call; lines that are no events are passed over.
    pub fn read(&mut self, tell: &mut dyn FnMut(TaskEvent)) {
        let Ok(mut file) = File::open(&self.path) else { return };
        if file.seek(SeekFrom::Start(self.offset)).is_err() {
            return;
        }
        if let Ok(n) = file.read_to_end(&mut self.rest) {
            self.offset += n as u64;
        }
        let taken = std::mem::take(&mut self.rest);
        let mut lines = taken.split(|b| *b == b'\n');
        self.rest.extend_from_slice(lines.next_back().unwrap_or_default());
        for event in lines.filter_map(|line| serde_json::from_slice::<TaskEvent>(line).ok()) {
            tell(event);
        }
    }
}
