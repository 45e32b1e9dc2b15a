//! What the two backends share: what they do for a session, how they describe themselves, and how they fail.

use crate::program::{ListId, Op, Plan, Program};

/// What can go wrong on a device; each says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No adapter matches the choice.
    #[error("no device matches `{choice}`; there are: {available}")]
    NotFound {
        /// What was asked for.
        choice: String,
        /// What exists.
        available: String,
    },
    /// The plan does not fit.
    #[error(
        "out of memory on {device}: {needed} MiB needed, {available} MiB available; lower the batch size or sequence length, or choose a smaller preset"
    )]
    OutOfMemory {
        /// Device.
        device: String,
        /// Planned MiB.
        needed: u64,
        /// Free MiB.
        available: u64,
    },
    /// A buffer exceeds what the adapter binds at once.
    #[error(
        "buffer `{buffer}` needs {needed} MiB, but {device} binds at most {limit} MiB at once; run with FLOW_DEVICE=cpu or a smaller preset"
    )]
    Binding {
        /// Device.
        device: String,
        /// Buffer.
        buffer: String,
        /// Size in MiB.
        needed: u64,
        /// Limit in MiB.
        limit: u64,
    },
    /// `FLOW_SIMD` names no instruction set.
    #[error("FLOW_SIMD={name}: expected {}", crate::simd::NAMES.join(", "))]
    InstructionSet {
        /// What it says.
        name: String,
    },
    /// The device went away or refused.
    #[error("{device}: {message}; run again (the task continues from its last checkpoint), or with FLOW_DEVICE=cpu")]
    Failed {
        /// Device.
        device: String,
        /// What the driver said.
        message: String,
    },
}

/// Class of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The CPU twins.
    Cpu,
    /// A GPU (discrete, integrated or virtual).
    Gpu,
    /// A software rasteriser such as llvmpipe: taken only when asked for.
    Software,
}

/// What `flow devices` prints.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Name of the adapter, or the CPU's.
    pub name: String,
    /// Class.
    pub kind: DeviceKind,
    /// `vulkan`, `metal`, `dx12`, or `cpu`.
    pub backend: String,
    /// Driver and version, or instruction sets.
    pub driver: String,
    /// Limits and features worth showing: (name, value).
    pub limits: Vec<(String, String)>,
}

/// Plays dispatches over slots.
pub(crate) trait Backend: Send {
    /// Overwrites words of a slot from an offset.
    fn write(&mut self, slot: usize, offset: usize, words: &[u32]) -> Result<(), DeviceError>;
    /// Reads words of a slot from an offset.
    fn read(&mut self, slot: usize, offset: usize, words: usize) -> Result<Vec<u32>, DeviceError>;
    /// Drops what it prepared for a list, whose operations have changed; runs that were asked for before stay as they are.
    fn forget(&mut self, list: ListId);
    /// Runs a list; `list` lets the backend keep what it prepared.
    fn run(&mut self, list: ListId, ops: &[Op], program: &Program, plan: &Plan) -> Result<(), DeviceError>;
}
