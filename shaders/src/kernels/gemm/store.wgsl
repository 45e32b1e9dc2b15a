// How an output is stored: with symmetric = 1 tiles below the diagonal are left out, and each output on or above it is stored
// twice.

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
