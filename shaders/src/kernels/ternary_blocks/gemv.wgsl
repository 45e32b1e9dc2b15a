
// A few rows (decoding): a workgroup makes 4 outputs of every row, 16 lanes for each; lane l adds words l, l + 16, ... of a
// row, neighbours read neighbouring words, and the lanes' sums are added as a tree.

const TEAM: u32 = 16u;

var<workgroup> sums: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let lane = t % TEAM;
    let o = (wid.y * groups.x + wid.x) * 4u + t / TEAM;
    let row_of_codes = min(o, p.outs - 1u);
    let words = (p.cols + 15u) / 16u;
    for (var r = 0u; r < p.rows; r++) {
        var sum = 0.0;
        for (var w = lane; w < words; w += TEAM) {
            let a = q[r * words + w];
            let d = dot_16(a, planes(codes[row_of_codes * words + w])) - sum_16(a);
            sum = fma(f32(d) * step_at(r, w / 4u), scale_at(row_of_codes, w / 4u), sum);
        }
        sums[t] = sum;
        for (var half = TEAM / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if (lane < half) {
                sums[t] += sums[t + half];
            }
        }
        if (lane == 0u) {
            store_1(r, o, sums[t]);
        }
        workgroupBarrier();
    }
}
