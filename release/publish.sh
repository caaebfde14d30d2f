#!/bin/sh
# Pushes what assemble.sh made, and signs it. It can be said again after a failure: the same bytes are there once, and are signed once
# more. Other bytes under a version that is released already are refused, unless REPLACE is set.
# usage: publish.sh TOOLS_DIR OUT REGISTRY KEY
# KEY is a private key of cosign; COSIGN_PASSWORD is its password. A registry at a loopback address is one for trying: plain HTTP, and
# nothing is written to the public transparency log.
set -eu
cd "$(dirname "$0")/.."
: "${COSIGN_PASSWORD?is the password of KEY: set it, also if it is empty}"
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
trap 'exit 1' INT TERM
# quietly COMMAND…: what it says is of interest when it fails.
quietly() { "$@" >"$log" 2>&1 || { cat "$log" >&2; return 1; }; }

# What is signed is what is here, whatever the registry says that it has.
digest=$(oras resolve --oci-layout "$out/image:$version")
package=sha256:$(sha256sum "$out/ocivol-$version.tgz" | cut -d' ' -f1)
# released WHAT: it is there in other bytes.
released() {
	echo "$1 is released already, and is something else: raise the version" >&2
	exit 1
}
if [ -z "${REPLACE-}" ]; then
	there=$(oras resolve $plain "$image:$version" 2>/dev/null || :)
	[ "${there:-$digest}" = "$digest" ] || released "$image:$version ($there)"
	there=$(oras manifest fetch $plain "$chart:$version" 2>/dev/null || :)
	case ${there:-$package} in *"$package"*) ;; *) released "$chart:$version" ;; esac
fi
quietly oras cp --no-tty --from-oci-layout $to_plain "$out/image:$version" "$image:$version"
# Both in one artifact: it refers to the index, and so is found for either.
(cd "$out" && quietly oras attach --no-tty $plain $created --artifact-type application/vnd.cyclonedx+json "$image@$digest" \
	"ocivol-$version-linux-amd64.cdx.json:application/vnd.cyclonedx+json" \
	"ocivol-$version-linux-arm64.cdx.json:application/vnd.cyclonedx+json")

quietly helm push $plain "$out/ocivol-$version.tgz" "oci://${chart%/*}"
chart_digest=$(sed -n 's/^Digest: //p' "$log")
# What Artifact Hub knows of the chart's repository.
(cd charts && quietly oras push --no-tty $plain $created --config /dev/null:application/vnd.cncf.artifacthub.config.v1+yaml "$chart:artifacthub.io" \
	artifacthub-repo.yml:application/vnd.cncf.artifacthub.repository-metadata.layer.v1.yaml)

sign() { quietly cosign sign --yes --key "$key" $http $offline "$@"; }
# Also each image of the index: who verifies may have chosen one already.
sign --recursive "$image@$digest"
sign "$chart@${chart_digest:?helm says no digest}"
quietly cosign sign-blob --yes --key "$key" $offline --bundle "$out/SHA256SUMS.sigstore.json" "$out/SHA256SUMS"
echo "published $image:$version@$digest and $chart:$version"
