// A few rows (decoding): the codes are what has to be read, and neighbours read neighbouring words. A workgroup makes 16
// outputs of every row: four teams of 16 lanes, four outputs a team, the lanes' integer sums added as a tree.

const TEAM: u32 = 16u;

var<workgroup> sums: array<vec4<i32>, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let lane = t % TEAM;
    let o = (wid.y * groups.x + wid.x) * 16u + t / TEAM * 4u;
    for (var r = 0u; r < p.rows; r++) {
        sums[t] = four_outputs(r, o, lane, TEAM);
        for (var half = TEAM / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            if (lane < half) {
                sums[t] += sums[t + half];
            }
        }
        if (lane == 0u) {
            store_4(r, o, sums[t]);
        }
        workgroupBarrier();
    }
}
