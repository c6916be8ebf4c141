package kube

import (
	"encoding/json"
	"io"
	"net/http"

	"github.com/deputymesh/deputy/proxy"
)

// Classes of the engine's own refusals.
const (
	classMedia = "media_type"
	classBusy  = "busy"
	classLarge = "too_large"
)

// reasons are those of metav1.Status, by status.
var reasons = map[int]string{
	http.StatusBadRequest: "BadRequest", http.StatusUnauthorized: "Unauthorized", http.StatusForbidden: "Forbidden", http.StatusNotFound: "NotFound",
	http.StatusUnsupportedMediaType: "UnsupportedMediaType", http.StatusRequestEntityTooLarge: "RequestEntityTooLarge", http.StatusTooManyRequests: "TooManyRequests",
	http.StatusServiceUnavailable: "ServiceUnavailable", http.StatusBadGateway: "InternalError",
}

// asText makes a refusal a plain text. kubectl shows no other of discovery, which it reads without a look at a Status.
func asText(h http.Header) { h.Set("Content-Type", plainText) }

const plainText = "text/plain; charset=utf-8"

// writeStatus says a refusal as the API server does (meta/v1 Status), so that clients show it. The class and the record stand in its causes.
func writeStatus(w http.ResponseWriter, status int, no *proxy.Refusal) {
	h := w.Header()
	if h.Get("Content-Type") == plainText {
		h.Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "deputy: "+no.Error()+"\n")
		return
	}
	h.Set("Content-Type", typeJSON)
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{ // an agent that is gone hears nothing
		"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure", "message": "deputy: " + no.Error(), "reason": reasons[status], "code": status,
		"details": map[string]any{"causes": []map[string]string{{"reason": "DeputyClass", "message": no.Class}, {"reason": "DeputyRecord", "message": no.RecordID.String()}}},
	})
}
