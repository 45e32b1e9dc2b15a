// Gradient of the queries: dq_r = scale sum_j ds_j k_j, with ds_j = p_j (do_r . v_j - delta), p_j = e^(scale q_r . k_j - lse),
// over the keys j <= r mod q_len with mask[b, j] = 1 (kv_len = q_len).
// q, do_, dq [rows, heads head_dim], k, v [sequences, kv_len, kv_heads head_dim], mask [sequences, kv_len],
// stats [rows, heads, 2] = (lse, delta).
// One workgroup per (row, head). Keys go by in blocks of 64: thread j finds ds_j, then thread d adds the block up for the
// dimensions d, d + 64, d + 128, d + 192; keys in ascending order.

// Keys (or rows) of a block, and threads of a workgroup.
const BLOCK: u32 = 64u;

// Params is Shape of mod.rs.
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> mask: array<u32>;
@group(0) @binding(5) var<storage, read> do_: array<f32>;
@group(0) @binding(6) var<storage, read> stats: array<f32>;
@group(0) @binding(7) var<storage, read_write> dq: array<f32>;

var<workgroup> query: array<f32, 256>;
var<workgroup> grad: array<f32, 256>;
var<workgroup> ds: array<f32, BLOCK>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = wid.y * groups.x + wid.x;
    if (i >= p.rows * p.heads) {
        return;
    }
    let r = i / p.heads;
    let g = i % p.heads / (p.heads / p.kv_heads);
    let keys = r / p.q_len * p.kv_len;
    let kv = p.kv_heads * p.head_dim;
    let seen = r % p.q_len + 1u;
    let lse = stats[2u * i];
    let delta = stats[2u * i + 1u];
    for (var d = lane; d < p.head_dim; d += BLOCK) {
        query[d] = q[i * p.head_dim + d];
        grad[d] = do_[i * p.head_dim + d];
    }

    var out = vec4<f32>();
    for (var j0 = 0u; j0 < seen; j0 += BLOCK) {
        workgroupBarrier();
        let j = j0 + lane;
        var value = 0.0;
        if (j < seen && mask[keys + j] != 0u) {
            let at = (keys + j) * kv + g * p.head_dim;
            var score = 0.0;
            var dp = 0.0;
            for (var d = 0u; d < p.head_dim; d++) {
                score = fma(query[d], k[at + d], score);
                dp = fma(grad[d], v[at + d], dp);
            }
            value = exp(min(fma(score, p.scale, -lse), 80.0)) * (dp - delta) * p.scale;
        }
        ds[lane] = value;
        workgroupBarrier();
        let count = min(BLOCK, seen - j0);
        for (var b = 0u; b < count; b++) {
            let at = (keys + j0 + b) * kv + g * p.head_dim + lane;
            if (lane < p.head_dim) {
                out.x = fma(ds[b], k[at], out.x);
            }
            if (lane + 64u < p.head_dim) {
                out.y = fma(ds[b], k[at + 64u], out.y);
            }
            if (lane + 128u < p.head_dim) {
                out.z = fma(ds[b], k[at + 128u], out.z);
            }
            if (lane + 192u < p.head_dim) {
                out.w = fma(ds[b], k[at + 192u], out.w);
            }
        }
    }
    for (var d = lane; d < p.head_dim; d += BLOCK) {
        dq[i * p.head_dim + d] = out[d / BLOCK];
    }
}
