//! Files as bytes that nobody reads in advance: a page comes when it is touched, and leaves when memory is short.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A file mapped for reading.
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps a file.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::io("cannot read", path, e);
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the mapping is private and read-only, and its bytes are only ever looked at as `u8`, for which every
        // value is valid. Artifacts in a cache never change (mode 0444), a training's state is replaced by a rename. A source file that another program cuts
        // short while it is read ends the process with SIGBUS; kinds that map one run in a child process.
        unsafe { Mmap::map(&file) }.map(Self).map_err(failed)
    }
}

impl Mapped {
    /// Lets pages go that were read and will not be for a while: they count as this process's memory until then.
    ///
    /// # Panics
    /// Where the part is not within the file.
    pub fn forget(&self, part: std::ops::Range<usize>) {
        assert!(part.start <= part.end && part.end <= self.0.len(), "{part:?} of {} bytes", self.0.len());
        #[cfg(unix)]
        // SAFETY: within the mapping, as asserted; private, of a file that is only read: pages that are dropped come back from it.
        let _ = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.start, part.len()) };
    }
}

impl Deref for Mapped {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}
