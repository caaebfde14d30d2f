#!/bin/sh
# What a real API server says of the chart: of everything that is rendered from accepted.yaml, and of installing, upgrading and moving
# it. There is no node: nothing is started. Runs in namespaces of its own, so that its ports are free and its daemons end with it:
#
#   unshare --net --pid --fork --kill-child --mount-proc real.sh CHART KUBERNETES-PROGRAMS HELM…
set -eu
chart=$1
programs=$2
shift 2
here=$(dirname "$0")
. "$here/../support/api_server.sh"
start_api_server

# fails_with WORDS COMMAND: it fails, and says so. What it said is in $work/said.
fails_with() {
	words=$1
	shift
	! "$@" >"$work/said" 2>&1 && grep -qF -e "$words" "$work/said"
}
refused() { fails_with "$@" || die "it should fail and say \"$1\": $*: $(cat "$work/said")"; }
# Runs the kubectl commands that it said.
as_it_says() { sed -n 's/^ *\(kubectl .*\)/\1/p' "$work/said" >"$work/commands" && [ -s "$work/commands" ] && quiet sh -e "$work/commands"; }

for namespace in ocivol shop bank; do quiet kubectl create namespace "$namespace"; done

# The definitions in the schema have the fields that the API server knows.
kubectl get --raw /openapi/v2 >"$work/openapi"
python3 "$here/definitions.py" "$chart/values.schema.json" "$work/openapi"

