{{- /* Names follow the release, labels are the recommended ones. */ -}}
{{- define "dinoctl.name" -}}
{{- if contains "dinoctl" .Release.Name -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- else -}}{{ printf "%s-dinoctl" (.Release.Name | trunc 32 | trimSuffix "-") }}{{- end -}}
{{- end -}}

{{- define "dinoctl.account" -}}
{{- .Values.operator.serviceAccount.name | default (printf "%s-operator" (include "dinoctl.name" .)) -}}
{{- end -}}

{{- define "dinoctl.selector" -}}
app.kubernetes.io/name: dinoctl
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dinoctl.labels" -}}
{{ include "dinoctl.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* What the operator may work on: the namespaces of its configuration, else its own. JSON, to be read back. */ -}}
{{- define "dinoctl.namespaces" -}}
{{- dict "list" (.Values.operator.config.namespaces | default (list .Release.Namespace) | uniq) | toJson -}}
{{- end -}}

{{- define "dinoctl.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "dinoctl.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
