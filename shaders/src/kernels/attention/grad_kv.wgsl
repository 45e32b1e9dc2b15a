// Gradients of keys and values: dk_j = scale sum_i ds_ij q_i, dv_j = sum_i p_ij do_i, with p and ds as in grad_q.wgsl, over
// the query heads of KV head g (ascending) and the rows i >= j of the sequence (ascending). A masked key gets zeros.
// q, do_ [rows, heads head_dim], k, v, dk, dv [rows, kv_heads head_dim] (kv_len = q_len), mask [rows],
// stats [rows, heads, 2] = (lse, delta).
// One workgroup per (key row, KV head). Rows go by in blocks of 64: thread i finds p_ij and ds_ij, then thread d adds the
// block up for the dimensions d, d + 64, d + 128, d + 192.

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
@group(0) @binding(7) var<storage, read_write> dk: array<f32>;
@group(0) @binding(8) var<storage, read_write> dv: array<f32>;

var<workgroup> key: array<f32, 256>;
var<workgroup> value: array<f32, 256>;
var<workgroup> ps: array<f32, BLOCK>;
var<workgroup> ds: array<f32, BLOCK>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let flat = wid.y * groups.x + wid.x;
    if (flat >= p.rows * p.kv_heads) {
        return;
    }
    let row = flat / p.kv_heads;
    let g = flat % p.kv_heads;
    let group = p.heads / p.kv_heads;
    let width = p.heads * p.head_dim;
    let j = row % p.q_len;
    let first = row - j;
    for (var d = lane; d < p.head_dim; d += BLOCK) {
        key[d] = k[flat * p.head_dim + d];
        value[d] = v[flat * p.head_dim + d];
    }

    var out_k = vec4<f32>();
    var out_v = vec4<f32>();
    let heads = select(0u, group, mask[row] != 0u);
    for (var n = 0u; n < heads; n++) {
        let h = g * group + n;
        for (var i0 = j; i0 < p.q_len; i0 += BLOCK) {
            workgroupBarrier();
            let i = i0 + lane;
            var weight = 0.0;
            var slope = 0.0;
            if (i < p.q_len) {
                let r = first + i;
                let at = r * width + h * p.head_dim;
                var score = 0.0;
                var dp = 0.0;
                for (var d = 0u; d < p.head_dim; d++) {
                    score = fma(q[at + d], key[d], score);
                    dp = fma(do_[at + d], value[d], dp);
                }
                let s = 2u * (r * p.heads + h);
                weight = exp(min(fma(score, p.scale, -stats[s]), 80.0));
                slope = weight * (dp - stats[s + 1u]) * p.scale;
            }
            ps[lane] = weight;
            ds[lane] = slope;
            workgroupBarrier();
            let count = min(BLOCK, p.q_len - i0);
            for (var b = 0u; b < count; b++) {
                let at = (first + i0 + b) * width + h * p.head_dim + lane;
                if (lane < p.head_dim) {
                    out_k.x = fma(ds[b], q[at], out_k.x);
                    out_v.x = fma(ps[b], do_[at], out_v.x);
                }
                if (lane + 64u < p.head_dim) {
                    out_k.y = fma(ds[b], q[at + 64u], out_k.y);
                    out_v.y = fma(ps[b], do_[at + 64u], out_v.y);
                }
                if (lane + 128u < p.head_dim) {
                    out_k.z = fma(ds[b], q[at + 128u], out_k.z);
                    out_v.z = fma(ps[b], do_[at + 128u], out_v.z);
                }
                if (lane + 192u < p.head_dim) {
                    out_k.w = fma(ds[b], q[at + 192u], out_k.w);
                    out_v.w = fma(ps[b], do_[at + 192u], out_v.w);
                }
            }
        }
    }
    for (var d = lane; d < p.head_dim; d += BLOCK) {
        dk[flat * p.head_dim + d] = out_k[d / BLOCK];
        dv[flat * p.head_dim + d] = out_v[d / BLOCK];
    }
}
