#!/bin/bash
# Many sandboxes at once: starts, lists, executes in, measures and removes N of them,
# and lists R records; prints the figures of docs/performance.md, "Many at once".
#
#   sudo scripts/many.sh [N [R]]      default 100 and 500
#
# As root the sandboxes are SBX_TEST_USER's, and memory is told as PSS too, the share of
# pages that several processes have. SBX_BIN is the binary, SBX_PARALLEL how many commands
# run at a time (default 8). Nothing else should run meanwhile.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
n=${1:-100} records=${2:-500} parallel=${SBX_PARALLEL:-8}
bin=${SBX_BIN:-$top/bin/sbx}
export LC_ALL=C

dir=$("$top/scripts/as-user" mktemp -d /var/tmp/sbx-many.XXXXXX)
cleanup() {
	sbx rm -f -v $(sbx ps -aq) >/dev/null 2>&1 || true
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM
cp "$bin" "$dir/sbx" # the user may not be able to read the checkout
chmod 755 "$dir" "$dir/sbx"
"$top/scripts/as-user" sh -c "cd $dir && mkdir -m 700 run && mkdir -p root/bin && cp /usr/bin/busybox root/bin && for a in sh sleep true; do ln -s busybox root/bin/\$a; done"

# as_dir runs a command as the user with directories of its own.
as_dir() { "$top/scripts/as-user" env XDG_DATA_HOME="$dir/data" XDG_RUNTIME_DIR="$dir/run" "$@"; }
sbx() { as_dir "$dir/sbx" "$@"; }
# each runs sbx for the numbers from 1 to $1, several at a time, with {} for the number.
each() { as_dir sh -c 'n=$1 p=$2 bin=$3; shift 3; seq "$n" | xargs -P "$p" -I{} "$bin" "$@"' sh "$1" "$parallel" "$dir/sbx" "${@:2}" >"$dir/out" 2>"$dir/err" || { cat "$dir/err" >&2; exit 1; }; }
# ms prints how many milliseconds a command takes.
ms() { local s=$EPOCHREALTIME; "$@" >/dev/null; awk -v s="$s" -v e="$EPOCHREALTIME" 'BEGIN { printf "%.0f", (e - s) * 1000 }'; }
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
# times prints the median of 7 runs.
times() { for _ in 1 2 3 4 5 6 7; do echo "$(ms "$@")"; done | median; }
row() { printf '| %s | %s |\n' "$1" "$2"; }
# monitors are the parents of the sandboxes' first processes; network is the process whose
# files are in our directory.
monitors() { for p in $(sbx inspect -f '{{.State.Pid}}' $(sbx ps -q)); do awk '$1 == "PPid:" { print $2 }' "/proc/$p/status"; done; }
network() { for p in $(pgrep -x -u "$uid" sbx-netd); do [ -z "$(find "/proc/$p/fd" -lname "$dir/*" 2>/dev/null)" ] || echo "$p"; done; }
# kib prints a key of the memory of processes, in KiB.
kib() { local key=$1; shift; for p; do awk -v k="$key:" '$1 == k { print $2 }' "/proc/$p/smaps_rollup" 2>/dev/null || true; done | median; }
uid=$("$top/scripts/as-user" id -u)

run=(run -d --name b{} --rootfs "$dir/root" --read-only /bin/sleep 100000)
sbx "${run[@]/\{\}/0}" >/dev/null 2>&1
netd=$(network)
before=$(kib Rss $netd)
started=$(ms each "$n" "${run[@]}")
echo "$n sandboxes on one network, $parallel commands at a time, on $(nproc) processors, Linux $(uname -r)"
echo
row "" ""
row --- ---:
row "start, each" "$((started / n)) ms"
row "ps" "$(times sbx ps) ms"
row "exec true, each" "$(($(ms each "$n" exec b{} /bin/true) / n)) ms"
row "stats --no-stream, beside the second that it measures" "$(($(times sbx stats --no-stream 2>/dev/null) - 1000)) ms"
monitors=$(monitors)
sleep 3 # a monitor gives memory back when it has nothing to do
row "monitors" "$(wc -w <<<"$monitors")"
row "memory of a monitor, resident (its own share)" "$(kib Rss $monitors) KiB ($(kib Pss $monitors) KiB)"
row "memory of the network's process, for each sandbox" "$((($(kib Rss $netd) - before) / n)) KiB"
id=$(sbx inspect -f '{{.Id}}' b1)
row "disk, files of a sandbox" "$(du -s --apparent-size --exclude=merged -B1 "$dir/data/sbx/containers/$id" | cut -f1) bytes, $(du -s --exclude=merged -B1 "$dir/data/sbx/containers/$id" | awk '{ print $1 / 1024 }') KiB in blocks"
row "rm -f, each" "$(($(ms each "$n" rm -f b{}) / n)) ms"
sbx rm -f b0 >/dev/null
alone=$(times sbx run --rm --rootfs "$dir/root" --read-only --network none /bin/true)
each "$records" create --name r{} --rootfs "$dir/root" --read-only /bin/true
row "ps -a, $records records" "$(times sbx ps -a) ms"
row "run --rm true, among $records records (without)" "$(times sbx run --rm --rootfs "$dir/root" --read-only --network none /bin/true) ms ($alone ms)"
row "rm of all of them, in one command" "$(ms sbx rm $(seq -f r%.0f "$records")) ms"
