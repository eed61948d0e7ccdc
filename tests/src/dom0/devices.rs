// SPDX-License-Identifier: MIT OR Apache-2.0
//! Disks and network cards of a guest: Linux' own frontends in it, Linux' own backends in dom0.
//!
//! The guest is the demo guest with a script before its initial RAM disk (`devices/guest.sh`), whose functions dom0 calls
//! by the guest's console. What a check shows is looked at from both sides.

use super::{Command, Output, ends, prints};

/// Functions for dom0's shell before the text: `g FUNCTION [SECONDS]` has the guest do something.
macro_rules! with_guest {
    ($text:expr) => {
        concat!(
            r#"cd /tmp; mkfifo hold 2>/dev/null; exec 9<>hold
g() {
    n=$(($(cat calls) + 1)); echo $n >calls
    echo "/t $1 $n" | isthmus console ${G:-devices} --until "END-$n" --timeout ${2:-100} >said
    grep -q "status 0 END-$n" said || { echo "$1 failed:"; tail -n 20 said; return 1; }
}
count() { cat /sys/class/net/vif*.0/statistics/$1; }
"#,
            $text
        )
    };
}

/// Runs a micro-guest with a device to its end; what failed in it, or that it is done.
macro_rules! micro {
    ($name:literal, $device:literal, $after:literal) => {
        concat!(
            "cd /tmp; truncate -s 1M micro.img; ip address add 192.168.77.1/24 dev isthmus0 2>/dev/null\n",
            "printf '%s\\n' 'name = \"",
            $name,
            "\"' 'kernel = \"/var/lib/isthmus/micro/",
            $name,
            "\"' 'memory = 16' 'on_poweroff = \"preserve\"' 'on_crash = \"preserve\"' \"",
            $device,
            "\" >micro.toml\nisthmus create micro.toml && isthmus wait ",
            $name,
            " --timeout 120\nisthmus console --serial ",
            $name,
            " | grep -E 'FAIL|DONE'; isthmus destroy ",
            $name,
            "\n",
            $after
        )
    };
}

const fn within(limit_seconds: u64, command: Command) -> Command {
    Command { limit_seconds, ..command }
}

/// Makes the guest. What memory is free before is compared with what is free at its end.
const STARTS: Command = within(
    400,
    prints(
        "guest-with-disk-and-network-card",
        concat!(
            r#"cd /tmp; echo 0 >calls; isthmus info --json | grep free_kib >free; truncate -s 64M disk.img; truncate -s 16M more.img
libs=usr/lib/x86_64-linux-gnu; mkdir -p x/etc x/usr/bin x/usr/sbin x/usr/lib64 x/$libs; cp /etc/mke2fs.conf x/etc/
cp /usr/bin/isthmus x/usr/bin/; cp /usr/sbin/mkfs.ext4 x/usr/sbin/; cp /usr/lib64/ld-linux-x86-64.so.2 x/usr/lib64/
for lib in c ext2fs com_err blkid uuid e2p; do cp /$libs/lib$lib.so.* x/$libs/; done
cat >x/checks <<'END'
"#,
            include_str!("devices/guest.sh"),
            r#"END
cat >x/t <<'END'
#!/bin/sh
. /checks; ("$1") 2>&1; echo "status $? END-$2"
END
chmod +x x/t; (cd x && find . | cpio -o -H newc 2>/dev/null) >extra; cat extra /var/lib/isthmus/demo/initrd >initrd
cat >devices.toml <<'END'
name = "devices"
kernel = "/var/lib/isthmus/demo/vmlinuz"
initrd = "initrd"
cmdline = "console=hvc0"
memory = 192
[[disk]]
source = "disk.img"
[[nic]]
END
isthmus create devices.toml && ip address add 192.168.77.1/24 dev isthmus0
isthmus console devices --until 'is up with 1 CPU' --timeout 300 | grep -o 'is up with 1 CPU'"#
        ),
        Output::With(&["is domain", "is up"]),
    ),
);

