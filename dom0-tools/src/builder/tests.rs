// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can be told without a hypervisor: which files are refused, and in which words.

use std::path::{Path, PathBuf};

use guest_abi::pvh::ELFNOTE_PHYS32_ENTRY;
use proptest::prelude::*;
use pvh_loader::sample;

use super::{Silent, prepare};
use crate::config::GuestConfig;

const MIB: u64 = 1 << 20;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("isthmus-builder-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.0.join(name), bytes).unwrap();
    }

    fn config(&self, more: &str) -> GuestConfig {
        let text = format!("name = \"t\"\nkernel = \"kernel\"\nmemory = 32\n{more}");
        GuestConfig::parse(&text, &self.0.join("t.toml")).unwrap()
    }

    fn error(&self, more: &str) -> String {
        prepare(&self.config(more), &mut Silent).unwrap_err().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn kernel() -> Vec<u8> {
    let entry = (16 * MIB).to_le_bytes();
    sample::image(&[(16 * MIB, 4 * MIB, b"text")], &[(b"Xen\0", ELFNOTE_PHYS32_ENTRY, &entry)])
}

#[test]
fn a_kernel_is_laid_out_without_a_domain() {
    let folder = Folder::new("plan");
    folder.file("kernel", &kernel());
    folder.file("initrd", &[7; 5000]);
    let config = folder.config("initrd = \"initrd\"\nvcpus = 3\n");
    let prepared = prepare(&config, &mut Silent).unwrap();
    assert_eq!(prepared.plan.entry, 16 << 20);
    assert_eq!(prepared.plan.copies.iter().map(|copy| copy.len).collect::<Vec<_>>(), [4, 5000]);
}

#[test]
fn each_refusal_names_the_file_and_the_reason() {
    let folder = Folder::new("refusals");
    let names = |error: &str, words: &[&str]| {
        for word in words {
            assert!(error.contains(word), "{word} in: {error}");
        }
    };
    names(&folder.error(""), &["kernel", &folder.0.join("kernel").display().to_string(), "No such file"]);
    folder.file("kernel", b"#!/bin/sh\necho no kernel\n");
    names(&folder.error(""), &["/kernel: ", "neither an ELF nor a bzImage", "vmlinuz"]);
    folder.file("kernel", &sample::image(&[(16 * MIB, MIB, b"text")], &[]));
    names(&folder.error(""), &["/kernel: ", "no PVH entry"]);
    folder.file("kernel", &kernel());
    names(&folder.error("initrd = \"none\"\n"), &["initrd ", "/none", "No such file"]);
    folder.file("large", &vec![1; 20 << 20]);
    names(&folder.error("initrd = \"large\"\n"), &["initrd ", "/large: ", "20"]);
    let long = "x".repeat(2048);
    names(&folder.error(&format!("cmdline = \"{long}\"\n")), &["cmdline: ", "2047"]);
    let mut small = folder.config("");
    small.memory = 16;
    let error = prepare(&small, &mut Silent).unwrap_err().to_string();
    names(&error, &["/kernel: ", "20 MiB"]);
    folder.file("kernel", b"");
    names(&folder.error(""), &["/kernel: "]);
    let mut folder_as_kernel = folder.config("");
    folder_as_kernel.kernel = Path::new("/").to_owned();
    assert!(prepare(&folder_as_kernel, &mut Silent).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn damaged_kernels_never_panic(at in 0..4000_usize, bytes in proptest::collection::vec(any::<u8>(), 1..40)) {
        let folder = Folder::new(&format!("damaged-{at}"));
        let mut file = kernel();
        let at = at % file.len();
        let end = file.len().min(at + bytes.len());
        file[at..end].copy_from_slice(&bytes[..end - at]);
        folder.file("kernel", &file);
        let _ = prepare(&folder.config(""), &mut Silent);
    }
}
