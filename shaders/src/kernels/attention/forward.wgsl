// Causal + key-padding attention, forward. For row r (sequence b = r / q_len, position pos[r]) and query head h with
// KV head g = h / (heads / kv_heads), over the keys j <= pos[r] with mask[b, j] = 1:
//   s_j = scale q_r . k_j;  o_r = sum_j softmax(s)_j v_j;  stats[r, h, 0] = lse = ln sum_j e^s_j
// A row that sees no key gets o = 0, lse = -Inf.
// q, o [rows, heads head_dim], mask [sequences, kv_len], pos [rows]. Keys and values of [sequences, kv_len, kv_heads,
// head_dim] come through `k_at(row, g, d)` and `v_at` of another piece, row = sequence kv_len + position.
// One workgroup per (row, head). Keys go by in blocks of 64 with a running maximum (online softmax, arXiv 1805.02867):
// thread j scores key j of the block, then thread d adds the block up for the dimensions d, d + 64, d + 128, d + 192.

// Keys (or rows) of a block, and threads of a workgroup.
const BLOCK: u32 = 64u;

// Params is Shape of mod.rs, and the first row of a part (see cut.rs).
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(4) var<storage, read> mask: array<u32>;
@group(0) @binding(5) var<storage, read> pos: array<u32>;
@group(0) @binding(6) var<storage, read_write> o: array<f32>;
@group(0) @binding(7) var<storage, read_write> stats: array<f32>;

const HIDDEN: f32 = -3.0e38;

var<workgroup> query: array<f32, 256>;
var<workgroup> scores: array<f32, BLOCK>;
var<workgroup> weights: array<f32, BLOCK>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let here = wid.y * groups.x + wid.x;
    if (here >= p.rows * p.heads) {
        return;
    }
    let i = here + p.first * p.heads;
    let r = i / p.heads;
    let g = i % p.heads / (p.heads / p.kv_heads);
    let keys = here / p.heads / p.q_len * p.kv_len;
    let shown = r / p.q_len * p.kv_len;
    let seen = min(pos[r] + 1u, p.kv_len);
    for (var d = lane; d < p.head_dim; d += BLOCK) {
        query[d] = q[i * p.head_dim + d];
    }

    var top = HIDDEN;
    var total = 0.0;
    var out = vec4<f32>();
    for (var j0 = 0u; j0 < seen; j0 += BLOCK) {
        workgroupBarrier();
        let j = j0 + lane;
        var score = HIDDEN;
        if (j < seen && mask[shown + j] != 0u) {
            var product = 0.0;
            for (var d = 0u; d < p.head_dim; d++) {
                product = fma(query[d], k_at(keys + j, g, d), product);
            }
            score = product * p.scale;
        }
        scores[lane] = score;
        workgroupBarrier();
        // Every thread finds the same maximum: cheaper than a tree of barriers.
        var new_top = top;
        for (var b = 0u; b < BLOCK; b++) {
            new_top = max(new_top, scores[b]);
        }
        weights[lane] = select(exp(score - new_top), 0.0, score <= HIDDEN);
        workgroupBarrier();
        let shrink = exp(max(top - new_top, -100.0));
        top = new_top;
        total *= shrink;
        out *= shrink;
        let count = min(BLOCK, seen - j0);
        for (var b = 0u; b < count; b++) {
            let weight = weights[b];
            total += weight;
            if (weight > 0.0) {
                let row = keys + j0 + b;
                if (lane < p.head_dim) {
                    out.x = fma(weight, v_at(row, g, lane), out.x);
                }
                if (lane + 64u < p.head_dim) {
                    out.y = fma(weight, v_at(row, g, lane + 64u), out.y);
                }
                if (lane + 128u < p.head_dim) {
                    out.z = fma(weight, v_at(row, g, lane + 128u), out.z);
                }
                if (lane + 192u < p.head_dim) {
                    out.w = fma(weight, v_at(row, g, lane + 192u), out.w);
                }
            }
        }
    }

    let some = total > 0.0;
    let result = out * select(0.0, 1.0 / total, some);
    for (var d = lane; d < p.head_dim; d += BLOCK) {
        o[i * p.head_dim + d] = result[d / BLOCK];
    }
    if (lane == 0u) {
        // A variable, because WGSL rejects a constant expression that is infinite.
        var empty = 0xff800000u;
        stats[2u * i] = select(bitcast<f32>(empty), top + log(total), some);
    }
}
