// SPDX-License-Identifier: MIT OR Apache-2.0
//! The free lists as the tests look at them.

use std::collections::BTreeMap;

use super::{Buddy, END, FrameRecord, NR_ORDERS};

impl Buddy {
    /// All free blocks, by first frame: (first, order, in a clean list).
    pub(in crate::frame) fn blocks(&self, records: &[FrameRecord]) -> BTreeMap<u64, (u8, bool)> {
        let mut blocks = BTreeMap::new();
        for list in 0..2 {
            for row in 0..NR_ORDERS {
                let mut at = self.heads[list][row];
                let mut previous = END;
                while at != END {
                    let record = &records[at as usize];
                    assert_eq!(record.state().head_order().map(|o| usize::from(o.raw())), Some(row));
                    assert_eq!(record.state().is_in_clean_list(), list == 1);
                    assert_eq!(record.links().0, previous);
                    assert!(blocks.insert(u64::from(at), (u8::try_from(row).unwrap(), list == 1)).is_none());
                    (previous, at) = (at, record.links().1);
                }
                assert_eq!(self.occupied[list] >> row & 1 == 1, self.heads[list][row] != END);
            }
        }
        blocks
    }
}
