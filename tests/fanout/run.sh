#!/bin/sh
# What the pre-pulls of so many nodes cost a real API server and etcd: for each number of nodes, with servers that have just been started.
# There is no node and no plugin; measure.py does what theirs do. Runs in namespaces of its own, so that its ports are free and its
# daemons end with it:
#
#   unshare --net --pid --fork --kill-child --mount-proc run.sh RENDERED-CHART KUBERNETES-PROGRAMS NODES…
set -eu
rendered=$1
programs=$2
shift 2
here=$(dirname "$0")
. "$here/../support/api_server.sh"

# Starts both, with nothing in them but what the chart has: also the rights and the policy that each write is held to.
start() {
	start_api_server
	quiet kubectl apply --server-side -f "$rendered"
	quiet kubectl wait --for=condition=Established crd/cachedartifacts.ocivol.dev crd/nodeartifacts.ocivol.dev
}

results=
for nodes; do
	start
	python3 -B "$here/measure.py" "$nodes" "$api" "$etcd" "$work/$nodes.json"
	results="$results $work/$nodes.json"
	end_daemons
done
echo "Kubernetes $(kube-apiserver --version | tr -dc '0-9.'), $(etcd --version | head -n 1 | sed 's/ Version:/'/), $(nproc) cores"
# shellcheck disable=SC2086 # Words.
python3 -B "$here/table.py" $results
