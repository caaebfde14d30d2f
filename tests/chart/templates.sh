#!/bin/sh
# What `helm template` makes of the tables beside this file, and of the values in docs/platforms.md, with each helm and for the
# oldest and the newest Kubernetes. No cluster is needed.
#
#   templates.sh CHART "OLDEST … NEWEST" HELM…
set -eu
chart=$1
versions=$2
shift 2
here=$(dirname "$0")
oldest=${versions%% *}
newest=${versions##* }
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
failed=0
wrong() {
	echo "$*" >&2
	failed=1
}

# split TABLE DIRECTORY: its documents as 01.yaml, 02.yaml … in a directory of that name.
split() {
	mkdir "$work/$2"
	awk -v to="$work/$2" 'BEGIN { n = 1 } /^---$/ { n++; next } { print > sprintf("%s/%02d.yaml", to, n) }' "$1"
}
split "$here/refused.yaml" refused
split "$here/accepted.yaml" accepted
# What earlier versions took. It stays taken: an upgrade with the same values must not fail.
for table in "$here"/../packaging/values-of/*.yaml; do
	split "$table" "values-of-$(basename "$table" .yaml)"
done
# What a document says of itself: the last comment before its values, and before that of which Kubernetes on it is.
says() { sed -n '/^[^#]/q; s/^# //p' "$1" | grep -v '^kubernetes: ' | tail -1; }
since() { sed -n 's/^# kubernetes: //p' "$1"; }

# The blocks of the page, each with the heading above it for a name.
mkdir "$work/page"
awk -v to="$work/page" '/^#/ { heading = $0 } /^```yaml$/ { file = sprintf("%s/%02d.yaml", to, ++n); print heading > file; next }
	/^```$/ { file = "" } file { print > file }' "$here/../../docs/platforms.md"

for helm; do
	for version in $versions; do
		"$helm" template ocivol "$chart" --kube-version "$version" >/dev/null || wrong "$helm, Kubernetes $version"
	done
	# As people call it who do not say a version.
	"$helm" lint --strict --quiet "$chart" || wrong "$helm lint"
	"$helm" template ocivol "$chart" >/dev/null || wrong "$helm, without a version of Kubernetes"
	for values in "$work"/refused/*.yaml; do
		if "$helm" template ocivol "$chart" --kube-version "$newest" -f "$values" >"$work/out" 2>&1; then
			wrong "$helm takes these values:
$(cat "$values")"
		elif ! grep -qF -e "$(says "$values")" "$work/out"; then
			wrong "$helm refuses these values, and does not say \"$(says "$values")\":
$(cat "$values" "$work/out")"
		fi
	done
	for values in "$work"/values-of-*/*.yaml; do
		"$helm" template ocivol "$chart" --namespace ocivol --kube-version "$newest" -f "$values" >"$work/out" ||
			wrong "$helm refuses what ${values#"$work/"} has, which an earlier version took"
	done
	for values in "$work"/accepted/*.yaml "$work"/page/*.yaml; do
		for version in "$oldest" "$newest"; do
			least=$(since "$values")
			[ "$(printf '%s\n' "${least:-0}" "$version" | sort -V | head -1)" = "${least:-0}" ] || continue
			"$helm" template ocivol "$chart" --namespace ocivol --kube-version "$version" -f "$values" >"$work/out" ||
				wrong "$helm refuses \"$(says "$values")\" for Kubernetes $version"
			! grep -E '^ *OCIVOL_[A-Z_]+: "[0-9.]+e\+' "$work/out" || wrong "$helm writes numbers that the plugin cannot read: $(says "$values")"
		done
	done
done
# shows WORDS ARGUMENTS: a line with WORDS is in what is rendered; with ! before, it is not.
shows() {
	words=${1#!}
	case $1 in !*) expected=1 ;; *) expected=0 ;; esac
	shift
	found=0 rendered=0
	"$helm" template ocivol "$chart" --namespace ocivol "$@" >"$work/out" 2>&1 || rendered=1
	grep -qF -e "$words" "$work/out" || found=1
	[ "$expected$rendered" != 11 ] || wrong "with $*: $(cat "$work/out")"
	[ "$found" = "$expected" ] || wrong "with $*: \"$words\" is $([ "$found" = 0 ] || echo not) there"
}
# By the last helm: `helm template` of version 3 takes no more of a version than its numbers, and nobody would see GKE in it.
gke=v$newest-gke.1234
shows 'kind: ResourceQuota' --kube-version "$gke"
shows '!kind: ResourceQuota' --kube-version "$newest"
shows '!kind: ResourceQuota' --kube-version "$gke" --namespace kube-system
shows '!kind: ResourceQuota' --kube-version "$gke" --set priorityClassName=
shows 'resourceNames: [privileged]' --api-versions security.openshift.io/v1/SecurityContextConstraints
shows '!resourceNames: [privileged]' --kube-version "$newest"
shows 'image: "mirror:5000/ocivol/ocivol:0.9"' --set global.imageRegistry=mirror:5000,image.tag=0.9
shows 'image: "m.io/a/b:0.9"' --set global.imageRegistry=m.io,image.repository=localhost/a/b,image.tag=0.9
shows 'image: "m.io/a/b:0.9"' --set global.imageRegistry=m.io,image.repository=a/b,image.tag=0.9
shows 'image: "registry:5000/a/b@sha256:' --set image.repository=registry:5000/a/b --set "image.digest=sha256:$(printf %064d 0)"
shows '- --metrics-addr=[$(POD_IP)]:9809' --set metricsOnPodIP=true
shows 'chart requires kubeVersion' --kube-version 1.28.0
# Numbers on the command line are of another kind than those of a file.
shows '- --health-addr=:9900' --set healthPort=9900
shows '- --metrics-addr=:9900' --set metricsPort=9900
shows 'image: "m.io/team/ocivol/ocivol:0.9"' --set global.imageRegistry=m.io/team,image.tag=0.9
shows 'value: /etc/ssl/corp.pem' --set 'extraEnv[0].name=SSL_CERT_FILE,extraEnv[0].value=/etc/ssl/corp.pem'
shows 'kind: DaemonSet' --kube-version "v$oldest-eks-1a2b3c4"
# What is empty in a set is empty, and not the default.
shows 'OCIVOL_HOSTS_DIR: ""' --set additionalDaemonSets.other.registry.hostsDir=
# What has a password comes from a Secret.
shows 'name: proxy' --set registry.proxySecret=proxy

count() { find "$work/$1" -type f | wc -l; }
[ "$failed" = 0 ] && echo "chart: $(count refused) sets of values refused, $(count accepted) taken, and $(count page) of docs/platforms.md, by $# helms
chart: $(find "$work"/values-of-* -type f | wc -l) sets of values in tests/packaging/values-of taken"
exit "$failed"
