#!/bin/bash
# Fetches the programs that `make bench` measures sbx beside, and installs nothing:
# Debian packages, with the libraries they need, are unpacked into a directory of
# their own (apt checks their signatures), pasta also the newest that Debian has, and
# rootlesskit is built from the Go module proxy. Needs apt, a network and no root; can
# be run as often as you like.
#
#   scripts/peers.sh          fetch what is missing, then list
#   scripts/peers.sh list     name, version, path or what is missing
#
#   SBX_BENCH_PEERS    the directory (default /var/cache/sbx-bench for root,
#                      else ~/.cache/sbx-bench)
#   SBX_BENCH_SUITE    Debian's suite (default trixie)
#   SBX_BENCH_NEWEST   the suite of the newest pasta (default sid)
#   SBX_BENCH_MIRROR   default http://deb.debian.org/debian
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(id -u)" = 0 ]; then cache=/var/cache/sbx-bench; else cache=${XDG_CACHE_HOME:-$HOME/.cache}/sbx-bench; fi
cache=${SBX_BENCH_PEERS:-$cache}
suite=${SBX_BENCH_SUITE:-trixie}
newest=${SBX_BENCH_NEWEST:-sid}
mirror=${SBX_BENCH_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
rootlesskit=github.com/rootless-containers/rootlesskit/v3/cmd/rootlesskit@v3.3.0

packages=(passt slirp4netns crun bubblewrap podman conmon netavark)
programs=(pasta pasta-stable slirp4netns crun bwrap podman conmon netavark rootlesskit)
root=$cache/$suite

say() { printf 'peers: %s\n' "$*" >&2; }

# apt_private runs apt with lists, cache and package state of its own; an empty
# state makes it take every library, libc too, from the same suite.
apt_private() {
	local a=$cache/apt
	mkdir -p "$a"/{lists/partial,cache/archives/partial,etc/apt.conf.d,etc/preferences.d}
	: >"$a/status"
	printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$suite" "$keyring" "$mirror" "$newest" >"$a/etc/sources.list"
	# apt would drop to its own user, who cannot write here.
	apt-get -qq -o APT::Sandbox::User="$(id -un)" -o Dir::Etc="$a/etc" -o Dir::State="$a" \
		-o Dir::State::status="$a/status" -o Dir::Cache="$a/cache" -o APT::Default-Release="$suite" -o APT::Install-Recommends=0 \
		-o Debug::NoLocking=1 "$@"
}

fetch_packages() {
	[ -e "$root/.complete" ] && return 0
	command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || {
		say "this is not Debian: put ${programs[*]} into $cache/bin yourself"
		return 1
	}
	[ -r "$keyring" ] || { say "$keyring is missing: apt-get install debian-archive-keyring"; return 1; }
	say "fetching ${packages[*]} and their libraries from Debian $suite into $root"
	apt_private update
	apt_private -y --download-only install "${packages[@]}" patchelf
	rm -rf "$root"
	mkdir -p "$root"
	local deb
	for deb in "$cache"/apt/cache/archives/*.deb; do dpkg-deb -x "$deb" "$root"; done
	versions >"$root/versions"
	own_libc "$root"/usr/bin/{pasta,pasta.avx2,passt,passt.avx2,slirp4netns,crun,bwrap,podman,conmon} \
		"$root"/usr/lib/podman/{netavark,rootlessport,quadlet,catatonit}
	rm -rf "$cache/apt/cache/archives"
	touch "$root/.complete"
}

# fetch_newest unpacks the newest pasta, which runs with the libraries of the suite.
fetch_newest() {
	local dir=$cache/pasta-$newest deb
	[ -e "$dir/.complete" ] && return 0
	say "fetching passt from Debian $newest into $dir"
	rm -rf "$dir"
	mkdir -p "$dir"
	apt_private update
	(cd "$dir" && apt_private download "passt/$newest")
	deb=("$dir"/*.deb)
	dpkg-deb -x "${deb[0]}" "$dir"
	echo "pasta $(dpkg-deb -f "${deb[0]}" Version)" >"$dir/versions"
	own_libc "$dir"/usr/bin/{pasta,pasta.avx2,passt,passt.avx2}
	touch "$dir/.complete"
}

versions() {
	local deb
	for deb in "$cache"/apt/cache/archives/*.deb; do
		dpkg-deb -f "$deb" Package Version | awk '{ printf "%s%s", $2, NR % 2 ? " " : "\n" }'
	done | grep -E "^($(IFS='|'; echo "${packages[*]}|libc6")) "
}

# own_libc FILE... makes programs start with the unpacked loader and libraries. A
# wrapper that calls the loader would not do: podman and pasta execute
# /proc/self/exe, which would then be the loader.
own_libc() {
	local ld lib patch f
	ld=$(echo "$root"/usr/lib64/ld-linux-*.so.* "$root"/usr/lib/ld-linux-*.so.* | tr ' ' '\n' | grep -v '\*' | head -n1)
	lib=$(dirname "$(echo "$root"/usr/lib/*/libc.so.6)")
	patch=("$ld" --library-path "$lib" "$root/usr/bin/patchelf")
	for f; do
		[ -f "$f" ] && [ ! -L "$f" ] || continue
		case $("${patch[@]}" --print-interpreter "$f" 2>/dev/null) in
		'' | "$ld") continue ;; # static, or a hard link to one that is done
		esac
		# Both in one step makes a podman that crashes.
		"${patch[@]}" --set-rpath "$lib" --force-rpath "$f"
		"${patch[@]}" --set-interpreter "$ld" "$f"
	done
}

