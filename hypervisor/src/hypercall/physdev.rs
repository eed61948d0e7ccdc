// SPDX-License-Identifier: MIT OR Apache-2.0
//! physdev_op (33): what dom0 tells about the devices that it found.
//!
//! dom0 programs its devices itself (DESIGN D6), so there is little to be told: announcements are
//! accepted and change nothing. MSI registers are dom0's own, so restoring them has nothing to add;
//! but Linux then does not write them back after a reset either, which is why that is refused.
//!
//! Source: `xen/include/public/physdev.h` at 4.17.

use guest_abi::Errno;
use guest_abi::physdev as abi;

use super::{Call, DONE, HypercallResult};
use crate::domain::Privileges;

/// Errors: ENOSYS for other domains and for what is not handled, EFAULT.
#[inline(never)]
pub(super) fn handle(call: &mut Call<'_>) -> HypercallResult {
    if !call.domain.privileges.contains(Privileges::HARDWARE) {
        return Err(Errno::ENOSYS);
    }
    match call.operation() {
        abi::PHYSDEVOP_PCI_DEVICE_ADD => {
            let device: abi::PciDeviceAdd = call.read(call.arg1())?;
            log::debug!("dom0 has PCI device {:04x}:{:02x}:{:02x}", device.seg, device.bus, device.devfn);
            DONE
        }
        abi::PHYSDEVOP_PCI_DEVICE_REMOVE => {
            let _: abi::PciDevice = call.read(call.arg1())?;
            DONE
        }
        abi::PHYSDEVOP_PCI_MMCFG_RESERVED => {
            let _: abi::PciMmcfgReserved = call.read(call.arg1())?;
            DONE
        }
        _ => Err(Errno::ENOSYS),
    }
}
