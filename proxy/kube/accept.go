package kube

import (
	"mime"
	"net/http"
	"strings"
)

// acceptMasked rewrites what an agent accepts into what masks can be put on: JSON, uncompressed. Tables stay where only the core's Secrets are masked, whose
// columns show no value; the columns of another object may be made of anything in it.
func acceptMasked(h http.Header, tables bool) {
	var out []string
	for _, field := range h.Values("Accept") {
		for _, one := range strings.Split(field, ",") {
			kind, params, err := mime.ParseMediaType(one)
			if err != nil || !tables && params["as"] == "Table" {
				continue
			}
			// What may be asked for as protobuf, CBOR or YAML may be as JSON, too.
			keep := map[string]string{}
			for _, name := range []string{"as", "g", "v"} {
				if params[name] != "" {
					keep[name] = params[name]
				}
			}
			if strings.HasPrefix(kind, "application/") || kind == "*/*" {
				if s := mime.FormatMediaType(typeJSON, keep); s != "" && !contains(out, s) {
					out = append(out, s)
				}
			}
		}
	}
	if len(out) == 0 {
		out = []string{typeJSON}
	}
	h.Set("Accept", strings.Join(out, ","))
	h.Set("Accept-Encoding", "identity")
	h.Del("If-None-Match")
}

// isJSON says whether an answer is JSON that masks can be put on.
func isJSON(h http.Header) bool {
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	charset := strings.ToLower(params["charset"])
	encoding := h.Get("Content-Encoding")
	return err == nil && kind == typeJSON && (charset == "" || charset == "utf-8") && (encoding == "" || encoding == "identity")
}
