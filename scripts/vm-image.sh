#!/bin/bash
# Builds what the virtual machine ring boots, as an ordinary user and from Debian's
# packages alone, and prints the directory in which it is:
#
#   root.ext4        Debian with systemd and the user dev, who has subordinate ids and
#                    no sudo; kernel modules for both machines
#   vmlinuz, initrd  Debian's stock kernel, for QEMU
#
# The directory is kept in SBX_VM_CACHE (default ~/.cache/sbx-vm) under a hash of what
# goes into it, and is whole or absent; others go when they were not used for a day.
# Nothing is mounted from a loop device: the file system is made from a directory, in a
# user namespace whose root we are.
set -euo pipefail

suite=bookworm
packages=(
	systemd systemd-sysv dbus dbus-user-session libpam-systemd udev kmod login passwd
	uidmap fuse-overlayfs fuse3 iproute2 iperf3 curl bind9-dnsutils iputils-ping
	procps dnsmasq-base libcap2-bin acl attr apache2-utils zstd xz-utils ca-certificates
	mandoc zsh fish
)

die() { echo "vm-image: $*" >&2; exit 1; }

# build runs in the user namespace, in a directory that will be the cache entry.
build() {
	local root=$PWD/root kernel
	mmdebstrap --quiet --mode=root --variant=apt --format=directory \
		--aptopt='Acquire::Languages "none"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
		--dpkgopt='path-exclude=/usr/share/locale/*' \
		--include="$(IFS=,; echo "${packages[*]}")" \
		--customize-hook='chroot "$1" sh -c "cd /root && apt-get -q download \$(apt-cache depends linux-image-cloud-amd64 | sed -n \"s/.*Depends: //p\")"' \
		"$suite" "$root"

	dpkg-deb -x "$root"/root/linux-image-*.deb kernel
	rm "$root"/root/linux-image-*.deb
	mv kernel/boot/vmlinuz-* vmlinuz
	mkdir "$root/usr/lib/modules"
	cp -a kernel/lib/modules/. /usr/lib/uml/modules/. "$root/usr/lib/modules/"
	rm -rf kernel
	local m
	for m in "$root"/usr/lib/modules/*; do chroot "$root" depmod "$(basename "$m")"; done
	initrd "$root"

	# A stock machine, but for what would disturb the tests.
	chroot "$root" useradd --create-home --shell /bin/bash dev
	chroot "$root" systemd-machine-id-setup >/dev/null 2>&1
	chroot "$root" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
		e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-timesyncd.service getty@.service serial-getty@.service
	echo vm >"$root/etc/hostname"
	printf '127.0.0.1 localhost\n127.0.1.1 vm\n::1 localhost\n' >"$root/etc/hosts"
	echo nameserver 127.0.0.1 >"$root/etc/resolv.conf"
	: >"$root/etc/fstab"
	mkdir "$root/job"
	# The job is a disk of its own, so that a new one needs no new image.
	cat >"$root/etc/systemd/system/sbx-job.service" <<-'U'
		[Unit]
		After=multi-user.target systemd-user-sessions.service
		[Service]
		Type=oneshot
		ExecStart=/bin/sh -c 'mount -o ro "$(blkid -L sbx-job)" /job && exec /job/guest.sh'
		ExecStopPost=/bin/sh -c '[ -e /run/sbx-restarts ] || systemctl poweroff --no-block'
		StandardInput=null
		StandardOutput=file:/dev/ttyS1
		StandardError=inherit
		TimeoutStartSec=infinity
		[Install]
		WantedBy=graphical.target
	U
	chroot "$root" systemctl --quiet enable sbx-job.service
	chroot "$root" systemctl --quiet set-default graphical.target
	chroot "$root" apt-get -q clean
	rm -rf "$root"/var/lib/apt/lists/*
	/sbin/mkfs.ext4 -q -d "$root" -L sbx-root -E lazy_itable_init=1 root.ext4 8G
	rm -rf "$root"
}

# initrd loads the modules that the stock kernel needs for its root disk.
initrd() {
	local root=$1 name k m
	k=$(cd "$root/usr/lib/modules" && echo *-cloud-*)
	mkdir -p initrd.d/{bin,proc,sys,dev,new}
	cp /usr/bin/busybox initrd.d/bin/
	{
		echo '#!/bin/busybox sh'
		echo 'set -e; b=/bin/busybox; $b mount -t devtmpfs dev /dev'
		for name in virtio_pci virtio_blk ext4; do chroot "$root" modprobe --set-version "$k" --show-depends $name; done |
			awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r m; do
				cp "$root$m" initrd.d/
				echo "\$b insmod /${m##*/}"
			done
		echo 'n=0; until [ -b /dev/vda ] || [ $n = 100 ]; do $b sleep 0.1; n=$((n+1)); done'
		echo '$b mount -t ext4 /dev/vda /new; exec $b switch_root /new /sbin/init'
	} >initrd.d/init
	chmod 755 initrd.d/init
	(cd initrd.d && find . | /usr/bin/busybox cpio -o -H newc 2>/dev/null | gzip) >initrd
	rm -rf initrd.d
}

if [ "${1:-}" = --inside ]; then
	cd "$2"
	build
	exit
fi

missing=()
for p in mmdebstrap user-mode-linux uidmap e2fsprogs busybox-static; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' $p 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} = 0 ] || die "needs packages: apt-get install --no-install-recommends ${missing[*]}"

cache=${SBX_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sbx-vm}
key=$( (cat "$0"; dpkg-query -W user-mode-linux) | sha256sum | cut -c1-16)
mkdir -p "$cache"
exec 9>"$cache/lock"
flock 9
if [ ! -d "$cache/$key" ]; then
	new=$cache/new
	# What is below belongs to subordinate ids in part.
	in_namespace() { unshare --user --map-auto --map-root-user --mount --pid --fork --kill-child "$@"; }
	find "$cache" -mindepth 1 -maxdepth 1 -type d -mmin +1440 -exec rm -rf {} +
	in_namespace rm -rf "$new"
	mkdir "$new"
	trap 'in_namespace rm -rf "$new"' EXIT
	start=$SECONDS
	echo "vm-image: building (once; about 300 MB from the Debian archive)" >&2
	in_namespace bash "$(realpath "$0")" --inside "$new" >"$cache/log" 2>&1 9>&- || {
		tail -n 15 "$cache/log" >&2
		die "could not make the image from the Debian archive; is there a network? All that was said: $cache/log"
	}
	mv "$new" "$cache/$key"
	echo "vm-image: built in $((SECONDS - start)) s, $(du -sh "$cache/$key" | cut -f1)" >&2
fi
touch "$cache/$key"
echo "$cache/$key"
