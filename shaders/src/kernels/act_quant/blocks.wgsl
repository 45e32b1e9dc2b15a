// Activation quantisation by blocks of 64.  x [rows, cols] -> q [rows, words] (signed bytes, element 4 i + j in byte j of word
// i, zero padded), steps [rows, ceil(cols / 64)].
//
//   step = max|x| / 127 of a block,  q = clamp(round_half_even(x / step), -127, 127);  a block of zeros has the step 0
//
// One thread per block.

@group(0) @binding(2) var<storage, read_write> q: array<u32>;
@group(0) @binding(3) var<storage, read_write> steps: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 64u + lane;
    let blocks = (p.cols + 63u) / 64u;
    if (i >= p.rows * blocks) {
        return;
    }
    let base = i / blocks * p.cols;
    let start = 64u * (i % blocks);
    let step = block_step(base, start);
    steps[i] = step;
    let last = min(start / 4u + 16u, p.words);
    for (var w = start / 4u; w < last; w++) {
        var word = 0u;
        for (var j = 0u; j < 4u; j++) {
            if (4u * w + j < p.cols) {
                word |= (bitcast<u32>(block_code(x[base + 4u * w + j], step)) & 0xffu) << (8u * j);
            }
        }
        q[i / blocks * p.words + w] = word;
    }
}
