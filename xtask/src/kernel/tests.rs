// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernels made by hand, and (ignored: they need the archive) Debian's own.

use std::io::Write;

use super::{Series, fetch, payload, unpack, vmlinux};

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

fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend_from_slice(payload);
    image
}

fn dom0_elf() -> Vec<u8> {
    let notes = [note(18, &0x0100_0850u64.to_le_bytes()), note(17, &0x8801u32.to_le_bytes())].concat();
    elf(b"Linux version 6.1.0-test (x) y", 5000, &notes)
}

fn with_trailer(stream: Vec<u8>, unpacked: usize) -> Vec<u8> {
    [stream, u32::try_from(unpacked).unwrap().to_le_bytes().to_vec()].concat()
}

fn payload_of(image: &[u8]) -> anyhow::Result<Vec<u8>> {
    match payload::find(image)? {
        payload::Image::BzImage(payload) => payload.unpack(),
        payload::Image::Elf => panic!("an ELF"),
    }
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
fn gzip_and_lz4_payloads_unpack() {
    let kernel = dom0_elf();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&kernel).unwrap();
    assert_eq!(payload_of(&bzimage(&gzip.finish().unwrap())).unwrap(), kernel);

    let block = lz4_flex::block::compress(&kernel);
    let length = u32::try_from(block.len()).unwrap().to_le_bytes();
    let lz4 = [&[0x02, 0x21, 0x4c, 0x18], length.as_slice(), &block].concat();
    assert_eq!(payload_of(&bzimage(&with_trailer(lz4.clone(), kernel.len()))).unwrap(), kernel);

    let wrong = payload_of(&bzimage(&with_trailer(lz4, kernel.len() + 1))).unwrap_err().to_string();
    assert!(wrong.contains("its trailer says"), "{wrong}");
}

#[test]
fn unsupported_compressions_are_named() {
    for (magic, name) in [(b"BZh9xxxx", "bzip2"), (b"\x89LZOxxxx", "lzo")] {
        let refusal = payload_of(&bzimage(&with_trailer(magic.to_vec(), 1))).unwrap_err().to_string();
        assert!(refusal.contains(name), "{refusal}");
    }
}

#[test]
fn truncated_images_are_errors() {
    let image = bzimage(b"\xfd7zXZ\0damaged....");
    for length in 0..image.len() {
        if let Ok(payload::Image::BzImage(payload)) = payload::find(&image[..length]) {
            payload.unpack().unwrap_err();
        }
    }
    assert!(payload_of(&image).is_err());
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