/// All of them, in this order in one boot.
pub(super) const DISK_AND_NETWORK: &[Command] = &[
    STARTS,
    within(200, prints("ext4-keeps-16-mib", with_guest!("g file_system 180 && echo kept"), Output::Exactly("kept\n"))),
    within(200, prints("network-comes-up", with_guest!("g network && echo answers"), Output::Exactly("answers\n"))),
    within(
        200,
        prints(
            "guest-sends-16-mib-in-large-packets",
            with_guest!(
                "before=$(count rx_packets); nc -l -p 5000 <&9 >received & g sends; wait $!
                 packets=$(($(count rx_packets) - before)); sha256sum received | cut -d ' ' -f 1 >sum; wc -c <received
                 [ $packets -lt $((16777216 / 4344)) ] && echo large || echo $packets packets"
            ),
            Output::Exactly("16777216\nlarge\n"),
        ),
    ),
    within(
        200,
        prints(
            "guest-receives-16-mib-in-large-packets",
            with_guest!(
                "cat received received | tail -c +100001 | head -c 16777216 >sent
                 before=$(count tx_packets); nc -l -p 5001 <sent & g receives; wait $!
                 packets=$(($(count tx_packets) - before))
                 [ $packets -lt $((16777216 / 4344)) ] && echo large || echo $packets packets; g unmount"
            ),
            Output::Exactly("large\n"),
        ),
    ),
    within(
        100,
        prints(
            "both-sides-have-the-same",
            "cd /tmp; e2fsck -fn disk.img >/dev/null && mkdir -p m && mount -t ext4 -o loop,ro disk.img m && (cd m && sha256sum -c sum)
             cut -d ' ' -f 1 m/sum | cmp - sum && cmp m/received sent && echo same; umount m; rm received",
            Output::Exactly("file: OK\nsame\n"),
        ),
    ),
    within(
        100,
        prints(
            "disk-is-plugged-in",
            with_guest!("isthmus block-attach devices more.img xvdb --json | grep -q devices && g second_disk && echo there"),
            Output::Exactly("there\n"),
        ),
    ),
    within(
        200,
        prints("random-mix-is-verified", with_guest!("g mix 180 && echo verified"), Output::Exactly("verified\n")),
    ),
    within(
        100,
        prints(
            "disk-is-unplugged",
            with_guest!("isthmus block-detach devices xvdb && g no_second_disk && losetup -a | grep more.img | wc -l"),
            Output::Exactly("0\n"),
        ),
    ),
    within(
        100,
        prints(
            "disk-that-is-taken-away-is-an-error",
            with_guest!(
                "isthmus block-attach devices more.img xvdb && g second_disk && g reads &&
                 isthmus block-detach devices xvdb --force && g reading_fails && echo fails"
            ),
            Output::Exactly("fails\n"),
        ),
    ),
    within(
        100,
        prints(
            "card-with-packets-of-9000-bytes-is-plugged-in-and-out",
            with_guest!(
                "brctl addbr big && ip link set big up && ip address add 192.168.78.1/24 dev big
                 isthmus net-attach devices 1 --bridge big --mtu 9000 && ip link set big mtu 9000 && g big_packets && echo big
                 isthmus net-detach devices 1 && g no_second_card && echo gone; ip link set big down; brctl delbr big"
            ),
            Output::Exactly("big\ngone\n"),
        ),
    ),
    prints(
        "stats-count-requests-and-bytes",
        "isthmus stats devices; isthmus stats devices --json | grep -E -c 'bytes_written|bytes_sent'",
        Output::With(&["disk 51712", "network card vif", "hypercall", "its grants: mapped ", "\n2\n"]),
    ),
    // Pings of 1,400 bytes are the card's, of which dom0 maps and copies each; the disk keeps what it has mapped.
    within(
        100,
        prints(
            "stats-tell-grants-of-disk-and-card-apart",
            with_guest!(
                r#"numbers() { isthmus stats devices --json | tr -d ' ,"' | awk -F: '$1 == "kind" { of = $2 } $2 ~ /^[0-9]+$/ { print of "_" $1 "=" $2 }'; }
ip address add 192.168.77.1/24 dev isthmus0 2>/dev/null; g pings || exit
eval "$(numbers | sed 's/^/before_/')"; g pings || exit; eval "$(numbers)"; isthmus stats devices
[ $disk_mapped = $before_disk_mapped ] && [ $disk_mapped_now -gt 0 ] && echo the disk has its own
[ $nic_mapped -ge $(($before_nic_mapped + 5)) ] && [ $nic_mapped_now -lt 5 ] && echo the card maps
[ $nic_bytes_copied -ge $(($before_nic_bytes_copied + 5 * 1400)) ] && echo and copies"#
            ),
            Output::With(&[
                "discards; grants mapped ",
                "dropped; grants mapped ",
                " pieces copied (",
                "the disk has its own\nthe card maps\nand copies\n",
            ]),
        ),
    ),
    prints(
        "bad-devices-are-refused-by-name",
        "cd /tmp; isthmus block-attach devices nothing.img xvdc 2>&1; isthmus block-attach devices /dev xvdc 2>&1
         isthmus block-attach devices more.img xvda 2>&1; isthmus block-detach devices xvdz 2>&1
         ln -sf disk.img same.img; isthmus block-attach devices same.img xvdc --readonly 2>&1
         isthmus net-attach devices 1 --bridge br9 2>&1; isthmus net-attach devices 1 --network nat --bridge br9 2>&1
         isthmus block-attach nobody more.img xvdc 2>&1 || :",
        Output::With(&[
            "disk xvdc (/tmp/nothing.img): opening its source: No such file",
            "neither a file nor a block device",
            "has a device of this name already",
            "the guest has no such device",
            "(/tmp/same.img): its source is disk xvda of domain 1 already",
            "there is no bridge br9: make it",
            "--network \"nat\": it has a bridge of its own: leave bridge out",
            "no domain is called nobody",
        ]),
    ),
    HOSTILE_NETWORK,
    within(
        150,
        prints(
            "nothing-is-left-of-a-guest-that-panics-at-work",
            r#"cd /tmp; nc -l -p 5002 </dev/zero >/dev/null 2>&1 &
echo '/t panics 0' | isthmus console devices --timeout 10 >/dev/null; isthmus wait devices --timeout 60; kill %1; end=$(($(date +%s) + 60))
while [ $(date +%s) -lt $end ]; do
    left=$(ls /sys/bus/xen-backend/devices /sys/class/net | grep -c -E '^(vbd-|vif)'; losetup -a | grep -c tmp
           isthmus store ls /local/domain/0/backend/vbd 2>/dev/null | wc -l; isthmus list | grep -c devices)
    [ "$(echo $left)" = '0 0 0 0' ] && echo nothing && break; sleep 0.5
done; echo "$left"
free=$(isthmus info --json | grep free_kib | tr -dc 0-9); [ $(($(tr -dc 0-9 <free) - free)) -lt 64 ] && echo memory is back"#,
            // What dom0's own tables for mapped pages took stays.
            Output::With(&["crash", "nothing\n", "memory is back\n"]),
        ),
    ),
    within(
        150,
        prints(
            "block-driver-on-guest-abi",
            micro!(
                "block_front",
                "[[disk]]\nsource = 'micro.img'",
                "dd if=micro.img bs=4096 skip=1 count=1 2>/dev/null | od -An -tu1 -N 4
                 dmesg | grep -c 'Frontend provided bogus ring'"
            ),
            Output::With(&["block_front is domain", "DONE", "   0   1   2   3\n", "\n1\n"]),
        ),
    ),
    within(
        150,
        prints(
            "net-driver-on-guest-abi",
            micro!("net_front", "[[nic]]", "dmesg | grep -A 1 'offset: 4000, size: 200' | grep -c 'fatal error; disabling device'"),
            Output::With(&["net_front is domain", "DONE", "\n1\n"]),
        ),
    ),
    within(
        150,
        prints(
            "hostile-block-driver-harms-nobody",
            micro!("hostile_front", "[[disk]]\nsource = 'micro.img'", "for i in $(seq 50); do losetup -a | grep -q micro || { echo let go; break; }; sleep 0.2; done"),
            Output::With(&["hostile_front is domain", "DONE", "let go\n"]),
        ),
    ),
    NAT,
    NAT_IS_ONE_WAY,
    ends("no-warning-in-the-kernels-log", "! dmesg | grep -E 'BUG|WARNING: CPU|Oops|g\\.e\\. 0x'", 0),
];

