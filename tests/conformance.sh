#!/bin/sh
# The official conformance tests of CSI against the real binary: Identity, Node and Controller. What is skipped is what is not
# declared; csi-sanity does that by itself.
# usage: conformance.sh OCIVOL CSI_SANITY
set -eu
ocivol=$(realpath "$1") sanity=$(realpath "$2")
if [ -z "${OCIVOL_CONFORMANCE:-}" ]; then
	# Whatever is mounted goes with the namespace, and the registry is nobody else's.
	OCIVOL_CONFORMANCE=1 exec unshare --mount --net --propagation private "$0" "$ocivol" "$sanity"
fi
ip link set lo up
directory=$(mktemp -d)
pids=
clean() {
	for pid in $pids; do
		kill "$pid" 2>/dev/null || :
		wait "$pid" 2>/dev/null || :
	done
	rm -rf "$directory"
}
trap clean EXIT

# A registry, and in it an artifact of one file.
registry=127.0.0.1:5000
printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/registry}}\nhttp: {addr: "%s"}\n' \
	"$directory" "$registry" >"$directory/registry.yml"
docker-registry serve "$directory/registry.yml" >"$directory/registry.log" 2>&1 &
pids="$pids $!"
# push FILE: a blob; prints its digest.
push() {
	digest=sha256:$(sha256sum "$1" | cut -d' ' -f1)
	place=$(curl -sf -X POST -D - -o /dev/null "http://$registry/v2/artifact/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
	curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$1" "$place&digest=$digest"
	echo "$digest"
}
tries=0
until curl -sf "http://$registry/v2/" >/dev/null; do
	tries=$((tries + 1))
	[ $tries -lt 600 ] || { cat "$directory/registry.log"; exit 1; }
	sleep 0.1
done
printf '{}' >"$directory/config"
echo "a file" >"$directory/file"
cat >"$directory/manifest" <<EOF
{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": "application/vnd.example.file",
 "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "$(push "$directory/config")", "size": 2},
 "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "$(push "$directory/file")", "size": 7,
  "annotations": {"org.opencontainers.image.title": "file"}}]}
EOF
curl -sf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary "@$directory/manifest" \
	"http://$registry/v2/artifact/manifests/v1"

"$ocivol" node --root "$directory/store" --endpoint "unix://$directory/csi.sock" --node-id node-1 \
	--registration-dir "" --health-addr "" --target-root "$directory" --allow-writer-modes --with-controller \
	--plain-http "$registry" --gc-start 100% --gc-stop 100% --keep-free 1% --keep-free-inodes 1% 2>"$directory/log" &
pids="$pids $!"
"$ocivol" controller --endpoint "unix://$directory/controller.sock" --health-addr "" --plain-http "$registry" 2>"$directory/controller.log" &
pids="$pids $!"
logs() { cat "$directory/log" "$directory/controller.log"; }
tries=0
while ! { [ -S "$directory/csi.sock" ] && [ -S "$directory/controller.sock" ]; }; do
	for pid in $pids; do
		kill -0 "$pid" || { logs; exit 1; }
	done
	tries=$((tries + 1))
	[ $tries -lt 600 ] || { logs; exit 1; }
	sleep 0.1
done
printf 'reference: %s/artifact:v1\nreadOnlyForWriters: "true"\n' "$registry" >"$directory/parameters.yaml"
"$sanity" -csi.endpoint="unix://$directory/csi.sock" -csi.controllerendpoint="unix://$directory/controller.sock" \
	-csi.mountdir="$directory/mount" -csi.stagingdir="$directory/staging" -csi.testvolumeparameters="$directory/parameters.yaml" \
	-ginkgo.no-color -ginkgo.junit-report="$directory/report.xml" || { logs; exit 1; }
# Names of tests change; that none matched would look like success.
ran=$(grep -c '<testcase .*status="passed"' "$directory/report.xml")
[ "$ran" -ge 31 ] || { echo "only $ran tests ran"; exit 1; }
echo "$ran passed, 0 failed"
