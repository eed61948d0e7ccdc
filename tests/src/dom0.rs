// SPDX-License-Identifier: MIT OR Apache-2.0
//! The list of checks in dom0: sessions of one boot each, with commands for its shell.
//!
//! A command is a check of its own, so that one that fails hides none of the others; those that would disturb each
//! other belong in different sessions. A command passes with the expected status and the expected output.

mod devices;
mod guests;
mod smp;
mod tenants;

use crate::{Backend, SVM, Tier, VMX};

/// One boot of dom0.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// The first part of its checks' names.
    pub name: &'static str,
    /// When it is run.
    pub tier: Tier,
    /// Where it is run.
    pub backends: &'static [Backend],
    /// The longest that it may take until the shell answers, in seconds, on a busy machine.
    pub boot_limit_seconds: u64,
    /// A series of Debian's kernels; the default when empty.
    pub kernel: &'static str,
    /// A series of Debian's kernels for guests, whose files dom0 finds below `/var/lib/isthmus/demo`; none when empty.
    pub guest: &'static str,
    /// Micro-guests that dom0 finds below `/var/lib/isthmus/micro`.
    pub micro_guests: &'static [&'static str],
    /// Debian packages in dom0's root.
    pub packages: &'static [&'static str],
    /// More arguments for dom0's kernel.
    pub append: &'static str,
    /// Words for the hypervisor's command line.
    pub hv_append: &'static str,
    /// Memory of the machine.
    pub memory_mib: u32,
    /// CPUs of the machine.
    pub cpus: u32,
    /// The size of an empty disk that the machine has; none when 0.
    pub disk_mib: u32,
    /// Start by BIOS and GRUB also where an emulator has a quicker way.
    pub by_grub: bool,
    /// Start by UEFI and GRUB.
    pub by_uefi: bool,
    /// Whether the machine has an IOMMU.
    pub has_iommu: bool,
    /// What is run in it.
    pub commands: &'static [Command],
}

/// One command for dom0's shell.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// The last part of its check's name but for the backend's.
    pub name: &'static str,
    /// What the shell is given. `$DISK` is the session's disk, `$SINK` a TCP port of the host (10.0.2.2) that takes bytes.
    pub text: &'static str,
    /// The longest that it may take, in seconds, on a busy machine.
    pub limit_seconds: u64,
    /// The status that it must end with.
    pub status: u8,
    /// What it must print.
    pub output: Output,
}

/// What a command must print on standard output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Output {
    /// Anything.
    Any,
    /// This text and no other.
    Exactly(&'static str),
    /// These bytes and no other.
    Bytes(&'static [u8]),
    /// All of these texts, somewhere.
    With(&'static [&'static str]),
    /// The SHA-256, in hexadecimal, of so many bytes that it sent to TCP port `$SINK` of the host.
    ChecksumOfSent(usize),
}

impl Session {
    /// A plain session, run with each submission.
    #[must_use]
    pub const fn new(name: &'static str, backends: &'static [Backend], commands: &'static [Command]) -> Self {
        Self {
            name,
            tier: Tier::Gate,
            backends,
            boot_limit_seconds: 240,
            kernel: "",
            guest: "",
            micro_guests: &[],
            packages: &[],
            append: "",
            hv_append: "",
            memory_mib: 2048,
            cpus: 1,
            disk_mib: 0,
            by_grub: false,
            by_uefi: false,
            has_iommu: false,
            commands,
        }
    }
}

/// A command that must succeed with this output.
#[must_use]
pub const fn prints(name: &'static str, text: &'static str, output: Output) -> Command {
    Command { name, text, limit_seconds: 60, status: 0, output }
}

/// A command that must end with this status, whatever it prints.
#[must_use]
pub const fn ends(name: &'static str, text: &'static str, status: u8) -> Command {
    Command { name, text, limit_seconds: 60, status, output: Output::Any }
}

/// The same command with another time limit, in seconds.
const fn within(limit_seconds: u64, command: Command) -> Command {
    Command { limit_seconds, ..command }
}

