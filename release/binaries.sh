#!/bin/sh
# The static binaries, one for each architecture, with paths in them that are the same wherever they are built.
# usage: binaries.sh TOOLS_DIR TARGET_DIR ARCHITECTURE…; each becomes TARGET_DIR/<its triple>/release/ocivol
set -eu
cd "$(dirname "$0")/.."
tools=$(realpath "$1")
mkdir -p "$2"
target=$(realpath "$2")
shift 2

# Panics name the file that they are in: of a crate, of the checkout, or one that was generated.
RUSTFLAGS= CFLAGS=
# called DIRECTORY NAME: what is in it is named as if it were in NAME.
called() {
	RUSTFLAGS="$RUSTFLAGS --remap-path-prefix=$1=$2"
	CFLAGS="$CFLAGS -ffile-prefix-map=$1=$2"
}
called "${CARGO_HOME:-$HOME/.cargo}" /cargo
called "$(pwd -P)" /ocivol
called "$target" /target
OCIVOL_REVISION=$(git rev-parse --short=12 HEAD)
# mimalloc has in it when it was compiled. Compilers take this for the time, and Zig keeps nothing that was compiled at another one.
SOURCE_DATE_EPOCH=0
ZIG_GLOBAL_CACHE_DIR=$target/zig
export RUSTFLAGS CFLAGS OCIVOL_REVISION SOURCE_DATE_EPOCH ZIG_GLOBAL_CACHE_DIR

for architecture; do
	case $architecture in
	amd64)
		rustup --quiet target add x86_64-unknown-linux-musl
		CC_x86_64_unknown_linux_musl=musl-gcc \
			cargo build --quiet --locked --release --bin ocivol --target x86_64-unknown-linux-musl --target-dir "$target"
		;;
	# Debian has no compiler that knows musl for another architecture. Zig is one, and has musl's headers for all.
	arm64)
		rustup --quiet target add aarch64-unknown-linux-musl
		PATH="$tools/python/bin:$PATH" cargo-zigbuild build --quiet --locked --release --bin ocivol \
			--target aarch64-unknown-linux-musl --target-dir "$target"
		;;
	*)
		echo "no binary is made for $architecture" >&2
		exit 1
		;;
	esac
done
