// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a test can make go wrong or pretend, on its own thread.

use core::cell::Cell;

use crate::p2m::FlushSite;

std::thread_local! {
    static SABOTAGED: Cell<Option<FlushSite>> = const { Cell::new(None) };
    static REFUSE: Cell<Option<usize>> = const { Cell::new(None) };
    static PRETENDED: Cell<usize> = const { Cell::new(0) };
}

/// Whether the flushes of this site are left out.
pub(crate) fn is_sabotaged(site: FlushSite) -> bool {
    SABOTAGED.get() == Some(site)
}

/// Runs `f` with the flushes of one site left out.
pub(crate) fn without_flush<R>(site: FlushSite, f: impl FnOnce() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            SABOTAGED.set(None);
        }
    }
    let _restore = Restore;
    SABOTAGED.set(Some(site));
    f()
}

/// Whether the allocation that asks is to fail.
pub(crate) fn is_refused() -> bool {
    match REFUSE.get() {
        None => false,
        Some(0) => {
            REFUSE.set(None);
            true
        }
        Some(left) => {
            REFUSE.set(Some(left - 1));
            false
        }
    }
}

/// Runs `f` with the allocation after `skip` others refused; also says whether that many were asked for.
pub(crate) fn refusing<R>(skip: usize, f: impl FnOnce() -> R) -> (R, bool) {
    REFUSE.set(Some(skip));
    let result = f();
    (result, REFUSE.take().is_none())
}

/// The pCPU that this thread pretends to be.
pub(crate) fn pretended() -> usize {
    PRETENDED.get()
}

/// Makes this thread that pCPU.
pub(crate) fn pretend(pcpu: usize) {
    PRETENDED.set(pcpu);
}
