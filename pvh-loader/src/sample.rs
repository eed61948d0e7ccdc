// SPDX-License-Identifier: MIT OR Apache-2.0
//! Kernel images made by hand, for tests of whoever loads kernels.

use alloc::{vec, vec::Vec};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// An ELF64 file with the given loads `(paddr, memsz, contents)` and notes `(owner, type, contents)`.
///
/// # Panics
/// If there are more loads, or longer notes, than a test needs.
#[must_use]
pub fn image(loads: &[(u64, u64, &[u8])], notes: &[(&[u8], u32, &[u8])]) -> Vec<u8> {
    let mut note = Vec::new();
    for (owner, kind, desc) in notes {
        for word in [u32::try_from(owner.len()).unwrap(), u32::try_from(desc.len()).unwrap(), *kind] {
            note.extend(word.to_le_bytes());
        }
        for part in [owner, desc] {
            note.extend(*part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
    }
    let nr = loads.len() + 1;
    let mut file = vec![0; 64 + 56 * nr];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..20].copy_from_slice(&[2, 0, 62, 0]);
    file[32] = 64;
    file[54] = 56;
    file[56] = u8::try_from(nr).unwrap();
    let mut header = |i: usize, kind: u32, paddr: u64, memsz: u64, bytes: &[u8]| {
        let at = 64 + 56 * i;
        let offset = file.len() as u64;
        file.extend(bytes);
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        for (field, value) in [(8, offset), (16, !0), (24, paddr), (32, bytes.len() as u64), (40, memsz)] {
            file[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
        }
    };
    for (i, (paddr, memsz, bytes)) in loads.iter().enumerate() {
        header(i, PT_LOAD, *paddr, *memsz, bytes);
    }
    header(nr - 1, PT_NOTE, 0, note.len() as u64, &note);
    file
}
