// SPDX-License-Identifier: MIT OR Apache-2.0
//! What others have done with a domain's pages.
//!
//! Told apart are the users, since a guest's devices may be served by several domains, and reading from writing, since
//! backends differ in it. The device itself is not known here: a grant does not say what it is for.

use guest_abi::DomId;
use guest_abi::isthmus::{GRANT_USERS, GrantStats};

use super::Access;

/// Counts for each user.
pub(super) struct Uses {
    places: [Use; GRANT_USERS],
    taken: usize,
}

/// What one user has done; nobody where the place is not taken.
#[derive(Clone, Copy)]
pub(super) struct Use {
    user: DomId,
    maps: [u64; 2],
    unmaps: [u64; 2],
    copies: u64,
    copied_bytes: u64,
}

impl Uses {
    pub(super) const fn new() -> Self {
        let nobody = Use { user: DomId::INVALID, maps: [0; 2], unmaps: [0; 2], copies: 0, copied_bytes: 0 };
        Self { places: [nobody; GRANT_USERS], taken: 0 }
    }

    /// The counts of a user. Most guests have one, and it costs them a comparison.
    #[inline]
    pub(super) fn of(&mut self, user: DomId) -> &mut Use {
        if self.places[0].user == user {
            return &mut self.places[0];
        }
        let at = self.place_of(user);
        &mut self.places[at]
    }

    /// Where all places are taken, the last one is that of all who come.
    #[inline(never)]
    fn place_of(&mut self, user: DomId) -> usize {
        let known = self.places.iter().position(|place| place.user == user);
        known.unwrap_or_else(|| {
            let is_full = self.taken == GRANT_USERS;
            self.taken += usize::from(!is_full);
            self.places[self.taken - 1].user = if is_full { DomId::INVALID } else { user };
            self.taken - 1
        })
    }

    /// The counts at a place, and how many places are taken.
    pub(super) fn stats(&self, at: u16) -> GrantStats {
        let nr_users = u16::try_from(self.taken).unwrap_or(u16::MAX);
        let empty = GrantStats { at, nr_users, ..GrantStats::default() };
        self.places[..self.taken].get(usize::from(at)).map_or(empty, |of| GrantStats {
            user: of.user.raw(),
            read_maps: of.maps[Access::Read as usize],
            read_unmaps: of.unmaps[Access::Read as usize],
            write_maps: of.maps[Access::Write as usize],
            write_unmaps: of.unmaps[Access::Write as usize],
            copies: of.copies,
            copied_bytes: of.copied_bytes,
            ..empty
        })
    }
}

impl Use {
    /// A page was mapped.
    #[inline]
    pub(super) fn map(&mut self, access: Access) {
        self.maps[access as usize] += 1;
    }

    /// A mapping has ended.
    #[inline]
    pub(super) fn unmap(&mut self, access: Access) {
        self.unmaps[access as usize] += 1;
    }

    /// Pieces were copied from or to pages.
    #[inline]
    pub(super) fn copy(&mut self, copies: u64, bytes: u64) {
        self.copies += copies;
        self.copied_bytes += bytes;
    }
}
