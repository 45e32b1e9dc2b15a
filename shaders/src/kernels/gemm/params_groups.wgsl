    // Scales of a row of packed weights: 1, or one for every 64 weights (see ternary/groups.rs).
    groups: u32,
