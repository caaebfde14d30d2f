{{- define "ocivol.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "ocivol.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "ocivol.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "ocivol.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "ocivol.selectorLabels" -}}
app.kubernetes.io/name: {{ include "ocivol.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "ocivol.labels" -}}
{{ include "ocivol.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "ocivol.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "ocivol.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "ocivol.image" -}}
{{- /* A released chart knows the digest that its image has. Who chooses a tag means that one. */ -}}
{{- $digest := ternary "" (index .Chart.Annotations "ocivol.dev/image-digest" | default "") (ne .Values.image.tag "") -}}
{{- include "ocivol.imageOf" (dict "image" .Values.image "digest" $digest "tag" .Chart.AppVersion "global" .Values.global) -}}
{{- end -}}

{{- /* The name of an image, with its digest if it has one, else the digest that is given, else with its tag, or the one that is given. */ -}}
{{- define "ocivol.imageOf" -}}
{{- $repository := .image.repository -}}
{{- with (default dict .global).imageRegistry -}}
{{- /* A first part with a dot or a port is a host, and this one is in its place. */ -}}
{{- $repository = printf "%s/%s" . (regexReplaceAll "^([^/]*[.:][^/]*|localhost)/" $repository "") -}}
{{- end -}}
{{- $digest := default .digest .image.digest -}}
{{- if $digest -}}
{{- printf "%s@%s" $repository $digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .tag .image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* Where pods of the plugin go: each DaemonSet to the nodes that have its name as label, the first one to those that have none of
the others'. */ -}}
{{- define "ocivol.affinity" -}}
{{- $affinity := deepCopy (default dict .Values.affinity) -}}
{{- if .Values.additionalDaemonSets -}}
{{- $own := dict "key" .Values.additionalDaemonSetsLabel "operator" "In" "values" (list .set) -}}
{{- if not .set -}}
{{- $own = dict "key" .Values.additionalDaemonSetsLabel "operator" "NotIn" "values" (keys .Values.additionalDaemonSets | sortAlpha) -}}
{{- end -}}
{{- $terms := list -}}
{{- range dig "nodeAffinity" "requiredDuringSchedulingIgnoredDuringExecution" "nodeSelectorTerms" (list dict) $affinity -}}
{{- $terms = append $terms (set . "matchExpressions" (append (default list .matchExpressions) $own)) -}}
{{- end -}}
{{- $required := dict "requiredDuringSchedulingIgnoredDuringExecution" (dict "nodeSelectorTerms" $terms) -}}
{{- $affinity = mustMergeOverwrite $affinity (dict "nodeAffinity" $required) -}}
{{- end -}}
{{- with $affinity -}}
{{- toYaml . -}}
{{- end -}}
{{- end -}}

{{- /* auto, always or never: whether it is so. */ -}}
{{- define "ocivol.decide" -}}
{{- if or (eq .choice "always") (and (eq .choice "auto") .found) -}}true{{- end -}}
{{- end -}}

{{- /* A value that may be a number. From a file helm has it as a float, and would write a large one as 8e+11. */ -}}
{{- define "ocivol.text" -}}
{{- if kindIs "float64" . -}}{{- int64 . -}}{{- else -}}{{- . -}}{{- end -}}
{{- end -}}

{{- /* How registries are spoken to: the plugin and the controller do it in one way. */ -}}
{{- define "ocivol.registryConfig" -}}
OCIVOL_STALL_TIMEOUT: {{ include "ocivol.text" .Values.registry.stallTimeout | quote }}
OCIVOL_HOSTS_DIR: {{ .Values.registry.hostsDir | quote }}
{{- with .Values.registry.authoritativeMirrors }}
OCIVOL_AUTHORITATIVE_MIRRORS: {{ join "," . | quote }}
{{- end }}
{{- with .Values.registry.plainHTTP }}
OCIVOL_PLAIN_HTTP: {{ join "," . | quote }}
{{- end }}
{{- with .Values.registry.allowedHosts }}
OCIVOL_ALLOW_HOSTS: {{ join "," . | quote }}
{{- end }}
OCIVOL_ANONYMOUS: {{ .Values.credentials.anonymous | quote }}
{{- with .Values.registry.permits }}
OCIVOL_PERMITS: {{ toJson . | quote }}
{{- end }}
OCIVOL_LOG_FORMAT: {{ .Values.log.format | quote }}
{{- range $name, $value := dict "HTTP_PROXY" .Values.registry.httpProxy "HTTPS_PROXY" .Values.registry.httpsProxy "NO_PROXY" .Values.registry.noProxy }}
{{- if $value }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "ocivol.config" -}}
OCIVOL_GC_START: {{ include "ocivol.text" .Values.store.gcStart | quote }}
OCIVOL_GC_STOP: {{ include "ocivol.text" .Values.store.gcStop | quote }}
OCIVOL_GC_MIN_AGE: {{ include "ocivol.text" .Values.store.gcMinAge | quote }}
OCIVOL_KEEP_FREE: {{ include "ocivol.text" .Values.store.keepFree | quote }}
OCIVOL_KEEP_FREE_INODES: {{ include "ocivol.text" .Values.store.keepFreeInodes | quote }}
OCIVOL_WARM_BUDGET: {{ include "ocivol.text" .Values.warm.budget | quote }}
OCIVOL_WARM_PIN_BUDGET: {{ include "ocivol.text" .Values.warm.pinBudget | quote }}
OCIVOL_SCRUB_DAYS: {{ include "ocivol.text" .Values.store.scrubDays | quote }}
{{- with .Values.store.quota.bytes }}
OCIVOL_QUOTA_BYTES: {{ include "ocivol.text" . | quote }}
{{- end }}
{{- with .Values.store.quota.inodes }}
OCIVOL_QUOTA_INODES: {{ include "ocivol.text" . | quote }}
{{- end }}
{{- with .Values.store.quota.trees }}
OCIVOL_QUOTA_TREES: {{ include "ocivol.text" . | quote }}
{{- end }}
{{- with .Values.store.pins }}
OCIVOL_PINS: {{ join "," . | quote }}
{{- end }}
OCIVOL_PARALLEL_DOWNLOADS: {{ include "ocivol.text" .Values.registry.parallelDownloads | quote }}
OCIVOL_VERIFY_DIFF_IDS: {{ .Values.registry.verifyDiffIDs | quote }}
OCIVOL_GRANT_TTL: {{ include "ocivol.text" .Values.registry.grantTTL | quote }}
{{- with .Values.registry.spoolAbove }}
OCIVOL_SPOOL_ABOVE: {{ include "ocivol.text" . | quote }}
{{- end }}
{{- with .Values.registry.ociLayoutDir }}
OCIVOL_OCI_LAYOUT_DIRS: {{ . | quote }}
{{- end }}
OCIVOL_ALWAYS_VERIFY: {{ .Values.registry.alwaysVerify | quote }}
OCIVOL_VOLUME_SECRETS: {{ .Values.credentials.volumeSecrets | quote }}
{{- with .Values.credentials.serviceAccountTokens }}
OCIVOL_SERVICE_ACCOUNT_TOKENS: {{ toJson . | quote }}
{{- end }}
{{- if .Values.credentials.imagePullSecrets.enabled }}
OCIVOL_IMAGE_PULL_SECRETS: "true"
{{- end }}
{{- if .Values.events.enabled }}
OCIVOL_POD_EVENTS: "true"
{{- end }}
{{- with .Values.traces.otlpEndpoint }}
OCIVOL_OTLP_ENDPOINT: {{ . | quote }}
{{- end }}
{{- if .Values.prepull.enabled }}
OCIVOL_CACHED_ARTIFACTS: "true"
{{- with .Values.prepull.bytesPerSecond }}
OCIVOL_PREPULL_BYTES_PER_SECOND: {{ include "ocivol.text" . | quote }}
{{- end }}
{{- end }}
{{- with .Values.credentials.providers.config }}
OCIVOL_IMAGE_CREDENTIAL_PROVIDER_CONFIG: /etc/ocivol/providers/{{ base . }}
OCIVOL_IMAGE_CREDENTIAL_PROVIDER_BIN_DIR: /etc/ocivol/provider-bin
{{- end }}
{{- with .Values.credentials.nodeDockerConfig }}
OCIVOL_NODE_DOCKER_CONFIG: /etc/ocivol/docker/{{ base . }}
{{- end }}
{{- with .Values.credentials.helpers.names }}
{{- $helpers := list }}
{{- range . }}
{{- $helpers = append $helpers (printf "%s=/etc/ocivol/helper-bin/docker-credential-%s" . .) }}
{{- end }}
OCIVOL_CREDENTIAL_HELPERS: {{ join "," $helpers | quote }}
{{- end }}
OCIVOL_MOUNT_LOCK: {{ .Values.mount.lock | quote }}
{{ include "ocivol.registryConfig" . }}
{{- if .Values.controller.enabled }}
OCIVOL_WITH_CONTROLLER: "true"
{{- end }}
{{- end -}}

{{- /* The name of its rights. Two releases of one name, in two namespaces, do not share those of the cluster. */ -}}
{{- define "ocivol.rights" -}}
{{- printf "%s-%s-pull-secrets" .Release.Namespace (include "ocivol.fullname" .) | trunc 253 | trimSuffix "-" -}}
{{- end -}}

{{- /* All that the plugin may do at the API server: get, and neither list nor watch. */ -}}
{{- define "ocivol.rules" -}}
rules:
- apiGroups: [""]
  # A pod says which secrets it uses, and that it is the one that kubelet told of.
  resources: [pods, secrets]
  verbs: [get]
{{- end -}}

{{- /* Whether the plugin talks to the API server. */ -}}
{{- define "ocivol.usesCluster" -}}
{{- if or .Values.credentials.imagePullSecrets.enabled .Values.credentials.providers.annotations .Values.events.enabled .Values.prepull.enabled -}}true{{- end -}}
{{- end -}}

{{- /* Audiences of the tokens that kubelet passes. */ -}}
{{- define "ocivol.audiences" -}}
{{- $all := .Values.credentials.providers.audiences -}}
{{- range .Values.credentials.serviceAccountTokens -}}
{{- $all = append $all .audience -}}
{{- end -}}
{{- toJson (uniq $all) -}}
{{- end -}}

{{- define "ocivol.prepullRights" -}}
{{- printf "%s-%s-prepull" .Release.Namespace (include "ocivol.fullname" .) | trunc 253 | trimSuffix "-" -}}
{{- end -}}

{{- /* Whether the controller changes nodes. */ -}}
{{- define "ocivol.changesNodes" -}}
{{- if and .Values.prepull.enabled (or .Values.prepull.nodeLabels .Values.prepull.startupTaint.enabled) -}}true{{- end -}}
{{- end -}}

{{- define "ocivol.startupTaint" -}}
{{- .Values.driver.name }}/agent-not-ready
{{- end -}}

{{- define "ocivol.nodesPolicy" -}}
{{- printf "%s-nodes" (include "ocivol.fullname" . | trunc 57 | trimSuffix "-") -}}
{{- end -}}

{{- define "ocivol.prepullPolicy" -}}
{{- printf "%s-node" (include "ocivol.fullname" . | trunc 58 | trimSuffix "-") -}}
{{- end -}}