/// The hostile network driver does its worst in the bridge of the Linux guest, which sends back meanwhile, again and again,
/// what it is sent. Afterwards nothing is left of it: in dom0, in the store, of pages that dom0 has mapped, of memory.
const HOSTILE_NETWORK: Command = within(
    300,
    prints(
        "hostile-network-driver-harms-nobody",
        with_guest!(
            r#"ip address add 192.168.77.1/24 dev isthmus0 2>/dev/null; head -c 1048576 /dev/urandom >given; good=0 tries=0
round() {
    rm -f back; (nc -l -p 5003 <given; nc -l -p 5004 <&9 >back) >/dev/null & g sends_back; wait $!
    cmp given back && good=$(($good + 1)); tries=$(($tries + 1))
}
all() { ls /sys/bus/xen-backend/devices /sys/class/net; isthmus store ls --flat / | sed 's/ = .*//' | grep -vE '/error(/backend(/vif)?)?$'; isthmus list | awk '{ print $1, $2 }'; }
mapped() { isthmus stats 0 | sed -n 's/ *grants of others: \([0-9]*\) .*/\1/p'; }
free() { isthmus info --json | grep free_kib | tr -dc 0-9; }
round; all >before; free=$(free) mapped=$(mapped)
printf '%s\n' 'name = "hostile_net"' 'kernel = "/var/lib/isthmus/micro/hostile_net"' 'memory = 16' 'on_poweroff = "preserve"' >hostile.toml
for i in $(seq 16); do echo '[[nic]]'; done >>hostile.toml; rm -f ended
isthmus create hostile.toml || exit; { isthmus wait hostile_net --timeout 120; echo over; } >ended &
until [ -s ended ] || [ $tries = 100 ]; do round; done
cat ended; isthmus console --serial hostile_net | grep -E 'FAIL|DONE'
isthmus destroy hostile_net; dmesg | grep -c 'vif-[0-9]*-[0-9]* .* fatal error; disabling device'
for i in $(seq 100); do all 2>/dev/null | cmp -s - before && echo nothing is left && break; sleep 0.2; done
[ $(($free - $(free))) -lt 64 ] && [ $(mapped) -le $mapped ] && echo memory is back; round; [ $good = $tries ] && [ $tries -gt 4 ] && echo all went well"#
        ),
        // What dom0's own tables for mapped pages took stays; of the Linux guest's disk it unmaps what is not used.
        Output::With(&[
            "hostile_net is domain",
            "poweroff\nover\n",
            " 0 failed\n13\nnothing is left\nmemory is back\nall went well\n",
        ]),
    ),
);

