// y[i] = x[i].  x [n] float16, two in a word, y [n] float32. One thread per word.

@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn value_of(h: u32) -> f32 {
    // A variable, because WGSL rejects a constant expression that is not finite.
    var infinity = 0x7f800000u | ((h & 0x8000u) << 16u);
    return select(half_value(h), bitcast<f32>(infinity), (h & 0x7c00u) == 0x7c00u);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let word = (wid.y * groups.x + wid.x) * 256u + lane;
    let i = 2u * word;
    if (i >= p.n) {
        return;
    }
    let pair = x[word];
    y[i] = value_of(pair & 0xffffu);
    if (i + 1u < p.n) {
        y[i + 1u] = value_of(pair >> 16u);
    }
}

