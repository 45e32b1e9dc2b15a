//! The wgpu backend: one buffer per planned slot, pipelines cached per device, bind groups made once per list.
//!
//! A run of a list is one compute pass; wgpu puts the barriers between dispatches. Runs that no write stands between go in
//! one submission, with the read-back that asks for their results. Errors come
//! through error scopes, the poll and the device-lost callback, and leave as [`DeviceError`]: nothing here panics.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use crate::backend::{Backend, DeviceError, DeviceInfo, DeviceKind};
use crate::cut::Part;
use crate::kernel::{Access, Kernel, Params, Suits};
use crate::pipelines::PipelineStore;
use crate::program::{ListId, Op, Plan, Program};

/// Bytes that queued writes may hold in staging memory, and of one read-back.
const STAGING: usize = 64 << 20;
/// Submissions in flight: enough to keep a GPU busy, few enough that nothing piles up on a slow adapter.
const IN_FLIGHT: usize = 2;
/// Runs in a submission, so that the device does not wait for the last one's commands.
const TOGETHER: usize = 4;
/// Longest wait for the callback of a finished read-back.
const CALLBACK: Duration = Duration::from_secs(60);
/// Bytes of one dispatch's parameters.
const PARAMS: u64 = size_of::<Params>() as u64;

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

struct Shared {
    name: String,
    software: bool,
    /// Kernels run as the module for every adapter, also where a variant suits this one.
    plain: bool,
    /// Variants are chosen as for a real GPU.
    hardware: bool,
    /// Bytes that a binding may have.
    binding: u64,
    /// Compiled pipelines on the disk.
    store: Option<PipelineStore>,
    device: wgpu::Device,
    queue: wgpu::Queue,
    pipelines: Mutex<HashMap<&'static str, Arc<Pipeline>>>,
    /// What the driver said outside of an error scope: a lost device or an error of a submission.
    trouble: Arc<Mutex<Option<String>>>,
}

struct Pipeline {
    layout: wgpu::BindGroupLayout,
    pipeline: wgpu::ComputePipeline,
    grid: fn(&Params) -> [u32; 3],
}

/// Adapters of this machine, real ones first.
pub fn list() -> Vec<DeviceInfo> {
    adapters().iter().map(describe).collect()
}

