// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the parsers of foreign bytes must hold, whatever the bytes are.
//!
//! A [`Target`] takes any bytes and panics where something does not hold that must. It has seeds: inputs that get far, from
//! which others are made. Two programs try: this package's own, which changes seeds at random ([`Mutator`]) and needs
//! nothing but the stable compiler, and `libfuzzer/`, which is led by coverage. The tests below run each target for a
//! moment, so that it is known to work.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod mutate;

use std::path::Path;

use dom0_tools::config::GuestConfig;
use dom0_tools::xenstore::wire::{Code, Fields, Message};
use guest_abi::io::xs_wire::{PAYLOAD_MAX, XS_WATCH, XS_WRITE};
use guest_abi::pvh::{ELFNOTE_PHYS32_ENTRY, ELFNOTE_PHYS32_RELOC};
use pvh_loader::bzimage::{self, Image};
use pvh_loader::{elf, sample};

pub use mutate::Mutator;

/// Something that takes foreign bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// Panics if something does not hold.
    pub run: fn(&[u8]),
    /// Inputs that get far.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 4] = [
    Target { name: "wire", run: wire, seeds: wire_seeds },
    Target { name: "elf", run: elf, seeds: elf_seeds },
    Target { name: "bzimage", run: bzimage, seeds: bzimage_seeds },
    Target { name: "toml", run: toml, seeds: toml_seeds },
];

/// xenstore's messages: a stream of bytes is cut into them in one way, however it arrives; what was cut out can be put
/// together again; fields are inside of their payload.
pub fn wire(bytes: &[u8]) {
    let (whole, rest) = cut(bytes, usize::MAX);
    let (piecewise, other_rest) = cut(bytes, 7);
    assert_eq!((&whole, &rest), (&piecewise, &other_rest), "pieces make a difference");
    let again: Vec<u8> = whole.iter().flat_map(Message::to_bytes).chain(rest).collect();
    assert!(bytes.starts_with(&again), "a message is not what arrived");
    for message in whole {
        assert!(message.payload.len() <= PAYLOAD_MAX);
        let mut fields = Fields::new(&message.payload);
        while let Ok(field) = fields.string() {
            assert!(field.len() < message.payload.len() && !field.contains(&0));
        }
        let _ = Fields::new(&message.payload).number::<u32>();
        let _ = message.answer(Err(Code::from_name(&message.payload)));
    }
}

/// The messages of a stream that arrives in pieces of so many bytes, and what is left; up to one that is none.
fn cut(bytes: &[u8], piece: usize) -> (Vec<Message>, Vec<u8>) {
    let (mut stream, mut messages) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece.min(bytes.len().max(1))) {
        stream.extend(piece);
        loop {
            match Message::take(&mut stream) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                // The connection ends here, so what is behind does not count.
                Err(_) => return (messages, Vec::new()),
            }
        }
    }
    (messages, stream)
}

fn wire_seeds() -> Vec<Vec<u8>> {
    let message = |kind, payload: &[u8]| Message { kind, req_id: 1, tx_id: 0, payload: payload.to_vec() }.to_bytes();
    let (write, watch) =
        (message(XS_WRITE, b"/local/domain/1/data\0value"), message(XS_WATCH, b"@releaseDomain\0token\0"));
    vec![[write.clone(), watch.clone()].concat(), write, watch]
}

/// A kernel's ELF file: what is accepted lies in the file, below 4 GiB, in order, and holds its entry.
pub fn elf(bytes: &[u8]) {
    let Ok(kernel) = elf::parse(bytes) else { return };
    let mut last = 0;
    for segment in &kernel.segments {
        assert!(segment.start >= last && segment.mem_len > 0);
        last = segment.start + segment.mem_len;
        assert!(last <= 1 << 32 && bytes.get(segment.file.clone()).is_some());
        assert!(segment.file.len() as u64 <= segment.mem_len);
    }
    assert!(kernel.extent().contains(&u64::from(kernel.entry)));
}

fn elf_seeds() -> Vec<Vec<u8>> {
    const MIB: u64 = 1 << 20;
    let (entry, relocation) = ((16 * MIB).to_le_bytes(), [0, 0, 32, 0, 0, 0, 0, 1, 255, 255, 255, 63]);
    let loads: &[(u64, u64, &[u8])] = &[(16 * MIB, MIB, b"text"), (20 * MIB, MIB, b"data")];
    let notes: &[(&[u8], u32, &[u8])] =
        &[(b"Xen\0", ELFNOTE_PHYS32_ENTRY, &entry), (b"Xen\0", ELFNOTE_PHYS32_RELOC, &relocation)];
    vec![sample::image(loads, notes), sample::image(&loads[..1], &notes[..1])]
}

/// A bzImage: what unpacks has the length that it said.
pub fn bzimage(bytes: &[u8]) {
    if let Ok(Image::BzImage(payload)) = bzimage::find(bytes) {
        let expected = payload.unpacked_len();
        // What asks for more than this is not wrong, only slow to try.
        if expected.as_ref().is_ok_and(|length| *length <= 64 << 20)
            && let Ok(unpacked) = payload.unpack()
        {
            assert_eq!(Some(unpacked.len()), expected.ok());
        }
    }
}

/// A header with a payload behind it: literals in a block of lz4, as its legacy format has them.
fn bzimage_seeds() -> Vec<Vec<u8>> {
    let lz4 = [b"\x02\x21\x4c\x18\x05\0\0\0\x40text".as_slice(), &4_u32.to_le_bytes()].concat();
    let gzip = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01\x04\0\xfb\xfftext\xc7\xa7\x8b\x3b\x04\0\0\0".to_vec();
    let pack = |payload: Vec<u8>| {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&[0x0f, 2]);
        image[0x24c] = payload.len().to_le_bytes()[0];
        image.extend(payload);
        image
    };
    vec![pack(lz4), pack(gzip)]
}

/// A guest's description: what is accepted is the same after it was written down and read again, and its limits hold.
pub fn toml(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = GuestConfig::parse(text, Path::new("/etc/guest.toml")) else { return };
    assert!((1..=32).contains(&config.vcpus) && config.memory > 0 && config.weight > 0);
    assert!(!config.name.contains(['/', '\0']) && !config.cmdline.contains('\n'));
    let written = serde_json::to_string(&config).expect("a description can be written down");
    let read: GuestConfig = serde_json::from_str(&written).expect("and read");
    assert_eq!(config, read);
}

fn toml_seeds() -> Vec<Vec<u8>> {
    let page = include_str!("../../docs/src/reference/guest-toml.md");
    let examples = page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    examples.map(|example| example.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_get_far() {
        assert_eq!(cut(&wire_seeds()[0], usize::MAX).0.len(), 2);
        assert!(elf_seeds().iter().all(|seed| elf::parse(seed).is_ok()));
        for seed in bzimage_seeds() {
            let Ok(Image::BzImage(payload)) = bzimage::find(&seed) else { panic!("no bzImage") };
            assert_eq!(payload.unpack().unwrap(), b"text");
        }
        let parse = |seed: &Vec<u8>| GuestConfig::parse(std::str::from_utf8(seed).unwrap(), Path::new("/g.toml"));
        assert!(toml_seeds().len() >= 4 && toml_seeds().iter().all(|seed| parse(seed).is_ok()));
    }

    #[test]
    fn each_target_holds_for_some_thousand_changes() {
        for target in TARGETS {
            let mut mutator = Mutator::new(1, (target.seeds)());
            for _ in 0..5000 {
                (target.run)(&mutator.next_input());
            }
        }
    }
}
