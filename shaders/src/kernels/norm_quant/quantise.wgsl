// The part that both kernels share: one workgroup per row. Lanes add squares as in rmsnorm/forward.wgsl, and own words
// lane, lane + LANES, ... of the row's codes. `value(at)` is what is normed, made by `prepare(at)`: they and the bindings
// come from other pieces.
//
//   r = 1 / sqrt(mean_c v[c]^2 + eps),  n[c] = v[c] r g[c]
//   step = max(max|n|, 1e-5) / qmax,  q = clamp(round_half_even(n / step), -qmax, qmax)
//
// q [rows, words]: signed bytes, element 4 i + j in byte j of word i, zero padded. scales [rows] = (bits of step, sum of q).

struct Params {
    rows: u32,
    cols: u32,
    words: u32,
    eps: f32,
    act: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

const LANES: u32 = 64u;

// Integer addition has no rounding: any order gives the same sum.
var<workgroup> row_sum: atomic<i32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    let base = row * p.cols;
    var squares = 0.0;
    for (var c = lane; c < p.cols; c += LANES) {
        let v = prepare(base + c);
        squares += v * v;
    }
    // What one lane prepared others read.
    storageBarrier();
    let r = 1.0 / sqrt(sum_lanes(lane, squares) / f32(p.cols) + p.eps);

    var largest = 0.0;
    for (var i = lane; i < p.words; i += LANES) {
        for (var c = 4u * i; c < min(4u * i + 4u, p.cols); c++) {
            largest = max(largest, abs(value(base + c) * r * g[c]));
        }
    }
    let qmax = hyper[HYPER_QMAX];
    let step = divide(max(max_lanes(lane, largest), 1e-5), qmax);

    var total = 0;
    for (var i = lane; i < p.words; i += LANES) {
        var word = 0u;
        for (var c = 4u * i; c < min(4u * i + 4u, p.cols); c++) {
            let code = i32(clamp(round(divide(value(base + c) * r * g[c], step)), -qmax, qmax));
            total += code;
            word |= (bitcast<u32>(code) & 0xffu) << (8u * (c % 4u));
        }
        q[row * p.words + i] = word;
    }
    atomicAdd(&row_sum, total);
    workgroupBarrier();
    if (lane == 0u) {
        rstd[row] = r;
        scales[row] = vec2(bitcast<u32>(step), bitcast<u32>(atomicLoad(&row_sum)));
    }
}
