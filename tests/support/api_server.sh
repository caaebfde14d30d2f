# A kube-apiserver with its etcd, for scripts in network and PID namespaces of their own. Who reads it has set `programs`, the directory of
# both programs and kubectl, and gets `work`, a directory that goes with the script, KUBECONFIG, and the functions below.
work=$(mktemp -d)
daemons=
# shellcheck disable=SC2086 # Words.
end_daemons() {
	[ -z "$daemons" ] || kill -9 $daemons || :
	wait || :
	daemons=
}
trap 'end_daemons; rm -r "$work"' EXIT
trap 'exit 1' INT TERM
export HOME="$work" KUBECONFIG="$work/kubeconfig" PATH="$programs:$PATH"

die() {
	echo "$*" >&2
	exit 1
}
# eventually COMMAND: repeats it until it succeeds.
eventually() {
	for _ in $(seq 300); do
		if "$@" >"$work/out" 2>&1; then return; fi
		sleep 0.1
	done
	die "not in 30 s: $*: $(cat "$work/out")"
}
quiet() { "$@" >"$work/out" 2>&1 || die "$*: $(cat "$work/out")"; }

ip link set lo up
ip address add 10.99.0.1/32 dev lo # An API server has to have an address that is not a loopback one.
openssl genrsa -out "$work/key" 2048 2>/dev/null
echo 'admin,admin,1,"system:masters"' >"$work/tokens"
cat >"$KUBECONFIG" <<'CONFIG'
{apiVersion: v1, kind: Config, current-context: it, users: [{name: admin, user: {token: admin}}],
 clusters: [{name: it, cluster: {server: "https://10.99.0.1:6443", insecure-skip-tls-verify: true}}],
 contexts: [{name: it, context: {cluster: it, user: admin}}]}
CONFIG

# Starts both, with nothing in them; `etcd` and `api` are their process IDs.
start_api_server() {
	rm -rf "$work/etcd"
	etcd --data-dir="$work/etcd" --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
		--listen-peer-urls=http://127.0.0.1:2380 --unsafe-no-fsync >"$work/etcd.log" 2>&1 &
	etcd=$!
	kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=10.99.0.1 --secure-port=6443 --cert-dir="$work/pki" \
		--token-auth-file="$work/tokens" --authorization-mode=RBAC --service-account-issuer=https://kubernetes.default.svc \
		--service-account-key-file="$work/key" --service-account-signing-key-file="$work/key" --allow-privileged=true \
		--service-cluster-ip-range=10.96.0.0/24 --disable-admission-plugins=ServiceAccount >"$work/api.log" 2>&1 &
	api=$!
	daemons="$etcd $api"
	eventually kubectl get namespace kube-system
}
