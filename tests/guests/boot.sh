#!/bin/sh
# The first process of a guest that tests run in, before systemd takes its place: a container of `--isolation vm --privileged` becomes a machine.
# Called by tools/test_guests.py. /given is shared by the host: modules of the guest's kernel in the order in which they are loaded.
set -eu

# Nobody answers the kernel when it wants a module: /sbin/modprobe of its first root is not there.
for module in /given/modules/*.ko; do
    insmod "$module" 2>/tmp/refusal || grep -q "File exists" /tmp/refusal || sed "s|^|$module: |" /tmp/refusal
done

mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o newinstance,gid=5,mode=620,ptmxmode=666 devpts /dev/pts
ln -sf pts/ptmx /dev/ptmx

# The root is an overlay, on which no overlay can be written. Its writable disk, the only one, is an ordinary file system.
for disk in /sys/block/[sv]d*; do
    [ "$(cat "$disk/ro")" != 0 ] || writable=/dev/${disk##*/}
done
mkdir -p /disk
mount -t ext4 "$writable" /disk
mkdir -p -m 1777 /disk/tests

mount --make-rshared /
exec /sbin/init
