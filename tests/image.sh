#!/bin/sh
# Runs the binary out of the container image: it has no file but its own and the certificates.
# usage: image.sh OCI_ARCHIVE
set -eu
archive=$(realpath "$1")
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
skopeo copy --quiet "oci-archive:$archive" "oci:$directory/layout:it"
umoci raw unpack --image "$directory/layout:it" "$directory/rootfs" >/dev/null
entrypoint=$(skopeo inspect --config "oci:$directory/layout:it" | python3 -c 'import json, sys; print(json.load(sys.stdin)["config"]["Entrypoint"][0])')
cd "$directory/rootfs"
[ "$(find . -type f | sort | tr '\n' ' ')" = "./etc/ssl/certs/ca-certificates.crt ./ocivol " ]
chroot . "$entrypoint" --version
# It can make a client for registries, which needs certificates, and it says what is wrong with this one.
chroot . "$entrypoint" inspect 127.0.0.1:1/x:v1 2>&1 | grep -q "cannot reach 127.0.0.1:1"
echo "the image's binary runs"
