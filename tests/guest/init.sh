#!/bin/busybox sh
# SPDX-License-Identifier: MIT
# The first and only process of the guest: makes a file system on the disk's second partition, and writes files into it until it is told to stop.
#
# What it says begins with "@guest"; what it is told comes over the same line: "stop". Checksums are of what was written, taken before it reaches the
# disk. At the end: all files read again after unmounting, a check of the file system, and the checksums, so that others can judge the disk as well.
/bin/busybox mkdir -p /proc /sys /dev /tmp /disk /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo 2>/dev/null

say() { echo "@guest $*"; }
leave() { sync; poweroff -f; }
die() { say "failed $*"; dmesg | tail -30; leave; }

# This shell prefers its own programs to those of the same name, so those of ext4 are called by their paths.
modules() { while read -r m; do insmod "/modules/$m" || die "module $m"; done </modules/order; }

wait_for_disk() {
    n=0
    while [ ! -b /dev/vda2 ]; do
        n=$((n + 1)); [ $n -lt 600 ] || die "no disk"
        usleep 50000
    done
}

listen() { while read -r line; do [ "$line" = stop ] && : >/tmp/stop; done; }

sum_of() { sha256sum <"$1" | cut -d ' ' -f 1; }

# verify NAME: from the disk, not from memory.
verify() {
    echo 3 >/proc/sys/vm/drop_caches
    [ "$(sum_of "/disk/$1")" = "$(cat "/tmp/sums/$1")" ] || die "round $round: $1 is not what was written"
}

# One file: new, over an old one, in place, or away; in some rounds made durable, looked at again, and its free space given back.
write_round() {
    name=f$((round * 7 % FILES))
    if [ $((round % 6)) = 5 ]; then
        rm -f "/disk/$name" "/tmp/sums/$name"
    else
        dd if=/dev/urandom of=/tmp/new bs=16k count=$((1 + round * 5 % 61)) 2>/dev/null || die "round $round: no data"
        sum_of /tmp/new >"/tmp/sums/$name"
        if [ $((round % 3)) = 0 ] && [ -f "/disk/$name" ] && [ "$(stat -c %s "/disk/$name")" -le "$(stat -c %s /tmp/new)" ]; then
            dd if=/tmp/new of="/disk/$name" bs=4k conv=notrunc,fsync 2>/dev/null || die "round $round: $name cannot be written in place"
        else
            cp /tmp/new "/disk/$name" || die "round $round: $name cannot be written"
        fi
    fi
    [ $((round % 4)) = 0 ] && { sync || die "round $round: sync"; }
    [ $((round % 5)) = 0 ] && [ -f "/tmp/sums/$name" ] && verify "$name"
    [ $((round % 16)) = 15 ] && { fstrim /disk || die "round $round: fstrim"; }
    say "round $round"
}

judge() {
    right=0
    for s in /tmp/sums/*; do
        name=${s##*/}
        [ "$(sum_of "/disk/$name")" = "$(cat "$s")" ] || die "at the end: $name is not what was written"
        right=$((right + 1))
    done
    [ "$(ls /disk | grep -c '^f')" = $right ] || die "at the end: there are other files than were written"
}

FILES=60
round=0
modules
wait_for_disk
say "booted $(uname -r)"
/sbin/mke2fs -q -t ext4 -F /dev/vda2 || die "mke2fs"
mkdir /tmp/sums
mount -t ext4 -o data=ordered /dev/vda2 /disk || die "mount"
say "mounted"
listen </dev/ttyS0 &
while [ ! -e /tmp/stop ]; do
    write_round
    round=$((round + 1))
done
say "stopping"
umount /disk || die "umount"
mount -t ext4 -o ro /dev/vda2 /disk || die "mount at the end"
judge
umount /disk || die "umount at the end"
/sbin/e2fsck -f -n /dev/vda2 || die "e2fsck says $?"
say "fsck 0"
for s in /tmp/sums/*; do say "sum ${s##*/} $(cat "$s")"; done
say "done rounds=$round right=$right"
leave
