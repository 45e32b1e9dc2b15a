
// C [m, n] (+)= A B: the part that all f32 products share; `load_a`, `load_b` and the bindings come from other pieces.
//
// A workgroup of 16 x 16 threads makes a tile of 64 x 64 outputs (x over n, y over m), 16 of k at a time through
// workgroup memory. Thread (tx, ty) owns rows ty + 16 i and columns tx + 16 j, i, j < 4: its reads of the tiles are
// broadcasts and runs of 16, and its stores are runs of 16. Every output is one chain of multiply-adds over ascending k
// that starts from the old value (add = 1) or 0. With symmetric = 1 tiles below the diagonal are left out, and each
// output on or above it is stored twice.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    add: u32,
    symmetric: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

// [k 16][row or column 64]; 65 instead of 64, so that stores along k fall into different banks.
const STRIDE: u32 = 65u;
var<workgroup> tile_a: array<f32, 1040>;
var<workgroup> tile_b: array<f32, 1040>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    if (p.symmetric == 1u && wid.x < wid.y) {
        return;
    }
    let i0 = wid.y * 64u;
    let j0 = wid.x * 64u;
    let tx = t % 16u;
    let ty = t / 16u;
    var acc: array<vec4<f32>, 4>;
    if (p.add == 1u) {
        for (var i = 0u; i < 4u; i++) {
            acc[i] = vec4(old(i0 + ty + 16u * i, j0 + tx), old(i0 + ty + 16u * i, j0 + tx + 16u),
                old(i0 + ty + 16u * i, j0 + tx + 32u), old(i0 + ty + 16u * i, j0 + tx + 48u));
        }
    }
    for (var k0 = 0u; k0 < p.k; k0 += 16u) {
        for (var part = 0u; part < 4u; part++) {
            let in_a = slot_a(t + 256u * part);
            tile_a[in_a.y * STRIDE + in_a.x] = load_a(i0 + in_a.x, k0 + in_a.y);
            let in_b = slot_b(t + 256u * part);
            tile_b[in_b.y * STRIDE + in_b.x] = load_b(k0 + in_b.y, j0 + in_b.x);
        }
        workgroupBarrier();
        for (var k = 0u; k < 16u; k++) {
            let ka = k * STRIDE + ty;
            let kb = k * STRIDE + tx;
            let row = vec4(tile_b[kb], tile_b[kb + 16u], tile_b[kb + 32u], tile_b[kb + 48u]);
            acc[0] = fma(vec4(tile_a[ka]), row, acc[0]);
            acc[1] = fma(vec4(tile_a[ka + 16u]), row, acc[1]);
            acc[2] = fma(vec4(tile_a[ka + 32u]), row, acc[2]);
            acc[3] = fma(vec4(tile_a[ka + 48u]), row, acc[3]);
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            store(i0 + ty + 16u * i, j0 + tx + 16u * j, acc[i][j]);
        }
    }
}

fn old(i: u32, j: u32) -> f32 {
    if (i < p.m && j < p.n) {
        return c[i * p.n + j];
    }
    return 0.0;
}

fn store(i: u32, j: u32, value: f32) {
    if (i >= p.m || j >= p.n) {
        return;
    }
    if (p.symmetric == 0u) {
        c[i * p.n + j] = value;
    } else if (i <= j) {
        c[i * p.n + j] = value;
        c[j * p.n + i] = value;
    }
}
