#!/bin/sh
# Builds what a release is made with, from crates.io, PyPI and the Go module proxy: ten minutes, once for each version.
# usage: install.sh TOOLS_DIR
set -eu
mkdir -p "$1"
tools=$(realpath "$1")

# once NAME VERSION COMMAND…: runs it when the tool of this version is not there.
once() {
	[ ! -e "$tools/$1-$2" ] || return 0
	echo "installing $1 $2"
	name=$1 version=$2
	shift 2
	"$@"
	rm -f "$tools/$name"-[v0-9]*
	touch "$tools/$name-$version"
}
go_tool() { GOBIN=$tools go install -trimpath -ldflags "-s -w" "$1"; }
python_tools() {
	[ -d "$tools/python" ] || python3 -m venv "$tools/python"
	"$tools/python/bin/pip" install --quiet "$@"
}

command -v go >/dev/null || { echo "this needs Go 1.26 or newer: https://go.dev/doc/install" >&2; exit 1; }
once oras v1.3.1 go_tool oras.land/oras/cmd/oras@v1.3.1
once cosign v3.1.3 go_tool github.com/sigstore/cosign/v3/cmd/cosign@v3.1.3
once zig 0.17.1 python_tools ziglang==0.17.1 cargo-zigbuild==0.24.1
once cargo-cyclonedx 0.5.9 cargo install --quiet --locked --root "$tools" cargo-cyclonedx@0.5.9
