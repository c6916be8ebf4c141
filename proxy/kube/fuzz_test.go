package kube_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"testing"

	"github.com/deputymesh/deputy/proxy/kube"
)

// FuzzMaskedAnswer: whatever an API server answers, no object that comes out of the masks has a value under data or stringData, and what comes out is
// one JSON text.
func FuzzMaskedAnswer(f *testing.F) {
	list := map[string]any{"kind": "SecretList", "items": []any{aSecret(), aSecret()}, "metadata": map[string]any{}}
	table := map[string]any{"kind": "Table", "rows": []any{map[string]any{"cells": []any{"db"}, "object": aSecret()}}}
	for _, seed := range []any{aSecret(), list, table, map[string]any{"type": "ADDED", "object": aSecret()}, map[string]any{"type": "ADDED", "object": table}, map[string]any{"kind": "Status", "status": "Failure", "message": value}} {
		f.Add([]byte(marshal(seed)))
	}
	for _, seed := range []string{`{"items":null}`, `{"items":[null,{}],"items":[]}`, `{"rows":[{}]}`, `{"kind":"Status","data":{"a":"b"}}`, `{"data":[1],"stringData":{"a":{"b":"c"}}}`, `{"items":[{"items":[{"data":{"a":"b"}}]}]}`} {
		f.Add([]byte(seed))
	}
	stand := map[any]bool{kube.Placeholder: true, base64.StdEncoding.EncodeToString([]byte(kube.Placeholder)): true, nil: true}
	check := func(t *testing.T, o any) {
		m, _ := o.(map[string]any)
		for _, name := range []string{"data", "stringData"} {
			if m[name] == nil {
				continue
			}
			values, ok := m[name].(map[string]any)
			if !ok {
				t.Fatalf("%s is %v", name, m[name])
			}
			for _, v := range values {
				if !stand[v] {
					t.Fatalf("%s has %v", name, v)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for line := range bytes.Lines(kube.Frames(text)) {
			var event struct{ Object map[string]any }
			if len(line) > 0 && json.Unmarshal(line, &event) == nil {
				check(t, event.Object)
			}
		}
		out, err := kube.MaskSecrets(text)
		if err != nil {
			return
		}
		var o map[string]any
		if err := json.Unmarshal(out, &o); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		check(t, o)
		for _, name := range []string{"items", "rows"} {
			list, _ := o[name].([]any)
			for _, one := range list {
				if name == "rows" {
					row, _ := one.(map[string]any)
					one = row["object"]
				}
				check(t, one)
			}
		}
	})
}

func FuzzReadMetadata(f *testing.F) {
	for _, seed := range []string{`{"metadata":{"name":"a","namespace":"b"}}`, `[{"op":"add"}]`, `{"a":{"b":[1,2,{"c":null}]}}`, `{"metadata":null}`, "{\"m\\u0065tadata\":{\"name\":\"a\"}}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		name, namespace, err := kube.ReadMetadata(text)
		if err != nil {
			return
		}
		// A second reader, that knows no duplicates, reads the same.
		var o struct {
			Metadata json.RawMessage `json:"metadata"`
		}
		var meta map[string]any
		if json.Unmarshal(text, &o) != nil || json.Unmarshal(o.Metadata, &meta) != nil {
			return
		}
		if n, _ := meta["name"].(string); n != name {
			t.Fatalf("%q is read as %q and %q", text, name, n)
		}
		if n, _ := meta["namespace"].(string); n != namespace {
			t.Fatalf("%q is read as %q and %q", text, namespace, n)
		}
	})
}
