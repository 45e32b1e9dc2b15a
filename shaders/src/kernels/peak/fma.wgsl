// out[i] = rounds times x <- fma(x, 0.999, 0.001), from x = i / n. Eight neighbouring chains an invocation.

struct Params {
    n: u32,
    rounds: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let i = 8u * ((wid.y * groups.x + wid.x) * 256u + lane);
    let first = vec4(f32(i), f32(i + 1u), f32(i + 2u), f32(i + 3u)) / f32(p.n);
    var low = first;
    var high = first + vec4(4.0 / f32(p.n));
    for (var r = 0u; r < p.rounds; r++) {
        low = fma(low, vec4(0.999), vec4(0.001));
        high = fma(high, vec4(0.999), vec4(0.001));
    }
    store(i, low);
    store(i + 4u, high);
}

fn store(i: u32, x: vec4<f32>) {
    for (var j = 0u; j < 4u; j++) {
        if (i + j < p.n) {
            out[i + j] = x[j];
        }
    }
}