/// The demo guest, as it is, gets an address and reaches the host's network, which dom0 does by a card of its own.
const NAT: Command = within(
    400,
    prints(
        "nat-lets-the-demo-guest-reach-the-outside",
        r#"cd /tmp; modprobe e1000e; /etc/isthmus/network; until ip route | grep -q default; do sleep 0.5; done
isthmus create /var/lib/isthmus/demo/demo.toml >/dev/null && isthmus console demo --until 'is up with' --timeout 200 >/dev/null || exit
echo "until ip route | grep -q default; do sleep 1; done; cat /etc/resolv.conf; head -c 1000000 /dev/urandom >f
echo \$(sha256sum <f) is sent; nc 10.0.2.2 $SINK <f; echo to port \$(($SINK + 0)) of the host" |
isthmus console demo --until "to port $SINK of" --timeout 100 >said || { cat said; exit 1; }
grep -q 'nameserver 10.0.2.3' said || cat said; sed -n 's/ - is sent.*//p' said"#,
        Output::ChecksumOfSent(1_000_000),
    ),
);

/// Another network of dom0's (a namespace of its own) answers the guest, and does not reach it unasked; the server of
/// addresses comes back, and what is missing is named.
const NAT_IS_ONE_WAY: Command = within(
    200,
    prints(
        "nat-is-one-way-and-comes-back",
        r#"cd /tmp; unshare -n sleep 1000 & other=$!; sleep 0.5
ip link add outer type veth && ip link set veth0 netns $other && ip address add 10.99.0.1/24 dev outer && ip link set outer up
in_other() { nsenter -t $other -n "$@"; }
in_other ip address add 10.99.0.2/24 dev veth0; in_other ip link set veth0 up; in_other ip route add default via 10.99.0.1
guest=$(awk '/isthmus-nat/ { print $1 }' /proc/net/arp); ping -c 1 -W 5 $guest >/dev/null && echo $guest
echo 'ping -c 1 -W 9 10.99.0.2 | grep -c " 0%"; echo ping-$((1 + 1))' | isthmus console demo --until ping-2 --timeout 60 | tr -d '\r' | grep -x '[01]'
in_other ping -c 2 -W 2 $guest >/dev/null && echo reached || echo not reached
kill $other; kill $(cat /run/isthmus/dhcp.pid); end=$(($(date +%s) + 20))
until pidof udhcpd >/dev/null || [ $(date +%s) -gt $end ]; do sleep 0.5; done; pidof udhcpd >/dev/null && echo serves
isthmus destroy demo; rm /usr/sbin/udhcpd; kill $(cat /run/isthmus/dhcp.pid)
isthmus create /var/lib/isthmus/demo/demo.toml 2>&1; isthmus list | grep -c demo; :"#,
        Output::With(&[
            "10.193.0.",
            "
1
not reached
serves
",
            "network card 0 (bridge isthmus-nat): starting udhcpd, busybox' DHCP server",
            "
0
",
        ]),
    ),
);

