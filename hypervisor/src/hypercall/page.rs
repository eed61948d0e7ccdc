// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypercall page that older kernels ask for through MSR 0x40000000.
//!
//! 128 stubs of 32 bytes: stub n loads n into EAX, makes the hypercall and returns. Stub 23 (iret)
//! has no meaning for these guests and faults.

use guest_abi::hypercall::{VMCALL, VMMCALL};
use guest_abi::{Errno, Gpa};

use crate::addr::PAGE_SIZE;
use crate::domain::Domain;
use crate::policy::cpuid::Vendor;

const STUB: usize = 32;
const IRET: usize = 23;

/// Fills the guest's page.
///
/// # Errors
/// EFAULT if there is no RAM of the domain at that address.
pub fn fill(domain: &Domain, gpa: Gpa) -> Result<(), Errno> {
    let instruction = match domain.cpuid.vendor() {
        Vendor::Amd => VMMCALL,
        Vendor::Intel => VMCALL,
    };
    let mut page = [0xcc; PAGE_SIZE];
    for (n, stub) in page.chunks_exact_mut(STUB).enumerate() {
        if n == IRET {
            stub[..2].copy_from_slice(&[0x0f, 0x0b]);
            continue;
        }
        stub[0] = 0xb8;
        stub[1..5].copy_from_slice(&u32::try_from(n).unwrap_or(0).to_le_bytes());
        stub[5..8].copy_from_slice(&instruction);
        stub[8] = 0xc3;
    }
    let mfn = domain.p2m_view.ram(gpa.gfn()).ok_or(Errno::EFAULT)?;
    domain.p2m_view.frames().mem().write(mfn, 0, &page);
    Ok(())
}
