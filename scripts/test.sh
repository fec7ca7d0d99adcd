#!/bin/bash
# What `make test` runs: every test, as an ordinary user.
#
# As root it runs them as SBX_TEST_USER; where that user cannot read the checkout
# (it may be under /root) they run in a copy, which is removed afterwards. As root
# it also brings up the world of network namespaces for e2e/world.
#
#   scripts/test.sh [packages|e2e|world|all]     what to run (default all)
#   SBX_TEST_FLAGS                               more flags for go test
set -uo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
go=$PWD/scripts/go
what=${1:-all}
src=$PWD
status=0

cleanup() {
	[ "$src" = "$OLDPWD_SRC" ] || rm -rf "$src"
}
OLDPWD_SRC=$PWD
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

if [ "$what" = packages ] || [ "$what" = all ]; then
	mapfile -t pkgs < <("$go" list ./... | grep -v /e2e)
	run -p 2 -timeout 15m "${pkgs[@]}"
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
exit $status
