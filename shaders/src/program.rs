//! A program: operations over planned buffers, in named lists; every shape is known, so the memory is too.

use crate::kernel::{Access, Kernel, Params};

/// A buffer of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u32);

/// A list of operations of a program, run as one submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListId(pub u32);

/// How long a buffer keeps its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// From run to run: parameters, optimizer state, inputs and outputs.
    Persistent,
    /// Within one list, from its first writer to its last reader; memory is shared.
    Transient,
    /// A part of a persistent buffer, from the offset on that a session sets.
    Window(BufferId),
    /// A part of another buffer that stays where it is: the buffer, its first word there.
    Part(BufferId, usize),
}

/// A declared buffer.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Name, for errors and memory reports.
    pub name: String,
    /// Size in 4-byte words.
    pub words: usize,
    /// Lifetime.
    pub life: Life,
}

/// One dispatch.
pub struct Op {
    /// What to run.
    pub kernel: &'static Kernel,
    /// Buffers in binding order.
    pub buffers: Vec<BufferId>,
    /// Parameters.
    pub params: Params,
    /// Operations next to each other with the same number do not touch what another of them writes: a device may run
    /// them at the same time.
    pub group: u32,
}

impl Op {
    /// Buffers that it changes.
    pub fn writes(&self) -> impl Iterator<Item = BufferId> + '_ {
        self.buffers.iter().zip(self.kernel.bindings).filter(|(_, b)| b.access != Access::Read).map(|(b, _)| *b)
    }

    /// Whether neither touches what the other one writes, in a program of these buffers.
    fn is_independent_of(&self, other: &Op, buffers: &[Buffer]) -> bool {
        let touches = |op: &Op, written: BufferId| op.buffers.iter().any(|b| root(buffers, *b) == root(buffers, written));
        !other.writes().any(|b| touches(self, b)) && !self.writes().any(|b| touches(other, b))
    }
}

/// The buffer whose memory a buffer lies in.
fn root(buffers: &[Buffer], id: BufferId) -> BufferId {
    match buffers[id.0 as usize].life {
        Life::Window(of) | Life::Part(of, _) => of,
        _ => id,
    }
}

/// Words between which a binding may begin (256 bytes, WebGPU's default).
const ALIGNMENT: usize = 64;

/// Buffers and operation lists.
#[derive(Default)]
pub struct Program {
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// Lists with their names.
    pub lists: Vec<(String, Vec<Op>)>,
    groups: u32,
    /// The next operation begins a group of its own.
    apart: bool,
}

/// Where the planner put every buffer.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Slot of each buffer.
    pub slot_of: Vec<usize>,
    /// First word of each buffer in its slot: 0 but for windows and parts.
    pub offset_of: Vec<usize>,
    /// Words of each slot.
    pub slots: Vec<usize>,
}

/// First and last use of a transient buffer within its list.
#[derive(Clone, Copy)]
struct Lifetime {
    buffer: usize,
    list: usize,
    first: usize,
    last: usize,
}

impl Lifetime {
    fn meets(&self, other: &Self) -> bool {
        self.list == other.list && self.first <= other.last && other.first <= self.last
    }
}

impl Plan {
    /// Planned memory in bytes.
    pub fn bytes(&self) -> u64 {
        self.slots.iter().map(|w| *w as u64 * 4).sum()
    }
}

