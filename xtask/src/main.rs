//! Placeholder.
mod debian;
#[cfg_attr(not(test), expect(dead_code, reason = "the commands that use it are not there yet"))]
mod kernel;

fn main() {}
