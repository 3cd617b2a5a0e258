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
