// Parameters of the f32 products.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    add: u32,
    symmetric: u32,
    // Of a part of a product (see cut.rs): distance of A's rows and their first element, the same of C. Distance 0: the
    // shape's own.
    lda: u32,
    a0: u32,
    ldc: u32,
    c0: u32,
