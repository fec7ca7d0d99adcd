#!/bin/bash
# A small internet of network namespaces for e2e/world. Needs root, and nothing
# but namespaces: no address of the machine is touched.
#
#   scripts/world.sh up | down | exec COMMAND... | run COMMAND...
#
# exec runs a command where the user's sbx lives; run does up, exec, down.
#
#   sbxhost  203.0.113.10    2001:db8:113::10   the machine on which sbx runs
#   sbxnet   203.0.113.1     2001:db8:113::1    the router, and on its loopback:
#            198.51.100.10   2001:db8:100::10   near: HTTP 80, echo 7, iperf3 5201; port 81 refuses
#            198.51.100.53   2001:db8:100::53   DNS, zone world.test
#            198.18.1.0/24   2001:db8:dead::/48 black hole: packets vanish
#            198.18.2.0/24   2001:db8:bad::/48  unreachable: an ICMP error comes back
#   sbxfar   192.0.2.10      2001:db8:2::10     far: the same servers, 25 ms each way
#   sbxrough 192.0.3.10      2001:db8:3::10     rough: the same servers, behind a link that
#                                               loses, doubles, reorders and delays frames
#   sbxwire                                     both links
#   sbxseg   192.168.66.1    fd66::1            the router of a segment on which a TAP of the user's is
#                                               (sbxtap on a bridge in sbxhost): HTTP 80, DHCP, DNS of
#                                               lab.example, router advertisements
set -euo pipefail
cd "$(dirname "$0")/.."
run=/run/sbx-world
delay=${SBX_WORLD_DELAY:-25ms}
rough=${SBX_WORLD_ROUGH:-loss=0.01,dup=0.01,reorder=0.02,delay=1ms,jitter=1ms,seed=$RANDOM}
all=(sbxhost sbxnet sbxfar sbxrough sbxwire sbxseg)

in_ns() { local ns=$1; shift; ip netns exec "$ns" "$@"; }

# service starts a background process in a namespace and notes its id.
service() {
	local ns=$1 name=$2; shift 2
	ip netns exec "$ns" setsid "$@" >"$run/$name.log" 2>&1 &
	echo $! >"$run/$name.pid"
}

wire() { # NS DEV NS DEV: a veth pair, up
	ip link add "$2" netns "$1" type veth peer name "$4" netns "$3"
	in_ns "$1" ip link set "$2" up
	in_ns "$3" ip link set "$4" up
}

addr() { # NS DEV ADDRESS...
	local ns=$1 dev=$2 a; shift 2
	for a in "$@"; do
		case $a in
		*:*) in_ns "$ns" ip addr add "$a" dev "$dev" nodad ;;
		*) in_ns "$ns" ip addr add "$a" dev "$dev" ;;
		esac
	done
}

