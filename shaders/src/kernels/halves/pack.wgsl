// y[i] = float16(x[i]), or float16(y[i] + x[i]) with add = 1; what float16 cannot hold, NaN included, becomes an infinity,
// which the step's gradient norm finds. x [n] float32, y [n] float16, two in a word. One thread per word.

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

// By bits: comparisons may take a NaN for anything.
fn checked_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let magnitude = bits & 0x7fffffffu;
    // 65,520 and above, infinity and NaN.
    let sign = select((bits >> 16u) & 0x8000u, 0u, magnitude > 0x7f800000u);
    return select(half_bits(value), sign | 0x7c00u, magnitude >= 0x477ff000u);
}

fn sum_of(old: u32, i: u32) -> u32 {
    if (i >= p.n) {
        return 0u;
    }
    var value = x[i];
    if (p.add == 1u) {
        if ((old & 0x7c00u) == 0x7c00u) {
            return old;
        }
        value += half_value(old);
    }
    return checked_bits(value);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let word = (wid.y * groups.x + wid.x) * 256u + lane;
    if (2u * word >= p.n) {
        return;
    }
    let old = y[word];
    y[word] = sum_of(old & 0xffffu, 2u * word) | (sum_of(old >> 16u, 2u * word + 1u) << 16u);
}

