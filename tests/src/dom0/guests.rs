// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests that dom0 makes: an unmodified Debian kernel from its first line to its end, and what must not go wrong.
//!
//! Each session's commands build on those before: the first one starts the guest that the others use.

use super::{Command, Output, devices, ends, prints, tenants};

const fn within(limit_seconds: u64, command: Command) -> Command {
    Command { limit_seconds, ..command }
}

/// `variant NAME [SED-SCRIPT]` makes the description of another guest from the demo's, without its network card.
macro_rules! with_variants {
    ($text:literal) => {
        concat!(
            "D=/var/lib/isthmus/demo\n\
             variant() { sed \"s/.*nic.*//;s/^network.*//;s/\\\"demo\\\"/\\\"$1\\\"/;$2\" $D/demo.toml >$D/$1.toml; echo $D/$1.toml; }\n",
            $text
        )
    };
}

/// The demo guest is made and says on its console that it is up.
const BOOTS: Command = within(
    240,
    prints(
        "boots-a-debian-kernel",
        "cd /var/lib/isthmus/demo; sed '/nic/,$d' demo.toml >plain.toml
         isthmus create plain.toml && isthmus console demo --until 'is up with 1 CPU' --timeout 220",
        Output::With(&["demo is domain 1\n", "is up with 1 CPU"]),
    ),
);

const TYPES: Command = within(
    60,
    prints(
        "console-takes-input",
        "echo 'echo $((6 * 7))-$(cat /sys/hypervisor/type)-$(hostname)' |
         isthmus console demo --until 42-xen-demo --timeout 50",
        Output::With(&["42-xen-demo"]),
    ),
);

