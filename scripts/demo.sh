#!/bin/bash
# Runs the built-in demo image as an ordinary user, with its port published,
# fetches its page through that port, ends it, and looks whether anything is left.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" = 0 ]; then
	dir=$(mktemp -d /var/tmp/sbx-demo.XXXXXX)
	trap 'rm -rf "$dir"' EXIT
	chmod 755 "$dir"
	mkdir "$dir/scripts" "$dir/bin"
	cp scripts/demo.sh "$dir/scripts/"
	cp bin/sbx "$dir/bin/"
	chmod -R a+rX "$dir"
	echo "demo: we are root; going on as ${SBX_TEST_USER:-sbxtest}"
	cd "$OLDPWD" 2>/dev/null || cd /
	"$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/as-user" "$dir/scripts/demo.sh"
	exit
fi

sbx=$PWD/bin/sbx
home=$(mktemp -d "${TMPDIR:-/tmp}/sbx-demo.XXXXXX")
export XDG_DATA_HOME=$home/data XDG_CONFIG_HOME=$home/config XDG_CACHE_HOME=$home/cache XDG_STATE_HOME=$home/state
export XDG_RUNTIME_DIR=$home/run
mkdir -m 700 "$XDG_RUNTIME_DIR"
pid=

cleanup() {
	status=$?
	[ -z "$pid" ] || kill "$pid" 2>/dev/null || true
	[ -z "$pid" ] || wait "$pid" 2>/dev/null || true
	# Unpacked layers belong to subordinate ids: only their own user namespace may remove them.
	rm -rf "$home" 2>/dev/null || unshare --user --map-auto --map-root-user rm -rf "$home" || true
	exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

die() { echo "demo: $*" >&2; [ ! -s "$home/log" ] || sed 's/^/    /' "$home/log" >&2; exit 1; }

free_port() {
	local p
	for p in 8080 18080 28080 38080 48080; do
		(: <"/dev/tcp/127.0.0.1/$p") 2>/dev/null || { echo "$p"; return; }
	done
	return 1
}

leftovers() { # processes of ours that know the directory, and mounts under it
	local p
	grep -F "$home" /proc/self/mountinfo || true
	for p in /proc/[0-9]*; do
		[ "$p" != "/proc/$$" ] && [ "$p" != "/proc/$BASHPID" ] || continue
		tr '\0' ' ' 2>/dev/null <"$p/cmdline" | grep -q '^[^ ]*sbx' || continue
		tr '\0' '\n' 2>/dev/null <"$p/environ" | grep -qF "$home" || continue
		printf '%s %s\n' "${p#/proc/}" "$(tr '\0' ' ' <"$p/cmdline")"
	done
	find "$XDG_RUNTIME_DIR" -type s 2>/dev/null
}

port=$(free_port) || die "the ports it would take are all in use"
echo "demo: we are $(id -un), $("$sbx" version 2>/dev/null | head -n1)"
echo "demo: \$ sbx run --rm --publish 127.0.0.1:$port:80 demo"
"$sbx" run --rm --publish "127.0.0.1:$port:80" demo >"$home/log" 2>&1 &
pid=$!

echo "demo: \$ curl http://127.0.0.1:$port/"
for ((i = 0; ; i++)); do
	curl -fsS -m 5 -o "$home/page" "http://127.0.0.1:$port/" 2>"$home/curl" && break
	kill -0 "$pid" 2>/dev/null || { pid=; die "sbx ended before its page could be fetched:"; }
	[ $i -lt 100 ] || die "no page after 20 s: $(cat "$home/curl")"
	sleep 0.2
done
head -c 2000 "$home/page" | head -n 20 | sed 's/^/    /'
echo
echo "demo: the page came from inside the sandbox ($(wc -c <"$home/page") bytes); stopping it"
kill -TERM "$pid"
status=0
wait "$pid" || status=$?
pid=
case $status in 0 | 143) ;; *) die "sbx ended with status $status" ;; esac

for ((i = 0; i < 75; i++)); do
	left=$(leftovers)
	[ -n "$left" ] || break
	sleep 0.2
done
[ -z "$left" ] || die "left behind: $left"
echo "demo: it ended with status $status and left nothing behind: no process, no mount, no socket"
