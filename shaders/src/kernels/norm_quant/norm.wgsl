// RMSNorm and quantisation of x [rows, cols].

@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> g: array<f32>;
@group(0) @binding(3) var<storage, read> hyper: array<f32>;
@group(0) @binding(4) var<storage, read_write> q: array<u32>;
@group(0) @binding(5) var<storage, read_write> scales: array<vec2<u32>>;
@group(0) @binding(6) var<storage, read_write> rstd: array<f32>;

fn prepare(at: u32) -> f32 {
    return x[at];
}

fn value(at: u32) -> f32 {
    return x[at];
}

