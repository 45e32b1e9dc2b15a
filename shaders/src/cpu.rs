//! The CPU backend: interprets a program with the twins, on a pool of its own.

use std::sync::Arc;

use rayon::prelude::*;

use crate::backend::{Backend, DeviceError, DeviceInfo, DeviceKind};
use crate::kernel::{Access, Buf, Bufs};
use crate::program::{ListId, Op, Plan, Program};

/// The twins on a pool of threads; results do not depend on its size.
pub struct CpuDevice {
    pool: Arc<rayon::ThreadPool>,
}

impl CpuDevice {
    /// A pool of `threads` (0: all cores).
    pub fn new(threads: usize) -> Self {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap_or_else(|_| {
            // Threads cannot be made (a limit of the machine): compute on the calling one.
            rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().expect("the current thread exists")
        });
        Self { pool: Arc::new(pool) }
    }
    /// Name with thread count.
    pub fn name(&self) -> String {
        format!("cpu ({} threads, {})", self.pool.current_num_threads(), crate::simd::level())
    }
    pub(crate) fn allocate(&self, plan: &Plan) -> CpuBackend {
        CpuBackend { pool: self.pool.clone(), slots: plan.slots.iter().map(|w| Slot::zeroed(*w)).collect() }
    }
}

/// What `flow devices` prints about the CPU.
pub fn info() -> DeviceInfo {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    DeviceInfo {
        name: cpu_model(),
        kind: DeviceKind::Cpu,
        backend: "cpu".into(),
        driver: crate::simd::level().into(),
        limits: vec![
            ("threads".into(), cores.to_string()),
            ("free memory".into(), free_memory().map_or("unknown".into(), |b| format!("{} MiB", b >> 20))),
        ],
    }
}

/// Model name of the CPU, for the keys of measured ports.
pub fn cpu_model() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|t| t.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(':').nth(1)).map(|s| s.trim().to_owned()))
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Memory that can be taken without swapping, in bytes (Linux: MemAvailable).
pub fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

pub(crate) struct CpuBackend {
    pool: Arc<rayon::ThreadPool>,
    slots: Vec<Slot>,
}

/// Words from the start of a cache line on, so that no vector of them crosses one.
#[derive(Default)]
struct Slot {
    lines: Vec<Line>,
    words: usize,
}

#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u32; 16]);

impl Slot {
    fn zeroed(words: usize) -> Self {
        Self { lines: bytemuck::zeroed_vec(words.div_ceil(16)), words }
    }
}

impl std::ops::Deref for Slot {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        &bytemuck::cast_slice(&self.lines)[..self.words]
    }
}

impl std::ops::DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.words]
    }
}

impl Backend for CpuBackend {
    fn write(&mut self, slot: usize, offset: usize, words: &[u32]) -> Result<(), DeviceError> {
        self.slots[slot][offset..offset + words.len()].copy_from_slice(words);
        Ok(())
    }
    fn read(&mut self, slot: usize, offset: usize, words: usize) -> Result<Vec<u32>, DeviceError> {
        Ok(self.slots[slot][offset..offset + words].to_vec())
    }
    /// Nothing is prepared: an operation's parameters are read when it runs.
    fn forget(&mut self, _list: ListId) {}
    fn run(&mut self, _list: ListId, ops: &[Op], program: &Program, plan: &Plan) -> Result<(), DeviceError> {
        let slots = &mut self.slots;
        self.pool.install(|| {
            for group in ops.chunk_by(|a, b| a.group == b.group) {
                dispatch(group, program, plan, slots);
            }
        });
        Ok(())
    }
}

/// Words that operations of a group must have to run at the same time.
const SMALL: usize = 8192;

/// Words of an operation: of its largest input or its largest output, whichever is smaller (one row of a cache is stored, one
/// row of a matrix comes out).
fn size(op: &Op, program: &Program) -> usize {
    let largest = |written: bool| {
        let some = op.buffers.iter().zip(op.kernel.bindings).filter(|(_, b)| (b.access != Access::Read) == written);
        some.map(|(id, _)| program.words(*id)).max()
    };
    largest(true).into_iter().chain(largest(false)).min().unwrap_or(0)
}

/// Runs the twins of independent operations at the same time. Written slots are taken out of the table for the time of
/// the call, so that no borrow overlaps; operations of a group write different slots and read none of them.
fn dispatch(group: &[Op], program: &Program, plan: &Plan, slots: &mut [Slot]) {
    let slot = |op: &Op, i: usize| plan.slot_of[op.buffers[i].0 as usize];
    let mut taken: Vec<Vec<Option<Slot>>> = group
        .iter()
        .map(|op| {
            let written =
                |(i, b): (usize, &crate::kernel::Binding)| (b.access != Access::Read).then(|| std::mem::take(&mut slots[slot(op, i)]));
            op.kernel.bindings.iter().enumerate().map(written).collect()
        })
        .collect();
    let shared: &[Slot] = slots;
    let run = |op: &Op, taken: &mut Vec<Option<Slot>>| {
        let bufs = taken
            .iter_mut()
            .enumerate()
            .map(|(i, t)| {
                let first = plan.offset_of[op.buffers[i].0 as usize];
                let range = first..first + program.words(op.buffers[i]);
                match t {
                    Some(v) => Buf::W(&mut v[range]),
                    None => Buf::R(&shared[slot(op, i)][range]),
                }
            })
            .collect();
        (op.kernel.cpu)(&op.params, Bufs(bufs));
    };
    match (group, &mut taken[..]) {
        ([op], [taken]) => run(op, taken),
        // Little work is not worth waking a thread for each of them: those inside an operation are enough.
        _ if group.iter().map(|op| size(op, program)).sum::<usize>() < SMALL => {
            group.iter().zip(&mut taken).for_each(|(op, taken)| run(op, taken))
        }
        _ => group.par_iter().zip(&mut taken).for_each(|(op, taken)| run(op, taken)),
    }
    for (op, taken) in group.iter().zip(taken) {
        for (i, t) in taken.into_iter().enumerate() {
            if let Some(v) = t {
                slots[slot(op, i)] = v;
            }
        }
    }
}

/// What the twins hold beside the program's buffers: that of the operations which run at the same time, where it is largest.
pub(crate) fn scratch_bytes(program: &Program) -> u64 {
    let groups = program.lists.iter().flat_map(|(_, ops)| ops.chunk_by(|a, b| a.group == b.group));
    groups.map(|group| group.iter().map(|op| (op.kernel.scratch)(&op.params)).sum()).max().unwrap_or(0)
}
