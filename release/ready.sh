#!/bin/sh
# May this commit be released? Says what is missing.
# usage: ready.sh [DIRECTORY]
set -eu
cd "${1:-$(dirname "$0")/..}"
failed=0
missing() {
	echo "not ready: $*" >&2
	failed=1
}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
of_chart() { sed -n "s/^$1: //p" charts/ocivol/Chart.yaml; }
[ "$(of_chart version)" = "$version" ] || missing "charts/ocivol/Chart.yaml has version $(of_chart version), and Cargo.toml $version"
[ "$(of_chart appVersion)" = "$version" ] || missing "charts/ocivol/Chart.yaml has appVersion $(of_chart appVersion), and Cargo.toml $version"
grep -qF "image: ghcr.io/ocivol/ocivol:$version" charts/ocivol/Chart.yaml || missing "the annotation artifacthub.io/images of Chart.yaml is of another version than $version"
grep -qx "## $version" CHANGELOG.md || missing "CHANGELOG.md has no heading \"## $version\""
[ -e "tests/packaging/values-of/$version.yaml" ] || missing "tests/packaging/values-of/$version.yaml is not there: make manifests"
[ -z "$(git status --porcelain)" ] || missing "something is not committed"
[ "$(git describe --tags --exact-match 2>/dev/null)" = "v$version" ] || missing "the commit has no tag v$version"
exit "$failed"
