#!/bin/bash
# Makes what a release consists of, the same bytes wherever it is made by the same Go:
#
#   dist/sbx-VERSION-linux-ARCH.tar.gz  the binary, manual pages, completions, the list
#                                       of parts (sbom.cdx.json), their licences
#   dist/sbx-VERSION-linux-ARCH.cdx.json
#   dist/SHA256SUMS
#
#   scripts/release.sh VERSION [ARCH...]     default amd64 arm64
#   scripts/release.sh check VERSION [ARCH]  makes it here and in a copy elsewhere, from
#                                            nothing, and compares
#   scripts/release.sh binary                only this machine's binary, linked here and in
#                                            a copy, from what Go has compiled before
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C TZ=UTC
# The processors that a distribution may have chosen for its own builds.
export GOAMD64=v1 GOARM64=v8.0 GOEXPERIMENT= GOFIPS140=off
umask 022

release() { # version, architectures
	local version=$1 arch dir go
	shift
	date=$(git log -1 --format=%cs 2>/dev/null || date +%F)
	go=$PWD/scripts/go
	PATH=$(dirname "$("$go" env GOROOT)/bin/go"):$PATH
	rm -rf dist
	mkdir dist
	for arch in "$@"; do
		dir=dist/sbx-$version-linux-$arch
		mkdir -p "$dir/completions"
		GOARCH=$arch make -s build VERSION="$version" BIN="$dir/sbx"
		"$go" run ./internal/sbom "$dir/sbx" "$version" "$dir"
		cp "$dir/sbom.cdx.json" "dist/sbx-$version-linux-$arch.cdx.json"
		# What is the same for every machine is said by this one's own binary.
		if [ ! -d dist/man ]; then
			make -s man VERSION="$version" MAN_DATE="${SBX_DATE:-$date}"
			cp -r bin/man dist/man
		fi
		cp -r dist/man "$dir/man"
		for shell in bash zsh fish; do bin/sbx completion "$shell" >"$dir/completions/sbx.$shell"; done
		cp LICENSE README.md CHANGELOG.md "$dir/"
		tar --sort=name --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX --mtime="${SBX_DATE:-$date} 00:00:00Z" --format=ustar \
			-C dist -c "${dir#dist/}" | gzip -9n >"$dir.tar.gz"
		rm -rf "$dir"
	done
	rm -rf dist/man
	(cd dist && sha256sum -- *.tar.gz *.cdx.json >SHA256SUMS)
}

copy() { # sets other, a copy of the source
	other=$(mktemp -d "${TMPDIR:-/var/tmp}/sbx-release.XXXXXX")
	trap 'chmod -R u+w "$other"; rm -rf "$other"' EXIT
	tar -c --exclude=./.git --exclude=./bin --exclude=./dist . | tar -x -C "$other"
}

case $1 in
check)
	version=$2 arch=${3:-amd64}
	copy
	SBX_DATE=$(git log -1 --format=%cs 2>/dev/null || date +%F)
	export SBX_DATE
	release "$version" "$arch"
	(cd "$other" && GOCACHE=$other/.cache GOMAXPROCS=1 scripts/release.sh "$version" "$arch" >/dev/null)
	diff dist/SHA256SUMS "$other/dist/SHA256SUMS" && echo "the same bytes in $PWD and $other:" && cat dist/SHA256SUMS
	;;
binary)
	copy
	mkdir "$other/bin"
	make -s build VERSION=test BIN="$other/bin/here"
	(cd "$other" && umask 077 && make -s build VERSION=test BIN=bin/there)
	cmp "$other/bin/here" "$other/bin/there" # and says where they differ
	;;
*)
	version=$1
	shift
	[ $# -gt 0 ] || set -- amd64 arm64
	release "$version" "$@"
	cat dist/SHA256SUMS
	;;
esac
