#!/bin/bash
# Known holes in what sbx is linked of: `make vuln`. First the database has to tell one that
# it must know, in a program that calls it, so that silence afterwards means something.
#
#   scripts/vuln.sh GOVULNCHECK TAGS [VULNDB]    a module with its version; file:///dir or an address
set -euo pipefail
cd "$(dirname "$0")/.."
go=$PWD/scripts/go
tool=$1 tags=$2 db=(${3:+-db "$3"})
control=$(mktemp -d "${TMPDIR:-/tmp}/sbx-vuln.XXXXXX")
trap 'rm -rf "$control"' EXIT

GOBIN=$control/bin "$go" install "$tool"
PATH=$(dirname "$("$go" env GOROOT)/bin/go"):$control/bin:$PATH

hole=GO-2021-0113 module=golang.org/x/text@v0.3.6
mkdir "$control/src"
cat >"$control/src/main.go" <<'END'
package main

import "golang.org/x/text/language"

func main() { println(language.MustParse("de").String()) }
END
(cd "$control/src" && go mod init control && go get "$module") >"$control/log" 2>&1 || { cat "$control/log" >&2; exit 1; }
status=0
found=$(govulncheck -C "$control/src" "${db[@]}" . 2>&1) || status=$?
if [ $status != 3 ] || [[ $found != *"$hole"* ]]; then
	printf '%s\nvuln: %s, which every database knows, was not found in a program with %s: is the database complete?\n' "$found" "$hole" "$module" >&2
	exit 1
fi
echo "vuln: $hole is found in a program with $module; now sbx"
govulncheck "${db[@]}" -tags "$tags" ./...
