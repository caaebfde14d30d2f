#!/bin/sh
# Mounts what other projects' tools pushed, and compares it with what they pull. Then pulls through other projects' servers and providers.
# usage: run.sh OCIVOL TOOLS_DIR
# TOOLS_DIR is what install.sh made; docker-registry, nginx, skopeo, buildah, umoci and gnupg are Debian's. buildah wants root.
set -eu
ocivol=$(realpath "$1")
tools=$(realpath "$2")
here=$(dirname "$(realpath "$0")")
PATH=$tools/python/bin:$tools:$PATH
export PATH
work=$(mktemp -d)
registry=
trap '[ -z "$registry" ] || { kill "$registry" && wait "$registry" || :; } 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

host=127.0.0.1:$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$work/registry.yml" <<END
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "$host", secret: interop}
END
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
for _ in $(seq 100); do
	! python3 -c "import urllib.request; urllib.request.urlopen('http://$host/v2/')" 2>/dev/null || break
	kill -0 "$registry" || { cat "$work/registry.log"; exit 1; }
	sleep 0.1
done

lost=0
echo "push:"
sh "$here/push.sh" "$host" "$work" || lost=1
echo "pull:"
sh "$here/pull.sh" "$host" "$work" || lost=1

echo "mount:"
passed=0 failed=0 skipped=0
tab=$(printf '\t')
while IFS=$tab read -r name reference attributes expected; do
	case $name in '' | '#'*) continue ;; esac
	if ! [ -d "$work/expected/$expected" ]; then
		echo "$name: skipped: its tool pulled nothing"
		skipped=$((skipped + 1))
		continue
	fi
	set --
	# A flag each, as --unpack=never.
	[ "$attributes" = - ] || for attribute in $(echo "$attributes" | tr , ' '); do
		set -- "$@" "--$attribute"
	done
	# Images keep permissions; what artifacts hold is for everybody to read.
	case $name in
	buildah* | skopeo* | cosign* | notation* | tkn*) facts='%P %y %m' ;;
	*) facts='%P %y' ;;
	esac
	if "$ocivol" mount --root "$work/store" --plain-http "$host" "$@" "$host/$reference" "$work/mounted" -- \
		sh "$here/compare.sh" "$work/expected/$expected" "$work/mounted" "$facts" >"$work/difference" 2>&1 </dev/null; then
		echo "$name: ok"
		passed=$((passed + 1))
	else
		echo "$name: DIFFERS"
		sed "s|$work/||g; s/^/    /" "$work/difference" | head -n 10
		failed=$((failed + 1))
	fi
done <"$here/cases.tsv"

echo "registries:"
for script in mirrors providers throttle; do
	sh "$here/$script.sh" "$ocivol" "$tools" || lost=1
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ] && [ "$skipped" = 0 ] && [ "$lost" = 0 ]
