// Parameters of all f32 products, and how an output is stored: with symmetric = 1 tiles below the diagonal are left out, and
// each output on or above it is stored twice.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    add: u32,
    symmetric: u32,
    // Of a part of a product (see cut.rs): distance of A's rows and their first element, the same of C. Distance 0: the
    // shape's own.
    lda: u32,
    a0: u32,
    ldc: u32,
    c0: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

fn c_at(i: u32, j: u32) -> u32 {
    return i * select(p.ldc, p.n, p.ldc == 0u) + p.c0 + j;
}

fn store_1(i: u32, j: u32, value: f32) {
    if (i >= p.m || j >= p.n) {
        return;
    }
    if (p.symmetric == 0u) {
        c[c_at(i, j)] = value;
    } else if (i <= j) {
        c[c_at(i, j)] = value;
        c[c_at(j, i)] = value;
    }
}
