// What both forms of the moments share: parameters, scalars of the step, gradient and parameter.

struct Params {
    n: u32,
    decay: f32,
}

const LR: u32 = 0u;
const BETA1: u32 = 1u;
const BETA2: u32 = 2u;
const EPS: u32 = 3u;
const WEIGHT_DECAY: u32 = 4u;
const BIAS1: u32 = 5u;
const BIAS2: u32 = 6u;

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> hyper: array<f32>;
@group(0) @binding(2) var<storage, read> clip: array<f32>;
@group(0) @binding(3) var<storage, read> g: array<f32>;
@group(0) @binding(4) var<storage, read_write> w: array<f32>;
