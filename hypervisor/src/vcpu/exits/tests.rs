// SPDX-License-Identifier: MIT OR Apache-2.0
//! What each exit does to RIP, registers and events.

use guest_abi::Errno;

use super::*;
use crate::policy::control::{cr0, cr4, efer};
use crate::testing::{Guest, Host};

const GP: Option<Injection> = Some(Injection::Exception { vector: VECTOR_GP, error_code: Some(0) });
const UD: Option<Injection> = Some(Injection::Exception { vector: VECTOR_UD, error_code: None });

/// Executes one instruction; returns how far RIP has moved and what will be raised.
fn execute(guest: &Guest, code: &[u8], exit: Exit) -> (u64, Option<Injection>) {
    guest.code(code);
    assert_eq!(guest.exit(exit), Outcome::Resume);
    let moved = guest.moved();
    (moved, guest.take_queued())
}

#[test]
fn lengths_count_prefixes_where_the_cpu_does_not_say() {
    let (_, guest) = Host::with_guest();
    let cases: [(&[u8], Exit); 6] = [
        (&[0x0f, 0xa2], Exit::Cpuid),
        (&[0x66, 0xf2, 0x48, 0x0f, 0xa2], Exit::Cpuid),
        (&[0x2e, 0x0f, 0x32], Exit::Rdmsr),
        (&[0x0f, 0x09], Exit::CacheFlush),
        (&[0xf3, 0x0f, 0x09], Exit::CacheFlush),
        (&[0x67, 0x0f, 0x08], Exit::CacheFlush),
    ];
    for (code, exit) in cases {
        guest.set_regs(|regs| (regs.rax, regs.rcx) = (0, 0x1b));
        guest.cpu(0).shadow = true;
        assert_eq!(execute(&guest, code, exit), (code.len() as u64, None), "{exit:?} {code:x?}");
        assert!(!guest.cpu(0).shadow, "the next instruction is not in the shadow");
    }
}

#[test]
fn the_cpus_own_length_is_taken_without_reading_the_code() {
    let (_, guest) = Host::with_guest();
    guest.code(&[0xcc]);
    let next = guest.cpu(0).state.rip + 4;
    guest.cpu(0).next_rip = Some(next);
    for exit in [Exit::Cpuid, Exit::CacheFlush] {
        assert_eq!(execute(&guest, &[0xcc], exit), (4, None));
    }
}

#[test]
fn code_that_changed_or_went_away_faults_and_changes_no_register() {
    let (_, guest) = Host::with_guest();
    guest.set_regs(|regs| (regs.rax, regs.rcx) = (7, 0x1b));
    let before = guest.regs();
    for exit in [Exit::Cpuid, Exit::Rdmsr, Exit::Halt, Exit::CacheFlush, Exit::Xsetbv] {
        assert_eq!(execute(&guest, &[0x90, 0x90], exit), (0, GP), "{exit:?}");
    }
    guest.cpu(0).state.rip = 0x8000_0000_0000;
    assert_eq!((guest.exit(Exit::Cpuid), guest.take_queued()), (Outcome::Resume, GP));
    assert_eq!(guest.regs(), before);
}

#[test]
fn cpuid_clears_the_upper_halves() {
    let (_, guest) = Host::with_guest();
    guest.set_regs(|regs| {
        (regs.rax, regs.rbx, regs.rcx, regs.rdx) = (0xffff_ffff_0000_0000, u64::MAX, u64::MAX, u64::MAX);
    });
    execute(&guest, &[0x0f, 0xa2], Exit::Cpuid);
    let regs = guest.regs();
    assert!([regs.rax, regs.rbx, regs.rcx, regs.rdx].iter().all(|r| r >> 32 == 0));
    assert_eq!(regs.rbx, u64::from(u32::from_le_bytes(*b"Auth")));
}

#[test]
fn cpuid_shows_the_osxsave_that_the_guest_has_set() {
    let (_, guest) = Host::with_guest();
    for set in [false, true] {
        guest.cpu(0).state.cr4 = cr4::PAE | if set { cr4::OSXSAVE } else { 0 };
        guest.set_regs(|regs| (regs.rax, regs.rcx) = (1, 0));
        execute(&guest, &[0x0f, 0xa2], Exit::Cpuid);
        assert_eq!(guest.regs().rcx >> 27 & 1 != 0, set);
    }
}

#[test]
fn an_msr_without_a_rule_faults_both_ways() {
    let (_, guest) = Host::with_guest();
    for msr in [0x11, 0x9f0, 0x4000_0001, 0xc001_0114, 0xffff_ffff] {
        guest.set_regs(|regs| regs.rcx = msr);
        assert_eq!(execute(&guest, &[0x0f, 0x32], Exit::Rdmsr), (0, GP), "{msr:#x}");
        assert_eq!(execute(&guest, &[0x0f, 0x30], Exit::Wrmsr), (0, GP), "{msr:#x}");
    }
}

