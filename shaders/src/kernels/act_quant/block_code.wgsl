// What both kernels over blocks of 64 share: parameters, x [rows, cols], the step of a block and codes by it.

struct Params {
    rows: u32,
    cols: u32,
    words: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;

// Step of the block that begins at column `start`, and codes by it.
fn block_step(base: u32, start: u32) -> f32 {
    var largest = 0.0;
    for (var c = start; c < min(start + 64u, p.cols); c++) {
        largest = max(largest, abs(x[base + c]));
    }
    return divide(largest, 127.0);
}

fn block_code(value: f32, step: f32) -> i32 {
    if (step == 0.0) {
        return 0;
    }
    return i32(clamp(round(divide(value, step)), -127.0, 127.0));
}