/// All sessions.
pub const SESSIONS: &[Session] = &[
    Session { disk_mib: 100, ..Session::new("dom0", SVM, BASICS) },
    Session { cpus: 2, disk_mib: 100, ..Session::new("dom0-on-two-cpus", SVM, smp::SHORT) },
    Session {
        tier: Tier::Long,
        cpus: 2,
        guest: "6.1-cloud",
        append: "isthmus.devices=off",
        ..Session::new("two-cpus-for-minutes", SVM, smp::LONG)
    },
    Session {
        tier: Tier::Long,
        cpus: 2,
        append: "isthmus.devices=off",
        boot_limit_seconds: 1800,
        memory_mib: 1024,
        ..Session::new("dom0-on-two-cpus", VMX, smp::SLOW)
    },
    Session { kernel: "6.12", disk_mib: 100, ..Session::new("dom0-6.12", SVM, OTHER_KERNEL) },
    Session { by_grub: true, ..Session::new("dom0-by-grub", SVM, BY_GRUB) },
    Session { tier: Tier::Long, by_uefi: true, boot_limit_seconds: 400, ..Session::new("dom0-by-uefi", SVM, BY_GRUB) },
    Session {
        guest: "6.1-cloud",
        packages: &["e2fsprogs"],
        micro_guests: &["block_front", "net_front", "hostile_front", "hostile_net"],
        append: "isthmus.devices=off",
        ..Session::new("devices", SVM, devices::DISK_AND_NETWORK)
    },
    Session {
        tier: Tier::Long,
        guest: "6.1-cloud",
        append: "isthmus.devices=off",
        ..Session::new("driver-domain", SVM, devices::DRIVER_DOMAIN)
    },
    Session { boot_limit_seconds: 600, memory_mib: 1024, disk_mib: 20, ..Session::new("dom0", VMX, WITHOUT_MSI) },
    Session { packages: &["xenstore-utils"], append: "isthmus.devices=off", ..Session::new("store", SVM, STORE) },
    Session { guest: "6.1-cloud", append: "isthmus.devices=off", ..Session::new("guests", SVM, guests::LIFE) },
    Session {
        guest: "6.1-cloud",
        micro_guests: &["tenant"],
        append: "isthmus.devices=off",
        ..Session::new("guests-bad", SVM, guests::BAD_INPUT)
    },
    Session {
        guest: "6.1-cloud",
        append: "isthmus.devices=off",
        boot_limit_seconds: 600,
        memory_mib: 1024,
        ..Session::new("guests", VMX, guests::SMALL)
    },
    Session {
        tier: Tier::Long,
        guest: "6.12-cloud",
        append: "isthmus.devices=off",
        ..Session::new("guests-6.12", SVM, guests::LIFE)
    },
    Session {
        tier: Tier::Long,
        guest: "6.1",
        append: "isthmus.devices=off",
        ..Session::new("guests-6.1-generic", SVM, guests::LIFE)
    },
    Session {
        tier: Tier::Long,
        guest: "6.12",
        append: "isthmus.devices=off",
        ..Session::new("guests-6.12-generic", SVM, guests::LIFE)
    },
    Session {
        tier: Tier::Long,
        guest: "6.1-cloud",
        micro_guests: &["tenant"],
        append: "isthmus.devices=off",
        ..Session::new("guests-many", SVM, guests::MANY)
    },
];

/// That dom0 is one, that its kernel is Debian's own, that a command's output and status arrive as they are, and that
/// interrupts, clock, disk and network work.
const BASICS: &[Command] = &[
    prints("kernel", "uname -r", Output::With(&["6.1.0-", "-amd64\n"])),
    IS_A_XEN_DOMAIN,
    prints("is-the-control-domain", "cat /proc/xen/capabilities", Output::Exactly("control_d\n")),
    prints("kernel-arguments", "cat /proc/cmdline", Output::With(&["console=hvc0"])),
    prints("output-is-exact", r"printf 'a\0b\r\n\377' | od -An -tx1", Output::Exactly(" 61 00 62 0d 0a ff\n")),
    ends("status-is-the-commands", "exit 7", 7),
    ends("status-of-a-signal", "kill -9 $$", 137),
    TIMER_IS_AN_EVENT,
    prints(
        "clock-source",
        "cat /sys/devices/system/clocksource/clocksource0/current_clocksource",
        Output::Exactly("tsc\n"),
    ),
    prints("disk-uses-msi", "grep ahci /proc/interrupts", Output::With(&["PCI-MSI"])),
    DISK_KEEPS_64_MIB,
    FILE_SYSTEM_KEEPS_64_MIB,
    prints("network-card-uses-msi", "grep eth0-rx /proc/interrupts", Output::With(&["PCI-MSI"])),
    HAS_AN_ADDRESS,
    SENDS_16_MIB,
    prints("foreign-pages-have-their-hole", "cat /proc/iomem", Output::With(&["Xen scratch"])),
    OUTPUTS_ARE_APART,
    CLOCK_IS_RIGHT,
    DMA_BUFFER_IS_THERE,
    prints(
        "a-closed-pipe-is-no-error",
        "{ sleep 0.2; isthmus counters 0; } 2>/tmp/said | : ; cat /tmp/said",
        Output::Exactly(""),
    ),
    prints("keeps-12-mib-at-most", KEPT, Output::With(&["hypervisor uses"])),
];

