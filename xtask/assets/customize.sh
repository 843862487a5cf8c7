# Finishes a tree of the demo. Runs as mmdebstrap's customize hook: $1 is the tree; $version and $key are
# set above this line.
set -eu
root=$1

# Downloaded packages and lists, logs, and what build makes itself.
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/*.log "$root"/var/log/apt
rm -f "$root"/boot/initrd.img* "$root"/initrd.img* "$root"/vmlinuz*

# Which image this is, in the fields that os-release has for it.
printf 'IMAGE_ID=bedplate-demo\nIMAGE_VERSION=%s\n' "$version" >>"$root/usr/lib/os-release"

echo bedplate-demo >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 bedplate-demo\n' >"$root/etc/hosts"
: >"$root/etc/machine-id"
rm -f "$root/etc/resolv.conf"
: >"$root/etc/resolv.conf"

# A shell for whoever holds the key; PAM would start a login session for each command.
install -d -m 700 "$root/root/.ssh"
printf '%s\n' "$key" >"$root/root/.ssh/authorized_keys"
chmod 600 "$root/root/.ssh/authorized_keys"
printf 'UsePAM no\nPasswordAuthentication no\n' >"$root/etc/ssh/sshd_config.d/demo.conf"

# The one network card, and the one registry behind it, which speaks plain HTTP.
printf '[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' \
	>"$root/etc/systemd/network/80-demo.network"
chroot "$root" systemctl --quiet enable systemd-networkd.service
install -d "$root/etc/containers/registries.conf.d"
printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$registry" \
	>"$root/etc/containers/registries.conf.d/demo.conf"

# Nobody waits at these in a virtual machine, and under software emulation each costs seconds.
for unit in systemd-random-seed.service systemd-journal-flush.service serial-getty@ttyS0.service \
	getty@tty1.service systemd-networkd-wait-online.service e2scrub_reap.service e2scrub_all.timer \
	apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
