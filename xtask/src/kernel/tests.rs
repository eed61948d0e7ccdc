// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels made by hand, and (ignored: they need the archive) Debian's own.

use super::{Series, fetch, unpack, vmlinux};

fn note(kind: u32, desc: &[u8]) -> Vec<u8> {
    let length = u32::try_from(desc.len()).unwrap();
    [&4u32.to_le_bytes(), &length.to_le_bytes(), &kind.to_le_bytes(), b"Xen\0".as_slice(), desc].concat()
}

/// An ELF with one PT_LOAD of `body` plus zeroes, and one PT_NOTE.
fn elf(body: &[u8], zeroes: usize, notes: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 64 + 2 * 56];
    out[..6].copy_from_slice(b"\x7fELF\x02\x01");
    out[6] = 1;
    let put = |out: &mut Vec<u8>, at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(&mut out, 16, &2u16.to_le_bytes());
    put(&mut out, 18, &62u16.to_le_bytes());
    put(&mut out, 32, &64u64.to_le_bytes());
    put(&mut out, 52, &64u16.to_le_bytes());
    put(&mut out, 54, &56u16.to_le_bytes());
    put(&mut out, 56, &2u16.to_le_bytes());
    let load_bytes = (body.len() + zeroes) as u64;
    let load = out.len() as u64;
    out.extend_from_slice(body);
    out.resize(out.len() + zeroes, 0);
    let note = out.len() as u64;
    out.extend_from_slice(notes);
    for (at, kind, offset, size) in [(64, 1u32, load, load_bytes), (120, 4, note, notes.len() as u64)] {
        put(&mut out, at, &kind.to_le_bytes());
        put(&mut out, at + 8, &offset.to_le_bytes());
        put(&mut out, at + 24, &0x0100_0000u64.to_le_bytes());
        put(&mut out, at + 32, &size.to_le_bytes());
        put(&mut out, at + 40, &size.to_le_bytes());
        put(&mut out, at + 48, &4u64.to_le_bytes());
    }
    out
}

fn dom0_elf() -> Vec<u8> {
    let notes = [note(18, &0x0100_0850u64.to_le_bytes()), note(17, &0x8801u32.to_le_bytes())].concat();
    elf(b"Linux version 6.1.0-test (x) y", 5000, &notes)
}

#[test]
fn trimming_keeps_memory_size_and_notes() {
    let whole = dom0_elf();
    let trimmed = vmlinux::trim(&whole).unwrap();
    assert!(trimmed.len() + 4900 < whole.len());
    assert_eq!(vmlinux::inspect(&trimmed).unwrap(), vmlinux::inspect(&whole).unwrap());
    assert_eq!(trimmed[64 + 40..64 + 48], whole[64 + 40..64 + 48], "memsz stays");
    let facts = vmlinux::inspect(&trimmed).unwrap();
    assert_eq!(facts.release, "6.1.0-test");
    assert_eq!(facts.pvh_entry, Some(0x0100_0850));
    assert!(facts.dom0_capable);
}

#[test]
fn a_cloud_kernel_is_refused_as_dom0_but_not_as_guest() {
    let dir = std::env::temp_dir().join(format!("xtask-cloud-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let notes = [note(18, &0x0100_0850u32.to_le_bytes()), note(17, &0x8001u32.to_le_bytes())].concat();
    std::fs::write(dir.join("cloud"), elf(b"Linux version 6.1.0-cloud z", 1, &notes)).unwrap();
    let kernel = unpack(&dir.join("cloud"), &dir.join("vmlinux")).unwrap();
    kernel.require_pvh().unwrap();
    let refusal = kernel.require_dom0().unwrap_err().to_string();
    assert!(refusal.contains("6.1.0-cloud") && refusal.contains("CONFIG_XEN_DOM0"), "{refusal}");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn truncated_images_are_errors() {
    let kernel = dom0_elf();
    for length in 0..kernel.len() {
        let _ = vmlinux::trim(&kernel[..length]);
        let _ = vmlinux::inspect(&kernel[..length]);
    }
}

#[test]
#[ignore = "downloads two kernels from Debian's archive"]
fn debian_kernels_are_dom0_capable() {
    let target = std::path::Path::new("../target");
    for series in [Series::V6_1, Series::V6_12] {
        let package = fetch(series, target).unwrap();
        let out = target.join("kernels").join(format!("vmlinux-{}", package.release));
        let kernel = unpack(&package.vmlinuz, &out).unwrap();
        kernel.require_dom0().unwrap();
        assert!(package.name.ends_with(&package.release) && package.modules.join("kernel").is_dir());
        assert_eq!(kernel.release, package.release);
        eprintln!("{kernel:x?}: {} bytes", std::fs::metadata(&out).unwrap().len());
    }
}
