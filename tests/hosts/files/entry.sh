#!/bin/sh
# PID 1 of a container host, at every boot of it: what systemd finds on a machine and not in a container.
set -eu
export container=docker
if [ "${1:-}" != inner ]; then
    for user in op careful; do
        install -d -m 0700 -o "$user" -g "$user" "/home/$user/.ssh"
        printf '%s\n' "$AUTHORIZED_KEY" >"/home/$user/.ssh/authorized_keys"
        chown "$user:" "/home/$user/.ssh/authorized_keys"
    done
    if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
        mount -o remount,rw /sys/fs/cgroup
    else
        # Version 1: a hierarchy for systemd, and a namespace whose root is this host's own part of it.
        umount -R -l /sys/fs/cgroup
        mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
        mkdir /sys/fs/cgroup/systemd
        mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
        mkdir -p "/sys/fs/cgroup/systemd/$HOSTNAME"
        echo $$ >"/sys/fs/cgroup/systemd/$HOSTNAME/cgroup.procs"
        exec unshare --cgroup /bin/sh /entry.sh inner
    fi
else
    umount /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
mkdir -p /run/lock
# A new boot id, so that Ansible's reboot module sees that there was one.
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
unset AUTHORIZED_KEY
exec /sbin/init
