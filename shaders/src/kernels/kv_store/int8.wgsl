// For each row and head head_dim / 4 words of signed bytes (element 4 i + j in byte j of word i), then their step:
//   step = max(max|x|, 1e-5) / 127,  q = round_half_even(x / step).  x [rows, cols], pos [rows]. One thread per head.

@group(0) @binding(3) var<storage, read_write> cache: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 64u + lane;
    let heads = p.cols / p.head_dim;
    if (i >= p.rows * heads) {
        return;
    }
    let r = i / heads;
    let base = i * p.head_dim + p.first * p.cols;
    var largest = 0.0;
    for (var d = 0u; d < p.head_dim; d++) {
        largest = max(largest, abs(x[base + d]));
    }
    let step = divide(max(largest, 1e-5), 127.0);
    let words = p.head_dim / 4u;
    let at = (place(r) * heads + i % heads) * (words + 1u);
    for (var w = 0u; w < words; w++) {
        var word = 0u;
        for (var j = 0u; j < 4u; j++) {
            let code = i32(clamp(round(divide(x[base + 4u * w + j], step)), -127.0, 127.0));
            word |= (bitcast<u32>(code) & 0xffu) << (8u * j);
        }
        cache[at + w] = word;
    }
    cache[at + words] = bitcast<u32>(step);
}
