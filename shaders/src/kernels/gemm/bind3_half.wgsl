
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<Pair>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;
