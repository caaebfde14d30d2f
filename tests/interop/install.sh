#!/bin/sh
# Builds the tools that run.sh wants from the Go module proxy, crates.io and PyPI: half an hour. Needs Go 1.26, and for Dragonfly libclang and protoc.
# usage: install.sh TOOLS_DIR
set -eu
here=$(dirname "$(realpath "$0")")
mkdir -p "$1"
tools=$(realpath "$1")
copy=$(mktemp -d)
trap 'chmod -R u+w "$copy"; rm -rf "$copy"' EXIT

lost=
# module NAME MODULE VERSION: a copy of it, because go install refuses modules that replace others.
module() {
	mkdir -p "$copy/$1/cmd/$1"
	directory=$(go mod download -json "$2@$3" | python3 -c 'import json, sys; print(json.load(sys.stdin)["Dir"])') || return 0
	cp -r "$directory/." "$copy/$1"
	chmod -R u+w "$copy/$1"
}

# build MODULE_NAME [COMMAND [VARIABLE=VALUE]]
build() {
	command=${2:-$1}
	(cd "$copy/$1" && go build -buildvcs=false -trimpath -ldflags "-s -w ${3:+-X $3}" -o "$tools/$command" "./cmd/$command") || lost="$lost $command"
}

module oras oras.land/oras v1.3.1
build oras oras oras.land/oras/internal/version.BuildMetadata=
module helm helm.sh/helm/v3 v3.19.5
build helm helm helm.sh/helm/v3/internal/version.version=v3.19.5
module notation github.com/notaryproject/notation v1.3.2
build notation
module cosign github.com/sigstore/cosign/v3 v3.1.3
build cosign
module flux github.com/fluxcd/flux2/v2 v2.9.5
# What flux would install in a cluster is generated; it need not be there to push.
mkdir -p "$copy/flux/cmd/flux/manifests" "$copy/flux/cmd/flux-static"
echo '{}' >"$copy/flux/cmd/flux/manifests/none.yaml"
cp "$here/flux-static/main.go" "$copy/flux/cmd/flux-static/"
build flux flux main.VERSION=2.9.5
build flux flux-static
module registry github.com/google/go-containerregistry v0.22.1
mkdir -p "$copy/registry/cmd/referrers-registry"
cp "$here/referrers-registry/main.go" "$copy/registry/cmd/referrers-registry/"
build registry referrers-registry
module aws k8s.io/cloud-provider-aws v1.37.1
build aws ecr-credential-provider
module tkn github.com/tektoncd/cli v0.42.0
cp "$here/tkn/main.go" "$copy/tkn/cmd/tkn/"
build tkn

# Dragonfly's client. Nothing is measured with it; optimised, RocksDB alone would take longer than all else.
CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --root "$tools/cargo" --bin dfdaemon dragonfly-client@1.5.10 &&
	ln -sf cargo/bin/dfdaemon "$tools/dfdaemon" || lost="$lost dfdaemon"

[ -d "$tools/python" ] || python3 -m venv "$tools/python"
"$tools/python/bin/pip" install --quiet oras==0.2.43 modelpack-client==0.1.0 grpcio==1.85.3 || lost="$lost python"
[ -z "$lost" ] || { echo "not built:$lost"; exit 1; }
