// SPDX-License-Identifier: MIT OR Apache-2.0
//! dom0 on two CPUs, and guests with more vCPUs than there are CPUs beside it.
//!
//! Commands build on those before: the guests that one starts are used by the others.

use super::{Command, Output, prints, within};

/// All three sum up copies of the same bytes on every vCPU, for so many seconds.
macro_rules! load {
    ($seconds:literal) => {
        prints(
            "sums-are-right-in-two-guests-and-dom0",
            concat!(
                "cd /tmp; one() { echo '/load ",
                $seconds,
                "' | isthmus console $1 --until 'sums 1 of' --timeout $((",
                $seconds,
                " * 3 + 100)) >/tmp/$1.out && echo $1; }
                 one four & one two & x/load ",
                $seconds,
                "; wait; grep -h -o 'sums 1 of.*' four.out two.out"
            ),
            Output::With(&["four\n", "two\n", "sums 1 of "]),
        )
    };
}

/// One is paused again and again, each time on whichever CPUs it runs, while its vCPUs read the clock, by both ways
/// that Linux has to read it.
macro_rules! paused {
    ($count:literal, $seconds:literal) => {
        prints(
            "its-clock-never-goes-back-whatever-stops-it",
            concat!(
                "echo 'cd /sys/devices/system/clocksource/clocksource0; for s in xen tsc; do echo $s >current_clocksource
                 cat current_clocksource; isthmus selftest steps --seconds ",
                $seconds,
                "; done; echo steps-$((40 + 2))' | isthmus console four --until steps-42 --timeout 280 >/tmp/four.out & sleep 2
                 isthmus selftest pauses four --count ",
                $count,
                "; wait; grep -o '^xen\\|^tsc\\|no step back\\|went back.*' /tmp/four.out"
            ),
            Output::With(&["paused ", "xen\nno step back\ntsc\nno step back\n"]),
        )
    };
}
/// In the gate: dom0 alone. Guests beside it are in the long tier: one such boot in QEMU, with two CPUs in two threads,
/// ended with the host's registers in dom0's control block, and why is open.
pub(super) const SHORT: &[Command] = &[
    BOTH_ARE_UP,
    IT_IS_SAID,
    EACH_HAS_ITS_TIMER,
    CALLS_ARRIVE,
    TIME_GOES_ON,
    A_DISK_INTERRUPT_MOVES,
    EVENTS_COME_IN_QUEUES,
    NO_STEP_BACK,
];

/// What an emulator of VT-x, which runs both CPUs in turns, has the time for.
pub(super) const SLOW: &[Command] = &[
    within(200, BOTH_ARE_UP),
    within(200, IT_IS_SAID),
    within(200, EACH_HAS_ITS_TIMER),
    within(200, CALLS_ARRIVE),
    within(200, EVENTS_COME_IN_QUEUES),
    within(400, NO_STEP_BACK),
];

/// The same for minutes.
pub(super) const LONG: &[Command] = &[
    STARTS,
    within(900, load!("60")),
    within(900, paused!("5000", "20")),
    KEEPS_LATENCY,
    within(120, prints("clock-keeps-pace-under-load", "isthmus selftest clock --seconds 30", Output::With(&["timer"]))),
    NO_LOCKUPS,
    ENDS_WHILE_BUSY,
];

const BOTH_ARE_UP: Command = prints("both-are-up", "nproc", Output::Exactly("2\n"));

const IT_IS_SAID: Command = prints("isthmus-says-so", "isthmus info | grep CPUs", Output::With(&["2 of 2"]));

const EACH_HAS_ITS_TIMER: Command = prints(
    "each-has-its-timer",
    "sleep 1; awk '/timer0/ && $2 > 0 { a = 1 } /timer1/ && $3 > 0 { b = 1 } END { print a + b }' /proc/interrupts",
    Output::Exactly("2\n"),
);

const CALLS_ARRIVE: Command = prints(
    "calls-between-them-arrive",
    "for i in 0 1; do taskset $((i + 1)) sh -c 'echo 3 > /proc/sys/vm/drop_caches; sync'; done; echo fine",
    Output::Exactly("fine\n"),
);

const TIME_GOES_ON: Command = prints(
    "time-does-not-go-back",
    "last=0; for i in $(seq 300); do now=$(taskset $((i % 2 + 1)) cut -d' ' -f1 /proc/uptime | tr -d .); \
     [ $now -ge $last ] || echo $last $now; last=$now; done; echo checked",
    Output::Exactly("checked\n"),
);

