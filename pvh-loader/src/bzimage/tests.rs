// SPDX-License-Identifier: MIT OR Apache-2.0
//! Images made by hand in every compression, cut and damaged ones.

use std::io::Write;

use proptest::prelude::*;

use super::{Image, UnpackError, find};

fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend_from_slice(payload);
    image
}

fn with_trailer(stream: &[u8], unpacked: usize) -> Vec<u8> {
    [stream, &u32::try_from(unpacked).unwrap().to_le_bytes()].concat()
}

fn unpack(image: &[u8]) -> Result<Vec<u8>, UnpackError> {
    match find(image)? {
        Image::BzImage(payload) => payload.unpack(),
        Image::Elf => panic!("an ELF"),
    }
}

/// Something that compresses like code: repetitions with changes.
fn kernel() -> Vec<u8> {
    (0..40_000_u32).flat_map(|i| (i / 7).wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let block = lz4_flex::block::compress(bytes);
    let length = u32::try_from(block.len()).unwrap().to_le_bytes();
    [&[0x02, 0x21, 0x4c, 0x18], length.as_slice(), &block].concat()
}

/// The kernel in each format that is read, ready to boot.
fn images() -> Vec<(&'static str, Vec<u8>)> {
    let kernel = kernel();
    let packed = |stream: &[u8]| bzimage(&with_trailer(stream, kernel.len()));
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&kernel).unwrap();
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).unwrap();
    xz.write_all(&kernel).unwrap();
    let options = lzma_rust2::LzmaOptions::with_preset(1);
    let mut lzma = lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
    lzma.write_all(&kernel).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(kernel.as_slice(), ruzstd::encoding::CompressionLevel::Fastest);
    vec![
        ("gzip", bzimage(&gzip(&kernel))),
        ("lz4", packed(&lz4(&kernel))),
        ("bzip2", packed(&bzip2.finish().unwrap())),
        ("xz", packed(&xz.finish().unwrap())),
        ("lzma", packed(&lzma.finish().unwrap())),
        ("zstd", packed(&zstd)),
    ]
}

#[test]
fn every_compression_of_distributions_unpacks() {
    let kernel = kernel();
    for (name, image) in images() {
        let Ok(Image::BzImage(payload)) = find(&image) else { panic!("{name}: no bzImage") };
        assert_eq!((payload.format(), payload.unpacked_len().unwrap()), (name, kernel.len()));
        assert!(payload.unpack().unwrap() == kernel, "{name}");
    }
}

#[test]
fn a_wrong_length_is_noticed_without_unpacking_more() {
    let kernel = kernel();
    for wrong in [kernel.len() - 1, kernel.len() + 1] {
        let error = unpack(&bzimage(&with_trailer(&lz4(&kernel), wrong))).unwrap_err();
        assert!(matches!(error, UnpackError::Length { .. } | UnpackError::Damaged { .. }), "{error}");
    }
    let huge = unpack(&bzimage(&with_trailer(&lz4(&kernel), 2 << 30))).unwrap_err();
    assert!(matches!(huge, UnpackError::TooLarge(_)), "{huge}");
}

#[test]
fn what_is_not_read_is_named() {
    let lzo = unpack(&bzimage(&with_trailer(b"\x89LZOxxxx", 1))).unwrap_err().to_string();
    assert!(lzo.contains("lzo") && lzo.contains("vmlinux"), "{lzo}");
    assert!(matches!(find(b"#!/bin/sh"), Err(UnpackError::Unknown)));
    let mut old = bzimage(&[0; 16]);
    old[0x206] = 7;
    assert!(matches!(find(&old), Err(UnpackError::OldProtocol(0x207))));
    assert!(matches!(find(b"\x7fELF\x02"), Ok(Image::Elf)));
}

#[test]
fn cut_images_are_errors() {
    for (name, image) in images() {
        for length in (0..image.len()).step_by(97) {
            assert!(unpack(&image[..length]).is_err(), "{name} cut at {length}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Nothing panics, and what does unpack has the announced length.
    #[test]
    fn damaged_images_give_an_error_or_the_announced_length(
        which in 0..6_usize, at in 0..1_usize << 20, byte: u8, header: bool
    ) {
        let (_, mut image) = images().swap_remove(which);
        let from = if header { 0 } else { 1024 };
        let at = from + at % (if header { 1100 } else { image.len() - from });
        image[at] = byte;
        if let Ok(Image::BzImage(payload)) = find(&image) {
            let expected = payload.unpacked_len();
            if let Ok(unpacked) = payload.unpack() {
                prop_assert_eq!(unpacked.len(), expected.unwrap());
            }
        }
    }
}
