//! What an execution of a stage will take, said before it: the kind knows the work, the machine makes seconds of it.

use std::path::Path;

use serde_json::Value;

/// What a kind expects of one execution.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Estimate {
    /// Bytes that it plans to hold.
    pub memory_bytes: Option<u64>,
    /// Floating-point operations, in those of a large product.
    pub work: Option<f64>,
    /// Settings that would take less memory, the one that costs least first: `recompute: true`.
    pub smaller: Vec<String>,
}

/// Finds makers in a linked pipeline.
pub(crate) trait Makers {
    /// The maker of what lies on an input of stage number `stage`, of the first where they are several.
    fn maker<'a>(&'a self, stage: usize, port: &str) -> Option<Maker<'a>>;
}

/// The inputs of a stage before anything is made: who will make what.
#[derive(Clone, Copy)]
pub struct Wired<'a> {
    makers: &'a dyn Makers,
    stage: usize,
}

/// The stage that makes an artifact.
#[derive(Clone, Copy)]
pub struct Maker<'a> {
    /// Its kind.
    pub kind: &'a str,
    /// Its canonical parameters; source files and directories have absolute paths.
    pub params: &'a Value,
    /// The output port that is read.
    pub output: &'a str,
    /// Folder of its pipeline file, where globs start.
    pub dir: &'a Path,
    /// What it reads in turn.
    pub wired: Wired<'a>,
}

impl<'a> Wired<'a> {
    pub(crate) fn new(makers: &'a dyn Makers, stage: usize) -> Self {
        Self { makers, stage }
    }
    /// The maker of what lies on `port`, of the first artifact where it takes a list; nothing where none is wired.
    pub fn maker(&self, port: &str) -> Option<Maker<'a>> {
        self.makers.maker(self.stage, port)
    }
}
