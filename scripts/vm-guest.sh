#!/bin/bash
# The job of scripts/vm.sh in the virtual machine ring: as root of the machine it
# gives it an address, then logs in the ordinary user dev as a person does, through
# PAM, so that systemd-logind makes a session and starts the user's systemd, and
# runs the tests as that user.
set -uo pipefail
. /job/env
stty -F /dev/ttyS1 raw
part=1 parts=1 status=0
for word in $(cat /proc/cmdline); do
	case $word in sbx.part=*/*) word=${word#*=} part=${word%/*} parts=${word#*/} ;; esac
done

echo "vm: $(uname -r), $(nproc) processor(s), up $(cut -d. -f1 /proc/uptime) s"
ip link set lo up
ip link add lan0 type dummy
ip link set lan0 up
ip addr add 10.99.0.2/24 dev lan0
ip addr add fd99::2/64 dev lan0 nodad
ip route add default via 10.99.0.1
ip -6 route add default via fd99::1

# session runs a command in a new login session of dev.
session() { XDG_SESSION_TYPE=tty XDG_SESSION_CLASS=user su --login dev --command "export SBX_BIN=/job/sbx SBX_E2E_CACHE=/job/cache SBX_TEST_VM=$1 SBX_TEST_SLOW=$slow; $2"; }

# tests NAME PROGRAM FLAGS...: a program of tests, in a session.
tests() {
	local name=$1 program=$2 start=$SECONDS; shift 2
	echo "vm: $name"
	session "$name" "cd && /job/$program -test.v $*" || status=1
	echo "vm: $name took $((SECONDS - start)) s"
}

if [ "$part" = 1 ]; then
	session doctor 'NO_COLOR=1 /job/sbx doctor'
	tests no-linger vm.test "$vm_flags"
	loginctl enable-linger dev
	tests linger vm.test "$vm_flags"
	loginctl disable-linger dev
fi
# Debian lets nobody make ping sockets; what scripts/setup.sh changes, we change.
sysctl -q -w net.ipv4.ping_group_range='0 2147483647'
if [ "$parts" -gt 1 ]; then # each machine takes every so many-th test
	list=$(session list '/job/e2e.test -test.list .' | awk -v n="$parts" -v i="$part" '/^Test/ && NR % n == i % n' | paste -sd'|')
	e2e_flags="$e2e_flags -test.run '^($list)$'"
fi
tests e2e e2e.test "$e2e_flags"
echo "vm: status $status"
