// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which MSRs a guest reaches without an exit.
//!
//! The map starts closed: every access exits and the policy answers. Opened are only MSRs
//! that a kernel uses at every context switch, whose guest value is in the CPU while the guest runs,
//! and which say nothing about the host. The system-call MSRs are written once a boot, so
//! their writes exit and the policy checks the addresses; then switching vCPUs need not
//! read them back. EFER may be read but not written, since LME and NXE change what is kept.
//!
//! Source: Intel SDM vol. 3C (326019-080), §24.6.9 MSR-Bitmap Address; vol. 4 for the numbers.

use crate::msr;

/// Words of the map: one 4 KiB page.
pub const WORDS: usize = 512;

const READ_WRITE: &[u32] = &[msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE];

const READ_ONLY: &[u32] = &[msr::TSC, msr::EFER];

/// Builds the map.
#[must_use]
pub fn build() -> [u64; WORDS] {
    let mut map = [u64::MAX; WORDS];
    for &number in READ_WRITE {
        open(&mut map, number, READ);
        open(&mut map, number, WRITE);
    }
    for &number in READ_ONLY {
        open(&mut map, number, READ);
    }
    map
}

/// Byte offsets of the halves: reads of low MSRs, reads of high ones 1 KiB on, writes behind.
const READ: usize = 0;
const WRITE: usize = 2048;
const HIGH: usize = 1024;

fn open(map: &mut [u64; WORDS], number: u32, access: usize) {
    let (low, part) = if number >= 0xc000_0000 { (number - 0xc000_0000, HIGH) } else { (number, 0) };
    let bit = (access + part) * 8 + guest_abi::num::to_usize(u64::from(low));
    map[bit / 64] &= !(1 << (bit % 64));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits(map: &[u64; WORDS], number: u32, write: bool) -> bool {
        let part = if number >= 0xc000_0000 { 1024 } else { 0 } + if write { 2048 } else { 0 };
        let bytes: Vec<u8> = map.iter().flat_map(|word| word.to_le_bytes()).collect();
        let low = (number & 0x1fff) as usize;
        bytes[part + low / 8] & 1 << (low % 8) != 0
    }

    #[test]
    fn only_the_listed_msrs_are_open() {
        let map = build();
        let closed: u32 = map.iter().map(|word| word.count_zeros()).sum();
        assert_eq!(closed as usize, 2 * READ_WRITE.len() + READ_ONLY.len());
        for number in READ_WRITE {
            assert!(!exits(&map, *number, false) && !exits(&map, *number, true), "{number:#x}");
        }
    }

    #[test]
    fn dangerous_msrs_exit() {
        let map = build();
        for number in
            [0x1b, 0x3a, 0x3b, 0x6e0, 0x1d9, 0x38f, 0x800, 0x80b, 0x830, 0xda0, 0x48b, msr::LSTAR, msr::TSC_AUX]
        {
            assert!(exits(&map, number, false) && exits(&map, number, true), "{number:#x}");
        }
        assert!(exits(&map, msr::TSC, true) && !exits(&map, msr::TSC, false));
        assert!(exits(&map, msr::EFER, true) && !exits(&map, msr::EFER, false));
    }
}
