// Two float16 in a word, as any adapter reads them.
alias Pair = u32;

fn low(pair: Pair) -> f32 {
    return half_value(pair);
}

fn high(pair: Pair) -> f32 {
    return half_value(pair >> 16u);
}

