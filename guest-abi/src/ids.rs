// SPDX-License-Identifier: MIT OR Apache-2.0
//! The small numbers that name things across the interface.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name($raw);

        impl $name {
            /// Takes the number as it is: any value is legal, none is trusted.
            #[must_use]
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The number itself.
            #[must_use]
            pub const fn raw(self) -> $raw {
                self.0
            }

            /// The number as an index into a table; the table's bound is the caller's to check.
            #[must_use]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

id! {
    /// A domain. Numbers from [`DomId::FIRST_RESERVED`] on are not domains.
    DomId(u16), "d"
}
id! {
    /// A virtual CPU of a domain.
    VcpuId(u32), "v"
}
id! {
    /// An event-channel port, local to its domain. Port 0 is never valid.
    EvtchnPort(u32), "port:"
}
id! {
    /// A grant reference: an index into the granting domain's grant table.
    GrantRef(u32), "gref:"
}

impl DomId {
    /// The control domain.
    pub const DOM0: Self = Self(0);
    /// The first number that is not a domain. Source: `xen.h`, `DOMID_FIRST_RESERVED`.
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
    /// The calling domain. Source: `xen.h`, `DOMID_SELF`.
    pub const SELF: Self = Self(0x7ff0);
    /// Owner of memory-mapped I/O. Source: `xen.h`, `DOMID_IO`.
    pub const IO: Self = Self(0x7ff1);
    /// The hypervisor itself. Source: `xen.h`, `DOMID_XEN`.
    pub const XEN: Self = Self(0x7ff2);
    /// Nobody. Source: `xen.h`, `DOMID_INVALID`.
    pub const INVALID: Self = Self(0x7ff4);

    /// Whether the number can name a domain.
    #[must_use]
    pub const fn is_domain(self) -> bool {
        self.0 < Self::FIRST_RESERVED.0
    }
}
