//! mlpack.
fn main() {}
