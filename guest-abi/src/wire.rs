// SPDX-License-Identifier: MIT OR Apache-2.0
//! Structures as bytes: how a value of the interface crosses guest memory.
//!
//! A structure is read by value from a byte buffer that was copied out of guest memory once, so
//! no reference into memory that another domain can write ever exists. [`wire_struct!`](crate::wire_struct) declares a
//! `repr(C)` structure together with the offset of every field, asserts both at compile time, and
//! derives the conversion.

/// A value with a fixed little-endian layout of [`Wire::SIZE`] bytes.
pub trait Wire: Sized + Copy {
    /// Bytes that the value occupies.
    const SIZE: usize;

    /// Reads the value from the first [`Wire::SIZE`] bytes.
    ///
    /// # Panics
    /// If `bytes` is shorter: the caller's own bug, never a guest's doing.
    fn from_bytes(bytes: &[u8]) -> Self;

    /// Writes the value to the first [`Wire::SIZE`] bytes.
    ///
    /// # Panics
    /// If `bytes` is shorter: the caller's own bug, never a guest's doing.
    fn to_bytes(&self, bytes: &mut [u8]);
}

macro_rules! wire_int {
    ($($int:ty),*) => {$(
        impl Wire for $int {
            const SIZE: usize = size_of::<$int>();
            #[inline]
            fn from_bytes(bytes: &[u8]) -> Self {
                let mut raw = [0; size_of::<$int>()];
                raw.copy_from_slice(&bytes[..size_of::<$int>()]);
                <$int>::from_le_bytes(raw)
            }
            #[inline]
            fn to_bytes(&self, bytes: &mut [u8]) {
                bytes[..size_of::<$int>()].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
wire_int!(u8, u16, u32, u64, i8, i16, i32, i64);

impl<T: Wire + Default, const N: usize> Wire for [T; N] {
    const SIZE: usize = T::SIZE * N;
    #[inline]
    fn from_bytes(bytes: &[u8]) -> Self {
        core::array::from_fn(|i| T::from_bytes(&bytes[i * T::SIZE..]))
    }
    #[inline]
    fn to_bytes(&self, bytes: &mut [u8]) {
        for (i, item) in self.iter().enumerate() {
            item.to_bytes(&mut bytes[i * T::SIZE..]);
        }
    }
}

/// Declares a structure of the interface: every field with its byte offset, and the whole size.
///
/// Offsets and size are asserted at compile time against `repr(C)`; padding is not a field and is
/// written as zero.
///
/// ```
/// guest_abi::wire_struct! {
///     /// Argument of `EVTCHNOP_send`.
///     pub struct Send: 4 {
///         /// The port to signal.
///         0 => pub port: u32,
///     }
/// }
/// ```
#[macro_export]
macro_rules! wire_struct {
    ($(#[$doc:meta])* pub struct $name:ident : $size:literal {
        $($(#[$fdoc:meta])* $offset:literal => pub $field:ident : $ty:ty),* $(,)?
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty),* }

        const _: () = {
            assert!(::core::mem::size_of::<$name>() == $size);
            $(assert!(::core::mem::offset_of!($name, $field) == $offset);)*
        };

        impl $crate::wire::Wire for $name {
            const SIZE: usize = $size;
            #[inline]
            fn from_bytes(bytes: &[u8]) -> Self {
                Self { $($field: <$ty as $crate::wire::Wire>::from_bytes(&bytes[$offset..])),* }
            }
            #[inline]
            fn to_bytes(&self, bytes: &mut [u8]) {
                bytes[..$size].fill(0);
                $($crate::wire::Wire::to_bytes(&self.$field, &mut bytes[$offset..]);)*
            }
        }
    };
}