/// What the hypervisor keeps of a machine with 2 GiB.
const KEPT: &str = "isthmus info | grep 'hypervisor uses'
     isthmus info --json | awk -F '[:,]' '/hypervisor_kib/ { found = 1; exit !($2 <= 12 * 1024) } END { exit !found }'";

/// Bytes that are no text, on both outputs.
const OUTPUTS_ARE_APART: Command = prints(
    "output-is-byte-exact",
    r"printf '\377\000\r\n\033[1m' ; printf 'an error' >&2 ; printf '\001end'",
    Output::Bytes(b"\xff\0\r\n\x1b[1m\x01end"),
);

/// That it never goes back, and agrees with the ACPI timer within 1 %.
const CLOCK_IS_RIGHT: Command = ends("clock-agrees-with-the-pm-timer", "isthmus selftest clock", 0);

/// Where there is no IOMMU, dom0's devices use a buffer of its kernel's.
const DMA_BUFFER_IS_THERE: Command = prints(
    "dma-goes-through-a-buffer",
    "isthmus selftest dma && isthmus info | grep 'DMA buffer'",
    Output::With(&["64 MiB"]),
);

/// What may differ with the kernel.
const OTHER_KERNEL: &[Command] = &[
    prints("kernel", "uname -r", Output::With(&["6.12.", "-amd64\n"])),
    IS_A_XEN_DOMAIN,
    TIMER_IS_AN_EVENT,
    DISK_KEEPS_64_MIB,
    HAS_AN_ADDRESS,
    SENDS_16_MIB,
];

/// What Bochs' older devices can show: interrupts by the I/O APIC, disk and network with less data.
const WITHOUT_MSI: &[Command] = &[
    REACHED_IN_TIME,
    prints("kernel", "uname -r", Output::With(&["6.1.0-", "-amd64\n"])),
    IS_A_XEN_DOMAIN,
    prints("output-is-exact", r"printf 'a\0b\r\n\377' | od -An -tx1", Output::Exactly(" 61 00 62 0d 0a ff\n")),
    ends("status-is-the-commands", "exit 7", 7),
    TIMER_IS_AN_EVENT,
    Command {
        limit_seconds: 240,
        ..prints(
            "disk-keeps-4-mib",
            "head -c 4194304 /dev/urandom >/tmp/block
             dd if=/tmp/block of=$DISK bs=1M conv=fsync,notrunc 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches
             dd if=$DISK bs=1M count=4 2>/dev/null | cmp - /tmp/block && grep ata_piix /proc/interrupts",
            Output::With(&["IO-APIC"]),
        )
    },
    Command { limit_seconds: 240, ..HAS_AN_ADDRESS },
    Command {
        limit_seconds: 240,
        ..prints(
            "sends-1-mib",
            "until ip route | grep -q default; do sleep 1; done
             head -c 1048576 /dev/urandom >/tmp/sent; sha256sum </tmp/sent | cut -d ' ' -f 1
             nc 10.0.2.2 $SINK </tmp/sent",
            Output::ChecksumOfSent(1 << 20),
        )
    },
    prints("kernel-arguments", "cat /proc/cmdline", Output::With(&["console=hvc0"])),
    CLOCK_IS_RIGHT,
    KERNEL_USES_THE_STORE,
    Command {
        limit_seconds: 240,
        ..prints(
            "store-outlives-its-daemon",
            "isthmus store write /a 1; kill -9 $(cat /run/xenstored/pid); isthmus store read /a",
            Output::Exactly("1\n"),
        )
    },
];

