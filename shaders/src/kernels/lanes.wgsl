// Reductions over the LANES invocations of a workgroup, as a binary tree: one fixed order for a given LANES.
// The kernel declares `const LANES` (a power of two). All invocations must call; all get the same result.

var<workgroup> lanes: array<f32, LANES>;

fn sum_lanes(lane: u32, value: f32) -> f32 {
    lanes[lane] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) {
            lanes[lane] += lanes[lane + half];
        }
    }
    // Holds a barrier before and after the load, so that the array can be used again at once.
    return workgroupUniformLoad(&lanes[0]);
}

fn max_lanes(lane: u32, value: f32) -> f32 {
    lanes[lane] = value;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) {
            lanes[lane] = max(lanes[lane], lanes[lane + half]);
        }
    }
    return workgroupUniformLoad(&lanes[0]);
}
