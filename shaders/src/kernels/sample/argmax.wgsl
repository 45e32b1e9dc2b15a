// ids[r] = index of the largest logit of row r, the lowest among equals.  logits [rows, vocab], ids [rows].
// One workgroup per row: lane l looks at l, l + LANES, ..., then a tree over (value, id).

struct Params {
    rows: u32,
    vocab: u32,
    temperature: f32,
    top_p: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> ids: array<u32>;

var<workgroup> values: array<f32, LANES>;
var<workgroup> places: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = wid.y * groups.x + wid.x;
    if (row >= p.rows) {
        return;
    }
    var value = -3.4e38;
    var place = p.vocab;
    for (var j = lane; j < p.vocab; j += LANES) {
        let z = logits[row * p.vocab + j];
        if (z > value || place == p.vocab) {
            value = z;
            place = j;
        }
    }
    values[lane] = value;
    places[lane] = place;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if (lane < half) {
            let z = values[lane + half];
            let j = places[lane + half];
            if (j < p.vocab && (z > values[lane] || (z == values[lane] && j < places[lane]))) {
                values[lane] = z;
                places[lane] = j;
            }
        }
    }
    if (lane == 0u) {
        ids[row] = places[0];
    }
}
