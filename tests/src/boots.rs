// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of checks that boot the hypervisor: without guests, and with micro-guests.

use crate::{BOOT_FAILED, CRASH, Check, Guest, POWEROFF, SVM, Tier, VMX, guest};

/// Each with its own mark, and the other's to look for.
const TWO_DOMAINS: &[Guest] = &[
    Guest { program: "two_domains", words: "mem=16 -- mark=aaaa1111 other=bbbb2222" },
    Guest { program: "two_domains", words: "mem=16 -- mark=bbbb2222 other=aaaa1111" },
];

/// The machine has 128 MiB.
const ADDRESS_WALK: &[Guest] = &[
    Guest { program: "address_walk", words: "mem=16 -- mark=a000000000000000 other=5000000000000000 top=80" },
    Guest { program: "address_walk", words: "mem=16 -- mark=5000000000000000 other=a000000000000000 top=80" },
];

const REGISTER_ISOLATION: &[Guest] = &[
    Guest { program: "register_isolation", words: "mem=8 -- mark=123456789abcdef1" },
    Guest { program: "register_isolation", words: "mem=8 -- mark=fedcba9876543210" },
];

const FPU_ISOLATION: &[Guest] = &[
    Guest { program: "fpu_isolation", words: "mem=8 -- mark=1234567a8" },
    Guest { program: "fpu_isolation", words: "mem=8 -- mark=fedcba98764" },
];

const FEW_DOMAINS: &[Guest] = &[Guest { program: "control_churn", words: "mem=16 control -- rounds=10" }];
const MANY_DOMAINS: &[Guest] = &[Guest { program: "control_churn", words: "mem=16 control -- rounds=1f4" }];

/// Two that look, and two that leave nobody a CPU alone.
const FPU_ON_TWO_CPUS: &[Guest] = &[
    Guest { program: "fpu_isolation", words: "mem=8 -- mark=1234567a8" },
    Guest { program: "fpu_isolation", words: "mem=8 -- mark=fedcba98764" },
    Guest { program: "hog", words: "mem=8" },
    Guest { program: "hog", words: "mem=8 name=hog2" },
];

/// What a wake-up takes, on one CPU, on two, and where hogs have the CPU.
const WAKE_COST: &[Guest] =
    &[Guest { program: "wake_cost", words: "mem=8 control" }, Guest { program: "event_echo", words: "mem=8" }];
const WAKE_COST_ON_TWO_CPUS: &[Guest] = &[
    Guest { program: "wake_cost", words: "mem=8 control -- cpus=2" },
    Guest { program: "event_echo", words: "mem=8" },
];
const WAKE_COST_BESIDE_HOGS: &[Guest] = &[
    Guest { program: "wake_cost", words: "mem=8 control -- hogs=2" },
    Guest { program: "event_echo", words: "mem=8" },
    Guest { program: "hog", words: "mem=8" },
    Guest { program: "hog", words: "mem=8 name=hog2" },
];

const HASWELL: &str = "corei7_haswell_4770";
const BROADWELL: &str = "broadwell_ult";

/// A check on a CPU model that has less than the usual one, or other widths of registers.
const fn on_model(name: &'static str, guests: &'static [Guest], bochs_model: &'static str) -> Check {
    Check { tier: Tier::Long, bochs_model, ..Check::guests(name, guests).on(VMX) }
}

