//! flow
fn main() {}
