// A workgroup of 16 x 4 threads makes 16 rows x 64 outputs; a thread makes 4 rows x 4 outputs (16 apart, so that neighbours
// store neighbours): a code word is unpacked once for four rows, an activation vector is read once for four outputs. No
// workgroup memory: the caches share what neighbours read. The last single row (decoding) has a loop of its own.

fn store(r: u32, o: u32, sums: vec4<i32>) {
    store_1(r, o, sums.x);
    store_1(r, o + 16u, sums.y);
    store_1(r, o + 32u, sums.z);
    store_1(r, o + 48u, sums.w);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let o = wid.x * 64u + t % 16u;
    let r = wid.y * 16u + t / 16u * 4u;
    if (r >= p.rows) {
        return;
    }
    let words = (p.cols + 15u) / 16u;
    // Outputs and rows past the end read the last one again; their sums are not stored.
    let last_out = p.outs - 1u;
    let out_0 = min(o, last_out) * words;
    let out_1 = min(o + 16u, last_out) * words;
    let out_2 = min(o + 32u, last_out) * words;
    let out_3 = min(o + 48u, last_out) * words;
    let last_row = p.rows - 1u;
    let row_0 = r * words;
    var acc_0 = vec4<i32>();
    if (r == last_row) {
        for (var w = 0u; w < words; w++) {
            let a = q[row_0 + w];
            acc_0 += vec4(dot_16(a, planes(codes[out_0 + w])), dot_16(a, planes(codes[out_1 + w])),
                dot_16(a, planes(codes[out_2 + w])), dot_16(a, planes(codes[out_3 + w])));
        }
        store(r, o, acc_0);
        return;
    }
    let row_1 = row_0 + words;
    let row_2 = min(r + 2u, last_row) * words;
    let row_3 = min(r + 3u, last_row) * words;
    var acc_1 = vec4<i32>();
    var acc_2 = vec4<i32>();
    var acc_3 = vec4<i32>();
    for (var w = 0u; w < words; w++) {
        let c_0 = planes(codes[out_0 + w]);
        let c_1 = planes(codes[out_1 + w]);
        let c_2 = planes(codes[out_2 + w]);
        let c_3 = planes(codes[out_3 + w]);
        let a_0 = q[row_0 + w];
        acc_0 += vec4(dot_16(a_0, c_0), dot_16(a_0, c_1), dot_16(a_0, c_2), dot_16(a_0, c_3));
        let a_1 = q[row_1 + w];
        acc_1 += vec4(dot_16(a_1, c_0), dot_16(a_1, c_1), dot_16(a_1, c_2), dot_16(a_1, c_3));
        let a_2 = q[row_2 + w];
        acc_2 += vec4(dot_16(a_2, c_0), dot_16(a_2, c_1), dot_16(a_2, c_2), dot_16(a_2, c_3));
        let a_3 = q[row_3 + w];
        acc_3 += vec4(dot_16(a_3, c_0), dot_16(a_3, c_1), dot_16(a_3, c_2), dot_16(a_3, c_3));
    }
    store(r, o, acc_0);
    store(r + 1u, o, acc_1);
    store(r + 2u, o, acc_2);
    store(r + 3u, o, acc_3);
}
