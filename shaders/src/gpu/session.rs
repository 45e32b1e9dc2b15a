//! A program on an adapter: one buffer per planned slot, bind groups made once per list, writes, runs and read-backs.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::shared::{Pipeline, Shared};
use crate::backend::{Backend, DeviceError};
use crate::cut::Part;
use crate::kernel::Params;
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

/// One dispatch, ready to be encoded.
struct Dispatch {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    offset: u32,
    grid: [u32; 3],
}

/// The buffers of a loaded program, and what its lists became.
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
    /// Allocates the slots of a program and compiles its kernels.
    pub(super) fn new(shared: &Arc<Shared>, program: &Program, plan: &Plan) -> Result<Self, DeviceError> {
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
        Ok(Self {
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
                    let first = plan.offset_of[id.0 as usize] + first;
                    let resource = bind(buffer, first as u64 * 4, *words as u64 * 4);
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
