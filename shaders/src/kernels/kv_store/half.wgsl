// cache[r / q_len, pos[r], c] = float16(x[r, c]), two in a word, the even column low.  x [rows, cols], pos [rows]. One
// thread per word.

@group(0) @binding(3) var<storage, read_write> cache: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    let words = p.cols / 2u;
    if (i >= p.rows * words) {
        return;
    }
    let r = i / words;
    let at = 2u * i + p.first * p.cols;
    cache[place(r) * words + i % words] = half_bits(x[at]) | (half_bits(x[at + 1u]) << 16u);
}
