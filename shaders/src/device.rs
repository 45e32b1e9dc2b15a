//! Devices and sessions: one interface over the CPU twins and wgpu.

use std::sync::Arc;

pub use crate::backend::{DeviceError, DeviceInfo, DeviceKind};
pub use crate::gpu::Opening;

use crate::backend::Backend;
use crate::kernel::Params;
use crate::program::{BufferId, Life, ListId, Plan, Program};

/// A device that programs can be loaded on.
#[derive(Clone)]
pub enum Device {
    /// The twins, on a pool of threads.
    Cpu(Arc<crate::cpu::CpuDevice>),
    /// A wgpu adapter.
    Gpu(Arc<crate::gpu::GpuDevice>),
}

/// All devices of this machine, the CPU last.
pub fn list() -> Vec<DeviceInfo> {
    let mut all = crate::gpu::list();
    all.push(crate::cpu::info());
    all
}

/// Opens a device: `auto` (a real GPU if there is one, else the twins), `gpu` (any adapter), `cpu`, or part of an
/// adapter's name. `threads` = 0 takes all cores.
pub fn open(choice: &str, threads: usize) -> Result<Device, DeviceError> {
    if let Some(name) = std::env::var("FLOW_SIMD").ok().filter(|name| !crate::simd::NAMES.contains(&name.as_str())) {
        return Err(DeviceError::InstructionSet { name });
    }
    let cpu = || Device::Cpu(Arc::new(crate::cpu::CpuDevice::new(threads)));
    match choice {
        "cpu" => Ok(cpu()),
        "auto" | "" => Ok(crate::gpu::GpuDevice::open_real()?.map_or_else(cpu, |g| Device::Gpu(Arc::new(g)))),
        _ => crate::gpu::GpuDevice::open(choice, Opening::default()).map(|g| Device::Gpu(Arc::new(g))),
    }
}

/// A wgpu adapter (`gpu`, or part of a name) with less than it has: the tests reach what another machine would run.
pub fn open_with(choice: &str, how: Opening) -> Result<Device, DeviceError> {
    crate::gpu::GpuDevice::open(choice, how).map(|g| Device::Gpu(Arc::new(g)))
}

impl Device {
    /// Name for provenance.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu(d) => d.name(),
            Device::Gpu(d) => d.name(),
        }
    }
    /// Free memory in bytes, where the device can tell.
    pub fn free_memory(&self) -> Option<u64> {
        match self {
            Device::Cpu(_) => crate::cpu::free_memory(),
            Device::Gpu(d) => d.free_memory(),
        }
    }
    /// Bytes that a program will take: its buffers, and what the device's kernels need beside them.
    pub fn planned_bytes(&self, program: &Program) -> u64 {
        let buffers = program.plan().bytes();
        match self {
            Device::Cpu(_) => buffers + crate::cpu::scratch_bytes(program),
            Device::Gpu(_) => buffers,
        }
    }
    /// Plans and allocates a program.
    pub fn load(&self, program: Program) -> Result<Session, DeviceError> {
        let plan = program.plan();
        if let Some(free) = self.free_memory()
            && plan.bytes() > free
        {
            return Err(DeviceError::OutOfMemory { device: self.name(), needed: plan.bytes() >> 20, available: free >> 20 });
        }
        let backend: Box<dyn Backend> = match self {
            Device::Cpu(d) => Box::new(d.allocate(&plan)),
            Device::Gpu(d) => Box::new(d.allocate(&program, &plan)?),
        };
        Ok(Session { program, plan, backend })
    }
}

/// A loaded program.
pub struct Session {
    program: Program,
    plan: Plan,
    backend: Box<dyn Backend>,
}

