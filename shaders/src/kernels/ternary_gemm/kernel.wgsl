// Packed ternary product, exact in i32:  acc = sum_k q[r, k] code[o, k] - qsum[r];
//   y[r, o] (+)= (f32(acc) step_size[r]) scale[o]
// q [rows, 4 ceil(cols / 16)]: signed bytes, element 4 i + j in byte j of word i. codes [outs, ceil(cols / 16)]: 2 bits
// each, so that (word >> 2 p) & 0x03030303 are the codes of the four activations in word 4 i + p. qsum takes the codes'
// offset of 1 back. y [rows, outs].
//
// A workgroup of 64 threads makes 8 rows x 32 outputs; a thread makes 4 rows of one output, so that a code word is
// unpacked once for four rows and neighbouring threads share the activations. No workgroup memory: the planes and the
// activations are registers, and the caches do the sharing.

struct Params {
    rows: u32,
    outs: u32,
    cols: u32,
    add: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<u32>;
@group(0) @binding(2) var<storage, read> step_size: array<f32>;
@group(0) @binding(3) var<storage, read> qsum: array<i32>;
@group(0) @binding(4) var<storage, read> codes: array<u32>;
@group(0) @binding(5) var<storage, read> scale: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

const PLANE: u32 = 0x03030303u;

fn dot_16(at: u32, c0: u32, c1: u32, c2: u32, c3: u32) -> i32 {
    return dot4I8Packed(q[at], c0) + dot4I8Packed(q[at + 1u], c1) + dot4I8Packed(q[at + 2u], c2) + dot4I8Packed(q[at + 3u], c3);
}

fn store(r: u32, o: u32, sum: i32) {
    if (r < p.rows) {
        let value = (f32(sum - qsum[r]) * step_size[r]) * scale[o];
        let at = r * p.outs + o;
        y[at] = select(value, y[at] + value, p.add == 1u);
    }
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let o = wid.x * 32u + t % 32u;
    let r = wid.y * 8u + t / 32u * 4u;
    if (o >= p.outs || r >= p.rows) {
        return;
    }
    let words = (p.cols + 15u) / 16u;
    // Rows past the end read the last row again; their sums are not stored.
    let last = p.rows - 1u;
    let row_0 = r * words * 4u;
    let row_1 = min(r + 1u, last) * words * 4u;
    let row_2 = min(r + 2u, last) * words * 4u;
    let row_3 = min(r + 3u, last) * words * 4u;
    var acc = vec4<i32>();
    for (var i = 0u; i < words; i++) {
        let word = codes[o * words + i];
        let c0 = word & PLANE;
        let c1 = (word >> 2u) & PLANE;
        let c2 = (word >> 4u) & PLANE;
        let c3 = (word >> 6u) & PLANE;
        let at = 4u * i;
        acc += vec4(dot_16(row_0 + at, c0, c1, c2, c3), dot_16(row_1 + at, c0, c1, c2, c3),
            dot_16(row_2 + at, c0, c1, c2, c3), dot_16(row_3 + at, c0, c1, c2, c3));
    }
    store(r, o, acc.x);
    store(r + 1u, o, acc.y);
    store(r + 2u, o, acc.z);
    store(r + 3u, o, acc.w);
}
