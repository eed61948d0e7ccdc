// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one error vocabulary that a guest sees.
//!
//! Source: `xen/include/public/errno.h` at 4.17; the values are Linux's own.

/// An error as a hypercall returns it, negated, in RAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are the documentation: errno.h")]
pub enum Errno {
    EPERM = 1,
    ENOENT = 2,
    ESRCH = 3,
    EIO = 5,
    ENXIO = 6,
    E2BIG = 7,
    EAGAIN = 11,
    ENOMEM = 12,
    EACCES = 13,
    EFAULT = 14,
    EBUSY = 16,
    EEXIST = 17,
    ENODEV = 19,
    EINVAL = 22,
    ENOSPC = 28,
    ERANGE = 34,
    ENOSYS = 38,
    ENODATA = 61,
    ETIME = 62,
    EOVERFLOW = 75,
    EOPNOTSUPP = 95,
    ENOTCONN = 107,
}

impl Errno {
    /// The value for RAX: the negated number, sign-extended.
    #[must_use]
    pub const fn to_rax(self) -> u64 {
        (-(self as i64)).cast_unsigned()
    }
}
