
// C [m, n] (+)= A B: the part that all f32 products share; `load_a`, `load_b` and the bindings come from other pieces.
//
// A workgroup of 16 x 16 threads makes a tile of 64 x 64 outputs (x over n, y over m), DEPTH (a multiple of 16) of k at a
// time through workgroup memory. Thread (tx, ty) owns the 4 x 4 outputs from row 4 ty and column 4 tx, in named registers:
// an array of them would live in memory on some drivers. Every output is one chain of multiply-adds over ascending k that
// starts from the old value (add = 1) or 0.

// [k DEPTH][group of four rows or columns 16]; 17 instead of 16, so that stores along k fall into different banks.
const STRIDE: u32 = 17u;
var<workgroup> tile_a: array<vec4<f32>, DEPTH * STRIDE>;
var<workgroup> tile_b: array<vec4<f32>, DEPTH * STRIDE>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    if (p.symmetric == 1u && wid.x < wid.y) {
        return;
    }
    let i0 = wid.y * 64u;
    let j0 = wid.x * 64u;
    let tx = t % 16u;
    let ty = t / 16u;
    let i = i0 + 4u * ty;
    let j = j0 + 4u * tx;
    var row_0 = old(i, j);
    var row_1 = old(i + 1u, j);
    var row_2 = old(i + 2u, j);
    var row_3 = old(i + 3u, j);

    let slot_of_a = slot_a(t);
    let slot_of_b = slot_b(t);
    let from_a = i0 + 4u * slot_of_a.x;
    let from_b = j0 + 4u * slot_of_b.x;
    for (var k0 = 0u; k0 < p.k; k0 += DEPTH) {
        for (var part = 0u; part < DEPTH; part += 16u) {
            let at_a = part + slot_of_a.y;
            let ka = k0 + at_a;
            tile_a[at_a * STRIDE + slot_of_a.x] =
                vec4(load_a(from_a, ka), load_a(from_a + 1u, ka), load_a(from_a + 2u, ka), load_a(from_a + 3u, ka));
            let at_b = part + slot_of_b.y;
            let kb = k0 + at_b;
            tile_b[at_b * STRIDE + slot_of_b.x] =
                vec4(load_b(kb, from_b), load_b(kb, from_b + 1u), load_b(kb, from_b + 2u), load_b(kb, from_b + 3u));
        }
        workgroupBarrier();
        for (var k = 0u; k < DEPTH; k++) {
            let a = tile_a[k * STRIDE + ty];
            let b = tile_b[k * STRIDE + tx];
            row_0 = fma(vec4(a.x), b, row_0);
            row_1 = fma(vec4(a.y), b, row_1);
            row_2 = fma(vec4(a.z), b, row_2);
            row_3 = fma(vec4(a.w), b, row_3);
        }
        workgroupBarrier();
    }
    store(i, j, row_0);
    store(i + 1u, j, row_1);
    store(i + 2u, j, row_2);
    store(i + 3u, j, row_3);
}

// Where the four chains from column j of row i start.
fn old(i: u32, j: u32) -> vec4<f32> {
    var values = vec4<f32>();
    if (p.add == 1u && i < p.m) {
        let at = c_at(i, j);
        if (j < p.n) {
            values.x = c[at];
        }
        if (j + 1u < p.n) {
            values.y = c[at + 1u];
        }
        if (j + 2u < p.n) {
            values.z = c[at + 2u];
        }
        if (j + 3u < p.n) {
            values.w = c[at + 3u];
        }
    }
    return values;
}

fn store(i: u32, j: u32, values: vec4<f32>) {
    store_1(i, j, values.x);
    store_1(i, j + 1u, values.y);
    store_1(i, j + 2u, values.z);
    store_1(i, j + 3u, values.w);
}
