// SPDX-License-Identifier: MIT OR Apache-2.0
//! xen_version (17): what the hypervisor calls itself and what it offers.
//!
//! Source: `xen/include/public/version.h` and `features.h` at 4.17.

use guest_abi::version as abi;
use guest_abi::{Errno, Wire};

use super::{Call, DONE, HypercallResult, Reply};
use crate::addr::PAGE_SIZE;
use crate::domain::Privileges;

/// Errors: ENOSYS for an unknown query, EINVAL for a feature word other than 0, EFAULT.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    match call.operation() {
        abi::XENVER_VERSION => Ok(Reply::Value(u64::from(abi::XEN_MAJOR << 16 | abi::XEN_MINOR))),
        abi::XENVER_EXTRAVERSION => text::<{ abi::EXTRAVERSION_LEN }>(call, concat!("-isthmus", "-0.1")),
        abi::XENVER_COMPILE_INFO => text::<{ abi::COMPILE_INFO_LEN }>(call, "rustc"),
        abi::XENVER_CAPABILITIES => text::<{ abi::CAPABILITIES_INFO_LEN }>(call, "hvm-3.0-x86_64 "),
        abi::XENVER_CHANGESET => text::<{ abi::CHANGESET_INFO_LEN }>(call, env!("CARGO_PKG_VERSION")),
        abi::XENVER_PLATFORM_PARAMETERS => write(call, &0_u64),
        abi::XENVER_GET_FEATURES => get_features(call),
        abi::XENVER_PAGESIZE => Ok(Reply::Value(PAGE_SIZE as u64)),
        abi::XENVER_GUEST_HANDLE => guest_handle(call),
        _ => Err(Errno::ENOSYS),
    }
}

// What writes is kept out of `handle`, so that the plain questions need no stack frame.
#[inline(never)]
fn write<T: Wire>(call: &mut Call<'_>, value: &T) -> HypercallResult {
    call.write(call.arg1(), value)?;
    DONE
}

#[inline(never)]
fn get_features(call: &mut Call<'_>) -> HypercallResult {
    let mut info: abi::FeatureInfo = call.read(call.arg1())?;
    if info.submap_idx != 0 {
        return Err(Errno::EINVAL);
    }
    info.submap = features(call.domain.privileges);
    write(call, &info)
}

#[inline(never)]
fn guest_handle(call: &mut Call<'_>) -> HypercallResult {
    let mut handle = [0_u8; abi::DOMAIN_HANDLE_LEN];
    handle[..2].copy_from_slice(&call.domain.id.raw().to_be_bytes());
    write(call, &handle)
}

fn features(privileges: Privileges) -> u32 {
    let always = 1 << abi::XENFEAT_WRITABLE_PAGE_TABLES
        | 1 << abi::XENFEAT_AUTO_TRANSLATED_PHYSMAP
        | 1 << abi::XENFEAT_HVM_CALLBACK_VECTOR
        | 1 << abi::XENFEAT_HVM_SAFE_PVCLOCK;
    if privileges.contains(Privileges::HARDWARE) {
        always | 1 << abi::XENFEAT_DOM0 | 1 << abi::XENFEAT_DIRECT_MAPPED
    } else {
        always
    }
}

/// Writes a string into a zeroed field of `LEN` bytes.
#[inline(never)]
fn text<const LEN: usize>(call: &mut Call<'_>, text: &str) -> HypercallResult {
    let mut field = [0; LEN];
    let len = text.len().min(LEN - 1);
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    call.write_bytes(call.arg1(), &field)?;
    DONE
}