/// All of them.
pub const CHECKS: &[Check] = &[
    Check::boot("boot/nothing-to-start", BOOT_FAILED, &["Isthmus", "cannot start:"]),
    Check { by_grub: true, ..Check::boot("boot/by-grub-in-qemu", BOOT_FAILED, &["Isthmus", "cannot start:"]).on(SVM) },
    Check {
        hv_append: "no_such_word=1",
        ..Check::boot("boot/unknown-words-are-named", BOOT_FAILED, &["no_such_word=1"])
    },
    Check::guests("guest/hello", &[guest("hello")]),
    Check { by_grub: true, ..Check::guests("guest/hello-by-grub", &[guest("hello")]).on(SVM) },
    Check {
        tier: Tier::Gate,
        by_uefi: true,
        limit_seconds: 120,
        ..Check::guests("guest/hello-by-uefi", &[guest("hello")]).on(SVM)
    },
    // The firmware has no ACPI tables for Bochs and leaves VT-x off and unlocked.
    Check {
        tier: Tier::Long,
        by_uefi: true,
        limit_seconds: 200,
        says: &["ACPI: no root pointer (RSDP) was found"],
        ..Check::guests("guest/hello-by-uefi", &[guest("hello")]).on(VMX)
    },
    Check::guests("guest/exceptions", &[guest("exceptions")]),
    Check::guests("guest/cpu-state", &[guest("cpu_state")]),
    Check::guests("guest/mode-switch", &[guest("mode_switch")]),
    Check::guests("guest/cpuid-msr", &[guest("cpuid_msr")]),
    Check::guests("guest/hypercall-errors", &[guest("hypercall_errors")]),
    Check::guests("guest/pagetable-change", &[guest("pagetable_change")]),
    Check::guests("guest/event-channels", &[guest("evtchn")]),
    Check::guests("guest/event-queues", &[guest("evtchn_fifo")]),
    Check::guests("guest/local-apic", &[guest("lapic")]),
    Check::guests("guest/grants", &[guest("grants")]),
    Check::guests("guest/hostile-addresses", &[guest("guestmem_hostile")]),
    Check::guests("guest/timers", &[guest("timers")]),
    Check::guests("guest/memory-isolation", &[guest("memory_isolation")]),
    Check::guests("guest/counters", &[guest("counters")]),
    Check::guests("guest/two-domains", TWO_DOMAINS),
    Check::guests("guest/fpu-isolation", FPU_ISOLATION),
    Check::guests("guest/register-isolation", REGISTER_ISOLATION),
    Check {
        tier: Tier::Gate,
        limit_seconds: 600,
        memory_mib: 128,
        ..Check::guests("guest/address-walk", ADDRESS_WALK).on(SVM)
    },
    // Each page costs three exits and three page faults of the guest's: minutes in Bochs.
    Check {
        tier: Tier::Long,
        limit_seconds: 1800,
        memory_mib: 128,
        ..Check::guests("guest/address-walk", ADDRESS_WALK).on(VMX)
    },
    Check::guests("guest/second-vcpu", &[Guest { program: "smp", words: "vcpus=2" }]),
    Check::guests("guest/string-io", &[guest("string_io")]),
    Check::guests("guest/wake-up", &[guest("hlt_wake")]),
    Check::guests("guest/cost-of-a-wake-up", WAKE_COST),
    Check {
        tier: Tier::Gate,
        cpus: 2,
        limit_seconds: 120,
        ..Check::guests("guest/cost-of-a-wake-up-on-two-cpus", WAKE_COST_ON_TWO_CPUS)
    },
    Check::guests("guest/cost-of-a-wake-up-beside-hogs", WAKE_COST_BESIDE_HOGS),
    Check::guests("guest/second-vcpu-timers", &[Guest { program: "smp_timers", words: "vcpus=2" }]),
    Check::guests("guest/control", &[Guest { program: "control", words: "mem=16 control" }]),
    Check::guests("guest/control-refused", &[guest("control_refused")]),
    Check {
        tier: Tier::Gate,
        cpus: 2,
        limit_seconds: 300,
        ..Check::guests("guest/two-cpus", &[Guest { program: "smp_torture", words: "vcpus=2 control" }])
    },
    Check { tier: Tier::Gate, cpus: 2, limit_seconds: 240, ..Check::guests("guest/churn-on-two-cpus", FEW_DOMAINS) },
    Check {
        tier: Tier::Long,
        cpus: 2,
        limit_seconds: 900,
        ..Check::guests("guest/much-churn-on-two-cpus", MANY_DOMAINS)
    },
    Check {
        tier: Tier::Gate,
        cpus: 2,
        limit_seconds: 240,
        ..Check::guests("guest/second-vcpu-on-two-cpus", &[Guest { program: "smp", words: "vcpus=2" }])
    },
    Check {
        tier: Tier::Gate,
        cpus: 2,
        limit_seconds: 240,
        ..Check::guests("guest/two-domains-on-two-cpus", TWO_DOMAINS)
    },
    Check {
        tier: Tier::Gate,
        cpus: 2,
        limit_seconds: 240,
        // QEMU arms a watchpoint where DR7 is written, not where VMRUN loads it: it is gone when a vCPU has moved.
        ..Check::guests("guest/fpu-isolation-on-two-cpus", FPU_ON_TWO_CPUS).on(VMX)
    },
    Check::guests("guest/random-calls", &[Guest { program: "fuzz", words: "-- seed=1 count=400" }]),
    Check {
        tier: Tier::Long,
        ..Check::guests("guest/many-random-calls", &[Guest { program: "fuzz", words: "-- seed=2 count=40000" }]).on(SVM)
    },
    on_model("guest/exceptions-on-haswell", &[guest("exceptions")], HASWELL),
    on_model("guest/cpuid-msr-on-haswell", &[guest("cpuid_msr")], HASWELL),
    on_model("guest/local-apic-on-haswell", &[guest("lapic")], HASWELL),
    on_model("guest/timers-on-haswell", &[guest("timers")], HASWELL),
    on_model("guest/fpu-isolation-on-haswell", FPU_ISOLATION, HASWELL),
    on_model("guest/cpuid-msr-on-broadwell", &[guest("cpuid_msr")], BROADWELL),
    on_model("guest/fpu-isolation-on-broadwell", FPU_ISOLATION, BROADWELL),
    on_model("guest/second-vcpu-on-broadwell", &[Guest { program: "smp", words: "vcpus=2" }], BROADWELL),
    Check {
        says: &["crashed: EventDeliveryOutsideRam"],
        ..Check::end("guest/delivery-outside-ram", &[guest("delivery_outside_ram")], CRASH)
    },
    Check::end("guest/tables-outside-ram", &[guest("tables_outside_ram")], CRASH),
    Check::end("guest/halt-off", &[guest("halt_off")], POWEROFF),
    Check::end("guest/triple-fault", &[guest("triple_fault")], CRASH),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_where_they_belong() {
        for (i, check) in CHECKS.iter().enumerate() {
            assert!(check.name.contains('/'), "{}", check.name);
            let is_other = |other: &Check| other.name != check.name || other.backends != check.backends;
            assert!(CHECKS[..i].iter().all(is_other), "{} twice", check.name);
        }
    }

    #[test]
    fn every_check_runs_somewhere_and_quick_ones_are_short() {
        for check in CHECKS {
            assert!(!check.backends.is_empty(), "{}", check.name);
            assert!(check.tier != Tier::Quick || check.limit_seconds <= 120, "{}", check.name);
            assert!(!check.guests.is_empty() || !check.says.is_empty(), "{} expects nothing", check.name);
        }
    }
}