fetch_rootlesskit() {
	local dir=$cache/${rootlesskit##*/}
	[ -x "$dir/rootlesskit" ] && return 0
	say "building $rootlesskit"
	local go=$PWD/scripts/go
	(cd "$cache" && GOBIN="$dir" CGO_ENABLED=0 GOFLAGS=-modcacherw "$go" install "$rootlesskit")
}

# link_programs makes $cache/bin, the one directory that the bench looks into.
link_programs() {
	mkdir -p "$cache/bin"
	ln -sfn "$cache/pasta-$newest/usr/bin/pasta" "$cache/bin/pasta"
	ln -sfn "$root/usr/bin/pasta" "$cache/bin/pasta-stable"
	local p
	for p in slirp4netns crun bwrap podman conmon; do ln -sfn "$root/usr/bin/$p" "$cache/bin/$p"; done
	ln -sfn "$root/usr/lib/podman/netavark" "$cache/bin/netavark"
	ln -sfn "$cache/${rootlesskit##*/}/rootlesskit" "$cache/bin/rootlesskit"
	sed 's/^passt /pasta-stable /' "$root/versions" | cat - "$cache/pasta-$newest/versions" >"$cache/bin/versions"
	echo "rootlesskit ${rootlesskit##*@}" >>"$cache/bin/versions"
	# Sandboxes are an ordinary user's, so others than root read it.
	chmod -R a+rX "$cache/bin" "$root" "$cache/pasta-$newest" "$cache/${rootlesskit##*/}"
	chmod a+rx "$cache"
}

package_of() {
	case $1 in
	bwrap) echo bubblewrap ;;
	*) echo "$1" ;;
	esac
}

list() {
	local p v missing=0
	for p in "${programs[@]}"; do
		if v=$("$cache/bin/$p" --version 2>&1); then
			v=$(grep "^$(package_of "$p") " "$cache/bin/versions" | cut -d' ' -f2)
			printf '%-12s %-36s %s\n' "$p" "$v" "$(readlink -f "$cache/bin/$p")"
		else
			printf '%-12s missing: %s\n' "$p" "$(head -n1 <<<"${v:-it does not start}")"
			missing=1
		fi
	done
	return $missing
}

case ${1:-} in
'')
	mkdir -p "$cache"
	fetch_packages
	fetch_newest
	fetch_rootlesskit
	link_programs
	list
	;;
list) list ;;
*) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