/// A disk for the demo guest, whose half it copies to the other half.
pub(super) const DISK_OF_THE_DEMO: Command = within(
    400,
    prints(
        "disk-keeps-half-a-mib",
        r"cd /tmp; head -c 524288 /dev/urandom >half; cat half >d.img; truncate -s 1M d.img
isthmus block-attach demo d.img xvda || exit
echo 'modprobe xen-blkfront; until [ -b /dev/xvda ]; do sleep 1; done
dd if=/dev/xvda of=/dev/xvda bs=64k count=8 seek=8 conv=fsync && echo copied $((2 * 4)) parts' |
isthmus console demo --until 'copied 8 parts' --timeout 300 >/dev/null; isthmus block-detach demo xvda || exit
tail -c 524288 d.img | cmp - half && echo same",
        Output::Exactly("same\n"),
    ),
);

/// A network card for it, by which it sends back what it is sent.
pub(super) const CARD_OF_THE_DEMO: Command = within(
    500,
    prints(
        "card-brings-half-a-mib-each-way",
        r"cd /tmp; head -c 524288 /dev/urandom >half; mkfifo hold; exec 9<>hold
isthmus net-attach demo 0 && ip address add 192.168.77.1/24 dev isthmus0 || exit
(nc -l -p 5000 <half; nc -l -p 5001 <&9 >back) >/dev/null 2>&1 &
echo 'modprobe xen-netfront; until ip link set eth0 up; do sleep 1; done; ip address add 192.168.77.2/24 dev eth0
mkfifo h; exec 9<>h; until nc 192.168.77.1 5000 <&9 >r; do sleep 1; done
until nc 192.168.77.1 5001 <r; do sleep 1; done; echo sent back in $((1 + 1)) parts' |
isthmus console demo --until 'sent back in 2 parts' --timeout 400 >/dev/null; wait; isthmus net-detach demo 0 || exit
cmp back half && echo same",
        Output::Exactly("same\n"),
    ),
);