/// One life of guests, from the first to the last command.
pub(super) const LIFE: &[Command] = &[
    BOOTS,
    TYPES,
    prints(
        "log-keeps-what-was-written",
        "isthmus console --log demo",
        Output::With(&["Booting kernel on Xen PVH", "42-xen-demo"]),
    ),
    // One that only watches may not type, and who leaves does not end the others.
    within(
        60,
        prints(
            "console-has-several-watchers",
            "watch() { isthmus console demo $2 --until three-9 --timeout 50 </dev/null >/tmp/watcher-$1 & }
             watch 1; watch 2 --read-only
             echo 'echo never-typed' | isthmus console demo --read-only --timeout 2 >/dev/null; echo status $?
             echo 'echo three-$((3 * 3))' | isthmus console demo --until three-9 --timeout 50 >/dev/null; wait
             grep -c three-9 /tmp/watcher-1 /tmp/watcher-2; isthmus console --log demo | grep -c never-typed; true",
            Output::Exactly("status 3\n/tmp/watcher-1:1\n/tmp/watcher-2:1\n0\n"),
        ),
    ),
    prints("list", "isthmus list", Output::With(&["    0  dom0 ", "    1  demo "])),
    prints(
        "list-for-programs",
        "isthmus list --json; isthmus info demo --json",
        Output::With(&["\"name\": \"demo\"", "\"max_memory_mib\": 192", "\"boots\": 1", "\"kernel\": \"/var/lib/isthmus/demo/vmlinuz\""]),
    ),
    prints(
        "store-has-its-nodes",
        "isthmus store read /local/domain/1/name; isthmus store read /local/domain/1/control/feature-poweroff",
        Output::With(&["demo\n", "1\n"]),
    ),
    within(
        90,
        prints(
            "a-pause-stops-it-and-its-clock-goes-on",
            "isthmus pause demo; isthmus list | grep demo; before=$(isthmus list --json | grep -A8 demo | grep cpu_seconds)
             sleep 3; after=$(isthmus list --json | grep -A8 demo | grep cpu_seconds)
             test \"$before\" = \"$after\" && echo stopped; isthmus unpause demo
             echo 'echo lockups $(dmesg | grep -c -e soft.lockup -e unstable -e stalls.on)' |
             isthmus console demo --until 'lockups 0' --timeout 60",
            Output::With(&["paused", "stopped\n", "lockups 0"]),
        ),
    ),
    within(60, prints("foreign-frames-with-holes", "isthmus selftest foreign demo", Output::With(&["3 holes", "nothing else"]))),
    within(
        300,
        prints(
            "another-guest-with-two-cpus-runs-beside-it",
            with_variants!(
                "isthmus create $(variant two '$avcpus = 2') && isthmus console two --until 'is up with 2 CPU' --timeout 240
                 echo 'echo still $((1 + 1))' | isthmus console demo --until 'still 2' --timeout 30; isthmus list"
            ),
            Output::With(&["is up with 2 CPU", "still 2", "  two "]),
        ),
    ),
    within(
        120,
        prints(
            "a-flood-on-one-console-does-not-hold-up-another",
            "echo 'while :; do echo 0123456789012345678901234567890123456789; done' | isthmus console two --timeout 5 >/dev/null
             echo 'echo alive $((20 + 2))' | isthmus console demo --until 'alive 22' --timeout 60
             ls -l /var/log/isthmus/two.log* | awk '{ n += $5 > 1048576 } END { print \"too long:\", n }'",
            Output::With(&["alive 22", "too long: 0"]),
        ),
    ),
    within(
        60,
        prints(
            "consoles-survive-the-supervisor",
            "kill -9 $(pidof isthmus | tr ' ' '\\n' | while read p; do
                 tr '\\0' ' ' </proc/$p/cmdline | grep -q supervisor && echo $p; done)
             sleep 3; echo 'echo again $((30 + 3))' | isthmus console demo --until 'again 33' --timeout 40",
            Output::With(&["again 33"]),
        ),
    ),
    within(30, prints("destroy", "isthmus destroy two; isthmus list; isthmus wait two", Output::With(&["destroyed\n"]))),
    within(
        400,
        prints(
            "reboots-three-times",
            "for i in 1 2 3; do
                 isthmus reboot demo --wait 100 || exit
                 until isthmus list | grep -q demo; do sleep 1; done
                 isthmus console demo --until 'is up with' --timeout 100 >/dev/null || exit
                 until isthmus store read $(isthmus info demo --json | sed -n 's,.*\"id\": \\(.*\\)\\,,/local/domain/\\1,p')/control/feature-reboot
                 do sleep 1; done >/dev/null 2>&1
             done; isthmus info demo --json",
            Output::With(&["reboot\n", "\"boots\": 4"]),
        ),
    ),
    within(
        120,
        prints(
            "shuts-down-when-asked",
            "isthmus shutdown demo --wait 100; isthmus wait demo --json; isthmus list",
            Output::With(&["poweroff\n", "\"reason\":\"poweroff\""]),
        ),
    ),
    within(
        200,
        prints(
            // The kernel has no program to start yet, and switches the machine off itself.
            "shuts-down-when-asked-while-it-starts",
            with_variants!("isthmus create $(variant early) && isthmus shutdown early --wait 180; isthmus list"),
            Output::With(&["poweroff\n"]),
        ),
    ),
    within(
        240,
        prints(
            "a-panic-is-a-crash-with-its-reason",
            with_variants!(
                "isthmus create $(variant crash) && isthmus console crash --until 'is up with' --timeout 200 >/dev/null
                 echo 'echo c >/proc/sysrq-trigger' | isthmus console crash --timeout 20 >/dev/null
                 isthmus wait crash --timeout 20"
            ),
            Output::With(&["crash (sysrq triggered crash)\n"]),
        ),
    ),
    within(
        300,
        prints(
            "destroyed-during-boot-nothing-is-left",
            with_variants!(
                "free() { isthmus info --json | grep -e free_kib -e '\"domains\"'; }
                 one() { isthmus create $(variant brief) >/dev/null && sleep $1; isthmus destroy brief || exit; }
                 one 0; sleep 2; before=$(free)
                 for delay in 0 0.3 0.6 0.9 1.2; do one $delay; done; sleep 2
                 test \"$before\" = \"$(free)\" && echo same || { echo \"$before\"; free; }
                 isthmus store ls /local/domain | grep -v '^ '"
            ),
            Output::Exactly("same\n0 = \"\"\n"),
        ),
    ),
];

