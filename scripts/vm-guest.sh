#!/bin/bash
# The job of scripts/vm.sh in the virtual machine. As root of the machine it gives it
# an address and a name server, then does what is in /job/plan, one step a line, as the
# ordinary user dev, in one of these places:
#
#   login      a session that PAM and systemd-logind have made, as ssh does
#   linger     a service of the user's own systemd, which lingers; there is no session
#   bare       neither: no session, no systemd of the user's, no runtime directory
#   delegated  login, after the administrator has done what sbx doctor advises
#
# A step may restart the machine: what has been done is in /var/lib/sbx-job.
set -uo pipefail
stty -F /dev/ttyS1 raw
part=1 parts=1 claims=
slow=$(cat /job/slow)
kept=/var/lib/sbx-job
mkdir -p $kept
recall() { cat $kept/"$1" 2>/dev/null || echo 0; } # a number; 0 if there is none
for word in $(cat /proc/cmdline); do
	case $word in
	sbx.part=*/*) word=${word#*=} part=${word%/*} parts=${word#*/} ;;
	sbx.claims=*) claims=/claims && mkdir -p $claims && mount -t hostfs -o "${word#*=}" none $claims ;;
	sbx.out=*) mkdir -p /out && mount -t hostfs -o "${word#*=}" none /out ;;
	esac
done

echo "vm: Linux $(uname -r), $(nproc) processor(s), up $(cut -d. -f1 /proc/uptime) s"
ip link set lo up
ip link add lan0 type dummy
ip link set lan0 up
ip addr add 10.99.0.2/24 dev lan0
ip addr add fd99::2/64 dev lan0 nodad
ip route add default via 10.99.0.1
ip -6 route add default via fd99::1
# It knows no name, which is an answer too.
dnsmasq --conf-file=/dev/null --no-hosts --no-resolv --local=/#/ --listen-address=127.0.0.1 --bind-interfaces

variables() { echo "PATH=/job/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LANG=C.UTF-8 SBX_BIN=/job/bin/sbx SBX_E2E_CACHE=/job/cache SBX_TEST_VM=$1 SBX_TEST_SLOW=$slow"; }

# as_dev runs a command as dev with no environment but its arguments, in no session;
# login runs one in a new session.
as_dev() { setpriv --reuid dev --regid dev --init-groups env -i -C /home/dev HOME=/home/dev USER=dev LOGNAME=dev SHELL=/bin/bash "$@"; }
login() { XDG_SESSION_TYPE=tty XDG_SESSION_CLASS=user su --login dev --command "export $(variables "$1"); $2"; }

# manager starts or stops the user's systemd, and waits for it.
manager() {
	loginctl "$1-linger" dev
	if [ "$1" = enable ]; then
		until [ "$(systemctl is-active user@1000)" = active ]; do sleep 0.1; done
	else
		loginctl terminate-user dev 2>/dev/null
		systemctl stop user@1000 user-runtime-dir@1000
	fi
}

# delegate does what the doctor says, like an administrator who reads it.
dropin=
delegate() {
	local advice
	advice=$(login login 'sbx doctor')
	dropin=$(grep -o '/etc/systemd/system/user@[^ ]*' <<<"$advice")
	mkdir -p "${dropin%/*}"
	grep -oE '\[Service\]|Delegate=.*' <<<"$advice" >"$dropin"
	# What --blkio-weight advises; the disk of the other machine cannot have it.
	[ ! -e /sys/block/vda ] || { modprobe bfq && echo bfq >/sys/block/vda/queue/scheduler; }
	systemctl daemon-reload
	manager disable
}
undelegate() {
	rm "$dropin"
	systemctl daemon-reload
	manager disable
}

# at PLACE NAME COMMAND
at() {
	local start=$SECONDS rc
	echo "vm: $2 ($1)"
	case $1 in
	linger) manager enable ;;
	delegated) delegate ;;
	bare) manager disable ;; # that of a session before it lives on for 10 s
	esac
	case $1 in
	login | delegated) login "$1" "$3" ;;
	linger) as_dev XDG_RUNTIME_DIR=/run/user/1000 systemd-run --user --quiet --wait --pipe --collect env $(variables linger) sh -c "$3" ;;
	bare) as_dev $(variables bare) sh -c "$3" ;;
	*) echo "vm: no such place: $1"; false ;;
	esac
	rc=$?
	case $1 in
	linger) manager disable ;;
	delegated) undelegate ;;
	esac
	echo "vm: $2 ($1): status $rc, $((SECONDS - start)) s"
	[ $rc = 0 ] || echo $rc >$kept/status
}

