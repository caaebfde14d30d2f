#!/bin/sh
# Draws the dashboard of three nodes that work for some minutes: real plugins, Debian's docker-registry behind a line with faults, and
# Prometheus, which is asked what Grafana would ask it. Runs in namespaces of its own, so that nothing of it is left: mounts, processes,
# and files, which are in memory. What the programs logged is copied to the directory OCIVOL_LOGS, if that is set.
# usage: run.sh OCIVOL PROMETHEUS SECONDS PICTURE
set -eu
if [ -z "${OCIVOL_DASHBOARD:-}" ]; then
	OCIVOL_DASHBOARD=1 exec unshare --mount --net --pid --fork --kill-child --mount-proc --propagation private \
		sh "$0" "$(realpath "$1")" "$(realpath "$2")" "$3" "$(realpath "$4")"
fi
ocivol=$1 prometheus=$2 seconds=$3 picture=$4
here=$(dirname "$0")
dashboard=$here/../../charts/ocivol/files/dashboard.json
SCRAPED=2 # Seconds between two samples.
work=$(mktemp -d)
pids=
clean() {
	# shellcheck disable=SC2086 # Words.
	[ -z "$pids" ] || kill -9 $pids 2>/dev/null || :
	wait || :
	[ -z "${OCIVOL_LOGS:-}" ] || cp "$work"/*.log "$OCIVOL_LOGS" || :
	cd /
	umount --recursive --lazy "$work" || :
	rmdir "$work"
}
trap clean EXIT
trap 'exit 1' INT TERM
ip link set lo up
mount -t tmpfs -o mode=0755 work "$work"
# kubelet's directories are shared, and nothing comes back from the host.
mount --make-shared "$work"
# Registries of pods have names.
echo "127.0.0.1 localhost registry.example.com" >"$work/hosts"
mount --bind "$work/hosts" /etc/hosts
line=registry.example.com:5000

# serve NAME PORT COMMAND…: starts it, and waits until it listens.
serve() {
	name=$1 port=$2
	shift 2
	"$@" >"$work/$name.log" 2>&1 &
	pids="$pids $!"
	for _ in $(seq 200); do
		! python3 -c "import socket; socket.create_connection(('127.0.0.1', $port)).close()" 2>/dev/null || return 0
		kill -0 "$!" 2>/dev/null || break
		sleep 0.1
	done
	echo "$name does not listen:" >&2
	tail -n 20 "$work/$name.log" >&2
	exit 1
}

cat >"$work/registry.yml" <<YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "127.0.0.1:5001", secret: dashboard}
YAML
serve registry 5001 docker-registry serve "$work/registry.yml"
serve line 5000 python3 "$here/line.py" 5000 5001 40000000
echo '{"auths": {"'$line'/shared": {"username": "alice", "password": "wonderland"}}}' >"$work/docker.json"

targets=
for number in 1 2 3; do
	node=$work/node-$number
	mkdir -p "$node/store" "$node/kubelet/pods" "$node/kubelet/plugins_registry"
	# A disk that all models together do not fit on.
	mount -t tmpfs -o size=320m,nr_inodes=8k,mode=0700 store "$node/store"
	serve "node-$number" 980$number "$ocivol" node --node-id "node-$number" --root "$node/store" --kubelet-dir "$node/kubelet" \
		--endpoint "unix://$node/csi.sock" --health-addr "127.0.0.1:980$number" --plain-http "$line" --allow-hosts 127.0.0.0/8 \
		--node-docker-config "$work/docker.json" --gc-min-age 5 --gc-start 70% --gc-stop 50% --keep-free 10%
	# The labels that a PodMonitor gives.
	targets="$targets {targets: ['127.0.0.1:980$number'], labels: {namespace: ocivol, node: node-$number}},"
done
cat >"$work/prometheus.yml" <<YAML
global: {scrape_interval: ${SCRAPED}s, scrape_timeout: ${SCRAPED}s}
scrape_configs: [{job_name: ocivol, static_configs: [$targets]}]
YAML
serve prometheus 9090 "$prometheus" --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/prometheus" \
	--web.listen-address=127.0.0.1:9090 --log.level=warn
python3 -B "$here/work.py" "$ocivol" "$work" 5001 "$line" "$seconds"
python3 -B "$here/draw.py" "$dashboard" http://127.0.0.1:9090 "$seconds" $SCRAPED "$work/dashboard.svg"
cp "$work/dashboard.svg" "$picture"
