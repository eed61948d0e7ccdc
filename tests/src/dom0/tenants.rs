// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guests of dom0 that misbehave: each way to end, and each way to misuse a console and the store.
//!
//! The guest is the micro-guest `tenant`, which does what its command line says. Beside it stands another of the
//! same kind that must not notice.

use super::{Command, Output, prints};

const fn within(limit_seconds: u64, command: Command) -> Command {
    Command { limit_seconds, ..command }
}

/// `tenant NAME WORDS [LINE...]` makes one with these words and more lines in its description; `ends NAME` waits for it.
macro_rules! with_tenants {
    ($text:literal) => {
        concat!(
            "M=/var/lib/isthmus/micro; X=/run/xenstored/messages; S=/var/log/isthmus/supervisor.log
             tenant() {
                 name=$1; { printf 'name = \"%s\"\\nkernel = \"%s\"\\nmemory = 8\\ncmdline = \"%s\"\\n' $1 $M/tenant \"$2\"
                 shift 2; for line in \"$@\"; do echo \"$line\"; done; } >$M/$name.toml; isthmus create $M/$name.toml >/dev/null
             }
             ends() { echo $1 $(isthmus wait $1 --timeout 60); }
             good() { echo $1-ping | isthmus console good --until heard-$1-ping --timeout 40 >/dev/null && echo good: $1; }
             alone() {
                 for i in $(seq 50); do [ $(isthmus list | wc -l) = 2 ] && echo alone && return; sleep 0.2; done; isthmus list
             }
             number() { isthmus info $1 --json | sed -n 's/^  \"id\": \\(.*\\),/\\1/p'; }
             until_in() { for i in $(seq 150); do grep -q \"$2\" $1 && return; sleep 0.2; done; echo \"no $2 in $1\"; }\n",
            $text
        )
    };
}

/// What becomes of each end is what the guest's file says.
pub(super) const ENDS: Command = within(
    240,
    prints(
        "what-follows-an-end-is-in-the-file",
        with_tenants!(
            "tenant a end=0; ends a; tenant a 'off stay'; ends a; tenant b end=3; ends b; tenant c end=4; ends c
             tenant d end=1 'on_reboot = \"destroy\"'; ends d
             tenant e end=1 'on_reboot = \"preserve\"'; ends e
             tenant f triple-fault 'on_crash = \"preserve\"'; ends f
             tenant g halt 'on_poweroff = \"preserve\"'; ends g
             isthmus list | awk '{ print $2, $3 }'; isthmus info f | grep ended; isthmus destroy e f g; alone
             tenant h end=3 'on_crash = \"restart\"'; tenant i end=1; tenant j end=0 'on_poweroff = \"restart\"'
             for guest in h i j; do
                 R=/run/isthmus/guests/$guest.json; until_in $R '\"ended\": {'; grep -e '\"boots' -e reason $R
             done; alone; tenant k end=1 'on_reboot = \"restart\"'; until_in /run/isthmus/guests/k.json '\"boots\": [2-9]'
             isthmus destroy k; ends k | grep -cE 'destroyed|reboot'; alone"
        ),
        Output::Exactly(
            "a poweroff\na poweroff\nb crash\nc watchdog\nd reboot\ne reboot\nf crash\ng poweroff\n\
             NAME STATE\ndom0 running\ne shutdown\nf crashed\ng shutdown\nended:          crash\nalone\n        \"reason\": \"crash\"\n  \"boots\": 5,\n\
             \x20       \"reason\": \"reboot\"\n  \"boots\": 5,\n        \"reason\": \"poweroff\"\n  \"boots\": 5,\nalone\n\
             1\nalone\n",
        ),
    ),
);

/// A guest that nobody can talk to, one that does not do what it says, and one that has only a serial line.
pub(super) const DEAF: Command = within(
    120,
    prints(
        "refusing-to-shut-down-is-told-and-destroy-helps",
        with_tenants!(
            "tenant mute stay; isthmus shutdown mute 2>&1; echo status $?
             isthmus reboot mute --wait 1 2>&1; echo status $?; isthmus destroy mute
             tenant deaf 'listen stay'; until isthmus shutdown deaf 2>/dev/null; do sleep 0.2; done
             isthmus shutdown deaf --wait 7 2>&1; echo status $?
             isthmus store read /local/domain/$(number deaf)/control/shutdown; isthmus destroy deaf; ends deaf
             tenant alone stay 'xenstore = false'; isthmus shutdown alone 2>&1; isthmus destroy alone"
        ),
        Output::Exactly(
            "isthmus: shutting down mute: it has not said that it listens to poweroff requests (is it still starting?); \
             --wait asks until it does, isthmus destroy ends it\nstatus 1\n\
             isthmus: waiting for mute: it has not ended in 1 s\nstatus 3\n\
             isthmus: waiting for deaf: it has not ended in 7 s\nstatus 3\npoweroff\ndeaf destroyed\n\
             isthmus: shutting down alone: it was made without xenstore, so it cannot be asked; isthmus destroy ends it\n",
        ),
    ),
);

/// What a guest writes to COM1 can be read, also after its end. When whoever keeps it is killed in between, nothing is lost and nothing is there twice.
pub(super) const SERIAL: Command = within(
    60,
    prints(
        "a-serial-line-is-kept",
        with_tenants!(
            "tenant uart 'serial=from-the-start stay' 'xenstore = false'; sleep 1; isthmus console --serial uart | grep -c start
             kill -9 $(ps | awk '/isthmus [s]upervisor/ { print $1 }'); sleep 2; isthmus console --serial uart | grep -c start
             isthmus destroy uart; tenant brief 'serial=last-words triple-fault'; ends brief
             isthmus console --serial brief | tr -d '\\r'
             isthmus console --log ../../etc/passwd 2>&1; isthmus console --log nobody 2>&1; true"
        ),
        Output::With(&[
            "1\n1\nbrief crash\n",
            "\nlast-words\n",
            "isthmus: ../../etc/passwd: a name has 1 to 64 letters",
            "isthmus: the log of nobody: /var/log/isthmus/nobody.log does not exist: no guest of this name",
        ]),
    ),
);

/// Counters that cannot be true end the service of that console, with a reason; a flood is read at a rate.
pub(super) const HOSTILE_CONSOLES: Command = within(
    300,
    prints(
        "hostile-consoles-harm-nobody",
        with_tenants!(
            "tenant good echo; good start
             for attack in claim back input fill; do
                 tenant bad-$attack \"console-$attack store-alive stay\"; until_in $S \"console of bad-$attack is not served any more: \"
                 good $attack; isthmus console bad-$attack 2>&1 | grep -o 'is not served; the reason' ; isthmus destroy bad-$attack
             done
             tenant owned 'console-owned store-alive stay'; good owned; isthmus destroy owned
             tenant flood console-flood; sleep 3; good flood; isthmus destroy flood; cat /var/log/isthmus/flood.log* | wc -c |
             awk '{ print ($1 <= 4194304) ? \"bounded\" : $1 }'; grep 'console of bad-' $S | grep -o 'its .*put ring'"
        ),
        Output::Exactly(
            "good: start\ngood: claim\nis not served; the reason\ngood: back\nis not served; the reason\n\
             good: input\nis not served; the reason\ngood: fill\nis not served; the reason\ngood: owned\ngood: flood\nbounded\n\
             its output ring\nits output ring\nits input ring\nits output ring\n",
        ),
    ),
);

/// The same for the store; what is left half done, or beyond the quota, is undone or refused.
pub(super) const HOSTILE_STORES: Command = within(
    400,
    prints(
        "hostile-stores-harm-nobody",
        with_tenants!(
            "reason() { until_in $X \"$1\"; grep \"$1\" $X | tail -1 | cut -c1-90; }
             for attack in claim back answers fill long; do
                 tenant bad-$attack \"store-$attack store-dropped stay\"; id=$(number bad-$attack); reason \"d$id: \"
                 good $attack; isthmus destroy bad-$attack
             done
             for words in store-cut store-transaction 'store-unknown store-alive' 'store-quota store-alive'; do
                 tenant passing \"$words\"; ends passing; good \"${words%% *}\"
             done; for limit in nodes watches transactions; do grep -c \"refused: d.* may have .* $limit\" $X; done
             tenant deaf 'store-deaf stay'; tenant owned 'store-owned stay'; sleep 5; good deaf; isthmus destroy deaf owned
             tenant plain 'ungrant echo'; echo up | isthmus console plain --until heard-up --timeout 40 >/dev/null
             kill -9 $(cat /run/xenstored/pid); echo again | isthmus console plain --until heard-again --timeout 40 >/dev/null &&
             echo plain is served without a grant; good kill; isthmus destroy plain good
             isthmus store control check; isthmus store ls /local/domain | grep -v '^ '"
        ),
        Output::With(&[
            "counters are 0x1388 and 0x0, more than 1024",
            "good: claim\n",
            "counters are 0xfffffff0 and 0x0, more than ",
            "good: back\n",
            "counters are 0x0 and 0x2328, more than 1024",
            "good: answers\n",
            "good: fill\n",
            "announces 4294967040 bytes, more t",
            "good: long\npassing poweroff\ngood: store-cut\npassing poweroff\ngood: store-transaction\n\
             passing poweroff\ngood: store-unknown\npassing poweroff\ngood: store-quota\n1\n1\n1\n\
             good: deaf\nplain is served without a grant\ngood: kill\nOK\n0 = \"\"\n",
        ]),
    ),
);