/// The client sends 4 MiB to its driver domain; both have the same then.
const NETWORK_TO_A_DRIVER_DOMAIN: &str = with_guest!(
    "G=driver g takes && G=client g gives && G=driver g has_taken && sed -n 's/sum //p' said | tail -n 1 >/tmp/taken
     G=client g given && sed -n 's/sum //p' said | tail -n 1 | cmp - taken && echo same"
);

/// A guest serves another's disk and network card, is killed, and comes back.
pub(super) const DRIVER_DOMAIN: &[Command] = &[
    within(
        300,
        prints(
            "driver-domain-and-its-client",
            concat!(
                r#"cd /tmp; echo 0 >calls; mkdir -p x/etc/rc.d x/usr/bin; cp /usr/bin/isthmus x/usr/bin/; cat >x/checks <<'END'
"#,
                include_str!("devices/guest.sh"),
                r#"END
cat >x/t <<'END'
#!/bin/sh
. /checks; ("$1") 2>&1; echo "status $? END-$2"
END
cat >x/etc/rc.d/50 <<'END'
#!/bin/sh
grep -q driver /proc/cmdline || exit 0
truncate -s 16M /tmp/client.img; isthmus driver >/dev/hvc0 2>&1 &
(until ip address add 192.168.77.1/24 dev isthmus0; do sleep 1; done) >/dev/null 2>&1 &
END
chmod +x x/t x/etc/rc.d/50; (cd x && find . | cpio -o -H newc 2>/dev/null) >extra
cat extra /var/lib/isthmus/demo/initrd >initrd
for name in driver client; do printf '%s\n' "name = '$name'" "kernel = '/var/lib/isthmus/demo/vmlinuz'" \
    "initrd = 'initrd'" "cmdline = 'console=hvc0 $name'" "memory = 160" >$name.toml; done
truncate -s 32M drive.img; printf '%s\n' 'on_crash = "restart"' '[[disk]]' "source = '/tmp/drive.img'" >>driver.toml
printf '%s\n' '[[disk]]' "source = '/tmp/client.img'" "backend = 'driver'" '[[nic]]' "backend = 'driver'" \
    '[[disk]]' "source = '/dev/xvda'" "backend = 'driver'" >>client.toml
isthmus create client.toml 2>&1
isthmus create driver.toml && isthmus console driver --until 'is up with' --timeout 200 >/dev/null
isthmus create client.toml && isthmus console client --until 'is up with' --timeout 200 >/dev/null && echo both"#
            ),
            Output::With(&["backend driver: no domain is called driver", "driver is domain", "client is domain", "both"]),
        ),
    ),
    within(
        200,
        prints(
            "disk-in-a-driver-domain-keeps-a-random-mix",
            with_guest!("export G=client; g first_mix 180 && echo verified"),
            Output::Exactly("verified\n"),
        ),
    ),
    within(
        200,
        prints(
            "network-to-a-driver-domain-comes-up",
            with_guest!("G=driver g serves_network && G=client g network && echo up"),
            Output::Exactly("up\n"),
        ),
    ),
    within(200, prints("network-to-a-driver-domain", NETWORK_TO_A_DRIVER_DOMAIN, Output::Exactly("same\n"))),
    prints(
        "stats-of-devices-in-a-driver-domain",
        "isthmus stats client | grep -oE '(disk 51712|card vif.*).* (mapped .*)' | sed 's/ [1-9][0-9]*/ N/g'
         isthmus stats client --json | grep -E '\"(kind|backend|mapped)\"' | tr -d ' '",
        Output::With(&["counts its requests; grants mapped N times, N now together with disk N\n", "counts its packets; grants mapped N times, "]),
    ),
    within(
        400,
        prints(
            "driver-domain-dies-at-work-and-its-client-goes-on",
            with_guest!(
                "export G=client; number() { isthmus info driver --json | grep '\"id\"'; }; old=$(number)
                 G=driver g swallows && g works && g mixes && sleep 2; isthmus destroy driver && sleep 1 && g under_way && g still_mixes
                 isthmus create driver.toml && isthmus console driver --until 'is up with' --timeout 200 >/dev/null
                 [ \"$(number)\" = \"$old\" ] && echo same number
                 G=driver g serves_network && g goes_on && g rests && g has_mixed 180 && g first_mix 180 && echo verified"
            ),
            Output::With(&["driver is domain", "same number\nverified\n"]),
        ),
    ),
    within(
        400,
        prints(
            "driver-domain-that-crashes-at-work-is-restarted-for-its-client",
            with_guest!(
                "export G=client; number() { isthmus info driver --json | grep '\"id\"'; }; old=$(number)
                 g works && g mixes && sleep 2
                 echo 'echo c >/proc/sysrq-trigger' | isthmus console driver --until 'Kernel panic' --timeout 60 >/dev/null
                 g still_mixes && g goes_on 180 && g rests && g has_mixed 180 && [ \"$(number)\" = \"$old\" ] && echo verified"
            ),
            Output::Exactly("verified\n"),
        ),
    ),
    within(
        300,
        prints(
            "driver-domain-is-killed-and-comes-back",
            with_guest!(
                "export G=client; isthmus destroy driver && isthmus block-detach client xvda --force &&
                 isthmus net-detach client 0 --force && g no_first_disk && isthmus create driver.toml &&
                 isthmus console driver --until 'is up with' --timeout 200 >/dev/null
                 isthmus block-attach client /tmp/client.img xvda --backend driver && g first_mix 180 &&
                 isthmus net-attach client 0 --backend driver && G=driver g serves_network && g network && echo verified"
            ),
            Output::With(&["driver is domain", "verified\n"]),
        ),
    ),
    within(
        200,
        prints(
            "network-to-a-driver-domain-that-came-back",
            NETWORK_TO_A_DRIVER_DOMAIN,
            Output::Exactly("same\n"),
        ),
    ),
    within(
        100,
        prints(
            "driver-domain-says-what-it-cannot-do",
            "isthmus block-attach client /nothing xvdc --backend driver 2>&1; isthmus net-attach client 1 --bridge br9 \
             --backend driver 2>&1; isthmus store ls --flat /local/domain | grep 51744 | grep -vc /error/; :",
            Output::With(&["xvdc (/nothing): the backend says: ", "there is no bridge br9", "\n0\n"]),
        ),
    ),
    within(
        200,
        prints(
            "driver-domain-that-dies-at-work-leaves-nothing",
            with_guest!(
                "export G=client; free() { isthmus info --json | grep free_kib | tr -dc 0-9; }
                 back() { for i in $(seq 50); do [ $(($(free) - before)) -gt $((158 * 1024)) ] && echo $1 && return; sleep 0.2; done; free; }
                 G=driver g swallows && g works && sleep 2; before=$(free); isthmus destroy driver; back driver
                 g under_way && isthmus stats client | grep -o ' 1 now'; before=$(free); isthmus destroy client; back client
                 isthmus list | tail -n +2 | grep -vc dom0; isthmus store ls --flat / | grep -cE '/(vbd|vif)/'; :"
            ),
            Output::Exactly("driver\n 1 now\nclient\n0\n0\n"),
        ),
    ),
];
