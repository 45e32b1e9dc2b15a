// out[i] = the sum of `rounds` products of four signed bytes. Eight equal chains an invocation, which no compiler may
// fold: each starts from its own index, which is taken off at the end.

struct Params {
    n: u32,
    rounds: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> out: array<i32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = 8u * ((wid.y * groups.x + wid.x) * 256u + lane);
    let first = vec4(i32(i), i32(i) + 1, i32(i) + 2, i32(i) + 3);
    var low = first;
    var high = first + vec4(4);
    for (var r = 0u; r < p.rounds; r++) {
        let q = 0x7f40c103u ^ select(0u, 0x01010101u, r % 2u == 1u);
        low += vec4(dot4I8Packed(0x02010201u, q));
        high += vec4(dot4I8Packed(0x02010201u, q));
    }
    low -= first;
    high -= first + vec4(4);
    for (var j = 0u; j < 4u; j++) {
        if (i + j < p.n) {
            out[i + j] = low[j];
        }
        if (i + 4u + j < p.n) {
            out[i + 4u + j] = high[j];
        }
    }
}
