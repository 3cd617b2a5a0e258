{{- define "weir.driver" -}}s3.csi.weir.dev{{- end -}}

{{- define "weir.image" -}}
{{- $tagged := printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{ include "weir.pinned" (dict "image" $tagged "digest" .Values.image.digest) }}
{{- end -}}

{{- /* An image by its digest, if there is one: then its tag, which may come to mean another, counts for
     nothing. Call with (dict "image" "registry/name:tag" "digest" "sha256:..."). */ -}}
{{- define "weir.pinned" -}}
{{- if .digest -}}
{{ regexReplaceAll "(:[^:/@]+)?(@.*)?$" .image "" }}@{{ .digest }}
{{- else -}}
{{ .image }}
{{- end -}}
{{- end -}}

{{- define "weir.labels" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- /* Selector labels of one role; call with (dict "root" . "role" "node"). */ -}}
{{- define "weir.selector" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{- /* Folders on the host. The sessions lie beside the plugin's folder, not in it: whoever mounts
     that folder would hold the sessions' mounts, too. */ -}}
{{- define "weir.pluginDir" -}}{{ .Values.kubelet.root }}/plugins/{{ include "weir.driver" . }}{{- end -}}
{{- define "weir.sessionsDir" -}}{{ include "weir.pluginDir" . }}-sessions{{- end -}}

{{- /* Empty volumes by which the mounter knows the pods of its peers: kubelet makes a folder of this
     name for a pod that declares it. */ -}}
{{- define "weir.engineVolume" -}}weir-engine{{- end -}}
{{- define "weir.visitorVolume" -}}weir-visitor{{- end -}}

{{- define "weir.s3Args" -}}
{{- with .Values.s3.endpointUrl }}
- --endpoint-url={{ . }}
{{- end }}
{{- with .Values.s3.region }}
- --region={{ . }}
{{- end }}
{{- if .Values.s3.forcePathStyle }}
- --force-path-style
{{- end }}
{{- end -}}

{{- define "weir.regionArgs" -}}
{{- with .Values.region }}
{{- if .url }}
- --region-url={{ .url }}
{{- range .moreUrls }}
- --region-url={{ . }}
{{- end }}
- --region-kind={{ .kind }}
{{- with .allow }}
- --region-allow={{ join "," . }}
{{- end }}
{{- if or .tokenSecretName .tokenAudience }}
- --region-token-file=/etc/weir/region/token/token
{{- end }}
{{- if .credentialsSecretName }}
- --region-profile=region
{{- end }}
{{- if .caConfigMap }}
- --region-ca-bundle=/etc/weir/region/ca/ca.crt
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Volumes with files for the region, as a list of name, path and source. A folder is mounted, and no
     file in it: kubelet replaces what is in it while the node plugin runs. */ -}}
{{- define "weir.regionFiles" -}}
{{- with .Values.region }}
{{- if and .tokenSecretName .tokenAudience }}
{{- fail "region.tokenSecretName and region.tokenAudience: one of them" }}
{{- end }}
{{- if not .url }}
[]
{{- else }}
{{- $any := false }}
{{- if .tokenSecretName }}{{ $any = true }}
- name: region-token
  path: /etc/weir/region/token
  source: {secret: {secretName: {{ .tokenSecretName }}}}
{{- end }}
{{- if .tokenAudience }}{{ $any = true }}
- name: region-token
  path: /etc/weir/region/token
  source: {projected: {sources: [{serviceAccountToken: {audience: {{ .tokenAudience }}, path: token}}]}}
{{- end }}
{{- if .credentialsSecretName }}{{ $any = true }}
- name: region-keys
  path: /etc/weir/region/keys
  source: {secret: {secretName: {{ .credentialsSecretName }}}}
{{- end }}
{{- if .caConfigMap }}{{ $any = true }}
- name: region-ca
  path: /etc/weir/region/ca
  source: {configMap: {name: {{ .caConfigMap }}}}
{{- end }}
{{- if not $any }}
[]
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "weir.feedArgs" -}}
{{- with .Values.feed }}
{{- range .urls }}
- --feed={{ . }}
{{- end }}
{{- if .urls }}
- --feed-timeout={{ int64 .timeoutSeconds }}
- --feed-metadata-ttl={{ int64 .metadataTtlSeconds }}
{{- if .credentialsSecretName }}
- --feed-credentials-file=/etc/weir/feed/keys/credentials
{{- end }}
{{- if .caConfigMap }}
- --feed-ca-bundle=/etc/weir/feed/ca/ca.crt
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Volumes with files for the feed, as those for the region. */ -}}
{{- define "weir.feedFiles" -}}
{{- with .Values.feed }}
{{- if not (and .urls (or .credentialsSecretName .caConfigMap)) }}
[]
{{- else }}
{{- if .credentialsSecretName }}
- name: feed-keys
  path: /etc/weir/feed/keys
  source: {secret: {secretName: {{ .credentialsSecretName }}}}
{{- end }}
{{- if .caConfigMap }}
- name: feed-ca
  path: /etc/weir/feed/ca
  source: {configMap: {name: {{ .caConfigMap }}}}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The port of the webhook to which a store posts; nothing where there is none. */ -}}
{{- define "weir.webhookPort" -}}
{{- if hasPrefix "webhook://" .Values.feed.from.source }}{{ regexFind "[0-9]+$" .Values.feed.from.source }}{{ end }}
{{- end -}}

