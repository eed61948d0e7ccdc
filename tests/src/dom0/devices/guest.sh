# What the guest of the session `devices` is asked to do, by name. Each function succeeds or says what is wrong.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
DOM0=192.168.77.1
BIG=192.168.78.1

# Nothing that was read or written before is in memory afterwards.
forget() { sync; echo 3 >/proc/sys/vm/drop_caches; }

# busybox' nc leaves when its own input ends, even while more is to come from the other side.
hold() { mkfifo /tmp/hold 2>/dev/null; exec 9<>/tmp/hold; }

# 16 MiB, no two sectors of which are alike.
data() {
    head -c 1048576 /dev/urandom >/tmp/mib
    for i in $(seq 16); do echo "$i"; cat /tmp/mib; done | head -c 16777216
}

file_system() {
    mkdir -p /disk; mkfs.ext4 -q /dev/xvda && mount -t ext4 /dev/xvda /disk && data >/disk/file &&
    cd /disk && sha256sum file >sum && forget && sha256sum -c sum
}
unmount() { cd / && umount /disk; }

# Is there (1) or goes away (0).
appears() { for i in $(seq 100); do [ -e "$1" ] && return; sleep 0.2; done; echo "no $1"; return 1; }
vanishes() { for i in $(seq 100); do [ -e "$1" ] || return 0; sleep 0.2; done; echo "still $1"; return 1; }

second_disk() { appears /dev/xvdb; }
no_second_disk() { vanishes /dev/xvdb; }
mix() { isthmus selftest disk /dev/xvdb --operations 400 --jobs 4; }

first_mix() { appears /dev/xvda && isthmus selftest disk /dev/xvda --operations 100 --jobs 4; }
no_first_disk() { vanishes /dev/xvda; }

# Reads as fast as it can until that is an error; dom0 takes the disk away meanwhile.
reads() { (while dd if=/dev/xvdb of=/dev/null bs=64k iflag=direct 2>/dev/null; do :; done; : >/tmp/error) & sleep 1; }
reading_fails() { appears /tmp/error; }

# Both devices at work, and whether there are requests that nobody has answered.
works() {
    for i in 1 2 3 4; do (while dd if=/dev/xvda of=/dev/null bs=64k iflag=direct; do :; done; : >/tmp/error) >/dev/null 2>&1 & echo $!; done >/tmp/pids
    (while :; do nc $DOM0 5009 </dev/zero; sleep 0.1; done) >/dev/null 2>&1 & echo $! >>/tmp/pids
}
# A random mix that somebody's death falls into.
mixes() { rm -f /tmp/mixed-end; (isthmus selftest disk /dev/xvdb --operations 1500 --jobs 4 >/tmp/mixed 2>&1; echo "status $?" >/tmp/mixed-end) & }
still_mixes() { ! [ -e /tmp/mixed-end ]; }
has_mixed() { for i in $(seq 800); do [ -e /tmp/mixed-end ] && break; sleep 0.2; done; cat /tmp/mixed; grep -q 'status 0' /tmp/mixed-end; }
under_way() { read -r reads writes </sys/block/xvda/inflight; [ "$reads" -gt 0 ] || { echo "$reads reads"; return 1; }; }
goes_on() {
    read -r before rest </sys/block/xvda/stat; now=$before
    for i in $(seq 200); do read -r now rest </sys/block/xvda/stat; [ $((now - before)) -gt 100 ] && break; sleep 0.2; done
    [ $((now - before)) -gt 100 ] || { echo "$before reads and $now"; dmesg | tail; return 1; }
    ! [ -e /tmp/error ] || { echo "a read failed"; return 1; }
    for i in $(seq 100); do ping -c 1 -W 1 $DOM0 >/dev/null && return; done; echo "no answer"; return 1
}
rests() { kill $(cat /tmp/pids); killall dd nc; sleep 1; rm -f /tmp/error; }

address() { # INTERFACE ITS-OWN DOM0'S
    ip link set "$1" up && ip address add "$2/24" dev "$1" || return
    for i in $(seq 100); do ping -c 1 -W 1 "$3" >/dev/null && return; done
    echo "no answer from $3"; return 1
}
network() { address eth0 192.168.77.2 $DOM0; }
sends() { for i in $(seq 100); do nc $DOM0 5000 </disk/file && return; sleep 0.2; done; return 1; }
receives() { hold; for i in $(seq 100); do nc $DOM0 5001 <&9 >/disk/received && return; sleep 0.2; done; return 1; }

meets_dom0() { ping -c 1 -W 5 $DOM0 >/dev/null || network; }
pings() { meets_dom0 && ping -c 5 -W 5 -s 1400 $DOM0 >/dev/null; }
# What dom0 gives, sent back.
sends_back() {
    meets_dom0 || return; hold
    for i in $(seq 100); do nc $DOM0 5003 <&9 >/tmp/given && break; sleep 0.2; done
    for i in $(seq 100); do nc $DOM0 5004 </tmp/given && return; sleep 0.2; done; return 1
}

big_packets() {
    appears /sys/class/net/eth1 && ip link set eth1 mtu 9000 && address eth1 192.168.78.2 $BIG || return
    cd /sys/class/net/eth1/statistics; before=$(cat rx_packets) bytes=$(cat rx_bytes)
    for i in 1 2 3 4 5; do ping -c 1 -W 5 -s 8900 $BIG >/dev/null || { echo "no answer to $i"; return 1; }; done
    echo "$(($(cat rx_packets) - before)) packets, $(($(cat rx_bytes) - bytes)) bytes"
    [ $((($(cat rx_bytes) - bytes) / ($(cat rx_packets) - before))) -gt 4000 ]
}
no_second_card() { vanishes /sys/class/net/eth1; }

# A panic while both devices work.
panics() {
    (while :; do dd if=/dev/xvda of=/dev/null bs=64k iflag=direct; done) >/dev/null 2>&1 &
    ping -f $DOM0 >/dev/null 2>&1 & (while :; do nc $DOM0 5002 </dev/zero; done) &
    sleep 2; echo c >/proc/sysrq-trigger
}

# In a driver domain, and in its client.
has_address() { ip address show dev isthmus0 | grep -q "$DOM0/"; }
serves_network() { appears /sys/class/net/isthmus0 && { has_address || ip address add $DOM0/24 dev isthmus0 || has_address; }; }
swallows() { hold; (while :; do nc -l -p 5009 <&9; done) >/dev/null 2>&1 & }
takes() { hold; (nc -l -p 5000 <&9 >/tmp/taken; : >/tmp/end) >/dev/null 2>&1 & }
has_taken() { appears /tmp/end && echo "sum $(sha256sum </tmp/taken)"; }
gives() { data | head -c 4194304 >/tmp/given; for i in $(seq 100); do nc $DOM0 5000 </tmp/given && return; sleep 0.2; done; return 1; }
given() { echo "sum $(sha256sum </tmp/given)"; }
