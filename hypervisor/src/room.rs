// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the heap has room, asked before many small allocations of which not all can be refused.
//!
//! The hypervisor's heap is fixed in size, and a `Box` or an `Arc` that does not fit is the end of the
//! machine. What makes a domain therefore asks for all that it will need in one piece, first; what other
//! CPUs take meanwhile (ports, grant entries: small, and refused when they do not fit) comes out of
//! [`MARGIN`].

use alloc::vec::Vec;

/// What stays free beyond the request.
const MARGIN: usize = 32 << 10;

/// The heap is too full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Makes sure that `bytes` can be allocated in any pieces.
///
/// # Errors
/// [`Full`] if they cannot.
pub fn ensure(bytes: usize) -> Result<(), Full> {
    if is_refused() {
        return Err(Full);
    }
    let mut probe: Vec<u8> = Vec::new();
    probe.try_reserve_exact(bytes.saturating_add(MARGIN)).map_err(|_| Full)
}

/// Whether a test wants this allocation to fail.
pub(crate) fn is_refused() -> bool {
    #[cfg(test)]
    return crate::testing::is_refused();
    #[cfg(not(test))]
    false
}
