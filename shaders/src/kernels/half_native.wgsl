// Two float16 in a word, on adapters that have float16 themselves.
alias Pair = vec2<f16>;

fn low(pair: Pair) -> f32 {
    return f32(pair.x);
}

fn high(pair: Pair) -> f32 {
    return f32(pair.y);
}

