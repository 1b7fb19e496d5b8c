#!/bin/sh
# Run once, while the image is built.
set -eu
cp /setup/certs/*.crt /usr/local/share/ca-certificates/ 2>/dev/null || true
update-ca-certificates >/dev/null
cp /setup/apt.conf.d/* /etc/apt/apt.conf.d/ 2>/dev/null || true
[ ! -s /setup/pip.conf ] || cp /setup/pip.conf /etc/pip.conf
# Downloaded packages would only fill the layers.
echo 'Binary::apt::APT::Keep-Downloaded-Packages "false";' >/etc/apt/apt.conf.d/99no-debs
# Components are the playbook's to enable; only main is there, as on a fresh installation.
if [ -f /etc/apt/sources.list ]; then
    sed -i -E 's/^(deb .*) main .*/\1 main/' /etc/apt/sources.list
fi
useradd -m -s /bin/bash op
echo 'op ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/op
useradd -m -s /bin/bash careful
echo 'careful:correct-horse-battery' | chpasswd
echo 'careful ALL=(ALL) ALL' >/etc/sudoers.d/careful
for unit in apt-daily.timer apt-daily-upgrade.timer systemd-networkd-wait-online.service \
    systemd-udevd.service systemd-udev-trigger.service systemd-resolved.service getty.target user@.service; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
done
echo 'UseDNS no' >/etc/ssh/sshd_config.d/tests.conf
mkdir -p /etc/systemd/system.conf.d
printf '[Manager]\nDefaultTimeoutStopSec=5s\n' >/etc/systemd/system.conf.d/tests.conf
systemctl enable ssh.service >/dev/null 2>&1
install -m 0755 /setup/files/entry.sh /entry.sh
