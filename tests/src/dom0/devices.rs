// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disks and network cards of a guest: Linux' own frontends in it, Linux' own backends in dom0.
//!
//! The guest is the demo guest with a script behind its initial RAM disk. What it says goes to its console; dom0 looks
//! at the same data from its side.

use super::{Command, Output, ends, prints};

/// Makes a guest whose script does its part, and waits for its end.
const SETUP: Command = Command {
    limit_seconds: 400,
    ..prints(
        "guest-with-disk-and-network-card",
        r#"cd /tmp; truncate -s 64M disk.img; mkfs.ext4 -q disk.img; truncate -s 8M more.img
mkdir -p x/etc/rc.d
cat >x/etc/rc.d/50-devices <<'END'
#!/bin/sh
exec >/dev/hvc0 2>&1
mkdir -p /disk; mount -t ext4 /dev/xvda /disk
ip link set eth0 up; ip address add 192.168.77.2/24 dev eth0
head -c 16777216 /dev/urandom >/disk/file; sync; echo 3 >/proc/sys/vm/drop_caches
sha256sum /disk/file >/disk/sum; sync; echo 3 >/proc/sys/vm/drop_caches
sha256sum -c /disk/sum
until ping -c 1 -W 1 192.168.77.1 >/dev/null; do sleep 1; done
nc 192.168.77.1 5000 </disk/file
nc 192.168.77.1 5001 >/disk/received
umount /disk; echo PART ONE
while [ ! -b /dev/xvdb ]; do sleep 0.2; done
head -c 4194304 /dev/urandom >/tmp/b; dd if=/tmp/b of=/dev/xvdb bs=64k conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches; head -c 4194304 /dev/xvdb | cmp - /tmp/b && echo PART TWO
while [ -b /dev/xvdb ]; do sleep 0.2; done; echo PART THREE
END
chmod +x x/etc/rc.d/50-devices
(cd x && find . | cpio -o -H newc 2>/dev/null | gzip) >extra; cat extra /var/lib/isthmus/demo/initrd >initrd
cat >devices.toml <<'END'
name = "devices"
kernel = "/var/lib/isthmus/demo/vmlinuz"
initrd = "initrd"
cmdline = "console=hvc0"
memory = 160
[[disk]]
source = "disk.img"
[[nic]]
END
isthmus create devices.toml && ip address add 192.168.77.1/24 dev isthmus0
head -c 8388608 /dev/urandom >sent
nc -l -p 5000 >received; nc -l -p 5001 <sent
isthmus console devices --until 'PART ONE' --timeout 300 | grep -o 'file: OK' | head -1"#,
        Output::With(&["is domain", "file: OK"]),
    )
};

/// All of them, in this order in one boot.
pub(super) const DISK_AND_NETWORK: &[Command] = &[
    SETUP,
    prints(
        "disk-is-clean-and-holds-what-was-written",
        "cd /tmp; e2fsck -fn disk.img >/dev/null && mkdir -p m && mount -o loop,ro disk.img m &&
         (cd m && sha256sum file | cut -d ' ' -f 1; cut -d ' ' -f 1 sum) | uniq | wc -l; cp m/file m/received .",
        Output::Exactly("1\n"),
    ),
    prints("network-brings-what-the-guest-sent", "cmp /tmp/file /tmp/received && echo same", Output::Exactly("same\n")),
    prints(
        "network-brings-what-was-sent-to-the-guest",
        "cmp /tmp/sent /tmp/m/received && echo same; umount /tmp/m",
        Output::Exactly("same\n"),
    ),
    Command {
        limit_seconds: 120,
        ..prints(
            "block-attach-and-detach",
            "cd /tmp; isthmus block-attach devices more.img xvdb &&
             isthmus console devices --until 'PART TWO' --timeout 100 | grep -o 'PART TWO' | head -1
             isthmus block-detach devices xvdb && isthmus console devices --until 'PART THREE' --timeout 60 >/dev/null &&
             losetup -a | grep -c more.img",
            Output::Exactly("PART TWO\n0\n"),
        )
    },
    prints(
        "stats-count-requests-and-bytes",
        "isthmus stats devices; isthmus stats devices --json | grep -E -c 'bytes_written|bytes_sent'",
        Output::With(&["disk 51712", "network card vif", "hypercall", "\n2\n"]),
    ),
    prints(
        "bad-devices-are-refused-by-name",
        "cd /tmp; isthmus block-attach devices nothing.img xvdc 2>&1; isthmus block-attach devices /dev xvdc 2>&1
         isthmus block-attach devices more.img xvda 2>&1; isthmus block-detach devices xvdz 2>&1
         isthmus net-attach devices 1 --bridge br9 2>&1; isthmus block-attach nobody more.img xvdc 2>&1",
        Output::With(&[
            "disk xvdc (/tmp/nothing.img): opening its source: No such file",
            "neither a file nor a block device",
            "has a device of this name already",
            "the guest has no such device",
            "there is no bridge br9 in dom0",
            "no domain is called nobody",
        ]),
    ),
    prints(
        "nothing-is-left-when-the-guest-is-destroyed",
        "isthmus destroy devices; for i in $(seq 50); do
           left=$(ls /sys/bus/xen-backend/devices /sys/class/net | grep -c -E '^(vbd-|vif)'; losetup -a | grep -c tmp
                  isthmus store ls /local/domain/0/backend/vbd 2>/dev/null | wc -l)
           if [ \"$(echo $left)\" = '0 0 0' ]; then echo nothing; exit; fi; sleep 0.2
         done; echo \"$left\"",
        Output::Exactly("nothing\n"),
    ),
    Command {
        limit_seconds: 120,
        ..prints(
            "driver-on-guest-abi-and-a-hostile-one",
            r#"cd /tmp; truncate -s 1M micro.img
cat >micro.toml <<'END'
name = "micro"
kernel = "/var/lib/isthmus/micro/block_front"
memory = 16
on_poweroff = "preserve"
[[disk]]
source = "micro.img"
END
isthmus create micro.toml && isthmus wait micro --timeout 90; isthmus console --serial micro | grep -E 'FAIL|DONE'
dd if=micro.img bs=4096 skip=1 count=1 2>/dev/null | od -An -tu1 -N 4; isthmus destroy micro; dmesg | grep -c 'Frontend provided bogus ring'"#,
            Output::With(&["micro is domain", "DONE", "   0   1   2   3
", "
1
"]),
        )
    },
    ends("no-warning-in-the-kernels-log", "! dmesg | grep -E 'BUG|WARNING|Oops|g\\.e\\. 0x'", 0),
];
