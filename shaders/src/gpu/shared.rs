//! What the sessions of an adapter share: its limits, compiled kernels, and how its errors are found.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::DeviceError;
use crate::cut::Part;
use crate::kernel::{Access, Kernel, Params, Suits};
use crate::pipelines::PipelineStore;
use crate::program::{Buffer, Op, Program};

/// An open adapter, shared by its sessions.
pub(super) struct Shared {
    pub name: String,
    pub software: bool,
    /// Kernels run as the module for every adapter, also where a variant suits this one.
    pub plain: bool,
    /// Variants are chosen as for a real GPU.
    pub hardware: bool,
    /// Bytes that a binding may have.
    pub binding: u64,
    /// Compiled pipelines on the disk.
    pub store: Option<PipelineStore>,
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub pipelines: Mutex<HashMap<&'static str, Arc<Pipeline>>>,
    /// What the driver said outside of an error scope: a lost device or an error of a submission.
    pub trouble: Arc<Mutex<Option<String>>>,
}

/// A compiled kernel.
pub(super) struct Pipeline {
    pub layout: wgpu::BindGroupLayout,
    pub pipeline: wgpu::ComputePipeline,
    pub grid: fn(&Params) -> [u32; 3],
}

impl Shared {
    pub fn too_large(&self, buffer: &Buffer, limit: u64) -> DeviceError {
        let needed = (buffer.words as u64 * 4).div_ceil(1 << 20);
        DeviceError::Binding { device: self.name.clone(), buffer: buffer.name.clone(), needed, limit: limit >> 20 }
    }

    /// The parts of an operation whose bindings this adapter takes.
    pub fn parts(&self, op: &Op, program: &Program) -> Result<Vec<Part>, DeviceError> {
        let sizes: Vec<usize> = op.buffers.iter().map(|b| program.words(*b)).collect();
        op.kernel
            .parts(&op.params, &sizes, (self.binding / 4) as usize)
            .map_err(|large| self.too_large(&program.buffers[op.buffers[large].0 as usize], self.binding))
    }

    pub fn failed(&self, message: impl Into<String>) -> DeviceError {
        DeviceError::Failed { device: self.name.clone(), message: message.into() }
    }

    /// Runs `make` inside error scopes on a device that is there; `needed` and `held` (bytes) describe an out-of-memory error.
    pub fn checked<T>(&self, needed: u64, held: u64, make: impl FnOnce() -> T) -> Result<T, DeviceError> {
        let scopes = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation]
            .map(|filter| self.device.push_error_scope(filter));
        let made = make();
        let mut error = None;
        for scope in scopes.into_iter().rev() {
            error = pollster::block_on(scope.pop()).or(error);
        }
        match error {
            // A lost device says nothing in a scope.
            None => self.sound().map(|()| made),
            Some(wgpu::Error::OutOfMemory { .. }) => {
                Err(DeviceError::OutOfMemory { device: self.name.clone(), needed: needed >> 20, available: held >> 20 })
            }
            Some(e) => Err(self.failed(e.to_string())),
        }
    }

    /// Waits for a submission (all of them without an index) and passes on what the driver complained about since.
    pub fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<(), DeviceError> {
        let polled = self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        self.sound()?;
        polled.map(|_| ()).map_err(|e| self.failed(e.to_string()))
    }

    pub fn sound(&self) -> Result<(), DeviceError> {
        match &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(message) => Err(self.failed(message.clone())),
        }
    }

    /// The pipeline of a kernel, compiled at its first use on this device.
    pub fn pipeline(&self, kernel: &'static Kernel) -> Result<Arc<Pipeline>, DeviceError> {
        let mut cache = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = cache.get(kernel.name) {
            return Ok(pipeline.clone());
        }
        let made = Arc::new(self.checked(0, 0, || self.compile(kernel))?);
        cache.insert(kernel.name, made.clone());
        Ok(made)
    }

    /// Whether a variant is for this adapter.
    fn has(&self, suits: Suits) -> bool {
        let (software, limits) = (self.software && !self.hardware, self.device.limits());
        match suits {
            Suits::Software => software,
            Suits::Invocations(n) => {
                !software && limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x) >= n
            }
            Suits::WorkgroupMemory(bytes) => !software && limits.max_compute_workgroup_storage_size >= bytes,
            Suits::Subgroups => self.device.features().contains(wgpu::Features::SUBGROUP),
        }
    }

    fn compile(&self, kernel: &Kernel) -> Pipeline {
        let entry = |binding: u32, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: binding == 0, min_binding_size: None },
            count: None,
        };
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform)];
        for (i, b) in kernel.bindings.iter().enumerate() {
            entries.push(entry(i as u32 + 1, wgpu::BufferBindingType::Storage { read_only: b.access == Access::Read }));
        }
        let label = Some(kernel.name);
        let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&layout)],
            ..Default::default()
        });
        let module = kernel.module_for(|suits| !self.plain && self.has(suits));
        let native = !self.plain && self.device.features().contains(wgpu::Features::SHADER_F16);
        let text = module.native_half().filter(|_| native).unwrap_or_else(|| module.source());
        let (grid, source) = (module.grid, wgpu::ShaderSource::Wgsl(text.into()));
        let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor { label, source });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: self.store.as_ref().map(PipelineStore::cache),
        });
        Pipeline { layout, pipeline, grid }
    }
}
