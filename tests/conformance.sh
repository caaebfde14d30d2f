#!/bin/sh
# The official conformance tests of CSI against the real binary: Identity and Node, all that need no controller.
# usage: conformance.sh OCIVOL CSI_SANITY
set -eu
ocivol=$(realpath "$1") sanity=$(realpath "$2")
if [ -z "${OCIVOL_CONFORMANCE:-}" ]; then
	# Whatever is mounted goes with the namespace.
	OCIVOL_CONFORMANCE=1 exec unshare --mount --propagation private "$0" "$ocivol" "$sanity"
fi
directory=$(mktemp -d)
trap 'kill "$plugin" 2>/dev/null || :; wait "$plugin" 2>/dev/null || :; rm -rf "$directory"' EXIT
"$ocivol" node --root "$directory/store" --endpoint "unix://$directory/csi.sock" --node-id node-1 \
	--registration-dir "" --health-addr "" --target-root "$directory" --allow-writer-modes 2>"$directory/log" &
plugin=$!
while ! [ -S "$directory/csi.sock" ]; do
	kill -0 "$plugin" || { cat "$directory/log"; exit 1; }
done
# What is skipped creates volumes with a controller first.
skip='Controller Server|should remove target path|does not exist on the specified path|should work|should be idempotent'
"$sanity" -csi.endpoint="unix://$directory/csi.sock" -csi.mountdir="$directory/mount" \
	-csi.stagingdir="$directory/staging" -ginkgo.no-color -ginkgo.junit-report="$directory/report.xml" \
	-ginkgo.skip="$skip" || { cat "$directory/log"; exit 1; }
# Names of tests change; that none matched would look like success.
ran=$(grep -c '<testcase .*status="passed"' "$directory/report.xml")
[ "$ran" -ge 13 ] || { echo "only $ran tests ran"; exit 1; }
echo "$ran passed, 0 failed"
