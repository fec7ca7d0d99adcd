#!/bin/bash
# Boots a virtual machine, as an ordinary user, runs a job in it and ends with the
# job's status. scripts/vm.sh uses it.
#
#   vm-boot.sh uml|qemu DIR [WORD...]
#
# DIR/disk becomes a disk of the machine, which runs guest.sh of it as its root and is
# then switched off. It finds the words in /proc/cmdline. What the job writes appears
# on standard output, its own "vm: " lines on standard error; what the kernel and
# systemd say is shown only if the machine ended before its job. The machine ends with
# the process that has started this; its other files are in DIR too.
#
#   uml    User Mode Linux: computes like the host, forks ten times slower; one
#          processor
#   qemu   Debian's stock kernel, two emulated processors, every cgroup controller;
#          ten times slower
#
#   SBX_VM_TIMEOUT   after which the machine is killed (default 60m)
#   SBX_VM_LABEL     what each line of its output begins with
#   SBX_VM_CPU       which of the processors that we may use it has, from 0 (uml only;
#                    default: any one)
#   SBX_VM_MEMORY    its memory in MB (default 2048)
#   SBX_VM_OUT       the host's directory that is /out of the machine (uml only)
set -euo pipefail

die() { echo "vm: $*" >&2; exit 1; }
need() { command -v "$1" >/dev/null || die "needs $1: apt-get install --no-install-recommends $2"; }

machine=${1:?uml or qemu} dir=${2:?a directory}
words=${*:3}
export SBX_VM_LABEL=${SBX_VM_LABEL:-}
memory=${SBX_VM_MEMORY:-2048} limit=${SBX_VM_TIMEOUT:-60m}
case $machine in
uml) need linux.uml user-mode-linux ;;
qemu) need qemu-system-x86_64 qemu-system-x86 ;;
*) die "no such machine: $machine (uml or qemu)" ;;
esac
image=$("$(dirname "$0")/vm-image.sh")

tmp=$(mktemp -d "$dir/run/XXXXXX")
pids=()
cleanup() {
	kill "${pids[@]}" 2>/dev/null || true
	rm -rf "$tmp"
}
trap cleanup EXIT
trap 'echo "vm: interrupted" >&2; exit 130' INT TERM HUP
# watch ends us with the process that has started us, and tells when the host has
# stopped us for a while: to the machine time has gone on, so its time-outs are over.
watch() {
	local last=$SECONDS
	while [ "$(cut -d' ' -f4 "/proc/$$/stat")" = $PPID ]; do
		sleep 1
		[ $((SECONDS - last)) -lt 8 ] || echo "vm: ${SBX_VM_LABEL}stood still for $((SECONDS - last)) s" >&2
		last=$SECONDS
	done
	kill $$
}
watch &
pids+=($!)

/sbin/mkfs.ext4 -q -d "$dir/disk" -L sbx-job -O ^has_journal "$tmp/job.ext4" "$(($(du -sm "$dir/disk" | cut -f1) * 5 / 4 + 16))M" >/dev/null

# cpu is the processor of the machine. User Mode Linux and the process that it traces take
# turns at every fault and system call. When the scheduler puts them on two processors, each
# turn wakes an idle one, and the machine is three times slower (docs/testing.md).
cpu() {
	local range cpus=()
	for range in $(sed -n '/^Cpus_allowed_list:/{s/.*:\s*//;s/,/ /g;p}' /proc/self/status); do
		mapfile -t -O ${#cpus[@]} cpus < <(seq "${range%-*}" "${range#*-}")
	done
	echo "${cpus[${SBX_VM_CPU:-$RANDOM} % ${#cpus[@]}]}"
}

uml() { # the root disk is written to a copy; file descriptor 3 is the job's output
	# c: without a lock on the disk, which a helper of the machine that was reset may still hold.
	env -u TMPDIR taskset --cpu-list "$cpu" linux.uml "uml_dir=$tmp/" umid=vm "mem=${memory}M" "ubdac=$tmp/cow,$image/root.ext4" "ubdbr=$tmp/job.ext4" \
		root=/dev/ubda rw con=null con0=null,fd:1 ssl=null ssl1=null,fd:3 quiet ${SBX_VM_OUT:+"sbx.out=$SBX_VM_OUT"} $words
}
qemu() { # nobody writes to the root disk's file, which uml may have locked
	qemu-system-x86_64 -machine q35 -accel tcg,thread=multi -cpu max -smp 2 -m "$memory" \
		-nodefaults -display none -no-reboot \
		-serial stdio -chardev "file,id=job,path=$tmp/pipe" -serial chardev:job \
		-drive "file=$image/root.ext4,format=raw,if=virtio,snapshot=on,file.locking=off" \
		-drive "file=$tmp/job.ext4,format=raw,if=virtio,readonly=on" \
		-kernel "$image/vmlinuz" -initrd "$image/initrd" -append "console=ttyS0 quiet panic=-1 $words"
}

# The machine lives in a pid namespace: it ends with all its processes when its
# parent does, and User Mode Linux has one for each of the guest's.
export -f uml qemu
cpu=$(cpu)
export memory image tmp words cpu
export TMPDIR=$tmp
mkfifo "$tmp/pipe"
setpriv --pdeathsig KILL unshare --user --map-current-user --pid --fork --kill-child --mount-proc \
	timeout --foreground --kill-after 5 "$limit" bash -c "$machine" 3>"$tmp/pipe" >"$tmp/console" 2>&1 </dev/null &
vm=$!
pids+=($vm)
# What the machine says last is its status.
while IFS= read -r line; do
	case $line in
	'vm: status '*) echo "${line##* }" >"$tmp/result"; continue ;;
	'vm: ran '*) echo "$SBX_VM_LABEL${line#vm: ran }" >>"$dir/run/summary" ;;
	esac
	case $line in
	'vm: '*) printf '%s\n' "$SBX_VM_LABEL$line" >&2 ;;
	*) printf '%s\n' "$SBX_VM_LABEL$line" ;;
	esac
done <"$tmp/pipe" &
reader=$!
status=0
wait $vm || status=$?
wait $reader
if [ ! -s "$tmp/result" ]; then
	tail -n 60 "$tmp/console" >&2
	[ $status != 124 ] || die "not over after $limit"
	die "the machine ended (status $status) before its job; above is what it said last"
fi
exit "$(cat "$tmp/result")"