impl Session {
    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }
    /// Bytes that the planner predicted (and allocated).
    pub fn planned_bytes(&self) -> u64 {
        self.plan.bytes()
    }
    /// The slot of a buffer that has `words` words from `offset` on, and where these begin in it.
    fn place_of(&self, id: BufferId, offset: usize, words: usize, what: &str) -> (usize, usize) {
        let fits = offset.checked_add(words).is_some_and(|end| end <= self.program.words(id));
        assert!(fits, "{what} past `{}`", self.program.buffers[id.0 as usize].name);
        (self.plan.slot_of[id.0 as usize], self.plan.offset_of[id.0 as usize] + offset)
    }
    /// Writes words at the start of a buffer.
    pub fn write(&mut self, id: BufferId, words: &[u32]) -> Result<(), DeviceError> {
        self.write_at(id, 0, words)
    }
    /// Writes words of a buffer from word `offset` on.
    pub fn write_at(&mut self, id: BufferId, offset: usize, words: &[u32]) -> Result<(), DeviceError> {
        let (slot, first) = self.place_of(id, offset, words.len(), "write");
        self.backend.write(slot, first, words)
    }
    /// Writes words made one by one, without ever holding more than a part of them on the host.
    pub fn write_with(&mut self, id: BufferId, words: usize, mut make: impl FnMut(usize) -> u32) -> Result<(), DeviceError> {
        const PART: usize = 1 << 18;
        let (slot, first) = self.place_of(id, 0, words, "write");
        let mut part = Vec::with_capacity(PART.min(words));
        for start in (0..words).step_by(PART) {
            part.clear();
            part.extend((start..words.min(start + PART)).map(&mut make));
            self.backend.write(slot, first + start, &part)?;
        }
        Ok(())
    }
    /// Writes floats at the start of a buffer.
    pub fn write_f32(&mut self, id: BufferId, values: &[f32]) -> Result<(), DeviceError> {
        self.write_f32_at(id, 0, values)
    }
    /// Writes floats of a buffer from word `offset` on.
    pub fn write_f32_at(&mut self, id: BufferId, offset: usize, values: &[f32]) -> Result<(), DeviceError> {
        self.write_at(id, offset, bytemuck::cast_slice(values))
    }
    /// Writes signed words at the start of a buffer.
    pub fn write_i32(&mut self, id: BufferId, values: &[i32]) -> Result<(), DeviceError> {
        self.write(id, bytemuck::cast_slice(values))
    }
    /// Reads a whole buffer.
    pub fn read(&mut self, id: BufferId) -> Result<Vec<u32>, DeviceError> {
        self.read_at(id, 0, self.program.words(id))
    }
    /// Reads `len` words of a buffer from word `offset` on.
    pub fn read_at(&mut self, id: BufferId, offset: usize, len: usize) -> Result<Vec<u32>, DeviceError> {
        let (slot, first) = self.place_of(id, offset, len, "read");
        self.backend.read(slot, first, len)
    }
    /// Reads a whole buffer of floats.
    pub fn read_f32(&mut self, id: BufferId) -> Result<Vec<f32>, DeviceError> {
        Ok(bytemuck::cast_vec(self.read(id)?))
    }
    /// Reads `len` floats of a buffer from word `offset` on.
    pub fn read_f32_at(&mut self, id: BufferId, offset: usize, len: usize) -> Result<Vec<f32>, DeviceError> {
        Ok(bytemuck::cast_vec(self.read_at(id, offset, len)?))
    }
    /// Changes the parameters of operation `index` of a list, from its next run on: for numbers that change from step to step
    /// and stand in no buffer, such as a sampling temperature. The kernel and its buffers stay what they are: that the buffers
    /// hold what the kernel touches with these parameters, and that the plan still fits, is the caller's matter.
    pub fn set_params<P: bytemuck::Pod>(&mut self, list: ListId, index: usize, params: &P) {
        self.program.lists[list.0 as usize].1[index].params = Params::new(params);
        self.backend.forget(list);
    }
    /// Puts windows of persistent buffers at their first words, for the runs of `list` from now on. On a GPU a first word is a
    /// multiple of 64 (WebGPU's default alignment of a binding).
    pub fn place(&mut self, list: ListId, windows: &[(BufferId, usize)]) {
        for (id, first) in windows {
            let (window, words) = (&self.program.buffers[id.0 as usize], self.program.words(*id));
            let Life::Window(of) = window.life else { panic!("`{}` is no window", window.name) };
            assert!(first + words <= self.program.words(of), "`{}` ends beyond its buffer", window.name);
            self.plan.offset_of[id.0 as usize] = *first;
        }
        self.backend.forget(list);
    }
    /// Runs a list to its end.
    pub fn run(&mut self, list: ListId) -> Result<(), DeviceError> {
        self.backend.run(list, &self.program.lists[list.0 as usize].1, &self.program, &self.plan)
    }
}
