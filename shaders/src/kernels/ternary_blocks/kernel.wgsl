
// A thread makes 4 rows x 4 outputs (16 apart, so that neighbours store neighbours): a code word is unpacked once for four
// rows, an activation vector is read once for four outputs.

fn store(r: u32, o: u32, sums: vec4<f32>) {
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
    let o_0 = min(o, last_out);
    let o_1 = min(o + 16u, last_out);
    let o_2 = min(o + 32u, last_out);
    let o_3 = min(o + 48u, last_out);
    let last_row = p.rows - 1u;
    let r_1 = min(r + 1u, last_row);
    let r_2 = min(r + 2u, last_row);
    let r_3 = min(r + 3u, last_row);
    var row_0 = vec4<f32>();
    var row_1 = vec4<f32>();
    var row_2 = vec4<f32>();
    var row_3 = vec4<f32>();
    for (var g = 0u; 4u * g < words; g++) {
        var acc_0 = vec4<i32>();
        var acc_1 = vec4<i32>();
        var acc_2 = vec4<i32>();
        var acc_3 = vec4<i32>();
        for (var w = 4u * g; w < min(4u * g + 4u, words); w++) {
            let c_0 = planes(codes[o_0 * words + w]);
            let c_1 = planes(codes[o_1 * words + w]);
            let c_2 = planes(codes[o_2 * words + w]);
            let c_3 = planes(codes[o_3 * words + w]);
            let a_0 = q[r * words + w];
            acc_0 += vec4(dot_16(a_0, c_0), dot_16(a_0, c_1), dot_16(a_0, c_2), dot_16(a_0, c_3)) - vec4(sum_16(a_0));
            let a_1 = q[r_1 * words + w];
            acc_1 += vec4(dot_16(a_1, c_0), dot_16(a_1, c_1), dot_16(a_1, c_2), dot_16(a_1, c_3)) - vec4(sum_16(a_1));
            let a_2 = q[r_2 * words + w];
            acc_2 += vec4(dot_16(a_2, c_0), dot_16(a_2, c_1), dot_16(a_2, c_2), dot_16(a_2, c_3)) - vec4(sum_16(a_2));
            let a_3 = q[r_3 * words + w];
            acc_3 += vec4(dot_16(a_3, c_0), dot_16(a_3, c_1), dot_16(a_3, c_2), dot_16(a_3, c_3)) - vec4(sum_16(a_3));
        }
        let s = vec4(scale_at(o_0, g), scale_at(o_1, g), scale_at(o_2, g), scale_at(o_3, g));
        row_0 = fma(vec4<f32>(acc_0) * step_at(r, g), s, row_0);
        row_1 = fma(vec4<f32>(acc_1) * step_at(r_1, g), s, row_1);
        row_2 = fma(vec4<f32>(acc_2) * step_at(r_2, g), s, row_2);
        row_3 = fma(vec4<f32>(acc_3) * step_at(r_3, g), s, row_3);
    }
    store(r, o, row_0);
    store(r + 1u, o, row_1);
    store(r + 2u, o, row_2);
    store(r + 3u, o, row_3);
}
