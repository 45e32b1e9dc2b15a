// dup = dy act(gate);  dgate = dy up act'(gate), with act as in forward.wgsl:
//   SiLU: act' = s (1 + x (1 - s)), s = 1 / (1 + e^-x);  ReLU^2: act' = 2 max(x, 0). All [n]; one thread per element.

struct Params {
    n: u32,
    act: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dgate: array<f32>;
@group(0) @binding(5) var<storage, read_write> dup: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = (wid.y * groups.x + wid.x) * 256u + lane;
    if (i >= p.n) {
        return;
    }
    let x = gate[i];
    if (p.act == 0u) {
        let s = 1.0 / (1.0 + exp(min(-x, 80.0)));
        dup[i] = dy[i] * (x * s);
        dgate[i] = dy[i] * up[i] * (s * (1.0 + x * (1.0 - s)));
    } else {
        let r = max(x, 0.0);
        dup[i] = dy[i] * (r * r);
        dgate[i] = dy[i] * up[i] * (2.0 * r);
    }
}
