// The product for software adapters, where each load is a loop over the lanes of a vector and costs more than the dot
// products on it: 8 rows x 16 outputs a thread from 32 words of activations and 16 of codes. A workgroup of 8 threads (one
// vector) makes 8 rows x 192 outputs; a thread owns outputs that are 8 apart. A single row has a loop of its own.

// Activations of eight rows.
struct Acts {
    row_0: vec4<u32>,
    row_1: vec4<u32>,
    row_2: vec4<u32>,
    row_3: vec4<u32>,
    row_4: vec4<u32>,
    row_5: vec4<u32>,
    row_6: vec4<u32>,
    row_7: vec4<u32>,
}

// Sums of eight rows.
struct Eight {
    low: vec4<i32>,
    high: vec4<i32>,
}

fn step(sums: Eight, a: Acts, word: u32) -> Eight {
    let c = planes(word);
    return Eight(
        sums.low + vec4(dot_16(a.row_0, c), dot_16(a.row_1, c), dot_16(a.row_2, c), dot_16(a.row_3, c)),
        sums.high + vec4(dot_16(a.row_4, c), dot_16(a.row_5, c), dot_16(a.row_6, c), dot_16(a.row_7, c)),
    );
}

fn step_1(sums: Eight, a: vec4<u32>, word: u32) -> Eight {
    return Eight(vec4(sums.low.x + dot_16(a, planes(word)), 0, 0, 0), vec4<i32>());
}

// Where an output's codes and a row's activations begin; those past the end are the last ones again, and not stored.
fn codes_of(o: u32, words: u32) -> u32 {
    return min(o, p.outs - 1u) * words;
}

fn acts_of(r: u32, words: u32) -> u32 {
    return min(r, p.rows - 1u) * words;
}

