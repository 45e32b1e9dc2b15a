// C [m, n] (+)= A B for software adapters, where each load is a loop over the lanes of a vector and costs more than the
// arithmetic on it: no workgroup memory, and 8 x 16 outputs a thread from 24 loads. A workgroup of 8 threads (one vector)
// makes 8 rows x 128 columns; a thread owns columns that are 8 apart. Chains as in the tiles of other adapters: ascending
// k, from the old value (add = 1) or 0.

// Eight rows of a column.
struct Eight {
    low: vec4<f32>,
    high: vec4<f32>,
}

fn step(sums: Eight, a: Eight, b: f32) -> Eight {
    return Eight(fma(a.low, vec4(b), sums.low), fma(a.high, vec4(b), sums.high));
}

// Rows past the end read the last one again; their sums are not stored.
fn row(i: u32) -> u32 {
    return min(i, p.m - 1u);
}

fn column(j: u32) -> u32 {
    return min(j, p.n - 1u);
}

fn eight_a(i: u32, k: u32) -> Eight {
    return Eight(
        vec4(load_a(row(i), k), load_a(row(i + 1u), k), load_a(row(i + 2u), k), load_a(row(i + 3u), k)),
        vec4(load_a(row(i + 4u), k), load_a(row(i + 5u), k), load_a(row(i + 6u), k), load_a(row(i + 7u), k)),
    );
}

fn old_1(i: u32, j: u32) -> f32 {
    return c[c_at(row(i), column(j))];
}

fn old(i: u32, j: u32) -> Eight {
    if (p.add == 0u) {
        return Eight();
    }
    return Eight(
        vec4(old_1(i, j), old_1(i + 1u, j), old_1(i + 2u, j), old_1(i + 3u, j)),
        vec4(old_1(i + 4u, j), old_1(i + 5u, j), old_1(i + 6u, j), old_1(i + 7u, j)),
    );
}

fn store(i: u32, j: u32, sums: Eight) {
    store_1(i, j, sums.low.x);
    store_1(i + 1u, j, sums.low.y);
    store_1(i + 2u, j, sums.low.z);
    store_1(i + 3u, j, sums.low.w);
    store_1(i + 4u, j, sums.high.x);
    store_1(i + 5u, j, sums.high.y);
    store_1(i + 6u, j, sums.high.z);
    store_1(i + 7u, j, sums.high.w);
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let i = wid.y * 8u;
    let j = wid.x * 128u + t;
    if (p.symmetric == 1u && wid.x * 128u + 127u < i) {
        return;
    }
    let j_0 = column(j);
    let j_1 = column(j + 8u);
    let j_2 = column(j + 16u);
    let j_3 = column(j + 24u);
    let j_4 = column(j + 32u);
    let j_5 = column(j + 40u);
    let j_6 = column(j + 48u);
    let j_7 = column(j + 56u);
    let j_8 = column(j + 64u);
    let j_9 = column(j + 72u);
    let j_10 = column(j + 80u);
    let j_11 = column(j + 88u);
    let j_12 = column(j + 96u);
    let j_13 = column(j + 104u);
    let j_14 = column(j + 112u);
    let j_15 = column(j + 120u);
    var sums_0 = old(i, j);
    var sums_1 = old(i, j + 8u);
    var sums_2 = old(i, j + 16u);
    var sums_3 = old(i, j + 24u);
    var sums_4 = old(i, j + 32u);
    var sums_5 = old(i, j + 40u);
    var sums_6 = old(i, j + 48u);
    var sums_7 = old(i, j + 56u);
    var sums_8 = old(i, j + 64u);
    var sums_9 = old(i, j + 72u);
    var sums_10 = old(i, j + 80u);
    var sums_11 = old(i, j + 88u);
    var sums_12 = old(i, j + 96u);
    var sums_13 = old(i, j + 104u);
    var sums_14 = old(i, j + 112u);
    var sums_15 = old(i, j + 120u);
    for (var k = 0u; k < p.k; k++) {
        let a = eight_a(i, k);
        sums_0 = step(sums_0, a, load_b(k, j_0));
        sums_1 = step(sums_1, a, load_b(k, j_1));
        sums_2 = step(sums_2, a, load_b(k, j_2));
        sums_3 = step(sums_3, a, load_b(k, j_3));
        sums_4 = step(sums_4, a, load_b(k, j_4));
        sums_5 = step(sums_5, a, load_b(k, j_5));
        sums_6 = step(sums_6, a, load_b(k, j_6));
        sums_7 = step(sums_7, a, load_b(k, j_7));
        sums_8 = step(sums_8, a, load_b(k, j_8));
        sums_9 = step(sums_9, a, load_b(k, j_9));
        sums_10 = step(sums_10, a, load_b(k, j_10));
        sums_11 = step(sums_11, a, load_b(k, j_11));
        sums_12 = step(sums_12, a, load_b(k, j_12));
        sums_13 = step(sums_13, a, load_b(k, j_13));
        sums_14 = step(sums_14, a, load_b(k, j_14));
        sums_15 = step(sums_15, a, load_b(k, j_15));
    }
    store(i, j, sums_0);
    store(i, j + 8u, sums_1);
    store(i, j + 16u, sums_2);
    store(i, j + 24u, sums_3);
    store(i, j + 32u, sums_4);
    store(i, j + 40u, sums_5);
    store(i, j + 48u, sums_6);
    store(i, j + 56u, sums_7);
    store(i, j + 64u, sums_8);
    store(i, j + 72u, sums_9);
    store(i, j + 80u, sums_10);
    store(i, j + 88u, sums_11);
    store(i, j + 96u, sums_12);
    store(i, j + 104u, sums_13);
    store(i, j + 112u, sums_14);
    store(i, j + 120u, sums_15);
}