{{- /* What the controller is told of where changes are heard of. */ -}}
{{- define "weir.feedFromArgs" -}}
{{- with .Values.feed.from }}
{{- if .source }}
{{- if not $.Values.feed.urls }}
{{- fail "feed.from.source needs feed.urls, where what it says is published" }}
{{- end }}
{{- if gt (int $.Values.controller.replicas) 1 }}
{{- fail "feed.from.source: one controller publishes what it says, so controller.replicas is 1" }}
{{- end }}
{{- include "weir.feedArgs" $ }}
- --feed-from={{ .source }}
{{- with .name }}
- --feed-from-name={{ . }}
{{- end }}
{{- range .buckets }}
- --feed-bucket={{ . }}
{{- end }}
{{- range .canaries }}
- --feed-canary={{ . }}
{{- end }}
- --feed-canary-interval={{ int64 .canaryIntervalSeconds }}
{{- if include "weir.webhookPort" $ }}
{{- if not (and .webhook.tokenSecretName .webhook.tlsSecretName) }}
{{- fail "feed.from.source webhook:// needs feed.from.webhook.tokenSecretName and .tlsSecretName" }}
{{- end }}
- --feed-webhook-token-file=/etc/weir/webhook/token/token
- --feed-webhook-cert=/etc/weir/webhook/tls/tls.crt
- --feed-webhook-key=/etc/weir/webhook/tls/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Volumes with files for that, as those for the region. */ -}}
{{- define "weir.feedFromFiles" -}}
{{- if not .Values.feed.from.source }}
[]
{{- else }}
{{- if include "weir.webhookPort" . }}
- name: webhook-token
  path: /etc/weir/webhook/token
  source: {secret: {secretName: {{ .Values.feed.from.webhook.tokenSecretName }}}}
- name: webhook-tls
  path: /etc/weir/webhook/tls
  source: {secret: {secretName: {{ .Values.feed.from.webhook.tlsSecretName }}}}
{{- else if not (or .Values.feed.credentialsSecretName .Values.feed.caConfigMap) }}
[]
{{- end }}
{{- with include "weir.feedFiles" . | fromYamlArray }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "weir.credentialsEnv" -}}
{{- with .Values.credentials.secretName }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ . }}, key: key_id}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ . }}, key: access_key}}
- name: AWS_SESSION_TOKEN
  valueFrom: {secretKeyRef: {name: {{ . }}, key: session_token, optional: true}}
{{- end }}
{{- end -}}

{{- /* What an unprivileged container of ours may do: nothing. */ -}}
{{- define "weir.unprivileged" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
seccompProfile: {type: RuntimeDefault}
{{- end -}}
