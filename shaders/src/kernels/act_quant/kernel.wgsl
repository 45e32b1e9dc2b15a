// Activation quantisation per token. x [rows, cols] -> q [rows, words] (signed bytes, element 4i + j in byte j of
// word i, zero padded), scales [rows] = (bits of the step, sum of the row's codes).
//
//   mode 0 absmax:  step = max(max|x|, 1e-5) / qmax,  q = clamp(round_half_even(x / step), -qmax, qmax)
//   mode 1 absmean: beta = mean|x|,  q = clamp(round_half_even(sqrt(7) x / (beta + 1e-5)), -8, 7),  step = beta / sqrt(7)
//   mode 2 clip:    step = clip / qmax,  q as in mode 0
//
// One workgroup per row: a pass for the statistic (tree over lanes), a pass that packs whole words.

struct Params {
    rows: u32,
    cols: u32,
    words: u32,
    mode: u32,
    clip: f32,
}

const LANES: u32 = 64u;
const SQRT_7: f32 = 2.6457513;

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

    var low = -qmax;
    var high = qmax;
    var divisor = divide(p.clip, qmax);
    var step = divisor;
    if (p.mode == 0u) {
        var largest = 0.0;
        for (var c = lane; c < p.cols; c += LANES) {
            largest = max(largest, abs(x[base + c]));
        }
        divisor = divide(max(max_lanes(lane, largest), 1e-5), qmax);
        step = divisor;
    } else if (p.mode == 1u) {
        var total = 0.0;
        for (var c = lane; c < p.cols; c += LANES) {
            total += abs(x[base + c]);
        }
        let beta = divide(sum_lanes(lane, total), f32(p.cols));
        low = -8.0;
        high = 7.0;
        divisor = divide(beta + 1e-5, SQRT_7);
        step = divide(beta, SQRT_7);
    }

    var total = 0;
    for (var i = lane; i < p.words; i += LANES) {
        var word = 0u;
        for (var j = 0u; j < 4u; j++) {
            let c = 4u * i + j;
            if (c < p.cols) {
                let code = i32(clamp(round(divide(x[base + c], divisor)), low, high));
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
