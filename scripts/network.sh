#!/bin/bash
# One network with more and more sandboxes on it: what each of them costs, how long a
# connection between two of them takes, and what a flood to all of them costs. Prints the
# table of docs/performance.md, "Many on one network".
#
#   sudo scripts/network.sh [N...]      default 10 100 1000
#
# As root the sandboxes are SBX_TEST_USER's, and memory is told as PSS too, the share of
# pages that several processes have. SBX_BIN is the binary, SBX_PARALLEL how many commands
# run at a time (default 8). A thousand need some 10 GB of memory, 20,000 processes and
# threads, and two minutes. Nothing else should run meanwhile.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
[ $# -gt 0 ] || set -- 10 100 1000
parallel=${SBX_PARALLEL:-8}
bin=${SBX_BIN:-$top/bin/sbx}
export LC_ALL=C

dir=$("$top/scripts/as-user" mktemp -d /var/tmp/sbx-network.XXXXXX)
cleanup() {
	sbx ps -aq | as_dir xargs -r -P "$parallel" -n 50 "$dir/sbx" rm -f >/dev/null 2>&1 || true
	sbx network rm -f many >/dev/null 2>&1 || true
	rm -rf "$dir"
}
have=0 first=$1
trap cleanup EXIT
trap 'exit 130' INT TERM
cp "$bin" "$dir/sbx" # the user may not be able to read the checkout
(cd "$top" && CGO_ENABLED=0 scripts/go test -trimpath -c -o "$dir/probe" ./e2e)
chmod 755 "$dir" "$dir/sbx" "$dir/probe"
"$top/scripts/as-user" sh -c "cd $dir && mkdir -m 700 run && mkdir -p root/bin && ln probe root/probe 2>/dev/null || cp probe root/probe; cp /usr/bin/busybox root/bin && for a in sh sleep true; do ln -s busybox root/bin/\$a; done"

# as_dir runs a command as the user with directories of its own.
as_dir() { "$top/scripts/as-user" env XDG_DATA_HOME="$dir/data" XDG_RUNTIME_DIR="$dir/run" "$@"; }
sbx() { as_dir "$dir/sbx" "$@"; }
ms() { local s=$EPOCHREALTIME; "$@" >/dev/null; awk -v s="$s" -v e="$EPOCHREALTIME" 'BEGIN { printf "%.0f", (e - s) * 1000 }'; }
key() { awk -v k="$1:" '$1 == k { print $2 }' "$2" 2>/dev/null || true; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$1/stat"; }
more() { as_dir sh -c 'seq "$1" "$2" | xargs -P "$3" -I{} "$4" run -d --name b{} -h b{} --network many --rootfs "$5" --read-only /bin/sleep 100000' sh "$1" "$2" "$parallel" "$dir/sbx" "$dir/root"; }

# measure prints what the network is like with the sandboxes that there are.
measure() {
	local netd mons n=$have cpu took pss free casts to i
	netd=$(sbx network inspect -f '{{.Status.Pid}}' many)
	mons=$(for i in 1 "$((n / 2))" "$n"; do awk '$1 == "PPid:" { print $2 }' "/proc/$(sbx inspect -f '{{.State.Pid}}' "b$i")/status"; done)
	pss=$(for i in $mons; do key Pss "/proc/$i/smaps_rollup"; done | median)
	# Connections between two of them, one after the other, by the name's address.
	to=$(sbx inspect -f '{{.NetworkSettings.Networks.many.IPAddress}}' b2)
	[ "$n" != "$first" ] || sbx exec -d b2 /probe echo 7
	until sbx exec b1 /probe dial tcp "$to:7" 2>/dev/null | grep -q ^ok; do sleep 0.1; done
	took=$(ms sbx exec b1 /probe many "$to:7" 3000 1)
	# Datagrams to everybody, each copied to every sandbox, within the bound of 100,000
	# copies a second and 20,000 at once.
	casts=$((19000 / (n - 1)))
	cpu=$(ticks "$netd")
	for i in 1 2 3 4 5 6 7 8 9 10; do
		sbx exec b1 /probe cast 255.255.255.255:9 "$casts"
		sleep 0.3
	done
	cpu=$(($(ticks "$netd") - cpu))
	free=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
	awk -v n="$n" -v start="$started" -v rss="$(key VmRSS "/proc/$netd/status")" -v pss="${pss:-0}" -v took="$took" -v cpu="$cpu" -v casts="$casts" -v free="$free" -v before="$before" \
		'BEGIN { printf "| %d | %d ms | %.1f MiB | %.1f MiB | %.1f MiB | %.0f us | %.2f us |\n", n, start, rss / 1024, pss / 1024, (before - free) / n / 1024, took * 1000 / 3000, cpu * 10000 / (10 * casts) / (n - 1) }'
}

before=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
sbx network create --subnet 10.213.0.0/20 many >/dev/null
echo "| sandboxes | start, each | network's process | a monitor, its share | memory of all, each | connect, echo, close | flood, each copy |"
echo "|---|---|---|---|---|---|---|"
for n in "$@"; do
	started=$(($(ms more $((have + 1)) "$n") / (n - have)))
	have=$n
	measure
done
