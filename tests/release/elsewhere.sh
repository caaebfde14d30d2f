#!/bin/sh
# Builds the binaries of this commit once more, in a clone at another place, and compares them with those that are there.
# usage: elsewhere.sh TOOLS_DIR TARGET_DIR
set -eu
tools=$(realpath "$1")
target=$(realpath "$2")
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT
trap 'exit 1' INT TERM
git clone --quiet "$(dirname "$0")/../.." "$clone/ocivol"
cd "$clone/ocivol"
sh release/binaries.sh "$tools" target/portable amd64 arm64
failed=0
for triple in x86_64-unknown-linux-musl aarch64-unknown-linux-musl; do
	if cmp "target/portable/$triple/release/ocivol" "$target/$triple/release/ocivol"; then
		echo "ok      $triple: the same in another directory"
	else
		echo "FAILED  $triple"
		failed=1
	fi
done
exit "$failed"
