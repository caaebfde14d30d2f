#!/bin/sh
# Builds kube-apiserver of another Kubernetes, with kubectl of the one that make e2e runs:
#
#   api_server.sh VERSION DIRECTORY KUBERNETES-PROGRAMS
set -eu
version=$1
directory=$2
programs=$3
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
cd "$work"
go mod init other >/dev/null 2>&1
source=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/.*"Dir": "\(.*\)",*/\1/p')
# Its own modules, which it has in directories, by the version that they were released with.
for module in $(sed -n 's|^\t*\(k8s.io/[a-z-]*\) => ./staging/.*|\1|p' "$source/go.mod"); do
	go mod edit -replace "$module=$module@v0.${version#1.}"
done
go mod edit -require "k8s.io/kubernetes@v$version"
echo 'package other

import _ "k8s.io/kubernetes/cmd/kube-apiserver/app"' >other.go
go mod tidy >tidy.log 2>&1 || {
	cat tidy.log >&2
	exit 1
}
mkdir -p "$directory"
CGO_ENABLED=0 go build -trimpath -o "$directory/kube-apiserver" -ldflags "-s -w \
	-X k8s.io/component-base/version.gitVersion=v$version -X k8s.io/component-base/version.gitMajor=1 \
	-X k8s.io/component-base/version.gitMinor=$(echo "$version" | cut -d. -f2)" k8s.io/kubernetes/cmd/kube-apiserver
ln -sf "$programs/kubectl" "$directory/kubectl"
