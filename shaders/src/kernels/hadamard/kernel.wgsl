// Walsh-Hadamard transform of each block of x, in place: log2(block) rounds of sums and differences, as in the twin.
// One workgroup per block; lane l owns a pair in every round. block is a power of two, at most 256.

struct Params {
    blocks: u32,
    block: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

var<workgroup> values: array<f32, 256>;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let which = wid.y * groups.x + wid.x;
    if (which >= p.blocks) {
        return;
    }
    let base = which * p.block;
    for (var i = lane; i < p.block; i += 128u) {
        values[i] = x[base + i];
    }
    for (var half = 1u; half < p.block; half *= 2u) {
        workgroupBarrier();
        if (2u * lane < p.block) {
            let at = lane / half * 2u * half + lane % half;
            let a = values[at];
            let b = values[at + half];
            values[at] = a + b;
            values[at + half] = a - b;
        }
    }
    workgroupBarrier();
    for (var i = lane; i < p.block; i += 128u) {
        x[base + i] = values[i] * p.scale;
    }
}
