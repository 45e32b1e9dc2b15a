//! The fingerprint of a kernel: a hash over our own canonical form of its naga module, without names or comments.
