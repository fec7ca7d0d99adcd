#!/bin/bash
# What `make test` runs: every test, as an ordinary user.
#
# As root it runs them as SBX_TEST_USER; where that user cannot read the checkout
# (it may be under /root) they run in a copy, which is removed afterwards. As root
# it also brings up the world of network namespaces for e2e/world.
#
#   scripts/test.sh [packages|fuzz|e2e|soak|security|world|all]    what to run (default all)
#   SBX_TEST_FLAGS                                   more flags for go test
#   SBX_FUZZ_TIME                                    for each fuzzer (default 4s)
#   SBX_SOAK                                         how long the soak takes (default 5m, make soak 30m)
set -uo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
go=$PWD/scripts/go
what=${1:-all}
src=$PWD
status=0

cleanup() {
	[ -z "$soak" ] || kill -- "-$soak" 2>/dev/null
	rm -f "$log"
	[ "$src" = "$checkout" ] || rm -rf "$src"
}
soak='' log=''
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

soak() { SBX_SOAK=${SBX_SOAK:-5m} run -timeout 0 -run '^TestSoak$' -v ./e2e; }

# Its minutes pass beside the packages and fuzzers, which go first.
if [ "$what" = all ]; then
	log=$(mktemp /var/tmp/sbx-soak.XXXXXX)
	set -m # a process group of its own
	(renice -n 10 $BASHPID >/dev/null; soak; exit $status) >"$log" 2>&1 &
	soak=$!
	set +m
fi
if [ "$what" = packages ] || [ "$what" = all ]; then
	mapfile -t pkgs < <("$go" list ./... | grep -v /e2e)
	run -p 2 -timeout 15m "${pkgs[@]}"
fi
# Each parser of bytes from a guest or a client, one after the other. Each runs in a
# copy of its package's testdata, which the user may write; a finding is printed and
# put into testdata/fuzz of the package, where every later run of the tests tries it.
fuzzers=(
	./netstack:Input ./netstack:Reassembly ./netstack:ParseIP ./netstack:ParseCause ./netstack:Exchange ./netstack:Upstream
	./netstack:Untag ./netstack:Group ./netstack:DHCP
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
if [ -n "$soak" ]; then
	wait "$soak" || status=1
	soak=
	cat "$log"
fi
if [ "$what" = e2e ] || [ "$what" = all ]; then
	skip=()
	[ "$what" = e2e ] || skip=(-skip '^TestSoak$')
	run -p 1 -timeout 40m "${skip[@]}" $("$go" list ./e2e/... | grep -vE '/e2e/(world|vm)$')
fi
[ "$what" != soak ] || soak
if [ "$what" = security ]; then
	run -timeout 10m ./e2e/security
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
exit $status
