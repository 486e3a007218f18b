#!/bin/bash
# Makes a throw-away root over this machine's and becomes the systemd of it. To be run in fresh
# namespaces, by guest.py; $1 is an empty directory.
set -eu
lab=$1 root=$1/root
mount -t tmpfs -o size=3g,mode=755 guest "$lab"
mkdir "$lab/upper" "$lab/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$lab/upper,workdir=$lab/work" guest "$root"

# Nothing of this machine's own services, journals and private places.
rm -rf "$root"/etc/systemd/system/*.wants "$root"/var/log/journal "$root"/opt/poller
for unit in systemd-timesyncd systemd-logind systemd-networkd systemd-resolved systemd-pstore; do
    ln -sfn /dev/null "$root/etc/systemd/system/$unit.service"
done
for place in mnt tmp run root home; do
    mkdir -p "$root/$place"
    mount -t tmpfs -o mode=755 guest "$root/$place"
done
chmod 1777 "$root/tmp"
mkdir -p "$root"/etc/systemd/journald.conf.d "$root"/etc/sysusers.d "$root"/var/log/journal
printf '[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n' \
    >"$root/etc/systemd/journald.conf.d/guest.conf"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id" # an empty one means a first boot

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 -o nsdelegate cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for name in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "$root/dev/${name%:*}" c 1 "${name#*:}"
done
mknod -m 666 "$root/dev/tty" c 5 0

mkdir "$root/.old"
cd "$root"
pivot_root . .old
umount -l /.old
rmdir /.old
hostname guest
mount --make-rshared / # or no credential reaches a service that is not root's
exec setpriv --bounding-set -sys_time,-sys_module,-syslog,-sys_rawio,-mknod,-bpf,-perfmon,-wake_alarm \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=guest \
    /lib/systemd/systemd --system --log-target=journal --show-status=no systemd.unit=multi-user.target
