#!/bin/bash
# Prepares a Debian machine for building, trying and testing sbx.
#
# As root it installs what is missing and makes an ordinary user for the tests.
# As an ordinary user it changes nothing: it says what an administrator would
# have to do, and ends well, because sbx and most of its tests work without.
# It can be run as often as you like; with nothing to do it takes a second.
#
#   scripts/setup.sh [uml|qemu]   also what that virtual machine needs
#   SBX_TEST_USER                 the ordinary user (default sbxtest); beside him there is
#                                 NAME-other, for tests of what another user can do
set -euo pipefail
cd "$(dirname "$0")/.."

test_user=${SBX_TEST_USER:-sbxtest}

# One array: package, then why. No service is started by installing one. The tests
# take further packages (nginx) from the archive without installing them.
packages=(
	uidmap           'run: newuidmap, newgidmap (65,536 ids in a sandbox)'
	fuse-overlayfs   'run: the writable layer where the kernel cannot do it'
	make             'build'
	git              'build: the version number'
	ca-certificates  'build: the module proxy over HTTPS'
	curl             'test: a client of published ports'
	dnsutils         'test: dig'
	iputils-ping     'test: ping'
	iproute2         'test: ip, the world of network namespaces'
	iperf3           'test: throughput'
	dnsmasq-base     'test: the DNS zone of the world'
	busybox-static   'test: the small image'
	docker-registry  'test: a real registry (its service is not started)'
	apache2-utils    'test: htpasswd, for the registry'
	tar              'test: archives with sparse files'
	util-linux       'test: setpriv, unshare'
	libcap2-bin      'test: capsh'
	acl              'test: getfacl'
	attr             'test: getfattr'
	xz-utils         'test: unpacking Debian packages'
	zstd             'test: layers'
	procps           'test: sysctl, ps'
	e2fsprogs        'test: a full disk'
	mandoc           'test: the manual pages'
	zsh              'test: completion'
	fish             'test: completion'
)
# Everything else works without these, as where the archive does not have them.
machine=()
case ${1:-} in
uml | qemu)
	machine+=(
		mmdebstrap       'its root, made without root'
		user-mode-linux  'the kernel that is a program'
	)
	;;
esac
[ "${1:-}" != qemu ] || machine+=(qemu-system-x86 'for the stock kernel')

say()  { printf 'setup: %s\n' "$*"; }
need() { printf 'setup: MISSING: %s\n' "$*" >&2; todo=1; }
todo=0

# missing_packages prints those of its arguments, which come in pairs as above.
missing_packages() {
	while [ $# -gt 0 ]; do
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ] || echo "$1"
		shift 2
	done
}

