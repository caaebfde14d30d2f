{{- /* What the schema cannot tell, because it takes two values, or the cluster: each would fail on the nodes, or in the middle of an
installation. Messages say what to do. */ -}}

{{- /* Of one DaemonSet. */ -}}
{{- define "ocivol.checks" -}}
{{- $where := ternary (printf "additionalDaemonSets.%s: " .set) "" (ne .set "") -}}
{{- $kubelet := clean .Values.kubeletDir -}}
{{- $store := clean .Values.store.hostPath -}}

{{- /* Paths are compared as text, by kubelet and by the plugin. */ -}}
{{- $paths := dict "kubeletDir" .Values.kubeletDir "store.hostPath" .Values.store.hostPath
    "registry.hostsDir" .Values.registry.hostsDir "registry.ociLayoutDir" .Values.registry.ociLayoutDir
    "credentials.providers.config" .Values.credentials.providers.config "credentials.providers.binDir" .Values.credentials.providers.binDir
    "credentials.nodeDockerConfig" .Values.credentials.nodeDockerConfig "credentials.helpers.binDir" .Values.credentials.helpers.binDir -}}
{{- range $at, $path := .Values.registry.certificatePaths -}}
{{- $_ := set $paths (printf "registry.certificatePaths[%d]" $at) $path -}}
{{- end -}}
{{- range $value, $path := $paths -}}
{{- if and $path (ne (clean $path) (trimSuffix "/" $path)) -}}
{{- fail (printf "%s%s: %s has `.` or `..` in it: write %s" $where $value $path (clean $path)) -}}
{{- end -}}
{{- end -}}

{{- if hasPrefix (printf "%s/" $kubelet) (printf "%s/" $store) -}}
{{- fail (printf "%sstore.hostPath: %s is in kubeletDir (%s), which is for kubelet alone: use a directory beside it, as /var/lib/ocivol" $where $store $kubelet) -}}
{{- end -}}
{{- if hasPrefix (printf "%s/" $store) (printf "%s/" $kubelet) -}}
{{- fail (printf "%sstore.hostPath: kubeletDir (%s) is in %s: use a directory that only the plugin has, as /var/lib/ocivol" $where $kubelet $store) -}}
{{- end -}}
{{- if has $store (list "/home" "/mnt" "/opt" "/root" "/srv" "/var" "/var/lib" "/var/log") -}}
{{- fail (printf "%sstore.hostPath: %s is not the plugin's alone: use a directory in it, as %s/ocivol" $where $store $store) -}}
{{- end -}}
{{- range list "/bin" "/boot" "/dev" "/etc" "/lib" "/lib64" "/proc" "/run" "/sbin" "/sys" "/tmp" "/usr" "/var/lib/containerd" "/var/lib/containers" "/var/lib/docker" "/var/run" "/var/tmp" -}}
{{- if hasPrefix (printf "%s/" .) (printf "%s/" $store) -}}
{{- fail (printf "%sstore.hostPath: %s is in %s, which is the system's, in memory, or cleaned by others: use a directory on a disk, as /var/lib/ocivol" $where $store .) -}}
{{- end -}}
{{- end -}}

{{- /* `man 7 unix`: 107 bytes and a zero. */ -}}
{{- $socket := printf "%s/plugins_registry/%s-reg.sock" $kubelet .Values.driver.name -}}
{{- if gt (len $socket) 107 -}}
{{- fail (printf "%sthe socket %s would have %d bytes, and a socket's path has at most 107: take a shorter kubeletDir or driver.name" $where $socket (len $socket)) -}}
{{- end -}}

{{- /* Two volumes of the container at one place. */ -}}
{{- $places := list "/csi" "/registration" "/var/lib/ocivol" (printf "%s/pods" $kubelet) -}}
{{- range compact (concat (list .Values.registry.hostsDir .Values.registry.ociLayoutDir) .Values.registry.certificatePaths) -}}
{{- if has (clean .) $places -}}
{{- fail (printf "%sregistry: %s is mounted into the plugin already: take it out of registry.hostsDir, .ociLayoutDir or .certificatePaths" $where .) -}}
{{- end -}}
{{- $places = append $places (clean .) -}}
{{- end -}}

{{- range $value, $proxy := pick .Values.registry "httpProxy" "httpsProxy" "noProxy" -}}
{{- if contains "@" $proxy -}}
{{- fail (printf "%sregistry.%s has a password, which everybody who may read ConfigMaps would see: leave it empty, put it into a Secret (kubectl -n %s create secret generic proxy --from-literal=HTTPS_PROXY=http://user:password@host:port), and set registry.proxySecret=proxy" $where $value $.Release.Namespace) -}}
{{- end -}}
{{- end -}}

