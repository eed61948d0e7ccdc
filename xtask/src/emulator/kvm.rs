// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU with KVM: whether it can run a hypervisor here, and its command line.
//!
//! A `/dev/kvm` node proves nothing: a container may have one that cannot be opened, and a machine in a cloud may have
//! KVM without VT-x or SVM inside. Three things must be true: the node opens, the CPU has VT-x or SVM (the kernel
//! lists it in `/proc/cpuinfo`), and the matching KVM module passes it on to guests (its `nested` parameter).

use std::fs;
use std::path::Path;

use super::{Machine, qemu};

/// What KVM gives to a hypervisor that runs in its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Nested virtualization of this kind.
    Nested(&'static str),
    /// Nothing, for this reason.
    Unusable(String),
}

/// A kind of hardware virtualization: its name, the CPU's flag, KVM's module.
const KINDS: [(&str, &str, &str); 2] = [("VT-x", "vmx", "kvm_intel"), ("SVM", "svm", "kvm_amd")];

impl Offer {
    /// What the KVM of this machine offers.
    pub(crate) fn of_this_machine() -> Self {
        if let Err(error) = fs::File::options().read(true).write(true).open("/dev/kvm") {
            return Self::Unusable(format!("/dev/kvm cannot be opened ({error})"));
        }
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self::from_facts(&cpuinfo, |module| {
            fs::read_to_string(Path::new("/sys/module").join(module).join("parameters/nested")).ok()
        })
    }

    /// The offer of a machine whose `/dev/kvm` opens; `nested` reads the parameter of a module.
    fn from_facts(cpuinfo: &str, nested: impl Fn(&str) -> Option<String>) -> Self {
        let has_flag = |flag: &str| {
            let flags = cpuinfo.lines().filter(|line| line.starts_with("flags"));
            flags.flat_map(|line| line.split_whitespace()).any(|word| word == flag)
        };
        let Some((name, _, module)) = KINDS.iter().find(|(_, flag, _)| has_flag(flag)) else {
            return Self::Unusable("/dev/kvm is there, but the CPU shows neither VT-x nor SVM".to_owned());
        };
        match nested(module).as_deref().map(str::trim) {
            Some("Y" | "1") => Self::Nested(name),
            Some(_) => Self::Unusable(format!("KVM does not pass {name} on (module {module} needs nested=1)")),
            None => Self::Unusable(format!("the CPU has {name}, but KVM's module {module} is not loaded")),
        }
    }
}

/// QEMU's arguments that play `machine` with KVM.
pub(super) fn arguments(machine: &Machine) -> Vec<String> {
    let mut arguments = qemu::words("-accel kvm -cpu host");
    arguments.extend(qemu::common(machine));
    arguments
}

#[cfg(test)]
mod tests {
    use super::super::Boot;
    use super::*;

    fn offer(cpuinfo: &str, loaded: &str, nested: &str) -> Offer {
        Offer::from_facts(cpuinfo, |module| (module == loaded).then(|| nested.to_owned()))
    }

    #[test]
    fn nested_virtualization_needs_the_cpus_flag_and_the_modules_consent() {
        assert_eq!(offer("flags\t\t: fpu vmx sse", "kvm_intel", "Y\n"), Offer::Nested("VT-x"));
        assert_eq!(offer("flags\t\t: fpu svm", "kvm_amd", "1\n"), Offer::Nested("SVM"));
    }

    #[test]
    fn each_missing_piece_is_named() {
        let cases = [
            (offer("flags : fpu sse", "kvm_intel", "Y"), "neither VT-x nor SVM"),
            (offer("flags : fpu vmx", "kvm_intel", "N\n"), "nested=1"),
            (offer("flags : fpu svm", "kvm_intel", "Y"), "kvm_amd is not loaded"),
            (offer("vmx flags : fpu vmx_like\nmodel : vmx", "kvm_intel", "Y"), "neither"),
        ];
        for (offer, word) in cases {
            assert!(matches!(&offer, Offer::Unusable(why) if why.contains(word)), "{offer:?} lacks {word}");
        }
    }

    #[test]
    fn kvm_runs_the_same_machine_on_the_hosts_cpu() {
        let machine = Machine::new(Boot::Pvh { kernel: "hv".into(), bundle: None, cmdline: "a".into() }, 1024);
        let expected = "-accel kvm -cpu host -M q35 -m 1024 -smp 1 -display none -nodefaults -no-user-config \
            -no-reboot -device isa-debug-exit,iobase=0xf4,iosize=4 -serial none -serial none -kernel hv -append a";
        assert_eq!(arguments(&machine).join(" "), expected);
    }

    #[test]
    fn an_iommu_splits_kvms_interrupt_controller() {
        let boot = Boot::Disk("d".into());
        let machine = Machine { has_iommu: true, cpus: 4, ..Machine::new(boot, 64) };
        let line = arguments(&machine).join(" ");
        let start = "-accel kvm -cpu host -M q35,kernel-irqchip=split -device intel-iommu,intremap=on -m 64 -smp 4 ";
        assert!(line.starts_with(start), "{line}");
    }
}