#[test]
fn msrs_reach_the_cpu_after_their_check() {
    let (_, guest) = Host::with_guest();
    let read = |msr: u32| {
        guest.set_regs(|regs| regs.rcx = u64::from(msr) | 1 << 40);
        assert_eq!(execute(&guest, &[0x0f, 0x32], Exit::Rdmsr), (2, None));
        guest.regs().edx_eax()
    };
    const LSTAR: u32 = 0xc000_0082;
    assert!(guest.wrmsr(LSTAR, 0xffff_ffff_8100_0000));
    assert_eq!(read(LSTAR), 0xffff_ffff_8100_0000);
    assert!(!guest.wrmsr(LSTAR, 0x8000_0000_0000_0000));
    assert_eq!(guest.take_queued(), GP);
    assert_eq!(read(LSTAR), 0xffff_ffff_8100_0000);
    assert_eq!(read(0xc000_0080), efer::LME | efer::LMA | efer::NXE);
    assert!(guest.wrmsr(0xc000_0080, efer::SCE | efer::LME | efer::NXE));
    assert_eq!(read(0xc000_0080), efer::SCE | efer::LME | efer::LMA | efer::NXE, "LMA is kept");
    assert!(!guest.wrmsr(0xc000_0080, 1 << 12), "SVME");
}

#[test]
fn the_tsc_reads_as_rdtsc_does() {
    let (host, guest) = Host::with_guest();
    host.advance(500);
    guest.set_regs(|regs| regs.rcx = 0x10);
    execute(&guest, &[0x0f, 0x32], Exit::Rdmsr);
    assert_eq!(guest.regs().edx_eax(), host.hv.machine.tsc().raw() + guest.domain.tsc_offset);
}

#[test]
fn the_hypercall_page_is_filled_where_there_is_ram() {
    let (_, guest) = Host::with_guest();
    assert!(guest.wrmsr(0x4000_0000, 0x3_0000));
    let page = guest.get_bytes(0x3_0000, 4096);
    assert_eq!(page[..9], [0xb8, 0, 0, 0, 0, 0x0f, 0x01, 0xd9, 0xc3], "VMMCALL on AMD");
    assert_eq!(page[32 * 34..32 * 34 + 5], [0xb8, 34, 0, 0, 0]);
    assert_eq!(page[32 * 23..32 * 23 + 2], [0x0f, 0x0b]);
    for nowhere in [0x4000_0000, 1 << 52, u64::MAX] {
        assert!(!guest.wrmsr(0x4000_0000, nowhere));
        assert_eq!(guest.take_queued(), GP);
    }
}

/// MOV to CR0, CR4 or CR8 from RAX, without help of the CPU.
fn control(guest: &Guest, register: ControlRegister, value: u64) -> bool {
    let code: &[u8] = match register {
        ControlRegister::Cr0 => &[0x0f, 0x22, 0xc0],
        ControlRegister::Cr4 => &[0x0f, 0x22, 0xe0],
        ControlRegister::Cr8 => &[0x44, 0x0f, 0x22, 0xc0],
    };
    guest.set_regs(|regs| regs.rax = value);
    let (moved, raised) = execute(guest, code, Exit::ControlWrite { register, value: None });
    assert_eq!(raised.is_none(), moved == code.len() as u64);
    assert!(raised.is_none() || (moved, raised) == (0, GP));
    raised.is_none()
}

#[test]
fn control_registers_take_what_the_cpu_would() {
    let (_, guest) = Host::with_guest();
    let state = || guest.cpu(0).state;
    let (old0, old4) = (state().cr0, state().cr4);
    assert!(control(&guest, ControlRegister::Cr0, old0 | cr0::TS));
    assert_eq!(state().cr0, old0 | cr0::TS);
    assert!(!control(&guest, ControlRegister::Cr0, 1 << 32 | old0));
    assert!(!control(&guest, ControlRegister::Cr0, old0 & !cr0::PG), "64-bit code cannot turn paging off");
    assert_eq!(state().cr0, old0 | cr0::TS);
    assert!(control(&guest, ControlRegister::Cr4, old4 | cr4::PGE));
    assert!(!control(&guest, ControlRegister::Cr4, old4 | 1 << 13), "VMXE");
    assert!(!control(&guest, ControlRegister::Cr4, cr4::PGE), "long mode needs PAE");
    assert_eq!(state().cr4, old4 | cr4::PGE);
    assert!(control(&guest, ControlRegister::Cr8, 9));
    assert!(!control(&guest, ControlRegister::Cr8, 16));
    assert_eq!(guest.state(0).lapic.cr8(), 9);
}

#[test]
fn a_write_that_the_cpu_has_decoded_is_not_read_again() {
    let (_, guest) = Host::with_guest();
    guest.code(&[0xcc]);
    let next = guest.cpu(0).state.rip + 3;
    guest.cpu(0).next_rip = Some(next);
    guest.exit(Exit::ControlWrite { register: ControlRegister::Cr8, value: Some(6) });
    assert_eq!((guest.state(0).lapic.cr8(), guest.moved()), (6, 3));
}

