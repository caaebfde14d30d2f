{{- /* Names of the controller's objects. Its pods are others than the plugin's: no selector finds both. */ -}}

{{- define "ocivol.controllerName" -}}
{{- printf "%s-controller" (include "ocivol.fullname" . | trunc 52 | trimSuffix "-") -}}
{{- end -}}

{{- define "ocivol.controllerSelectorLabels" -}}
app.kubernetes.io/name: {{ printf "%s-controller" (include "ocivol.name" . | trunc 52 | trimSuffix "-") }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "ocivol.controllerLabels" -}}
{{ include "ocivol.controllerSelectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* Two releases of one name, in two namespaces, do not share rights of the cluster. */ -}}
{{- define "ocivol.controllerRights" -}}
{{- printf "%s-%s" .Release.Namespace (include "ocivol.controllerName" .) | trunc 190 | trimSuffix "-" -}}
{{- end -}}

{{- /* A container that may do nothing but talk. */ -}}
{{- define "ocivol.ordinary" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- /* Whether a StorageClass takes its provisioner secret from the claims' namespaces. */ -}}
{{- define "ocivol.secretsOfClaims" -}}
{{- range .Values.storageClasses -}}
{{- with .provisionerSecret -}}
{{- if contains "$" .namespace -}}true{{- break -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The names of such secrets, as JSON; none where one of them may be any. */ -}}
{{- define "ocivol.secretNames" -}}
{{- $names := list -}}
{{- $any := false -}}
{{- range .Values.storageClasses -}}
{{- with .provisionerSecret -}}
{{- if contains "$" .namespace -}}
{{- if contains "$" .name -}}{{- $any = true -}}{{- else -}}{{- $names = append $names .name -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- ternary (list) (uniq $names) $any | toJson -}}
{{- end -}}

{{- define "ocivol.isOpenShift" -}}
{{- $found := .Capabilities.APIVersions.Has "security.openshift.io/v1/SecurityContextConstraints" -}}
{{- include "ocivol.decide" (dict "choice" .Values.openshiftSCC "found" $found) -}}
{{- end -}}

{{- /* Whether it has files of its node: mirrors, authorities. */ -}}
{{- define "ocivol.controllerReadsNode" -}}
{{- if or .Values.registry.hostsDir .Values.registry.certificatePaths -}}true{{- end -}}
{{- end -}}

{{- /* What OpenShift has to let it do, beyond what every pod may. */ -}}
{{- define "ocivol.controllerSCC" -}}
{{- if include "ocivol.isOpenShift" . -}}
{{- if .Values.hostNetwork -}}privileged{{- else if include "ocivol.controllerReadsNode" . -}}hostmount-anyuid{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What the schema cannot tell. */ -}}
{{- define "ocivol.checkController" -}}
{{- range $key, $_ := .Values.controller.podLabels -}}
{{- if hasPrefix "app.kubernetes.io/" $key -}}
{{- fail (printf "controller.podLabels: %s: labels app.kubernetes.io/… are the chart's own, by which a Deployment knows its pods: take another" $key) -}}
{{- end -}}
{{- end -}}
{{- range .Values.controller.provisioner.extraArgs -}}
{{- $flag := splitList "=" . | first | trimPrefix "-" | trimPrefix "-" -}}
{{- if has $flag (list "csi-address" "extra-create-metadata" "timeout" "leader-election" "leader-election-namespace") -}}
{{- fail (printf "controller.provisioner.extraArgs: --%s is the chart's own: leave it out" $flag) -}}
{{- end -}}
{{- end -}}
{{- range .Values.storageClasses -}}
{{- $class := . -}}
{{- with lookup "storage.k8s.io/v1" "StorageClass" "" $class.name -}}
{{- $owner := default dict .metadata.annotations -}}
{{- if or (ne (get $owner "meta.helm.sh/release-name") $.Release.Name) (ne (get $owner "meta.helm.sh/release-namespace") $.Release.Namespace) -}}
{{- fail (printf "storageClasses: this cluster has a StorageClass %s that is not of this release: take another name" $class.name) -}}
{{- end -}}
{{- $live := default dict .parameters -}}
{{- $wanted := deepCopy $class.parameters -}}
{{- range $kind, $secret := dict "provisioner" $class.provisionerSecret "node-publish" $class.nodePublishSecret -}}
{{- with $secret -}}
{{- $_ := set $wanted (printf "csi.storage.k8s.io/%s-secret-name" $kind) .name -}}
{{- $_ := set $wanted (printf "csi.storage.k8s.io/%s-secret-namespace" $kind) .namespace -}}
{{- end -}}
{{- end -}}
{{- if or (ne (toJson $live) (toJson $wanted)) (ne .provisioner $.Values.driver.name) (ne .reclaimPolicy (default "Delete" $class.reclaimPolicy)) -}}
{{- fail (printf "\n\nThe StorageClass %s is there with other parameters, and the API server changes none. Claims that have a volume keep it when the class is made anew:\n\n    kubectl delete storageclass %s\n\nand repeat this.\n" $class.name $class.name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and .Values.storageClasses (not .Values.controller.enabled) -}}
{{- fail "storageClasses: nobody makes volumes of their claims, which would stay Pending: set controller.enabled=true" -}}
{{- end -}}
{{- if and .Values.controller.enabled (not (has "Persistent" .Values.driver.volumeLifecycleModes)) -}}
{{- fail "controller.enabled: pods could not use what it makes: add Persistent to driver.volumeLifecycleModes" -}}
{{- end -}}
{{- $names := list -}}
{{- range .Values.storageClasses -}}
{{- if has .name $names -}}
{{- fail (printf "storageClasses: two are called %s: take another name for one of them" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if not (get .parameters "reference") -}}
{{- fail (printf "storageClasses: %s has no parameters.reference, which says what its volumes hold" .name) -}}
{{- end -}}
{{- range $key, $_ := .parameters -}}
{{- if hasPrefix "csi.storage.k8s.io/" $key -}}
{{- fail (printf "storageClasses: parameters.%s is for provisionerSecret and nodePublishSecret of the class: use these" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