fn adapters() -> Vec<wgpu::Adapter> {
    let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = backends;
    let mut all = pollster::block_on(wgpu::Instance::new(desc).enumerate_adapters(backends));
    all.sort_by_key(|a| match a.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    all
}

fn is_software(adapter: &wgpu::Adapter) -> bool {
    adapter.get_info().device_type == wgpu::DeviceType::Cpu
}

fn describe(adapter: &wgpu::Adapter) -> DeviceInfo {
    let info = adapter.get_info();
    let limits = adapter.limits();
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let features = adapter.features();
    let present = |flag, yes: &'static str| if features.contains(flag) { Some(yes) } else { None };
    let names: Vec<&str> = [
        present(wgpu::Features::SHADER_F16, "f16"),
        present(wgpu::Features::SUBGROUP, "subgroups"),
        present(wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
        present(wgpu::Features::PIPELINE_CACHE, "pipeline cache"),
    ]
    .into_iter()
    .flatten()
    .collect();
    DeviceInfo {
        name: info.name.clone(),
        kind: if is_software(adapter) { DeviceKind::Software } else { DeviceKind::Gpu },
        backend: info.backend.to_str().to_owned(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        limits: vec![
            ("storage binding".into(), mib(limits.max_storage_buffer_binding_size)),
            ("buffer".into(), mib(limits.max_buffer_size)),
            ("storage buffers".into(), limits.max_storage_buffers_per_shader_stage.to_string()),
            ("workgroup".into(), format!("{} invocations", limits.max_compute_invocations_per_workgroup)),
            ("workgroup memory".into(), format!("{} KiB", limits.max_compute_workgroup_storage_size >> 10)),
            ("subgroup".into(), format!("{}–{}", info.subgroup_min_size, info.subgroup_max_size)),
            ("features".into(), if names.is_empty() { "none".into() } else { names.join(", ") }),
        ],
    }
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
        let shared = &self.shared;
        let largest = shared.device.limits().max_buffer_size;
        if let Some(buffer) = program.buffers.iter().find(|b| b.words as u64 * 4 > largest) {
            return Err(shared.too_large(buffer, largest));
        }
        for op in program.lists.iter().flat_map(|(_, ops)| ops) {
            shared.parts(op, program)?;
        }
        let mut slots = Vec::with_capacity(plan.slots.len());
        let mut held = 0u64;
        for words in &plan.slots {
            let size = *words as u64 * 4;
            // wgpu fills new buffers with zeros before their first use.
            let buffer = shared.checked(plan.bytes(), held, || {
                shared.device.create_buffer(&wgpu::BufferDescriptor {
                    label: None,
                    size,
                    usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            })?;
            slots.push(buffer);
            held += size;
        }
        for kernel in program.kernels() {
            shared.pipeline(kernel)?;
        }
        if let Some(store) = &shared.store {
            store.save();
        }
        Ok(GpuBackend {
            shared: shared.clone(),
            slots,
            planned: plan.bytes(),
            lists: HashMap::new(),
            staging: None,
            queued: 0,
            in_flight: VecDeque::new(),
            pending: Vec::new(),
        })
    }
}

impl Shared {
    fn too_large(&self, buffer: &crate::program::Buffer, limit: u64) -> DeviceError {
        let needed = (buffer.words as u64 * 4).div_ceil(1 << 20);
        DeviceError::Binding { device: self.name.clone(), buffer: buffer.name.clone(), needed, limit: limit >> 20 }
    }

    /// The parts of an operation whose bindings this adapter takes.
    fn parts(&self, op: &Op, program: &Program) -> Result<Vec<Part>, DeviceError> {
        let sizes: Vec<usize> = op.buffers.iter().map(|b| program.words(*b)).collect();
        op.kernel
            .parts(&op.params, &sizes, (self.binding / 4) as usize)
            .map_err(|large| self.too_large(&program.buffers[op.buffers[large].0 as usize], self.binding))
    }

    fn failed(&self, message: impl Into<String>) -> DeviceError {
        DeviceError::Failed { device: self.name.clone(), message: message.into() }
    }

    /// Runs `make` inside error scopes on a device that is there; `needed` and `held` (bytes) describe an out-of-memory error.
    fn checked<T>(&self, needed: u64, held: u64, make: impl FnOnce() -> T) -> Result<T, DeviceError> {
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
    fn wait(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<(), DeviceError> {
        let polled = self.device.poll(wgpu::PollType::Wait { submission_index, timeout: None });
        self.sound()?;
        polled.map(|_| ()).map_err(|e| self.failed(e.to_string()))
    }

    fn sound(&self) -> Result<(), DeviceError> {
        match &*self.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(message) => Err(self.failed(message.clone())),
        }
    }

    /// The pipeline of a kernel, compiled at its first use on this device.
    fn pipeline(&self, kernel: &'static Kernel) -> Result<Arc<Pipeline>, DeviceError> {
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

/// One dispatch, ready to be encoded.
struct Dispatch {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    offset: u32,
    grid: [u32; 3],
}

pub(crate) struct GpuBackend {
    shared: Arc<Shared>,
    slots: Vec<wgpu::Buffer>,
    planned: u64,
    lists: HashMap<ListId, Vec<Dispatch>>,
    /// The read-back buffer, as large as the largest read so far (at most [`STAGING`]).
    staging: Option<wgpu::Buffer>,
    /// Bytes written since the last submission.
    queued: usize,
    in_flight: VecDeque<wgpu::SubmissionIndex>,
    /// Runs that are not submitted yet.
    pending: Vec<wgpu::CommandBuffer>,
}

impl GpuBackend {
    /// Bind groups and parameters of a list: made at its first run, valid as long as the slots.
    fn prepare(&self, ops: &[Op], program: &Program, plan: &Plan) -> Result<Vec<Dispatch>, DeviceError> {
        let shared = &self.shared;
        let mut parts = Vec::with_capacity(ops.len());
        for op in ops {
            let pipeline = shared.pipeline(op.kernel)?;
            parts.extend(shared.parts(op, program)?.into_iter().map(|part| (op, part, pipeline.clone())));
        }
        let stride = PARAMS.max(u64::from(shared.device.limits().min_uniform_buffer_offset_alignment));
        let mut bytes = vec![0u8; parts.len() * stride as usize];
        for ((_, part, _), line) in parts.iter().zip(bytes.chunks_exact_mut(stride as usize)) {
            line[..PARAMS as usize].copy_from_slice(bytemuck::bytes_of(&part.params));
        }
        shared.checked(self.planned, self.planned, || {
            let uniforms = shared.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("parameters"),
                size: (bytes.len() as u64).max(stride),
                usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            });
            shared.queue.write_buffer(&uniforms, 0, &bytes);
            let dispatch = |(i, (op, part, pipeline)): (usize, (&Op, Part, Arc<Pipeline>))| {
                let bind = |buffer, offset, size| {
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: wgpu::BufferSize::new(size) })
                };
                let mut entries = vec![wgpu::BindGroupEntry { binding: 0, resource: bind(&uniforms, 0, PARAMS) }];
                for (j, (id, (first, words))) in op.buffers.iter().zip(&part.ranges).enumerate() {
                    let buffer = &self.slots[plan.slot_of[id.0 as usize]];
                    let resource = bind(buffer, *first as u64 * 4, *words as u64 * 4);
                    entries.push(wgpu::BindGroupEntry { binding: j as u32 + 1, resource });
                }
                let group = shared.device.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(op.kernel.name),
                    layout: &pipeline.layout,
                    entries: &entries,
                });
                let grid = (pipeline.grid)(&part.params);
                Dispatch { pipeline, group, offset: (i as u64 * stride) as u32, grid }
            };
            parts.into_iter().enumerate().map(dispatch).collect()
        })
    }

    /// Submits the runs that are pending, and waits until few enough submissions are in flight.
    fn submit(&mut self) -> Result<(), DeviceError> {
        self.in_flight.push_back(self.shared.queue.submit(self.pending.drain(..)));
        self.queued = 0;
        while self.in_flight.len() > IN_FLIGHT {
            self.shared.wait(self.in_flight.pop_front())?;
        }
        self.shared.sound()
    }
}

impl Backend for GpuBackend {
    fn write(&mut self, slot: usize, offset: usize, words: &[u32]) -> Result<(), DeviceError> {
        // A write is seen by everything that is submitted after it.
        if !self.pending.is_empty() {
            self.submit()?;
        }
        let mut at = offset as u64 * 4;
        for part in words.chunks(STAGING / 4) {
            if self.queued + part.len() * 4 > STAGING {
                // wgpu keeps a copy of every write until a submission has passed it on.
                self.submit()?;
                self.shared.wait(None)?;
            }
            let bytes: &[u8] = bytemuck::cast_slice(part);
            let shared = self.shared.clone();
            shared.checked(self.planned, self.planned, || shared.queue.write_buffer(&self.slots[slot], at, bytes))?;
            self.queued += bytes.len();
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn read(&mut self, slot: usize, offset: usize, words: usize) -> Result<Vec<u32>, DeviceError> {
        let shared = self.shared.clone();
        let mut out = Vec::with_capacity(words);
        while out.len() < words {
            let count = (words - out.len()).min(STAGING / 4);
            let size = count as u64 * 4;
            if self.staging.as_ref().is_none_or(|b| b.size() < size) {
                self.staging = Some(shared.checked(self.planned, self.planned, || {
                    shared.device.create_buffer(&wgpu::BufferDescriptor {
                        label: Some("read-back"),
                        size,
                        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                        mapped_at_creation: false,
                    })
                })?);
            }
            let Some(staging) = &self.staging else { continue };
            let (done, mapped) = mpsc::channel();
            let pending = &mut self.pending;
            shared.checked(self.planned, self.planned, || {
                let mut encoder = shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                encoder.copy_buffer_to_buffer(&self.slots[slot], (offset + out.len()) as u64 * 4, staging, 0, size);
                shared.queue.submit(pending.drain(..).chain([encoder.finish()]));
                staging.slice(..size).map_async(wgpu::MapMode::Read, move |result| drop(done.send(result)));
            })?;
            self.queued = 0;
            self.in_flight.clear();
            shared.wait(None)?;
            // Another thread's poll may be the one that calls back, a moment after this one returns.
            match mapped.recv_timeout(CALLBACK) {
                Ok(Ok(())) => {}
                _ => return Err(shared.failed("a buffer could not be read back")),
            }
            let view = staging.slice(..size).get_mapped_range().map_err(|e| shared.failed(e.to_string()))?;
            out.extend(view.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
            drop(view);
            staging.unmap();
        }
        Ok(out)
    }

    fn forget(&mut self, list: ListId) {
        self.lists.remove(&list);
    }

    fn run(&mut self, list: ListId, ops: &[Op], program: &Program, plan: &Plan) -> Result<(), DeviceError> {
        if !self.lists.contains_key(&list) {
            let prepared = self.prepare(ops, program, plan)?;
            self.lists.insert(list, prepared);
        }
        let shared = self.shared.clone();
        let dispatches = &self.lists[&list];
        let commands = shared.checked(self.planned, self.planned, || {
            let mut encoder = shared.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
            for d in dispatches {
                pass.set_pipeline(&d.pipeline.pipeline);
                pass.set_bind_group(0, &d.group, &[d.offset]);
                pass.dispatch_workgroups(d.grid[0], d.grid[1], d.grid[2]);
            }
            drop(pass);
            encoder.finish()
        })?;
        self.pending.push(commands);
        if self.pending.len() >= TOGETHER { self.submit() } else { Ok(()) }
    }
}
