// Rotary position embedding, half rotation (Hugging Face Llama), in place. With h = head_dim / 2:
//   y[i] = x[i] cos_i - x[i + h] sin_i;  y[i + h] = x[i + h] cos_i + x[i] sin_i;  inverse: sin negated.
// x [rows, heads head_dim], pos [rows], table [positions, head_dim] = h cosines, then h sines. One thread per pair.

struct Params {
    rows: u32,
    heads: u32,
    head_dim: u32,
    inverse: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> pos: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let h = p.head_dim / 2u;
    let pair = (wid.y * groups.x + wid.x) * 256u + lane;
    if (pair >= p.rows * p.heads * h) {
        return;
    }
    let i = pair % h;
    let head = pair / h;
    let at = head * p.head_dim + i;
    let angle = pos[head / p.heads] * p.head_dim + i;
    let cosine = table[angle];
    let sine = select(table[angle + h], -table[angle + h], p.inverse == 1u);
    let a = x[at];
    let b = x[at + h];
    x[at] = a * cosine - b * sine;
    x[at + h] = b * cosine + a * sine;
}
