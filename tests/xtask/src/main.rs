//! The one door to every chore of the project.
fn main() {}
