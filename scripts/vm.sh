#!/bin/bash
# Runs commands and tests on a stock Debian in a virtual machine, as its ordinary
# user dev, without sudo. See docs/testing.md.
#
#   scripts/vm.sh run CMD...       a command; it ends with the command's status
#   scripts/vm.sh test PKG...      the tests of packages, in every place
#   scripts/vm.sh test             the ring: those of ring_packages, then e2e
#
# What is in bin/ of the checkout is on the machine's PATH: sbx, and also what is
# put there for this (CGO_ENABLED=0 go test -c -o bin/ ./userns).
#
#   VM               uml (default): User Mode Linux; or qemu: see vm-boot.sh
#   VM_PLACE         where in the machine: login, linger, bare or delegated (see
#                    vm-guest.sh); default: login for a command, all for tests
#   VM_PARTS         how many machines share e2e (default: one a processor)
#   SBX_TEST_FLAGS   more flags for the tests: -test.run TestKill
#   SBX_VM_OUT       a directory for what the machine writes into /out (uml only)
#   SBX_VM_TIMEOUT   see vm-boot.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
go=$PWD/scripts/go
machine=${VM:-uml}

# What depends on the place in which sbx runs: in the ring it runs in all of them.
ring_packages=(./cgroup/... ./e2e/vm)

die() { echo "vm: $*" >&2; exit 2; }

job= pids=()
cleanup() {
	[ ${#pids[@]} = 0 ] || { kill "${pids[@]}" 2>/dev/null; wait; } || true
	[ -z "$job" ] || rm -rf "$job"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

# prepare makes the directory of the job: disk/ becomes the machine's second disk. The
# lock on it is ours and our children's, so that what a kill -9 leaves can be removed.
prepare() {
	[ -x bin/sbx ] || die "there is no bin/sbx: make build"
	local old cache slow=4
	for old in /var/tmp/sbx-job.*; do
		[ ! -e "$old/lock" ] || flock --nonblock "$old/lock" rm -rf "$old" 2>/dev/null || true
	done
	job=$(mktemp -d /var/tmp/sbx-job.XXXXXX)
	exec 9>"$job/lock"
	flock 9
	mkdir -p "$job"/{run,scripts,disk/{bin,cache}}
	cp scripts/vm-*.sh "$job/scripts/" # the user may not be able to read the checkout
	chmod 1777 "$job/run"
	chmod -R a+rX "$job"
	scripts/as-user "$job/scripts/vm-image.sh" >/dev/null
	cache=$(scripts/as-user sh -c 'echo "${SBX_E2E_CACHE:-$HOME/.cache/sbx-e2e}"')
	[ ! -d "$cache" ] || cp -r "$cache/." "$job/disk/cache/"
	cp -r bin/. "$job/disk/bin/"
	cp scripts/vm-guest.sh "$job/disk/guest.sh"
	[ "$machine" != qemu ] || slow=20
	echo "slow=$slow" >"$job/disk/plan"
}

# boot starts a machine that does the plan of the job.
boot() { # LABEL WORDS...
	local label=$1; shift
	chmod -R a+rX "$job/disk"
	SBX_VM_LABEL=$label scripts/as-user "$job/scripts/vm-boot.sh" "$machine" "$job" "$@" &
	pids+=($!)
}

run() {
	[ $# -gt 0 ] || die "which command?"
	prepare
	printf 'at %q command %q\n' "${VM_PLACE:-login}" "$(printf '%q ' "$@")" >>"$job/disk/plan"
	boot ''
	wait "${pids[0]}"
}

# put compiles the tests of a package onto the disk, with the files they read.
put() { # PKG, below the checkout
	local dir=${1#./}
	mkdir -p "$job/disk/pkg/$dir"
	"$go" test -trimpath -c -o "$job/disk/pkg/$dir/test" "./$dir"
	[ ! -d "$dir/testdata" ] || cp -r "$dir/testdata" "$job/disk/pkg/$dir/"
}

# plan_package plans the tests of a package, in every place or the one that is wanted.
plan_package() {
	local dir=${1#./} place
	for place in ${VM_PLACE:-bare login linger delegated}; do
		echo "on 1 && at $place $dir 'cd /job/pkg/$dir && ./test -test.v ${SBX_TEST_FLAGS:-}'"
	done
}

# packages lists those of the patterns that exist and have tests.
packages() {
	"$go" list -f '{{if or .TestGoFiles .XTestGoFiles}}./{{.Dir}}{{end}}' "$@" 2>/dev/null | sed "s|^\./$PWD/||"
}

test_packages() {
	local p list
	prepare
	list=$(packages "$@")
	[ -n "$list" ] || die "no tests in $*"
	for p in $list; do
		put "$p"
		plan_package "$p"
	done >>"$job/disk/plan"
	boot ''
	wait "${pids[0]}"
}

case ${1:-} in
run) shift; run "$@" ;;
*) sed -n '2,/^set/{s/^# \?//p}' "$0" >&2; exit 2 ;;
esac