impl Program {
    /// Declares a buffer that keeps its content (at least one word).
    pub fn persistent(&mut self, name: impl Into<String>, words: usize) -> BufferId {
        self.declare(name.into(), words, Life::Persistent)
    }
    /// Declares a buffer that lives within one list.
    pub fn transient(&mut self, name: impl Into<String>, words: usize) -> BufferId {
        self.declare(name.into(), words, Life::Transient)
    }
    /// Declares a view of `words` words of a persistent buffer, which begins where a session puts it.
    pub fn window(&mut self, of: BufferId, words: usize) -> BufferId {
        let whole = &self.buffers[of.0 as usize];
        assert!(whole.life == Life::Persistent && words <= whole.words, "a window of {words} words of `{}`", whole.name);
        self.declare(format!("{} (window)", whole.name), words, Life::Window(of))
    }
    /// Declares `words` words of a buffer, from word `first` on: a multiple of 64, where a binding may begin.
    pub fn part(&mut self, of: BufferId, first: usize, words: usize) -> BufferId {
        let whole = &self.buffers[of.0 as usize];
        let whole_buffer = matches!(whole.life, Life::Persistent | Life::Transient);
        let fits = first.is_multiple_of(ALIGNMENT) && first + words <= whole.words;
        assert!(whole_buffer && fits, "words {first} to {} of `{}`", first + words, whole.name);
        self.declare(format!("{} (part)", whole.name), words, Life::Part(of, first))
    }
    fn declare(&mut self, name: String, words: usize, life: Life) -> BufferId {
        self.buffers.push(Buffer { name, words: words.max(1), life });
        BufferId(self.buffers.len() as u32 - 1)
    }
    /// Starts a list.
    pub fn list(&mut self, name: impl Into<String>) -> ListId {
        self.lists.push((name.into(), Vec::new()));
        ListId(self.lists.len() as u32 - 1)
    }
    /// Words of a buffer.
    pub fn words(&self, id: BufferId) -> usize {
        self.buffers[id.0 as usize].words
    }
    /// Appends a dispatch, to the group of those before it where it does not depend on them. Panics on a binding mistake:
    /// that is an error of the program's author, not of data.
    pub fn push<P: bytemuck::Pod>(&mut self, list: ListId, kernel: &'static Kernel, buffers: &[BufferId], params: &P) {
        assert_eq!(buffers.len(), kernel.bindings.len(), "{}: bindings", kernel.name);
        for (i, a) in buffers.iter().enumerate() {
            for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                let writes = kernel.bindings[i].access != Access::Read || kernel.bindings[j].access != Access::Read;
                let same = root(&self.buffers, *a) == root(&self.buffers, *b);
                assert!(!same || !writes, "{}: `{}` aliases `{}`", kernel.name, kernel.bindings[i].name, kernel.bindings[j].name);
            }
        }
        let mut op = Op { kernel, buffers: buffers.to_vec(), params: Params::new(params), group: self.groups };
        let (ops, all) = (&mut self.lists[list.0 as usize].1, &self.buffers);
        match ops.last().map(|last| last.group) {
            Some(group) if !self.apart && ops.iter().rev().take_while(|o| o.group == group).all(|o| op.is_independent_of(o, all)) => {
                op.group = group
            }
            _ => self.groups += 1,
        }
        self.apart = false;
        ops.push(op);
    }

    /// Keeps the next operation out of the group of those before it: what lives until then leaves its memory to what begins
    /// with it.
    pub fn apart(&mut self) {
        self.apart = true;
    }

    /// Interleaves the operations from index `from` of a list on: `chains` equally long sequences that share no buffer
    /// that one of them writes become groups of their first, second, … operations.
    pub fn interleave(&mut self, list: ListId, from: usize, chains: usize) {
        let (ops, all) = (&mut self.lists[list.0 as usize].1, &self.buffers);
        let tail: Vec<Op> = ops.drain(from..).collect();
        assert!(chains > 0 && tail.len().is_multiple_of(chains), "chains of different lengths");
        let length = tail.len() / chains;
        let mut at: Vec<(usize, Op)> = tail.into_iter().enumerate().map(|(i, op)| (i % length, op)).collect();
        at.sort_by_key(|(i, _)| *i);
        for (i, mut op) in at {
            op.group = self.groups + i as u32;
            for other in ops.iter().rev().take_while(|o| o.group == op.group) {
                assert!(op.is_independent_of(other, all), "{} and {} in one group share a buffer", op.kernel.name, other.kernel.name);
            }
            ops.push(op);
        }
        self.groups += length as u32;
    }

    /// Operations of a list so far.
    pub fn len_of(&self, list: ListId) -> usize {
        self.lists[list.0 as usize].1.len()
    }

    /// Assigns slots: persistent buffers their own; transient ones, the largest first, the smallest slot that is free
    /// while they live. Lists run one at a time and share the transient slots.
    pub fn plan(&self) -> Plan {
        let mut slot_of = vec![usize::MAX; self.buffers.len()];
        let mut slots = Vec::new();
        for (i, b) in self.buffers.iter().enumerate() {
            if b.life == Life::Persistent {
                slot_of[i] = slots.len();
                slots.push(b.words);
            }
        }
        let mut lives = self.lives();
        lives.sort_by_key(|l| std::cmp::Reverse(self.buffers[l.buffer].words));
        // Tenants of each shared slot: as buffers come by size, a slot is as large as its first one.
        let first_shared = slots.len();
        let mut tenants: Vec<Vec<Lifetime>> = Vec::new();
        for live in lives {
            let free = tenants.iter().rposition(|t| t.iter().all(|other| !live.meets(other)));
            let slot = free.unwrap_or_else(|| {
                tenants.push(Vec::new());
                slots.push(self.buffers[live.buffer].words);
                tenants.len() - 1
            });
            slot_of[live.buffer] = first_shared + slot;
            tenants[slot].push(live);
        }
        let mut offset_of = vec![0; slot_of.len()];
        for (i, b) in self.buffers.iter().enumerate() {
            match b.life {
                Life::Window(of) => slot_of[i] = slot_of[of.0 as usize],
                Life::Part(of, first) => (slot_of[i], offset_of[i]) = (slot_of[of.0 as usize], first),
                _ if slot_of[i] == usize::MAX => {
                    slot_of[i] = slots.len();
                    slots.push(b.words);
                }
                _ => {}
            }
        }
        Plan { offset_of, slot_of, slots }
    }

    /// When each transient buffer is in use. Operations of a group run at the same time.
    fn lives(&self) -> Vec<Lifetime> {
        let mut all: Vec<Lifetime> = Vec::new();
        let mut at: Vec<Option<usize>> = vec![None; self.buffers.len()];
        for (list, (name, ops)) in self.lists.iter().enumerate() {
            let groups = ops.chunk_by(|a, b| a.group == b.group);
            for (time, op) in groups.enumerate().flat_map(|(t, group)| group.iter().map(move |op| (t, op))) {
                for (b, binding) in op.buffers.iter().zip(op.kernel.bindings) {
                    let buffer = root(&self.buffers, *b).0 as usize;
                    let declared = &self.buffers[buffer];
                    match at[buffer] {
                        _ if declared.life != Life::Transient => {}
                        Some(i) => {
                            assert!(all[i].list == list, "transient `{}` is used in two lists", declared.name);
                            all[i].last = time;
                        }
                        None => {
                            assert!(binding.access != Access::Read, "{name}: `{}` is read before it is written", declared.name);
                            at[buffer] = Some(all.len());
                            all.push(Lifetime { buffer, list, first: time, last: time });
                        }
                    }
                }
            }
        }
        all
    }

    /// Every kernel that some list uses, by name, without repetition.
    pub fn kernels(&self) -> Vec<&'static Kernel> {
        let mut all: Vec<&'static Kernel> = self.lists.iter().flat_map(|(_, ops)| ops.iter().map(|o| o.kernel)).collect();
        all.sort_by_key(|k| k.name);
        all.dedup_by_key(|k| k.name);
        all
    }
}
