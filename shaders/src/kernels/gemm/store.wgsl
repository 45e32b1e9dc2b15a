// Parameters of all f32 products, and how an output is stored: with symmetric = 1 tiles below the diagonal are left out, and
// each output on or above it is stored twice.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    add: u32,
    symmetric: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

fn store_1(i: u32, j: u32, value: f32) {
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
