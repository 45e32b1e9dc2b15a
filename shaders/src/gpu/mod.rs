//! The wgpu backend: one buffer per planned slot, pipelines cached per device, bind groups made once per list.
//!
//! A run of a list is one compute pass; wgpu puts the barriers between dispatches. Runs that no write stands between go in
//! one submission, with the read-back that asks for their results. Errors come through error scopes, the poll and the
//! device-lost callback, and leave as [`DeviceError`]: nothing here panics.

mod adapters;
mod session;
mod shared;

use std::sync::{Arc, Mutex, PoisonError};

pub use adapters::list;

use adapters::{adapters, is_software};
use session::GpuBackend;
use shared::Shared;

use crate::backend::DeviceError;
use crate::pipelines::PipelineStore;
use crate::program::{Plan, Program};

/// What an adapter is opened with; tests ask for less than it has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opening {
    /// Kernels run as the modules for every adapter, also where a variant suits this one.
    pub plain: bool,
    /// Bytes that a binding may have, below the adapter's own limit.
    pub binding: Option<u64>,
    /// A software adapter runs what a real GPU with its features would.
    pub hardware: bool,
}

/// A wgpu adapter, opened.
pub struct GpuDevice {
    shared: Arc<Shared>,
}

impl GpuDevice {
    /// A real GPU, if there is one.
    pub fn open_real() -> Result<Option<Self>, DeviceError> {
        adapters().iter().find(|a| !is_software(a)).map(|a| Self::request(a, Opening::default())).transpose()
    }

    /// Any adapter (`gpu`, real ones first), or the first one whose name contains `choice`, upper and lower case alike.
    pub fn open(choice: &str, how: Opening) -> Result<Self, DeviceError> {
        let all = adapters();
        let wanted = choice.to_lowercase();
        let found = all.iter().find(|a| wanted == "gpu" || a.get_info().name.to_lowercase().contains(&wanted));
        match found {
            Some(adapter) => Self::request(adapter, how),
            None => {
                let mut names: Vec<String> = all.iter().map(|a| format!("`{}`", a.get_info().name)).collect();
                names.push("`cpu`".into());
                Err(DeviceError::NotFound { choice: choice.to_owned(), available: names.join(", ") })
            }
        }
    }

    /// Opens an adapter with its own limits, and those of its features that a variant of a kernel uses.
    fn request(adapter: &wgpu::Adapter, how: Opening) -> Result<Self, DeviceError> {
        let info = adapter.get_info();
        let name = info.name.clone();
        let useful = wgpu::Features::SUBGROUP | wgpu::Features::SHADER_F16 | wgpu::Features::PIPELINE_CACHE;
        let desc = wgpu::DeviceDescriptor {
            label: Some("flow"),
            required_features: adapter.features() & useful,
            required_limits: adapter.limits(),
            // Small blocks: what the planner counts is then what the device holds.
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&desc))
            .map_err(|e| DeviceError::Failed { device: name.clone(), message: format!("the device cannot be opened: {e}") })?;
        let limits = device.limits();
        let binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(how.binding.unwrap_or(u64::MAX));
        let trouble = Arc::new(Mutex::new(None));
        let note = |slot: &Arc<Mutex<Option<String>>>| {
            let slot = slot.clone();
            move |message: String| {
                slot.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
            }
        };
        let (lost, uncaptured) = (note(&trouble), note(&trouble));
        device.set_device_lost_callback(move |reason, message| {
            // Dropping a device destroys it too; then nobody asks any more.
            let why = if reason == wgpu::DeviceLostReason::Destroyed { "it was destroyed" } else { &message };
            lost(format!("the device was lost: {why}"));
        });
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| uncaptured(e.to_string())));
        let shared = Shared {
            name,
            software: is_software(adapter),
            plain: how.plain,
            hardware: how.hardware,
            binding,
            store: PipelineStore::open(&device, &info),
            device,
            queue,
            pipelines: Mutex::default(),
            trouble,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Name of the adapter.
    pub fn name(&self) -> String {
        self.shared.name.clone()
    }

    /// Ends the device, as a driver does that resets: what runs on it fails from then on. For tests.
    pub fn lose(&self) {
        self.shared.device.destroy();
    }

    /// Free memory in bytes, where it can be known: a software adapter computes in the machine's own; wgpu does not tell
    /// for others.
    pub fn free_memory(&self) -> Option<u64> {
        if self.shared.software { crate::cpu::free_memory() } else { None }
    }

    /// Bytes that the device's allocator holds for this process, where the backend reports them.
    pub fn allocated_bytes(&self) -> Option<u64> {
        self.shared.device.generate_allocator_report().map(|r| r.total_allocated_bytes)
    }

    pub(crate) fn allocate(&self, program: &Program, plan: &Plan) -> Result<GpuBackend, DeviceError> {
        GpuBackend::new(&self.shared, program, plan)
    }
}
