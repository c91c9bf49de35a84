//! The hvrun command.
fn main() {}
