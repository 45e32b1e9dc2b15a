// The gated activation y = act(gate) up, its RMSNorm and quantisation; gate, up, y [rows, cols].

@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read> g: array<f32>;
@group(0) @binding(4) var<storage, read> hyper: array<f32>;
@group(0) @binding(5) var<storage, read_write> y: array<f32>;
@group(0) @binding(6) var<storage, read_write> q: array<u32>;
@group(0) @binding(7) var<storage, read_write> scales: array<vec2<u32>>;
@group(0) @binding(8) var<storage, read_write> rstd: array<f32>;

fn prepare(at: u32) -> f32 {
    let v = activate(p.act, gate[at]) * up[at];
    y[at] = v;
    return v;
}

fn value(at: u32) -> f32 {
    return y[at];
}

