#!/bin/sh
# Pushes what assemble.sh made, and signs it. What is there already is left as it is, so it can be said again after a failure.
# usage: publish.sh TOOLS_DIR OUT REGISTRY KEY
# KEY is a private key of cosign; COSIGN_PASSWORD is its password. A registry at a loopback address is one for trying: plain HTTP, and
# nothing is written to the public transparency log.
set -eu
cd "$(dirname "$0")/.."
tools=$(realpath "$1")
out=$(realpath "$2")
registry=$3
key=$(realpath "$4")
PATH=$tools:$(realpath "$tools/../bin"):$PATH
version=$(sed -n 's/^version: //p' charts/ocivol/Chart.yaml)
created=$(oras manifest fetch --oci-layout "$out/image:$version" |
	python3 -c 'import json, sys; print(json.load(sys.stdin)["annotations"]["org.opencontainers.image.created"])')
image=$registry/ocivol/ocivol
chart=$registry/ocivol/charts/ocivol
plain= to_plain= offline= http=
case $registry in
127.* | localhost | localhost:*)
	plain=--plain-http to_plain=--to-plain-http
	http=--allow-http-registry
	offline="--tlog-upload=false --use-signing-config=false"
	;;
esac
created="--annotation org.opencontainers.image.created=$created"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# quietly COMMAND…: what it says is of interest when it fails.
quietly() { "$@" >"$log" 2>&1 || { cat "$log" >&2; return 1; }; }

quietly oras cp --no-tty --from-oci-layout $to_plain "$out/image:$version" "$image:$version"
digest=$(oras resolve $plain "$image:$version")
# Both in one artifact: it refers to the index, and so is found for either.
(cd "$out" && quietly oras attach --no-tty $plain $created --artifact-type application/vnd.cyclonedx+json "$image@$digest" \
	"ocivol-$version-linux-amd64.cdx.json:application/vnd.cyclonedx+json" \
	"ocivol-$version-linux-arm64.cdx.json:application/vnd.cyclonedx+json")

quietly helm push $plain "$out/ocivol-$version.tgz" "oci://${chart%/*}"
# What Artifact Hub knows of the chart's repository.
(cd charts && quietly oras push --no-tty $plain $created --config /dev/null:application/vnd.cncf.artifacthub.config.v1+yaml "$chart:artifacthub.io" \
	artifacthub-repo.yml:application/vnd.cncf.artifacthub.repository-metadata.layer.v1.yaml)

sign() { quietly cosign sign --yes --key "$key" $http $offline "$@"; }
# Also each image of the index: who verifies may have chosen one already.
sign --recursive "$image@$digest"
sign "$chart@$(oras resolve $plain "$chart:$version")"
quietly cosign sign-blob --yes --key "$key" $offline --bundle "$out/SHA256SUMS.sigstore.json" "$out/SHA256SUMS"
echo "published $image:$version@$digest and $chart:$version"
