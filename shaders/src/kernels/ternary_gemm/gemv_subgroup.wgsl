// As gemv.wgsl, with a subgroup as the team: its lanes add their integer sums in one operation, without workgroup memory.
// (naga takes these without `enable subgroups`, and refuses the directive.)

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) wid: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_id) team: u32,
    @builtin(num_subgroups) teams: u32,
) {
    for (var first = team * 4u; first < 16u; first += teams * 4u) {
        let o = (wid.y * groups.x + wid.x) * 16u + first;
        for (var r = 0u; r < p.rows; r++) {
            let sums = subgroupAdd(four_outputs(r, o, lane, size));
            if (lane == 0u) {
                store_4(r, o, sums);
            }
        }
    }
}