fn store(r: u32, o: u32, sums: Eight) {
    store_1(r, o, sums.low.x);
    store_1(r + 1u, o, sums.low.y);
    store_1(r + 2u, o, sums.low.z);
    store_1(r + 3u, o, sums.low.w);
    store_1(r + 4u, o, sums.high.x);
    store_1(r + 5u, o, sums.high.y);
    store_1(r + 6u, o, sums.high.z);
    store_1(r + 7u, o, sums.high.w);
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) wid: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let o = wid.x * 192u + t;
    let r = wid.y * 8u;
    let words = (p.cols + 15u) / 16u;
    let out_0 = codes_of(o, words);
    let out_1 = codes_of(o + 8u, words);
    let out_2 = codes_of(o + 16u, words);
    let out_3 = codes_of(o + 24u, words);
    let out_4 = codes_of(o + 32u, words);
    let out_5 = codes_of(o + 40u, words);
    let out_6 = codes_of(o + 48u, words);
    let out_7 = codes_of(o + 56u, words);
    let out_8 = codes_of(o + 64u, words);
    let out_9 = codes_of(o + 72u, words);
    let out_10 = codes_of(o + 80u, words);
    let out_11 = codes_of(o + 88u, words);
    let out_12 = codes_of(o + 96u, words);
    let out_13 = codes_of(o + 104u, words);
    let out_14 = codes_of(o + 112u, words);
    let out_15 = codes_of(o + 120u, words);
    let out_16 = codes_of(o + 128u, words);
    let out_17 = codes_of(o + 136u, words);
    let out_18 = codes_of(o + 144u, words);
    let out_19 = codes_of(o + 152u, words);
    let out_20 = codes_of(o + 160u, words);
    let out_21 = codes_of(o + 168u, words);
    let out_22 = codes_of(o + 176u, words);
    let out_23 = codes_of(o + 184u, words);
    var sums_0 = Eight();
    var sums_1 = Eight();
    var sums_2 = Eight();
    var sums_3 = Eight();
    var sums_4 = Eight();
    var sums_5 = Eight();
    var sums_6 = Eight();
    var sums_7 = Eight();
    var sums_8 = Eight();
    var sums_9 = Eight();
    var sums_10 = Eight();
    var sums_11 = Eight();
    var sums_12 = Eight();
    var sums_13 = Eight();
    var sums_14 = Eight();
    var sums_15 = Eight();
    var sums_16 = Eight();
    var sums_17 = Eight();
    var sums_18 = Eight();
    var sums_19 = Eight();
    var sums_20 = Eight();
    var sums_21 = Eight();
    var sums_22 = Eight();
    var sums_23 = Eight();
    let row_0 = acts_of(r, words);
    let row_1 = acts_of(r + 1u, words);
    let row_2 = acts_of(r + 2u, words);
    let row_3 = acts_of(r + 3u, words);
    let row_4 = acts_of(r + 4u, words);
    let row_5 = acts_of(r + 5u, words);
    let row_6 = acts_of(r + 6u, words);
    let row_7 = acts_of(r + 7u, words);
    if (r + 1u == p.rows) {
        for (var w = 0u; w < words; w++) {
            let a = q[row_0 + w];
            sums_0 = step_1(sums_0, a, codes[out_0 + w]);
            sums_1 = step_1(sums_1, a, codes[out_1 + w]);
            sums_2 = step_1(sums_2, a, codes[out_2 + w]);
            sums_3 = step_1(sums_3, a, codes[out_3 + w]);
            sums_4 = step_1(sums_4, a, codes[out_4 + w]);
            sums_5 = step_1(sums_5, a, codes[out_5 + w]);
            sums_6 = step_1(sums_6, a, codes[out_6 + w]);
            sums_7 = step_1(sums_7, a, codes[out_7 + w]);
            sums_8 = step_1(sums_8, a, codes[out_8 + w]);
            sums_9 = step_1(sums_9, a, codes[out_9 + w]);
            sums_10 = step_1(sums_10, a, codes[out_10 + w]);
            sums_11 = step_1(sums_11, a, codes[out_11 + w]);
            sums_12 = step_1(sums_12, a, codes[out_12 + w]);
            sums_13 = step_1(sums_13, a, codes[out_13 + w]);
            sums_14 = step_1(sums_14, a, codes[out_14 + w]);
            sums_15 = step_1(sums_15, a, codes[out_15 + w]);
            sums_16 = step_1(sums_16, a, codes[out_16 + w]);
            sums_17 = step_1(sums_17, a, codes[out_17 + w]);
            sums_18 = step_1(sums_18, a, codes[out_18 + w]);
            sums_19 = step_1(sums_19, a, codes[out_19 + w]);
            sums_20 = step_1(sums_20, a, codes[out_20 + w]);
            sums_21 = step_1(sums_21, a, codes[out_21 + w]);
            sums_22 = step_1(sums_22, a, codes[out_22 + w]);
            sums_23 = step_1(sums_23, a, codes[out_23 + w]);
        }
    } else {
        for (var w = 0u; w < words; w++) {
            let a = Acts(q[row_0 + w], q[row_1 + w], q[row_2 + w], q[row_3 + w], q[row_4 + w], q[row_5 + w], q[row_6 + w], q[row_7 + w]);
            sums_0 = step(sums_0, a, codes[out_0 + w]);
            sums_1 = step(sums_1, a, codes[out_1 + w]);
            sums_2 = step(sums_2, a, codes[out_2 + w]);
            sums_3 = step(sums_3, a, codes[out_3 + w]);
            sums_4 = step(sums_4, a, codes[out_4 + w]);
            sums_5 = step(sums_5, a, codes[out_5 + w]);
            sums_6 = step(sums_6, a, codes[out_6 + w]);
            sums_7 = step(sums_7, a, codes[out_7 + w]);
            sums_8 = step(sums_8, a, codes[out_8 + w]);
            sums_9 = step(sums_9, a, codes[out_9 + w]);
            sums_10 = step(sums_10, a, codes[out_10 + w]);
            sums_11 = step(sums_11, a, codes[out_11 + w]);
            sums_12 = step(sums_12, a, codes[out_12 + w]);
            sums_13 = step(sums_13, a, codes[out_13 + w]);
            sums_14 = step(sums_14, a, codes[out_14 + w]);
            sums_15 = step(sums_15, a, codes[out_15 + w]);
            sums_16 = step(sums_16, a, codes[out_16 + w]);
            sums_17 = step(sums_17, a, codes[out_17 + w]);
            sums_18 = step(sums_18, a, codes[out_18 + w]);
            sums_19 = step(sums_19, a, codes[out_19 + w]);
            sums_20 = step(sums_20, a, codes[out_20 + w]);
            sums_21 = step(sums_21, a, codes[out_21 + w]);
            sums_22 = step(sums_22, a, codes[out_22 + w]);
            sums_23 = step(sums_23, a, codes[out_23 + w]);
        }
    }
    store(r, o, sums_0);
    store(r, o + 8u, sums_1);
    store(r, o + 16u, sums_2);
    store(r, o + 24u, sums_3);
    store(r, o + 32u, sums_4);
    store(r, o + 40u, sums_5);
    store(r, o + 48u, sums_6);
    store(r, o + 56u, sums_7);
    store(r, o + 64u, sums_8);
    store(r, o + 72u, sums_9);
    store(r, o + 80u, sums_10);
    store(r, o + 88u, sums_11);
    store(r, o + 96u, sums_12);
    store(r, o + 104u, sums_13);
    store(r, o + 112u, sums_14);
    store(r, o + 120u, sums_15);
    store(r, o + 128u, sums_16);
    store(r, o + 136u, sums_17);
    store(r, o + 144u, sums_18);
    store(r, o + 152u, sums_19);
    store(r, o + 160u, sums_20);
    store(r, o + 168u, sums_21);
    store(r, o + 176u, sums_22);
    store(r, o + 184u, sums_23);
}