up() {
	[ "$(id -u)" = 0 ] || { echo "world: needs root" >&2; exit 1; }
	for ns in "${all[@]}"; do
		if ip netns list | grep -qw "$ns"; then
			echo "world: $ns exists already: scripts/world.sh down" >&2
			exit 1
		fi
	done
	mkdir -p "$run"
	CGO_ENABLED=0 scripts/go build -buildvcs=false -trimpath -o "$run/worldd" ./e2e/worldd
	for ns in "${all[@]}"; do
		ip netns add "$ns"
		in_ns "$ns" ip link set lo up
	done

	wire sbxhost eth0 sbxnet host0
	wire sbxnet far0 sbxwire near0
	wire sbxwire far0 sbxfar eth0
	wire sbxnet rough0 sbxwire near1
	wire sbxwire rough1 sbxrough eth0
	addr sbxhost eth0 203.0.113.10/24 2001:db8:113::10/64
	addr sbxnet host0 203.0.113.1/24 2001:db8:113::1/64
	addr sbxnet lo 198.51.100.10/32 198.51.100.53/32 2001:db8:100::10/128 2001:db8:100::53/128
	addr sbxnet far0 192.0.2.1/24 2001:db8:2::1/64
	addr sbxfar eth0 192.0.2.10/24 2001:db8:2::10/64
	addr sbxnet rough0 192.0.3.1/24 2001:db8:3::1/64
	addr sbxrough eth0 192.0.3.10/24 2001:db8:3::10/64
	in_ns sbxhost ip route add default via 203.0.113.1
	in_ns sbxhost ip -6 route add default via 2001:db8:113::1
	in_ns sbxfar ip route add default via 192.0.2.1
	in_ns sbxfar ip -6 route add default via 2001:db8:2::1
	in_ns sbxrough ip route add default via 192.0.3.1
	in_ns sbxrough ip -6 route add default via 2001:db8:3::1
	in_ns sbxnet ip route add blackhole 198.18.1.0/24
	in_ns sbxnet ip -6 route add blackhole 2001:db8:dead::/48
	in_ns sbxnet ip route add unreachable 198.18.2.0/24
	in_ns sbxnet ip -6 route add unreachable 2001:db8:bad::/48
	in_ns sbxnet sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit'
	in_ns sbxhost sh -c 'echo "0 2147483647" >/proc/sys/net/ipv4/ping_group_range'

	echo "world: rough is $rough" >&2
	service sbxwire delay "$run/worldd" wire near0 far0 "delay=$delay"
	service sbxwire rough "$run/worldd" wire near1 rough1 "$rough"
	for ns in sbxnet sbxfar sbxrough; do
		service $ns $ns-http "$run/worldd" probe serve 80
		service $ns $ns-iperf3 iperf3 --server --port 5201
	done
	service sbxnet sbxnet-echo "$run/worldd" probe echo 198.51.100.10:7 '[2001:db8:100::10]:7'
	service sbxfar sbxfar-echo "$run/worldd" probe echo 192.0.2.10:7 '[2001:db8:2::10]:7'
	service sbxrough sbxrough-echo "$run/worldd" probe echo 192.0.3.10:7 '[2001:db8:3::10]:7'
	local big
	big=$(printf 'x%.0s' $(seq 200))
	service sbxnet dns dnsmasq --no-daemon --conf-file=/dev/null --pid-file= --user=root --no-resolv --no-hosts \
		--listen-address=198.51.100.53,2001:db8:100::53 --bind-interfaces --local=/test/ --edns-packet-max=4096 --cache-size=0 \
		--host-record=near.world.test,198.51.100.10,2001:db8:100::10,77 --host-record=far.world.test,192.0.2.10,2001:db8:2::10 \
		--host-record=v4.world.test,198.51.100.10 --host-record=v6.world.test,2001:db8:100::10 \
		--host-record=hole.world.test,198.18.1.1,2001:db8:dead::1 --cname=alias.world.test,near.world.test \
		--txt-record=small.world.test,hello --mx-host=world.test,near.world.test,10 \
		--dns-rr=world.test,2,046e65617205776f726c64047465737400 \
		--srv-host=_http._tcp.world.test,near.world.test,80,1,2 \
		--txt-record=big.world.test,"${big}1,${big}2,${big}3,${big}4,${big}5,${big}6,${big}7,${big}8,${big}9"

	local user=${SBX_TEST_USER:-sbxtest}
	wire sbxhost seg0 sbxseg eth0
	in_ns sbxhost ip link add brseg type bridge
	in_ns sbxhost ip link set brseg up
	in_ns sbxhost ip link set seg0 master brseg
	in_ns sbxhost ip tuntap add dev sbxtap mode tap user "$user"
	in_ns sbxhost ip link set sbxtap master brseg up
	addr sbxseg eth0 192.168.66.1/24 fd66::1/64
	service sbxseg sbxseg-http "$run/worldd" probe serve 80
	service sbxseg dhcp dnsmasq --no-daemon --conf-file=/dev/null --pid-file= --user=root --no-resolv --no-hosts --no-ping \
		--interface=eth0 --bind-interfaces --domain=lab.example --host-record=router.lab.example,192.168.66.1,fd66::1 --local=/lab.example/ \
		--dhcp-range=192.168.66.100,192.168.66.199,255.255.255.0,2m --dhcp-range=fd66::,ra-only,64,5m --enable-ra \
		--dhcp-authoritative --dhcp-leasefile="$run/dhcp.leases"

	mkdir -p /etc/netns/sbxhost
	printf 'nameserver 198.51.100.53\nsearch world.test\n' >/etc/netns/sbxhost/resolv.conf
	wait_ready
}

wait_ready() {
	local i
	for ((i = 0; i < 100; i++)); do
		if in_ns sbxhost "$run/worldd" probe get http://192.0.2.10/ >/dev/null 2>&1 &&
			in_ns sbxhost "$run/worldd" probe get http://[2001:db8:2::10]/ >/dev/null 2>&1 &&
			in_ns sbxhost "$run/worldd" probe get http://192.0.3.10/ >/dev/null 2>&1 &&
			in_ns sbxhost "$run/worldd" probe get http://[2001:db8:3::10]/ >/dev/null 2>&1 &&
			in_ns sbxhost "$run/worldd" probe get http://near.world.test/ >/dev/null 2>&1; then
			return 0
		fi
		sleep 0.1
	done
	echo "world: its servers do not answer" >&2
	tail -n 5 "$run"/*.log >&2
	return 1
}

down() {
	local f ns
	for f in "$run"/*.pid; do
		[ -e "$f" ] || continue
		kill "$(cat "$f")" 2>/dev/null || true
	done
	for ns in "${all[@]}"; do
		ip netns list 2>/dev/null | grep -qw "$ns" && ip netns del "$ns"
	done
	rm -rf /etc/netns/sbxhost "$run"
	rmdir /etc/netns 2>/dev/null || true
}

case ${1:-} in
up) up || { down; exit 1; } ;;
down) down ;;
exec) shift; exec ip netns exec sbxhost "$@" ;;
run)
	shift
	trap down EXIT
	trap 'exit 130' INT TERM
	down
	up
	SBX_TEST_NETNS=sbxhost SBX_WORLD=1 "$@"
	;;
*) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
