//! The wgpu backend.

use crate::device::{Backend, DeviceError, DeviceInfo};
use crate::program::{ListId, Op, Plan, Program};

/// A wgpu adapter.
pub struct GpuDevice {}

/// Adapters of this machine.
pub fn list() -> Vec<DeviceInfo> {
    Vec::new()
}

impl GpuDevice {
    /// A real GPU, if there is one.
    pub fn open_real() -> Result<Option<Self>, DeviceError> {
        Ok(None)
    }
    /// Any adapter (`gpu`), or the one whose name contains `choice`.
    pub fn open(choice: &str) -> Result<Self, DeviceError> {
        Err(DeviceError::NotFound { choice: choice.into(), available: "cpu".into() })
    }
    /// Name.
    pub fn name(&self) -> String {
        String::new()
    }
    /// Free memory.
    pub fn free_memory(&self) -> Option<u64> {
        None
    }
    pub(crate) fn allocate(&self, _program: &Program, _plan: &Plan) -> Result<GpuBackend, DeviceError> {
        Ok(GpuBackend {})
    }
}

pub(crate) struct GpuBackend {}

impl Backend for GpuBackend {
    fn write(&mut self, _slot: usize, _offset: usize, _words: &[u32]) -> Result<(), DeviceError> {
        Ok(())
    }
    fn read(&mut self, _slot: usize, _offset: usize, words: usize) -> Result<Vec<u32>, DeviceError> {
        Ok(vec![0; words])
    }
    fn run(&mut self, _list: ListId, _ops: &[Op], _program: &Program, _plan: &Plan) -> Result<(), DeviceError> {
        Ok(())
    }
}
