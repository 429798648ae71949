{{/* The name of everything in a namespace: the release's, with "godwit" in it. */}}
{{- define "godwit.name" -}}
{{- if contains "godwit" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-godwit" (.Release.Name | trunc 43 | trimSuffix "-") }}{{ end }}
{{- end }}

{{/* The name of cluster-scoped things: two releases in two namespaces do not meet. */}}
{{- define "godwit.clusterName" -}}
{{ .Release.Namespace }}:{{ include "godwit.name" . }}
{{- end }}

{{- define "godwit.labels" -}}
app.kubernetes.io/name: godwit
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "godwit.image" -}}
{{- $image := .image -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ $image.tag | default .version }}{{ end }}
{{- end }}

{{- define "godwit.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* What a client in a pod needs to log in, with a token that ends in an hour and is renewed by the kubelet. */}}
{{- define "godwit.tokenVolume" -}}
- name: token
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap:
          name: kube-root-ca.crt
          items: [{key: ca.crt, path: ca.crt}]
      - downwardAPI:
          items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]
{{- end }}

{{/* The name of policies, which may not hold a colon. */}}
{{- define "godwit.policyName" -}}
{{ .Release.Namespace }}-{{ include "godwit.name" . }}
{{- end }}

{{/* Users, as expressions of policies compare them. */}}
{{- define "godwit.controllerUser" -}}
"system:serviceaccount:{{ .Release.Namespace }}:{{ include "godwit.name" . }}-controller"
{{- end }}
{{- define "godwit.agentUser" -}}
"system:serviceaccount:{{ .Release.Namespace }}:{{ include "godwit.name" . }}-agent"
{{- end }}

{{/* The node that a token was given to, as the API server found it; empty where it is bound to none. */}}
{{- define "godwit.node" -}}
request.userInfo.?extra[?"authentication.kubernetes.io/node-name"][?0].orValue("")
{{- end }}
{{- define "godwit.noNode" -}}
this token is bound to no node, so it cannot be known which host's agent this is
{{- end }}

{{/* A certificate from the signer by way of the kubelet, and the roots to believe in: renewed while the pod runs. */}}
{{- define "godwit.podCertificate" -}}
- podCertificate:
    signerName: {{ .Values.signer.name }}
    keyType: ECDSAP256
    maxExpirationSeconds: {{ int .Values.signer.longestLifetimeSeconds }}
    credentialBundlePath: bundle.pem
- clusterTrustBundle:
    signerName: {{ .Values.signer.name }}
    labelSelector: {matchLabels: {godwit.dev/trust: agent}}
    path: ca.crt
{{- end }}
