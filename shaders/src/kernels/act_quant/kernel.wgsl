// Activation quantisation per token. x [rows, cols] -> q [rows, words] (signed bytes, element 4i + j in byte j of
// word i, zero padded), scales [rows] = (bits of the step, sum of the row's codes).
//
//   step = max(max|x|, 1e-5) / qmax,  q = clamp(round_half_even(x / step), -qmax, qmax)
//
// One workgroup per row: a pass for the largest value (tree over lanes), a pass that packs whole words.

struct Params {
    rows: u32,
    cols: u32,
    words: u32,
}

const LANES: u32 = 64u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> hyper: array<f32>;
@group(0) @binding(3) var<storage, read_write> q: array<u32>;
@group(0) @binding(4) var<storage, read_write> scales: array<vec2<u32>>;

// Integer addition has no rounding: any order gives the same sum.
var<workgroup> row_sum: atomic<i32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    let base = row * p.cols;
    let qmax = hyper[HYPER_QMAX];

    var largest = 0.0;
    for (var c = lane; c < p.cols; c += LANES) {
        largest = max(largest, abs(x[base + c]));
    }
    let step = divide(max(max_lanes(lane, largest), 1e-5), qmax);

    var total = 0;
    for (var i = lane; i < p.words; i += LANES) {
        var word = 0u;
        for (var j = 0u; j < 4u; j++) {
            let c = 4u * i + j;
            if (c < p.cols) {
                let code = i32(clamp(round(divide(x[base + c], step)), -qmax, qmax));
                total += code;
                word |= (bitcast<u32>(code) & 0xffu) << (8u * j);
            }
        }
        q[row * p.words + i] = word;
    }
    atomicAdd(&row_sum, total);
    workgroupBarrier();
    if (lane == 0u) {
        scales[row] = vec2(bitcast<u32>(step), bitcast<u32>(atomicLoad(&row_sum)));
    }
}
