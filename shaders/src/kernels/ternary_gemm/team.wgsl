// What the kernels for a few rows share: one lane's part of four outputs of row r, words lane, lane + step, ...
fn four_outputs(r: u32, o: u32, lane: u32, step: u32) -> vec4<i32> {
    let words = (p.cols + 15u) / 16u;
    // Outputs past the end read the last one again; their sums are not stored.
    let last = p.outs - 1u;
    let out_0 = min(o, last) * words;
    let out_1 = min(o + 1u, last) * words;
    let out_2 = min(o + 2u, last) * words;
    let out_3 = min(o + 3u, last) * words;
    var acc = vec4<i32>();
    for (var w = lane; w < words; w += step) {
        let a = q[r * words + w];
        acc += vec4(dot_16(a, planes(codes[out_0 + w])), dot_16(a, planes(codes[out_1 + w])),
            dot_16(a, planes(codes[out_2 + w])), dot_16(a, planes(codes[out_3 + w])));
    }
    return acc;
}

fn store_4(r: u32, o: u32, sums: vec4<i32>) {
    store_1(r, o, sums.x);
    store_1(r, o + 1u, sums.y);
    store_1(r, o + 2u, sums.z);
    store_1(r, o + 3u, sums.w);
}

