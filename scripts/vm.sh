#!/bin/bash
# Runs commands and tests on a stock Debian in a virtual machine, as its ordinary
# user dev, without sudo. See docs/testing.md.
#
#   scripts/vm.sh run CMD...       a command; it ends with the command's status
#   scripts/vm.sh test PKG...      the tests of packages, in every place
#   scripts/vm.sh phases [TEST...] those between whose phases root acts
#   scripts/vm.sh places           those of ring_packages and those with phases
#   scripts/vm.sh test             the ring: places, and then e2e
#   scripts/vm.sh image            nothing, but the image is made
#
# What is in bin/ of the checkout is on the machine's PATH: sbx, and also what is
# put there for this (CGO_ENABLED=0 go test -c -o bin/ ./userns).
#
#   VM               uml (default): User Mode Linux; or qemu: see vm-boot.sh
#   VM_PLACE         where in the machine: login, linger, bare or delegated (see
#                    vm-guest.sh); default: login for a command, all for tests
#   VM_PARTS         how many machines share e2e (default: one a processor, at most 4)
#   SBX_TEST_FLAGS   more flags for the tests: -test.run TestKill
#   SBX_VM_OUT       a directory for what the machine writes into /out (uml only)
#   SBX_VM_TIMEOUT   see vm-boot.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
go=$PWD/scripts/go
machine=${VM:-uml}

# What depends on the place in which sbx runs: in the ring it runs in all of them.
ring_packages=(./e2e/vm)
[ ! -d cgroup ] || ring_packages+=(./cgroup/...)

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
	local old slow=4
	for old in /var/tmp/sbx-job.*; do
		[ ! -e "$old/lock" ] || flock --nonblock "$old/lock" rm -rf "$old" 2>/dev/null || true
	done
	job=$(mktemp -d /var/tmp/sbx-job.XXXXXX)
	exec 9>"$job/lock"
	flock 9
	mkdir -p "$job"/{run,scripts,disk/bin}
	cp scripts/vm-*.sh "$job/scripts/" # the user may not be able to read the checkout
	chmod 1777 "$job/run"
	chmod -R a+rX "$job"
	scripts/as-user "$job/scripts/vm-image.sh" >/dev/null
	cp -r bin/. "$job/disk/bin/"
	cp scripts/vm-guest.sh "$job/disk/guest.sh"
	[ "$machine" != qemu ] || slow=20
	echo $slow >"$job/disk/slow"
	: >"$job/disk/plan"
}

# boot starts a machine that does the plan of the job.
boot() { # LABEL WORDS...
	local label=$1 cache; shift
	if [ ! -e "$job/disk/cache" ]; then
		cache=$(scripts/as-user sh -c 'echo "${SBX_E2E_CACHE:-$HOME/.cache/sbx-e2e}"')
		mkdir "$job/disk/cache"
		[ ! -d "$cache" ] || cp -r "$cache/." "$job/disk/cache/"
	fi
	chmod -R a+rX "$job/disk"
	SBX_VM_LABEL=$label scripts/as-user "$job/scripts/vm-boot.sh" "$machine" "$job" "$@" &
	pids+=($!)
}

# put compiles the tests of a package onto the disk, with the files they read.
put() { # DIR, below the checkout
	mkdir -p "$job/disk/pkg/$1"
	"$go" test -trimpath -c -o "$job/disk/pkg/$1/test" "./$1"
	[ ! -d "$1/testdata" ] || cp -r "$1/testdata" "$job/disk/pkg/$1/"
	cp -r README.md docs "$job/disk/pkg/" # which e2e compares with what happens
}

# everywhere plans the tests of packages in every place, or the one that is wanted.
everywhere() { # PKG...
	local dir place
	for dir in $("$go" list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' "$@"); do
		dir=${dir#"$PWD/"}
		put "$dir"
		for place in ${VM_PLACE:-bare login linger delegated}; do
			printf 'tests %s %s %q\n' "$place" "$dir" "${SBX_TEST_FLAGS:-}" >>"$job/disk/plan"
		done
	done
}

# What root does between the phases of a test, see vm-guest.sh.
declare -A acts=(
	[TestLogout]='logout linger+logout'
	[TestClock]='clock_back clock_forward'
	[TestRestart]='linger+restart crash'
)
all_phases=(TestLogout TestClock TestRestart)

# plan_phases plans tests of e2e/vm/phases.
plan_phases() { # TEST...
	local name
	put e2e/vm/phases
	for name; do
		[ -n "${acts[$name]:-}" ] || die "which of ${!acts[*]}?"
		echo "phases login e2e/vm/phases $name ${acts[$name]}" >>"$job/disk/plan"
	done
}

# end waits for the machines, says what has run in them and returns their status.
end() {
	local pid failed=0
	for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
	pids=()
	echo
	cat "$job/run/summary" 2>/dev/null || true
	times >"$job/times" # those of the machines are in the second line, as 12m3.45s
	echo "vm: $([ $failed = 0 ] && echo passed || echo FAILED), $SECONDS s, of processors $(awk -F'[ms ]+' 'NR == 2 { print int(60 * $1 + $2 + 60 * $3 + $4) }' "$job/times") s"
	return $failed
}

run() {
	[ $# -gt 0 ] || die "which command?"
	prepare
	printf 'at %q command %q\n' "${VM_PLACE:-login}" "$(printf '%q ' "$@")" >>"$job/disk/plan"
	boot ''
	wait "${pids[0]}"
}

phases() {
	[ $# -gt 0 ] || set -- "${all_phases[@]}"
	prepare
	plan_phases "$@"
	boot ''
	end
}

packages() {
	prepare
	everywhere "$@"
	boot ''
	end
}

# ring is make test-vm. The machine has no network: the images and programs that e2e
# needs are made here, where its fixtures are tested.
ring() { # places|all
	local what=$1 i words parts=${VM_PARTS:-$(($(nproc) < 4 ? $(nproc) : 4))} flags="-test.timeout 50m -test.short ${SBX_TEST_FLAGS:-}"
	case $machine:$flags in
	*-test.run*) parts=1 ;;
	# Two emulated processors get through what does not only move data.
	qemu:*) parts=1 flags+=" -test.run '^Test(Doctor|ExitCodes|Kill|ImageTree|WritableLayer|SingleID|Namespaces|Capabilities|SignalsForwarded|NestedVariants|PublishBare|NoSub|HostAccess)'" ;;
	esac
	prepare
	"$go" test -trimpath -c -o "$job/fixture.test" ./e2e/fixture
	(top=$PWD && cd "$job/run" && "$top/scripts/as-user" "$job/fixture.test")
	everywhere "${ring_packages[@]}"
	[ "$machine" = qemu ] || plan_phases "${all_phases[@]}"
	if [ "$what" = all ]; then
		put e2e
		printf 'share e2e %q\n' "$flags" >>"$job/disk/plan"
		mkdir -m 1777 "$job/run/claims"
	fi
	for ((i = 1; i <= parts; i++)); do
		words=("sbx.part=$i/$parts")
		[ "$parts" = 1 ] || words+=("sbx.claims=$job/run/claims")
		SBX_VM_CPU=$i boot "$machine $i: " "${words[@]}"
	done
	end
}

{ # read as a whole: the file may be edited meanwhile
	case ${1:-} in
	run) shift; run "$@" ;;
	phases) shift; phases "$@" ;;
	image) prepare ;;
	test) shift; if [ $# -gt 0 ]; then packages "$@"; else ring all; fi ;;
	places) ring places ;;
	*) sed -n '2,/^set/{s/^# \?//p}' "$0" >&2; exit 2 ;;
	esac
	exit
}