#[test]
fn cr8_is_read_into_the_register_that_the_cpu_or_the_code_names() {
    let (_, guest) = Host::with_guest();
    assert!(control(&guest, ControlRegister::Cr8, 5));
    // MOV R9, CR8.
    assert_eq!(execute(&guest, &[0x45, 0x0f, 0x20, 0xc1], Exit::Cr8Read { into: None }), (4, None));
    assert_eq!(guest.regs().r9, 5);
    let next = guest.cpu(0).state.rip;
    guest.cpu(0).next_rip = Some(next);
    guest.exit(Exit::Cr8Read { into: Some(7) });
    assert_eq!(guest.regs().rdi, 5);
    guest.exit(Exit::Cr8Read { into: Some(4) });
    assert_eq!(guest.take_queued(), GP, "RSP");
}

#[test]
fn a_move_from_rsp_is_seen() {
    let (_, guest) = Host::with_guest();
    guest.cpu(0).state.rsp = 3;
    // MOV CR8, RSP.
    let exit = Exit::ControlWrite { register: ControlRegister::Cr8, value: None };
    assert_eq!(execute(&guest, &[0x44, 0x0f, 0x22, 0xc4], exit), (4, None));
    assert_eq!(guest.state(0).lapic.cr8(), 3);
}

#[test]
fn xsetbv_is_for_ring_0_and_for_known_states() {
    let (_, guest) = Host::with_guest();
    let xsetbv = |index, value| {
        guest.set_regs(|regs| {
            regs.rcx = index;
            regs.set_edx_eax(value);
        });
        execute(&guest, &[0x0f, 0x01, 0xd1], Exit::Xsetbv)
    };
    assert_eq!(xsetbv(0, 7), (3, None));
    assert_eq!(guest.cpu(0).state.xcr0, 7);
    for (index, value) in [(1, 7), (0, 0), (0, 5), (0, 1 << 9 | 1), (0, u64::MAX)] {
        assert_eq!(xsetbv(index, value), (0, GP), "{index} {value:#x}");
    }
    guest.cpu(0).cpl = 3;
    assert_eq!(xsetbv(0, 3), (0, GP));
    assert_eq!(guest.cpu(0).state.xcr0, 7);
}

#[test]
fn a_hypercall_of_a_user_or_of_32_bit_code_is_answered_and_not_made() {
    let (_, guest) = Host::with_guest();
    for (exit, error) in [(Exit::NarrowHypercall, Errno::ENOSYS), (Exit::UserHypercall, Errno::EPERM)] {
        // What the registers would ask for if they were those of a 64-bit kernel: the version.
        guest.load_call(guest_abi::hypercall::HYPERVISOR_XEN_VERSION, [0; 3]);
        let start = guest.cpu(0).state.rip;
        assert_eq!(guest.exit(exit), Outcome::Resume);
        assert_eq!(guest.cpu(0).state.rip, start + 3);
        assert_eq!(guest.regs().rax, error.to_rax());
    }
    assert_eq!(guest.call(guest_abi::hypercall::HYPERVISOR_XEN_VERSION, [0; 3]), 4 << 16 | 17);
}

#[test]
fn what_is_forbidden_raises_what_the_backend_says() {
    let (_, guest) = Host::with_guest();
    assert_eq!(execute(&guest, &[0x0f, 0x01, 0xd8], Exit::Forbidden(Fault::InvalidOpcode)), (0, UD));
    assert_eq!(execute(&guest, &[0x0f, 0x33], Exit::Forbidden(Fault::GeneralProtection)), (0, GP));
}

#[test]
fn an_exception_goes_to_the_guest_as_it_was() {
    let (_, guest) = Host::with_guest();
    for (vector, error_code) in [(1, None), (17, Some(0))] {
        let raised = Some(Injection::Exception { vector, error_code });
        assert_eq!(execute(&guest, &[0x90], Exit::Exception { vector, error_code }), (0, raised));
    }
}

#[test]
fn a_cpu_that_will_not_go_on_ends_the_domain_and_not_the_machine() {
    for exit in [Exit::TripleFault, Exit::EntryFailed { raw: 33 }, Exit::Unexpected { raw: 99 }] {
        let (_, guest) = Host::with_guest();
        assert_eq!(guest.exit(exit), Outcome::Leave);
        assert_eq!(guest.domain.shutdown_reason(), Some(crate::domain::ShutdownReason::Crash));
    }
}

#[test]
fn exits_of_the_host_cost_the_guest_nothing() {
    let (_, guest) = Host::with_guest();
    guest.code(&[0x90]);
    let before = guest.regs();
    for exit in [Exit::Deadline, Exit::HostNmi, Exit::ExternalInterrupt { vector: None }] {
        assert_eq!(guest.exit(exit), Outcome::Resume);
    }
    assert_eq!((guest.regs(), guest.moved()), (before, 0));
    assert_eq!(guest.take_queued(), None);
}