{{- range $value, $labels := dict "commonLabels" .Values.commonLabels "podLabels" .Values.podLabels -}}
{{- range $key, $_ := $labels -}}
{{- if hasPrefix "app.kubernetes.io/" $key -}}
{{- fail (printf "%s%s: %s: labels app.kubernetes.io/… are the chart's own, by which a DaemonSet knows its pods: take another" $where $value $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- $limits := default dict (default dict .Values.resources).limits -}}
{{- range $name, $request := (default dict .Values.resources).requests -}}
{{- $limit := get $limits $name | toString -}}
{{- if and $limit (gt (include "ocivol.number" $request | float64) (include "ocivol.number" $limit | float64)) -}}
{{- fail (printf "%sresources: the request of %s (%v) is above its limit (%s): lower the one or leave out the other" $where $name $request $limit) -}}
{{- end -}}
{{- end -}}

{{- if eq (int .Values.healthPort) (int .Values.metricsPort) -}}
{{- fail (printf "healthPort and metricsPort are both %v: take another for one of them" .Values.healthPort) -}}
{{- end -}}

{{- $percent := "^[0-9]+%$" -}}
{{- if and (regexMatch $percent (toString .Values.store.gcStart)) (regexMatch $percent (toString .Values.store.gcStop)) -}}
{{- if gt (trimSuffix "%" .Values.store.gcStop | int) (trimSuffix "%" .Values.store.gcStart | int) -}}
{{- fail (printf "%sstore.gcStop (%s) is above store.gcStart (%s), and the plugin would not start: set it below" $where .Values.store.gcStop .Values.store.gcStart) -}}
{{- end -}}
{{- end -}}

{{- $names := list "KUBE_NODE_NAME" -}}
{{- if .Values.metricsOnPodIP -}}{{- $names = append $names "POD_IP" -}}{{- end -}}
{{- if .Values.registry.caConfigMap -}}{{- $names = append $names "SSL_CERT_FILE" -}}{{- end -}}
{{- range .Values.extraEnv -}}
{{- if has .name $names -}}
{{- fail (printf "%sextraEnv: %s is there already: say each variable once, and leave KUBE_NODE_NAME, POD_IP (metricsOnPodIP) and SSL_CERT_FILE (registry.caConfigMap) to the chart" $where .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}

{{- $flags := dict "--driver-name" "driver.name" "--kubelet-dir" "kubeletDir" "--root" "store.hostPath" "--health-addr" "healthPort"
    "--metrics-addr" "metricsPort" "--endpoint" "the chart's" "--registration-dir" "the chart's" "--node-id" "the chart's" -}}
{{- range .Values.extraArgs -}}
{{- $flag := splitList "=" . | first -}}
{{- if hasKey $flags $flag -}}
{{- fail (printf "%sextraArgs: %s is %s: leave it out" $where $flag (get $flags $flag)) -}}
{{- end -}}
{{- end -}}

{{- with .Values.priorityClassName -}}
{{- if and (hasPrefix "system-" .) (not (has . (list "system-node-critical" "system-cluster-critical"))) -}}
{{- fail (printf "%spriorityClassName: there is no %s: system-node-critical and system-cluster-critical are Kubernetes' own, and no others may begin with system-" $where .) -}}
{{- end -}}
{{- /* Where there is a cluster to ask, it has the class system-node-critical. */ -}}
{{- $asked := not (hasPrefix "system-" .) -}}
{{- if and $asked (not (lookup "scheduling.k8s.io/v1" "PriorityClass" "" .)) (lookup "scheduling.k8s.io/v1" "PriorityClass" "" "system-node-critical") -}}
{{- fail (printf "%spriorityClassName: this cluster has no PriorityClass %s: make it first, or leave system-node-critical" $where .) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A quantity as a number, for comparisons. */ -}}
{{- define "ocivol.number" -}}
{{- $units := dict "" 1 "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18
    "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624 "Ei" 1152921504606846976 -}}
{{- $digits := regexFind "^[0-9]+(\\.[0-9]*)?(e[+-]?[0-9]+)?" (toString .) -}}
{{- mulf (float64 $digits) (get $units (trimPrefix $digits (toString .)) | float64) -}}
{{- end -}}

{{- /* Whether the CSIDriver of this name can be what the values say: it outlives its release (helm.sh/resource-policy), and two of its
fields cannot be changed. */ -}}
{{- define "ocivol.checkLiveDriver" -}}
{{- $name := .Values.driver.name -}}
{{- with lookup "storage.k8s.io/v1" "CSIDriver" "" $name -}}
{{- $owner := default dict .metadata.annotations -}}
{{- $release := get $owner "meta.helm.sh/release-name" -}}
{{- $namespace := get $owner "meta.helm.sh/release-namespace" -}}
{{- if or (ne $release $.Release.Name) (ne $namespace $.Release.Namespace) -}}
{{- $whose := ternary (printf "belongs to the release %s in the namespace %s" $release $namespace) "was not made by helm" (ne $release "") -}}
{{- fail (printf "\n\nThe CSIDriver %s is there, and %s.\nIf another installation uses it, set driver.name to another name. If that one is gone (a CSIDriver stays for the pods that run), take it over:\n\n    kubectl label --overwrite csidriver %s app.kubernetes.io/managed-by=Helm\n    kubectl annotate --overwrite csidriver %s meta.helm.sh/release-name=%s meta.helm.sh/release-namespace=%s\n\nand repeat this.\n" $name $whose $name $name $.Release.Name $.Release.Namespace) -}}
{{- end -}}
{{- $live := .spec.volumeLifecycleModes | uniq | sortAlpha -}}
{{- $wanted := $.Values.driver.volumeLifecycleModes | uniq | sortAlpha -}}
{{- if or (ne (toJson $live) (toJson $wanted)) (ne .spec.attachRequired false) -}}
{{- fail (printf "\n\nThe CSIDriver %s is for %s (attachRequired: %v), and these values make it one for %s (attachRequired: false). The API server changes neither. Pods that run are not concerned when it is made anew; those that begin meanwhile wait:\n\n    kubectl delete csidriver %s\n    helm %s %s … --namespace %s\n" $name (join ", " $live) .spec.attachRequired (join ", " $wanted) $name (ternary "install" "upgrade" $.Release.IsInstall) $.Release.Name $.Release.Namespace) -}}
{{- end -}}
{{- end -}}
{{- end -}}