install_packages() {
	local missing
	mapfile -t missing < <(missing_packages "${packages[@]}")
	[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}"
	mapfile -t missing < <(missing_packages "${machine[@]}")
	[ ${#missing[@]} = 0 ] || apt_install "${missing[@]}" || need "packages for the virtual machine: ${missing[*]}"
}

# apt_install fetches the package lists only if the packages are not known yet
# or no longer there.
apt_install() {
	say "installing $*"
	export DEBIAN_FRONTEND=noninteractive
	local policy=
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		policy=/usr/sbin/policy-rc.d
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	local status=0
	apt_get_install "$@" || status=$?
	[ -z "$policy" ] || rm -f "$policy"
	return $status
}

apt_get_install() {
	local log
	log=$(mktemp)
	if ! apt-get -qq -y --no-install-recommends install "$@" >"$log" 2>&1; then
		if ! { apt-get -qq update && apt-get -qq -y --no-install-recommends install "$@"; } >"$log" 2>&1; then
			cat "$log" >&2
			rm -f "$log"
			say "apt-get could not install: $*"
			return 1
		fi
	fi
	rm -f "$log"
}

# install_go gets the Go that go.mod asks for when the machine has none: Debian's
# own Go verifies and fetches it from the module proxy, as toolchains are modules.
install_go() {
	scripts/go version >/dev/null 2>&1 && return 0
	local want arch dir
	want=go$(awk '$1 == "go" { print $2; exit }' go.mod)
	arch=$(dpkg --print-architecture)
	command -v go >/dev/null || apt_install golang-go
	say "fetching $want through the Go module proxy into /usr/local/go"
	dir=$(cd / && GOFLAGS=-modcacherw GO111MODULE=on go mod download -json \
		"golang.org/toolchain@v0.0.1-$want.linux-$arch" | sed -n 's/^\t"Dir": "\(.*\)",\?$/\1/p')
	[ -n "$dir" ] || { say "the module proxy has no $want for linux-$arch"; return 1; }
	rm -rf /usr/local/go.new
	cp -r "$dir" /usr/local/go.new
	# A module carries no modes: the go command sets these when it switches by itself.
	chmod -R u+w,a+rX /usr/local/go.new
	chmod a+x /usr/local/go.new/bin/* /usr/local/go.new/pkg/tool/*/* 
	mv -T /usr/local/go.new /usr/local/go
	scripts/go version >/dev/null
}

# add_subids gives the user 65,536 subordinate ids behind all those given so far.
add_subids() {
	local kind=$1 file=/etc/$1 start
	grep -qs "^$test_user:" "$file" && return 0
	start=$(awk -F: '{ e = $2 + $3; if (e > m) m = e } END { print (m > 100000 ? m : 100000) }' "$file" 2>/dev/null || echo 100000)
	say "giving $test_user the ids $start-$((start + 65535)) in $file"
	printf '%s:%s:65536\n' "$test_user" "$start" >>"$file"
}

make_user() {
	if ! id -u "$test_user" >/dev/null 2>&1; then
		say "making the ordinary user $test_user"
		useradd --create-home --shell /bin/bash "$test_user"
	fi
	add_subids subuid
	add_subids subgid
	local uid run
	uid=$(id -u "$test_user")
	run=/run/user/$uid
	if [ ! -d "$run" ]; then
		say "making $run"
		install -d -m 755 /run/user
		install -d -m 700 -o "$uid" -g "$(id -g "$test_user")" "$run"
	fi
}

# make_other makes an account that may do nothing, as another user of the machine: no
# home, no group but its own, no subordinate ids, which useradd gives to everybody.
make_other() {
	id -u "$test_user-other" >/dev/null 2>&1 && return 0
	say "making the user $test_user-other"
	useradd --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --user-group \
		-K SUB_UID_COUNT=0 -K SUB_GID_COUNT=0 "$test_user-other"
}

# device makes NODE usable by everybody: it gives access to nothing but what the
# opener's own user namespace allows.
device() {
	local node=$1 module=$2 major=$3 minor=$4
	if [ ! -c "$node" ]; then
		modprobe -q "$module" 2>/dev/null || true
		if [ ! -c "$node" ]; then
			say "making $node"
			mkdir -p "$(dirname "$node")"
			mknod "$node" c "$major" "$minor" || { need "$node: mknod failed; sbx will do without"; return 0; }
		fi
	fi
	[ "$(stat -c %a "$node")" = 666 ] && return 0
	say "opening $node to ordinary users"
	chmod 666 "$node" || need "$node: chmod failed; sbx will do without"
}

open_ping() {
	local f=/proc/sys/net/ipv4/ping_group_range
	[ "$(tr '\t' ' ' <$f)" = '0 2147483647' ] && return 0
	say "letting ordinary users ping (net.ipv4.ping_group_range)"
	echo '0 2147483647' 2>/dev/null >$f || need "$f is read-only: sandboxes cannot ping"
}

check_kernel() {
	local f
	for f in kernel/unprivileged_userns_clone user/max_user_namespaces; do
		if [ -r /proc/sys/$f ] && [ "$(cat /proc/sys/$f)" = 0 ]; then
			need "user namespaces are off: sysctl -w ${f//\//.}=$([ $f = user/max_user_namespaces ] && echo 15000 || echo 1)"
		fi
	done
	f=/proc/sys/kernel/apparmor_restrict_unprivileged_userns
	if [ -r $f ] && [ "$(cat $f)" = 1 ]; then
		need "AppArmor restricts user namespaces: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or a profile for bin/sbx (see: sbx doctor)"
	fi
}

as_root() {
	install_packages
	install_go
	make_user
	make_other
	device /dev/net/tun tun 10 200
	device /dev/fuse fuse 10 229
	open_ping
	check_kernel
}

# as_user only looks; each line can be pasted by an administrator.
as_user() {
	local missing me
	me=$(id -un)
	if command -v dpkg-query >/dev/null; then
		mapfile -t missing < <(missing_packages "${packages[@]}" "${machine[@]}")
		[ ${#missing[@]} -eq 0 ] || need "packages: sudo apt-get install --no-install-recommends ${missing[*]}"
	else
		need "this is not Debian: install newuidmap, fuse-overlayfs, curl, dig, ping, ip, iperf3 and busybox your way"
	fi
	scripts/go version >/dev/null 2>&1 || need "Go: https://go.dev/dl (go.mod asks for $(awk '$1 == "go" { print $2; exit }' go.mod))"
	grep -qsE "^($me|$(id -u)):" /etc/subuid || need "subordinate ids: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $me"
	[ -r /dev/net/tun ] && [ -w /dev/net/tun ] || need "/dev/net/tun: sudo modprobe tun; sudo chmod 666 /dev/net/tun"
	[ -r /dev/fuse ] && [ -w /dev/fuse ] || need "/dev/fuse: sudo modprobe fuse; sudo chmod 666 /dev/fuse"
	local low high
	read -r low high </proc/sys/net/ipv4/ping_group_range
	[ "$low" -le "$(id -g)" ] && [ "$high" -ge "$(id -g)" ] || need "ping: sudo sysctl -w net.ipv4.ping_group_range='0 2147483647'"
	check_kernel
}

if [ "$(id -u)" = 0 ]; then as_root; else as_user; fi
if [ $todo = 1 ]; then
	say "done, with the gaps above; sbx works around them where it can (bin/sbx doctor)"
else
	say "ready"
fi