/// What is refused, how, and that nothing is left of it.
pub(super) const BAD_INPUT: &[Command] = &[
    prints(
        "errors-name-object-cause-and-remedy",
        with_variants!(
            "t() { isthmus create $1 2>&1; echo status $?; }
             t $D/none.toml; t $(variant a 's/vmlinuz/none/'); t $(variant b 's/vmlinuz/initrd/'); t $(variant c 's/192/20/')
             t $(variant d '$avcpu = 2'); t $(variant e 's/192/100000/'); head -c 3000000 $D/vmlinuz >$D/cut; t $(variant f 's/vmlinuz/cut/')
             isthmus destroy none 2>&1; isthmus pause 0 2>&1; isthmus list"
        ),
        Output::With(&[
            "none.toml: No such file",
            "creating a: kernel /var/lib/isthmus/demo/none: No such file",
            "creating b: kernel /var/lib/isthmus/demo/initrd: it is neither an ELF nor a bzImage",
            "creating c: kernel /var/lib/isthmus/demo/vmlinuz: ",
            "unknown field `vcpu`",
            "creating e: memory: 100000 MiB are wanted and ",
            "creating f: kernel /var/lib/isthmus/demo/cut: it is shorter than its boot header says",
            "destroying none: no domain is called none",
            "pausing 0: this is the control domain",
            "status 1\n",
        ]),
    ),
    prints(
        "nothing-is-left-of-them",
        "isthmus list --json | grep -c '\"id\"'; ls /run/isthmus/guests | grep -c json
         isthmus store ls /local/domain | grep -v '^ '",
        Output::Exactly("1\n0\n0 = \"\"\n"),
    ),
    within(
        120,
        prints(
            "a-command-that-is-killed-leaves-no-half-domain",
            with_variants!(
                "for delay in 0.05 0.1 0.2 0.4 0.8; do
                     isthmus create $(variant half) >/dev/null 2>&1 & sleep $delay; kill -9 $!; wait $! 2>/dev/null
                     for i in $(seq 50); do
                         isthmus list --json | grep -q half || break
                         isthmus info half --json | grep -q '\"boots\": 1' && isthmus destroy half; sleep 0.2
                     done
                 done; left() { isthmus list --json | grep -c '\"id\"'; }
                 for i in $(seq 50); do [ $(left) = 1 ] && break; sleep 0.2; done; left"
            ),
            Output::Exactly("1\n"),
        ),
    ),
    within(
        400,
        prints(
            "a-failure-at-any-call-leaves-nothing",
            with_variants!(
                "free() { isthmus info --json | grep -e free_kib -e '\"domains\"'; }
                 one() { isthmus create --paused $(variant fails 's/192/100/') >/dev/null && isthmus destroy fails; }
                 one; sleep 2; before=$(free); n=0
                 while n=$((n + 1)); ! isthmus create --paused --fail-call $n $D/fails.toml >/dev/null 2>/tmp/why; do
                     grep -q 'Cannot allocate memory\\|are free' /tmp/why || { cat /tmp/why; exit 1; }
                     [ \"$before\" = \"$(free)\" ] || { echo call $n: $(cat /tmp/why); free; }
                 done; isthmus destroy fails; sleep 1; test $n -gt 15 && test \"$before\" = \"$(free)\" && echo same"
            ),
            Output::Exactly("same\n"),
        ),
    ),
    ends("an-unknown-command-is-wrong-usage", "isthmus frobnicate", 2),
    within(
        400,
        prints(
            "a-kernel-may-crash-at-any-stage-of-its-boot",
            with_variants!(
                "one() { isthmus create $(variant $1 \"$2\") >/dev/null && echo $1: $(isthmus wait $1 --timeout 90); }
                 head -c 100000 /dev/urandom >$D/noise; head -c 100000 $D/initrd >$D/start
                 one no-init 's,hvc0,hvc0 rdinit=/none,'
                 one no-initrd '/^initrd/d'; one noise 's,\"initrd\",\"noise\",'; one cut 's,\"initrd\",\"start\",'
                 isthmus list --json | grep -c '\"id\"'"
            ),
            Output::With(&[
                "no-init: crash (VFS: Unable to mount root fs",
                "no-initrd: crash (VFS: Unable to mount root fs",
                "noise: crash (VFS: Unable to mount root fs",
                "cut: crash (",
                "\n1\n",
            ]),
        ),
    ),
    within(
        120,
        prints(
            "a-kernel-may-use-a-serial-line-before-its-console",
            with_variants!(
                "isthmus create $(variant early 's,hvc0,hvc0 earlyprintk=serial,') >/dev/null
                 isthmus console early --until 'is up with' --timeout 100 >/dev/null; isthmus console --serial early; isthmus destroy early"
            ),
            Output::With(&["] Linux version 6.", "bootconsole [earlyser0] enabled"]),
        ),
    ),
    tenants::ENDS,
    tenants::DEAF,
    tenants::SERIAL,
    tenants::HOSTILE_CONSOLES,
    tenants::HOSTILE_STORES,
];

/// What an emulator of VT-x has the time for.
pub(super) const SMALL: &[Command] = &[
    within(600, BOOTS_SLOWLY),
    within(
        200,
        prints(
            "console-takes-input",
            "echo 'echo $((6 * 7))-$(hostname)' | isthmus console demo --until 42-demo --timeout 180",
            Output::With(&["42-demo"]),
        ),
    ),
    within(200, prints("foreign-frames-with-holes", "isthmus selftest foreign demo", Output::With(&["3 holes"]))),
    within(
        200,
        prints(
            "the-store-outlives-its-daemon-with-a-guest",
            "kill -9 $(cat /run/xenstored/pid); isthmus store read /local/domain/1/name
             isthmus store read /local/domain/1/control/feature-poweroff; grep -c SIGKILL /run/xenstored/messages",
            Output::Exactly("demo\n1\n1\n"),
        ),
    ),
    devices::DISK_OF_THE_DEMO,
    devices::CARD_OF_THE_DEMO,
    within(300, prints("shuts-down-when-asked", "isthmus shutdown demo --wait 280", Output::With(&["poweroff\n"]))),
];

const BOOTS_SLOWLY: Command = prints(
    "boots-a-debian-kernel",
    "cd /var/lib/isthmus/demo; sed '/nic/,$d' demo.toml >plain.toml
     isthmus create plain.toml && isthmus console demo --until 'is up with 1 CPU' --timeout 580",
    Output::With(&["demo is domain 1\n", "is up with 1 CPU"]),
);

/// Everything of which a guest could leave something behind, in one text.
macro_rules! with_all_that_can_leak {
    ($text:literal) => {
        concat!(
            "all() {
                 isthmus info --json | grep -e free_kib -e '\"domains\"' -e heap_used -e overhead
                 isthmus info 0 --json | grep -e ports -e grant_frames -e '\"memory_mib'; isthmus store usage --json
                 isthmus store ls / | grep -c .; ls /run/isthmus/guests | grep -c json
             }
             D=/var/lib/isthmus/demo; M=/var/lib/isthmus/micro
             small() { printf 'name = \"small\"\nkernel = \"%s\"\nmemory = 8\n%s\n' $M/tenant \"$1\" >$M/small.toml; }
             sed '/nic/,$d;s/\"demo\"/\"brief\"/' $D/demo.toml >$D/brief.toml
             same() { test \"$before\" = \"$(all)\" && echo same || { echo \"$before\"; all; }; }\n",
            $text
        )
    };
}

/// A hundred guests, one after the other: small ones that run, and Debian's kernel, which is not let run.
pub(super) const MANY: &[Command] = &[
    within(
        900,
        prints(
            "a-hundred-small-guests-leave-everything-as-it-was",
            with_all_that_can_leak!(
                "small 'cmdline = \"say=hello listen stay\"'
                 one() { isthmus create $M/small.toml >/dev/null && isthmus console small --until hello --timeout 30 >/dev/null &&
                         isthmus destroy small || exit; }
                 one; one; sleep 2; before=$(all); for i in $(seq 100); do one; done; sleep 2; same"
            ),
            Output::Exactly("same\n"),
        ),
    ),
    within(
        1800,
        prints(
            "a-hundred-guests-leave-everything-as-it-was",
            with_all_that_can_leak!(
                "one() { isthmus create --paused $D/brief.toml >/dev/null && isthmus destroy brief || exit; }
                 one; one; sleep 2; before=$(all); for i in $(seq 100); do one; done; sleep 2; same"
            ),
            Output::Exactly("same\n"),
        ),
    ),
];