# tests PLACE DIR FLAGS: the tests of a package, which are in /job/pkg/DIR. The machines
# take turns, but for the last one, which has the phases.
turn=0
tests() {
	turn=$((turn % (parts > 1 ? parts - 1 : 1) + 1))
	[ "$turn" = "$part" ] || return 0
	at "$1" "$2" "cd /job/pkg/$2 && ./test -test.v $3" | count "$2 ($1)"
}

# share DIR FLAGS: as tests, but the machines share them: each takes four more when it has
# done four. Those are its whose directory it could make. Debian lets nobody make ping
# sockets; here we do what scripts/setup.sh does.
share() {
	local run="./test -test.v $2"
	sysctl -q -w net.ipv4.ping_group_range='0 2147483647'
	if [ -n "$claims" ]; then
		# The longest goes first: at the end one machine would wait for it.
		as_dev $(variables login) "/job/pkg/$1/test" -test.list . | grep ^Test | sed -n '/^TestSoak$/p;/^TestSoak$/!H;${x;s/^\n//;p}' | xargs -r -n 4 | tr ' ' '|' >/run/shares
		cat >/run/share <<-EOF
			n=0 status=0
			[ -s /run/shares ] || status=1 # what cannot be listed has not passed
			while read -r some; do
				mine=$claims/\$((n += 1))
				mkdir \$mine 2>/dev/null || { [ -d \$mine ] || status=1; continue; }
				$run -test.run "^(\$some)\$" </dev/null || status=1
			done </run/shares
			exit \$status
		EOF
		run='sh /run/share'
	fi
	at login "$1" "cd /job/pkg/$1 && $run" | count "$1, $part of $parts"
}

# count passes on what go test prints, but for what passes, and adds it up.
count() {
	mawk -W interactive -v what="$1" '
		/^=== (RUN|PAUSE|CONT|NAME)|^ +--- PASS/ { next }
		/^--- PASS/ { passed++ }
		/^--- FAIL/ { failed++; names = names " " $3 }
		/^--- SKIP/ { skipped++; names = names " (" $3 ")" }
		/^vm: .*: status / { end = $0; sub(/.*: status /, "", end) }
		{ print }
		END { printf "vm: ran %s: %d passed, %d failed, %d skipped%s; status %s\n", what, passed, failed, skipped, names, end }'
}

# phases PLACE DIR TEST ACT[+ACT]...: a test, once before and once after each act of
# root's. It finds in SBX_TEST_PHASE how often root has acted.
phases() {
	local place=$1 dir=$2 test=$3 acts=("${@:4}") phase act
	[ "$part" = "$parts" ] || return 0
	for ((phase = $(recall phase); ; phase++)); do
		at "$place" "$test $phase" "export SBX_TEST_PHASE=$phase; cd /job/pkg/$dir && ./test -test.v -test.run '^$test\$'" | count "$test $phase ($place)"
		[ $phase -lt ${#acts[@]} ] || break
		echo "vm: ${acts[phase]}"
		echo $((phase + 1)) >$kept/phase
		for act in ${acts[phase]//+/ }; do $act; done
	done
	rm -f $kept/phase
	manager disable
}

# What root does in between.
logout() { # and systemd ends what is the user's, unless he lingers
	until [ "$(systemctl is-active user@1000)" = inactive ] || [ -e /var/lib/systemd/linger/dev ]; do sleep 0.1; done
}
linger() { manager enable; }
unlinger() { loginctl disable-linger dev; logout; }
restart() { # as an administrator does
	: >/run/sbx-restarts
	systemctl reboot
	sleep infinity
}
crash() { # as without power
	sync
	echo b >/proc/sysrq-trigger
	sleep infinity
}
clock_back() { date --set '-3 hours' >/dev/null; }
clock_forward() { date --set '+3 hours' >/dev/null; }

# The programs see a pipe and no terminal.
{
	mapfile -t plan </job/plan
	for ((step = $(recall step); step < ${#plan[@]}; step++)); do
		eval "${plan[step]}"
		echo $((step + 1)) >$kept/step
	done
	echo "vm: status $(recall status)"
} 2>&1 | cat