const A_DISK_INTERRUPT_MOVES: Command = prints(
    "a-disk-interrupt-moves",
    "irq=$(awk '/ahci/ { print $1 + 0 }' /proc/interrupts); echo 2 > /proc/irq/$irq/smp_affinity; \
     dd if=/dev/urandom of=$DISK bs=1M count=16 conv=fsync 2>/dev/null; \
     awk '/ahci/ && $3 > 0 { print \"moved\" }' /proc/interrupts",
    Output::Exactly("moved\n"),
);

const EVENTS_COME_IN_QUEUES: Command =
    prints("events-come-in-queues", "dmesg | grep xen:events", Output::With(&["Using FIFO-based ABI"]));

const NO_STEP_BACK: Command =
    prints("no-cpu-reads-less-than-another-has", "isthmus selftest steps", Output::With(&["2 threads, no step back"]));

/// One guest has twice the vCPUs that there are CPUs.
const STARTS: Command = within(
    500,
    prints(
        "two-guests-start-with-six-vcpus",
        r#"cd /tmp; mkdir -p x/usr/bin; cp /usr/bin/isthmus x/usr/bin/
cat >x/load <<'END'
#!/bin/sh
head -c 1000000 /dev/urandom >/tmp/bytes; up() { cut -d. -f1 /proc/uptime; }; end=$(($(up) + $1))
for cpu in $(seq $(nproc)); do
    while [ $(up) -lt $end ]; do cp /tmp/bytes /tmp/copy$cpu; sha256sum </tmp/copy$cpu; done >/tmp/sums$cpu &
done; wait; echo "sums $(cat /tmp/sums* | sort -u | wc -l) of $(cat /tmp/sums* | wc -l)"
END
chmod +x x/load; (cd x && find . | cpio -o -H newc 2>/dev/null) >extra; cat extra /var/lib/isthmus/demo/initrd >initrd
for guest in four:4 two:2; do
    printf '%s\n' "name = \"${guest%:*}\"" 'kernel = "/var/lib/isthmus/demo/vmlinuz"' 'initrd = "initrd"' \
        'cmdline = "console=hvc0"' 'memory = 192' "vcpus = ${guest#*:}" >${guest%:*}.toml
    isthmus create ${guest%:*}.toml && isthmus console ${guest%:*} --until 'is up with' --timeout 240 | grep -o 'is up with.*CPU'
done"#,
        Output::With(&["is up with 4 CPU", "is up with 2 CPU"]),
    ),
);

/// A thread that sleeps a millisecond is soon back although six vCPUs never sleep. How soon it is on a machine that has
/// nothing else to do, the simulation of the scheduler says; the host of an emulator may be busy.
const KEEPS_LATENCY: Command = within(
    200,
    prints(
        "a-sleeper-is-back-soon-beside-hogs",
        "for guest in four two; do
             echo 'for i in 1 2 3 4; do while :; do :; done & done; echo hogs-$((40 + 2))' |
             isthmus console $guest --until hogs-42 --timeout 60 >/dev/null
         done; isthmus bench sleep --repetitions 500 --json >/tmp/figures
         khz=$(isthmus info --json | awk -F '[:,]' '/tsc_khz/ { print $2 + 0 }')
         awk -F '[:,}]' -v khz=$khz '{ ms = $10 / $4 / khz; print ms, \"ms\"; print (ms < 25 ? \"soon\" : \"late\") }' /tmp/figures",
        Output::With(&["soon\n"]),
    ),
);

const NO_LOCKUPS: Command = within(
    200,
    prints(
        "no-kernel-complains",
        "for guest in four two; do
             echo 'dmesg | grep -e soft.lockup -e unstable -e stalls.on; echo checked-$((40 + 2))' |
             isthmus console $guest --until checked-42 --timeout 90 >/tmp/$guest.out && echo $guest
             grep -a '^\\[.*\\(soft lockup\\|unstable\\|stalls on\\)' /tmp/$guest.out
         done; dmesg | grep -e soft.lockup -e unstable -e stalls.on; echo end",
        Output::Exactly("four\ntwo\nend\n"),
    ),
);

const ENDS_WHILE_BUSY: Command = prints(
    "they-end-while-they-are-busy",
    "isthmus destroy four two >/dev/null; sleep 1; isthmus list --json | grep -c '\"id\"'",
    Output::Exactly("1\n"),
);
