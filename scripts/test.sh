#!/bin/bash
# What `make test` runs: every test, as an ordinary user.
#
# As root it runs them as SBX_TEST_USER; where that user cannot read the checkout
# (it may be under /root) they run in a copy, which is removed afterwards. As root
# it also brings up the world of network namespaces for e2e/world.
#
#   scripts/test.sh [packages|fuzz|e2e|world|vm|all]  what to run (default all: all but vm)
#   SBX_TEST_FLAGS                                    more flags for go test
#   SBX_FUZZ_TIME                                     for each fuzzer (default 4s)
#   VM                                                uml (default) or qemu: see vm.sh
#   VM_PARTS, VM_PART                                 how many machines share the tests
#                                                     (one a processor), and only this one
set -uo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
go=$PWD/scripts/go
what=${1:-all}
src=$PWD
status=0

job=
cleanup() {
	[ -z "$job" ] || rm -rf "$job"
	[ "$src" = "$checkout" ] || rm -rf "$src"
}
checkout=$PWD
trap cleanup EXIT
trap 'exit 130' INT TERM

if ! scripts/as-user test -r "$PWD/go.mod" -a -x "$PWD/scripts"; then
	src=$(mktemp -d /var/tmp/sbx-src.XXXXXX)
	chmod 755 "$src"
	tar -c --exclude=./.git . | tar -x -C "$src" --no-same-owner
	chmod -R a+rX "$src"
	cd "$src" || exit 1
fi
export SBX_BIN=$src/bin/sbx

run() { # flags and packages
	"$go" test -trimpath -count=1 -exec "$src/scripts/as-user" ${SBX_TEST_FLAGS:-} "$@" || status=1
}

# vm puts the end-to-end tests on the disk of a virtual machine, and boots it; or
# several machines, of which each does a part of the tests.
vm() {
	local machine=${VM:-uml} parts=${VM_PARTS:-} flags=${SBX_TEST_FLAGS:-} slow=4 cache i pids=() failed=0
	# Two emulated processors get through what does not only move data.
	local reduced='^Test(Doctor|ExitCodes|Kill|ImageTree|WritableLayer|SingleID|Namespaces|Capabilities|SignalsForwarded|NestedVariants|PublishBare|NoSub|HostAccess)'
	if [ "$machine" = qemu ]; then
		slow=20 parts=1
		[ -n "$flags" ] || flags="-test.run '$reduced'"
	fi
	case $flags in *-test.run*) parts=1 ;; esac
	[ -n "$parts" ] || parts=$(nproc)
	scripts/as-user "$src/scripts/vm-image.sh" >/dev/null || return
	# The guest has no network: the images and tools are made here.
	"$go" test -trimpath -count=1 -exec "$src/scripts/as-user" ./e2e/fixture || return
	job=$(mktemp -d /var/tmp/sbx-job.XXXXXX) || return
	chmod 755 "$job"
	"$go" test -trimpath -c -o "$job/e2e.test" ./e2e || return
	"$go" test -trimpath -c -o "$job/vm.test" ./e2e/vm || return
	cp "$SBX_BIN" "$job/sbx" || return
	cp scripts/vm-guest.sh "$job/guest.sh" || return
	cache=$(scripts/as-user sh -c 'echo "${SBX_E2E_CACHE:-$HOME/.cache/sbx-e2e}"')
	cp -a "$cache" "$job/cache" || return
	echo "slow=$slow vm_flags= e2e_flags=\"-test.short $flags\"" >"$job/env"
	chmod -R a+rX "$job"
	for ((i = 1; i <= parts; i++)); do
		[ "${VM_PART:-$i}" = "$i" ] || continue
		SBX_VM_LABEL="$machine $i: " scripts/as-user "$src/scripts/vm.sh" "$machine" "$job" "sbx.part=$i/$parts" &
		pids+=($!)
	done
	trap 'kill "${pids[@]}" 2>/dev/null; wait; cleanup' EXIT
	for i in "${pids[@]}"; do wait "$i" || failed=1; done
	return $failed
}

if [ "$what" = packages ] || [ "$what" = all ]; then
	mapfile -t pkgs < <("$go" list ./... | grep -v /e2e)
	run -p 2 -timeout 15m "${pkgs[@]}"
fi
# Each parser of bytes from a guest or a client, one after the other. Each runs in a
# copy of its package's testdata, which the user may write; a finding is printed and
# put into testdata/fuzz of the package, where every later run of the tests tries it.
fuzzers=(
	./netstack:Input ./netstack:Reassembly ./netstack:ParseIP ./netstack:ParseCause ./netstack:Exchange ./netstack:Upstream
	./portfwd:ParsePublish ./portfwd:ParseLocal ./internal/wire:Parse ./sandbox/internal/netd:Control
)
fuzz() { # the directory for binaries
	local f pkg name bin dir=$1
	for f in "${fuzzers[@]}"; do
		pkg=${f%:*} name=Fuzz${f#*:}
		bin=$dir/$(echo "$pkg" | tr ./ __).test
		[ -x "$bin" ] || "$go" test -trimpath -fuzz . -c -o "$bin" "$pkg" || return 1
		mkdir -p "$dir/$name/cache" "$dir/$name/testdata"
		[ ! -d "$pkg/testdata" ] || cp -r "$pkg/testdata" "$dir/$name/"
		chmod -R a+rwX "$dir/$name"
		echo "$pkg $name"
		(cd "$dir/$name" && "$src/scripts/as-user" "$bin" -test.run='^$' -test.fuzz="^$name\$" -test.fuzztime="${SBX_FUZZ_TIME:-4s}" \
			-test.fuzzcachedir="$dir/$name/cache" -test.parallel=1) >"$dir/log" 2>&1 && continue
		# Go's own way to end when the time is over in the middle of an input.
		grep -q '^    context deadline exceeded' "$dir/log" && ! grep -q 'Failing input' "$dir/log" && continue
		cat "$dir/log"
		for f in "$dir/$name/testdata/fuzz/$name/"*; do
			[ -e "$f" ] && [ ! -e "$pkg/testdata/fuzz/$name/${f##*/}" ] || continue
			echo "$pkg/testdata/fuzz/$name/${f##*/}:"
			cat "$f"
			mkdir -p "$checkout/$pkg/testdata/fuzz/$name" && cp "$f" "$checkout/$pkg/testdata/fuzz/$name/"
		done
		status=1
	done
}
if [ "$what" = fuzz ] || [ "$what" = all ]; then
	bins=$(mktemp -d /var/tmp/sbx-fuzz.XXXXXX)
	chmod 777 "$bins"
	fuzz "$bins" || status=1
	rm -rf "$bins"
fi
if [ "$what" = e2e ] || [ "$what" = all ]; then
	run -p 1 -timeout 40m $("$go" list ./e2e/... | grep -v /e2e/world)
fi
if [ "$what" = world ] || [ "$what" = all ]; then
	if [ "$(id -u)" = 0 ]; then
		scripts/world.sh run "$go" test -trimpath -count=1 -exec "$src/scripts/as-user" \
			-timeout 20m ${SBX_TEST_FLAGS:-} ./e2e/world || status=1
	elif [ "$what" = world ]; then
		echo "test: the world needs root for its network namespaces" >&2
		status=1
	fi
fi
if [ "$what" = vm ]; then
	vm || status=1
fi
exit $status
