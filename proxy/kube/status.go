package kube

import (
	"encoding/json"
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

// writeStatus says a refusal as the API server does (meta/v1 Status), so that clients show it. The class and the record stand in its causes.
func writeStatus(w http.ResponseWriter, status int, no *proxy.Refusal) {
	h := w.Header()
	h.Set("Content-Type", typeJSON)
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{ // an agent that is gone hears nothing
		"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure", "message": "deputy: " + no.Error(), "reason": reasons[status], "code": status,
		"details": map[string]any{"causes": []map[string]string{{"reason": "DeputyClass", "message": no.Class}, {"reason": "DeputyRecord", "message": no.RecordID.String()}}},
	})
}
