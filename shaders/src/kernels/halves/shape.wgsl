// n values; add = 1: to what is stored.
struct Params {
    n: u32,
    add: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

