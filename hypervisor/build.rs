// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links the bare-metal binary where it runs.

fn main() {
    println!("cargo::rerun-if-changed=src/link.ld");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if os == "none" {
        let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-T{dir}/src/link.ld");
    }
}