# Every set of values, at once: what several have in common is asked once. If one is refused, each by itself, to name it.
awk -v to="$work" 'BEGIN { n = 1 } /^---$/ { n++; next } { print > sprintf("%s/%02d.yaml", to, n) }' "$here/accepted.yaml"
version=$(kubectl version -o json | sed -n 's/.*"gitVersion": "\(.*\)".*/\1/p' | tail -1)
dry_run() { kubectl apply --dry-run=server --validate=strict -f "$1"; }
for helm; do
	for values in "$work"/[0-9][0-9].yaml; do
		# Some of them only newer ones have.
		least=$(sed -n 's/^# kubernetes: //p' "$values")
		[ "$(printf '%s\n' "${least:-0}" "${version#v}" | sort -V | head -1)" = "${least:-0}" ] || continue
		"$helm" template ocivol "$chart" --namespace ocivol --kube-version "$version" -f "$values" >"${values%.yaml}.rendered"
	done
	python3 -c 'import sys
documents = {text.strip(): None for path in sys.argv[1:] for text in open(path).read().split("\n---\n")}
print("\n---\n".join(documents))' "$work"/*.rendered >"$work/all"
	dry_run "$work/all" >"$work/all.out" 2>&1 || {
		for rendered in "$work"/*.rendered; do
			dry_run "$rendered" >"$work/out" 2>&1 || die "$(cat "${rendered%.rendered}.yaml" "$work/out")"
		done
		die "all together: $(cat "$work/all.out")"
	}
	echo "$(basename "$(dirname "$helm")")/helm: $(find "$work" -name '*.rendered' | wc -l) sets of values make $(grep -c '^kind:' "$work/all") different objects, which Kubernetes $version takes"
done

# The sample policies: what they refuse, and that they let other pods pass. Kyverno's has its expressions for the API server as well.
manifests=$here/../../manifests
quiet kubectl label namespace shop example.com/ocivol-references=checked
pod() { # pod REFERENCE: makes one, and nothing of it stays.
	kubectl run it --namespace shop --image=x --dry-run=server --overrides='{"spec": {"containers": [{"name": "it", "image": "x"}], "volumes": [
		{"name": "v", "csi": {"driver": "csi.ocivol.dev", "readOnly": true, "volumeAttributes": {"reference": "'"$1"'"}}}]}}'
}
digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
sed -e 's|policies.kyverno.io/v1|admissionregistration.k8s.io/v1|' -e 's/kind: Validating/&Admission/' -e '/validationActions:/d' \
	"$manifests/kyverno-policy.yaml" >"$work/kyverno.yaml"
sed '1,/^---/d' "$manifests/admission-policy.yaml" >>"$work/binding.yaml"
{ cat "$work/kyverno.yaml" && echo --- && cat "$work/binding.yaml"; } >"$work/kyverno-bound.yaml"
# They are of Kubernetes 1.30 and newer.
if kubectl api-resources --api-group=admissionregistration.k8s.io -o name | grep -q '^validatingadmissionpolicies\.'; then
	for policy in "$manifests/admission-policy.yaml" "$work/kyverno-bound.yaml"; do
		quiet pod registry.example.com/x:v1
		quiet kubectl apply -f "$policy"
		eventually fails_with "name their content by digest" pod registry.example.com/x:v1
		refused "registry.example.com only" pod "other.example.com/x@$digest"
		quiet pod "registry.example.com/x@$digest"
		quiet kubectl run it --namespace shop --image=x --dry-run=server
		quiet kubectl delete -f "$policy"
		eventually pod registry.example.com/x:v1
	done
	echo "the sample policies, and their expressions as Kyverno has them, refuse other registries and tags"
else
	echo "Kubernetes $version has no ValidatingAdmissionPolicy: the sample policies were not tried"
fi

# Who uses a driver: one pod by itself, one claim, and some that use others.
cat >"$work/users" <<'USERS'
{apiVersion: v1, kind: Pod, metadata: {name: inline}, spec: {containers: [{name: it, image: x}], volumes: [
 {name: a, emptyDir: {}}, {name: b, csi: {driver: other.example.com}}, {name: c, csi: {driver: csi.ocivol.dev}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other}, spec: {containers: [{name: it, image: x}], volumes: [{name: b, csi: {driver: other.csi.ocivol.device}}]}}
---
{apiVersion: v1, kind: PersistentVolume, metadata: {name: one}, spec: {accessModes: [ReadOnlyMany], capacity: {storage: 1Gi},
 claimRef: {name: model, namespace: shop}, csi: {driver: csi.ocivol.dev, volumeHandle: one}}}
---
{apiVersion: v1, kind: PersistentVolume, metadata: {name: two}, spec: {accessModes: [ReadOnlyMany], capacity: {storage: 1Gi},
 claimRef: {name: data, namespace: shop}, csi: {driver: other.example.com, volumeHandle: two}}}
USERS

# modes: those of the live object.
modes() { kubectl get csidriver csi.ocivol.dev -o jsonpath='{.spec.volumeLifecycleModes}'; }
for helm; do
	here_is() { "$helm" "$@" "$chart" --namespace here; }
	there_is() { "$helm" "$@" "$chart" --namespace there; }
	# Where Pod Security would refuse its pods, it says so.
	quiet kubectl create namespace here
	quiet kubectl label namespace here pod-security.kubernetes.io/enforce=baseline
	quiet here_is install ocivol
	grep -qF "namespace here enforces baseline" "$work/out" || die "no warning: $(cat "$work/out")"
	quiet kubectl label --overwrite namespace here pod-security.kubernetes.io/enforce=privileged
	quiet here_is upgrade ocivol
	! grep -q WARNING "$work/out" || die "a warning: $(cat "$work/out")"

	# As the notes say it is uninstalled: while somebody uses it, it is not, and they are told.
	quiet "$helm" get notes ocivol --namespace here
	sed -n '/^    users=/,$p' "$work/out" >"$work/uninstall"
	uninstall() { PATH="$(dirname "$helm"):$PATH" sh "$work/uninstall"; }
	quiet kubectl apply --namespace shop -f "$work/users"
	! uninstall >"$work/answers" 2>&1 || die "uninstalled although somebody uses it: $(cat "$work/answers")"
	[ "$(tr -s ' ' <"$work/answers")" = "Pod shop inline other.example.com,csi.ocivol.dev <none> <none> <none>
PersistentVolume <none> one <none> csi.ocivol.dev model shop" ] || die "who uses it: $(cat "$work/answers")"
	quiet "$helm" status ocivol --namespace here
	# Nor where nobody can say whether somebody does.
	! KUBECONFIG=/dev/null uninstall >"$work/answers" 2>&1 || die "uninstalled: $(cat "$work/answers")"
	quiet "$helm" status ocivol --namespace here
	quiet kubectl patch pv one two --patch '{"metadata": {"finalizers": null}}' # Nobody else does it here.
	quiet kubectl delete --namespace shop --wait=false --grace-period=0 -f "$work/users"

	quiet here_is upgrade ocivol --set 'driver.volumeLifecycleModes={Persistent,Ephemeral}'
	[ "$(modes)" = '["Ephemeral","Persistent"]' ] || die "modes: $(modes)"
	# What cannot be changed: as it says.
	refused "kubectl delete csidriver csi.ocivol.dev" here_is upgrade ocivol --set 'driver.volumeLifecycleModes={Persistent}'
	grep -qF "helm upgrade ocivol … --namespace here" "$work/said" || die "$(cat "$work/said")"
	as_it_says
	quiet here_is upgrade ocivol --set 'driver.volumeLifecycleModes={Persistent}'
	[ "$(modes)" = '["Persistent"]' ] || die "modes: $(modes)"
	quiet kubectl delete csidriver csi.ocivol.dev
	quiet here_is upgrade ocivol --reset-values
	# The cluster knows its priorities.
	refused "this cluster has no PriorityClass volumes-first" here_is upgrade ocivol --set priorityClassName=volumes-first
	quiet kubectl create priorityclass volumes-first --value=1000000
	quiet here_is upgrade ocivol --set priorityClassName=volumes-first
	quiet here_is upgrade ocivol --reset-values
	quiet kubectl delete priorityclass volumes-first

	# What a StorageClass says cannot be changed: as it says. Another's is left alone.
	classes() { here_is upgrade ocivol --set controller.enabled=true,storageClasses[0].name="$1",storageClasses[0].parameters.reference="$2"; }
	quiet classes models r.example/x:v1
	quiet classes models r.example/x:v1
	refused "kubectl delete storageclass models" classes models r.example/x:v2
	as_it_says
	quiet classes models r.example/x:v2
	[ "$(kubectl get storageclass models -o jsonpath='{.parameters.reference}')" = r.example/x:v2 ] || die "the StorageClass is as it was"
	quiet kubectl apply -f - <<-FAST
	{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: fast}, provisioner: other.example.com}
	FAST
	refused "not of this release: take another name" classes fast r.example/x:v1
	quiet kubectl delete storageclass fast
	quiet here_is upgrade ocivol --reset-values

	# Uninstalled, and installed elsewhere: the CSIDriver is still there, the other's.
	quiet uninstall
	! "$helm" status ocivol --namespace here >/dev/null 2>&1 || die "it is still installed"
	[ "$(modes)" = '["Ephemeral","Persistent"]' ] || die "the CSIDriver went with its release"
	refused "belongs to the release ocivol in the namespace here" there_is install ocivol --create-namespace
	as_it_says
	quiet there_is install ocivol --create-namespace
	quiet there_is upgrade ocivol
	# A second one beside it.
	quiet here_is install other --set driver.name=other.example.com,store.hostPath=/var/lib/other
	quiet "$helm" uninstall other --namespace here
	quiet "$helm" uninstall ocivol --namespace there
	# One that helm did not make.
	quiet kubectl delete csidriver csi.ocivol.dev other.example.com
	quiet kubectl apply -f "$here/../../manifests/install.yaml"
	refused "was not made by helm" here_is install ocivol
	as_it_says
	quiet here_is install ocivol
	quiet "$helm" uninstall ocivol --namespace here
	quiet kubectl delete -f "$here/../../manifests/install.yaml" --wait=false
	# Its namespace among its objects.
	quiet kubectl create namespace own
	quiet "$helm" install ocivol "$chart" --namespace own --take-ownership --set namespace.create=true
	[ "$(kubectl get namespace own -o jsonpath='{.metadata.labels.pod-security\.kubernetes\.io/enforce}')" = privileged ] || die "no label"
	quiet "$helm" uninstall ocivol --namespace own
	quiet kubectl get namespace own
	quiet kubectl delete csidriver csi.ocivol.dev
	quiet kubectl delete namespace own here there --wait=false
	for namespace in own here there ocivol; do # Nobody finalizes them here.
		kubectl get namespace "$namespace" -o json 2>/dev/null | sed 's/"kubernetes"//' |
			kubectl replace --raw "/api/v1/namespaces/$namespace/finalize" -f - >/dev/null 2>&1 || true
	done
	quiet kubectl delete all,secrets,configmaps,serviceaccounts,networkpolicies --all -A
	echo "$(basename "$(dirname "$helm")")/helm: installed, upgraded, moved"
done
