// norm = sqrt(sum of partials [n]) * hyper.INV_LOSS_SCALE;  factor = min(1, hyper.CLIP / (norm + 1e-6)) * hyper.INV_LOSS_SCALE;
// skip = norm is not finite.
// clip [4] = (norm, factor, skip, 0), with factor = 0 when skip = 1. One workgroup; tree over lanes.

struct Params {
    n: u32,
}

const LANES: u32 = 256u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read> hyper: array<f32>;
@group(0) @binding(3) var<storage, read_write> clip: array<f32>;

var<workgroup> bad: atomic<u32>;

fn non_finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7f800000u) == 0x7f800000u;
}

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var total = 0.0;
    var seen = 0u;
    for (var i = lane; i < p.n; i += LANES) {
        let value = partials[i];
        if (non_finite(value)) {
            seen = 1u;
        } else {
            total += value;
        }
    }
    atomicOr(&bad, seen);
    let sum = sum_lanes(lane, total);
    if (lane == 0u) {
        let norm = sqrt(sum) * hyper[HYPER_INV_LOSS_SCALE];
        var nan = 0x7fc00000u;
        if (atomicLoad(&bad) != 0u || non_finite(sum) || non_finite(norm)) {
            clip[0] = bitcast<f32>(nan);
            clip[1] = 0.0;
            clip[2] = 1.0;
        } else {
            clip[0] = norm;
            clip[1] = min(1.0, hyper[HYPER_CLIP] / (norm + 1e-6)) * hyper[HYPER_INV_LOSS_SCALE];
            clip[2] = 0.0;
        }
        clip[3] = 0.0;
    }
}