/// That the store serves dom0's kernel, Debian's programs and ours, and survives whatever happens to its daemon.
const STORE: &[Command] = &[
    KERNEL_USES_THE_STORE,
    prints(
        "debians-programs-work",
        "xenstore-write /d/a 1 /d/b/c 2; xenstore-read /d/a /d/b/c; xenstore-list /d
         xenstore-chmod /d/a r0 b3; xenstore-ls -p /d; xenstore-exists /d/none || echo none; xenstore-rm /d/b
         xenstore-ls -f /d",
        Output::Exactly(
            "1\n2\na\nb\n\
             a = \"1\"  . . . . . . . . . . . . . . . . . . . . . . . . . .  (r0,b3)\n\
             b = \"\" . . . . . . . . . . . . . . . . . . . . . . . . . . .  (r0)\n c = \"2\" . . . . . . . . . . . . . . . . . . . . . . . . . .  (r0)\n\
             none\n\
             /d/a = \"1\"\n",
        ),
    ),
    prints(
        "debians-watch-works",
        "xenstore-watch -n 3 /w >/tmp/seen & sleep 1
         xenstore-write /w/a 1; xenstore-write /other 1; xenstore-rm /w/a; wait; cat /tmp/seen",
        Output::Exactly("/w\n/w/a\n/w/a\n"),
    ),
    prints(
        "our-commands-work",
        "isthmus store write /o/a 1 /o/b/c 'two words'; isthmus store read /o/a /o/b/c; isthmus store perms /o/a r0 n1
         isthmus store ls --perms /o; isthmus store read --json /o/a; isthmus store --by-socket rm /o/b
         isthmus store ls --flat /o; isthmus store read /o/none || echo status $?",
        Output::Exactly(
            "1\ntwo words\n\
             a = \"1\"  (r0,n1)\nb = \"\"  (r0)\n c = \"two words\"  (r0)\n\
             [\n  {\n    \"path\": \"/o/a\",\n    \"value\": \"1\"\n  }\n]\n\
             /o/a = \"1\"\nstatus 1\n",
        ),
    ),
    prints(
        "quotas-can-be-seen-and-set",
        "isthmus store quota nodes=1234; isthmus store quota | grep nodes; isthmus store usage --json | grep domain",
        Output::Exactly("nodes             1234\ntransaction-nodes 1024\n    \"domain\": 0,\n"),
    ),
    Command {
        limit_seconds: 240,
        ..prints(
            "killed-at-each-point-it-goes-on",
            "before=$(grep -c SIGKILL /run/xenstored/messages)
             for point in copied decided logged taken put said signalled; do for time in 2 3 4; do
                 isthmus store control die-at $point:$time >/dev/null
                 isthmus store write /k/$point/$time \"$point $time\"; isthmus store read /k/$point/$time
                 isthmus store write /k/x 1
             done; done | sort | md5sum
             isthmus store ls --flat /k | grep -v '\"\"' | sed 's/.*= .//; s/.$//' | grep -v '^1$' | sort | md5sum
             echo $(($(grep -c SIGKILL /run/xenstored/messages) - before))",
            // Of the lines `POINT TIME`, sorted.
            Output::Exactly("9e00811695f37497e91db7637fea42e6  -\n9e00811695f37497e91db7637fea42e6  -\n21\n"),
        )
    },
    Command {
        limit_seconds: 240,
        ..prints(
            "killed-at-any-time-it-loses-nothing",
            "(for i in $(seq 20); do isthmus store write /s/$i $i || echo lost $i; done; touch /tmp/done) &
             while ! [ -e /tmp/done ]; do usleep 700000; kill -9 $(cat /run/xenstored/pid) 2>/dev/null; done; wait
             for i in $(seq 20); do [ \"$(isthmus store read /s/$i)\" = $i ] || echo wrong $i; done
             isthmus store control check",
            Output::Exactly("OK\n"),
        )
    },
    Command {
        limit_seconds: 120,
        ..prints(
            "supervisor-is-started-again",
            "isthmus store write /kept yes; old=$(cat /run/xenstored/pid)
             kill -9 $(ps | awk '/isthmus [x]enstored --messages/ { print $1 }')
             until [ $(cat /run/xenstored/pid) != $old ]; do sleep 1; done; isthmus store read /kept",
            Output::Exactly("yes\n"),
        )
    },
    Command {
        limit_seconds: 240,
        ..prints(
            "daemon-that-hangs-is-replaced",
            "kill -STOP $(cat /run/xenstored/pid); isthmus store read /kept; grep -c 'no answer' /run/xenstored/messages",
            Output::Exactly("yes\n1\n"),
        )
    },
];

/// The kernel says so in the store when it has found one.
const KERNEL_USES_THE_STORE: Command = prints(
    "kernel-uses-the-store",
    "until isthmus store read control/feature-poweroff 2>/dev/null; do sleep 1; done",
    Output::Exactly("1\n"),
);

/// In Bochs a tick of the TSC is an instruction, from power-on: BIOS and GRUB are in it.
const REACHED_IN_TIME: Command = ends(
    "reached-within-4-billion-instructions",
    "isthmus counters 0 --json | awk -F '[:,]' '/\"tsc\"/ { found = 1; exit !($2 < 4000000000) } END { exit !found }'",
    0,
);

/// That the boot modules and their strings arrive by multiboot2 as well.
const BY_GRUB: &[Command] =
    &[IS_A_XEN_DOMAIN, prints("kernel-arguments", "cat /proc/cmdline", Output::With(&["console=hvc0"]))];

const IS_A_XEN_DOMAIN: Command = prints("is-a-xen-domain", "cat /sys/hypervisor/type", Output::Exactly("xen\n"));

const TIMER_IS_AN_EVENT: Command = prints(
    "timer-is-an-event",
    "count() { awk '/timer0/ { print $2 }' /proc/interrupts; }
     before=$(count); sleep 1; test $(($(count) - before)) -gt 3 && grep timer0 /proc/interrupts",
    Output::With(&["xen-percpu"]),
);

/// Four blocks of random bytes are written, dropped from memory and compared.
const DISK_KEEPS_64_MIB: Command = Command {
    limit_seconds: 120,
    ..prints(
        "disk-keeps-64-mib",
        "head -c 16777216 /dev/urandom >/tmp/block
         for i in 0 1 2 3; do dd if=/tmp/block of=$DISK bs=1M seek=$((i * 16)) conv=fsync,notrunc 2>/dev/null; done
         echo 3 >/proc/sys/vm/drop_caches
         for i in 0 1 2 3; do dd if=$DISK bs=1M skip=$((i * 16)) count=16 2>/dev/null | cmp - /tmp/block && echo same; done",
        Output::Exactly("same\nsame\nsame\nsame\n"),
    )
};

/// As many bytes in files, through a file system that is let go of and mounted again.
const FILE_SYSTEM_KEEPS_64_MIB: Command = Command {
    limit_seconds: 180,
    ..prints(
        "file-system-keeps-64-mib",
        "set -e; mke2fs $DISK >/dev/null; modprobe -q ext4 || true; mount -t ext2 $DISK /mnt
         head -c 16777216 /dev/urandom >/tmp/block
         for i in 0 1 2 3; do cp /tmp/block /mnt/$i; done
         umount /mnt; echo 3 >/proc/sys/vm/drop_caches; mount -t ext2 $DISK /mnt
         for i in 0 1 2 3; do cmp /mnt/$i /tmp/block && echo same; done
         umount /mnt",
        Output::Exactly("same\nsame\nsame\nsame\n"),
    )
};

const HAS_AN_ADDRESS: Command = prints(
    "gets-an-address",
    "for i in $(seq 50); do ip -4 address show eth0 | grep inet && exit; sleep 1; done",
    Output::With(&["inet 10.0.2.15"]),
);

const SENDS_16_MIB: Command = Command {
    limit_seconds: 120,
    ..prints(
        "sends-16-mib",
        "until ip route | grep -q default; do sleep 1; done
         head -c 16777216 /dev/urandom >/tmp/sent; sha256sum </tmp/sent | cut -d ' ' -f 1
         nc 10.0.2.2 $SINK </tmp/sent",
        Output::ChecksumOfSent(16 << 20),
    )
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_checks_are_unique() {
        let mut names = std::collections::BTreeSet::new();
        for session in SESSIONS {
            for (command, backend) in session.commands.iter().flat_map(|c| session.backends.iter().map(move |b| (c, b)))
            {
                let name = (session.name, command.name, backend.name());
                assert!(names.insert(name), "{name:?} twice");
            }
        }
    }

    #[test]
    fn every_session_runs_somewhere_and_has_commands() {
        for session in SESSIONS {
            assert!(!session.backends.is_empty() && !session.commands.is_empty(), "{}", session.name);
            assert_ne!(session.tier, Tier::Quick, "{}: a boot of Linux is not quick", session.name);
        }
    }
}
