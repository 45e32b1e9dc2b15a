// C [m, n] (+)= A B^T for the few rows of a decoding step: a workgroup for each column, its lanes along k, so that neighbours
// read neighbours. The sum of an output does not depend on how many rows there are.

const LANES: u32 = 64u;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let j = wid.y * groups.x + wid.x;
    if (j >= p.n) {
        return;
    }
    for (var i = 0u; i < p.m; i++) {
        var sum = 0.0;
        for (var k = lane; k < p.k; k += LANES) {
            sum = fma(load_a(i, k), load_b(k, j), sum);
        }
        let total = sum_lanes(lane, sum);
        if (lane == 0u) {
            store_1(i, j, select(total, c[c_at(i, j)] + total, p.add == 1u));
        }
    }
}

