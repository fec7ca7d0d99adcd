#!/bin/bash
# What `make test` runs: every test, as an ordinary user.
#
# As root it runs them as SBX_TEST_USER; where that user cannot read the checkout
# (it may be under /root) they run in a copy, which is removed afterwards. As root
# it also brings up the world of network namespaces for e2e/world. The virtual machine
# must be had as root, and is left out where an ordinary user cannot have it.
#
#   scripts/test.sh [packages|fuzz|e2e|soak|security|world|vm|all]    what to run (default all)
#   SBX_TEST_FLAGS                                   more flags for go test
#   SBX_FUZZ_TIME, SBX_FUZZ                          for each fuzzer (default 2s), and which, as 'image Fuzz'
#   SBX_SOAK                                         how long the soak takes (default 5m, make soak 30m)
set -uo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=${CGO_ENABLED:-0} # 1 for the race detector
go=$PWD/scripts/go
what=${1:-all}
src=$PWD
status=0

cleanup() {
	[ -z "$soak" ] || kill -- "-$soak" 2>/dev/null
	[ -z "$image" ] || kill -- "-$image" 2>/dev/null
	[ -z "$lint" ] || kill -- "-$lint" 2>/dev/null
	rm -f "$log" "$findings"
	[ "$src" = "$checkout" ] || rm -rf "$src"
}
soak='' log='' image='' lint='' findings=''
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
export SBX_BIN=${SBX_BIN:-$src/bin/sbx}

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
	scripts/vm.sh image >/dev/null 2>&1 & # what goes wrong with it is said below
	image=$!
	# Ten seconds where everything has been looked at before, else three minutes of what
	# the tests leave of the processors.
	findings=$(mktemp /var/tmp/sbx-lint.XXXXXX)
	(renice -n 19 $BASHPID >/dev/null; make -s -C "$checkout" lint test-binary) >"$findings" 2>&1 &
	lint=$!
	set +m
fi
if [ "$what" = packages ] || [ "$what" = all ]; then
	mapfile -t pkgs < <("$go" list ./... | grep -v /e2e)
	run -p 2 -timeout 15m "${pkgs[@]}"
fi
# Every fuzz function of every package, two at once. Each runs in a copy of its package's
# testdata, which the user may write; a finding is printed and put into testdata/fuzz of
# the package, where every later run of the tests tries it.
fuzz() { # the directory for binaries
	local dir=$1 pkg name
	while read -r pkg name; do
		[ -x "$dir/${pkg//\//_}.test" ] || "$go" test -trimpath -fuzz . -c -o "$dir/${pkg//\//_}.test" "./$pkg" || return 1
		[ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n || status=1
		fuzz_one "$dir" "$pkg" "$name" &
	done < <(grep -r --include='*_test.go' -oE '^func Fuzz[A-Za-z0-9_]+' [a-z]* | sed -E 's,/[^/]*:func , ,' | sort -u | grep -E -- "${SBX_FUZZ:-.}")
	while [ -n "$(jobs -p)" ]; do wait -n || status=1; done
}
fuzz_one() {
	local dir=$1 pkg=$2 name=$3 f at=$1/${2//\//_}.$3/$2 cache=$1/${2//\//_}.$3/cache
	mkdir -p "$cache" "$at/testdata"
	cp -r testdata "${cache%/*}"
	[ ! -d "$pkg/testdata" ] || cp -r "$pkg/testdata" "$at/"
	chmod -R a+rwX "${cache%/*}"
	(cd "$at" && "$src/scripts/as-user" "$dir/${pkg//\//_}.test" -test.run='^$' -test.fuzz="^$name\$" -test.fuzztime="${SBX_FUZZ_TIME:-2s}" \
		-test.fuzzcachedir="$cache" -test.fuzzminimizetime=100x -test.parallel=1) >"$at/log" 2>&1 && echo "ok  	$pkg $name" && return
	# Go's own way to end when the time is over in the middle of an input.
	grep -q '^    context deadline exceeded' "$at/log" && ! grep -q 'Failing input' "$at/log" && echo "ok  	$pkg $name" && return
	echo "FAIL	$pkg $name"
	cat "$at/log"
	for f in "$at/testdata/fuzz/$name/"*; do
		[ -e "$f" ] && [ ! -e "$pkg/testdata/fuzz/$name/${f##*/}" ] || continue
		echo "$pkg/testdata/fuzz/$name/${f##*/}:"
		cat "$f"
		mkdir -p "$checkout/$pkg/testdata/fuzz/$name" && cp "$f" "$checkout/$pkg/testdata/fuzz/$name/"
	done
	return 1
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
	run -p 1 -timeout 40m "${skip[@]}" $("$go" list ./e2e/... | grep -vE '/e2e/(world|vm)(/|$)')
fi
if [ -n "$lint" ]; then
	wait "$lint" && echo "ok  	lint, the same binary from two directories" || { status=1; echo "FAIL	lint or the same binary from two directories"; cat "$findings"; }
	lint=
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
if [ "$what" = vm ] || [ "$what" = all ]; then
	[ -z "$image" ] || wait "$image"
	image=
	if [ "$(id -u)" = 0 ] || [ "$what" = vm ]; then
		"$checkout/scripts/vm.sh" test || status=1
	elif why=$("$checkout/scripts/vm.sh" run true 2>&1); then
		"$checkout/scripts/vm.sh" test || status=1
	else
		printf 'test: left out, as there is no virtual machine to be had: %s\n' "$why" >&2
	fi
fi
exit $status
